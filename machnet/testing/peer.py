# SPDX-License-Identifier: MIT
"""`RawPeer`: a host that does what a test says, packet by packet."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from machnet.sim.units import Duration, duration_ns, format_duration
from machnet.testing.packet import Packet
from machnet.testing.ports import Port, as_port
from machnet.testing.template import Mismatch, Template, arp, table

if TYPE_CHECKING:
    from machnet.testing.script import TcpScript

__all__ = ["ExpectationError", "RawPeer", "Seen", "noise"]

BROADCAST = "ff:ff:ff:ff:ff:ff"

#: What says that a packet is not to be looked at: a template or a function.
Filter: TypeAlias = "Template | Callable[[Packet], bool]"

_LOG_PACKETS = 1000
_SHOWN_PACKETS = 20


class Seen(NamedTuple):
    """One packet that passed a peer's port."""

    t_ns: int
    #: ">" sent by the peer, "<" received.
    way: str
    packet: Packet
    #: Why it was not looked at, if so.
    note: str


class ExpectationError(AssertionError):
    """What came is not what was expected.

    Attributes:
        packet: The packet that came instead; None when none did.
        mismatches: How it differs, for one template.
        seen: The packets of both directions, as far as the peer remembers.
    """

    def __init__(
        self,
        message: str,
        packet: Packet | None = None,
        mismatches: list[Mismatch] | None = None,
        seen: list[Seen] | None = None,
    ) -> None:
        super().__init__(message)
        self.packet, self.mismatches, self.seen = packet, mismatches or [], seen or []


def noise(packet: Packet) -> bool:
    """Whether a packet is what hosts say unasked: IPv6, IGMP, LLDP."""
    return packet.ethertype in (0x86DD, 0x88CC) or packet.proto == 2


class RawPeer:
    """A scripted host on a port. It sends what it is told and says whether what comes is expected.

    By itself it does one thing only: it answers ARP requests for its address, where `answers_arp`.

    Durations (``within``, ``after``) are whole nanoseconds or strings such as "1ms", in the time of
    the port. Where ``within`` is left out it is `patience_ns`.

    Args:
        port: See `machnet.testing.ports`; a stack on a hand-fed wire, or a TAP, is wrapped in one.
        ip: Address; None: the port's.
        mac: MAC address; None: the port's.
        remote_ip: Who is spoken to unless a packet says otherwise; None: the port's, if it has one.
        answers_arp: Whether ARP requests for ``ip`` are answered, and no ARP is shown to the test
            but what it expects.
        ignore: Packets that are not looked at.
        patience: How long to wait for a packet; None: the port's, else "100ms".

    Attributes:
        neighbors: MAC addresses by IP address; learned from ARP, and asked for when needed.
        log: What passed, in both directions: the last 1000 packets.
    """

    def __init__(
        self,
        port: Any,
        ip: str | None = None,
        mac: str | None = None,
        *,
        remote_ip: str | None = None,
        answers_arp: bool = True,
        ignore: Iterable[Filter] = (noise,),
        patience: Duration | None = None,
    ) -> None:
        self.port: Port = as_port(port)
        self.ip = ip or self.port.ip
        self.mac = mac or self.port.mac
        self.remote_ip = remote_ip or getattr(self.port, "remote_ip", None)
        self.answers_arp = answers_arp
        self.ignore = list(ignore)
        patient = getattr(self.port, "patience_ns", 100_000_000)
        self.patience_ns = patient if patience is None else duration_ns(patience, "patience")
        self.neighbors: dict[str, str] = dict(getattr(self.port, "neighbors", {}))
        self.log: collections.deque[Seen] = collections.deque(maxlen=_LOG_PACKETS)
        self._inbox: collections.deque[Packet] = collections.deque()
        self._start_ns = self.port.now_ns
        self._ports = 49151

    @property
    def now_ns(self) -> int:
        """The port's time."""
        return self.port.now_ns

    # --- sending ---

    def defaults(self, dst: str | None = None) -> dict[str, Any]:
        """What packets of this host have unless they say otherwise."""
        values: dict[str, Any] = {"eth_src": self.mac, "src": self.ip}
        values |= {"sender_mac": self.mac, "sender_ip": self.ip}
        dst = dst or self.remote_ip
        if dst is not None:
            values |= {"dst": dst, "target_ip": dst}
        return values

    def make(self, what: Template, **fields: Any) -> Packet:
        """The packet that `send` would send.

        Raises:
            ValueError: It does not say where to, and there is no ``remote_ip``.
        """
        template = what.with_(**fields) if fields else what
        values = self.defaults(template.fields.get("dst"))
        if template.kind == "arp":
            values["eth_dst"] = BROADCAST
            if template.fields.get("op") in (2, "reply"):
                values["eth_dst"] = template.fields.get("target_mac", BROADCAST)
        elif template.kind != "eth":
            if "dst" not in values:
                raise ValueError(f"{template!r}: it needs dst, or the peer a remote_ip")
            if "eth_dst" not in template.fields:
                values["eth_dst"] = self.resolve(str(values["dst"]))
        return Packet(template.build(values), self.now_ns)

    def send(self, what: Template | Packet | bytes, **fields: Any) -> Packet:
        """Send a packet now.

        Args:
            what: A template, of which is computed what it leaves out; or a packet or a frame as is.
            fields: Fields of the template, which have precedence.

        Returns:
            The packet as sent.

        Raises:
            ExpectationError: Nobody answered the ARP request for its destination.
            TypeError: Fields for a finished frame.
        """
        if isinstance(what, Template):
            packet = self.make(what, **fields)
        else:
            packet = what if isinstance(what, Packet) else Packet(what)
            if fields:
                packet = packet.with_(**fields)
        self._transmit(packet)
        return packet

    def _transmit(self, packet: Packet) -> None:
        self.log.append(Seen(self.now_ns, ">", packet, ""))
        self.port.send(bytes(packet))

    def answer(self, packet: Packet, what: Template, **fields: Any) -> Packet:
        """Send a template to whom a packet came from.

        Addresses, ports, TCP numbers, and the number and data of an echo follow the packet; an ICMP
        error quotes it.
        """
        return self.send(what.with_(**fields).over(_reply_fields(packet, what)))

    def resolve(self, ip: str, within: Duration | None = None) -> str:
        """The MAC address of a neighbour, which is asked for if it is not known.

        Raises:
            ExpectationError: Nobody answered.
        """
        if ip not in self.neighbors:
            self.send(arp("request", target_ip=ip))
            self.expect(
                arp("reply", sender_ip=ip),
                within,
                among=lambda packet: packet.kind == "arp" and packet.sender_ip == ip,
            )
        return self.neighbors[ip]

    # --- receiving ---

    def _pull(self, within_ns: int) -> bool:
        """Wait for a frame, and put it into the inbox unless nobody wants to see it."""
        got = self.port.recv(within_ns)
        if got is None:
            return False
        packet = Packet(got[1], got[0])
        note = ""
        if any(_says(one, packet) for one in self.ignore):
            note = "ignored"
        elif packet.arp is not None:
            self.neighbors[packet.arp.sender_ip] = packet.arp.sender_mac
        self.log.append(Seen(got[0], "<", packet, note))
        if not note:
            self._inbox.append(packet)
            self._answer_arp(packet)
        return True

    def _answer_arp(self, packet: Packet) -> None:
        asked = packet.arp
        if self.answers_arp and asked and asked.op == 1 and asked.target_ip == self.ip:
            reply = arp("reply", target_mac=asked.sender_mac, target_ip=asked.sender_ip)
            self._transmit(self.make(reply, eth_dst=asked.sender_mac))

    def recv(
        self,
        within: Duration = 0,
        *,
        among: Filter | None = None,
        ignore: Iterable[Filter] = (),
    ) -> Packet | None:
        """The next packet, waiting for it up to ``within``; None when there is none.

        Args:
            within: In the time of the port.
            among: Only these: others are kept for later. By default all but ARP, unless the peer
                leaves ARP to the test.
            ignore: These are thrown away.
        """
        end = self.now_ns + duration_ns(within, "within")
        wanted = self._is_shown if among is None else among
        thrown = list(ignore)
        at = 0
        while True:
            while at < len(self._inbox):
                packet = self._inbox[at]
                mine = _says(wanted, packet)
                if mine or (packet.kind == "arp" and self.answers_arp):
                    del self._inbox[at]
                else:
                    at += 1
                if mine and not any(_says(one, packet) for one in thrown):
                    return packet
            if not self._pull(max(0, end - self.now_ns)):
                return None

    def _is_shown(self, packet: Packet) -> bool:
        return packet.kind != "arp" or not self.answers_arp

    def drain(self, within: Duration = 0) -> list[Packet]:
        """All packets that wait, and those that come in the next ``within``."""
        end = self.now_ns + duration_ns(within, "within")
        out = []
        while (packet := self.recv(max(0, end - self.now_ns))) is not None:
            out.append(packet)
        return out

    def sleep(self, duration: Duration) -> None:
        """Let time pass; packets that come are kept, and ARP is answered."""
        end = self.now_ns + duration_ns(duration, "duration")
        while self._pull(max(0, end - self.now_ns)):
            pass

    # --- expecting ---

    def expect(
        self,
        template: Template,
        within: Duration | None = None,
        *,
        after: Duration = 0,
        among: Filter | None = None,
        ignore: Iterable[Filter] = (),
        skip: bool = False,
        view: Callable[[Packet], Packet] | None = None,
    ) -> Packet:
        """The next packet, which must come in time and match.

        Args:
            template: What it must be like.
            within: Until when, counted from now.
            after: Not before, counted from now.
            among: Only these are looked at, others are kept for later; by default all but ARP, and
                ARP where the template is of that kind.
            ignore: These are thrown away.
            skip: Packets that don't match are thrown away, until one does.
            view: What to look at instead of a packet, such as the same with relative numbers.

        Raises:
            ExpectationError: It differs, comes too early, or nothing came.
        """
        __tracebackhide__ = True
        start, look = self.now_ns, view or _itself
        patience = self.patience_ns if within is None else duration_ns(within, "within")
        too_early = duration_ns(after, "after")
        if among is None and template.kind in ("arp", "eth"):
            among = _anything
        missed: list[Mismatch] = []
        while True:
            left = max(0, start + patience - self.now_ns)
            packet = self.recv(left, among=among, ignore=ignore)
            if packet is None:
                raise self._nothing(repr(template), patience, missed, look)
            seen = look(packet)
            missed = template.match(seen)
            if missed and not skip:
                break
            if not missed:
                if too_early and (packet.t_ns or 0) < start + too_early:
                    missed = [Mismatch("time", f"after {after}", self._since(packet, start))]
                    break
                return seen
        raise ExpectationError(
            f"expected {template!r}\n{table(missed)}\n{self.history(view=look)}",
            *(seen, missed, list(self.log)),
        )

    def _since(self, packet: Packet, start: int) -> str:
        return format_duration(max(0, (packet.t_ns or 0) - start))

    def _nothing(
        self,
        wanted: str,
        patience: int,
        missed: list[Mismatch],
        look: Callable[[Packet], Packet],
    ) -> ExpectationError:
        text = f"expected {wanted}, but nothing came within {format_duration(patience)}"
        if missed:
            text = f"expected {wanted}, but nothing like it came within "
            text += f"{format_duration(patience)}; the last packet:\n{table(missed)}"
        return ExpectationError(f"{text}\n{self.history(view=look)}", None, missed, list(self.log))

    def expect_nothing(
        self,
        within: Duration | None = None,
        *,
        among: Filter | None = None,
        ignore: Iterable[Filter] = (),
        view: Callable[[Packet], Packet] | None = None,
    ) -> None:
        """Let ``within`` pass, in which nothing may come but what is ignored.

        Raises:
            ExpectationError: Something came.
        """
        __tracebackhide__ = True
        patience = self.patience_ns if within is None else duration_ns(within, "within")
        start = self.now_ns
        packet = self.recv(patience, among=among, ignore=ignore)
        if packet is not None:
            look = view or _itself
            raise ExpectationError(
                f"expected nothing for {format_duration(patience)}; after "
                f"{self._since(packet, start)} came {look(packet).summary()}\n"
                f"{self.history(view=look)}",
                *(look(packet), [], list(self.log)),
            )

    def expect_any_of(
        self,
        *templates: Template,
        within: Duration | None = None,
        among: Filter | None = None,
        ignore: Iterable[Filter] = (),
        view: Callable[[Packet], Packet] | None = None,
    ) -> tuple[int, Packet]:
        """The next packet, which must match one of these: the template's index and the packet.

        Raises:
            ExpectationError: It matches none, or nothing came.
        """
        __tracebackhide__ = True
        patience = self.patience_ns if within is None else duration_ns(within, "within")
        look = view or _itself
        packet = self.recv(patience, among=among, ignore=ignore)
        wanted = "any of " + ", ".join(map(repr, templates))
        if packet is None:
            raise self._nothing(wanted, patience, [], look)
        for index, template in enumerate(templates):
            if template.matches(look(packet)):
                return index, look(packet)
        tables = "\n".join(f"{one!r}\n{table(one.match(look(packet)))}" for one in templates)
        raise ExpectationError(
            f"expected {wanted}\n{tables}\n{self.history(view=look)}",
            *(look(packet), templates[0].match(look(packet)), list(self.log)),
        )

    def expect_unordered(
        self,
        *templates: Template,
        within: Duration | None = None,
        among: Filter | None = None,
        ignore: Iterable[Filter] = (),
        view: Callable[[Packet], Packet] | None = None,
    ) -> list[Packet]:
        """As many packets as templates, one for each, in any order; returned in the templates' order.

        A packet counts for the first template that it matches and that has none yet.

        Raises:
            ExpectationError: One matches none of those that are left, or one is missing.
        """
        __tracebackhide__ = True
        patience = self.patience_ns if within is None else duration_ns(within, "within")
        end = self.now_ns + patience
        found: dict[int, Packet] = {}
        while len(found) < len(templates):
            left = [index for index in range(len(templates)) if index not in found]
            index, packet = self.expect_any_of(
                *(templates[index] for index in left),
                within=max(0, end - self.now_ns),
                among=among,
                ignore=ignore,
                view=view,
            )
            found[left[index]] = packet
        return [found[index] for index in range(len(templates))]

    # --- looking back ---

    def history(
        self, last: int = _SHOWN_PACKETS, view: Callable[[Packet], Packet] | None = None
    ) -> str:
        """The last packets in both directions, one line each, with the time since the peer began."""
        shown = list(self.log)[-last:]
        if not shown:
            return "no packets so far"
        look = view or _itself
        lines = [
            f"the last {len(shown)} packets (> sent, < received):"
            if len(shown) > 1
            else "one packet:"
        ]
        for t_ns, way, packet, note in shown:
            text = look(packet).summary() + (f" ({note})" if note else "")
            lines.append(f"{(t_ns - self._start_ns) / 1e6:12.3f} ms {way} {text}")
        return "\n".join(lines)

    # --- connections ---

    def next_port(self) -> int:
        """A port of ours that no connection has used yet."""
        self._ports += 1
        return self._ports

    def tcp(self, dport: int | None = None, sport: int | None = None, **settings: Any) -> TcpScript:
        """A scripted TCP connection: see `machnet.testing.TcpScript`."""
        from machnet.testing.script import TcpScript

        return TcpScript(self, dport, sport, **settings)


def _reply_fields(packet: Packet, what: Template) -> dict[str, Any]:
    """Fields of an answer that follow from what is answered."""
    values: dict[str, Any] = {"eth_dst": packet.eth_src}
    if what.kind == "arp":
        values |= {"target_mac": packet.sender_mac, "target_ip": packet.sender_ip}
        return values | {"sender_ip": packet.target_ip}
    if what.kind != "eth":
        values |= {"dst": packet.src, "src": packet.dst}
    if packet.kind == what.kind and packet.kind in ("tcp", "udp"):
        values |= {"sport": packet.dport, "dport": packet.sport}
    if packet.tcp is not None and what.kind == "tcp":
        values |= {"seq": packet.ack, "ack": packet.seq + packet.tcp.seg_len}
    if what.kind == "icmp" and packet.icmp_type == 8:
        values |= {"icmp_id": packet.icmp_id, "icmp_seq": packet.icmp_seq, "icmp_type": 0}
        values["payload"] = packet.payload
    elif what.kind == "icmp":
        values["quoted"] = Packet.from_ip(packet.ip_packet[:28], cut=True)
    return values


def _itself(packet: Packet) -> Packet:
    return packet


def _anything(packet: Packet) -> bool:
    return True


def _says(filter_: Filter, packet: Packet) -> bool:
    return filter_.matches(packet) if isinstance(filter_, Template) else bool(filter_(packet))
