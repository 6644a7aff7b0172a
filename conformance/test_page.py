# SPDX-License-Identifier: MIT
"""The page and the table of deviations speak of the cases that there are."""

from __future__ import annotations

from conformance.deviations import DEVIATIONS
from conformance.page import PAGE, TOPICS, cases, deviations_of, row_head

#: What a suite that covers the protocol has at least, variants not counted.
CASES_MIN = 80


def test_page_lists_the_cases() -> None:
    """Each case has its row, with clause and title, in order; there is no other."""
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [line for line in rows if not line.startswith(("| ---", "| Clause"))]
    heads = [row_head(case) for case in cases()]
    assert len(rows) == len(heads)
    for row, head in zip(rows, heads, strict=True):
        assert row.startswith(head), (
            "run the suite with --conformance-record, then conformance.page"
        )


def test_page_gives_the_reasons() -> None:
    """Each deviation's reason stands in the row of its case, and no row without one says no."""
    text = PAGE.read_text()
    for case in cases():
        (row,) = [line for line in text.splitlines() if line.startswith(row_head(case))]
        known = deviations_of(case)
        for deviation in known:
            assert deviation.reason in row
        outcomes = [cell.strip() for cell in row.split("|")[3:5]]
        deviates = {arm for arm, cell in zip(("linux", "machnet"), outcomes, strict=True)
                    if cell not in {"yes", "-"}}  # fmt: skip
        assert deviates == {deviation.arm for deviation in known}


def test_deviations_are_of_cases() -> None:
    """No line of the table is about a case that does not exist, and none stands there twice."""
    known = {case.id for case in cases()}
    for deviation in DEVIATIONS:
        assert deviation.case.partition("[")[0] in known, deviation
        assert deviation.arm in {"linux", "machnet"}
    keys = [(deviation.case, deviation.arm) for deviation in DEVIATIONS]
    assert len(set(keys)) == len(keys)


def test_every_topic_has_cases() -> None:
    """The suite is as wide as it says."""
    found = cases()
    assert {case.topic for case in found} == set(TOPICS)
    assert len(found) >= CASES_MIN
    assert len({case.id for case in found}) == len(found)
