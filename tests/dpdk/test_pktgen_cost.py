# SPDX-License-Identifier: MIT
"""``machnet pktgen`` on a driver without a device says what a packet costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("nic", "burst"), [("net_null0", 32), ("net_ring0", 8)])
def test_what_a_packet_costs(nic: str, burst: int) -> None:
    argv = [sys.executable, "-m", "machnet.cli.pktgen", "--nic", f"dpdk:{nic}", "--json"]
    argv += ["--ip", "10.0.0.2", "--remote_ip", "10.0.0.3", "--remote_mac", "02:00:00:00:00:09"]
    argv += ["--poll", "busy", "--burst", str(burst), "--count", "20000"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    end = json.loads(done.stdout.splitlines()[-1])
    assert end["tx_packets"] == 20_000
    for way in ("tx", "rx"):
        cost = end["cost"][way]
        assert 1 <= cost["burst"] <= burst
        # A packet takes some tens of nanoseconds; the bounds are for a machine that does much else.
        assert 1 < cost["ns"] < 1_000_000
        assert cost["ticks"] > 1
    # One burst, one call of the driver: all were full.
    assert end["cost"]["tx"]["burst"] == burst
