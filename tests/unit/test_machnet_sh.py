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


@pytest.mark.parametrize(
    "arguments",
    [
        ("--mac", "02:00:00:00:00:01", "--ip", "10.0.0.1"),
        ("--ip=10.0.0.1", "--nic", "tap:a b"),
        ("--config", "some file"),
        ("--engine_threads", "2", "--ip", "10.0.0.1"),
        ("run", "--ip", "10.0.0.1"),
    ],
)
def test_options_alone_run_the_sidecar_with_them(
    repo: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / ".machnet-venv").write_text(f"{environment}\n")
    (environment / ".machnet-dev").touch()
    for name, text in (("python", "exit 0"), ("machnet", "printf '%s\\n' \"$@\"; exit 7")):
        script = environment / "bin" / name
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
    result = run(repo, *arguments, MACHNET_VENV=str(environment))
    assert result.returncode == 7
    assert result.stdout.splitlines() == ["run", *(word for word in arguments if word != "run")]


def test_a_python_that_does_not_do_is_refused_by_name(repo: Path, tmp_path: Path) -> None:
    result = run(
        repo, "setup", MACHNET_PYTHON="/bin/false", MACHNET_VENV=str(tmp_path / "environment")
    )
    assert result.returncode == 1
    assert "MACHNET_PYTHON=/bin/false is not a Python 3.10 or later" in result.stderr
    assert not (tmp_path / "environment").exists()
