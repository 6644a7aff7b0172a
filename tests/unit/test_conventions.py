# SPDX-License-Identifier: MIT
"""Conventions of INTERNAL.md that no linter knows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 80
SOURCES = (".c", ".h", ".py", ".sh", ".build", ".ini", ".toml", ".options")


@pytest.fixture(scope="module")
def tracked(repo: Path) -> list[Path]:
    """Every file that git tracks."""
    if shutil.which("git") is None or not (repo / ".git").exists():
        pytest.skip("what is part of the project is known from git, and this is no git checkout")
    listing = subprocess.run(
        # The checkout may belong to another user than the one who tests it.
        ["git", "-c", f"safe.directory={repo}", "-C", repo, "ls-files", "-z"],
        check=True,
        capture_output=True,
        text=True,
    )
    files = [repo / name for name in listing.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


def functions(source: str) -> list[tuple[int, int]]:
    """First line and length of each function body: what stands between braces in column 0."""
    found = []
    start = None
    for number, line in enumerate(source.splitlines(), 1):
        if line == "{":
            start = number
        elif line == "}" and start is not None:
            found.append((start, number - start + 1))
            start = None
    return found


def test_sources_name_their_licence(tracked: list[Path]) -> None:
    bare = [
        str(path)
        for path in tracked
        if path.suffix in SOURCES
        and "SPDX-License-Identifier: MIT" not in path.read_text(encoding="utf-8")[:200]
    ]
    assert bare == []


def test_files_and_functions_stay_readable(tracked: list[Path]) -> None:
    long = []
    for path in tracked:
        if path.suffix not in {".c", ".h", ".py"}:
            continue
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) >= FILE_LINES_MAX:
            long.append(f"{path}: {lines} lines")
        if path.suffix != ".py":
            long += [
                f"{path}:{line}: a function of {length} lines"
                for line, length in functions(text)
                if length > FUNCTION_LINES_MAX
            ]
    assert long == []


def test_functions_are_found_with_their_length() -> None:
    assert functions("int a(void)\n{\n    return 1;\n}\nstruct s {\n};\nint b(void)\n{\n}\n") == [
        (2, 3),
        (8, 2),
    ]


def test_every_c_file_is_built(repo: Path, tracked: list[Path]) -> None:
    forgotten = []
    for path in tracked:
        if path.suffix != ".c" or repo / "machnet" not in path.parents:
            continue
        build = path.parent / "meson.build"
        if not build.is_file() or not re.search(rf"'{re.escape(path.name)}'", build.read_text()):
            forgotten.append(str(path))
    assert forgotten == []


def test_no_file_names_a_place_on_one_machine(tracked: list[Path]) -> None:
    here = re.compile(r"(?<![\w.])/(?:work|root|home)/\w")
    named = []
    for path in tracked:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        named += [f"{path}: {match.group()}" for match in here.finditer(text)]
    assert named == []
