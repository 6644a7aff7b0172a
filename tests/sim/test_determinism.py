# SPDX-License-Identifier: MIT
"""The same seed gives the same run: packets, captures and words, in every interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sanitized import fewer

SEEDS = fewer(50, 12)
SCRIPT = Path(__file__).resolve().parents[1] / "support" / "sim_everything.py"


def runs(directory: Path, hash_seed: str) -> dict[str, bytes]:
    """What all seeds have to say in an interpreter of their own."""
    directory.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    subprocess.run(
        [sys.executable, SCRIPT, directory, "0", str(SEEDS)],
        check=True,
        env=environment,
        timeout=250,
    )
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, bytes]]:
    base = tmp_path_factory.mktemp("runs")
    return runs(base / "one", "1"), runs(base / "two", "4242")


def test_two_interpreters_agree_to_the_byte(
    two: tuple[dict[str, bytes], dict[str, bytes]],
) -> None:
    one, other = two
    assert list(one) == list(other)
    assert len(one) == 2 * SEEDS
    differ = [name for name in one if one[name] != other[name]]
    assert differ == []


def test_seeds_differ(two: tuple[dict[str, bytes], dict[str, bytes]]) -> None:
    captures = {data for name, data in two[0].items() if name.endswith(".pcapng")}
    assert len(captures) == SEEDS


def test_everything_goes_wrong_in_them(two: tuple[dict[str, bytes], dict[str, bytes]]) -> None:
    said = b"".join(data for name, data in two[0].items() if name.endswith(".txt")).decode()
    for word in (
        "Drop(", "Duplicate(", "Corrupt(", "Reorder(", "Partition(", "Clog(", "Pause(", "Crash(",
        "Degrade(", "Skew(", "rule meddle in force", "restart h", "one_way=True", "'burst': ",
        "'queue': ", "'jitter': ", "'blocked': ",
    ):  # fmt: skip
        assert word in said, word


def test_captures_name_no_machine_no_version_and_no_day(
    two: tuple[dict[str, bytes], dict[str, bytes]],
) -> None:
    """Nor a process: those of `two` are two processes, and their captures are the same."""
    import machnet

    for name, data in two[0].items():
        if name.endswith(".pcapng"):
            assert machnet.__version__.encode() not in data
            assert b"Linux" not in data
            assert b"/tests" not in data
