# SPDX-License-Identifier: MIT
"""Standard output that takes no more: a full disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["forget_unwritten"]


def forget_unwritten() -> str:
    """Give up what standard output does not take.

    Python would try once more at its end, complain, and exit with 120.

    Returns:
        Why it was not taken; "": it was.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        why = ""  # who reads our lines has seen enough
    except OSError as error:
        why = error.strerror or str(error)
    else:
        return ""
    with Path(os.devnull).open("w", encoding="ascii") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return why
