# SPDX-License-Identifier: MIT
"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import machnet

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = re.findall(
    r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


def test_the_readme_has_an_example_once_there_is_a_stack() -> None:
    assert BLOCKS or not hasattr(machnet, "Stack")


@pytest.mark.parametrize("block", BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
def test_readme_example(
    block: str, capsys: pytest.CaptureFixture[str], pytester: pytest.Pytester
) -> None:
    if "def test_" in block:
        pytester.makepyfile(block)
        pytester.runpytest_subprocess("--machnet-sim").assert_outcomes(passed=1)
    else:
        exec(compile(block, str(README), "exec"), {"__name__": "__main__"})
