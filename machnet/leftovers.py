# SPDX-License-Identifier: MIT
"""Directories of a run, named after their process: ``machnet prune`` finds those that a killed one left."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from machnet.dpdk.records import Owner, new_owner

__all__ = ["left_directories", "run_directory"]

_NAME = re.compile(r"machnet-[a-z]+-(\d{1,10})-(\d{1,20})-\w+")


def run_directory(what: str) -> tempfile.TemporaryDirectory[str]:
    """A directory that is removed at its end; its name says whose it is.

    Args:
        what: What it is for, in small letters.
    """
    owner = new_owner()
    return tempfile.TemporaryDirectory(
        prefix=f"machnet-{what}-{owner.pid}-{max(owner.started, 0)}-"
    )


def left_directories(where: str | None = None) -> list[Path]:
    """Such directories of ours whose process has ended.

    Args:
        where: The directory that they are in; None: where `run_directory` makes them.

    Raises:
        OSError: It can't be looked at.
    """
    found = []
    for path in sorted(Path(where or tempfile.gettempdir()).iterdir()):
        named = _NAME.fullmatch(path.name)
        if named is None or path.is_symlink() or not path.is_dir():
            continue
        owner = Owner(int(named[1]), int(named[2]))
        if path.lstat().st_uid == os.geteuid() and not owner.alive():
            found.append(path)
    return found
