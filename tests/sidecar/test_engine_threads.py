# SPDX-License-Identifier: MIT
"""A sidecar with several engines on one address: its applications, and Linux as their peer."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from sidecar import KERNEL_IP, SIDECAR_IP, Sidecar

import machnet
from machnet._native import lib
from machnet.sim.kernel_host import KernelHost

PATIENCE_S = 60.0 if lib.mn_build_sanitized() else 20.0
ENGINES = 2


@pytest.fixture
def host() -> Iterator[KernelHost]:
    if reason := KernelHost.tap_available():
        pytest.skip(reason)
    with KernelHost("engine-threads", ipv6=False) as host:
        yield host


@pytest.fixture(params=[ENGINES, 1], ids=["two queues", "one queue"])
def sidecar(request: pytest.FixtureRequest, host: KernelHost, tmp_path: Path) -> Iterator[Sidecar]:
    fds = host.open_tap_queues("mn0", request.param, kernel_ip=f"{KERNEL_IP}/24")
    nic = {"ip": SIDECAR_IP, "engine_threads": ENGINES, "nic": f"tap:fd={','.join(map(str, fds))}"}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"machnet_config": {"02:00:00:00:00:02": nic}}))
    try:
        with Sidecar(None, SIDECAR_IP, f"--config={config}", pass_fds=fds) as sidecar:
            yield sidecar
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_applications_of_one_sidecar_reach_each_other(sidecar: Sidecar, protocol: str) -> None:
    with (
        machnet.attach(sidecar.socket, name="server") as server,
        machnet.attach(sidecar.socket, name="client") as client,
    ):
        server.listen(SIDECAR_IP, 888, protocol)
        # The lanes take turns, so that every engine has connections.
        flows = [
            client.connect(SIDECAR_IP, SIDECAR_IP, 888, protocol, timeout=PATIENCE_S)
            for _ in range(2 * ENGINES)
        ]
        for number, flow in enumerate(flows):
            client.send(flow, bytes([number]) * 5000, timeout=PATIENCE_S)
            message = server.recv(timeout=PATIENCE_S)
            assert message.data == bytes([number]) * 5000
            server.send(message.flow, b"answer", timeout=PATIENCE_S)
            answer = client.recv(timeout=PATIENCE_S)
            assert answer.data == b"answer"
            assert answer.flow == flow


def test_linux_and_the_sidecar_reach_each_other(host: KernelHost, sidecar: Sidecar) -> None:
    with (
        machnet.attach(sidecar.socket) as channel,
        host.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
    ):
        channel.listen(SIDECAR_IP, 888, "tcp")
        server.settimeout(PATIENCE_S)
        server.bind((KERNEL_IP, 80))
        server.listen(8)
        for number in range(6):
            with host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.settimeout(PATIENCE_S)
                sock.connect((SIDECAR_IP, 888))
                sock.sendall(struct.pack("!I", 5) + b"hello")
                message = channel.recv(timeout=PATIENCE_S)
                assert message.data == b"hello"
                channel.send(message.flow, b"there", timeout=PATIENCE_S)
                assert sock.recv(9, socket.MSG_WAITALL) == struct.pack("!I", 5) + b"there"
            flow = channel.connect(SIDECAR_IP, KERNEL_IP, 80, "tcp", timeout=PATIENCE_S)
            channel.send(flow, bytes([number]), timeout=PATIENCE_S)
            sock, _ = server.accept()
            with sock:
                sock.settimeout(PATIENCE_S)
                assert sock.recv(5, socket.MSG_WAITALL) == struct.pack("!I", 1) + bytes([number])
