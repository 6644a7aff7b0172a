# SPDX-License-Identifier: MIT
"""The sidecar as a process: from its first line to its last."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from sidecar import SIDECAR_IP, Sidecar, SidecarError, joined_sidecars, tap_sidecar

from machnet.sim import KernelHost


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


def test_a_link_has_the_mac_address_that_was_said(tmp_path) -> None:
    with Sidecar(
        f"link:{tmp_path}/cable?latency=1us", SIDECAR_IP, "--mac=02:00:00:00:00:77"
    ) as sidecar:
        assert "mac=02:00:00:00:00:77" in sidecar.log()


def test_a_descriptor_that_nobody_has_opened_is_refused(tmp_path) -> None:
    command = [sys.executable, "-m", "machnet.cli.run", f"--nic=link:{tmp_path}/x", "--ip=10.0.0.2"]
    done = subprocess.run(
        [*command, f"--socket={tmp_path}/ctrl.sock", "--ready_fd=999"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, "no open descriptor 999" in done.stderr) == (2, True)


def test_a_socket_where_one_must_not_write_is_told_with_what_helps(tmp_path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o500)
    drop: list[str] = []
    if os.geteuid() == 0:  # who may write everywhere, unless it is taken from him
        os.chown(theirs, 1, 1)
        drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [sys.executable, "-m", "machnet.cli.run", f"--nic=link:{tmp_path}/x", "--ip=10.0.0.2"]
    done = subprocess.run(
        [*drop, *command, f"--socket={theirs}/ctrl.sock"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = "Permission denied: run as root, or give --socket PATH where this user may write"
    assert said in done.stderr
