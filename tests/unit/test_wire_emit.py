# SPDX-License-Identifier: MIT
"""Emitters: scapy reads what they write, the views read what scapy writes, no byte beyond."""

from __future__ import annotations

from typing import Any

import pytest
import wire_frames as frames
import wire_reference
import wire_views as views
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from machnet._native import ffi, lib

U8 = st.integers(0, 255)
U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
MAC = st.binary(min_size=6, max_size=6)
HOST_MAC = MAC.filter(lambda mac: not mac[0] & 1 and any(mac))
HOST_IP = st.integers(0x01000000, 0xDFFFFFFF).filter(lambda ip: ip >> 24 != 127)
PAYLOAD = st.binary(max_size=200)

ROOM = 512


class Out:
    """A buffer for an emitter that notices any byte written beyond what was announced."""

    def __init__(self) -> None:
        self.room = ffi.new("uint8_t[]", b"\xa5" * ROOM)

    def taken(self, length: int) -> bytes:
        """The first ``length`` bytes."""
        data = bytes(self.room)
        assert data[length:ROOM] == b"\xa5" * (ROOM - length)
        return data[:length]


def dotted(ip: int) -> str:
    return ".".join(str(byte) for byte in ip.to_bytes(4, "big"))


def colons(mac: bytes) -> str:
    return mac.hex(":")


def recomputed(packet: Any) -> bytes:
    """The packet as scapy builds it with lengths and checksums of its own."""
    packet = packet.copy()
    for layer, names in ((IP, ("len", "chksum")), (UDP, ("len", "chksum")), (TCP, ("chksum",))):
        for name in names:
            if packet.haslayer(layer):
                packet[layer].delfieldval(name)
    return bytes(packet)


@given(MAC, MAC, U16)
def test_ethernet(dst: bytes, src: bytes, ethertype: int) -> None:
    out = Out()
    data = out.taken(lib.mn_eth_emit(out.room, dst, src, ethertype))
    packet = Ether(data + bytes(60))
    assert (packet.dst, packet.src) == (colons(dst), colons(src))
    assert data[12:] == ethertype.to_bytes(2, "big")
    assert bytes(Ether(dst=colons(dst), src=colons(src), type=ethertype)) == data


@given(st.sampled_from([1, 2]), HOST_MAC, HOST_IP, MAC, U32)
def test_arp(op: int, sender_mac: bytes, sender_ip: int, target_mac: bytes, target_ip: int) -> None:
    arp = ffi.new("struct mn_arp *")
    arp.op, arp.sender_ip, arp.target_ip = op, sender_ip, target_ip
    arp.sender_mac, arp.target_mac = sender_mac, target_mac
    out = Out()
    data = out.taken(lib.mn_arp_emit(out.room, arp))
    assert data == bytes(
        ARP(
            op=op,
            hwsrc=colons(sender_mac),
            psrc=dotted(sender_ip),
            hwdst=colons(target_mac),
            pdst=dotted(target_ip),
        )
    )
    view = views.ARP(data)
    assert (view["op"], view["sender_mac"], view["target_mac"]) == (op, sender_mac, target_mac)
    assert (view["sender_ip"], view["target_ip"]) == (sender_ip, target_ip)


def emit_ipv4(out: Any, payload_len: int, **fields: Any) -> int:
    repr_ = ffi.new("struct mn_ipv4_repr *", {"payload_len": payload_len, **fields})
    return lib.mn_ipv4_emit(out, repr_)


@given(HOST_IP, U32, U16, U8, U8, U8, st.booleans(), PAYLOAD)
def test_ipv4(
    src: int, dst: int, ident: int, proto: int, ttl: int, tos: int, df: bool, payload: bytes
) -> None:
    fields = {"src": src, "dst": dst, "id": ident, "proto": proto, "ttl": ttl, "tos": tos}
    out = Out()
    data = out.taken(emit_ipv4(out.room, len(payload), df=df, **fields)) + payload
    packet = IP(data)
    assert (packet.src, packet.dst) == (dotted(src), dotted(dst))
    assert (packet.id, packet.proto, packet.ttl, packet.tos) == (ident, proto, ttl, tos)
    assert (packet.len, packet.ihl, packet.frag) == (len(data), 5, 0)
    assert str(packet.flags) == ("DF" if df else "")
    assert recomputed(packet)[:20] == data[:20]
    view = views.IPV4(data)
    assert {name: view[name] for name in fields} == fields
    assert view["payload"] == (20, len(payload))


@pytest.mark.parametrize("payload_len", [0, 1, 65514, 65515])
def test_ipv4_length_up_to_the_limit(payload_len: int) -> None:
    out = Out()
    data = out.taken(emit_ipv4(out.room, payload_len, src=frames.CLIENT, ttl=1))
    assert views.IPV4(data + bytes(payload_len))["payload"] == (20, payload_len)


@given(HOST_IP, U32, U16, U8, U8, U8, st.integers(0, 10), PAYLOAD)
def test_view_of_ipv4_from_scapy(
    src: int, dst: int, ident: int, proto: int, ttl: int, tos: int, words: int, payload: bytes
) -> None:
    addresses = {"src": dotted(src), "dst": dotted(dst)}
    fields = {"id": ident, "proto": proto, "ttl": ttl, "tos": tos}
    header = IP(**addresses, **fields, flags="DF", options=[IPOption_NOP()] * (4 * words))
    view = views.IPV4(bytes(header / Raw(payload)))
    assert {name: view[name] for name in fields} == fields
    assert (view["src"], view["dst"], view["frag"]) == (src, dst, 0x4000)
    assert view["opts"] == (20, 4 * words)
    assert view["payload"] == (20 + 4 * words, len(payload))


@given(U8, U8, U32, PAYLOAD)
def test_icmp(kind: int, code: int, rest: int, payload: bytes) -> None:
    source = ffi.from_buffer(payload)
    icmp = ffi.new("struct mn_icmp *", {"type": kind, "code": code, "rest": rest})
    icmp.payload, icmp.payload_len = ffi.cast("const uint8_t *", source), len(payload)
    out = Out()
    data = out.taken(lib.mn_icmp_emit(out.room, icmp))
    assert data == frames.icmp(kind, code, rest, payload)
    view = views.ICMP(data)
    assert (view["type"], view["code"], view["rest"]) == (kind, code, rest)
    assert view["payload"] == (8, len(payload))


@given(U16, U16, PAYLOAD)
def test_echo_reply_answers_the_request_of_scapy(ident: int, seq: int, payload: bytes) -> None:
    request = bytes(ICMP(type=8, id=ident, seq=seq) / Raw(payload))
    view = ffi.new("struct mn_icmp *")
    assert lib.mn_icmp_parse(views.guarded(request), len(request), view) == 0
    out = Out()
    data = out.taken(lib.mn_icmp_emit_echo_reply(out.room, view))
    assert data == bytes(ICMP(type=0, id=ident, seq=seq) / Raw(payload))


@given(st.integers(0, 15), U16, st.integers(0, 10), st.binary(min_size=8, max_size=80))
def test_unreachable_quotes_the_header_and_8_bytes(
    code: int, mtu: int, words: int, payload: bytes
) -> None:
    about = frames.ipv4(payload, 17, options=b"\x01\x01\x01\x00" * words)
    out = Out()
    length = lib.mn_icmp_emit_unreachable(out.room, code, mtu, views.guarded(about), len(about))
    data = out.taken(length)
    quote = 28 + 4 * words
    assert length == 8 + quote <= lib.MN_ICMP_ERROR_LEN_MAX
    assert data == frames.icmp(3, code, mtu if code == 4 else 0, about[:quote])
    assert views.ICMP_QUOTE(data[8:]) == wire_reference.icmp_quote(about[:quote])
    # scapy finds the same packet inside.
    inner = ICMP(data).payload
    assert (inner.src, inner.dst) == (dotted(frames.CLIENT), dotted(frames.SERVER))


def test_unreachable_about_a_packet_shorter_than_the_quote() -> None:
    about = frames.ipv4(b"abc", 99)
    out = Out()
    length = lib.mn_icmp_emit_unreachable(out.room, 2, 0, views.guarded(about), len(about))
    assert out.taken(length) == frames.icmp(3, 2, 0, about)


@given(HOST_IP, U32, U16, U16, PAYLOAD)
def test_udp(src: int, dst: int, sport: int, dport: int, payload: bytes) -> None:
    out = Out()
    fields = {"sport": sport, "dport": dport, "payload_len": len(payload)}
    length = lib.mn_udp_emit(out.room, ffi.new("struct mn_udp_repr *", fields))
    assert out.taken(length)[6:] == b"\0\0"
    total = lib.mn_csum_copy(out.room + length, views.guarded(payload), len(payload), 0)
    lib.mn_udp_csum_fill(out.room, src, dst, total)
    data = out.taken(length + len(payload))
    ip = IP(src=dotted(src), dst=dotted(dst))
    whole = bytes(ip / UDP(sport=sport, dport=dport) / Raw(payload))
    assert data == whole[20:]
    assert lib.mn_udp_csum_ok(src, dst, views.guarded(data), len(data))
    assert views.UDP(data) == wire_reference.udp(data)


def test_udp_checksum_of_zero_is_sent_as_ones() -> None:
    pseudo = wire_reference.pseudo_header(frames.CLIENT, frames.SERVER, 17, 10)
    header = bytes.fromhex("0fa0 7b5c 000a 0000")
    balance = wire_reference.checksum(pseudo + header).to_bytes(2, "big")
    out = Out()
    fields = {"sport": 0x0FA0, "dport": 0x7B5C, "payload_len": 2}
    length = lib.mn_udp_emit(out.room, ffi.new("struct mn_udp_repr *", fields))
    total = lib.mn_csum_copy(out.room + length, views.guarded(balance), 2, 0)
    lib.mn_udp_csum_fill(out.room, frames.CLIENT, frames.SERVER, total)
    data = out.taken(10)
    assert data == header[:6] + b"\xff\xff" + balance
    assert lib.mn_udp_csum_ok(frames.CLIENT, frames.SERVER, views.guarded(data), len(data))


def emit_tcp(out: Any, opts: Any, **fields: Any) -> int:
    repr_ = ffi.new("struct mn_tcp_repr *", fields)
    repr_.opts = opts
    return lib.mn_tcp_emit(out, repr_)


@given(
    st.tuples(HOST_IP, U32),
    st.tuples(U16, U16, U32, U32, st.integers(0, 0x1FF), U16, U16),
    st.none() | st.tuples(U32, U32),
    PAYLOAD,
)
def test_tcp(
    addresses: tuple[int, int],
    header: tuple[int, ...],
    timestamps: tuple[int, int] | None,
    payload: bytes,
) -> None:
    names = ("sport", "dport", "seq", "ack", "flags", "wnd", "urg")
    fields = dict(zip(names, header, strict=True))
    opts = ffi.NULL
    if timestamps is not None:
        opts = ffi.new("struct mn_tcp_opts *", {"has_ts": True})
        opts.tsval, opts.tsecr = timestamps
    out = Out()
    length = emit_tcp(out.room, opts, **fields)
    assert length == (20 if timestamps is None else 32)
    assert out.taken(length)[16:18] == b"\0\0"
    total = lib.mn_csum_copy(out.room + length, views.guarded(payload), len(payload), 0)
    lib.mn_tcp_csum_fill(out.room, length, *addresses, len(payload), total)
    data = out.taken(length + len(payload))

    ip = IP(src=dotted(addresses[0]), dst=dotted(addresses[1]))
    rest = {"window": fields["wnd"], "urgptr": fields["urg"], "flags": fields["flags"]}
    ends = {name: fields[name] for name in ("sport", "dport", "seq", "ack")}
    options = [("NOP", None)] * 2 + [("Timestamp", timestamps)] if timestamps else []
    assert data == bytes(ip / TCP(**ends, **rest, options=options) / Raw(payload))[20:]
    view = views.TCP(data)
    assert {name: view[name] for name in names} == fields
    assert view["payload"] == (length, len(payload))
    assert lib.mn_tcp_csum_ok(*addresses, views.guarded(data), len(data))


def test_tcp_with_the_longest_options() -> None:
    opts = ffi.new("struct mn_tcp_opts *", {"has_ts": True, "n_sack": 3})
    out = Out()
    length = emit_tcp(out.room, opts, flags=0x10)
    assert length == 60
    assert views.TCP(out.taken(length))["opts"] == (20, 40)


@given(U32, U32, PAYLOAD)
def test_tcp_checksum_left_to_the_nic(src: int, dst: int, payload: bytes) -> None:
    out = Out()
    length = emit_tcp(out.room, ffi.NULL, sport=1, dport=2, flags=0x18)
    lib.mn_tcp_csum_seed(out.room, src, dst, length + len(payload))
    seeded = out.taken(length) + payload
    # What a NIC does: sum the segment with the seed in the field, and put the result there.
    final = seeded[:16] + wire_reference.checksum(seeded).to_bytes(2, "big") + seeded[18:]
    assert lib.mn_tcp_csum_ok(src, dst, views.guarded(final), len(final))


def test_whole_frame() -> None:
    payload = b"GET / HTTP/1.1\r\n\r\n"
    opts = ffi.new("struct mn_tcp_opts *", {"has_ts": True, "tsval": 7, "tsecr": 9})
    out = Out()
    at = lib.mn_eth_emit(out.room, frames.SERVER_MAC, frames.CLIENT_MAC, 0x800)
    addresses = {"src": frames.CLIENT, "dst": frames.SERVER}
    at += emit_ipv4(out.room + at, 32 + len(payload), proto=6, ttl=64, df=True, **addresses)
    segment = out.room + at
    length = emit_tcp(segment, opts, sport=40000, dport=80, seq=5, ack=6, flags=0x18, wnd=512)
    total = lib.mn_csum_copy(segment + length, payload, len(payload), 0)
    lib.mn_tcp_csum_fill(segment, length, frames.CLIENT, frames.SERVER, len(payload), total)
    data = out.taken(at + length + len(payload))
    packet = Ether(data)
    assert (packet[IP].src, packet[IP].dst) == ("10.0.0.1", "10.0.0.2")
    assert (packet[TCP].dport, packet[TCP].window) == (80, 512)
    assert packet[TCP].options == [("NOP", None), ("NOP", None), ("Timestamp", (7, 9))]
    assert bytes(packet[TCP].payload) == payload
    assert recomputed(packet) == data
