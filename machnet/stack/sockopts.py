# SPDX-License-Identifier: MIT

"""The options of stream sockets, by the names that POSIX and Linux have for them."""

from __future__ import annotations

import errno
import socket as posix
import struct
from typing import TYPE_CHECKING, Any

from machnet._native import lib
from machnet.errors import os_error

if TYPE_CHECKING:
    from machnet.channel import Channel, Flow
    from machnet.stack.info import SocketInfo
    from machnet.stack.stack import Stack

__all__ = ["TCP_ISN", "SocketOptions"]

#: Socket option of ``IPPROTO_TCP``: the initial sequence number of the connection that this socket
#: makes, or of the next connections that it accepts. For protocol tests; write only.
TCP_ISN = 0x6D4E

_LINGER = struct.Struct("ii")

#: (level, name) of options that are the core's too: its number, least and largest value.
_OPTIONS: dict[tuple[int, int], tuple[int, int, int]] = {
    (posix.IPPROTO_TCP, posix.TCP_NODELAY): (lib.MN_OPT_NODELAY, 0, 1),
    (posix.SOL_SOCKET, posix.SO_KEEPALIVE): (lib.MN_OPT_KEEPALIVE, 0, 1),
    (posix.IPPROTO_TCP, posix.TCP_KEEPIDLE): (lib.MN_OPT_KEEPIDLE_S, 1, 1 << 20),
    (posix.IPPROTO_TCP, posix.TCP_KEEPINTVL): (lib.MN_OPT_KEEPINTVL_S, 1, 1 << 20),
    (posix.IPPROTO_TCP, posix.TCP_KEEPCNT): (lib.MN_OPT_KEEPCNT, 1, 255),
    (posix.IPPROTO_TCP, posix.TCP_USER_TIMEOUT): (lib.MN_OPT_USER_TIMEOUT_MS, 0, 2**32 - 1),
    (posix.SOL_SOCKET, posix.SO_RCVBUF): (lib.MN_OPT_RCVBUF, 1, 2**31 - 1),
    (posix.IPPROTO_IP, posix.IP_TOS): (lib.MN_OPT_DSCP, 0, 255),
    (posix.IPPROTO_IP, posix.IP_TTL): (lib.MN_OPT_TTL, 1, 255),
    (posix.IPPROTO_TCP, posix.TCP_MAXSEG): (lib.MN_OPT_MAXSEG, 88, 65495),
    (posix.IPPROTO_TCP, posix.TCP_QUICKACK): (lib.MN_OPT_QUICKACK, 0, 1),
}
_BOOLEANS = {lib.MN_OPT_NODELAY, lib.MN_OPT_KEEPALIVE, lib.MN_OPT_QUICKACK}


class SocketOptions:
    """The part of `machnet.Socket` that has its options."""

    stack: Stack
    _channel: Channel
    _flow: Flow | None
    _listener: int
    _failed: bool

    def __init__(self) -> None:
        self._linger: tuple[int, int] = (0, 0)
        self._reuse = 0
        self._isn: int | None = None
        self._options: dict[int, int] = {}

    def _open(self) -> None:
        raise NotImplementedError

    def _update(self) -> None:
        raise NotImplementedError

    def _take_error(self) -> int:
        raise NotImplementedError

    def info(self) -> SocketInfo | None:
        """The engine's view of the connection; None when it has none."""
        raise NotImplementedError

    def setsockopt(self, level: int, name: int, value: int | bytes | tuple[int, int]) -> None:
        """Set an option, before or after connecting; accepted sockets inherit their listener's.

        Known: ``SO_KEEPALIVE``, ``SO_RCVBUF`` (bytes, not doubled), ``SO_LINGER`` (packed, or a
        tuple), ``SO_REUSEADDR``, ``TCP_NODELAY``, ``TCP_KEEPIDLE`` (s), ``TCP_KEEPINTVL`` (s),
        ``TCP_KEEPCNT``, ``TCP_USER_TIMEOUT`` (ms), ``TCP_MAXSEG`` (88 to 65495), ``TCP_QUICKACK``,
        ``IP_TOS`` (its upper six bits), ``IP_TTL``, `TCP_ISN`.

        Raises:
            OSError: ``ENOPROTOOPT``: not known; ``EINVAL``: out of its range; ``EBADF``.
        """
        self._open()
        key = (level, name)
        if key == (posix.SOL_SOCKET, posix.SO_LINGER):
            self._linger = _parse_linger(value)
            return
        if not isinstance(value, int):
            raise TypeError(f"an integer is needed for option {name} of level {level}")
        if key == (posix.SOL_SOCKET, posix.SO_REUSEADDR):
            self._reuse = int(bool(value))
        elif key == (posix.IPPROTO_TCP, TCP_ISN):
            if not 0 <= value < 2**32:
                raise os_error(errno.EINVAL, "setsockopt TCP_ISN")
            self._isn = value
        elif key in _OPTIONS:
            self._set_option(key, value)
        else:
            raise os_error(errno.ENOPROTOOPT, f"setsockopt {name} of level {level}")

    def _set_option(self, key: tuple[int, int], value: int) -> None:
        option, least, largest = _OPTIONS[key]
        if option in _BOOLEANS:
            value = int(bool(value))
        if not least <= value <= largest:
            raise os_error(errno.EINVAL, f"setsockopt: {value} is not within {least} to {largest}")
        if option == lib.MN_OPT_DSCP:
            value >>= 2
        self._update()
        if self._flow is not None:
            self._channel.set_option(self._flow, option, value)
        self._options[option] = value

    def getsockopt(self, level: int, name: int, buflen: int = 0) -> Any:
        """Read an option.

        Known: those of `setsockopt` but `TCP_ISN`, and ``SO_ERROR``, ``SO_TYPE``,
        ``SO_ACCEPTCONN``, ``SO_DOMAIN``, ``SO_PROTOCOL``, ``TCP_INFO`` (a `SocketInfo`).

        Args:
            level: Of the option.
            name: Of the option.
            buflen: With ``SO_LINGER``: 8 gives it packed; 0 a tuple.

        Raises:
            OSError: ``ENOPROTOOPT``: not known; ``ENOTCONN`` (``TCP_INFO``); ``EBADF``.
        """
        self._open()
        self._update()
        key = (level, name)
        simple = {
            (posix.SOL_SOCKET, posix.SO_TYPE): int(posix.SOCK_STREAM),
            (posix.SOL_SOCKET, posix.SO_DOMAIN): int(posix.AF_INET),
            (posix.SOL_SOCKET, posix.SO_PROTOCOL): int(posix.IPPROTO_TCP),
            (posix.SOL_SOCKET, posix.SO_ACCEPTCONN): int(self._listener != 0),
            (posix.SOL_SOCKET, posix.SO_REUSEADDR): self._reuse,
        }
        if key in simple:
            return simple[key]
        if key == (posix.SOL_SOCKET, posix.SO_ERROR):
            return self._take_error() or self._flow_error()
        if key == (posix.SOL_SOCKET, posix.SO_LINGER):
            return _LINGER.pack(*self._linger)[:buflen] if buflen else self._linger
        if key == (posix.IPPROTO_TCP, posix.TCP_INFO):
            info = self.info()
            if info is None:
                raise os_error(errno.ENOTCONN, "getsockopt TCP_INFO")
            return info
        if key not in _OPTIONS:
            raise os_error(errno.ENOPROTOOPT, f"getsockopt {name} of level {level}")
        return self._get_option(_OPTIONS[key][0])

    def _get_option(self, option: int) -> int:
        live = self._flow is not None and not self._failed
        if live and self._flow is not None:
            read = lib.MN_OPT_MSS if option == lib.MN_OPT_MAXSEG else option
            value = self._channel.get_option(self._flow, read)
        else:
            value = self._options.get(option, self._default(option))
        return value << 2 if option == lib.MN_OPT_DSCP else value

    def _default(self, option: int) -> int:
        config = self.stack.settings
        defaults: dict[int, Any] = {
            lib.MN_OPT_NODELAY: not config.nagle_stream,
            lib.MN_OPT_KEEPIDLE_S: config.keepalive_idle_s,
            lib.MN_OPT_KEEPINTVL_S: config.keepalive_interval_s,
            lib.MN_OPT_KEEPCNT: config.keepalive_count,
            lib.MN_OPT_RCVBUF: config.rcv_buf_bytes,
            lib.MN_OPT_DSCP: config.dscp,
            lib.MN_OPT_TTL: config.ttl,
            lib.MN_OPT_MAXSEG: self.stack.mtu - 40,
        }
        return int(defaults.get(option, 0))

    def _flow_error(self) -> int:
        """The error of an established connection that nobody was told of yet."""
        if self._flow is None or self._failed:
            return 0
        error = self._flow.error
        if error in {0, errno.ENOTCONN}:
            return 0
        self._failed = True
        return error


def _parse_linger(value: int | bytes | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, bytes):
        if len(value) != _LINGER.size:
            raise os_error(errno.EINVAL, "setsockopt SO_LINGER")
        on, seconds = _LINGER.unpack(value)
    elif isinstance(value, tuple):
        on, seconds = value
    else:
        raise TypeError("SO_LINGER takes a tuple (on, seconds) or struct.pack('ii', on, seconds)")
    if seconds < 0:
        raise os_error(errno.EINVAL, "setsockopt SO_LINGER")
    return int(bool(on)), int(seconds)
