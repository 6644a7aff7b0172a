# SPDX-License-Identifier: MIT
"""Faults as data: their repr is the code that makes them."""

from __future__ import annotations

from typing import Any

import pytest

from machnet.sim import faults
from machnet.sim.faults import (
    Clog,
    Corrupt,
    Crash,
    Degrade,
    Drop,
    Duplicate,
    Partition,
    Pause,
    Reorder,
    Skew,
    format_schedule,
)

ALL = [
    Drop("h1>h2", nth=17),
    Duplicate("h1>h2#2", 0),
    Corrupt("a>b", nth=1),
    Reorder("a>b", nth=2),
    Partition("h1", ["h2", "h3"], at="10ms", for_="1.5s"),
    Partition(["h1"], "h2", at=5, one_way=True),
    Clog("h1", "h2", at="1s", for_="1s"),
    Pause("h1", at="1h"),
    Crash("h1", at="1us", for_="2us"),
    Skew("h1", at=0, ppm=-50.5, jump="10ms"),
    Degrade("h1>h2", at="1s", for_="2s", loss=0.5, latency="1ms"),
    Degrade("h1<>h2", at=0, bandwidth=None),
]


@pytest.mark.parametrize("fault", ALL, ids=[type(fault).__name__ for fault in ALL])
def test_the_repr_makes_the_same_fault(fault: faults.Fault) -> None:
    again = eval(repr(fault), vars(faults))
    assert again == fault
    assert hash(again) == hash(fault)
    assert repr(again) == repr(fault)


def test_a_schedule_is_printed_as_code() -> None:
    space: dict[str, Any] = dict(vars(faults))
    exec(format_schedule(list(ALL)), space)
    assert space["schedule"] == ALL
    assert format_schedule([], "none") == "none = []"


def test_times_are_the_same_however_they_are_written() -> None:
    assert Pause("h1", at="1ms", for_=1000) == Pause("h1", at=1_000_000, for_="1us")


def test_faults_of_other_kinds_are_not_equal() -> None:
    assert Drop("h1>h2", 1) != Corrupt("h1>h2", 1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Drop("h1", 0), "link: 'h1' is no direction"),
        (lambda: Drop("h1>h2", -1), "nth: -1"),
        (lambda: Drop("h1>h2", True), "nth: True"),
        (lambda: Partition("h1", "h1", at=0), "'h1' is on both sides"),
        (lambda: Partition([], "h1", at=0), "a: "),
        (lambda: Pause("h1", at=1.5), "Pause: at: 1.5 is no duration"),
        (lambda: Pause(["h1", "h2"], at=0), "more than one"),
        (lambda: Degrade("h1>h2", at=0), "no parameter"),
        (lambda: Degrade("h1", at=0, loss=1), "neither 'h1>h2' nor 'h1<>h2'"),
    ],
)
def test_what_is_no_fault_is_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()
