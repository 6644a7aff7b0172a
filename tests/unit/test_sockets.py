# SPDX-License-Identifier: MIT
"""`machnet.Stack.socket`: connecting and data, and the errno that each call fails with."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from socket_pair import MS, A, B, Pair, fails

import machnet
from machnet.sim import Wire


@pytest.fixture
def net() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


# --- connecting -----------------------------------------------------------------------------------


def test_connect_step_by_step(net):
    listener = net.listen()
    client = net.a.socket()
    assert client.state == "CLOSED"
    with fails(errno.EINPROGRESS):
        client.connect((B, 80))
    client.connect((B, 80))
    with fails(errno.EISCONN):
        client.connect((B, 80))
    server, peer = listener.accept()
    assert peer == client.getsockname() == server.getpeername()
    assert client.getpeername() == server.getsockname() == (B, 80)
    assert client.state == server.state == "ESTABLISHED"
    assert listener.state == "LISTEN"
    with fails(errno.EAGAIN):
        listener.accept()


def test_connect_in_progress():
    with machnet.Stack(Wire(), ip=A) as stack:
        stack.neighbor(B, "02:00:00:00:00:02")
        sock = stack.socket()
        with fails(errno.EINPROGRESS):
            sock.connect((B, 80))
        with fails(errno.EALREADY):
            sock.connect((B, 80))
        assert sock.state == "SYN-SENT"
        assert sock.getsockname()[0] == A
        assert sock.getsockname()[1] > 0
        with fails(errno.EAGAIN):
            sock.send(b"x")
        with fails(errno.EAGAIN):
            sock.recv(1)
        with fails(errno.ENOTCONN):
            sock.getpeername()
        with fails(errno.ENOTCONN):
            sock.shutdown(socket.SHUT_WR)
        with fails(errno.EINVAL):
            sock.listen()
        with fails(errno.EINVAL):
            sock.bind((A, 5))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        stack.advance(stack.settings.syn_timeout_ms * MS + 1_000 * MS)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert sock.state == "CLOSED"


def test_a_refused_connection_is_told_once_and_can_be_tried_again(net):
    client = net.a.socket()
    assert client.connect_ex((B, 80)) == errno.EINPROGRESS
    assert client.connect_ex((B, 80)) == errno.ECONNREFUSED
    net.listen()
    assert client.connect_ex((B, 80)) == errno.EINPROGRESS
    assert client.connect_ex((B, 80)) == 0


def test_a_refusal_can_be_read_as_an_option(net):
    client = net.a.socket()
    assert client.connect_ex((B, 80)) == errno.EINPROGRESS
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    with fails(errno.ENOTCONN):
        client.recv(1)


def test_a_refusal_is_told_by_recv(net):
    client = net.a.socket()
    assert client.connect_ex((B, 80)) == errno.EINPROGRESS
    with fails(errno.ECONNREFUSED):
        client.recv(1)
    with fails(errno.ENOTCONN):
        client.recv(1)


def test_user_timeout_bounds_connecting():
    with machnet.Stack(Wire(), ip=A) as stack:
        stack.neighbor(B, "02:00:00:00:00:02")
        sock = stack.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3_000)
        with fails(errno.EINPROGRESS):
            sock.connect((B, 80))
        stack.advance(2_900 * MS)
        with fails(errno.EALREADY):
            sock.connect((B, 80))
        stack.advance(200 * MS)
        with fails(errno.ETIMEDOUT):
            sock.connect((B, 80))


def test_closing_while_connecting_leaves_nothing(net):
    net.listen()
    client = net.a.socket()
    with fails(errno.EINPROGRESS):
        client.connect((B, 80))
    client.close()
    net.a.advance(200_000 * MS)
    assert net.a.usage()["tcbs"] == 0
    assert net.b.usage()["tcbs"] == 0


# --- binding and listening ------------------------------------------------------------------------


def test_bind(net):
    sock = net.b.socket()
    assert sock.getsockname() == ("0.0.0.0", 0)
    sock.bind(("", 0))
    ip, port = sock.getsockname()
    assert ip == "0.0.0.0"
    assert port >= 49152
    with fails(errno.EINVAL):
        sock.bind((B, 81))
    with fails(errno.EADDRNOTAVAIL):
        net.b.socket().bind(("10.9.9.9", 80))
    net.listen(80)
    with fails(errno.EADDRINUSE):
        net.b.socket().bind((B, 80))
    for wrong in ("10.0.0.2", (B,), (B, 80, 0)):
        with pytest.raises(TypeError):
            net.b.socket().bind(wrong)
    with pytest.raises(ValueError, match="port"):
        net.b.socket().bind((B, 65536))


def test_a_bound_client_keeps_its_port(net):
    net.listen()
    client = net.a.socket()
    client.bind((A, 4000))
    client.connect_ex((B, 80))
    assert client.connect_ex((B, 80)) == 0
    assert client.getsockname() == (A, 4000)


def test_listen_without_bind_chooses_a_port(net):
    sock = net.b.socket()
    sock.listen()
    sock.listen()
    port = sock.getsockname()[1]
    client = net.a.socket()
    client.connect_ex((B, port))
    assert client.connect_ex((B, port)) == 0
    assert sock.accept()[1] == client.getsockname()


def test_calls_on_the_wrong_kind_of_socket(net):
    listener = net.listen()
    fresh = net.a.socket()
    for sock, call, number in [
        (fresh, fresh.accept, errno.EINVAL),
        (fresh, lambda: fresh.send(b"x"), errno.ENOTCONN),
        (fresh, lambda: fresh.recv(1), errno.ENOTCONN),
        (fresh, lambda: fresh.shutdown(socket.SHUT_RDWR), errno.ENOTCONN),
        (fresh, lambda: fresh.shutdown(77), errno.EINVAL),
        (fresh, fresh.getpeername, errno.ENOTCONN),
        (listener, lambda: listener.connect((A, 80)), errno.EINVAL),
        (listener, lambda: listener.recv(1), errno.ENOTCONN),
    ]:
        with fails(number):
            call()
        assert sock.state in {"CLOSED", "LISTEN"}


def test_a_closed_socket_is_a_bad_descriptor(net):
    client, _ = net.established()
    client.close()
    client.close()
    for call in (
        lambda: client.recv(1),
        lambda: client.send(b"x"),
        client.getsockname,
        client.fileno,
        lambda: client.connect((B, 80)),
        lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
    ):
        with fails(errno.EBADF):
            call()


def test_closing_the_listener_resets_what_nobody_accepted(net):
    listener = net.listen()
    client = net.a.socket()
    client.connect_ex((B, 80))
    assert client.connect_ex((B, 80)) == 0
    listener.close()
    net.a.advance(MS)
    with fails(errno.ECONNRESET):
        client.recv(1)


# --- data -----------------------------------------------------------------------------------------


def test_send_and_recv(net):
    client, server = net.established()
    with fails(errno.EAGAIN):
        server.recv(10)
    assert client.send(b"hello world") == 11
    assert server.recv(0) == b""
    assert server.recv(5) == b"hello"
    assert server.recv(3, socket.MSG_PEEK) == b" wo"
    assert server.recv(100, socket.MSG_DONTWAIT) == b" world"
    assert server.send(memoryview(b"xyz")[1:]) == 2
    assert client.recv(10) == b"yz"
    with fails(errno.EOPNOTSUPP):
        client.recv(1, socket.MSG_OOB)
    with fails(errno.EOPNOTSUPP):
        client.send(b"x", socket.MSG_EOR)
    with pytest.raises(ValueError, match="negative"):
        client.recv(-1)


def test_a_full_socket_says_not_now(net):
    client, server = net.established()
    sent = 0
    with fails(errno.EAGAIN):
        while True:
            sent += client.send(bytes(100_000))
            net.a.advance(10 * MS)
    got = 0
    while got < sent:
        net.a.advance(300 * MS)
        with contextlib.suppress(BlockingIOError):
            while True:
                got += len(server.recv(1 << 20))
    assert got == sent
    assert client.send(b"x") == 1


def test_end_of_stream(net):
    client, server = net.established()
    client.send(b"bye")
    client.shutdown(socket.SHUT_WR)
    with fails(errno.EPIPE):
        client.send(b"x")
    assert server.recv(10) == b"bye"
    assert server.recv(10) == b""
    assert server.recv(10) == b""
    assert (client.state, server.state) == ("FIN-WAIT-2", "CLOSE-WAIT")
    assert server.send(b"still here") == 10
    assert client.recv(20) == b"still here"
    server.close()
    assert client.recv(10) == b""
    assert client.state == "TIME-WAIT"
    net.a.advance(2 * net.a.settings.msl_ms * MS + 10 * MS)
    assert client.state == server.state == "CLOSED"


def test_shutdown_of_reading(net):
    client, server = net.established()
    client.send(b"abc")
    net.a.advance(MS)
    server.shutdown(socket.SHUT_RD)
    assert server.recv(10) == b"abc"
    assert server.recv(10) == b""
    server.shutdown(socket.SHUT_RDWR)
    net.a.advance(MS)
    assert client.recv(1) == b""


def test_a_reset_is_told_once(net):
    client, server = net.established()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.send(b"last")
    net.a.advance(MS)
    client.close()
    net.a.advance(MS)
    assert server.recv(10) == b"last"
    with fails(errno.ECONNRESET):
        server.recv(10)
    assert server.recv(10) == b""
    with fails(errno.EPIPE):
        server.send(b"x")
    with fails(errno.ENOTCONN):
        server.getpeername()
    assert server.state == "CLOSED"


def test_a_reset_behind_the_peers_fin_is_told_to_writers_only(net):
    """As Linux has it: the reader has its end already."""
    client, server = net.established()
    client.send(b"last")
    client.shutdown(socket.SHUT_WR)
    net.a.advance(MS)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    net.a.advance(MS)
    assert server.recv(10) == b"last"
    assert server.recv(10) == b""
    with fails(errno.EPIPE):
        server.send(b"x")
    assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE
    assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert server.recv(10) == b""


def test_nothing_waits_to_be_sent_in_time_wait(net):
    client, server = net.established()
    client.send(b"last")
    client.close()
    net.a.advance(MS)
    assert server.recv(10) == b"last"
    server.close()
    net.a.advance(MS)
    (left,) = net.a.sockets()
    assert (left.state, left.send_queue) == ("TIME-WAIT", 0)
    # No channel has it any more, also not the next one of that number, but it is still one of TCP's.
    assert (left.protocol, left.channel, left.flow) == ("tcp", None, None)


def test_what_came_before_a_reset_is_read_after_it_was_told(net):
    client, server = net.established()
    server.send(b"ab")
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    net.a.advance(MS)
    server.close()
    net.a.advance(MS)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    assert client.recv(1) == b"a"
    assert client.recv(10) == b"b"
    assert client.recv(10) == b""


def test_after_a_reset_there_is_no_peer_told_or_not(net):
    client, server = net.established()
    assert client.getpeername() == (B, 80)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    net.a.advance(MS)
    with fails(errno.ENOTCONN):
        client.getpeername()
    with fails(errno.ECONNRESET):
        client.recv(10)


def test_shutdown_when_both_sides_have_closed(net):
    client, server = net.established()
    client.shutdown(socket.SHUT_WR)
    client.shutdown(socket.SHUT_WR)  # half closed: nothing more to do
    assert server.recv(10) == b""
    assert server.getpeername() == client.getsockname()
    server.shutdown(socket.SHUT_WR)
    assert client.recv(10) == b""
    net.a.advance(MS)
    for end in (client, server):
        with fails(errno.ENOTCONN):
            end.shutdown(socket.SHUT_WR)


def test_a_reset_is_told_by_send(net):
    client, server = net.established()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, (1, 0))
    client.close()
    net.a.advance(MS)
    with fails(errno.ECONNRESET):
        server.send(b"x")
    with fails(errno.EPIPE):
        server.send(b"x")


def test_a_reset_can_be_read_as_an_option(net):
    client, server = net.established()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, (1, 0))
    client.close()
    net.a.advance(MS)
    assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    assert server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert server.recv(1) == b""


def test_a_send_after_a_clean_end_breaks_the_pipe(net):
    client, server = net.established()
    client.close()
    server.shutdown(socket.SHUT_WR)
    net.a.advance(MS)
    assert server.recv(1) == b""
    with fails(errno.EPIPE):
        server.send(b"x")


def test_close_sends_what_was_written(net):
    client, server = net.established()
    data = bytes(range(256)) * 100
    assert client.send(data) == len(data)
    client.close()
    assert client.state in {"FIN-WAIT-1", "FIN-WAIT-2", "ESTABLISHED"}
    got = b""
    while chunk := server.recv(10_000):
        got += chunk
    assert got == data
    server.close()
    net.a.advance(MS)
    assert client.state == "TIME-WAIT"
    assert server.state == "CLOSED"


def test_close_with_unread_data_resets(net):
    """RFC 1122, 4.2.2.13 (RFC 9293, SHLD-3): the peer must learn that its data were lost."""
    client, server = net.established()
    client.send(b"nobody reads this")
    net.a.advance(MS)
    server.close()
    net.a.advance(MS)
    with fails(errno.ECONNRESET):
        client.recv(1)


def test_urgent_data_come_in_line(net):
    client, server = net.established()
    client.send(b"ab")
    client.send(b"cd!", socket.MSG_OOB)
    client.send(b"ef")
    net.a.advance(300 * MS)
    got = b""
    while not server.sockatmark():
        got += server.recv(1)
        assert len(got) < 6
    assert got == b"abcd"
    assert server.recv(10) == b"!ef"
