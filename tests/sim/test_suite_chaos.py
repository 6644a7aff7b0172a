# SPDX-License-Identifier: MIT
"""Suite of network faults: any schedule of faults, any work.

Once faults have stopped, conversations come to their end: byte for byte, or where a host crashed or
somebody left, with both sides knowing; nothing is left over; and it happens twice in the same way.
"""

from __future__ import annotations

import os

import pytest
import suite_chaos
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sanitized import fewer
from suite_chaos import Job

from machnet.sim.faults import Fault

# Hypothesis may take five minutes to reduce what it found.
pytestmark = pytest.mark.timeout(3600 if "MACHNET_NIGHTLY" in os.environ else 900)

EXAMPLES = 5000 if "MACHNET_NIGHTLY" in os.environ else fewer(100, 30)
SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]
WORK = st.lists(suite_chaos.jobs(), min_size=1, max_size=5)


@settings(max_examples=EXAMPLES, suppress_health_check=SLOW_IS_FINE)
@given(st.integers(0, 1000), suite_chaos.schedules(crashes=False), WORK)
def test_everything_arrives(seed: int, schedule: list[Fault], work: list[Job]) -> None:
    suite_chaos.run(seed, schedule, work)


@settings(max_examples=EXAMPLES, suppress_health_check=SLOW_IS_FINE)
@given(st.integers(0, 1000), suite_chaos.schedules(crashes=True), WORK)
def test_with_crashes_nobody_waits_for_ever(
    seed: int, schedule: list[Fault], work: list[Job]
) -> None:
    suite_chaos.run(seed, schedule, work)


@settings(max_examples=EXAMPLES // 5, suppress_health_check=SLOW_IS_FINE)
@given(st.integers(0, 1000), suite_chaos.schedules(crashes=True), WORK)
def test_twice_the_same(seed: int, schedule: list[Fault], work: list[Job]) -> None:
    first = suite_chaos.run(seed, schedule, work)
    assert suite_chaos.run(seed, schedule, work) == first
