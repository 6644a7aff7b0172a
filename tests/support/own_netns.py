# SPDX-License-Identifier: MIT
"""Python in a network namespace of its own, where a test may do with interfaces what it likes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run_in_own_netns(code: str) -> list[str]:
    """The lines that it prints; skips the test where no such namespace can be made."""
    wrapper = ["unshare", "-n" if os.geteuid() == 0 else "-Urn"]
    probe = subprocess.run([*wrapper, "true"], check=False, capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no network namespace can be made here: {probe.stderr.strip()}")
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
