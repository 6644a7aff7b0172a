# SPDX-License-Identifier: MIT
"""What is said: the header, and the section of a failed test."""

from __future__ import annotations

import importlib.metadata
import os
from typing import TYPE_CHECKING, Any

from pytest_machnet import cases, shrink

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from pytest_machnet.labs import Lab
    from pytest_machnet.options import Settings

#: The name of the section.
SECTION = "machnet"
LINES_MAX = 40
#: What the reduced faults need of them.
SHRINK_LINES = 12
WIDTH_MAX = 180


def header(run: cases.Run) -> str:
    """The line about a run."""
    settings = run.settings
    if settings.simulated:
        chosen = "sim" in settings.origin and settings.origin["sim"] != "default"
        driver = "simulation" if chosen else "simulation (the default; --machnet-nic=IFACE: a NIC)"
        seed = f", --machnet-seed={run.base}"
        if settings["seeds"] > 1:
            seed += f" --machnet-seeds={settings['seeds']}"
    else:
        driver, seed = f"NIC {settings['nic']}", f", ip {settings['ip']}"
        seed += "" if settings["peer"] is None else f", peer {settings['peer']}"
    return f"machnet: {driver}{seed}, pcap {settings['pcap']}, core {_version()}"


def _version() -> str:
    try:
        return importlib.metadata.version("machnet")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def add_section(
    item: pytest.Item, call: pytest.CallInfo[Any], report: pytest.TestReport, lab: Lab
) -> None:
    """Add to the report of a failed test what its network looked like."""
    item.stash[cases.FAILED] = True
    failure = shrink.failure_of(item, call)
    if failure is not None and call.when != "teardown":
        item.stash[shrink.FAILURE] = failure
    if lab.case.only is not None:
        return  # one of many runs, whose reports nobody sees
    if call.when != "teardown":
        item.stash[shrink.SCHEDULE] = lab.schedule()
    first = lab.section is None
    if first:
        lab.section = _section(lab)
    assert lab.section is not None
    report.sections.append((SECTION, "\n".join(lab.section)))
    if not first:
        return
    case = lab.case
    properties: list[tuple[str, object]] = [("machnet_replay", case.replay)]
    if case.simulated:
        properties += [
            ("machnet_seed", case.seed),
            ("machnet_base_seed", case.base),
            ("machnet_virtual_time_ns", lab.fixture("machnet_clock").now_ns),
        ]
    if case.folder.exists():
        properties.append(("machnet_artifacts", str(case.folder)))
    item.user_properties += properties
    report.user_properties += properties


def add_late_section(report: pytest.TestReport, lab: Lab) -> None:
    """Add to the teardown of a failed test what is known only now; pytest shows it by its name."""
    lines = lab.describe_late()
    if lines:
        report.sections.append((f"{SECTION} teardown", "\n".join(lines)))


def _section(lab: Lab) -> list[str]:
    """At most `LINES_MAX` lines."""
    case = lab.case
    lines = [*_seed_lines(lab), f"replay: {case.replay}"]
    groups: list[str] = []
    try:
        lab.write_artifacts()
        groups = lab.describe(short=bool(case.settings["shrink"]) and case.simulated)
    except Exception as error:  # noqa: BLE001 (the test's own failure is what matters)
        groups.append(f"the state of the network can't be shown: {type(error).__name__}: {error}")
    lines += groups
    if case.folder.exists():
        lines.append(f"artifacts: {_relative(case.folder)}: {_listing(case.folder)}")
    limit = LINES_MAX - (SHRINK_LINES if case.settings["shrink"] and case.simulated else 0)
    return [narrow(line) for line in clip(lines, LINES_MAX - limit)]


def _seed_lines(lab: Lab) -> list[str]:
    case = lab.case
    if not case.simulated:
        return [f"on {lab.where}, in real time{_link_text(case.settings)}"]
    number = f", number {case.number}" if case.number else ""
    example = "" if case.example is None else f", hypothesis example's number {case.example}"
    flag = (
        "the marker's seed"
        if case.settings.origin["seed"] == "marker"
        else f"--machnet-seed={case.base}"
    )
    return [f"seed {case.seed} ({flag}{number}{example}){_link_text(case.settings)}"]


def _link_text(settings: Settings) -> str:
    parts = [f"{name}={value!r}" for name, value in settings.link.items()]
    if settings.mtu is not None:
        parts.append(f"mtu={settings.mtu}")
    if settings.faults is not None:
        parts.append(f"{len(settings.faults)} faults given")
    return f"; link {', '.join(parts)}" if parts else ""


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"


def _relative(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def narrow(line: str) -> str:
    """A line of bearable length."""
    # The command is there to be copied.
    if len(line) <= WIDTH_MAX or line.startswith("replay: "):
        return line
    return line[: WIDTH_MAX - 3] + "..."


def clip(lines: list[str], reserve: int) -> list[str]:
    """So many lines that ``reserve`` more fit."""
    limit = LINES_MAX - reserve
    if len(lines) <= limit:
        return list(lines)
    return [*lines[: limit - 1], f"... and {len(lines) - limit + 1} lines more"]


def group(title: str, lines: list[str], limit: int, *, last: bool = False) -> list[str]:
    """A title with the first or the last of some lines below it; nothing without lines."""
    if not lines:
        return []
    if len(lines) > limit:
        which = "last" if last else "first"
        title = f"{title} ({which} {limit} of {len(lines)})"
        lines = lines[-limit:] if last else lines[:limit]
    return [f"{title}:", *(f"  {line}" for line in lines)]
