# SPDX-License-Identifier: MIT
"""Marks on interfaces: who sees whose."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from machnet.dpdk.marks import Mark

#: Of this test run's own.
NAME = f"mk{os.getpid()}"
SEEN = """
import sys
from machnet.dpdk.marks import Mark
mark = Mark(sys.argv[1])
print(*mark.others, flush=True)
sys.stdin.read()
"""


def seen_by_another(*wrapper: str) -> list[int]:
    command = [*wrapper, sys.executable, "-c", SEEN, NAME]
    done = subprocess.run(command, check=True, capture_output=True, text=True, input="")
    return [int(pid) for pid in done.stdout.split()]


def test_another_process_sees_a_mark_until_it_is_taken_away() -> None:
    assert seen_by_another() == []
    mark = Mark(NAME)
    assert mark.others == ()
    assert seen_by_another() == [os.getpid()]
    mark.close()
    mark.close()
    assert seen_by_another() == []


def test_a_process_that_is_killed_leaves_none() -> None:
    command = [sys.executable, "-c", SEEN, NAME]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with (
        subprocess.Popen(command, **pipes) as one,  # type: ignore[call-overload]
        subprocess.Popen(command, **pipes) as two,  # type: ignore[call-overload]
    ):
        lines = sorted(child.stdout.readline().decode().split() for child in (one, two))
        assert lines in ([[], [str(one.pid)]], [[], [str(two.pid)]])
        mark = Mark(NAME)
        assert set(mark.others) == {one.pid, two.pid}
        mark.close()
        one.kill()
        one.wait()
        mark = Mark(NAME)
        assert set(mark.others) == {two.pid}
        mark.close()
        two.kill()
    assert Mark(NAME).others == ()


def test_it_belongs_to_a_network_namespace() -> None:
    wrapper = ["unshare", "-n" if os.geteuid() == 0 else "-Urn"]
    probe = subprocess.run([*wrapper, "true"], check=False, capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"no network namespace can be made here: {probe.stderr.strip()}")
    with contextlib.closing(Mark(NAME)):
        assert seen_by_another(*wrapper) == []


def test_this_process_is_none_of_the_others() -> None:
    with contextlib.closing(Mark(NAME)), contextlib.closing(Mark(NAME)) as second:
        assert second.others == ()


def test_a_name_that_nobody_listens_on_is_somebody_s_and_more_than_there_are_are_no_error() -> None:
    mark = Mark(NAME)
    del mark  # as of a port that nobody closed
    with contextlib.ExitStack() as taken:
        for number in range(9):
            sock = taken.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(f"\0machnet/nic/{NAME}/{number}")
        with contextlib.closing(Mark(NAME)) as mark:
            assert mark.others == (0,)
