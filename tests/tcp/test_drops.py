# SPDX-License-Identifier: MIT
"""Malformed and misdirected frames: dropped without an answer, each counted under its reason.

In every test an established connection is served as before afterwards.
"""

from __future__ import annotations

import pytest
import tcp_peer as tp
from tcp_peer import PEER_MAC, STACK_IP, STACK_MAC, STACK_PORT, Peer
from tcp_segment import build_eth, build_ip, build_tcp, checksum


@pytest.fixture
def p(tcp):
    """An established connection, which still works at the end and has not been answered."""
    p = tp.established(tcp())
    yield p
    assert p.lab.tcp_frames() == []
    assert p.state == "ESTABLISHED"
    p.send("A", data=10)
    assert p.read() == 10


def dropped(p: Peer, frame: bytes, counter: str) -> None:
    with p.lab.counts(**{counter: 1}):
        p.lab.inject(frame)
    assert p.read() == 0


DROPS = [f"drop_{name}" for name in (
    *("eth_short", "eth_type", "eth_dst", "ip_short", "ip_version", "ip_length", "ip_csum"),
    *("ip_fragment", "ip_src", "ip_dst", "ip_proto", "tcp_short", "tcp_offset", "tcp_csum"),
)]  # fmt: skip


def test_established_every_truncation(p):
    """A1: each truncation is dropped and counted, by one reason."""
    frame = p.make("A", data=30)
    for size in range(1, len(frame)):
        before = p.stack.stats()
        p.lab.inject(frame[:size])
        after = p.stack.stats()
        assert sum(after[name] - before[name] for name in DROPS) == 1, size
    assert p.read() == 0


@pytest.mark.parametrize("total", [0, 19, 20, 39, 41, 1501, 65535])
def test_established_ip_total_length(p, total):
    """A2: longer than the frame, shorter than the header; 20 leaves no room for TCP."""
    frame = p.make("A", data=0, ip={"total": total})
    if total > 40:
        counter = "drop_ip_short"
    else:
        counter = "drop_tcp_short" if total >= 20 else "drop_ip_length"
    dropped(p, frame, counter)


def test_established_ethernet_padding(p):
    """A2: what lies behind the IP packet is no payload."""
    p.lab.inject(p.make("A", data=3) + b"\xee" * 40)
    p.snd_nxt += 3
    assert p.read() == 3
    p.lab.advance(tp.SEC)
    p.expect(**tp.PURE_ACK, ack=4)


@pytest.mark.parametrize("ihl", range(5))
def test_established_ip_header_length_too_small(p, ihl):
    """A3; 5 words is the least."""
    dropped(p, p.make("A", data=3, ip={"ihl": ihl}), "drop_ip_length")


@pytest.mark.rows(64)
@pytest.mark.parametrize(
    "options",
    [
        b"\x94\x04\x00\x00",  # router alert
        b"\x44\x08\x05\x00" + bytes(4),  # timestamp
        b"\x9f\x04\xab\xcd" + b"\x01" * 35 + b"\x00",  # of unknown kind, and the header full
        b"\x01\x01\x01\x00",
    ],
)
def test_established_ip_options(p, options):
    """A3: the TCP header is found by the header length; options are ignored."""
    p.send("A", data=7, ip={"ip_opts": options})
    assert p.read() == 7
    p.lab.advance(tp.SEC)
    p.expect(**tp.PURE_ACK, ack=8)


@pytest.mark.parametrize("words", [0, 1, 4])
def test_established_data_offset_too_small(p, words):
    """A4; also A5: what would be left for data is less than nothing."""
    dropped(p, p.make("A", data=20, doff=words), "drop_tcp_offset")


def test_established_data_offset_beyond_the_segment(p):
    """A4, A5."""
    dropped(p, p.make("A", data=20, doff=11), "drop_tcp_offset")
    dropped(p, p.make("A", doff=6), "drop_tcp_offset")


@pytest.mark.rows(2)
@pytest.mark.parametrize("csum", [0, 0xFFFF, 0x1234])
def test_established_wrong_checksum(p, csum):
    dropped(p, p.make("A", data=20, csum=csum), "drop_tcp_csum")


@pytest.mark.rows(2)
def test_established_every_bit_flipped(p):
    """A6: no single wrong bit behind the Ethernet header gets through."""
    frame = p.make("A", data=4)
    before = p.stack.stats()
    for bit in range(14 * 8, len(frame) * 8):
        bad = bytearray(frame)
        bad[bit // 8] ^= 1 << bit % 8
        p.lab.inject(bytes(bad))
    after = p.stack.stats()
    assert p.read() == 0
    assert sum(after[name] - before[name] for name in DROPS) == (len(frame) - 14) * 8


def test_established_wrong_ip_checksum(p):
    dropped(p, p.make("A", data=20, ip={"ip_csum": 0x1234}), "drop_ip_csum")


def test_established_ip_version(p):
    dropped(p, p.make("A", data=20, ip={"version": 6}), "drop_ip_version")


def test_land(p):
    """A7: a segment from the connection's own end to itself."""
    body = build_tcp(STACK_IP, STACK_IP, STACK_PORT, STACK_PORT, 1, 0, 2, 1000)
    frame = build_eth(STACK_MAC, PEER_MAC, build_ip(body, STACK_IP, STACK_IP))
    dropped(p, frame, "drop_ip_src")


@pytest.mark.rows(26, 27)
@pytest.mark.parametrize(
    "source", ["0.0.0.0", "127.0.0.1", "224.0.0.9", "255.255.255.255", "10.0.0.255", STACK_IP]
)
@pytest.mark.parametrize("flags", ["S", "A", "R", ""])
def test_closed_source_that_is_no_host(p, source, flags):
    """A8: nobody is answered there, not even with RST."""
    other = p.lab.peer(ip=source, stack_port=99)
    dropped(p, other.make(flags), "drop_ip_src")


@pytest.mark.rows(27)
@pytest.mark.parametrize("target", ["255.255.255.255", "10.0.0.255", "224.0.0.1"])
@pytest.mark.parametrize("flags", ["S", "A", "FA"])
def test_established_to_broadcast(p, target, flags):
    p.stack_ip = target
    frame = p.make(flags)
    p.stack_ip = STACK_IP
    with p.lab.counts(drop_ip_dst=2, tcp_resets_sent=0):
        p.lab.inject(frame)
        p.lab.inject(b"\xff" * 6 + frame[6:])


@pytest.mark.rows(27)
def test_listen_syn_in_a_broadcast_frame(p):
    """RFC 1122, 3.3.6: a unicast packet in a link-layer broadcast is not answered."""
    frame = p.lab.peer(port=7777).make("S")
    p.lab.inject(b"\xff" * 6 + frame[6:])


def test_established_to_another_host(p):
    p.stack_ip = "10.0.0.9"
    frame = p.make("A", data=3)
    p.stack_ip = STACK_IP
    dropped(p, frame, "drop_ip_dst")


def test_established_to_another_station(p):
    frame = p.make("A", data=3)
    dropped(p, bytes.fromhex("02000000000f") + frame[6:], "drop_eth_dst")


def test_established_ip_in_ip(p):
    packet = p.make("A", data=3)[14:]
    outer = build_ip(packet, p.ip, STACK_IP, proto=4)
    dropped(p, build_eth(STACK_MAC, PEER_MAC, outer), "drop_ip_proto")


@pytest.mark.parametrize("ethertype", [0x8100, 0x86DD, 0x0040, 0x88A8])
def test_established_ethertype(p, ethertype):
    """A9: VLAN tag, IPv6, 802.3 length."""
    frame = p.make("A", data=3)
    dropped(p, frame[:12] + ethertype.to_bytes(2, "big") + frame[14:], "drop_eth_type")


@pytest.mark.parametrize("frag", [0x2000, 0x0001, 0x2001, 0x1FFF])
def test_established_fragment(p, frag):
    """A10: no part of a packet is taken for a segment."""
    dropped(p, p.make("A", data=8, ip={"frag": frag}), "drop_ip_fragment")


def test_established_fragment_flood(p):
    """D8: overlapping ones, first ones without an end: nothing of any is kept."""
    before = p.stack.usage()
    with p.lab.counts(drop_ip_fragment=500):
        for i in range(500):
            more_and_offset = 0x2000 | i % 25
            p.lab.inject(p.make("A", data=8, ip={"frag": more_and_offset, "ip_id": i // 25}))
    assert p.stack.usage() == before


def test_established_no_flags(p):
    with p.lab.counts(drop_tcp_state=1):
        p.send("", data=b"abc", seq=p.snd_nxt)
    assert p.read() == 0


@pytest.mark.rows(77)
@pytest.mark.parametrize("flags", ["", "P", "F", "U", "FPU"])
def test_established_without_ack(p, flags):
    """Also Christmas tree and null scans: no ACK, no effect."""
    with p.lab.counts(drop_tcp_state=1):
        p.send(flags, data=b"abc", seq=p.snd_nxt)
    assert p.read() == 0


@pytest.mark.parametrize("bits", [0x40, 0x80, 0xC0, 0x100, 0xE00])
def test_established_reserved_and_ecn_bits(p, bits):
    """A12: not negotiated, so without meaning."""
    frame = bytearray(p.make("A", data=5))
    word = int.from_bytes(frame[46:48], "big") | bits
    segment = bytearray(frame[34:])
    segment[12:14] = word.to_bytes(2, "big")
    segment[16:18] = b"\0\0"
    pseudo = frame[26:34] + b"\0\6" + len(segment).to_bytes(2, "big")
    segment[16:18] = checksum(bytes(pseudo + segment)).to_bytes(2, "big")
    p.lab.inject(bytes(frame[:34] + segment))
    p.snd_nxt += 5
    assert p.read() == 5
    p.lab.advance(tp.SEC)
    p.expect("A", len=0, ack=6)


@pytest.mark.parametrize("bits", ["SE", "SC", "SEC"])
def test_listen_syn_asking_for_ecn(tcp, bits):
    """A12: ECN is off: the SYN-ACK does not agree to it."""
    p = tp.listen(tcp())
    p.send(bits)
    p.expect("SA", ack=1)
