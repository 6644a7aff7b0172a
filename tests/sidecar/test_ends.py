# SPDX-License-Identifier: MIT
"""How a sidecar and its applications end, together and apart (attacks I4, I7)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sidecar import KERNEL_IP, SIDECAR_IP, Sidecar, tap_sidecar

import machnet
from machnet.sidecar.asking import Asking
from machnet.sim import KernelHost

PORT = 888
TIMEOUT_S = 60.0

#: Attaches, connects to the kernel, sends, says so, and waits for its end.
APPLICATION = """
import sys, time
import machnet
ch = machnet.attach(sys.argv[1], name=sys.argv[2])
flow = ch.connect("10.0.0.2", "10.0.0.1", int(sys.argv[3]), protocol="tcp", timeout=30)
ch.send(flow, sys.argv[2].encode())
print("sent", flush=True)
try:
    print(ch.recv(timeout=60).data.decode(), flush=True)
except OSError as error:
    print(type(error).__name__, flush=True)
    sys.exit(3)
sys.stdin.read()
"""


@pytest.fixture
def listener(host: KernelHost) -> Iterator[socket.socket]:
    """A listening socket of the kernel at the other end."""
    with host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        sock.bind(("0.0.0.0", 0))
        sock.listen()
        sock.settimeout(TIMEOUT_S)
        yield sock


class Application:
    """A process that has attached, connected and sent its name."""

    def __init__(self, sidecar: Sidecar, name: str, listener: socket.socket) -> None:
        port = str(listener.getsockname()[1])
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-c", APPLICATION, sidecar.socket, name, port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(machnet.__file__).resolve().parent.parent,
        )
        assert self.line() == "sent"
        self.peer, _ = listener.accept()
        self.peer.settimeout(TIMEOUT_S)
        size = 4 + len(name)
        assert self.peer.recv(size, socket.MSG_WAITALL)[4:] == name.encode()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def answer(self, data: bytes) -> None:
        self.peer.sendall(len(data).to_bytes(4, "big") + data)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.peer.close()


@contextlib.contextmanager
def application(sidecar: Sidecar, name: str, listener: socket.socket) -> Iterator[Application]:
    app = Application(sidecar, name, listener)
    try:
        yield app
    finally:
        app.close()


def owners(sidecar: Sidecar) -> set[str]:
    """The applications that have connections."""
    with Asking(sidecar.socket, "test") as asking:
        return {row["name"] for row in asking.ask("ss") if row["state"] == "ESTABLISHED"}


def wait_for_lanes(asking: Asking, wanted: int) -> None:
    end = time.monotonic() + TIMEOUT_S
    while (lanes := asking.ask("stat")["engines"][0]["usage"]["lanes"]) != wanted:
        assert time.monotonic() < end, f"{lanes} channels, not {wanted}"
        time.sleep(0.01)


def test_an_application_that_is_killed_takes_only_its_own_flows_with_it(
    host: KernelHost, listener: socket.socket
) -> None:
    with (
        tap_sidecar(host) as sidecar,
        application(sidecar, "victim", listener) as victim,
        application(sidecar, "other", listener) as other,
    ):
        assert owners(sidecar) == {"victim", "other"}
        victim.process.kill()
        assert victim.peer.recv(100) == b""  # its peer is told, in peace
        assert "name=victim" in sidecar.wait_log("application_gone")
        other.answer(b"still here")
        assert other.line() == "still here"
        assert owners(sidecar) == {"other"}
        victim.peer.close()  # until then the connection waits for its peer's end
        with Asking(sidecar.socket, "test") as asking:
            wait_for_lanes(asking, 1)
            (channel,) = asking.ask("channels")
            assert channel["name"] == "other"


def test_applications_hear_of_a_killed_sidecar_and_attach_to_the_next(
    host: KernelHost, listener: socket.socket, tmp_path: Path
) -> None:
    path = str(tmp_path / "ctrl.sock")
    fd = host.open_tap("mn0", kernel_ip=f"{KERNEL_IP}/24")
    nic, options = f"tap:fd={fd}", {"pass_fds": [fd], "socket": path}
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(os.close, fd)
        first = Sidecar(nic, f"{SIDECAR_IP}/24", **options)
        cleanup.callback(first.close)
        channel = machnet.attach(path, name="survivor")
        channel.listen(SIDECAR_IP, PORT, protocol="tcp")
        first.kill()
        with pytest.raises(BrokenPipeError):
            channel.recv(timeout=TIMEOUT_S)
        channel.close()
        with pytest.raises(ConnectionRefusedError):
            machnet.attach(path)
        second = Sidecar(nic, f"{SIDECAR_IP}/24", **options)
        cleanup.callback(second.close)
        with machnet.attach(path, name="survivor") as again:
            again.listen(SIDECAR_IP, PORT, protocol="tcp")
            with host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.settimeout(TIMEOUT_S)
                client.connect((SIDECAR_IP, PORT))
                client.sendall(b"\0\0\0\5hello")
                assert again.recv(timeout=TIMEOUT_S).data == b"hello"
        assert second.stop() == 0


def test_sigterm_sends_what_was_published_and_tells_applications_and_peers(
    host: KernelHost, listener: socket.socket
) -> None:
    with tap_sidecar(host) as sidecar, application(sidecar, "app", listener) as app:
        big = 8 << 20
        with machnet.attach(sidecar.socket) as channel:
            port = listener.getsockname()[1]
            flow = channel.connect(SIDECAR_IP, KERNEL_IP, port, protocol="tcp", timeout=TIMEOUT_S)
            peer, _ = listener.accept()
            channel.send(flow, bytes(big))
            sidecar.send_signal(signal.SIGTERM)
            sidecar.wait_log("draining")
            with peer:
                peer.settimeout(TIMEOUT_S)
                received = 0
                while data := peer.recv(1 << 20):
                    received += len(data)
                assert received == big + 4
            with pytest.raises(BrokenPipeError):
                channel.recv(timeout=TIMEOUT_S)
        assert app.peer.recv(1) == b""
        assert app.process.wait(TIMEOUT_S) == 3
        assert sidecar.wait() == 0
        assert "ended connections_left=0" in sidecar.log()
        assert not Path(sidecar.socket).exists()


def test_a_second_signal_ends_it_at_once(host: KernelHost, listener: socket.socket) -> None:
    with tap_sidecar(host, "--drain_ms=600000") as sidecar:
        channel = machnet.attach(sidecar.socket)
        port = listener.getsockname()[1]
        flow = channel.connect(SIDECAR_IP, KERNEL_IP, port, protocol="tcp", timeout=TIMEOUT_S)
        peer, _ = listener.accept()
        channel.send(flow, bytes(8 << 20))  # more than the peer's window takes: it would never end
        sidecar.send_signal(signal.SIGTERM)
        sidecar.wait_log("draining")
        assert sidecar.process.poll() is None
        sidecar.send_signal(signal.SIGTERM)
        assert sidecar.wait() == 128 + signal.SIGTERM
        assert "ended_at_once" in sidecar.log()
        peer.close()
        channel.close()


def test_a_drain_has_its_limit(host: KernelHost, listener: socket.socket) -> None:
    with tap_sidecar(host, "--drain_ms=300") as sidecar:
        channel = machnet.attach(sidecar.socket)
        port = listener.getsockname()[1]
        flow = channel.connect(SIDECAR_IP, KERNEL_IP, port, protocol="tcp", timeout=TIMEOUT_S)
        peer, _ = listener.accept()
        channel.send(flow, bytes(8 << 20))
        assert sidecar.stop() == 0
        peer.close()
        channel.close()


# ---- the service manager, and a new configuration --------------------------------------------------


class Manager:
    """A socket as a service manager has it."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(path)
        self.sock.settimeout(TIMEOUT_S)

    def told(self) -> dict[str, str]:
        lines = self.sock.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_manager_is_told_ready_and_stopping(tmp_path: Path, abstract: bool) -> None:
    path = f"@machnet-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    manager = Manager("\0" + path[1:] if abstract else path)
    with manager.sock:
        nic = f"link:{tmp_path}/cable"
        with Sidecar(nic, SIDECAR_IP, env={"NOTIFY_SOCKET": path}) as sidecar:
            told = manager.told()
            assert (told["READY"], told["MAINPID"]) == ("1", str(sidecar.pid))
            sidecar.stop()
            assert manager.told()["STOPPING"] == "1"


def write(file: Path, nic: Path, **more: object) -> None:
    entry = {"ip": SIDECAR_IP, "nic": f"link:{nic}", **more.pop("entry", {})}  # type: ignore[dict-item]
    config = {"machnet_config": {"02:00:00:00:00:01": entry}, "controller": more}
    file.write_text(json.dumps(config))


def test_sighup_applies_what_is_safe_and_names_what_is_not(tmp_path: Path) -> None:
    file, nic = tmp_path / "machnet.json", tmp_path / "cable"
    write(file, nic)
    manager = Manager(str(tmp_path / "notify"))
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    with manager.sock, Sidecar(None, SIDECAR_IP, f"--config={file}", env=env) as sidecar:
        manager.told()
        quotas = {"channels_max": 1}
        write(file, nic, quotas=quotas, log_level="debug", mode="0600", entry={"mtu": 9000})
        sidecar.send_signal(signal.SIGHUP)
        told = manager.told()
        assert told["RELOADING"] == "1"
        assert int(told["MONOTONIC_USEC"]) > 0
        assert manager.told()["READY"] == "1"
        said = sidecar.wait_log("needs_restart=")
        assert "machnet_config,controller.mode" in said
        with machnet.attach(sidecar.socket), pytest.raises(OSError, match="channels_max"):
            machnet.attach(sidecar.socket)
        sidecar.wait_log(" debug hello ")
        file.write_text("{")
        sidecar.send_signal(signal.SIGHUP)
        sidecar.wait_log("reload_failed")
        manager.told()
        assert "old one" in manager.told()["STATUS"]
        with Asking(sidecar.socket, "test") as asking:
            answer = asking.ask("reload")
            assert answer["ok"] is False
            assert "line 1, column 2" in answer["problems"][0]


def test_sighup_without_a_file_says_that_there_is_none(tmp_path: Path) -> None:
    with Sidecar(f"link:{tmp_path}/cable") as sidecar:
        sidecar.send_signal(signal.SIGHUP)
        assert "there is no configuration file" in sidecar.wait_log("reload")
        machnet.attach(sidecar.socket).close()
