# SPDX-License-Identifier: MIT
"""Settings and fixtures for all tests."""

from __future__ import annotations

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
