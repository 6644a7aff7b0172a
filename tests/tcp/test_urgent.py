# SPDX-License-Identifier: MIT
"""Urgent data: in line, with a mark (RFC 9293, 3.8.5; RFC 6093).

The pointer on the wire names the octet behind the urgent data; sockatmark() of POSIX is true when the
next octet to be read is the last urgent one.
"""

from __future__ import annotations

import socket

import pytest
import tcp_peer as tp
from tcp_peer import MS, PURE_ACK, pattern

MSS = 1460


@pytest.mark.rows(56)
def test_established_urgent_data(tcp):
    """The pointer names the octet behind the urgent data; all octets stay in the stream."""
    p = tp.established(tcp())
    p.send("UA", data=10, urg=4)
    assert not p.sock.sockatmark()
    assert p.read(3) == 3
    assert p.sock.sockatmark()
    assert p.read() == 7
    assert not p.sock.sockatmark()


@pytest.mark.rows(56)
def test_established_urgent_pointer_beyond_the_segment(tcp):
    """Any length: the urgent data goes on in later segments."""
    p = tp.established(tcp())
    p.send("UA", data=10, urg=3000)
    assert p.read() == 10
    assert not p.sock.sockatmark()
    p.send("A", data=1460)
    p.send("A", data=1460)
    assert p.read() == 2920
    p.send("A", data=100)
    assert p.read(69) == 69
    assert p.sock.sockatmark()
    assert p.read() == 31


@pytest.mark.rows(53, 56)
@pytest.mark.parametrize("urg", [0, 1, 10, 11, 0xFFFF])
@pytest.mark.parametrize("size", [0, 10])
def test_established_any_urgent_pointer(tcp, urg, size):
    """A13: whatever it says, the stream is intact (CVE-2019-12255's class)."""
    p = tp.established(tcp())
    p.send("UA", data=size, urg=urg)
    assert p.read() == size
    for _ in range(5):
        p.send("UA", data=7, urg=urg)
    assert p.read() == 35
    p.lab.advance(50 * MS)
    assert p.drain()[-1].ack == 1 + size + 35


@pytest.mark.rows(56)
def test_established_urgent_pointer_moves_back(tcp):
    """A13: only ever forward."""
    p = tp.established(tcp())
    p.send("UA", data=10, urg=50)
    p.send("UA", data=10, urg=1)
    assert p.read() == 20
    p.send("A", data=100)
    assert p.read(29) == 29
    assert p.sock.sockatmark()
    assert p.read() == 71


@pytest.mark.rows(56)
def test_established_urgent_data_moves_on(tcp):
    p = tp.established(tcp())
    p.send("UA", data=10, urg=5)
    p.send("UA", data=10, urg=5)
    assert p.read(14) == 14
    assert p.sock.sockatmark()


@pytest.mark.rows(56)
def test_established_urgent_segment_twice(tcp):
    p = tp.established(tcp())
    p.send("UA", data=10, urg=5)
    p.send("UA", data=10, urg=5, seq=1)
    assert p.read() == 10


@pytest.mark.rows(53, 56)
def test_zero_window_urgent(tcp):
    """MUST-66: at a window of zero, URG is still processed."""
    p = tp.established(tcp(rcv_buf_bytes=4096))
    while (room := p.info().rcv_wnd) > 0:
        p.send("A", data=min(MSS, room))
        p.lab.advance(50 * MS)
        p.drain()
    total = p.snd_nxt - 1
    p.send("UA", urg=0, seq=p.snd_nxt, data=b"")
    p.drain()
    p.send("UA", urg=1, seq=p.snd_nxt)
    p.drain()
    assert p.state == "ESTABLISHED"
    assert p.read() == total
    assert p.sock.sockatmark()
    p.lab.advance(50 * MS)
    p.drain()
    p.send("A", data=1)
    assert p.read() == 1
    assert not p.sock.sockatmark()


@pytest.mark.parametrize("urg", [0, 1, 0xFFFF])
def test_listen_syn_with_urgent_pointer(tcp, urg):
    p = tp.listen(tcp())
    p.send("SU", urg=urg)
    p.expect("SA", ack=1)
    p.send("A")
    p.accept()
    p.send("A", data=10)
    assert p.read() == 10


def test_close_wait_urgent(tcp):
    """RFC 9293: ignored: there is no data to come."""
    p = tp.close_wait(tcp())
    p.send("UA", urg=100)
    p.drain()
    assert p.state == "CLOSE-WAIT"
    assert p.at_eof()


@pytest.mark.rows(56)
def test_established_send_urgent(tcp):
    """MSG_OOB: the pointer names the octet behind the last one written."""
    p = tp.established(tcp())
    assert p.sock.send(pattern(0, 10), socket.MSG_OOB) == 10
    p.lab.collect()
    got = p.expect("AU", seq=1, len=10)
    assert got.urg == 10
    p.send("A")
    p.written = 10
    p.write(5)
    assert p.expect(flags="A", seq=11, len=5).urg == 0


@pytest.mark.rows(56)
def test_established_send_urgent_behind_much_data(tcp):
    """Every segment up to there says where the urgent data ends."""
    p = tp.established(tcp())
    p.write(2 * MSS)
    assert p.sock.send(pattern(2 * MSS, 10), socket.MSG_OOB) == 10
    p.nodelay()
    p.lab.collect()
    got = p.drain()
    assert sum(seg.len for seg in got) == 2 * MSS + 10
    last = got[-1]
    assert last.flags == "AU"
    assert last.seq + last.urg == 1 + 2 * MSS + 10
    for seg in got:
        if "U" in seg.flags:
            assert seg.seq + seg.urg == 1 + 2 * MSS + 10


@pytest.mark.rows(56)
def test_established_urgent_data_is_retransmitted_as_urgent(tcp):
    p = tp.established(tcp())
    p.sock.send(pattern(0, 10), socket.MSG_OOB)
    p.lab.collect()
    p.expect("AU")
    again = p.next_segment(2 * tp.SEC)
    assert (again.flags, again.seq, again.urg) == ("AU", 1, 10)


@pytest.mark.rows(56)
def test_established_urgent_ack(tcp):
    p = tp.established(tcp())
    p.send("UA", data=10, urg=10)
    p.lab.advance(50 * MS)
    p.expect(**PURE_ACK, ack=11)
