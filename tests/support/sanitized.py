# SPDX-License-Identifier: MIT
"""How often to do what a sanitized build does slowly."""

from __future__ import annotations

import os

#: Whether machnet is built with ASan and UBSan here (tox -e asan).
SANITIZED = "MACHNET_TEST_SANITIZED" in os.environ
NIGHTLY = "MACHNET_NIGHTLY" in os.environ


def fewer(count: int, sanitized: int) -> int:
    """``count``, or ``sanitized`` with sanitizers: for repetition of one path through the C code.

    What is counted has been done ``count`` times without sanitizers in the same run of tox; nightly
    runs do it so often with them too.
    """
    return sanitized if SANITIZED and not NIGHTLY else count
