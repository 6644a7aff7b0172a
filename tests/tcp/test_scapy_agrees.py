# SPDX-License-Identifier: MIT
"""The tests' own builder and parser against scapy: the yardstick is measured once."""

from __future__ import annotations

import pytest
import tcp_peer as tp
from tcp_segment import build_eth, build_ip, build_tcp, flag_bits, opt_mss, opt_sack, opt_ts, parse


@pytest.fixture(scope="module")
def layers():
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    return Ether, IP, TCP


@pytest.mark.parametrize("data", [b"", b"x", b"odd", bytes(range(200))])
@pytest.mark.parametrize("flags", ["S", "A", "FSRPAUEC"])
def test_built_segment(layers, data, flags):
    ether, ip, tcp = layers
    opts = opt_mss(1234) + opt_ts(5, 6) + opt_sack([(7, 8)])
    body = build_tcp(
        "10.0.0.1", "10.0.0.2", 5, 6, 7, 8, flag_bits(flags), 9, urg=3, opts=opts, data=data
    )
    frame = build_eth(b"\x02" * 6, b"\x04" * 6, build_ip(body, "10.0.0.1", "10.0.0.2", ttl=9))
    seen = ether(frame)
    got = seen[tcp]
    assert (got.sport, got.dport, got.seq, got.ack, got.window, got.urgptr) == (5, 6, 7, 8, 9, 3)
    assert set(str(got.flags)) == set(flags)
    assert ("MSS", 1234) in got.options
    assert ("Timestamp", (5, 6)) in got.options
    assert ("SAck", (7, 8)) in got.options
    assert bytes(got.payload) == data
    sums = seen[ip].chksum, got.chksum
    del seen[ip].chksum, got.chksum
    again = ether(bytes(seen))
    assert (again[ip].chksum, again[tcp].chksum) == sums


@pytest.mark.rows(1)
def test_segments_of_the_stack(layers, tcp):
    """Header fields, options and checksums as scapy reads them are as our parser reads them."""
    ether, ip, tcp_layer = layers
    p = tp.established(tcp(tp.FULL))
    p.write(3001)
    p.send("A", data=10, seq=500)
    p.shutdown()
    frames = [(t, frame) for t, way, frame in p.lab.log if way == "<"]
    assert len(frames) >= 4
    for t, frame in frames:
        ours, theirs = parse(t, frame), ether(frame)
        seg = theirs[tcp_layer]
        assert (ours.raw_seq, ours.raw_ack, ours.wnd, ours.flags) == (
            *(seg.seq, seg.ack, seg.window, int(seg.flags)),
        )
        assert ours.data == bytes(seg.payload)[: len(ours.data)]
        options = {name: value for name, value in seg.options if name != "NOP"}
        assert options.get("MSS") == ours.opts.mss
        assert options.get("Timestamp") == ours.opts.ts
        sums = theirs[ip].chksum, seg.chksum
        del theirs[ip].chksum, seg.chksum
        again = ether(bytes(theirs))
        assert (again[ip].chksum, again[tcp_layer].chksum) == sums
