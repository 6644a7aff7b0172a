# SPDX-License-Identifier: MIT
"""`machnet.Channel`: connections, messages, flows and their ends.

Most tests run twice: over a wire between two stacks in virtual time, and between two applications of
one stack that runs in its own thread.
"""

from __future__ import annotations

import errno
import threading

import pytest
from channel_net import MS, make_net, pattern

import machnet

# --- listening and connecting ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("10.0.0.300", 888, "tcp"), ValueError, "'10.0.0.300' is no IPv4 address"),
        ((b"10.0.0.2", 888, "tcp"), TypeError, "IPv4 address is a string"),
        (("10.0.0.2", 0, "tcp"), ValueError, "1 to 65535"),
        (("10.0.0.2", 65536, "tcp"), ValueError, "1 to 65535"),
        (("10.0.0.2", "888", "tcp"), TypeError, "a port is an integer"),
        (("10.0.0.2", 888, "sctp"), ValueError, "'udp', 'tcp' and 'stream'"),
    ],
)
def test_wrong_arguments_are_named(pair, arguments, error, text):
    with pytest.raises(error) as caught:
        pair.server.listen(*arguments)
    assert text in str(caught.value)
    ip, port, protocol = arguments
    with pytest.raises(error) as caught:
        pair.client.connect("10.0.0.1", ip, port, protocol)
    assert text in str(caught.value)


def test_listening_twice_is_refused(net):
    net.listen(888)
    for protocol in ("tcp", "stream"):
        with pytest.raises(OSError, match=r"listening on 10\.0\.0\.2:888") as caught:
            net.listen(888, protocol)
        assert caught.value.errno == errno.EADDRINUSE


def test_a_closed_listener_gives_its_port_back(net):
    listener = net.listen(888)
    listener.close()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        net.connect(888)
    net.listen(888, "stream")


def test_listening_on_a_foreign_address_is_refused(net):
    with pytest.raises(OSError, match=r"10\.9\.9\.9") as caught:
        net.server.listen("10.9.9.9", 888, protocol="tcp")
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_listening_on_any_address(net):
    net.server.listen("0.0.0.0", 888, protocol="tcp")
    flow = net.connect(888)
    net.client.send(flow, b"x")
    assert net.server.recv(timeout=5).data == b"x"


def test_a_refused_connection(net):
    with pytest.raises(ConnectionRefusedError, match=r"10\.0\.0\.2:889"):
        net.connect(889)


def test_a_connection_that_nobody_answers_times_out(pair):
    pair.client_stack.neighbor("10.0.0.77", "02:00:00:00:00:77")
    with pytest.raises(TimeoutError, match=r"10\.0\.0\.77:888"):
        pair.client.connect("10.0.0.1", "10.0.0.77", 888, protocol="tcp", timeout=2.5)
    assert pair.client_stack.now_ns == 2_500 * MS
    assert pair.client.flows() == []
    pair.client_stack.advance(10_000 * MS)
    assert pair.client_stack.usage()["tcbs"] == 0


def test_a_host_that_is_not_there_is_unreachable(pair):
    with pytest.raises(OSError, match=r"10\.0\.0\.88") as caught:
        pair.client.connect("10.0.0.1", "10.0.0.88", 888, protocol="tcp", timeout=60)
    assert caught.value.errno == errno.EHOSTUNREACH


def test_the_local_port_can_be_chosen(net):
    net.listen(888)
    ip, peer = net.client_stack.ip, net.server_stack.ip
    flow = net.client.connect(ip, peer, 888, protocol="tcp", local_port=4000)
    assert flow.local == (ip, 4000)
    assert flow.remote == (peer, 888)
    with pytest.raises(OSError, match="connecting") as caught:
        net.client.connect(ip, peer, 888, protocol="tcp", local_port=4000)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_a_timeout_is_a_number_of_seconds(pair, timeout):
    with pytest.raises(ValueError, match="timeout"):
        pair.client.recv(timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        pair.client.connect("10.0.0.1", "10.0.0.2", 888, protocol="tcp", timeout=timeout)


def test_what_is_no_number_of_seconds_is_named(pair):
    pair.listen()
    with pytest.raises(TypeError, match="timeout: '1' is no number of seconds"):
        pair.client.recv(timeout="1")
    with pytest.raises(TypeError, match="linger: '1' is no number of seconds"):
        pair.connect().close(linger="1")


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [0, 1, 3, 4, 5, 63, 1443, 1444, 1445, 1460, 2044, 2048, 2049, 65535, 65536, 65537, 1 << 20],
)
def test_messages_of_many_sizes_both_ways(net, size):
    net.listen()
    flow = net.connect()
    data = pattern(size)[:size]
    assert net.client.send(flow, data) == size
    message = net.server.recv(timeout=20)
    assert message.data == data
    assert type(message.data) is bytes
    assert net.server.send(message.flow, data) == size
    answer = net.client.recv(timeout=20)
    assert answer.data == data
    assert answer.flow is flow


def test_the_longest_message(net):
    net.listen()
    flow = net.connect()
    data = pattern(8 << 20)[: 8 << 20]
    net.client.send(flow, data)
    assert net.server.recv(timeout=60).data == data


def test_any_bytes_like_object_can_be_sent(net):
    net.listen()
    flow = net.connect()
    for data in (b"abc", bytearray(b"abc"), memoryview(b"xabc")[1:], memoryview(bytearray(b"abc"))):
        assert net.client.send(flow, data) == 3
        assert net.server.recv(timeout=5).data == b"abc"
    for wrong, text in (
        ("abc", "bytes are wanted, not a str: 'abc'"),
        (None, "bytes"),
        (5, "bytes"),
    ):
        with pytest.raises(TypeError, match=text):
            net.client.send(flow, wrong)


def test_messages_keep_their_order_and_their_flow(net):
    net.listen()
    flows = [net.connect() for _ in range(5)]
    for i in range(20):
        for number, flow in enumerate(flows):
            net.client.send(flow, bytes([number, i]))
    seen: dict[machnet.Flow, list[bytes]] = {}
    for _ in range(100):
        message = net.server.recv(timeout=5)
        seen.setdefault(message.flow, []).append(message.data)
    assert len(seen) == 5
    for flow, messages in seen.items():
        number = messages[0][0]
        assert messages == [bytes([number, i]) for i in range(20)]
        assert flow.remote == flows[number].local


def test_recv_waits_no_longer_than_it_should(net):
    start = net.client_stack.now_ns
    with pytest.raises(TimeoutError, match=r"recv: nothing within 0\.25 s"):
        net.client.recv(timeout=0.25)
    waited = net.client_stack.now_ns - start
    assert waited == 250 * MS if net.stepped else 250 * MS <= waited < 20_000 * MS
    assert net.client.try_recv() is None
    with pytest.raises(TimeoutError):
        net.client.recv(timeout=0)


def test_recv_for_ever_in_an_empty_world_is_a_deadlock(pair):
    with pytest.raises(machnet.DeadlockError, match="nothing can ever happen"):
        pair.client.recv()


def test_a_message_that_can_never_fit(net):
    net.listen()
    flow = net.connect()
    with pytest.raises(OSError, match="can never fit") as caught:
        net.client.send(flow, bytes((8 << 20) + 1))
    assert caught.value.errno == errno.EMSGSIZE
    small = net.client_stack.attach(tx_bufs=16, buf_bytes=512)
    flow = small.connect(net.client_stack.ip, net.server_stack.ip, 888, protocol="tcp")
    with pytest.raises(OSError, match="16 buffers of 512 bytes"):
        small.send(flow, bytes(16 * 512))
    small.send(flow, bytes(14 * 512))
    assert len(net.server.recv(timeout=5).data) == 14 * 512


def test_a_send_without_room_takes_nothing_and_all_arrives_later(pair):
    """The receiver does not read: windows close, buffers fill, send says so. Nothing is lost."""
    pair.listen()
    receiver = pair.server
    sender = pair.client_stack.attach(tx_bufs=64)
    flow = sender.connect("10.0.0.1", "10.0.0.2", 888, protocol="tcp")
    sent = []
    start = 0

    def fill() -> None:
        nonlocal start
        while True:
            start = pair.client_stack.now_ns
            data = pattern(20_000 + len(sent))[: 20_000 + len(sent)]
            sender.send(flow, data, timeout=0.5)
            sent.append(data)

    with pytest.raises(BlockingIOError, match=r"within 0\.5 s") as caught:
        fill()
    assert caught.value.errno == errno.EAGAIN
    data = bytes(20_000)
    assert pair.client_stack.now_ns == start + 500 * MS
    with pytest.raises(BlockingIOError, match="no room for"):
        sender.send(flow, data)
    got = [receiver.recv(timeout=60).data for _ in sent]
    assert got == sent
    sender.send(flow, data, timeout=60)
    assert receiver.recv(timeout=60).data == data


def test_send_waits_for_room(threaded):
    threaded.listen()
    sender = threaded.client_stack.attach(tx_bufs=32)
    flow = sender.connect("10.0.0.2", "10.0.0.2", 888, protocol="tcp")
    total = 400
    received = []

    def read() -> None:
        received.extend(len(threaded.server.recv(timeout=30).data) for _ in range(total))

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(total):
        sender.send(flow, bytes(30_000), timeout=30)
    thread.join()
    assert received == [30_000] * total


# --- flows ----------------------------------------------------------------------------------------


def test_flows_are_the_same_object_each_time(net):
    net.listen()
    flow = net.connect()
    assert net.client.flows() == [flow]
    assert net.client.flows()[0] is flow
    net.client.send(flow, b"1")
    net.client.send(flow, b"2")
    first, second = net.server.recv(timeout=5), net.server.recv(timeout=5)
    assert first.flow is second.flow
    assert first != second
    assert first == machnet.Message(b"1", first.flow)
    assert {first.flow: 1}[second.flow] == 1
    assert first.flow != flow
    assert (flow.error, flow.soft_error, flow.live, flow.generation) == (0, 0, True, 0)
    assert repr(flow) == (
        f"<Flow tcp {flow.local[0]}:{flow.local[1]} -> {flow.remote[0]}:{flow.remote[1]}>"
    )


def test_a_flow_of_another_channel_is_refused(net):
    net.listen()
    flow = net.connect()
    with pytest.raises(ValueError, match="another channel"):
        net.server.send(flow, b"x")


def test_a_reset_is_raised_once_behind_the_last_message(net):
    net.listen()
    flow = net.connect()
    net.client.send(flow, b"last words")
    served = net.server.recv(timeout=5).flow
    net.server.send(served, b"first")
    assert net.client.recv(timeout=5).data == b"first"
    flow.close(linger=0)
    with pytest.raises(machnet.FlowResetError) as caught:
        net.server.recv(timeout=5)
    assert isinstance(caught.value, ConnectionResetError)
    assert caught.value.flow is served
    assert caught.value.errno == errno.ECONNRESET
    assert "10.0.0.2" in str(caught.value)
    assert net.server.try_recv() is None
    assert served.error == errno.ECONNRESET
    assert not served.live
    with pytest.raises(machnet.FlowClosedError) as closed:
        net.server.send(served, b"x")
    assert closed.value.errno == errno.ENOTCONN
    assert closed.value.flow is served
    assert net.server.flows() == []


def test_a_clean_close_is_not_raised(net):
    net.listen()
    flow = net.connect()
    net.client.send(flow, b"last words")
    flow.close()
    flow.close()
    message = net.server.recv(timeout=5)
    assert message.data == b"last words"
    net.eventually(lambda: message.flow.error != 0)
    assert net.server.try_recv() is None
    assert message.flow.error == errno.ENOTCONN
    with pytest.raises(machnet.FlowClosedError):
        net.server.send(message.flow, b"x")


def test_a_closed_flow_takes_nothing_more(net):
    net.listen()
    flow = net.connect()
    flow.close()
    with pytest.raises(machnet.FlowClosedError) as caught:
        net.client.send(flow, b"x")
    assert caught.value.errno == errno.ENOTCONN
    assert flow.error == errno.ENOTCONN


@pytest.mark.parametrize("linger", [-1.0, float("nan")])
def test_linger_is_a_number_of_seconds(pair, linger):
    pair.listen()
    with pytest.raises(ValueError, match="linger"):
        pair.connect().close(linger=linger)


def test_many_flows_in_turn_leave_nothing_behind(pair):
    pair.listen()
    for i in range(300):
        flow = pair.connect()
        pair.client.send(flow, bytes([i % 256]))
        assert pair.server.recv(timeout=5).data == bytes([i % 256])
        flow.close(linger=0)
        with pytest.raises(machnet.FlowResetError):
            pair.server.recv(timeout=5)
    assert pair.client.flows() == pair.server.flows() == []
    assert len(pair.server._flows) <= 1
    assert pair.client_stack.usage()["tcbs"] == pair.server_stack.usage()["tcbs"] == 0


def test_a_length_over_the_limit_ends_the_flow_with_an_error(net):
    net.listen()
    flow = net.connect(protocol="stream")
    net.client.send(flow, (0x7FFFFFFF).to_bytes(4, "big") + b"x")
    with pytest.raises(machnet.FlowError) as caught:
        net.server.recv(timeout=5)
    assert caught.value.flow.remote == flow.local
    assert caught.value.errno in {errno.EMSGSIZE, errno.EPROTO}
    assert net.server.try_recv() is None


def test_an_end_inside_a_message_is_an_error(net):
    net.listen()
    flow = net.connect(protocol="stream")
    net.client.send(flow, (100).to_bytes(4, "big") + b"only this")
    flow.close()
    with pytest.raises(machnet.FlowProtocolError) as caught:
        net.server.recv(timeout=5)
    assert caught.value.flow.remote == flow.local


def test_options_of_a_flow(net):
    from machnet._native import lib

    net.listen()
    flow = net.connect()
    net.client.set_option(flow, lib.MN_OPT_TTL, 9)
    assert net.client.get_option(flow, lib.MN_OPT_TTL) == 9
    with pytest.raises(OSError, match="option") as caught:
        net.client.set_option(flow, lib.MN_OPT_TTL, 256)
    assert caught.value.errno == errno.EINVAL
    flow.close(linger=0)
    with pytest.raises(OSError, match="option") as caught:
        net.client.get_option(flow, lib.MN_OPT_TTL)
    assert caught.value.errno == errno.ENOTCONN


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize("before", range(8, 20))
def test_an_empty_message_that_waits_for_a_buffer_arrives(before: int, closes: bool) -> None:
    """Its prefix is all there is of it: nothing that comes later would call for it again."""
    with make_net("pair") as net:
        server = net.server_stack.attach(rx_bufs=16)
        server.listen(net.server_stack.ip, 889, protocol="tcp")
        flow = net.connect(889)
        for _ in range(before):
            net.client.send(flow, b"x")
        net.client.send(flow, b"")
        if closes:
            flow.close()
        net.pass_time(100 * MS)
        got = [server.recv(timeout=5).data for _ in range(before + 1)]
        assert got == [b"x"] * before + [b""]
