# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (a stack's end is one implementation in several files)
"""Several engines, each with a thread of its own, on one NIC and one address.

A connection lives on the engine that opened it, or that received its SYN. Frames that arrive at another
one are handed over, so a channel on any of the stacks is reached. ``docs/design/several-engines.md``
says how.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.errors import os_error
from machnet.stack.nics import Nic, Wire, open_nic
from machnet.stack.opening import check_unused
from machnet.stack.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from machnet.stack.clock import Clock
    from machnet.stack.nics import Rss

__all__ = ["VIEW_STATS", "EngineView", "Engines", "SharedNic", "open_engines"]

ENGINES_MAX: int = lib.MN_ENGINES_MAX
_SECRET_BYTES = 16

#: What `EngineView.stats` counts.
VIEW_STATS = {
    "handed_frames": "frames given to other engines",
    "handed_full": "frames not given to other engines: no room",
    "taken_frames": "frames got from other engines",
    "taken_no_pkt": "times that there was no packet for such a frame, which waits",
    "dispatched": "frames of the NIC spread over other engines",
    "dispatch_dropped": "frames of the NIC for another engine lost: no room",
    "relayed": "frames of other engines transmitted",
    "tx_full": "bursts cut short: no room on the way to the engine that transmits",
    "wakes": "sleeping engines woken",
}


class EngineView(Nic):
    """The part of a shared NIC that one engine runs on; made by `SharedNic`."""

    def __init__(self, shared: SharedNic, native: Any, index: int) -> None:
        super().__init__(native, f"{shared.inner.name}#{index}")
        self.shared = shared
        self.index = index
        self.realtime = shared.inner.realtime
        self.stepped_only = shared.inner.stepped_only
        if isinstance(shared.inner, Wire):
            self.stepped_only = "engines that share a wire"

    def watchers(self) -> list[tuple[Any, Any]]:
        """The view's own, and on the first view those of the NIC."""
        mine = (ffi.addressof(lib, "mn_shared_nic_set_now"), self.native)
        inner = self.shared.inner.watchers() if self.index == 0 else []
        return [*inner, mine]

    def new_clock(self) -> Clock:
        """One clock for all views."""
        return self.shared.clock()

    def prepare(self, ip: str, isn: int | None) -> int | None:
        """The NIC hears of the first engine."""
        return self.shared.inner.prepare(ip, isn) if self.index == 0 else isn

    def hand_fed_wire(self) -> Wire | None:
        """The NIC, if it is a wire that is fed by hand."""
        return self.shared.inner.hand_fed_wire()

    def shared_secret(self) -> bytes | None:
        """The secret that all engines have."""
        return self.shared.secret

    def opened(self, native: Any) -> None:
        """The engine may hand over frames."""
        rc = lib.mn_shared_nic_join(self.native, native)
        if rc < 0:
            raise os_error(-rc, f"{self}: joining the engines")

    def stats(self) -> dict[str, int]:
        """Frames handed over, dispatched, relayed and lost: `VIEW_STATS`."""
        out = ffi.new("struct mn_shared_stats *")
        lib.mn_shared_nic_get_stats(self.native, out)
        return {name: int(getattr(out, name)) for name in VIEW_STATS}

    def _release(self) -> None:
        lib.mn_shared_nic_close(self._handle)
        self._handle = None
        self.shared._view_closed()


class SharedNic(Nic):
    """A NIC that several engines share: `views` has one NIC for each.

    Args:
        inner: A NIC with one queue, or with as many as there are engines.
        n: Engines, 2 to 16.
        owns: ``inner`` is closed with the last view.
        secret: 16 bytes, the secret of all engines; None: from the kernel's generator.
        ring_bytes: Room for frames on their way from each engine to each other one, a power of two
            from 256 KiB on; 0: 1 MiB.
        rss: How frames of a NIC with one queue are spread over the engines; None: evenly.

    Raises:
        ValueError: An argument is wrong, or the NIC has another number of queues.
        OSError: The kernel refused a descriptor.
    """

    def __init__(
        self,
        inner: Nic,
        n: int,
        *,
        owns: bool = False,
        secret: bytes | None = None,
        ring_bytes: int = 0,
        rss: Rss | None = None,
    ) -> None:
        check_unused(inner)
        if not 2 <= n <= ENGINES_MAX:
            raise ValueError(f"engines: {n} is not within 2 to {ENGINES_MAX}")
        if inner.queues not in {1, n}:
            raise ValueError(f"{inner} has {inner.queues} queues: {n} engines need 1 or {n}")
        config = ffi.new("struct mn_shared_config *")
        config.ring_bytes = ring_bytes
        config.rss = ffi.NULL if rss is None else rss.native
        out = ffi.new("struct mn_nic *[]", n)
        rc = lib.mn_shared_nic_open(out, n, inner.native, config)
        if rc == -errno.EINVAL:
            raise ValueError(
                f"ring_bytes: {ring_bytes} is no power of two from 262144 to 67108864, or the "
                f"table of rss names more than {n} engines"
            )
        if rc < 0:
            raise os_error(-rc, f"{inner}: sharing it")
        super().__init__(inner.native, inner.name)
        self.inner = inner
        self.secret = os.urandom(_SECRET_BYTES) if secret is None else secret
        self._owns = owns
        self._clock: Clock | None = None
        self._open = n
        #: One NIC for each engine.
        self.views = [EngineView(self, out[i], i) for i in range(n)]
        inner.wrapped_by(self)

    @property
    def dispatched(self) -> bool:
        """Whether engine 0 alone has the NIC, and spreads what comes in."""
        return self.inner.queues == 1

    def clock(self) -> Clock:
        """The clock by which stepped engines on this NIC run."""
        if self._clock is None:
            self._clock = self.inner.new_clock()
        return self._clock

    def close(self) -> None:
        """Close the views that are open still. Again: nothing.

        Raises:
            RuntimeError: A stack is still running on one of them.
        """
        for view in self.views:
            view.close()

    def _view_closed(self) -> None:
        self._open -= 1
        if self._open == 0:
            self._handle = None
            if self._owns:
                self.inner.close()


class Engines(list[Stack]):
    """The stacks of one address, one for each engine; they are closed together. A context manager."""

    #: The NIC that they share; None: there is one engine only.
    shared: SharedNic | None = None

    def close(self, linger: float | None = None) -> None:
        """Close all channels, wait until what they sent has arrived, and end the engines.

        Engines need each other for their last segments too, so none ends before all are done.

        Args:
            linger: Seconds to wait at most; None: ``app_exit_linger_ms``. 0: connections are
                reset.

        Raises:
            ConcurrentUseError: Another thread is inside a call on one of the channels.
        """
        running = [stack for stack in self if not stack.closed]
        for stack in running:
            stack._close_channels(linger)
        if running and (linger is None or linger > 0):
            limit = running[0]._config.app_exit_linger_ms / 1000 if linger is None else linger
            end = time.monotonic() + limit
            for stack in running:
                stack._linger(max(0.0, end - time.monotonic()))
        elif running and not running[0].threaded:
            running[0].core.clock.settle()
        for stack in reversed(running):
            stack._finalizer.detach()
            stack.core.close()

    def __enter__(self) -> Engines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(None if error is None else 0)


def open_engines(
    nic: str | Nic,
    n: int,
    ip: str,
    gateway: str | None = None,
    *,
    mtu: int | None = None,
    seed: int | None = None,
    cpus: Sequence[int] | None = None,
    ring_bytes: int = 0,
    rss: Rss | None = None,
    **arguments: Any,
) -> Engines:
    """Open ``n`` engines on one NIC and one address.

    Args:
        nic: A NIC string or a NIC. A TAP that is opened by name gets a queue for each engine; a NIC
            with one queue (also one with faults) is shared by a software dispatcher on engine 0.
        n: 1 to 16; 1 is an ordinary `machnet.Stack`.
        ip: As for `machnet.Stack`; of all engines.
        gateway: As there.
        mtu: As there.
        seed: As there; of the secret that all engines share.
        cpus: A CPU for each engine's thread; with fewer than ``n`` they take turns. None: not
            pinned.
        ring_bytes: See `SharedNic`.
        rss: See `SharedNic`.
        arguments: What else `machnet.Stack` takes, for each of them (but ``cpu`` and ``pcap``).

    Raises:
        ValueError, TypeError: An argument is wrong; the text names it.
        OSError: The NIC can't be opened.
    """
    if not 1 <= n <= ENGINES_MAX:
        raise ValueError(f"engines: {n} is not within 1 to {ENGINES_MAX}")
    if cpus is not None and not cpus:
        raise ValueError("cpus: there is none in it")
    for name in ("cpu", "pcap"):
        if name in arguments and n > 1:
            raise TypeError(f"open_engines has no {name!r}: it belongs to one engine")
    pins: list[int | None] = [None if cpus is None else cpus[i % len(cpus)] for i in range(n)]
    if n == 1:
        arguments.setdefault("cpu", pins[0])
        return Engines([Stack(nic, ip, gateway, mtu=mtu, seed=seed, **arguments)])
    shared = _share(nic, n, mtu, seed, ring_bytes, rss)
    engines = Engines()
    engines.shared = shared
    try:
        for view, pin in zip(shared.views, pins, strict=True):
            stack = Stack(view, ip, gateway, seed=seed, cpu=pin, **arguments)
            stack.core.nics.append(view)
            engines.append(stack)
    except BaseException:
        engines.close(linger=0)
        shared.close()
        raise
    return engines


def _share(
    nic: str | Nic,
    n: int,
    mtu: int | None,
    seed: int | None,
    ring_bytes: int,
    rss: Rss | None,
) -> SharedNic:
    inner = nic if isinstance(nic, Nic) else open_nic(nic, mtu, queues=n)
    try:
        if mtu is not None and mtu != inner.mtu:
            raise ValueError(f"mtu: {inner} has an MTU of {inner.mtu} bytes already")
        if seed is None and not inner.realtime:
            seed = 0
        secret = None if seed is None else _seeded(seed)
        return SharedNic(
            inner, n, owns=inner is not nic, secret=secret, ring_bytes=ring_bytes, rss=rss
        )
    except BaseException:
        if inner is not nic:
            inner.close()
        raise


def _seeded(seed: int) -> bytes:
    out = ffi.new("uint8_t[]", _SECRET_BYTES)
    lib.mn_host_seeded(seed & (2**64 - 1), out, _SECRET_BYTES)
    return bytes(ffi.buffer(out))
