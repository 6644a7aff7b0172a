# SPDX-License-Identifier: MIT
"""A sysfs of plain files with NICs in it, and a thread that reacts to what is written, as a kernel would.

Code under test reads and writes the same files as below ``/sys``; it may be another process. The reaction
comes a moment after the write (inotify), where the kernel's comes during it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import select
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from machnet.dpdk.bind import Machine
from machnet.dpdk.links import Links
from machnet.dpdk.records import Former

_IN_CLOSE_WRITE = 8
NETVSC_CLASS = "f8615163-df3e-46c5-913f-f2d2f965ed0e"


@dataclass
class FakeNic:
    """A device of a bus, as the fake kernel knows it."""

    bus: str
    address: str
    path: Path
    native: str
    #: Interface and MAC address, of each port.
    ports: list[tuple[str, str]]
    virtio: int | None = None
    group: int | None = None
    mtu: int = 1500


@dataclass
class FakeSysfs:
    """A fake ``/sys`` and ``/run/machnet/nic`` below a directory of the test's own."""

    root: Path
    nics: dict[str, FakeNic] = field(default_factory=dict)
    #: Drivers whose probe fails.
    refusing: set[str] = field(default_factory=set)
    #: Whether vfio-pci takes a device without an IOMMU.
    noiommu: bool = False
    #: To be told of each driver that is loaded.
    on_load: list[Callable[[Path], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for bus in ("pci", "vmbus", "virtio"):
            for part in ("devices", "drivers"):
                (self.sys / "bus" / bus / part).mkdir(parents=True)
            self._file(self.sys / "bus" / bus / "drivers_probe", "")
        for part in ("class/net", "kernel/iommu_groups", "devices/virtual/net"):
            (self.sys / part).mkdir(parents=True)

    @property
    def sys(self) -> Path:
        return self.root / "sys"

    @property
    def sysfs(self) -> str:
        return str(self.sys)

    @property
    def run(self) -> str:
        return str(self.root / "run/machnet/nic")

    @staticmethod
    def _file(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    @staticmethod
    def _link(path: Path, to: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(to, path.parent))

    def load(self, driver: str, bus: str = "pci") -> Path:
        """As modprobe does."""
        path = self.sys / "bus" / bus / "drivers" / driver
        for part in ("bind", "unbind"):
            if not (path / part).exists():
                self._file(path / part, "")
        for tell in self.on_load:
            tell(path)
        return path

    def pci(
        self,
        address: str,
        driver: str = "e1000",
        interface: str | None = None,
        mac: str = "52:54:00:12:34:56",
        *,
        ident: str = "8086:100e",
        kind: str = "0x020000",
        numa: int = -1,
        group: int | None = None,
        ports: list[tuple[str, str]] | None = None,
        virtio: int | None = None,
        bound: bool = True,
    ) -> FakeNic:
        """Plug in a PCI function; ``driver`` is the kernel's for it."""
        path = self.sys / "devices/pci0000:00" / address
        vendor, device = ident.split(":")
        for name, text in {
            "class": kind,
            "vendor": f"0x{vendor}",
            "device": f"0x{device}",
            "numa_node": str(numa),
            "driver_override": "(null)",
        }.items():
            self._file(path / name, f"{text}\n")
        self._link(path / "subsystem", self.sys / "bus/pci")
        self._link(self.sys / "bus/pci/devices" / address, path)
        if ports is None:
            ports = [(interface, mac)] if interface is not None else []
        if group is not None:
            folder = self.sys / f"kernel/iommu_groups/{group}"
            (folder / "devices").mkdir(parents=True, exist_ok=True)
            self._link(path / "iommu_group", folder)
            self._link(folder / "devices" / address, path)
        nic = FakeNic("pci", address, path, driver, ports, virtio, group)
        return self._plug(nic, bound)

    def vmbus(
        self,
        uuid: str,
        interface: str = "eth1",
        mac: str = "00:0d:3a:00:00:01",
        *,
        bound: bool = True,
    ) -> FakeNic:
        """Plug in a NIC of Hyper-V."""
        path = self.sys / "devices/LNXSYSTM:00/VMBUS:00" / uuid
        self._file(path / "class_id", f"{{{NETVSC_CLASS}}}\n")
        self._file(path / "driver_override", "(null)\n")
        self._link(path / "subsystem", self.sys / "bus/vmbus")
        self._link(self.sys / "bus/vmbus/devices" / uuid, path)
        return self._plug(FakeNic("vmbus", uuid, path, "hv_netvsc", [(interface, mac)]), bound)

    def virtual(
        self, name: str, mac: str = "02:00:00:00:00:0a", *, mtu: int = 1500, kind: int = 1
    ) -> None:
        """Make an interface that has no device."""
        path = self.sys / "devices/virtual/net" / name
        self._interface(path, mac, mtu, kind)

    def other(self, name: str, bus: str, mac: str = "02:00:00:00:00:0b") -> None:
        """Plug in a NIC of another bus."""
        path = self.sys / f"devices/{bus}1/1-1:1.0"
        self._link(path / "subsystem", self.sys / "bus" / bus)
        self._interface(path / "net" / name, mac, 1500, 1)
        self._link(path / "net" / name / "device", path)

    def _interface(self, path: Path, mac: str, mtu: int, kind: int) -> None:
        for name, text in {"address": mac, "mtu": mtu, "type": kind}.items():
            self._file(path / name, f"{text}\n")
        self._link(self.sys / "class/net" / path.name, path)

    def _plug(self, nic: FakeNic, bound: bool) -> FakeNic:
        self.nics[nic.address] = nic
        self.load(nic.native, nic.bus)
        if bound:
            self.attach(nic, nic.native)
        return nic

    # ---- what the kernel does --------------------------------------------------------------------

    def attach(self, nic: FakeNic, driver: str) -> None:
        """A driver's probe succeeds."""
        if driver == nic.native:
            holder = nic.path
            if nic.virtio is not None:
                holder = nic.path / f"virtio{nic.virtio}"
                self._link(holder / "subsystem", self.sys / "bus/virtio")
            for name, mac in nic.ports:
                self._interface(holder / "net" / name, mac, nic.mtu, 1)
                self._link(holder / "net" / name / "device", holder)
        self._link(nic.path / "driver", self.sys / "bus" / nic.bus / "drivers" / driver)

    def detach(self, nic: FakeNic) -> None:
        """The driver lets go."""
        for name, _ in nic.ports:
            (self.sys / "class/net" / name).unlink(missing_ok=True)
        for folder in (nic.path / "net", nic.path / f"virtio{nic.virtio}"):
            _remove(folder)
        (nic.path / "driver").unlink(missing_ok=True)

    def probe(self, nic: FakeNic) -> None:
        """Look for a driver."""
        if (nic.path / "driver").is_symlink():
            return
        wanted = (nic.path / "driver_override").read_text(encoding="utf-8").strip()
        driver = wanted if wanted not in {"", "(null)"} else nic.native
        if (
            not (self.sys / "bus" / nic.bus / "drivers" / driver).is_dir()
            or driver in self.refusing
        ):
            return
        if driver != "vfio-pci" or nic.group is not None or self.noiommu:
            self.attach(nic, driver)

    def written(self, path: Path) -> None:
        """Something was written to a control file."""
        text = path.read_text(encoding="utf-8").strip()
        nic = self.nics.get(text)
        if nic is None:
            return
        if path.name == "drivers_probe":
            self.probe(nic)
        elif path.name == "unbind" and (nic.path / "driver").resolve() == path.parent:
            self.detach(nic)
        elif path.name == "bind" and path.parent.name not in self.refusing:
            self.attach(nic, path.parent.name)

    def driver(self, address: str) -> str:
        """The driver that has a device now; "": none."""
        link = self.nics[address].path / "driver"
        return link.readlink().name if link.is_symlink() else ""


def _remove(folder: Path) -> None:
    if not folder.is_dir() or folder.is_symlink():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            _remove(path)
        else:
            path.unlink()
    folder.rmdir()


class Reacting:
    """While entered, a thread does what the kernel would do when control files are written."""

    def __init__(self, tree: FakeSysfs) -> None:
        self._tree = tree
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._stop = os.pipe()
        self._thread = threading.Thread(target=self._work, name="fake kernel")
        self._folders: dict[int, Path] = {}
        #: What went wrong in the thread.
        self.failed: BaseException | None = None

    def __enter__(self) -> FakeSysfs:
        self._fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        assert self._fd >= 0
        for control in (self._tree.sys / "bus").glob("*/drivers_probe"):
            self._watch(control.parent)
            for driver in (control.parent / "drivers").iterdir():
                self._watch(driver)
        self._tree.on_load.append(self._watch)
        self._thread.start()
        return self._tree

    def _watch(self, folder: Path) -> None:
        watch = self._libc.inotify_add_watch(self._fd, os.fsencode(folder), _IN_CLOSE_WRITE)
        assert watch >= 0
        self._folders[watch] = folder

    def __exit__(self, *exc: object) -> None:
        self._tree.on_load.clear()
        os.close(self._stop[1])
        self._thread.join()
        os.close(self._stop[0])
        os.close(self._fd)
        assert self.failed is None, self.failed

    def _work(self) -> None:
        try:
            while self._stop[0] not in select.select([self._fd, self._stop[0]], [], [])[0]:
                data = os.read(self._fd, 65536)
                while data:
                    watch, _, _, length = struct.unpack_from("iIII", data)
                    name = data[16 : 16 + length].rstrip(b"\0").decode()
                    data = data[16 + length :]
                    self._tree.written(self._folders[watch] / name)
        except BaseException as error:
            self.failed = error


class FakeLinks(Links):
    """What would be asked of the host's interfaces, and what it was told to restore."""

    def __init__(self) -> None:
        self.known: dict[str, Former] = {}
        self.default: set[str] = set()
        self.elsewhere: set[str] = set()
        self.restored: list[tuple[Former, str]] = []
        self.refusal: OSError | None = None

    def here(self, name: str) -> bool:
        return name not in self.elsewhere

    def former(self, name: str, mac: str) -> Former:
        return self.known.get(name, Former(name, mac))

    def has_default_route(self, name: str) -> bool:
        return name in self.default

    def restore(self, former: Former, name: str) -> None:
        self.restored.append((former, name))
        if self.refusal is not None:
            raise self.refusal


def fake_machine(tree: FakeSysfs) -> Machine:
    """A machine without modprobe whose devices are in the tree; it waits for a busy test machine."""
    return Machine(
        sysfs=tree.sysfs,
        run=tree.run,
        proc=str(tree.root / "proc"),
        links=FakeLinks(),
        load=lambda driver: f"Module {driver} not found.",
        lock_s=0.2,
        patience_s=20,
        interface_s=20,
    )


def hasty(machine: Machine) -> Machine:
    """The same for what is not going to happen."""
    return dataclasses.replace(machine, patience_s=1, interface_s=1)
