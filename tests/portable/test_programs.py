# SPDX-License-Identifier: MIT
"""Messages between the local stack and programs with POSIX sockets, in both roles."""

from __future__ import annotations

import os

import pytest

MIB = 1 << 20
SIZES = [0, 1, 4, 1447, 1448, 1449, 2044, 65_536, MIB]


def test_a_program_is_the_client(linux, machnet_channel, timeout):
    ch = machnet_channel()
    ch.listen(ch.ip, 7002, protocol="tcp")
    program = linux.connect(ch.ip, 7002)
    for size in SIZES:
        data = os.urandom(size)
        program.send(data)
        message = ch.recv(timeout=timeout)
        assert message.data == data
        ch.send(message.flow, data[::-1], timeout=timeout)
        assert program.recv() == data[::-1]


def test_a_program_is_the_server(linux, machnet_channel, timeout):
    ch = machnet_channel()
    listener, port = linux.listen()
    flow = ch.connect(ch.ip, linux.ip, port, protocol="tcp", timeout=timeout)
    program = linux.accept(listener)
    for size in SIZES:
        data = os.urandom(size)
        ch.send(flow, data, timeout=timeout)
        assert program.recv() == data
        program.send(data[::-1])
        assert ch.recv(timeout=timeout).data == data[::-1]


def test_the_largest_message(linux, machnet_channel, timeout):
    ch = machnet_channel(tx_bufs=8192, rx_bufs=8192)
    ch.listen(ch.ip, 7003, protocol="tcp")
    program = linux.connect(ch.ip, 7003)
    data = os.urandom(8 * MIB)
    program.send(data)
    message = ch.recv(timeout=timeout)
    assert message.data == data
    ch.send(message.flow, data, timeout=timeout)
    assert program.recv() == data


def test_an_echo_service_is_a_server_of_messages(posix_peer, machnet_channel, timeout):
    ch = machnet_channel()
    port = posix_peer.service("echo")
    flow = ch.connect(ch.ip, posix_peer.ip, port, protocol="tcp", timeout=timeout)
    for round_ in range(20):
        for slot in range(8):
            ch.send(flow, b"%d.%d" % (round_, slot), timeout=timeout)
        for slot in range(8):
            assert ch.recv(timeout=timeout).data == b"%d.%d" % (round_, slot)


@pytest.mark.parametrize("count", [64])
def test_many_connections_from_many_ports(linux, machnet_channel, timeout, count):
    """Of a NIC with several queues, they arrive on all of them."""
    ch = machnet_channel()
    ch.listen(ch.ip, 7004, protocol="tcp")
    programs = [linux.connect(ch.ip, 7004) for _ in range(count)]
    for number, program in enumerate(programs):
        program.send(b"%d" % number)
    for _ in programs:
        message = ch.recv(timeout=timeout)
        ch.send(message.flow, message.data, timeout=timeout)
    for number, program in enumerate(programs):
        assert program.recv() == b"%d" % number
    listener, port = linux.listen(count)
    flows = [
        ch.connect(ch.ip, linux.ip, port, protocol="tcp", timeout=timeout) for _ in range(count)
    ]
    for number, flow in enumerate(flows):
        ch.send(flow, b"%d" % number, timeout=timeout)
    got = set()
    for _ in flows:
        program = linux.accept(listener)
        got.add(program.recv())
        program.close()
    assert got == {b"%d" % number for number in range(count)}
