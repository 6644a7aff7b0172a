# SPDX-License-Identifier: MIT
"""Runs of pytest inside tests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

# What is Python through and through (options, reports, the guard, other plugins) runs no C that the
# rest of the suite does not run: a sanitizer build, in which a run of pytest takes seconds to start,
# goes without.
collect_ignore = (
    [
        "test_docs.py",
        "test_failure.py",
        "test_guard.py",
        "test_options.py",
        "test_others.py",
        "test_shrink.py",
    ]
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
