# SPDX-License-Identifier: MIT
"""What links do to frames, to the nanosecond."""

from __future__ import annotations

from typing import Any

import pytest
from sim_net import frame, framed_flow, host_pair, number_of, raw_pair

from machnet.sim import GilbertElliott, Network


def arrivals(n: int = 1, size: int = 60, seed: int = 1, **params: Any) -> list[tuple[int, int]]:
    """Time and number of what arrives of ``n`` frames sent at once."""
    net, a, b = raw_pair(seed, **params)
    with net:
        for i in range(n):
            a.send(frame(a, b, i, size))
        net.run_until_idle()
        return [(t, number_of(data)) for t, data in b.take()]


def test_a_frame_takes_its_latency_and_its_bits() -> None:
    assert arrivals(latency="50us", bandwidth=None) == [(50_000, 0)]
    assert arrivals(latency=7, bandwidth=None) == [(7, 0)]
    # 1250 bytes at 1 Gbit/s: 10 us.
    assert arrivals(size=1250, latency="1ms", bandwidth="1Gbps") == [(1_010_000, 0)]


def test_frames_leave_one_behind_the_other_at_the_bandwidth() -> None:
    found = arrivals(4, size=125, latency="1ms", bandwidth="1Mbps")
    assert found == [(1_000_000 * (i + 2), i) for i in range(4)]


def test_without_a_bandwidth_all_arrive_together_and_in_order() -> None:
    found = arrivals(100, latency="1us", bandwidth=None)
    assert found == [(1_000, i) for i in range(100)]


def test_a_ping_between_hosts_takes_twice_the_latency() -> None:
    net, a, b = host_pair(latency="1ms", bandwidth=None)
    with net:
        server, client, flow = framed_flow(a, b)
        start = net.now_ns
        client.send(flow, b"ping")
        message = server.recv(timeout=1)
        assert net.now_ns - start == 1_000_000
        server.send(message.flow, b"pong")
        assert client.recv(timeout=1).data == b"pong"
        assert net.now_ns - start == 2_000_000


def test_a_queue_of_packets_drops_its_tail() -> None:
    # One frame on the transmitter, three in the queue.
    found = arrivals(10, size=125, latency=0, bandwidth="1Mbps", queue="3p")
    assert [number for _, number in found] == [0, 1, 2, 3]


def test_a_queue_of_bytes_drops_its_tail() -> None:
    found = arrivals(10, size=100, latency=0, bandwidth="1Mbps", queue="250B")
    assert [number for _, number in found] == [0, 1, 2]


def test_tail_drops_are_told_and_counted() -> None:
    net, a, b = raw_pair(bandwidth="1Mbps", queue=1)
    with net:
        for i in range(3):
            a.send(frame(a, b, i))
        net.run_until_idle()
        stats = net.links[0].forward.stats()
        assert (stats.frames, stats.delivered, stats.faults["queue"]) == (3, 2, 1)
        assert stats.bytes == 180
        assert [p.dropped for p in net.packets() if p.direction == "out"] == [False, False, True]


def test_loss_is_as_frequent_as_asked_for() -> None:
    found = arrivals(8000, bandwidth=None, loss="5%")
    assert 8000 - len(found) == pytest.approx(400, abs=60)
    assert arrivals(8000, bandwidth=None, loss="5%") == found
    assert arrivals(8000, bandwidth=None, loss="5%", seed=2) != found


def test_a_link_that_loses_all_and_one_that_loses_nothing() -> None:
    assert arrivals(100, loss=1) == []
    assert len(arrivals(100, loss=0)) == 100


def test_burst_losses_come_in_bursts() -> None:
    burst = GilbertElliott(bad=0.01, good=0.2)
    there = {number for _, number in arrivals(8000, bandwidth=None, burst_loss=burst)}
    lost = [i for i in range(8000) if i not in there]
    # The chain is bad 0.01 / 0.21 of the time, for 5 frames on average.
    assert len(lost) == pytest.approx(381, abs=120)
    runs = sum(1 for i in lost if i - 1 in there or i == 0)
    assert len(lost) / runs == pytest.approx(5, abs=1.2)


def test_reordered_frames_come_later_and_the_others_in_time() -> None:
    net, a, b = raw_pair(latency="10us", bandwidth=None, reorder=0.1, reorder_delay="1ms")
    with net:
        for i in range(200):
            a.send(frame(a, b, i))
        net.run_until_idle()
        found = [(t, number_of(data)) for t, data in b.take()]
    late = [number for t, number in found if t == 1_010_000]
    assert [number for t, number in found if t == 10_000] == [
        i for i in range(200) if i not in late
    ]
    assert 5 < len(late) < 40
    assert len(found) == 200


def test_duplicates_come_behind_the_first() -> None:
    found = arrivals(3, latency="10us", bandwidth=None, duplicate=1, duplicate_delay="5us")
    assert found == [(10_000, 0), (10_000, 1), (10_000, 2), (15_000, 0), (15_000, 1), (15_000, 2)]


def test_corruption_inverts_one_bit_behind_the_ethernet_header() -> None:
    net, a, b = raw_pair(corrupt=1)
    with net:
        sent = [frame(a, b, i) for i in range(50)]
        for data in sent:
            a.send(data)
        net.run_until_idle()
        got = [data for _, data in b.take()]
    assert len(got) == 50
    flips = {
        int.from_bytes(x, "big") ^ int.from_bytes(y, "big") for x, y in zip(sent, got, strict=True)
    }
    assert all(flip.bit_count() == 1 for flip in flips)
    assert all(x[:14] == y[:14] for x, y in zip(sent, got, strict=True))
    assert len(flips) > 20


def test_what_is_longer_than_the_links_mtu_is_lost() -> None:
    assert arrivals(size=514, mtu=500)
    assert arrivals(size=515, mtu=500) == []


@pytest.mark.parametrize("distribution", [None, "uniform", "normal", "exponential"])
def test_jitter_spreads_arrivals_and_keeps_the_order(distribution: str | None) -> None:
    net, a, b = raw_pair(
        latency="1ms", jitter="100us", distribution=distribution, bandwidth="100Mbps"
    )
    with net:
        for i in range(300):
            a.send(frame(a, b, i))
        net.run_until_idle()
        found = b.take()
    times = [t for t, _ in found]
    assert times == sorted(times)
    assert [number_of(data) for _, data in found] == list(range(300))
    assert len(set(times)) > 10


def test_jitter_may_reorder_where_it_is_told_to() -> None:
    found = arrivals(300, latency="1ms", jitter="900us", bandwidth="100Mbps", keep_order=False)
    assert [number for _, number in found] != list(range(300))
    assert sorted(number for _, number in found) == list(range(300))
    spread = [t for t, _ in found]
    assert min(spread) >= 100_000
    assert max(spread) <= 1_900_000 + 300 * 4_800


def test_the_way_back_may_be_another() -> None:
    net, a, b = raw_pair(latency="1ms", bandwidth=None, back={"latency": "5ms"})
    with net:
        a.send(frame(a, b))
        b.send(frame(b, a))
        net.run_until_idle()
        assert [t for t, _ in b.take()] == [1_000_000]
        assert [t for t, _ in a.take()] == [5_000_000]


def test_parameters_change_while_it_runs() -> None:
    net, a, b = raw_pair(latency="1ms", bandwidth=None)
    link = net.links[0]
    with net:
        a.send(frame(a, b, 0))
        link.set(latency="5ms")
        a.send(frame(a, b, 1))
        link.forward.set(loss=1)
        a.send(frame(a, b, 2))
        b.send(frame(b, a, 3))
        net.run_until_idle()
        assert [(t, number_of(data)) for t, data in b.take()] == [(1_000_000, 0), (5_000_000, 1)]
        assert [t for t, _ in a.take()] == [5_000_000]
        assert [text for _, text in net.events][:2] == [
            "raw1>raw2 set latency='5ms'",
            "raw2>raw1 set latency='5ms'",
        ]


def test_a_link_that_is_degraded_comes_back() -> None:
    net, a, b = raw_pair(latency="1ms", bandwidth=None)
    link = net.links[0]
    with net:
        with link.degraded(loss=1.0), link.forward.degraded(latency="9ms"):
            a.send(frame(a, b, 0))
            link.set(latency="2ms")  # for afterwards: what degrades goes first
        a.send(frame(a, b, 1))
        net.run_until_idle()
        assert [(t, number_of(data)) for t, data in b.take()] == [(2_000_000, 1)]


def test_degradations_may_overlap() -> None:
    net, a, b = raw_pair(latency="1ms", bandwidth=None)
    with net:
        first = net.links[0].forward.degraded(loss=1)
        second = net.links[0].forward.degraded(loss=1)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        a.send(frame(a, b, 0))
        second.__exit__(None, None, None)
        a.send(frame(a, b, 1))
        net.run_until_idle()
        assert [number_of(data) for _, data in b.take()] == [1]


def test_faults_of_one_kind_do_not_depend_on_the_others() -> None:
    lost = {n for _, n in arrivals(500, bandwidth=None, loss=0.1)}
    both = {n for _, n in arrivals(500, bandwidth=None, loss=0.1, duplicate=0.3, corrupt=0.0)}
    assert both == lost


def test_links_between_the_same_nodes_have_numbers() -> None:
    with Network() as net:
        a, b = net.raw_host("10.0.0.1"), net.raw_host("10.0.0.2")
        first, second, third = net.link(a, b), net.link(a, b), net.link(b, a)
        assert [link.name for link in net.links] == [
            "raw1<>raw2",
            "raw1<>raw2#2",
            "raw2<>raw1#3",
        ]
        assert first.forward.name == "raw1>raw2"
        assert second.backward.name == "raw2>raw1#2"
        assert third.forward.name == "raw2>raw1#3"


@pytest.mark.parametrize(
    ("params", "kind", "text"),
    [
        ({"latency": 1.5}, ValueError, "latency: 1.5 is no duration"),
        ({"latency": "25h"}, ValueError, "latency: '25h' is out of its range: at most 24 h"),
        ({"bandwidth": "fast"}, ValueError, "bandwidth: 'fast'"),
        ({"bandwidth": 10}, ValueError, "bandwidth: 10 is out of its range: 1 kbps"),
        ({"loss": 2}, ValueError, "loss: 2 is no probability"),
        ({"queue": "some"}, ValueError, "queue: 'some'"),
        ({"queue": 100_000}, ValueError, "queue: 100000 is out of its range"),
        ({"mtu": 10}, ValueError, "mtu: 10 is not within 68 to 65535"),
        ({"burst_loss": 0.1}, ValueError, "burst_loss: 0.1 is no GilbertElliott"),
        ({"distribution": "odd"}, ValueError, "distribution: 'odd' is none of 'fixed'"),
        ({"jitter": 1, "distribution": "fixed"}, ValueError, "has no effect"),
        ({"back": {"lattency": 1}}, TypeError, "did you mean 'latency'"),
    ],
)
def test_parameters_that_are_wrong_are_named(
    params: dict[str, Any], kind: type[Exception], text: str
) -> None:
    with Network() as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        with pytest.raises(kind, match=text):
            net.link(a, b, **params)
        assert net.links == []
        link = net.link(a, b)
        with pytest.raises(TypeError, match="h1>h2 has no parameter 'los': did you mean 'loss'"):
            link.set(los=1)


def test_a_burst_loss_names_its_wrong_part() -> None:
    with pytest.raises(ValueError, match="GilbertElliott: good: 3"):
        GilbertElliott(bad=0.1, good=3)
