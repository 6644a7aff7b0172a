# SPDX-License-Identifier: MIT
"""Channels between processes: lending one to another process, and attaching to one that was lent.

The lender makes the memory and all descriptors; the application gets the descriptors, over a UNIX
socket for example (`socket.send_fds`, `socket.recv_fds`), and attaches to them.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.channel import Channel
from machnet.config import ChannelSettings
from machnet.errors import ConcurrentUseError, os_error
from machnet.stack.chanbase import linger_to_ms
from machnet.stack.names import format_ip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from machnet.stack.clock import Clock
    from machnet.stack.stack import Stack

__all__ = ["Lent", "RemoteStack", "attach_fds", "channel_of", "lend"]

#: How long a waiting application looks before it sleeps.
_SPIN_US = 20.0
LANES_MAX: int = lib.MN_LANES_MAX


class Lent:
    """A channel that was lent to another process. A context manager.

    Attributes:
        settings: Its sizes.
        fds: What the application needs: memory, wake-up, and one kick for each stack, in this
            order. Close them with `close_fds` once they were sent.
    """

    def __init__(
        self, native: Any, fds: Any, stacks: Sequence[Stack], settings: ChannelSettings
    ) -> None:
        self._native = native
        self._stacks = tuple(stacks)  # they must outlive the loan
        self._fds = fds
        self._lock = threading.Lock()  # whoever ends it, and whoever asks, may be different threads
        self.settings = settings
        self.fds: list[int] = [fds.memfd, fds.wake, *list(fds.kick)[: fds.n_lanes]]

    @property
    def lanes(self) -> tuple[int, ...]:
        """Which channel of each stack it is: `SocketInfo.channel` of its flows. () once it is closed."""
        with self._lock:
            if self._native is None:
                return ()
            return tuple(lib.mn_lent_lane(self._native, i) for i in range(len(self._stacks)))

    def close_fds(self) -> None:
        """Close this process's copies of the application's descriptors."""
        with self._lock:
            lib.mn_chan_fds_close(self._fds)
            self.fds = []

    @property
    def dead(self) -> int:
        """Why an engine has given the channel up, as an errno; 0 while it lives.

        ``EPROTO``: its application broke the rules.
        """
        with self._lock:
            if self._native is None:
                return errno.EBADF
            return abs(int(lib.mn_lent_dead(self._native)))

    def close(self, linger: float | None = None) -> None:
        """End the loan: the application is gone, or has to go.

        What it had published is still sent.

        Args:
            linger: Seconds until what is left of its flows is reset; None: the engine's
                ``app_exit_linger_ms``; 0: reset them now.
        """
        linger_ms = linger_to_ms(linger)
        self.close_fds()
        with self._lock:
            if self._native is None:
                return
            rc = lib.mn_lent_close(self._native, linger_ms)
            if rc == -errno.EBUSY:
                raise ConcurrentUseError("the stack is being stepped by another thread")
            if rc < 0:
                raise os_error(-rc, "ending the loan of a channel")
            self._native = None

    def __enter__(self) -> Lent:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def lend(stacks: Sequence[Stack], settings: ChannelSettings | None = None) -> Lent:
    """Make a channel over some stacks for another process.

    Args:
        stacks: 1 to 16, each with a thread of its own; the channel has a lane for each of them.
        settings: Its sizes, which each lane has for itself; with several stacks ``flows_max`` is at
            most 65535 divided by their number (rounded up to a power of two).

    Raises:
        ValueError: Sizes, or the number of stacks, are out of their range; a stack is closed.
        OSError: ``ENOSPC``: there are ``lanes_max`` channels already; ``EMFILE``.
        MemoryError: There is no address space for it.
    """
    sizes = ChannelSettings() if settings is None else settings
    geometry = ffi.new("struct mn_chan_geometry *", {"n_lanes": 1})
    for name in sizes.__struct_fields__:
        setattr(geometry, name, getattr(sizes, name))
    out = ffi.new("struct mn_lent **")
    fds = ffi.new("struct mn_chan_fds *")
    natives = ffi.new("struct mn_stack *[]", [stack._native for stack in stacks])  # noqa: SLF001
    rc = lib.mn_lend(out, natives, len(stacks), geometry, fds)
    if rc == -errno.EINVAL:
        raise ValueError(
            f"a channel over {len(stacks)} stacks: takes 1 to {LANES_MAX}, powers of two for "
            f"buf_bytes and ctl_slots, and a flows_max below 65536 divided by them, not {sizes}"
        )
    if rc == -errno.ENOMEM:
        raise MemoryError(f"no room for a channel of {sizes}")
    if rc == -errno.EPIPE:
        raise ValueError("a channel over a stack that is closed")
    if rc < 0:
        raise os_error(-rc, "lending a channel")
    return Lent(out[0], fds, stacks, sizes)


class RemoteStack:
    """What the application knows of the engines of an attached channel: `Channel.stack` of it."""

    #: Stepped by nobody in this process.
    clock: Clock | None = None
    #: There is no engine in this process.
    native: Any = ffi.NULL

    def __init__(self, ip: str, name: str = "a sidecar") -> None:
        self.ip = ip
        self.closed = False
        self.core = self
        self.aio_hubs: dict[Any, Any] = {}
        self._name = name

    def __repr__(self) -> str:
        return f"<{self._name}, {self.ip}>"


def channel_of(
    native: Any, *, name: str = "a sidecar", on_close: Callable[[], None] | None = None
) -> Channel:
    """The `Channel` of a ``struct mn_chan *`` that was attached to other processes' engines.

    It owns the pointer from now on. ``on_close`` is called when it was closed.
    """
    geometry = ffi.new("struct mn_chan_geometry *")
    rc = lib.mn_chan_geometry(native, geometry)
    if rc < 0:
        raise os_error(-rc, "attaching")
    settings = ChannelSettings(
        **{field: getattr(geometry, field) for field in ChannelSettings.__struct_fields__}
    )
    stack = RemoteStack(format_ip(lib.mn_chan_ip(native, 0)), name)
    channel = Channel(stack, ffi.gc(native, lib.mn_chan_free), settings, geometry.n_lanes)
    channel.on_close = on_close
    return channel


def attach_fds(
    fds: Sequence[int], *, spin_us: float = _SPIN_US, name: str = "a sidecar"
) -> Channel:
    """Attach to a channel that another process has lent.

    Args:
        fds: The descriptors in the order of `Lent.fds`. They become the channel's.
        spin_us: How long a waiting call looks before it sleeps; infinity: it never sleeps.
        name: What the lender is called in texts.

    Raises:
        OSError: ``EPROTO``: not a channel of this version; ``EINVAL``: other descriptors.
        MemoryError: There is no address space for it.
    """
    native = ffi.new("struct mn_chan_fds *", {"n_lanes": len(fds) - 2})
    if not 1 <= native.n_lanes <= LANES_MAX:
        raise ValueError(f"fds: {len(fds)} descriptors, but a channel has 3 to {LANES_MAX + 2}")
    native.memfd, native.wake = fds[:2]
    native.kick[0 : native.n_lanes] = list(fds[2:])
    spin_ns = lib.MN_NEVER if spin_us == float("inf") else int(spin_us * 1000)
    out = ffi.new("struct mn_chan **")
    rc = lib.mn_chan_attach(out, native, spin_ns)
    if rc == -errno.ENOMEM:
        raise MemoryError("no room for the channel")
    if rc < 0:
        raise OSError(-rc, f"attaching to {name}: {os.strerror(-rc)}")
    return channel_of(out[0], name=name)
