# SPDX-License-Identifier: MIT
"""What of these tests a sanitizer's build runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
