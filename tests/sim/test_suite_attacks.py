# SPDX-License-Identifier: MIT
"""What needs a network: incast (G9), an engine that stalls (H2), packets that can't be had (D15)."""

from __future__ import annotations

from typing import Any

import pytest
from suite_talk import MS, SECOND, End, Talk, noise

from machnet.sim import Network


def met_by_steps(net: Network, ends: list[End], within_ns: int) -> None:
    """As `ends_met`, for many ends: they are looked after every 5 ms only."""
    deadline = net.now_ns + within_ns
    while sum(not end.pump() for end in ends):  # each of them, whatever the others say
        assert net.now_ns < deadline, net.report()
        net.advance("5ms")


@pytest.mark.parametrize("count", [10, 100])
def test_incast(count: int) -> None:
    """G9: all answer one host at once, through a port with a queue of 64 frames.

    Without ECN and pacing most of it is lost at first, and timeouts of 200 ms repair it.
    """
    size = 30_000
    with Network(9) as net:
        sink = net.host("10.0.0.1/16", lanes_max=count + 1)
        switch = net.switch()
        port = net.link(switch, sink, latency="10us", bandwidth="1Gbps", queue="64p")
        talks = []
        for i in range(count):
            sender = net.host(f"10.0.1.{i + 1}/16")
            net.link(sender, switch, latency="10us", bandwidth="1Gbps")
            talks.append(Talk(net, sender, sink, noise(size, i), port=7000 + i))
        for talk in talks:
            talk.run_until_accepted()
        began = net.now_ns
        met_by_steps(net, [end for talk in talks for end in talk.ends], 10 * SECOND)
        took = net.now_ns - began
        for talk in talks:
            assert talk.client.error is None
            assert talk.server.error is None
            assert bytes(talk.server.got) == talk.up
        if count == 100:
            assert port.forward.stats().faults["queue"] > 0
        ideal = count * size * 8
        assert took < ideal + 5 * SECOND, took
        for talk in talks:
            talk.close()


@pytest.mark.parametrize("stall_ms", [100, 1000])
@pytest.mark.parametrize("who", ["sender", "receiver"])
def test_an_engine_that_stalls(who: str, stall_ms: int) -> None:
    """H2: a stall below the least timeout costs nothing; of a longer one there is one timeout.

    What waited in the receive ring counts before what is due: there is no burst of either.
    """
    with Network(2) as net:
        a = net.host("10.0.0.1")
        b = net.host("10.0.0.2", rcv_buf_bytes=128 << 10)  # a window that the ring holds
        net.link(a, b, latency="1ms", bandwidth="100Mbps")
        talk = Talk(net, a, b, noise(6_000_000))
        victim = a if who == "sender" else b
        stalls = 4
        pauses: list[Any] = []
        for i in range(stalls):
            at = net.now_ns + (40 + i * (stall_ms + 80)) * MS
            net.at(at, lambda: pauses.append(victim.pause()))
            net.at(at + stall_ms * MS, lambda: pauses[-1].heal())
        took = talk.run(20 * SECOND)
        assert len(pauses) == stalls
        stats = a.stack.stats()
        if stall_ms < 200:
            assert stats["tcp_rto"] == stats["tcp_retransmits"] == 0
        else:
            # 200, 400 ms: two in a second for a sender that hears nothing.
            assert stats["tcp_rto"] <= 2 * stalls
            assert stats["tcp_retransmits"] < 400
        assert took < 600 * MS + 2 * stalls * stall_ms * MS
        talk.leaves_nothing()


def test_packets_that_can_not_be_had() -> None:
    """D15: whatever the packet that there is no memory for: it is as if it were lost."""
    refused = 0
    for pool in range(16, 56):
        with Network(pool, pool=pool) as net:
            a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
            net.link(a, b, latency="1ms", bandwidth="100Mbps")
            talk = Talk(net, a, b, noise(40_000), noise(40_000, 7))
            talk.run(120 * SECOND)
            refused += sum(host.stack.stats()["drop_tx_nobuf"] for host in (a, b))
            talk.leaves_nothing()
    assert refused > 100
