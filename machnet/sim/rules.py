# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (a network, its nodes and its links are one implementation in several files)
"""Rules: a Python function sees each packet that enters a link, and says what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from machnet._native import ffi, lib
from machnet.sim.units import Duration, duration_ns, format_duration

if TYPE_CHECKING:
    from machnet.sim.links import Link, LinkDirection
    from machnet.sim.network import Network
    from machnet.sim.nodes import Node
    from machnet.testing import Packet

__all__ = [
    "DROP",
    "DUPLICATE",
    "PASS",
    "Delay",
    "Hop",
    "Replace",
    "Rule",
    "Verdict",
    "delay",
    "replace",
]


class _Word:
    """A verdict without parameters."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


#: The packet goes on to the next rule, and then into the link.
PASS = _Word("PASS")
#: The packet is lost.
DROP = _Word("DROP")
#: The packet enters the link twice.
DUPLICATE = _Word("DUPLICATE")


@dataclass(frozen=True)
class Delay:
    """The packet takes longer by so many nanoseconds; see `delay`."""

    ns: int

    def __repr__(self) -> str:
        return f"delay({format_duration(self.ns)!r})"


@dataclass(frozen=True)
class Replace:
    """The packet is another one; see `replace`."""

    frame: bytes


def delay(duration: Duration) -> Delay:
    """Verdict: the packet arrives later by ``duration``, on top of the link's latency.

    Raises:
        ValueError: It is no duration.
    """
    return Delay(duration_ns(duration, "delay"))


def replace(frame: bytes | Packet) -> Replace:
    """Verdict: another frame takes the packet's place.

    Args:
        frame: With its Ethernet header; a `machnet.testing.Packet` will do.
    """
    return Replace(bytes(frame))


Verdict: TypeAlias = "_Word | Delay | Replace | None"
RuleFunction: TypeAlias = "Callable[[Packet, Hop], Verdict]"


@dataclass(frozen=True)
class Hop:
    """Where a packet is about to go.

    Attributes:
        link: The link.
        sender: The node that it leaves.
        receiver: The node at the other end.
        now_ns: The virtual time.
    """

    link: Link
    sender: Node
    receiver: Node
    now_ns: int

    @property
    def direction(self) -> LinkDirection:
        """The direction of the link."""
        forward = self.link.forward
        return forward if forward.sender is self.sender else self.link.backward


class Rule:
    """A rule that is in force; made by `Network.rule`. A context manager, whose end removes it.

    Attributes:
        function: What decides.
        packets: How many packets it has seen.
        hits: To how many it said something else than `PASS`.
    """

    def __init__(
        self, rules: Rules, function: RuleFunction, where: list[LinkDirection] | None
    ) -> None:
        self._rules = rules
        self.function = function
        #: The directions it is for; None: all.
        self.where = where
        self.packets = 0
        self.hits = 0

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self.function, "__qualname__", repr(self.function))

    @property
    def active(self) -> bool:
        """Whether it was not removed."""
        return self in self._rules.rules

    def remove(self) -> None:
        """It sees no packet any more. Again: nothing."""
        self._rules.remove(self)

    def __enter__(self) -> Rule:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Rule {self.name}{'' if self.active else ', removed'}>"


class Rules:
    """The rules of a network, and the callback by which the core asks them."""

    def __init__(self, net: Network) -> None:
        self._net = net
        self.rules: list[Rule] = []
        self._handle = ffi.new_handle(self)
        #: What a rule raised, for the step that ran it.
        self.failure: BaseException | None = None

    def add(self, function: RuleFunction, link: Link | LinkDirection | None) -> Rule:
        """Put a rule behind those that are in force."""
        if not callable(function):
            raise TypeError(f"rule: {function!r} is no function of a packet and a hop")
        where = None if link is None else self._net._directions(link, "rule")
        rule = Rule(self, function, where)
        self.rules.append(rule)
        self.install()
        self._net._note(f"rule {rule.name} in force")
        return rule

    def remove(self, rule: Rule) -> None:
        """Take a rule out."""
        if rule in self.rules:
            self.rules.remove(rule)
            if not self._net.closed:
                self.install()
                self._net._note(f"rule {rule.name} removed")

    def install(self, links: list[Link] | None = None) -> None:
        """Have the core ask where a rule wants to be asked, and nowhere else.

        Args:
            links: New ones, which no rule is in force for yet; None: all.
        """
        native = self._net._native
        if links is not None and not self.rules:
            return
        for link in self._net.links if links is None else links:
            for number, direction in enumerate(link.directions):
                wanted = any(rule.where is None or direction in rule.where for rule in self.rules)
                function = lib.mn_sim_py_rule if wanted else ffi.NULL
                handle = self._handle if wanted else ffi.NULL
                self._net._check(
                    lib.mn_simnet_rule(native, link._number, number, function, handle), "rule"
                )

    def decide(self, frame: Any) -> int:
        """What becomes of a frame: ``enum mn_rule_verdict``, with the answer filled in."""
        from machnet.testing import Packet

        direction = self._net.links[frame.link].directions[frame.dir]
        hop = Hop(direction.link, direction.sender, direction.receiver, int(frame.now_ns))
        packet = Packet(bytes(ffi.buffer(frame.frame, frame.len)))
        delay_ns, answer = 0, int(lib.MN_RULE_PASS)
        clock = self._net.clock
        before = clock.under_way, clock.inside_step  # a rule may send, and be asked again
        for rule in list(self.rules):
            if rule.where is not None and direction not in rule.where:
                continue
            rule.packets += 1
            clock.under_way, clock.inside_step = f"the rule {rule.name}", True
            try:
                verdict = rule.function(packet, hop)
            finally:
                clock.under_way, clock.inside_step = before
            if verdict is None or verdict is PASS:
                continue
            rule.hits += 1
            if verdict is DROP:
                return int(lib.MN_RULE_DROP)
            if verdict is DUPLICATE:
                answer = int(lib.MN_RULE_DUPLICATE)
            elif isinstance(verdict, Delay):
                delay_ns += verdict.ns
            elif isinstance(verdict, Replace):
                packet = Packet(self._put(frame, verdict.frame, rule))
                answer = answer or int(lib.MN_RULE_REPLACED)
            else:
                raise TypeError(
                    f"rule {rule.name} answered {verdict!r}: it is PASS, DROP, DUPLICATE, "
                    "delay('1ms'), replace(bytes) or None"
                )
        frame.delay_ns = delay_ns
        return answer

    @staticmethod
    def _put(frame: Any, new: bytes, rule: Rule) -> bytes:
        if not 14 <= len(new) <= frame.room:
            raise ValueError(
                f"rule {rule.name}: a frame has 14 to {frame.room} bytes here, not {len(new)}"
            )
        ffi.memmove(frame.frame, new, len(new))
        frame.len = len(new)
        return new


@ffi.def_extern(name="mn_sim_py_rule")  # type: ignore[untyped-decorator]
def _ask(ctx: Any, frame: Any) -> int:
    rules: Rules = ffi.from_handle(ctx)
    try:
        return rules.decide(frame)
    except BaseException as error:  # noqa: BLE001 (it is raised by the step that got here)
        rules.failure = error
        return int(lib.MN_RULE_ABORT)
