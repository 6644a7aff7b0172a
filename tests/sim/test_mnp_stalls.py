# SPDX-License-Identifier: MIT
"""Messages over UDP do not stall at a loss: no pause between two deliveries over 5 RTT + RTO."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from machnet.sim import Network

RTT_US, RTO_MIN_US = 100, 1000
LONGEST_US = 5 * RTT_US + RTO_MIN_US
MESSAGES = 400


@dataclass(frozen=True)
class Shape:
    """How messages go: so many at once of so many bytes, and whether each is answered."""

    at_once: int
    size: int
    answered: bool = False


SHAPES = {
    "large one by one": Shape(1, 10_000),
    "large": Shape(32, 10_000),
    "requests": Shape(1, 64, answered=True),
    "small": Shape(8, 64),
}


def pauses_us(shape: Shape, loss: float, seed: int) -> list[float]:
    """The times from one delivery to the next."""
    with Network(seed=seed, record=0) as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        cable = net.link(a, b, latency=f"{RTT_US // 2}us", bandwidth="10Gbps")
        client, server = a.attach(), b.attach()
        server.listen("10.0.0.2", 888)
        flow = client.connect("10.0.0.1", "10.0.0.2", 888)
        cable.set(loss=loss)
        pauses, last, sent = [], net.now_ns, 0
        for taken in range(MESSAGES):
            while sent < min(MESSAGES, taken + shape.at_once):
                client.send(flow, bytes(shape.size), timeout=1.0)
                sent += 1
            message = server.recv(timeout=1.0)
            pauses.append((net.now_ns - last) / 1000)
            last = net.now_ns
            if shape.answered:
                server.send(message.flow, b"answer")
                client.recv(timeout=1.0)
        return pauses


@pytest.mark.parametrize("loss", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_stall(shape: str, loss: float) -> None:
    for seed in range(5):
        assert max(pauses_us(SHAPES[shape], loss, seed)) <= LONGEST_US, seed
