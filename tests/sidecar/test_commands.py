# SPDX-License-Identifier: MIT
"""`msg_gen` by way of sidecars: every role is a process."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sidecar import KERNEL_IP, Sidecar, joined_sidecars, tap_sidecar
from tcp_tool import Tool, tools

from machnet.sim import KernelHost

MSG_GEN, TCP_MSG_GEN = "machnet.cli.msg_gen", "machnet.cli.tcp_msg_gen"
#: Both transports, where a test is the same for either.
PROTOCOLS = ("tcp", "udp")


@pytest.fixture
def start() -> Iterator[Callable[..., Tool]]:
    with tools() as starter:
        yield starter


@pytest.fixture
def pair() -> Iterator[tuple[Sidecar, Sidecar]]:
    with joined_sidecars("--drain_ms=200") as sidecars:
        yield sidecars


def at(sidecar: Sidecar, *args: str) -> list[str]:
    """Flags of a `msg_gen` that attaches to this sidecar."""
    return [f"--socket={sidecar.socket}", f"--local_ip={sidecar.ip}", "--verify", *args]


def final(tool: Tool, code: int = 0) -> dict[str, Any]:
    ended, out, err = tool.end()
    assert ended == code, err
    last: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert last["event"] == "final"
    return last


@pytest.mark.parametrize("protocol", PROTOCOLS)
class TestExperiment2:
    def test_two_sidecars_and_two_applications(
        self, pair: tuple[Sidecar, Sidecar], start: Callable[..., Tool], protocol: str
    ) -> None:
        near, far = pair
        server = start(*at(far, f"--protocol={protocol}"), module=MSG_GEN)
        server.listening_port()
        common = (f"--protocol={protocol}", f"--remote_ip={far.ip}")
        client = start(*at(near, *common, "--msg_nr=300", "--msg_size=2000"), module=MSG_GEN)
        code, out, err = client.end()
        assert (code, err) == (0, "")
        assert out.splitlines()[:3] == [
            f"Using {protocol.upper()} transport",
            f"[CLIENT] Connecting to {far.ip}:888, msg_size=2000, window=8",
            "[CLIENT] Connected.",
        ]
        assert "Messages sent/received: 300/300" in out
        server.signal()
        code, out, err = server.end()
        assert (code, err) == (0, "")
        assert out.splitlines()[:3] == [
            f"Using {protocol.upper()} transport",
            "Starting in server mode, response size 64",
            f"[LISTENING] [{far.ip}:888]",
        ]
        assert "Messages sent/received: 300/300" in out

    def test_large_messages_and_more_clients_than_one(
        self, pair: tuple[Sidecar, Sidecar], start: Callable[..., Tool], protocol: str
    ) -> None:
        near, far = pair
        flags = (f"--protocol={protocol}", "--msg_size=300000")
        server = start(*at(far, *flags), module=MSG_GEN)
        server.listening_port()
        flags += (f"--remote_ip={far.ip}", "--msg_nr=20", "--msg_window=3", "--json")
        clients = [start(*at(near, *flags), module=MSG_GEN) for _ in range(2)]
        for client in clients:
            end = final(client)
            assert (end["tx_msgs"], end["rx_msgs"], end["errors"]) == (20, 20, 0)
            assert end["rx_bytes"] == 20 * 300_000
        server.signal()
        code, out, _ = server.end()
        assert code == 0
        assert "Messages sent/received: 40/40" in out

    def test_two_applications_of_one_sidecar(
        self, pair: tuple[Sidecar, Sidecar], start: Callable[..., Tool], protocol: str
    ) -> None:
        far = pair[1]
        server = start(*at(far, f"--protocol={protocol}"), module=MSG_GEN)
        server.listening_port()
        flags = (f"--protocol={protocol}", f"--remote_ip={far.ip}", "--msg_nr=200", "--json")
        end = final(start(*at(far, *flags), module=MSG_GEN))
        assert (end["tx_msgs"], end["rx_msgs"], end["errors"]) == (200, 200, 0)

    def test_a_rate_is_kept_and_waiting_is_part_of_the_round_trip(
        self, pair: tuple[Sidecar, Sidecar], start: Callable[..., Tool], protocol: str
    ) -> None:
        near, far = pair
        server = start(*at(far, f"--protocol={protocol}"), module=MSG_GEN)
        server.listening_port()
        flags = (f"--protocol={protocol}", f"--remote_ip={far.ip}", "--rate=500", "--msg_nr=250")
        client = start(*at(near, *flags, "--msg_window=4", "--json"), module=MSG_GEN)
        client.line("Connected", "err")
        server.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED | os.WNOWAIT)
        assert signal.sigtimedwait([], 0.4) is None  # this is how long nobody answers
        server.signal(signal.SIGCONT)
        end = final(client)
        assert (end["tx_msgs"], end["rx_msgs"], end["errors"]) == (250, 250, 0)
        # The last one was due 498 ms after the first.
        assert end["elapsed_s"] >= 0.498
        assert end["parameters"]["rate_per_s"] == 500
        # Only four were on their way, but all that were due meanwhile waited.
        assert end["latency_us"]["max"] >= 300_000
        assert end["latency_us"]["p90"] >= 100_000

    def test_no_server(
        self, pair: tuple[Sidecar, Sidecar], start: Callable[..., Tool], protocol: str
    ) -> None:
        near, far = pair
        flags = (f"--protocol={protocol}", f"--remote_ip={far.ip}")
        code, _, err = start(*at(near, *flags), module=MSG_GEN).end()
        assert code == 1
        assert f"cannot connect to {far.ip}:888: Connection refused (is the server" in err


def test_a_server_on_several_engines(start: Callable[..., Tool]) -> None:
    with joined_sidecars("--engine_threads=3") as (near, far):
        server = start(*at(far, "--protocol=tcp"), module=MSG_GEN)
        server.listening_port()
        flags = ("--protocol=tcp", f"--remote_ip={far.ip}", "--msg_nr=100", "--json")
        clients = [start(*at(near, *flags), module=MSG_GEN) for _ in range(4)]
        for client in clients:
            end = final(client)
            assert (end["tx_msgs"], end["rx_msgs"], end["errors"]) == (100, 100, 0)
        server.signal()
        code, out, _ = server.end()
        assert code == 0
        assert "Messages sent/received: 400/400" in out


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_sidecar_that_dies_ends_the_run(
    pair: tuple[Sidecar, Sidecar], start: Callable[..., Tool], role: str
) -> None:
    near, far = pair
    server = start(*at(far, "--protocol=tcp"), module=MSG_GEN)
    server.listening_port()
    client = start(*at(near, "--protocol=tcp", f"--remote_ip={far.ip}"), module=MSG_GEN)
    client.line("TX/RX")
    dies, tool = (near, client) if role == "client" else (far, server)
    dies.kill()
    code, _, err = tool.end()
    assert code == 1
    assert "the sidecar has ended" in err


def test_there_is_no_sidecar(start: Callable[..., Tool], tmp_path: Any) -> None:
    path = tmp_path / "none.sock"
    code, _, err = start(f"--socket={path}", "--local_ip=10.0.0.1", module=MSG_GEN).end()
    assert code == 1
    assert "cannot attach: " in err
    assert str(path) in err


def test_an_address_that_the_sidecar_does_not_have(
    pair: tuple[Sidecar, Sidecar], start: Callable[..., Tool]
) -> None:
    flags = [f"--socket={pair[0].socket}", "--local_ip=10.0.0.9", "--protocol=tcp"]
    code, _, err = start(*flags, module=MSG_GEN).end()
    assert code == 1
    assert "(the sidecar has no engine with this --local_ip)" in err


class TestKernel:
    """Experiments 1 and 3: Linux is the other end."""

    @pytest.fixture
    def host(self) -> Iterator[KernelHost]:
        if reason := KernelHost.tap_available():
            pytest.skip(reason)
        with KernelHost("commands", ipv6=False) as host:
            yield host

    def test_experiment_1(self, host: KernelHost, start: Callable[..., Tool]) -> None:
        with tap_sidecar(host) as sidecar:
            server = start(*at(sidecar, "--protocol=tcp"), module=MSG_GEN)
            server.listening_port()
            flags = [f"--remote_ip={sidecar.ip}", "--msg_nr=500", "--verify", "--json"]
            end = final(start(*flags, module=TCP_MSG_GEN, popen=host.popen))
            assert (end["tx_msgs"], end["rx_msgs"], end["errors"]) == (500, 500, 0)
            server.signal(signal.SIGTERM)
            code, out, _ = server.end()
            assert code == 0
            assert "Messages sent/received: 500/500" in out

    def test_experiment_3(self, host: KernelHost, start: Callable[..., Tool]) -> None:
        with tap_sidecar(host) as sidecar:
            server = start("--verify", module=TCP_MSG_GEN, popen=host.popen)
            server.listening_port()
            flags = ["--protocol=tcp", f"--remote_ip={KERNEL_IP}", "--msg_nr=500", "--json"]
            end = final(start(*at(sidecar, *flags), module=MSG_GEN))
            assert (end["tx_msgs"], end["rx_msgs"], end["errors"]) == (500, 500, 0)
