# SPDX-License-Identifier: MIT
"""Taking NICs from the kernel for DPDK, and giving them back.

A NIC is handed from one kernel driver to another by sysfs: ``driver_override`` says which driver it is
to have, ``unbind`` takes it from the one it has, ``drivers_probe`` lets the kernel look again. What the
kernel forgets thereby is remembered first (`machnet.dpdk.records`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from machnet.dpdk.devices import SYSFS, USERSPACE, Device, find
from machnet.dpdk.links import Links
from machnet.dpdk.records import RUN, Former, Owner, Record, forget, load_all, opened, remember

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["Machine", "bind", "orphans", "unbind", "used_for", "users"]

_NO_IOMMU = (
    "vfio-pci needs an IOMMU, and the kernel has none for this NIC (VT-d or AMD-Vi in the firmware's "
    "settings, intel_iommu=on on the kernel's command line; a virtual machine may have none)"
)
_UNSAFE = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"
_REMEDY_NO_IOMMU = (
    "`modprobe uio_pci_generic` loads a driver that needs none, and `modprobe vfio-pci` with "
    f"`echo 1 > {_UNSAFE}` lets vfio-pci do without; either way the NIC can write to all memory"
)


def modprobe(driver: str) -> str:
    """Load a driver.

    Returns:
        Why it could not be loaded; "": it was.
    """
    tool = shutil.which("modprobe", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if tool is None:
        return "there is no modprobe here"
    done = subprocess.run([tool, "--", driver], check=False, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip() or "modprobe failed"


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where things are; other places are for tests.

    Attributes:
        sysfs: Of the kernel.
        run: Where NICs that are bound are remembered.
        proc: To find out who has a NIC open.
        links: The host's interfaces.
        load: Loads a driver, and says why it could not.
        lock_s: How long another one may be at work here.
        patience_s: How long a driver may take to let go or to begin.
        interface_s: How long an interface may take to come back.
    """

    sysfs: str = SYSFS
    run: str = RUN
    proc: str = "/proc"
    links: Links = dataclasses.field(default_factory=Links)
    load: Callable[[str], str] = modprobe
    lock_s: float = 20.0
    patience_s: float = 2.0
    interface_s: float = 10.0

    def find(self, name: str) -> Device:
        """See `machnet.dpdk.devices.find`."""
        return find(name, self.sysfs, self.run)

    def node(self, device: Device) -> Path:
        """The directory of a device."""
        return Path(self.sysfs) / "bus" / device.bus / "devices" / device.address


# ---- what stands against it ----------------------------------------------------------------------


def _refuse(number: int, device: Device, why: str) -> NoReturn:
    raise OSError(number, f"{device.label}: {why}")


def _check_kind(device: Device) -> None:
    if device.state == "virtual":
        _refuse(
            errno.EOPNOTSUPP,
            device,
            f"a virtual interface has no driver to change; DPDK uses it as it is: --nic {device.name}",
        )
    if device.bus not in USERSPACE:
        _refuse(errno.EOPNOTSUPP, device, device.why_not)
    if device.state == "bifurcated":
        _refuse(
            errno.EOPNOTSUPP,
            device,
            f"{device.driver} serves the kernel and DPDK at once, there is nothing to bind: "
            f"--nic {device.name}",
        )


def _check_permission(device: Device, machine: Machine) -> None:
    path = machine.node(device) / "driver_override"
    if not path.exists():
        _refuse(errno.EOPNOTSUPP, device, f"this kernel is too old: there is no {path}")
    if os.access(path, os.W_OK):
        return
    if os.geteuid() != 0:
        _refuse(errno.EPERM, device, "changing the driver of a NIC takes root: sudo")
    _refuse(errno.EROFS, device, f"{path} can't be written, as in a container; bind it outside")


def used_for(device: Device, machine: Machine | None = None) -> list[str]:
    """Why `bind` would not take a NIC from the kernel: what the kernel uses it for.

    Args:
        device: The NIC.
        machine: Where things are.
    """
    machine = machine or Machine()
    return _uses(device, _interfaces(device, machine), machine)


def _uses(device: Device, interfaces: tuple[Former, ...], machine: Machine) -> list[str]:
    reasons = []
    for one in interfaces:
        if one.name in device.interfaces and not machine.links.here(one.name):
            reasons.append("it is in another network namespace, and nobody here sees what for")
        if machine.links.has_default_route(one.name):
            reasons.append("it carries the default route")
        reasons += [f"it has the address {text}" for text in one.addresses]
        master = Path(machine.sysfs) / "class/net" / one.name / "master"
        if master.is_symlink():
            reasons.append(f"it is a port of {master.readlink().name}")
    return reasons


def _check_use(device: Device, interfaces: tuple[Former, ...], machine: Machine) -> None:
    """Refuse to take away what this machine needs."""
    reasons = _uses(device, interfaces, machine)
    if reasons:
        _refuse(
            errno.EBUSY,
            device,
            f"the kernel uses it: {', '.join(reasons)}. "
            f"`machnet nic bind --force {device.name}` takes it all the same",
        )


def _check_group(device: Device, together: Collection[str]) -> None:
    """A process gets a device by vfio only when nobody else has a part of its group."""
    others = [other for other in device.group_others if other[0] not in together]
    if others:
        named = ", ".join(f"{address} ({driver})" for address, driver in others)
        _refuse(
            errno.EBUSY,
            device,
            f"its IOMMU group {device.iommu_group} also has {named}: vfio-pci hands over whole groups. "
            "Name all of them in one `machnet nic bind`, if they are NICs; another slot, if not",
        )


def users(device: Device, machine: Machine | None = None) -> list[int]:
    """The processes that have a NIC open by its userspace driver, as far as we may see.

    Args:
        device: The NIC.
        machine: Where things are.
    """
    machine = machine or Machine()
    nodes = {f"/dev/vfio/{prefix}{device.iommu_group}" for prefix in ("", "noiommu-")}
    with contextlib.suppress(OSError):
        nodes |= {f"/dev/{path.name}" for path in (machine.node(device) / "uio").iterdir()}
    found = []
    for folder in Path(machine.proc).glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(os.readlink(fd) in nodes for fd in folder.iterdir()):  # noqa: PTH115 - not a path
                found.append(int(folder.parent.name))
    return sorted(found)


# ---- which driver --------------------------------------------------------------------------------


def _unsafe(machine: Machine) -> bool:
    path = Path(machine.sysfs) / "module/vfio/parameters/enable_unsafe_noiommu_mode"
    try:
        return path.read_text(encoding="ascii").strip() in {"Y", "1"}
    except OSError:
        return False


def _loaded(driver: str, bus: str, machine: Machine) -> bool:
    return (Path(machine.sysfs) / "bus" / bus / "drivers" / driver).is_dir()


def _choose(device: Device, driver: str | None, machine: Machine) -> str:
    """The driver to bind a NIC to, which is loaded."""
    known = USERSPACE[device.bus]
    if driver is not None and driver not in known:
        raise ValueError(f"driver {driver!r}: on the {device.bus} bus it is {' or '.join(known)}")
    iommu = device.iommu_group is not None or _unsafe(machine)
    if driver is not None:
        wanted = [driver]
    elif device.bus != "pci":
        wanted = [known[0]]
    else:
        wanted = ["vfio-pci"] if iommu else ["uio_pci_generic", "igb_uio"]
    if wanted == ["vfio-pci"] and not iommu:
        _refuse(errno.ENODEV, device, f"{_NO_IOMMU}. {_REMEDY_NO_IOMMU}")
    for name in wanted:
        if _loaded(name, device.bus, machine):
            return name
    why = machine.load(wanted[0])
    if _loaded(wanted[0], device.bus, machine):
        return wanted[0]
    more = f" {_NO_IOMMU}. {_REMEDY_NO_IOMMU}" if device.bus == "pci" and not iommu else ""
    said = f" ({why})" if why else ""
    _refuse(
        errno.ENODEV, device, f"no userspace driver is loaded: `modprobe {wanted[0]}`{said}.{more}"
    )


# ---- handing over --------------------------------------------------------------------------------


def _write(path: Path, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from error


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    """Look until it is done; the kernel tells nobody."""
    end = time.monotonic() + seconds
    pause = 0.001
    while not done():
        if time.monotonic() >= end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return True


def _driver(node: Path) -> str:
    try:
        return (node / "driver").readlink().name
    except OSError:
        return ""


def _release(device: Device, machine: Machine, override: str) -> None:
    """Take a device from the driver it has, and say which one is next."""
    node = machine.node(device)
    # "\n" lets the kernel choose.
    _write(node / "driver_override", f"{override}\n")
    if _driver(node):
        _write(node / "driver" / "unbind", device.address)
        if not _wait(lambda: not _driver(node), machine.patience_s):
            _refuse(errno.EBUSY, device, f"{_driver(node)} does not let go of it")


def _probe(device: Device, machine: Machine, control: str, right: Callable[[str], bool]) -> str:
    """Let the kernel look for a driver; why it did not find a right one, or ""."""
    node = machine.node(device)
    bus = Path(machine.sysfs) / "bus" / device.bus
    said = "the kernel does not say why; `dmesg` may"
    try:
        _write(bus / control, device.address)
    except OSError as error:
        said = str(error.strerror)
    return "" if _wait(lambda: right(_driver(node)), machine.patience_s) else said


@contextlib.contextmanager
def _locked(machine: Machine) -> Iterator[None]:
    """One at a time."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with opened(machine.run, make=True) as folder:
        fd = os.open("lock", flags, 0o600, dir_fd=folder)
    try:

        def free() -> bool:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        if not _wait(free, machine.lock_s):
            text = (
                "another process is changing the driver of a NIC and does not end; it may wait for a process "
                "that has the NIC open"
            )
            raise OSError(errno.EBUSY, text)
        yield
    finally:
        os.close(fd)


def bind(
    name: str,
    driver: str | None = None,
    *,
    force: bool = False,
    owner: Owner | None = None,
    together: Collection[str] = (),
    machine: Machine | None = None,
) -> Device:
    """Take a NIC from the kernel and give it a userspace driver. One that has it stays as it is.

    Args:
        name: Interface, PCI address, VMBUS UUID or MAC address.
        driver: One of `machnet.dpdk.devices.USERSPACE`; None: vfio-pci where there is an IOMMU, else
            uio_pci_generic; uio_hv_generic on Hyper-V.
        force: Also when the kernel uses it.
        owner: The process that needs it; None: it stays bound.
        together: Addresses of NICs that are bound along with it.
        machine: Where things are.

    Returns:
        The NIC as it is then.

    Raises:
        ValueError: There is no such driver for it.
        OSError: It can't be; the text says why, and what helps. It is as it was.
    """
    machine = machine or Machine()
    # Also so that a record is not written for one who must not: it takes root.
    _check_permission_of(machine.find(name), machine)
    with _locked(machine):
        device = machine.find(name)
        if device.state == "userspace" and driver in {None, device.driver}:
            return _adopt(device, owner, machine)
        former = _interfaces(device, machine)
        if not force:
            _check_use(device, former, machine)
        chosen = _choose(device, driver, machine)
        if chosen == "vfio-pci":
            _check_group(device, together)
        _check_users(device, machine)
        record = Record(
            address=device.address,
            bus=device.bus,
            driver=device.record.driver if device.record else device.driver,
            bound=chosen,
            interfaces=former,
            owner=owner,
        )
        remember(record, machine.run)
        try:
            _release(device, machine, chosen)
            said = _probe(device, machine, "drivers_probe", lambda now: now == chosen)
            if said:
                _refuse(errno.EIO, device, f"{chosen} did not take it: {said}{_hint(chosen)}")
        except BaseException:
            _give_back(device, record, machine)
            raise
        return machine.find(device.address)


def _check_permission_of(device: Device, machine: Machine) -> None:
    _check_kind(device)
    _check_permission(device, machine)


def _hint(driver: str) -> str:
    if driver == "uio_pci_generic":
        return ". It needs a NIC with a legacy interrupt, which virtual functions have not"
    return ""


def _interfaces(device: Device, machine: Machine) -> tuple[Former, ...]:
    if device.record is not None:
        return device.record.interfaces
    pairs = zip(device.interfaces, device.macs, strict=True)
    return tuple(machine.links.former(name, mac) for name, mac in pairs)


def _adopt(device: Device, owner: Owner | None, machine: Machine) -> Device:
    """Bound already: to whom does it belong from now on?"""
    record = device.record
    if record is None or record.owner is None:
        return device
    if record.owner.alive():
        _refuse(errno.EBUSY, device, f"process {record.owner.pid} has bound it for its run")
    # Whoever bound it for a run is gone and could not give it back: that is now up to us. Unless it is
    # in another container, where processes have other numbers: uio lets several have one device.
    _check_users(device, machine)
    remember(dataclasses.replace(record, owner=owner), machine.run)
    return machine.find(device.address)


def _check_users(device: Device, machine: Machine) -> None:
    """Refuse what would have to wait for another process."""
    pids = users(device, machine) if device.state == "userspace" else []
    if pids:
        named = ", ".join(map(str, pids))
        _refuse(errno.EBUSY, device, f"process {named} has it open; end it first")


def unbind(
    name: str, *, force: bool = False, only: Owner | None = None, machine: Machine | None = None
) -> list[str]:
    """Give a NIC back to the kernel, with name, addresses and state of its interfaces.

    Args:
        name: Former interface, PCI address, VMBUS UUID or MAC address.
        force: Also when a process has it; this one then waits for it.
        only: If it was bound for the run of this process; else nothing is done.
        machine: Where things are.

    Returns:
        What could not be restored, a line each.

    Raises:
        OSError: It can't be given back; the text says why.
    """
    machine = machine or Machine()
    if only is None:
        device = machine.find(name)
        _check_permission_of(device, machine)
    with _locked(machine):
        # Also of a NIC that the kernel has again: then there is little to do.
        records = load_all(machine.run)
        try:
            device = machine.find(name)
        except OSError:
            if name in records:  # unplugged
                forget(name, machine.run)
            raise
        record = records.get(device.address)
        if only is not None and (record is None or record.owner != only):
            return []
        if not force:
            owner = record.owner if record is not None else None
            if owner is not None and owner != only and owner.alive():
                _refuse(errno.EBUSY, device, f"process {owner.pid} has bound it for its run")
            _check_users(device, machine)
        return _give_back(device, record, machine)


def orphans(machine: Machine | None = None) -> list[Record]:
    """NICs that were bound for the run of a process that has ended, and not given back."""
    machine = machine or Machine()
    records = load_all(machine.run).values()
    return [record for record in records if record.owner is not None and not record.owner.alive()]


def _give_back(device: Device, record: Record | None, machine: Machine) -> list[str]:
    node = machine.node(device)
    if _driver(node) in {"", *USERSPACE[device.bus]}:
        _release(device, machine, "")
        said = _probe(device, machine, "drivers_probe", _is_kernels(device.bus))
        if said and record is not None and record.driver:
            # Another driver may have been told of this kind of device; this one is the right one.
            if _driver(node):
                _release(device, machine, "")
            control = f"drivers/{record.driver}/bind"
            said = _probe(device, machine, control, lambda now: now == record.driver)
        if said and (record is None or record.driver):
            _refuse(errno.EIO, device, f"no driver of the kernel took it: {said}")
    else:
        _write(node / "driver_override", "\n")
    problems = _restore(device, record, machine) if record is not None else []
    forget(device.address, machine.run)
    return problems


def _is_kernels(bus: str) -> Callable[[str], bool]:
    return lambda now: now != "" and now not in USERSPACE[bus]


def _restore(device: Device, record: Record, machine: Machine) -> list[str]:
    """Put the interfaces back as they were."""
    wanted = {one.name for one in record.interfaces}

    def now() -> Device:
        return machine.find(device.address)

    if not _wait(lambda: len(now().interfaces) >= len(wanted), machine.interface_s):
        return [f"{device.label}: its interface did not come back"]
    # The kernel counts interfaces anew; udev may call it by its own name a moment later.
    _wait(lambda: wanted <= set(now().interfaces), machine.patience_s)
    there = now()
    left = dict(zip(there.interfaces, there.macs, strict=True))
    problems = []
    for one in record.interfaces:
        same = [name for name, mac in left.items() if mac == one.mac]
        name = (same or [one.name if one.name in left else next(iter(left))])[0]
        del left[name]
        try:
            machine.links.restore(one, name)
        except OSError as error:
            text = error.strerror or error
            problems.append(f"{name}: it is the kernel's again, but not quite as it was: {text}")
    return problems
