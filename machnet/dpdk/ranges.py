# SPDX-License-Identifier: MIT
"""Numbers that a port takes from whoever opens it, in Python or in the sidecar's configuration."""

from __future__ import annotations

__all__ = ["DESCRIPTORS", "POOL_MBUFS"]

#: Descriptors of a queue, the least and the most; a driver may take less.
DESCRIPTORS = (32, 32768)
#: Packets of a queue's pool.
POOL_MBUFS = (256, 1 << 20)
