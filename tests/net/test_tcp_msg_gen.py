# SPDX-License-Identifier: MIT
"""``tcp_msg_gen`` over loopback: its server against plain sockets, and both ends together."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tcp_tool import (
    KIB,
    MIB,
    TIMEOUT_S,
    Tool,
    client_args,
    connect,
    frame,
    over_the_limit,
    payload,
    receive_message,
    reset_in_a_message,
    too_short,
    tools,
    torn,
    torn_prefix,
)

RATES = r"TX/RX \(msg/sec, Gbps\): \(\d+\.\dK/\d+\.\dK, \d+\.\d{3}/\d+\.\d{3}\)"
RTT = r"\. RTT \(p50/99/99\.9 us\): \d+\.\d/\d+\.\d/\d+\.\d"


@pytest.fixture
def tool() -> Iterator[Callable[..., Tool]]:
    with tools() as start:
        yield start


@pytest.fixture
def server(tool) -> tuple[Tool, int]:
    """A server with 64-byte replies, and its port."""
    process = tool("--local_ip=127.0.0.1", "--local_port=0", "--msg_size=64", "--verify")
    return process, process.listening_port()


# --- the server and plain sockets --------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 9, 64, 1024, 64 * KIB, MIB, 8 * MIB])
def test_server_answers_a_plain_client_with_its_slot_and_the_pattern(server, size):
    with connect(server[1]) as sock:
        for slot in (0, 1, 2**64 - 1):
            sock.sendall(frame(slot, size))
            assert receive_message(sock) == payload(slot, 64)


def test_server_answers_the_zeros_of_the_guide_s_client_and_notes_them_under_verify(server):
    process, port = server
    with connect(port) as sock:
        for _ in range(3):
            sock.sendall(struct.pack(">I", 64) + bytes(64))
            assert receive_message(sock) == payload(0, 64)
    warning = process.line("wrong payload", "err")
    assert "byte 8 of 64 is 0, not 8" in warning.string
    process.signal()
    code, out, _ = process.end()
    assert code == 0
    assert "Faults of peers: 3" in out


@pytest.mark.parametrize("size", [8, 9, 1024, MIB])
def test_server_replies_have_its_own_size(tool, size):
    process = tool("-local_ip", "127.0.0.1", "-local_port", "0", f"--msg-size={size}")
    with connect(process.listening_port()) as sock:
        sock.sendall(frame(5) + frame(6))
        assert receive_message(sock) == payload(5, size)
        assert receive_message(sock) == payload(6, size)


def test_server_takes_messages_byte_by_byte(server):
    with connect(server[1]) as sock:
        for byte in frame(3, 20) + frame(4, 8):
            sock.sendall(bytes([byte]))
        assert receive_message(sock) == payload(3, 64)
        assert receive_message(sock) == payload(4, 64)


def test_server_answers_everything_after_a_half_close_and_then_closes(server):
    with connect(server[1]) as sock:
        sock.sendall(b"".join(frame(slot) for slot in range(500)))
        sock.shutdown(socket.SHUT_WR)
        for slot in range(500):
            assert receive_message(sock) == payload(slot, 64)
        assert sock.recv(1) == b""


def test_server_survives_a_peer_that_does_not_read(tool):
    """It stops reading, serves others, and goes on when the peer reads again."""
    process = tool("--local_ip=127.0.0.1", "--local_port=0", "--msg_size=4096")
    port = process.listening_port()
    stream = b"".join(frame(slot, 8) for slot in range(1000))
    with connect(port) as deaf:
        deaf.setblocking(False)
        sent = 0
        # Stopped for half a second: both directions are full. Were it only slow, the rest of the
        # test would still hold.
        while select.select([], [deaf], [], 0.5)[1]:
            with contextlib.suppress(BlockingIOError):
                sent += deaf.send(stream[sent % len(stream) :])
        with connect(port) as other:
            other.sendall(frame(77))
            assert receive_message(other) == payload(77, 4096)
        deaf.settimeout(TIMEOUT_S)
        complete = sent // 12
        assert complete > 1000
        for index in range(complete):
            assert receive_message(deaf)[:8] == struct.pack("<Q", index % 1000)


def test_server_holds_many_connections_at_once(server):
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(server[1])) for _ in range(200)]
        for turn in range(2):
            for index, sock in enumerate(socks):
                sock.sendall(frame(1000 * turn + index))
            for index, sock in enumerate(socks):
                assert receive_message(sock) == payload(1000 * turn + index, 64)


@pytest.mark.parametrize(
    ("misbehave", "message"),
    [
        (
            over_the_limit,
            r"127\.0\.0\.1:PORT: message length 1195725856 is not in 8 to 8388608 bytes",
        ),
        (too_short, r"127\.0\.0\.1:PORT: message length 7 is not in 8 to 8388608 bytes"),
        (torn, r"127\.0\.0\.1:PORT: .* in the middle of a message, 30 bytes into it"),
        (torn_prefix, r"127\.0\.0\.1:PORT: .* in the middle of a message, 3 bytes into it"),
        (reset_in_a_message, r"127\.0\.0\.1:PORT: Connection reset by peer"),
    ],
)
def test_server_closes_only_the_connection_that_misbehaves(server, misbehave, message):
    process, port = server
    with connect(port) as good:
        good.sendall(frame(1))
        assert receive_message(good) == payload(1, 64)
        with connect(port) as bad:
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


def test_server_does_not_flood_its_log(server):
    process, port = server
    for _ in range(200):
        with connect(port) as sock:
            over_the_limit(sock)
    process.signal(signal.SIGTERM)
    code, out, err = process.end()
    assert code == 0
    assert "Faults of peers: 200" in out
    assert "held back" in err
    assert len(err.splitlines()) < 100


def test_server_out_of_descriptors_says_so_and_goes_on_when_one_is_free(server):
    process, port = server
    pid = process.process.pid
    limit = len(list(Path(f"/proc/{pid}/fd").iterdir())) + 2
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
    with contextlib.ExitStack() as stack:
        served = [stack.enter_context(connect(port)) for _ in range(2)]
        for sock in served:
            sock.sendall(frame(1))
            assert receive_message(sock) == payload(1, 64)
        waiting = stack.enter_context(connect(port))
        waiting.sendall(frame(2))
        process.line("could not be accepted: Too many open files", "err")
        served[1].sendall(frame(3))
        assert receive_message(served[1]) == payload(3, 64)
        served[0].close()
        assert receive_message(waiting) == payload(2, 64)


# --- both ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 8, 32])
@pytest.mark.parametrize("size", [8, 9, 64, 1024, 64 * KIB, MIB])
def test_every_message_comes_back_right(tool, size, window):
    count = 5_003 if size <= 1024 else 203 if size < MIB else 37
    server = tool("--local_ip=127.0.0.1", "--local_port=0", f"--msg_size={size}", "--verify")
    shape = [f"--msg_size={size}", f"--msg_window={window}", f"--msg_nr={count}"]
    port = server.listening_port()
    code, out, err = tool(*client_args(port, *shape, "--verify", "--json")).end()
    final = json.loads(out.splitlines()[-1])
    assert (code, final["ok"], final["errors"]) == (0, True, 0), err
    assert final["tx_msgs"] == final["rx_msgs"] == final["latency_samples"] == count
    assert final["tx_bytes"] == final["rx_bytes"] == count * size
    server.signal()
    code, out, err = server.end()
    assert (code, err) == (0, "")
    assert f"Messages sent/received: {count}/{count}" in out


def test_busy_ends_and_the_largest_message(tool):
    shape = [f"--msg_size={8 * MIB}", "--poll=busy", "--verify"]
    server = tool("--local_ip=127.0.0.1", "--local_port=0", *shape)
    port = server.listening_port()
    code, out, err = tool(*client_args(port, *shape, "--msg_window=3", "--msg_nr=7")).end()
    assert (code, err) == (0, "")
    assert "Messages sent/received: 7/7" in out


def test_several_clients_at_once(tool, server):
    port = server[1]
    clients = [tool(*client_args(port, "--msg_nr=3000", "--verify")) for _ in range(6)]
    for client in clients:
        code, out, _ = client.end()
        assert code == 0
        assert "Messages sent/received: 3000/3000" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_client_prints_a_line_each_second_and_a_summary_when_interrupted(tool, server, number):
    process, port = server
    client = tool(*client_args(port, "--verify"))
    client.line(f"^{RATES}{RTT}$")
    client.signal(number)
    code, out, err = client.end()
    assert (code, err) == (0, "")
    assert re.search(r"^--- tcp_msg_gen client: summary of \d+\.\d{3} s ---$", out, re.MULTILINE)
    sent, received = re.search(r"^Messages sent/received: (\d+)/(\d+)$", out, re.MULTILINE).groups()
    assert sent == received
    assert int(sent) > 0
    assert re.search(r"^RTT \(us\): min .*, p99\.99 .*, max .*, mean \d+\.\d$", out, re.MULTILINE)
    process.line(f"^{RATES}$")
    process.signal(number)
    code, out, err = process.end()
    assert (code, err) == (0, "")
    assert f"Messages sent/received: {sent}/{sent}" in out


def test_duration_ends_both_ends_and_json_echoes_every_parameter(tool):
    server = tool("--local_ip=127.0.0.1", "--local_port=0", "--json", "--duration=30")
    port = server.listening_port("err")
    client = tool(*client_args(port, "--json", "--duration", "1.3", "--msg_window=2"))
    code, out, err = client.end()
    assert code == 0
    assert "[CLIENT] Connected." in err
    first, *_, final = events = [json.loads(line) for line in out.splitlines()]
    assert {event["event"] for event in events[:-1]} == {"interval"}
    assert 0.9 < first["interval_s"] < 30
    assert first["tx_msgs_per_s"] > 0
    figures = first["latency_us"]
    names = ["min", "p50", "p90", "p99", "p99.9", "p99.99", "max"]
    assert [figures[name] for name in names] == sorted(figures[name] for name in names)
    assert (final["event"], final["ended"], final["lost_msgs"]) == ("final", "duration", 0)
    assert final["elapsed_s"] >= 1.3
    assert final["tx_msgs"] == final["rx_msgs"] >= sum(event["rx_msgs"] for event in events[:-1])
    assert final["parameters"] == {
        "local_ip": "0.0.0.0",
        "local_port": 888,
        "remote_ip": "127.0.0.1",
        "remote_port": port,
        "msg_size_bytes": 64,
        "msg_window": 2,
        "msg_nr": None,
        "verify": False,
        "duration_s": 1.3,
        "poll": "adaptive",
        "spin_us": 50,
        "connect_timeout_s": 10.0,
        "json": True,
    }
    server.signal()
    code, out, _ = server.end()
    last = json.loads(out.splitlines()[-1])
    assert (code, last["role"], last["ended"]) == (0, "server", "signal")
    assert last["tx_msgs"] == final["tx_msgs"]


def test_a_server_ends_by_duration(tool):
    code, out, _ = tool("--local_ip=127.0.0.1", "--local_port=0", "--duration=0.2").end()
    assert code == 0
    assert out.splitlines()[0] == "[SERVER] Starting in server mode, response size 64"


# --- what can't be started ---------------------------------------------------------------------


def test_no_server_is_one_clear_line(tool):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        code, _, err = tool(*client_args(port)).end()
    assert code == 1
    assert err == (
        f"tcp_msg_gen: cannot connect to 127.0.0.1:{port}: Connection refused "
        "(is the server running, and is --remote_port its port?)"
    )


def test_a_server_that_does_not_answer_is_given_up(tool):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        port = full.getsockname()[1]
        for _ in range(4):  # fills the queue of connections that no one accepts
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        code, _, err = tool(*client_args(port, "--connect_timeout=0.3")).end()
    assert code == 1
    assert err == f"tcp_msg_gen: cannot connect to 127.0.0.1:{port}: no answer within 0.3 s"


def test_a_port_in_use_is_one_clear_line(tool, server):
    port = server[1]
    code, _, err = tool("--local_ip=127.0.0.1", f"--local_port={port}").end()
    assert code == 1
    assert err == (
        f"tcp_msg_gen: cannot listen on 127.0.0.1:{port}: Address already in use "
        "(another --local_port, or 0 for any free one)"
    )


@pytest.mark.parametrize("args", [["--local_port=0"], ["--remote_ip=127.0.0.1", "--remote_port=1"]])
def test_an_address_that_is_not_here_is_one_clear_line(tool, args):
    code, _, err = tool("--local_ip=192.0.2.77", *args).end()
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "192.0.2.77" in err
    assert "no interface here has this --local_ip" in err


def test_a_wrong_command_line_is_status_2(tool):
    code, out, err = tool("--msg_size=7").end()
    assert (code, out) == (2, "")
    assert "'7' is not a whole number from 8 to 8388608 bytes" in err


def test_help(tool):
    code, out, err = tool("--help").end()
    assert (code, err) == (0, "")
    for flag in ("local_ip", "local_port", "remote_ip", "remote_port", "msg_size", "msg_window"):
        assert f"--{flag} " in out
