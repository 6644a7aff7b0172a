# SPDX-License-Identifier: MIT
"""Reading captures: frames with their times, and what of them is meant for one host.

pcap and pcapng are read by libpcap (pcapy-ng), which gives times in microseconds.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from machnet.stack.names import format_ip

__all__ = ["CapturedFrame", "Replay", "read_capture", "select"]

#: Who sends, where a capture has no Ethernet addresses; also whoever the NIC answers ARP for.
NOBODY_MAC = bytes.fromhex("024d4efffffe")
#: The side that is replayed to, where a capture does not say its address.
SIDE_MAC = bytes.fromhex("024d4e000001")

_IPV4, _ARP = 0x0800, 0x0806
_TCP = 6
_SYN, _ACK = 0x02, 0x10
_OPT_SACK = 5

#: Link types (libpcap's DLT numbers), with the bytes in front of the packet and where its
#: EtherType is (None: it is IPv4, or something else that its first bits tell).
_LINK_TYPES: dict[int, tuple[str, int, int | None]] = {
    0: ("BSD loopback", 4, None),
    12: ("raw IP", 0, None),
    14: ("raw IP", 0, None),
    101: ("raw IP", 0, None),
    108: ("OpenBSD loopback", 4, None),
    113: ("Linux cooked", 16, 14),
    228: ("raw IPv4", 0, None),
    276: ("Linux cooked v2", 20, 0),
}
_ETHERNET = 1


class CapturedFrame(NamedTuple):
    """A frame of a capture, as Ethernet without VLAN tag.

    Attributes:
        number: Its number in the file, from 1, as Wireshark counts.
        t_ns: When it was seen, since 1970.
        data: Its bytes.
        missing: Bytes that were cut off when it was captured.
    """

    number: int
    t_ns: int
    data: bytes
    missing: int


def read_capture(path: str | os.PathLike[str]) -> list[CapturedFrame]:
    """The frames of a capture, in the order of the file.

    Times never go back: a frame that is stamped earlier than the one before counts as simultaneous.

    Raises:
        OSError: The file can't be read.
        ValueError: It is no capture, damaged, or of a link type that has no IP in it.
    """
    import pcapy

    with Path(path).open("rb"):  # libpcap's own message has no errno
        pass
    try:
        reader = pcapy.open_offline(os.fspath(path))
    except pcapy.PcapError as error:
        raise ValueError(f"{path}: {error}") from None
    link = int(reader.datalink())
    if link != _ETHERNET and link not in _LINK_TYPES:
        known = ", ".join(sorted({name for name, _, _ in _LINK_TYPES.values()}))
        raise ValueError(f"{path}: link type {link} is neither Ethernet nor one of: {known}")
    frames: list[CapturedFrame] = []
    number, last = 0, 0
    while True:
        number += 1
        try:
            header, data = reader.next()
        except pcapy.PcapError as error:
            raise ValueError(f"{path}: frame {number}: {error}") from None
        if header is None:
            return frames
        seconds, micros = header.getts()
        last = max(last, seconds * 10**9 + micros * 1000)
        frame = _ethernet(link, bytes(data))
        if frame is not None:
            missing = int(header.getlen()) - int(header.getcaplen())
            frames.append(CapturedFrame(number, last, frame, max(missing, 0)))


def _ethernet(link: int, data: bytes) -> bytes | None:
    """The frame with an Ethernet header and no tag; None: nothing that a stack could want."""
    if link == _ETHERNET:
        if data[12:14] == b"\x81\x00":
            data = data[:12] + data[16:]
        return data if len(data) >= 14 else None
    _, size, type_at = _LINK_TYPES[link]
    if len(data) <= size:
        return None
    if type_at is None:
        ethertype = _IPV4 if data[size] >> 4 == 4 else 0
    else:
        ethertype = int.from_bytes(data[type_at : type_at + 2], "big")
    if ethertype not in {_IPV4, _ARP}:
        return None
    return SIDE_MAC + NOBODY_MAC + ethertype.to_bytes(2, "big") + data[size:]


# ---- what is in a frame --------------------------------------------------------------------------


class _Ip(NamedTuple):
    src: int
    dst: int
    proto: int
    l4: int  # where the next header begins
    end: int
    first: bool  # not a later fragment


def _ip(frame: bytes) -> _Ip | None:
    if frame[12:14] != b"\x08\x00" or len(frame) < 34 or frame[14] >> 4 != 4:
        return None
    total, offset, proto, src, dst = struct.unpack_from("!2xH2xHxB2xII", frame, 14)
    l4 = 14 + 4 * (frame[14] & 15)
    return _Ip(src, dst, proto, l4, min(14 + total, len(frame)), offset & 0x1FFF == 0)


class _Tcp(NamedTuple):
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int
    data: int  # where the options end


def _tcp(frame: bytes, ip: _Ip) -> _Tcp | None:
    if ip.proto != _TCP or not ip.first or ip.end < ip.l4 + 20:
        return None
    sport, dport, seq, ack, size, flags = struct.unpack_from("!HHIIBB", frame, ip.l4)
    data = ip.l4 + (size >> 4) * 4
    return _Tcp(sport, dport, seq, ack, flags, data) if ip.l4 + 20 <= data <= ip.end else None


def _receiver(frame: bytes) -> int | None:
    """The IP address that the frame is for: of a packet, or what an ARP packet is about."""
    if frame[12:14] == b"\x08\x06" and len(frame) >= 42:
        return int.from_bytes(frame[38:42], "big")
    ip = _ip(frame)
    return None if ip is None else ip.dst


# ---- initial sequence numbers --------------------------------------------------------------------


@dataclasses.dataclass
class _Flow:
    peer_syn: int | None = None
    isn: int | None = None


def _isns(frames: list[CapturedFrame], side: int) -> list[int | None]:
    """For each frame the initial sequence number that the side used on its connection then.

    It is in the side's own SYN; where that was not captured, the peer's first acknowledgement
    after its own SYN has it.
    """
    flows: dict[tuple[int, int, int], _Flow] = {}
    found: list[int | None] = []
    for frame in frames:
        ip = _ip(frame.data)
        tcp = None if ip is None else _tcp(frame.data, ip)
        if ip is None or tcp is None:
            found.append(None)
        elif ip.src == side:
            flow = flows.setdefault((ip.dst, tcp.dport, tcp.sport), _Flow())
            if tcp.flags & _SYN:
                if not tcp.flags & _ACK:
                    flow.peer_syn = None
                flow.isn = tcp.seq
            found.append(flow.isn)
        else:
            flow = flows.setdefault((ip.src, tcp.sport, tcp.dport), _Flow())
            began = flow.peer_syn is not None or bool(tcp.flags & _SYN)
            if tcp.flags & _SYN and not tcp.flags & _ACK and flow.peer_syn != tcp.seq:
                if flow.peer_syn is not None:  # the same ports again
                    flow.isn = None
                flow.peer_syn = tcp.seq
            elif tcp.flags & _ACK and flow.isn is None and began:
                flow.isn = (tcp.ack - 1) & 0xFFFFFFFF
            found.append(flow.isn)
    return found


def _patch(frame: bytearray, l4: int, at: int, value: int) -> None:
    """Write 32 bits into a TCP header; a right checksum stays right and a wrong one wrong.

    RFC 1624.
    """
    start, end = at - (at - l4) % 2, at + 4 + (at - l4) % 2

    def words() -> int:
        return sum(struct.unpack_from(f"!{(end - start) // 2}H", frame, start))

    before = words()
    struct.pack_into("!I", frame, at, value)
    (old,) = struct.unpack_from("!H", frame, l4 + 16)
    total = ((~old & 0xFFFF) + words() - before) % 0xFFFF
    struct.pack_into("!H", frame, l4 + 16, ~total & 0xFFFF)


def _shift_acks(data: bytes, by: int) -> bytes:
    """A segment with its acknowledgement and SACK blocks moved."""
    ip = _ip(data)
    tcp = None if ip is None else _tcp(data, ip)
    if by == 0 or ip is None or tcp is None or not tcp.flags & _ACK:
        return data
    frame = bytearray(data)
    _patch(frame, ip.l4, ip.l4 + 8, (tcp.ack + by) & 0xFFFFFFFF)
    at = ip.l4 + 20
    while at + 1 < tcp.data and frame[at] != 0:
        if frame[at] == 1:
            at += 1
            continue
        size = frame[at + 1]
        if size < 2 or at + size > tcp.data:
            break
        if frame[at] == _OPT_SACK:
            for edge in range(at + 2, at + size - 3, 4):
                (old,) = struct.unpack_from("!I", frame, edge)
                _patch(frame, ip.l4, edge, (old + by) & 0xFFFFFFFF)
        at += size
    return bytes(frame)


# ---- choosing ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Replay:
    """What is replayed to one side of a capture.

    Attributes:
        frames: Time since the first one in ns, and frame.
        sent: What the side itself sent in the capture, in the same form; a time before the first
            frame is negative.
        mac: The side's Ethernet address.
        isn: The initial sequence number that the frames acknowledge; None: there is none.
        epoch_ns: The time of the first one, since 1970.
        neighbors: Ethernet addresses of the other hosts.
    """

    frames: list[tuple[int, bytes]]
    sent: list[tuple[int, bytes]]
    mac: bytes
    isn: int | None
    epoch_ns: int
    neighbors: dict[int, bytes]


def select(
    frames: list[CapturedFrame], side: int, isn: int | None = None, name: Any = "capture"
) -> Replay:
    """The frames for one host: IPv4 packets to its address, and ARP about it.

    Args:
        frames: A capture.
        side: The host's address.
        isn: The initial sequence number that it will use now; None: the first that it used then.
        name: Of the capture, for errors.

    Raises:
        ValueError: There is none, or one was not captured whole.
    """
    mine = [
        frame for frame in frames if _receiver(frame.data) == side and not _is_from(frame, side)
    ]
    if not mine:
        raise ValueError(f"{name}: no frame is for {format_ip(side)}; {_census(frames)}")
    for frame in mine:
        if frame.missing:
            raise ValueError(
                f"{name}: frame {frame.number} was not captured whole ({frame.missing} bytes are "
                "missing): capture without a snap length, as tcpdump -s 0 does"
            )
    epoch = mine[0].t_ns
    isns = dict(zip((frame.number for frame in frames), _isns(frames, side), strict=True))
    known = [number for number in isns.values() if number is not None]
    if isn is None and known:
        isn = known[0]
    mac = next((f.data[:6] for f in mine if not f.data[0] & 1), SIDE_MAC)
    out = []
    for frame in mine:
        then = isns[frame.number]
        data = frame.data if then is None or isn is None else _shift_acks(frame.data, isn - then)
        # A frame that was seen behind a router or a bridge has another address.
        out.append((frame.t_ns - epoch, data if data[0] & 1 else mac + data[6:]))
    sent = [(f.t_ns - epoch, f.data) for f in frames if _is_from(f, side)]
    return Replay(out, sent, mac, isn if known else None, epoch, _neighbors(mine))


def _is_from(frame: CapturedFrame, side: int) -> bool:
    if frame.data[12:14] == b"\x08\x06" and len(frame.data) >= 42:
        return int.from_bytes(frame.data[28:32], "big") == side
    ip = _ip(frame.data)
    return ip is not None and ip.src == side


def _neighbors(frames: list[CapturedFrame]) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for frame in frames:
        ip = _ip(frame.data)
        if ip is not None:
            found.setdefault(ip.src, frame.data[6:12])
        elif len(frame.data) >= 42:
            found[int.from_bytes(frame.data[28:32], "big")] = frame.data[22:28]
    return found


def _census(frames: list[CapturedFrame]) -> str:
    counts = Counter(_receiver(frame.data) for frame in frames)
    counts.pop(None, None)
    if not counts:
        return "it has no IPv4 and no ARP"
    most = ", ".join(f"{format_ip(ip)} ({n})" for ip, n in counts.most_common(5) if ip is not None)
    return f"it has frames for {most}"
