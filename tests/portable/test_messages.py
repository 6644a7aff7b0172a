# SPDX-License-Identifier: MIT
"""Messages between two machnet hosts, over TCP and over UDP."""

from __future__ import annotations

import os

import pytest

SIZES = [1, 2, 1446, 1447, 1460, 4096, 65_537, 1 << 20]


@pytest.fixture(params=["tcp", "udp"])
def pair(request, machnet_channel, machnet_peer, timeout):
    """Two channels and a flow between them."""
    server = machnet_peer.attach()
    server.listen(machnet_peer.ip, 7000, protocol=request.param)
    client = machnet_channel()
    flow = client.connect(client.ip, machnet_peer.ip, 7000, protocol=request.param, timeout=timeout)
    return client, flow, server


def test_all_sizes_there_and_back(pair, timeout):
    client, flow, server = pair
    for size in SIZES:
        data = os.urandom(size)
        client.send(flow, data, timeout=timeout)
        message = server.recv(timeout=timeout)
        assert message.data == data
        server.send(message.flow, message.data[::-1], timeout=timeout)
        assert client.recv(timeout=timeout).data == data[::-1]


def test_many_in_flight_keep_their_order(pair, timeout):
    client, flow, server = pair
    for number in range(200):
        client.send(flow, b"%d" % number, timeout=timeout)
    for number in range(200):
        message = server.recv(timeout=timeout)
        assert message.data == b"%d" % number
        server.send(message.flow, message.data, timeout=timeout)
    for number in range(200):
        assert client.recv(timeout=timeout).data == b"%d" % number


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_peer_connects_to_the_local_stack(machnet_channel, machnet_peer, timeout, protocol):
    server = machnet_channel()
    server.listen(server.ip, 7001, protocol=protocol)
    client = machnet_peer.attach()
    flows = [
        client.connect(machnet_peer.ip, server.ip, 7001, protocol=protocol, timeout=timeout)
        for _ in range(20)
    ]
    for flow in flows:
        client.send(flow, b"hello", timeout=timeout)
    for _ in flows:
        message = server.recv(timeout=timeout)
        server.send(message.flow, message.data, timeout=timeout)
    assert {client.recv(timeout=timeout).flow for _ in flows} == set(flows)
