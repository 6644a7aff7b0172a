# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (channels, sockets and streams are one implementation in several files)
"""Non-blocking stream sockets on a stack, with the names, options and errors of POSIX sockets."""

from __future__ import annotations

import errno
import os
import select
import socket as posix
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.errors import os_error
from machnet.stack.chanbase import OF_STEPPING, buffer_of
from machnet.stack.names import parse_ip, parse_port
from machnet.stack.sockopts import TCP_ISN, SocketOptions

if TYPE_CHECKING:
    from machnet.channel import Channel, Flow
    from machnet.stack.stack import SocketInfo, Stack

__all__ = ["TCP_ISN", "Socket"]

_STREAM: int = lib.MN_PROTO_STREAM


class Socket(SocketOptions):
    """A stream socket; made by `machnet.Stack.socket`. Never blocks; a context manager.

    Methods fail with the ``OSError`` that a POSIX socket gives. `BlockingIOError` says "not now":
    ``EINPROGRESS`` and ``EALREADY`` from `connect`, ``EAGAIN`` from the others. On a stepped stack
    each call first has the engine do what it has to do now.
    """

    family = posix.AF_INET
    type = posix.SOCK_STREAM
    proto = posix.IPPROTO_TCP

    def __init__(self, stack: Stack, flow: Flow | None = None) -> None:
        super().__init__()
        self.stack = stack
        self._channel: Channel = stack.socket_channel()
        self._flow = flow
        self._bound: tuple[str, int] | None = None
        self._peer: tuple[str, int] | None = None
        self._listener = 0
        self._token = 0
        self._fresh = False  # connected, and connect() has not said so yet
        self._error = 0  # to be reported once
        self._failed = False  # its connection has ended by an error that was reported
        self._read_shut = False
        self._write_shut = False
        self._epoll: select.epoll | None = None
        self._closed = False
        self._last: tuple[tuple[str, int], tuple[str, int]] | None = None
        if flow is not None:
            self._last = (flow.local, flow.remote)

    # ---- connections -----------------------------------------------------------------------------

    def bind(self, address: tuple[str, int]) -> None:
        """Choose the local address ("" or "0.0.0.0": the stack's) and port (0: some free one).

        Raises:
            OSError: ``EADDRNOTAVAIL``, ``EADDRINUSE``, ``EINVAL`` (bound already), ``EBADF``.
        """
        self._open()
        ip, port = _address(address, zero=True)
        if self._bound is not None or self._flow is not None or self._token or self._listener:
            raise os_error(errno.EINVAL, "bind")
        if ip not in {"0.0.0.0", self.stack.ip}:  # noqa: S104
            raise os_error(errno.EADDRNOTAVAIL, f"bind to {ip}:{port}")
        taken = {info.local[1]: info.state for info in self.stack.sockets()}
        if port == 0:
            port = next((p for p in range(49152, 65536) if p not in taken), 0)
            if port == 0:
                raise os_error(errno.EADDRINUSE, "bind: no free port")
        elif port in taken and (not self._reuse or taken[port] == "LISTEN"):
            raise os_error(errno.EADDRINUSE, f"bind to {ip}:{port}")
        self._bound = (ip, port)

    def listen(self, backlog: int = 128) -> None:
        """Take connections, of which ``backlog`` may wait to be accepted.

        Raises:
            OSError: ``EADDRINUSE``, ``EINVAL`` (connected or connecting), ``EBADF``.
        """
        self._open()
        if self._flow is not None or self._token:
            raise os_error(errno.EINVAL, "listen")
        if self._listener:
            return
        if self._bound is None:
            self.bind(("0.0.0.0", 0))  # noqa: S104
        ip, port = self._local()
        self._send_isn()
        channel = self._channel
        rc = lib.mn_chan_listen(channel._native, parse_ip(ip), port, _STREAM, max(backlog, 1))
        event = channel._command(rc, "listen")
        if event.status < 0:
            raise os_error(-event.status, f"listen on {ip}:{port}")
        self._listener = int(event.value)

    def accept(self) -> tuple[Socket, tuple[str, int]]:
        """The next connection, with the peer's address.

        Raises:
            BlockingIOError: There is none yet.
            OSError: ``EINVAL`` (does not listen), ``EBADF``.
        """
        self._open()
        if not self._listener:
            raise os_error(errno.EINVAL, "accept: the socket does not listen")
        rc = self._try("accept", lambda: lib.mn_chan_accept(self._native, self._listener))
        flow = self._channel._flow(rc)
        sock = Socket(self.stack, flow)
        sock._inherit(self)
        return sock, flow.remote

    def connect(self, address: tuple[str, int]) -> None:
        """Begin to connect, or say how it went.

        Raises:
            BlockingIOError: ``EINPROGRESS`` the first time, ``EALREADY`` until it is decided.
            OSError: ``EISCONN``; why it failed (``ECONNREFUSED``, ``ETIMEDOUT``,
                ``EHOSTUNREACH``, ...); ``EINVAL`` (listens); ``EBADF``.
        """
        self._open()
        ip, port = _address(address)
        self._update()
        what = f"connect to {ip}:{port}"
        if self._flow is not None:
            if not self._fresh:
                raise os_error(errno.EISCONN, what)
            self._fresh = False
            return
        if self._token:
            raise BlockingIOError(errno.EALREADY, f"{what}: {os.strerror(errno.EALREADY)}")
        if self._error:
            raise os_error(self._take_error(), what)
        if self._listener:
            raise os_error(errno.EINVAL, f"{what}: the socket listens")
        local, local_port = self._local()
        timeout_ms = self._options.get(lib.MN_OPT_USER_TIMEOUT_MS, 0)
        self._send_isn()
        rc = lib.mn_chan_connect(
            self._native, parse_ip(local), local_port, parse_ip(ip), port, _STREAM, timeout_ms
        )
        self._forget_isn()
        if rc < 0:
            self._channel._fail(rc, what)
        self._token, self._peer = rc, (ip, port)
        self._failed = False
        raise BlockingIOError(errno.EINPROGRESS, f"{what}: {os.strerror(errno.EINPROGRESS)}")

    def connect_ex(self, address: tuple[str, int]) -> int:
        """`connect` that returns the ``errno``, 0 when it is connected."""
        try:
            self.connect(address)
        except OSError as error:
            if error.errno is None:
                raise
            return error.errno
        return 0

    def _update(self) -> None:
        """See whether a connection attempt was decided."""
        if not self._token:
            return
        event = ffi.new("struct mn_ctl_evt *")
        if self._epoll is not None:
            self._epoll.poll(0)
        if self._channel._result(self._token, event) is None:
            return
        self._token = 0
        if event.status < 0:
            self._error = -event.status
            return
        self._flow = self._channel._flow(int(event.flow))
        self._last = (self._flow.local, self._flow.remote)
        self._fresh = True
        self._apply_options()

    def _take_error(self) -> int:
        error, self._error = self._error, 0
        return error

    def _local(self) -> tuple[str, int]:
        return self._bound if self._bound is not None else ("0.0.0.0", 0)  # noqa: S104

    # ---- data ------------------------------------------------------------------------------------

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:
        """Send bytes, as many as there is room for.

        Args:
            data: The bytes.
            flags: ``MSG_MORE`` holds a part-filled segment back, ``MSG_OOB`` makes the last byte
                urgent (RFC 6093: better not); ``MSG_DONTWAIT`` and ``MSG_NOSIGNAL`` change nothing.

        Returns:
            How many were taken.

        Raises:
            BlockingIOError: No room now, or not connected yet.
            OSError: ``EPIPE`` (shut down, or the connection has ended), ``ENOTCONN``,
                ``ECONNRESET`` and other ends of the connection, ``EOPNOTSUPP`` (a flag), ``EBADF``.
        """
        known = posix.MSG_MORE | posix.MSG_OOB | posix.MSG_DONTWAIT | posix.MSG_NOSIGNAL
        flow = self._connected("send", flags & ~known)
        if self._write_shut or self._failed:
            raise os_error(errno.EPIPE, "send")
        options = (lib.MN_APP_MORE if flags & posix.MSG_MORE else 0) | (
            lib.MN_APP_URG if flags & posix.MSG_OOB else 0
        )
        if isinstance(data, bytes):
            return self._put(flow, data, options)
        # Let go before an error leaves here: its traceback would keep the caller's buffer pinned.
        with buffer_of(data) as raw:
            return self._put(flow, raw, options)

    def _put(self, flow: Flow, raw: Any, options: int) -> int:
        length = len(raw)
        return self._try(
            "send",
            lambda: lib.mn_chan_stream_send(self._native, flow.id, raw, length, options),
        )

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive at most ``size`` bytes; ``b""`` at the end of the stream.

        Args:
            size: Bytes, 0 or more.
            flags: ``MSG_PEEK`` leaves them in place; ``MSG_DONTWAIT`` changes nothing.

        Raises:
            BlockingIOError: Nothing yet.
            OSError: ``ENOTCONN``; ``ECONNRESET``, ``ETIMEDOUT`` and other ends of the connection,
                once each; ``EOPNOTSUPP`` (a flag); ``EBADF``.
        """
        if size < 0:
            raise ValueError(f"size: {size} is negative")
        flow = self._connected("recv", flags & ~(posix.MSG_PEEK | posix.MSG_DONTWAIT))
        if size == 0:
            return b""
        buf = ffi.new("char[]", min(size, 1 << 20))
        options = lib.MN_APP_PEEK if flags & posix.MSG_PEEK else 0
        if self._failed:
            # The error was told, but what came before it may still be here.
            n = lib.mn_chan_stream_recv(self._native, flow.id, buf, len(buf), options)
            return bytes(ffi.buffer(buf, max(n, 0)))
        try:
            n = self._try(
                "recv",
                lambda: lib.mn_chan_stream_recv(self._native, flow.id, buf, len(buf), options),
            )
        except BlockingIOError:
            if self._read_shut:
                return b""
            raise
        return bytes(ffi.buffer(buf, n))

    def sockatmark(self) -> bool:
        """Whether the next byte is the one behind the peer's urgent data (which come in line)."""
        flow = self._connected("sockatmark", 0)
        info = self._channel._flow_info(flow.id)
        return info is not None and info.urgent_off != 0 and info.urgent_off - 1 == info.read_off

    def _connected(self, what: str, bad_flags: int) -> Flow:
        """The flow, or what a call that needs one fails with."""
        self._open()
        if bad_flags:
            raise os_error(errno.EOPNOTSUPP, f"{what}: flags {bad_flags:#x}")
        self._update()
        if self._flow is not None:
            return self._flow
        if self._token:
            raise BlockingIOError(errno.EAGAIN, f"{what}: not connected yet")
        if self._error:
            raise os_error(self._take_error(), what)
        raise os_error(errno.ENOTCONN, what)

    def _try(self, what: str, call: Any) -> int:
        rc = call()
        if rc == -errno.EAGAIN and self._epoll is not None:
            # Its event is used up first and then looked again, so that no news falls in between.
            self._epoll.poll(0)
            rc = call()
        if rc >= 0:
            return int(rc)
        if rc == -errno.EAGAIN:
            raise BlockingIOError(errno.EAGAIN, f"{what}: {os.strerror(errno.EAGAIN)}")
        if rc in OF_STEPPING:
            self._channel._fail(rc, what)
        self._channel._explain(rc, what)
        if rc not in {-errno.EPIPE, -errno.EBADF}:
            self._failed = True
        raise os_error(-rc, what)

    def shutdown(self, how: int) -> None:
        """End one or both directions: ``SHUT_RD``, ``SHUT_WR``, ``SHUT_RDWR``.

        Raises:
            OSError: ``ENOTCONN``, ``EINVAL``, ``EBADF``.
        """
        self._open()
        if how not in {posix.SHUT_RD, posix.SHUT_WR, posix.SHUT_RDWR}:
            raise os_error(errno.EINVAL, "shutdown")
        self._update()
        if self._flow is None or self._flow.error:
            raise os_error(errno.ENOTCONN, "shutdown")
        if how in {posix.SHUT_RD, posix.SHUT_RDWR}:
            self._read_shut = True
        if how in {posix.SHUT_WR, posix.SHUT_RDWR} and not self._write_shut:
            rc = lib.mn_chan_shutdown(self._native, self._flow.id)
            if rc in OF_STEPPING:
                self._channel._fail(rc, "shutdown")
            if rc < 0:
                raise os_error(-rc, "shutdown")
            self._write_shut = True

    def close(self) -> None:
        """Close; again: nothing. ``SO_LINGER`` says how. What was sent still goes out otherwise."""
        if self._closed:
            return
        self._closed = True
        if self._epoll is not None:
            self._epoll.close()
        if self.stack.closed:
            return
        native = self._channel._native
        if self._listener:
            self._channel._command(lib.mn_chan_unlisten(native, self._listener), "close")
        if self._token:
            lib.mn_chan_forget(native, self._token)
        if self._flow is not None:
            on, seconds = self._linger
            linger_ms = min(seconds * 1000, 2**32 - 2) if on else lib.MN_LINGER_DEFAULT
            rc = lib.mn_chan_close_flow(native, self._flow.id, linger_ms)
            if rc in OF_STEPPING:
                self._channel._fail(rc, "close")

    # ---- options ---------------------------------------------------------------------------------

    def _inherit(self, listener: Socket) -> None:
        self._linger = listener._linger
        self._options = dict(listener._options)
        self._apply_options()

    def _apply_options(self) -> None:
        try:
            for option, value in self._options.items():
                self._channel.set_option(self._flow, option, value)
        except OSError as error:
            # The connection may have ended again before anybody looked.
            if error.errno != errno.ENOTCONN:
                raise

    def _send_isn(self) -> None:
        if self._isn is not None:
            self._channel.set_option(None, lib.MN_OPT_ISN, self._isn)

    def _forget_isn(self) -> None:
        """What the stack was opened with counts again for whatever comes next."""
        if self._isn is not None:
            self._token_free(lib.mn_chan_setopt(
                self._native, lib.MN_FLOW_NONE, lib.MN_OPT_ISN, self.stack.isn_default()
            ))  # fmt: skip

    def _token_free(self, rc: int) -> None:
        """The answer to this command is not waited for."""
        if rc < 0:
            self._channel._fail(rc, "option")
        lib.mn_chan_forget(self._native, rc)

    # ---- what it is ------------------------------------------------------------------------------

    def getsockname(self) -> tuple[str, int]:
        """Our address and port.

        Raises:
            OSError: ``EBADF``.
        """
        self._open()
        self._update()
        if self._flow is not None:
            return self._flow.local
        if self._token:
            info = self._attempt()
            if info is not None:
                return info.local
        return self._local()

    def getpeername(self) -> tuple[str, int]:
        """The peer's address and port.

        Raises:
            OSError: ``ENOTCONN``, ``EBADF``.
        """
        self._open()
        self._update()
        if self._flow is None or self._flow.error:
            raise os_error(errno.ENOTCONN, "getpeername")
        return self._flow.remote

    def info(self) -> SocketInfo | None:
        """The engine's view of the connection, also after `close`; None when it has none."""
        if self.stack.closed:
            return None
        if not self._closed:
            self._update()
        if self._last is not None:
            return self.stack.find_socket(*self._last)
        if self._token:
            return self._attempt()
        if self._listener and not self._closed:
            return self.stack.find_socket(self._local())
        return None

    @property
    def state(self) -> str:
        """The connection's state as RFC 9293 names it, also after `close`: "ESTABLISHED" etc."""
        info = self.info()
        return "CLOSED" if info is None else info.state

    def _attempt(self) -> SocketInfo | None:
        """The connection that is being made: its port is not known before the answer."""
        lane = lib.mn_chan_lane_no(self._channel._native)
        port = self._local()[1]
        for info in self.stack.sockets():
            if (
                info.channel == lane
                and info.remote == self._peer
                and info.state in {"SYN-SENT", "SYN-RECEIVED"}
                and port in {0, info.local[1]}
            ):
                return info
        return None

    def fileno(self) -> int:
        """A descriptor for ``select``, ``poll`` and the like, which stays the socket's.

        Readable means: try again whatever said "not now", sending too. It is not the connection
        itself: nothing can be read from it.

        Raises:
            OSError: ``EBADF``.
        """
        self._open()
        if self._epoll is None:
            fd = lib.mn_chan_edge_fd(self._native)
            if fd < 0:
                self._channel._fail(fd, "fileno")
            epoll = select.epoll()
            epoll.register(fd, select.EPOLLIN | select.EPOLLET)
            self._epoll = epoll
        return self._epoll.fileno()

    @property
    def _native(self) -> Any:
        return self._channel._native

    def _open(self) -> None:
        if self._closed or self.stack.closed:
            raise os_error(errno.EBADF, "the socket is closed")

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = f" {self._last[0]} -> {self._last[1]}" if self._last is not None else ""
        return f"<Socket {'closed' if self._closed else self.state}{where}>"


def _address(address: tuple[str, int], *, zero: bool = False) -> tuple[str, int]:
    given: object = address
    if not (isinstance(given, tuple) and len(given) == 2):
        raise TypeError(f"an address is a tuple of IPv4 address and port, not {address!r}")
    ip, port = address
    if ip == "":
        ip = "0.0.0.0"  # noqa: S104
    parse_ip(ip)
    return ip, parse_port(port, zero=zero)
