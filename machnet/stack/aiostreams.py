# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (channels, sockets and streams are one implementation in several files)
"""Byte streams as asyncio transports: the machinery of `machnet.aio`."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.errors import flow_error, os_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from machnet.channel import Channel, Flow, Listener
    from machnet.stack.stack import Stack

__all__ = ["Hub", "Server", "StreamTransport", "connect_transport", "hub_of"]

_READ_BYTES = 65536
#: Reads of one transport before the others have their turn.
_READS_PER_TURN = 8
#: Bytes that one call offers to the engine.
_WRITE_BYTES = 1 << 20
_HIGH_WATER_BYTES = 65536


class Hub:
    """All byte streams of one stack in one loop: they share a channel."""

    def __init__(self, stack: Stack, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.channel: Channel = stack.attach()
        self.channel.on_close = self._closed
        self.transports: dict[int, StreamTransport] = {}
        self.servers: list[Server] = []
        self.connects: dict[int, asyncio.Future[Any]] = {}
        self._ids: Any = None
        self._ready: Any = None
        self._members: list[StreamTransport] = []
        self.channel.on_ready(self._dispatch)

    def add(self, transport: StreamTransport) -> None:
        """Take a transport in: it is told when its flow is ready."""
        self.transports[transport.flow.id] = transport
        self._ids = None

    def remove(self, transport: StreamTransport) -> None:
        """Let a transport go."""
        self.transports.pop(transport.flow.id, None)
        self._ids = None

    async def connect(self, host: str, port: int, timeout: float | None, local_port: int) -> Flow:
        """A new stream flow; arguments and errors as of `machnet.aio.create_connection`."""
        channel = self.channel
        what = f"connecting to {host}:{port}"
        token = channel._connect_start(
            "0.0.0.0", host, port, "stream", timeout, local_port  # noqa: S104
        )  # fmt: skip
        future = self.loop.create_future()
        self.connects[token] = future
        # The answer may be there already, and its wake-up have been used up.
        self._take_results()
        try:
            event = await asyncio.wait_for(future, timeout)
        except asyncio.TimeoutError:
            self._forget(token)
            raise TimeoutError(errno.ETIMEDOUT, f"{what}: nothing within {timeout} s") from None
        except BaseException:
            self._forget(token)
            raise
        return channel._connect_finish(event, what)

    def _forget(self, token: int) -> None:
        if self.connects.pop(token, None) is not None and not self.channel.closed:
            lib.mn_chan_forget(self.channel._native, token)

    def _take_results(self) -> None:
        for token, future in list(self.connects.items()):
            event = ffi.new("struct mn_ctl_evt *")
            if self.channel._result(token, event) is None:
                continue
            del self.connects[token]
            if not future.cancelled():
                future.set_result(event)
            elif event.status >= 0:
                self.channel._flow(int(event.flow)).close(linger=0)

    def _dispatch(self) -> None:
        self._take_results()
        for server in list(self.servers):
            server._accept_all()
        if not self.transports:
            return
        if self._ids is None:
            self._members = list(self.transports.values())
            self._ids = ffi.new("uint32_t[]", [t.flow.id for t in self._members])
            self._ready = ffi.new("uint8_t[]", len(self._members))
        n = len(self._members)
        rc = lib.mn_chan_select(self.channel._native, self._ids, self._ready, n)
        if rc < 0:
            self.channel._fail(rc, "select")
        ready = bytes(ffi.buffer(self._ready, n))
        for transport, mask in zip(list(self._members), ready, strict=True):
            if mask & lib.MN_READY_SPACE:
                transport._write_ready()
            if mask & lib.MN_READY_STREAM:
                transport._read_ready()

    def _closed(self) -> None:
        """The channel was closed under us, most likely with its stack."""
        for transport in list(self.transports.values()):
            transport._abandon()
        for future in self.connects.values():
            if not future.done() and not self.loop.is_closed():
                future.set_exception(os_error(errno.ECONNABORTED, "the stack was closed"))
        self.connects.clear()
        for server in list(self.servers):
            server.close()


def hub_of(stack: Stack) -> Hub:
    """The hub of a stack in the running loop."""
    loop = asyncio.get_running_loop()
    hubs: dict[asyncio.AbstractEventLoop, Hub] = stack.aio_hubs
    for other in [other for other in hubs if other.is_closed()]:
        hubs.pop(other).channel.close()
    hub = hubs.get(loop)
    if hub is None or hub.channel.closed:
        hub = hubs[loop] = Hub(stack, loop)
    return hub


class StreamTransport(asyncio.Transport):
    """One byte stream. Extra information: ``peername``, ``sockname``, ``flow``, ``stack``."""

    _start_tls_compatible = True

    def __init__(self, hub: Hub, flow: Flow, protocol: asyncio.BaseProtocol) -> None:
        super().__init__(
            {
                "peername": flow.remote,
                "sockname": flow.local,
                "flow": flow,
                "stack": hub.channel.stack,
            }
        )
        self.flow = flow
        self._hub = hub
        self._loop = hub.loop
        self._channel = hub.channel
        self._server: Server | None = None
        self._buffer = bytearray()
        self._closing = False
        self._lost = False
        self._paused = False
        self._started = False
        self._eof_sent = False
        self._eof_wanted = False
        self._eof_seen = False
        self._protocol_paused = False
        self._high, self._low = _HIGH_WATER_BYTES, _HIGH_WATER_BYTES // 4
        self.set_protocol(protocol)
        hub.add(self)

    def _start(self) -> None:
        self._protocol.connection_made(self)
        if not self._lost:
            self._started = True
            self._read_ready()

    # ---- protocol --------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Switch to another protocol."""
        self._protocol: Any = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The present protocol."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    # ---- reading ---------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Whether the protocol is given data."""
        return not self._paused and not self._closing and not self._eof_seen

    def pause_reading(self) -> None:
        """Give the protocol no more data; the peer is slowed down by its window."""
        if not self._closing:
            self._paused = True

    def resume_reading(self) -> None:
        """Give the protocol data again."""
        if self._paused and not self._closing:
            self._paused = False
            self._loop.call_soon(self._read_ready)

    def _read_ready(self) -> None:
        for _ in range(_READS_PER_TURN):
            if not self._started or self._lost or not self.is_reading():
                return
            try:
                more = self._read_buffered() if self._buffered else self._read_data()
            except ConnectionError as error:
                self._force_close(error)
                return
            except Exception as error:  # noqa: BLE001 (the protocol's own)
                self._fatal(error, "the protocol failed to take received data")
                return
            if not more:
                return
        self._loop.call_soon(self._read_ready)

    def _read_data(self) -> bool:
        data = self._channel._try_read(self.flow, _READ_BYTES)
        if data is None:
            return False
        if not data:
            return self._got_eof()
        self._protocol.data_received(data)
        return True

    def _read_buffered(self) -> bool:
        view = self._protocol.get_buffer(-1)
        if not len(view):
            raise RuntimeError("get_buffer() returned an empty buffer")
        room = ffi.from_buffer(view, require_writable=True)
        native = self._channel._native
        n = lib.mn_chan_stream_recv(native, self.flow.id, room, len(room), 0)
        ffi.release(room)
        if n == -errno.EAGAIN:
            return False
        if n < 0:
            raise flow_error(-n, self.flow)
        if n == 0:
            return self._got_eof()
        self._protocol.buffer_updated(n)
        return True

    def _got_eof(self) -> bool:
        self._eof_seen = True
        # A protocol that wants to go on writing says so by a true answer.
        if not self._protocol.eof_received():
            self.close()
        return False

    # ---- writing ---------------------------------------------------------------------------------

    def get_write_buffer_size(self) -> int:
        """Bytes written that the engine has not taken yet."""
        return len(self._buffer)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The low and the high mark, in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks at which the protocol is paused and resumed, in bytes.

        Raises:
            ValueError: Not ``high >= low >= 0``.
        """
        if high is None:
            high = _HIGH_WATER_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._pause_protocol()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes. Never blocks: what the engine does not take now is kept.

        Raises:
            TypeError: They are no bytes.
            RuntimeError: After `write_eof`.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data is a bytes-like object, not {type(data).__name__}")
        if self._eof_wanted:
            raise RuntimeError("cannot write after write_eof()")
        if self._lost or not data:
            return
        if not self._buffer:
            taken, error = self._put(data)
            if error is not None:
                self._force_close(error)
                return
            with memoryview(data) as given, given.cast("B") as view, view[taken:] as rest:
                self._buffer += rest
        else:
            self._buffer += data
        self._pause_protocol()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send several pieces as one."""
        self.write(b"".join(list_of_data))

    def _put(self, data: bytes | bytearray | memoryview) -> tuple[int, Exception | None]:
        """Bytes taken, and why the connection is lost, if it is."""
        try:
            return self._channel._try_send(self.flow, data) or 0, None
        except ConnectionError as error:
            # The traceback's frames have the data, and with it perhaps a view of our own buffer.
            return 0, error.with_traceback(None)

    def _write_ready(self) -> None:
        while self._buffer and not self._lost:
            # No view may be left when the connection is lost: the buffer is emptied then.
            with memoryview(self._buffer) as view, view[:_WRITE_BYTES] as part:
                taken, error = self._put(part)
            if error is not None:
                self._force_close(error)
                return
            if not taken:
                break
            del self._buffer[:taken]
        if self._lost:
            return
        if self._protocol_paused and len(self._buffer) <= self._low:
            self._protocol_paused = False
            self._call_protocol(self._protocol.resume_writing, "resume_writing")
        if not self._buffer:
            if self._eof_wanted:
                self._send_eof()
            if self._closing:
                self._finish(None)

    def _pause_protocol(self) -> None:
        if not self._protocol_paused and len(self._buffer) > self._high:
            self._protocol_paused = True
            self._call_protocol(self._protocol.pause_writing, "pause_writing")

    def _call_protocol(self, call: Callable[[], None], name: str) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 (the protocol's own)
            context = {"message": f"protocol.{name}() failed", "exception": error}
            context |= {"transport": self, "protocol": self._protocol}
            self._loop.call_exception_handler(context)

    def can_write_eof(self) -> bool:
        """A stream can be closed in one direction."""
        return True

    def write_eof(self) -> None:
        """Send FIN behind what was written; receiving goes on."""
        if self._closing or self._eof_wanted:
            return
        self._eof_wanted = True
        if not self._buffer:
            self._send_eof()

    def _send_eof(self) -> None:
        if self._eof_sent or self._lost:
            return
        self._eof_sent = True
        try:
            self._channel._shutdown(self.flow)
        except ConnectionError:
            return  # reading tells how it ended

    # ---- the end ---------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether the transport is closing or closed."""
        return self._closing

    def close(self) -> None:
        """Close once what was written is with the engine, which sends it on."""
        if self._closing:
            return
        self._closing = True
        if not self._buffer:
            self._finish(None)

    def abort(self) -> None:
        """Reset the connection now; what was written and not sent is lost."""
        self._force_close(None)

    def _fatal(self, error: Exception, message: str) -> None:
        context = {"message": message, "exception": error}
        context |= {"transport": self, "protocol": self._protocol}
        self._loop.call_exception_handler(context)
        self._force_close(error)

    def _force_close(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._closing = True
        self._buffer.clear()
        self._finish(error, linger=0)

    def _abandon(self) -> None:
        """The channel is gone."""
        if not self._lost:
            self._closing = True
            self._buffer.clear()
            self._finish(os_error(errno.ECONNABORTED, "the stack was closed"))

    def _finish(self, error: Exception | None, linger: float | None = None) -> None:
        if self._lost:
            return
        self._lost = True
        self._hub.remove(self)
        if not self._channel.closed:
            self.flow.close(linger)
        if not self._loop.is_closed():  # else there is nobody left who could be told
            self._loop.call_soon(self._call_connection_lost, error)

    def _call_connection_lost(self, error: Exception | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            if self._server is not None:
                self._server._detach()
                self._server = None

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self._closing else "open"
        return f"<StreamTransport {state} {self.flow}>"


def connect_transport(
    hub: Hub, flow: Flow, protocol: asyncio.BaseProtocol, *, nodelay: bool
) -> StreamTransport:
    """A transport for a flow of the hub; the protocol's `connection_made` has run."""
    transport = _new_transport(hub, flow, protocol, nodelay=nodelay)
    transport._start()
    return transport


def _new_transport(
    hub: Hub, flow: Flow, protocol: asyncio.BaseProtocol, *, nodelay: bool
) -> StreamTransport:
    transport = StreamTransport(hub, flow, protocol)
    if nodelay:
        native = hub.channel._native
        token = lib.mn_chan_setopt(native, flow.id, lib.MN_OPT_NODELAY, 1)
        if token > 0:
            lib.mn_chan_forget(native, token)
    return transport


class Server(asyncio.AbstractServer):
    """A listener whose connections get protocols. Made by `machnet.aio.create_server`."""

    def __init__(
        self,
        hub: Hub,
        factory: Callable[[], asyncio.BaseProtocol],
        ip: str,
        port: int,
        backlog: int,
        *,
        nodelay: bool,
    ) -> None:
        self._hub = hub
        self._factory = factory
        self._nodelay = nodelay
        self._active = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._forever: asyncio.Future[None] | None = None
        self._listener: Listener | None = hub.channel.listen(ip, port, "stream", backlog=backlog)
        hub.servers.append(self)
        hub.loop.call_soon(self._accept_all)

    @property
    def sockets(self) -> tuple[Listener, ...]:
        """The listener while it is serving."""
        return () if self._listener is None else (self._listener,)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that it runs in."""
        return self._hub.loop

    def is_serving(self) -> bool:
        """Whether it takes connections."""
        return self._listener is not None

    async def start_serving(self) -> None:
        """It is serving from the beginning."""

    def _accept_all(self) -> None:
        while self._listener is not None:
            flow = self._hub.channel._try_accept(self._listener)
            if flow is None:
                return
            try:
                protocol = self._factory()
            except Exception as error:  # noqa: BLE001 (the application's own)
                flow.close(linger=0)
                context = {"message": "making a protocol failed", "exception": error}
                self._hub.loop.call_exception_handler(context)
                continue
            transport = _new_transport(self._hub, flow, protocol, nodelay=self._nodelay)
            transport._server = self
            self._active += 1
            self._hub.loop.call_soon(transport._start)

    def _detach(self) -> None:
        self._active -= 1
        self._wake()

    def _wake(self) -> None:
        if self._listener is None and self._active == 0:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def close(self) -> None:
        """Take no more connections. Those that there are go on."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._hub.servers.remove(self)
        if not self._hub.channel.closed:
            listener.close()
        if self._hub.loop.is_closed():
            return
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._wake()

    async def wait_closed(self) -> None:
        """Wait until it is closed and its connections have ended."""
        if self._listener is None and self._active == 0:
            return
        waiter = self._hub.loop.create_future()
        self._waiters.append(waiter)
        await waiter

    async def serve_forever(self) -> None:
        """Serve until cancelled, then close."""
        if self._listener is None:
            raise RuntimeError("the server is closed")
        if self._forever is not None:
            raise RuntimeError("serve_forever() is running already")
        self._forever = self._hub.loop.create_future()
        try:
            await self._forever
        finally:
            self._forever = None
            self.close()
