# SPDX-License-Identifier: MIT
"""Reducing the faults of a failing test to the fewest that still make it fail in the same way."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_machnet import cases, seeds
from pytest_machnet.options import MarkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

F = TypeVar("F")

#: The effort that a test is worth.
RUNS_MAX = 1000
SECONDS_MAX = 60.0


@dataclasses.dataclass(frozen=True)
class Failure:
    """What makes two failures the same.

    Attributes:
        when: The phase: "setup", "call".
        kind: The exception's type.
        path: The file of the test's own code where it came from.
        line: The line in it.
    """

    when: str
    kind: str
    path: str
    line: int


#: How the test failed, and with which faults: filled in by the report of it.
FAILURE = pytest.StashKey[Failure]()
SCHEDULE = pytest.StashKey[tuple[Any, ...]]()


def failure_of(item: pytest.Item, call: pytest.CallInfo[Any]) -> Failure | None:
    """What a call's failure is known by."""
    if call.excinfo is None:
        return None
    error = call.excinfo
    own: Path = item.path
    entries = [entry for entry in error.traceback if entry.path == own]
    last = entries[-1] if entries else error.traceback[-1]
    kind = f"{error.type.__module__}.{error.type.__qualname__}"
    return Failure(call.when, kind, str(last.path), last.lineno)


class Exhausted(Exception):  # noqa: N818 (it is no error)
    """The effort allowed is spent."""


class Reducer:
    """Delta debugging (Zeller and Hildebrandt, 2002: ddmin) over a list.

    Args:
        fails: Whether a part of the list, in its order, still fails.
        runs_max: How often it may be asked.
        seconds_max: How long it may take altogether.
    """

    def __init__(
        self,
        fails: Callable[[list[Any]], bool],
        runs_max: int = RUNS_MAX,
        seconds_max: float = SECONDS_MAX,
    ) -> None:
        self._fails = fails
        self._runs_max = runs_max
        self._end = time.monotonic() + seconds_max
        self._known: dict[tuple[int, ...], bool] = {}
        self.runs = 0

    def _ask(self, items: Sequence[Any], chosen: list[int]) -> bool:
        key = tuple(chosen)
        if key not in self._known:
            if self.runs >= self._runs_max or time.monotonic() > self._end:
                raise Exhausted
            self.runs += 1
            self._known[key] = self._fails([items[i] for i in chosen])
        return self._known[key]

    def reduce(self, items: Sequence[F]) -> tuple[list[F], bool] | None:
        """The smallest part found that fails, and whether each item of it is needed.

        None: the list as a whole does not fail (any more).
        """
        chosen = list(range(len(items)))
        try:
            if self._ask(items, []):
                return [], True
            if not self._ask(items, chosen):
                return None
            pieces = 2
            while len(chosen) >= 2:
                step = self._smaller(items, chosen, pieces)
                if step is not None:
                    chosen, pieces = step
                elif pieces < len(chosen):
                    pieces = min(2 * pieces, len(chosen))
                else:
                    break
        except Exhausted:
            return [items[i] for i in chosen], False
        return [items[i] for i in chosen], True

    def _smaller(
        self, items: Sequence[Any], chosen: list[int], pieces: int
    ) -> tuple[list[int], int] | None:
        """A part that fails, with the number of pieces to go on with; None: none of that size."""
        bounds = [len(chosen) * i // pieces for i in range(pieces + 1)]
        parts = [chosen[a:b] for a, b in itertools.pairwise(bounds)]
        for part in parts:
            if self._ask(items, part):
                return part, 2
        if pieces > 2:
            for part in parts:
                out = set(part)
                rest = [i for i in chosen if i not in out]
                if self._ask(items, rest):
                    return rest, max(pieces - 1, 2)
        return None


def wanted(item: pytest.Item) -> bool:
    """Whether a test is to be run by `run_and_shrink`."""
    if not cases.uses_plugin(item) or getattr(item.obj, "is_hypothesis_test", False):  # type: ignore[attr-defined]
        return False  # hypothesis reduces what it has drawn by itself
    try:
        settings = cases.item_settings(item)
    except MarkerError:
        return False
    return bool(settings["shrink"]) and cases.make_case(item).simulated


def run_and_shrink(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What pytest does to run one test; if it fails, its faults are reduced before it says so."""
    from _pytest.runner import runtestprotocol

    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    failed = [report for report in reports if report.failed and report.when != "teardown"]
    if failed:
        lines = _shrink(item, nextitem)
        _add_to_report(failed[0], lines)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _add_to_report(report: pytest.TestReport, lines: list[str]) -> None:
    from pytest_machnet.report import SECTION, clip

    sections = []
    for name, text in report.sections:
        if name == SECTION:
            text = "\n".join(clip(text.split("\n"), len(lines)) + lines)  # noqa: PLW2901
        sections.append((name, text))
    report.sections = sections
    report.user_properties.append(("machnet_shrunk", "\n".join(lines)))


def _shrink(item: pytest.Item, nextitem: pytest.Item | None) -> list[str]:
    from _pytest.runner import runtestprotocol

    failure = item.stash.get(FAILURE, None)
    schedule = item.stash.get(SCHEDULE, ())
    if failure is None or not schedule:
        return ["shrunk: no fault had happened: the failure is not the network's doing"]

    def fails(subset: list[Any]) -> bool:
        item.stash[ONLY] = tuple(subset)
        if FAILURE in item.stash:
            del item.stash[FAILURE]
        # The collector as the next item: what lives longer than one test is kept.
        runtestprotocol(item, log=False, nextitem=item.parent)  # type: ignore[arg-type]
        return item.stash.get(FAILURE, None) == failure

    reducer = Reducer(fails)
    try:
        found = reducer.reduce(schedule)
    finally:
        if ONLY in item.stash:
            del item.stash[ONLY]
        item.session._setupstate.teardown_exact(nextitem)  # noqa: SLF001 (no other way)
    return _describe(cases.make_case(item), found, len(schedule), reducer.runs)


ONLY = cases.ONLY
#: All of the code, in the folder of artifacts.
FILE = "shrunk.py"
#: Of more faults than these the section shows the first ones.
SHOWN_MAX = 6


def _describe(
    case: cases.Case, found: tuple[list[Any], bool] | None, total: int, runs: int
) -> list[str]:
    if found is None:
        return ["shrunk: run again with the same faults, it does not fail in this way"]
    faults, minimal = found
    if not faults:
        return [f"shrunk: fails with none of the {total} faults too ({runs} runs)"]
    how = "each is needed" if minimal else "there may be fewer: the effort allowed was spent"
    head = f"shrunk: {len(faults)} of {total} faults still fail ({how}; {runs} runs); as code:"
    code = _code(case, faults)
    case.folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([f"# {head.removesuffix('; as code:')}", f"# {case.nodeid}", *code])
    (case.folder / FILE).write_text(text + "\n", encoding="utf-8")
    if len(faults) > SHOWN_MAX:
        more = f"    ...  # and {len(faults) - SHOWN_MAX} more: {FILE}, with the artifacts, has all"
        code[2 + SHOWN_MAX : -1] = [more]
    return [head, *(f"  {line}" for line in code)]


def _code(case: cases.Case, faults: list[Any]) -> list[str]:
    """The marker that makes a test fail with these faults; with its seed, all else is the same."""
    settings = case.settings
    arguments = {**settings.link, **({"mtu": settings.mtu} if settings.mtu else {})}
    arguments["seed"] = (case.base + case.number) & seeds.SEED_MASK
    start = "".join(f"{name}={value!r}, " for name, value in arguments.items())
    kinds = ", ".join(sorted({type(fault).__name__ for fault in faults}))
    lines = [f"from machnet.sim.faults import {kinds}"]
    if len(faults) == 1:
        return [*lines, f"@pytest.mark.machnet({start}faults=[{faults[0]!r}])"]
    return [
        *lines,
        f"@pytest.mark.machnet({start}faults=[",
        *(f"    {fault!r}," for fault in faults),
        "])",
    ]
