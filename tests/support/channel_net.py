# SPDX-License-Identifier: MIT
"""A client's and a server's channel: over a wire in virtual time, or on one stack with a thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import machnet
from machnet.sim import Wire

MS = 1_000_000


@dataclass
class Net:
    """A client's and a server's channel, with the stacks that they are on."""

    client: machnet.Channel
    server: machnet.Channel
    client_stack: machnet.Stack
    server_stack: machnet.Stack

    @property
    def stepped(self) -> bool:
        return not self.client_stack.threaded

    def connect(self, port: int = 888, protocol: str = "tcp") -> machnet.Flow:
        ip, peer = self.client_stack.ip, self.server_stack.ip
        return self.client.connect(ip, peer, port, protocol=protocol)

    def listen(self, port: int = 888, protocol: str = "tcp") -> machnet.Listener:
        return self.server.listen(self.server_stack.ip, port, protocol=protocol)

    def pass_time(self, ns: int) -> None:
        if self.stepped:
            self.client_stack.advance(ns)
        else:
            time.sleep(ns / 1e9)

    def eventually(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true; it has 20 seconds of the stacks' time."""
        for _ in range(2000):
            if condition():
                return
            self.pass_time(10 * MS)
        raise AssertionError("it never became true")


@contextlib.contextmanager
def make_net(kind: str, **settings: int) -> Iterator[Net]:
    settings = {"eof_linger_ms": 200, **settings}
    with contextlib.ExitStack() as exits:
        if kind == "pair":
            a, b = Wire.pair()
            one = exits.enter_context(machnet.Stack(a, ip="10.0.0.1/24", **settings))
            two = exits.enter_context(machnet.Stack(b, ip="10.0.0.2/24", **settings))
        else:
            one = two = exits.enter_context(
                machnet.Stack(Wire(), ip="10.0.0.2/24", thread=True, **settings)
            )
        yield Net(one.attach(), two.attach(), one, two)
        if kind != "pair":
            one.close(linger=0)


def pattern(size: int) -> bytes:
    return bytes(i * 7 % 251 for i in range(min(size, 251 * 8))) * (size // (251 * 8) + 1)
