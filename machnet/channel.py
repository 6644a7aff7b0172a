# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (channels, sockets and streams are one implementation in several files)
"""A channel: one application thread's connection to an engine, with its flows and messages.

Channels come from `machnet.Stack.attach`. One thread uses one channel at a time; a second one is
refused with `ConcurrentUseError`. On a stepped stack each call first lets the engine do what it has
to do now, and a blocking call steps it until there is an answer.
"""

from __future__ import annotations

import atexit
import errno
import weakref
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.errors import flow_error, os_error
from machnet.stack.batches import Batches
from machnet.stack.chanbase import OF_STEPPING, ChannelBase, buffer_of, linger_to_ms, seconds
from machnet.stack.flows import Flow, Listener, Message
from machnet.stack.names import parse_ip, parse_port, parse_protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from machnet.config import ChannelSettings
    from machnet.stack.lending import RemoteStack
    from machnet.stack.stack import Stack, StackCore

__all__ = ["Channel", "Flow", "Listener", "Message"]

_LINGER_DEFAULT: int = lib.MN_LINGER_DEFAULT
_EVENT: int = lib.MN_CHAN_EVENT
_LEN_BITS: int = lib.MN_CHAN_LEN_BITS
_LEN_MASK = (1 << _LEN_BITS) - 1
_EAGAIN = -errno.EAGAIN
#: No room now, or the flow is a stream: the slow way knows.
_TRY_AGAIN = frozenset({_EAGAIN, -errno.EINVAL})
#: Receive buffer that is kept; a longer message gets one of its own.
_RECV_BYTES = 65536

_send = lib.mn_chan_send
_recv = lib.mn_chan_recv


class Channel(ChannelBase):
    """One thread's messages and streams. Made by `machnet.Stack.attach`; a context manager.

    Attributes:
        stack: The stack that it is attached to.
        settings: Its sizes.
    """

    def __init__(
        self, stack: Stack | RemoteStack, native: Any, settings: ChannelSettings, lanes: int = 1
    ) -> None:
        super().__init__(stack, native)
        self.settings = settings
        self._buf = ffi.new("char[]", _RECV_BYTES)
        self._view = ffi.buffer(self._buf, _RECV_BYTES)
        self._size = _RECV_BYTES
        self._flows_max = settings.flows_max * lanes
        self._event = ffi.new("struct mn_chan_event *")
        self._batches = Batches(self)
        self._flows: dict[int, Flow] = {}
        self._slots: dict[int, int] = {}
        self._listeners: dict[int, Listener] = {}
        # The engine's half must go before the memory of the handle does.
        self._finalizer = weakref.finalize(self, _finalize, native, stack.core)
        _Exit.watch()

    # ---- connections -----------------------------------------------------------------------------

    def listen(self, ip: str, port: int, protocol: str = "udp", *, backlog: int = 0) -> Listener:
        """Take connections on an address and port.

        Args:
            ip: One of the engine's addresses, or "0.0.0.0".
            port: 1 to 65535.
            protocol: "udp" (messages over UDP, the Machnet message protocol), "tcp" (messages
                with a 4-byte length in front) or "stream" (bytes).
            backlog: Connections that may wait to be accepted; 0: the engine's default.

        Raises:
            ValueError, TypeError: An argument is wrong.
            OSError: ``EADDRINUSE``, ``EADDRNOTAVAIL`` (not the engine's address), ``ENOBUFS``,
                ``EMSGSIZE`` ("udp": the MTU is below 594 bytes).
        """
        number = parse_protocol(protocol)
        address, port = parse_ip(ip), parse_port(port)
        if not 0 <= backlog < 2**32:
            raise ValueError(f"backlog: {backlog!r} is not within 0 to 4294967295")
        what = f"listening on {ip}:{port}"
        event = self._command(
            lib.mn_chan_listen(self._native, address, port, number, backlog), what
        )
        if event.status < 0:
            raise os_error(-event.status, what)
        listener = Listener(self, int(event.value), protocol, (ip, port))
        self._listeners[listener.id] = listener
        return listener

    def connect(
        self,
        local_ip: str,
        remote_ip: str,
        port: int,
        protocol: str = "udp",
        timeout: float | None = 5.0,
        *,
        local_port: int = 0,
    ) -> Flow:
        """Connect to a peer and wait for its answer.

        Args:
            local_ip: The engine's address, or "0.0.0.0".
            remote_ip: The peer's.
            port: The peer's, 1 to 65535.
            protocol: "udp", "tcp" or "stream"; see `listen`.
            timeout: Seconds to wait; None: the engine's own limit (``syn_timeout_ms``).
            local_port: Ours; 0: the engine chooses one.

        Raises:
            ValueError, TypeError: An argument is wrong.
            TimeoutError: The peer did not answer in time.
            ConnectionRefusedError: Nobody listens there.
            OSError: ``EHOSTUNREACH``, ``ENETUNREACH``, ``EADDRNOTAVAIL``, ``EADDRINUSE``,
                ``EMSGSIZE`` (see `listen`).
        """
        what = f"connecting to {remote_ip}:{port}"
        token = self._connect_start(local_ip, remote_ip, port, protocol, timeout, local_port)
        event = ffi.new("struct mn_ctl_evt *")
        try:
            self._block(lambda: self._result(token, event), timeout, what)
        except BaseException:
            if not self._closed:
                lib.mn_chan_forget(self._native, token)
            raise
        return self._connect_finish(event, what)

    def _connect_start(
        self,
        local_ip: str,
        remote_ip: str,
        port: int,
        protocol: str,
        timeout: float | None,
        local_port: int = 0,
    ) -> int:
        number = parse_protocol(protocol)
        local, remote = parse_ip(local_ip, "local address"), parse_ip(remote_ip, "remote address")
        parse_port(port)
        parse_port(local_port, "local port", zero=True)
        what = f"connecting to {remote_ip}:{port}"
        # The engine gives up a little later than the caller, so that the caller's timeout is the
        # one that counts.
        limit_ms = 0 if timeout is None else min(int(seconds(timeout) * 1000) + 1000, 2**32 - 1)
        return self._token(
            lib.mn_chan_connect(self._native, local, local_port, remote, port, number, limit_ms),
            what,
        )

    def _connect_finish(self, event: Any, what: str) -> Flow:
        if event.status < 0:
            raise os_error(-event.status, what)
        return self._flow(int(event.flow))

    def _unlisten(self, listener: Listener) -> None:
        if self._closed or self._listeners.pop(listener.id, None) is None:
            return
        what = f"closing {listener}"
        event = self._command(lib.mn_chan_unlisten(self._native, listener.id), what)
        if event.status < 0:
            raise os_error(-event.status, what)

    def _accept(self, listener: Listener, timeout: float | None) -> Flow:
        flow = self._try_accept(listener)
        if flow is None:
            flow = self._block(lambda: self._try_accept(listener), timeout, f"accept on {listener}")
        return flow

    def _try_accept(self, listener: Listener) -> Flow | None:
        if listener.protocol != "stream":
            raise ValueError(
                f"{listener}: framed flows need no accept: they show up with their first message"
            )
        rc = lib.mn_chan_accept(self._native, listener.id)
        if rc >= 0:
            return self._flow(rc)
        if rc != _EAGAIN:
            self._fail(rc, f"accept on {listener}")
        return None

    # ---- data ------------------------------------------------------------------------------------

    def send(
        self,
        flow: Flow,
        data: bytes | bytearray | memoryview,
        timeout: float | None = 0.0,
    ) -> int:
        """Send a message, or as many bytes of a stream as there is room for.

        The data are copied before it returns. That they were taken does not mean that they have
        arrived.

        Args:
            flow: Where to.
            data: Bytes; a message has at most 8 MiB, and with "udp" at least one byte.
            timeout: Seconds to wait for room; 0: never blocks; None: for ever.

        Returns:
            The bytes taken: of a message always all, of a stream at least one (if there is one).

        Raises:
            BlockingIOError: No room in time. Nothing of it was sent.
            OSError: ``EMSGSIZE``: the message can never fit.
            ValueError: An empty message on a flow of "udp", which has none.
            FlowError: The flow has ended; nothing can be sent any more.
        """
        if type(data) is bytes and flow.channel is self:
            rc = _send(self._native, flow.id, data, len(data))
            if rc == 0:
                return len(data)
            if rc not in _TRY_AGAIN:
                self._send_failed(rc, flow, len(data))
        return self._send_slow(flow, data, timeout)

    def _send_slow(
        self, flow: Flow, data: bytes | bytearray | memoryview, timeout: float | None
    ) -> int:
        if flow.channel is not self:
            raise ValueError(f"{flow} belongs to another channel")
        taken = self._try_send(flow, data)
        if taken is None and timeout == 0:
            raise BlockingIOError(errno.EAGAIN, f"no room for {len(data)} bytes on {flow}")
        if taken is None:
            try:
                taken = self._block(lambda: self._try_send(flow, data), timeout, f"send on {flow}")
            except TimeoutError as error:
                raise BlockingIOError(
                    errno.EAGAIN, f"no room for {len(data)} bytes on {flow} within {timeout} s"
                ) from error
        return taken

    def _try_send(self, flow: Flow, data: bytes | bytearray | memoryview) -> int | None:
        if isinstance(data, bytes):
            length = len(data)
            rc = self._put(flow, data, length)
        else:
            # Let go before an error is raised: its traceback would keep the caller's buffer pinned.
            with buffer_of(data) as raw:
                length = len(raw)
                rc = self._put(flow, raw, length)
        if rc >= 0:
            return rc
        if rc != _EAGAIN:
            self._send_failed(rc, flow, length)
        return None

    def _put(self, flow: Flow, raw: Any, length: int) -> int:
        if flow.protocol == "stream":
            return int(lib.mn_chan_stream_send(self._native, flow.id, raw, length, 0))
        rc = int(_send(self._native, flow.id, raw, length))
        return length if rc == 0 else rc

    def _send_failed(self, rc: int, flow: Flow, length: int) -> None:
        if rc == -errno.EMSGSIZE:
            raise OSError(
                errno.EMSGSIZE,
                f"a message of {length} bytes can never fit: at most 8 MiB, and seven eighths of "
                f"{self.settings.tx_bufs} buffers of {self.settings.buf_bytes} bytes",
            )
        if rc in OF_STEPPING or rc == -errno.EBADF:
            self._fail(rc, f"send on {flow}")
        if rc == -errno.EINVAL and length == 0 and flow.protocol == "udp":
            raise ValueError(f"{flow}: a message of 0 bytes: over UDP it has 1 byte to 8 MiB")
        if rc == -errno.EINVAL:
            raise ValueError(f"{flow}: wrong kind of flow")
        self._explain(rc, f"send on {flow}")
        raise flow_error(-rc, flow)

    def recv(self, timeout: float | None = None) -> Message:
        """The next message of any flow.

        Args:
            timeout: Seconds to wait for one; None: for ever; 0: only look.

        Raises:
            TimeoutError: There was none in time.
            FlowError: A flow ended by something else than a clean close; it is raised once, behind
                the flow's last message, and has the flow as ``.flow``.
        """
        n = _recv(self._native, self._buf, self._size, self._event)
        if n >= 0:
            number = n >> _LEN_BITS
            try:
                flow = self._flows[number]
            except KeyError:
                flow = self._flow(number)
            return Message(self._view[: n & _LEN_MASK], flow)
        message = self._received(n)
        if message is None:
            message = self._block(self.try_recv, timeout, "recv")
        return message

    def try_recv(self) -> Message | None:
        """The next message, or None when there is none. Never blocks.

        Raises:
            FlowError: As `recv`.
        """
        n = _recv(self._native, self._buf, self._size, self._event)
        if n >= 0:
            number = n >> _LEN_BITS
            flow = self._flows.get(number)
            if flow is None:
                flow = self._flow(number)
            return Message(self._view[: n & _LEN_MASK], flow)
        return self._received(n)

    def _received(self, rc: int) -> Message | None:
        """What a receive that brought no message means."""
        if rc == _EAGAIN:
            return None
        if rc == _EVENT:
            flow = self._flow(int(self._event.flow))
            flow._error = int(self._event.status)
            self._flows.pop(flow.id, None)
            raise flow_error(self._event.status, flow)
        if rc != -errno.EMSGSIZE:
            self._fail(rc, "recv")
        size = int(self._event.len)
        buf = ffi.new("char[]", size)
        n = _recv(self._native, buf, size, self._event)
        if n < 0:
            self._fail(n, "recv")
        return Message(ffi.buffer(buf, n & _LEN_MASK)[:], self._flow(n >> _LEN_BITS))

    def send_many(
        self,
        flow: Flow,
        messages: Sequence[bytes | bytearray | memoryview],
        timeout: float | None = 0.0,
    ) -> int:
        """Send several messages on one flow, for less than `send` costs for each of them.

        Args:
            flow: Where to: not a stream.
            messages: Bytes of each one.
            timeout: Seconds to wait for room for the first one, as for `send`.

        Returns:
            How many were taken, from the first one on: at least one (if there is one).

        Raises:
            BlockingIOError, OSError, FlowError: As `send`, for the first message.
        """
        if flow.channel is not self:
            raise ValueError(f"{flow} belongs to another channel")
        return self._batches.send(flow, messages, timeout)

    def recv_many(self, limit: int = 256, timeout: float | None = None) -> list[Message]:
        """The next messages of any flows, for less than `recv` costs for each of them.

        Args:
            limit: At most so many, 1 to 256.
            timeout: Seconds to wait for the first one; None: for ever; 0: only look.

        Returns:
            At least one; all that are there, up to ``limit`` and 64 KiB of data.

        Raises:
            TimeoutError: There was none in time.
            FlowError: As `recv`: the end of a flow is raised when it comes first.
        """
        return self._batches.recv(limit, timeout)

    def read(self, flow: Flow, size: int = 65536, timeout: float | None = None) -> bytes:
        """Bytes of a stream flow.

        Args:
            flow: Which one.
            size: At most so many, 1 or more.
            timeout: Seconds to wait for the first one; None: for ever; 0: only look.

        Returns:
            At least one byte; ``b""`` at the end of the stream.

        Raises:
            TimeoutError: There were none in time.
            FlowError: The flow has ended other than by a clean close.
        """
        data = self._try_read(flow, size)
        if data is None:
            data = self._block(lambda: self._try_read(flow, size), timeout, f"read on {flow}")
        return data

    def _try_read(self, flow: Flow, size: int, flags: int = 0) -> bytes | None:
        if size < 1:
            raise ValueError(f"size: {size} is less than 1")
        if size > self._size:
            self._grow(min(size, 1 << 20))
        rc = lib.mn_chan_stream_recv(self._native, flow.id, self._buf, min(size, self._size), flags)
        if rc >= 0:
            data: bytes = self._view[:rc]
            return data
        if rc == _EAGAIN:
            return None
        if rc in OF_STEPPING or rc == -errno.EBADF:
            self._fail(rc, f"read on {flow}")
        if rc == -errno.EINVAL:
            raise ValueError(f"{flow} has messages, not a stream: use recv")
        self._explain(rc, f"read on {flow}")
        raise flow_error(-rc, flow)

    def _grow(self, size: int) -> None:
        self._buf = ffi.new("char[]", size)
        self._view = ffi.buffer(self._buf, size)
        self._size = size

    def _shutdown(self, flow: Flow) -> None:
        rc = lib.mn_chan_shutdown(self._native, flow.id)
        if rc < 0:
            if rc in OF_STEPPING or rc == -errno.EBADF:
                self._fail(rc, f"shutdown of {flow}")
            raise flow_error(-rc, flow)

    def _close_flow(self, flow: Flow, linger: float | None) -> None:
        if self._closed:
            return
        rc = lib.mn_chan_close_flow(self._native, flow.id, linger_to_ms(linger))
        if rc < 0 and rc not in {-errno.ENOTCONN, -errno.EBADF}:
            self._fail(rc, f"closing {flow}")
        self._flows.pop(flow.id, None)
        if flow._error is None:
            flow._error = errno.ENOTCONN

    # ---- the rest --------------------------------------------------------------------------------

    def flows(self) -> list[Flow]:
        """The flows that are live or have something left to be received."""
        ids = ffi.new("uint32_t[]", self._flows_max)
        n = lib.mn_chan_flows(self._native, ids, self._flows_max)
        if n < 0:
            self._fail(n, "flows")
        return [self._flow(ids[i]) for i in range(n)]

    def set_option(self, flow: Flow | None, option: int, value: int) -> None:
        """Set ``enum mn_opt`` ``option`` of a flow, or of what comes next (None).

        Raises:
            OSError: ``EINVAL``: out of its range, or read-only; ``ENOTCONN``: no such flow.
        """
        number = lib.MN_FLOW_NONE if flow is None else flow.id
        what = f"option {option}"
        if flow is not None and flow._error is not None:
            raise os_error(errno.ENOTCONN, what)
        event = self._command(lib.mn_chan_setopt(self._native, number, option, value), what)
        if event.status < 0:
            raise os_error(-event.status, what)

    def get_option(self, flow: Flow, option: int) -> int:
        """Read ``enum mn_opt`` ``option`` of a flow.

        Raises:
            OSError: ``EINVAL``: no such option; ``ENOTCONN``: no such flow.
        """
        what = f"option {option}"
        if flow._error is not None:
            raise os_error(errno.ENOTCONN, what)
        event = self._command(lib.mn_chan_getopt(self._native, flow.id, option), what)
        if event.status < 0:
            raise os_error(-event.status, what)
        return int(event.value)

    def _flow_info(self, number: int) -> Any:
        if self._closed:
            return None
        info = ffi.new("struct mn_app_flow_info *")
        rc = lib.mn_chan_flow_info(self._native, number, info)
        if rc == -errno.ENOENT:
            return None
        if rc < 0:
            self._fail(rc, "flow")
        return info

    def _flow(self, number: int) -> Flow:
        flow = self._flows.get(number)
        if flow is not None:
            return flow
        info = self._flow_info(number)
        if info is None:
            raise RuntimeError(f"the engine named a flow {number:#x} that does not exist")
        flow = Flow(self, info)
        # One entry per slot, however many flows have come and gone.
        stale = self._slots.get(number & 0xFFFF)
        if stale is not None:
            self._flows.pop(stale, None)
        self._slots[number & 0xFFFF] = number
        self._flows[number] = flow
        return flow

    @property
    def ip(self) -> str:
        """The stack's address."""
        return self.stack.ip

    @property
    def closed(self) -> bool:
        """Whether `close` was called, here or on the stack."""
        return self._closed

    def close(self, linger: float | None = None) -> None:
        """Detach. What was sent before still goes out: the flows live on without the channel.

        Args:
            linger: Seconds until what is left of them is reset; None: the engine's
                ``app_exit_linger_ms``; 0: reset them now.

        It may be called from any thread: a call that waits in another one fails with
        ``ValueError``, as calls on a closed channel do.
        """
        if self._closed:
            return
        clock = self.stack.clock if not self.stack.closed else None
        if clock is not None:
            clock.check_outside("close")
        self._on_ready_stop()
        if not self.stack.closed:
            rc = lib.mn_chan_close(self._native, linger_to_ms(linger))
            if rc < 0 and rc not in {-errno.EPIPE, -errno.ECHILD}:
                self._fail(rc, "close")
        self._closed = True
        self._finalizer.detach()
        if self.on_close is not None:
            self.on_close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Channel of {self.stack}{', closed' if self._closed else ''}>"


class _Exit:
    """Whether the interpreter is at its end."""

    watched = False
    begun = False

    @classmethod
    def watch(cls) -> None:
        """To be called once a `weakref.finalize` exists: what is registered last runs first."""
        if not cls.watched:
            cls.watched = True
            atexit.register(cls._begin)

    @classmethod
    def _begin(cls) -> None:
        cls.begun = True


def _finalize(native: Any, core: StackCore | RemoteStack) -> None:
    """A channel that was forgotten is closed, as if its application had exited."""
    if _Exit.begun:
        # Objects with a __del__, such as asyncio's StreamWriter, come by here after this, and in any
        # order: the memory stays, and says that the channel is closed.
        ffi.gc(native, None)
    if not core.closed:
        lib.mn_chan_close(native, _LINGER_DEFAULT)
