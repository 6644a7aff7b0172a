# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (channels, sockets and streams are one implementation in several files)
"""NICs as Python objects: what `machnet.Stack` runs on.

A NIC string is opened with `open_nic`. `Wire` and `Tap` may also be made by hand and handed to
`Stack`; then they stay their maker's, and can be used again once that stack is closed.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.errors import os_error
from machnet.stack.clock import Clock
from machnet.stack.names import format_mac, parse_interface, parse_ip, parse_mac

if TYPE_CHECKING:
    from collections.abc import Sequence

    from machnet.sim.nicstr import NicSpec
    from machnet.stack.stack import Stack

__all__ = ["Capture", "Nic", "Rss", "Tap", "Wire", "open_nic", "with_faults"]


class Nic:
    """A NIC in this process.

    Attributes:
        name: For messages, and the interface's name in a capture.
    """

    name: str
    #: Frames come from outside at their own time: a stack on it follows the clock.
    realtime = True
    #: What it is that can't run in a thread of its own; None: it can.
    stepped_only: str | None = None

    def __init__(self, handle: Any, name: str) -> None:
        self._handle = handle
        self.name = name
        self._user: weakref.ref[Stack] | None = None
        self._wrapper: weakref.ref[Nic] | None = None

    @property
    def native(self) -> Any:
        """The ``struct mn_nic *``.

        Raises:
            ValueError: The NIC is closed.
        """
        if self._handle is None:
            raise ValueError(f"{self} is closed")
        return self._handle

    def watchers(self) -> list[tuple[Any, Any]]:
        """Functions, with their first argument, that want to know the time before each poll."""
        return []

    def new_clock(self) -> Clock:
        """The clock for a stack on this NIC."""
        return Clock(realtime=True)

    def prepare(self, ip: str, isn: int | None) -> int | None:
        """A stack is about to be opened; called once for each.

        Args:
            ip: Its address.
            isn: The initial sequence number of its connections, if that is fixed.

        Returns:
            The same, or the one that this NIC needs.
        """
        return isn

    def shared_secret(self) -> bytes | None:
        """The secret of all engines of this address, if there are several; None: it has its own."""
        return None

    def opened(self, native: Any) -> None:
        """An engine was opened on this NIC, a ``struct mn_stack *`` that has not run yet."""

    def hand_fed_wire(self) -> Wire | None:
        """The wire that is fed by hand, if that is what this is."""
        return None

    def user(self) -> Stack | Nic | None:
        """The stack, or the NIC around this one, that is open on it."""
        stack = self._user() if self._user is not None else None
        wrapper = self._wrapper() if self._wrapper is not None else None
        if stack is not None and not stack.closed:
            return stack
        return wrapper if wrapper is not None and wrapper._handle is not None else None

    def wrapped_by(self, wrapper: Nic) -> None:
        """This NIC belongs to ``wrapper`` until that is closed."""
        self._wrapper = weakref.ref(wrapper)

    def _info(self) -> Any:
        info = ffi.new("struct mn_nic_info *")
        lib.mn_nic_get_info(self.native, info)
        return info

    @property
    def mtu(self) -> int:
        """Largest IP packet, in bytes (the frame without its Ethernet header)."""
        return int(self._info().mtu)

    @property
    def mac(self) -> str:
        """The NIC's own address, as "02:4d:4e:00:00:01"."""
        info = self._info()  # its array is no copy
        return format_mac(bytes(info.mac))

    @property
    def queues(self) -> int:
        """Pairs of a receive and a transmit queue: how many engines can run on it side by side."""
        return int(self._info().queues)

    def _release(self) -> None:
        """Free what the handle stands for."""

    def close(self) -> None:
        """Close the NIC. Again: nothing.

        Raises:
            RuntimeError: A stack is still running on it.
        """
        if self._handle is None:
            return
        user = self.user()
        if user is not None:
            raise RuntimeError(f"{self} is in use by {user}: close that first")
        self._release()
        self._handle = None

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}{'' if self._handle is not None else ' closed'}>"


class Wire(Nic):
    """A NIC in memory, in virtual time.

    A wire by itself is fed by hand: see `Stack.inject` and `Stack.drain`. `pair` makes two wires
    whose other ends are each other; stacks on them share one virtual clock, so that a blocking call
    on one of them drives both. Queues are bounded: a frame that finds its queue full is lost, and
    `stats` counts it.

    Args:
        mtu: Largest IP packet, 68 to 65535 bytes.
        mac: Its address; None: 02:4d:4e:00:00:01 (the second one of a pair: ..:02).
        queue_frames: Frames that each queue holds, 1 to 262144.
        checksums: The wire says that it finishes checksums itself and may be trusted: TCP
            segments then carry the pseudo-header sum only.
        segmentation: The wire takes TCP segments of up to 64 KiB. Implies ``checksums``.
        queues: That it receives into, 1 to 16, for `machnet.stack.engines`; frames are spread over
            them by a Toeplitz hash.
        rss: How; None: by the usual key, all queues in turn.
        rss_hidden: It does not tell how, as many NICs don't.

    Raises:
        ValueError: A number out of its range, or no MAC address.
    """

    realtime = False

    def __init__(
        self,
        mtu: int = 1500,
        *,
        mac: str | None = None,
        queue_frames: int = 8192,
        checksums: bool = False,
        segmentation: bool = False,
        queues: int = 1,
        rss: Rss | None = None,
        rss_hidden: bool = False,
    ) -> None:
        config = _wire_config(mtu, (mac, None), queue_frames, checksums, segmentation)
        _wire_queues(config, (queues, 1), (rss, None), rss_hidden)
        out = ffi.new("struct mn_wire **")
        _check_wire(lib.mn_wire_single(config, out), mtu, queue_frames)
        self._setup(out[0], "wire", None, hand_fed=True)

    def _setup(self, wire: Any, name: str, clock: Clock | None, *, hand_fed: bool) -> None:
        Nic.__init__(self, lib.mn_wire_nic(wire), name)
        self._wire = ffi.gc(wire, lib.mn_wire_close)
        self._clock = clock
        #: Whether frames are injected and drained by hand.
        self.hand_fed = hand_fed
        self.stepped_only = None if hand_fed else "the wires of a pair"

    @classmethod
    def pair(
        cls,
        mtu: int = 1500,
        *,
        macs: tuple[str | None, str | None] = (None, None),
        queue_frames: int = 8192,
        checksums: bool = False,
        segmentation: bool = False,
        queues: tuple[int, int] = (1, 1),
        rss: tuple[Rss | None, Rss | None] = (None, None),
        rss_hidden: bool = False,
    ) -> tuple[Wire, Wire]:
        """Two wires, each the other end of the other.

        Arguments as for one; ``macs``, ``queues`` and ``rss`` of both.

        Raises:
            ValueError: As for one.
        """
        config = _wire_config(mtu, macs, queue_frames, checksums, segmentation)
        _wire_queues(config, queues, rss, rss_hidden)
        first, second = ffi.new("struct mn_wire **"), ffi.new("struct mn_wire **")
        _check_wire(lib.mn_wire_pair(config, first, second), mtu, queue_frames)
        clock = Clock(realtime=False)
        ends = cls.__new__(cls), cls.__new__(cls)
        for end, wire, name in zip(ends, (first[0], second[0]), ("wire-a", "wire-b"), strict=True):
            end._setup(wire, name, clock, hand_fed=False)
        return ends

    def watchers(self) -> list[tuple[Any, Any]]:
        """The wire stamps what is transmitted."""
        return [(ffi.addressof(lib, "mn_wire_set_now"), self._wire)]

    def new_clock(self) -> Clock:
        """A virtual clock; the wires of a pair have the same."""
        return self._clock if self._clock is not None else Clock(realtime=False)

    def hand_fed_wire(self) -> Wire | None:
        """This one, unless it is of a pair."""
        return self if self.hand_fed else None

    def inject(self, frame: bytes) -> None:
        """Queue a copy of a frame to be received; `Stack.inject` also has it processed.

        Raises:
            ValueError: It is longer than the wire carries, or empty.
            BlockingIOError: The queue is full.
        """
        _ = self.native
        rc = lib.mn_wire_inject(self._wire, ffi.from_buffer("uint8_t[]", frame), len(frame))
        if rc == -errno.EMSGSIZE:
            raise ValueError(f"{self} carries frames of 1 to {self.mtu + 14} bytes: {len(frame)}")
        if rc < 0:
            raise BlockingIOError(errno.EAGAIN, f"{self}: the receive queue is full")

    def spread(self, rss: Rss) -> None:
        """From now on, spread what arrives here otherwise than the NIC says: flows move.

        Raises:
            ValueError: The wire has one queue, or fewer than the table names.
        """
        _ = self.native
        if lib.mn_wire_spread(self._wire, rss.native) < 0:
            raise ValueError(f"{self} has {self.queues} queues: the table must suit them")

    def drain(self) -> list[tuple[int, bytes]]:
        """The frames transmitted since the last call, in order, each with its time in ns."""
        _ = self.native
        frames = []
        size = int(self._info().tx_max_frame)
        buf, when = ffi.new("uint8_t[]", size), ffi.new("uint64_t *")
        while (length := lib.mn_wire_drain(self._wire, buf, size, when)) > 0:
            frames.append((int(when[0]), bytes(ffi.buffer(buf, length))))
        return frames

    def stats(self) -> dict[str, int]:
        """Frames and bytes in both directions, losses, and the packets in use."""
        _ = self.native
        out = ffi.new("struct mn_wire_stats *")
        lib.mn_wire_get_stats(self._wire, out)
        return {name: int(getattr(out, name)) for name, _ in ffi.typeof(out).item.fields}

    def _release(self) -> None:
        ffi.release(self._wire)
        self._wire = None


class Rss:
    """How a NIC spreads frames over its queues: Toeplitz hash and indirection table.

    Args:
        table: The queue for each value of the hash's low bits; a power of two of them, up to 512.
        key: 16 to 52 bytes; None: the one that documentation and drivers use.

    Raises:
        ValueError: One of them has another size.
    """

    def __init__(self, table: Sequence[int], key: bytes | None = None) -> None:
        #: ``struct mn_rss *``
        self.native: Any = ffi.new("struct mn_rss *")
        if key is None:
            lib.mn_rss_init_default(self.native, 1)
            size = int(self.native.key_bytes)
            key = bytes(ffi.buffer(ffi.addressof(self.native, "key"), size))
        ports = lib.MN_RSS_TCP_PORTS | lib.MN_RSS_UDP_PORTS
        entries = ffi.new("uint16_t[]", list(table))
        if lib.mn_rss_init(self.native, key, len(key), entries, len(table), ports) < 0:
            raise ValueError(
                f"a key has 16 to 52 bytes, a table 1 to 512 entries, a power of two: "
                f"{len(key)}, {len(table)}"
            )

    def hash_ports(self, src: str, dst: str, sport: int, dport: int) -> int:
        """The hash of a TCP or UDP packet."""
        ends = parse_ip(src), parse_ip(dst)
        return int(lib.mn_rss_hash_ports(self.native, *ends, sport, dport))

    def hash_addrs(self, src: str, dst: str) -> int:
        """The hash of any other IPv4 packet."""
        return int(lib.mn_rss_hash_addrs(self.native, parse_ip(src), parse_ip(dst)))

    def frame_queue(self, frame: bytes) -> int:
        """The queue that a frame arrives in."""
        return int(lib.mn_rss_frame_queue(self.native, frame, len(frame)))

    @property
    def symmetric(self) -> bool:
        """Whether both directions of every flow have the same hash."""
        return bool(lib.mn_rss_symmetric(self.native))


class Tap(Nic):
    """A NIC whose other end is an interface of the Linux kernel.

    Args:
        name: The TAP interface to attach to, or to make (which takes root).
        fd: A TAP's open descriptor instead, as `machnet.sim.KernelHost.open_tap` gives it. It is
            closed with the NIC.
        more_fds: With ``fd``: descriptors of the interface's other queues, closed likewise.
        queues: By name: how many are wanted, 1 to 16, for `machnet.stack.engines`; an interface that
            has only one gives one.
        mtu: Bytes, 68 to 65521; None: the interface's own.
        mac: This end's address; None: made from the kernel's end.
        offload: False: finished frames within the MTU only.
        kernel_ip: Address to give to the kernel's end, as "10.0.0.1/24" (by name only; root).

    Raises:
        OSError: It can't be opened; the text says why and what helps.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        fd: int = -1,
        more_fds: Sequence[int] = (),
        queues: int = 1,
        mtu: int | None = None,
        mac: str | None = None,
        offload: bool = True,
        kernel_ip: str | None = None,
    ) -> None:
        if (name is None) == (fd < 0):
            raise TypeError("a Tap has a name or a file descriptor")
        c_name = ffi.new("char[]", os.fsencode(name)) if name is not None else ffi.NULL
        config = ffi.new("struct mn_tap_config *")
        config.name, config.fd, config.mtu, config.no_offload = c_name, fd, mtu or 0, not offload
        fds = ffi.new("int[]", list(more_fds))
        config.queues, config.more_fds = (queues if fd < 0 else 1 + len(more_fds)), fds
        if mac is not None:
            config.mac = list(parse_mac(mac))
        if kernel_ip is not None:
            config.kernel_ip, config.kernel_prefix = parse_interface(kernel_ip)
        out, text = ffi.new("struct mn_nic **"), ffi.new("char[]", lib.MN_TAP_ERR_BYTES)
        rc = lib.mn_tap_open(config, out, text, lib.MN_TAP_ERR_BYTES)
        if rc < 0:
            said = ffi.string(text).decode(errors="replace")
            raise OSError(-rc, said) if said else os_error(-rc, f"tap:{name or fd}")
        super().__init__(
            ffi.gc(out[0], lib.mn_tap_close), f"tap:{ffi.string(lib.mn_tap_name(out[0])).decode()}"
        )

    @property
    def kernel_mac(self) -> str | None:
        """The address of the kernel's end; None where the kernel does not say it."""
        mac = ffi.new("uint8_t[6]")
        return format_mac(bytes(mac)) if lib.mn_tap_kernel_mac(self.native, mac) else None

    def stats(self) -> dict[str, int]:
        """Frames, bytes, system calls and errors."""
        out = ffi.new("struct mn_tap_stats *")
        lib.mn_tap_get_stats(self.native, out)
        return {name: int(getattr(out, name)) for name, _ in ffi.typeof(out).item.fields}

    def _release(self) -> None:
        ffi.release(self._handle)


class Capture(Nic):
    """Middleware: writes each frame that passes the inner NIC to a pcapng file.

    Times are nanoseconds since 1970 in real time, and virtual time as it is otherwise.

    Args:
        inner: The NIC to listen on; it stays the caller's.
        path: The file, which is overwritten.

    Raises:
        OSError: The file can't be written.
    """

    def __init__(self, inner: Nic, path: str | os.PathLike[str]) -> None:
        self._inner = inner
        self.realtime = inner.realtime
        native = inner.native
        self._writer = open_pcapng_file(path)
        name = ffi.new("char[]", inner.name.encode())
        config = ffi.new("struct mn_capture_config *")
        config.writer, config.if_name = self._writer, name
        if inner.realtime:
            config.epoch_ns = time.time_ns() - time.monotonic_ns()
        out = ffi.new("struct mn_nic **")
        rc = lib.mn_capture_open(native, config, out)
        if rc < 0:
            lib.mn_pcapng_close(self._writer)
            raise os_error(-rc, f"capture to {path}")
        super().__init__(out[0], inner.name)

    def watchers(self) -> list[tuple[Any, Any]]:
        """The inner NIC's, and the capture's own for its stamps."""
        mine = (ffi.addressof(lib, "mn_capture_set_now"), self.native)
        return [*self._inner.watchers(), mine]

    def new_clock(self) -> Clock:
        """The clock of the inner NIC."""
        return self._inner.new_clock()

    def shared_secret(self) -> bytes | None:
        """That of the inner NIC."""
        return self._inner.shared_secret()

    def opened(self, native: Any) -> None:
        """The inner NIC hears of it."""
        self._inner.opened(native)

    def _release(self) -> None:
        lib.mn_capture_close(self._handle)
        rc = lib.mn_pcapng_close(self._writer)
        self._writer = None
        if rc < 0:
            self._handle = None
            raise os_error(-rc, "the capture is incomplete")


def open_pcapng_file(path: str | os.PathLike[str]) -> Any:
    """A ``struct mn_pcapng *`` that writes to a new file; `lib.mn_pcapng_close` ends it.

    Raises:
        OSError: The file can't be written.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    config, out = ffi.new("struct mn_pcapng_config *"), ffi.new("struct mn_pcapng **")
    app = ffi.new("char[]", b"machnet")
    config.fd, config.app = fd, app
    rc = lib.mn_pcapng_open(config, out)
    if rc < 0:
        os.close(fd)
        raise os_error(-rc, f"capture to {path}")
    return out[0]


def open_nic(spec: str, mtu: int | None = None, queues: int = 1, *, bind: bool = False) -> Nic:
    """Open the NIC that a NIC string names, e.g. "tap:mn0".

    Args:
        spec: See `machnet.sim.nicstr`; with faults behind a ``?`` it is a `machnet.sim.Faulty`.
        mtu: Bytes; None: the interface's own.
        queues: That would be useful; it may have one all the same (`Nic.queues`).
        bind: A NIC that is to be DPDK's and that the kernel has is taken from it, until it is closed.

    Raises:
        ValueError: It is no NIC string, or names a driver that can't be opened by a string here, or
            there is nothing to bind.
        OSError: The driver can't open it.
    """
    from machnet.sim.nicstr import parse_nic

    if not isinstance(spec, str):
        raise TypeError(f"nic: a NIC is a string such as 'tap:mn0', or a Nic, not {spec!r}")
    parsed = parse_nic(spec)
    if bind and parsed.scheme != "dpdk":
        raise ValueError(
            f"NIC {spec!r}: only a NIC of DPDK can be bound, not a {parsed.scheme} NIC"
        )
    queues = 1 if parsed.faults else queues
    return with_faults(_open_driver(parsed, mtu, queues, bind=bind), parsed)


def with_faults(nic: Nic, spec: NicSpec) -> Nic:
    """The NIC inside the fault layer that a NIC string asks for, if it does.

    What is returned owns ``nic``, which is closed if this fails.

    Raises:
        ValueError: A fault's value is wrong, or ``nic`` hands over more than single frames.
    """
    if not spec.faults:
        return nic
    from machnet.sim.faulty import Faulty

    try:
        return Faulty.from_spec(nic, spec)
    except BaseException:
        nic.close()
        raise


def _open_driver(parsed: NicSpec, mtu: int | None, queues: int = 1, *, bind: bool = False) -> Nic:
    if parsed.scheme == "dpdk":
        from machnet.dpdk import open_port

        offload = not parsed.faults
        return open_port(parsed.rest, mtu=mtu, queues=queues, bind=bind, offload=offload)
    if parsed.scheme == "tap":
        return Tap(parsed.rest, queues=queues, mtu=mtu, offload=not parsed.faults)
    if parsed.scheme == "link":
        from machnet.sim.linknic import LinkNic

        return LinkNic(parsed.rest, mtu=mtu or 1500)
    if parsed.scheme == "pcap":
        from machnet.sim.pcap import Pcap

        in_path, _, out_path = parsed.rest.partition(",")
        return Pcap(in_path, out_path or None, mtu=mtu or 1500)
    if parsed.scheme == "wire":
        wire = Wire(mtu or 1500)
        wire.name = str(parsed)
        return wire
    raise ValueError(f"NIC {str(parsed)!r}: the {parsed.scheme} driver is not available yet")


def _wire_config(
    mtu: int,
    macs: tuple[str | None, str | None],
    queue_frames: int,
    checksums: bool,
    segmentation: bool,
) -> Any:
    if 0 in (mtu, queue_frames):  # which the native side takes for its own default
        _check_wire(-errno.EINVAL, mtu, queue_frames)
    config = ffi.new("struct mn_wire_config *")
    config.mtu, config.queue_frames = mtu, queue_frames
    for i, mac in enumerate(macs):
        if mac is not None:
            config.mac[i] = list(parse_mac(mac))
    finishes = checksums or segmentation
    config.tx_csum_tcp = config.tx_csum_udp = config.rx_csum_trusted = finishes
    config.tx_gso = segmentation
    return config


def _wire_queues(
    config: Any, queues: tuple[int, int], rss: tuple[Rss | None, Rss | None], hidden: bool
) -> None:
    most = lib.MN_WIRE_QUEUES_MAX
    for end, (count, how) in enumerate(zip(queues, rss, strict=True)):
        if not 1 <= count <= most:
            raise ValueError(f"queues: a wire has 1 to {most} queues: {count}")
        if how is not None and max(how.native.table[0 : how.native.table_size]) >= count:
            raise ValueError(f"rss: its table names queues that a wire with {count} has not")
        config.queues[end] = count
        config.rss[end] = ffi.NULL if how is None else how.native
    config.rss_hidden = hidden


def _check_wire(rc: int, mtu: int, queue_frames: int) -> None:
    if rc == -errno.EINVAL:
        raise ValueError(
            f"a wire has an MTU of 68 to 65535 bytes and queues of 1 to 262144 frames: "
            f"{mtu}, {queue_frames}"
        )
    if rc < 0:
        raise os_error(-rc, "wire")
