# SPDX-License-Identifier: MIT
"""`machnet.Stack.socket`: options, descriptors, and the same steps as a Linux socket takes.

The comparisons run each case with sockets of two stacks and with Linux sockets over loopback, and
what comes out must be the same.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from socket_pair import MS, B, Pair, fails

import machnet
from machnet.sim import Wire


@pytest.fixture
def net() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


# --- options --------------------------------------------------------------------------------------

TCP, SOL, IP = socket.IPPROTO_TCP, socket.SOL_SOCKET, socket.IPPROTO_IP
SETTABLE = [
    (TCP, socket.TCP_NODELAY, 1, 1),
    (TCP, socket.TCP_NODELAY, 7, 1),
    (SOL, socket.SO_KEEPALIVE, 1, 1),
    (TCP, socket.TCP_KEEPIDLE, 60, 60),
    (TCP, socket.TCP_KEEPINTVL, 5, 5),
    (TCP, socket.TCP_KEEPCNT, 3, 3),
    (TCP, socket.TCP_USER_TIMEOUT, 30_000, 30_000),
    (SOL, socket.SO_RCVBUF, 100_000, 100_000),
    (IP, socket.IP_TOS, 0xB9, 0xB8),
    (IP, socket.IP_TTL, 3, 3),
    (TCP, socket.TCP_QUICKACK, 1, 1),
    (SOL, socket.SO_REUSEADDR, 1, 1),
]


@pytest.mark.parametrize(("level", "name", "value", "read"), SETTABLE)
def test_an_option_reads_back_before_and_after_connecting(net, level, name, value, read):
    fresh = net.a.socket()
    fresh.setsockopt(level, name, value)
    assert fresh.getsockopt(level, name) == read
    listener = net.b.socket()
    listener.bind((B, 80))
    listener.setsockopt(level, name, value)
    listener.listen()
    fresh.connect_ex((B, 80))
    assert fresh.connect_ex((B, 80)) == 0
    assert fresh.getsockopt(level, name) == read
    accepted, _ = listener.accept()
    if name != socket.SO_REUSEADDR or level != SOL:
        assert accepted.getsockopt(level, name) == read
    late, _ = net.established(81)
    late.setsockopt(level, name, value)
    assert late.getsockopt(level, name) == read


@pytest.mark.parametrize(
    ("level", "name", "value"),
    [
        (TCP, socket.TCP_KEEPIDLE, 0),
        (TCP, socket.TCP_KEEPCNT, 256),
        (TCP, socket.TCP_MAXSEG, 87),
        (IP, socket.IP_TTL, 0),
        (IP, socket.IP_TTL, 256),
        (SOL, socket.SO_RCVBUF, 0),
        (SOL, socket.SO_LINGER, b"xx"),
        (SOL, socket.SO_LINGER, (1, -1)),
        (TCP, machnet.TCP_ISN, 2**32),
    ],
)
def test_an_option_out_of_its_range(net, level, name, value):
    with fails(errno.EINVAL):
        net.a.socket().setsockopt(level, name, value)
    client, _ = net.established()
    with fails(errno.EINVAL):
        client.setsockopt(level, name, value)


def test_an_unknown_option(net):
    sock = net.a.socket()
    for level, name in ((SOL, socket.SO_BROADCAST), (TCP, 12345), (99, 1)):
        with fails(errno.ENOPROTOOPT):
            sock.setsockopt(level, name, 1)
        with fails(errno.ENOPROTOOPT):
            sock.getsockopt(level, name)
    for level, name in ((SOL, socket.SO_LINGER), (TCP, socket.TCP_NODELAY)):
        with pytest.raises(TypeError):
            sock.setsockopt(level, name, "1")


def test_maxseg_bounds_the_segments(net):
    """What is read on a connection is the payload of a full segment: 12 bytes go to timestamps."""
    client, server = net.established()
    client.setsockopt(TCP, socket.TCP_MAXSEG, 500)
    assert client.getsockopt(TCP, socket.TCP_MAXSEG) == 488
    before = net.a.stats()["tx_frames"]
    client.send(bytes(4880))
    net.a.advance(300 * MS)
    assert len(server.recv(10_000)) == 4880
    assert net.a.stats()["tx_frames"] - before == 10


def test_options_that_are_only_read(net):
    listener = net.listen()
    sock = net.a.socket()
    assert sock.getsockopt(SOL, socket.SO_TYPE) == socket.SOCK_STREAM
    assert sock.getsockopt(SOL, socket.SO_DOMAIN) == socket.AF_INET
    assert sock.getsockopt(SOL, socket.SO_PROTOCOL) == socket.IPPROTO_TCP
    assert sock.getsockopt(SOL, socket.SO_ACCEPTCONN) == 0
    assert listener.getsockopt(SOL, socket.SO_ACCEPTCONN) == 1
    assert sock.getsockopt(SOL, socket.SO_LINGER) == (0, 0)
    sock.setsockopt(SOL, socket.SO_LINGER, (5, 7))
    assert sock.getsockopt(SOL, socket.SO_LINGER, 8) == struct.pack("ii", 1, 7)
    with fails(errno.ENOTCONN):
        sock.getsockopt(TCP, socket.TCP_INFO)


def test_tcp_info(net):
    client, _ = net.established()
    client.send(bytes(1000))
    info = client.getsockopt(TCP, socket.TCP_INFO)
    assert info.state == "ESTABLISHED"
    assert info.remote == (B, 80)
    assert info.mss == 1448
    assert info == client.info()


def test_the_initial_sequence_number_can_be_chosen(net):
    listener = net.b.socket()
    listener.bind((B, 80))
    listener.setsockopt(TCP, machnet.TCP_ISN, 0xFFFFFFF0)
    listener.listen()
    client, other = net.a.socket(), net.a.socket()
    client.setsockopt(TCP, machnet.TCP_ISN, 1000)
    for sock in (client, other):
        sock.connect_ex((B, 80))
        assert sock.connect_ex((B, 80)) == 0
    assert client.info().snd_nxt == 1001
    assert other.info().snd_nxt != 1001
    server, _ = listener.accept()
    assert server.info().snd_nxt == 0xFFFFFFF1


def test_keepalive_gives_a_silent_peer_up():
    net = Pair()
    client, _ = net.established()
    for level, name, value in (
        (SOL, socket.SO_KEEPALIVE, 1),
        (TCP, socket.TCP_KEEPIDLE, 10),
        (TCP, socket.TCP_KEEPINTVL, 2),
        (TCP, socket.TCP_KEEPCNT, 3),
    ):
        client.setsockopt(level, name, value)
    net.a.advance(60_000 * MS)
    with fails(errno.EAGAIN):
        client.recv(1)
    net.b.core.close()  # the peer's machine is switched off
    net.a.advance(20_000 * MS)
    with fails(errno.ETIMEDOUT):
        client.recv(1)
    net.close()


# --- waiting --------------------------------------------------------------------------------------


@pytest.fixture
def threaded() -> Iterator[machnet.Stack]:
    with machnet.Stack(Wire(), ip=B, thread=True) as stack:
        yield stack
        stack.close(linger=0)


def until(call: Callable[[], Any], fd: Any) -> Any:
    """Repeat a call whenever the descriptor says so."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            return call()
        assert select.select([fd], [], [], 20)[0], "no wake-up"
    raise AssertionError("timeout")


def connect(sock: machnet.Socket, address: tuple[str, int]) -> None:
    with contextlib.suppress(BlockingIOError):
        sock.connect(address)
    until(lambda: sock.connect(address), sock)


def test_descriptors_of_many_sockets(threaded):
    """All sockets share a channel: each descriptor must announce its own socket's news."""
    listener = threaded.socket()
    listener.bind((B, 80))
    listener.listen(50)
    clients, servers = [], []
    for _ in range(20):
        client = threaded.socket()
        client.fileno()
        connect(client, (B, 80))
        clients.append(client)
        server, _ = until(listener.accept, listener)
        server.fileno()
        servers.append(server)
    for turn in range(10):
        for i, client in enumerate(clients):
            client.send(bytes([turn, i]))
        for i in reversed(range(20)):
            assert until(lambda i=i: servers[i].recv(2), servers[i]) == bytes([turn, i])
            servers[i].send(bytes([i]))
        for i in range(20):
            assert until(lambda i=i: clients[i].recv(2), clients[i]) == bytes([i])
        for sock in clients + servers:
            with pytest.raises(BlockingIOError):
                sock.recv(1)


def test_a_quiet_socket_is_not_readable(threaded):
    listener = threaded.socket()
    listener.bind((B, 80))
    listener.listen()
    client = threaded.socket()
    connect(client, (B, 80))
    server, _ = until(listener.accept, listener)
    for sock in (client, server):
        sock.fileno()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for sock in (client, server):
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        if not select.select([client, server], [], [], 0.01)[0]:
            break
    else:
        raise AssertionError("the descriptors never got quiet")
    client.send(b"x")
    assert select.select([server], [], [], 20)[0]


def test_a_sender_is_told_of_room(threaded):
    listener = threaded.socket()
    listener.bind((B, 80))
    listener.listen()
    client = threaded.socket()
    connect(client, (B, 80))
    server, _ = until(listener.accept, listener)
    data = bytes(range(256)) * (4 << 12)
    sent, got = 0, bytearray()
    while len(got) < 3 * len(data):
        if sent < 3 * len(data):
            with contextlib.suppress(BlockingIOError):
                sent += client.send(memoryview(data * 3)[sent : sent + (1 << 20)])
        with contextlib.suppress(BlockingIOError):
            got += server.recv(1 << 20)
            continue
        select.select([client, server], [], [], 20)
    assert bytes(got) == data * 3


# --- like Linux -----------------------------------------------------------------------------------


def both(
    case: Callable[[Callable[[], Any], Callable[[], Any], str, Callable[[], None]], Any],
) -> None:
    """Run a case on machnet's sockets and on those of Linux, and compare what it returns."""
    pair = Pair()
    try:
        ours = case(pair.a.socket, pair.b.socket, B, lambda: pair.a.advance(50 * MS))
    finally:
        pair.close()
    made: list[socket.socket] = []

    def make() -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        made.append(sock)
        return sock

    try:
        theirs = case(make, make, "127.0.0.1", lambda: time.sleep(0.05))
    finally:
        for sock in made:
            sock.close()
    assert ours == theirs


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno]


def serve(make: Callable[[], Any], ip: str) -> Any:
    sock = make()
    sock.bind((ip, 0))
    sock.listen(5)
    return sock


def test_like_linux_connecting():
    def case(make_client, make_server, ip, wait):
        listener = serve(make_server, ip)
        address = (ip, listener.getsockname()[1])
        client = make_client()
        seen = [outcome(lambda: client.connect(address))]
        wait()
        seen.append(outcome(lambda: client.connect(address)))
        seen.append(outcome(lambda: client.connect(address)))
        server = listener.accept()[0]
        seen.append(outcome(lambda: server.send(b"abc")))
        wait()
        seen.append(outcome(lambda: client.recv(2, socket.MSG_PEEK)))
        seen.append(outcome(lambda: client.recv(10)))
        seen.append(outcome(lambda: client.recv(10)))
        seen.append(outcome(lambda: client.listen()))
        seen.append(outcome(lambda: listener.accept()))
        server.close()
        wait()
        seen += [outcome(lambda: client.recv(10)), outcome(lambda: client.recv(10))]
        return seen

    both(case)


def test_like_linux_refused():
    def case(make_client, make_server, ip, wait):
        listener = serve(make_server, ip)
        address = (ip, listener.getsockname()[1])
        listener.close()
        client = make_client()
        seen = [outcome(lambda: client.connect(address))]
        wait()
        seen.append(outcome(lambda: client.connect(address)))
        other = make_client()
        other.connect_ex(address)
        wait()
        seen.append(other.getsockopt(SOL, socket.SO_ERROR))
        seen.append(other.getsockopt(SOL, socket.SO_ERROR))
        return seen

    both(case)


def test_like_linux_reset_and_shutdown():
    def case(make_client, make_server, ip, wait):
        listener = serve(make_server, ip)
        address = (ip, listener.getsockname()[1])
        seen = []
        for how in ("reset", "shutdown"):
            client = make_client()
            client.connect_ex(address)
            wait()
            client.connect_ex(address)
            server = listener.accept()[0]
            if how == "reset":
                client.setsockopt(SOL, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
            else:
                client.shutdown(socket.SHUT_WR)
                seen.append(outcome(lambda c=client: c.send(b"x")))
            wait()
            seen.append(outcome(lambda s=server: s.recv(1)))
            seen.append(outcome(lambda s=server: s.recv(1)))
            seen.append(outcome(lambda s=server: s.send(b"x")))
            server.close()
        return seen

    both(case)


def test_like_linux_misuse():
    def case(make_client, make_server, ip, wait):
        del wait
        fresh, listener = make_client(), serve(make_server, ip)
        return [
            outcome(lambda: fresh.recv(1)),
            outcome(fresh.getpeername),
            outcome(lambda: fresh.shutdown(socket.SHUT_WR)),
            outcome(fresh.accept),
            outcome(lambda: listener.recv(1)),
            outcome(lambda: make_server().bind(("192.0.2.77", 0))),
            outcome(lambda: make_server().bind((ip, listener.getsockname()[1]))),
            outcome(lambda: listener.bind((ip, 0))),
            outcome(lambda: fresh.setsockopt(TCP, socket.TCP_KEEPCNT, 0)),
            outcome(lambda: fresh.setsockopt(IP, socket.IP_TTL, 256)),
            outcome(lambda: fresh.getsockopt(SOL, socket.SO_TYPE)),
        ]

    both(case)
