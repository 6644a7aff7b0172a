# SPDX-License-Identifier: MIT
"""Several engines on one address, and an ordinary stack at the other end of the wire."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import machnet
from machnet.sim import Wire
from machnet.stack.engines import Engines, open_engines
from machnet.stack.nics import Rss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machnet.channel import Channel, Flow, Message

OURS, PEER = "10.0.0.2", "10.0.0.1"


def all_to(queue: int) -> Rss:
    """A table that brings everything to one queue."""
    return Rss([queue])


class Net:
    """``engines`` on one end, ``peer`` on the other, each with a channel for tests."""

    def __init__(self, ours: Wire, engines: Engines, peer: machnet.Stack) -> None:
        self.wire, self.engines, self.peer = ours, engines, peer
        self.channels: list[Channel] = [stack.attach() for stack in engines]
        self.peer_channel: Channel = peer.attach()

    def total(self, name: str) -> int:
        """A counter, all engines together."""
        return sum(stack.stats()[name] for stack in self.engines)

    def connections(self) -> list[int]:
        """Established connections of each engine."""
        return [
            sum(one.state == "ESTABLISHED" for one in stack.sockets()) for stack in self.engines
        ]

    def where(self, flow_port: int) -> list[int]:
        """The engines that have a connection with that local or remote port."""
        return [
            i
            for i, stack in enumerate(self.engines)
            for s in stack.sockets()
            if s.state not in {"LISTEN", "CLOSED"} and flow_port in {s.local[1], s.remote[1]}
        ]


@contextlib.contextmanager
def net(
    n: int,
    *,
    queues: int | None = None,
    rss: Rss | None = None,
    rss_hidden: bool = False,
    peer_settings: dict[str, Any] | None = None,
    ring_bytes: int = 0,
    wire: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Net]:
    """``n`` engines on a wire with ``queues`` queues (as many as engines), and a peer."""
    count = n if queues is None else queues
    ours, theirs = Wire.pair(
        queues=(count, 1), rss=(rss, None), rss_hidden=rss_hidden, **(wire or {})
    )
    peer = machnet.Stack(theirs, f"{PEER}/24", **(peer_settings or {}))
    with peer, open_engines(ours, n, f"{OURS}/24", ring_bytes=ring_bytes, **settings) as engines:
        yield Net(ours, engines, peer)


def echo(a: Channel, flow: Flow, b: Channel, data: bytes = b"question") -> None:
    """A message there, and its answer back."""
    a.send(flow, data)
    message = b.recv(timeout=5)
    assert message.data == data
    b.send(message.flow, b"answer to " + data[:64])
    answer = a.recv(timeout=5)
    assert answer.data == b"answer to " + data[:64]
    assert answer.flow == flow


def received(channel: Channel) -> list[Message]:
    """The messages that are there now."""
    messages = []
    while (message := channel.try_recv()) is not None:
        messages.append(message)
    return messages
