# SPDX-License-Identifier: MIT
"""The examples of docs/packets.md run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def test_the_examples_of_packets_md(repo: Path) -> None:
    path = repo / "docs" / "packets.md"
    text = path.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "packets"}
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) >= 7
    for block in blocks:
        # So that a traceback names the line of the page.
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(path), "exec"), names)
    names["stack"].close()
