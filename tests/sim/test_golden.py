# SPDX-License-Identifier: MIT
"""The golden tables: what is quick of them is what the tree has, to the last digit.

`python tests/support/sim_golden.py --write` makes them anew; the difference is for the review.
"""

from __future__ import annotations

import sim_golden

QUICK = {(loss, rtt, "64KiB") for loss in sim_golden.LOSSES for rtt in ("10ms", "100ms")} | {
    ("5%", "1ms", "512KiB"),
    ("20%", "100us", "4MiB"),
    ("1%", "100ms", "4MiB"),
}


def known(name: str) -> list[str]:
    return (sim_golden.GOLDEN / name).read_text(encoding="utf-8").splitlines()


def test_goodput() -> None:
    rows = sim_golden.goodput_rows(QUICK)
    assert len(rows) == 1 + len(QUICK)
    assert [row for row in rows if row not in known("goodput.txt")] == []


def test_fairness() -> None:
    rows = sim_golden.fairness_rows(["20p"])
    assert [row for row in rows if row not in known("fairness.txt")] == []


def test_the_tables_are_whole() -> None:
    cells = len(sim_golden.LOSSES) * len(sim_golden.RTTS) * len(sim_golden.BUFFERS)
    assert len(known("goodput.txt")) == 1 + cells
    assert len(known("fairness.txt")) == 1 + len(sim_golden.PAIRS) * len(sim_golden.QUEUES)
