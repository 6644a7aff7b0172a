# SPDX-License-Identifier: MIT
"""NICs without hardware (wire, TAP), capture, and Linux peers for tests."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machnet.sim.kernel_host import KernelHost, KernelHostError
    from machnet.stack.nics import Tap, Wire

__all__ = ["KernelHost", "KernelHostError", "Tap", "Wire"]

# Imported when first asked for: who wants one of these need not load the others.
_HOMES = {
    "KernelHost": "machnet.sim.kernel_host",
    "KernelHostError": "machnet.sim.kernel_host",
    "Tap": "machnet.stack.nics",
    "Wire": "machnet.stack.nics",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'machnet.sim' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
