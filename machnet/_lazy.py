# SPDX-License-Identifier: MIT
"""Public names that are imported when they are first asked for."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["named"]


def named(module: str, name: str) -> Any:
    """What ``module`` calls ``name``.

    Raises:
        ModuleNotFoundError: Also when this is a checkout of the sources, which has no C part: with what helps.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != "machnet._native":
            raise
        from pathlib import Path

        raise ModuleNotFoundError(
            f"{Path(__file__).parent} is not a built machnet but its sources, which Python finds first in "
            "the folder that has them: run the Python of an environment with machnet in it (./machnet.sh "
            "setup makes one) from another folder, or that of ./machnet.sh dev",
            name=error.name,
        ) from None
