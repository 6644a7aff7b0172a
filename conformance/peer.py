# SPDX-License-Identifier: MIT
"""The scripted side of a case: one TCP connection written segment by segment.

Sequence numbers are relative: the SYN of either side is 0, its first octet of data 1. The arm's
initial sequence number is read from its SYN, ours is a choice of the case. Data are a pattern of
their place in the stream, in both directions, and are compared wherever they arrive.

`Peer.send` computes each field that is left out; `Peer.expect` takes the arm's next segment on this
connection, looks at the fields that are named and no others, and shows the exchange when one differs.
Each frame of the arm is also held to what no frame may break: checksums, option lengths, padding.
"""

from __future__ import annotations

import contextlib
import functools
import socket
from typing import TYPE_CHECKING, Any

from scripted import Got, Offer, between, errno_of, one_of

from conformance.arms import MS, SEC
from machnet.testing import Packet, icmp, pattern, tcp

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.arms import Arm

__all__ = ["Got", "Line", "Offer", "Peer", "between", "errno_of", "one_of", "pattern"]

#: How long a script waits for what must come; virtual time costs nothing, and a slow machine needs it.
PATIENCE_NS = 20 * SEC

MOD = 1 << 32


def is_tcp(frame: bytes) -> bool:
    """Whether a frame is IPv4 with TCP."""
    return frame[12:14] == b"\x08\x00" and frame[23] == 6


def correct(frame: bytes) -> Packet:
    """A frame of the arm, which must be one that a correct TCP may send.

    Checksums, lengths and options are right, padding is zero (RFC 9293 MUST-2, MUST-69), and nothing
    stands where it has no meaning.
    """
    packet = Packet(frame)
    wrong = packet.error or (None if packet.csum_ok else "a checksum is wrong")
    kinds = [option[0] for option in packet.options if option[0] != "nop"]
    if "S" not in packet.flags and {"mss", "wscale", "sack_ok"} & set(kinds):
        wrong = "an option of SYNs on another segment (RFC 9293 MUST-65)"
    elif len(set(kinds)) != len(kinds):
        wrong = "an option twice"
    elif packet.urgent and "U" not in packet.flags:
        wrong = "an urgent pointer without URG"
    elif packet.ack and "A" not in packet.flags:
        wrong = "an acknowledgement number without ACK"
    assert wrong is None, f"{wrong}: {packet.summary()}\n{frame.hex()}"
    return packet


class Line:
    """What all scripts of a case share: the frames that the arm sent and nobody has looked at."""

    def __init__(self, arm: Arm) -> None:
        self.arm, self.wire = arm, arm.wire
        self.frames: list[tuple[int, bytes]] = []
        self.log: list[tuple[int, str, bytes]] = []
        self._ports = iter(range(5000, 30000)) if arm.name == "machnet" else _LINUX_PORTS

    def new_port(self) -> int:
        """A port that no other case uses."""
        return next(self._ports)

    def send(self, frame: bytes) -> None:
        """A frame to the arm."""
        self.log.append((self.wire.now_ns, ">", frame))
        self.wire.send(frame)

    def fetch(self, within_ns: int) -> bool:
        """Wait for the next frame; whether one came."""
        got = self.wire.recv(within_ns)
        if got is None:
            return False
        if is_tcp(got[1]):
            self.log.append((got[0], "<", got[1]))
        self.frames.append(got)
        return True

    def collect(self) -> None:
        """Fetch what the arm has to say now."""
        self.arm.settle()
        while self.fetch(0):
            pass


#: One namespace serves all cases of a process, so that no two of them may share a port.
_LINUX_PORTS = iter(range(5000, 30000))


class Peer:
    """The scripted end of one connection.

    Attributes:
        snd_nxt: Our next sequence number (relative); ``send`` moves it.
        rcv_nxt: What we have of the arm's stream (relative); ``expect`` moves it.
        wnd: The window that we announce, as in the header.
        tsval: Our timestamp clock, which only the case moves.
    """

    def __init__(self, line: Line, *, arm_port: int = 0, isn: int = 0x2000_0000) -> None:
        self.line, self.arm, self.wire = line, line.arm, line.wire
        self.ip, self.port = self.wire.ip, line.new_port() + 30000
        self.arm_ip, self.arm_port = self.arm.ip, arm_port
        self.offer = Offer()
        self.isn, self.arm_isn = isn, 0
        self.snd_nxt = self.rcv_nxt = 0
        self.wnd = 65535
        self.shift_in = self.shift_out = 0
        self.ts_on = False
        self.tsval, self.ts_recent = 1000, 0
        self.syn: Got | None = None  # the arm's SYN or SYN-ACK
        self.written = 0

    def another(self, *, isn: int = 0x3000_0000) -> Peer:
        """A second connection to the same port of the arm."""
        return Peer(self.line, arm_port=self.arm_port, isn=isn)

    @property
    def address(self) -> tuple[str, int]:
        """Where the arm connects to."""
        return self.ip, self.port

    # ---- sending ---------------------------------------------------------------------------------

    def make(
        self,
        flags: str = "A",
        data: int | bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        wnd: int | None = None,
        sack: list[tuple[int, int]] | None = None,
        ts: tuple[int, int] | bool | None = None,
        opts: bytes | None = None,
        urg: int | None = None,
        **fields: Any,
    ) -> bytes:
        """A frame.

        Args:
            flags: Letters of F S R P A U E C.
            data: Bytes, or how many of the pattern.
            seq: Relative; None: `snd_nxt`.
            ack: Relative; None: `rcv_nxt`.
            wnd: As in the header; None: `wnd`.
            sack: Blocks, relative.
            ts: None as negotiated; False: none; else (value, echo).
            opts: Bytes that replace all options.
            urg: Urgent pointer.
            fields: Other fields of `machnet.testing.tcp`.
        """
        at = self.snd_nxt if seq is None else seq
        if isinstance(data, int):
            data = pattern(at - 1, data)
        with_ack = "A" in flags
        ack_no = (self.rcv_nxt if ack is None else ack) + self.arm_isn if with_ack or ack else 0
        template = tcp(
            **{
                "eth_src": self.wire.mac,
                "eth_dst": self.arm.mac,
                "src": self.ip,
                "dst": self.arm_ip,
                "sport": self.port,
                "dport": self.arm_port,
                "seq": (self.isn + at) % MOD,
                "ack": ack_no % MOD,
                "flags": flags,
                "window": self.wnd if wnd is None else wnd,
                "urgent": urg or 0,
                "options": self._options(flags, sack, ts) if opts is None else opts,
                "payload": data,
                **fields,
            }
        )
        return template.build()

    def _options(
        self, flags: str, sack: list[tuple[int, int]] | None, ts: tuple[int, int] | bool | None
    ) -> bytes:
        opts = b""
        if "S" in flags:
            if self.offer.mss is not None:
                opts += b"\x02\x04" + self.offer.mss.to_bytes(2, "big")
            if self.offer.wscale is not None:
                opts += bytes((1, 3, 3, self.offer.wscale))
            if self.offer.sack:
                opts += b"\x01\x01\x04\x02"
        if ts is None and (self.offer.ts if "S" in flags else self.ts_on):
            ts = (self.tsval, self.ts_recent if "A" in flags else 0)
        if ts:
            value, echo = ts if isinstance(ts, tuple) else (self.tsval, self.ts_recent)
            opts += b"\x01\x01\x08\x0a" + (value % MOD).to_bytes(4, "big")
            opts += (echo % MOD).to_bytes(4, "big")
        if sack:
            opts += bytes((1, 1, 5, 2 + 8 * len(sack)))
            for edge in (edge for block in sack for edge in block):
                opts += ((edge + self.arm_isn) % MOD).to_bytes(4, "big")
        return opts

    def icmp_error(
        self, kind: int, code: int, about: Got, *, mtu: int = 0, seq: int | None = None
    ) -> bytes:
        """A frame with an ICMP error that quotes a segment of the arm.

        Args:
            kind: ICMP type.
            code: ICMP code.
            about: The segment.
            mtu: Of the next hop, for "fragmentation needed".
            seq: What the quotation has as its (relative) number; None: the segment's.
        """
        quoted = about.raw
        if seq is not None:
            quoted = quoted.with_(seq=(self.arm_isn + seq) % MOD)
        template = icmp(
            eth_src=self.wire.mac,
            eth_dst=self.arm.mac,
            src=self.ip,
            dst=self.arm_ip,
            icmp_type=kind,
            icmp_code=code,
            icmp_mtu=mtu,
            quoted=quoted.ip_packet[:28],
        )
        return template.build()

    def send(self, flags: str = "A", data: int | bytes = b"", **fields: Any) -> None:
        """One segment to the arm; moves `snd_nxt` unless ``seq`` was given."""
        self.line.send(self.make(flags, data, **fields))
        if fields.get("seq") is None:
            size = data if isinstance(data, int) else len(data)
            self.snd_nxt += size + ("S" in flags) + ("F" in flags)

    # ---- receiving -------------------------------------------------------------------------------

    def _is_mine(self, frame: bytes) -> bool:
        return (
            is_tcp(frame)
            and frame[34:36] == self.arm_port.to_bytes(2, "big")
            and frame[36:38] == self.port.to_bytes(2, "big")
        )

    def _take(self) -> Got | None:
        for i, (t_ns, frame) in enumerate(self.line.frames):
            if self._is_mine(frame):
                del self.line.frames[i]
                return self._understand(t_ns, correct(frame))
        return None

    def recv(self, within_ns: int = PATIENCE_NS) -> Got | None:
        """The arm's next segment on this connection, None if none comes in that time."""
        end = self.wire.now_ns + within_ns
        while (got := self._take()) is None:
            if not self.line.fetch(max(0, end - self.wire.now_ns)):
                return None
        return got

    def _understand(self, t_ns: int, raw: Packet) -> Got:
        if "S" in raw.flags and self.syn is None:
            self.arm_isn = raw.seq
        shift = 0 if "S" in raw.flags else self.shift_in
        got = Got(
            t_ns=t_ns,
            flags=raw.flags.replace("P", ""),
            seq=_relative(raw.seq, self.arm_isn),
            ack=_relative(raw.ack, self.isn) if "A" in raw.flags else 0,
            len=raw.length,
            wnd=raw.window << shift,
            urg=raw.urgent,
            push="P" in raw.flags,
            mss=raw.mss,
            wscale=raw.wscale,
            sack_ok=raw.sack_ok,
            sack=[(_relative(a, self.isn), _relative(b, self.isn)) for a, b in raw.sack or ()],
            ts=raw.ts,
            data=raw.payload,
            raw=raw,
        )
        if got.ts and got.seq <= self.rcv_nxt:
            self.ts_recent = got.ts[0]
        if got.seq <= self.rcv_nxt < got.end and "R" not in got.flags:
            self.rcv_nxt = got.end
        if "S" in got.flags and self.syn is None:
            self.syn = got
            self._agree(got)
        return got

    def _agree(self, syn: Got) -> None:
        if self.offer.wscale is not None and syn.wscale is not None:
            self.shift_out, self.shift_in = self.offer.wscale, syn.wscale
        self.ts_on = self.offer.ts and syn.ts is not None

    def expect(
        self,
        flags: str | None = None,
        *,
        within_ns: int = PATIENCE_NS,
        past: str | None = None,
        **want: Any,
    ) -> Got:
        """The arm's next segment, which must be as described; those with flags ``past`` don't count."""
        got = self.recv(within_ns)
        while got is not None and got.flags == past:
            got = self.recv(within_ns)
        return self._check(got, flags, want)

    def expect_now(self, flags: str | None = None, **want: Any) -> Got:
        """The same, of what the arm says without waiting for a timer or for more input."""
        self.line.collect()
        return self._check(self._take(), flags, want)

    def _check(self, got: Got | None, flags: str | None, want: dict[str, Any]) -> Got:
        if flags is not None:
            want["flags"] = flags
        if got is None:
            raise AssertionError(f"nothing came, wanted {want}\n{self.history()}")
        if wrong := got.differs(want):
            raise AssertionError("\n".join(wrong) + f"\n{self.history()}")
        if got.data and self.written and got.seq - 1 + got.len <= self.written:
            assert got.data == pattern(got.seq - 1, got.len), f"wrong data\n{self.history()}"
        return got

    def expect_nothing(self, for_ns: int = 0) -> None:
        """The arm has nothing to say, and says nothing for that long."""
        self.line.collect()
        got = self._take()
        if got is None and for_ns:
            got = self.recv(for_ns)
        assert got is None, f"wanted silence, got {got}\n{self.history()}"

    def expect_data(self, sizes: list[int]) -> list[Got]:
        """Segments of these sizes, in order; ACKs without data between them do not count."""
        found = []
        for size in sizes:
            while (got := self.recv()) is not None and got.flags == "A" and got.len == 0:
                pass
            at = found[-1].end if found else self._check(got, None, {}).seq
            found.append(self._check(got, "A", {"seq": at, "len": size}))
        return found

    def expect_sent(self, size: int, **want: Any) -> Got:
        """One segment of that many octets, the next of the stream."""
        at = self.rcv_nxt
        (got,) = self.expect_data([size])
        return self._check(got, "A", {"seq": at, **want})

    def drain(self) -> list[Got]:
        """All segments that wait."""
        self.line.collect()
        got = []
        while (segment := self._take()) is not None:
            got.append(segment)
        return got

    def history(self, count: int = 40) -> str:
        """The last segments of the case, both ways."""
        lines = []
        start = self.line.log[0][0] if self.line.log else 0
        for t_ns, way, frame in self.line.log[-count:]:
            bases = (self.isn, self.arm_isn) if way == ">" else (self.arm_isn, self.isn)
            packet = Packet(frame).relative(*bases)
            lines.append(f"{(t_ns - start) / MS:12.3f} ms {way} {packet.summary()}")
        return "\n".join(lines)

    # ---- the arm's side --------------------------------------------------------------------------

    def listen(self, backlog: int = 16, prepare: Callable[[Any], None] | None = None) -> Any:
        """A listening socket of the arm, on a port of its own, which this peer then talks to."""
        sock = self.arm.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.arm_port = self.line.new_port()
        sock.bind((self.arm_ip, self.arm_port))
        if prepare is not None:
            prepare(sock)
        sock.listen(backlog)
        return sock

    def connect(self, sock: Any = None) -> Any:
        """Let the arm begin to connect to us; its SYN is `syn` then."""
        sock = sock if sock is not None else self.arm.socket()
        assert errno_of(lambda: sock.connect(self.address)) == "EINPROGRESS"
        self.expect_syn()
        return sock

    def expect_syn(self) -> Got:
        """The arm's SYN to our port, from whichever port it has chosen."""
        end = self.wire.now_ns + PATIENCE_NS
        while True:
            for i, (t_ns, frame) in enumerate(self.line.frames):
                if is_tcp(frame) and frame[36:38] == self.port.to_bytes(2, "big"):
                    self.arm_port = int.from_bytes(frame[34:36], "big")
                    del self.line.frames[i]
                    got = self._understand(t_ns, correct(frame))
                    return self._check(got, "S", {"len": 0})
            assert self.line.fetch(max(0, end - self.wire.now_ns)), f"no SYN\n{self.history()}"

    def shake_hands(self) -> None:
        """Open a connection to the arm."""
        self.send("S")
        self.expect("SA", seq=0, ack=1, len=0)
        self.send("A")

    def accept(self, listener: Any) -> Any:
        """The arm's socket of the connection."""
        sock, address = self.arm.wait(listener.accept)
        assert address == self.address
        return sock

    def established(self, *, active: bool = False, **offer: Any) -> Any:
        """An open connection; the arm's socket. ``offer``: fields of `Offer`."""
        self.offer = Offer(**offer)
        if active:
            sock = self.connect()
            self.send("SA")
            self.expect("A", seq=1, ack=1, len=0)
            return sock
        with contextlib.closing(self.listen()) as listener:
            self.shake_hands()
            sock = self.accept(listener)
        # What is sent is seen at once, on both arms, unless a case is about Nagle's algorithm.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def write(self, sock: Any, size: int) -> int:
        """Let the arm send that many octets of the pattern; how many it took."""
        taken: int = sock.send(pattern(self.written, size))
        self.written += taken
        return taken

    def read(self, sock: Any, size: int, at: int = 0) -> None:
        """Read exactly that much, which must be our pattern from position ``at`` on."""
        data = b""
        while len(data) < size:
            part = self.arm.wait(functools.partial(sock.recv, size - len(data)))
            assert part, f"the stream ended after {len(data)} of {size} octets\n{self.history()}"
            data += part
        assert data == pattern(at, size), f"wrong data\n{self.history()}"

    @property
    def state(self) -> str:
        """The arm's state of this connection."""
        return self.arm.state((self.arm_ip, self.arm_port), (self.ip, self.port))


def _relative(number: int, base: int) -> int:
    """A number of the wire as a distance from ``base``; negative when it is before it."""
    distance = (number - base) % MOD
    return distance if distance < MOD - MOD // 4 else distance - MOD
