# SPDX-License-Identifier: MIT
"""How a run of `machnet.sim.loop.VirtualLoop` ends: deadlocks, failures, Ctrl-C, shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from loop_pair import A, B, Pair, forever

import machnet
from machnet import aio
from machnet.sim import Network


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


# --- the ends of a run ---------------------------------------------------------------------------------


def test_a_deadlock_says_who_waits_where(pair: Pair) -> None:
    async def waits_for_a_message() -> None:
        async with aio.attach(pair.b) as channel:
            await channel.recv()

    async def main() -> None:
        one = asyncio.create_task(waits_for_a_message(), name="receiver")
        asyncio.create_task(forever())  # noqa: RUF006
        await one

    with pytest.raises(machnet.DeadlockError) as caught:
        pair.loop.run(main())
    text = str(caught.value)
    line = waits_for_a_message.__code__.co_firstlineno + 2
    assert (
        f"receiver test_a_deadlock_says_who_waits_where.waits_for_a_message(): {__file__}" in text
    )
    assert f"{__file__}:{line} in " in text
    assert "waits in Channel.recv" in text
    assert "3 tasks wait" in text
    assert "for receiver" in text
    code = forever.__code__
    assert f"{code.co_filename}:{code.co_firstlineno + 1} in forever" in text
    # The loop is as good as before, and what waited in vain for its main task is cancelled.
    assert [t.get_name() for t in pair.loop.tasks()] == ["Task-3"]
    assert pair.loop.run(asyncio.sleep(1, "on")) == "on"


def test_a_busy_loop_at_one_moment_ends(pair: Pair) -> None:
    async def spins() -> None:
        while True:
            await asyncio.sleep(0)

    pair.loop.instant_max = 1000
    with pytest.raises(machnet.SimulationLimitError, match=r"1000 passes .*\n.*spins\(\)"):
        pair.loop.run(spins())
    assert pair.loop.run(asyncio.sleep(1, "on")) == "on"


def test_a_failed_task_that_nobody_awaits_is_raised(pair: Pair) -> None:
    async def fails(text: str) -> None:
        await asyncio.sleep(1)
        raise ValueError(text)

    async def main() -> str:
        task = asyncio.create_task(fails("seen"))
        asyncio.create_task(fails("unseen"))  # noqa: RUF006
        with pytest.raises(ValueError, match=r"^seen"):
            await task
        return "result"

    with pytest.raises(ValueError, match="unseen") as caught:
        pair.loop.run(main())
    if sys.version_info >= (3, 11):
        assert "fails" in caught.value.__notes__[0]
    assert pair.loop.run(asyncio.sleep(0, "once only")) == "once only"


def test_a_failed_callback_is_raised(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        pair.loop.call_later(1, lambda: 1 / 0)
        pair.loop.call_later(1, lambda: {}[1])
        await asyncio.sleep(2)

    with pytest.raises(ZeroDivisionError):
        pair.loop.run(main())
    assert "KeyError" in caplog.text


def test_a_handler_sees_what_fails(pair: Pair) -> None:
    seen: list[dict[str, Any]] = []
    pair.loop.set_exception_handler(lambda _, context: seen.append(context))

    async def fails() -> None:
        raise ValueError("unseen")

    async def main() -> None:
        asyncio.create_task(fails())  # noqa: RUF006
        pair.loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(1)

    pair.loop.run(main())
    assert [type(c["exception"]) for c in seen] == [ZeroDivisionError, ValueError]


def test_a_deadlock_names_what_failed_before(pair: Pair) -> None:
    async def fails() -> None:
        raise ValueError("the server has a bug")

    async def main() -> None:
        asyncio.create_task(fails())  # noqa: RUF006
        await forever()

    with pytest.raises(machnet.DeadlockError, match="the server has a bug") as caught:
        pair.loop.run(main())
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_failing_protocol_is_raised(pair: Pair) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        raise LookupError("in the handler")

    async def main() -> None:
        server = await aio.start_server(pair.b, handle, B, 80)
        reader, writer = await aio.open_connection(pair.a, B, 80)
        await reader.read()
        writer.close()
        server.close()

    with pytest.raises(LookupError, match="in the handler"):
        pair.loop.run(main())


def test_ctrl_c_while_time_goes_on(pair: Pair) -> None:
    async def main() -> None:
        pair.loop.call_later(1, os.kill, os.getpid(), signal.SIGINT)
        await forever_busy()

    async def forever_busy() -> None:
        while True:
            await asyncio.sleep(1)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            pair.loop.run(main())
    finally:
        signal.signal(signal.SIGINT, before)
    assert pair.loop.tasks() == []
    assert pair.loop.run(asyncio.sleep(1, "on")) == "on"


def test_shutdown_lets_tasks_clean_up(pair: Pair) -> None:
    cleaned: list[str] = []

    async def quick() -> None:
        try:
            await forever()
        finally:
            cleaned.append("quick")

    async def slow() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0.5)
            cleaned.append("slow")

    async def never() -> None:
        try:
            await forever()
        finally:
            await forever()

    for coro in (quick(), slow(), never()):
        pair.loop.create_task(coro)
    pair.loop.advance_to(1)
    pair.loop.shutdown()
    assert cleaned == ["quick", "slow"]
    assert pair.loop.is_closed()
    pair.loop.shutdown()


def test_what_a_rule_starts_is_not_overslept() -> None:
    """It runs in the midst of a step, which ends at that moment."""
    with Network() as net:
        a, b = net.host(A), net.host(B)
        net.link(a, b, latency="1ms")

        async def main() -> None:
            seen: asyncio.Future[int] = net.loop.create_future()

            def tell(packet: object, hop: Any) -> None:
                if not seen.done():
                    seen.set_result(hop.now_ns)

            channel = a.attach()
            with net.rule(tell):
                net.loop.call_later(2, channel._connect_start, A, B, 80, "tcp", None, 0)
                assert await asyncio.wait_for(seen, 100) == 2_000_000_000
                assert net.now_ns == 2_000_000_000

        net.run(main())
