# SPDX-License-Identifier: MIT
"""docs/attacks.md: every test that it names exists, and every attack that a test names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: How many attacks each section has.
SECTIONS = {"A": 13, "B": 12, "C": 17, "D": 15, "E": 7, "F": 8, "G": 9, "H": 5, "I": 11, "J": 13}
#: Folders whose tests name attacks; elsewhere such words may mean something else.
NAMING = ("tests/tcp", "tests/sim", "tests/attacks")
#: Rows that say that there is no test.
UNTESTED = {"G8"}


def rows() -> dict[str, list[tuple[str, str]]]:
    """The tests of each attack, as path and function."""
    found: dict[str, list[tuple[str, str]]] = {}
    page = (ROOT / "docs" / "attacks.md").read_text("utf-8")
    for attack, cells in re.findall(r"^\| ([A-Z]\d+) \|(.*)\|$", page, re.MULTILINE):
        assert attack not in found, f"{attack} is there twice"
        tests = cells.rpartition("|")[2]
        found[attack] = re.findall(r"`([^`:]+)::(\w+)`", tests)
        assert tests.count("`") == 2 * len(found[attack]), f"{attack}: {tests}"
    return found


ROWS = rows()


def functions(path: Path) -> set[str]:
    """The names of all functions that a source defines."""
    text = path.read_text("utf-8")
    if path.suffix == ".c":
        return set(re.findall(r"^\w[\w *]*?(\w+)\([^;]*\)\n\{", text, re.MULTILINE))
    return {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}


def test_all_attacks_are_there_and_in_order() -> None:
    wanted = [f"{section}{i + 1}" for section, count in SECTIONS.items() for i in range(count)]
    assert list(ROWS) == wanted


def test_each_has_a_test() -> None:
    assert {attack for attack, tests in ROWS.items() if not tests} == UNTESTED


@pytest.mark.parametrize("path", sorted({path for tests in ROWS.values() for path, _ in tests}))
def test_what_is_named_exists(path: str) -> None:
    named = {name for tests in ROWS.values() for where, name in tests if where == path}
    assert (ROOT / path).is_file()
    assert named - functions(ROOT / path) == set()


def test_what_tests_name_is_on_the_page() -> None:
    """A test's docstring that begins with an attack's number is among that attack's tests."""
    missing = []
    for folder in NAMING:
        for path in sorted((ROOT / folder).glob("test_*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.FunctionDef):
                    continue
                first = re.match(r"([A-J]\d{1,2})\b[:.,;]", ast.get_docstring(node) or "")
                where = (path.relative_to(ROOT).as_posix(), node.name)
                if first is not None and where not in ROWS[first[1]]:
                    missing.append(f"{first[1]}: {where[0]}::{where[1]}")
    assert missing == []
