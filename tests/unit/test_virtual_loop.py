# SPDX-License-Identifier: MIT
"""asyncio on virtual time: `machnet.sim.loop.VirtualLoop` on two wired stacks."""

from __future__ import annotations

import asyncio
import builtins
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from loop_pair import A, B, Pair, forever

import machnet
from machnet import aio
from machnet.sim.loop import VirtualLoop
from machnet.stack.clock import Clock


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


# --- time -----------------------------------------------------------------------------------------


def test_sleeping_costs_nothing(pair: Pair) -> None:
    async def main() -> float:
        await asyncio.sleep(86_400)
        return pair.loop.time()

    start = time.monotonic()
    assert pair.loop.run(main()) == 86_400
    assert pair.clock.now_ns == 86_400 * 10**9
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("start_ns", [0, 3_600_123_456_789, 86_399_999_999_999, 10**18])
def test_timers_are_exact_to_what_a_float_holds(pair: Pair, start_ns: int) -> None:
    pair.clock.advance_to(start_ns)
    fired: list[tuple[int, int]] = []
    step_ns = 1 if start_ns < 10**17 else 1000  # a float has 53 bits
    wanted = [start_ns + k * step_ns for k in (1, 2, 3, 7, 1000, 1_000_001)]
    for due_ns in reversed(wanted):
        pair.loop.call_at(due_ns / 1e9, lambda d=due_ns: fired.append((d, pair.clock.now_ns)))
    pair.loop.advance_to(start_ns + 2_000_000_000)
    tolerance = 0 if start_ns < 10**17 else 128
    assert [due for due, _ in fired] == wanted
    assert all(abs(due - now) <= tolerance for due, now in fired), fired


def test_sleeps_that_are_no_whole_nanoseconds_do_not_spin(pair: Pair) -> None:
    passes = 0

    async def main() -> None:
        nonlocal passes
        for k in range(1, 1000):
            await asyncio.sleep(k / 3e9)
            passes += 1

    loop = pair.loop = VirtualLoop(pair.clock, instant_max=20)
    pair.clock.advance_to(3_600_000_000_001)
    loop.run(main())
    assert passes == 999
    assert 166_000 < pair.clock.now_ns - 3_600_000_000_001 < 167_000


def test_timers_due_together_keep_their_order(pair: Pair) -> None:
    order: list[int] = []
    for k in range(200):
        handle = pair.loop.call_at(1.0, order.append, k)
        if k % 3 == 0:
            handle.cancel()
    pair.loop.advance_to(10**9)
    assert order == [k for k in range(200) if k % 3]


def test_never_is_no_time(pair: Pair) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.sleep(float("inf")), 5)
        assert pair.loop.time() == 5
        await asyncio.sleep(float("inf"))

    with pytest.raises(machnet.DeadlockError):
        pair.loop.run(main())
    with pytest.raises(ValueError, match="NaN"):
        pair.loop.call_at(float("nan"), print)


def test_advance_to_runs_everything_up_to_a_moment(pair: Pair) -> None:
    ticks: list[float] = []

    async def ticker() -> None:
        while True:
            await asyncio.sleep(0.25)
            ticks.append(pair.loop.time())
            await asyncio.sleep(0)
            ticks.append(-pair.loop.time())

    pair.loop.create_task(ticker())
    assert pair.loop.next_ns() == 0
    pair.loop.advance_to(500_000_000)
    assert ticks == [0.25, -0.25, 0.5, -0.5]
    assert (pair.clock.now_ns, pair.loop.next_ns()) == (500_000_000, 750_000_000)
    assert pair.loop.run_until(lambda: len(ticks) == 8)
    assert pair.clock.now_ns == 10**9
    assert not pair.loop.run_until(lambda: False, until_ns=2 * 10**9)
    assert pair.clock.now_ns == 2 * 10**9


# --- what asyncio offers ----------------------------------------------------------------------------


def test_asyncio_works_in_virtual_time(pair: Pair) -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []
        queue: asyncio.Queue[int] = asyncio.Queue(2)
        event = asyncio.Event()

        async def produce() -> None:
            for k in range(5):
                await asyncio.sleep(1)
                await queue.put(k)
            event.set()

        async def consume() -> None:
            while len(seen) < 5:
                seen.append((await queue.get(), pair.loop.time()))

        await asyncio.gather(produce(), consume(), event.wait())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(forever(), 10)
        done, waiting = await asyncio.wait(
            [asyncio.create_task(asyncio.sleep(k, k)) for k in (3, 1, 2)], timeout=2.5
        )
        seen.append((sorted(t.result() for t in done), len(waiting), pair.loop.time()))
        return seen

    assert pair.loop.run(main()) == [
        *((k, k + 1.0) for k in range(5)),
        ([1, 2], 1, 17.5),
    ]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has them from Python 3.11 on")
def test_timeout_and_task_group(pair: Pair) -> None:
    cancelled: list[int] = []

    async def waits(k: int) -> None:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            cancelled.append(k)
            raise

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await forever()
        assert pair.loop.time() == 5

        async def fails() -> None:
            await asyncio.sleep(1)
            raise ValueError("one of the group")

        with pytest.raises(builtins.ExceptionGroup):  # noqa: PT012
            async with asyncio.TaskGroup() as group:
                for k in range(50):
                    group.create_task(waits(k))
                group.create_task(fails())
        assert pair.loop.time() == 6

    pair.loop.run(main())
    # The group has its tasks in a set.
    assert cancelled == sorted(cancelled)
    assert len(cancelled) == 50


@pytest.mark.skipif(sys.version_info < (3, 12), reason="loop_factory came with Python 3.12")
def test_asyncio_run_with_this_loop(pair: Pair) -> None:
    async def main() -> int:
        await asyncio.sleep(5)
        return 7

    assert asyncio.run(main(), loop_factory=lambda: pair.loop) == 7
    assert pair.loop.is_closed()


def test_tasks_are_kept_alive(pair: Pair) -> None:
    done = []

    async def background() -> None:
        await asyncio.sleep(1)
        done.append(1)

    async def main() -> None:
        for _ in range(10):
            asyncio.create_task(background())  # noqa: RUF006 (that is what is tested)
        import gc

        gc.collect()
        await asyncio.sleep(2)

    pair.loop.run(main())
    assert len(done) == 10


# --- channels and streams -----------------------------------------------------------------------------


def test_messages_between_two_stacks(pair: Pair) -> None:
    async def serve() -> None:
        async with aio.attach(pair.b) as server:
            server.listen(B, 888, protocol="tcp")
            while True:
                message = await server.recv()
                await asyncio.sleep(0.001)
                await server.send(message.flow, message.data[::-1])

    async def main() -> None:
        async with aio.attach(pair.a) as channel:
            flow = await channel.connect(A, B, 888, protocol="tcp")
            for size in (0, 1, 64, 5000, 1_000_000):
                data = bytes(k * 7 % 251 for k in range(size))
                start = pair.loop.time()
                await channel.send(flow, data)
                assert (await channel.recv(timeout=10)).data == data[::-1]
                assert pair.loop.time() - start == pytest.approx(0.001, abs=1e-3)
            with pytest.raises(TimeoutError, match=r"nothing within 30 s"):
                await channel.recv(timeout=30)

    pair.loop.create_task(serve())
    pair.loop.run(main())


def test_streams_and_many_coroutines(pair: Pair) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def client(k: int) -> int:
        reader, writer = await aio.open_connection(pair.a, B, 80)
        data = bytes([k]) * (50_000 + k)
        writer.write(data)
        writer.write_eof()
        await asyncio.sleep(k * 0.01)
        assert await reader.read(-1) == data
        writer.close()
        await writer.wait_closed()
        return k

    async def main() -> None:
        server = await aio.start_server(pair.b, serve, B, 80)
        assert await asyncio.gather(*map(client, range(20))) == list(range(20))
        server.close()
        await server.wait_closed()

    pair.loop.run(main())


def test_a_wake_up_is_never_overslept(pair: Pair) -> None:
    """Both a timer long after it and one just after it: the message is seen when it comes."""

    async def main() -> None:
        async with aio.attach(pair.a) as a, aio.attach(pair.b) as b:
            b.listen(B, 888, protocol="tcp")
            flow = await a.connect(A, B, 888, protocol="tcp")
            for k in range(20):
                at = pair.loop.time()
                pair.loop.call_later(0.5, a.channel.send, flow, bytes([k]))
                pair.loop.call_later(0.5 + 1e-9, int)
                message = await b.recv(timeout=60)
                assert message.data == bytes([k])
                assert pair.loop.time() - at == pytest.approx(0.5, abs=1e-9)

    pair.loop.run(main())


def test_the_callback_of_a_channel_runs_in_the_loop(pair: Pair) -> None:
    """And one that fails is told, while the others still hear of their wake-ups."""

    async def main() -> None:
        listener, client = pair.b.attach(), pair.a.attach()
        listener.listen(B, 80, protocol="stream")
        told: list[float] = []
        bad = pair.b.attach()
        bad.listen(B, 81, protocol="tcp")

        def fails() -> None:
            if pair.loop.time() > 0:
                raise ValueError("in on_ready")

        bad.on_ready(fails)
        listener.on_ready(lambda: told.append(asyncio.get_running_loop().time()))
        pair.loop.call_later(3, client._connect_start, A, B, 81, "tcp", None, 0)
        pair.loop.call_later(3, client._connect_start, A, B, 80, "stream", None, 0)
        await asyncio.sleep(3)
        await asyncio.sleep(1e-9)
        assert told[0] == 0
        assert 3 <= told[-1] <= 3.001

    with pytest.raises(ValueError, match="in on_ready"):
        pair.loop.run(main())


# --- blocking, re-entrance, threads -------------------------------------------------------------------


def test_blocking_calls_in_a_coroutine_are_refused(pair: Pair) -> None:
    channel = pair.a.attach()

    async def main() -> None:
        for call in (
            lambda: channel.recv(timeout=1),
            channel.recv,
            lambda: channel.connect(A, "10.0.0.77", 80, protocol="tcp", timeout=1),
            lambda: pair.a.advance(1),
            lambda: pair.clock.advance_to(10),
            lambda: pair.loop.run(forever()),
            lambda: pair.loop.advance_to(10),
        ):
            with pytest.raises(machnet.ReentrantError, match="virtual"):
                call()
        with pytest.raises(TimeoutError):
            channel.recv(timeout=0)
        assert pair.clock.now_ns == 0

    pair.loop.run(main())
    with pytest.raises(TimeoutError):
        channel.recv(timeout=1)
    assert pair.clock.now_ns == 10**9


def test_other_threads_stay_out(pair: Pair) -> None:
    errors: list[BaseException] = []

    def other() -> None:
        try:
            pair.loop.call_soon_threadsafe(print)
        except RuntimeError as error:
            errors.append(error)

    async def main() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        done = pair.loop.create_future()
        pair.loop.call_soon_threadsafe(done.set_result, 1)
        assert await done == 1

    pair.loop.run(main())
    assert "one thread" in str(errors[0])


def test_what_needs_the_operating_system_is_refused(pair: Pair) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            for call, advice in (
                (lambda: loop.run_in_executor(None, int), "coroutine"),
                (lambda: asyncio.to_thread(int), "coroutine"),
                (lambda: loop.add_reader(sock, int), "machnet.aio"),
                (lambda: loop.add_writer(sock, int), "machnet.aio"),
                (lambda: loop.sock_recv(sock, 1), "machnet.aio"),
                (lambda: loop.sock_connect(sock, ("127.0.0.1", 1)), "machnet.aio"),
                (lambda: asyncio.open_connection("127.0.0.1", 1), "machnet.aio"),
                (lambda: asyncio.start_server(print, "127.0.0.1", 1), "machnet.aio"),
                (lambda: loop.create_datagram_endpoint(asyncio.DatagramProtocol), "machnet.aio"),
                (lambda: asyncio.create_subprocess_exec("true"), "coroutine"),
                (lambda: loop.add_signal_handler(signal.SIGINT, int), "KeyboardInterrupt"),
            ):
                with pytest.raises(NotImplementedError, match=advice):  # noqa: PT012
                    result = call()
                    if result is not None:
                        await result
        found = await loop.getaddrinfo("10.1.2.3", 80, type=socket.SOCK_STREAM)
        assert found[0][4] == ("10.1.2.3", 80)
        assert await loop.getnameinfo(("10.1.2.3", 80)) == ("10.1.2.3", "80")
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("localhost", 80)

    pair.loop.run(main())


def test_a_real_clock_is_refused() -> None:
    with pytest.raises(ValueError, match="virtual clock"):
        VirtualLoop(Clock(realtime=True))


_DETERMINISM = """
import asyncio, sys
import machnet
from machnet import aio
from machnet.sim import Wire
from machnet.sim.loop import VirtualLoop

junk = [object() for _ in range(int(sys.argv[1]))]
ends = Wire.pair()
a, b = machnet.Stack(ends[0], ip="10.0.0.1", seed=1), machnet.Stack(ends[1], ip="10.0.0.2", seed=2)
loop = VirtualLoop(a.clock)

async def serve(reader, writer):
    data = await reader.read(-1)
    await asyncio.sleep(len(data) % 7 * 1e-6)
    print(len(data), loop.time())
    writer.close()

async def client(k):
    reader, writer = await aio.open_connection(a, "10.0.0.2", 80)
    writer.write(bytes(1000 * k))
    writer.write_eof()
    await reader.read()
    writer.close()
    return k

async def waits(k):
    try:
        await asyncio.sleep(1000)
    finally:
        print("end", k)

async def main():
    server = await aio.start_server(b, serve, "10.0.0.2", 80)
    tasks = {loop.create_task(client(k)) for k in range(30)}
    while tasks:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        print([t.result() for t in done])
    group = {loop.create_task(waits(k)) for k in range(30)}
    await asyncio.sleep(1)
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()
    server.close()

loop.run(main())
print(loop.clock.now_ns)
"""


def test_order_depends_on_nothing_but_the_program() -> None:
    """Sets of tasks, within asyncio and here, have the same order in every process."""
    outputs = set()
    for hash_seed in ("0", "1", "77"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", _DETERMINISM, str(1000 * int(hash_seed))],
            env=env,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        outputs.add(run.stdout)
    assert len(outputs) == 1
    assert outputs.pop().count("end") == 30
