# SPDX-License-Identifier: MIT
"""docs/nics.md: its Python examples run as they stand, and its tables have what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from machnet.sim.faulty import check_faults
from machnet.sim.nicstr import FAULT_KEYS, SCHEMES, parse_nic

PAGE = Path(__file__).resolve().parents[2] / "docs" / "nics.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = [
    (TEXT.count("\n", 0, match.start(1)), match[1])
    for match in re.finditer(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
]


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    part = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (.*) \|$", part, re.MULTILINE)
    return [line.split(" | ") for line in lines if not line.startswith("---")][1:]


@pytest.mark.parametrize(("line", "block"), BLOCKS, ids=[str(line) for line, _ in BLOCKS])
def test_example(line: int, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile("\n" * line + block, str(PAGE), "exec"), {"__name__": "__main__"})


def test_there_are_examples() -> None:
    assert len(BLOCKS) == 5


def test_table_of_strings_has_every_driver() -> None:
    named = {
        word.split(":")[0] for row in rows("NIC strings") for word in re.findall("`(.*?)`", row[0])
    }
    assert named - {"NAME"} == set(SCHEMES)


def test_table_of_faults_has_every_key_and_its_examples_are_right() -> None:
    table = rows("Faults around any NIC")
    named = [key for row in table for key in re.findall("`(.*?)`", row[0])]
    assert sorted(named) == sorted(FAULT_KEYS)
    for row in table:
        for key in re.findall("`(.*?)`", row[0]):
            for value in re.findall("`([^`]*?)`", row[1]):
                if value in FAULT_KEYS:
                    continue  # "as `loss`"
                extra = {"distribution": "&jitter=1ms", "ge_bad": "&ge_good=1%"}.get(key, "")
                extra = "&ge_bad=1%" if key == "ge_good" else extra
                check_faults(parse_nic(f"tap:mn0?{key}={value}{extra}"))


def test_strings_on_the_page_are_right() -> None:
    found = re.findall(r'"((?:tap|wire|pcap):[^"]*\?[^"]*)"', TEXT)
    assert len(found) >= 2
    for text in found:
        check_faults(parse_nic(text))
