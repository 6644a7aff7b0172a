# SPDX-License-Identifier: MIT
"""The Toeplitz hash, against the vectors that Microsoft published for RSS, and what is made of it."""

from __future__ import annotations

import random
import struct

import pytest

from machnet._native import lib
from machnet.stack.nics import Rss

#: Source, destination, source port, destination port; hash of the addresses, hash with ports.
VECTORS = [
    ("66.9.149.187", "161.142.100.80", 2794, 1766, 0x323E8FC2, 0x51CCC178),
    ("199.92.111.2", "65.69.140.83", 14230, 4739, 0xD718262A, 0xC626B0EA),
    ("24.19.198.95", "12.22.207.184", 12898, 38024, 0xD2D0A5DE, 0x5C2B394A),
    ("38.27.205.30", "209.142.163.6", 48228, 2217, 0x82989176, 0xAFC7327F),
    ("153.39.163.191", "202.188.127.2", 44251, 1303, 0x5D1809C5, 0x10E828A2),
]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v[0])
def test_the_published_vectors_come_out(vector):
    src, dst, sport, dport, addrs, ports = vector
    rss = Rss([0])
    assert rss.hash_addrs(src, dst) == addrs
    assert rss.hash_ports(src, dst, sport, dport) == ports


def toeplitz(key: bytes, data: bytes) -> int:
    """Bit by bit, as the definition has it."""
    bits = int.from_bytes(key, "big")
    total = len(key) * 8
    result = 0
    for i in range(len(data) * 8):
        if data[i // 8] & (0x80 >> i % 8):
            result ^= bits >> (total - 32 - i) & 0xFFFFFFFF
    return result


def test_any_key_gives_what_the_definition_says():
    rng = random.Random(3)
    for size in (16, 40, 52):
        key = rng.randbytes(size)
        rss = Rss([0], key)
        for _ in range(20):
            data = rng.randbytes(12)
            src, dst = (".".join(map(str, data[at : at + 4])) for at in (0, 4))
            sport, dport = struct.unpack("!HH", data[8:])
            assert rss.hash_ports(src, dst, sport, dport) == toeplitz(key, data)
            assert rss.hash_addrs(src, dst) == toeplitz(key, data[:8])


def test_a_key_is_known_to_be_symmetric():
    assert not Rss([0]).symmetric
    rss = Rss([0], bytes.fromhex("6d5a") * 20)
    assert rss.symmetric
    assert rss.hash_ports("10.0.0.1", "10.9.8.7", 5, 6) == rss.hash_ports(
        "10.9.8.7", "10.0.0.1", 6, 5
    )


def ipv4(proto: int, payload: bytes, frag: int = 0, options: bytes = b"") -> bytes:
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | (5 + len(options) // 4),
        0,
        20 + len(options) + len(payload),
        0,
        frag,
        64,
        proto,
        0,
        bytes([66, 9, 149, 187]),
        bytes([161, 142, 100, 80]),
    )
    return bytes(12) + b"\x08\x00" + header + options + payload


def test_the_queue_of_a_frame_follows_ports_where_it_has_some():
    table = list(range(128))
    rss = Rss(table)
    ports = struct.pack("!HH", 2794, 1766)
    with_ports, without = 0x51CCC178 % 128, 0x323E8FC2 % 128
    assert rss.frame_queue(ipv4(6, ports)) == with_ports
    assert rss.frame_queue(ipv4(17, ports)) == with_ports
    assert rss.frame_queue(ipv4(6, ports, options=bytes(8))) == with_ports
    assert rss.frame_queue(ipv4(1, ports)) == without
    assert rss.frame_queue(ipv4(6, ports, frag=0x2000)) == without, "the first fragment"
    assert rss.frame_queue(ipv4(6, ports, frag=5)) == without
    assert rss.frame_queue(ipv4(6, ports, frag=0x4000)) == with_ports, "don't fragment"
    assert rss.frame_queue(ipv4(6, b"")) == without, "cut off"
    assert rss.frame_queue(ipv4(6, ports, options=bytes(8))[:38]) == without, "cut off"


@pytest.mark.parametrize("length", [0, 13, 14, 33])
def test_what_is_no_whole_ipv4_header_goes_to_queue_0(length):
    assert Rss([1] * 2).frame_queue(ipv4(6, bytes(20))[:length]) == 0


def test_what_is_not_ipv4_goes_to_queue_0():
    frame = ipv4(6, bytes(20))
    assert Rss([1]).frame_queue(frame) == 1
    assert Rss([1]).frame_queue(frame[:12] + b"\x08\x06" + frame[14:]) == 0
    assert Rss([1]).frame_queue(frame[:14] + b"\x65" + frame[15:]) == 0


def test_the_least_share_counts_queues_that_get_nothing():
    rss = Rss([0, 1, 1, 2, 2, 2, 2, 2])
    shares = [int(lib.mn_rss_least_share(rss.native, n)) for n in (1, 2, 3, 4)]
    assert shares == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("table", "key"),
    [([], None), ([0] * 3, None), ([0] * 1024, None), ([0], b"x" * 15), ([0], b"x" * 53)],
)
def test_sizes_out_of_range_are_refused(table, key):
    with pytest.raises(ValueError, match="a key has 16 to 52 bytes, a table 1 to 512"):
        Rss(table, key)
