# SPDX-License-Identifier: MIT
"""The NICs of this machine as sysfs shows them, and which of them a ``dpdk:`` string names.

Nothing here touches DPDK: what a NIC is called, who has it, and what has to be done first is said
before, and without, the environment layer.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import os
import re
import socket
import struct
from pathlib import Path

from machnet.dpdk.records import RUN, Former, Record, load_all

__all__ = [
    "BIFURCATED",
    "SYSFS",
    "USERSPACE",
    "Device",
    "Target",
    "driver_of",
    "find",
    "inventory",
    "resolve",
]

SYSFS = "/sys"
#: Kernel drivers that leave a NIC to the kernel and let DPDK use it too.
BIFURCATED = frozenset({"mana", "mlx4_core", "mlx5_core"})
#: Kernel drivers that hand a NIC over to a process, by bus, the preferred one first.
USERSPACE = {"pci": ("vfio-pci", "uio_pci_generic", "igb_uio"), "vmbus": ("uio_hv_generic",)}

_PCI = re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7])")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_VDEV = re.compile(r"(?:(?:net|eth)_[a-z][a-z0-9_]*|virtio_user[0-9]*)")
#: Network devices of the class; of these, VMBUS devices that are NICs.
_PCI_NETWORK = "0x02"
_VMBUS_NETWORK = "f8615163-df3e-46c5-913f-f2d2f965ed0e"
_ETHERNET = "1"
_SIOCGIFMTU, _SIOCGIFHWADDR = 0x8921, 0x8927
_HARMLESS = frozenset({"", "pci-stub", "pcieport"})
#: Vendors by their PCI number, for people.
_VENDORS = {
    "10ec": "Realtek",
    "1077": "QLogic",
    "1137": "Cisco",
    "1414": "Microsoft",
    "1425": "Chelsio",
    "14e4": "Broadcom",
    "15ad": "VMware",
    "15b3": "NVIDIA",
    "177d": "Marvell",
    "1924": "Solarflare",
    "19e5": "Huawei",
    "1ae0": "Google",
    "1af4": "virtio",
    "1d0f": "Amazon",
    "1dd8": "Pensando",
    "8086": "Intel",
}
_SHOWN_MAX = 12

# The packet ring of net_af_packet. The kernel puts a header before each frame, and cuts off what
# does not fit behind it; the driver (22.11) then hands on the stump as if it were the frame.
_TPACKET_BYTES = 84  # header and its alignment up to the Ethernet header, that one, and a VLAN tag
_FRAME_STEP = 1024
_FRAME_BYTES_MIN = 2048
#: A driver's buffer takes a frame in one piece, and its length is a 16-bit number.
_FRAME_BYTES_MAX = 63 * 1024
_FRAMES = 512


@dataclasses.dataclass(frozen=True)
class Device:
    """A NIC, or a virtual interface.

    Attributes:
        address: PCI address, or VMBUS UUID; "": a virtual interface, or a NIC on another bus.
        bus: "pci", "vmbus", "virtual", or the name of the other bus.
        ident: "VENDOR:DEVICE" in hexadecimal; "" where there is none.
        interfaces: What the kernel calls it now.
        former: What it was called when it was bound (`machnet.dpdk.records`).
        macs: Of these interfaces, in the same order; of the former ones where there are none.
        driver: The kernel driver that has it; "": none.
        usable: Userspace drivers that are loaded and could have it.
        numa_node: Of its slot; None: not known.
        iommu_group: Its number; None: there is no IOMMU.
        group_others: Address and driver of what else is in that group and belongs to the kernel.
        state: "kernel", "bifurcated", "userspace", "none" (no driver), "virtual".
        record: What was remembered when it was bound.
    """

    address: str
    bus: str
    ident: str = ""
    interfaces: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    macs: tuple[str, ...] = ()
    driver: str = ""
    usable: tuple[str, ...] = ()
    numa_node: int | None = None
    iommu_group: int | None = None
    group_others: tuple[tuple[str, str], ...] = ()
    state: str = "kernel"
    record: Record | None = None

    @property
    def vendor(self) -> str:
        """The vendor's name, if it is one of the usual ones."""
        return _VENDORS.get(self.ident.partition(":")[0], "")

    @property
    def name(self) -> str:
        """What to call it on a command line: its interface, else its former one, its address."""
        return (*self.interfaces, *self.former, self.address)[0]

    @property
    def label(self) -> str:
        """For messages: name, and address where that is another."""
        return self.name if self.address in {"", self.name} else f"{self.name} ({self.address})"

    @property
    def mac(self) -> str | None:
        """Its address, if it is known and the only one."""
        return self.macs[0] if len(set(self.macs)) == 1 else None

    @property
    def why_not(self) -> str:
        """Why DPDK can't have it as it is, with the remedy; "": it can."""
        if self.state == "kernel" and self.bus in USERSPACE:
            return (
                f"the kernel has it ({self.driver}): `machnet nic bind {self.name}` takes it from "
                "there, --bind for the time of one run"
            )
        if self.state == "kernel":
            return (
                f"it is on the {self.bus} bus, for which DPDK has no drivers: "
                f"dpdk:net_af_packet0,iface={self.name} goes through the kernel"
            )
        if self.state == "none":
            return f"it has no driver: `machnet nic bind {self.name}` gives it one"
        if self.driver == "vfio-pci" and self.group_others:
            named = _listed([f"{address} ({driver})" for address, driver in self.group_others])
            return f"vfio-pci hands over whole IOMMU groups, and group {self.iommu_group} also has {named}"
        return ""


@dataclasses.dataclass(frozen=True)
class Target:
    """What a ``dpdk:`` string names.

    Attributes:
        devargs: What DPDK is to probe, such as "0000:00:05.0" or "net_af_packet0,iface=veth0"; "" where
            only the candidates are known.
        interface: The kernel's interface that it goes through, which must be up.
        mac: Of its ports, the one that is meant has this address; None: there is one.
        candidates: Instead of ``devargs``: to be probed one after the other until one has the port
            with ``mac``.
        device: The NIC, if it is one.
        room: Bytes that a received frame needs in one buffer, beyond the usual; 0: as usual.
    """

    devargs: str
    interface: str | None = None
    mac: str | None = None
    candidates: tuple[str, ...] = ()
    device: Device | None = None
    room: int = 0


# ---- reading sysfs -------------------------------------------------------------------------------


def _read(path: Path) -> str:
    """A file's text without its newline; "": it is not there, or can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _linked(path: Path) -> str:
    """The last part of what a link points to; "": there is none."""
    try:
        return path.readlink().name
    except OSError:
        return ""


def _number(text: str) -> int | None:
    try:
        number = int(text, 0)
    except ValueError:
        return None
    return None if number < 0 else number


def _children(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _parent(interface: Path) -> tuple[str, str]:
    """The bus and the address of what is behind an interface."""
    device = interface / "device"
    if not device.exists():
        return "virtual", ""
    real = device.resolve()
    if _linked(real / "subsystem") == "virtio":
        real = real.parent
    return _linked(real / "subsystem") or "unknown", real.name


def _group_others(path: Path) -> tuple[tuple[str, str], ...]:
    others = [
        (one.name, _linked(one / "driver")) for one in _children(path / "iommu_group/devices")
    ]
    return tuple(
        (address, driver)
        for address, driver in others
        # What vfio itself allows beside its own drivers: nobody's, and those of bridges.
        if address != path.name and driver not in _HARMLESS and not driver.startswith("vfio")
    )


def _former(records: dict[str, Record], address: str) -> tuple[Former, ...]:
    return records[address].interfaces if address in records else ()


class _Reader:
    """One look at a sysfs."""

    def __init__(self, sysfs: str, run: str) -> None:
        self.root = Path(sysfs)
        self.records = load_all(run)
        self.interfaces: dict[tuple[str, str], list[Path]] = {}
        for path in _children(self.root / "class/net"):
            if path.is_dir():
                self.interfaces.setdefault(_parent(path), []).append(path)

    def devices(self) -> list[Device]:
        found = [
            self._bound("pci", path)
            for path in _children(self.root / "bus/pci/devices")
            if _read(path / "class").startswith(_PCI_NETWORK)
        ]
        found += [
            self._bound("vmbus", path)
            for path in _children(self.root / "bus/vmbus/devices")
            if _read(path / "class_id").strip("{}") == _VMBUS_NETWORK
        ]
        known = {(device.bus, device.address) for device in found}
        others = [
            self._unbound(bus, path)
            for (bus, address), paths in self.interfaces.items()
            if (bus, address) not in known
            for path in paths
        ]
        return found + sorted(others, key=lambda one: (one.state == "virtual", one.name))

    def _bound(self, bus: str, path: Path) -> Device:
        """A device of a bus whose drivers can be changed."""
        address = path.name
        now = self.interfaces.get((bus, address), [])
        # A NIC that the kernel has again, without us, is as it is.
        former = () if now else _former(self.records, address)
        driver = _linked(path / "driver")
        if driver in USERSPACE[bus]:
            state = "userspace"
        elif not driver:
            state = "none"
        else:
            state = "bifurcated" if driver in BIFURCATED else "kernel"
        ident = ":".join(_read(path / part).removeprefix("0x") for part in ("vendor", "device"))
        loaded = self.root / f"bus/{bus}/drivers"
        return Device(
            address=address,
            bus=bus,
            ident=ident if ident != ":" else "",
            interfaces=tuple(one.name for one in now),
            former=tuple(one.name for one in former),
            macs=tuple(_read(one / "address").lower() for one in now)
            or tuple(one.mac for one in former),
            driver=driver,
            usable=tuple(name for name in USERSPACE[bus] if (loaded / name).is_dir()),
            numa_node=_number(_read(path / "numa_node")),
            iommu_group=_number(_linked(path / "iommu_group")),
            group_others=_group_others(path),
            state=state,
            record=None if now else self.records.get(address),
        )

    def _unbound(self, bus: str, path: Path) -> Device:
        """A virtual interface, or one whose bus DPDK does not know."""
        return Device(
            address="",
            bus=bus,
            interfaces=(path.name,),
            macs=(_read(path / "address").lower(),),
            driver=_linked(path / "device/driver"),
            state="virtual" if bus == "virtual" else "kernel",
        )


def inventory(sysfs: str = SYSFS, run: str = RUN) -> list[Device]:
    """All NICs and network interfaces, NICs first, each kind in the order of their addresses.

    Args:
        sysfs: Where sysfs is.
        run: Where NICs that are bound are remembered.
    """
    found = _Reader(sysfs, run).devices()
    if sysfs != SYSFS:
        return found
    # A sysfs shows the network namespace in which it was mounted, which may not be ours: of interfaces
    # that are nothing but names there, ours are right.
    try:
        ours = [name for _, name in socket.if_nameindex()]
    except OSError:
        return found
    real = [device for device in found if device.state != "virtual"]
    known = {name for device in real for name in device.interfaces}
    return real + [
        Device("", "virtual", interfaces=(name,), macs=(_hardware(name)[1],), state="virtual")
        for name in sorted(ours)
        if name not in known
    ]


def _ask(name: str, request: int) -> bytes:
    """What the kernel answers about an interface of this namespace; b"": nothing."""
    import fcntl

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            given = struct.pack("16s24x", os.fsencode(name))
            return fcntl.ioctl(sock, request, given)[16:]
    except OSError:
        return b""


def _hardware(name: str) -> tuple[str, str]:
    """Type and MAC address; "": unknown."""
    said = _ask(name, _SIOCGIFHWADDR)
    if not said:
        return "", ""
    return str(struct.unpack_from("H", said)[0]), said[2:8].hex(":")


# ---- names ---------------------------------------------------------------------------------------


def _pci(text: str) -> str | None:
    """A PCI address as the kernel writes it; None: it is none."""
    match = _PCI.fullmatch(text.removeprefix("pci:"))
    return match and f"{match[1] or '0000'}:{match[2]}".lower()


def _uuid(text: str) -> str | None:
    match = _UUID.fullmatch(text.removeprefix("vmbus:"))
    return match and match[0].lower()


def _listed(words: list[str]) -> str:
    shown = words[:_SHOWN_MAX]
    more = f" and {len(words) - len(shown)} more" if len(words) > len(shown) else ""
    return (", ".join(shown) + more) or "none"


def _unknown(name: str, devices: list[Device]) -> OSError:
    names = [
        word for one in devices for word in (*one.interfaces, *one.former, one.address) if word
    ]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    there = _listed([device.label for device in devices if device.name != "lo"])
    return OSError(errno.ENODEV, f"there is no NIC {name!r}: {hint}There are {there}")


def _by_mac(mac: str, devices: list[Device]) -> list[Device]:
    """Who has a MAC address, less those that only borrow it."""
    found = [device for device in devices if mac in device.macs]
    # Bonds, bridges and VLANs carry the address of a NIC below them.
    real = [device for device in found if device.state != "virtual"]
    # Of a NIC of Hyper-V the fast path is a PCI function with the same address.
    vmbus = [device for device in real if device.bus == "vmbus"]
    return vmbus if len(vmbus) == 1 else real or found


def find(name: str, sysfs: str = SYSFS, run: str = RUN) -> Device:
    """The NIC with a name: the kernel's, a former one, PCI address, VMBUS UUID or MAC address.

    Raises:
        OSError: ``ENODEV``: there is none, or no network device; ``ENOTUNIQ``: there are several.
    """
    return _find(name, inventory(sysfs, run), sysfs)


def _find(name: str, devices: list[Device], sysfs: str) -> Device:
    address = _pci(name) or _uuid(name)
    if address is not None:
        for device in devices:
            if device.address == address:
                return device
        kind = _read(Path(sysfs) / f"bus/pci/devices/{address}/class")
        if kind:
            text = f"{address} is no network device: its class is {kind}, not 0x02...."
            raise OSError(errno.ENODEV, text)
        raise _unknown(address, devices)
    if _MAC.fullmatch(name):
        found = _by_mac(name.lower(), devices)
        if len(found) > 1:
            labels = _listed([device.label for device in found])
            text = f"{len(found)} NICs have the MAC address {name.lower()}: {labels}; say which one"
            raise OSError(errno.ENOTUNIQ, text)
        if found:
            return found[0]
        known = _listed(
            [f"{one.macs[0]} ({one.name})" for one in devices if any(one.macs) and one.name != "lo"]
        )
        text = f"no NIC has the MAC address {name.lower()}. There are {known}"
        raise OSError(errno.ENODEV, text)
    for device in devices:
        if name in device.interfaces:
            return device
    for device in devices:
        if name in device.former:
            return device
    raise _unknown(name, devices)


# ---- what DPDK is to be told ---------------------------------------------------------------------


def resolve(
    rest: str,
    *,
    sysfs: str = SYSFS,
    run: str = RUN,
    queues: int = 1,
    mtu: int | None = None,
    number: int = 0,
) -> Target:
    """What the part of a NIC string behind ``dpdk:`` names.

    Args:
        rest: An interface, PCI address, VMBUS UUID, MAC address, or a virtual device of DPDK; device
            arguments may follow behind a comma.
        sysfs: Where sysfs is.
        run: Where NICs that are bound are remembered.
        queues: Wanted of a virtual interface.
        mtu: Bytes that are wanted of a virtual interface; None: what it has.
        number: Of a virtual device that is made for a virtual interface; one that this process has not
            used.

    Raises:
        ValueError: It is no such name.
        OSError: There is no such NIC, or the kernel has it; the text says what helps.
    """
    name, comma, args = rest.removeprefix("vdev:").partition(",")
    if not name or (comma and not args):
        raise ValueError(f"dpdk:{rest}: a name, and behind a comma its device arguments")
    devices = inventory(sysfs, run)
    shown = {word for device in devices for word in (*device.interfaces, *device.former)}
    if name not in shown and _VDEV.fullmatch(name):
        return _virtual_device(name, args, devices, sysfs, queues, mtu)
    try:
        device = _find(name, devices, sysfs)
    except OSError as error:
        candidates = tuple(f"{_bus_name(one)}{comma}{args}" for one in devices if _nameless(one))
        if error.errno != errno.ENODEV or not _MAC.fullmatch(name) or not candidates:
            raise
        # The kernel no longer knows the addresses of these: their driver will.
        return Target("", mac=name.lower(), candidates=candidates)
    if device.state == "virtual":
        if args:
            raise ValueError(
                f"dpdk:{rest}: {name} is a virtual interface; device arguments go with a driver, as in "
                f"dpdk:net_af_packet0,iface={device.name},{args}"
            )
        ring = f"net_af_packet{number}"
        return _virtual_device(ring, f"iface={device.name}", devices, sysfs, queues, mtu)
    if device.why_not:
        raise OSError(errno.EBUSY, f"{device.label}: {device.why_not}")
    wanted = None
    if len(device.macs) > 1:  # a function with several ports
        names = device.interfaces or device.former
        at = names.index(name) if name in names else None
        wanted = (
            device.macs[at] if at is not None else name.lower() if _MAC.fullmatch(name) else None
        )
    return Target(f"{_bus_name(device)}{comma}{args}", mac=wanted, device=device)


def driver_of(name: str) -> str:
    """The driver of a virtual device: its name less its number."""
    return name.rstrip("0123456789")


def _bus_name(device: Device) -> str:
    return device.address if device.bus == "pci" else f"{device.bus}:{device.address}"


def _nameless(device: Device) -> bool:
    return device.state == "userspace" and not any(device.macs)


def _virtual_device(
    name: str, args: str, devices: list[Device], sysfs: str, queues: int, mtu: int | None
) -> Target:
    given = dict(part.partition("=")[::2] for part in args.split(",") if part)
    driver = driver_of(name)
    if driver not in {"net_af_packet", "eth_af_packet", "net_af_xdp"}:
        return Target(f"{name},{args}" if args else name)
    interface = given.get("iface", "")
    if not interface:
        raise ValueError(f"{name}: iface=NAME is missing, the interface that it goes through")
    if not any(interface in device.interfaces for device in devices):
        raise _unknown(interface, devices)
    kind = _type(interface, sysfs) or _ETHERNET
    if kind != _ETHERNET:
        raise OSError(
            errno.EPROTONOSUPPORT, f"{interface} carries no Ethernet frames (type {kind})"
        )
    room = 0
    if driver != "net_af_xdp":
        if not given.keys() & {"framesz", "blocksz", "framecnt"}:
            given |= _ring_sizes(interface, max(mtu or 0, _mtu(interface, sysfs)))
        if given.setdefault("qpairs", str(queues)) not in {"1", str(queues)}:
            # The kernel spreads frames over all sockets, also those that nobody would read.
            has = "there is 1 queue" if queues == 1 else f"there are {queues} queues"
            raise ValueError(f"{name}: qpairs={given['qpairs']}: {has}")
        room = _number(given.get("framesz", "")) or _FRAME_BYTES_MIN
    text = ",".join(f"{key}={value}" for key, value in given.items())
    return Target(f"{name},{text}", interface=interface, room=room)


def _ring_sizes(interface: str, mtu: int) -> dict[str, str]:
    """Frames that hold what the interface may carry, in blocks of whole pages."""
    need = max(mtu + _TPACKET_BYTES, _FRAME_BYTES_MIN)
    frame = -(-need // _FRAME_STEP) * _FRAME_STEP
    if frame > _FRAME_BYTES_MAX:
        most = _FRAME_BYTES_MAX - _TPACKET_BYTES
        text = f"{interface}: its MTU is {mtu}, and net_af_packet takes at most {most} bytes"
        raise OSError(errno.EMSGSIZE, f"{text}: ip link set {interface} mtu {most}")
    # Four frames of whole kilobytes always fill whole pages; the kernel and the driver count in
    # frames per block, so that nothing may be left over in one.
    return {"blocksz": str(4 * frame), "framesz": str(frame), "framecnt": str(_FRAMES)}


def _mtu(interface: str, sysfs: str) -> int:
    """Bytes; 0: nobody says."""
    if sysfs == SYSFS:
        said = _ask(interface, _SIOCGIFMTU)
        return int(struct.unpack_from("i", said)[0]) if said else 0
    return _number(_read(Path(sysfs) / f"class/net/{interface}/mtu")) or 0


def _type(interface: str, sysfs: str) -> str:
    """The kernel's number of what it carries; "": nobody says."""
    if sysfs == SYSFS:
        return _hardware(interface)[0]
    return _read(Path(sysfs) / f"class/net/{interface}/type")
