# SPDX-License-Identifier: MIT
"""`Channel.send_many` and `recv_many`: batches are the single calls, for less."""

from __future__ import annotations

import pytest
from channel_net import make_net
from shm_local import attached

import machnet
from machnet.sim import Wire


def collect(channel: machnet.Channel, count: int) -> list[machnet.Message]:
    found: list[machnet.Message] = []
    while len(found) < count:
        found += channel.recv_many(timeout=5)
    return found


def test_batches_arrive_as_they_were_sent(net):
    net.listen(80, "tcp")
    flow = net.connect(80, "tcp")
    sent = [bytes([i]) * (i * 37 % 5000) for i in range(200)]
    taken = 0
    while taken < len(sent):
        taken += net.client.send_many(flow, sent[taken:], timeout=5)
    got = collect(net.server, len(sent))
    assert [message.data for message in got] == sent
    assert len({message.flow for message in got}) == 1
    assert net.server.send_many(got[0].flow, [bytearray(b"a"), memoryview(b"bc"), b""]) == 3
    assert [message.data for message in collect(net.client, 3)] == [b"a", b"bc", b""]


def test_limits_of_a_batch(net):
    net.listen(80, "tcp")
    flow = net.connect(80, "tcp")
    assert net.client.send_many(flow, []) == 0
    assert net.client.send_many(flow, [b"x"] * 10) == 10
    first = net.server.recv_many(3, timeout=5)
    assert 1 <= len(first) <= 3
    collect(net.server, 10 - len(first))
    with pytest.raises(TimeoutError):
        net.server.recv_many(timeout=0)
    for limit in (0, 257):
        with pytest.raises(ValueError, match="limit"):
            net.server.recv_many(limit)
    with pytest.raises(ValueError, match="another channel"):
        net.server.send_many(flow, [b"x"])


def test_a_message_over_the_buffer_comes_alone(net):
    net.listen(80, "tcp")
    flow = net.connect(80, "tcp")
    big = bytes(range(256)) * 400
    assert net.client.send_many(flow, [b"a", big, b"b"]) == 3
    assert [message.data for message in collect(net.server, 3)] == [b"a", big, b"b"]


def test_no_room_says_how_far_it_got():
    with make_net("pair") as net:
        net.listen(80, "tcp")
        small = net.client.stack.attach(buf_bytes=512, tx_bufs=16)
        flow = small.connect("10.0.0.1", "10.0.0.2", 80, "tcp")
        assert small.send_many(flow, [b"x" * 512] * 40) == 14
        collect(net.server, 14)
        with pytest.raises(OSError, match="never fit"):
            small.send_many(flow, [bytes(20_000), b"x"])
        assert small.send_many(flow, [b"x", bytes(20_000), b"x"]) == 1


def test_the_end_of_a_flow_comes_behind_its_messages(net):
    net.listen(80, "tcp")
    flow = net.connect(80, "tcp")
    net.client.send_many(flow, [b"1", b"2"])
    got = collect(net.server, 2)
    net.server.send_many(got[0].flow, [b"3"])
    net.client.recv(timeout=5)
    got[0].flow.close(linger=0)
    with pytest.raises(machnet.FlowError):
        net.client.recv_many(timeout=5)
    with pytest.raises(machnet.FlowError):
        net.client.send_many(flow, [b"x"])


def test_streams_have_no_messages(net):
    net.listen(80, "stream")
    flow = net.connect(80, "stream")
    with pytest.raises(ValueError, match="wrong kind"):
        net.client.send_many(flow, [b"x"])


def test_batches_of_a_lent_channel():
    with (
        machnet.Stack(Wire(), ip="10.0.0.2", thread=True) as one,
        machnet.Stack(Wire(), ip="10.0.0.3", thread=True) as two,
        attached(one, two) as channel,
        one.attach() as client,
    ):
        channel.listen("10.0.0.2", 7000, "tcp")
        flow = client.connect("10.0.0.2", "10.0.0.2", 7000, "tcp")
        assert client.send_many(flow, [b"%d" % i for i in range(100)]) == 100
        got = collect(channel, 100)
        assert [message.data for message in got] == [b"%d" % i for i in range(100)]
        assert channel.send_many(got[0].flow, [b"back"]) == 1
        assert client.recv(timeout=5).data == b"back"
