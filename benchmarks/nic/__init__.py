# SPDX-License-Identifier: MIT
"""What a packet costs on its way out of and into this process, by NIC: `machnet pktgen` measures it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import machine

BURSTS = (1, 8, 32)
VDEVS = {"net_null": "dpdk:net_null0", "net_ring": "dpdk:net_ring0"}
"""Drivers that have no device: one takes everything and always has something; one is a loop."""


@contextmanager
def packet_socket() -> Iterator[str | None]:
    """A NIC string of `net_af_packet` on a virtual pair; None without root or `ip`."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        yield None
        return
    here, there = f"mb{os.getpid()}a", f"mb{os.getpid()}b"
    machine.run(["ip", "link", "add", here, "type", "veth", "peer", there])
    try:
        for name in (here, there):
            machine.run(["ip", "link", "set", name, "addrgenmode", "none", "up"])
        yield f"dpdk:{here}"
    finally:
        machine.run(["ip", "link", "del", here])


def one(nic: str, burst: int, seconds: float) -> dict[str, dict[str, float]]:
    """One run of the generator: `ns`, `ticks`, `burst` of what is sent (`tx`) and received (`rx`).

    Raises:
        RuntimeError: it failed.
    """
    argv = [*(sys.executable, "-m", "machnet.cli.pktgen"), "--nic", nic, "--ip", "10.0.0.2"]
    argv += ["--remote_ip", "10.0.0.3", "--remote_mac", "02:00:00:00:00:09", "--poll", "busy"]
    argv += ["--burst", str(burst), "--duration", f"{seconds:g}", "--json"]
    last = json.loads(machine.run(argv, timeout_s=60).splitlines()[-1])
    cost: dict[str, dict[str, float]] = last["cost"]
    return cost


def measure(seconds: float, repeats: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """The run of each NIC and burst size in which a packet cost least, out of `repeats`.

    Least, not the median: what other programs take of a core while a burst is under way counts.
    """
    rows = []
    with packet_socket() as veth:
        nics = {**VDEVS, **({"net_af_packet": veth} if veth else {})}
        for name, nic in nics.items():
            for burst in BURSTS:
                tell(f"nic: {name}, bursts of {burst}")
                runs = [one(nic, burst, seconds) for _ in range(repeats)]
                row: dict[str, Any] = {"nic": name, "burst": burst}
                for way in ("tx", "rx"):
                    if found := [run[way] for run in runs if way in run]:
                        row[way] = min(found, key=lambda cost: cost["ticks"])
                rows.append(row)
    return rows


def engine(passes: int = 20_000) -> dict[str, float]:
    """What a frame costs an engine, the call from Python (about 100 ns a pass) included; ns a frame.

    Returns:
        `receive`: frames of net_null, which are looked at and dropped; `answer`: echo requests of 64 bytes
        through net_ring, 32 at a time, that are received, checked and answered. The pass that took least in
        each hundred counts, so that other programs hardly do.
    """
    import machnet
    from machnet._native import lib
    from machnet.cli._probe import Probe

    def least(stack: Any, before: Callable[[], object], frames: int) -> float:
        best = []
        for _ in range(passes // 100):
            took = []
            for _ in range(100):
                before()
                start = time.perf_counter_ns()
                stack.poll()
                took.append(time.perf_counter_ns() - start)
            best.append(min(took) / frames)
        return sorted(best)[len(best) // 2]

    found: dict[str, float] = {}
    with machnet.Stack("dpdk:net_null0", ip="10.0.0.2/24", thread=False) as stack:
        stack.poll()
        frames = stack.stats()["rx_frames"]
        found["receive"] = round(least(stack, lambda: None, frames), 1)
    ends = machnet.dpdk.ring_pair()
    with machnet.Stack(ends[1], ip="10.0.0.2/24", thread=False) as stack:
        config = {
            "mode": lib.MN_PROBE_ICMP,
            "ip": "10.0.0.1",
            "target_ip": "10.0.0.2",
            "next_hop_ip": "10.0.0.2",
            "next_hop_mac": stack.mac,
            "frame_len": 64,
            "burst": 32,
            "timeout_ns": 10**9,
        }
        probe = Probe(ends[0], config, ("busy", 0))
        stack.neighbor("10.0.0.1", ends[0].mac)
        found["answer"] = round(least(stack, lambda: probe.step(0), 32), 1)
        answered = stack.stats()["tx_frames"]
        if answered < passes * 32 * 0.99:
            raise RuntimeError(f"the engine answered {answered} of {passes * 32} requests")
        probe.drain()
    for end in ends:
        end.close()
    return found
