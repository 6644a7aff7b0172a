# SPDX-License-Identifier: MIT
"""A sidecar for each test file, and the C library."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from shim_kit import IP, Api, Compiler
from sidecar import Sidecar


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    """A sidecar whose NIC has nobody at the other end: applications reach each other within it."""
    with (
        tempfile.TemporaryDirectory(prefix="mn-shim-") as directory,
        Sidecar(f"link:{directory}/cable", f"{IP}/24") as running,
    ):
        yield running


@pytest.fixture
def socket(sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its socket, which is also in the environment."""
    monkeypatch.setenv("MACHNET_SOCKET", sidecar.socket)
    return sidecar.socket


@pytest.fixture(scope="session")
def api() -> Api:
    """The C library, loaded into this process."""
    return Api()


@pytest.fixture(scope="session")
def compiler() -> Iterator[Compiler]:
    with Compiler() as made:
        yield made


@pytest.fixture(scope="session")
def hello_source(repo: Path) -> Path:
    return repo / "examples" / "hello_world.c"
