# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (channels, sockets and streams are one implementation in several files)
"""An engine in this process: `Stack` opens a NIC and either runs in a thread or is stepped."""

from __future__ import annotations

import errno
import math
import os
import time
import weakref
from typing import TYPE_CHECKING, Any, Literal

from machnet._native import ffi, lib
from machnet.channel import Channel
from machnet.config import ChannelSettings, Settings, convert
from machnet.errors import ConcurrentUseError, os_error
from machnet.stack.clock import Clock
from machnet.stack.info import TCP_STATES, SocketInfo, stat_names
from machnet.stack.names import format_ip, parse_ip, parse_mac
from machnet.stack.nics import Capture, Nic, Wire, open_nic
from machnet.stack.opening import (
    StackCore,
    check_unused,
    finalize,
    native_config,
    open_native,
    set_secret,
)

if TYPE_CHECKING:
    from types import TracebackType

    from machnet.stack.socket import Socket

__all__ = ["TCP_STATES", "SocketInfo", "Stack", "StackCore"]

_POLL_MODES = {"adaptive": lib.MN_POLL_ADAPTIVE, "busy": lib.MN_POLL_BUSY}
_NEVER: int = lib.MN_NEVER
#: How long a thread that waits for a channel looks before it sleeps; waking one takes longer.
_CHANNEL_SPIN_US = 20.0


class Stack:
    """A TCP/IP engine in this process, on a NIC of its own. A context manager.

    On a real NIC the engine runs in a native thread that never takes the GIL. On a `Wire`, or with
    ``thread=False``, it is stepped: by `poll` and, for wires, `advance`, and by every call on its
    channels and sockets. On a wire time is virtual: it starts at 0 and goes on only when `advance`
    or a blocking call needs it to.

    Args:
        nic: A NIC string such as "tap:mn0", a `machnet.sim.Wire` or a `machnet.sim.Tap`. What is
            opened by string is closed with the stack.
        ip: The engine's address and prefix length, as "10.0.0.2/24" (without a length: 24).
        gateway: Address of the router to other networks.
        mtu: For NIC strings: bytes; None: the interface's own.
        seed: Of the engine's secret (initial sequence numbers, ports, hash keys). None: from the
            kernel's generator; on a wire: 0, so that every run is the same.
        isn: Initial sequence number of all connections, for protocol tests.
        poll: "adaptive" sleeps when there is nothing to do; "busy" polls for ever and wants a core
            for itself.
        thread: Whether the engine gets a thread of its own; None: on a real NIC, not on a wire.
        spin_us: How long an adaptive thread goes on polling after it last found something.
        cpu: CPU that the thread is pinned to.
        pcap: File to write all frames to, in pcapng format.
        tenants: Its applications don't trust each other: none may fix sequence numbers.
        settings: Fields of `machnet.config.Settings`.

    Raises:
        ValueError, TypeError: An argument is wrong; the text names it.
        OSError: The NIC can't be opened.
        MemoryError: The limits ask for more address space than there is.
    """

    def __init__(
        self,
        nic: str | Nic,
        ip: str,
        gateway: str | None = None,
        *,
        mtu: int | None = None,
        seed: int | None = None,
        isn: int | None = None,
        poll: Literal["adaptive", "busy"] = "adaptive",
        thread: bool | None = None,
        spin_us: float = 50.0,
        cpu: int | None = None,
        pcap: str | os.PathLike[str] | None = None,
        tenants: bool = False,
        **settings: Any,
    ) -> None:
        if poll not in _POLL_MODES:
            raise ValueError(f"poll: {poll!r} is neither 'adaptive' nor 'busy'")
        if isn is not None and not 0 <= isn < 2**32:
            raise ValueError(f"isn: {isn} is not within 0 to 4294967295")
        if not 0 <= spin_us < math.inf:
            raise ValueError(f"spin_us: {spin_us!r} is no number of microseconds from 0 on")
        config = native_config(ip, gateway, convert(Settings, settings, "Stack"))
        config.isn_option = not tenants
        owned: list[Nic] = []
        try:
            base = nic if isinstance(nic, Nic) else open_nic(nic, mtu)
            if base is not nic:
                owned.append(base)
            elif mtu is not None and mtu != base.mtu:
                raise ValueError(f"mtu: {base} has an MTU of {base.mtu} bytes already")
            check_unused(base)
            threaded = base.realtime if thread is None else thread
            if threaded and base.stepped_only:
                raise ValueError(f"thread: {base.stepped_only} can only be stepped")
            isn = base.prepare(format_ip(config.ip), isn)
            clock = Clock(realtime=True) if threaded else base.new_clock()
            set_secret(config, seed, virtual=not clock.realtime, shared=base.shared_secret())
            if pcap is not None:
                owned.insert(0, Capture(base, pcap))
            outer = owned[0] if pcap is not None else base
            native = open_native(config, outer, clock)
            base.opened(native)
        except BaseException:
            for opened in owned:
                opened.close()
            raise
        self._config = config
        self._base = base
        self._wire = None if threaded else base.hand_fed_wire()
        self._isn = isn
        self._threaded = threaded
        self._channel_spin_ns = _NEVER if poll == "busy" else int(_CHANNEL_SPIN_US * 1000)
        # By number: what is done to all of them is done in the order they came, in every run.
        self._attached: weakref.WeakValueDictionary[int, Channel] = weakref.WeakValueDictionary()
        self._attached_count = 0
        self._sockets_channel: Channel | None = None
        #: The byte streams of `machnet.aio`, by event loop.
        self.aio_hubs: dict[Any, Any] = {}
        #: What outlives the stack until it is closed.
        self.core = StackCore(native, base, owned, clock)
        self._finalizer = weakref.finalize(self, finalize, self.core)
        base._user = weakref.ref(self)
        if threaded:
            self._start(poll, spin_us, cpu)

    def _start(self, poll: str, spin_us: float, cpu: int | None) -> None:
        pin = -1 if cpu is None else cpu
        rc = lib.mn_stack_start(self.core.native, _POLL_MODES[poll], int(spin_us * 1000), pin)
        if rc < 0:
            self.core.close()
            if rc == -errno.EINVAL and cpu is not None:
                raise ValueError(f"cpu: there is no CPU {cpu} here that the thread may run on")
            raise os_error(-rc, "starting the engine's thread")

    # ---- applications ----------------------------------------------------------------------------

    def attach(self, **settings: int) -> Channel:
        """A new channel, for one thread.

        Args:
            settings: Fields of `machnet.config.ChannelSettings`.

        Raises:
            TypeError, ValueError: A setting is unknown or out of its range.
            OSError: ``ENOSPC``: there are ``lanes_max`` channels already.
        """
        sizes: ChannelSettings = convert(ChannelSettings, settings, "Stack.attach")
        geometry = ffi.new("struct mn_chan_geometry *")
        geometry.n_lanes = 1
        for name in sizes.__struct_fields__:
            setattr(geometry, name, getattr(sizes, name))
        out = ffi.new("struct mn_chan **")
        rc = lib.mn_chan_open(out, self._native, geometry, self._channel_spin_ns)
        if rc == -errno.EINVAL:
            raise ValueError("Stack.attach: buf_bytes and ctl_slots must be powers of two")
        self._check(rc, "attach")
        channel = Channel(self, ffi.gc(out[0], lib.mn_chan_free), sizes)
        self._attached[self._attached_count] = channel
        self._attached_count += 1
        if not self._threaded:
            self.core.clock.keep(channel)
        if self._isn is not None:
            channel.set_option(None, lib.MN_OPT_ISN, self._isn)
        return channel

    def socket(self) -> Socket:
        """A new non-blocking stream socket, with the manners of POSIX.

        All sockets of a stack share one channel, so they belong to one thread.
        """
        from machnet.stack.socket import Socket

        return Socket(self)

    def isn_default(self) -> int:
        """Value of the core's option for initial sequence numbers that restores the stack's own."""
        return 2**64 - 1 if self._isn is None else self._isn

    def socket_channel(self) -> Channel:
        """The channel that the stack's sockets share."""
        if self._sockets_channel is None:
            self._sockets_channel = self.attach()
        return self._sockets_channel

    # ---- stepping --------------------------------------------------------------------------------

    @property
    def clock(self) -> Clock | None:
        """The clock by which the stack is stepped; None when it has its own thread."""
        return None if self._threaded else self.core.clock

    def _stepped(self, what: str) -> Clock:
        if self._threaded:
            raise RuntimeError(f"{what}: the engine runs in its own thread (thread=False steps it)")
        self._alive()
        return self.core.clock

    def _hand_fed(self, what: str) -> Wire:
        self._alive()
        if self._wire is None:
            raise RuntimeError(
                f"{what}: only for a stepped stack on a Wire of its own, not of a pair"
            )
        return self._wire

    def poll(self, now: int | None = None) -> int:
        """One bounded pass of a stepped engine.

        Args:
            now: On a wire: the time to go on to, in ns, if that is later than `now_ns`.

        Returns:
            How many things were done: frames, descriptors, timers.

        Raises:
            RuntimeError: The engine has its own thread.
        """
        clock = self._stepped("poll")
        done = lib.mn_stack_poll(self._native, 0 if now is None else now)
        self._check(done, "poll")
        clock.dispatch()
        return int(done)

    def deadline(self) -> int | None:
        """When the engine wants to be polled next, in ns; None: not before a frame comes in."""
        self._stepped("deadline")
        when = int(lib.mn_stack_deadline(self._native))
        return None if when == _NEVER else when

    @property
    def now_ns(self) -> int:
        """The present time: virtual on a stepped wire, else that of ``time.monotonic_ns``."""
        return time.monotonic_ns() if self._threaded else self.core.clock.now_ns

    def inject(self, frame: bytes) -> None:
        """Let a hand-fed wire receive a frame, and the engine process it at the present time.

        Raises:
            RuntimeError: The stack is not on such a wire.
            ValueError: It is longer than the wire carries, or empty.
            BlockingIOError: The wire's queue is full.
        """
        self._hand_fed("inject").inject(frame)
        self.core.clock.settle()

    def drain(self) -> list[tuple[int, bytes]]:
        """The frames that the engine sent on a hand-fed wire since the last call.

        What the engine has to send now, it sends first.

        Returns:
            Time in ns and frame, in the order of transmission.

        Raises:
            RuntimeError: The stack is not on such a wire.
        """
        wire = self._hand_fed("drain")
        self.core.clock.settle()
        return wire.drain()

    def advance(self, ns: int) -> None:
        """Let ``ns`` nanoseconds of virtual time pass; timers fire in order, each at its time.

        Stacks on the other wire of a pair go on with it.

        Raises:
            RuntimeError: The engine has its own thread.
            ValueError: ``ns`` is negative, or the stack follows the real clock.
        """
        clock = self._stepped("advance")
        if ns < 0:
            raise ValueError(f"ns: time can't go back by {-ns} ns")
        clock.advance_to(clock.now_ns + int(ns))

    # ---- what there is ---------------------------------------------------------------------------

    @property
    def ip(self) -> str:
        """The engine's address."""
        return format_ip(self._config.ip)

    @property
    def prefix(self) -> int:
        """Prefix length of its network."""
        return int(self._config.prefix)

    @property
    def gateway(self) -> str | None:
        """Address of the router to other networks."""
        return format_ip(self._config.gateway) if self._config.gateway else None

    @property
    def mac(self) -> str:
        """The NIC's address."""
        return self._base.mac

    @property
    def mtu(self) -> int:
        """Largest IP packet, in bytes."""
        return self._base.mtu

    @property
    def nic(self) -> Nic:
        """The NIC."""
        return self._base

    @property
    def threaded(self) -> bool:
        """Whether the engine has a thread of its own."""
        return self._threaded

    @property
    def settings(self) -> Settings:
        """All settings, with the values that are in force."""
        names = Settings.__struct_fields__
        return Settings(**{name: getattr(self._config, name) for name in names})

    def sockets(self) -> list[SocketInfo]:
        """All connections, then all listeners, as ``ss`` lists them."""
        found: list[SocketInfo] = []
        batch = 64
        cursor, infos = ffi.new("uint32_t *"), ffi.new("struct mn_sock_info[]", batch)
        while True:
            n = lib.mn_stack_sockets(self._native, cursor, infos, batch)
            self._check(n, "sockets")
            if n == 0:
                return found
            found += [SocketInfo.from_native(infos[i]) for i in range(n)]

    def find_socket(
        self,
        local: tuple[str, int],
        remote: tuple[str, int] = ("0.0.0.0", 0),  # noqa: S104
    ) -> SocketInfo | None:
        """One connection by its addresses, or a listener without ``remote``; None: there is none."""
        info = ffi.new("struct mn_sock_info *")
        rc = lib.mn_stack_find(
            self._native, parse_ip(local[0]), local[1], parse_ip(remote[0]), remote[1], info
        )
        if rc == -errno.ENOENT:
            return None
        self._check(rc, "find_socket")
        return SocketInfo.from_native(info)

    def stats(self) -> dict[str, int]:
        """Every counter of the engine by name; what each counts: `stat_docs`."""
        out = ffi.new("struct mn_stats *")
        self._check(lib.mn_stack_stats(self._native, out), "stats")
        counters = ffi.cast("uint64_t *", out)
        return dict(zip(stat_names(), counters[0 : len(stat_names())], strict=True))

    @staticmethod
    def stat_docs() -> dict[str, str]:
        """What each counter of `stats` counts."""
        names = stat_names()
        return {name: ffi.string(lib.mn_host_stat_doc(i)).decode() for i, name in enumerate(names)}

    def usage(self) -> dict[str, int]:
        """What the engine's pools hold now: for leak checks."""
        out = ffi.new("struct mn_usage *")
        self._check(lib.mn_stack_usage(self._native, out), "usage")
        return {name: int(getattr(out, name)) for name, _ in ffi.typeof(out).item.fields}

    def host_stats(self) -> dict[str, int]:
        """What the host did: passes and sleeps of the thread, calls into it, memory mapped."""
        self._alive()
        out = ffi.new("struct mn_host_stats *")
        lib.mn_stack_host_stats(self._native, out)
        return {name: int(getattr(out, name)) for name, _ in ffi.typeof(out).item.fields}

    def neighbor(self, ip: str, mac: str) -> None:
        """Say which MAC address an IP address has: no ARP is needed for it, and it does not age.

        Raises:
            ValueError: One of them is no address.
            OSError: ``ENOBUFS``: the table is full.
        """
        self._check(lib.mn_stack_neighbor(self._native, parse_ip(ip), parse_mac(mac)), "neighbor")

    # ---- the end ---------------------------------------------------------------------------------

    @property
    def _native(self) -> Any:
        self._alive()
        return self.core.native

    def _alive(self) -> None:
        if self.core.closed:
            raise ValueError(f"{self} is closed")

    def _check(self, rc: int, what: str) -> None:
        if rc >= 0:
            return
        if not self._threaded:
            self.core.clock.explain(rc, what)
        if rc == -errno.EBUSY:
            raise ConcurrentUseError(f"{what}: the stack is being stepped by another thread")
        if rc == -errno.ECHILD:
            raise RuntimeError(
                f"{what}: the stack belongs to the process that this was forked from"
            )
        if rc == -errno.EPIPE:
            raise ValueError(f"{what}: {self} is closed")
        raise os_error(-rc, what)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.core.closed

    def close(self, linger: float | None = None) -> None:
        """Close the channels, wait until what they sent has arrived, and end the engine.

        In virtual time nothing is waited for: what can go out now goes out.

        Args:
            linger: Seconds to wait at most; None: ``app_exit_linger_ms``. 0: connections are
                reset.

        Raises:
            ConcurrentUseError: Another thread is inside a call on one of the channels, or is closing
                the stack at this moment.
        """
        if self.core.closed:
            return
        self._close_channels(linger)
        try:
            if linger is None or linger > 0:
                self._linger(self._config.app_exit_linger_ms / 1000 if linger is None else linger)
            elif not self._threaded:
                self.core.clock.settle()
        finally:
            self._finalizer.detach()
            self.core.close()

    @property
    def _channels(self) -> list[Channel]:
        return list(self._attached.values())

    def _close_channels(self, linger: float | None) -> None:
        for channel in self._channels:
            channel.close(linger)
        self._sockets_channel = None
        self.aio_hubs.clear()

    def _linger(self, seconds: float) -> None:
        clock = self.core.clock
        if not self._threaded:
            clock.settle()
        if not clock.realtime:
            return
        owing, end, pause = ffi.new("uint32_t *"), time.monotonic() + seconds, 0.0002
        while lib.mn_stack_owing(self.core.native, owing) == 0 and owing[0] > 0:
            if time.monotonic() >= end:
                return
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
            if not self._threaded:
                clock.settle()

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(None if error is None else 0)

    def __repr__(self) -> str:
        state = ", closed" if self.core.closed else ""
        return f"<Stack {self.ip}/{self.prefix} on {self._base}{state}>"
