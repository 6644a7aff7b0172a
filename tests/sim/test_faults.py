# SPDX-License-Identifier: MIT
"""Faults while a network runs: between nodes, of hosts, on schedule, and again in a replay."""

from __future__ import annotations

from typing import Any

import pytest
from sim_net import frame, framed_flow, host_pair, number_of, raw_pair, transfer

from machnet.sim import (
    Clog,
    Corrupt,
    Crash,
    Degrade,
    Drop,
    Duplicate,
    Network,
    Partition,
    Pause,
    Reorder,
    Skew,
)


def got(raw: Any) -> list[int]:
    raw.net.run_until_idle()
    return [number_of(data) for _, data in raw.take()]


# ---- between nodes -------------------------------------------------------------------------------


def test_nothing_passes_a_partition() -> None:
    net, a, b = raw_pair(latency="1ms", bandwidth=None)
    with net:
        a.send(frame(a, b, 0))  # on its way: it still arrives
        with net.partition([a], [b]) as fault:
            assert fault.active
            a.send(frame(a, b, 1))
            b.send(frame(b, a, 2))
        a.send(frame(a, b, 3))
        assert got(b) == [0, 3]
        assert got(a) == []
        assert net.links[0].forward.stats().faults["blocked"] == 1
        assert [text for _, text in net.events] == [
            "partition raw1 <> raw2",
            "partition raw1 <> raw2 healed",
        ]


def test_a_partition_may_be_one_way() -> None:
    net, a, b = raw_pair()
    with net:
        net.partition(["raw1"], ["raw2"], one_way=True)
        a.send(frame(a, b, 1))
        b.send(frame(b, a, 2))
        assert got(b) == []
        assert got(a) == [2]


def test_partitions_overlap() -> None:
    net, a, b = raw_pair()
    with net:
        first, second = net.partition([a], [b]), net.partition([b], [a])
        first.heal()
        first.heal()
        a.send(frame(a, b, 1))
        second.heal()
        a.send(frame(a, b, 2))
        net.partition([a], [b])
        net.heal()
        a.send(frame(a, b, 3))
        assert got(b) == [2, 3]


def test_groups_behind_one_switch_are_parted() -> None:
    with Network() as net:
        switch = net.switch()
        raws = [net.raw_host(f"10.0.0.{i}") for i in range(1, 5)]
        for raw in raws:
            net.link(raw, switch)
        net.partition(raws[:2], raws[2:])
        for sender in raws:
            for receiver in raws:
                if sender is not receiver:
                    sender.send(frame(sender, receiver, sender.number))
            net.run_until_idle()
        found = [{number_of(data) for _, data in raw.take()} for raw in raws]
        assert found == [{2}, {1}, {4}, {3}]


def test_a_host_is_cut_off_its_switch() -> None:
    with Network() as net:
        switch = net.switch()
        a, b = net.raw_host("10.0.0.1"), net.raw_host("10.0.0.2")
        net.link(a, switch)
        net.link(b, switch)
        with net.partition([a], [switch], one_way=True):
            a.send(frame(a, b, 1))
            b.send(frame(b, a, 2))
            assert got(b) == []
            assert got(a) == [2]
        with pytest.raises(ValueError, match="partition: there is no link between sw2 and raw1"):
            net.partition([net.switch()], [a])


def test_frames_wait_in_a_clog() -> None:
    net, a, b = raw_pair(latency="1ms", bandwidth=None)
    with net:
        with net.clog(a, b):
            for i in range(3):
                a.send(frame(a, b, i))
            net.advance("5ms")
            assert b.take() == []
            assert net.links[0].forward.clogged
        net.run_until_idle()
        assert [t for t, _ in b.take()] == [6_000_000] * 3
        assert not net.links[0].forward.clogged


def test_a_clog_of_what_has_no_link_is_refused() -> None:
    with Network() as net:
        switch = net.switch()
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        net.link(a, switch)
        net.link(b, switch)
        with pytest.raises(ValueError, match="clog: there is no link between h1 and h2"):
            net.clog(a, b)
        net.clog(a, switch).heal()


def test_switches_with_a_loop_of_links() -> None:
    with Network() as net:
        switches = [net.switch() for _ in range(3)]
        for i in range(3):
            net.link(switches[i], switches[(i + 1) % 3])
        hosts = [net.host(f"10.0.0.{i + 1}") for i in range(3)]
        for host, switch in zip(hosts, switches, strict=True):
            net.link(host, switch)
        data = b"around" * 5000
        for i in range(3):
            assert transfer(net, hosts[i], hosts[(i + 1) % 3], data, 7000 + i) == data
        net.run_until_idle()


# ---- hosts ---------------------------------------------------------------------------------------


def test_a_host_that_is_paused_stands_still() -> None:
    net, a, b = host_pair(latency="1ms")
    with net:
        server, client, flow = framed_flow(a, b)
        with b.paused():
            assert b.is_paused
            client.send(flow, b"hello")
            net.advance("100ms")
            with pytest.raises(TimeoutError):
                server.recv(timeout=0.1)
        assert not b.is_paused
        start = net.now_ns
        assert server.recv(timeout=1).data == b"hello"
        assert net.now_ns - start < 1_000_000  # it lay there already
        b.pause()
        net.pause(b)
        b.resume()
        assert not b.is_paused
        assert "pause h2" in [text for _, text in net.events]


def test_a_crash_is_silent_and_kills_channels() -> None:
    net, a, b = host_pair()
    with net:
        server, client, flow = framed_flow(a, b)
        client.send(flow, b"hello")
        server.recv(timeout=1)
        net.run_until_idle()
        before = len(net.packets())
        b.crash()
        b.crash()
        net.advance("1s")
        assert len(net.packets()) == before
        assert not b.up
        assert b.sockets() == []
        assert server.closed
        with pytest.raises(ValueError, match="the channel is closed"):
            server.try_recv()
        with pytest.raises(RuntimeError, match="h2 is down since it crashed"):
            b.attach()
        assert b.name in repr(b)
        client.send(flow, b"anybody?")
        with pytest.raises(TimeoutError):
            client.recv(timeout=10)


def test_a_host_that_starts_anew_knows_nothing_of_before() -> None:
    net, a, b = host_pair()
    with net:
        _server, client, flow = framed_flow(a, b)
        net.run_until_idle()
        assert b.restart(msl_ms=500) is b
        assert b.up
        assert b.stack.settings.msl_ms == 500
        assert b.stack.ip == "10.0.0.2"
        client.send(flow, b"hello")
        with pytest.raises(machnet_reset()):
            client.recv(timeout=5)
        again = b.attach()
        again.listen(b.ip, 7, protocol="tcp")
        client.send(client.connect(a.ip, b.ip, 7, protocol="tcp"), b"hello")
        assert again.recv(timeout=5).data == b"hello"
        with pytest.raises(TypeError, match="did you mean 'msl_ms'"):
            b.restart(msl_m=1)
        assert b.up


def machnet_reset() -> type[Exception]:
    from machnet import FlowResetError

    return FlowResetError


def test_a_crash_and_a_restart_end_a_pause() -> None:
    net, _, b = host_pair()
    with net:
        fault = b.pause()
        b.crash()
        assert not fault.active
        b.pause()
        b.restart()
        assert not b.is_paused
        b.attach().listen(b.ip, 7, protocol="tcp")
        assert net.now_ns == 0


def test_each_boot_has_secrets_of_its_own() -> None:
    def first_isn(boots: int) -> int:
        net, a, b = host_pair(3)
        with net:
            for _ in range(boots - 1):
                a.restart()
            b.attach().listen(b.ip, 7, protocol="tcp")
            a.attach().connect(a.ip, b.ip, 7, protocol="tcp")
            return a.sockets()[0].snd_nxt

    assert first_isn(1) == first_isn(1)
    assert len({first_isn(1), first_isn(2), first_isn(3)}) == 3


def test_a_skewed_clock_runs_faster() -> None:
    net, a, _ = host_pair()
    with net:
        a.skew(ppm=100, jump="1s")
        assert a.now_ns == 1_000_000_000
        net.advance("1h")
        assert a.now_ns == 1_000_000_000 + 3600 * 1_000_100_000
        a.skew(ppm=-100)
        net.advance("1h")
        assert a.now_ns == 1_000_000_000 + 3600 * 2_000_000_000
        assert net.now_ns == 7200 * 10**9


def test_timers_follow_the_hosts_own_clock() -> None:
    def retransmissions(ppm: float) -> list[int]:
        net, a, b = host_pair()
        with net:
            server, client = b.attach(), a.attach()
            server.listen(b.ip, 7, protocol="tcp")
            flow = client.connect(a.ip, b.ip, 7, protocol="tcp")
            net.run_until_idle()
            a.skew(ppm=ppm)
            net.partition([a], [b])
            start = net.now_ns
            client.send(flow, b"x")
            net.advance("3s")
            sent = [p for p in net.packets() if p.dropped and p.frame[12:14] == b"\x08\x00"]
            return [p.t_ns - start for p in sent]

    normal, fast = retransmissions(0), retransmissions(900_000)
    assert len(fast) > len(normal)
    for slow, quick in zip(normal[1:3], fast[1:3], strict=True):
        assert quick == pytest.approx(slow / 1.9, rel=0.01)


# ---- on schedule ---------------------------------------------------------------------------------


def test_faults_on_schedule_begin_and_end() -> None:
    net, a, b = host_pair()
    with net:
        schedule = [
            Partition(a, [b], at="1ms", for_="2ms"),
            Clog("h1", "h2", at="4ms", for_="1ms"),
            Pause("h2", at="6ms", for_="1ms"),
            Crash("h2", at="8ms", for_="1ms"),
            Skew("h1", at="10ms", for_="1ms", ppm=50),
            Degrade("h1>h2", at="12ms", for_="1ms", loss=1),
            Degrade("h1<>h2", at="14ms", latency="1ms"),
        ]
        net.apply(schedule)
        net.run_until_idle()
        assert [(t // 1_000_000, text) for t, text in net.events] == [
            (1, "partition h1 <> h2"),
            (3, "partition h1 <> h2 healed"),
            (4, "clog h1 <> h2"),
            (5, "clog h1 <> h2 healed"),
            (6, "pause h2"),
            (7, "pause h2 healed"),
            (8, "crash h2"),
            (9, "restart h2"),
            (10, "skew h1 +50 ppm"),
            (11, "skew h1 +0 ppm"),
            (12, "h1>h2 degraded loss=1"),
            (13, "h1>h2 no longer degraded loss=1"),
            (14, "h1<>h2 degraded latency='1ms'"),
        ]
        assert net.schedule == schedule
        assert b.up


def test_a_crash_without_an_end_lasts() -> None:
    net, _, b = host_pair()
    with net:
        net.apply([Crash("h2", at=0)])
        assert not b.up
        net.advance("1h")
        assert not b.up


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Drop("h1>h9", 0), "no direction 'h1>h9'"),
        (Partition("h1", "h9", at=0), "no node 'h9'"),
        (Pause("h9", at=0), "no node 'h9'"),
        (Crash("raw1", at=0), "raw1 is no host"),
        (Degrade("h1<>h9", at=0, loss=1), "no direction 'h1<>h9'"),
        (Degrade("h1>h2", at=0, loss=7), "loss: 7"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused_as_a_whole(fault: Any, text: str) -> None:
    net, a, _ = host_pair()
    with net:
        net.raw_host("10.0.0.9")
        with pytest.raises(ValueError, match=text):
            net.apply([Pause("h1", at=0), fault])
        assert not a.is_paused


# ---- replays -------------------------------------------------------------------------------------

LOSSY: dict[str, Any] = {
    "loss": 0.05,
    "reorder": 0.05,
    "reorder_delay": "300us",
    "duplicate": 0.05,
    "corrupt": 0.03,
}


def trace(net: Network) -> list[tuple[int, str, bytes]]:
    return [(p.t_ns, p.host, p.frame) for p in net.packets()]


def run(only: Any = None, apply: Any = (), **params: Any) -> tuple[list[Any], list[Any]]:
    net, a, b = host_pair(11, reorder_delay="300us", **params)
    with net:
        if only is not None:
            net.only(only)
        net.apply(apply)
        data = bytes(range(250)) * 400
        assert transfer(net, a, b, data) == data
        return net.schedule, trace(net)


def lossy() -> dict[str, Any]:
    return {key: value for key, value in LOSSY.items() if key != "reorder_delay"}


def test_what_happened_is_listed() -> None:
    schedule, _ = run(**lossy())
    kinds = {type(fault) for fault in schedule}
    assert kinds == {Drop, Duplicate, Corrupt, Reorder}
    assert {fault.link for fault in schedule} == {"h1>h2", "h2>h1"}


def test_a_schedule_on_a_good_link_does_the_same_again() -> None:
    schedule, packets = run(**lossy())
    again, same = run(apply=schedule)
    assert same == packets
    assert again == schedule
    text = repr(schedule)
    from machnet.sim import faults

    assert run(apply=eval(text, vars(faults)))[1] == packets


def test_only_what_is_listed_happens() -> None:
    schedule, packets = run(**lossy())
    assert run(only=schedule, **lossy())[1] == packets
    assert run(only=[], **lossy())[0] == []
    few = schedule[:2]
    assert run(only=few, **lossy())[0] == few
    assert run(only=few, apply=schedule)[0] == few


def test_only_holds_for_what_is_on_schedule_and_not_for_calls() -> None:
    net, a, b = host_pair()
    with net:
        first, second = Pause("h1", at="1ms", for_="1ms"), Pause("h2", at="1ms", for_="1ms")
        net.only([first])
        net.apply([first, second])
        net.advance("1500us")
        assert (a.is_paused, b.is_paused) == (True, False)
        b.pause()
        assert b.is_paused
        net.only(None)
        net.apply([Pause("h2", at="3ms")])
        net.advance("2ms")
        assert net.schedule == [first, Pause("h2", at="3ms")]


def test_chaos_is_drawn_from_the_seed_and_ends() -> None:
    def draw(seed: int) -> list[Any]:
        net, a, b = host_pair(seed)
        with net:
            found = net.chaos("5s", mean_interval="50ms")
            net.run_until_idle()
            assert net.now_ns < 5_000_000_000
            assert a.up
            assert b.up
            assert not a.is_paused
            assert net.schedule == found
            assert not net.links[0].forward.blocked
            data = b"after all" * 1000
            assert transfer(net, a, b, data) == data
            return list(found)

    one, two, other = draw(1), draw(1), draw(2)
    assert one == two != other
    assert {type(fault) for fault in one} == {Partition, Clog, Pause, Crash, Degrade, Skew}


def test_chaos_of_some_kinds() -> None:
    net, _, _ = host_pair()
    with net:
        found = net.chaos("10s", kinds=["pause", "crash"])
        assert {type(fault) for fault in found} == {Pause, Crash}
        assert net.chaos("1s", kinds="clog", mean_interval="10s") == []


def test_chaos_without_links_is_about_hosts() -> None:
    with Network() as net:
        net.host("10.0.0.1")
        assert {type(fault) for fault in net.chaos("20s")} == {Pause, Crash, Skew}
