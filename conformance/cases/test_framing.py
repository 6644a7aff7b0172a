# SPDX-License-Identifier: MIT
"""Messages over TCP: a machnet engine with framing, and a program with the arm's sockets.

The program is what the guide's experiments run on an ordinary Linux machine. Lengths are torn, too
long, cut off; and either side may end it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

import machnet
from conformance.framed import Framed, frame
from conformance.peer import Line, errno_of, pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.arms import Arm

clause = pytest.mark.clause

TIMEOUT_S = 30
LINGER_0 = struct.pack("ii", 1, 0)


@pytest.fixture
def framed(arm: Arm) -> Iterator[Framed]:
    """The engine on the other end of the arm's wire."""
    engine = Framed(arm)
    yield engine
    engine.close()


@pytest.fixture
def port(arm: Arm) -> int:
    """A port that no other case uses."""
    return Line(arm).new_port()


def slot(number: int, size: int) -> bytes:
    """A payload as the message generators make it: window slot, then octets by their place."""
    return struct.pack("<Q", number) + bytes(i & 0xFF for i in range(size - 8))


def client(framed: Framed, port: int) -> tuple[Any, Any]:
    """The program connects to the engine: its socket, and the flow."""
    framed.channel.listen(framed.ip, port, "tcp")
    sock = framed.program_connects(port)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    framed.program_sends(sock, frame(b"hello"))
    hello = framed.channel.recv(TIMEOUT_S)
    assert hello.data == b"hello"
    return sock, hello.flow


def server(framed: Framed, port: int) -> tuple[Any, Any]:
    """The engine connects to the program: its socket, and the flow."""
    listener = framed.arm.socket()
    listener.bind((framed.arm.ip, port))
    listener.listen(5)
    flow = framed.channel.connect(framed.ip, framed.arm.ip, port, "tcp", TIMEOUT_S)
    sock, _ = framed.until(listener.accept)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.close()
    return sock, flow


@clause("experiment 1")
def test_program_as_client(arm: Arm, framed: Framed, port: int) -> None:
    """A POSIX client keeps eight messages in flight to a machnet server, which answers each."""
    framed.channel.listen(framed.ip, port, "tcp")
    sock = framed.program_connects(port)
    for number in range(8):
        framed.program_sends(sock, frame(slot(number, 64)))
    for number in range(100):
        request = framed.channel.recv(TIMEOUT_S)
        framed.channel.send(request.flow, request.data[:8] + bytes(24), timeout=TIMEOUT_S)
        reply = framed.program_reads_message(sock)
        assert struct.unpack_from("<Q", reply) == (number % 8,)
        assert len(reply) == 32
        framed.program_sends(sock, frame(slot(number % 8, 64)))


@clause("experiment 2")
def test_engines_on_both_sides(arm: Arm, framed: Framed, port: int) -> None:
    """Both ends are machnet's, and speak the same."""
    if arm.name != "machnet":
        pytest.skip("both ends are machnet's: there is nothing of Linux in it")
    channel = arm.stack.attach()  # type: ignore[attr-defined]
    channel.listen(arm.ip, port, "tcp")
    flow = framed.channel.connect(framed.ip, arm.ip, port, "tcp", TIMEOUT_S)
    for number in range(100):
        framed.channel.send(flow, slot(number, 64), timeout=TIMEOUT_S)
        request = framed.until(channel.try_recv)
        assert request.data == slot(number, 64)
        channel.send(request.flow, request.data[::-1])
        assert framed.channel.recv(TIMEOUT_S).data == slot(number, 64)[::-1]


@clause("experiment 3")
def test_program_as_server(arm: Arm, framed: Framed, port: int) -> None:
    """A machnet client keeps eight messages in flight to a POSIX server."""
    sock, flow = server(framed, port)
    for number in range(8):
        framed.channel.send(flow, slot(number, 64), timeout=TIMEOUT_S)
    for number in range(100):
        request = framed.program_reads_message(sock)
        assert request == slot(number % 8, 64)
        framed.program_sends(sock, frame(request[:8]))
        reply = framed.channel.recv(TIMEOUT_S)
        assert reply.data == request[:8]
        framed.channel.send(flow, slot(number % 8, 64), timeout=TIMEOUT_S)


@pytest.mark.parametrize("cuts", [[1], [2], [3], [4], [1, 2, 3], [5], [1, 4, 6]], ids=str)
@clause("framing")
def test_torn_length(arm: Arm, framed: Framed, port: int, cuts: list[int]) -> None:
    """A length in several segments, with pauses, is the same length."""
    sock, _ = client(framed, port)
    data = frame(b"torn apart")
    for start, end in itertools.pairwise([0, *cuts, len(data)]):
        framed.program_sends(sock, data[start:end])
        framed.pump()
    assert framed.channel.recv(TIMEOUT_S).data == b"torn apart"


@clause("framing")
def test_octet_by_octet(arm: Arm, framed: Framed, port: int) -> None:
    """Three messages, octet by octet."""
    sock, _ = client(framed, port)
    for octet in frame(b"one") + frame(b"") + frame(b"three"):
        framed.program_sends(sock, bytes([octet]))
    assert [framed.channel.recv(TIMEOUT_S).data for _ in range(3)] == [b"one", b"", b"three"]


@clause("framing")
def test_many_in_one_segment(arm: Arm, framed: Framed, port: int) -> None:
    """Many messages, and the beginning of one more, in one segment."""
    sock, _ = client(framed, port)
    last = frame(b"the last one")
    framed.program_sends(sock, b"".join(frame(b"%d" % i) for i in range(50)) + last[:7])
    for i in range(50):
        assert framed.channel.recv(TIMEOUT_S).data == b"%d" % i
    assert framed.channel.try_recv() is None
    framed.program_sends(sock, last[7:])
    assert framed.channel.recv(TIMEOUT_S).data == b"the last one"


@clause("framing")
def test_empty_messages(arm: Arm, framed: Framed, port: int) -> None:
    """Length 0 is a message, in both directions."""
    sock, flow = client(framed, port)
    framed.program_sends(sock, frame(b"") * 3)
    assert [framed.channel.recv(TIMEOUT_S).data for _ in range(3)] == [b"", b"", b""]
    framed.channel.send(flow, b"", timeout=TIMEOUT_S)
    assert framed.program_reads(sock, 4) == bytes(4)


@pytest.mark.parametrize("size", [1456, 1460, 65535, 65536, 1 << 20])
@clause("framing")
def test_sizes_to_the_engine(arm: Arm, framed: Framed, port: int, size: int) -> None:
    """Messages of all sizes arrive whole, octet by octet the same."""
    sock, _ = client(framed, port)
    data = pattern(size, size)
    framed.program_sends(sock, frame(data))
    assert framed.channel.recv(TIMEOUT_S).data == data


@pytest.mark.parametrize("size", [1456, 1460, 65535, 65536, 1 << 20])
@clause("framing")
def test_sizes_to_the_program(arm: Arm, framed: Framed, port: int, size: int) -> None:
    """The same from the engine to the program."""
    sock, flow = server(framed, port)
    data = pattern(size, size)
    framed.channel.send(flow, data, timeout=TIMEOUT_S)
    assert framed.program_reads(sock, 4 + size) == frame(data)


@pytest.mark.parametrize("length", [(8 << 20) + 1, 1 << 31, (1 << 32) - 1, 0x47455420])
@clause("framing")
def test_length_over_the_limit(arm: Arm, framed: Framed, port: int, length: int) -> None:
    """A length over 8 MiB ("GET " is one) resets the flow, after what came before; both are told."""
    sock, flow = client(framed, port)
    framed.program_sends(sock, frame(b"good") + struct.pack("!I", length) + b"and so on")
    assert framed.channel.recv(TIMEOUT_S).data == b"good"
    with pytest.raises(machnet.FlowProtocolError) as told:
        framed.channel.recv(TIMEOUT_S)
    assert told.value.errno == errno.EMSGSIZE
    assert told.value.flow == flow
    framed.pump()
    assert errno_of(lambda: sock.recv(1)) == "ECONNRESET"


@pytest.mark.parametrize("cut", [1, 3, 4, 7], ids=str)
@clause("framing")
def test_end_inside_a_message(arm: Arm, framed: Framed, port: int, cut: int) -> None:
    """A stream that ends inside a length or a payload is an error, after what came before."""
    sock, _ = client(framed, port)
    framed.program_sends(sock, frame(b"whole") + frame(b"broken")[:cut])
    sock.close()
    assert framed.channel.recv(TIMEOUT_S).data == b"whole"
    with pytest.raises(machnet.FlowProtocolError) as told:
        framed.channel.recv(TIMEOUT_S)
    assert told.value.errno == errno.EPROTO


@clause("framing")
def test_end_between_messages(arm: Arm, framed: Framed, port: int) -> None:
    """A stream that ends between two messages is no error, and half-closed it still gets answers."""
    sock, flow = client(framed, port)
    framed.program_sends(sock, frame(b"question"))
    sock.shutdown(socket.SHUT_WR)
    assert framed.channel.recv(TIMEOUT_S).data == b"question"
    framed.pump()
    assert framed.channel.try_recv() is None
    framed.channel.send(flow, b"first", timeout=TIMEOUT_S)
    framed.channel.send(flow, b"second", timeout=TIMEOUT_S)
    assert framed.program_reads_message(sock) == b"first"
    assert framed.program_reads_message(sock) == b"second"
    assert framed.program_reads(sock, 1) == b""


@clause("framing")
def test_reset_by_the_program(arm: Arm, framed: Framed, port: int) -> None:
    """A program that resets: the engine's application is told once."""
    sock, flow = client(framed, port)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    sock.close()
    with pytest.raises(machnet.FlowResetError) as told:
        framed.channel.recv(TIMEOUT_S)
    assert told.value.flow == flow
    assert framed.channel.try_recv() is None


@clause("framing")
def test_close_by_the_engine(arm: Arm, framed: Framed, port: int) -> None:
    """What was sent before close() arrives, then the end of the stream."""
    sock, flow = client(framed, port)
    framed.channel.send(flow, b"the last", timeout=TIMEOUT_S)
    flow.close()
    assert framed.program_reads_message(sock) == b"the last"
    assert framed.program_reads(sock, 1) == b""


@clause("framing")
def test_hard_close_by_the_engine(arm: Arm, framed: Framed, port: int) -> None:
    """close(linger=0) resets."""
    sock, flow = client(framed, port)
    flow.close(linger=0)
    framed.pump()
    assert errno_of(lambda: sock.recv(1)) == "ECONNRESET"


@clause("framing")
def test_program_that_does_not_read(arm: Arm, framed: Framed, port: int) -> None:
    """A program that reads nothing stops the sender, who is told; nothing is lost when it goes on."""
    sock, flow = server(framed, port)
    sizes = itertools.cycle([60_000, 10, 30_000, 1])
    sent: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while len(sent) < 10_000:
            message = pattern(len(sent), next(sizes))
            framed.channel.send(flow, message, timeout=0.02)
            sent.append(message)
    assert 0 < len(sent) < 10_000
    for message in sent:
        assert framed.program_reads_message(sock) == message


@clause("framing")
def test_engine_that_does_not_read(arm: Arm, framed: Framed, port: int) -> None:
    """An application that reads nothing stops the program; nothing is lost when it goes on."""
    sock, _ = client(framed, port)
    data = b"".join(frame(pattern(i, 20_000)) for i in range(2000))
    sent = refused = 0
    while refused < 5:  # five times in a row, with time between them, there is no room
        framed.pump()
        with contextlib.suppress(BlockingIOError):
            sent += sock.send(data[sent : sent + 65536])
            refused = 0
            continue
        refused += 1
        framed.pump(1_000_000)
    assert 0 < sent < len(data)
    for i in range(sent // 20_004):
        assert framed.channel.recv(TIMEOUT_S).data == pattern(i, 20_000)
