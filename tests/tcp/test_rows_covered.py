# SPDX-License-Identifier: MIT
"""Every requirement has a test that names it."""

from __future__ import annotations

import ast
from pathlib import Path

from tcp_rows import EXCEPTIONS, ROWS


def marked_rows() -> dict[int, list[str]]:
    """Row numbers in the markers of all test files beside this one, with the tests."""
    found: dict[int, list[str]] = {}
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.rows":
                    for row in mark.args:
                        found.setdefault(ast.literal_eval(row), []).append(node.name)
    return found


def test_every_row_is_covered():
    assert sorted(set(ROWS) - set(marked_rows()) - set(EXCEPTIONS)) == []


def test_markers_name_rows_that_exist():
    assert set(marked_rows()) <= set(ROWS)


def test_exceptions_are_not_covered_after_all():
    assert set(EXCEPTIONS) & set(marked_rows()) == set()
