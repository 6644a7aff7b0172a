# SPDX-License-Identifier: MIT
"""The network as a whole: nodes, time, and who may let it pass."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sim_net import frame, framed_flow, host_pair, raw_pair, transfer

import machnet
from machnet.errors import DeadlockError, ReentrantError, SimulationLimitError
from machnet.sim import EventuallyError, Network


def test_two_hosts_talk() -> None:
    net, a, b = host_pair(loss=0.01)
    with net:
        data = bytes(range(256)) * 1000
        assert transfer(net, a, b, data) == data
        assert net.leaks() == []


def test_names_are_given_in_order() -> None:
    with Network() as net:
        made = [net.host("10.0.0.1"), net.switch(), net.raw_host("10.0.0.9"), net.host("10.0.0.2")]
        assert [node.name for node in made] == ["h1", "sw1", "raw1", "h2"]
        assert net.host("10.0.0.3", "h4").name == "h4"
        assert net.host("10.0.0.4").name == "h5"
        assert net.node("sw1") is made[1]
        assert [host.name for host in net.hosts] == ["h1", "h2", "h4", "h5"]


@pytest.mark.parametrize(
    "wrong", [{"gateway": "10.9.9.9"}, {"gateway": "no"}, {"mtu": 68}, {"rto_min_us": 10**9}]
)
def test_a_host_that_is_refused_leaves_nothing_behind(wrong: dict[str, Any]) -> None:
    with Network() as net:
        with pytest.raises((ValueError, TypeError)):
            net.host("10.0.0.1", **wrong)
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        assert [node.name for node in (a, b)] == ["h1", "h2"]
        assert [a.number, b.number] == [0, 1]
        net.link(a, b)
        assert transfer(net, a, b, b"all is well") == b"all is well"


def test_a_restart_that_is_refused_leaves_the_host_as_it_was() -> None:
    with Network() as net:
        host = net.host("10.0.0.1")
        with pytest.raises(ValueError, match="mss_min_bytes: 1400"):
            host.restart(mss_min_bytes=1400, rto_min_us=1000)
        assert host.up
        assert host.settings == {}


def test_a_host_whose_stack_was_closed_is_down() -> None:
    with Network() as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        net.link(a, b)
        a.stack.close()
        assert not a.up
        assert a.sockets() == []
        assert "h1" in net.report()
        assert net.timers() == []
        assert net.leaks() == []
        with pytest.raises(OSError, match="No route to host"):
            b.attach().connect(b.ip, a.ip, 7, protocol="tcp", timeout=60)
        a.restart()
        assert transfer(net, a, b, b"again") == b"again"


def test_channels_are_closed_in_the_order_they_came() -> None:
    with Network() as net:
        host = net.host("10.0.0.1")
        kept = [(host.attach(), bytes(n)) for n in range(20)]  # addresses of memory in disorder
        closed: list[int] = []
        for n, (channel, _) in enumerate(kept):
            channel.on_close = lambda n=n: closed.append(n)
        host.restart()
        assert closed == list(range(20))


def test_hosts_have_their_own_addresses() -> None:
    with Network() as net:
        host = net.host("10.1.2.3/16", gateway="10.1.0.1", mtu=9000, timestamps=False)
        assert (host.ip, host.prefix, host.stack.gateway) == ("10.1.2.3", 16, "10.1.0.1")
        assert host.stack.mtu == 9000
        assert host.stack.settings.timestamps is False
        assert host.mac == host.stack.mac == "02:4d:4e:00:00:01"
        raw = net.raw_host("10.1.2.4", mac="02:00:00:00:00:07")
        assert raw.mac == "02:00:00:00:00:07"


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda net: net.host("10.0.0.1"), ValueError, "'10.0.0.1' is the address of h1"),
        (lambda net: net.host("10.0.0"), ValueError, "'10.0.0' is no IPv4 address"),
        (lambda net: net.host("10.0.0.2", "h1"), ValueError, "there is a node 'h1' already"),
        (lambda net: net.host("10.0.0.2", "a b"), ValueError, "name: 'a b'"),
        (lambda net: net.host("10.0.0.2", "a>b"), ValueError, "name: 'a>b'"),
        (lambda net: net.host("10.0.0.2", ""), ValueError, "name: ''"),
        (lambda net: net.host("10.0.0.2", "x" * 64), ValueError, "name: 'x"),
        (lambda net: net.host("10.0.0.2", mtu=10), ValueError, "mtu: 10"),
        (lambda net: net.host("10.0.0.2", timestamp=1), TypeError, "did you mean 'timestamps'"),
        (lambda net: net.raw_host("10.0.0.2", mac="x"), ValueError, "no MAC address"),
        (lambda net: net.raw_host("10.0.0.2", mac="02:4d:4e:00:00:01"), ValueError, "mac: another"),
        (lambda net: net.raw_host("10.0.0.2", mac="ff:ff:ff:ff:ff:ff"), ValueError, "mac: "),
        (lambda net: net.link("h1", "h1"), ValueError, "h1 can't be linked to itself"),
        (lambda net: net.link("h1", "h9"), ValueError, "no node 'h9' .there are: h1, h2"),
        (lambda net: net.partition(["h1"], ["h1"]), ValueError, "h1 is on both sides"),
        (lambda net: net.partition([], ["h1"]), ValueError, "is empty"),
        (lambda net: net.clog("h1", "h2"), ValueError, "no link between h1 and h2"),
        (lambda net: net.chaos("1s", kinds=["fire"]), ValueError, "kinds: 'fire' is none of"),
        (lambda net: net.advance(1.5), ValueError, "duration: 1.5"),
        (lambda net: net.run(1.5), ValueError, "until: 1.5"),
        (lambda net: net.pause("sw1"), ValueError, "no node 'sw1'"),
        (lambda net: net.rule("drop"), TypeError, "rule: 'drop' is no function"),
        (lambda net: net.rule(print, link="h1"), ValueError, "no direction 'h1'"),
        (lambda net: net.apply(["crash"]), TypeError, "'crash' is no fault"),
        (lambda net: net.hosts[0].skew(ppm=10**7), ValueError, "ppm: 10000000"),
    ],
)
def test_what_is_wrong_is_named(make: Any, kind: type[Exception], text: str) -> None:
    with Network() as net:
        net.host("10.0.0.1")
        net.host("10.0.1.2")
        with pytest.raises(kind, match=text):
            make(net)


@pytest.mark.parametrize(
    "settings",
    [{"seed": -1}, {"seed": 2**64}, {"seed": "x"}, {"record": -1}, {"pool": 0}, {"max_time": 1.0}],
)
def test_a_network_with_wrong_settings_is_refused(settings: Any) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}: "):
        Network(**settings)


def test_nodes_of_another_network_are_refused() -> None:
    with Network() as net, Network() as other:
        a, b = net.host("10.0.0.1"), other.host("10.0.0.1")
        with pytest.raises(ValueError, match="belongs to another network"):
            net.link(a, b)


def test_a_closed_network_says_so() -> None:
    net, a, _ = host_pair()
    channel = a.attach()
    net.close()
    net.close()
    assert net.closed
    assert "closed" in repr(net)
    calls: list[Any] = [
        lambda: net.host("10.0.0.9"),
        lambda: net.advance(1),
        lambda: net.partition([a], ["h2"]),
        lambda: net.links[0].set(loss=1),
        lambda: a.attach(),
        lambda: a.crash(),
        lambda: net.loop,
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"net .*is closed"):
            call()
    with pytest.raises(ValueError, match="closed"):
        channel.try_recv()


def test_the_same_seed_gives_the_same_packets() -> None:
    def run(seed: int) -> list[bytes]:
        net, a, b = host_pair(seed, loss=0.05)
        with net:
            transfer(net, a, b, b"x" * 20_000)
            return [packet.frame for packet in net.packets()]

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_the_tests_own_random_numbers_shift_nothing() -> None:
    with Network(5) as one, Network(5) as two, Network(6) as three:
        assert one.random.random() == two.random.random()
        assert one.random.random() != three.random.random()
        one.random.shuffle([1, 2, 3])
        assert one.random is one.random


# ---- time ----------------------------------------------------------------------------------------


def test_time_stands_still_until_someone_lets_it_pass() -> None:
    with Network() as net:
        net.host("10.0.0.1")
        assert net.now_ns == 0
        net.advance("1.5ms")
        assert net.now_ns == 1_500_000
        net.run("2ms")
        net.run(until=3_000_000)
        assert net.now_ns == 3_000_000
        with pytest.raises(ValueError, match="until: '1ms' is past: it is 3ms already"):
            net.run("1ms")


def test_time_has_an_end() -> None:
    with Network(max_time="1s") as net:
        net.host("10.0.0.1")
        net.advance("1s")
        with pytest.raises(SimulationLimitError, match=r"the end of time, 1s \(Network"):
            net.advance(1)
        assert net.now_ns == 1_000_000_000


def test_callbacks_are_called_in_order_at_their_time() -> None:
    with Network() as net:
        seen: list[tuple[str, int]] = []
        net.at("2ms", lambda: seen.append(("b", net.now_ns)))
        net.at("1ms", lambda: seen.append(("a", net.now_ns)))
        net.at("2ms", lambda: seen.append(("c", net.now_ns)))
        gone = net.at("2ms", lambda: seen.append(("never", 0)))
        gone.cancel()
        net.advance("2ms")
        assert seen == [("a", 1_000_000), ("b", 2_000_000), ("c", 2_000_000)]
        assert not gone.pending


def test_a_callback_may_send_and_schedule_more() -> None:
    net, a, b = raw_pair(latency="1ms", bandwidth=None)
    with net:

        def send() -> None:
            a.send(frame(a, b))
            if net.now_ns < 3_000_000:
                net.at(net.now_ns + 1_000_000, send)

        net.at(0, send)
        net.run_until_idle()
        assert [t for t, _ in b.take()] == [1_000_000, 2_000_000, 3_000_000, 4_000_000]


def test_what_a_callback_raises_the_step_raises() -> None:
    with Network() as net:
        net.at("1ms", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            net.advance("2ms")
        assert net.now_ns == 1_000_000
        net.advance("1ms")
        assert net.now_ns == 2_000_000


def test_run_until_a_predicate_stops_at_that_event() -> None:
    net, a, b = raw_pair(latency="1ms", bandwidth="1Mbps")
    with net:
        for i in range(5):
            a.send(frame(a, b, i, 125))
        found: list[Any] = []

        def two() -> list[Any] | None:
            found.extend(b.take())
            return found if len(found) >= 2 else None

        assert net.run(until=two) is found
        assert net.now_ns == 3_000_000


def test_run_until_what_can_never_be_is_a_deadlock() -> None:
    net, _, _ = host_pair()
    with net, pytest.raises(DeadlockError, match="run: the predicate can't become true"):
        net.run(until=lambda: False)


def test_idle_is_when_nothing_is_under_way() -> None:
    net, a, b = host_pair(latency="1ms")
    with net:
        _server, client, flow = framed_flow(a, b)
        client.send(flow, b"x")
        net.run_until_idle()
        # The delayed acknowledgement was waited for; nothing else was.
        assert net.now_ns < 100_000_000
        before = net.now_ns
        net.run_until_idle()
        assert net.now_ns == before
        assert net.timers() == []


def test_idle_comes_after_what_is_on_schedule() -> None:
    with Network() as net:
        net.at("1min", lambda: None)
        net.run_until_idle()
        assert net.now_ns == 60 * 10**9
        net.at("3h", lambda: None, name="late")
        with pytest.raises(SimulationLimitError, match="1 callbacks are on schedule"):
            net.run_until_idle(limit="1s")


def test_what_keeps_a_network_busy_is_told() -> None:
    net, a, b = host_pair()
    with net:
        _server, client, flow = framed_flow(a, b)
        net.partition([a], [b])
        client.send(flow, b"x")
        with pytest.raises(SimulationLimitError) as error:
            net.run_until_idle(limit="10s")
        text = str(error.value)
        assert "still busy after 10s" in text
        assert "timers are armed (the first one on h1)" in text
        assert "retransmission in" in text
        assert "partition h1 <> h2 since" in text


def test_eventually_gives_the_value() -> None:
    net, a, b = host_pair(latency="1ms")
    with net:
        server, client, flow = framed_flow(a, b)
        client.send(flow, b"hello")
        message = net.eventually(server.try_recv, within="1s")
        assert message is not None
        assert message.data == b"hello"


def test_eventually_says_what_it_waited_for() -> None:
    net, _, b = host_pair()
    with net:
        b.attach().listen(b.ip, 7, protocol="tcp")
        with pytest.raises(EventuallyError) as error:
            net.eventually(lambda: 0, within="3s", message="the answer")
        text = str(error.value)
        assert text.startswith("the answer: not within 3s; its value is 0")
        assert "h2 10.0.0.2:7 LISTEN" in text
        assert isinstance(error.value, AssertionError)
        assert net.now_ns == 3 * 10**9


def test_timeouts_of_blocking_calls_are_virtual() -> None:
    net, a, _ = host_pair()
    with net:
        channel = a.attach()
        with pytest.raises(TimeoutError):
            channel.recv(timeout=3600)
        assert net.now_ns == 3600 * 10**9


# ---- who may let time pass -----------------------------------------------------------------------


def test_time_can_not_pass_inside_a_callback() -> None:
    net, a, _ = host_pair()
    with net:
        channel = a.attach()
        calls: list[Any] = [
            lambda: net.advance(1),
            lambda: net.run_until_idle(),
            lambda: net.eventually(lambda: True),
            lambda: channel.recv(timeout=1),
            lambda: a.stack.advance(1),
        ]
        for call in calls:
            net.at(net.now_ns, call, name="mine")
            with pytest.raises(ReentrantError, match="the callback mine is under way"):
                net.advance(1)
        net.at(net.now_ns, lambda: channel.try_recv())
        net.advance(1)


def test_time_can_not_pass_inside_a_predicate() -> None:
    net, a, _ = host_pair()
    with net:
        channel = a.attach()
        with pytest.raises(ReentrantError, match=r"the predicate .*is under way"):
            net.eventually(lambda: channel.recv(timeout=1))


def test_time_can_not_pass_inside_a_rule() -> None:
    net, a, b = host_pair()
    with net:
        channel = a.attach()
        b.attach().listen(b.ip, 7, protocol="tcp")
        channel.connect(a.ip, b.ip, 7, protocol="tcp")
        for call in (lambda: net.advance(1), lambda: channel.recv(timeout=1), channel.try_recv):

            def nosy(packet: Any, hop: Any, call: Any = call) -> None:
                call()

            with net.rule(nosy), pytest.raises(ReentrantError, match=r"rule .*nosy is under way"):
                channel.connect(a.ip, b.ip, 7, protocol="tcp")
        channel.connect(a.ip, b.ip, 7, protocol="tcp")


def test_a_host_can_not_crash_inside_a_rule() -> None:
    net, a, b = host_pair()
    with net:
        channel = a.attach()
        with (
            net.rule(lambda packet, hop: b.crash()),
            pytest.raises(ReentrantError, match="not inside a rule"),
        ):
            channel.connect(a.ip, b.ip, 7, protocol="tcp")
        assert b.up


def test_a_network_belongs_to_its_thread() -> None:
    net, a, _ = host_pair()
    with net:
        channel = a.attach()
        errors: list[str] = []

        def attempt(call: Any) -> None:
            with pytest.raises(ReentrantError) as error:
                call()
            errors.append(str(error.value))

        def other() -> None:
            attempt(lambda: net.advance(1))
            attempt(lambda: channel.recv(timeout=1))
            attempt(lambda: net.host("10.0.0.7"))
            attempt(net.close)

        thread = threading.Thread(target=other, name="intruder")
        thread.start()
        thread.join()
        assert len(errors) == 4
        assert all("belongs to the thread 'MainThread'" in text for text in errors)
        assert all("this is 'intruder'" in text for text in errors)


def test_a_deadlock_says_who_waits_for_what() -> None:
    net, a, b = host_pair()
    with net:
        server, client = b.attach(), a.attach()
        server.listen(b.ip, 7, protocol="tcp")
        client.connect(a.ip, b.ip, 7, protocol="tcp")
        net.run_until_idle()
        c = net.host("10.0.0.3")
        c.crash()
        net.partition([a], [c])
        b.pause()
        with pytest.raises(DeadlockError) as error:
            client.recv()
        text = str(error.value)
        for part in (
            "recv: nothing can ever happen",
            "h3 is down",
            "h2 is paused",
            "partition h1 <> h3 since",
            "h1 10.0.0.1:",
            "ESTABLISHED",
            "h2 10.0.0.2:7 LISTEN",
            "no timers",
        ):
            assert part in text, text


def test_work_without_end_at_one_moment_is_noticed() -> None:
    with Network() as net:
        a, b = net.raw_host("10.0.0.1"), net.raw_host("10.0.0.2")
        net.link(a, b, latency=0, bandwidth=None)

        def again() -> None:
            net.at(net.now_ns, again)

        again()
        with pytest.raises(SimulationLimitError, match="callbacks at one moment"):
            net.advance(1)


# ---- leaks ---------------------------------------------------------------------------------------


def test_what_is_left_open_is_told() -> None:
    net, a, b = host_pair()
    with net:
        server, client = b.attach(), a.attach()
        server.listen(b.ip, 7, protocol="tcp")
        client.connect(a.ip, b.ip, 7, protocol="tcp")
        client.close()
        found = net.leaks()
        assert "h2: 1 channels (lanes)" in found
        assert "h2: 1 listeners (listeners)" in found
        assert not any(text.startswith("h1") for text in found)
        server.close()
        assert net.leaks() == []


def test_connections_that_can_not_end_in_peace_end_all_the_same() -> None:
    net, a, b = host_pair()
    with net:
        server, client, flow = framed_flow(a, b)
        net.partition([a], [b])
        client.send(flow, b"x" * 100_000)
        client.close()
        server.close()
        assert net.leaks() == []


def test_hosts_that_are_at_rest_are_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[machnet.Stack] = []
    usage = machnet.Stack.usage
    monkeypatch.setattr(machnet.Stack, "usage", lambda stack: asked.append(stack) or usage(stack))
    with Network(record=0) as net:
        switch = net.switch()
        hosts = [net.host(f"10.0.0.{i}/24") for i in range(1, 51)]
        for host in hosts:
            net.link(host, switch)
        server = hosts[0].attach()
        server.listen(hosts[0].ip, 7, protocol="tcp")
        for host in hosts[1:]:
            with host.attach() as client:
                client.connect(host.ip, hosts[0].ip, 7, protocol="tcp")
        server.close()
        asked.clear()
        assert net.leaks() == []
    assert len(asked) < 20 * len(hosts)


# ---- many ----------------------------------------------------------------------------------------


def test_a_thousand_hosts_behind_a_switch() -> None:
    with Network(record=0) as net:
        switch = net.switch()
        hosts = [net.host(f"10.0.{i // 250}.{i % 250 + 1}/16") for i in range(1000)]
        for host in hosts:
            net.link(host, switch, latency="10us")
        small = {"tx_bufs": 64, "rx_bufs": 64, "flows_max": 64, "ctl_slots": 64}
        server = hosts[0].attach(rx_bufs=2048, flows_max=2048, tx_bufs=64)
        server.listen(hosts[0].ip, 7, protocol="tcp", backlog=2000)
        clients = [host.attach(**small) for host in hosts[1:]]
        for host, client in zip(hosts[1:], clients, strict=True):
            flow = client.connect(host.ip, hosts[0].ip, 7, protocol="tcp")
            client.send(flow, host.name.encode())
        names = {server.recv(timeout=1).data.decode() for _ in clients}
        assert names == {host.name for host in hosts[1:]}
        assert isinstance(clients[0], machnet.Channel)
