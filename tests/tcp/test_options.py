# SPDX-License-Identifier: MIT
"""TCP options that are malformed, unknown, repeated or in the wrong place."""

from __future__ import annotations

import pytest
import tcp_peer as tp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tcp_peer import FULL, ORDINARY, PURE_ACK, Lab, Offer
from tcp_segment import NOP, opt, opt_mss, opt_sack_ok, opt_ts, opt_wscale

#: Areas of options that no parser may trip over.
NASTY = {
    "length 0": b"\x02\x00\x05\xb4",
    "length 1": b"\x02\x01\x05\xb4",
    "unknown with length 0": b"\x63\x00\x00\x00",
    "unknown with length 1": b"\x63\x01\x00\x00",
    "past the end": b"\x02\x28\x05\xb4",
    "kind without length": b"\x01\x01\x01\x02",
    "mss of 3": b"\x02\x03\x05\x00",
    "mss of 5": b"\x02\x05\x05\xb4\x00\x00\x00\x00",
    "wscale of 2": b"\x03\x02\x01\x01",
    "wscale of 4": b"\x03\x04\x01\x01",
    "sack permitted of 3": b"\x04\x03\x01\x01",
    "timestamps of 9": b"\x08\x09" + bytes(7) + b"\0\0\0",
    "forty of NOP": NOP * 40,
    "forty of EOL": bytes(40),
    "forty of 255": b"\xff" * 40,
    "many unknown": b"".join(opt(kind) for kind in range(100, 120)),
    "md5": opt(19, bytes(16)) + NOP * 2,
    "ao": opt(29, bytes(14)),
    "mptcp": opt(30, bytes(10)),
    "fast open cookie": opt(34, bytes(8)) + NOP * 2,
    "fast open, odd": opt(34, bytes(5)) + NOP,
    "experimental": opt(253, b"\x12\x34ab") + opt(254, b"\x99\x88"),
    "user timeout": opt(28, b"\x80\x01"),
}


@pytest.mark.rows(3, 5, 6, 8)
@pytest.mark.parametrize("area", NASTY.values(), ids=NASTY.keys())
def test_listen_syn_with_options(tcp, area):
    """The SYN is answered, or dropped as malformed; a good one is answered afterwards."""
    p = tp.listen(tcp())
    p.send("S", opts=area, seq=0)
    got = p.drain()
    assert len(got) <= 1
    assert all(seg.flags == "SA" for seg in got)
    other = p.lab.peer(port=p.port + 1)
    other.listener = p.listener
    tp.established(other)


@pytest.mark.rows(4, 5, 6, 8)
@pytest.mark.parametrize("area", NASTY.values(), ids=NASTY.keys())
def test_established_data_with_options(tcp, area):
    """Options on any segment; the data counts unless the segment is dropped as malformed."""
    p = tp.established(tcp())
    p.send("A", data=10, opts=area)
    got = p.read()
    assert got in (0, 10)
    if got == 0:
        p.send("A", data=10, seq=1)
        assert p.read() == 10
    p.send("A", data=10)
    assert p.read() == 10


@pytest.mark.rows(5)
@pytest.mark.parametrize("kind", [6, 9, 14, 19, 27, 28, 29, 30, 34, 69, 172, 253, 254, 255])
def test_unknown_kinds_are_ignored(tcp, kind):
    p = tp.listen(tcp(FULL))
    p.send("S", opts=opt(kind, b"abcd") + opt_mss(900) + opt(kind, b"") + opt_sack_ok())
    got = p.expect("SA", ack=1)
    assert got.sack_ok
    p.send("A", opts=opt(kind, b"xyz"))
    assert p.state == "ESTABLISHED"
    assert p.info().mss == 900


@pytest.mark.rows(7)
@pytest.mark.parametrize("pad", range(4))
def test_listen_syn_unaligned_options(tcp, pad):
    p = tp.listen(tcp())
    p.send("S", opts=NOP * pad + opt_mss(900) + NOP + opt_ts(77, 0) + opt_wscale(2) + opt_sack_ok())
    got = p.expect("SA", ack=1)
    assert got.ts[1] == 77
    assert got.sack_ok
    assert got.wscale is not None
    assert p.info().mss in (900, 888)


@pytest.mark.rows(3)
def test_listen_syn_options_after_the_end(tcp):
    """What stands behind end-of-options is padding."""
    p = tp.listen(tcp())
    p.send("S", opts=opt_mss(900) + b"\0" + opt_sack_ok() + opt_wscale(3))
    got = p.expect("SA", ack=1)
    assert not got.sack_ok
    assert got.wscale is None


def test_listen_syn_twice_the_same_options(tcp):
    """B3."""
    p = tp.listen(tcp())
    p.send("S", opts=opt_wscale(1) + opt_wscale(7) + opt_sack_ok() * 2 + opt_mss(700) * 2)
    p.expect("SA", ack=1)
    p.send("A", wnd=100)
    assert p.state == "ESTABLISHED"
    assert p.info().snd_wnd in (200, 12800)
    assert p.info().mss == 700


@pytest.mark.parametrize("mss", [0, 1, 8, 48, 87, 88, 535, 536, 1460, 1461, 9000, 65535])
def test_established_mss_corner_cases(tcp, mss):
    """B4: between the floor and what the MTU carries."""
    p = tp.established(tcp(Offer(mss=mss)))
    floor = p.stack.settings.mss_min_bytes
    assert p.info().mss == min(max(mss, floor), 1460)
    p.nodelay()
    p.write(5000)
    assert all(seg.len <= 1460 for seg in p.drain())


def test_fast_open_data_is_not_delivered_early(tcp):
    """B10: without fast open, the handshake is ordinary."""
    p = tp.listen(tcp())
    p.send("S", data=b"GET /", opts=opt_mss(1460) + opt(34, bytes(8)) + NOP * 2, seq=0)
    p.snd_nxt = 1
    got = p.expect("SA", ack=1)
    assert got.raw.opts.kinds == (2,)
    p.send("A")
    p.accept()
    assert p.read() == 0


@pytest.mark.rows(6, 8)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(area=st.binary(max_size=40), flags=st.sampled_from(["S", "A", "SA", "FA", "R"]))
def test_any_bytes_as_options(area, flags):
    lab = Lab(ORDINARY, flows_max=64)
    try:
        p = tp.established(lab.peer())
        p.send(flags, data=b"" if "S" in flags else b"abc", opts=area, seq=p.snd_nxt)
        p.drain()
        other = lab.peer(port=p.port + 1)
        other.listener = p.listener
        tp.established(other)
        other.send("A", data=10)
        assert other.read() == 10
    finally:
        lab.close()


def test_established_keeps_working_after_options(tcp):
    p = tp.established(tcp(FULL))
    p.send("A", data=10)
    p.lab.advance(50 * tp.MS)
    p.expect(**PURE_ACK, ack=11)
