# SPDX-License-Identifier: MIT
"""What an engine that polls a DPDK port does not do: system calls, and one burst for each frame."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

#: Messages of many frames. One engine has a thread, the other one is polled by the application's: two
#: that spin, for two cores.
PROGRAM = """
import os, time
import machnet
from machnet import dpdk

ROUNDS, SIZE = 50, 20_000

def threads():
    return set(os.listdir("/proc/self/task"))

def message(stack, channel):
    while True:
        stack.poll()
        got = channel.try_recv()
        if got is not None:
            return got

ends = dpdk.ring_pair()
before = threads()
with (
    machnet.Stack(ends[0], ip="10.0.0.1/24", poll="busy", thread=True) as a,
    machnet.Stack(ends[1], ip="10.0.0.2/24", thread=False) as b,
    a.attach() as server,
    b.attach() as client,
):
    engines = threads() - before
    server.listen("10.0.0.1", 888, protocol="tcp")
    flow = client.connect("10.0.0.2", "10.0.0.1", 888, protocol="tcp", timeout=20)
    data = bytes(range(250)) * (SIZE // 250)
    for i in range(ROUNDS + 1):
        if i == 1:
            os.write(2, f"BEGIN {' '.join(sorted(engines))}\\n".encode())
        client.send(flow, data)
        got = message(b, server)
        server.send(got.flow, got.data)
        assert message(b, client).data == data
    os.write(2, b"END\\n")
    deadline = time.monotonic() + 20
    while True:  # the last acknowledgements are still on their way
        b.poll()
        stats = [end.stats() for end in ends]
        held = sum(one["mbufs"] - one["mbufs_free"] for one in stats)
        if held == 0 or time.monotonic() > deadline:
            break
    for one in stats:
        frames, bursts = one["tx_frames"], one["tx_bursts"]
        assert frames >= ROUNDS * SIZE // 1460, one
        print(frames / bursts, one["tx_full"], held)
"""


def run(*argv: str, timeout_s: float = 60) -> list[list[float]]:
    """What it prints."""
    env = {**os.environ, "MACHNET_DPDK": "huge=off"}
    done = subprocess.run(
        [*argv, sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=env,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [[float(word) for word in line.split()] for line in done.stdout.splitlines()]


@pytest.mark.skipif(
    "MACHNET_TEST_SANITIZED" in os.environ, reason="sanitizers make system calls of their own"
)
def test_an_engine_that_polls_makes_no_system_call(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace to see system calls with")
    log = tmp_path / "calls"
    run("strace", "-f", "-o", str(log))
    lines = log.read_text().splitlines()
    begin = next(i for i, line in enumerate(lines) if '"BEGIN ' in line)
    end = next(i for i, line in enumerate(lines) if '"END' in line)
    found = re.search(r'"BEGIN ([\d ]+)', lines[begin])
    assert found is not None
    engines = set(found[1].split())
    assert len(engines) == 1
    seen = [line for line in lines[begin:end] if line.split()[0] in engines]
    assert seen == []
    # strace did follow them: it saw them end.
    assert engines <= {line.split()[0] for line in lines if "+++ exited" in line}


def test_frames_go_in_bursts_and_none_stays_behind() -> None:
    for frames_per_burst, full, held in run():
        assert frames_per_burst > 3
        assert full == 0
        assert held == 0
