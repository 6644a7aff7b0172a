# SPDX-License-Identifier: MIT
"""`machnet.aio`: awaitable channels, and byte streams as asyncio transports.

A stack that runs in its own thread on a wire that leads nowhere: both ends of each connection are
on it, and meet in the loop above the NIC.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import machnet
from machnet import aio
from machnet.sim import Wire

IP = "10.0.0.2"


@pytest.fixture
def stack() -> Iterator[machnet.Stack]:
    stack = machnet.Stack(Wire(), ip=IP, thread=True)
    yield stack
    stack.close(linger=0)


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an asynchronous test in a loop of its own, which must not take longer than 30 seconds."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def main() -> None:
            await asyncio.wait_for(test(*args, **kwargs), 30)

        asyncio.run(main())

    return run


# --- channels -------------------------------------------------------------------------------------


@in_loop
async def test_messages(stack):
    async with aio.attach(stack) as server, aio.attach(stack) as client:
        server.listen(IP, 888, protocol="tcp")

        async def echo() -> None:
            while True:
                message = await server.recv()
                await server.send(message.flow, message.data)

        task = asyncio.create_task(echo())
        flow = await client.connect(IP, IP, 888, protocol="tcp")
        for size in (0, 1, 64, 5000, 300_000):
            assert await client.send(flow, bytes(size)) == size
            message = await client.recv(timeout=10)
            assert (len(message.data), message.flow) == (size, flow)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert client.channel.closed


@in_loop
async def test_waiting_for_nothing_times_out(stack):
    async with aio.attach(stack) as channel:
        start = time.monotonic()
        with pytest.raises(TimeoutError, match=r"recv: nothing within 0\.05 s"):
            await channel.recv(timeout=0.05)
        assert time.monotonic() - start < 5


@in_loop
async def test_connecting_fails(stack):
    async with aio.attach(stack) as channel:
        with pytest.raises(ConnectionRefusedError):
            await channel.connect(IP, IP, 889, protocol="tcp")
        stack.neighbor("10.0.0.77", "02:00:00:00:00:77")
        with pytest.raises(TimeoutError, match=r"10\.0\.0\.77:888"):
            await channel.connect(IP, "10.0.0.77", 888, protocol="tcp", timeout=0.05)
        with pytest.raises(ConnectionRefusedError):
            await channel.connect(IP, IP, 888)


@in_loop
async def test_a_cancelled_connect_leaves_nothing(stack):
    stack.neighbor("10.0.0.77", "02:00:00:00:00:77")
    async with aio.attach(stack) as channel:
        task = asyncio.create_task(
            channel.connect(IP, "10.0.0.77", 888, protocol="tcp", timeout=None)
        )
        await asyncio.sleep(0.02)
        assert stack.usage()["tcbs"] == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while stack.usage()["tcbs"] > 0:
            await asyncio.sleep(0.01)


@in_loop
async def test_several_tasks_wait_on_one_channel(stack):
    async with aio.attach(stack) as server, aio.attach(stack) as client:
        server.listen(IP, 888, protocol="tcp")
        flow = await client.connect(IP, IP, 888, protocol="tcp")
        tasks = [asyncio.create_task(server.recv()) for _ in range(10)]
        await asyncio.sleep(0)
        for i in range(10):
            await client.send(flow, bytes([i]))
        messages = await asyncio.gather(*tasks)
        assert sorted(message.data[0] for message in messages) == list(range(10))


@in_loop
async def test_send_waits_for_room(stack):
    async with aio.Channel(stack.attach(tx_bufs=32)) as client, aio.attach(stack) as server:
        server.listen(IP, 888, protocol="tcp")
        flow = await client.connect(IP, IP, 888, protocol="tcp")

        async def send() -> None:
            for i in range(300):
                await client.send(flow, bytes([i % 256]) * 20_000)

        task = asyncio.create_task(send())
        for i in range(300):
            assert (await server.recv()).data == bytes([i % 256]) * 20_000
        await task


@in_loop
async def test_a_stream_of_a_channel(stack):
    async with aio.attach(stack) as server, aio.attach(stack) as client:
        listener = server.listen(IP, 80, protocol="stream")
        flow = await client.connect(IP, IP, 80, protocol="stream")
        served = await server.accept(listener)
        data = bytes(range(256)) * 8000
        task = asyncio.create_task(client.send(flow, data))
        got = bytearray()
        while len(got) < len(data):
            got += await server.read(served)
        assert bytes(got) == data
        assert await task == len(data)
        flow.close()
        assert await server.read(served) == b""
        with pytest.raises(TimeoutError):
            await server.accept(listener, timeout=0.01)


@in_loop
async def test_a_reset_is_raised(stack):
    async with aio.attach(stack) as server, aio.attach(stack) as client:
        server.listen(IP, 888, protocol="tcp")
        flow = await client.connect(IP, IP, 888, protocol="tcp")
        await client.send(flow, b"x")
        served = (await server.recv()).flow
        flow.close(linger=0)
        with pytest.raises(machnet.FlowResetError) as caught:
            await server.recv()
        assert caught.value.flow is served


@in_loop
async def test_close_ends_every_wait(stack):
    channel = aio.attach(stack)
    tasks = [asyncio.create_task(channel.recv()) for _ in range(3)]
    await asyncio.sleep(0)
    channel.close()
    for task in tasks:
        with pytest.raises(ValueError, match="closed"):
            await task


@in_loop
async def test_closing_the_stack_ends_the_wait(stack):
    channel = aio.attach(stack)
    task = asyncio.create_task(channel.recv())
    await asyncio.sleep(0)
    stack.close(linger=0)
    with pytest.raises(ValueError, match="closed"):
        await task


# --- streams --------------------------------------------------------------------------------------


@in_loop
async def test_an_echo_server(stack):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with await aio.start_server(stack, serve, IP, 7) as server:
        assert server.is_serving()
        assert server.sockets[0].local == (IP, 7)

        async def client(number: int) -> None:
            reader, writer = await aio.open_connection(stack, IP, 7)
            for i in range(20):
                line = f"client {number} line {i}\n".encode()
                writer.write(line)
                assert await reader.readline() == line
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

        await asyncio.gather(*(client(i) for i in range(20)))
    assert not server.is_serving()
    assert server.sockets == ()


@in_loop
async def test_a_large_transfer_under_flow_control(stack):
    data = bytes(range(256)) * (1 << 14)
    received = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = bytearray()
        while chunk := await reader.read(100_000):
            got += chunk
            await asyncio.sleep(0)
        received.set_result(bytes(got))
        writer.close()

    async with await aio.start_server(stack, serve, IP, 9, limit=10_000):
        _, writer = await aio.open_connection(stack, IP, 9)
        for start in range(0, len(data), 50_000):
            writer.write(data[start : start + 50_000])
            await writer.drain()
            assert writer.transport.get_write_buffer_size() <= 65536
        writer.close()
        await writer.wait_closed()
        assert await received == data


@in_loop
async def test_extra_information(stack):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await aio.start_server(stack, serve, IP, 9):
        _, writer = await aio.open_connection(stack, IP, 9, local_port=4000)
        assert writer.get_extra_info("peername") == (IP, 9)
        assert writer.get_extra_info("sockname") == (IP, 4000)
        assert writer.get_extra_info("stack") is stack
        assert writer.get_extra_info("flow").protocol == "stream"
        assert writer.get_extra_info("socket") is None
        assert "10.0.0.2" in repr(writer.transport)
        writer.close()
        await writer.wait_closed()


class Recorder(asyncio.Protocol):
    """Writes down what happens to it."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.events: list[Any] = []
        self.data = bytearray()
        self.keep_open = keep_open
        self.lost = asyncio.get_running_loop().create_future()
        self.eof = asyncio.get_running_loop().create_future()
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.events.append("eof")
        self.eof.set_result(None)
        return self.keep_open

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)


class Served:
    """A server whose one connection has a `Recorder`, and the client's transport to it."""

    def __init__(self, stack: machnet.Stack, **options: Any) -> None:
        self.stack, self.options = stack, options

    async def __aenter__(self) -> Served:
        made = asyncio.get_running_loop().create_future()

        def factory() -> Recorder:
            made.set_result(Recorder(**self.options))
            return made.result()

        self.server = await aio.create_server(self.stack, factory, IP, 9)
        transport, client = await aio.create_connection(
            self.stack, lambda: Recorder(**self.options), IP, 9
        )
        self.client: Any = client
        self.remote: Recorder = await made
        while self.remote.transport is None:
            await asyncio.sleep(0)
        assert self.client.transport is transport
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.server.close()
        for end in (self.client, self.remote):
            end.transport.abort()
        await self.server.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@in_loop
async def test_close_sends_what_was_written(stack):
    async with Served(stack) as net:
        data = bytes(3_000_000)
        net.client.transport.write(data)
        net.client.transport.close()
        assert net.client.transport.is_closing()
        net.client.transport.write(b"")
        assert await net.client.lost is None
        assert await net.remote.lost is None
        assert len(net.remote.data) == len(data)
        assert net.remote.events == ["made", "eof", "lost"]


@in_loop
async def test_half_close(stack):
    async with Served(stack, keep_open=True) as net:
        assert net.client.transport.can_write_eof()
        net.client.transport.writelines([b"re", b"quest"])
        net.client.transport.write_eof()
        net.client.transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            net.client.transport.write(b"x")
        await net.remote.eof
        assert net.remote.data == b"request"
        net.remote.transport.write(b"response" * 100_000)
        net.remote.transport.close()
        await net.client.eof
        assert net.client.data == b"response" * 100_000
        assert not net.client.lost.done()
        net.client.transport.close()
        assert await net.client.lost is None


@in_loop
async def test_abort_resets(stack):
    async with Served(stack) as net:
        net.client.transport.abort()
        assert await net.client.lost is None
        assert isinstance(await net.remote.lost, ConnectionResetError)
        assert net.remote.events == ["made", "lost"]
        net.remote.transport.write(b"into the void")
        net.remote.transport.close()
        net.remote.transport.abort()


@in_loop
async def test_a_paused_reader_slows_the_writer_down(stack):
    async with Served(stack) as net:
        net.remote.transport.pause_reading()
        assert not net.remote.transport.is_reading()
        size = 0
        while "pause" not in net.client.events:
            net.client.transport.write(bytes(100_000))
            size += 100_000
            await asyncio.sleep(0)
            assert size < 100_000_000
        have = len(net.remote.data)
        await asyncio.sleep(0.05)
        assert len(net.remote.data) == have
        net.remote.transport.resume_reading()
        await until(lambda: len(net.remote.data) == size)
        await until(lambda: "resume" in net.client.events)
        assert net.client.events == ["made", "pause", "resume"]


@in_loop
async def test_write_buffer_limits(stack):
    async with Served(stack) as net:
        transport = net.client.transport
        assert transport.get_write_buffer_limits() == (16384, 65536)
        transport.set_write_buffer_limits(high=1000)
        assert transport.get_write_buffer_limits() == (250, 1000)
        transport.set_write_buffer_limits(low=10)
        assert transport.get_write_buffer_limits() == (10, 40)
        transport.set_write_buffer_limits()
        assert transport.get_write_buffer_limits() == (16384, 65536)
        with pytest.raises(ValueError, match="must be >="):
            transport.set_write_buffer_limits(high=5, low=6)
        with pytest.raises(TypeError, match="bytes-like"):
            transport.write("text")


@in_loop
async def test_a_protocol_with_buffers_of_its_own(stack):
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer = bytearray(1000)
            self.data = bytearray()
            self.done = asyncio.get_running_loop().create_future()

        def get_buffer(self, sizehint: int) -> bytearray:
            assert sizehint == -1
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.data += self.buffer[:nbytes]

        def eof_received(self) -> None:
            self.done.set_result(None)

    server = await aio.create_server(stack, Recorder, IP, 9)
    transport, protocol = await aio.create_connection(stack, Recorder, IP, 9)
    buffered = Buffered()
    transport.set_protocol(buffered)
    assert transport.get_protocol() is buffered
    assert protocol.transport is transport
    hub = stack.aio_hubs[asyncio.get_running_loop()]
    await until(lambda: len(hub.transports) == 2)
    (remote,) = [t for t in hub.transports.values() if t is not transport]
    remote.write(bytes(range(256)) * 40)
    remote.write_eof()
    await buffered.done
    assert buffered.data == bytes(range(256)) * 40
    server.close()
    remote.abort()
    await server.wait_closed()


@in_loop
async def test_a_protocol_that_fails_loses_its_connection(stack):
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ValueError("my own fault")

    contexts: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    server = await aio.create_server(stack, Failing, IP, 9)
    transport, client = await aio.create_connection(stack, Recorder, IP, 9)
    transport.write(b"x")
    assert isinstance(await client.lost, ConnectionResetError)
    assert [str(context["exception"]) for context in contexts] == ["my own fault"]
    server.close()
    await server.wait_closed()


@in_loop
async def test_a_factory_that_fails_does_not_stop_the_server(stack):
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    made: list[Recorder] = []

    def factory() -> Recorder:
        if not contexts:
            raise ValueError("not yet")
        made.append(Recorder())
        return made[-1]

    server = await aio.create_server(stack, factory, IP, 9)
    _, first = await aio.create_connection(stack, Recorder, IP, 9)
    assert isinstance(await first.lost, ConnectionResetError)
    transport, _ = await aio.create_connection(stack, Recorder, IP, 9)
    transport.write(b"fine")
    await until(lambda: bool(made) and made[0].data == b"fine")
    server.close()
    transport.close()
    await server.wait_closed()
    assert len(contexts) == 1


@in_loop
async def test_connecting_a_stream_fails(stack):
    with pytest.raises(ConnectionRefusedError):
        await aio.open_connection(stack, IP, 9)
    stack.neighbor("10.0.0.77", "02:00:00:00:00:77")
    with pytest.raises(TimeoutError, match=r"10\.0\.0\.77:9"):
        await aio.open_connection(stack, "10.0.0.77", 9, timeout=0.05)
    await until(lambda: stack.usage()["tcbs"] == 0)
    with pytest.raises(ValueError, match="no IPv4 address"):
        await aio.open_connection(stack, "localhost", 9)


@in_loop
async def test_a_port_is_served_once(stack):
    server = await aio.create_server(stack, Recorder, IP, 9)
    with pytest.raises(OSError, match="listening") as caught:
        await aio.create_server(stack, Recorder, IP, 9)
    assert caught.value.errno == errno.EADDRINUSE
    server.close()
    server.close()
    await server.wait_closed()
    (await aio.create_server(stack, Recorder, IP, 9)).close()


@in_loop
async def test_serve_forever(stack):
    server = await aio.create_server(stack, Recorder, IP, 9)
    await server.start_serving()
    assert server.get_loop() is asyncio.get_running_loop()
    task = asyncio.create_task(server.serve_forever())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="running already"):
        await server.serve_forever()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not server.is_serving()
    with pytest.raises(RuntimeError, match="closed"):
        await server.serve_forever()


@in_loop
async def test_closing_the_stack_ends_the_streams(stack):
    async with Served(stack) as net:
        waiting = asyncio.create_task(aio.open_connection(stack, "10.0.0.99", 9))
        await asyncio.sleep(0.01)
        stack.close(linger=0)
        for end in (net.client, net.remote):
            assert isinstance(await end.lost, ConnectionAbortedError)
        with pytest.raises(ConnectionAbortedError):
            await waiting
        assert not net.server.is_serving()


def test_loops_in_turn_have_streams_of_their_own(stack):
    async def once() -> None:
        async with Served(stack) as net:
            net.client.transport.write(b"x")
            await until(lambda: net.remote.data == b"x")

    for _ in range(3):
        asyncio.run(asyncio.wait_for(once(), 20))
    assert len(stack.aio_hubs) == 1


@in_loop
async def test_many_connections_at_once(stack):
    """A thousand streams on one channel, all of them used."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4))
        writer.close()

    async def client(number: int) -> bytes:
        reader, writer = await aio.open_connection(stack, IP, 9)
        writer.write(number.to_bytes(4, "big"))
        data = await reader.read()
        writer.close()
        return data

    async with await aio.start_server(stack, serve, IP, 9, backlog=1000):
        results = await asyncio.gather(*(client(i) for i in range(1000)))
    assert results == [i.to_bytes(4, "big") for i in range(1000)]


@in_loop
async def test_an_http_server_on_streams(stack):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        path = request.split()[1]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))
        await writer.drain()
        writer.close()

    async with await aio.start_server(stack, serve, IP, 80):
        reader, writer = await aio.open_connection(stack, IP, 80)
        writer.write(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\n/hello")
        writer.close()
