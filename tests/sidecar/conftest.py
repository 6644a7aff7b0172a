# SPDX-License-Identifier: MIT
"""A Linux host for tests, and what of them a sanitizer's build runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from machnet.sim import KernelHost

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
#: About Python alone: nothing of ours in C runs there.
PYTHON_ONLY = {HERE / name for name in ("test_config.py", "test_contrib.py", "test_isolate.py")}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "MACHNET_TEST_SANITIZED" not in os.environ:
        return
    left_out = [item for item in items if item.path in PYTHON_ONLY]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(scope="module")
def host() -> Iterator[KernelHost]:
    """Of all tests of a file, with the other end of a sidecar's TAP."""
    if reason := KernelHost.tap_available():
        pytest.skip(reason)
    with KernelHost("sidecar") as host:
        yield host
