# SPDX-License-Identifier: MIT
"""The invariants that a simulated network is held to, and that each of them can be violated."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest
from check_kit import CheckedNode, Poke, build_poke, stats_of
from simnet_kit import MS, Host, Net, S
from tcp_segment import build_eth, build_ip, build_tcp, flag_bits

import machnet
from machnet._native import ffi, lib
from machnet.sim import Network, replace
from machnet.testing import Packet

PERCENT = 10_000_000
A, B = "10.0.0.1", "10.0.0.2"
MAC = bytes(6)


def stats(net: Net) -> Any:
    return stats_of(lib.mn_simnet_check(net.c))


def checked(seed: int = 1, **config: int) -> Net:
    net = Net(seed, **config)
    assert lib.mn_simnet_checks(net.c, True) == 0
    return net


# --- nothing to find ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_bad_network_violates_nothing(seed: int) -> None:
    rng = random.Random(seed)
    with checked(seed) as net:
        a, b = net.pair(
            latency_ns=MS,
            jitter_ns=MS // 2,
            loss_ppb=(0, 2, 8)[seed % 3] * PERCENT,
            reorder_ppb=5 * PERCENT,
            reorder_ns=3 * MS,
            duplicate_ppb=3 * PERCENT,
            corrupt_ppb=PERCENT,
        )
        b.listen(7)
        flow = a.connect(b, 7)
        total = 0
        for _ in range(40):
            data = rng.randbytes(rng.randrange(60_000))
            a.send(flow, data)
            assert b.recv() == data, net.error
            total += len(data)
        assert net.advance(10 * S) == 0
        assert lib.mn_simnet_check_all(net.c) == 0
        seen = stats(net)
        assert seen.delivered == total
        assert seen.compared > 0
        assert seen.walks > 0
        assert seen.looks > 0
        assert seen.unfollowed == 0


def test_checks_may_begin_and_end_at_any_time() -> None:
    with checked() as net:
        a, b = net.pair(loss_ppb=5 * PERCENT)
        b.listen(7)
        flow = a.connect(b, 7)
        for i in range(30):
            assert lib.mn_simnet_checks(net.c, i % 3 != 0) == 0
            a.send(flow, bytes([i]) * 30_000)
            assert b.recv() == bytes([i]) * 30_000
        assert stats(net).frames > 0


def test_a_crash_is_no_violation() -> None:
    with checked() as net:
        a, b = net.pair()
        for _ in range(3):
            b.listen(7)
            flow = a.connect(b, 7)
            a.send(flow, b"x" * 50_000)
            assert b.recv() == b"x" * 50_000
            a.send(flow, b"y" * 50_000)
            b.end()
            assert lib.mn_simnet_bind(net.c, b.node, ffi.NULL) == 0
            net.advance(S)
            b.boot()
            net.advance(S)
            assert a.recv(S) is None
        assert net.error == ""


def test_the_same_addresses_again_are_another_connection() -> None:
    """Closed, reset, with data that nobody read; from the same port each time."""
    with checked() as net:
        a, b = net.pair()
        b.listen(7)
        for i in range(20):
            token = lib.mn_chan_connect(a.attach(), a.ip, 5000, b.ip, 7, lib.MN_PROTO_TCP, 30_000)
            flow = int(a.answer(token).flow)
            a.send(flow, bytes([i]) * 1000)
            if i % 2:
                while b.recv() != bytes([i]) * 1000:
                    pass  # connections before: what was left of them, and that they were reset
            net.advance(MS)
            assert lib.mn_chan_close_flow(a.chan, flow, 0) == 0
            assert net.advance(S) == 0
        assert net.error == ""


def test_a_violation_is_raised_by_what_steps_the_network() -> None:
    with Network() as net:
        assert net.invariants
        a, b = net.host(A), net.host(B)
        net.link(a, b)
        sender, receiver = a.attach(), b.attach()
        receiver.listen(B, 7, protocol="tcp")
        flow = sender.connect(A, B, 7, protocol="tcp")
        sender.send(flow, b"good")
        local, remote = (
            (int.from_bytes(bytes(map(int, ip.split("."))), "big"), port)
            for ip, port in (flow.local, flow.remote)
        )
        conn = ffi.new("struct mn_check_conn *", [remote[0], local[0], remote[1], local[1]])
        check = lib.mn_simnet_check(net._native)
        assert lib.mn_check_taken(check, conn, 99, b"evil", 4, True, net.now_ns) == 0
        with pytest.raises(machnet.InvariantError, match="what the other side gave"):
            net.advance("1s")
        assert receiver.recv(timeout=1).data == b"good"
        net.invariants = False
        assert not net.invariants


# --- engines --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poke(tmp_path_factory: pytest.TempPathFactory) -> Poke:
    return build_poke(tmp_path_factory.mktemp("poke"))


@pytest.fixture
def busy() -> tuple[Net, Host, Host, int]:
    """A connection to port 7 of the second host, in the midst of sending a megabyte."""
    net = checked()
    a, b = net.pair(latency_ns=5 * MS)
    b.listen(7)
    flow = a.connect(b, 7)
    a.send(flow, b"first")
    assert b.recv() == b"first"
    a.send(flow, b"z" * 1_000_000)
    assert net.advance(25 * MS) == 0
    assert lib.mn_simnet_check_all(net.c) == 0
    return net, a, b, flow  # what a test breaks can't be closed: it stays behind


def port_of(net: Net, host: Host) -> int:
    out = ffi.new("struct mn_sock_info[8]")
    n = lib.mn_stack_sockets(host.stack, ffi.new("uint32_t *"), out, 8)
    return next(int(out[i].local_port) for i in range(n) if out[i].remote_port == 7)


@pytest.mark.parametrize(
    ("field", "by", "rule"),
    [
        ("snd_una", 1 << 30, "sequence"),
        ("snd_nxt", 1 << 30, "sequence"),
        ("snd_end", -(1 << 30), "sequence"),
        ("sacked_bytes", 5, "scoreboard"),
        ("ooo_count", 1, "receive_queue"),
        ("timers", 0, "timers_or_owner"),
        ("slot", 1, "owner"),
        ("half_open", 1, "pools"),
        ("tcb_free", -1, "pools"),
        ("rcv_adv", -(1 << 30), "sequence"),
    ],
)
def test_a_broken_engine_is_found(
    busy: tuple[Net, Host, Host, int], poke: Poke, field: str, by: int, rule: str
) -> None:
    net, a, _, _ = busy
    port = port_of(net, a)
    if field == "tcb_free":
        by = 1
    poke(a.stack, port, field, by)
    assert lib.mn_simnet_check_all(net.c) == -errno.EPROTO
    assert net.error.startswith("at 0.0")
    assert f"node {a.node}: " in net.error
    assert f"{rule}: not: " in net.error
    if rule != "pools":
        assert f"10.0.0.1:{port}-10.0.0.2:7 ESTABLISHED" in net.error


def answer(net: Net, b: Host) -> int:
    """Have the second host, which only receives, send a message."""
    info = ffi.new("uint32_t[4]")
    assert lib.mn_chan_flows(b.chan, info, 4) == 1
    assert lib.mn_chan_send(b.chan, info[0], b"answer", 6) == 0
    return net.advance(0)


@pytest.mark.parametrize(
    ("field", "steps", "rule"),
    [
        ("rcv_nxt", [-1], "acknowledgements only go forward: back by 1, to "),
        ("rcv_adv", [100_000, -100_000], "the right edge of the window never retreats: by 100"),
        ("snd_una", [-1], "SND.UNA only goes forward: from 11 to 10"),
    ],
)
def test_what_may_only_go_forward(
    busy: tuple[Net, Host, Host, int],
    poke: Poke,
    field: str,
    steps: list[int],
    rule: str,
) -> None:
    net, _, b, _ = busy
    assert answer(net, b) == 0
    assert net.advance(12 * MS) == 0
    for i, by in enumerate(steps):
        poke(b.stack, 7, field, by)
        assert answer(net, b) == (0 if i + 1 < len(steps) else -errno.EPROTO)
    assert f"node {b.node}: 10.0.0.2:7-10.0.0.1:" in net.error
    assert rule in net.error


def test_more_in_flight_than_the_congestion_window(
    busy: tuple[Net, Host, Host, int], poke: Poke
) -> None:
    net, a, _, _ = busy
    port = port_of(net, a)
    poked = []

    def shrink(_frame: Any) -> int:
        """Between the sending and the look behind the pass."""
        if not poked:
            poke(a.stack, port, "cwnd", -100_000)
            poked.append(1)
        return int(lib.MN_RULE_PASS)

    poke(a.stack, port, "cwnd", 100_000)
    net.rule(0, 0, shrink)
    assert net.advance(20 * MS) == -errno.EPROTO
    assert "what is in flight is within the congestion window" in net.error, net.error


def test_a_violation_is_told_once_and_the_network_can_end(
    busy: tuple[Net, Host, Host, int], poke: Poke
) -> None:
    net, a, _, _ = busy
    poke(a.stack, port_of(net, a), "half_open", 1)
    assert lib.mn_simnet_check_all(net.c) == -errno.EPROTO
    text = net.error
    assert lib.mn_simnet_check_all(net.c) == 0
    poke(a.stack, port_of(net, a), "half_open", -1)
    assert net.advance(S) == 0
    assert net.error == text


# --- frames ---------------------------------------------------------------------------------------


def tcp_frame(
    port: int, seq: int, data: bytes = b"", flags: str = "A", ack: int = 5000, window: int = 1000
) -> bytes:
    segment = build_tcp(A, B, port, 7, seq, ack, flag_bits(flags), window, data=data)
    return build_eth(MAC, MAC, build_ip(segment, A, B))


class Frames(CheckedNode):
    """One direction of a connection."""

    def send(self, seq: int, data: bytes = b"", flags: str = "A", **fields: Any) -> None:
        self.leave(tcp_frame(1000, seq, data, flags, **fields))


@pytest.mark.parametrize("iss", [0, 1000, 2**32 - 3000])
def test_frames_that_are_right(iss: int) -> None:
    frames = Frames()
    data = random.Random(1).randbytes(3_000_000)
    frames.send(iss, flags="S", ack=0)
    at = 0
    for size in [1, 1460, 1460, 100, 9, *[1460] * 1900]:
        frames.send(iss + 1 + at, data[at : at + size], ack=5000 + at // 2)
        at += size
        for back, length in ((size, size), (min(at, 3000), 700)):
            frames.send(
                iss + 1 + at - back, data[at - back : at - back + length], ack=5000 + at // 2
            )
        assert frames.rc == 0, frames.text
    frames.send(iss + 1 + at, flags="FA", ack=10_000_000)
    frames.send(iss + at, data[at - 1 : at], flags="FA", ack=10_000_000)
    frames.send(iss + 2 + at, flags="A", ack=10_000_000)
    assert frames.rc == 0, frames.text
    assert frames.stats().compared > 3_000_000
    assert frames.stats().mem_bytes <= 1 << 20


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ((101, b"b" * 9 + b"X" + b"b" * 10), "what is sent again is what was sent first"),
        ((116, b"b" * 5 + b"c" * 10), None),
        ((120, b"X" * 2), "what is sent again is what was sent first"),
        ((121, b"c"), "nothing is sent behind a FIN"),
        ((110, b"b" * 5, "FA"), "a FIN is behind all data"),
        ((121, b"", "A", 4999), "acknowledgements only go forward"),
    ],
)
def test_frames_that_are_wrong(bad: tuple[Any, ...], rule: str | None) -> None:
    frames = Frames()
    frames.send(100, flags="S", ack=0)
    frames.send(101, b"b" * 20)
    if rule is not None and "FIN" in rule:
        frames.send(121, flags="FA")
    assert frames.rc == 0
    seq, data, flags, ack = (*bad, *(b"", "A", 5000)[len(bad) - 1 :])
    frames.send(seq, data, flags, ack=ack)
    if rule is None:
        assert frames.rc == 0, frames.text
        return
    assert frames.rc == -errno.EPROTO
    assert frames.text.startswith("at 1.50000")
    assert f": node 3: 10.0.0.1:1000-10.0.0.2:7: {rule}" in frames.text
    frames.send(121)
    assert frames.rc == 0  # told once


def test_a_new_syn_is_a_new_connection() -> None:
    frames = Frames()
    for iss in (100, 100, 7000):
        frames.send(iss, flags="S", ack=0)
        frames.send(iss, flags="S", ack=0)
        frames.send(iss + 1, bytes([iss % 251]) * 100, ack=iss)
        frames.send(iss + 1, bytes([iss % 251]) * 100, ack=iss)
        assert frames.rc == 0, frames.text
    frames.send(100, flags="S", ack=0)
    frames.send(101, b"x", ack=1)
    frames.send(101, b"y", ack=1)
    assert "byte 1, in a segment from 1 of 1 bytes" in frames.text


def test_what_is_no_tcp_is_left_alone() -> None:
    check = ffi.gc(lib.mn_check_new(0), lib.mn_check_free)
    rng = random.Random(2)
    for size in range(200):
        frame = rng.randbytes(size)
        assert lib.mn_check_frame(check, 0, frame, len(frame), 0) == 0
        ip = build_eth(MAC, MAC, build_ip(rng.randbytes(size), A, B))
        assert lib.mn_check_frame(check, 0, ip, len(ip), 0) in (0, -errno.EPROTO)


def test_no_more_connections_than_there_is_room_for() -> None:
    check = ffi.gc(lib.mn_check_new(10), lib.mn_check_free)
    for port in range(1, 31):
        frame = tcp_frame(port, 1, flags="S", ack=0)
        assert lib.mn_check_frame(check, 0, frame, len(frame), 0) == 0
    out = stats_of(check)
    assert (out.flows_live, out.unfollowed) == (10, 20)
    lib.mn_check_forget(check, 0)
    assert stats_of(check).flows_live == 0


def test_a_flow_that_is_forgotten_and_used_anew_is_looked_at_once() -> None:
    def send(check: Any, node: int, ports: range) -> None:
        for port in ports:
            frame = tcp_frame(port, 1, flags="S", ack=0)
            assert lib.mn_check_frame(check, node, frame, len(frame), 0) == 0

    check = ffi.gc(lib.mn_check_new(0), lib.mn_check_free)
    with Net() as net:
        host = net.host()
        engine = ffi.cast("struct mn_engine **", host.stack)[0]  # the first member
        send(check, 0, range(1, 4))
        lib.mn_check_forget(check, 0)
        send(check, 1, range(1, 4))
        assert lib.mn_check_pass(check, 1, engine, 0) == 0
    out = stats_of(check)
    assert (out.looks, out.flows_live) == (3, 0)


# --- applications ---------------------------------------------------------------------------------


class Apps:
    """Two ends of a connection, each telling what its application gives and takes."""

    def __init__(self, check: Any = None, udp: int = 0) -> None:
        self.check = check or ffi.gc(lib.mn_check_new(0), lib.mn_check_free)
        a, b = (int.from_bytes(bytes(map(int, ip.split("."))), "big") for ip in (A, B))
        self.a = ffi.new("struct mn_check_conn *", [a, b, 1000, 7, udp])
        self.b = ffi.new("struct mn_check_conn *", [b, a, 7, 1000, udp])

    def give(self, data: bytes, ident: int = 1, *, message: bool = False) -> None:
        assert lib.mn_check_given(self.check, self.a, ident, data, len(data), message) == 0

    def take(self, data: bytes, ident: int = 2, *, message: bool = False) -> str:
        rc = lib.mn_check_taken(self.check, self.b, ident, data, len(data), message, 77)
        assert rc == 0
        return str(ffi.string(lib.mn_check_text(self.check)).decode())


def test_streams_in_any_pieces() -> None:
    apps, rng = Apps(), random.Random(3)
    data = rng.randbytes(1_000_000)
    given = taken = 0
    while taken < len(data):
        if rng.random() < 0.5:
            size = rng.choice((1, 7, 32, 33, 1000, 20_000))
            apps.give(data[given : given + size])
            given = min(given + size, len(data))
        else:
            size = min(rng.choice((1, 5, 32, 64, 1001, 30_000)), given - taken)
            assert apps.take(data[taken : taken + size]) == ""
            taken += size


def test_a_great_many_pieces_are_followed_with_bounded_memory() -> None:
    apps = Apps()
    for i in range(100_000):
        apps.give(bytes([i & 255]))
    assert stats_of(apps.check).mem_bytes <= 1 << 20
    assert apps.take(bytes(i & 255 for i in range(100_000))) == ""
    assert "more bytes than it gave (1, not 0), after 100000 bytes" in apps.take(b"x")


@pytest.mark.parametrize("where", [0, 31, 32, 99])
def test_a_byte_that_changed(where: int) -> None:
    apps = Apps()
    data = bytes(range(100))
    apps.give(data)
    bad = bytearray(data)
    bad[where] ^= 4
    text = apps.take(bytes(bad))
    assert text.startswith("at 0.000000077 s: 10.0.0.2:7-10.0.0.1:1000: ")
    assert "what is taken is what the other side gave: other bytes" in text


@pytest.mark.parametrize(
    "pieces", [(b"ab", b"ab", b"cd"), (b"cd", b"ab"), (b"abcde",), (b"ab", b"d")]
)
def test_twice_out_of_order_too_much_and_a_hole(pieces: tuple[bytes, ...]) -> None:
    apps = Apps()
    apps.give(b"ab")
    apps.give(b"cd")
    text = ""
    for piece in pieces:
        text = text or apps.take(piece)
    if pieces == (b"ab", b"d"):  # the end of the piece shows it
        text = apps.take(b"d")
    assert "what is taken is what the other side gave" in text


def test_messages_keep_their_bounds() -> None:
    apps = Apps()
    for size in (0, 5, 0, 70_000):
        apps.give(b"m" * size, message=True)
    for size in (0, 5, 0, 70_000):
        assert apps.take(b"m" * size, message=True) == ""
    apps.give(b"12", message=True)
    assert "a message of another length (1, not 2)" in apps.take(b"1", message=True)
    apps = Apps()
    apps.give(b"", message=True)
    assert apps.take(b"", message=True) == ""
    assert "a message that it did not give" in apps.take(b"", message=True)


def test_the_next_connection_begins_anew() -> None:
    apps = Apps()
    apps.give(b"first connection")
    assert apps.take(b"first") == ""
    apps.give(b"second", ident=3)
    assert apps.take(b" connection") == ""  # the old one's reader
    assert apps.take(b"second", ident=4) == ""
    assert apps.take(b"s", ident=4) != ""


def test_both_transports_between_the_same_addresses_and_ports() -> None:
    tcp = Apps()
    udp = Apps(tcp.check, udp=1)
    for i in range(5):
        tcp.give(b"tcp %d" % i, ident=1, message=True)
        udp.give(b"udp, longer %d" % i, ident=2, message=True)
    for i in range(5):
        assert udp.take(b"udp, longer %d" % i, ident=3, message=True) == ""
        assert tcp.take(b"tcp %d" % i, ident=4, message=True) == ""
    udp.give(b"good", ident=2, message=True)
    assert "other bytes" in udp.take(b"evil", ident=3, message=True)


def test_what_a_test_changes_on_the_way_is_the_tests() -> None:
    def tamper(packet: Packet, _hop: object) -> object:
        if packet.tcp is not None and packet.payload.endswith(b"good"):
            return replace(packet.with_(payload=packet.payload[:-4] + b"evil"))
        return None

    with Network() as net:
        a, b = net.host(A), net.host(B)
        net.link(a, b)
        sender, receiver = a.attach(), b.attach()
        receiver.listen(B, 7, protocol="tcp")
        flow = sender.connect(A, B, 7, protocol="tcp")
        with net.rule(tamper):
            sender.send(flow, b"good")
            assert receiver.recv(timeout=1).data == b"evil"
            net.advance("1s")


def test_what_an_application_saw_ends_the_next_step() -> None:
    with checked() as net:
        a, b = net.pair()
        b.listen(7)
        flow = a.connect(b, 7)
        a.send(flow, b"good")
        info = ffi.new("struct mn_app_flow_info *")
        assert lib.mn_chan_flow_info(a.chan, flow, info) == 0
        ends = [info.remote_ip, info.local_ip, info.remote_port, info.local_port]
        conn = ffi.new("struct mn_check_conn *", ends)
        check = lib.mn_simnet_check(net.c)
        assert lib.mn_check_taken(check, conn, 99, b"evil", 4, True, net.now) == 0
        assert net.error == ""
        assert net.advance(S) == -errno.EPROTO
        assert "what is taken is what the other side gave: other bytes" in net.error
        assert net.advance(S) == 0
        assert b.recv() == b"good"
