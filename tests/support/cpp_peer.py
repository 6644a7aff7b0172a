# SPDX-License-Identifier: MIT
"""How the C++ Machnet behaves on the wire, with its limits and its defects, as a scripted host.

`CppMachnet` does no I/O: frames and the time go in, frames come out. Where the original would die it
raises `CppCrash`, and what a peer should not have sent to it goes to `violations`; so a test fails
when the stack does either. `CppHost` runs one in a `machnet.sim.Network`.

It is written after the description of the original's wire format, not after machnet.
"""

from __future__ import annotations

import collections
import random
import struct
from collections.abc import Callable

from mnp_wire import (
    ACK,
    CHAIN,
    DATA,
    FIRST,
    HEADER_BYTES,
    LAST,
    MAGIC,
    MARKER,
    MORE,
    NAMES,
    NO_ACK,
    NOTIFY,
    PLAIN_MSS,
    RST,
    SYN,
    SYN_ACK,
    Addresses,
    Mnp,
    add32,
    cut,
    diff32,
    frame,
)

from machnet.testing import Packet
from machnet.testing.octets import checksum, ip_bytes, mac_bytes

TICK_NS = 1_000_000_000
RTO_TICKS = 3
RETRIES = 3
RECV_WINDOW = 64
SEND_WINDOW = 32
MESSAGE_MAX = 8 * 1024 * 1024
#: Words of its own bitmap; a header has the first four.
_WORDS = RECV_WINDOW // 8
_BROADCAST = "ff:ff:ff:ff:ff:ff"


class CppCrash(AssertionError):
    """The original's process would have died."""


class CppFlow:
    """One of its flows.

    Attributes:
        state: "CLOSED", "SYN_SENT", "SYN_RCVD" or "ESTABLISHED".
        messages: What it has received, whole messages in order.
        gone: It was removed; why.
        failed: The application was told that connecting failed.
    """

    def __init__(self, host: CppMachnet, path: Addresses, state: str) -> None:
        self.host, self.path, self.state = host, path, state
        self.snd_nxt = self.snd_una = self.rcv_nxt = 0
        self.dup_acks = self.ooo_acks = 0
        self.rto_ticks: int | None = None
        self.retries = 0
        self.messages: list[bytes] = []
        self.gone = ""
        self.failed = False
        #: Packets in order from ``snd_una`` on, those behind ``snd_nxt`` not sent yet.
        self._queue: collections.deque[Mnp] = collections.deque()
        self._held: dict[int, Mnp] = {}
        self._partial: list[bytes] = []
        self._words = [0] * _WORDS
        self._held_count = 0

    # ---- the application -------------------------------------------------------------------------

    def send(self, message: bytes, *, notify: bool = False) -> None:
        """Queue a message of 1 byte to 8 MiB.

        Args:
            message: Its bytes.
            notify: The application asks to be notified, a flag that reaches the wire.
        """
        assert 1 <= len(message) <= MESSAGE_MAX
        packets = cut(message, 0)
        if notify:
            packets[0] = packets[0].with_(msg_flags=packets[0].msg_flags | NOTIFY)
        if self._queue:
            # The mark of "another message is behind this one" is written into the last buffer,
            # from where it goes out if that is yet to be sent, or sent again.
            last = self._queue[-1]
            self._queue[-1] = last.with_(msg_flags=last.msg_flags | CHAIN)
        self._queue.extend(packets)
        self._transmit()

    def close(self) -> None:
        """The application goes away: one RST, and no more."""
        if self.state != "CLOSED":
            self._emit(Mnp(RST, self.snd_nxt, self.rcv_nxt))
            self.state, self.rto_ticks = "CLOSED", None

    @property
    def outstanding(self) -> int:
        """Data packets that are sent and not acknowledged."""
        return diff32(self.snd_nxt, self.snd_una)

    @property
    def idle(self) -> bool:
        """Whether all that was queued is acknowledged."""
        return not self._queue

    # ---- sending ---------------------------------------------------------------------------------

    def _emit(self, packet: Mnp) -> None:
        self.host.emit(self.path, packet)

    def _control(self, kind: int, seqno: int) -> None:
        words = struct.pack(">4Q", *self._words[:4])
        self._emit(Mnp(kind, seqno, self.rcv_nxt, body=words, count=self._held_count & 0xFF))

    def _data(self, index: int) -> None:
        """Send the packet ``snd_una + index``. Its bytes 12 to 45 are those of the buffer."""
        body, count = self.host.garbage()
        seqno = add32(self.snd_una, index)
        self._emit(self._queue[index].with_(seqno=seqno, ackno=NO_ACK, body=body, count=count))

    def _transmit(self) -> None:
        if self.state != "ESTABLISHED":
            return
        usable = SEND_WINDOW - (self.outstanding - self.ooo_acks)
        usable = usable if 0 <= usable <= SEND_WINDOW else 0
        while usable > 0 and self.outstanding < len(self._queue):
            self._data(self.outstanding)
            self.snd_nxt = add32(self.snd_nxt, 1)
            usable -= 1
            if self.rto_ticks is None:
                self.rto_ticks = 0

    def tick(self) -> bool:
        """The slow timer; whether the flow lives on."""
        if self.state == "CLOSED":
            self.gone = self.gone or "closed"
            return False
        if self.rto_ticks is None:
            return True
        self.rto_ticks += 1
        if self.retries >= RETRIES:
            self.gone, self.failed = "given up", self.state == "SYN_SENT"
            return False
        if self.rto_ticks >= RTO_TICKS:
            self.rto_ticks = 0
            self.retries += 1
            if self.state == "SYN_SENT":
                self._emit(Mnp(SYN, 0, 0))
            else:
                self._data(0)
        return True

    # ---- receiving -------------------------------------------------------------------------------

    def input(self, packet: Mnp) -> None:
        """A packet for this flow."""
        kind = packet.net_flags
        if kind == SYN:
            if self.state == "SYN_RCVD":
                self._control(SYN_ACK, self.snd_una)
        elif kind == SYN_ACK:
            self._syn_ack(packet)
        elif kind == RST:
            if packet.seqno == self.rcv_nxt:
                self.state = "CLOSED"
                self.gone = "reset"
        elif kind == ACK:
            self._ack(packet)
        elif kind == DATA:
            self._data_in(packet)
        else:
            self.host.violate(f"packet type 0x{kind:02x}")

    def open_passive(self, packet: Mnp) -> None:
        """The SYN that makes the flow."""
        self.rcv_nxt = add32(packet.seqno, 1)
        self._control(SYN_ACK, self.snd_nxt)
        self.snd_nxt = 1

    def open_active(self) -> None:
        """Send the SYN."""
        self._emit(Mnp(SYN, 0, 0))
        self.snd_nxt, self.rto_ticks = 1, 0

    def _syn_ack(self, packet: Mnp) -> None:
        if self.state not in {"SYN_SENT", "ESTABLISHED"} or packet.ackno != self.snd_nxt:
            return
        if self.state == "SYN_SENT":
            self.snd_una = 1
            self.rcv_nxt = add32(packet.seqno, 1)
            self.rto_ticks, self.retries = None, 0
            self.state = "ESTABLISHED"
        self._control(ACK, self.snd_nxt)
        self._transmit()

    def _ack(self, packet: Mnp) -> None:
        ahead = diff32(packet.ackno, self.snd_una)
        if self.state == "SYN_SENT":
            self.host.violate("an ACK before the handshake")
            return
        if ahead < 0:
            return
        if ahead == 0:
            self._duplicate(packet)
        elif diff32(packet.ackno, self.snd_nxt) > 0:
            self.host.violate(f"ACK {packet.ackno} of what was not sent ({self.snd_nxt})")
        else:
            self._new_ack(ahead, packet.ackno)
        self._transmit()

    def _new_ack(self, count: int, ackno: int) -> None:
        if self.state == "SYN_RCVD":
            self.state = "ESTABLISHED"
            count -= 1
        for _ in range(count):
            self._queue.popleft()
        self.snd_una = ackno
        self.dup_acks = self.ooo_acks = self.retries = 0
        self.rto_ticks = 0 if self.outstanding else None

    def _duplicate(self, packet: Mnp) -> None:
        self.dup_acks += 1
        self.ooo_acks = packet.count
        if self.dup_acks < 3:
            return
        if not self._queue or (self.state != "ESTABLISHED"):
            raise CppCrash(
                f"duplicate ACK number {self.dup_acks} of {packet.ackno} with nothing outstanding"
            )
        if self.dup_acks == 3:
            self._data(0)
            return
        self._walk(packet)

    def _walk(self, packet: Mnp) -> None:
        """What it does from the fourth duplicate on: looks for holes in words in reverse order."""
        count, index = packet.count, 0
        words = struct.unpack(">4Q", packet.body)
        while count > 0:
            if index >= self.outstanding or index >= 32:
                raise CppCrash(
                    f"duplicate ACK number {self.dup_acks} of {packet.ackno} with count "
                    f"{packet.count}: walks past the end of {self.outstanding} buffers"
                )
            if words[3 - index // 8] >> (index % 8) & 1:
                count -= 1
            else:
                self._data(index)
            index += 1

    def _data_in(self, packet: Mnp) -> None:
        if len(packet.payload) > PLAIN_MSS:
            raise CppCrash(f"a payload of {len(packet.payload)} bytes")
        if self.state != "ESTABLISHED":
            self.host.counts[f"DATA in {self.state}"] += 1
            return
        if not packet.payload:
            self.host.violate("DATA without payload")
        distance = diff32(packet.seqno, self.rcv_nxt)
        if distance >= RECV_WINDOW:
            self.host.violate(f"DATA {distance} packets ahead")
        elif distance >= 0 and packet.seqno not in self._held:
            if self.host.starved:
                self.host.counts["no buffer"] += 1
                return
            self._accept(packet, distance)
        self._control(ACK, self.snd_nxt)

    def _accept(self, packet: Mnp, distance: int) -> None:
        self._held[packet.seqno] = packet
        self._words[distance // 8] |= 1 << distance % 8
        self._held_count += 1
        while (ready := self._held.pop(self.rcv_nxt, None)) is not None:
            self.rcv_nxt = add32(self.rcv_nxt, 1)
            self._shift()
            self._held_count -= 1
            self._deliver(ready)

    def _shift(self) -> None:
        """One to the right, over the whole array, with word 0 as the most significant."""
        carry = 0
        for i, word in enumerate(self._words):
            self._words[i], carry = word >> 1 | carry << 63, word & 1

    def _deliver(self, packet: Mnp) -> None:
        flags = packet.msg_flags
        if bool(flags & FIRST) == bool(self._partial) or bool(flags & MORE) == bool(flags & LAST):
            self.host.violate(f"message flags 0x{flags:02x}")
        if flags & ~(FIRST | MORE | LAST):
            self.host.violate(f"message flags 0x{flags:02x} are the original's own")
        if flags & MORE and len(packet.payload) != PLAIN_MSS:
            self.host.violate(f"{len(packet.payload)} bytes in the middle of a message")
        self._partial.append(packet.payload)
        if flags & LAST:
            self.messages.append(b"".join(self._partial))
            self._partial = []


class CppMachnet:
    """The original's engine: frames and ticks in, frames out.

    Args:
        ip: Its address.
        mac: Its MAC address.
        seed: For what is garbage.
        garbage: What bytes 12 to 45 of its DATA are: "ones" as was observed, "random", or "marker",
            which looks like an offer of extended mode.
        csum: UDP checksums it sends: "valid", or "zero" as without offload.

    Attributes:
        flows: Those that are known.
        violations: What its peers should not have sent.
        counts: What it dropped silently.
        starved: It has no buffers: DATA is dropped without an ACK.
    """

    def __init__(
        self, ip: str, mac: str, *, seed: int = 0, garbage: str = "ones", csum: str = "valid"
    ) -> None:
        self.ip, self.mac = ip, mac
        self.flows: dict[tuple[int, str, int], CppFlow] = {}
        self.violations: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.starved = False
        self.on_flow: Callable[[CppFlow], object] | None = None
        self._listening: set[int] = set()
        self._arp: dict[str, str] = {}
        self._wanted: list[tuple[str, int, list[CppFlow]]] = []
        self._out: list[bytes] = []
        self._draw = random.Random(f"cpp {seed}")
        self._garbage, self._csum = garbage, csum

    # ---- the application -------------------------------------------------------------------------

    def listen(self, port: int) -> None:
        """Accept flows to a port."""
        self._listening.add(port)

    def connect(self, ip: str, port: int) -> list[CppFlow]:
        """Ask for a flow. The request is looked at on the next tick.

        Returns:
            A list, in which the flow will be as soon as its SYN is sent.
        """
        box: list[CppFlow] = []
        self._wanted.append((ip, port, box))
        return box

    def close(self) -> None:
        """The application goes away."""
        for flow in self.flows.values():
            flow.close()

    @property
    def only(self) -> CppFlow:
        """Its only flow."""
        (flow,) = self.flows.values()
        return flow

    # ---- in and out ------------------------------------------------------------------------------

    def take(self) -> list[bytes]:
        """Frames that it has sent, in order."""
        out, self._out = self._out, []
        return out

    def violate(self, text: str) -> None:
        """Note what a peer should not have sent."""
        self.violations.append(text)

    def garbage(self) -> tuple[bytes, int]:
        """What is in the part of a DATA header that it does not write."""
        if self._garbage == "ones":
            return b"\xff" * 32, 0xFFFF
        body = self._draw.randbytes(32)
        if self._garbage == "marker":
            body = struct.pack(">IBBHHH", MARKER, 1, 0, 0x7F, 8900, 0) + body[12:]
        return body, self._draw.getrandbits(16)

    def emit(self, path: Addresses, packet: Mnp) -> None:
        """Send a packet."""
        self._out.append(frame(path, packet, udp_csum=0 if self._csum == "zero" else None))

    def tick(self) -> None:
        """The slow timer, once a second: retransmissions, the end of flows, connects."""
        for key, flow in list(self.flows.items()):
            if not flow.tick():
                del self.flows[key]
        waiting, self._wanted = self._wanted, []
        for ip, port, box in waiting:
            if ip not in self._arp:
                self._ask(ip)
                self._wanted.append((ip, port, box))
                continue
            sport = 1024
            while any(key[0] == sport for key in self.flows):
                sport += 1
            path = Addresses(self.mac, self._arp[ip], self.ip, ip, sport, port)
            flow = self.flows[sport, ip, port] = CppFlow(self, path, "SYN_SENT")
            box.append(flow)
            flow.open_active()

    def receive(self, raw: bytes) -> None:
        """A frame comes in."""
        packet = Packet(raw)
        if packet.arp is not None:
            self._arp_in(packet)
            return
        if packet.ip is None or len(raw) < 34:
            return
        if len(raw) != 14 + packet.ip.total_len:
            self.counts["frame length"] += 1
            self.violate(f"a frame of {len(raw)} bytes around {packet.ip.total_len}")
            return
        if packet.icmp is not None and packet.icmp.type == 8:
            self._echo(raw)
        elif packet.udp is not None:
            self._udp_in(raw, packet)

    def _udp_in(self, raw: bytes, packet: Packet) -> None:
        # It never looks at checksums; whoever sends to it should.
        assert packet.ip is not None
        assert packet.udp is not None
        assert packet.eth is not None
        if packet.udp.csum_ok is False or not packet.ip.csum_ok:
            self.violate("a wrong checksum")
        data = raw[42:]
        if len(data) < HEADER_BYTES or int.from_bytes(data[:2], "big") != MAGIC:
            self.violate(f"{len(data)} bytes that are not its protocol")
            return
        found = Mnp.parse(data)
        assert found is not None
        self._check(found)
        key = (packet.udp.dport, packet.ip.src, packet.udp.sport)
        flow = self.flows.get(key) if packet.ip.dst == self.ip else None
        if flow is not None:
            flow.input(found)
        elif found.net_flags == SYN and packet.udp.dport in self._listening:
            if packet.ip.dst != self.ip:
                return
            path = Addresses(
                self.mac, packet.eth.src, self.ip, packet.ip.src, packet.udp.dport,
                packet.udp.sport,
            )  # fmt: skip
            flow = self.flows[key] = CppFlow(self, path, "SYN_RCVD")
            flow.open_passive(found)
            if self.on_flow is not None:
                self.on_flow(flow)
        else:
            self.counts[f"{found.name} to nobody"] += 1

    def _check(self, packet: Mnp) -> None:
        """Note what is wrong with a packet by itself."""
        if packet.net_flags not in NAMES:
            self.violate(f"packet type 0x{packet.net_flags:02x}")
        if packet.net_flags != DATA and (packet.msg_flags or packet.payload):
            self.violate(f"{packet.name} with message flags or payload")
        if packet.net_flags == DATA and packet.ackno != NO_ACK:
            self.violate(f"DATA with ackno {packet.ackno}")
        if packet.net_flags == ACK and (packet.count or any(packet.body)):
            self.violate("an ACK that says what is held")

    def _arp_in(self, packet: Packet) -> None:
        assert packet.arp is not None
        asked = packet.arp
        if asked.op == 1 and asked.target_ip == self.ip:
            self._say_arp(2, asked.sender_mac, asked.sender_mac, asked.sender_ip)
        elif asked.op == 2 and asked.target_ip == self.ip:
            self._arp[asked.sender_ip] = asked.sender_mac

    def _ask(self, ip: str) -> None:
        self._say_arp(1, _BROADCAST, "00:00:00:00:00:00", ip)

    def _say_arp(self, op: int, to: str, target_mac: str, target_ip: str) -> None:
        body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, op) + mac_bytes(self.mac) + ip_bytes(self.ip)
        body += mac_bytes(target_mac) + ip_bytes(target_ip)
        self._out.append(mac_bytes(to) + mac_bytes(self.mac) + b"\x08\x06" + body)

    def _echo(self, raw: bytes) -> None:
        """Answers an echo request, for whatever address it is."""
        length = len(raw) - 14
        ip = (
            struct.pack(">BBHHHBBH", 0x45, 0, length, 0x1513, 0, 64, 1, 0) + raw[30:34] + raw[26:30]
        )
        ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
        body = b"\0\0\0\0" + raw[38:]
        body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
        self._out.append(raw[6:12] + mac_bytes(self.mac) + b"\x08\x00" + ip + body)
