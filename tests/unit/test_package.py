# SPDX-License-Identifier: MIT
"""What every installed build must have, whatever else is in it."""

from __future__ import annotations

import machnet
from machnet._native import ffi, lib


def test_the_extension_and_the_package_have_one_version() -> None:
    assert ffi.string(lib.mn_build_version()).decode() == machnet.__version__
