# SPDX-License-Identifier: MIT
"""asyncio on a network's time, beside plain functions that step the same network."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sim_net import host_pair

import machnet
from machnet.errors import DeadlockError, ReentrantError, SimulationLimitError
from machnet.sim import Network


async def echo(host: Any, port: int = 7) -> None:
    """Answers each message with its reverse."""
    async with machnet.aio.attach(host.stack) as channel:
        channel.listen(host.ip, port, protocol="tcp")
        while True:
            message = await channel.recv()
            await channel.send(message.flow, message.data[::-1])


def test_sleeping_costs_nothing_and_takes_its_time() -> None:
    with Network() as net:

        async def main() -> str:
            await asyncio.sleep(3600)
            return "woke"

        assert net.run(until=main()) == "woke"
        assert net.now_ns == 3600 * 10**9


def test_coroutines_talk_over_the_network() -> None:
    net, a, b = host_pair(latency="1ms", loss=0.02)
    with net:
        net.create_task(echo(b), host=b)

        async def main() -> list[bytes]:
            async with machnet.aio.attach(a.stack) as channel:
                flow = await channel.connect(a.ip, b.ip, 7, protocol="tcp")
                answers = []
                for word in (b"one", b"two", b"three"):
                    await channel.send(flow, word)
                    answers.append((await channel.recv(timeout=5)).data)
                return answers

        assert net.run(until=main()) == [b"eno", b"owt", b"eerht"]


def test_a_plain_call_that_blocks_lets_coroutines_run() -> None:
    net, a, b = host_pair()
    with net:
        net.create_task(echo(b))
        net.advance("1ms")
        channel = a.attach()
        flow = channel.connect(a.ip, b.ip, 7, protocol="tcp", timeout=1)
        channel.send(flow, b"hello")
        assert channel.recv(timeout=1).data == b"olleh"
        channel.send(flow, b"again")
        assert net.eventually(channel.try_recv).data == b"niaga"  # type: ignore[union-attr]
        with pytest.raises(TimeoutError):
            channel.recv(timeout=2)
        assert 2 * 10**9 < net.now_ns < 3 * 10**9


def test_a_blocking_call_without_an_end_says_what_coroutines_wait_for() -> None:
    net, a, b = host_pair()
    with net:
        net.create_task(echo(b), name="the echo")
        with pytest.raises(DeadlockError) as error:
            a.attach().recv()
        assert "h2 10.0.0.2:7 LISTEN" in str(error.value)
        assert "the echo" in str(error.value)


def test_time_can_not_pass_inside_a_coroutine() -> None:
    net, a, _ = host_pair()
    with net:
        channel = a.attach()

        async def wrong(call: Any) -> None:
            call()

        for call in (
            lambda: net.advance(1),
            lambda: channel.recv(timeout=1),
            lambda: net.run_until_idle(),
            lambda: net.run(until=asyncio.sleep(1)),
            lambda: net.close(),
        ):
            with pytest.raises(ReentrantError, match="virtual event loop"):
                net.run(until=wrong(call))


def test_faults_from_inside_a_coroutine() -> None:
    net, a, b = host_pair()
    with net:

        async def main() -> None:
            net.partition([a], [b])
            await asyncio.sleep(1)
            net.heal()
            a.crash()
            await asyncio.sleep(1)
            a.restart()

        net.run(until=main())
        assert [t for t, _ in net.events] == [0, 10**9, 10**9, 2 * 10**9]
        assert a.up


def test_a_crash_cancels_the_hosts_tasks() -> None:
    net, a, b = host_pair()
    with net:
        seen: list[str] = []

        async def life(name: str) -> None:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                seen.append(name)
                raise

        mine = net.create_task(life("h2"), host=b)
        other = net.create_task(life("h1"), host=a)
        net.advance("1s")
        b.crash()
        net.advance("1s")
        assert seen == ["h2"]
        assert mine.cancelled()
        assert not other.done()


def test_a_server_that_crashes_and_comes_back() -> None:
    net, a, b = host_pair()
    with net:
        task = net.create_task(echo(b), host=b)
        b.on_restart = lambda host: net.create_task(echo(host), host=host)
        net.at("1s", b.crash)
        net.at("2s", b.restart)

        async def client() -> int:
            failures = 0
            for _ in range(30):
                async with machnet.aio.attach(a.stack) as channel:
                    try:
                        flow = await channel.connect(a.ip, b.ip, 7, protocol="tcp", timeout=0.5)
                        await channel.send(flow, b"x")
                        await channel.recv(timeout=0.5)
                    except OSError:
                        failures += 1
                await asyncio.sleep(0.1)
            return failures

        assert net.run(until=client()) == 2
        assert task.cancelled()


def test_what_a_task_raises_is_not_lost() -> None:
    with Network() as net:

        async def broken() -> None:
            await asyncio.sleep(1)
            raise LookupError("no such thing")

        net.create_task(broken())
        with pytest.raises(LookupError, match="no such thing"):
            net.advance("2s")


def test_idle_waits_for_timers_of_coroutines() -> None:
    with Network() as net:
        net.create_task(asyncio.sleep(60))
        net.run_until_idle()
        assert net.now_ns == 60 * 10**9
        net.create_task(asyncio.sleep(7200))
        with pytest.raises(SimulationLimitError, match="coroutines have something to do"):
            net.run_until_idle()


def test_callbacks_on_schedule_and_coroutines_share_the_time() -> None:
    with Network() as net:
        seen: list[Any] = []

        async def tick() -> None:
            for i in range(3):
                seen.append((net.now_ns, i))
                await asyncio.sleep(1)

        net.at("500ms", lambda: seen.append("first"))
        net.at("1500ms", lambda: seen.append("second"))
        net.create_task(tick())
        net.advance("10s")
        assert seen == [(0, 0), "first", (10**9, 1), "second", (2 * 10**9, 2)]
        assert net.now_ns == 10 * 10**9


def test_a_rule_that_fails_under_coroutines_fails_the_run() -> None:
    net, a, b = host_pair()
    with net:
        net.create_task(echo(b))

        async def main() -> None:
            async with machnet.aio.attach(a.stack) as channel:
                await channel.connect(a.ip, b.ip, 7, protocol="tcp")

        with net.rule(lambda packet, hop: 1 / 0), pytest.raises(ZeroDivisionError):  # type: ignore[arg-type,return-value]
            net.run(until=main())
        net.run(until=main())


def test_streams_of_asyncio() -> None:
    net, a, b = host_pair(loss=0.01)
    with net:

        async def serve(reader: Any, writer: Any) -> None:
            writer.write((await reader.read()).upper())
            await writer.drain()
            writer.close()

        async def main() -> bytes:
            server = await machnet.aio.start_server(b.stack, serve, b.ip, 80)
            reader, writer = await machnet.aio.open_connection(a.stack, b.ip, 80)
            writer.write(b"a" * 100_000)
            writer.write_eof()
            data = await reader.read()
            writer.close()
            server.close()
            return data

        assert net.run(until=main()) == b"A" * 100_000


def test_closing_ends_tasks() -> None:
    net, _, b = host_pair()
    ended: list[bool] = []

    async def life() -> None:
        try:
            await asyncio.sleep(10**6)
        finally:
            ended.append(True)

    net.create_task(life())
    net.create_task(echo(b))
    net.advance("1s")
    net.close()
    assert ended == [True]
    assert net.now_ns == 10**9
