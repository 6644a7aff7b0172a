# SPDX-License-Identifier: MIT
"""A DPDK port as a NIC of machnet."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from machnet._native import ffi as native_ffi
from machnet.dpdk import eal
from machnet.dpdk.eal import EalError
from machnet.dpdk.forrun import prepare
from machnet.dpdk.marks import Mark
from machnet.dpdk.ranges import DESCRIPTORS, POOL_MBUFS
from machnet.dpdk.refusals import REMEDIES, not_plugged_in, refusal
from machnet.stack.names import format_mac, parse_mac
from machnet.stack.nics import Nic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from machnet.dpdk.devices import Target
    from machnet.dpdk.forrun import BoundForRun

__all__ = ["Port", "open_port", "ring_pair"]

#: Ports of one device.
_PORTS_MAX = 8
_MTU_DEFAULT = 1500
_SIOCGIFMTU = 0x8921
_WAKES = {0: "timer", 1: "descriptor", 2: "interrupt"}

#: Numbers that may be given, with their least and their greatest value. A driver may take less.
_RANGES = {
    "mtu": (68, 65279),
    "queues": (1, 16),
    "rx_desc": DESCRIPTORS,
    "tx_desc": DESCRIPTORS,
    "pool_mbufs": POOL_MBUFS,
    "nap_max_us": (0, 1_000_000),
    "frame_room": (0, 65344),
    "slots": (2, 1 << 20),
}

#: Those of which 0 is the usual number.
_OR_USUAL = frozenset({"rx_desc", "tx_desc", "pool_mbufs"})

log = logging.getLogger("machnet.dpdk")
#: Numbers of the virtual devices that are made for interfaces of the kernel.
_vdevs = itertools.count(100)


class Port(Nic):
    """A port that is plugged in, configured and started. Made by `open_port` and `ring_pair`.

    Attributes:
        driver: DPDK's name of the poll-mode driver, such as "net_e1000_em".
        device: The device's name on its bus, such as "0000:00:05.0".
        missing: What the driver does not have, and what is done instead, a sentence each.
    """

    def __init__(
        self,
        port: int,
        name: str,
        *,
        mtu: int = _MTU_DEFAULT,
        queues: int = 1,
        rx_desc: int = 0,
        tx_desc: int = 0,
        pool_mbufs: int = 0,
        nap_max_us: int = 0,
        frame_room: int = 0,
        mac: str | None = None,
        offload: bool = True,
    ) -> None:
        _check(mtu=mtu, queues=queues, rx_desc=rx_desc, tx_desc=tx_desc, pool_mbufs=pool_mbufs)
        _check(nap_max_us=nap_max_us, frame_room=frame_room, mac=mac)
        module = eal.start()
        self._ffi, self._lib = module.ffi, module.lib
        #: What ends with the port, such as that its NIC is bound.
        self._held: list[BoundForRun | Mark] = []
        config = self._ffi.new("struct mn_dpdk_config *")
        config.port, config.queues, config.mtu = port, queues, mtu
        config.rx_desc, config.tx_desc, config.pool_mbufs = rx_desc, tx_desc, pool_mbufs
        config.nap_max_us, config.frame_room = nap_max_us, frame_room
        config.no_offload = not offload
        if mac is not None:
            config.mac = list(parse_mac(mac))
        out = self._ffi.new("struct mn_nic **")
        rc, said = eal.ask(self._lib.mn_dpdk_open, config, out)
        if rc < 0:
            if rc == -errno.EINVAL and said.partition(":")[0] in _RANGES:
                raise ValueError(said)
            raise refusal(-rc, name, said)
        self._port = self._ffi.gc(out[0], self._lib.mn_dpdk_close)
        # The same pointer, as the other extension module knows it.
        address = int(self._ffi.cast("uintptr_t", out[0]))
        super().__init__(native_ffi.cast("struct mn_nic *", address), name)
        info = self.info()
        self.driver: str = info["driver"]
        self.device: str = info["device"]
        self.missing = self._missing()
        for what in self.missing:
            _warn_once(self.driver, what)
        eal.drain_log()

    @property
    def native(self) -> Any:
        """See `Nic.native`.

        Raises:
            ValueError: It is closed.
            RuntimeError: This process was forked from the one that opened it.
        """
        if self._lib.mn_dpdk_forked():
            raise RuntimeError(f"{self} belongs to the process that this one was forked from")
        return super().native

    def _missing(self) -> list[str]:
        found: list[str] = []
        for i in itertools.count():
            text = self._lib.mn_dpdk_missing(self._port, i)
            if text == self._ffi.NULL:
                return found
            found.append(self._ffi.string(text).decode())
        raise AssertionError

    def stats(self) -> dict[str, int]:
        """What was counted since the port was opened, also across a time in which it was unplugged.

        ``rx_frames`` to ``no_mbuf`` and ``unplugged``, ``replugged`` by machnet; ``ipackets`` to
        ``rx_nombuf`` by the driver (``imissed``: lost because a receive queue was full); ``mbufs`` and
        ``mbufs_free`` of the queues' pools now.
        """
        _ = self.native
        out = self._ffi.new("struct mn_dpdk_stats *")
        self._lib.mn_dpdk_get_stats(self._port, out)
        eal.drain_log()
        return {name: int(getattr(out, name)) for name, _ in self._ffi.typeof(out).item.fields}

    def info(self) -> dict[str, Any]:
        """What the port is, and how it was configured.

        ``wake`` says how a thread that sleeps on it is woken: by "interrupt", by "descriptor" (the driver's
        own socket), or by "timer", that is not at all: it looks again after naps that get longer.
        """
        _ = self.native
        out = self._ffi.new("struct mn_dpdk_info *")
        self._lib.mn_dpdk_get_info(self._port, out)
        found: dict[str, Any] = {}
        for name, field in self._ffi.typeof(out).item.fields:
            value = getattr(out, name)
            found[name] = self._ffi.string(value).decode() if field.type.kind == "array" else value
        found["wake"] = _WAKES[found["wake"]]
        return found

    def link(self) -> tuple[bool, int]:
        """Whether the link is up, and its speed in Mbit/s; 0: unknown."""
        _ = self.native
        info = self.info()
        return info["link_up"], info["link_mbit"]

    def look(self) -> None:
        """Notice at once what the watcher would notice within half a second: unplugged, or back again."""
        _ = self.native
        self._lib.mn_dpdk_look()
        eal.drain_log()

    def _release(self) -> None:
        self._ffi.release(self._port)
        eal.drain_log()
        while self._held:
            self._held.pop().close()

    def hold(self, held: BoundForRun | Mark) -> None:
        """What belongs to the port from now on, and ends after it."""
        self._held.append(held)


def _check(**values: Any) -> None:
    for name, value in values.items():
        if name == "mac" and value is not None:
            mac = parse_mac(value)
            if mac[0] & 1 or not any(mac):
                raise ValueError(f"mac: {value} is no address of a host")
        elif name in _RANGES and value is not None:
            least, most = _RANGES[name]
            usual = name in _OR_USUAL
            if isinstance(value, int) and (least <= value <= most or (usual and value == 0)):
                continue
            more = ", nor 0, the usual number" if usual else ""
            raise ValueError(f"{name}: {value!r} is not a number within {least} to {most}{more}")


_warned: set[tuple[str, str]] = set()


def _warn_once(driver: str, what: str) -> None:
    if (driver, what) not in _warned:
        _warned.add((driver, what))
        log.info("%s: %s", driver, what)


def plug_in(devargs: str, name: str) -> list[int]:
    """Plug a device in: the numbers of its ports.

    Args:
        devargs: What DPDK is to probe.
        name: What the user called it.

    Raises:
        EalError: EAL does not run, or no driver takes it.
    """
    module = eal.start()
    ports = module.ffi.new("uint16_t[]", _PORTS_MAX)
    rc, said = eal.ask(module.lib.mn_dpdk_probe, os.fsencode(devargs), ports, _PORTS_MAX)
    if rc < 0:
        raise not_plugged_in(-rc, name, devargs, said)
    eal.drain_log()
    return [int(ports[i]) for i in range(rc)]


def plug_out(port: int) -> None:
    """Plug a device out whose ports nobody has open."""
    eal.start().lib.mn_dpdk_unprobe(port)
    eal.drain_log()


def port_mac(port: int) -> str | None:
    """The address of a port that is plugged in."""
    module = eal.start()
    mac = module.ffi.new("uint8_t[6]")
    if module.lib.mn_dpdk_port_mac(port, mac) < 0:
        return None
    return format_mac(bytes(module.ffi.buffer(mac)))


def ring_pair(
    queues: int = 1, *, slots: int = 1024, mtu: int = _MTU_DEFAULT, **options: Any
) -> tuple[Port, Port]:
    """Two ports in this process, joined by rings in memory: what one sends the other receives.

    Args:
        queues: Of each, 1 to 16.
        slots: Of each ring, a power of two from 2 to 1048576; it holds a frame less.
        mtu: Bytes.
        options: See `open_port`.

    Raises:
        EalError, ValueError: As for `open_port`.
    """
    _check(queues=queues, mtu=mtu, slots=slots)
    if slots & (slots - 1):
        raise ValueError(f"slots: {slots} is no power of two")
    module = eal.start()
    ports = module.ffi.new("uint16_t[2]")
    rc, said = eal.ask(module.lib.mn_dpdk_ring_pair, queues, slots, ports)
    if rc < 0:
        if rc == -errno.EINVAL:
            raise ValueError(said)
        raise eal.error(-rc, said, REMEDIES.get(-rc))
    opened: list[Port] = []
    macs: Sequence[str | None] = options.pop("macs", ("02:4d:4e:00:00:01", "02:4d:4e:00:00:02"))
    try:
        for port, mac, end in zip(ports, macs, "ab", strict=True):
            opened.append(
                Port(port, f"dpdk:ring-{end}", mtu=mtu, queues=queues, mac=mac, **options)
            )
    except BaseException:
        for one in opened:
            one.close()
        for number in ports[len(opened) : 2]:
            plug_out(int(number))
        raise
    return opened[0], opened[1]


def open_port(
    rest: str,
    *,
    mtu: int | None = None,
    queues: int = 1,
    bind: bool = False,
    **options: Any,
) -> Port:
    """Open what a NIC string names behind ``dpdk:``.

    Args:
        rest: A kernel interface, a PCI address, a MAC address, or a virtual device with its arguments
            ("net_af_packet0,iface=veth0").
        mtu: Bytes; None: the kernel interface's, else 1500.
        queues: That would be useful, 1 to 16; a port that has fewer gives one.
        bind: A NIC that the kernel has is taken from it for the run, and given back at the end, also
            after a crash; so it is, too, with MACHNET_DPDK_BIND=1 in the environment.
        options: ``rx_desc``, ``tx_desc`` (descriptors of a queue, 32 to 32768; 0: the driver's choice),
            ``pool_mbufs`` (packets of a queue's pool, 256 to 1048576; 0: what its descriptors need), ``nap_max_us`` (longest nap on a port that can't wake a sleeper, 1000), ``mac``, ``offload``
            (False: checksums in software), and ``frame_room`` (bytes that a buffer has at least).

    Raises:
        ValueError: ``rest`` is no name, or a value is wrong; the text says what is accepted.
        OSError: There is no such NIC, or the kernel has it; the text says what helps.
        EalError: DPDK can't open it; the text says why, and what helps.
    """
    _check(mtu=mtu, queues=queues, **options)
    bind = bind or os.environ.get("MACHNET_DPDK_BIND") == "1"
    target, held = prepare(rest, bind=bind, queues=queues, mtu=mtu, number=next(_vdevs))
    with contextlib.ExitStack() as failing:
        if held is not None:
            failing.callback(held.close)
        most = _interface_mtu(target.interface)
        if mtu is None:
            mtu = min(most or _MTU_DEFAULT, _RANGES["mtu"][1])
        elif most is not None and mtu > most:
            raise ValueError(
                f"mtu: {target.interface} has {most} bytes, not {mtu}; to change that: "
                f"ip link set {target.interface} mtu {mtu}"
            )
        number = _plug_in_target(target, rest)
        failing.callback(plug_out, number)
        options.setdefault("frame_room", target.room)
        port = Port(number, f"dpdk:{rest}", mtu=mtu, queues=queues, **options)
        failing.pop_all()
    if held is not None:
        port.hold(held)
    if target.interface is not None:
        port.hold(_mark(target.interface))
    return port


def _mark(interface: str) -> Mark:
    """Say to others that this process is on an interface, and to its user who else is."""
    mark = Mark(interface)
    if mark.others:
        who = " and ".join(f"process {pid}" if pid else "another process" for pid in mark.others)
        log.warning(
            "%s is used by %s too: each gets every frame that comes in, and none that the other sends; "
            "each needs an IP address of its own",
            interface,
            who,
        )
    return mark


def _plug_in_target(target: Target, rest: str) -> int:
    """The number of the port that is meant; nothing else stays plugged in."""
    for devargs in (target.devargs,) if target.devargs else target.candidates:
        ports = plug_in(devargs, f"dpdk:{rest}")
        for port in ports:
            if target.mac is None or port_mac(port) == target.mac:
                return port
        plug_out(ports[0])
    tried = ", ".join(target.candidates) or target.devargs
    raise EalError(
        errno.ENODEV, f"dpdk:{rest}: no port has the MAC address {target.mac}; tried were {tried}"
    )


def _interface_mtu(name: str | None) -> int | None:
    """The MTU of an interface, in bytes; None: it is not known."""
    if name is None:
        return None
    request = struct.pack("16s16x", os.fsencode(name))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFMTU, request)
        except OSError:
            return None
    return int(struct.unpack_from("i", answer, 16)[0])
