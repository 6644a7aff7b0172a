# SPDX-License-Identifier: MIT
"""`machnet.testing.Packet`: what it reads and makes, with scapy as the second opinion."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from machnet.testing import Packet
from machnet.testing.build import FIELDS, make_frame
from machnet.testing.octets import checksum, flag_bits, ip_bytes, mac_bytes

if TYPE_CHECKING:
    from pathlib import Path

U8, U16, U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
FLAGS = st.sets(st.sampled_from("FSRPAUEC")).map(lambda s: "".join(c for c in "FSRPAUEC" if c in s))
IPS = st.integers(0, 0xFFFFFFFF).map(lambda n: ".".join(map(str, n.to_bytes(4, "big"))))
MACS = st.binary(min_size=6, max_size=6).map(lambda b: b.hex(":"))
SACK = st.lists(st.tuples(U32, U32), min_size=1, max_size=4).map(tuple)
OPTIONS = st.one_of(
    st.tuples(st.just("mss"), U16),
    st.tuples(st.just("wscale"), U8),
    st.just(("sack_ok", None)),
    st.just(("nop", None)),
    st.tuples(st.just("sack"), SACK),
    st.tuples(st.just("ts"), st.tuples(U32, U32)),
    st.tuples(st.sampled_from([9, 34, 253, 254]), st.binary(max_size=8)),
)
ETHER = {"eth_src": MACS, "eth_dst": MACS}
IP = {"src": IPS, "dst": IPS, "ttl": U8, "tos": U8, "ip_id": U16, "df": st.booleans()}
IP |= {"ip_options": st.sampled_from([b"", b"\x01\x01\x01\x00", b"\x94\x04\x00\x00"])}
TCP = {"sport": U16, "dport": U16, "seq": U32, "ack": U32, "flags": FLAGS, "window": U16}
TCP |= {"urgent": U16, "reserved": st.integers(0, 15)}
DATA = st.binary(max_size=100)


def fits(options: list[Any]) -> bool:
    from machnet.testing.tcpoptions import join

    return len(join(options)) <= 40


TCP_FIELDS = st.fixed_dictionaries(
    ETHER | IP | TCP | {"options": st.lists(OPTIONS, max_size=5).filter(fits), "payload": DATA}
)
UDP_FIELDS = st.fixed_dictionaries(ETHER | IP | {"sport": U16, "dport": U16, "payload": DATA})
ECHO = {"icmp_type": st.sampled_from([0, 8]), "icmp_code": st.just(0)}
ICMP_FIELDS = st.fixed_dictionaries(
    ETHER | IP | ECHO | {"icmp_id": U16, "icmp_seq": U16, "payload": DATA}
)
ARP = {"sender_mac": MACS, "target_mac": MACS, "sender_ip": IPS, "target_ip": IPS}
ARP_FIELDS = st.fixed_dictionaries(ETHER | ARP | {"op": U16})


def scapy_of(frame: bytes) -> Any:
    from scapy.layers.inet import Ether  # and not from l2, so that it knows IP

    return Ether(frame)


def recomputed(frame: bytes, layer: str) -> bytes:
    """The same frame with scapy's checksums in it."""
    packet = scapy_of(frame)
    del packet["IP"].chksum
    del packet[layer].chksum
    return bytes(packet)


def assert_as_built(packet: Packet, fields: dict[str, Any]) -> None:
    wanted = dict(fields)
    got = {name: getattr(packet, name) for name in wanted if name not in ("options", "payload")} | {
        name: getattr(packet, name) for name in wanted if name in ("options", "payload")
    }
    if "options" in wanted:
        wanted["options"] = tuple(wanted["options"])
        got["options"] = got["options"][: len(wanted["options"])]
    assert got == wanted
    assert packet.error is None
    assert packet.csum_ok


def assert_ip_agrees(packet: Packet, theirs: Any) -> None:
    ip = theirs["IP"]
    assert (packet.src, packet.dst, packet.ttl, packet.tos) == (ip.src, ip.dst, ip.ttl, ip.tos)
    assert (packet.ip_id, packet.ip_len, packet.ihl) == (ip.id, ip.len, ip.ihl)
    assert (packet.ip_csum, packet.proto, packet.df) == (ip.chksum, ip.proto, ip.flags.DF)
    assert (packet.eth_src, packet.eth_dst) == (theirs.src, theirs.dst)


def scapy_options(packet: Packet) -> list[tuple[Any, Any]]:
    """Our options in scapy's words."""
    words = {"mss": "MSS", "wscale": "WScale", "sack_ok": "SAckOK", "sack": "SAck"}
    words |= {"ts": "Timestamp", "nop": "NOP", "eol": "EOL"}
    out: list[tuple[Any, Any]] = []
    for name, value in packet.options:
        if name == "sack":
            out.append(("SAck", tuple(n for block in value for n in block)))
        elif name == "sack_ok":
            out.append(("SAckOK", b""))
        else:
            out.append((words.get(name, name), value))
    return out


@given(TCP_FIELDS)
def test_a_segment_is_what_scapy_says(fields: dict[str, Any]) -> None:
    frame = make_frame("tcp", fields)
    packet = Packet(frame)
    assert_as_built(packet, fields)
    theirs = scapy_of(frame)
    assert_ip_agrees(packet, theirs)
    tcp = theirs["TCP"]
    assert (packet.sport, packet.dport, packet.seq) == (tcp.sport, tcp.dport, tcp.seq)
    assert (packet.ack, packet.doff, packet.window) == (tcp.ack, tcp.dataofs, tcp.window)
    assert (packet.csum, packet.urgent) == (tcp.chksum, tcp.urgptr)
    assert flag_bits(packet.flags) | (packet.reserved & 1) << 8 == int(tcp.flags)
    known = [option for option in scapy_options(packet) if isinstance(option[0], str)]
    assert [o for o in tcp.options if isinstance(o[0], str) and o[0] in dict(known)] == known
    assert recomputed(frame, "TCP") == frame


@given(UDP_FIELDS)
def test_a_datagram_is_what_scapy_says(fields: dict[str, Any]) -> None:
    frame = make_frame("udp", fields)
    packet = Packet(frame)
    assert_as_built(packet, fields)
    theirs = scapy_of(frame)
    assert_ip_agrees(packet, theirs)
    udp = theirs["UDP"]
    assert (packet.sport, packet.dport) == (udp.sport, udp.dport)
    assert (packet.udp_len, packet.csum) == (udp.len, udp.chksum)
    assert recomputed(frame, "UDP") == frame


@given(ICMP_FIELDS)
def test_an_echo_is_what_scapy_says(fields: dict[str, Any]) -> None:
    frame = make_frame("icmp", fields)
    packet = Packet(frame)
    assert_as_built(packet, fields)
    theirs = scapy_of(frame)
    assert_ip_agrees(packet, theirs)
    icmp = theirs["ICMP"]
    assert (packet.icmp_type, packet.icmp_id, packet.icmp_seq) == (icmp.type, icmp.id, icmp.seq)
    assert recomputed(frame, "ICMP") == frame


@given(ARP_FIELDS)
def test_arp_is_what_scapy_says(fields: dict[str, Any]) -> None:
    frame = make_frame("arp", fields)
    packet = Packet(frame)
    assert_as_built(packet, fields)
    arp = scapy_of(frame)["ARP"]
    assert (packet.op, packet.sender_mac, packet.sender_ip) == (arp.op, arp.hwsrc, arp.psrc)
    assert (packet.target_mac, packet.target_ip) == (arp.hwdst, arp.pdst)


@given(st.one_of(*(st.tuples(st.just(kind), fields) for kind, fields in (
    ("tcp", TCP_FIELDS), ("udp", UDP_FIELDS), ("icmp", ICMP_FIELDS), ("arp", ARP_FIELDS)
))))  # fmt: skip
def test_a_packet_without_changes_is_the_same(made: tuple[str, dict[str, Any]]) -> None:
    packet = Packet(make_frame(*made))
    assert packet.with_() == packet
    assert hash(packet.with_()) == hash(packet)
    assert Packet(make_frame(packet.kind, packet.fields())) == packet


def read_everything(packet: Packet) -> None:
    """Ask for all there is; the answers don't matter, except where they must agree."""
    names = {name for header in FIELDS.values() for name in header}
    for name in names - {"vlans", "ip_version"}:
        getattr(packet, name)
    for layer in (packet.eth, packet.arp, packet.ip, packet.icmp, packet.udp, packet.tcp):
        for name in dir(layer) if layer is not None else ():
            if not name.startswith("_"):
                getattr(layer, name)
    assert packet.length == len(packet.payload)
    assert isinstance(packet.csum_ok, bool)
    assert "\n" not in packet.summary()
    assert packet.summary() in repr(packet)
    assert packet.error is None or packet.error in packet.summary()
    if packet.quoted is not None:
        read_everything(packet.quoted)
    if packet.kind != "none":
        read_again = packet.with_()
        assert read_again.kind == packet.kind or packet.error
        assert read_again.csum_ok or packet.error or not packet.csum_ok


ETH_IP = bytes.fromhex("020000000002020000000001")
GARBAGE = st.one_of(
    st.binary(max_size=120),
    st.binary(max_size=120).map(lambda b: ETH_IP + b"\x08\x00\x45" + b),
    st.binary(max_size=120).map(lambda b: ETH_IP + b"\x08\x06\x00\x01\x08\x00\x06\x04" + b),
    st.binary(max_size=60).map(lambda b: ETH_IP + b"\x81\x00" + b),
)


@given(GARBAGE)
@example(b"")
@example(ETH_IP + b"\x81\x00\x00\x07\x81\x00")
def test_nothing_is_too_strange_to_read(frame: bytes) -> None:
    read_everything(Packet(frame))
    read_everything(Packet.from_ip(frame))
    read_everything(Packet.from_ip(frame, cut=True))


@given(
    st.one_of(
        TCP_FIELDS.map(lambda f: make_frame("tcp", f)),
        UDP_FIELDS.map(lambda f: make_frame("udp", f)),
        ICMP_FIELDS.map(lambda f: make_frame("icmp", f | {"icmp_type": 3})),
        ARP_FIELDS.map(lambda f: make_frame("arp", f)),
    ),
    st.lists(st.tuples(st.integers(0, 10_000), U8), max_size=3),
    st.integers(0, 200),
)
def test_a_broken_packet_can_be_read(
    frame: bytes, writes: list[tuple[int, int]], length: int
) -> None:
    broken = bytearray(frame)
    for at, value in writes:
        broken[at % len(broken)] = value
    read_everything(Packet(bytes(broken[:length])))
    read_everything(Packet(bytes(broken)))


def test_what_is_absent_is_none() -> None:
    arp = Packet(make_frame("arp", {}))
    assert arp.kind == "arp"
    assert (arp.ip, arp.tcp, arp.udp, arp.icmp) == (None, None, None, None)
    assert (arp.src, arp.dport, arp.flags, arp.mss, arp.payload) == (None, None, None, None, b"")
    tcp = Packet(make_frame("tcp", {}))
    assert (tcp.arp, tcp.op, tcp.mss, tcp.wscale, tcp.ts) == (None, None, None, None, None)
    assert (tcp.sack, tcp.sack_ok, tcp.udp_len, tcp.quoted) == ((), False, None, None)


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (b"\x02" * 13, "13 bytes: shorter than an Ethernet header"),
        (ETH_IP + b"\x08\x00" + b"\x45" * 19, "IPv4 header cut off: 19 bytes of 20"),
        (ETH_IP + b"\x08\x00" + b"\x60" * 40, "IP version 6 in a packet that says IPv4"),
        (make_frame("tcp", {"ihl": 4}), "IPv4 header of 16 bytes, 40 are there"),
        (make_frame("tcp", {"ihl": 15}), "IPv4 header of 60 bytes, 40 are there"),
        (make_frame("tcp", {"ip_len": 19}), "IPv4 length 19: shorter than its header (20)"),
        (make_frame("tcp", {"ip_len": 41}), "IPv4 length 41, but 40 bytes are there"),
        (make_frame("tcp", {"ip_len": 39}), "TCP header cut off: 19 bytes of 20"),
        (make_frame("tcp", {"doff": 4}), "TCP header of 16 bytes, 20 are there"),
        (make_frame("tcp", {"doff": 6}), "TCP header of 24 bytes, 20 are there"),
        (make_frame("udp", {"udp_len": 7}), "UDP length 7, 8 bytes are there"),
        (make_frame("udp", {"udp_len": 9}), "UDP length 9, 8 bytes are there"),
        (make_frame("udp", {"ip_len": 27}), "UDP header cut off: 7 bytes of 8"),
        (
            make_frame("tcp", {"options": b"\x02\x05\x01\x02"}),
            "TCP option 2 of 5 bytes, 4 are left",
        ),
        (make_frame("tcp", {"options": b"\x02\x03\x01"}), "TCP option mss of 3 bytes"),
        (
            make_frame("tcp", {"options": b"\x00\x01"}),
            "TCP options: what follows end-of-options is not zero",
        ),
        (make_frame("arp", {})[:41], "ARP of 27 bytes: 28 are needed"),
        (make_frame("arp", {})[:18] + bytes(24), "ARP, but not for IPv4 over Ethernet"),
    ],
)
def test_an_error_says_what_is_wrong(frame: bytes, error: str) -> None:
    assert Packet(frame).error == error
    assert f"[{error}]" in Packet(frame).summary()


def test_each_checksum_is_verified() -> None:
    for kind in ("tcp", "udp", "icmp"):
        frame = make_frame(kind, {"payload": b"odd"})
        good = Packet(frame)
        layer = getattr(good, kind)
        assert good.ip is not None
        assert (good.ip.csum_ok, layer.csum_ok, good.csum_ok) == (True, True, True)
        wrong = Packet(make_frame(kind, {"payload": b"odd", "csum": 0x1234}))
        assert wrong.ip is not None
        assert (wrong.ip.csum_ok, getattr(wrong, kind).csum_ok) == (True, False)
        assert wrong.csum == 0x1234
        assert not wrong.csum_ok
        assert wrong.error is None
        assert wrong.summary().endswith(" [bad checksum]")
        header = Packet(make_frame(kind, {"ip_csum": 0x1234}))
        assert header.ip is not None
        assert (header.ip.csum_ok, getattr(header, kind).csum_ok) == (False, True)
    assert Packet(make_frame("udp", {"csum": 0, "payload": b"x"})).csum_ok


def test_a_computed_udp_checksum_is_never_zero() -> None:
    for word in range(0x10000):
        frame = make_frame("udp", {"payload": word.to_bytes(2, "big")})
        if frame[40:42] == b"\xff\xff":
            assert Packet(frame).csum_ok
            return
        assert frame[40:42] != b"\0\0"
    pytest.fail("no payload has a sum of zero")


def test_a_checksum_of_a_fragment_is_not_known() -> None:
    for changes in ({"mf": True}, {"mf": True, "frag_offset": 8}, {"frag_offset": 1480}):
        packet = Packet(make_frame("tcp", {"payload": b"x" * 64, **changes}))
        assert packet.csum_ok
        if "frag_offset" in changes:
            assert (packet.kind, packet.tcp) == ("ip", None)
            assert packet.frag_offset == changes["frag_offset"]
        else:
            assert packet.tcp is not None
            assert packet.tcp.csum_ok is None
            assert packet.with_(ttl=1).csum == packet.csum


def test_vlan_tags_are_passed_over_and_kept() -> None:
    tags = ((0x88A8, 100), (0x8100, 0x2007))
    packet = Packet(make_frame("tcp", {"vlans": tags, "flags": "S"}))
    assert packet.eth is not None
    assert (packet.kind, packet.ethertype, packet.flags) == ("tcp", 0x0800, "S")
    assert packet.eth.vlans == tags
    changed = packet.with_(flags="R")
    assert changed.eth is not None
    assert (changed.eth.vlans, changed.flags, changed.csum_ok) == (tags, "R", True)


def test_ethernet_padding_is_a_trailer() -> None:
    packet = Packet(make_frame("tcp", {"payload": b"abc", "trailer": b"\0\0\0"}))
    assert (packet.payload, packet.trailer, packet.error) == (b"abc", b"\0\0\0", None)
    assert packet.csum_ok
    assert packet.with_(ttl=3).trailer == b"\0\0\0"
    arp = Packet(make_frame("arp", {"trailer": bytes(18)}))
    assert (len(arp), arp.trailer, arp.kind) == (60, bytes(18), "arp")


class TestWith:
    def test_lengths_and_checksums_are_made_good(self) -> None:
        packet = Packet(make_frame("tcp", {"csum": 1, "ip_csum": 2, "doff": 9, "ip_len": 999}))
        good = packet.with_(payload=b"hello", src="10.9.8.7")
        assert (good.error, good.csum_ok, good.ip_len, good.doff) == (None, True, 45, 5)
        assert (good.payload, good.src) == (b"hello", "10.9.8.7")
        assert not packet.csum_ok

    def test_what_is_given_is_taken_as_it_is(self) -> None:
        packet = Packet(make_frame("tcp", {})).with_(csum=0xDEAD, ip_len=1000, doff=15)
        assert (packet.csum, packet.ip_len, packet.doff) == (0xDEAD, 1000, 15)
        udp = Packet(make_frame("udp", {})).with_(udp_len=4, ip_csum=7)
        assert (udp.udp_len, udp.ip_csum) == (4, 7)

    def test_an_option_is_set_where_it_stood_or_added_or_removed(self) -> None:
        packet = Packet(make_frame("tcp", {"flags": "S", "mss": 1460, "wscale": 7}))
        assert packet.options == (("mss", 1460), ("nop", None), ("wscale", 7))
        assert packet.with_(mss=500).options == (("mss", 500), ("nop", None), ("wscale", 7))
        assert packet.with_(wscale=None).mss == 1460
        assert packet.with_(wscale=None).wscale is None
        more = packet.with_(ts=(1, 2), sack_ok=True)
        assert (more.mss, more.wscale, more.ts, more.sack_ok) == (1460, 7, (1, 2), True)
        assert (more.error, more.csum_ok) == (None, True)
        assert packet.with_(options=["nop", (254, b"ab")]).options[:2] == (
            ("nop", None),
            (254, b"ab"),
        )
        assert packet.with_(options=b"\x02\x04\x00\x01").mss == 1

    def test_other_layers(self) -> None:
        packet = Packet(make_frame("icmp", {"icmp_id": 5}))
        assert packet.with_(icmp_seq=9, ttl=1).fields()["icmp_seq"] == 9
        arp = Packet(make_frame("arp", {})).with_(op=2, sender_mac="02:02:02:02:02:02")
        assert (arp.op, arp.sender_mac) == (2, "02:02:02:02:02:02")
        tos = packet.with_(dscp=46, ecn=1)
        assert (tos.dscp, tos.ecn, tos.tos, tos.csum_ok) == (46, 1, 46 << 2 | 1, True)

    def test_a_field_that_is_not_there_is_refused_by_name(self) -> None:
        with pytest.raises(TypeError, match=r"udp has no field 'seq'; it has .*sport"):
            Packet(make_frame("udp", {})).with_(seq=1)
        with pytest.raises(TypeError, match="no packet that could be changed: 3 bytes"):
            Packet(b"abc").with_(ttl=1)
        with pytest.raises(TypeError, match="tos is dscp and ecn"):
            Packet(make_frame("udp", {})).with_(tos=1, ecn=1)

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("sport", 65536, "sport=65536"),
            ("window", -1, "window=-1"),
            ("ttl", 256, "ttl=256"),
            ("src", "10.0.0", "'10.0.0' is no IPv4 address"),
            ("eth_dst", "02:00", "'02:00' is no MAC address"),
            ("flags", "SX", "'X' is none of FSRPAUEC"),
            ("frag_offset", 3, "a multiple of 8"),
            ("doff", 16, "doff=16"),
            ("ihl", 16, "ihl=16"),
            ("mss", 65536, "mss"),
            ("options", [("sack", ((1, 2),) * 5)], "TCP options of 42 bytes"),
            ("csum", 65536, "csum=65536"),
        ],
    )
    def test_a_value_that_does_not_fit_is_refused(self, field: str, value: Any, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            Packet(make_frame("tcp", {})).with_(**{field: value})


class TestQuoted:
    def error(self, cut: int = 28, **fields: Any) -> Packet:
        packet = Packet(make_frame("tcp", {"seq": 77, "payload": b"x" * 50, **fields}))
        quoted = Packet.from_ip(bytes(packet)[14 : 14 + cut], cut=True)
        return Packet(
            make_frame(
                "icmp",
                {"icmp_type": 3, "icmp_code": 4, "icmp_mtu": 1400, "quoted": quoted},
            )
        )

    def test_an_error_shows_the_packet_that_it_quotes(self) -> None:
        packet = self.error()
        assert (packet.error, packet.csum_ok, packet.icmp_mtu) == (None, True, 1400)
        quoted = packet.quoted
        assert quoted is not None
        assert (quoted.eth, quoted.sport, quoted.dport, quoted.seq) == (None, 49152, 80, 77)
        assert (quoted.ack, quoted.flags, quoted.error, quoted.csum_ok) == (0, "", None, True)
        assert quoted.tcp is not None
        assert quoted.tcp.csum_ok is None

    def test_a_quotation_of_less_than_a_header_has_no_ports(self) -> None:
        quoted = self.error(cut=27).quoted
        assert quoted is not None
        assert (quoted.src, quoted.tcp) == ("10.0.0.1", None)
        assert quoted.error == "TCP header cut off: 7 bytes of 20"

    def test_a_whole_packet_can_be_quoted_with_its_checksums(self) -> None:
        packet = Packet(make_frame("udp", {"payload": b"x"}))
        made = Packet(make_frame("icmp", {"icmp_type": 11, "quoted": packet}))
        assert made.quoted is not None
        assert bytes(made.quoted) == bytes(packet)[14:]
        assert made.quoted.udp is not None
        assert made.quoted.udp.csum_ok is True
        assert made.with_(quoted=self.error()).quoted == Packet.from_ip(bytes(self.error())[14:])


def test_relative_numbers_are_read_shown_and_written() -> None:
    top = 0xFFFFFFFF
    fields = {"seq": 4, "ack": 1000, "sack": ((1100, 1200),), "payload": b"abc"}
    packet = Packet(make_frame("tcp", fields)).relative(top - 5, 900)
    assert (packet.seq, packet.ack, packet.sack) == (10, 100, ((200, 300),))
    assert ", seq 10:13, ack 100, " in packet.summary()
    assert "sack 1 {200:300}" in packet.summary()
    same = packet.with_()
    assert (bytes(same), same.seq) == (bytes(packet), 10)
    moved = packet.with_(seq=11, sack=[(201, 301)])
    assert (moved.seq, moved.sack) == (11, ((201, 301),))
    assert (Packet(bytes(moved)).seq, Packet(bytes(moved)).sack) == (5, ((1101, 1201),))


SUMMARIES = [
    (
        "tcp",
        {"flags": "S", "seq": 1, "mss": 1460, "sack_ok": True, "ts": (3, 0), "wscale": 7},
        (
            "10.0.0.1.49152 > 10.0.0.2.80: Flags [S], seq 1, win 65535, "
            "options [mss 1460,sackOK,TS val 3 ecr 0,nop,wscale 7], length 0"
        ),
    ),
    (
        "tcp",
        {"flags": "PA", "seq": 5, "ack": 9, "payload": b"abc"},
        "10.0.0.1.49152 > 10.0.0.2.80: Flags [P.], seq 5:8, ack 9, win 65535, length 3",
    ),
    (
        "tcp",
        {"flags": "A", "ack": 9, "sack": ((20, 30), (40, 50))},
        (
            "10.0.0.1.49152 > 10.0.0.2.80: Flags [.], ack 9, win 65535, "
            "options [nop,nop,sack 2 {20:30}{40:50}], length 0"
        ),
    ),
    (
        "tcp",
        {"flags": "RUEC", "urgent": 3, "options": [(254, b"\xab")]},
        (
            "10.0.0.1.49152 > 10.0.0.2.80: Flags [RUEW], seq 0, win 65535, urg 3, "
            "options [unknown-254 0xab,eol], length 0"
        ),
    ),
    ("tcp", {"flags": ""}, "10.0.0.1.49152 > 10.0.0.2.80: Flags [none], win 65535, length 0"),
    ("udp", {"payload": b"abc"}, "10.0.0.1.49152 > 10.0.0.2.80: UDP, length 3"),
    (
        "udp",
        {"payload": b"NS\1\0" + b"\0\0\0\7" + bytes(4) + b"MNXT" + bytes(38)},
        "10.0.0.1.49152 > 10.0.0.2.80: MNP SYN seq 7, extended, length 0",
    ),
    (
        "udp",
        {"payload": b"NS\0\5" + b"\0\0\0\7" + b"\xff" * 4 + bytes(42) + b"abc"},
        "10.0.0.1.49152 > 10.0.0.2.80: MNP DATA seq 7 [first last], length 3",
    ),
    (
        "udp",
        {"payload": b"NS\2\0" + b"\0\0\0\7" + b"\0\0\0\1" + bytes(42)},
        "10.0.0.1.49152 > 10.0.0.2.80: MNP ACK seq 7, ack 1, length 0",
    ),
    (
        "icmp",
        {"icmp_id": 1, "icmp_seq": 2, "payload": b"abc"},
        "10.0.0.1 > 10.0.0.2: ICMP echo request, id 1, seq 2, length 11",
    ),
    (
        "icmp",
        {"icmp_type": 3, "icmp_code": 3, "quoted": Packet(make_frame("udp", {"dport": 7}))},
        "10.0.0.1 > 10.0.0.2: ICMP 10.0.0.2 udp port 7 unreachable, length 36",
    ),
    (
        "icmp",
        {"icmp_type": 11, "quoted": Packet(make_frame("udp", {"dport": 7}))},
        "10.0.0.1 > 10.0.0.2: ICMP time exceeded in-transit, length 36",
    ),
    ("arp", {}, "ARP, Request who-has 10.0.0.2 tell 10.0.0.1, length 28"),
    ("arp", {"op": 2}, "ARP, Reply 10.0.0.1 is-at 02:00:00:00:00:01, length 28"),
    ("ip", {"proto": 253, "payload": b"abc"}, "10.0.0.1 > 10.0.0.2: ip-proto-253 3"),
    (
        "ip",
        {"proto": 6, "ip_id": 7, "frag_offset": 1480, "mf": True, "payload": b"abc"},
        "10.0.0.1 > 10.0.0.2: proto 6 (frag 7:3@1480+)",
    ),
    (
        "eth",
        {"payload": b"abc"},
        "02:00:00:00:00:01 > 02:00:00:00:00:02, ethertype 0x88b5, length 3",
    ),
]


@pytest.mark.parametrize(("kind", "fields", "line"), SUMMARIES)
def test_summary(kind: str, fields: dict[str, Any], line: str) -> None:
    packet = Packet(make_frame(kind, fields))
    assert packet.summary() == line
    assert repr(packet) == f"<Packet {line}>"


def test_wireshark_finds_nothing_wrong(tmp_path: Path) -> None:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed: it is the second opinion here")
    # A classic pcap file: link type 1, Ethernet.
    frames = [make_frame(kind, fields) for kind, fields, _ in SUMMARIES if kind != "eth"]
    capture = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for frame in frames:
        capture += struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame
    path = tmp_path / "made.pcap"
    path.write_bytes(capture)
    options = [f"-o{name}.check_checksum:TRUE" for name in ("ip", "tcp", "udp")]
    command = ["tshark", "-n", "-r", str(path), *options, "-Y", "_ws.malformed or _ws.short"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said == ""
    bad = ["ip.checksum.status==0", "tcp.checksum.status==0", "udp.checksum.status==0"]
    command[-1] = " or ".join([*bad, "icmp.checksum.status==0"])
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == ""


def test_conversions() -> None:
    assert flag_bits("S.W") == 0x92
    assert (ip_bytes("1.2.3.4"), ip_bytes(b"\1\2\3\4")) == (b"\1\2\3\4", b"\1\2\3\4")
    assert mac_bytes("02-00-00-00-00-0A") == mac_bytes("02:00:00:00:00:0a") == b"\2\0\0\0\0\n"
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D  # the example of RFC 1071
    for wrong in ("zz:00:00:00:00:00", 5, b"12345"):
        with pytest.raises(ValueError, match="no MAC address"):
            mac_bytes(wrong)


def test_nothing_of_scapy_or_the_engine_is_loaded() -> None:
    unwanted = "[m for m in sys.modules if 'scapy' in m or 'cffi' in m or '_native' in m]"
    code = f"import sys, machnet.testing; print({unwanted})"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "[]"
