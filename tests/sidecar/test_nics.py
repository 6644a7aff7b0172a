# SPDX-License-Identifier: MIT
"""Sidecars with several NICs, with faults around one, and with applications that talk to each other."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from sidecar import Sidecar, joined_sidecars

import machnet
from machnet.sidecar.asking import Asking

PORT = 888
TIMEOUT_S = 60.0
MACS = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")


def test_a_channel_reaches_every_nic_and_each_address_has_its_own(tmp_path: Path) -> None:
    nics = {mac: {"ip": f"10.0.{i}.2", "nic": f"link:{tmp_path}/{i}"} for i, mac in enumerate(MACS)}
    file = tmp_path / "machnet.json"
    file.write_text(json.dumps({"machnet_config": nics}))
    with (
        Sidecar(None, "10.0.0.2", f"--config={file}") as sidecar,
        machnet.Stack(f"link:{tmp_path}/0", ip="10.0.0.1/24") as first,
        machnet.Stack(f"link:{tmp_path}/1", ip="10.0.1.1/24") as second,
        machnet.attach(sidecar.socket, name="both") as channel,
    ):
        for i, stack in enumerate((first, second)):
            peer = stack.attach()
            peer.listen(f"10.0.{i}.1", PORT, protocol="tcp")
            ours, theirs = f"10.0.{i}.2", f"10.0.{i}.1"
            flow = channel.connect(ours, theirs, PORT, protocol="tcp", timeout=TIMEOUT_S)
            channel.send(flow, b"question")
            message = peer.recv(timeout=TIMEOUT_S)
            peer.send(message.flow, b"answer")
            assert channel.recv(timeout=TIMEOUT_S).data == b"answer"
        with Asking(sidecar.socket, "test") as asking:
            rows = asking.ask("ss")
            assert {(row["nic"], row["local"][0], row["name"]) for row in rows} == {
                (f"link:{tmp_path}/0", "10.0.0.2", "both"),
                (f"link:{tmp_path}/1", "10.0.1.2", "both"),
            }
            assert [nic["ip"] for nic in asking.ask("info")["nics"]] == [
                "10.0.0.2/24",
                "10.0.1.2/24",
            ]
            _, fds = asking.ask_fds("capture", nic=f"link:{tmp_path}/1")
            assert len(fds) == 1  # one of the two
            os.close(fds[0])


def test_two_applications_of_one_sidecar_reach_each_other(tmp_path: Path) -> None:
    with (
        Sidecar(f"link:{tmp_path}/cable", "10.0.0.2") as sidecar,
        machnet.attach(sidecar.socket) as server,
        machnet.attach(sidecar.socket) as client,
    ):
        server.listen("10.0.0.2", PORT, protocol="tcp")
        flow = client.connect("10.0.0.2", "10.0.0.2", PORT, protocol="tcp", timeout=TIMEOUT_S)
        client.send(flow, bytes(range(256)))
        assert server.recv(timeout=TIMEOUT_S).data == bytes(range(256))
        try:
            client.listen("10.0.0.2", PORT, protocol="tcp")
        except OSError as error:
            assert "in use" in str(error)  # noqa: PT017 - and nothing else is raised
        else:
            raise AssertionError("two applications listen on one port")


def test_faults_around_the_nic_are_survived_and_recorded_inside(tmp_path: Path) -> None:
    """What is lost outside is in a capture all the same, sent twice."""
    with (
        Sidecar(f"link:{tmp_path}/cable?loss=10%&seed=3", "10.0.0.2") as sidecar,
        machnet.Stack(f"link:{tmp_path}/cable", ip="10.0.0.1/24") as stack,
        machnet.attach(sidecar.socket) as channel,
        Asking(sidecar.socket, "test") as asking,
    ):
        peer = stack.attach()
        peer.listen("10.0.0.1", PORT, protocol="tcp")
        flow = channel.connect("10.0.0.2", "10.0.0.1", PORT, protocol="tcp", timeout=TIMEOUT_S)
        _, fds = asking.ask_fds("capture")
        for number in range(20):
            channel.send(flow, bytes([number]) * 1000, timeout=TIMEOUT_S)
        for number in range(20):
            assert peer.recv(timeout=TIMEOUT_S).data == bytes([number]) * 1000
        end = time.monotonic() + TIMEOUT_S
        while not asking.ask("stat")["engines"][0]["stats"]["tcp_retransmits"]:
            assert time.monotonic() < end
        said = asking.ask("capture_stop")
        assert said["frames"] > 20
        assert said["dropped"] == 0
        os.close(fds[0])


def test_joined_sidecars_carry_messages_of_their_applications() -> None:
    with (
        joined_sidecars() as (left, right),
        machnet.attach(left.socket) as client,
        machnet.attach(right.socket) as server,
    ):
        for protocol in ("udp", "tcp"):
            server.listen(right.ip, PORT, protocol=protocol)
            flow = client.connect(left.ip, right.ip, PORT, protocol=protocol, timeout=TIMEOUT_S)
            for size in (1, 64, 100_000):
                client.send(flow, b"x" * size, timeout=TIMEOUT_S)
                assert len(server.recv(timeout=TIMEOUT_S).data) == size
        with Asking(left.socket, "test") as asking:
            found = {(row["protocol"], row["state"]) for row in asking.ask("ss")}
            assert found == {("udp", "ESTABLISHED"), ("tcp", "ESTABLISHED")}
