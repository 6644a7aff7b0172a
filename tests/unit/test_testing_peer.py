# SPDX-License-Identifier: MIT
"""The scripted peer of `machnet.testing`, against a stack on a hand-fed wire in virtual time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from machnet import Stack
from machnet.sim import Network, Wire
from machnet.testing import (
    ANY,
    ExpectationError,
    Packet,
    RawPeer,
    TapPort,
    WirePort,
    arp,
    eth,
    icmp,
    ip,
    noise,
    tcp,
    udp,
)
from machnet.testing.ports import Port, as_port

MS = 1_000_000


@pytest.fixture
def stack() -> Iterator[Stack]:
    with Stack(Wire(), ip="10.0.0.2/24", seed=7, isn=1000) as stack:
        yield stack


@pytest.fixture
def peer(stack: Stack) -> RawPeer:
    return RawPeer(stack)


def listener(stack: Stack, port: int = 80) -> Any:
    sock = stack.socket()
    sock.bind(("10.0.0.2", port))
    sock.listen(8)
    return sock


class Recorder:
    """A port that plays back frames at given times, and keeps what is sent."""

    ip, mac, remote_ip = "10.0.0.1", "02:00:00:00:00:01", "10.0.0.2"

    def __init__(self, *frames: tuple[int, Any]) -> None:
        self.now_ns = 0
        self.frames = [(t_ns, bytes(frame)) for t_ns, frame in frames]
        self.sent: list[Packet] = []
        self.neighbors = {"10.0.0.2": "02:00:00:00:00:02"}

    def send(self, frame: bytes) -> None:
        self.sent.append(Packet(frame, self.now_ns))

    def recv(self, within_ns: int) -> tuple[int, bytes] | None:
        end = self.now_ns + within_ns
        if self.frames and self.frames[0][0] <= end:
            self.now_ns = max(self.now_ns, self.frames[0][0])
            return self.frames.pop(0)
        self.now_ns = end
        return None


def got(template: Any, **fields: Any) -> bytes:
    """A frame from the other side."""
    there = {"src": "10.0.0.2", "dst": "10.0.0.1", "sender_ip": "10.0.0.2"}
    there |= {"eth_src": "02:00:00:00:00:02", "eth_dst": "02:00:00:00:00:01"}
    return bytes(template.build({**there, "target_ip": "10.0.0.1"}, **fields))


def error_of(call: Any) -> ExpectationError:
    with pytest.raises(ExpectationError) as caught:
        call()
    return caught.value


class TestWithAStack:
    def test_a_ping_is_answered(self, peer: RawPeer) -> None:
        asked = peer.send(icmp("echo-request", 0, id=7, seq=1, payload=b"hello"))
        assert (asked.src, asked.dst, asked.eth_dst) == (
            "10.0.0.1",
            "10.0.0.2",
            peer.neighbors["10.0.0.2"],
        )
        answer = peer.expect(icmp("echo-reply", 0, id=7, seq=1, payload=b"hello"), within="1ms")
        assert (answer.src, answer.t_ns, peer.now_ns) == ("10.0.0.2", 0, 0)
        kinds = [(seen.way, seen.packet.kind) for seen in peer.log]
        assert kinds == [(">", "icmp"), ("<", "arp"), (">", "arp"), ("<", "icmp")]

    def test_the_peer_answers_arp(self, stack: Stack, peer: RawPeer) -> None:
        sock = stack.socket()
        with pytest.raises(BlockingIOError):
            sock.connect(("10.0.0.1", 9))
        syn = peer.expect(tcp("S", dport=9, dst="10.0.0.1"), within="1ms")
        assert syn.eth_dst == peer.mac
        assert [seen.packet.kind for seen in peer.log] == ["arp", "arp", "tcp"]

    def test_unless_it_shall_not(self, stack: Stack, peer: RawPeer) -> None:
        peer.answers_arp = False
        with pytest.raises(BlockingIOError):
            stack.socket().connect(("10.0.0.1", 9))
        asked = peer.expect(arp("request", target_ip="10.0.0.1"), within=0)
        peer.expect_nothing("10ms")
        peer.answer(asked, arp("reply", sender_mac="02:00:00:00:00:77"))
        assert peer.expect(tcp("S"), within="1ms").eth_dst == "02:00:00:00:00:77"

    def test_an_answered_request_can_be_expected_too(self, stack: Stack, peer: RawPeer) -> None:
        with pytest.raises(BlockingIOError):
            stack.socket().connect(("10.0.0.1", 9))
        peer.expect(arp("request", target_ip="10.0.0.1"))
        peer.expect(tcp("S"))

    def test_the_peer_asks_for_an_unknown_neighbour(self, stack: Stack, peer: RawPeer) -> None:
        peer.neighbors.clear()
        assert peer.resolve("10.0.0.2") == stack.mac
        peer.expect_nothing("10ms")
        assert "nothing came within 1ms" in str(error_of(lambda: peer.resolve("10.0.0.77", "1ms")))
        with pytest.raises(ExpectationError):
            peer.send(udp(dst="10.0.0.78"))

    def test_a_refused_connection(self, peer: RawPeer) -> None:
        syn = peer.send(tcp("S", sport=5000, dport=81, seq=77))
        peer.expect(tcp("RA", sport=81, dport=5000, seq=0, ack=78), within=0)
        assert syn.seq == 77

    def test_a_field_is_forced_for_one_sending(self, peer: RawPeer) -> None:
        listening = tcp("S", dport=81, seq=77)
        peer.send(listening, csum=0xBAD)
        peer.expect_nothing("1s")
        peer.send(listening)
        peer.expect(tcp("RA"))

    def test_answer_follows_the_packet(self, stack: Stack, peer: RawPeer) -> None:
        sock = stack.socket()
        with pytest.raises(BlockingIOError):
            sock.connect(("10.0.0.1", 9))
        syn = peer.expect(tcp("S"))
        peer.answer(syn, icmp("unreachable", 1))
        peer.answer(syn, tcp("SA", seq=5, mss=1000))
        ack = peer.expect(tcp("A", seq=syn.seq + 1, ack=6))
        peer.answer(ack, tcp("RA"))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 104

    def test_waiting_goes_from_timer_to_timer(self, stack: Stack, peer: RawPeer) -> None:
        listener(stack)
        peer.send(tcp("S", seq=1, sport=5000))
        first = peer.expect(tcp("SA"), within=0)
        again = peer.expect(tcp("SA", seq=first.seq), within="2s", after="999ms")
        assert (again.t_ns or 0) - (first.t_ns or 0) in range(1000 * MS, 1001 * MS)
        assert peer.now_ns - (again.t_ns or 0) in range(MS)

    def test_sleep_keeps_what_comes(self, stack: Stack, peer: RawPeer) -> None:
        listener(stack)
        peer.send(tcp("S", seq=1, sport=5000))
        peer.sleep("1500ms")
        assert peer.now_ns == 1_500 * MS
        assert [packet.flags for packet in peer.drain()] == ["SA", "SA"]
        assert [packet.flags for packet in peer.drain("2s")] == ["SA"]

    def test_the_port_of_a_stack(self, stack: Stack) -> None:
        assert isinstance(as_port(stack), WirePort)
        assert isinstance(as_port(stack), Port)
        assert (WirePort(stack).ip, WirePort(stack, "10.0.0.9").ip) == ("10.0.0.1", "10.0.0.9")
        with Stack(Wire(), ip="10.0.0.1/24") as other:
            assert WirePort(other).ip == "10.0.0.2"
        with pytest.raises(TypeError, match="is no port"):
            RawPeer(object())


def test_a_raw_host_of_a_network_is_a_port() -> None:
    with Network(seed=3) as net:
        host, raw = net.host("10.0.0.2"), net.raw_host("10.0.0.9")
        net.link(host, raw, latency="50us")
        peer = RawPeer(raw, remote_ip="10.0.0.2")
        asked = peer.send(icmp("echo-request", id=1))
        assert asked.eth_dst == host.mac
        answer = peer.expect(icmp("echo-reply", id=1), within="1ms", after="90us")
        assert (answer.t_ns or 0) - (asked.t_ns or 0) in range(100_000, 102_000)
        listening = host.socket()
        listening.bind(("10.0.0.2", 80))
        listening.listen(1)
        c = peer.tcp(80).handshake()
        net.advance("1ms")
        listening.accept()[0].send(b"hello")
        c.expect_data(b"hello")
        peer.expect_nothing("1s")


class TestExpectations:
    def test_a_mismatch_is_a_table_with_the_packets(self) -> None:
        peer = RawPeer(Recorder((2 * MS, got(tcp("RA", seq=5, mss=1400)))))
        peer.send(tcp("S", sport=1, dport=2))
        error = error_of(lambda: peer.expect(tcp("SA", mss=1460), within="1s"))
        assert str(error).splitlines() == [
            "expected tcp(flags='SA', mss=1460)",
            "  field      wanted  got",
            "  tcp.flags  SA      RA",
            "  tcp.mss    1460    1400",
            "the last 2 packets (> sent, < received):",
            "       0.000 ms > 10.0.0.1.1 > 10.0.0.2.2: Flags [S], seq 0, win 65535, length 0",
            (
                "       2.000 ms < 10.0.0.2.49152 > 10.0.0.1.80: Flags [R.], seq 5, ack 0, win 65535, "
                "options [mss 1400], length 0"
            ),
        ]
        assert error.packet is not None
        assert [m.field for m in error.mismatches] == ["tcp.flags", "tcp.mss"]
        assert [seen.way for seen in error.seen] == [">", "<"]

    def test_silence_is_told_with_its_length(self) -> None:
        peer = RawPeer(Recorder())
        error = error_of(lambda: peer.expect(tcp("S"), within="20ms"))
        assert str(error) == (
            "expected tcp(flags='S'), but nothing came within 20ms\nno packets so far"
        )
        assert (error.packet, peer.now_ns) == (None, 20 * MS)

    def test_too_early(self) -> None:
        peer = RawPeer(Recorder((2 * MS, got(tcp("A")))))
        error = error_of(lambda: peer.expect(tcp("A"), within="1s", after="3ms"))
        assert [(m.field, m.wanted, m.got) for m in error.mismatches] == [
            ("time", "after 3ms", "2ms")
        ]

    def test_too_late(self) -> None:
        peer = RawPeer(Recorder((2 * MS, got(tcp("A")))))
        error_of(lambda: peer.expect(tcp("A"), within="1999us"))
        peer.expect(tcp("A"), within="1us")

    def test_skip_takes_the_first_that_matches(self) -> None:
        frames = [(i, got(tcp("A", seq=i))) for i in range(5)]
        peer = RawPeer(Recorder(*frames))
        assert peer.expect(tcp(seq=3), skip=True).t_ns == 3
        error = error_of(lambda: peer.expect(tcp(seq=9), "1ms", skip=True))
        assert "nothing like it came within 1ms; the last packet:" in str(error)
        assert [m.got for m in error.mismatches] == ["4"]

    def test_ignored_packets_are_not_looked_at(self) -> None:
        frames = [got(eth(0x86DD)), got(ip(2)), got(udp()), got(tcp("A"))]
        peer = RawPeer(Recorder(*((0, frame) for frame in frames)))
        assert [noise(Packet(frame)) for frame in frames] == [True, True, False, False]
        peer.expect(tcp("A"), ignore=[udp()])
        peer.expect_nothing("1ms")
        assert [seen.note for seen in peer.log] == ["ignored", "ignored", "", ""]
        assert "ethertype 0x86dd, length 0 (ignored)" in peer.history()
        loud = RawPeer(Recorder(*((0, frame) for frame in frames)), ignore=[])
        loud.expect(eth(0x86DD))

    def test_expect_nothing(self) -> None:
        peer = RawPeer(Recorder((3 * MS, got(tcp("A"))), (9 * MS, got(udp()))))
        peer.expect_nothing("2ms")
        error = error_of(lambda: peer.expect_nothing("2ms"))
        assert str(error).startswith(
            "expected nothing for 2ms; after 1ms came 10.0.0.2.49152 > 10.0.0.1.80: Flags [.]"
        )
        peer.expect_nothing("7ms", ignore=[udp()])
        assert peer.now_ns == 10 * MS

    def test_expect_any_of(self) -> None:
        peer = RawPeer(Recorder((1, got(tcp("SA"))), (2, got(tcp("A")))))
        index, packet = peer.expect_any_of(tcp("R"), tcp("SA"), within="1ms")
        assert (index, packet.flags) == (1, "SA")
        error = error_of(lambda: peer.expect_any_of(tcp("R"), udp(), within="1ms"))
        assert "expected any of tcp(flags='R'), udp()\ntcp(flags='R')\n  field " in str(error)
        error = error_of(lambda: peer.expect_any_of(tcp("R"), udp(), within="1ms"))
        assert "nothing came within 1ms" in str(error)

    def test_expect_unordered(self) -> None:
        frames = [got(tcp("A", seq=2)), got(udp()), got(tcp("A", seq=1)), got(tcp("A", seq=1))]
        peer = RawPeer(Recorder(*((i, frame) for i, frame in enumerate(frames))))
        one, two, three = peer.expect_unordered(tcp(seq=1), tcp("A"), udp(), within="1ms")
        assert (one.t_ns, two.t_ns, three.t_ns) == (2, 0, 1)
        error_of(lambda: peer.expect_unordered(tcp(seq=1), tcp(seq=1), within="1ms"))

    def test_a_wrong_checksum_is_a_mismatch(self) -> None:
        frames = [got(udp(b"x", csum=0xBAD)), got(udp(b"x", csum=0xBAD))]
        peer = RawPeer(Recorder(*((0, frame) for frame in frames)))
        error = error_of(lambda: peer.expect(udp()))
        assert "udp.csum  correct  0x0bad, which is wrong" in str(error)
        peer.expect(udp(csum=ANY))

    def test_what_is_not_among_is_kept(self) -> None:
        frames = [got(udp()), got(tcp("A")), got(udp())]
        peer = RawPeer(Recorder(*((0, frame) for frame in frames)))
        peer.expect(tcp("A"), among=tcp())
        peer.expect_nothing("1ms", among=tcp())
        assert [packet.kind for packet in peer.drain()] == ["udp", "udp"]


class TestSending:
    def test_frames_and_packets_go_as_they_are(self) -> None:
        port = Recorder()
        peer = RawPeer(port)
        peer.send(b"\x01\x02")
        packet = peer.make(udp(b"hi"))
        peer.send(packet)
        peer.send(packet, ttl=3)
        assert [bytes(sent) for sent in port.sent] == [
            b"\x01\x02",
            bytes(packet),
            bytes(packet.with_(ttl=3)),
        ]

    def test_addresses_are_filled_in(self) -> None:
        port = Recorder()
        peer = RawPeer(port, ip="10.0.0.5", mac="02:00:00:00:00:05")
        peer.send(udp(dst="10.0.0.2"))
        peer.send(arp("request", target_ip="10.0.0.9"))
        peer.send(eth(0x88B5, eth_dst="ff:ff:ff:ff:ff:ff"))
        sent = port.sent
        assert (sent[0].src, sent[0].eth_src) == ("10.0.0.5", "02:00:00:00:00:05")
        assert sent[0].eth_dst == "02:00:00:00:00:02"
        assert (sent[1].eth_dst, sent[1].sender_ip) == ("ff:ff:ff:ff:ff:ff", "10.0.0.5")
        assert (sent[1].sender_mac, sent[1].target_mac) == (
            "02:00:00:00:00:05",
            "00:00:00:00:00:00",
        )
        assert sent[2].eth_src == "02:00:00:00:00:05"

    def test_a_packet_needs_to_know_where_to(self) -> None:
        port = Recorder()
        port.remote_ip = None  # type: ignore[assignment]
        with pytest.raises(ValueError, match=r"udp\(\): it needs dst, or the peer a remote_ip"):
            RawPeer(port).send(udp())

    def test_answers_to_a_udp_packet(self) -> None:
        port = Recorder()
        asked = Packet(got(udp(b"q", sport=5, dport=53)))
        peer = RawPeer(port)
        peer.answer(asked, udp(b"a"))
        peer.answer(asked, icmp("unreachable", 3))
        peer.answer(Packet(got(icmp("echo-request", id=4, seq=5, payload=b"abc"))), icmp())
        answer, error, echo = port.sent
        assert (answer.sport, answer.dport, answer.dst, answer.payload) == (53, 5, "10.0.0.2", b"a")
        assert error.quoted is not None
        assert (error.quoted.dport, len(error.quoted)) == (53, 28)
        assert (echo.icmp_type, echo.icmp_id, echo.icmp_seq, echo.payload) == (0, 4, 5, b"abc")


def test_a_tap_port_wants_a_tap_without_offloads() -> None:
    offloading, plain = Wire(checksums=True), Wire()
    with pytest.raises(ValueError, match="open it with offload=False"):
        TapPort(offloading, "10.0.0.1")
    offloading.close()
    plain.close()
