# SPDX-License-Identifier: MIT
"""Opening connections: passive, active, simultaneous, and what may not open one."""

from __future__ import annotations

import pytest
import tcp_peer as tp
from tcp_peer import MS, PEER_IP, PURE_ACK, SEC, STACK_IP, Offer, errno_of, one_of, would_block
from tcp_segment import opt_mss


def test_listen_syn(tcp):
    p = tp.syn_received(tcp())
    assert p.syn.wnd > 0
    assert p.state == "SYN-RECEIVED"
    assert would_block(p.listener.accept)


def test_syn_received_ack(tcp):
    p = tp.established(tcp())
    assert p.state == "ESTABLISHED"
    assert p.sock.getpeername() == (PEER_IP, p.port)
    assert p.sock.getsockname() == (STACK_IP, p.stack_port)


@pytest.mark.rows(10, 14)
@pytest.mark.parametrize("mtu", [576, 1500, 9000])
@pytest.mark.parametrize("make", [tp.syn_received, tp.syn_sent])
def test_syn_carries_mss_of_the_mtu(tcp, mtu, make):
    """MSS is the MTU less both fixed headers, whatever options will be in use (RFC 6691)."""
    p = make(tcp(mtu=mtu))
    assert p.syn.mss == mtu - 40


@pytest.mark.rows(11)
def test_syn_carries_mss_even_if_it_is_the_default(tcp):
    assert tp.syn_sent(tcp(mtu=576)).syn.mss == 536


@pytest.mark.rows(16)
def test_established_segments_have_no_mss(tcp):
    """The parser refuses MSS, window scale and SACK-permitted on anything but a SYN."""
    p = tp.established(tcp(tp.FULL))
    p.write(3000)
    p.send(data=100)
    p.shutdown()
    got = p.drain()
    assert len(got) > 2
    assert all(seg.mss is None for seg in got)


def test_syn_sent_syn_ack(tcp):
    p = tp.established_active(tcp())
    assert p.state == "ESTABLISHED"
    assert p.sock.getpeername() == (PEER_IP, p.port)


def test_syn_sent_syn_ack_with_data_later(tcp):
    p = tp.established_active(tcp())
    p.send("A", data=10)
    assert p.read() == 10
    p.write(20)
    p.expect("A", seq=1, ack=11, len=20, push=True)


@pytest.mark.rows(20)
def test_syn_sent_syn(tcp):
    """Simultaneous open, as in figure 8 of RFC 9293: both SYN-ACKs cross."""
    p = tp.syn_received_active(tcp())
    assert p.state == "SYN-RECEIVED"
    p.send("SA", seq=0, ack=1)
    # A stack that takes the SYN-ACK as old answers with an ACK; the peer's own ACK completes it.
    assert all(seg.flags == "A" for seg in p.drain())
    p.send("A")
    assert p.state == "ESTABLISHED"
    p.send(data=5)
    assert p.read() == 5
    p.write(7)
    p.expect("A", seq=1, ack=6, len=7)


@pytest.mark.rows(20)
def test_syn_sent_syn_then_ack(tcp):
    p = tp.syn_received_active(tcp())
    p.send("A")
    assert p.state == "ESTABLISHED"
    p.expect_nothing()


@pytest.mark.rows(20)
def test_syn_sent_syn_from_another_port(tcp):
    """An attacker's SYN opens nothing unless all four numbers match."""
    p = tp.syn_sent(tcp())
    other = p.lab.peer(port=p.port + 1, stack_port=p.stack_port)
    other.send("S")
    other.expect("RA", ack=1)
    assert p.state == "SYN-SENT"


@pytest.mark.rows(21)
def test_syn_received_passive_rst(tcp):
    p = tp.syn_received(tcp())
    p.send("R")
    p.expect_nothing()
    assert p.state == "CLOSED"
    assert would_block(p.listener.accept)
    # The listener is as it was.
    again = p.lab.peer(port=p.port + 1)
    again.listener = p.listener
    tp.established(again)


@pytest.mark.rows(21, 29)
def test_syn_received_active_rst(tcp):
    p = tp.syn_received_active(tcp())
    p.send("R")
    p.expect_nothing()
    assert p.state == "CLOSED"
    assert errno_of(lambda: p.sock.send(b"x")) in ("ECONNREFUSED", "ECONNRESET")


@pytest.mark.rows(29)
def test_syn_sent_rst(tcp):
    p = tp.syn_sent(tcp())
    p.send("RA", seq=0, ack=1)
    assert p.state == "CLOSED"
    assert errno_of(lambda: p.sock.send(b"x")) == "ECONNREFUSED"


def test_syn_received_bad_ack(tcp):
    p = tp.syn_received(tcp())
    p.send("A", ack=2)
    p.expect("R", seq=2)
    assert p.state == "SYN-RECEIVED"
    p.send("A", ack=1)
    assert p.state == "ESTABLISHED"


def test_syn_received_syn_again(tcp):
    """The SYN-ACK was lost: the peer sends its SYN again and gets an answer at once."""
    p = tp.syn_received(tcp())
    p.send("S", seq=0)
    p.expect(one_of("SA", "A"), ack=1)
    assert p.state == "SYN-RECEIVED"


@pytest.mark.rows(22)
def test_established_listener_closes(tcp):
    p = tp.established(tcp())
    p.listener.close()
    p.lab.collect()
    p.send(data=10)
    assert p.read() == 10
    other = p.lab.peer(port=p.port + 1)
    other.send("S")
    other.expect("RA", ack=1)


@pytest.mark.rows(22)
def test_established_another_connection_opens(tcp):
    p = tp.established(tcp())
    other = p.lab.peer(port=p.port + 1)
    other.listener = p.listener
    tp.established(other)
    p.send(data=10)
    other.send(data=20)
    assert (p.read(), other.read()) == (10, 20)
    assert errno_of(lambda: p.lab.listen(p.stack_port)) == "EADDRINUSE"
    p.send(data=10)
    assert p.read() == 10


@pytest.mark.rows(23)
@pytest.mark.parametrize("make", [tp.syn_sent, tp.syn_received_active, tp.established_active])
def test_listen_on_the_port_of_an_active_open(tcp, make):
    """MUST-42: a LISTEN on the port of a connection in SYN-SENT or SYN-RECEIVED."""
    p = make(tcp())
    other = p.lab.peer(port=p.port + 1, stack_port=p.stack_port)
    tp.established(other)
    other.send(data=5)
    assert other.read() == 5
    assert p.state in ("SYN-SENT", "SYN-RECEIVED", "ESTABLISHED")


@pytest.mark.rows(24, 72)
def test_connect_source_address(tcp):
    """Without a local address it is the interface's; the port is chosen."""
    p = tcp()
    sock = p.lab.socket()
    assert errno_of(lambda: sock.connect((p.ip, p.port))) == "EINPROGRESS"
    (syn,) = p.lab.tcp_frames()
    assert (syn.src, syn.dst, syn.dport) == (STACK_IP, p.ip, p.port)
    assert sock.getsockname() == (STACK_IP, syn.sport)
    assert syn.sport >= 1024


@pytest.mark.rows(72)
def test_connect_from_an_address_that_is_not_ours(tcp):
    sock = tcp().lab.socket()

    def connect():
        sock.bind(("10.0.0.77", 1234))
        sock.connect((PEER_IP, 80))

    assert errno_of(connect) == "EADDRNOTAVAIL"


@pytest.mark.rows(25)
@pytest.mark.parametrize("address", ["255.255.255.255", "224.0.0.1", "10.0.0.255", "240.0.0.1"])
def test_connect_to_no_host(labs, address):
    lab = labs()
    sock = lab.socket()
    assert errno_of(lambda: sock.connect((address, 80))) == "EINPROGRESS"
    assert errno_of(lambda: sock.connect((address, 80))) == "ENETUNREACH"
    lab.advance(SEC)
    assert lab.frames == []


@pytest.mark.rows(26)
@pytest.mark.parametrize(
    "source", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.0.0.255", STACK_IP]
)
def test_listen_syn_from_no_host(tcp, source):
    p = tp.listen(tcp())
    with p.lab.counts(drop_ip_src=1):
        p.send("S", ip={"src": source}, csum=None)
    p.lab.advance(SEC)
    assert p.lab.frames == []
    assert p.stack.usage()["tcbs"] == 0


def test_listen_syn_with_data(tcp):
    """Data on a SYN is dropped unacknowledged; the peer sends it again."""
    p = tp.listen(tcp())
    p.send("S", data=b"x" * 10, seq=0)
    p.snd_nxt = 1
    p.expect("SA", ack=1)
    p.send("A")
    p.accept()
    p.send(data=10)
    assert p.read() == 10


def test_syn_sent_syn_ack_with_data(tcp):
    """What comes with the SYN-ACK is taken or left for the retransmission, but not lost."""
    p = tp.syn_sent(tcp())
    p.send("SA", data=tp.pattern(0, 10), seq=0)
    got = p.expect(flags="A", seq=1, ack=one_of(1, 11))
    p.snd_nxt = 1
    if got.ack == 1:
        p.send(data=10)
    assert p.read() == 10


def test_syn_received_data_with_the_ack(tcp):
    p = tp.syn_received(tcp())
    p.send("A", data=10)
    p.accept()
    assert p.read() == 10


def test_syn_received_data_and_fin_with_the_ack(tcp):
    p = tp.syn_received(tcp())
    p.send("FA", data=10)
    p.accept()
    assert p.state == "CLOSE-WAIT"
    p.expect(**PURE_ACK, ack=12)
    assert p.read() == 10
    assert p.at_eof()


def test_syn_received_data_before_the_ack_is_seen(tcp):
    """The handshake's last ACK is lost: the first data segment carries it too."""
    p = tp.syn_received(tcp())
    p.send("A", data=100)
    assert p.state == "ESTABLISHED"
    p.accept()
    assert p.read() == 100


@pytest.mark.rows(80)
@pytest.mark.parametrize("flags", ["S", "A", "SA", "FA", ""])
def test_closed_segment(tcp, flags):
    p = tcp()
    with p.lab.counts(drop_tcp_port=1, tcp_resets_sent=1):
        p.send(flags, data=b"abc", seq=1000, ack=77)
    if "A" in flags:
        p.expect("R", seq=77, len=0)
    else:
        got = p.expect("RA", ack=1000 + 3 + len(flags), len=0)
        assert got.raw.raw_seq == 0


@pytest.mark.rows(81)
@pytest.mark.parametrize("flags", ["R", "RA", "RS", "RF", "RSFA"])
def test_closed_rst(tcp, flags):
    p = tcp()
    p.send(flags, seq=1000, ack=77)
    p.lab.advance(10 * MS)
    assert p.lab.frames == []


def test_closed_rst_is_rate_limited(tcp):
    p = tcp(rst_per_s=10)
    for _ in range(50):
        p.send("A", seq=1000, ack=77)
    assert 1 <= len(p.drain()) <= 20
    assert p.lab.stat("drop_rst_limited") >= 30


def test_listen_ack_flood_keeps_no_state(tcp):
    p = tp.listen(tcp(rst_per_s=10))
    for port in range(1000, 1200):
        p.lab.peer(port=port).send("A", data=b"abc", seq=5, ack=9)
    assert p.stack.usage()["tcbs"] == 0
    assert len(p.lab.tcp_frames()) <= 20


def test_listen_backlog(tcp):
    """D5: nobody accepts: a bounded number of connections waits; then there is room again."""
    p = tcp()
    listener = p.lab.listen(backlog=4)
    peers = [p.lab.peer(port=1000 + i) for i in range(40)]
    for each in peers:
        each.send("S")
        if each.recv():
            each.send("A")
    waiting = [each for each in peers if each.state == "ESTABLISHED"]
    assert 4 <= len(waiting) <= 8
    accepted = 0
    while not would_block(listener.accept):
        accepted += 1
    assert accepted == len(waiting)
    late = p.lab.peer(port=5000)
    late.listener = listener
    tp.established(late)
    late.send("A", data=10)
    assert late.read() == 10


def test_listen_syn_backlog_is_bounded(tcp):
    """A flood of SYNs from addresses that never answer takes bounded memory, and ends."""
    p = tcp(syn_backlog_max=8)
    p.lab.listen(backlog=1000)
    for port in range(1000, 1100):
        p.lab.peer(port=port).send("S")
    assert p.stack.usage()["half_open"] <= 8
    assert len(p.lab.tcp_frames()) <= 8
    p.lab.advance(400 * SEC)
    assert p.stack.usage()["half_open"] == 0
    assert p.stack.usage()["tcbs"] == 0


@pytest.mark.rows(12)
@pytest.mark.parametrize("make", [tp.established, tp.established_active])
def test_syn_without_mss(tcp, make):
    p = make(tcp(Offer(mss=None)))
    p.nodelay()
    p.write(1000)
    p.expect_data([536, 464])


@pytest.mark.rows(13)
@pytest.mark.parametrize(
    ("mtu", "mss", "size"),
    [(1500, 1460, 1460), (1500, 1000, 1000), (576, 1460, 536), (9000, 65535, 8960)],
)
def test_established_segment_size(tcp, mtu, mss, size):
    """The least of the peer's MSS and what the MTU carries."""
    p = tp.established(tcp(Offer(mss=mss), mtu=mtu))
    p.write(size + 1)
    p.expect("A", len=size)


@pytest.mark.rows(13)
def test_established_segment_size_with_timestamps(tcp):
    p = tp.established(tcp(tp.TS))
    p.write(3000)
    p.expect_data([1448, 1448])


@pytest.mark.rows(13)
@pytest.mark.parametrize("mss", [0, 1, 8, 47])
def test_syn_with_tiny_mss(tcp, mss):
    """A floor keeps the work per octet bounded (CVE-2019-11479's class)."""
    p = tp.established(tcp(Offer(mss=mss)))
    p.nodelay()
    p.write(200)
    got = p.expect("A", seq=1)
    assert got.len >= 48


def test_syn_with_two_mss(tcp):
    """A duplicate option is no reason to fail; either of the two counts."""
    p = tp.listen(tcp())
    p.send("S", opts=opt_mss(1000) + opt_mss(500))
    p.expect("SA", ack=1)
    p.send("A")
    p.accept()
    p.write(5000)
    p.expect("A", len=one_of(500, 1000))


def test_listen_backlog_of_handshakes_begun_before(tcp):
    """D5: forty half-open connections, a backlog of 4: what has no room is not established."""
    p = tcp()
    listener = p.lab.listen(backlog=4)
    peers = [p.lab.peer(port=1000 + i) for i in range(40)]
    for each in peers:
        each.send("S")
    begun = [each for each in peers if each.recv()]
    for each in begun:
        each.send("A")
    waiting = [each for each in begun if each.state == "ESTABLISHED"]
    assert 4 <= len(waiting) <= 8
    accepted = 0
    while not would_block(listener.accept):
        accepted += 1
    assert accepted == len(waiting)
    # The others' handshake can still be completed, or ends: nothing is left over.
    p.lab.advance(1000 * SEC)
    assert p.stack.usage()["half_open"] == 0


def test_connect_no_neighbour(lab):
    """Nobody answers for the address: connect says so, at the latest when the SYN times out."""
    lab = lab(resolve=True)
    sock = lab.socket()
    assert errno_of(lambda: sock.connect((PEER_IP, 80))) == "EINPROGRESS"
    lab.advance(400 * SEC)
    assert errno_of(lambda: sock.connect((PEER_IP, 80))) in ("EHOSTUNREACH", "ETIMEDOUT")
    assert lab.stack.usage()["tcbs"] == 0
    assert lab.tcp_frames() == []


def test_connect_neighbour_answers_late(lab):
    """The SYN waits for the address and then goes out."""
    lab = lab(resolve=True)
    sock = lab.socket()
    assert errno_of(lambda: sock.connect((PEER_IP, 80))) == "EINPROGRESS"
    assert lab.tcp_frames() == []
    lab.advance(500 * MS)
    lab.answer_arp()
    assert [seg.flags for seg in lab.tcp_frames()] == [2]


def test_listen_syn_flood(tcp):
    """D1: it takes bounded memory and few answers; connections go on, and soon there is room again."""
    p = tp.established(tcp(syn_backlog_max=8))
    for port in range(1024, 3024):
        p.lab.peer(port=port).send("S")
        p.lab.advance(2 * MS)
        if port % 100 == 0:
            p.send("A", data=10)
            assert p.read() == 10
    assert p.stack.usage()["half_open"] <= 8
    answers = [seg for seg in p.lab.tcp_frames() if seg.dport != p.port]
    assert len(answers) <= 200  # of 2000
    assert p.lab.stat("drop_syn_backlog") > 1900
    # A peer that has not answered for 3 s gives way to a new one.
    p.lab.advance(3 * SEC)
    other = p.lab.peer(port=5000)
    other.listener = p.listener
    with p.lab.counts(tcp_half_open_evicted=1):
        tp.established(other)
    other.send("A", data=10)
    assert other.read() == 10


def test_closed_rsts_of_a_second_are_no_fixed_number(tcp):
    """E7: the limit moves, so that who gets fewer than usual can't tell whom the others went to."""
    p = tcp(rst_per_s=100)
    counts = []
    for _ in range(10):
        for _ in range(150):
            p.send("A", seq=1000, ack=77)
        counts.append(len(p.drain()))
        p.lab.advance(SEC)
    assert all(75 <= count <= 125 for count in counts)
    assert len(set(counts)) >= 4
