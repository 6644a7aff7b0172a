# SPDX-License-Identifier: MIT
"""machnet.h call by call, against a real sidecar."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from shim_kit import IP, NO_EINTR, PATIENCE_S, PORT, STREAM, TCP, UDP, Api, Flow, MsgHdr, Pieces

Attach = Callable[[], int]


@pytest.fixture
def attach(api: Api, socket: str) -> Iterator[Attach]:
    """Makes channels, which are detached at the end."""
    made: list[int] = []

    def attach() -> int:
        assert api.init() == 0
        ctx = api.attach()
        assert ctx, os.strerror(ctypes.get_errno())
        assert api.set_protocol(ctx, TCP) == 0
        made.append(ctx)
        return int(ctx)

    yield attach
    for ctx in made:
        assert api.detach(ctx) == 0


@pytest.fixture
def pair(api: Api, attach: Attach) -> Iterator[tuple[int, int, Flow]]:
    """A server's channel, a client's, and the flow between them as the client sees it."""
    server, client = attach(), attach()
    assert api.listen(server, IP.encode(), PORT) == 0
    yield server, client, api.connected(client)
    assert api.unlisten(server, IP.encode(), PORT) == 0


def number(ip: str) -> int:
    return int.from_bytes(bytes(map(int, ip.split("."))), "big")


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_version_is_that_of_the_package(api: Api) -> None:
    import machnet

    assert api.version().decode() == machnet.__version__


def test_init_is_idempotent_and_attach_gives_a_channel_each(api: Api, attach: Attach) -> None:
    assert api.init() == 0
    assert api.init() == 0
    assert len({attach() for _ in range(3)}) == 3


def test_the_flow_of_a_connect_has_this_side_first_in_host_order(
    pair: tuple[int, int, Flow],
) -> None:
    _, _, flow = pair
    assert flow.key() == (number(IP), number(IP), flow.src_port, PORT)
    assert flow.src_port >= 1024


def test_a_message_arrives_with_its_sender_and_is_answered_to_that_flow(
    api: Api, pair: tuple[int, int, Flow]
) -> None:
    server, client, flow = pair
    api.put(client, flow, b"question")
    data, sender = api.get(server)
    assert (data, sender.key()) == (b"question", flow.key())
    api.put(server, sender, b"answer")
    data, sender = api.get(client)
    assert (data, sender.key()) == (b"answer", flow.swapped().key())


def test_send_takes_the_flow_with_this_side_last_too(api: Api, pair: tuple[int, int, Flow]) -> None:
    server, client, flow = pair
    api.put(client, flow.swapped(), b"x")
    assert api.get(server)[0] == b"x"


def test_when_both_ends_are_this_channels_the_local_one_comes_first(
    api: Api, attach: Attach
) -> None:
    ctx = attach()
    assert api.listen(ctx, IP.encode(), PORT) == 0
    flow = api.connected(ctx)
    api.put(ctx, flow, b"to the listener")
    data, sender = api.get(ctx)
    assert (data, sender.key()) == (b"to the listener", flow.key())
    # As received it names the connecting end as local, which exists: the listener's end is the other.
    api.put(ctx, sender.swapped(), b"back")
    data, sender = api.get(ctx)
    assert (data, sender.key()) == (b"back", flow.swapped().key())
    assert api.unlisten(ctx, IP.encode(), PORT) == 0


def test_recv_of_nothing_is_0_and_clears_the_flow(api: Api, pair: tuple[int, int, Flow]) -> None:
    server, _, _ = pair
    flow = Flow(1, 2, 3, 4)
    assert api.recv(server, ctypes.create_string_buffer(8), 8, flow) == 0
    assert flow.key() == (0, 0, 0, 0)


def test_an_empty_message_is_0_with_the_flow(api: Api, pair: tuple[int, int, Flow]) -> None:
    server, client, flow = pair
    api.put(client, flow, b"")
    sender = Flow()
    end = time.monotonic() + PATIENCE_S
    while sender.src_ip == 0 and time.monotonic() < end:
        assert api.recv(server, ctypes.create_string_buffer(8), 8, sender) == 0
    assert sender.key() == flow.key()
    api.put(client, flow, b"")
    message = Pieces([8])
    assert api.recv_wait(server, message.hdr, -1) == 1
    assert message.hdr.msg_size == 0


def test_a_message_larger_than_the_buffer_is_EMSGSIZE_and_stays(
    api: Api, pair: tuple[int, int, Flow]
) -> None:
    server, client, flow = pair
    api.put(client, flow, b"0123456789")
    message = Pieces([4])
    ctypes.set_errno(0)
    assert api.recv_wait(server, message.hdr, int(PATIENCE_S * 1e6)) == -1
    assert ctypes.get_errno() == errno.EMSGSIZE
    assert (message.hdr.msg_size, message.hdr.flow_info.key()) == (10, flow.key())
    sender = Flow()
    small = ctypes.create_string_buffer(9)
    assert api.fails("recv", server, small, 9, sender) == errno.EMSGSIZE
    assert sender.key() == flow.key()
    assert api.get(server)[0] == b"0123456789"


def test_message_ids_are_unique_and_never_0(api: Api, pair: tuple[int, int, Flow]) -> None:
    server, client, flow = pair
    ids = []
    for _ in range(3):
        number = ctypes.c_uint64()
        assert api.send(client, flow, b"x", 1, number) == 0
        ids.append(number.value)
        api.get(server)
    assert len(set(ids)) == 3
    assert 0 not in ids


def test_sendmsg_gathers_and_recvmsg_scatters(api: Api, pair: tuple[int, int, Flow]) -> None:
    server, client, flow = pair
    assert api.sendmsg(client, Pieces([b"one ", b"", b"message"], flow).hdr) == 0
    into = Pieces([2, 0, 6, 10])
    assert api.recv_wait(server, into.hdr, -1) == 1
    assert (into.hdr.msg_size, into.hdr.flow_info.key()) == (11, flow.key())
    assert into.data() == [b"on", b"", b"e mess", b"age" + bytes(7)]
    assert api.recvmsg(server, into.hdr) == 0
    assert into.hdr.flow_info.key() == (0, 0, 0, 0)


def test_sendmsg_wants_a_size_that_is_the_sum(api: Api, pair: tuple[int, int, Flow]) -> None:
    _, client, flow = pair
    message = Pieces([b"abc"], flow)
    message.hdr.msg_size = 2
    assert api.fails("sendmsg", client, message.hdr) == errno.EINVAL
    assert api.fails("sendmsg", client, None) == errno.EINVAL


def test_sendmmsg_stops_at_the_first_that_fails(api: Api, pair: tuple[int, int, Flow]) -> None:
    server, client, flow = pair
    good = [Pieces([b"a"], flow), Pieces([b"b", b"c"], flow), Pieces([b"d"], Flow(1, 2, 3, 4))]
    batch = (MsgHdr * 3)(*[piece.hdr for piece in good])
    ctypes.set_errno(0)
    assert api.sendmmsg(client, batch, 3) == 2
    assert ctypes.get_errno() == errno.ENOTCONN
    assert [api.get(server)[0] for _ in range(2)] == [b"a", b"bc"]
    assert api.sendmmsg(client, batch, 0) == 0
    assert api.fails("sendmmsg", client, batch, -1) == errno.EINVAL


def test_messages_up_to_8_MiB_arrive_whole_and_more_is_EMSGSIZE(
    api: Api, pair: tuple[int, int, Flow]
) -> None:
    server, client, flow = pair
    data = bytes(range(256)) * 32768
    api.put(client, flow, data)
    assert api.get(server, len(data))[0] == data
    assert api.fails("send", client, flow, data + b"x", len(data) + 1, None) == errno.EMSGSIZE


def test_no_room_is_EAGAIN_and_nothing_was_sent(api: Api, pair: tuple[int, int, Flow]) -> None:
    server, client, flow = pair
    sent = 0
    data = bytes(16384)
    while api.send(client, flow, data, len(data), None) == 0:
        sent += 1
        assert sent < 100_000
    assert ctypes.get_errno() == errno.EAGAIN
    for _ in range(sent):
        assert len(api.get(server)[0]) == len(data)
    api.put(client, flow, b"room again")
    assert api.get(server)[0] == b"room again"


def test_recv_wait_ends_at_its_timeout(api: Api, attach: Attach) -> None:
    ctx = attach()
    start = time.monotonic()
    assert api.recv_wait(ctx, Pieces([8]).hdr, 60_000) == 0
    assert time.monotonic() - start >= 0.06
    assert api.recv_wait(ctx, Pieces([8]).hdr, 0) == 0


def test_recv_wait_sleeps_until_a_message_comes(api: Api, pair: tuple[int, int, Flow]) -> None:
    server, client, flow = pair
    later = threading.Timer(0.2, api.put, (client, flow, b"late"))
    later.start()
    assert api.get(server)[0] == b"late"
    later.join()


def test_a_signal_ends_a_wait_with_EINTR_unless_it_is_not_wanted(
    api: Api, pair: tuple[int, int, Flow]
) -> None:
    server, client, flow = pair
    rang: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _frame: rang.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        message = Pieces([8])
        assert api.fails("recv_wait", server, message.hdr, int(PATIENCE_S * 1e6)) == errno.EINTR
        later = threading.Timer(0.4, api.put, (client, flow, b"late"))
        later.start()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert api.get(server)[0] == b"late"
        later.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(rang) == 2


def test_the_descriptor_is_readable_when_there_is_something(
    api: Api, pair: tuple[int, int, Flow]
) -> None:
    server, client, flow = pair
    fd = api.fd(server)
    assert fd >= 0
    sender = Flow()
    buf = ctypes.create_string_buffer(64)
    until(lambda: api.recv(server, buf, 64, sender) == 0 and not readable(fd, 0))
    api.put(client, flow, b"ding")
    assert readable(fd, PATIENCE_S)
    assert api.get(server)[0] == b"ding"
    until(lambda: api.recv(server, buf, 64, sender) == 0 and not readable(fd, 0))


def readable(fd: int, timeout: float) -> bool:
    return bool(select.select([fd], [], [], timeout)[0])


def test_a_clean_close_is_told_by_flow_error_and_send_but_not_by_recv(
    api: Api, pair: tuple[int, int, Flow]
) -> None:
    server, client, flow = pair
    api.put(client, flow, b"last words")
    assert api.flow_error(client, flow) == 0
    assert api.close(client, flow) == 0
    assert api.flow_error(client, flow) == errno.ENOTCONN
    assert api.fails("send", client, flow, b"x", 1, None) == errno.ENOTCONN
    assert api.fails("close", client, flow) == errno.ENOTCONN
    data, sender = api.get(server)
    assert (data, api.flow_error(client, flow)) == (b"last words", errno.ENOTCONN)
    until(lambda: api.flow_error(server, sender) == errno.ENOTCONN)
    assert api.recvmsg(server, Pieces([8]).hdr) == 0
    assert api.fails("send", server, sender, b"x", 1, None) == errno.ENOTCONN


def test_the_end_of_a_flow_is_told_once_behind_its_last_message(
    api: Api, pair: tuple[int, int, Flow]
) -> None:
    import machnet

    server, _, _ = pair
    with machnet.attach() as other:
        flow = other.connect(IP, IP, PORT, protocol="tcp")
        flow.send(b"before")
        until(lambda: other.get_option(flow, 12) == 0)  # MN_OPT_SNDQ: all of it has arrived
        flow.close(linger=0)
    assert api.get(server)[0] == b"before"
    message = Pieces([8])
    assert api.fails("recv_wait", server, message.hdr, int(PATIENCE_S * 1e6)) == errno.ECONNRESET
    sender = message.hdr.flow_info
    assert sender.src_port == flow.local[1]
    assert message.hdr.msg_size == 0
    assert api.recvmsg(server, Pieces([8]).hdr) == 0
    assert api.flow_error(server, sender) in {errno.ECONNRESET, errno.ENOTCONN}


def test_nobody_listens_is_ECONNREFUSED_at_once(api: Api, attach: Attach) -> None:
    ctx = attach()
    start = time.monotonic()
    arguments = (ctx, IP.encode(), IP.encode(), PORT + 1, Flow())
    assert api.fails("connect", *arguments) == errno.ECONNREFUSED
    assert time.monotonic() - start < 5


def test_listen_says_what_is_wrong(api: Api, attach: Attach) -> None:
    first, second = attach(), attach()
    assert api.listen(first, IP.encode(), PORT) == 0
    assert api.fails("listen", second, IP.encode(), PORT) == errno.EADDRINUSE
    assert api.fails("listen", second, b"10.9.9.9", PORT) == errno.EADDRNOTAVAIL
    assert api.fails("listen", second, b"10.0.0", PORT) == errno.EINVAL
    assert api.fails("listen", second, None, PORT) == errno.EINVAL
    assert api.fails("listen", second, IP.encode(), 0) == errno.EINVAL
    assert api.fails("listen_proto", second, IP.encode(), PORT, 3) == errno.EINVAL
    assert api.fails("unlisten", second, IP.encode(), PORT) == errno.ENOENT
    assert api.unlisten(first, IP.encode(), PORT) == 0
    assert api.fails("unlisten", first, IP.encode(), PORT) == errno.ENOENT
    assert api.listen(second, b"0.0.0.0", PORT) == 0
    assert api.unlisten(second, b"0.0.0.0", PORT) == 0


def test_connect_says_what_is_wrong(api: Api, attach: Attach) -> None:
    ctx, ip, flow = attach(), IP.encode(), Flow()
    assert api.fails("connect", ctx, ip, b"somewhere", PORT, flow) == errno.EINVAL
    assert api.fails("connect", ctx, b"10.0.0.256", ip, PORT, flow) == errno.EINVAL
    assert api.fails("connect", ctx, ip, ip, 0, flow) == errno.EINVAL
    assert api.fails("connect", ctx, ip, ip, PORT, None) == errno.EINVAL
    assert api.fails("connect", ctx, b"10.9.9.9", ip, PORT, flow) == errno.EADDRNOTAVAIL
    assert api.fails("connect_proto", ctx, ip, ip, PORT, flow, -1) == errno.EINVAL


def test_one_port_takes_one_transport(api: Api, attach: Attach) -> None:
    ctx = attach()
    assert api.listen_proto(ctx, IP.encode(), PORT, TCP) == 0
    for other in (STREAM, UDP):
        assert api.fails("listen_proto", ctx, IP.encode(), PORT, other) == errno.EADDRINUSE
        assert api.fails("listen_proto", ctx, b"0.0.0.0", PORT, other) == errno.EADDRINUSE
    assert api.unlisten(ctx, IP.encode(), PORT) == 0


def test_calls_without_a_channel_or_a_place_are_EINVAL(api: Api, attach: Attach) -> None:
    ctx, buf = attach(), ctypes.create_string_buffer(8)
    assert api.fails("detach", None) == errno.EINVAL
    assert api.fails("fd", None) == errno.EINVAL
    assert api.fails("listen", None, IP.encode(), PORT) == errno.EINVAL
    assert api.fails("connect", None, IP.encode(), IP.encode(), PORT, Flow()) == errno.EINVAL
    assert api.fails("send", None, Flow(), b"x", 1, None) == errno.EINVAL
    assert api.fails("recv", None, buf, 8, Flow()) == errno.EINVAL
    assert api.fails("recv", ctx, buf, 8, None) == errno.EINVAL
    assert api.fails("recv", ctx, None, 8, Flow()) == errno.EINVAL
    assert api.fails("recvmsg", ctx, None) == errno.EINVAL
    assert api.fails("recv_wait", None, Pieces([1]).hdr, 0) == errno.EINVAL
    assert api.fails("set_protocol", ctx, 3) == errno.EINVAL
    assert api.fails("send", ctx, Flow(1, 2, 3, 4), b"x", 1, None) == errno.ENOTCONN
    assert api.flow_error(ctx, Flow(1, 2, 3, 4)) == errno.ENOTCONN


def test_a_stream_gives_bytes_and_its_end_by_flow_error(api: Api, attach: Attach) -> None:
    server, client = attach(), attach()
    assert api.listen_proto(server, IP.encode(), PORT, STREAM) == 0
    flow = api.connected(client, protocol=STREAM | NO_EINTR)
    assert api.send(client, flow, b"some bytes", 10, None) == 10
    got, sender = b"", Flow()
    while len(got) < 10:
        data, sender = api.get(server, 4)
        assert 0 < len(data) <= 4
        got += data
    assert (got, sender.key()) == (b"some bytes", flow.key())
    assert api.send(server, sender, b"back", 4, None) == 4
    assert api.get(client)[0] == b"back"
    assert api.fails("sendmsg", client, Pieces([b"x"], Flow(9, 9, 9, 9)).hdr) == errno.ENOTCONN
    assert api.close(client, flow) == 0

    def ended() -> bool:
        assert api.recvmsg(server, Pieces([8]).hdr) == 0
        return bool(api.flow_error(server, sender) == errno.ENOTCONN)

    until(ended)
    assert api.close(server, sender) == 0
    assert api.unlisten(server, IP.encode(), PORT) == 0


def test_a_message_can_be_sent_to_a_flow_that_has_said_nothing_yet(
    api: Api, pair: tuple[int, int, Flow]
) -> None:
    server, client, flow = pair
    until(lambda: api.send(server, flow.swapped(), b"first", 5, None) == 0)
    assert api.get(client)[0] == b"first"


def test_many_flows_of_one_channel_are_told_apart(api: Api, attach: Attach) -> None:
    server, client = attach(), attach()
    assert api.listen(server, IP.encode(), PORT) == 0
    flows = [api.connected(client) for _ in range(50)]
    assert len({flow.src_port for flow in flows}) == 50
    for i, flow in enumerate(flows):
        api.put(client, flow, b"%d" % i)
    got = {}
    for _ in flows:
        data, sender = api.get(server)
        got[sender.src_port] = int(data)
    assert got == {flow.src_port: i for i, flow in enumerate(flows)}
    for flow in flows:
        assert api.close(client, flow) == 0
    assert api.unlisten(server, IP.encode(), PORT) == 0


def test_the_environment_names_the_default_transport(
    api: Api, socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.init() == 0
    monkeypatch.setenv("MACHNET_PROTOCOL", "sctp")
    assert api.fails("attach") == errno.EINVAL
    monkeypatch.setenv("MACHNET_PROTOCOL", "stream")
    ctx = api.attach()
    assert ctx
    try:
        assert api.listen(ctx, IP.encode(), PORT) == 0
        assert api.send(ctx, api.connected(ctx, protocol=STREAM), b"bytes", 5, None) == 5
    finally:
        assert api.detach(ctx) == 0


def test_the_transport_is_udp_unless_something_else_is_said(
    api: Api, socket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MACHNET_PROTOCOL", raising=False)
    assert api.init() == 0
    ctx, flow = api.attach(), Flow()
    assert ctx
    try:
        assert api.listen(ctx, IP.encode(), PORT) == 0
        assert api.connect(ctx, IP.encode(), IP.encode(), PORT, flow) == 0
        assert api.fails("send", ctx, flow, b"", 0, None) == errno.EINVAL  # it has no empty ones
        other = (ctx, IP.encode(), IP.encode(), PORT, Flow(), TCP)
        assert api.fails("connect_proto", *other) == errno.ECONNREFUSED
    finally:
        assert api.detach(ctx) == 0


def test_the_default_transport_carries_messages(api: Api, attach: Attach) -> None:
    server, client = attach(), attach()
    assert api.listen_proto(server, IP.encode(), PORT, UDP) == 0
    flow = api.connected(client, protocol=UDP)
    api.put(client, flow, b"question")
    data, sender = api.get(server)
    assert (data, sender.key()) == (b"question", flow.key())
    api.put(server, sender, b"answer")
    assert api.get(client)[0] == b"answer"
    data = bytes(range(256)) * 32768
    api.put(client, flow, data)
    assert api.get(server, len(data))[0] == data
    assert api.close(client, flow) == 0
    until(lambda: api.flow_error(server, sender) == errno.ENOTCONN)
