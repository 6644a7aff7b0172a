# SPDX-License-Identifier: MIT
"""Random use of a `Network`, in any order: hosts that crash under their channels, rules and callbacks
that raise, things that are closed twice. What a program does depends on its number alone."""

from __future__ import annotations

import contextlib
import hashlib
import random
from typing import Any

from machnet.errors import DeadlockError, ReentrantError, SimulationLimitError
from machnet.sim import DROP, DUPLICATE, PASS, Network, RawHost, delay, replace

TIMES = ["0ns", "1ns", "50us", "1ms", "10ms", "300ms", "2s", "1min", "2h"]


class Planned(Exception):
    """What rules and callbacks raise."""


class Nothing(Exception):
    """An operation without an object."""


#: What a call may raise because of what happened before it, and nothing else.
EXPECTED = (
    Planned,
    KeyboardInterrupt,
    ValueError,  # closed, or there is no such thing
    OSError,  # of connections, and of channels that are full
    RuntimeError,  # a host that is down; ReentrantError; ConcurrentUseError
    DeadlockError,
    SimulationLimitError,
)


class NetworkChaos:
    """A network and what is done to it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.net = Network(
            seed, record=self.dice.choice([0, 1, 64]), pool=self.dice.choice([16, 256, 4096])
        )
        self.channels: list[Any] = []
        self.flows: list[tuple[Any, Any]] = []
        self.faults: list[Any] = []
        self.rules: list[Any] = []
        self.calls: list[Any] = []
        self.trace = hashlib.blake2b(digest_size=16)
        self.done: list[tuple[object, ...]] = []
        self.depth = 0
        self.n = 0

    # ---- choices ---------------------------------------------------------------------------------

    def one_of(self, things: list[Any]) -> Any:
        if not things:
            raise Nothing
        return self.dice.choice(things)

    def host(self) -> Any:
        return self.one_of(self.net.hosts)

    def params(self) -> dict[str, Any]:
        d = self.dice
        return {
            "latency": d.choice(["0ns", "50us", "20ms"]),
            "jitter": d.choice(["0ns", "10us", "5ms"]),
            "bandwidth": d.choice([None, "100kbps", "10Gbps"]),
            "loss": d.choice([0, 0, 0.1, 1]),
            "duplicate": d.choice([0, 0.2, 1]),
            "reorder": d.choice([0, 0.2]),
            "corrupt": d.choice([0, 0, 0.1]),
            "queue": d.choice([None, "1p", "16p", "3000B"]),
            "mtu": d.choice([None, None, 600]),
        }

    # ---- operations ------------------------------------------------------------------------------

    def op_host(self) -> None:
        if len(self.net.hosts) < 4:
            self.n += 1
            self.net.host(f"10.0.0.{self.n}", gateway=None if self.n < 4 else "10.9.9.9")

    def op_link(self) -> None:
        nodes = [*self.net.hosts, self.net.raw_host("10.0.1.1")][-5:]
        if len(self.net.links) < 8:
            self.net.link(*self.dice.sample(nodes, 2), **self.params())

    def op_set(self) -> None:
        link = self.one_of(self.net.links)
        link.set(**self.params())

    def op_attach(self) -> None:
        if len(self.channels) < 8:
            host = self.host()
            channel = host.attach()
            self.channels.append(channel)
            channel.listen(host.ip, 7, protocol="tcp")

    def op_connect(self) -> None:
        channel = self.one_of(self.channels)
        to = self.host()
        flow = channel.connect(channel.stack.ip, to.ip, 7, protocol="tcp", timeout=2)
        self.flows.append((channel, flow))

    def op_send(self) -> None:
        channel, flow = self.one_of(self.flows)
        channel.send(flow, bytes(self.dice.choice([0, 1, 1000, 100_000])), timeout=1)

    def op_recv(self) -> object:
        found = self.one_of(self.channels).recv(timeout=self.dice.choice([0, 0.1, 5]))
        return None if found is None else len(getattr(found, "data", b""))

    def op_close(self) -> None:
        channel = self.one_of(self.channels)
        channel.close(self.dice.choice([None, 0, 1]))
        if self.dice.random() < 0.7:
            self.channels.remove(channel)

    def op_close_flow(self) -> None:
        self.one_of(self.flows)[1].close()

    def op_forget(self) -> None:
        """Channels that nobody has any more."""
        gone = self.one_of(self.channels)
        self.channels.remove(gone)
        self.flows = [entry for entry in self.flows if entry[0] is not gone]

    def op_crash(self) -> None:
        self.host().crash()

    def op_restart(self) -> None:
        self.host().restart()

    def op_stack_close(self) -> None:
        self.host().stack.close(0)

    def op_pause(self) -> None:
        self.faults.append(self.host().pause())

    def op_resume(self) -> None:
        self.host().resume()

    def op_skew(self) -> None:
        jump = self.dice.choice(["0ns", "1s", "2h"])
        self.host().skew(self.dice.choice([0, 100, -900_000, 900_000]), jump)

    def op_part(self) -> None:
        a, b = self.dice.sample(self.net.hosts, 2)
        make = self.dice.choice([self.net.partition, self.net.clog])
        self.faults.append(make([a], [b], one_way=self.dice.random() < 0.5))

    def op_heal(self) -> None:
        self.dice.choice([self.net, *self.faults]).heal()

    def op_rule(self) -> None:
        dice = self.dice

        def rule(packet: Any, _hop: Any) -> Any:
            if self.depth < 3 and dice.random() < 0.1:
                self.one()
            if dice.random() < 0.02:
                raise dice.choice([Planned, KeyboardInterrupt])
            verdicts = [PASS] * 12 + [None, DROP, DUPLICATE, delay("1ms"), replace(packet)]
            verdict = dice.choice([*verdicts, "rubbish" if dice.random() < 0.1 else PASS])
            return replace(dice.randbytes(60)) if dice.random() < 0.01 else verdict

        self.rules.append(self.net.rule(rule))

    def op_remove(self) -> None:
        self.one_of(self.rules).remove()

    def op_at(self) -> None:
        def callback() -> None:
            if self.depth < 3:
                self.one()
            if self.dice.random() < 0.1:
                raise self.dice.choice([Planned, KeyboardInterrupt])

        when = self.net.now_ns + self.dice.choice([0, 1, 10**6, 10**9, 10**12])
        self.calls.append(self.net.at(when, callback))

    def op_cancel(self) -> None:
        self.one_of(self.calls).cancel()

    def op_raw(self) -> object:
        nodes = self.net._nodes
        raw = self.one_of([node for node in nodes if isinstance(node, RawHost)])
        raw.send(b"\xff" * 12 + self.dice.randbytes(self.dice.choice([0, 2, 50, 1400])))
        return len(raw.take())

    def op_advance(self) -> None:
        self.net.advance(self.dice.choice(TIMES))

    def op_idle(self) -> None:
        self.net.run_until_idle(limit="10min")

    def op_task(self) -> None:
        host = self.host()

        async def work() -> None:
            import asyncio

            await asyncio.sleep(0.01)
            self.one()

        self.net.create_task(work(), host=host)

    def op_look(self) -> object:
        net = self.net
        return [
            len(net.packets()), net.timers(), [repr(info) for _, info in net.sockets()],
            net.events[-3:], len(net.schedule), net.report(),
        ]  # fmt: skip

    # ---- running ---------------------------------------------------------------------------------

    def one(self) -> None:
        name = self.dice.choice(OPERATIONS)
        self.depth += 1
        try:
            result: object = getattr(self, name)()
        except Nothing:
            result = None
        except EXPECTED as error:
            result = type(error).__name__
            if isinstance(error, ReentrantError):
                assert self.depth > 1
        finally:
            self.depth -= 1
        self.done.append((name, result, self.net.now_ns))
        self.trace.update(repr(self.done[-1]).encode())

    def run(self, n: int) -> str:
        """Do so many random operations; a digest of what they answered."""
        for name in ("op_host", "op_host", "op_link", "op_host", "op_link", "op_link"):
            getattr(self, name)()
        for _ in range(4):
            with contextlib.suppress(OSError):  # a host has that listener already
                self.op_attach()
        for _ in range(n):
            self.one()
        return self.trace.hexdigest()


WEIGHTS = {
    "op_advance": 6,
    "op_connect": 6,
    "op_send": 8,
    "op_recv": 6,
    "op_attach": 4,
    "op_restart": 3,
}
OPERATIONS = [
    name
    for name in sorted(vars(NetworkChaos))
    if name.startswith("op_")
    for _ in range(WEIGHTS.get(name, 2))
]
