# SPDX-License-Identifier: MIT
"""`Packet`: a frame, taken apart when one asks, and no earlier."""

from __future__ import annotations

from typing import Any

from machnet.testing.layers import Arp, Ethernet, Icmp, Ipv4, Tcp, Udp

__all__ = ["Packet"]

_VLAN_TYPES = (0x8100, 0x88A8)
_ARP_IPV4 = bytes.fromhex("000108000604")
_MIN_BYTES = {6: 20, 17: 8, 1: 8}
_KINDS = {6: "tcp", 17: "udp", 1: "icmp"}
_L4_NAMES = {6: "TCP", 17: "UDP", 1: "ICMP"}


def _flat(doc: str, *places: str) -> Any:
    """A property that reads a header's field; None in a packet without that header."""
    pairs = [tuple(place.split(".")) for place in places]

    def get(packet: Packet) -> Any:
        for layer, name in pairs:
            view = getattr(packet, layer)
            if view is not None:
                return getattr(view, name)
        return None

    return property(get, doc=f"{doc} ({' or '.join(places)}); None where there is no such header.")


class Packet:
    """An Ethernet frame with what it carries: ARP, or IPv4 with ICMP, UDP or TCP.

    The headers are `eth`, `arp`, `ip`, `icmp`, `udp` and `tcp`, None where absent; their fields are
    also here, under flat names (``packet.dport``), None where absent. Nothing raises on what the
    bytes are: what can't be made sense of is told by `error`, and wrong checksums by `csum_ok`.

    Packets compare equal when their bytes do.

    Args:
        frame: From the destination address on, without a frame check sequence.
        t_ns: When it was sent or received, for whom it may concern.
    """

    __slots__ = (
        *("_arp", "_at_ip", "_bases", "_cut", "_end", "_error", "_eth", "_frame", "_ip", "_ip_at"),
        *("_kind", "_l4", "_l4_at", "t_ns"),
    )

    def __init__(self, frame: bytes, t_ns: int | None = None) -> None:
        self._frame = frame
        self.t_ns = t_ns
        self._kind: str | None = None
        self._at_ip = self._cut = False
        self._bases = (0, 0)
        self._eth: Ethernet | None = None
        self._arp: Arp | None = None
        self._ip: Ipv4 | None = None
        self._l4: Any = None

    @classmethod
    def from_ip(cls, packet: bytes, *, cut: bool = False) -> Packet:
        """A packet that begins with its IP header.

        Args:
            packet: From the IP header on.
            cut: Its end may be missing, as in what an ICMP error quotes: the first 8 bytes of a
                transport header are enough, and missing ones read as zero.
        """
        made = cls(bytes(packet))
        made._at_ip, made._cut = True, cut
        return made

    def relative(self, seq_base: int, ack_base: int) -> Packet:
        """The same packet with TCP numbers counted from these: the sender's ISN and the other's.

        Only what is read differs (``seq``, ``ack``, ``sack``, the summary): the bytes are the same,
        and the numbers that `with_` is given are relative too.
        """
        other = Packet(self._frame, self.t_ns)
        other._at_ip, other._cut = self._at_ip, self._cut
        other._bases = (seq_base & 0xFFFFFFFF, ack_base & 0xFFFFFFFF)
        return other

    @property
    def absolute(self) -> Packet:
        """The same packet with the numbers of the wire."""
        return self if self._bases == (0, 0) else self.relative(0, 0)

    # --- finding the headers ---

    def _locate(self) -> str:
        """Find where headers begin and end. Sets ``_kind``, the innermost header that is known."""
        frame = self._frame
        size = len(frame)
        self._error: str | None = None
        self._ip_at = -1
        self._l4_at = self._end = size
        if self._at_ip:
            self._kind = self._locate_ip(0, size)
            return self._kind
        if size < 14:
            self._l4_at = 0
            return self._stop("none", f"{size} bytes: shorter than an Ethernet header")
        at, ethertype = 14, frame[12] << 8 | frame[13]
        while ethertype in _VLAN_TYPES and size >= at + 4:
            ethertype = frame[at + 2] << 8 | frame[at + 3]
            at += 4
        self._l4_at = at
        if ethertype == 0x0800:
            self._kind = self._locate_ip(at, size)
        elif ethertype == 0x0806:
            self._kind = self._locate_arp(at, size)
        else:
            self._kind = "eth"
        return self._kind

    def _stop(self, kind: str, error: str) -> str:
        self._error, self._kind = self._error or error, kind
        return kind

    def _locate_arp(self, at: int, size: int) -> str:
        if size - at < 28:
            return self._stop("eth", f"ARP of {size - at} bytes: 28 are needed")
        if self._frame[at : at + 6] != _ARP_IPV4:
            return self._stop("eth", "ARP, but not for IPv4 over Ethernet")
        self._end = at + 28
        return "arp"

    def _locate_ip(self, at: int, size: int) -> str:
        frame = self._frame
        if size - at < 20:
            return self._stop("eth", f"IPv4 header cut off: {size - at} bytes of 20")
        first, total = frame[at], frame[at + 2] << 8 | frame[at + 3]
        if first >> 4 != 4:
            return self._stop("eth", f"IP version {first >> 4} in a packet that says IPv4")
        self._ip_at = at
        header = (first & 15) * 4
        self._l4_at = at + max(20, min(header, size - at))
        if header < 20 or header > size - at:
            return self._stop("ip", f"IPv4 header of {header} bytes, {size - at} are there")
        if total < header:
            return self._stop("ip", f"IPv4 length {total}: shorter than its header ({header})")
        if total > size - at:
            if not self._cut:
                self._error = f"IPv4 length {total}, but {size - at} bytes are there"
        else:
            self._end = at + total
        return self._locate_l4(frame[at + 9], frame[at + 6] << 8 | frame[at + 7])

    def _locate_l4(self, proto: int, frag: int) -> str:
        if frag & 0x1FFF or proto not in _KINDS:
            return "ip"
        there, needed = self._end - self._l4_at, _MIN_BYTES[proto]
        if there < (8 if self._cut else needed):
            name = _L4_NAMES[proto]
            return self._stop("ip", f"{name} header cut off: {there} bytes of {needed}")
        if proto == 6 and there >= 20:
            header = (self._frame[self._l4_at + 12] >> 4) * 4
            if (header < 20 or header > there) and not (self._cut and header >= 20):
                self._error = self._error or f"TCP header of {header} bytes, {there} are there"
        elif proto == 17 and not frag & 0x2000 and not self._cut:
            length = int.from_bytes(self._frame[self._l4_at + 4 : self._l4_at + 6], "big")
            if not 8 <= length <= there:
                self._error = self._error or f"UDP length {length}, {there} bytes are there"
        return _KINDS[proto]

    @property
    def part(self) -> bool:
        """Whether this is an IP fragment, or a quotation that leaves out the end."""
        at, frame = self._ip_at, self._frame
        if self.kind in ("none", "eth", "arp"):
            return False
        if frame[at + 6] & 0x3F or frame[at + 7]:
            return True
        return self._cut and int.from_bytes(frame[at + 2 : at + 4], "big") > self._end - at

    @property
    def _whole(self) -> bool:
        """Whether all of the transport's bytes are there."""
        at, frame = self._ip_at, self._frame
        fragment = frame[at + 6] & 0x3F or frame[at + 7]
        return not fragment and int.from_bytes(frame[at + 2 : at + 4], "big") == self._end - at

    # --- headers ---

    @property
    def kind(self) -> str:
        """The innermost header: "tcp", "udp", "icmp", "arp", "ip", "eth", or "none"."""
        return self._kind or self._locate()

    @property
    def eth(self) -> Ethernet | None:
        """The Ethernet header; None in a packet that begins with its IP header."""
        if self._eth is None and not self._at_ip and self.kind != "none":
            frame, end = self._frame, 14
            while int.from_bytes(frame[end - 2 : end], "big") in _VLAN_TYPES:
                if len(frame) < end + 4:
                    break
                end += 4
            self._eth = Ethernet(frame, end)
        return self._eth

    @property
    def arp(self) -> Arp | None:
        """The ARP packet."""
        if self._arp is None and self.kind == "arp":
            self._arp = Arp(self._frame, self._l4_at)
        return self._arp

    @property
    def ip(self) -> Ipv4 | None:
        """The IPv4 header."""
        if self._ip is None and self.kind not in ("arp", "eth", "none"):
            self._ip = Ipv4(self._frame, self._ip_at, len(self._frame))
        return self._ip

    @property
    def tcp(self) -> Tcp | None:
        """The TCP segment."""
        if (self._kind or self._locate()) != "tcp":
            return None
        if self._l4 is None:
            at = self._ip_at + 12
            self._l4 = Tcp(self._frame, self._l4_at, self._end, at, self._whole, self._bases)
        return self._l4  # type: ignore[no-any-return]

    @property
    def udp(self) -> Udp | None:
        """The UDP datagram."""
        if (self._kind or self._locate()) != "udp":
            return None
        if self._l4 is None:
            self._l4 = Udp(self._frame, self._l4_at, self._end, self._ip_at + 12, self._whole)
        return self._l4  # type: ignore[no-any-return]

    @property
    def icmp(self) -> Icmp | None:
        """The ICMP message."""
        if (self._kind or self._locate()) != "icmp":
            return None
        if self._l4 is None:
            self._l4 = Icmp(self._frame, self._l4_at, self._end, self._ip_at + 12, self._whole)
        return self._l4  # type: ignore[no-any-return]

    @property
    def _transport(self) -> Any:
        return self.tcp or self.udp or self.icmp

    @property
    def payload(self) -> bytes:
        """What is behind the innermost header, without Ethernet's padding."""
        layer = self._transport
        if layer is not None:
            return bytes(layer.payload)
        return b"" if self.kind == "arp" else self._frame[self._l4_at : self._end]

    @property
    def ip_packet(self) -> bytes:
        """The IP packet alone, from its header on; empty where there is none."""
        return self._frame[self._ip_at : self._end] if self.ip is not None else b""

    @property
    def ip_payload(self) -> bytes:
        """What is behind the IP header, whatever it is; empty where there is none."""
        ip = self.ip
        return b"" if ip is None else self._frame[self._ip_at + ip.header_len : self._end]

    @property
    def eth_payload(self) -> bytes:
        """What is behind the Ethernet header, padding included; empty where there is none."""
        eth = self.eth
        return b"" if eth is None else self._frame[14 + 4 * len(eth.vlans) :]

    @property
    def length(self) -> int:
        """Bytes of `payload`."""
        return len(self.payload)

    @property
    def trailer(self) -> bytes:
        """What the frame has behind the IP or ARP packet: Ethernet's padding, mostly."""
        return self._frame[self._end :] if self.kind != "none" else b""

    # --- whether it is right ---

    @property
    def error(self) -> str | None:
        """What is wrong with the packet's form, the first thing found; None when it is well-formed.

        Checksums are not part of it: see `csum_ok`.
        """
        self.kind  # noqa: B018 (finds the headers)
        if self._error is None and self._kind == "tcp" and self._whole:
            tcp = self.tcp
            return None if tcp is None else tcp.options_error
        return self._error

    @property
    def csum_ok(self) -> bool:
        """Whether all checksums that can be verified are right."""
        ip, layer = self.ip, self._transport
        return (ip is None or ip.csum_ok) and (layer is None or layer.csum_ok is not False)

    # --- fields by flat names ---

    eth_src = _flat("Source MAC address", "eth.src")
    eth_dst = _flat("Destination MAC address", "eth.dst")
    ethertype = _flat("EtherType", "eth.type")
    op = _flat("ARP operation: 1 request, 2 reply", "arp.op")
    sender_mac = _flat("ARP sender's MAC address", "arp.sender_mac")
    sender_ip = _flat("ARP sender's IP address", "arp.sender_ip")
    target_mac = _flat("ARP target's MAC address", "arp.target_mac")
    target_ip = _flat("ARP target's IP address", "arp.target_ip")
    src = _flat("Source IP address", "ip.src")
    dst = _flat("Destination IP address", "ip.dst")
    ttl = _flat("Time to live", "ip.ttl")
    tos = _flat("The byte of DSCP and ECN", "ip.tos")
    dscp = _flat("Differentiated services code point", "ip.dscp")
    ecn = _flat("ECN field", "ip.ecn")
    ip_id = _flat("Identification", "ip.id")
    df = _flat("Don't fragment", "ip.df")
    mf = _flat("More fragments", "ip.mf")
    frag_offset = _flat("Fragment offset in bytes", "ip.frag_offset")
    proto = _flat("IP protocol number", "ip.proto")
    ip_options = _flat("IP options, raw", "ip.options")
    ip_len = _flat("IP total length", "ip.total_len")
    ihl = _flat("IP header length in words", "ip.ihl")
    ip_csum = _flat("IP header checksum", "ip.csum")
    sport = _flat("Source port", "tcp.sport", "udp.sport")
    dport = _flat("Destination port", "tcp.dport", "udp.dport")
    csum = _flat("Checksum", "tcp.csum", "udp.csum", "icmp.csum")
    seq = _flat("Sequence number", "tcp.seq")
    ack = _flat("Acknowledgement number", "tcp.ack")
    doff = _flat("Data offset in words", "tcp.doff")
    reserved = _flat("Reserved bits", "tcp.reserved")
    flags = _flat('Flags as text such as "SA", in the order FSRPAUEC', "tcp.flags")
    window = _flat("Window, not scaled", "tcp.window")
    urgent = _flat("Urgent pointer", "tcp.urgent")
    options = _flat("TCP options in order", "tcp.options")
    mss = _flat("MSS option", "tcp.mss")
    wscale = _flat("Window scale option", "tcp.wscale")
    sack_ok = _flat("SACK-permitted option", "tcp.sack_ok")
    sack = _flat("SACK blocks", "tcp.sack")
    ts = _flat("Timestamps (value, echo)", "tcp.ts")
    udp_len = _flat("UDP length", "udp.len")
    icmp_type = _flat("ICMP type", "icmp.type")
    icmp_code = _flat("ICMP code", "icmp.code")
    icmp_id = _flat("ICMP identifier", "icmp.id")
    icmp_seq = _flat("ICMP sequence number", "icmp.seq")
    icmp_mtu = _flat("MTU of the next hop", "icmp.mtu")
    quoted = _flat("The packet that an ICMP error quotes", "icmp.quoted")

    # --- making others of it ---

    def fields(self) -> dict[str, Any]:
        """All fields that are not computed from others, by flat names, with the payload."""
        from machnet.testing.build import fields_of

        return fields_of(self)

    def with_(self, **changes: Any) -> Packet:
        """A copy with changed fields; lengths, offsets and checksums are made good.

        Args:
            changes: Fields by their flat names, and ``payload``. A length, offset or checksum that
                is given is taken as it is, wrong or not. Of a TCP option (``mss``, ``wscale``,
                ``sack_ok``, ``sack``, ``ts``) None or False removes it; ``options`` replaces all.

        Raises:
            TypeError: The packet has no such field.
            ValueError: A value is out of its range.
        """
        from machnet.testing.build import changed

        return changed(self, changes)

    def summary(self) -> str:
        """One line, as tcpdump -n prints it, with relative numbers if they are."""
        from machnet.testing.summary import summarize

        return summarize(self)

    def __bytes__(self) -> bytes:
        return self._frame

    def __len__(self) -> int:
        return len(self._frame)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Packet) and self._frame == other._frame

    def __hash__(self) -> int:
        return hash(self._frame)

    def __repr__(self) -> str:
        return f"<Packet {self.summary()}>"
