# SPDX-License-Identifier: MIT
"""What a packet costs on its way out of and into this process, by NIC: `machnet pktgen` measures it."""

from __future__ import annotations

import json
import os
import shutil
import sys
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
