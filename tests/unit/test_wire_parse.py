# SPDX-License-Identifier: MIT
"""Views of Ethernet, ARP, IPv4, ICMP, UDP and TCP: what they accept, what they refuse and why."""

from __future__ import annotations

import struct

import pytest
import wire_frames as frames
import wire_reference
import wire_views as views
from wire_frames import CLIENT, CLIENT_MAC, SERVER

from machnet._native import lib

VIEWS = {
    "eth": views.ETH,
    "arp": views.ARP,
    "ipv4": views.IPV4,
    "icmp": views.ICMP,
    "icmp_quote": views.ICMP_QUOTE,
    "udp": views.UDP,
    "tcp": views.TCP,
}
#: The shortest prefix of the valid input that its view accepts; a link or UDP-like payload may end
#: anywhere behind it. None: only the whole is right, as a length or a checksum covers it.
SHORTEST = {
    "eth": 14,
    "arp": 28,
    "ipv4": None,
    "icmp": None,
    "icmp_quote": 32,
    "udp": None,
    "tcp": 52,
}


@pytest.mark.parametrize("name", VIEWS)
def test_every_truncation(name: str) -> None:
    whole = frames.VALID[name]
    shortest = SHORTEST[name] or len(whole)
    for length in range(len(whole) + 1):
        answer = VIEWS[name](whole[:length])
        assert answer == getattr(wire_reference, name)(whole[:length]), length
        if length >= shortest:
            assert isinstance(answer, dict), length
        elif name == "icmp" and length >= 8:
            assert answer == "BAD_CSUM", length
        else:
            assert answer == "TRUNCATED", length


@pytest.mark.parametrize("name", ["ipv4", "udp"])
def test_what_follows_the_announced_length_is_ignored(name: str) -> None:
    whole = frames.VALID[name]
    assert VIEWS[name](whole + b"\xee" * 40) == VIEWS[name](whole)


class TestEthernet:
    def test_fields(self) -> None:
        assert views.ETH(frames.eth(0x86DD, b"xy")) == {
            "dst": frames.SERVER_MAC,
            "src": CLIENT_MAC,
            "type": 0x86DD,
            "hdr_len": 14,
            "payload": (14, 2),
        }

    @pytest.mark.parametrize("ethertype", [0x8100, 0x88A8, 0, 46, 0x5DC, 0x5FF])
    def test_vlan_tags_and_802_3_lengths_are_unsupported(self, ethertype: int) -> None:
        assert views.ETH(frames.eth(ethertype, bytes(46))) == "UNSUPPORTED"

    @pytest.mark.parametrize("ethertype", [0x600, 0x800, 0x806, 0xFFFF])
    def test_other_types_pass(self, ethertype: int) -> None:
        assert views.ETH(frames.eth(ethertype, b""))["type"] == ethertype

    @pytest.mark.parametrize(
        ("mac", "group"),
        [
            ("020000000001", False),
            ("01005e000001", True),
            ("ffffffffffff", True),
            ("feffffffffff", False),
        ],
    )
    def test_groups(self, mac: str, group: bool) -> None:
        assert lib.mn_eth_is_group(views.guarded(bytes.fromhex(mac))) is group


class TestArp:
    def test_request(self) -> None:
        assert views.ARP(frames.arp()) == {
            "op": 1,
            "sender_ip": CLIENT,
            "target_ip": SERVER,
            "sender_mac": CLIENT_MAC,
            "target_mac": bytes(6),
        }

    def test_padding_is_ignored(self) -> None:
        assert views.ARP(frames.arp(2) + bytes(18)) == views.ARP(frames.arp(2))

    def test_probe_has_no_sender_address(self) -> None:
        assert views.ARP(frames.arp(sender_ip=0))["sender_ip"] == 0

    @pytest.mark.parametrize(
        ("at", "value", "answer"),
        [
            (0, 6, "UNSUPPORTED"),
            (2, 0x86DD, "UNSUPPORTED"),
            (4, 0x0604 + 0x100, "BAD_LENGTH"),
            (4, 0x0604 + 1, "BAD_LENGTH"),
            (4, 0, "BAD_LENGTH"),
            (4, 0xFFFF, "BAD_LENGTH"),
            (6, 0, "UNSUPPORTED"),
            (6, 3, "UNSUPPORTED"),
            (6, 0xFFFF, "UNSUPPORTED"),
        ],
    )
    def test_only_ethernet_and_ipv4(self, at: int, value: int, answer: str) -> None:
        data = bytearray(frames.arp())
        struct.pack_into(">H", data, at, value)
        assert views.ARP(data) == answer

    @pytest.mark.parametrize("mac", ["ffffffffffff", "01005e000001", "000000000000"])
    def test_sender_mac_that_no_host_has(self, mac: str) -> None:
        assert views.ARP(frames.arp(sender_mac=bytes.fromhex(mac))) == "BAD_ADDR"

    @pytest.mark.parametrize("ip", [0x7F000001, 0xE0000001, 0xFFFFFFFF, 1])
    def test_sender_address_that_no_host_has(self, ip: int) -> None:
        assert views.ARP(frames.arp(sender_ip=ip)) == "BAD_ADDR"


class TestIpv4:
    def test_options_are_skipped_by_ihl(self) -> None:
        for words in range(11):
            options = bytes([0x94, 4, 0, 0]) * words
            view = views.IPV4(frames.ipv4(b"transport", options=options))
            assert view["ihl"] == 5 + words
            assert view["opts"] == (20, 4 * words)
            assert view["payload"] == (20 + 4 * words, 9)

    @pytest.mark.parametrize("option", [b"\x94\x00\x00\x00", b"\x07\xff\x04\x00", b"\xff" * 4])
    def test_what_options_say_does_not_matter(self, option: bytes) -> None:
        assert views.IPV4(frames.ipv4(b"x", options=option))["payload"] == (24, 1)

    def test_ethernet_padding_is_not_payload(self) -> None:
        assert views.IPV4(frames.ipv4(b"abc") + bytes(23))["payload"] == (20, 3)
        assert views.IPV4(frames.ipv4(b"") + bytes(26))["payload"] == (20, 0)

    @pytest.mark.parametrize("ihl", range(5))
    def test_ihl_below_5(self, ihl: int) -> None:
        data = bytearray(frames.ipv4(bytes(40)))
        data[0] = 0x40 | ihl
        assert views.IPV4(frames.with_checksum(data[:20], 10) + data[20:]) == "BAD_LENGTH"

    def test_total_length_between_header_and_frame(self) -> None:
        payload = bytes(20)
        for total in [0, 1, 19]:
            assert views.IPV4(frames.ipv4(payload, total=total)) == "BAD_LENGTH", total
        for total in [20, 21, 39, 40]:
            view = views.IPV4(frames.ipv4(payload, total=total))
            assert view["payload"] == (20, total - 20), total
        for total in [41, 1500, 65535]:
            assert views.IPV4(frames.ipv4(payload, total=total)) == "TRUNCATED", total

    def test_total_length_below_a_header_with_options(self) -> None:
        data = frames.ipv4(bytes(20), options=bytes(20), total=36)
        assert views.IPV4(data) == "BAD_LENGTH"

    @pytest.mark.parametrize("version", [0, 5, 6, 15])
    def test_other_versions(self, version: int) -> None:
        data = bytearray(frames.ipv4(bytes(20)))
        data[0] = version << 4 | 5
        assert views.IPV4(data) == "BAD_VERSION"

    def test_every_flipped_header_bit_is_noticed(self) -> None:
        whole = frames.ipv4(bytes(20), options=bytes(8))
        for bit in range(28 * 8):
            data = bytearray(whole)
            data[bit // 8] ^= 0x80 >> bit % 8
            assert isinstance(views.IPV4(data), str), bit

    @pytest.mark.parametrize("frag", [0x2000, 0x2001, 0x0001, 0x1FFF, 0x6000, 0x4001])
    def test_fragments(self, frag: int) -> None:
        assert views.IPV4(frames.ipv4(bytes(40), frag=frag)) == "FRAGMENT"

    @pytest.mark.parametrize("frag", [0, 0x4000, 0x8000, 0xC000])
    def test_df_and_the_reserved_bit_are_no_fragment(self, frag: int) -> None:
        assert views.IPV4(frames.ipv4(bytes(40), frag=frag))["frag"] == frag

    @pytest.mark.parametrize(
        "src", [0, 0x00FFFFFF, 0x7F000001, 0x7FFFFFFF, 0xE0000000, 0xEFFFFFFF, 0xFFFFFFFF]
    )
    def test_source_that_no_host_has(self, src: int) -> None:
        assert views.IPV4(frames.ipv4(bytes(40), src=src)) == "BAD_ADDR"

    @pytest.mark.parametrize("src", [0x01000000, 0x7EFFFFFF, 0x80000000, 0xDFFFFFFF, 0xF0000000])
    def test_source_next_to_those(self, src: int) -> None:
        assert views.IPV4(frames.ipv4(bytes(40), src=src))["src"] == src

    @pytest.mark.parametrize("dst", [0, 0x7F000001, 0xE0000001, 0xFFFFFFFF])
    def test_destination_is_for_the_caller(self, dst: int) -> None:
        assert views.IPV4(frames.ipv4(bytes(40), dst=dst))["dst"] == dst

    @pytest.mark.parametrize("proto", [0, 4, 41, 50, 255])
    def test_protocol_is_for_the_caller(self, proto: int) -> None:
        assert views.IPV4(frames.ipv4(bytes(40), proto))["proto"] == proto

    @pytest.mark.parametrize(
        ("ip", "classes"),
        [
            (0, {"unspecified", "martian_source"}),
            (0x00000001, {"martian_source"}),
            (0x7F000001, {"loopback", "martian_source"}),
            (0xE0000001, {"multicast", "martian_source"}),
            (0xEFFFFFFF, {"multicast", "martian_source"}),
            (0xF0000000, set()),
            (0xFFFFFFFF, {"limited_broadcast", "martian_source"}),
            (0x0A000001, set()),
        ],
    )
    def test_address_classes(self, ip: int, classes: set[str]) -> None:
        names = ("unspecified", "loopback", "multicast", "limited_broadcast", "martian_source")
        assert {name for name in names if getattr(lib, f"mn_ip_is_{name}")(ip)} == classes


class TestIcmp:
    def test_every_flipped_bit_is_noticed(self) -> None:
        whole = frames.VALID["icmp"]
        for bit in range(len(whole) * 8):
            data = bytearray(whole)
            data[bit // 8] ^= 0x80 >> bit % 8
            assert views.ICMP(data) == "BAD_CSUM", bit

    def test_error_types(self) -> None:
        assert {kind for kind in range(256) if lib.mn_icmp_is_error(kind)} == {3, 4, 5, 11, 12}

    @pytest.mark.parametrize(("proto", "ports", "seq"), [(6, True, True), (17, True, False)])
    def test_quote_of_a_transport(self, proto: int, ports: bool, seq: bool) -> None:
        quote = frames.ipv4(struct.pack(">HHI", 40000, 888, 0xFFFFFFF0), proto)
        view = views.ICMP_QUOTE(quote)
        assert (view["sport"], view["dport"]) == ((40000, 888) if ports else (0, 0))
        assert view["seq"] == (0xFFFFFFF0 if seq else 0)
        assert (view["src"], view["dst"], view["proto"]) == (CLIENT, SERVER, proto)

    def test_quote_of_another_protocol_has_no_ports(self) -> None:
        view = views.ICMP_QUOTE(frames.ipv4(b"\xff" * 8, 1))
        assert (view["sport"], view["dport"], view["seq"]) == (0, 0, 0)

    def test_quote_may_be_shorter_than_the_packet_was(self) -> None:
        view = views.ICMP_QUOTE(frames.ipv4(bytes(8), total=1500))
        assert (view["total_len"], view["payload"]) == (1500, (20, 8))

    def test_what_follows_the_quoted_packet_is_not_part_of_it(self) -> None:
        assert views.ICMP_QUOTE(frames.ipv4(bytes(12)) + b"extension")["payload"] == (20, 12)

    def test_quote_with_a_wrong_ip_checksum_is_read(self) -> None:
        data = bytearray(frames.ipv4(bytes(8)))
        data[8] -= 1
        assert views.ICMP_QUOTE(data)["ttl"] == 63

    def test_quote_of_a_later_fragment(self) -> None:
        assert views.ICMP_QUOTE(frames.ipv4(bytes(8), frag=0x2001)) == "FRAGMENT"
        assert isinstance(views.ICMP_QUOTE(frames.ipv4(bytes(8), frag=0x2000)), dict)

    @pytest.mark.parametrize(("first", "answer"), [(0x65, "BAD_VERSION"), (0x44, "BAD_LENGTH")])
    def test_quote_of_no_ipv4_header(self, first: int, answer: str) -> None:
        data = bytearray(frames.ipv4(bytes(8)))
        data[0] = first
        assert views.ICMP_QUOTE(data) == answer

    def test_quote_with_ihl_15_needs_68_bytes(self) -> None:
        data = frames.ipv4(bytes(8), options=bytes(40))
        assert views.ICMP_QUOTE(data)["payload"] == (60, 8)
        assert views.ICMP_QUOTE(data[:-1]) == "TRUNCATED"


class TestUdp:
    @pytest.mark.parametrize("length", range(8))
    def test_length_below_the_header(self, length: int) -> None:
        data = bytearray(frames.udp(b"x"))
        struct.pack_into(">H", data, 4, length)
        assert views.UDP(data) == "BAD_LENGTH"

    def test_length_beyond_the_end(self) -> None:
        data = bytearray(frames.udp(b"x"))
        for length in [10, 65535]:
            struct.pack_into(">H", data, 4, length)
            assert views.UDP(data) == "TRUNCATED"
            assert not lib.mn_udp_csum_ok(CLIENT, SERVER, views.guarded(data), len(data))

    def test_checksum_covers_addresses_header_and_payload(self) -> None:
        data = frames.udp(b"payload")

        def ok(data: bytes | bytearray, src: int = CLIENT, dst: int = SERVER) -> bool:
            return lib.mn_udp_csum_ok(src, dst, views.guarded(data), len(data))

        assert ok(data)
        assert ok(data + b"link padding")
        assert not ok(data, src=CLIENT + 4)
        assert not ok(data, dst=SERVER + 4)
        for bit in [*range(32), *range(48, len(data) * 8)]:
            flipped = bytearray(data)
            flipped[bit // 8] ^= 0x80 >> bit % 8
            assert not ok(flipped), bit

    def test_zero_checksum_is_none(self) -> None:
        data = bytearray(frames.udp(b"payload"))
        data[6:8] = b"\0\0"
        data[-1] ^= 1
        assert lib.mn_udp_csum_ok(CLIENT, SERVER, views.guarded(data), len(data))


class TestTcp:
    @pytest.mark.parametrize("doff", range(5))
    def test_data_offset_below_5(self, doff: int) -> None:
        assert views.TCP(frames.tcp(bytes(60), doff=doff)) == "BAD_LENGTH"

    @pytest.mark.parametrize("doff", range(6, 16))
    def test_data_offset_beyond_the_segment(self, doff: int) -> None:
        room = doff * 4 - 20
        assert views.TCP(frames.tcp(bytes(room - 1), doff=doff)) == "TRUNCATED"
        view = views.TCP(frames.tcp(bytes(room), doff=doff))
        assert (view["opts"], view["payload"]) == ((20, room), (20 + room, 0))

    @pytest.mark.parametrize("flags", [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 0x1FF])
    def test_nine_flags(self, flags: int) -> None:
        assert views.TCP(frames.tcp(flags=flags))["flags"] == flags

    def test_reserved_bits_are_ignored(self) -> None:
        assert views.TCP(frames.tcp(flags=0xE12))["flags"] == 0x12

    @pytest.mark.parametrize("urg", [0, 1, 5, 6, 65535])
    def test_urgent_pointer_changes_no_length(self, urg: int) -> None:
        view = views.TCP(frames.tcp(b"hello", flags=0x30, urg=urg))
        assert (view["urg"], view["payload"]) == (urg, (20, 5))

    def test_checksum_covers_addresses_and_segment(self) -> None:
        data = frames.tcp(b"payload", options=frames.TS_OPTIONS)

        def ok(data: bytes | bytearray, src: int = CLIENT, dst: int = SERVER) -> bool:
            return lib.mn_tcp_csum_ok(src, dst, views.guarded(data), len(data))

        assert ok(data)
        assert not ok(data, src=CLIENT + 4)
        assert not ok(data, dst=SERVER + 4)
        assert not ok(data + b"\0\0")
        assert not ok(data[:-1])
        for bit in range(len(data) * 8):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 0x80 >> bit % 8
            assert not ok(flipped), bit

    def test_zero_checksum_is_no_exception(self) -> None:
        data = bytearray(frames.tcp(b"payload"))
        data[16:18] = b"\0\0"
        assert not lib.mn_tcp_csum_ok(CLIENT, SERVER, views.guarded(data), len(data))
