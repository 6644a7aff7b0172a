# SPDX-License-Identifier: MIT
"""The CPUs of this process."""

from __future__ import annotations

import functools
import os

__all__ = ["usable_cpus"]


@functools.cache
def usable_cpus() -> frozenset[int]:
    """The CPUs that this process was given; ``--isolate`` later keeps its own threads off some."""
    return frozenset(os.sched_getaffinity(0))
