# SPDX-License-Identifier: MIT
"""Golden table of messages over UDP: `python tests/support/mnp_golden.py [--write]`.

Messages of 10 kB one way, RTT 100 us, at several losses: how much arrives, and the longest pause
between two of them. Both modes, and plain mode towards the (emulated) C++ Machnet.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

from cpp_host import CppHost

from machnet.sim import Network

GOLDEN = Path(__file__).resolve().parents[1] / "sim" / "golden" / "mnp.txt"
LOSSES = ["0%", "0.1%", "1%", "5%"]
MODES = ["extended", "plain", "to C++"]
MESSAGE = bytes(10_000)
WARM_NS, MEASURED_NS = 5_000_000, 40_000_000


def measure(net: Network, send: Callable[[], None], took: Callable[[], int]) -> tuple[float, float]:
    """Mbit/s, and the longest time without a message in us, of one sender that has always some."""
    times: list[int] = []
    start, end = net.now_ns + WARM_NS, net.now_ns + WARM_NS + MEASURED_NS

    def step() -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                send()
        count = took()
        if net.now_ns >= start:
            times.extend([net.now_ns] * count)
        return net.now_ns >= end

    while not step():
        net.advance(5_000)
    gaps = [b - a for a, b in itertools.pairwise([start, *times, end])]
    return len(times) * len(MESSAGE) * 8 / (MEASURED_NS / 1000), max(gaps) / 1000


def cell(mode: str, loss: str) -> tuple[float, float]:
    """One row: Mbit/s and the longest pause in us."""
    with Network(1, record=0) as net:
        a = net.host("10.0.0.1", mnp_extended=mode == "extended")
        link = {"latency": "50us", "bandwidth": "10Gbps", "queue": "500p"}
        client = a.attach()
        if mode == "to C++":
            switch = net.switch()
            cable = net.link(a, switch, **link)
            cpp = CppHost(net, switch, "10.0.0.2")
            cpp.listen(7)
            flow = client.connect("10.0.0.1", "10.0.0.2", 7)
            net.advance("1ms")
            cable.set(loss=loss)

            def taken() -> int:
                cpp.log.clear()
                count = len(cpp.only.messages)
                cpp.only.messages.clear()
                return count

            figures = measure(net, lambda: client.send(flow, MESSAGE) and None, taken)
            assert cpp.violations == []
            cpp.stop()
            return figures
        b = net.host("10.0.0.2")
        cable = net.link(a, b, **link)
        server = b.attach()
        server.listen("10.0.0.2", 7)
        flow = client.connect("10.0.0.1", "10.0.0.2", 7)
        cable.set(loss=loss)

        def received() -> int:
            count = 0
            while server.try_recv() is not None:
                count += 1
            return count

        return measure(net, lambda: client.send(flow, MESSAGE) and None, received)


def rows(losses: list[str] | None = None, modes: list[str] | None = None) -> list[str]:
    """The table; of some losses and modes only."""
    made = ["# mode      loss   Mbit/s  longest pause, us (10 kB messages, 10 Gbit/s, RTT 100 us)"]
    for mode in modes or MODES:
        for loss in losses or LOSSES:
            rate, gap = cell(mode, loss)
            made.append(f"{mode:>8}  {loss:>6}  {rate:>9.1f}  {gap:>8.1f}")
    return made


def main(write: bool) -> int:
    """Make the table; 1 when it is not what is in the tree."""
    table = rows()
    known = GOLDEN.read_text(encoding="utf-8").splitlines() if GOLDEN.exists() else []
    for row in table:
        if row not in known:
            print(row)
    if write:
        GOLDEN.write_text("\n".join(table) + "\n", encoding="utf-8")
        return 0
    return int(table != known)


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv[1:]))
