# SPDX-License-Identifier: MIT
"""What tshark says about captures of mnp, with machnet's dissector."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import mnp_wire as w
import pytest
from mnp_wire import Addresses, Mnp

from machnet.cli.dissector import dissector_path

Row = tuple[Addresses, "Mnp | bytes"]


def said(layers: dict[str, list[str]]) -> list[str]:
    """Expert infos."""
    return layers.get("_ws.expert.message", [])


def tshark(*args: str) -> str:
    """What tshark says, with the dissector loaded."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    environment = {name: text for name, text in os.environ.items() if name != "LD_PRELOAD"}
    run = subprocess.run(
        # Also on ports that another protocol is known for.
        ["tshark", "-n", "-X", f"lua_script:{dissector_path()}",
         "-o", "udp.try_heuristic_first:TRUE", *args],
        check=True, capture_output=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    assert "Lua" not in run.stderr, run.stderr
    return run.stdout


FIELDS = [
    *sorted(set(re.findall(r'"(mnp\.[a-z_1.]+[a-z1])"', dissector_path().read_text()))),
    *(f"mnp.msg_flags.{name}" for name in ("first", "more", "last", "chain", "notify")),
    *(f"mnp.features.{name}" for name in ("sack", "fin", "length")),
    "_ws.col.Info", "_ws.col.Protocol", "_ws.malformed", "_ws.expert.message", "_ws.lua.error",
]  # fmt: skip


def dissect(
    path: Path, rows: list[Row], *args: str, snap: int = 65535, passes: int = 1
) -> list[dict[str, list[str]]]:
    """The fields of each packet; packets are 1 ms apart."""
    frames = [(1_000_000 * (i + 1), w.frame(at, packet)) for i, (at, packet) in enumerate(rows)]
    w.write_pcap(path, frames, snap)
    words = [word for field in FIELDS for word in ("-e", field)]
    two = ["-2"] if passes == 2 else []
    found = json.loads(tshark(*two, "-r", str(path), "-T", "json", *words, *args))
    assert len(found) == len(rows)
    seen = [one["_source"]["layers"] for one in found]
    for layers in seen:
        assert "_ws.lua.error" not in layers, layers
        # Wireshark's own word for what is too short; a dissector that fails says the same.
        cut_off = any(text.startswith("A header of") for text in said(layers))
        assert ("_ws.malformed" in layers) == cut_off, layers
    return seen
