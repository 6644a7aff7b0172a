# SPDX-License-Identifier: MIT
"""What a connection costs beside many others: memory, and instructions, which are the same each run.

The program is that of ``benchmarks/pair``: two stacks, a wire between them, one thread, virtual
time. The connections are real ones, established by their handshakes.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

#: The issue's limits.
GROWTH_MAX = 1.20
IDLE_BYTES_MAX = 1024

pytestmark = [
    pytest.mark.skipif(
        "MACHNET_TEST_SANITIZED" in os.environ,
        reason="the program has no sanitizers in it: once is enough",
    ),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc to build the program with"),
]

needs_valgrind = pytest.mark.skipif(
    shutil.which("valgrind") is None, reason="no valgrind to count instructions with"
)


@pytest.fixture(scope="module")
def pair(repo: Path) -> Any:
    """The module ``benchmarks.pair``. The checkout itself stays off the path: machnet is in it."""
    if "benchmarks" not in sys.modules:
        home = repo / "benchmarks"
        spec = importlib.util.spec_from_file_location(
            "benchmarks", home / "__init__.py", submodule_search_locations=[str(home)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules["benchmarks"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return importlib.import_module("benchmarks.pair")


@pytest.fixture(scope="module")
def program(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # valgrind 3.19 knows no AVX-512.
    march = "haswell" if platform.machine() == "x86_64" else "native"
    built: Path = pair.build(tmp_path_factory.mktemp("pair"), march=march)
    return built


def test_an_idle_connection_takes_at_most_a_kibibyte(pair, program):
    sizes = pair.memory_per_connection(program)
    assert sizes["engine_bytes_per_flow"] > 100  # as a connection's state is
    assert sizes["lane_bytes_per_flow"] > 0
    assert sum(sizes.values()) <= IDLE_BYTES_MAX


@needs_valgrind
@pytest.mark.parametrize("mode", ["raw", "framed"])
def test_a_message_costs_the_same_beside_100000_connections(pair, program, mode):
    alone, report = pair.count_beside_idle(program, mode, 0)
    assert report["connections"] == 1
    beside, report = pair.count_beside_idle(program, mode, 100_000)
    assert report["connections"] == 100_001
    assert report["retransmits"] == 0
    assert beside <= GROWTH_MAX * alone


@needs_valgrind
@pytest.mark.parametrize("mode", ["raw", "framed"])
def test_opening_and_closing_costs_the_same_beside_20000_connections(pair, program, mode):
    few, report = pair.count_beside_idle(program, mode, 1000, cycles=200)
    # One to talk on, one from the warm-up, and those closed, which are left in TIME-WAIT.
    assert report["connections"] == 1000 + 2 + 200
    many, report = pair.count_beside_idle(program, mode, 20_000, cycles=200)
    assert report["connections"] == 20_000 + 2 + 200
    assert many <= GROWTH_MAX * few


@needs_valgrind
def test_the_count_is_the_same_each_time(pair, program):
    first, second = (pair.count_beside_idle(program, "framed", 100)[0] for _ in range(2))
    assert first == second
