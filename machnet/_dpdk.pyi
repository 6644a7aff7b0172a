# SPDX-License-Identifier: MIT
"""The extension module that cffi makes from ``machnet/dpdk/cdef.h``; only where libdpdk was found.

It has no static types, as `machnet._native`.
"""

from typing import Any

ffi: Any
lib: Any
