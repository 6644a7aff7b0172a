# SPDX-License-Identifier: MIT
"""Rules: what a Python function says becomes of a packet."""

from __future__ import annotations

from typing import Any

import pytest
from sim_net import frame, framed_flow, host_pair, number_of, raw_pair, transfer

from machnet.errors import ReentrantError
from machnet.sim import DROP, DUPLICATE, PASS, Hop, delay, replace
from machnet.testing import Packet


def numbers(raw: Any) -> list[tuple[int, int]]:
    return [(t, number_of(data)) for t, data in raw.take()]


def test_a_rule_sees_packets_and_where_they_go() -> None:
    net, a, b = host_pair()
    with net:
        hops: list[tuple[str, Hop]] = []

        def watch(packet: Packet, hop: Hop) -> None:
            if packet.tcp is not None:
                hops.append((packet.summary(), hop))

        server, client = b.attach(), a.attach()
        server.listen(b.ip, 7, protocol="tcp")
        with net.rule(watch) as rule:
            client.connect(a.ip, b.ip, 7, protocol="tcp")
            net.run_until_idle()
        assert rule.packets == 5
        assert rule.hits == 0
        text, hop = hops[0]
        assert "Flags [S]" in text
        assert (hop.link, hop.sender, hop.receiver) == (net.links[0], a, b)
        assert hop.direction.name == "h1>h2"
        assert hops[1][1].direction.name == "h2>h1"
        assert hops[1][1].now_ns > hop.now_ns > 0
        seen = len(hops)
        client.connect(a.ip, b.ip, 7, protocol="tcp")
        assert len(hops) == seen
        assert not rule.active


def test_a_rule_drops() -> None:
    net, a, b = raw_pair(latency="1us", bandwidth=None)
    with net:
        net.rule(lambda packet, hop: DROP if packet.payload[3] % 2 else PASS)
        for i in range(6):
            a.send(frame(a, b, i))
        net.run_until_idle()
        assert numbers(b) == [(1000, 0), (1000, 2), (1000, 4)]
        fates = [packet.fate for packet in net.packets() if packet.dropped]
        assert len(fates) == 3
        assert "rule" in fates[0]


def test_a_rule_delays_and_another_adds_to_it() -> None:
    net, a, b = raw_pair(latency="1us", bandwidth=None)
    with net:
        net.rule(lambda packet, hop: delay("1ms") if packet.payload[3] == 0 else None)
        net.rule(lambda packet, hop: delay("2ms") if packet.payload[3] < 2 else None)
        for i in range(3):
            a.send(frame(a, b, i))
        net.run_until_idle()
        assert numbers(b) == [(1000, 2), (2_001_000, 1), (3_001_000, 0)]


def test_a_rule_duplicates() -> None:
    net, a, b = raw_pair(latency="1us", bandwidth=None)
    with net:
        net.rule(lambda packet, hop: DUPLICATE)
        a.send(frame(a, b, 3))
        net.run_until_idle()
        assert numbers(b) == [(1000, 3), (1000, 3)]


def test_a_rule_replaces_and_the_next_one_sees_it() -> None:
    net, a, b = raw_pair(latency="1us", bandwidth=None)
    with net:
        seen: list[int] = []
        net.rule(lambda packet, hop: replace(frame(a, b, 9, size=200)))
        net.rule(lambda packet, hop: seen.append(len(bytes(packet))))
        a.send(frame(a, b, 3))
        net.run_until_idle()
        assert [(len(data), number_of(data)) for _, data in b.take()] == [(200, 9)]
        assert seen == [200]


def test_a_packet_with_other_fields_is_a_replacement() -> None:
    net, a, b = host_pair()
    with net:
        server, client = b.attach(), a.attach()
        server.listen(b.ip, 7, protocol="tcp")

        def shrink(packet: Packet, hop: Hop) -> Any:
            return replace(packet.with_(window=100)) if packet.tcp and hop.sender is b else PASS

        net.rule(shrink)
        client.connect(a.ip, b.ip, 7, protocol="tcp")
        assert a.sockets()[0].snd_wnd == 100


def test_a_rule_for_one_direction_is_asked_there_only() -> None:
    net, a, b = raw_pair()
    with net:
        one = net.rule(lambda packet, hop: DROP, net.links[0].forward)
        both = net.rule(lambda packet, hop: PASS, net.links[0])
        for _ in range(3):
            a.send(frame(a, b))
            b.send(frame(b, a))
        net.run_until_idle()
        assert (one.packets, one.hits, both.packets) == (3, 3, 3)
        assert len(a.take()) == 3
        assert b.take() == []


def test_a_rule_for_all_links_is_for_those_to_come_too() -> None:
    net, a, _ = raw_pair()
    with net:
        net.rule(lambda packet, hop: DROP)
        c = net.raw_host("10.0.0.3")
        net.link(c, net.switch())
        c.send(frame(c, a))
        net.run_until_idle()
        assert net.links[1].forward.stats().faults["rule"] == 1


def test_what_a_rule_raises_the_call_raises_and_the_network_goes_on() -> None:
    net, a, b = host_pair()
    with net:
        server, client, flow = framed_flow(a, b)

        def broken(packet: Packet, hop: Hop) -> None:
            raise LookupError("no such thing")

        with net.rule(broken):
            client.send(flow, b"one")
            for call in (
                lambda: net.advance("1ms"),
                lambda: server.recv(timeout=5),
                lambda: client.send(flow, b"two"),
                lambda: net.run_until_idle(),
            ):
                with pytest.raises(LookupError, match="no such thing"):
                    keep_on(net, call)
        assert server.recv(timeout=10).data == b"one"


def keep_on(net: Any, call: Any) -> None:
    for _ in range(100):
        call()
        net.advance("1s")


def test_an_answer_that_is_none_is_refused() -> None:
    net, a, b = raw_pair()
    with net:
        for answer, text in ((True, "answered True"), (replace(b"short"), "not 5")):
            with (
                net.rule(lambda packet, hop, answer=answer: answer),  # type: ignore[misc]
                pytest.raises((TypeError, ValueError), match=text),
            ):
                a.send(frame(a, b))
        a.send(frame(a, b, 5))
        net.run_until_idle()
        assert [n for _, n in numbers(b)] == [5]


def test_a_rule_may_change_the_network() -> None:
    net, a, b = raw_pair(latency="1us", bandwidth=None)
    with net:
        with net.rule(lambda packet, hop: hop.link.set(latency="1ms")):
            a.send(frame(a, b, 0))

        def call_me(packet: Packet, hop: Hop) -> None:
            net.at(hop.now_ns + 5, lambda: times.append(net.now_ns))

        times: list[int] = []
        net.rule(call_me)
        a.send(frame(a, b, 1))
        net.run_until_idle()
        assert numbers(b) == [(1_000_000, 0), (1_000_000, 1)]
        assert times == [5]


def test_a_rule_that_sends_is_still_inside_the_step_after_it() -> None:
    net, a, b = host_pair()
    with net:
        raw, switch = net.raw_host("10.0.0.9"), net.switch()
        net.link(raw, switch)

        def rule(_packet: Packet, hop: Hop) -> None:
            if hop.sender is a:
                raw.send(bytes(60))  # which is asked about too
                b.crash()

        net.rule(rule)
        with pytest.raises(ReentrantError, match="crash"):
            transfer(net, a, b, b"x")
        assert b.up
