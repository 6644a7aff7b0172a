# SPDX-License-Identifier: MIT
"""``msg_gen`` on a TAP: its server and its client, against the kernel's TCP on the other end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from gen_lab import OUR_IP, PORT, Lab, open_lab, to_kernel, to_machnet
from tcp_tool import (
    KIB,
    MIB,
    TIMEOUT_S,
    Tool,
    frame,
    over_the_limit,
    payload,
    receive_message,
    reset,
    reset_in_a_message,
    too_short,
    torn,
    torn_prefix,
)

from machnet._native import lib
from machnet.sim import KernelHost

RATES = r"TX/RX \(msg/sec, Gbps\): \(\d+\.\dK/\d+\.\dK, \d+\.\d{3}/\d+\.\d{3}\)"
RTT = r"\. RTT \(p50/99/99\.9 us\): \d+\.\d/\d+\.\d/\d+\.\d"
SANITIZED = bool(lib.mn_build_sanitized())

both_engines = pytest.mark.parametrize("engine", ["inline", "thread"])


@pytest.fixture(scope="module")
def host() -> Iterator[KernelHost]:
    if reason := KernelHost.tap_available():
        pytest.skip(reason)
    with KernelHost("msg-gen", ipv6=False) as host:
        yield host


@pytest.fixture
def lab(host) -> Iterator[Lab]:
    with open_lab(host) as lab:
        yield lab


@pytest.fixture
def server(lab) -> Tool:
    """A server with 64-byte replies that checks what comes."""
    process = lab.machnet("--verify")
    process.listening_port()
    return process


# --- the guide ---------------------------------------------------------------------------------


def test_server_says_what_the_guide_shows(lab):
    process = lab.machnet("--local_port", "888", "--msg_size", "64")
    process.listening_port()
    assert process.lines["out"] == [
        "Using TCP transport",
        "Starting in server mode, response size 64",
        "[LISTENING] [10.0.0.2:888]",
    ]
    process.signal()
    code, _, err = process.end()
    assert (code, err) == (0, "")


# As a user would write it from the guide: blocking calls, the length packed, MSG_WAITALL.
PLAIN_CLIENT = """
import socket, struct, sys

sock = socket.create_connection((sys.argv[1], 888))
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
size, data = int(sys.argv[2]), bytes(int(sys.argv[2]))
for _ in range(1000):
    sock.sendall(struct.pack(">I", size) + data)
    (length,) = struct.unpack(">I", sock.recv(4, socket.MSG_WAITALL))
    reply = sock.recv(length, socket.MSG_WAITALL)
    assert len(reply) == length == 64, (len(reply), length)
    assert reply == bytes(8) + bytes(range(8, 64)), reply
print("all right")
"""


@both_engines
@pytest.mark.parametrize("size", [64, 1000])
def test_a_plain_python_client(lab, engine, size):
    lab.machnet(f"--engine={engine}").listening_port()
    client = [sys.executable, "-c", PLAIN_CLIENT, OUR_IP, str(size)]
    assert lab.host.run(client, timeout=TIMEOUT_S).stdout == "all right\n"


# --- every message comes back, both ways -------------------------------------------------------

SHAPES = [(9, 1, 3000), (64, 8, 20_000), (64, 300, 20_000), (1024, 32, 10_000), (3000, 8, 3000),
          (64 * KIB, 4, 200), (MIB, 3, 25), (8 * MIB, 2, 5)]  # fmt: skip


def check_pair(client: Tool, server: Tool, count: int) -> None:
    code, out, err = client.end()
    assert err.splitlines()[-1] == "[CLIENT] Connected."
    final = json.loads(out.splitlines()[-1])
    assert (code, final["ok"], final["errors"], final["ended"]) == (0, True, 0, "msg_nr")
    assert final["tx_msgs"] == final["rx_msgs"] == final["latency_samples"] == count
    server.signal()
    code, out, _ = server.end()
    last = json.loads(out.splitlines()[-1])
    assert (code, last["errors"], last["ended"], last["role"]) == (0, 0, "signal", "server")
    assert last["tx_msgs"] == last["rx_msgs"] == count
    for name in ("tx_bytes", "rx_bytes"):
        assert last[name] == final[name] == count * final["parameters"]["msg_size_bytes"]


@both_engines
@pytest.mark.parametrize(("size", "window", "count"), SHAPES)
def test_kernel_client_and_machnet_server(lab, engine, size, window, count):
    count = count // 10 + 1 if SANITIZED else count
    common = [f"--msg_size={size}", "--verify", "--json"]
    server = lab.machnet(*common, f"--engine={engine}")
    server.listening_port("err")
    flags = to_machnet(f"--msg_window={window}", f"--msg_nr={count}")
    check_pair(lab.kernel(*common, *flags), server, count)


@both_engines
@pytest.mark.parametrize(("size", "window", "count"), SHAPES)
def test_machnet_client_and_kernel_server(lab, engine, size, window, count):
    count = count // 10 + 1 if SANITIZED else count
    common = [f"--msg_size={size}", "--verify", "--json"]
    server = lab.kernel(*common)
    server.listening_port("err")
    flags = to_kernel(f"--msg_window={window}", f"--msg_nr={count}", f"--engine={engine}")
    check_pair(lab.machnet(*common, *flags), server, count)


@both_engines
def test_busy_polling(lab, engine):
    lab.machnet("--poll=busy", f"--engine={engine}").listening_port()
    client = lab.kernel(*to_machnet("--msg_nr=200", "--msg_window=32", "--verify"))
    code, out, _ = client.end()
    assert code == 0
    assert "Messages sent/received: 200/200" in out


def test_several_clients_at_once(lab, server):
    clients = [lab.kernel(*to_machnet("--msg_nr=3000", "--verify")) for _ in range(5)]
    for client in clients:
        code, out, _ = client.end()
        assert code == 0
        assert "Messages sent/received: 3000/3000" in out


def test_server_holds_many_connections_at_once(lab, server):
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(lab.connect()) for _ in range(100)]
        for turn in range(2):
            for index, sock in enumerate(socks):
                sock.sendall(frame(1000 * turn + index))
            for index, sock in enumerate(socks):
                assert receive_message(sock) == payload(1000 * turn + index, 64)


@pytest.mark.parametrize("size", [8, 9, 1024, MIB])
def test_server_takes_any_size_and_answers_in_its_own(lab, size):
    lab.machnet("--verify", "--msg_size=100").listening_port()
    with lab.connect() as sock:
        for slot in (0, 7, 2**64 - 1):
            sock.sendall(frame(slot, size))
            assert receive_message(sock) == payload(slot, 100)


def test_messages_byte_by_byte(lab, server):
    with lab.connect() as sock:
        for byte in frame(3, 20) + frame(4, 8):
            sock.sendall(bytes([byte]))
        assert receive_message(sock) == payload(3, 64)
        assert receive_message(sock) == payload(4, 64)


def test_server_answers_everything_after_a_half_close_and_then_closes(lab, server):
    with lab.connect() as sock:
        sock.sendall(b"".join(frame(slot) for slot in range(500)))
        sock.shutdown(socket.SHUT_WR)
        for slot in range(500):
            assert receive_message(sock) == payload(slot, 64)
        assert sock.recv(1) == b""


# --- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@both_engines
def test_lines_each_second_and_a_summary_when_interrupted(lab, engine, number):
    server = lab.machnet("--verify", f"--engine={engine}")
    server.listening_port()
    client = lab.kernel(*to_machnet("--verify"))
    client.line(f"^{RATES}{RTT}$")
    server.line(f"^{RATES}$")
    client.signal(number)
    code, out, _ = client.end()
    assert code == 0
    sent = re.search(r"^Messages sent/received: (\d+)/\1$", out, re.MULTILINE)[1]
    server.signal(number)
    code, out, err = server.end()
    assert (code, err) == (0, "")
    assert re.search(r"^--- msg_gen server: summary of \d+\.\d{3} s ---$", out, re.MULTILINE)
    assert f"Messages sent/received: {sent}/{sent}" in out


@both_engines
def test_client_s_lines_and_its_summary_when_interrupted(lab, engine):
    lab.kernel().listening_port()
    client = lab.machnet(*to_kernel("--verify", f"--engine={engine}"))
    client.line(f"^{RATES}{RTT}$")
    client.signal()
    code, out, err = client.end()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:3] == [
        "Using TCP transport",
        "[CLIENT] Connecting to 10.0.0.1:888, msg_size=64, window=8",
        "[CLIENT] Connected.",
    ]
    assert re.search(r"^--- msg_gen client: summary of \d+\.\d{3} s ---$", out, re.MULTILINE)
    assert re.search(r"^RTT \(us\): min .*, p99\.99 .*, max .*, mean \d+\.\d$", out, re.MULTILINE)
    assert lines[-1] == "Wrong payloads: 0, unanswered: 0"


def test_duration_and_the_parameters_in_json(lab):
    lab.kernel().listening_port()
    flags = to_kernel("--json", "--duration=0.3", "--msg_window", "2", "--gateway=10.0.0.1")
    code, out, err = lab.machnet(*flags).end()
    assert code == 0
    assert "[CLIENT] Connected." in err
    final = json.loads(out.splitlines()[-1])
    assert (final["tool"], final["event"], final["ended"]) == ("msg_gen", "final", "duration")
    assert final["elapsed_s"] >= 0.3
    assert final["tx_msgs"] == final["rx_msgs"] > 0
    assert final["parameters"] == {
        "local_ip": "10.0.0.2/24",
        "local_port": 888,
        "remote_ip": "10.0.0.1",
        "remote_port": 888,
        "msg_size_bytes": 64,
        "msg_window": 2,
        "msg_nr": None,
        "rate_per_s": None,
        "socket": None,
        "verify": False,
        "duration_s": 0.3,
        "poll": "adaptive",
        "spin_us": 50,
        "protocol": "tcp",
        "nic": f"tap:fd={lab.fd}",
        "bind": False,
        "kernel_ip": None,
        "gateway": "10.0.0.1",
        "mtu_bytes": None,
        "engine": "inline",
        "engine_cpu": None,
        "pcap": None,
        "connect_timeout_s": 10.0,
        "json": True,
    }


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@both_engines
def test_an_idle_server_sleeps(lab, engine):
    process = lab.machnet(f"--engine={engine}")
    process.listening_port()
    with lab.connect() as sock:
        sock.sendall(frame(1))
        assert receive_message(sock) == payload(1, 64)
        pid = process.process.pid
        before, began = cpu_seconds(pid), time.monotonic()
        time.sleep(1)
        used = cpu_seconds(pid) - before
        # Spinning would be all of a CPU, or of two.
        assert used < 0.25 * (time.monotonic() - began)
        sock.sendall(frame(2))
        assert receive_message(sock) == payload(2, 64)


# --- peers that do wrong -----------------------------------------------------------------------


@both_engines
@pytest.mark.parametrize(
    ("misbehave", "message"),
    [
        (over_the_limit, r"10\.0\.0\.1:PORT: a message length is over 8388608 bytes"),
        (too_short, r"10\.0\.0\.1:PORT: message length 7 is not in 8 to 8388608 bytes"),
        (torn, r"10\.0\.0\.1:PORT: the connection ended in the middle of a message"),
        (torn_prefix, r"10\.0\.0\.1:PORT: the connection ended in the middle of a message"),
        (reset_in_a_message, r"10\.0\.0\.1:PORT: Connection reset by peer"),
    ],
)
def test_server_ends_only_the_flow_that_misbehaves(lab, engine, misbehave, message):
    process = lab.machnet("--verify", f"--engine={engine}")
    process.listening_port()
    with lab.connect() as good:
        good.sendall(frame(1))
        assert receive_message(good) == payload(1, 64)
        with lab.connect() as bad:
            its_port = bad.getsockname()[1]
            misbehave(bad)
        process.line(message.replace("PORT", str(its_port)), "err")
        good.sendall(frame(2))
        assert receive_message(good) == payload(2, 64)
    process.signal()
    code, out, err = process.end()
    assert code == 0
    assert "Faults of peers: 1" in out
    assert len(err.splitlines()) == 1


def test_server_notes_wrong_payloads_under_verify(lab, server):
    with lab.connect() as sock:
        for _ in range(3):
            sock.sendall(struct.pack(">I", 64) + bytes(64))
            assert receive_message(sock) == payload(0, 64)
        long = bytearray(frame(5, 5000))
        long[4 + 4500] ^= 0xFF  # in the third buffer of the message
        sock.sendall(long)
        assert receive_message(sock) == payload(5, 64)
    wrong = 4500 % 256
    server.line(f"byte 4500 of 5000 is {wrong ^ 0xFF}, not {wrong}", "err")
    server.signal()
    code, out, err = server.end()
    assert code == 0
    assert "byte 8 of 64 is 0, not 8" in err
    assert "Faults of peers: 4" in out


@both_engines
def test_server_serves_others_beside_a_peer_that_does_not_read(lab, engine):
    lab.machnet("--msg_size=4096", f"--engine={engine}").listening_port()
    asked = 6000
    with lab.connect() as deaf:
        # Their answers fill the windows and a share of the channel's buffers.
        deaf.sendall(b"".join(frame(slot, 8) for slot in range(asked)))
        with lab.connect() as other:
            for slot in range(20):
                other.sendall(frame(slot))
                assert receive_message(other) == payload(slot, 4096)
        for slot in range(asked):
            assert receive_message(deaf) == payload(slot, 4096)


def test_server_gives_up_a_peer_that_asks_on_and_on_and_does_not_read(lab, server):
    requests = b"".join(frame(slot, 8) for slot in range(1_000_000))
    with lab.connect() as deaf:
        with pytest.raises(ConnectionError):
            deaf.sendall(requests)
        port = server.line(r"10\.0\.0\.1:(\d+): cut off: it goes on asking", "err")[1]
        assert int(port) == deaf.getsockname()[1]
    with lab.connect() as other:
        other.sendall(frame(1))
        assert receive_message(other) == payload(1, 64)


# --- servers that do wrong ---------------------------------------------------------------------


def reply(*pieces: bytes):
    """A server that answers the first message with these bytes, then closes."""

    def handle(sock: socket.socket) -> None:
        receive_message(sock)
        sock.sendall(b"".join(pieces))
        # What is unread would turn the close into a reset.
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass

    return handle


def reset_after_a_message(sock: socket.socket) -> None:
    receive_message(sock)
    reset(sock)


@both_engines
@pytest.mark.parametrize(
    ("handle", "message"),
    [
        (reply(struct.pack(">I", 8 * MIB + 1)), "a message length is over 8388608 bytes"),
        (reply(struct.pack(">I", 7), bytes(7)), "message length 7 is not in 8 to 8388608 bytes"),
        (reply(frame(8)), "reply to window slot 8, which is not in flight"),
        (reply(frame(0) + frame(0) * 8), "reply to window slot 0, which is not in flight"),
        (reply(frame(0)), "closed the connection while replies were missing"),
        (reset_after_a_message, "Connection reset by peer"),
    ],
)
def test_client_ends_with_an_error_when_the_server_breaks_the_protocol(
    lab, engine, handle, message
):
    flags = ["--msg_window=8", "--msg_nr=9", "--json", f"--engine={engine}"]
    with lab.serve(handle):
        code, out, err = lab.machnet(*to_kernel(*flags)).end()
    assert code == 1
    assert message in err
    final = json.loads(out.splitlines()[-1])
    assert (final["ended"], final["ok"], final["exit_code"]) == ("failure", False, 1)
    assert message in final["error"]
    assert final["errors"] >= 1


@pytest.mark.parametrize(("size", "at"), [(32, 20), (5000, 4500), (9, 8)])
def test_client_catches_wrong_payloads_under_verify_and_goes_on(lab, size, at):
    def handle(sock: socket.socket) -> None:
        for index in range(3):
            message = bytearray(receive_message(sock))
            message[at] ^= index  # right, wrong, wrong
            sock.sendall(struct.pack(">I", len(message)) + message)

    flags = [f"--msg_size={size}", "--msg_nr=3", "--msg_window=1", "--verify", "--json"]
    with lab.serve(handle):
        code, out, err = lab.machnet(*to_kernel(*flags)).end()
    assert code == 1
    right = at % 256
    assert f"slot 0: byte {at} of {size} is {right ^ 1}, not {right}" in err
    final = json.loads(out.splitlines()[-1])
    assert (final["rx_msgs"], final["payload_faults"], final["errors"]) == (3, 2, 2)
    assert (final["ended"], final["ok"]) == ("msg_nr", False)


def test_client_ended_by_ctrl_c_with_replies_missing_fails(lab):
    def swallow(sock: socket.socket) -> None:
        while sock.recv(1 << 16):
            pass

    with lab.serve(swallow):
        process = lab.machnet(*to_kernel("--json"))
        process.line('"event": "interval"')
        process.signal()
        code, out, _ = process.end()
    final = json.loads(out.splitlines()[-1])
    assert code == 1
    assert (final["ended"], final["lost_msgs"], final["errors"]) == ("signal", 8, 8)


# --- what can't be started ---------------------------------------------------------------------


def test_no_server_is_one_clear_line(lab):
    code, _, err = lab.machnet(*to_kernel()).end()
    assert code == 1
    assert err == (
        "msg_gen: cannot connect to 10.0.0.1:888: Connection refused "
        "(is the server running, and is --remote_port its port?)"
    )


def test_nobody_at_the_address_is_one_clear_line(lab):
    code, _, err = lab.machnet("--remote_ip=10.0.0.77", "--connect_timeout=20").end()
    assert code == 1
    assert err.startswith("msg_gen: cannot connect to 10.0.0.77:888: No route to host (")


def test_another_network_without_a_gateway_is_one_clear_line(lab):
    code, _, err = lab.machnet("--remote_ip=10.7.0.1").end()
    assert code == 1
    assert err.startswith("msg_gen: cannot connect to 10.7.0.1:888: Network is unreachable (")
    assert "--gateway" in err


def test_ctrl_c_while_connecting(lab):
    with lab.listen() as full, contextlib.ExitStack() as stack:
        full.listen(0)
        # They fill the queue of connections that no one accepts: the next one waits.
        for _ in range(3):
            sock = stack.enter_context(lab.host.socket(socket.AF_INET, socket.SOCK_STREAM))
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        process = lab.machnet(*to_kernel())
        process.line("Connecting")
        process.signal()
        code, _, err = process.end()
    assert code == 1
    assert err.splitlines()[-1] == "msg_gen: interrupted"


def test_a_descriptor_that_is_no_tap(tmp_path, host, lab):
    code, _, err = lab.machnet("--nic=tap:fd=0").end()
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "descriptor 0" in err


def test_a_tap_made_by_name_with_an_address_for_the_kernel(host):
    command = [sys.executable, "-m", "machnet.cli.msg_gen", "--protocol=tcp", "--nic=tap:mine0"]
    addresses = ["--local_ip=10.8.0.2/16", "--kernel_ip=10.8.0.1/16", "--duration=30"]
    with host.popen([*command, *addresses], stdout=-1, stderr=-1, text=True) as process:
        for line in process.stdout:
            if "[LISTENING]" in line:
                break
        else:
            pytest.fail(process.stderr.read())
        client = [sys.executable, "-m", "machnet.cli.tcp_msg_gen", "--remote_ip=10.8.0.2"]
        told = host.run([*client, "--msg_nr=100", "--verify"], timeout=TIMEOUT_S).stdout
        assert "Messages sent/received: 100/100" in told
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (0, "")
    assert "Messages sent/received: 100/100" in out


def test_pcap_has_the_frames(lab, tmp_path):
    path = tmp_path / "frames.pcapng"
    server = lab.machnet(f"--pcap={path}")
    server.listening_port()
    with lab.connect() as sock:
        sock.sendall(frame(258))
        receive_message(sock)
    server.signal()
    assert server.end()[0] == 0
    assert path.read_bytes().count(payload(258, 64)) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Missing option '--local_ip'"),
        (["--local_ip=10.0.0.2", "--kernel_ip=10.0.0.1"], "--kernel_ip is for a NIC of msg_gen's"),
        (["--local_ip=10.0.0.2", "--rate=5"], "--rate is for a client"),
        (["--local_ip=10.0.0.2", "--engine=thread"], "--engine is for a NIC of msg_gen's own"),
        (["--local_ip=10.0.0.2", "--nic=tap:mn0", "--socket=x"], "--socket is the sidecar's"),
        (["--local_ip=10.0.0.2", "--nic=link:x", "--kernel_ip=10.0.0.1"], "is for a TAP"),
        (["--local_ip=10.0.0.2", "--protocol=tcp", "--nic=tap:a/b"], "'tap:a/b'"),
        (["--local_ip=10.0.0.2/33"], "'10.0.0.2/33' is not an IPv4 address"),
        (["--local_ip=10.0.0.2", "--msg_size=8"], "from 9 to 8388608 bytes"),
        (["--local_ip=10.0.0.2", "--local_port=0"], "from 1 to 65535"),
        (
            ["--local_ip=10.0.0.2", "--protocol=tcp", "--nic=tap:fd=9", "--kernel_ip=10.0.0.1"],
            "--kernel_ip needs a TAP by name",
        ),
        (
            ["--local_ip=10.0.0.2", "--protocol=tcp", "--nic=tap:mn0", "--engine_cpu=0"],
            "--engine_cpu is for --engine thread",
        ),
    ],
)
def test_a_wrong_command_line_is_status_2(monkeypatch, args, message):
    from click.testing import CliRunner

    from machnet.cli.msg_gen import main

    monkeypatch.delenv("MACHNET_NIC", raising=False)
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 2
    assert message in result.output


def test_defaults_are_those_of_the_guide():
    from machnet.cli.msg_gen import main

    defaults = {param.name: param.default for param in main.params}
    assert (defaults["local_port"], defaults["remote_port"]) == (PORT, PORT)
    assert (defaults["protocol"], defaults["msg_size"]) == ("udp", 64)
    assert (defaults["msg_window"], defaults["verify"]) == (8, False)
