# SPDX-License-Identifier: MIT
"""`machnet.testing.TcpScript` against a stack on a hand-fed wire, with any initial numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from machnet import Stack
from machnet.sim import Wire
from machnet.testing import ExpectationError, Packet, RawPeer, TcpScript, icmp, pattern, tcp

TOP = 1 << 32

#: Initial sequence numbers of the stack and of the peer; the last ones wrap on the way.
ISNS = [(1000, 0x2000_0000), (0, 0), (TOP - 1, TOP - 1), (TOP - 1500, TOP - 3)]


class Bench:
    def __init__(self, isns: tuple[int, int], **settings: Any) -> None:
        self.stack = Stack(Wire(), ip="10.0.0.2/24", seed=7, isn=isns[0], **settings)
        self.peer = RawPeer(self.stack)
        self.isn = isns[1]
        self.listener = self.stack.socket()
        self.listener.bind(("10.0.0.2", 80))
        self.listener.listen(8)

    def script(self, **settings: Any) -> TcpScript:
        return self.peer.tcp(80, isn=self.isn, **settings)

    def open(self, **settings: Any) -> tuple[TcpScript, Any]:
        script = self.script(**settings).handshake()
        return script, self.listener.accept()[0]

    def connect(self, port: int) -> Any:
        sock = self.stack.socket()
        with pytest.raises(BlockingIOError):
            sock.connect(("10.0.0.1", port))
        return sock


@pytest.fixture(params=ISNS, ids=str)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(request.param)
    yield bench
    bench.stack.close()


def error_of(call: Callable[[], Any]) -> str:
    with pytest.raises(ExpectationError) as caught:
        call()
    return str(caught.value)


def test_an_active_open_data_and_both_closes(bench: Bench) -> None:
    c, sock = bench.open()
    assert (c.snd_nxt, c.rcv_nxt, c.remote_mss) == (1, 1, 1460)
    c.send_data(b"hello")
    assert sock.recv(100) == b"hello"
    sock.send(b"world!")
    (packet,) = c.expect_data(b"world!")
    assert (packet.seq, packet.ack, c.rcv_nxt) == (1, 6, 7)
    sock.shutdown(1)
    c.expect_fin(seq=7, ack=6)
    c.ack()
    c.fin()
    c.expect_ack(7)
    assert (c.snd_nxt, c.rcv_nxt) == (7, 8)
    c.expect_nothing("10ms")


def test_a_passive_open(bench: Bench) -> None:
    sock = bench.connect(7)
    c = bench.peer.tcp(sport=7, isn=bench.isn)
    assert c.handshake("passive", mss=1460) is c
    assert c.dport == sock.getsockname()[1]
    sock.send(b"ping")
    c.expect("PA", payload=b"ping", seq=1, ack=1)
    c.send("PA", b"pong", ack=5)
    assert sock.recv(10) == b"pong"
    c.rst()
    with pytest.raises(ConnectionResetError):
        sock.recv(1)


def test_options_are_offered_and_kept(bench: Bench) -> None:
    c = bench.script(mss=1200, wscale=5, sack_ok=True, ts=True, window=1 << 20)
    c.handshake(mss=1460, sack_ok=True, wscale=range(15), ts=lambda ts: ts[1] == 1000)
    sock = bench.listener.accept()[0]
    assert (c.shift_out, c.ts_on) == (5, True)
    assert c.shift_in > 0
    sock.send(bytes(3000))
    packets = c.expect_data(bytes(3000))
    assert [packet.length for packet in packets] == [1188, 1188, 624]
    assert all(packet.ts is not None for packet in packets)
    assert packets[-1].ts[0] == c.ts_recent
    assert c.window_of(packets[0]) == packets[0].window << c.shift_in
    acked = bench.peer.log[-1].packet
    assert (acked.window, acked.ts) == ((1 << 20) >> 5, (1000, c.ts_recent))
    (left, right) = (4, 10)
    c.send("A", pattern(3, 6), seq=left)
    c.expect("A", sack=[(left, right)], ack=1)


def test_only_what_the_stack_offers_is_answered(bench: Bench) -> None:
    bench.connect(7)
    c = bench.peer.tcp(sport=7, isn=bench.isn, wscale=3, sack_ok=True, ts=True)
    syn = c.accept()
    assert (syn.seq, syn.wscale is not None, c.shift_out, c.ts_on) == (0, True, 3, True)
    c.expect("A", ack=1)


def test_a_stack_without_options_gets_none() -> None:
    bench = Bench((5, 6), timestamps=False, sack=False, wscale=False)
    bench.connect(7)
    c = bench.peer.tcp(sport=7, wscale=3, sack_ok=True, ts=True).handshake("passive")
    answer = bench.peer.log[-2].packet
    assert (answer.flags, answer.wscale, answer.sack_ok, answer.ts) == ("SA", None, False, None)
    assert (c.shift_in, c.shift_out, c.ts_on) == (0, 0, False)
    bench.stack.close()


def test_numbers_stand_for_the_pattern(bench: Bench) -> None:
    c, sock = bench.open()
    sent = c.send_data(5000, mss=1000)
    assert [(packet.seq, packet.flags) for packet in sent] == [
        *((1 + 1000 * i, "A") for i in range(4)),
        (4001, "PA"),
    ]
    assert sock.recv(6000) == pattern(0, 5000)
    c.expect_ack(skip=True)
    sock.send(pattern(0, 4000))
    c.expect(payload=1460)
    c.expect(payload=1460)
    c.ack()
    c.expect_data(4000 - 2 * 1460)
    sock.send(b"not the pattern")
    assert "the data at 4001 are not the stream's" in error_of(lambda: c.expect(payload=15))


def test_repeats_are_passed_over_where_they_may_be(bench: Bench) -> None:
    c, sock = bench.open()
    sock.send(b"abc")
    c.expect_data(b"abc", ack=False)
    bench.peer.sleep("300ms")
    sock.send(b"def")
    c.expect_data(b"def", "2s", repeats=True)
    sock.send(b"ghi")
    c.expect_data(b"ghi", ack=False)
    bench.peer.sleep("300ms")
    assert "  tcp.seq  10      7" in error_of(lambda: c.expect_data(b"jkl"))


def test_forced_fields_and_numbers(bench: Bench) -> None:
    c, sock = bench.open()
    c.send("A", b"lost", csum=1)
    assert c.snd_nxt == 5
    c.expect_nothing("10ms")
    c.send("A", b"lost", seq=1)
    c.expect_ack(5)
    assert sock.recv(9) == b"lost"
    c.send("A", b"old", seq=-9)
    c.expect_ack(5)
    assert c.snd_nxt == 5
    c.send("A", options=[("nop", None)] * 4, ttl=9)
    assert bench.peer.log[-1].packet.doff == 6


def test_two_connections_of_one_peer_do_not_mix(bench: Bench) -> None:
    (one, first), (two, second) = bench.open(), bench.open()
    assert (one.sport, two.sport) == (49152, 49153)
    first.send(b"first")
    second.send(b"second")
    two.expect_data(b"second")
    two.expect_nothing("1ms")
    one.expect_data(b"first")


def test_errors_show_relative_numbers(bench: Bench) -> None:
    c, sock = bench.open()
    sock.send(b"abc")
    text = error_of(lambda: c.expect("A", seq=2))
    assert "  tcp.seq    2       1" in text
    assert text.splitlines()[-1].endswith(", seq 1:4, ack 1, win 65535, length 3")
    assert "Flags [S.], seq 0, ack 1," in text
    assert "nothing came within 10ms" in error_of(lambda: c.expect("A", "10ms"))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (b"abx", "octet 2 of the data differs: expected 0x78, got 0x63"),
        (b"ab", "tcp.length  1 to 2  3"),
        (b"abcd", "nothing came within"),
    ],
)
def test_wrong_data(wanted: bytes, said: str) -> None:
    bench = Bench((1, 2))
    c, sock = bench.open()
    sock.send(b"abc")
    assert said in error_of(lambda: c.expect_data(wanted, "10ms"))
    bench.stack.close()


def test_a_reset_and_an_icmp_error_about_a_packet(bench: Bench) -> None:
    bench.listener.close()
    c = bench.script()
    c.send("S")
    c.expect_rst(ack=1)
    sock = bench.connect(9)
    d = bench.peer.tcp(sport=9)
    syn = d.expect("S")
    bench.peer.answer(syn, icmp("unreachable", 3))
    with pytest.raises(ConnectionRefusedError):
        sock.send(b"")


def test_a_script_needs_a_port() -> None:
    bench = Bench((1, 2))
    with pytest.raises(TypeError, match="needs dport"):
        bench.peer.tcp()
    with pytest.raises(ValueError, match="opening='sideways'"):
        bench.script().handshake("sideways")  # type: ignore[arg-type]
    bench.stack.close()


def test_view_leaves_others_alone(bench: Bench) -> None:
    c = bench.script()
    other = Packet(tcp("A", seq=9, sport=1, dport=2).build())
    assert c.view(other) is other
    ping = Packet(icmp(8).build())
    assert c.view(ping) is ping


def test_the_pattern_has_no_short_period() -> None:
    whole = pattern(0, 1 << 18)
    assert whole[: 1 << 17] == whole[1 << 17 :]
    assert pattern(70_000, 100) == whole[70_000:70_100]
    assert pattern((1 << 17) - 5, 10) == whole[(1 << 17) - 5 : (1 << 17) + 5]
    assert all(whole[:1460] != whole[at : at + 1460] for at in range(1, 65_536))
