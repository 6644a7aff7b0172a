# SPDX-License-Identifier: MIT
"""Random use of networks: only errors that are documented, no hang, and each seed says the same."""

from __future__ import annotations

import gc

import pytest
from network_chaos import NetworkChaos


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("seed", range(12))
def test_a_network_used_in_any_way_is_repeatable(seed: int) -> None:
    traces, calls = [], []
    for _ in range(2):
        chaos = NetworkChaos(seed)
        traces.append(chaos.run(120))
        calls.append(chaos.done)
        chaos.net.close()
        chaos.net.close()
        del chaos
        gc.collect()
    if traces[0] != traces[1]:
        pairs = enumerate(zip(*calls, strict=False))
        differs = next(((i, one, two) for i, (one, two) in pairs if one != two), None)
        pytest.fail(f"call, first run, second run: {differs}")
