# SPDX-License-Identifier: MIT
"""The extension module that cffi makes from the ``cdef.h`` files beside the C code.

What comes out of it has no static types: `ffi` is a ``_cffi_backend.FFI``, `lib` has the functions and
constants of the ``cdef.h`` files as attributes. Modules of the package wrap both in typed functions.
"""

from typing import Any

ffi: Any
lib: Any
