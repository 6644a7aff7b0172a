# SPDX-License-Identifier: MIT
"""The folders that captures and event traces are left in."""

from __future__ import annotations

import re
import shutil
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: Longest part of a folder's name that is made from the test's: names of files end at 255 bytes.
_STEM_MAX = 100


def folder_name(nodeid: str, worker: str) -> str:
    """A folder's name for a test: readable, safe on any file system, and its own.

    Args:
        nodeid: The test's.
        worker: "main", or the name of the xdist worker, which becomes part of the name.
    """
    path, _, rest = nodeid.partition("::")
    stem = path.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".py")
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", f"{stem}-{rest}").strip("-")[:_STEM_MAX].strip("-")
    # What differs only in what was left out, or beyond the length, differs in this.
    check = zlib.crc32(nodeid.encode(errors="surrogatepass"))
    return f"{readable}-{check:08x}" + ("" if worker == "main" else f"-{worker}")


def make_folder(folder: Path) -> Path:
    """Make a test's folder, empty, in a root that git leaves alone."""
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    ignore = root / ".gitignore"
    if not ignore.exists():
        ignore.write_text("# Made by machnet's pytest plugin.\n*\n", encoding="ascii")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    return folder
