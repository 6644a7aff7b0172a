# SPDX-License-Identifier: MIT
"""What each call fails with in each state."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING, Any

import pytest

from conformance.peer import errno_of

if TYPE_CHECKING:
    from conformance.arms import Arm
    from conformance.peer import Peer

clause = pytest.mark.clause

#: States of a socket; see `bring_to`.
STATES = (
    "fresh",
    "bound",
    "listening",
    "connecting",
    "refused",
    "open",
    "peer closed",
    "shut down",
    "both closed",
    "reset",
    "reset and told",
    "closed",
)


def bring_to(arm: Arm, peer: Peer, state: str) -> Any:
    """A socket of the arm in a state."""
    if state in {"fresh", "bound"}:
        sock = arm.socket()
        if state == "bound":
            sock.bind((arm.ip, peer.line.new_port()))
        return sock
    if state == "listening":
        return peer.listen()
    if state in {"connecting", "refused"}:
        sock = peer.connect()
        if state == "refused":
            peer.send("RA", seq=0)
            arm.settle()
        return sock
    sock = peer.established()
    if state in {"peer closed", "both closed"}:
        peer.send("FA")
        peer.expect("A", ack=2)
    if state in {"shut down", "both closed"}:
        sock.shutdown(socket.SHUT_WR)
        peer.expect("FA")
        peer.send("A")
    if state.startswith("reset"):
        peer.send("R")
        if state == "reset and told":
            arm.settle()
            assert errno_of(lambda: sock.recv(1)) == "ECONNRESET"
    if state == "closed":
        sock.close()
    arm.settle()
    return sock


def outcome(call: Any) -> str:
    """Errno of a call, or a short form of what it gave."""
    try:
        value = call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    if isinstance(value, bytes):
        return repr(value.decode())
    return "ok" if value is None or isinstance(value, tuple) else str(value)


def table(text: str) -> list[tuple[str, str]]:
    """Lines "state: outcome" as pairs."""
    pairs = [line.split(":") for line in text.strip().splitlines()]
    found = [(state.strip(), result.strip()) for state, result in pairs]
    assert [state for state, _ in found] == list(STATES)
    return found


SEND = table("""
    fresh: ENOTCONN
    bound: ENOTCONN
    listening: ENOTCONN
    connecting: EAGAIN
    refused: ECONNREFUSED
    open: 1
    peer closed: 1
    shut down: EPIPE
    both closed: EPIPE
    reset: ECONNRESET
    reset and told: EPIPE
    closed: EBADF
""")


@pytest.mark.parametrize(("state", "result"), SEND, ids=[state for state, _ in SEND])
@clause("POSIX send()")
def test_send(arm: Arm, peer: Peer, state: str, result: str) -> None:
    """send() in each state."""
    sock = bring_to(arm, peer, state)
    assert outcome(lambda: sock.send(b"x")) == result


RECV = table("""
    fresh: ENOTCONN
    bound: ENOTCONN
    listening: ENOTCONN
    connecting: EAGAIN
    refused: ECONNREFUSED
    open: EAGAIN
    peer closed: ''
    shut down: EAGAIN
    both closed: ''
    reset: ECONNRESET
    reset and told: ''
    closed: EBADF
""")


@pytest.mark.parametrize(("state", "result"), RECV, ids=[state for state, _ in RECV])
@clause("POSIX recv()")
def test_recv(arm: Arm, peer: Peer, state: str, result: str) -> None:
    """recv() in each state."""
    sock = bring_to(arm, peer, state)
    assert outcome(lambda: sock.recv(10)) == result


CONNECT = table("""
    fresh: EINPROGRESS
    bound: EINPROGRESS
    listening: EOPNOTSUPP
    connecting: EALREADY
    refused: ECONNREFUSED
    open: EISCONN
    peer closed: EISCONN
    shut down: EISCONN
    both closed: EISCONN
    reset: EISCONN
    reset and told: EISCONN
    closed: EBADF
""")


@pytest.mark.parametrize(("state", "result"), CONNECT, ids=[state for state, _ in CONNECT])
@clause("POSIX connect()")
def test_connect(arm: Arm, peer: Peer, state: str, result: str) -> None:
    """connect() in each state."""
    sock = bring_to(arm, peer, state)
    assert outcome(lambda: sock.connect(peer.address)) == result


ACCEPT = table("""
    fresh: EINVAL
    bound: EINVAL
    listening: EAGAIN
    connecting: EINVAL
    refused: EINVAL
    open: EINVAL
    peer closed: EINVAL
    shut down: EINVAL
    both closed: EINVAL
    reset: EINVAL
    reset and told: EINVAL
    closed: EBADF
""")


@pytest.mark.parametrize(("state", "result"), ACCEPT, ids=[state for state, _ in ACCEPT])
@clause("POSIX accept()")
def test_accept(arm: Arm, peer: Peer, state: str, result: str) -> None:
    """accept() in each state."""
    sock = bring_to(arm, peer, state)
    assert outcome(sock.accept) == result


SHUTDOWN = table("""
    fresh: ENOTCONN
    bound: ENOTCONN
    listening: ENOTCONN
    connecting: ENOTCONN
    refused: ENOTCONN
    open: ok
    peer closed: ok
    shut down: ok
    both closed: ENOTCONN
    reset: ENOTCONN
    reset and told: ENOTCONN
    closed: EBADF
""")


@pytest.mark.parametrize(("state", "result"), SHUTDOWN, ids=[state for state, _ in SHUTDOWN])
@clause("POSIX shutdown()")
def test_shutdown(arm: Arm, peer: Peer, state: str, result: str) -> None:
    """shutdown(SHUT_WR) in each state."""
    sock = bring_to(arm, peer, state)
    assert outcome(lambda: sock.shutdown(socket.SHUT_WR)) == result


LISTEN = table("""
    fresh: ok
    bound: ok
    listening: ok
    connecting: EINVAL
    refused: EINVAL
    open: EINVAL
    peer closed: EINVAL
    shut down: EINVAL
    both closed: EINVAL
    reset: EINVAL
    reset and told: EINVAL
    closed: EBADF
""")


@pytest.mark.parametrize(("state", "result"), LISTEN, ids=[state for state, _ in LISTEN])
@clause("POSIX listen()")
def test_listen(arm: Arm, peer: Peer, state: str, result: str) -> None:
    """listen() in each state."""
    sock = bring_to(arm, peer, state)
    assert outcome(lambda: sock.listen(5)) == result


PEERNAME = table("""
    fresh: ENOTCONN
    bound: ENOTCONN
    listening: ENOTCONN
    connecting: ENOTCONN
    refused: ENOTCONN
    open: ok
    peer closed: ok
    shut down: ok
    both closed: ENOTCONN
    reset: ENOTCONN
    reset and told: ENOTCONN
    closed: EBADF
""")


@pytest.mark.parametrize(("state", "result"), PEERNAME, ids=[state for state, _ in PEERNAME])
@clause("POSIX getpeername()")
def test_getpeername(arm: Arm, peer: Peer, state: str, result: str) -> None:
    """getpeername() in each state."""
    sock = bring_to(arm, peer, state)
    assert outcome(sock.getpeername) == result


SO_ERROR = table("""
    fresh: 0
    bound: 0
    listening: 0
    connecting: 0
    refused: ECONNREFUSED
    open: 0
    peer closed: 0
    shut down: 0
    both closed: 0
    reset: ECONNRESET
    reset and told: 0
    closed: EBADF
""")


@pytest.mark.parametrize(("state", "result"), SO_ERROR, ids=[state for state, _ in SO_ERROR])
@clause("POSIX getsockopt()")
def test_so_error(arm: Arm, peer: Peer, state: str, result: str) -> None:
    """SO_ERROR in each state; it is told once."""
    sock = bring_to(arm, peer, state)

    def read() -> str:
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return errno.errorcode[number] if number else "0"

    assert outcome(read) == result
    assert outcome(read) == ("EBADF" if state == "closed" else "0")


BIND = table("""
    fresh: ok
    bound: EINVAL
    listening: EINVAL
    connecting: EINVAL
    refused: ok
    open: EINVAL
    peer closed: EINVAL
    shut down: EINVAL
    both closed: EINVAL
    reset: EINVAL
    reset and told: EINVAL
    closed: EBADF
""")


@pytest.mark.parametrize(("state", "result"), BIND, ids=[state for state, _ in BIND])
@clause("POSIX bind()")
def test_bind(arm: Arm, peer: Peer, state: str, result: str) -> None:
    """bind() in each state."""
    sock = bring_to(arm, peer, state)
    assert outcome(lambda: sock.bind((arm.ip, peer.line.new_port()))) == result


@clause("POSIX connect()")
def test_connect_is_told_once(arm: Arm, peer: Peer) -> None:
    """connect() that has worked says so once (0), then EISCONN."""
    sock = peer.connect()
    assert errno_of(lambda: sock.connect(peer.address)) == "EALREADY"
    peer.send("SA")
    peer.expect("A")
    arm.settle()
    assert errno_of(lambda: sock.connect(peer.address)) is None
    assert errno_of(lambda: sock.connect(peer.address)) == "EISCONN"


@clause("POSIX connect()")
def test_connect_after_so_error(arm: Arm, peer: Peer) -> None:
    """After a refusal that was told by SO_ERROR a new attempt can begin."""
    sock = bring_to(arm, peer, "refused")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    other = peer.another()
    result = errno_of(lambda: sock.connect(other.address))
    if result == "ECONNABORTED":  # Linux has to be asked once more
        result = errno_of(lambda: sock.connect(other.address))
    assert result == "EINPROGRESS"
    other.expect_syn()
    other.send("SA")
    other.expect("A", ack=1)


@clause("POSIX bind()")
def test_bind_in_use(arm: Arm, peer: Peer) -> None:
    """A port that somebody listens on: EADDRINUSE."""
    listener = peer.listen()
    other = arm.socket()
    assert errno_of(lambda: other.bind(listener.getsockname())) == "EADDRINUSE"


@clause("POSIX bind()")
def test_bind_foreign_address(arm: Arm, peer: Peer) -> None:
    """An address that the host does not have: EADDRNOTAVAIL."""
    sock = arm.socket()
    assert errno_of(lambda: sock.bind(("10.77.0.1", 4711))) == "EADDRNOTAVAIL"


@clause("POSIX bind()")
def test_bind_to_any(arm: Arm, peer: Peer) -> None:
    """Port 0 gives a free port, which getsockname() tells."""
    sock = arm.socket()
    sock.bind((arm.ip, 0))
    assert sock.getsockname()[1] >= 1024


@pytest.mark.parametrize("where", ["255.255.255.255", "10.9.255.255", "224.0.0.1"])
@clause("RFC 9293 MUST-46")
def test_connect_to_everybody(arm: Arm, peer: Peer, where: str) -> None:
    """connect() to a broadcast or multicast address: ENETUNREACH, without a segment being sent."""
    sock = arm.socket()
    assert how_it_fails(arm, sock, where) == "ENETUNREACH"
    peer.line.collect()
    # A connection of an earlier case may still say something, to somebody else.
    assert not [frame for _, frame in peer.line.frames if frame[30:34] == socket.inet_aton(where)]


@clause("POSIX connect()")
def test_connect_to_nowhere(arm: Arm, peer: Peer) -> None:
    """connect() to a network without a route: ENETUNREACH."""
    sock = arm.socket()
    assert how_it_fails(arm, sock, "192.0.2.1") == "ENETUNREACH"


def how_it_fails(arm: Arm, sock: Any, where: str) -> str | None:
    """Errno of a connect(), which may first say EINPROGRESS."""
    result = errno_of(lambda: sock.connect((where, 80)))
    if result == "EINPROGRESS":
        arm.settle()
        result = errno_of(lambda: sock.connect((where, 80)))
    return result


@pytest.mark.parametrize(
    ("level", "name", "value", "result"),
    [
        (socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1, "EINVAL"),
        (socket.IPPROTO_TCP, socket.TCP_MAXSEG, 100_000, "EINVAL"),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 0, "EINVAL"),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1 << 30, "EINVAL"),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 0, "EINVAL"),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 1000, "EINVAL"),
        (socket.IPPROTO_IP, socket.IP_TTL, 0, "EINVAL"),
        (socket.IPPROTO_IP, socket.IP_TTL, 256, "EINVAL"),
        (socket.IPPROTO_TCP, 9999, 1, "ENOPROTOOPT"),
        (socket.SOL_SOCKET, 9999, 1, "ENOPROTOOPT"),
    ],
)
@clause("POSIX setsockopt()")
def test_setsockopt_refuses(
    arm: Arm, peer: Peer, level: int, name: int, value: int, result: str
) -> None:
    """Options that do not exist, and values out of their range."""
    sock = arm.socket()
    assert errno_of(lambda: sock.setsockopt(level, name, value)) == result


@pytest.mark.parametrize(
    ("level", "name", "value"),
    [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 33),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 12345),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
        (socket.IPPROTO_IP, socket.IP_TTL, 12),
        (socket.IPPROTO_IP, socket.IP_TOS, 0x88),
    ],
)
@clause("POSIX getsockopt()")
def test_options_are_read_back(arm: Arm, peer: Peer, level: int, name: int, value: int) -> None:
    """What setsockopt() has set, getsockopt() gives, before and after connecting."""
    sock = arm.socket()
    sock.setsockopt(level, name, value)
    assert sock.getsockopt(level, name) == value
    peer.connect(sock)
    peer.send("SA")
    peer.expect("A")
    assert sock.getsockopt(level, name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (socket.SO_TYPE, socket.SOCK_STREAM),
        (socket.SO_DOMAIN, socket.AF_INET),
        (socket.SO_PROTOCOL, socket.IPPROTO_TCP),
    ],
)
@clause("POSIX getsockopt()")
def test_what_it_is(arm: Arm, peer: Peer, name: int, value: int) -> None:
    """SO_TYPE, SO_DOMAIN and SO_PROTOCOL."""
    assert arm.socket().getsockopt(socket.SOL_SOCKET, name) == value


@clause("POSIX getsockopt()")
def test_acceptconn(arm: Arm, peer: Peer) -> None:
    """SO_ACCEPTCONN tells a listener."""
    assert peer.listen().getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    assert arm.socket().getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0


@clause("POSIX recv()")
def test_recv_of_nothing(arm: Arm, peer: Peer) -> None:
    """recv() of no octets gives none, whatever waits."""
    sock = peer.established()
    assert sock.recv(0) == b""
    peer.send("A", 5)
    arm.settle()
    assert sock.recv(0) == b""
    peer.read(sock, 5)


@clause("POSIX send()")
def test_send_of_nothing(arm: Arm, peer: Peer) -> None:
    """send() of no octets gives 0 and sends none."""
    sock = peer.established()
    assert sock.send(b"") == 0
    peer.expect_nothing()


@clause("POSIX send()")
def test_send_until_it_is_full(arm: Arm, peer: Peer) -> None:
    """send() takes what there is room for, then says EAGAIN, and takes more when that is acknowledged."""
    sock = peer.established(wscale=7)
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while taken < 1 << 30:
            taken += sock.send(bytes(65536))
    assert 0 < taken < 1 << 30
    assert errno_of(lambda: sock.send(b"x")) == "EAGAIN"
    for _ in range(10_000):
        if not (got := peer.drain()):
            got = [peer.expect("A")]
        peer.send("A", ack=max(segment.end for segment in got))
        if errno_of(lambda: sock.send(b"x")) is None:
            return
    raise AssertionError("there is never room again")
