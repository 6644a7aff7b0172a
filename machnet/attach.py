# SPDX-License-Identifier: MIT
"""Channels of a sidecar: `attach` connects to the controller and gets one."""

from __future__ import annotations

import errno
import math
import os
import threading
import weakref
from typing import Any

from machnet._native import ffi, lib
from machnet.channel import Channel
from machnet.config import ChannelSettings, convert
from machnet.stack.chanbase import linger_to_ms
from machnet.stack.lending import RemoteStack
from machnet.stack.names import format_ip

__all__ = ["Sidecar", "attach"]

_WHY_BYTES = 1024
_SPIN_US = 20.0
_LINGER_DEFAULT: int = lib.MN_LINGER_DEFAULT

#: This process's connections, by path and name, while a channel of them is there.
_sidecars: weakref.WeakValueDictionary[tuple[str, str | None], Sidecar] = (
    weakref.WeakValueDictionary()
)
_lock = threading.Lock()


def attach(
    socket: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    spin_us: float = _SPIN_US,
    **settings: int,
) -> Channel:
    """A new channel to the engines of this machine's sidecar, for one thread.

    What was sent on it still goes out when the channel is closed or the process ends, whatever the
    way of its end. All channels of a process share one connection to the sidecar. In a forked child
    the parent's channels are closed; the child attaches for itself.

    Args:
        socket: Path of the sidecar's socket; None: ``MACHNET_SOCKET``, else
            ``/var/run/machnet/machnet_ctrl.sock``.
        name: What the sidecar's listings call this application, up to 63 bytes; None: the program's
            name.
        spin_us: How long a waiting call looks before it sleeps; infinity: it never sleeps.
        settings: Fields of `machnet.config.ChannelSettings`; the sidecar chooses what is not given.

    Raises:
        ConnectionRefusedError: There is no sidecar at that path.
        PermissionError: It does not want this user.
        TypeError, ValueError: A setting is unknown or out of its range.
        OSError: ``EPROTO``: the sidecar is of another version; ``EDQUOT``: it gives no more
            channels, or none of this size; ``ENOSPC``; ``ETIMEDOUT``: it does not answer.
    """
    path = _path(socket)
    if not spin_us >= 0:
        raise ValueError(f"spin_us: {spin_us!r} is no number of microseconds from 0 on")
    for attempt in range(2):
        sidecar = _connect(path, name)
        try:
            return sidecar.attach(spin_us=spin_us, **settings)
        except BrokenPipeError:
            # It died a moment ago; there may be another one.
            if attempt == 1:
                raise ConnectionRefusedError(
                    errno.ECONNREFUSED, f"the sidecar at {path} closes its connections"
                ) from None
    raise AssertionError("unreachable")


def _after_fork() -> None:
    """The child connects for itself; whoever held the lock is not there."""
    global _lock
    _lock = threading.Lock()
    _sidecars.clear()


os.register_at_fork(after_in_child=_after_fork)


def _path(socket: str | os.PathLike[str] | None) -> str:
    if socket is None:
        text: str = ffi.string(lib.mn_client_path(ffi.NULL)).decode(errors="surrogateescape")
        return text
    return os.fsdecode(socket)


def _connect(path: str, name: str | None) -> Sidecar:
    with _lock:
        sidecar = _sidecars.get((path, name))
        if sidecar is None or not sidecar.alive:
            sidecar = Sidecar(path, name)
            _sidecars[path, name] = sidecar
        return sidecar


class Sidecar(RemoteStack):
    """A connection to a sidecar: `Channel.stack` of its channels.

    Args:
        path: Of its socket.
        name: What the application calls itself; None: the program's name.
    """

    def __init__(self, path: str, name: str | None = None) -> None:
        super().__init__("0.0.0.0", f"the sidecar at {path}")  # noqa: S104
        self.path = path
        out = ffi.new("struct mn_client **")
        why = ffi.new("char[]", _WHY_BYTES)
        raw_name = ffi.NULL if name is None else ffi.new("char[]", _encoded(name))
        rc = lib.mn_client_open(out, _encoded(path), raw_name, why, _WHY_BYTES)
        if rc < 0:
            raise OSError(-rc, ffi.string(why).decode(errors="replace"))
        self._client = ffi.gc(out[0], lib.mn_client_close)

    @property
    def alive(self) -> bool:
        """Whether the connection is there, and this process's own."""
        return bool(lib.mn_client_alive(self._client))

    def attach(self, *, spin_us: float = _SPIN_US, **settings: int) -> Channel:
        """A new channel; as `machnet.attach`, which see.

        Raises:
            BrokenPipeError: The connection is gone.
        """
        sizes = convert(ChannelSettings, settings, "attach")
        wishes = ffi.new("struct mn_chan_geometry *")
        for field in settings:
            setattr(wishes, field, getattr(sizes, field))
        spin_ns = lib.MN_NEVER if spin_us == math.inf else int(spin_us * 1000)
        out, number = ffi.new("struct mn_chan **"), ffi.new("uint32_t *")
        got = ffi.new("struct mn_chan_geometry *")
        rc = lib.mn_client_attach(self._client, wishes, spin_ns, out, number, got)
        if rc < 0:
            why = ffi.new("char[]", _WHY_BYTES)
            lib.mn_client_why(self._client, why, _WHY_BYTES)
            raise OSError(
                -rc, f"attaching to {self._name}: {ffi.string(why).decode(errors='replace')}"
            )
        native = ffi.gc(out[0], lib.mn_chan_free)
        self.ip = format_ip(lib.mn_chan_ip(native, 0))
        fields = ChannelSettings.__struct_fields__
        sizes = ChannelSettings(**{field: getattr(got, field) for field in fields})
        return _Attached(self, native, sizes, int(number[0]))

    def detach(self, number: int, linger_ms: int) -> None:
        """Have the sidecar end a channel that was closed here."""
        # A sidecar that is gone holds no channel, and a child of fork none either.
        lib.mn_client_detach(self._client, number, linger_ms)


class _Attached(Channel):
    """A channel that the sidecar is told of when it is closed."""

    def __init__(
        self, sidecar: Sidecar, native: Any, settings: ChannelSettings, number: int
    ) -> None:
        super().__init__(sidecar, native, settings)
        self._detacher = weakref.finalize(self, _forgotten, native, sidecar, number)
        self._sidecar, self._number = sidecar, number

    def close(self, linger: float | None = None) -> None:
        """As `machnet.Channel.close`."""
        if not self._closed:
            linger_ms = linger_to_ms(linger)
            super().close(linger)
            self._detacher.detach()
            self._sidecar.detach(self._number, linger_ms)


def _forgotten(native: Any, sidecar: Sidecar, number: int) -> None:
    """A channel that nobody has any more, or the interpreter's end."""
    lib.mn_chan_close(native, _LINGER_DEFAULT)
    sidecar.detach(number, _LINGER_DEFAULT)


def _encoded(text: str) -> bytes:
    raw = text.encode(errors="surrogateescape")
    if b"\0" in raw:
        raise ValueError(f"{text!r} has a zero byte in it")
    return raw
