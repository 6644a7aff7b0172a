# SPDX-License-Identifier: MIT
"""Cases of the conformance suite on the wire: machnet's arm on a NIC, scripted packets at its other end.

All of them run so by hand (conformance/README.md); here it is those of a few seconds.
"""

from __future__ import annotations

from dpdk_kit import need_root

NIC = "dpdk:net_af_packet0,iface=veth0"
FILES = ("test_resets.py", "test_timestamps.py")


def test_cases_on_a_nic(repo, pytester):
    need_root()
    # Not in the checkout: `python -m pytest` would import its machnet, not the installed one.
    cases = [repo / "conformance/cases" / name for name in FILES]
    command = [
        *cases,
        "-c",
        repo / "pyproject.toml",
        "-k",
        "machnet",
        "-p",
        "no:randomly",
        "-p",
        "no:cacheprovider",
    ]
    result = pytester.runpytest_subprocess(*command, f"--machnet-nic={NIC}", timeout=240)
    found = result.parseoutcomes()
    assert result.ret == 0
    assert found["passed"] >= 30
    assert not set(found) & {"skipped", "failed", "errors", "xpassed"}
