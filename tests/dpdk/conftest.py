# SPDX-License-Identifier: MIT
"""DPDK in this process: EAL is started by the first test of a worker that needs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dpdk_kit import Veth, need_dpdk, reserve_huge_pages
from dpdk_kit import veth as make_veth

if TYPE_CHECKING:
    from collections.abc import Iterator

# Runs of pytest and of commands whose C other files run: sanitizers go without, as in tests/plugin.
collect_ignore = (
    ["test_conformance_nic.py", "test_ends.py", "test_pktgen_cost.py"]
    if "MACHNET_TEST_SANITIZED" in os.environ
    else []
)


@pytest.fixture(scope="session", autouse=True)
def _eal() -> None:
    """There are huge pages when EAL looks for them."""
    need_dpdk()
    reserve_huge_pages()


@pytest.fixture
def veth() -> Iterator[Veth]:
    """A virtual Ethernet pair with the kernel at its other end."""
    with make_veth() as pair:
        yield pair


@pytest.fixture(autouse=True)
def _no_sockets_left() -> Iterator[None]:
    """The driver of memifs leaves its server's socket behind, which then is in the next one's way."""
    yield
    for path in Path("/tmp").glob(f"mn-memif-{os.getpid()}-*"):
        path.unlink(missing_ok=True)
