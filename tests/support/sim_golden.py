# SPDX-License-Identifier: MIT
"""Golden tables of the simulator: `python tests/support/sim_golden.py [--write]`.

They say how fast TCP is on links of many kinds, to the last bit. A change of the engine that changes
one is seen in the review of its commit. Without --write, what is different is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from machnet.sim import Network

GOLDEN = Path(__file__).resolve().parents[1] / "sim" / "golden"

SECOND = 10**9
LOSSES = ["0%", "1%", "5%", "20%"]
RTTS = {"100us": "50us", "1ms": "500us", "10ms": "5ms", "100ms": "50ms"}
BUFFERS = {"64KiB": 64 << 10, "512KiB": 512 << 10, "4MiB": 4 << 20}
QUEUES = ["20p", "100p", "500p"]
PAIRS = [("10ms", "10ms"), ("10ms", "40ms"), ("2ms", "100ms")]
HALF = {"2ms": "1ms", "10ms": "5ms", "40ms": "20ms", "100ms": "50ms"}
GOODPUT_SECONDS = 10
FAIRNESS_SECONDS = 30


class Flow:
    """One that always has something to send, and how much has arrived."""

    piece = bytes(64 << 10)

    def __init__(self, a: Any, b: Any) -> None:
        self.server, self.client = b.attach(), a.attach()
        listener = self.server.listen(b.ip, 7000, protocol="stream")
        self.flow = self.client.connect(a.ip, b.ip, 7000, protocol="stream", timeout=None)
        self.other = listener.accept(timeout=None)
        self.got = 0

    def feed(self) -> None:
        """Send as much as there is room for."""
        while self.client._try_send(self.flow, self.piece) == len(self.piece):
            pass

    def take(self) -> None:
        """Read what there is."""
        while (data := self.server._try_read(self.other, 1 << 20)) is not None:
            self.got += len(data)


def drive(net: Network, flows: list[Flow], seconds: int, step: str = "10ms") -> None:
    """Let them run for so long, looked after once a step."""
    end = net.now_ns + seconds * SECOND
    while net.now_ns < end:
        for flow in flows:
            flow.feed()
        net.advance(step)
        for flow in flows:
            flow.take()


def goodput(loss: str, rtt: str, buffer: str) -> str:
    """Mbit/s of one flow over 100 Mbit/s."""
    with Network(1, record=0) as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2", rcv_buf_bytes=BUFFERS[buffer])
        net.link(a, b, latency=RTTS[rtt], bandwidth="100Mbps", queue="500p", loss=loss)
        flow = Flow(a, b)
        drive(net, [flow], GOODPUT_SECONDS, step="1ms")
        return f"{flow.got * 8 / GOODPUT_SECONDS / 1e6:.3f}"


def fairness(pair: tuple[str, str], queue: str) -> tuple[str, str, str]:
    """Mbit/s of two flows through one link of 20 Mbit/s, and Jain's index."""
    with Network(1, record=0) as net:
        left, right = net.switch(), net.switch()
        net.link(left, right, latency=0, bandwidth="20Mbps", queue=queue)
        flows = []
        for i, rtt in enumerate(pair):
            a, b = net.host(f"10.0.0.{1 + i}"), net.host(f"10.0.0.{11 + i}")
            net.link(a, left, latency=HALF[rtt])
            net.link(b, right, latency=0)
            flows.append(Flow(a, b))
        drive(net, flows, FAIRNESS_SECONDS)
        rates = [flow.got * 8 / FAIRNESS_SECONDS / 1e6 for flow in flows]
        index = sum(rates) ** 2 / (2 * sum(rate * rate for rate in rates))
        return f"{rates[0]:.3f}", f"{rates[1]:.3f}", f"{index:.3f}"


def goodput_rows(cells: set[tuple[str, str, str]] | None = None) -> list[str]:
    """The rows of goodput.txt; of some cells only."""
    rows = ["# loss  rtt     receive buffer  Mbit/s (one flow, 100 Mbit/s, queue of 500 packets)"]
    for loss in LOSSES:
        for rtt in RTTS:
            for buffer in BUFFERS:
                if cells is None or (loss, rtt, buffer) in cells:
                    rate = goodput(loss, rtt, buffer)
                    rows.append(f"{loss:>4}  {rtt:>6}  {buffer:>14}  {rate:>8}")
    return rows


def fairness_rows(queues: list[str] | None = None) -> list[str]:
    """The rows of fairness.txt; of some queues only."""
    rows = ["# rtt 1   rtt 2   queue  Mbit/s 1  Mbit/s 2  Jain's index (two flows, 20 Mbit/s)"]
    for first, second in PAIRS:
        for queue in queues or QUEUES:
            one, two, index = fairness((first, second), queue)
            rows.append(f"{first:>7}  {second:>6}  {queue:>6}  {one:>8}  {two:>8}  {index:>6}")
    return rows


TABLES = {"goodput.txt": goodput_rows, "fairness.txt": fairness_rows}


def main(write: bool) -> int:
    """Make the tables; 1 when one is not what is in the tree."""
    different = 0
    for name, make in TABLES.items():
        rows, path = make(), GOLDEN / name
        known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for row in rows:
            if row not in known:
                print(f"{name}: {row}")
        if rows != known:
            different = 1
        if write:
            GOLDEN.mkdir(exist_ok=True)
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return 0 if write else different


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
