# SPDX-License-Identifier: MIT
"""Suite of network faults, J6 and J7: at every step of a conversation, and around every timer.

After each fault the conversation goes on by itself, in the time that its timers say.
"""

from __future__ import annotations

import itertools
import os
import socket as posix
from typing import Any

import pytest
from sanitized import fewer
from suite_talk import MS, SECOND, SocketEnd, Talk, ends_met, noise

import machnet
from machnet.sim import DROP, PASS, Hop, Network, Partition
from machnet.sim.faults import Drop
from machnet.testing import Packet

NIGHTLY = "MACHNET_NIGHTLY" in os.environ
DIRECTIONS = ("h1>h2", "h2>h1")
#: More frames than the conversation has, in either direction.
FRAMES = 12
CLOSES = ("client", "server", "both")
US = 1000


def short_talk(net: Network, closes: str, within_ns: int, **settings: Any) -> int:
    """Open, 4000 bytes each way, close: about ten frames each way."""
    a, b = net.hosts or (net.host("10.0.0.1", **settings), net.host("10.0.0.2", **settings))
    if not net.links:
        net.link(a, b, latency="1ms")
    talk = Talk(net, a, b, noise(4000), noise(4000, 1), closes=closes)
    took = talk.run(within_ns)
    talk.leaves_nothing()
    return took


def with_drops(drops: list[Drop], closes: str, within_ns: int) -> None:
    with Network(6) as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        net.link(a, b, latency="1ms")
        net.apply(drops)
        short_talk(net, closes, within_ns)


# ---- J6: single frames, pairs of frames, and all from one on -------------------------------------


@pytest.mark.parametrize("closes", CLOSES)
def test_j6_each_frame_lost(closes: str) -> None:
    for name in DIRECTIONS:
        for nth in range(FRAMES):
            # The slowest: an ARP request or a SYN, of which each is sent again after a second.
            with_drops([Drop(name, nth)], closes, 3 * SECOND)


@pytest.mark.parametrize("closes", CLOSES)
def test_j6_each_pair_of_frames_lost(closes: str) -> None:
    frames = [Drop(name, nth) for name in DIRECTIONS for nth in range(FRAMES)]
    for pair in itertools.islice(itertools.combinations(frames, 2), None, None, fewer(1, 3)):
        # Two SYNs: 1 s, then 2 s; or the SYN and, with the timeout of 3 s, what comes then.
        with_drops(list(pair), closes, 8 * SECOND)


@pytest.mark.skipif(not NIGHTLY, reason="takes a minute: set MACHNET_NIGHTLY to run it")
@pytest.mark.parametrize("closes", CLOSES)
def test_j6_any_three_frames_lost(closes: str) -> None:
    frames = [Drop(name, nth) for name in DIRECTIONS for nth in range(FRAMES)]
    for three in itertools.combinations(frames, 3):
        with_drops(list(three), closes, 20 * SECOND)


class Blackhole:
    """Swallows everything of a host from its ``nth`` TCP segment on, for some time."""

    def __init__(self, sender: Any, nth: int, for_ns: int) -> None:
        self.sender, self.nth, self.for_ns = sender, nth, for_ns
        self.seen = 0
        self.began_ns: int | None = None

    def __call__(self, packet: Packet, hop: Hop) -> Any:
        if hop.sender is not self.sender:
            return PASS
        if self.began_ns is None and packet.tcp is not None:
            if self.seen == self.nth:
                self.began_ns = hop.now_ns
            self.seen += 1
        if self.began_ns is None or hop.now_ns >= self.began_ns + self.for_ns:
            return PASS
        return DROP


@pytest.mark.parametrize("for_ms", [50, 500, 5_000, 40_000])
@pytest.mark.parametrize("closes", CLOSES)
def test_j6_one_way_blackhole_at_every_step(closes: str, for_ms: int) -> None:
    for way in range(2):
        for nth in range(FRAMES):
            with Network(6) as net:
                a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
                net.link(a, b, latency="1ms")
                hole = Blackhole((a, b)[way], nth, for_ms * MS)
                with net.rule(hole):
                    # Timeouts double: it may be as long again until the next try. An ARP request
                    # that was lost is sent again for three seconds, then with the next segment.
                    short_talk(net, closes, 2 * for_ms * MS + 6 * SECOND)


def test_j6_the_listener_gives_up_a_handshake_that_is_never_finished() -> None:
    """The client sees the connection open; the server, after 63 s, does not: both are told."""
    with Network(6) as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        net.link(a, b, latency="1ms")
        with net.rule(Blackhole(a, 1, 100 * SECOND)):
            talk = Talk(net, a, b, noise(100))
            assert not ends_met(net, talk.ends, 300 * SECOND)
        assert isinstance(talk.client.error, machnet.FlowResetError)
        assert not talk.server.over
        assert [info.state for info in b.sockets()] == ["LISTEN"]
        talk.leaves_nothing()


def test_a_finished_stream_has_nothing_in_its_queue() -> None:
    with Network(6) as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        net.link(a, b, latency="1ms")
        talk = Talk(net, a, b, noise(100), noise(100), closes="client")
        talk.client.pump()
        net.advance("1s")
        info = a.sockets()[0]
        assert (info.state, info.send_queue, info.recv_queue) == ("FIN-WAIT-2", 0, 0)
        talk.run(SECOND)
        assert a.sockets()[0].state == "TIME-WAIT"
        assert a.sockets()[0].send_queue == 0
        talk.leaves_nothing()


# ---- J7: partitions around each timer ------------------------------------------------------------


def around(*moments_ns: int) -> list[int]:
    """Lengths right before, at and right behind some moments."""
    steps = (-1 * MS, -2 * US, -1 * US, 0, 1 * US, 2 * US, 1 * MS)
    return [moment + step for moment in moments_ns for step in steps]


def established(net: Network, **settings: Any) -> tuple[Any, Any, Talk]:
    """Two hosts, 1 ms apart, and a conversation whose handshake is over; nothing is said yet."""
    a, b = net.host("10.0.0.1", **settings), net.host("10.0.0.2", **settings)
    net.link(a, b, latency="1ms", bandwidth=None)
    talk = Talk(net, a, b, b"", closes="client")
    talk.run_until_accepted()
    net.run_until_idle()
    return a, b, talk


def say(talk: Talk, data: bytes) -> None:
    """Part of what the client says, before the conversation runs by itself."""
    assert talk.client_channel.send(talk.client.flow, data) == len(data)
    talk.client.data += data
    talk.client.sent += len(data)
    talk.up += data


@pytest.mark.parametrize("nth", range(1, 5))
def test_j7_retransmission(nth: int) -> None:
    """A partition ends around the n-th timeout: the first try behind its end arrives.

    The fifth (after R1) first asks for the neighbour's address, which may cost a second more.
    """
    tries = [200 * MS * (2**n - 1) for n in range(nth + 3)]
    for lasts, way in itertools.product(around(tries[nth]), ("both", "there", "back")):
        with Network(7) as net:
            a, b, talk = established(net)
            began = net.now_ns
            ends = ("h2", "h1") if way == "back" else ("h1", "h2")
            net.apply([Partition(*ends, at=began, for_=lasts, one_way=way != "both")])
            say(talk, b"x")
            net.run(until=lambda b=b: b.sockets()[0].recv_queue)  # type: ignore[misc]
            late = net.now_ns - began - MS
            # Timers have whole microseconds.
            assert any(t <= late <= t + US for t in tries), (lasts, way, late)
            if way == "back":
                assert late == 0
            else:
                assert lasts <= late
                assert not [t for t in tries if lasts < t < late - US]
            net.run_until_idle()
            assert a.sockets()[0].send_queue == 0
            assert net.now_ns - began < 2 * lasts + SECOND
            talk.run(10 * SECOND)
            talk.leaves_nothing()


def test_j7_delayed_acknowledgement() -> None:
    delayed = 40 * MS
    for lasts, way in itertools.product(around(0, delayed, 200 * MS), ("both", "back")):
        if lasts <= 0:
            continue
        with Network(7) as net:
            a, _, talk = established(net)
            began = net.now_ns + MS
            net.apply([Partition("h2", "h1", at=began, for_=lasts, one_way=way == "back")])
            say(talk, b"x")
            net.run_until_idle()
            info = a.sockets()[0]
            assert info.send_queue == 0
            if lasts < delayed - US:
                assert info.retransmits == 0
            elif delayed + US < lasts < 190 * MS:
                assert info.retransmits == 1
            assert net.now_ns - began < SECOND
            talk.run(10 * SECOND)
            talk.leaves_nothing()


@pytest.mark.parametrize("nth", range(4))
def test_j7_persist(nth: int) -> None:
    """The window opens while nothing gets through: the next probe finds it open."""
    for offset, way in itertools.product(around(0), ("both", "there", "back")):
        with Network(7) as net:
            a, b, talk = established(net, rcv_buf_bytes=4096)
            net.run(until=net.now_ns)
            talk.up = talk.client.data = noise(50_000)
            talk.client.pump()
            net.advance("50ms")
            assert a.sockets()[0].snd_wnd < 1448
            assert b.sockets()[0].recv_queue > 0
            for _ in range(nth):
                net.advance(max(a.sockets()[0].timer_ns - net.now_ns, 0) + 10 * MS)
            probe_at = a.sockets()[0].timer_ns
            began = net.now_ns
            ends = ("h2", "h1") if way == "back" else ("h1", "h2")
            lasts = probe_at + offset - began
            net.apply([Partition(*ends, at=began, for_=lasts, one_way=way != "both")])
            # From here on the server reads.
            talk.run(3 * lasts + 10 * SECOND)
            assert a.stack.stats()["tcp_probes"] + a.stack.stats()["tcp_retransmits"] >= nth
            talk.leaves_nothing()


def test_j7_keep_alive() -> None:
    """Probes at 10, 15 and 20 s, the end at 25 s; the last one that gets through saves it."""
    for lasts in around(10 * SECOND, 15 * SECOND, 20 * SECOND, 25 * SECOND):
        with Network(7) as net:
            a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
            net.link(a, b, latency="1ms", bandwidth=None)
            listener, client = b.socket(), a.socket()
            listener.bind((b.ip, 80))
            listener.listen()
            client.connect_ex((b.ip, 80))
            net.run_until_idle()
            server, _ = listener.accept()
            for sock in (client, server):
                sock.setsockopt(posix.SOL_SOCKET, posix.SO_KEEPALIVE, 1)
                sock.setsockopt(posix.IPPROTO_TCP, posix.TCP_KEEPIDLE, 10)
                sock.setsockopt(posix.IPPROTO_TCP, posix.TCP_KEEPINTVL, 5)
                sock.setsockopt(posix.IPPROTO_TCP, posix.TCP_KEEPCNT, 3)
            began = net.now_ns
            net.apply([Partition("h1", "h2", at=began, for_=lasts)])
            net.advance("40s")
            if lasts < 20 * SECOND - 10 * MS:
                ends = [SocketEnd(client, noise(5000)), SocketEnd(server, noise(6000))]
                assert ends_met(net, ends, 5 * SECOND)
                assert [len(end.got) for end in ends] == [6000, 5000]
            elif lasts > 20 * SECOND + 10 * MS:
                for sock in (client, server):
                    with pytest.raises(TimeoutError):
                        sock.recv(1)
                    sock.close()
            else:  # what is said at the very moment may be lost; then both are told
                for sock in (client, server):
                    sock.close()
            listener.close()


@pytest.mark.parametrize("closes", CLOSES)
def test_j7_time_wait(closes: str) -> None:
    """The last acknowledgement is lost, until TIME-WAIT (1 s) is nearly, just, or long over."""
    for lasts in around(200 * MS, 600 * MS, SECOND, 1_200 * MS, 1_400 * MS, 2 * SECOND):
        with Network(7) as net:
            a, b = net.host("10.0.0.1", msl_ms=500), net.host("10.0.0.2", msl_ms=500)
            net.link(a, b, latency="1ms", bandwidth=None)
            later = b if closes == "client" else a
            hole: list[int] = []

            def swallow(
                packet: Packet,
                hop: Hop,
                hole: list[int] = hole,
                later: Any = later,
                lasts: int = lasts,
            ) -> Any:
                if hop.sender is later and packet.tcp is not None and "F" in packet.tcp.flags:
                    hole.append(hop.now_ns)
                if hop.sender is not later and hole and hop.now_ns < hole[0] + lasts:
                    return DROP
                return PASS

            with net.rule(swallow):
                short_talk(net, closes, 10 * SECOND)
            assert hole


def test_j7_user_timeout() -> None:
    """Tries at 0.2, 0.6 and 1.4 s, the end at 2 s: what heals before the last one is alive."""
    for lasts in around(600 * MS, 1_400 * MS, 2 * SECOND, 2_400 * MS):
        with Network(7) as net:
            a, b, talk = established(net, user_timeout_ms=2000)
            net.apply([Partition("h1", "h2", at=net.now_ns, for_=lasts)])
            say(talk, noise(100))
            if lasts < 1_400 * MS - US:
                talk.run(10 * SECOND)
            elif lasts > 1_400 * MS + US:
                began = net.now_ns
                with pytest.raises(machnet.FlowTimeoutError):
                    talk.client_channel.read(talk.client.flow, timeout=60)
                assert 2 * SECOND <= net.now_ns - began <= 2 * SECOND + US
                net.advance("3s")
                # The other side learns of it as soon as it says something.
                talk.server_channel.send(talk.server.flow, b"?")
                with pytest.raises(machnet.FlowResetError):
                    talk.server_channel.read(talk.server.flow, timeout=60)
                assert [info.state for info in a.sockets() + b.sockets()] == ["LISTEN"]
            talk.leaves_nothing()
