# SPDX-License-Identifier: MIT
"""Templates: packets in which only what matters is stated, to compare with and to send.

A field may be

- a plain value: ``mss=1460``;
- a range or a set: ``window=range(1, 65536)``, ``ttl={64, 255}``;
- a predicate: ``ts=lambda ts: ts[0] > 5`` (shown as its docstring or name when it says no);
- `ANY`: whatever there is, also where it would be looked at unasked, as a checksum is;
- `ABSENT`: not there, as an option may be;
- None: not stated.

Flags are letters of ``FSRPAUEC`` in any order (tcpdump's "." for A and "W" for C as well): ``"SA"`` means
these and no others; ``"A(P)"``: ACK, and PSH may be set or not; ``"S*"``: SYN, and whatever else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

from machnet.testing import tcpoptions
from machnet.testing.build import FIELDS, check_names, make_frame
from machnet.testing.octets import FLAG_TEXT, flag_bits, format_ip, format_mac, ip_bytes, mac_bytes
from machnet.testing.packet import Packet

__all__ = [
    "ABSENT",
    "ANY",
    "Mismatch",
    "Template",
    "arp",
    "eth",
    "icmp",
    "ip",
    "table",
    "tcp",
    "udp",
]


class _Word:
    """A value that is none of any field's own."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


#: The field may be anything, and may be missing.
ANY = _Word("ANY")
#: The field is missing.
ABSENT = _Word("ABSENT")

#: What a field of a template may be.
Want: TypeAlias = Any

_MACS = {"eth_src", "eth_dst", "sender_mac", "target_mac"}
_IPS = {"src", "dst", "sender_ip", "target_ip"}
_NUMBERS = {"seq", "ack"}
_OPS = {"request": 1, "reply": 2}
_ICMP_TYPES = {
    "echo-reply": 0,
    "unreachable": 3,
    "source-quench": 4,
    "redirect": 5,
    "echo-request": 8,
    "time-exceeded": 11,
    "parameter-problem": 12,
}
_PLACES = {name: f"{header}.{name}" for header, names in FIELDS.items() for name in names}


@dataclass(frozen=True)
class Mismatch:
    """One field that is not as wanted.

    Attributes:
        field: Header and flat name, such as "tcp.window".
        wanted: As text.
        got: As text.
    """

    field: str
    wanted: str
    got: str


def table(mismatches: Iterable[Mismatch]) -> str:
    """Mismatches, one line each, in columns."""
    rows = [("field", "wanted", "got"), *((m.field, m.wanted, m.got) for m in mismatches)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(
        f"  {field:{widths[0]}}  {wanted:{widths[1]}}  {got}" for field, wanted, got in rows
    )


@dataclass(frozen=True)
class _Flags:
    """What flags must, may and may not be set."""

    must: int
    may: int
    text: str

    @classmethod
    def parse(cls, text: str) -> _Flags:
        rest, may = text, 0
        if rest.endswith("*"):
            rest, may = rest[:-1], 0xFF
        while "(" in rest:
            before, _, behind = rest.partition("(")
            optional, closed, behind = behind.partition(")")
            if not closed:
                raise ValueError(f"flags {text!r}: '(' without ')'")
            may |= flag_bits(optional)
            rest = before + behind
        return cls(flag_bits(rest), may, text)

    def accepts(self, bits: int) -> bool:
        return bits & self.must == self.must and not bits & ~(self.must | self.may)


def _normal(name: str, value: Want) -> Want:
    """A plain value in the form in which packets have it; anything else as it is."""
    if isinstance(value, _Word) or value is None:
        return value
    if name == "flags" and isinstance(value, str):
        return _Flags.parse(value)
    if isinstance(value, (set, frozenset)):
        return frozenset(_normal(name, one) for one in value)
    if callable(value) or isinstance(value, range):
        return value
    if name in _MACS:
        return format_mac(mac_bytes(value))
    if name in _IPS:
        return format_ip(ip_bytes(value))
    if name in _NUMBERS:
        return value & 0xFFFFFFFF
    return _normal_other(name, value)


def _normal_other(name: str, value: Want) -> Want:
    for field, words in (("op", _OPS), ("icmp_type", _ICMP_TYPES)):
        if name == field and isinstance(value, str):
            if value not in words:
                raise ValueError(f"{name}={value!r}: it is a number or one of {', '.join(words)}")
            return words[value]
    if name == "ts":
        return tuple(value)
    if name == "sack":
        return tuple((left & 0xFFFFFFFF, right & 0xFFFFFFFF) for left, right in value)
    if name == "options":
        # As they are read again, padding included.
        return tcpoptions.decode(tcpoptions.encode(value))[0]
    if name == "quoted" and isinstance(value, Packet):
        return Packet.from_ip(value.ip_packet, cut=True)
    if name == "payload":
        return bytes(value)
    return value


def _text(value: Any) -> str:
    """A wanted value as people read it."""
    if isinstance(value, _Flags):
        return value.text or "none"
    if isinstance(value, Template):
        return repr(value)
    if isinstance(value, Packet):
        return value.summary()
    if isinstance(value, range):
        return f"{value.start} to {value[-1]}" if len(value) and value.step == 1 else repr(value)
    if isinstance(value, Set):
        texts = sorted((_text(one) for one in value), key=lambda text: (len(text), text))
        return "one of " + ", ".join(texts)
    if isinstance(value, bytes):
        shown = value if len(value) <= 24 else value[:20]
        return f"{len(value)} bytes {shown!r}{'...' if len(value) > 24 else ''}"
    if callable(value) and not isinstance(value, type):
        doc = (getattr(value, "__doc__", None) or "").strip().partition("\n")[0]
        return doc or getattr(value, "__name__", repr(value))
    return str(value)


def _got_text(value: Any) -> str:
    if value is None or value == ():
        return "absent"
    if value == "":
        return "none"
    return _text(value)


def _accepts(want: Want, have: Any) -> bool:
    if want is ANY:
        return True
    if want is ABSENT:
        return have is None or have is False or have == ()
    if isinstance(want, _Flags):
        return isinstance(have, str) and want.accepts(flag_bits(have))
    if isinstance(want, Template):
        return isinstance(have, Packet) and not want.match(have)
    if isinstance(want, Packet):
        # An error quotes as much as it likes, but a header and 8 bytes at least.
        quoted = bytes(have) if isinstance(have, Packet) else b""
        return len(quoted) >= 28 and bytes(want).startswith(quoted)
    if isinstance(want, Set):
        return any(_accepts(one, have) for one in want)
    if have is None:
        return False
    if isinstance(want, range):
        return have in want
    if callable(want):
        return bool(want(have))
    return bool(have == want)


class Template:
    """A packet of one kind with some of its fields stated; made by `tcp`, `udp`, `icmp`, `arp`, ...

    Attributes:
        kind: "tcp", "udp", "icmp", "arp", "ip" or "eth".
        fields: What is stated, by flat names.
    """

    __slots__ = ("_wants", "fields", "kind")

    def __init__(self, kind: str, fields: Mapping[str, Want]) -> None:
        self.kind = kind
        self.fields = {name: value for name, value in fields.items() if value is not None}
        own = {name: value for name, value in self.fields.items() if name not in _VIRTUAL}
        check_names(kind, own, f"{kind}()")
        self._wants = {name: _normal(name, value) for name, value in self.fields.items()}

    def with_(self, **fields: Want) -> Template:
        """A copy with other fields too; None takes one out."""
        return Template(self.kind, {**self.fields, **fields})

    def over(self, fields: Mapping[str, Want]) -> Template:
        """A copy in which ``fields`` are stated where this template states nothing."""
        return Template(self.kind, {**fields, **self.fields})

    # --- comparing ---

    def match(self, packet: Packet) -> list[Mismatch]:
        """What in the packet is not as stated; empty when all is.

        A packet that is not well-formed, or has a wrong checksum, does not match, except where
        the template states the field that makes it so: ``csum=ANY`` takes any.
        """
        if not self._is_kind(packet):
            return [Mismatch("packet", self.kind, f"{packet.kind}: {packet.summary()}")]
        out = []
        for name, want in self._wants.items():
            have = self._have(packet, name)
            if not _accepts(want, have):
                out.append(Mismatch(self._place(name), _text(want), _got_text(have)))
        return out + self._form(packet)

    def matches(self, packet: Packet) -> bool:
        """Whether all is as stated."""
        return not self.match(packet)

    def _is_kind(self, packet: Packet) -> bool:
        if self.kind == "eth":
            return packet.kind != "none"
        return packet.ip is not None if self.kind == "ip" else packet.kind == self.kind

    def _place(self, name: str) -> str:
        if name in _VIRTUAL or name == "payload":
            return f"{self.kind}.{name}"
        if name == "csum":
            return f"{self.kind}.csum"
        place = _PLACES[name]
        if self.kind == "udp" and name in ("sport", "dport"):
            place = f"udp.{name}"
        return (
            place.replace("eth.eth_", "eth.")
            .replace("ip.ip_", "ip.")
            .replace("icmp.icmp_", "icmp.")
        )

    def _have(self, packet: Packet, name: str) -> Any:
        if name == "ip_version":
            return packet.ip.version if packet.ip is not None else None
        if name == "vlans":
            return packet.eth.vlans if packet.eth is not None else None
        if name in ("payload", "length") and self.kind in ("ip", "eth"):
            payload = packet.ip_payload if self.kind == "ip" else packet.eth_payload
            return payload if name == "payload" else len(payload)
        return getattr(packet, name)

    def _form(self, packet: Packet) -> list[Mismatch]:
        """What every packet must be like unless the template speaks of it."""
        out = []
        stated = self._wants
        if packet.error and not (_FORM_FIELDS & stated.keys()):
            out.append(Mismatch("form", "well-formed", packet.error))
        ip, layer = packet.ip, packet.tcp or packet.udp or packet.icmp
        if ip is not None and not ip.csum_ok and "ip_csum" not in stated:
            out.append(Mismatch("ip.csum", "correct", f"0x{ip.csum:04x}, which is wrong"))
        if layer is not None and layer.csum_ok is False and "csum" not in stated:
            place = f"{packet.kind}.csum"
            out.append(Mismatch(place, "correct", f"0x{layer.csum:04x}, which is wrong"))
        return out

    # --- making ---

    def values(self, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What `build` makes a frame of.

        Raises:
            ValueError: The template states a field so that it could be several things, and
                ``defaults`` have none of them.
        """
        known = {name for names in FIELDS.values() for name in names} | {"payload"}
        values = {name: value for name, value in (defaults or {}).items() if name in known}
        for name, want in self._wants.items():
            if want is ANY or name in _VIRTUAL:
                continue
            if want is ABSENT:
                values[name] = None
            elif isinstance(want, _Flags) and not want.may:
                values[name] = FLAG_TEXT[want.must]
            elif isinstance(want, (_Flags, range, Set)) or callable(want):
                have = values.get(name)
                if not _accepts(want, have if name == "flags" else _normal(name, have)):
                    raise ValueError(f"{self!r} can't be made: {name} could be {_text(want)}")
            elif isinstance(want, Template):
                values[name] = Packet(want.build(defaults))
            else:
                values[name] = want
        return self._with_length(values)

    def _with_length(self, values: dict[str, Any]) -> dict[str, Any]:
        length = self._wants.get("length")
        if length is None or "payload" in self._wants:
            return values
        if not isinstance(length, int):
            raise ValueError(f"{self!r} can't be made: its length could be {_text(length)}")
        return {**values, "payload": bytes(length)}

    def build(self, defaults: Mapping[str, Any] | None = None, **fields: Any) -> bytes:
        """A frame.

        Args:
            defaults: Values of fields that the template does not state; what neither states is
                computed (lengths, offsets, checksums) or as in `machnet.testing.build.DEFAULTS`.
            fields: Further ones, which have precedence over both.

        Raises:
            TypeError: There is no such field.
            ValueError: A value does not fit, or a field could be several things.
        """
        template = self.with_(**fields) if fields else self
        return make_frame(self.kind, template.values(defaults))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={_shown(value)}" for name, value in self.fields.items())
        return f"{self.kind}({inside})"


def _shown(value: Any) -> str:
    if callable(value) and not isinstance(value, (type, Template)):
        return _text(value)
    return f"<{_text(value)}>" if isinstance(value, bytes) and len(value) > 24 else repr(value)


#: Fields that packets have and frames don't: compared, and for ``length`` also made.
_VIRTUAL = frozenset({"length"})
#: Where a template states one of these, the packet may be malformed.
_FORM_FIELDS = {"ip_len", "ihl", "doff", "udp_len", "ip_version", "options"}


def tcp(
    flags: Want = None,
    *,
    seq: Want = None,
    ack: Want = None,
    payload: Want = None,
    length: Want = None,
    sport: Want = None,
    dport: Want = None,
    window: Want = None,
    mss: Want = None,
    wscale: Want = None,
    sack_ok: Want = None,
    sack: Want = None,
    ts: Want = None,
    options: Want = None,
    **more: Want,
) -> Template:
    """A TCP segment.

    Args:
        flags: Letters, see the module: "S", "SA", "A(P)", "S*".
        seq: Number of the wire, modulo 2^32.
        ack: The same.
        payload: Bytes.
        length: Of the payload, in bytes.
        sport: Port.
        dport: Port.
        window: Not scaled.
        mss: Option, bytes.
        wscale: Option, the shift.
        sack_ok: Whether SACK is permitted.
        sack: Blocks (left, right), in order.
        ts: Option, (value, echo).
        options: All options in order: ``[("mss", 1460), "nop", ("wscale", 7)]``, or raw bytes.
        more: `machnet.testing.build.FIELDS` of TCP, IP and Ethernet: ``csum``, ``ttl``, ``eth_src``...

    Raises:
        TypeError: There is no such field.
        ValueError: A value that no packet can have.
    """
    stated = {"flags": flags, "seq": seq, "ack": ack, "payload": payload, "length": length}
    stated |= {"sport": sport, "dport": dport, "window": window, "mss": mss, "wscale": wscale}
    stated |= {"sack_ok": sack_ok, "sack": sack, "ts": ts, "options": options}
    return Template("tcp", stated | more)


def udp(
    payload: Want = None,
    *,
    sport: Want = None,
    dport: Want = None,
    length: Want = None,
    **more: Want,
) -> Template:
    """A UDP datagram. ``length``: of its payload; ``udp_len`` is the header's field.

    Raises:
        TypeError: There is no such field.
        ValueError: A value that no packet can have.
    """
    stated = {"payload": payload, "sport": sport, "dport": dport, "length": length}
    return Template("udp", stated | more)


def icmp(
    type: Want = None,  # noqa: A002 (the field's name in every book)
    code: Want = None,
    *,
    id: Want = None,  # noqa: A002
    seq: Want = None,
    mtu: Want = None,
    quoted: Want = None,
    payload: Want = None,
    length: Want = None,
    **more: Want,
) -> Template:
    """An ICMP message.

    Args:
        type: A number, or "echo-request", "echo-reply", "unreachable", "time-exceeded", ...
        code: A number.
        id: Of an echo.
        seq: Of an echo.
        mtu: Of the next hop, in "unreachable" with code 4.
        quoted: The packet that an error quotes: a `Packet`, to send or to compare, or a template.
        payload: What follows the first 8 bytes.
        length: Its bytes.
        more: Fields of IP and Ethernet, and ``csum``.

    Raises:
        TypeError: There is no such field.
        ValueError: A value that no packet can have.
    """
    stated = {"icmp_type": type, "icmp_code": code, "icmp_id": id, "icmp_seq": seq}
    stated |= {"icmp_mtu": mtu, "quoted": quoted, "payload": payload, "length": length}
    return Template("icmp", stated | more)


def arp(
    op: Want = None,
    *,
    sender_mac: Want = None,
    sender_ip: Want = None,
    target_mac: Want = None,
    target_ip: Want = None,
    **more: Want,
) -> Template:
    """An ARP packet. ``op``: "request", "reply", or a number.

    Raises:
        TypeError: There is no such field.
        ValueError: A value that no packet can have.
    """
    stated = {"op": op, "sender_mac": sender_mac, "sender_ip": sender_ip}
    return Template("arp", stated | {"target_mac": target_mac, "target_ip": target_ip} | more)


def ip(proto: Want = None, **fields: Want) -> Template:
    """An IPv4 packet, whatever it carries: fields of IP and Ethernet, and ``payload``.

    Raises:
        TypeError: There is no such field.
        ValueError: A value that no packet can have.
    """
    return Template("ip", {"proto": proto} | fields)


def eth(ethertype: Want = None, **fields: Want) -> Template:
    """An Ethernet frame, whatever it carries: ``eth_src``, ``eth_dst``, ``payload``.

    Raises:
        TypeError: There is no such field.
        ValueError: A value that no packet can have.
    """
    return Template("eth", {"ethertype": ethertype} | fields)
