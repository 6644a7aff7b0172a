# SPDX-License-Identifier: MIT
"""Settings and fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# A run says the same thing twice. To look for new examples: --hypothesis-profile=explore.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, print_blob=True
)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True, max_examples=2_000)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout that these tests are part of."""
    return Path(__file__).resolve().parent.parent


#: Real time: processes, threads and kernels share a clock, and two cores, with the rest of the
#: machine. See docs/design/real-time-tests.md.
REAL_TIME_FOLDERS = {
    "attacks",
    "dpdk",
    "languages",
    "net",
    "plugin",
    "portable",
    "shim",
    "sidecar",
}
REAL_TIME_FILES = {
    "test_agent.py",
    "test_aio.py",
    "test_aio_ends.py",
    "test_channel_waiting.py",
    "test_engines_threads.py",
    "test_readme.py",
    "test_shm_attach.py",
    "test_shm_lanes.py",
    "test_stack_api.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("CI"):
        return
    here = Path(__file__).resolve().parent
    for item in items:
        if here in item.path.parents and (
            item.path.relative_to(here).parts[0] in REAL_TIME_FOLDERS
            or item.path.name in REAL_TIME_FILES
        ):
            item.add_marker(pytest.mark.flaky(reruns=1))
