# SPDX-License-Identifier: MIT
"""What an operator sees of a running sidecar: ss, stat, top, capture, metrics."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sidecar import SIDECAR_IP, Sidecar, tap_sidecar

import machnet
from machnet.channel import Channel
from machnet.cli.capture import Merger
from machnet.sidecar.asking import Asking
from machnet.sidecar.log import BURST_LINES, Log
from machnet.sim import KernelHost

PORT = 888
TIMEOUT_S = 60.0


class Scene:
    """A sidecar on a TAP with an application and a client of the kernel."""

    def __init__(self, sidecar: Sidecar, host: KernelHost, channel: Channel) -> None:
        self.sidecar, self.channel = sidecar, channel
        self.client = host.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.client.settimeout(TIMEOUT_S)
        self.client.connect((SIDECAR_IP, PORT))
        self.talk()

    def talk(self, times: int = 1) -> None:
        """A message there and back."""
        for _ in range(times):
            self.client.sendall(b"\0\0\0\4ping")
            message = self.channel.recv(timeout=TIMEOUT_S)
            self.channel.send(message.flow, b"pong")
            assert self.client.recv(8, socket.MSG_WAITALL) == b"\0\0\0\4pong"

    def command(self, name: str, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in this process: most of the time of one is its start."""
        main = importlib.import_module(f"machnet.cli.{name}").main
        out, err, status = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main([f"--socket={self.sidecar.socket}", *args], prog_name=f"machnet {name}")
            except SystemExit as end:
                status = int(end.code or 0)
        return subprocess.CompletedProcess([name, *args], status, out.getvalue(), err.getvalue())

    def start(self, *args: str, **options: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command_line(self.sidecar.socket, *args),
            text=True,
            cwd=Path(machnet.__file__).resolve().parent.parent,
            **options,  # type: ignore[call-overload]
        )


def command_line(path: str, name: str, *args: str) -> list[str]:
    return [sys.executable, "-m", f"machnet.cli.{name}", f"--socket={path}", *args]


@contextlib.contextmanager
def open_scene(engines: int) -> Iterator[Scene]:
    reason = KernelHost.tap_available()
    if reason is not None:
        pytest.skip(reason)
    with contextlib.ExitStack() as cleanup:
        host = cleanup.enter_context(KernelHost("sidecar"))
        args = (f"--engine_threads={engines}", "--metrics=127.0.0.1:0")
        sidecar = cleanup.enter_context(tap_sidecar(host, *args))
        channel = cleanup.enter_context(machnet.attach(sidecar.socket, name="my app"))
        channel.listen(SIDECAR_IP, PORT, protocol="tcp")
        scene = Scene(sidecar, host, channel)
        cleanup.enter_context(scene.client)
        yield scene


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with open_scene(1) as scene:
        yield scene


def test_ss_shows_connections_and_whose_they_are(scene: Scene) -> None:
    result = scene.command("ss")
    assert (result.returncode, result.stderr) == (0, "")
    title, row = result.stdout.splitlines()
    assert title.split() == ["Proto", "State", "Recv-Q", "Send-Q", "Local", "Peer", "Application"]
    assert row.split()[:5] == ["tcp", "ESTABLISHED", "0", "0", f"{SIDECAR_IP}:{PORT}"]
    assert f"my app,pid={os.getpid()},channel=" in row


def test_ss_has_times_and_windows_on_request(scene: Scene) -> None:
    lines = scene.command("ss", "-i").stdout.splitlines()
    words = dict(word.split(":", 1) for word in lines[2].split() if ":" in word)
    assert words["mss"] == "1448"
    assert words["rto"].endswith("ms")
    assert int(words["cwnd"]) >= 1448
    assert words["nic"].startswith("tap:mn0")


def test_ss_picks(scene: Scene) -> None:
    rows = scene.command("ss", "--all", "--json", f"--pid={os.getpid()}").stdout
    assert {row["name"] for row in json.loads(rows)} == {"my app"}
    listening = scene.command("ss", "-l").stdout.splitlines()
    assert {line.split()[1] for line in listening[1:]} == {"LISTEN"}
    assert len(scene.command("ss", "--state=established").stdout.splitlines()) == 2
    assert len(scene.command("ss", "--protocol=udp").stdout.splitlines()) == 1
    assert json.loads(scene.command("ss", "--json", "--pid=1").stdout) == []


def test_stat_counts_what_goes_through(scene: Scene) -> None:
    before = json.loads(scene.command("stat", "--json").stdout)
    scene.talk(5)
    after = json.loads(scene.command("stat", "--json").stdout)

    def messages(answer: dict) -> int:
        return sum(row["stats"]["msgs_delivered"] for row in answer["engines"])

    assert messages(after) - messages(before) == 5
    assert after["controller"]["channels"] == 1
    lines = dict(line.split() for line in scene.command("stat").stdout.splitlines())
    assert int(lines["msgs_delivered"]) == messages(after)
    assert "drop_ip_csum" not in lines
    assert "drop_ip_csum" in scene.command("stat", "--all").stdout


def test_stat_goes_on_in_intervals(scene: Scene) -> None:
    with scene.start("stat", "--interval=0.2", "--json", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the first interval began before
        scene.talk(3)
        counted = 0
        while counted < 3:
            row = json.loads(process.stdout.readline())
            assert row["seconds"] > 0.1
            counted += row["msgs_delivered"]
            assert row["controller_channels"] == 1  # a level, not a change
        assert counted == 3
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130
        rest = process.stdout.read()
        assert "Traceback" not in rest


def test_stat_of_an_engine_that_is_not_there_is_refused(scene: Scene) -> None:
    result = scene.command("stat", "--engine=9")
    assert result.returncode == 2
    assert "there is no engine 9" in result.stderr
    assert scene.command("stat", "--count=1").returncode == 2


def test_what_an_application_calls_itself_is_shown_and_not_obeyed(scene: Scene) -> None:
    with machnet.attach(scene.sidecar.socket, name="a\n\x1b[2J[/b]") as other:
        other.listen(SIDECAR_IP, PORT + 1, protocol="tcp")
        (row,) = [
            line
            for line in scene.command("ss", "-l").stdout.splitlines()
            if f"{SIDECAR_IP}:{PORT + 1}" in line
        ]
        assert f"  a\\n\\x1b[2J[/b],pid={os.getpid()}," in row
        result = scene.command("top", "--count=1")
    assert (result.returncode, result.stderr) == (0, "")
    assert "a\\n\\x1b[2J[/b] " in result.stdout
    assert "\x1b" not in result.stdout


def test_top_without_a_terminal_prints_pictures(scene: Scene) -> None:
    result = scene.command("top", "--count=2", "--interval=0.1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Applications") == 2
    assert "my app" in result.stdout
    assert f"pid {scene.sidecar.pid}" in result.stdout


def test_top_on_a_terminal_ends_by_q_and_leaves_it_as_it_was(scene: Scene) -> None:
    import termios

    near, far = pty.openpty()
    try:
        before = termios.tcgetattr(far)
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        process = scene.start("top", stdin=far, stdout=far, stderr=far, env=env)
        seen = b""
        while b"my app" not in seen:
            assert select.select([near], [], [], TIMEOUT_S)[0], seen
            seen += os.read(near, 65536)
        os.write(near, b"q")
        while process.poll() is None:
            if select.select([near], [], [], 0.05)[0]:
                os.read(near, 65536)
        assert process.wait() == 0
        assert termios.tcgetattr(far) == before
    finally:
        os.close(near)
        os.close(far)


# ---- capture ---------------------------------------------------------------------------------------


def frames(path: Path) -> list[bytes]:
    """The frames of a pcapng file, as another reader sees them."""
    from scapy.utils import RawPcapNgReader

    with RawPcapNgReader(str(path)) as reader:
        return [data for data, _ in reader]


def wait_until_recording(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    assert "recording" in process.stderr.readline()


def test_capture_records_a_number_of_frames(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    with scene.start("capture", "-w", str(path), "--count=6", stderr=subprocess.PIPE) as process:
        wait_until_recording(process)
        while process.poll() is None:
            scene.talk()
        assert process.stderr is not None
        assert "6 frames" in process.stderr.read()
        assert process.returncode == 0
    found = frames(path)
    assert len(found) == 6
    assert any(b"ping" in frame for frame in found)
    assert any(b"pong" in frame for frame in found)
    scene.talk(3)  # it goes on as before


def test_capture_ends_by_ctrl_c_with_all_that_came(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    with scene.start("capture", "-w", str(path), stderr=subprocess.PIPE) as process:
        wait_until_recording(process)
        scene.talk(20)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 0
    found = frames(path)
    # Each engine records what it sees: a frame that is handed over is there twice.
    assert sum(b"pong" in frame for frame in found) >= 20


def test_capture_goes_to_standard_output_and_one_nic_can_be_chosen(scene: Scene) -> None:
    args = ("-w", "-", "--seconds=0.2", "--snaplen=60", "--nic=tap:mn0")
    result = subprocess.run(
        command_line(scene.sidecar.socket, "capture", *args),
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    kind, length, magic = struct.unpack_from("=III", result.stdout)
    assert (kind, magic) == (0x0A0D0D0A, 0x1A2B3C4D)
    assert length > 0


def test_capture_of_a_nic_that_is_not_there_is_refused(scene: Scene) -> None:
    result = scene.command("capture", "-w", "/dev/null", "--nic=tap:zz")
    assert result.returncode == 1
    assert "there is no NIC 'tap:zz', but tap:mn0" in result.stderr


def test_a_second_capture_at_the_same_time_is_refused(scene: Scene) -> None:
    with Asking(scene.sidecar.socket, "one") as one, Asking(scene.sidecar.socket, "two") as two:
        _, fds = one.ask_fds("capture")
        with pytest.raises(OSError, match="busy"):
            two.ask("capture")
        for fd in fds:
            os.close(fd)
        scene.talk()  # nobody reads: it ends by itself
        one.close()
        for _ in range(100):
            try:
                _, fds = two.ask_fds("capture")
            except OSError:
                continue
            break
        two.ask("capture_stop")
        for fd in fds:
            os.close(fd)


def test_who_does_not_read_a_capture_holds_up_nobody(scene: Scene) -> None:
    with Asking(scene.sidecar.socket, "lazy") as lazy:
        _, fds = lazy.ask_fds("capture")
        scene.talk(200)
        said = lazy.ask("capture_stop")
        assert said["frames"] >= 400
        for fd in fds:
            os.close(fd)
    scene.talk()


def block(kind: int, body: bytes) -> bytes:
    size = 12 + len(body)
    return struct.pack("=II", kind, size) + body + struct.pack("=I", size)


def test_streams_of_several_engines_become_one_file(tmp_path: Path) -> None:
    section, interface = block(0x0A0D0D0A, bytes(16)), block(1, bytes(8))
    packet = block(6, struct.pack("=I", 0) + bytes(16))
    path = tmp_path / "x"
    with path.open("wb") as file:
        merger = Merger(file, 3)
        for stream in (7, 9):
            data = section + interface
            for at in range(len(data)):  # torn anywhere
                merger.feed(stream, data[at : at + 1])
        merger.feed(9, packet + packet[:5])
        merger.feed(7, packet)
        merger.feed(9, packet[5:] + packet)
        assert merger.full
        with pytest.raises(ValueError, match="a block of 3 bytes"):
            merger.feed(7, struct.pack("=III", 6, 3, 0))

    def of(number: int) -> bytes:
        return block(6, struct.pack("=I", number) + bytes(16))

    assert path.read_bytes() == section + interface * 2 + of(1) + of(0) + of(1)


def test_two_engines_are_seen_as_two_and_recorded_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    with open_scene(2) as scene:
        rows = json.loads(scene.command("ss", "--all", "--json").stdout)
        assert {row["engine"] for row in rows if row["state"] == "LISTEN"} == {0, 1}
        assert {row["name"] for row in rows} == {"my app"}
        assert len(json.loads(scene.command("stat", "--json").stdout)["engines"]) == 2
        with scene.start("capture", "-w", str(path), "--count=6", stderr=subprocess.PIPE) as it:
            wait_until_recording(it)
            while it.poll() is None:
                scene.talk()
            assert it.returncode == 0
    assert len(frames(path)) == 6
    # One section, and an interface for each engine.
    assert path.read_bytes().count(struct.pack("=I", 0x1A2B3C4D)) == 1
    assert path.read_bytes().count(b"tap:mn0#") == 2


# ---- metrics, errors, log --------------------------------------------------------------------------


def samples(text: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_gets_every_counter(scene: Scene) -> None:
    scene.talk()
    said = scene.sidecar.wait_log(" metrics ")
    address = said.partition("address=")[2].split()[0]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT_S) as response:
        found = samples(response.read().decode())
    assert {f"machnet_{name}_total" for name in machnet.Stack.stat_docs()} <= found.keys()
    assert found["machnet_controller_channels"] == 1
    assert found["machnet_channel_bytes"] > 1 << 20
    with Asking(scene.sidecar.socket, "test") as asking:
        assert samples(asking.ask("metrics")).keys() == found.keys()


def test_metrics_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    with Sidecar(f"link:{tmp_path}/cable", SIDECAR_IP, f"--metrics=unix:{path}") as sidecar:
        for _ in range(2):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(TIMEOUT_S)
                sock.connect(str(path))
                sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                answer = b""
                while data := sock.recv(65536):
                    answer += data
            assert answer.startswith(b"HTTP/1.0 200 OK")
            assert b"machnet_rx_frames_total{" in answer
        sidecar.stop()
        assert not path.exists()


@pytest.mark.parametrize("name", ["ss", "stat", "top", "capture"])
def test_a_command_without_a_sidecar_says_so(tmp_path: Path, name: str) -> None:
    args = ["-w", str(tmp_path / "file")] if name == "capture" else []
    result = subprocess.run(
        command_line(f"{tmp_path}/none", name, *args),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == (
        f"machnet {name}: {tmp_path}/none: there is no sidecar on this socket\n"
    )
    assert not (tmp_path / "file").exists()


class Lines(list):
    """A stream that keeps what is written."""

    def write(self, text: str) -> None:
        self.append(text)

    def flush(self) -> None:
        pass


def test_the_log_is_a_line_for_each_event() -> None:
    lines = Lines()
    Log("info", "text", lines).warning("what happened", pid=1, name='a "b"\n', path="/x/y")
    stamp, *words = lines[0].split(" ", 2)
    assert stamp.endswith("Z")
    assert words == ["warning", 'what happened pid=1 name="a \\"b\\"\\n" path=/x/y\n']


def test_the_log_as_json_is_an_object_a_line() -> None:
    lines = Lines()
    Log("debug", "json", lines).debug("x", name="\n", number=3)
    record = json.loads(lines[0])
    assert record.pop("time").endswith("Z")
    assert record == {"level": "debug", "event": "x", "name": "\n", "number": 3}


def test_what_comes_too_often_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines = Lines()
    log = Log("info", "text", lines)
    for _ in range(BURST_LINES + 30):
        log.info("flood")
    assert len(lines) == BURST_LINES
    log.info("other")
    log.debug("below the level")
    assert lines[-1].endswith(" info other\n")
    for _ in range(BURST_LINES + 5):
        log.error("never left out")
    now[0] += 1
    log.info("flood")
    assert lines[-1].endswith(" info flood left_out=30\n")
    assert len(lines) == 2 * BURST_LINES + 7
