# SPDX-License-Identifier: MIT
"""NICs without hardware (wire, TAP), capture, and Linux peers for tests."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machnet.sim.kernel_host import KernelHost, KernelHostError

__all__ = ["KernelHost", "KernelHostError"]

# Imported when first asked for: who wants one of these need not load the others.
_MODULES = {
    "KernelHost": "machnet.sim.kernel_host",
    "KernelHostError": "machnet.sim.kernel_host",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
