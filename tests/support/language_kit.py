# SPDX-License-Identifier: MIT
"""The programs of js/, csharp/ and examples/, made ready in a directory, and run as processes."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from machnet.cli.paths import include_dir, lib_dir

#: What every test goes through.
PROTOCOLS = ("udp", "tcp")
#: How long a program may take to do what it is waited for, in seconds.
PATIENCE_S = 60.0
#: The sanitizers watch our code only: compilers and npm do without them.
TOOL_ENV = {
    name: value
    for name, value in os.environ.items()
    if name not in {"LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS"}
}


def need(*tools: str) -> None:
    """Skip the test if one of the tools is not there."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (./machnet.sh test does it, as root)")


def run_tool(command: Sequence[str | Path], cwd: Path) -> str:
    """Run a compiler, or another tool that has to succeed; what it printed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=TOOL_ENV,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
    )
    assert done.returncode == 0, f"{command[0]} failed\n{done.stdout}{done.stderr}"
    return done.stdout


def copy_sources(repo: Path, names: Sequence[str], to: Path) -> None:
    """Copy directories of the checkout, without what was built or installed in them."""
    for name in names:
        shutil.copytree(
            repo / name,
            to / name,
            ignore=shutil.ignore_patterns("node_modules", "bin", "obj", "*.so"),
        )


def npm_ci(directory: Path, *options: str) -> None:
    """Install what package-lock.json says; without a registry the test is skipped, but not in CI."""
    done = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", *options],
        cwd=directory,
        env=TOOL_ENV,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
    )
    if done.returncode != 0 and "CI" not in os.environ:
        pytest.skip(f"npm could not install koffi: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr


def compile_csharp(sources: Sequence[Path], program: Path) -> None:
    """Compile with Mono's compiler: the C# of the project file, every warning an error."""
    run_tool(["mcs", "-langversion:7", "-warnaserror", f"-out:{program}", *sources], program.parent)


def compile_c(source: Path, program: Path) -> None:
    """Compile and link against the installed library."""
    run_tool(
        [
            *os.environ.get("CC", "cc").split(),
            *("-Wall", "-Wextra", "-Werror", "-o", program, source),
            *(f"-I{include_dir()}", f"-L{lib_dir()}", "-l:libmachnet_shim.so"),
            # The library may be a sanitized one, which needs what is preloaded.
            *(f"-Wl,-rpath,{lib_dir()}", "-Wl,--allow-shlib-undefined"),
        ],
        program.parent,
    )


class Program:
    """A running program; a context manager, behind which it is gone.

    Args:
        command: And its arguments.
        env: Added to the environment.
        cwd: Where it runs.
    """

    def __init__(
        self, command: Sequence[str | Path], env: dict[str, str], cwd: Path | None = None
    ) -> None:
        self.name = " ".join(map(str, command))
        self._said = b""
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **env},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wait_said(self, text: str) -> None:
        """Wait until it has written this to stderr."""
        assert self.process.stderr is not None
        stderr = self.process.stderr.fileno()
        end = time.monotonic() + PATIENCE_S
        while text.encode() not in self._said:
            left = end - time.monotonic()
            assert left > 0, f"{self.name}: no {text!r} in time\n{self._said.decode()}"
            if select.select([stderr], [], [], left)[0]:
                chunk = os.read(stderr, 4096)
                assert chunk, f"{self.name} ended without {text!r}\n{self._said.decode()}"
                self._said += chunk

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end: exit status, stdout, stderr."""
        try:
            out, err = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            said = (self._said + err).decode()
            raise AssertionError(f"{self.name} did not end\n{out.decode()}{said}") from None
        return self.process.returncode, out.decode(), (self._said + err).decode()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def run(
    command: Sequence[str | Path], env: dict[str, str], cwd: Path | None = None
) -> tuple[int, str, str]:
    """Run a program to its end: exit status, stdout, stderr."""
    with Program(command, env, cwd) as program:
        return program.finish()


def python_command(repo: Path) -> list[str | Path]:
    """The Python hello world, with the machnet that is under test."""
    return [sys.executable, repo / "examples" / "hello_world.py"]
