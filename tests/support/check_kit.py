# SPDX-License-Identifier: MIT
"""What tests of the invariants share: the checks by themselves, and what breaks an engine."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from machnet._native import ffi, lib

#: Breaks one thing (see check_poke.c) of the connection with this local port: stack, port, what, by how much.
Poke = Callable[[Any, int, str, int], None]


def stats_of(check: Any) -> Any:
    """What was counted."""
    out = ffi.new("struct mn_check_stats *")
    lib.mn_check_get_stats(check, out)
    return out


class CheckedNode:
    """The checks of frames without a network: what leaves node 3, a microsecond apart."""

    def __init__(self) -> None:
        self.check = ffi.gc(lib.mn_check_new(0), lib.mn_check_free)
        self.now = 1_500_000_000
        self.rc = 0

    def leave(self, frame: bytes) -> None:
        self.now += 1000
        self.rc = lib.mn_check_frame(self.check, 3, frame, len(frame), self.now)

    @property
    def text(self) -> str:
        """What was violated first."""
        return str(ffi.string(lib.mn_check_text(self.check)).decode())

    def stats(self) -> Any:
        return stats_of(self.check)


def build_poke(folder: Path) -> Poke:
    """Compile it, into this folder."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to build what breaks an engine")
    source = Path(__file__).with_name("check_poke.c")
    out = folder / "poke.so"
    repo = source.parents[2]
    subprocess.run(
        [compiler, "-std=gnu11", "-O1", "-shared", "-fPIC", f"-I{repo}", "-o", out, source],
        check=True,
    )
    call = ctypes.CDLL(str(out)).poke
    call.restype = ctypes.c_bool
    call.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_int64]

    def run(stack: Any, port: int, field: str, by: int) -> None:
        engine = ffi.cast("void **", stack)[0]  # the first member
        assert call(int(ffi.cast("uintptr_t", engine)), port, field.encode(), by)

    return run
