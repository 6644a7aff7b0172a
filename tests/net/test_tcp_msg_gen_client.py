# SPDX-License-Identifier: MIT
"""The client of ``tcp_msg_gen`` over loopback, against servers that are plain sockets."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from tcp_tool import (
    MIB,
    TIMEOUT_S,
    Tool,
    client_args,
    frame,
    payload,
    peers,
    receive_message,
    reset,
    tools,
)


@pytest.fixture
def tool() -> Iterator[Callable[..., Tool]]:
    with tools() as start:
        yield start


@pytest.fixture
def peer() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    with peers() as start:
        yield start


def echo(sock: socket.socket) -> None:
    with contextlib.suppress(EOFError):
        while True:
            message = receive_message(sock)
            assert message == payload(*struct.unpack("<Q", message[:8]), len(message))
            sock.sendall(struct.pack(">I", len(message)) + message)


def wrong_payload(sock: socket.socket) -> None:
    for index in range(3):
        message = bytearray(receive_message(sock))
        message[20] ^= index  # right, wrong, wrong
        sock.sendall(struct.pack(">I", len(message)) + message)


def reply(*pieces: bytes) -> Callable[[socket.socket], None]:
    """A server that answers the first message with these bytes, then closes."""

    def handle(sock: socket.socket) -> None:
        receive_message(sock)
        sock.sendall(b"".join(pieces))

    return handle


def reset_after_a_message(sock: socket.socket) -> None:
    receive_message(sock)
    reset(sock)


def test_client_s_messages_are_as_the_protocol_has_them(tool, peer):
    process = tool(*client_args(peer(echo), "--msg_nr=100", "--msg_size=300", "--verify"))
    code, out, err = process.end()
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert re.fullmatch(
        r"\[CLIENT\] Connecting to 127\.0\.0\.1:\d+, msg_size=300, window=8", lines[0]
    )
    assert lines[1] == "[CLIENT] Connected."
    assert "Messages sent/received: 100/100" in lines
    assert "Wrong payloads: 0, unanswered: 0" in lines


def test_client_keeps_its_window_full_and_takes_replies_in_any_order(tool, peer):
    def handle(sock: socket.socket) -> None:
        slots = [struct.unpack("<Q", receive_message(sock)[:8])[0] for _ in range(8)]
        assert sorted(slots) == list(range(8))
        assert select.select([sock], [], [], 0.2)[0] == []  # no ninth
        sock.sendall(frame(slots[5]) + frame(slots[2]))
        again = [struct.unpack("<Q", receive_message(sock)[:8])[0] for _ in range(2)]
        assert sorted(again) == sorted([slots[5], slots[2]])
        for slot in reversed(range(8)):
            sock.sendall(frame(slot))
        with contextlib.suppress(EOFError):
            receive_message(sock)
            raise AssertionError("more than --msg_nr messages")

    process = tool(*client_args(peer(handle), "--msg_nr=10", "--msg_window=8", "--verify"))
    code, out, _ = process.end()
    assert code == 0
    assert "Messages sent/received: 10/10" in out


def test_client_takes_replies_in_small_pieces(tool, peer):
    def handle(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(4):
            for byte in frame(*struct.unpack("<Q", receive_message(sock)[:8]), 40):
                sock.sendall(bytes([byte]))

    process = tool(*client_args(peer(handle), "--msg_nr=4", "--msg_window=1", "--verify"))
    code, out, _ = process.end()
    assert code == 0
    assert "Messages sent/received: 4/4" in out


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        (
            reply(struct.pack(">I", 8 * MIB + 1)),
            "message length 8388609 is not in 8 to 8388608 bytes",
        ),
        (reply(struct.pack(">I", 7), bytes(7)), "message length 7 is not in 8 to 8388608 bytes"),
        (reply(frame(8)), "reply to window slot 8, which is not in flight"),
        (reply(frame(2**64 - 1)), "reply to window slot 18446744073709551615, which is not"),
        (reply(frame(0) + frame(0) * 8), "reply to window slot 0, which is not in flight"),
        (reply(frame(0)[:2]), "the connection ended in the middle of a message, 2 bytes into it"),
        (reply(frame(0)[:67]), "the connection ended in the middle of a message, 67 bytes into it"),
        (reply(frame(0)), "closed the connection while replies were missing"),
        (reset_after_a_message, "Connection reset by peer"),
    ],
)
def test_client_ends_with_an_error_when_the_server_breaks_the_protocol(tool, peer, handle, message):
    def finish(sock: socket.socket) -> None:
        handle(sock)
        if sock.fileno() != -1:
            # What is unread would turn the close into a reset.
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass

    process = tool(*client_args(peer(finish), "--msg_window=8", "--msg_nr=9", "--json"))
    code, out, err = process.end()
    assert code == 1
    assert message in err
    final = json.loads(out.splitlines()[-1])
    assert (final["ended"], final["ok"], final["exit_code"]) == ("failure", False, 1)
    assert message in final["error"]
    assert final["errors"] >= 1


def test_client_reports_wrong_payloads_under_verify_and_goes_on(tool, peer):
    args = ["--msg_nr=3", "--msg_window=1", "--msg_size=32", "--verify", "--json"]
    code, out, err = tool(*client_args(peer(wrong_payload), *args)).end()
    assert code == 1
    assert "wrong payload in window slot 0: byte 20 of 32 is 21, not 20" in err
    final = json.loads(out.splitlines()[-1])
    assert (final["rx_msgs"], final["payload_faults"], final["errors"]) == (3, 2, 2)
    assert (final["ended"], final["ok"], final["error"]) == ("msg_nr", False, None)


def test_client_does_not_look_at_payloads_without_verify(tool, peer):
    args = ["--msg_nr=3", "--msg_window=1", "--msg_size=32"]
    code, out, err = tool(*client_args(peer(wrong_payload), *args)).end()
    assert (code, err) == (0, "")
    assert "(not checked: no --verify)" in out


def test_client_ended_by_ctrl_c_with_replies_missing_fails(tool, peer):
    seen = threading.Event()

    def swallow(sock: socket.socket) -> None:
        receive_message(sock)
        seen.set()
        while sock.recv(1 << 16):
            pass

    process = tool(*client_args(peer(swallow), "--json"))
    assert seen.wait(TIMEOUT_S)
    process.line('"event": "interval"')
    process.signal()
    code, out, _ = process.end()
    final = json.loads(out.splitlines()[-1])
    assert code == 1
    assert (final["ended"], final["lost_msgs"], final["errors"]) == ("signal", 8, 8)
    assert (final["latency_us"], final["latency_samples"]) == (None, 0)
