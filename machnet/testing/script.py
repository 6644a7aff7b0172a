# SPDX-License-Identifier: MIT
"""`TcpScript`: one TCP connection of a scripted host, with the numbers kept for the test."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from machnet.sim.units import Duration, duration_ns
from machnet.testing.octets import flag_bits
from machnet.testing.packet import Packet
from machnet.testing.peer import ExpectationError, Filter
from machnet.testing.template import Want, tcp

if TYPE_CHECKING:
    from machnet.testing.peer import RawPeer
    from machnet.testing.template import Template

__all__ = ["TcpScript", "pattern"]

_MOD = 1 << 32
_SYN, _ACK, _FIN = 0x02, 0x10, 0x01

_PATTERN = bytes((i * 151 + (i >> 8) * 31 + (i >> 16)) & 0xFF for i in range(1 << 17))


def pattern(offset: int, size: int) -> bytes:
    """``size`` octets of a stream from position ``offset`` on; the first octet has position 0."""
    start = offset % len(_PATTERN)
    out = _PATTERN[start : start + size]
    while len(out) < size:
        out += _PATTERN[: size - len(out)]
    return out


class TcpScript:
    """One TCP connection of a `RawPeer`. It does nothing that the test does not say.

    Sequence numbers are relative, as in packetdrill: the SYN of each side is 0, its first octet 1.
    So a test reads the same whatever the initial sequence numbers are, those just below the wrap
    included. What `send` is not told it fills in (``seq`` is `snd_nxt`, ``ack`` is `rcv_nxt`,
    timestamps as negotiated), and `expect` takes the next packet of this connection, leaving those
    of others to others. A payload given as a number is so many octets of `pattern`.

    Args:
        peer: Whose connection it is.
        dport: The other side's port; None: whatever it connects from.
        sport: Ours; None: 49152 and so on for an active open; it must be given for a passive one.
        remote_ip: The other side; None: the peer's.
        isn: Our initial sequence number.
        mss: Announced on our SYN, bytes; None: no option.
        wscale: The same, the shift.
        sack_ok: The same.
        ts: Whether our SYN offers timestamps.
        window: What we announce, in bytes; on the wire it is scaled as negotiated.

    Attributes:
        snd_nxt: Our next sequence number; sending moves it.
        rcv_nxt: What we have of the other side's stream; what comes in order moves it.
        remote_isn: The other side's initial sequence number, once its SYN came.
        remote_mss: What its SYN announced, else 536.
        ts_on: Whether timestamps are in use.
        ts_val: Our clock, which the test moves as it likes.
        ts_recent: What we echo.
        shift_in: Scale of the windows that come.
        shift_out: Scale of those that we send.
    """

    def __init__(
        self,
        peer: RawPeer,
        dport: int | None = None,
        sport: int | None = None,
        *,
        remote_ip: str | None = None,
        isn: int = 0x2000_0000,
        mss: int | None = 1460,
        wscale: int | None = None,
        sack_ok: bool = False,
        ts: bool = False,
        window: int = 65535,
    ) -> None:
        if dport is None and sport is None:
            raise TypeError(
                "a TCP connection needs dport (to connect) or sport (to be connected to)"
            )
        self.peer = peer
        self.dport = dport
        self.sport = peer.next_port() if sport is None else sport
        self.remote_ip = remote_ip or peer.remote_ip
        self.isn = isn % _MOD
        self.mss, self.wscale, self.sack_ok, self.ts = mss, wscale, sack_ok, ts
        self.window = window
        self.snd_nxt = self.rcv_nxt = 0
        self.remote_isn: int | None = None
        self.remote_mss = 536
        self.ts_on = False
        self.ts_val, self.ts_recent = 1000, 0
        self.shift_in = self.shift_out = 0

    # --- numbers ---

    def _is_mine(self, packet: Packet) -> bool:
        return (
            packet.kind == "tcp"
            and packet.dport == self.sport
            and packet.dst == self.peer.ip
            and self.dport in (None, packet.sport)
            and self.remote_ip in (None, packet.src)
        )

    def view(self, packet: Packet) -> Packet:
        """A packet of this connection, in either direction, with relative numbers."""
        if packet.kind != "tcp":
            return packet
        mine, theirs = (packet.src, packet.sport), (packet.dst, packet.dport)
        remote = self.remote_isn or 0
        if mine == (self.peer.ip, self.sport) and self.dport in (None, theirs[1]):
            return packet.relative(self.isn, remote)
        if theirs == (self.peer.ip, self.sport) and self.dport in (None, mine[1]):
            if self.remote_isn is None and "S" in packet.flags:
                remote = packet.seq
            return packet.relative(remote, self.isn)
        return packet

    def _learn(self, packet: Packet) -> None:
        """Take in what a packet of the other side says (in relative numbers)."""
        segment = packet.tcp
        assert segment is not None
        if segment.bits & _SYN:
            self.remote_isn = packet.absolute.seq
            self.dport, self.remote_ip = segment.sport, packet.src
            self.remote_mss = segment.mss or 536
        if segment.ts is not None and _distance(segment.seq) <= _distance(self.rcv_nxt):
            self.ts_recent = segment.ts[0]
        end = (segment.seq + segment.seg_len) % _MOD
        before = (self.rcv_nxt - segment.seq) % _MOD
        if before < segment.seg_len and "R" not in segment.flags:
            self.rcv_nxt = end

    def window_of(self, packet: Packet) -> int:
        """The window that a packet of the other side announces, in bytes."""
        shift = 0 if "S" in packet.flags else self.shift_in
        return int(packet.window) << shift

    # --- sending ---

    def template(self, flags: str = "A", payload: int | bytes = b"", **fields: Want) -> Template:
        """What `send` sends, with the numbers of the wire."""
        bits = flag_bits(flags)
        seq = fields.pop("seq", None)
        ack = fields.pop("ack", None)
        at = self.snd_nxt if seq is None else seq
        if isinstance(payload, int):
            payload = pattern(at - 1, payload)
        values: dict[str, Any] = self._options(bits) if "options" not in fields else {}
        shift = 0 if bits & _SYN else self.shift_out
        values["window"] = min(self.window >> shift, 65535)
        remote = self.remote_isn or 0
        if bits & _ACK or ack is not None:
            values["ack"] = (self.rcv_nxt if ack is None else ack) + remote
        if "sack" in fields and fields["sack"] is not None:
            fields["sack"] = [(left + remote, right + remote) for left, right in fields["sack"]]
        values |= {"sport": self.sport, "dport": self.dport, "src": self.peer.ip}
        values["dst"] = self.remote_ip
        return tcp(flags, seq=at + self.isn, payload=payload, **(values | fields))

    def _options(self, bits: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if bits & _SYN:
            values = {"mss": self.mss, "wscale": self.wscale, "sack_ok": self.sack_ok or None}
        if self.ts if bits & _SYN else self.ts_on:
            values["ts"] = (self.ts_val, self.ts_recent if bits & _ACK else 0)
        return values

    def send(self, flags: str = "A", payload: int | bytes = b"", **fields: Want) -> Packet:
        """One segment, now.

        Args:
            flags: Letters of FSRPAUEC.
            payload: Bytes, or how many of `pattern` at this place of the stream.
            fields: Of `machnet.testing.tcp`, in relative numbers; with ``seq`` given, `snd_nxt`
                stays where it is.

        Returns:
            The packet, in relative numbers.
        """
        template = self.template(flags, payload, **fields)
        packet = self.peer.send(template)
        if fields.get("seq") is None and packet.tcp is not None:
            self.snd_nxt = (self.snd_nxt + packet.tcp.seg_len) % _MOD
        return self.view(packet)

    def send_data(
        self, data: int | bytes, *, mss: int | None = None, **fields: Want
    ) -> list[Packet]:
        """Data in segments of up to ``mss`` bytes (default: what the other side takes); PSH on the last."""
        if isinstance(data, int):
            data = pattern(self.snd_nxt - 1, data)
        size = mss or self.remote_mss - (12 if self.ts_on else 0)
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        flags = ["A"] * (len(pieces) - 1) + ["PA"]
        return [self.send(*one, **fields) for one in zip(flags, pieces, strict=False)]

    def ack(self, number: int | None = None, **fields: Want) -> Packet:
        """A bare ACK; ``number``: default all that came in order."""
        return self.send("A", ack=number, **fields)

    def fin(self, payload: int | bytes = b"", **fields: Want) -> Packet:
        """A FIN, with ACK."""
        return self.send("FA", payload, **fields)

    def rst(self, **fields: Want) -> Packet:
        """A RST at `snd_nxt`, without ACK; it moves nothing."""
        return self.send("R", **fields)

    # --- expecting ---

    def expect(
        self,
        flags: Want = None,
        within: Duration | None = None,
        *,
        after: Duration = 0,
        skip: bool = False,
        ignore: Iterable[Filter] = (),
        **fields: Want,
    ) -> Packet:
        """The next segment of this connection, which must come in time and match.

        Args:
            flags: As for `machnet.testing.tcp`.
            within: Until when; None: the peer's patience.
            after: Not before.
            skip: Segments that don't match are thrown away, until one does.
            ignore: These are thrown away; they see the numbers of the wire.
            fields: As for `machnet.testing.tcp`, in relative numbers; a ``payload`` that is a
                number is so many octets of `pattern` at the segment's place in the stream.

        Returns:
            The packet, in relative numbers.

        Raises:
            ExpectationError: It differs, comes too early, or nothing came.
        """
        __tracebackhide__ = True
        payload = fields.get("payload")
        if isinstance(payload, int):
            fields["payload"] = None
            fields["length"] = payload
        packet = self.peer.expect(
            *(tcp(flags, **fields), within),
            after=after,
            skip=skip,
            ignore=ignore,
            among=self._is_mine,
            view=self.view,
        )
        if isinstance(payload, int) and packet.payload != pattern(packet.seq - 1, payload):
            raise ExpectationError(
                f"the data at {packet.seq} are not the stream's\n{self.history()}", packet
            )
        self._learn(packet)
        return packet

    def expect_nothing(self, within: Duration | None = None) -> None:
        """Let time pass, in which no segment of this connection may come.

        Raises:
            ExpectationError: One came.
        """
        __tracebackhide__ = True
        self.peer.expect_nothing(within, among=self._is_mine, view=self.view)

    def expect_ack(
        self, number: int | None = None, within: Duration | None = None, **fields: Want
    ) -> Packet:
        """A bare ACK of ``number``, by default of all that we sent."""
        __tracebackhide__ = True
        number = self.snd_nxt if number is None else number
        return self.expect("A", within, ack=number, length=0, **fields)

    def expect_data(
        self,
        data: int | bytes,
        within: Duration | None = None,
        *,
        ack: bool = True,
        repeats: bool = False,
    ) -> list[Packet]:
        """Segments in order that hold these data, however they are cut; each is acknowledged.

        Args:
            data: Bytes, or how many of `pattern`.
            within: For all of them.
            ack: False: nothing is acknowledged. (A sender may then have to wait with the rest.)
            repeats: What came before may come again, and is acknowledged again: for a peer in real
                time, which may find our acknowledgements late.

        Raises:
            ExpectationError: Other data, out of order, too much, or not all of it in time.
        """
        __tracebackhide__ = True
        if isinstance(data, int):
            data = pattern(self.rcv_nxt - 1, data)
        patience = self.peer.patience_ns if within is None else duration_ns(within, "within")
        end = self.peer.now_ns + patience
        got, packets = b"", []
        while len(got) < len(data):
            before, left = self.rcv_nxt, len(data) - len(got)
            wanted: dict[str, Any] = {"seq": before, "length": range(1, left + 1)}
            if repeats:
                wanted = {"seq": _up_to(before), "length": range(1, 65536)}
            packet = self.expect("A(PF)", max(0, end - self.peer.now_ns), **wanted)
            got += packet.payload[(before - packet.seq) % _MOD :]
            packets.append(packet)
            self._compare(got, data, packet)
            if ack:
                self.ack()
        return packets

    def _compare(self, got: bytes, data: bytes, packet: Packet) -> None:
        if not data.startswith(got):
            both = zip(got, data, strict=False)
            at = next((at for at, (have, want) in enumerate(both) if have != want), len(data))
            wanted = f"0x{data[at]:02x}" if at < len(data) else "nothing"
            raise ExpectationError(
                f"octet {at} of the data differs: expected {wanted}, got 0x{got[at]:02x}\n"
                f"{self.history()}",
                packet,
            )

    def expect_fin(self, within: Duration | None = None, **fields: Want) -> Packet:
        """A FIN with ACK, without data unless ``length`` or ``payload`` is given."""
        __tracebackhide__ = True
        wanted: dict[str, Any] = {"length": 0} | fields
        return self.expect("FA(P)", within, **wanted)

    def expect_rst(self, within: Duration | None = None, **fields: Want) -> Packet:
        """A RST, with ACK or without."""
        __tracebackhide__ = True
        return self.expect("R(A)", within, **fields)

    # --- openings ---

    def agree(self, syn: Packet) -> None:
        """Both SYNs are known: what was agreed on holds from now. ``syn``: the other side's."""
        if self.wscale is not None and syn.wscale is not None:
            self.shift_in, self.shift_out = min(syn.wscale, 14), min(self.wscale, 14)
        self.ts_on = bool(self.ts and syn.ts is not None)

    def handshake(
        self,
        opening: Literal["active", "passive"] = "active",
        within: Duration | None = None,
        **syn: Want,
    ) -> TcpScript:
        """Open the connection: "active", from here; "passive", the other side's SYN is awaited.

        Args:
            opening: Who begins.
            within: For each of the other side's segments.
            syn: What its SYN must be like, such as ``mss=1460``.

        Returns:
            The script itself.

        Raises:
            ExpectationError: The other side does not play along.
            ValueError: ``opening`` is neither.
        """
        __tracebackhide__ = True
        if opening == "active":
            self.send("S")
            self.agree(self.expect("SA", within, seq=0, ack=1, **syn))
            self.ack()
        elif opening == "passive":
            self.accept(within, **syn)
            self.expect("A", within, seq=1, ack=1, length=0)
        else:
            raise ValueError(f"opening={opening!r}: 'active' or 'passive'")
        return self

    def accept(self, within: Duration | None = None, **syn: Want) -> Packet:
        """Wait for a SYN and answer it with SYN-ACK; returns the SYN."""
        __tracebackhide__ = True
        packet = self.expect("S", within, **syn)
        offered = self.wscale, self.sack_ok, self.ts
        # Only what was offered may be answered (RFC 7323, RFC 2018).
        self.wscale = self.wscale if packet.wscale is not None else None
        self.sack_ok = self.sack_ok and packet.sack_ok
        self.ts = self.ts and packet.ts is not None
        self.send("SA")
        self.agree(packet)
        self.wscale, self.sack_ok, self.ts = offered
        return packet

    def history(self, last: int = 20) -> str:
        """The last packets of the peer, those of this connection in relative numbers."""
        return self.peer.history(last, self.view)


def _up_to(number: int) -> Want:
    def inside(seq: int) -> bool:
        return _distance((seq - number) % _MOD) <= 0

    inside.__doc__ = f"at most {number}"
    return inside


def _distance(number: int) -> int:
    """A relative number as a signed one: what is before the ISN is negative."""
    return number if number < _MOD - _MOD // 4 else number - _MOD
