# SPDX-License-Identifier: MIT
"""Random programs of calls: nothing crashes or hangs, and a seed always says the same."""

from __future__ import annotations

import pytest
from simnet_chaos import Chaos


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_any_calls_in_any_order_are_answered_and_repeatable(first: int) -> None:
    for seed in range(first, first + 10):
        traces, calls = [], []
        for _ in range(2):
            with Chaos(seed) as net:
                traces.append(net.run(300))
                calls.append(net.done)
        if traces[0] != traces[1]:
            pairs = zip(*calls, strict=False)
            differs = next((i, one, two) for i, (one, two) in enumerate(pairs) if one != two)
            pytest.fail(f"seed {seed}: call, first run, second run: {differs}")
