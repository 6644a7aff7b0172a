# SPDX-License-Identifier: MIT
"""Experiments 1, 2 and 3 through sidecars, every role a process: the demo's, repeated."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from machnet.cli._pair import PERCENTILES, Case, Lab, Placement
from machnet.cli.demo import plan

#: Payload bytes and window of each row.
SHAPES = ((64, 1), (64, 8), (64, 32), (1024, 32))
#: What the original did here in experiment 2 over DPDK's net_af_packet, with an idle yield patched in.
ORIGINAL_MSGS_PER_S = {(64, 1): 31_000, (64, 8): 75_000, (1024, 32): 80_000}


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(
    seconds: float, repeats: int, poll: str, progress: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Each row `repeats` times, the rows taking turns so that noise hits all of them.

    Raises:
        RuntimeError: A message was lost or wrong, or a process failed.
    """
    cases = [
        case
        for size, window in SHAPES
        for case in plan((1, 2, 3), (size,), (window,), baseline=True)
    ]
    samples: dict[Case, list[Any]] = {case: [] for case in cases}
    with Lab(seconds, Placement.choose(None, None, poll)) as lab:
        for n in range(repeats):
            for case in cases:
                progress(f"sidecar: {case}, run {n + 1} of {repeats}")
                outcome = lab.measure(case)
                if outcome.errors:
                    raise RuntimeError(f"{case}: {outcome.error}")
                samples[case].append(outcome)
    return [_row(case, outcomes) for case, outcomes in samples.items()]


def _row(case: Case, outcomes: list[Any]) -> dict[str, Any]:
    shape = (case.msg_size, case.msg_window)
    rate = _spread([outcome.msgs_per_s for outcome in outcomes])
    row = {
        "experiment": case.experiment,
        "protocol": case.protocol,
        "msg_size_bytes": case.msg_size,
        "msg_window": case.msg_window,
        "msgs_per_s": rate,
        **{
            f"{name}_us": statistics.median(outcome.latency_us[name] for outcome in outcomes)
            for name in PERCENTILES
        },
    }
    if case.experiment == 2 and shape in ORIGINAL_MSGS_PER_S:
        row["times_the_original"] = round(rate["median"] / ORIGINAL_MSGS_PER_S[shape], 2)
    return row
