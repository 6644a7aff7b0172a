# SPDX-License-Identifier: MIT
"""Frames out of fields. What is None (or not there) is computed; what is given is taken as it is."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from machnet.testing import tcpoptions
from machnet.testing.octets import checksum, flag_bits, ip_bytes, mac_bytes, pseudo_header

if TYPE_CHECKING:
    from machnet.testing.packet import Packet

__all__ = ["DEFAULTS", "FIELDS", "PROTOS", "changed", "check_names", "fields_of", "make_frame"]

#: Fields of each header by their flat names.
FIELDS: dict[str, tuple[str, ...]] = {
    "eth": ("eth_dst", "eth_src", "ethertype", "vlans", "trailer"),
    "arp": ("op", "sender_mac", "sender_ip", "target_mac", "target_ip"),
    "ip": (
        *("src", "dst", "ttl", "tos", "dscp", "ecn", "ip_id", "df", "mf", "frag_offset", "proto"),
        *("ip_options", "ip_version", "ihl", "ip_len", "ip_csum"),
    ),
    "icmp": ("icmp_type", "icmp_code", "icmp_id", "icmp_seq", "icmp_mtu", "quoted", "csum"),
    "udp": ("sport", "dport", "udp_len", "csum"),
    "tcp": (
        *("sport", "dport", "seq", "ack", "doff", "reserved", "flags", "window", "urgent", "csum"),
        *("options", *tcpoptions.NAMED),
    ),
}
_HEADERS = {
    "tcp": ("tcp", "ip", "eth"),
    "udp": ("udp", "ip", "eth"),
    "icmp": ("icmp", "ip", "eth"),
    "ip": ("ip", "eth"),
    "arp": ("arp", "eth"),
    "eth": ("eth",),
}

#: What `fields_of` takes from the innermost header.
_OWN_FIELDS: dict[str, tuple[str, ...]] = {
    "arp": FIELDS["arp"],
    "icmp": ("icmp_type", "icmp_code", "icmp_id", "icmp_seq"),
    "udp": ("sport", "dport"),
    "tcp": (
        *("sport", "dport", "seq", "ack", "reserved", "flags", "window", "urgent"),
        "options",
    ),
}

PROTOS = {"icmp": 1, "tcp": 6, "udp": 17}
_ETHERTYPES = {"arp": 0x0806, "eth": 0x88B5}

#: What a field is when nobody says it and it can't be computed.
DEFAULTS: dict[str, Any] = {
    "eth_src": "02:00:00:00:00:01",
    "eth_dst": "02:00:00:00:00:02",
    "src": "10.0.0.1",
    "dst": "10.0.0.2",
    "ttl": 64,
    "df": True,
    "sport": 49152,
    "dport": 80,
    "flags": "A",
    "window": 65535,
    "icmp_type": 8,
    "op": 1,
    "target_mac": "00:00:00:00:00:00",
}

_ARP_HEAD = bytes.fromhex("000108000604")


def check_names(kind: str, names: Mapping[str, Any], what: str) -> None:
    """Raises TypeError where a packet of this kind has no field of that name."""
    known = {"payload", *(name for header in _HEADERS[kind] for name in FIELDS[header])}
    for name in names:
        if name not in known:
            raise TypeError(
                f"{what}: {kind} has no field {name!r}; it has {', '.join(sorted(known))}"
            )


def _pack(form: str, names: str, *values: Any) -> bytes:
    try:
        return struct.pack(form, *values)
    except struct.error:
        fields = ", ".join(
            f"{name}={value!r}" for name, value in zip(names.split(), values, strict=False)
        )
        raise ValueError(f"a field does not fit: {fields}") from None


def _get(values: Mapping[str, Any], name: str, otherwise: Any = 0) -> Any:
    value = values.get(name)
    return DEFAULTS.get(name, otherwise) if value is None else value


def _put_sum(header: bytes, at: int, value: int) -> bytes:
    return header[:at] + _pack(">H", "csum", value) + header[at + 2 :]


def _tcp_options(values: Mapping[str, Any]) -> bytes:
    named = {name: values[name] for name in tcpoptions.NAMED if name in values}
    given = values.get("options")
    if isinstance(given, bytes):
        return tcpoptions.encode(given)
    if given is None:
        return tcpoptions.encode(tcpoptions.layout(named))
    pairs = [(option, None) if isinstance(option, str) else tuple(option) for option in given]
    return tcpoptions.encode(tcpoptions.replace(pairs, named))


def _tcp(values: Mapping[str, Any], addresses: bytes, payload: bytes) -> bytes:
    options = _tcp_options(values)
    doff = _get(values, "doff", 5 + len(options) // 4)
    bits = flag_bits(_get(values, "flags"))
    if not (0 <= doff <= 15 and 0 <= _get(values, "reserved") <= 15):
        raise ValueError(f"doff={doff}, reserved={_get(values, 'reserved')}: 0 to 15 each")
    body = _pack(
        ">HHIIBBHHH",
        "sport dport seq ack doff flags window csum urgent",
        *(_get(values, "sport"), _get(values, "dport")),
        *(_get(values, "seq") & 0xFFFFFFFF, _get(values, "ack") & 0xFFFFFFFF),
        *(doff << 4 | _get(values, "reserved"), bits, _get(values, "window")),
        *(0, _get(values, "urgent")),
    )
    body += options + payload
    value = values.get("csum")
    if value is None:
        value = checksum(pseudo_header(addresses, 6, len(body) & 0xFFFF) + body)
    return _put_sum(body, 16, value)


def _udp(values: Mapping[str, Any], addresses: bytes, payload: bytes) -> bytes:
    size = 8 + len(payload)
    ports = _get(values, "sport"), _get(values, "dport")
    length = _get(values, "udp_len", size)
    body = _pack(">HHHH", "sport dport udp_len", *ports, length, 0) + payload
    value = values.get("csum")
    if value is None:
        # The sum covers as much as the length says; 0 would mean that there is none.
        end = length if 8 <= length <= size else size
        sum_ = checksum(pseudo_header(addresses, 17, end) + body[:end])
        value = sum_ or 0xFFFF
    return _put_sum(body, 6, value)


def _icmp(values: Mapping[str, Any], payload: bytes) -> bytes:
    quoted = values.get("quoted")
    if quoted is not None:
        payload = getattr(quoted, "ip_packet", None) or bytes(quoted)
    low = values.get("icmp_mtu")
    body = _pack(
        ">BBHHH",
        "icmp_type icmp_code csum icmp_id icmp_seq",
        *(_get(values, "icmp_type"), _get(values, "icmp_code"), 0),
        *(_get(values, "icmp_id"), _get(values, "icmp_seq") if low is None else low),
    )
    body += payload
    value = values.get("csum")
    return _put_sum(body, 2, checksum(body) if value is None else value)


def _ip(values: Mapping[str, Any], addresses: bytes, proto: int, body: bytes) -> bytes:
    options = bytes(_get(values, "ip_options", b""))
    options += bytes(-len(options) % 4)
    words = _get(values, "ihl", 5 + len(options) // 4)
    tos = _get(values, "tos")
    tos = tos if values.get("dscp") is None else tos & 3 | values["dscp"] << 2
    tos = tos if values.get("ecn") is None else tos & 0xFC | values["ecn"]
    offset = _get(values, "frag_offset")
    version = _get(values, "ip_version", 4)
    if offset % 8 or not 0 <= offset < 65536:
        raise ValueError(f"frag_offset={offset}: a multiple of 8 below 65536")
    if not (0 <= words <= 15 and 0 <= version <= 15):
        raise ValueError(f"ihl={words}, ip_version={version}: 0 to 15 each")
    frag = bool(_get(values, "df")) << 14 | bool(_get(values, "mf")) << 13 | offset // 8
    head = _pack(
        ">BBHHHBBH",
        "ihl tos ip_len ip_id frag ttl proto",
        *(version << 4 | words, tos, _get(values, "ip_len", 20 + len(options) + len(body))),
        *(_get(values, "ip_id"), frag, _get(values, "ttl"), _get(values, "proto", proto), 0),
    )
    head += addresses + options
    value = values.get("ip_csum")
    return _put_sum(head, 10, checksum(head) if value is None else value) + body


def _arp(values: Mapping[str, Any]) -> bytes:
    return (
        _ARP_HEAD
        + _pack(">H", "op", _get(values, "op"))
        + mac_bytes(_get(values, "sender_mac", _get(values, "eth_src")))
        + ip_bytes(_get(values, "sender_ip", DEFAULTS["src"]))
        + mac_bytes(_get(values, "target_mac"))
        + ip_bytes(_get(values, "target_ip", DEFAULTS["dst"]))
    )


def make_ip(kind: str, values: Mapping[str, Any]) -> bytes:
    """The IP packet alone."""
    addresses = ip_bytes(_get(values, "src")) + ip_bytes(_get(values, "dst"))
    payload = bytes(_get(values, "payload", b""))
    if kind == "tcp":
        payload = _tcp(values, addresses, payload)
    elif kind == "udp":
        payload = _udp(values, addresses, payload)
    elif kind == "icmp":
        payload = _icmp(values, payload)
    return _ip(values, addresses, PROTOS.get(kind, 0), payload)


def make_frame(kind: str, values: Mapping[str, Any]) -> bytes:
    """A frame of one kind ("tcp", "udp", "icmp", "arp", "ip", "eth") with these fields.

    Raises:
        ValueError: A value is out of its range.
    """
    if kind == "arp":
        body = _arp(values)
    elif kind == "eth":
        body = bytes(_get(values, "payload", b""))
    else:
        body = make_ip(kind, values)
    tags = b"".join(_pack(">HH", "tpid tci", *tag) for tag in _get(values, "vlans", ()))
    ethertype = _get(values, "ethertype", _ETHERTYPES.get(kind, 0x0800))
    return (
        mac_bytes(_get(values, "eth_dst"))
        + mac_bytes(_get(values, "eth_src"))
        + tags
        + _pack(">H", "ethertype", ethertype)
        + body
        + bytes(_get(values, "trailer", b""))
    )


def fields_of(packet: Packet) -> dict[str, Any]:
    """See `Packet.fields`."""
    values: dict[str, Any] = {}
    kind = packet.kind
    names: list[str] = []
    if packet.eth is not None:
        names += ["eth_dst", "eth_src", "ethertype"]
        values["vlans"] = packet.eth.vlans
    if packet.ip is not None:
        names += ["src", "dst", "ttl", "tos", "ip_id", "df", "mf", "frag_offset", "proto"]
        names += ["ip_options"]
    names += _OWN_FIELDS.get(kind, ())
    values |= {name: getattr(packet, name) for name in names}
    if kind != "arp":
        values["payload"] = packet.payload
    values["trailer"] = packet.trailer
    if packet.part and packet.csum is not None:
        # Computed over what is there, it would be wrong.
        values["csum"] = packet.csum
    return values


def _absolute(values: dict[str, Any], bases: tuple[int, int]) -> None:
    """Turn relative TCP numbers into those of the wire."""
    seq_base, ack_base = bases
    values["seq"] += seq_base
    if flag_bits(values["flags"]) & 0x10:
        values["ack"] += ack_base
    if values.get("sack"):
        values["sack"] = [(a + ack_base, b + ack_base) for a, b in values["sack"]]
    if not isinstance(values["options"], bytes):
        values["options"] = [
            ("sack", [(a + ack_base, b + ack_base) for a, b in option[1]])
            if option[0] == "sack"
            else option
            for option in values["options"]
        ]


def changed(packet: Packet, changes: Mapping[str, Any]) -> Packet:
    """See `Packet.with_`."""
    from machnet.testing.packet import Packet

    kind, at_ip = packet.kind, packet._at_ip  # noqa: SLF001 (a packet's other half)
    if kind == "none":
        raise TypeError(f"with_: no packet that could be changed: {packet.error}")
    check_names(kind, changes, "with_")
    values = fields_of(packet)
    if "quoted" in changes and "payload" not in changes:
        values["payload"] = b""
    if {"dscp", "ecn"} & set(changes) and "tos" in changes:
        raise TypeError("with_: tos is dscp and ecn; give one or the others")
    values |= changes
    bases = packet._bases  # noqa: SLF001
    if kind == "tcp" and bases != (0, 0):
        _absolute(values, bases)
    if at_ip:
        made = Packet.from_ip(make_ip(kind, values) + bytes(values.get("trailer") or b""))
    else:
        made = Packet(make_frame(kind, values), packet.t_ns)
    return made.relative(*bases) if bases != (0, 0) else made
