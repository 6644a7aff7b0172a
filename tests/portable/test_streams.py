# SPDX-License-Identifier: MIT
"""Byte streams with the host at the other end, in both roles."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from machnet import FlowResetError

NO_LINGER = struct.pack("ii", 1, 0)


@pytest.fixture(params=["connects", "listens"])
def stream(request, linux, machnet_channel, timeout):
    """A flow of the local stack and the socket at its other end."""
    ch = machnet_channel()
    if request.param == "connects":
        listener, port = linux.listen()
        flow = ch.connect(ch.ip, linux.ip, port, protocol="stream", timeout=timeout)
        program = linux.accept(listener)
    else:
        listener = ch.listen(ch.ip, 8000, protocol="stream")
        program = linux.connect(ch.ip, 8000)
        flow = listener.accept(timeout=timeout)
    return flow, program


def read_all(flow, timeout):
    parts = []
    while part := flow.read(timeout=timeout):
        parts.append(part)
    return b"".join(parts)


def test_bytes_both_ways_and_half_closes(stream, timeout):
    flow, program = stream
    data = os.urandom(300_000)
    program.sock.sendall(data)
    program.sock.shutdown(socket.SHUT_WR)
    assert read_all(flow, timeout) == data
    # The other direction is open still.
    sent = 0
    while sent < len(data):
        sent += flow.send(data[sent:], timeout=timeout)
    flow.shutdown()
    assert program.read(len(data) + 1) == data


def test_the_local_stack_half_closes_first(stream, timeout):
    flow, program = stream
    flow.send(b"request", timeout=timeout)
    flow.shutdown()
    assert program.read(100) == b"request"
    program.sock.sendall(b"answer")
    program.close()
    assert read_all(flow, timeout) == b"answer"


def test_a_reset_of_the_program(stream, timeout):
    flow, program = stream
    program.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    program.close()
    with pytest.raises(FlowResetError):
        flow.read(timeout=timeout)


def test_a_reset_of_the_local_stack(stream, timeout):
    flow, program = stream
    flow.close(linger=0)
    with pytest.raises(ConnectionResetError):
        program.sock.recv(1)


def test_a_port_that_nobody_listens_on(linux, machnet_channel, timeout):
    ch = machnet_channel()
    listener, port = linux.listen()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        ch.connect(ch.ip, linux.ip, port, protocol="stream", timeout=timeout)
    with pytest.raises(ConnectionRefusedError):
        linux.connect(ch.ip, 8001)


def test_services_of_the_other_host(posix_peer, machnet_channel, timeout):
    """These need no sockets there: an address with its services is enough."""
    ch = machnet_channel()
    lines = ch.connect(
        ch.ip, posix_peer.ip, posix_peer.service("chargen"), protocol="stream", timeout=timeout
    )
    text = b""
    while len(text) < 74_000:
        text += lines.read(timeout=timeout)
    assert {len(line) for line in text.split(b"\r\n")[1:-1]} == {72}
    lines.close(linger=0)
    sink = ch.connect(
        ch.ip, posix_peer.ip, posix_peer.service("discard"), protocol="stream", timeout=timeout
    )
    sink.send(bytes(10_000), timeout=timeout)
    sink.shutdown()
    assert sink.read(timeout=timeout) == b""
