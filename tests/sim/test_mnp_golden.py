# SPDX-License-Identifier: MIT
"""The golden table of messages over UDP: what is quick of it is what the tree has.

`python tests/support/mnp_golden.py --write` makes it anew; the difference is for the review.
"""

from __future__ import annotations

import mnp_golden
from sanitized import fewer


def known() -> list[str]:
    return mnp_golden.GOLDEN.read_text(encoding="utf-8").splitlines()


def test_goodput() -> None:
    made = mnp_golden.rows(["0.1%", "1%"][: fewer(2, 1)], ["extended"])
    made += mnp_golden.rows(["1%", "5%"][fewer(0, 1) :], ["plain", "to C++"])
    assert [row for row in made if row not in known()] == []


def test_the_table_is_whole() -> None:
    assert len(known()) == 1 + len(mnp_golden.LOSSES) * len(mnp_golden.MODES)


def test_one_percent_loss_costs_less_than_a_fifth() -> None:
    rates = {
        tuple(row.split()[:2]): float(row.split()[2])
        for row in known()
        if row.startswith((" ", "extended")) and "to" not in row
    }
    assert rates["extended", "1%"] >= 0.8 * rates["extended", "0%"]
