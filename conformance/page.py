# SPDX-License-Identifier: MIT
"""Writes docs/conformance.md: `python -m conformance.page RECORD`, from the root of the checkout.

RECORD is what `pytest conformance --conformance-record=RECORD` wrote. Which cases there are, and what
each is about, is read from their sources, so that a page can be checked without a run.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from pathlib import Path

from conformance.deviations import DEVIATIONS, Deviation

__all__ = ["PAGE", "Case", "cases", "main", "render"]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "conformance.md"
ARMS = ("linux", "machnet")

#: Topics in the order of the page, with their headings.
TOPICS = {
    "handshake_passive": "Opening: listening",
    "handshake_active": "Opening: connecting",
    "data_in": "Receiving data",
    "data_out": "Sending data",
    "flow_control": "Windows",
    "recovery": "Loss recovery",
    "close": "Closing",
    "resets": "Resets and forged segments",
    "timestamps": "Timestamps",
    "timers": "Keep-alive and user timeout",
    "errno": "What calls fail with",
    "framing": "Messages over TCP",
}

_HEAD = """\
# Conformance

What machnet's TCP and Linux's do in the same cases. The same program and the same wire script ran against
{kernel} (behind a TAP, in a network namespace, in real time) and against machnet (on a wire in memory, in
virtual time). [`conformance/`](../conformance/README.md) says how to run them. This page is generated: `python -m
conformance.page`.

*yes*: as the clause asks, in each variant. *no*: otherwise; the note says why. *n of m*: in so many of the variants.
*-*: the case says nothing of this arm. Where Linux has a choice that the kernel leaves to its administrator, the
suite sets it to what the RFCs say (`conformance/arms/linux.py` lists these settings). What Linux was seen to do
where the RFCs leave room is in [`conformance/notes`](../conformance/notes/README.md); what machnet does otherwise on purpose
is in [deviations](deviations.md).

{count} cases, {runs} runs.
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """One case, as its source has it."""

    topic: str
    name: str
    clause: str
    title: str

    @property
    def id(self) -> str:
        """As in the table of deviations."""
        return f"{self.topic}/{self.name}"


def _clause(function: ast.FunctionDef) -> str:
    for decorator in function.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Name)
            and decorator.func.id == "clause"
            and isinstance(decorator.args[0], ast.Constant)
        ):
            return str(decorator.args[0].value)
    raise ValueError(f"{function.name} has no clause")


def cases() -> list[Case]:
    """All cases, in the order of the page.

    Raises:
        ValueError: One has no clause or no docstring, or its file is no topic.
    """
    found = []
    for path in sorted((ROOT / "conformance" / "cases").glob("test_*.py")):
        topic = path.stem.removeprefix("test_")
        if topic not in TOPICS:
            raise ValueError(f"{path.name} is no topic of the page")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                title = (ast.get_docstring(node) or "").strip()
                if not title or "\n" in title:
                    raise ValueError(f"{path.name}: {node.name} needs a docstring of one line")
                found.append(Case(topic, node.name.removeprefix("test_"), _clause(node), title))
    order = list(TOPICS)
    return sorted(found, key=lambda case: order.index(case.topic))


def deviations_of(case: Case) -> list[Deviation]:
    """The lines of the table that speak of a case."""
    return [d for d in DEVIATIONS if d.case.partition("[")[0] == case.id]


def _cell(outcomes: list[str]) -> str:
    good, bad = outcomes.count("passed"), outcomes.count("deviates")
    if good + bad == 0:
        return "-"
    if bad == 0:
        return "yes"
    return "no" if good == 0 else f"{good} of {good + bad}"


def _notes(case: Case) -> str:
    texts: dict[str, list[str]] = {}
    for deviation in deviations_of(case):
        variant = deviation.case.partition("[")[2].removesuffix("]")
        where = f"{deviation.arm}{f' ({variant})' if variant else ''}"
        texts.setdefault(deviation.reason, []).append(where)
    return " ".join(f"*{', '.join(where)}*: {reason}" for reason, where in texts.items())


def row_head(case: Case) -> str:
    """The columns that a run does not change."""
    return f"| {case.clause} | `{case.name}`: {case.title} |".replace("\\", "\\\\")


def render(record: dict[str, object]) -> str:
    """The page of a run."""
    results: dict[tuple[str, str], list[str]] = {}
    lines = record["results"]
    assert isinstance(lines, list)
    for line in lines:
        results.setdefault((line["case"], line["arm"]), []).append(line["outcome"])
    all_cases = cases()
    out = [_HEAD.format(kernel=record["kernel"], count=len(all_cases), runs=len(lines))]
    for topic, heading in TOPICS.items():
        out.append(f"\n## {heading}\n")
        out.append("| Clause | Case | Linux | machnet | Note |")
        out.append("| --- | --- | --- | --- | --- |")
        for case in all_cases:
            if case.topic == topic:
                cells = [_cell(results.get((case.id, arm), [])) for arm in ARMS]
                out.append(f"{row_head(case)} {' | '.join(cells)} | {_notes(case)} |")
    return "\n".join(out) + "\n"


def main(arguments: list[str]) -> int:
    """The command."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m conformance.page RECORD\n")
        return 2
    record = json.loads(Path(arguments[0]).read_text())
    failed = [line for line in record["results"] if line["outcome"] == "failed"]
    if failed:
        sys.stderr.write(f"the run had {len(failed)} failures: no page is made of it\n")
        return 1
    missing = {case.id for case in cases()} - {line["case"] for line in record["results"]}
    if missing:
        sys.stderr.write(f"the run left out {', '.join(sorted(missing))}: no page is made of it\n")
        return 1
    PAGE.write_text(render(record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
