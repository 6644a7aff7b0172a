# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (channels, sockets and streams are one implementation in several files)
"""machnet for asyncio: channels with awaitable calls, and byte streams as asyncio transports.

    async with machnet.aio.attach(stack) as channel:
        flow = await channel.connect("10.0.0.2", "10.0.0.1", 888, protocol="tcp")
        await channel.send(flow, b"ping")
        message = await channel.recv()

    reader, writer = await machnet.aio.open_connection(stack, "10.0.0.1", 80)
    server = await machnet.aio.start_server(stack, on_client, "10.0.0.2", 80)

Everything rests on `machnet.Channel.on_ready`. The stack has its own thread, which is the default on
a real NIC; a stepped one makes progress only when somebody steps it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from machnet._native import ffi, lib
from machnet.stack.aiostreams import Server, connect_transport, hub_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import machnet
    from machnet.channel import Flow, Listener, Message
    from machnet.stack.aiostreams import StreamTransport
    from machnet.stack.stack import Stack

__all__ = [
    "Channel",
    "attach",
    "create_connection",
    "create_server",
    "open_connection",
    "start_server",
]

T = TypeVar("T")

#: Bytes that a StreamReader holds before it stops reading, as asyncio has it.
_LIMIT_BYTES = 65536


class Channel:
    """The awaitable face of a `machnet.Channel`; an asynchronous context manager.

    It belongs to the loop that runs when it is made. Calls may be cancelled at any time.

    Args:
        channel: Nobody else may use it meanwhile.

    Attributes:
        channel: The channel itself.
    """

    def __init__(self, channel: machnet.Channel) -> None:
        self.channel = channel
        self._loop = asyncio.get_running_loop()
        self._waiters: list[asyncio.Future[None]] = []
        channel.on_ready(self._wake)
        channel.on_close = self._wake  # who waits finds it closed

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done() and not self._loop.is_closed():
                waiter.set_result(None)

    async def _until(self, attempt: Callable[[], T | None], timeout: float | None, what: str) -> T:
        async def repeat() -> T:
            while (found := attempt()) is None:
                waiter = self._loop.create_future()
                self._waiters.append(waiter)
                await waiter
            return found

        if timeout is None:
            return await repeat()
        try:
            return await asyncio.wait_for(repeat(), timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(f"{what}: nothing within {timeout} s") from None

    async def recv(self, timeout: float | None = None) -> Message:
        """The next message of any flow; see `machnet.Channel.recv`.

        Raises:
            TimeoutError: There was none within ``timeout`` seconds.
            FlowError: A flow ended; raised once.
        """
        return await self._until(self.channel.try_recv, timeout, "recv")

    async def send(
        self, flow: Flow, data: bytes | bytearray | memoryview, timeout: float | None = None
    ) -> int:
        """Send a message, waiting for room; see `machnet.Channel.send`.

        Args:
            flow: Where to.
            data: The message. Of a stream, all bytes are sent.
            timeout: Seconds; None: for ever.

        Raises:
            TimeoutError: No room within ``timeout`` seconds. Of a stream, some may have been sent.
            FlowError: The flow has ended.
            OSError: ``EMSGSIZE``: it can never fit.
        """
        # The views are let go of when this ends, by an error too: its traceback would keep them.
        with memoryview(data) as given, given.cast("B") as view:
            size, done = len(view), 0

            def attempt() -> bool | None:
                nonlocal done
                while True:
                    with view[done:] as rest:
                        taken = self.channel._try_send(flow, rest)
                    if taken is None:
                        return None
                    done += taken
                    if done == size:
                        return True

            await self._until(attempt, timeout, f"send on {flow}")
        return size

    async def connect(
        self,
        local_ip: str,
        remote_ip: str,
        port: int,
        protocol: str = "udp",
        timeout: float | None = 5.0,
        *,
        local_port: int = 0,
    ) -> Flow:
        """Connect to a peer; arguments and errors as for `machnet.Channel.connect`."""
        channel = self.channel
        what = f"connecting to {remote_ip}:{port}"
        token = channel._connect_start(local_ip, remote_ip, port, protocol, timeout, local_port)
        event = ffi.new("struct mn_ctl_evt *")
        try:
            await self._until(lambda: channel._result(token, event), timeout, what)
        except BaseException:
            if not channel.closed:
                lib.mn_chan_forget(channel._native, token)
            raise
        return channel._connect_finish(event, what)

    def listen(self, ip: str, port: int, protocol: str = "udp", *, backlog: int = 0) -> Listener:
        """Take connections; as `machnet.Channel.listen`, which answers at once."""
        return self.channel.listen(ip, port, protocol, backlog=backlog)

    async def accept(self, listener: Listener, timeout: float | None = None) -> Flow:
        """The next connection of a stream listener.

        Raises:
            TimeoutError: There was none within ``timeout`` seconds.
        """
        return await self._until(
            lambda: self.channel._try_accept(listener),
            timeout,
            f"accept on {listener}",
        )

    async def read(self, flow: Flow, size: int = 65536, timeout: float | None = None) -> bytes:
        """Bytes of a stream flow, ``b""`` at its end; see `machnet.Channel.read`.

        Raises:
            TimeoutError: There were none within ``timeout`` seconds.
            FlowError: The flow has ended other than by a clean close.
        """
        return await self._until(
            lambda: self.channel._try_read(flow, size),
            timeout,
            f"read on {flow}",
        )

    def close(self, linger: float | None = None) -> None:
        """Close the channel; see `machnet.Channel.close`. Calls that wait raise ``ValueError``."""
        self.channel.close(linger)

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()


def attach(stack: Stack | None = None, **settings: Any) -> Channel:
    """A new channel for the running loop.

    Args:
        stack: Whose; None: of the sidecar, as `machnet.attach` has it.
        settings: Fields of `machnet.config.ChannelSettings`; of a sidecar also what else
            `machnet.attach` takes.
    """
    if stack is None:
        from machnet.attach import attach as attach_to_sidecar

        return Channel(attach_to_sidecar(**settings))
    return Channel(stack.attach(**settings))


async def create_connection(
    stack: Stack,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    host: str,
    port: int,
    *,
    timeout: float | None = None,
    local_port: int = 0,
    nodelay: bool = True,
) -> tuple[StreamTransport, asyncio.BaseProtocol]:
    """Connect a byte stream and give it to a protocol, as ``loop.create_connection`` does.

    Args:
        stack: The stack to connect from.
        protocol_factory: Makes the protocol.
        host: IPv4 address of the peer.
        port: Its port.
        timeout: Seconds; None: the engine's ``syn_timeout_ms``.
        local_port: Ours; 0: some free one.
        nodelay: Turns Nagle's algorithm off, as asyncio does for its sockets.

    Raises:
        TimeoutError, ConnectionRefusedError, OSError: It did not come about.
    """
    hub = hub_of(stack)
    flow = await hub.connect(host, port, timeout, local_port)
    protocol = protocol_factory()
    return connect_transport(hub, flow, protocol, nodelay=nodelay), protocol


async def create_server(
    stack: Stack,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    ip: str,
    port: int,
    *,
    backlog: int = 100,
    nodelay: bool = True,
) -> Server:
    """Serve byte streams, as ``loop.create_server`` does; it is serving when this returns.

    Args:
        stack: The stack to listen on.
        protocol_factory: Makes a protocol for each connection.
        ip: The stack's address, or "0.0.0.0".
        port: 1 to 65535.
        backlog: Connections that may wait to be accepted.
        nodelay: Turns Nagle's algorithm off.

    Raises:
        OSError: ``EADDRINUSE``, ``EADDRNOTAVAIL``.
    """
    return Server(hub_of(stack), protocol_factory, ip, port, backlog, nodelay=nodelay)


async def open_connection(
    stack: Stack,
    host: str,
    port: int,
    *,
    limit: int = _LIMIT_BYTES,
    timeout: float | None = None,
    local_port: int = 0,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection as reader and writer, as ``asyncio.open_connection`` gives it.

    Args:
        stack: The stack to connect from.
        host: IPv4 address of the peer.
        port: Its port.
        limit: Bytes that the reader holds before it stops reading.
        timeout: Seconds; None: the engine's ``syn_timeout_ms``.
        local_port: Ours; 0: some free one.

    Raises:
        TimeoutError, ConnectionRefusedError, OSError: It did not come about.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await create_connection(
        stack, lambda: protocol, host, port, timeout=timeout, local_port=local_port
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def start_server(
    stack: Stack,
    client_connected_cb: Callable[
        [asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None
    ],
    ip: str,
    port: int,
    *,
    limit: int = _LIMIT_BYTES,
    backlog: int = 100,
) -> Server:
    """Serve byte streams, as ``asyncio.start_server`` does.

    Args:
        stack: The stack to listen on.
        client_connected_cb: Called, or run as a task, with reader and writer of each connection.
        ip: The stack's address, or "0.0.0.0".
        port: 1 to 65535.
        limit: Bytes that a reader holds before it stops reading.
        backlog: Connections that may wait to be accepted.

    Raises:
        OSError: ``EADDRINUSE``, ``EADDRNOTAVAIL``.
    """
    loop = asyncio.get_running_loop()

    def factory() -> asyncio.BaseProtocol:
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        callback: Any = client_connected_cb
        return asyncio.StreamReaderProtocol(reader, callback, loop=loop)

    return await create_server(stack, factory, ip, port, backlog=backlog)
