# SPDX-License-Identifier: MIT
"""Low-latency userspace networking: applications, the engine, and the simulator share one stack."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
