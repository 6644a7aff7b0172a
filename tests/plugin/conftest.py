# SPDX-License-Identifier: MIT
"""Runs of pytest inside tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

# These are about Python (options, reports, the guard, other plugins); the C that they run is run by
# the rest of the suite. A sanitizer build, in which each run of pytest takes seconds to start, goes
# without all but those with real NICs.
collect_ignore = (
    sorted(path.name for path in Path(__file__).parent.glob("test_*.py") if path.stem != "test_nic")
    if "MACHNET_TEST_SANITIZED" in os.environ
    else []
)


@pytest.fixture
def inner(pytester: pytest.Pytester) -> Callable[..., Any]:
    """Runs pytest on a test file, in this process: for what makes no network."""

    def run(source: str, *args: str, **options: Any) -> Any:
        pytester.makepyfile(test_inner=source)
        return pytester.runpytest_inprocess("-p", "no:randomly", *args, **options)

    return run


@pytest.fixture
def outer(pytester: pytest.Pytester) -> Callable[..., Any]:
    """Runs pytest on a test file, in a process of its own."""

    def run(source: str, *args: str) -> Any:
        pytester.makepyfile(test_inner=source)
        # Against a hang of the inner run, beside which nobody looks.
        return pytester.runpytest_subprocess("-p", "no:randomly", *args, timeout=120)

    return run
