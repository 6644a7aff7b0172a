# SPDX-License-Identifier: MIT
"""The same files pass on a TAP, and over DPDK on a packet socket.

Simulated, they are run like any other of the tests; in guests, by tests/qemu.
"""

from __future__ import annotations

import os
import re

import pytest
from dpdk_kit import need_root

from machnet.sim import KernelHost

NICS = ["tap:mn0", "dpdk:net_af_packet0,iface=veth0"]
if "MACHNET_TEST_SANITIZED" in os.environ:  # which takes its time, and runs tests/net on TAPs
    del NICS[0]


@pytest.fixture(scope="module")
def outcomes():
    return {}


def test_on_two_queues_with_an_engine_for_each(repo, pytester):
    """Connections arrive on both queues of the packet socket, and are served by both engines."""
    need_root()
    files = [
        str(repo / "tests" / "portable" / f"test_{name}.py") for name in ("streams", "programs")
    ]
    options = ("-p", "no:randomly", "-p", "no:cacheprovider", f"--rootdir={repo}/tests")
    nic = ("--machnet-nic=veth0", "--machnet-engines=2")
    found = pytester.runpytest_subprocess(*files, *options, *nic, timeout=240).parseoutcomes()
    assert found["passed"] >= 15
    assert set(found) <= {"passed", "warnings", "warning"}


@pytest.mark.parametrize("nic", NICS)
def test_the_same_files_pass(repo, pytester, outcomes, nic):
    need_root()
    if reason := KernelHost.tap_available():
        pytest.skip(reason)
    options = ("-p", "no:randomly", "-p", "no:cacheprovider", "-rs", f"--rootdir={repo}/tests")
    # The folder by itself, as it is copied into a guest.
    folder = repo / "tests" / "portable"
    command = [str(folder), *options, f"--machnet-nic={nic}"]
    result = pytester.runpytest_subprocess(*command, timeout=240)
    found = result.parseoutcomes()
    assert result.ret == 0
    assert set(found) <= {"passed", "warnings", "warning"}  # nothing is skipped
    outcomes[nic] = found["passed"]
    assert len(set(outcomes.values())) == 1
    assert re.search(rf"machnet: NIC {re.escape(nic)}, ip 10.0.0.1/24", result.stdout.str())
