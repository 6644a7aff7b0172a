# SPDX-License-Identifier: MIT
"""The sidecar as a process: from its first line to its last."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from sidecar import Sidecar, SidecarError, joined_sidecars, tap_sidecar

from machnet.sim import KernelHost


@pytest.fixture(scope="module")
def host() -> Iterator[KernelHost]:
    reason = KernelHost.tap_available()
    if reason is not None:
        pytest.skip(reason)
    with KernelHost("sidecar") as host:
        yield host


def test_a_sidecar_on_a_tap_is_ready_and_ends_in_peace(host: KernelHost) -> None:
    with tap_sidecar(host) as sidecar:
        assert "ready" in sidecar.log()
        assert sidecar.stop() == 0
        assert "ended connections_left=0" in sidecar.log()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_either_signal_ends_it_with_status_0(number: signal.Signals, tmp_path) -> None:
    with Sidecar(f"link:{tmp_path}/cable") as sidecar:
        assert sidecar.stop(number) == 0
        assert f"draining signal={number.name}" in sidecar.log()


def test_two_sidecars_can_be_joined() -> None:
    with joined_sidecars() as (first, second):
        assert first.pid != second.pid


def test_a_nic_that_cannot_be_opened_is_status_1_and_says_why(tmp_path) -> None:
    with pytest.raises(SidecarError, match="start_failed") as failure:
        Sidecar(f"link:{tmp_path}/no/such/directory/cable")
    assert "status 1" in str(failure.value)
