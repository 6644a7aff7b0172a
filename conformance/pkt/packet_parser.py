# SPDX-License-Identifier: MIT
"""The part of the parser that reads packets."""

from __future__ import annotations

from .cursor import Cursor
from .nodes import IcmpPacket, IpInfo, Packet, TcpOption, TcpPacket, UdpPacket

__all__ = ["FLAGS", "ICMP_CODES", "parse_packet"]

#: Flags in the order in which they are written.
FLAGS = "FSRPUEW."
_ECN = ("noecn", "ect0", "ect1", "ect01", "ce")
#: Type and code by the names that the language has for them (RFC 792, 1122, 1812).
ICMP_CODES: dict[str, tuple[int, dict[str, int]]] = {
    "unreachable": (3, {
        "net_unreachable": 0, "host_unreachable": 1, "protocol_unreachable": 2,
        "port_unreachable": 3, "frag_needed": 4, "source_route_failed": 5, "net_unknown": 6,
        "host_unknown": 7, "source_host_isolated": 8, "net_prohibited": 9, "host_prohibited": 10,
        "net_unreachable_for_tos": 11, "host_unreachable_for_tos": 12, "packet_filtered": 13,
        "precedence_violation": 14, "precedence_cutoff": 15,
    }),
    "source_quench": (4, {}),
    "time_exceeded": (11, {"ttl_exceeded": 0, "reassembly_time_exceeded": 1,
                           "exc_ttl": 0, "exc_fragtime": 1}),
    "parameter_problem": (12, {}),
}  # fmt: skip


def parse_packet(cursor: Cursor) -> Packet:
    """Read a packet, from its ``<`` or ``>`` on."""
    inbound = cursor.take().text == "<"
    for word in ("ipv4", "ipv6", "gre", "GREv0", "mpls"):
        if cursor.at(word):
            cursor.unsupported(f"encapsulation ({word}) of packets")
    ip = _ip_info(cursor, inbound)
    body: TcpPacket | UdpPacket | IcmpPacket
    if cursor.at("icmp"):
        if not inbound:
            cursor.unsupported("ICMP packets that are expected; they can be injected ('<') only")
        body = _icmp(cursor)
    elif cursor.at("udp"):
        cursor.take()
        cursor.expect("(", "and the bytes of a datagram, as in udp (1000)")
        body = UdpPacket(cursor.integer("the length of a datagram", 65507))
        cursor.expect(")")
    else:
        body = _tcp(cursor, inbound)
    return Packet(inbound, body, ip)


def _ip_info(cursor: Cursor, inbound: bool) -> IpInfo:
    if not cursor.at("(", "["):
        return IpInfo()
    closing = "]" if cursor.take().text == "[" else ")"
    ecn: str | None = None
    tos = ttl = None
    while True:
        if cursor.at(*_ECN):
            if cursor.at("ect01") and inbound:
                cursor.error("[ect01] is for packets that are expected ('>') only")
            ecn = cursor.take().text
        elif cursor.accept("tos"):
            tos = cursor.integer("a type of service such as 0x10", 255, hexadecimal=True)
        elif cursor.accept("ttl"):
            ttl = cursor.integer("a time to live", 255)
        elif cursor.at("flowlabel"):
            cursor.unsupported("flowlabel: it belongs to IPv6")
        else:
            cursor.fail(f"one of {', '.join(_ECN)}, tos or ttl")
        if not cursor.accept(","):
            break
    cursor.expect(closing)
    return IpInfo(ecn, tos, ttl)


def _tcp(cursor: Cursor, inbound: bool) -> TcpPacket:
    ports = None
    if cursor.token.kind == "integer" and cursor.peek().text == ">":
        source = cursor.integer("a port", 65535)
        cursor.take()
        ports = source, cursor.integer("a port", 65535)
    flags, any_push = _flags(cursor, inbound)
    seq, end, length = _sequence(cursor)
    ack = window = urgent = None
    if cursor.accept("ack"):
        ack = cursor.integer("an acknowledgement number")
    if cursor.accept("win"):
        window = cursor.integer("a window", 65535)
    if cursor.accept("urg"):
        urgent = cursor.integer("an urgent pointer", 65535)
    options: tuple[TcpOption, ...] | None = ()
    more = False
    # Of two events, the second may begin with '<' only behind a time: this one belongs here.
    if cursor.at("<"):
        where = cursor.token.where
        options, more = _options(cursor)
        if inbound and (options is None or more):
            cursor.error("'...' in the options is for packets that are expected ('>') only", where)
    if cursor.at("{"):
        cursor.unsupported("fuzzing of packets")
    return TcpPacket(flags, seq, end, length, ack, window, urgent, options, more, ports, any_push)


def _flags(cursor: Cursor, inbound: bool) -> tuple[str, bool]:
    what = "TCP flags: letters of FSRPUEW, '.' for ACK, or '-' for none"
    start = cursor.token
    text, end = "", start.start
    # Flags are one word, although they are several tokens.
    while cursor.token.start == end and cursor.token.kind in {"name", "mark", "float", "integer"}:
        token = cursor.tokens[cursor.index]
        if token.kind == "mark" and token.text not in ".-?":
            break
        text, end = text + token.text, token.end
        cursor.index += 1
    if not text:
        cursor.fail(what)
    if any(letter in "01234567AN" for letter in text) and set(text) <= set(FLAGS + "AN01234567"):
        cursor.unsupported(f"accurate ECN (the flags {text!r})", start.where)
    if text == "-":
        return "", False
    any_push = "P?" in text
    if any_push and inbound:
        cursor.error("'P?' is for packets that are expected ('>') only", start.where)
    text = text.replace("P?", "")
    if set(text) - set(FLAGS) or len(set(text)) != len(text):
        cursor.error(f"expected {what}, found '{text}'", start.where)
    return "".join(flag for flag in FLAGS if flag in text), any_push


def _sequence(cursor: Cursor) -> tuple[int, int, int]:
    where = cursor.token.where
    start = cursor.integer("sequence numbers, as in 1:1001(1000)")
    cursor.expect(":")
    end = cursor.integer("the sequence number behind the last octet")
    cursor.expect("(")
    length = cursor.integer("the number of octets", 65535)
    cursor.expect(")")
    if (start + length) % 2**32 != end:
        cursor.error(f"{start}:{end} are not {length} octets, but {(end - start) % 2**32}", where)
    return start, end, length


def _options(cursor: Cursor) -> tuple[tuple[TcpOption, ...] | None, bool]:
    cursor.expect("<")
    options: list[TcpOption] = []
    while True:
        if cursor.accept("..."):
            cursor.expect(">", "behind '...', which stands for all the rest")
            return (tuple(options) if options else None), bool(options)
        options.append(_option(cursor))
        if not cursor.accept(","):
            break
    cursor.expect(">", "or ',' and another option")
    return tuple(options), False


def _option(cursor: Cursor) -> TcpOption:
    what = "a TCP option: mss, wscale, sackOK, sack, TS, nop, eol, FO or FOEXP"
    token = cursor.name(what)
    kind = token.text
    if kind in {"nop", "eol", "sackOK"}:
        return TcpOption(kind)
    if kind == "mss":
        return TcpOption(kind, (cursor.integer("a segment size", 65535),))
    if kind == "wscale":
        return TcpOption(kind, (cursor.integer("a shift count", 255),))
    if kind == "TS":
        cursor.expect("val", "of a timestamp, as in TS val 100 ecr 0")
        value = cursor.integer("a timestamp")
        cursor.expect("ecr")
        return TcpOption(kind, (value, cursor.integer("an echoed timestamp")))
    if kind == "sack":
        edges: list[int] = []
        while cursor.token.kind == "integer":
            edges.append(cursor.integer("the left edge of a block"))
            cursor.expect(":")
            edges.append(cursor.integer("the right edge of a block"))
        if not edges or len(edges) > 8:
            cursor.fail("one to four blocks, as in sack 1:1001 2001:3001")
        return TcpOption(kind, tuple(edges))
    if kind in {"FO", "FOEXP"}:
        return TcpOption(kind, (), _cookie(cursor))
    if kind == "md5":
        cursor.unsupported("the MD5 option", token.where)
    return cursor.error(f"expected {what}, found '{kind}'", token.where)


def _cookie(cursor: Cursor) -> bytes:
    """A cookie in hexadecimal, which may look like several words (``12ab``)."""
    token = cursor.token
    text, end = "", token.start
    while cursor.token.start == end and cursor.token.kind in {"name", "integer", "hex"}:
        text, end = text + cursor.token.text, cursor.token.end
        cursor.take()
    try:
        return bytes.fromhex(text)
    except ValueError:
        cursor.error(f"expected a cookie in hexadecimal, found '{text}'", token.where)


def _icmp(cursor: Cursor) -> IcmpPacket:
    cursor.expect("icmp")
    token = cursor.name(f"an ICMP type: {', '.join(ICMP_CODES)}")
    if token.text not in ICMP_CODES:
        if token.text in {"echo_request", "echo_reply"}:
            cursor.unsupported("ICMP echo", token.where)
        cursor.error(f"expected an ICMP type: {', '.join(ICMP_CODES)}, found {token}", token.where)
    number, codes = ICMP_CODES[token.text]
    code, mtu = 0, None
    if cursor.token.kind == "name" and not cursor.at("mtu", "id"):
        word = cursor.take()
        if word.text not in codes:
            cursor.error(
                f"expected a code of {token.text}: {', '.join(codes) or 'it has none'}, "
                f"found {word}", word.where,
            )  # fmt: skip
        code = codes[word.text]
    if cursor.accept("mtu"):
        mtu = cursor.integer("an MTU", 65535)
    if cursor.at("id"):
        cursor.unsupported("ICMP echo (id)")
    seq, length, udp = None, 0, False
    if cursor.accept("["):
        if cursor.at("raw"):
            cursor.unsupported("raw IP packets")
        if cursor.accept("udp"):
            udp = True
            cursor.expect("(")
            length = cursor.integer("the length of a datagram", 65507)
            cursor.expect(")")
        else:
            seq, _, length = _sequence(cursor)
        cursor.expect("]")
    return IcmpPacket(token.text, number, code, mtu, seq, length, udp)
