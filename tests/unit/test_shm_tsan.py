# SPDX-License-Identifier: MIT
"""Threads at both ends of channels under the thread sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CC = shutil.which("gcc")


@pytest.mark.skipif(
    "MACHNET_TEST_SANITIZED" in os.environ,
    reason="the program has a sanitizer of its own: once is enough",
)
@pytest.mark.skipif(CC is None, reason="there is no gcc here to build with the thread sanitizer")
def test_nothing_is_shared_unsaid(repo: Path, tmp_path: Path) -> None:
    stack, sim = repo / "machnet" / "stack", repo / "machnet" / "sim"
    if not stack.joinpath("core", "lane.c").exists():
        pytest.skip("the sources in C are not here: an installed wheel has none")
    sources = [
        *sorted((stack / "core").glob("*.c")),
        *sorted((stack / "core" / "wire").glob("*.c")),
        *sorted((stack / "host").glob("*.c")),
        *(sim / name for name in ("wire.c", "pktpool.c", "nickit.c")),
        repo / "tests" / "support" / "tsan_channel.c",
    ]
    program = tmp_path / "tsan_channel"
    # The fences of the sleep protocol are not known to the sanitizer; the flags they order are
    # atomic.
    flags = [
        "-std=gnu11",
        "-O1",
        "-g",
        "-D_GNU_SOURCE",
        "-pthread",
        "-fsanitize=thread",
        "-Wno-tsan",
    ]
    assert CC is not None
    built = subprocess.run(
        [CC, *flags, f"-I{repo}", *map(str, sources), "-o", str(program)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program], capture_output=True, text=True, timeout=100, check=False)
    if "unexpected memory mapping" in ran.stderr:
        # A kernel that spreads mappings wider than this sanitizer knows.
        command = ["setarch", "-R", str(program)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr[-6000:]
    assert ran.stdout == "done\n"
