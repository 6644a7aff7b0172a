# SPDX-License-Identifier: MIT
"""machnet.sh up to the point where it would install something."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def run(repo: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", repo / "machnet.sh", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_goes_to_stdout_and_names_every_command(repo: Path) -> None:
    result = run(repo, "--help")
    assert result.returncode == 0
    assert result.stderr == ""
    for command in ("setup", "demo", "test", "dev"):
        assert f"\n  {command} " in result.stdout


@pytest.mark.parametrize("arguments", [(), ("frobnicate",)])
def test_no_command_or_an_unknown_one_is_a_usage_error(
    repo: Path, arguments: tuple[str, ...]
) -> None:
    result = run(repo, *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "usage: " in result.stderr


def test_the_sidecar_is_refused_and_says_why(repo: Path) -> None:
    result = run(repo, "--mac", "02:00:00:00:00:01", "--ip", "10.0.0.1")
    assert result.returncode == 2
    assert "the sidecar comes with" in result.stderr


def test_a_python_that_does_not_do_is_refused_by_name(repo: Path, tmp_path: Path) -> None:
    result = run(
        repo, "setup", MACHNET_PYTHON="/bin/false", MACHNET_VENV=str(tmp_path / "environment")
    )
    assert result.returncode == 1
    assert "MACHNET_PYTHON=/bin/false is not a Python 3.10 or later" in result.stderr
    assert not (tmp_path / "environment").exists()
