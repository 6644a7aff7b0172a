# SPDX-License-Identifier: MIT
"""Sending data: segment sizes, Nagle, silly windows, PSH, fields of the IP header."""

from __future__ import annotations

import itertools
import socket
import struct

import pytest
import tcp_peer as tp
from tcp_peer import MS, SEC, Offer, would_block
from tcp_segment import build_eth, build_ip

MSS = 1460


@pytest.mark.rows(44)
def test_established_nagle_is_on(tcp):
    p = tp.established(tcp())
    p.write(10)
    p.expect("A", seq=1, len=10)
    p.write(20)
    p.write(30)
    p.expect_nothing(100 * MS)
    p.send("A")
    p.expect("A", seq=11, len=50)


@pytest.mark.rows(44)
def test_established_nagle_full_segments_go(tcp):
    p = tp.established(tcp())
    p.write(10)
    p.expect("A", len=10)
    p.write(MSS + 5)
    p.expect("A", seq=11, len=MSS)
    p.expect_nothing(100 * MS)
    p.send("A")
    p.expect("A", seq=11 + MSS, len=5)


@pytest.mark.rows(44)
def test_established_nagle_off(tcp):
    p = tp.established(tcp())
    p.nodelay()
    for i in range(5):
        p.write(10)
        p.expect("A", seq=1 + 10 * i, len=10)


@pytest.mark.rows(44)
def test_established_nagle_switched_off_sends_what_waits(tcp):
    p = tp.established(tcp())
    p.write(10)
    p.expect("A", len=10)
    p.write(20)
    p.expect_nothing()
    p.nodelay()
    p.expect("A", seq=11, len=20)


@pytest.mark.rows(44)
def test_established_nagle_setting(tcp):
    p = tp.established(tcp(nagle_stream=False))
    p.write(10)
    p.write(10)
    assert [seg.len for seg in p.drain()] == [10, 10]


def test_established_nagle_fin_goes(tcp):
    """G7: the last part is not held back: the FIN goes with it."""
    p = tp.established(tcp())
    p.write(10)
    p.expect("A", len=10)
    p.write(20)
    p.expect_nothing()
    p.shutdown()
    p.expect("FA", seq=11, len=20)


def test_established_msg_more(tcp):
    """A part-filled segment waits for what the application has announced."""
    p = tp.established(tcp())
    p.nodelay()
    assert p.sock.send(tp.pattern(0, 100), socket.MSG_MORE) == 100
    p.expect_nothing()
    p.written = 100
    p.write(50)
    p.expect("A", seq=1, len=150)


@pytest.mark.rows(54)
def test_established_push_on_the_last_segment(tcp):
    p = tp.established(tcp())
    p.nodelay()
    p.write(3 * MSS + 100)
    pushes = [seg.push for seg in p.expect_data([MSS, MSS, MSS, 100])]
    assert pushes[-1] is True
    assert pushes[:2] == [False, False]


@pytest.mark.rows(54)
def test_established_push_on_a_full_last_segment(tcp):
    p = tp.established(tcp())
    p.write(MSS)
    p.expect("A", len=MSS, push=True)


@pytest.mark.rows(55)
def test_established_small_writes_are_joined(tcp):
    """While the window is closed, writes collect; then they go as few, full segments."""
    p = tp.established(tcp())
    p.send("A", wnd=0)
    for _ in range(40):
        p.write(100)
    p.expect_nothing()
    p.send("A")
    sizes = [seg.len for seg in p.drain()]
    assert sizes[:2] == [MSS, MSS]
    p.send("A")
    sizes += [seg.len for seg in p.drain()]
    assert sizes == [MSS, MSS, 4000 - 2 * MSS]


@pytest.mark.rows(43)
def test_established_silly_window(tcp):
    """A usable window below a segment and below half the largest window is not used at once."""
    p = tp.established(tcp())
    p.write(20 * MSS)
    got = p.drain()
    p.send("A", ack=got[-1].end, wnd=MSS // 2)
    p.rcv_nxt = got[-1].end
    p.expect_nothing(100 * MS)
    # The override timeout (persist) sends what fits.
    one = p.next_segment(120 * SEC)
    assert one.len <= MSS // 2
    assert one.seq == got[-1].end


@pytest.mark.rows(43)
def test_established_half_of_the_largest_window(tcp):
    """A peer whose window never reaches a segment is served at half of it."""
    p = tp.syn_received(tcp())
    p.wnd = 1000
    p.send("A")
    p.accept()
    p.write(5000)
    got = p.expect("A", seq=1)
    assert 500 <= got.len <= 1000
    seen = got.end
    for _ in range(30):
        p.send("A")
        for one in p.drain():
            assert one.len >= 500 or one.end == 5001
            seen = one.end
        if seen == 5001:
            break
    assert seen == 5001


@pytest.mark.rows(43)
def test_established_window_opens_octet_by_octet(tcp):
    """G7: no stream of tiny segments for a stream of tiny updates."""
    p = tp.established(tcp())
    p.write(30 * MSS)
    got = p.drain()
    end = got[-1].end
    for size in range(0, MSS, 50):
        p.send("A", ack=end, wnd=size)
        p.expect_nothing()
    p.send("A", ack=end, wnd=MSS)
    p.expect("A", seq=end, len=MSS)


@pytest.mark.rows(45)
def test_ttl(tcp):
    assert tp.syn_received(tcp()).syn.raw.ttl == 64
    assert tp.syn_received(tcp(ttl=17)).syn.raw.ttl == 17


@pytest.mark.rows(45)
def test_established_ttl_option(tcp):
    p = tp.established(tcp())
    p.option(socket.IPPROTO_IP, socket.IP_TTL, 3)
    p.write(1)
    assert p.expect("A").raw.ttl == 3


@pytest.mark.rows(71)
def test_established_dscp(tcp):
    """Settable, and changeable while connected; passed to IP as it is."""
    p = tp.established(tcp())
    p.nodelay()
    p.write(1)
    assert p.expect("A").raw.tos == 0
    for dscp in (46, 8, 63, 0):
        p.option(socket.IPPROTO_IP, socket.IP_TOS, dscp << 2)
        p.write(1)
        assert p.expect("A").raw.tos == dscp << 2


@pytest.mark.rows(71)
def test_dscp_setting(tcp):
    p = tp.established(tcp(dscp=10))
    assert p.syn.raw.tos == 40
    p.write(1)
    assert p.expect("A").raw.tos == 40


def test_packets_are_atomic(tcp):
    """E3: DF, and an identification that is no counter (RFC 6864)."""
    p = tp.established(tcp())
    p.nodelay()
    ids = []
    for _ in range(20):
        p.write(1)
        got = p.expect("A").raw
        assert got.dont_fragment
        ids.append(got.ip_id)
    steps = {(b - a) % 65536 for a, b in itertools.pairwise(ids)}
    assert set(ids) == {0} or steps != {1}


@pytest.mark.rows(13, 15)
def test_established_maxseg_option(tcp):
    p = tp.established(tcp())
    p.option(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 500)
    p.write(1200)
    assert p.expect("A").len == 500


@pytest.mark.rows(15)
@pytest.mark.parametrize("mtu", [600, 1500, 9000])
def test_established_mss_follows_the_mtu(tcp, mtu):
    p = tp.established(tcp(Offer(mss=65000), mtu=mtu))
    assert p.syn.mss == mtu - 40
    assert p.info().mss == mtu - 40


@pytest.mark.rows(7, 9)
def test_established_options_are_aligned(tcp):
    """The parser has checked the padding; the header is no longer than it must be."""
    p = tp.established(tcp(tp.FULL))
    p.write(10)
    got = p.expect("A", len=10)
    assert got.ts is not None


def test_established_send_buffer_is_bounded(tcp):
    """A peer that does not read: send() says so, and takes more when there is room again."""
    p = tp.established(tcp())
    p.send("A", wnd=0)
    total = 0
    data = tp.pattern(0, 1 << 17)
    for _ in range(2000):
        if would_block(lambda: p.sock.send(data)):
            break
        total += 1
    else:
        raise AssertionError("send never refuses")
    assert total >= 1


@pytest.mark.rows(1, 82)
def test_established_long_transfer(tcp):
    """Half a megabyte through both wraps, every segment checked: content, checksum, window."""
    p = tp.established(tcp(Offer(wscale=3, sack=True, ts=True)))
    p.wnd = 8192
    total = 500_000
    p.write(total)
    done = 1
    for _ in range(2000):
        got = p.drain()
        if not got:
            p.lab.advance(MS)
            p.tsval += 1
            continue
        for seg in got:
            assert seg.seq == done
            assert seg.data == tp.pattern(seg.seq - 1, seg.len)
            done = seg.end
        p.send("A")
        if done == total + 1:
            break
    assert done == total + 1
    assert p.lab.stat("tcp_retransmits") == 0


@pytest.mark.rows(82)
def test_established_long_receive(tcp):
    p = tp.established(tcp(tp.FULL))
    for i in range(400):
        p.send("A", data=1448)
        if i % 4 == 3:
            assert p.read() == 4 * 1448
    p.lab.advance(50 * MS)
    assert p.drain()[-1].ack == 400 * 1448 + 1


@pytest.mark.rows(88)
@pytest.mark.parametrize(
    ("mss", "mtu", "segments"), [(1460, 1500, 10), (536, 1500, 10), (8960, 9000, 2)]
)
def test_established_initial_window(tcp, mss, mtu, segments):
    """RFC 6928: min(10 MSS, max(2 MSS, 14600))."""
    p = tp.established(tcp(Offer(mss=mss, wscale=7), mtu=mtu))
    p.send("A")
    p.write(30 * mss)
    assert [seg.len for seg in p.drain()] == [mss] * segments
    assert p.info().cwnd == segments * mss


@pytest.mark.rows(88)
def test_established_initial_window_setting(tcp):
    p = tp.established(tcp(initial_window=3))
    p.write(30 * MSS)
    assert len(p.drain()) == 3


def test_frames_have_nothing_behind_them(tcp):
    """E5: however the memory was used before, a frame is what its headers say, and not a byte more."""
    p = tp.established(tcp(tp.FULL))
    for _ in range(20):  # frames full of data, both ways
        p.send("A", data=1400)
        p.read()
        p.write(14480)
        p.drain()
        p.send("A")
    p.lab.frames.clear()
    p.send("A", data=1)
    p.lab.advance(50 * MS)
    p.lab.peer(port=7).send("A", seq=5, ack=6)  # RST
    ip = (p.ip, tp.STACK_IP)
    echo = struct.pack(">BBHHH", 8, 0, 0xF7F8, 5, 2)
    datagram = struct.pack(">HHHH", 5000, 9, 8, 0)
    for proto, body in ((1, echo), (17, datagram)):
        # Ethernet padding is not echoed, nor quoted.
        packet = build_ip(body, *ip, proto=proto) + b"\xee" * 18
        p.lab.inject(build_eth(tp.STACK_MAC, tp.PEER_MAC, packet))
    question = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + tp.PEER_MAC + bytes([10, 0, 0, 1])
    question += bytes(6) + bytes([10, 0, 0, 2]) + b"\xee" * 18
    p.lab.inject(build_eth(tp.STACK_MAC, tp.PEER_MAC, question, 0x0806))
    frames = [frame for _, frame in p.lab.frames]
    kinds = {frame[12:14] + frame[23:24] * (frame[12] == 8 and frame[13] == 0) for frame in frames}
    assert kinds == {b"\x08\x00\x06", b"\x08\x00\x01", b"\x08\x06"}
    for frame in frames:
        is_ip = frame[12:14] == b"\x08\x00"
        assert len(frame) == 14 + (int.from_bytes(frame[16:18], "big") if is_ip else 28)
        assert b"\xee\xee" not in frame
    # An empty echo, and the header and 8 bytes of what found no port.
    assert sorted(len(frame) for frame in frames if frame[23] == 1) == [42, 42 + 28]
    p.lab.tcp_frames()  # reads each, and wants zeros where the header is padded
