# SPDX-License-Identifier: MIT
"""Where the C library and its header are: in the package, or in the build of an editable install."""

from __future__ import annotations

from pathlib import Path

import machnet
from machnet import _native

__all__ = ["include_dir", "lib_dir", "lib_path"]


def include_dir() -> Path:
    """The directory of ``machnet.h``.

    Raises:
        FileNotFoundError: This installation has none.
    """
    package = Path(machnet.__file__).parent
    return _first([package / "include", package / "shim"], "machnet.h")


def lib_dir() -> Path:
    """The directory of ``libmachnet_shim.so``.

    Raises:
        FileNotFoundError: This installation has none.
    """
    return lib_path("lib").parent


def lib_path(build: str) -> Path:
    """One of the libraries: "lib", "compat" or "compat-tcp".

    Raises:
        FileNotFoundError: This installation has none.
    """
    installed = Path(machnet.__file__).parent / "lib"
    native: str = _native.__file__
    built = Path(native).parent / "shim" / build
    name = "libmachnet_shim.so"
    return _first([installed if build == "lib" else installed / build, built], name) / name


def _first(places: list[Path], name: str) -> Path:
    for place in places:
        if (place / name).is_file():
            return place
    raise FileNotFoundError(f"no {name} in {' or '.join(map(str, places))}")
