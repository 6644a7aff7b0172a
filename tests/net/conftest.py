# SPDX-License-Identifier: MIT
"""Real time: these tests share a clock, and two cores, with the rest of the machine.

They wait for events and judge by order, never by speed; still a machine that stands still for a
second changes what a kernel's TCP does. In CI one that failed is run once more, and the report lists
it (RERUN): one that is listed again and again has a bug, in the test or in the stack.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("CI"):
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.flaky(reruns=1))
