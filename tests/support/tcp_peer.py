# SPDX-License-Identifier: MIT
"""A scripted TCP peer against one stack in virtual time, and a constructor for each state.

Sequence numbers are relative, as in packetdrill: the SYN of each side is 0, its first octet of data
1. So a test reads the same whatever the initial sequence numbers are, and the fixture that makes a
`Lab` runs it for several, two of them such that the numbers wrap (2^32) or change sign (2^31).

``send`` computes every field that is left out; ``expect`` takes the next segment of the stack, checks
the fields that are named and nothing else, and shows the whole exchange when one is wrong. Payload
is a pattern of the stream position in both directions and is checked wherever it arrives.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

from scripted import Got, Offer, between, errno_of, one_of
from tcp_lab import (
    FULL,
    LATE_NS,
    MS,
    ORDINARY,
    PEER_IP,
    PEER_MAC,
    PEER_PORT,
    PLAIN,
    PURE_ACK,
    SACK,
    SEC,
    STACK_IP,
    STACK_MAC,
    STACK_PORT,
    TS,
    US,
    WRAP_31,
    WRAP_32,
    Isns,
    Lab,
    relative,
    would_block,
)
from tcp_segment import (
    ACK,
    FIN,
    PSH,
    SYN,
    Segment,
    build_eth,
    build_ip,
    build_tcp,
    flag_bits,
    flag_text,
    is_tcp,
    opt_mss,
    opt_sack,
    opt_sack_ok,
    opt_ts,
    opt_wscale,
    parse,
)

from machnet.testing import pattern

__all__ = [
    "FULL",
    "LATE_NS",
    "MS",
    "ORDINARY",
    "PEER_IP",
    "PEER_MAC",
    "PLAIN",
    "PURE_ACK",
    "SACK",
    "SEC",
    "STACK_IP",
    "STACK_MAC",
    "STACK_PORT",
    "TS",
    "US",
    "WRAP_31",
    "WRAP_32",
    "Got",
    "Isns",
    "Lab",
    "Offer",
    "Peer",
    "between",
    "errno_of",
    "one_of",
    "pattern",
    "would_block",
]


class Peer:
    """The scripted end of one connection.

    Attributes:
        snd_nxt: The next sequence number of ours (relative); ``send`` moves it.
        rcv_nxt: What we have of the stack's stream (relative); ``expect`` moves it.
        sock: The stack's socket of this connection, once there is one.
        shift_out: Shift of the windows that we announce.
        ts_on: Whether timestamps are in use; ``tsval`` is our clock, ``ts_recent`` what we echo.
    """

    def __init__(
        self,
        lab: Lab,
        offer: Offer,
        *,
        ip: str = PEER_IP,
        port: int = PEER_PORT,
        stack_port: int = STACK_PORT,
        isn: int | None = None,
        stack_isn: int | None = None,
    ) -> None:
        self.lab, self.stack, self.offer = lab, lab.stack, offer
        self.ip, self.port = ip, port
        self.stack_ip, self.stack_port = STACK_IP, stack_port
        self.isn = lab.isns.peer if isn is None else isn
        self.stack_isn = lab.isns.stack if stack_isn is None else stack_isn
        self.snd_nxt = self.rcv_nxt = 0
        self.wnd = 65535
        self.shift_in = self.shift_out = 0
        self.ts_on = False
        self.tsval, self.ts_recent = 1000, 0
        self._learns_isn = lab.random_isn and stack_isn is None
        self.listener: Any = None
        self.sock: Any = None
        self.written = self.read_so_far = 0

    # --- sending ---

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
        urg: int = 0,
        ip: dict[str, Any] | None = None,
        **tcp: Any,
    ) -> bytes:
        """A frame. ``ts``: None as negotiated, False without, else (value, echo).

        ``opts`` replaces all options. ``ip`` goes to `build_ip`, what is left to `build_tcp`.
        """
        bits = flag_bits(flags)
        at = self.snd_nxt if seq is None else seq
        if isinstance(data, int):
            data = pattern(at - 1, data)
        if opts is None:
            opts = self._options(bits, sack, ts)
        ack_no = (self.rcv_nxt if ack is None else ack) + self.stack_isn if bits & ACK else 0
        body = build_tcp(
            *(self.ip, self.stack_ip, self.port, self.stack_port, self.isn + at, ack_no, bits),
            self.wnd if wnd is None else wnd,
            **{"urg": urg, "opts": opts, "data": data, **tcp},
        )
        return build_eth(
            STACK_MAC,
            PEER_MAC,
            build_ip(body, **{"src": self.ip, "dst": self.stack_ip, **(ip or {})}),
        )

    def _options(
        self, bits: int, sack: list[tuple[int, int]] | None, ts: tuple[int, int] | bool | None
    ) -> bytes:
        opts = b""
        if bits & SYN:
            if self.offer.mss is not None:
                opts += opt_mss(self.offer.mss)
            if self.offer.wscale is not None:
                opts += b"\1" + opt_wscale(self.offer.wscale)
            if self.offer.sack:
                opts += b"\1\1" + opt_sack_ok()
        if ts is None:
            ts = (self.offer.ts if bits & SYN else self.ts_on) and (self.tsval, self.ts_recent)
        if ts:
            value, echo = (self.tsval, self.ts_recent) if ts is True else ts
            opts += b"\1\1" + opt_ts(value, echo if bits & ACK else 0)
        if sack:
            isn = self.stack_isn
            opts += b"\1\1" + opt_sack([(left + isn, right + isn) for left, right in sack])
        return opts

    def send(self, flags: str = "A", data: int | bytes = b"", **fields: Any) -> None:
        """One segment to the stack, now; moves ``snd_nxt`` unless ``seq`` was given."""
        self.lab.inject(self.make(flags, data, **fields))
        if fields.get("seq") is None:
            bits = flag_bits(flags)
            size = data if isinstance(data, int) else len(data)
            self.snd_nxt += size + bool(bits & SYN) + bool(bits & FIN)

    # --- receiving ---

    def _is_mine(self, t_ns: int, frame: bytes) -> bool:
        if not is_tcp(frame):
            return False
        ports = struct.unpack_from(">HH", frame, 34)
        return frame[30:34] == bytes(map(int, self.ip.split("."))) and ports == (
            self.stack_port,
            self.port,
        )

    def recv(self) -> Got | None:
        """The next segment that the stack has sent on this connection, if any."""
        self.lab.collect()
        for i, (t_ns, frame) in enumerate(self.lab.frames):
            if self._is_mine(t_ns, frame):
                del self.lab.frames[i]
                return self._understand(parse(t_ns, frame))
        return None

    def _understand(self, raw: Segment) -> Got:
        if raw.flags & SYN and self._learns_isn:
            self.stack_isn = raw.raw_seq
        seq = relative(raw.raw_seq, self.stack_isn)
        shift = 0 if raw.flags & SYN else self.shift_in
        got = Got(
            *(raw.t_ns, flag_text(raw.flags & ~PSH)),
            *(seq, relative(raw.raw_ack, self.isn) if raw.flags & ACK else 0),
            *(len(raw.data), raw.wnd << shift, raw.urg, bool(raw.flags & PSH)),
            *(raw.opts.mss, raw.opts.wscale, raw.opts.sack_ok),
            [(relative(a, self.isn), relative(b, self.isn)) for a, b in raw.opts.sack],
            *(raw.opts.ts, raw.data, raw),
        )
        if raw.opts.ts and got.seq <= self.rcv_nxt:
            self.ts_recent = raw.opts.ts[0]
        if got.seq <= self.rcv_nxt < got.end and "R" not in got.flags:
            self.rcv_nxt = got.end
        return got

    def expect(self, flags: str | None = None, **want: Any) -> Got:
        """The next segment, which must be as described; PSH counts only as ``push=``."""
        got = self.recv()
        if flags is not None:
            want["flags"] = flags
        if got is None:
            raise AssertionError(f"nothing was sent, wanted {want}\n{self.history()}")
        if wrong := got.differs(want):
            raise AssertionError("\n".join(wrong) + f"\n{self.history()}")
        if got.data and self.written and got.len + got.seq - 1 <= self.written:
            assert got.data == pattern(got.seq - 1, got.len), f"wrong data\n{self.history()}"
        return got

    def expect_nothing(self, ns: int = 0) -> None:
        """Nothing comes now, nor in the next ``ns`` nanoseconds."""
        if ns:
            self.lab.collect()
            self.stack.advance(ns)
        if got := self.recv():
            raise AssertionError(f"wanted silence, got {got}\n{self.history()}")

    def expect_at(
        self, t_ns: int, flags: str | None = None, *, late_ns: int = LATE_NS, **want: Any
    ) -> Got:
        """Silence until ``t_ns``, then at this time (at most ``late_ns`` after it) the segment."""
        self.expect_nothing(max(0, t_ns - 1 - self.lab.now))
        self.lab.advance_to(t_ns + late_ns)
        got = self.expect(flags, **want)
        assert t_ns <= got.t_ns <= t_ns + late_ns, f"{got.t_ns - t_ns} ns late\n{self.history()}"
        return got

    def expect_data(self, sizes: list[int], seq: int | None = None) -> list[Got]:
        """Segments of data of these sizes, in order from ``seq`` (default: where we are)."""
        at = self.rcv_nxt if seq is None else seq
        out = []
        for size in sizes:
            out.append(self.expect("A", seq=at, len=size))
            at += size
        return out

    def drain(self) -> list[Got]:
        """All segments that wait."""
        out = []
        while got := self.recv():
            out.append(got)
        return out

    def next_segment(self, limit_ns: int) -> Got:
        """Go on in time until a segment comes, at most ``limit_ns``."""
        end = self.lab.now + limit_ns
        while True:
            if got := self.recv():
                return got
            left = end - self.lab.now
            assert left > 0, f"nothing came in {limit_ns} ns\n{self.history()}"
            self.stack.advance(min(left, 50 * MS))

    def history(self, count: int = 40) -> str:
        """The last frames of this connection in both directions, in relative numbers."""
        lines = [f"now {self.lab.now} ns, state {self.state}"]
        for t_ns, way, frame in self.lab.log[-count:]:
            lines.append(f"{t_ns / MS:14.3f} ms {way} {self._describe(t_ns, way, frame)}")
        return "\n".join(lines)

    def _describe(self, t_ns: int, way: str, frame: bytes) -> str:
        try:
            seg = parse(t_ns, frame)
        except (AssertionError, struct.error, IndexError) as error:
            return f"{error}: {frame[:60].hex()}"
        mine, other = (self.isn, self.stack_isn) if way == ">" else (self.stack_isn, self.isn)
        text = f"{flag_text(seg.flags):4} seq {relative(seg.raw_seq, mine)}+{len(seg.data)}"
        if seg.flags & ACK:
            text += f" ack {relative(seg.raw_ack, other)}"
        sack = [(relative(a, other), relative(b, other)) for a, b in seg.opts.sack]
        return (
            text
            + f" wnd {seg.wnd}"
            + (f" sack {sack}" if sack else "")
            + (f" ts {seg.opts.ts}" if seg.opts.ts else "")
        )

    # --- the application on the stack ---

    @property
    def state(self) -> str:
        """State of the connection with RFC 9293's name, CLOSED when the stack knows none."""
        info = self.info()
        return "CLOSED" if info is None else info.state

    def info(self) -> Any:
        """The stack's record of this connection (a `SocketInfo`), or None."""
        return self.stack.find_socket((STACK_IP, self.stack_port), (self.ip, self.port))

    def info_rcv_nxt(self) -> int:
        """What the stack expects next from us, as a relative number."""
        return relative(self.info().rcv_nxt, self.isn)

    def soft_error(self) -> str | None:
        """The last soft error that the application was told of (ICMP, R1), as errno's name."""
        self.lab.collect()
        number = self.sock._flow.soft_error
        return errno.errorcode[abs(number)] if number else None

    def accept(self) -> Any:
        """Take the connection from the listener."""
        self.sock, address = self.listener.accept()
        assert tuple(address) == (self.ip, self.port)
        return self.sock

    def write(self, size: int) -> None:
        """The application sends ``size`` octets of the pattern, which must all fit."""
        data = pattern(self.written, size)
        done = 0
        while done < size:
            done += self.sock.send(data[done : done + 65536])
        self.written += size
        self.lab.collect()

    def read(self, size: int = 1 << 20) -> int:
        """The application receives what is there, up to ``size``: how many octets, 0 at the end."""
        got = 0
        while got < size:
            try:
                data = self.sock.recv(min(size - got, 65536))
            except BlockingIOError:
                break
            if not data:
                break
            assert data == pattern(self.read_so_far, len(data)), f"wrong data\n{self.history()}"
            self.read_so_far += len(data)
            got += len(data)
        self.lab.collect()
        return got

    def at_eof(self) -> bool:
        """Whether the application sees the end of the peer's stream."""
        try:
            return self.sock.recv(1) == b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.sock.close()
        self.lab.collect()

    def abort(self) -> None:
        """Close with a linger time of 0."""
        self.option(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def option(self, level: int, name: int, value: Any) -> None:
        self.sock.setsockopt(level, name, value)
        self.lab.collect()

    def nodelay(self) -> None:
        """Switch Nagle's algorithm off."""
        self.option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def shutdown(self) -> None:
        """No more data from the application (SHUT_WR)."""
        self.sock.shutdown(1)
        self.lab.collect()


# --- one constructor per state, each on top of the one before -------------------------------------


def agree(p: Peer, wscale: int | None, ts: bool) -> None:
    """Both SYNs are out: what was agreed on holds from now."""
    if p.offer.wscale is not None and wscale is not None:
        p.shift_in, p.shift_out = wscale, min(p.offer.wscale, 14)
    p.ts_on = p.offer.ts and ts


def listen(p: Peer, backlog: int = 16) -> Peer:
    """A listener, unless the test has made one already."""
    if p.listener is None:
        p.listener = p.lab.listen(p.stack_port, backlog)
    return p


def syn_sent(p: Peer) -> Peer:
    """An active open whose SYN is out."""
    p.sock = p.lab.socket()
    p.sock.bind((STACK_IP, p.stack_port))
    assert errno_of(lambda: p.sock.connect((p.ip, p.port))) == "EINPROGRESS"
    p.syn = p.expect("S", seq=0, len=0)
    return p


def syn_received(p: Peer) -> Peer:
    """A passive open: SYN in, SYN-ACK out."""
    listen(p)
    p.send("S")
    p.syn = p.expect("SA", seq=0, ack=1, len=0)
    agree(p, p.syn.wscale, p.syn.ts is not None)
    return p


def syn_received_active(p: Peer) -> Peer:
    """A simultaneous open: SYN out, SYN in, SYN-ACK out."""
    syn_sent(p)
    p.send("S")
    agree(p, p.syn.wscale, p.syn.ts is not None)
    p.expect("SA", seq=0, ack=1, len=0)
    return p


def established(p: Peer) -> Peer:
    """A passive open, finished and accepted."""
    syn_received(p)
    p.send("A")
    p.accept()
    p.expect_nothing()
    return p


def established_active(p: Peer) -> Peer:
    """An active open, finished."""
    syn_sent(p)
    p.send("SA")
    agree(p, p.syn.wscale, p.syn.ts is not None)
    p.expect(**PURE_ACK, seq=1, ack=1)
    return p


def fin_wait_1(p: Peer) -> Peer:
    """The application has shut its side down; the FIN is out."""
    established(p)
    p.shutdown()
    p.expect("FA", seq=1, ack=1, len=0)
    return p


def fin_wait_2(p: Peer) -> Peer:
    fin_wait_1(p)
    p.send("A")
    p.expect_nothing()
    return p


def close_wait(p: Peer) -> Peer:
    established(p)
    p.send("FA")
    p.lab.advance(50 * MS)
    p.expect(**PURE_ACK, seq=1, ack=2)
    return p


def closing(p: Peer) -> Peer:
    """Both FINs crossed: ours is acknowledged by the stack, the stack's is not."""
    fin_wait_1(p)
    p.send("FA", ack=1)
    p.expect(**PURE_ACK, seq=2, ack=2)
    return p


def last_ack(p: Peer) -> Peer:
    close_wait(p)
    p.shutdown()
    p.expect("FA", seq=1, ack=2, len=0)
    return p


def time_wait(p: Peer) -> Peer:
    fin_wait_2(p)
    p.send("FA")
    p.expect(**PURE_ACK, seq=2, ack=2)
    return p
