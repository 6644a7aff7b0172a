# SPDX-License-Identifier: MIT
"""Descriptors of a script, and calls on them that are ready to be made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Descriptor", "Job"]


@dataclass
class Descriptor:
    """An open socket.

    Attributes:
        number: The script's.
        sock: The arm's socket.
        nonblocking: O_NONBLOCK.
        lingers: Closing it waits.
        read_bytes: What has been read.
        wrote_bytes: What has been written.
    """

    number: int
    sock: Any
    nonblocking: bool = False
    lingers: bool = False
    read_bytes: int = 0
    wrote_bytes: int = 0


def _zero(_: Any) -> int:
    return 0


@dataclass
class Job:
    """One call.

    Attributes:
        work: Makes it; raises OSError as the call fails.
        finish: From what it returned to the number that C programs see.
        blocking: It may wait.
    """

    work: Callable[[], Any]
    finish: Callable[[Any], int] = _zero
    blocking: bool = False
