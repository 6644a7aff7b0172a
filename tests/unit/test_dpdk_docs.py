# SPDX-License-Identifier: MIT
"""docs/dpdk.md and docs/dpdk-clouds.md: what they name is there, by that name."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

from machnet.cli import nic, run
from machnet.dpdk.devices import BIFURCATED, USERSPACE
from machnet.dpdk.eal import EalSettings, _from_environment
from machnet.sidecar.config import parse_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / "docs" / name).read_text("utf-8") for name in ("dpdk.md", "dpdk-clouds.md")}
PAGE = PAGES["dpdk.md"]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", "\n".join(PAGES.values()), re.MULTILINE | re.DOTALL)
#: Commands of machnet in blocks and in the text, with what is set for them.
COMMANDS = [
    line.partition("  #")[0].strip()
    for language, block in BLOCKS
    if not language
    for line in block.splitlines()
    if re.match(r"(\w+=\S+ )*machnet ", line)
]


def rows(heading: str) -> list[str]:
    """The first cells of the tables under a heading."""
    part = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| ([^|]*) \|", part, re.MULTILINE)
    return [cell for cell in cells if not cell.startswith("---")]


def quoted(cells: list[str]) -> set[str]:
    return {word for cell in cells for word in re.findall("`([^`]*)`", cell)}


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_a_command_is_one(line: str) -> None:
    words = shlex.split(line)
    while "=" in words[0]:
        key, _, value = words.pop(0).partition("=")
        assert key == "MACHNET_DPDK"
        _from_environment(value)
    _, command, *arguments = words
    if command == "nic":
        nic.main.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    else:
        assert command == "run"
        run.main.make_context("run", arguments)


def test_table_of_settings_has_each() -> None:
    names = {field.name for field in dataclasses.fields(EalSettings)}
    assert quoted(rows("Settings")) == names


def test_table_of_counters_has_each() -> None:
    native = (ROOT / "machnet" / "dpdk" / "cdef.h").read_text("utf-8")
    fields = re.search(r"struct mn_dpdk_stats \{(.*?)\.\.\.", native, re.DOTALL)
    assert fields is not None
    assert quoted(rows("Looking at it")) == set(re.findall(r"(\w+)[,;]", fields[1]))


def test_table_of_drivers_has_each() -> None:
    drivers = {word for word in quoted(rows("Binding")) if word.isidentifier() or "-" in word}
    assert drivers == set(USERSPACE["pci"])
    assert all(name.removesuffix("_core") in PAGE for name in BIFURCATED)


def test_what_errors_say_is_what_is_said() -> None:
    source = "\n".join(
        file.read_text("utf-8") for file in (ROOT / "machnet" / "dpdk").glob("*.[cp]*")
    )
    # A message may be broken over lines of the source, and has values in it.
    source = re.sub(r'"\s*f?"', "", source)
    theirs = {"Cannot allocate memory", "Cannot get hugepage information"}
    for text in quoted(rows("Errors")) - theirs:
        words = re.split(r"'eth1'|\(ixgbe\).*| N |\.\.\.", text)
        assert all(word.strip() in source for word in words), text


def test_the_configuration_is_one() -> None:
    (block,) = [text for language, text in BLOCKS if language == "json"]
    raw = json.loads(block)
    raw["machnet_config"] = {"02:00:00:00:00:01": {"ip": "10.0.0.2", "nic": "link:/tmp/x"}}
    assert parse_config(json.dumps(raw)).dpdk.huge == "off"


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[name]):
        assert (ROOT / "docs" / target).exists(), target
