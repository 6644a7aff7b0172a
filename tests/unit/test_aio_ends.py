# SPDX-License-Identifier: MIT
"""How the streams and channels of `machnet.aio` end when the other side, or the loop, ends first.

Both ends of each connection are on one stack with a thread of its own, and meet in its loop.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
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


class End(asyncio.Protocol):
    """Writes down how it was lost."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(exc)


def handles_on(data: bytearray) -> bool:
    """Whether somebody still has a view of the bytes: then their size can't change."""
    try:
        data.append(0)
    except BufferError:
        return True
    data.pop()
    return False


@pytest.mark.parametrize("from_reset", ["waiting", "next write"])
def test_a_reset_with_bytes_unsent_leaves_no_view_of_them(stack, from_reset):
    """A view that an error's traceback keeps alive would pin the buffer (and crash CPython 3.11)."""

    async def main() -> list[dict[str, Any]]:
        loop = asyncio.get_running_loop()
        complaints: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        made: asyncio.Future[End] = loop.create_future()

        def serve() -> End:
            made.set_result(End())
            return made.result()

        server = await aio.create_server(stack, serve, IP, 9)
        transport, client = await aio.create_connection(stack, End, IP, 9)
        assert isinstance(client, End)
        remote = await asyncio.wait_for(made, 10)
        while remote.transport is None:
            await asyncio.sleep(0)
        remote.transport.pause_reading()
        data = bytearray(8 << 20)
        while transport.get_write_buffer_size() == 0:
            transport.write(data)
        remote.transport.abort()
        while from_reset == "next write" and transport.flow.live:
            pass  # the engine's thread tells it before the loop has looked
        if from_reset == "next write":
            transport._write_ready()
        error = await asyncio.wait_for(client.lost, 10)
        assert isinstance(error, ConnectionResetError)
        assert transport.get_write_buffer_size() == 0
        assert not handles_on(data)
        assert not handles_on(transport._buffer)
        server.close()
        return complaints

    assert asyncio.run(main()) == []
    gc.collect()


@pytest.mark.parametrize("face", ["channel", "aio channel", "socket"])
def test_a_send_that_fails_leaves_no_view_of_its_data(stack, face):
    data = bytearray(100)
    with stack.attach() as server, stack.attach() as client:
        listener = server.listen(IP, 9, "stream")
        if face == "socket":
            sock = stack.socket()
            while sock.connect_ex((IP, 9)) != 0:
                pass
        else:
            flow = client.connect(IP, IP, 9, "stream")
        listener.accept(timeout=10).close(linger=0)
        while stack.usage()["tcbs"] > 0:
            pass
        if face == "aio channel":

            async def main() -> None:
                await aio.Channel(client).send(flow, data, timeout=10)

            send = functools.partial(asyncio.run, main())
        elif face == "channel":
            send = functools.partial(client.send, flow, data)
        else:
            send = functools.partial(sock.send, data)
        with pytest.raises(ConnectionResetError) as caught:
            send()
        assert caught.tb is not None  # which holds the frames, and they their variables
        assert not handles_on(data)


def test_a_stack_outlives_the_loop_of_its_streams(stack):
    """``with Stack(...)`` around ``asyncio.run`` closes the stack when the loop is gone."""

    async def main() -> asyncio.AbstractServer:
        server: asyncio.AbstractServer = await aio.create_server(stack, End, IP, 80)
        await aio.create_connection(stack, End, IP, 80)
        hub = next(iter(stack.aio_hubs.values()))
        while len(hub.transports) < 2:
            await asyncio.sleep(0)
        return server

    server = asyncio.run(main())
    hub = next(iter(stack.aio_hubs.values()))
    stack.close(linger=0)
    assert stack.closed
    assert hub.channel.closed
    assert not hub.transports
    assert not hub.servers
    assert not server.is_serving()


def test_streams_that_are_open_at_the_end_of_the_interpreter_are_let_go_in_any_order():
    """`StreamWriter.__del__` comes when the channel's memory may have gone before it."""
    code = """if True:
        import asyncio
        from machnet import aio
        from machnet.sim import Network

        def leave_open():
            net = Network(seed=7)
            a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
            net.link(a, b)

            async def main():
                await aio.start_server(b.stack, lambda reader, writer: None, "10.0.0.2", 80)
                await aio.open_connection(a.stack, "10.0.0.2", 80)
                await asyncio.sleep(1)

            net.run(main())

        leave_open()
    """
    # Freed memory is overwritten then, where CPython frees it itself.
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONMALLOC": "debug"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
