# SPDX-License-Identifier: MIT
"""Stream sockets of machnet against stream sockets of Linux over a TAP."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest
from linux_peer import (
    KERNEL_IP,
    MIB,
    OUR_IP,
    PATIENCE_S,
    PORT,
    Peer,
    beside,
    eventually,
    linux_peer,
    needs_tap,
    pattern,
    read_to_end,
    recv_exactly,
    reset,
    tcp_info,
)

from machnet import aio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from machnet import Socket

pytestmark = pytest.mark.skipif(needs_tap() is not None, reason=str(needs_tap()))


def attempt(call: Callable[[], Any]) -> Any:
    """What a call answers; None when it says "not now"."""
    with contextlib.suppress(BlockingIOError):
        return call()
    return None


def until(sock: Socket, call: Callable[[], Any]) -> Any:
    """The call's answer as soon as it does not say "not now" any more, with no busy waiting."""
    end = time.monotonic() + PATIENCE_S
    while (answer := attempt(lambda: (call(),))) is None:
        assert time.monotonic() < end, "nothing happened"
        select.select([sock], [], [], 0.5)
    return answer[0]


def connect(peer: Peer, sock: Socket, port: int = PORT) -> None:
    error = sock.connect_ex((KERNEL_IP, port))
    assert error == errno.EINPROGRESS
    while (error := sock.connect_ex((KERNEL_IP, port))) == errno.EALREADY:
        select.select([sock], [], [], PATIENCE_S)
    assert error == 0


def recv(sock: Socket, size: int = 65536) -> bytes:
    return until(sock, lambda: sock.recv(size))


def recv_all(sock: Socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = recv(sock, size - len(data))
        assert part, f"the stream ended after {len(data)} bytes"
        data += part
    return data


def sendall(sock: Socket, data: bytes, flags: int = 0) -> None:
    sent = 0
    while sent < len(data):
        sent += until(sock, lambda at=sent: sock.send(data[at : at + MIB], flags))


def send_until_full(sock: Socket, data: bytes) -> int:
    """Send until there has been no room for 0.2 s; how many bytes were taken."""
    sent, end = 0, time.monotonic() + 0.2
    while time.monotonic() < end:
        if taken := attempt(lambda at=sent: sock.send(data[at:])):
            sent += taken
            end = time.monotonic() + 0.2
    return sent


@pytest.fixture(params=["client", "server"])
def pair(request: pytest.FixtureRequest, peer: Peer) -> Iterator[tuple[Socket, socket.socket]]:
    """A connected machnet socket and the Linux one, which is client or server."""
    if request.param == "client":
        with peer.stack.socket() as listener:
            listener.bind((OUR_IP, PORT))
            listener.listen()
            theirs = peer.connect()
            ours, address = until(listener, listener.accept)
            assert address == theirs.getsockname()
    else:
        ours = peer.stack.socket()
        with peer.listen() as kernel_listener:
            connect(peer, ours)
            theirs = peer.accept(kernel_listener)
    assert ours.getpeername() == theirs.getsockname()
    assert ours.getsockname() == theirs.getpeername()
    with ours:
        yield ours, theirs


Pair = tuple["Socket", socket.socket]


class TestEcho:
    def test_machnet_echoes_in_random_pieces(self, pair: Pair) -> None:
        ours, theirs = pair
        data, rng = pattern(3_000_000, 1), random.Random(1)

        def give() -> None:
            at = 0
            while at < len(data):
                step = rng.choice([1, 10, 1000, 1448, 5000, 70_000])
                theirs.sendall(data[at : at + step])
                at += step
            theirs.shutdown(socket.SHUT_WR)

        with beside(give, lambda: read_to_end(theirs)) as (_, got):
            sizes = random.Random(2)
            while part := recv(ours, sizes.choice([1, 100, 1000, 65536, MIB])):
                sendall(ours, part)
            ours.shutdown(socket.SHUT_WR)
            assert got.result(PATIENCE_S) == data

    def test_linux_echoes_in_random_pieces(self, pair: Pair) -> None:
        ours, theirs = pair
        data, rng = pattern(3_000_000, 1), random.Random(1)

        def echo() -> None:
            while part := theirs.recv(rng.choice([1, 100, 5000, MIB])):
                theirs.sendall(part)
            theirs.shutdown(socket.SHUT_WR)

        with beside(echo):
            got, at, steps = bytearray(), 0, random.Random(2)
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while len(got) < len(data):
                step = steps.choice([1, 10, 1000, 1448, 5000, 70_000])
                taken = 0
                if at < len(data):
                    taken = attempt(lambda at=at, step=step: ours.send(data[at : at + step])) or 0
                    at += taken
                    if at == len(data):
                        ours.shutdown(socket.SHUT_WR)
                part = attempt(lambda: ours.recv(MIB)) or b""
                got += part
                if not taken and not part:
                    select.select([ours], [], [], 0.5)
            assert got == data
            assert recv(ours) == b""

    def test_both_send_much_at_once(self, pair: Pair) -> None:
        ours, theirs = pair
        size = 8 * MIB
        with beside(
            lambda: theirs.sendall(pattern(size, 3)), lambda: recv_exactly(theirs, size)
        ) as (
            _,
            got,
        ):
            there, back = 0, bytearray()
            data = pattern(size, 4)
            while there < size or len(back) < size:
                piece = data[there : there + 100_000]
                taken = attempt(lambda piece=piece: ours.send(piece)) if piece else None
                there += taken or 0
                part = (attempt(lambda: ours.recv(MIB)) or b"") if len(back) < size else b""
                back += part
                if not taken and not part:
                    select.select([ours], [], [], 0.5)
            assert back == pattern(size, 3)
            assert got.result(PATIENCE_S) == data

    def test_peek(self, pair: Pair) -> None:
        ours, theirs = pair
        theirs.sendall(b"look")
        assert until(ours, lambda: ours.recv(2, socket.MSG_PEEK)) == b"lo"
        assert ours.recv(100) == b"look"

    def test_a_send_says_how_much_it_took(self, pair: Pair) -> None:
        """Of a stream some may be taken; the rest is for later, and nothing gets lost between."""
        ours, theirs = pair
        data = pattern(16_000_000, 2)
        sent = send_until_full(ours, data)
        assert 0 < sent < len(data)
        ours.shutdown(socket.SHUT_WR)
        assert read_to_end(theirs) == data[:sent]


class TestEnds:
    def test_linux_half_closes(self, pair: Pair) -> None:
        ours, theirs = pair
        theirs.sendall(b"all I have to say")
        theirs.shutdown(socket.SHUT_WR)
        assert recv_all(ours, 17) == b"all I have to say"
        assert recv(ours) == b""
        assert recv(ours) == b""
        assert ours.state == "CLOSE-WAIT"
        for n in range(10):
            sendall(ours, pattern(100_000, n))
            assert recv_exactly(theirs, 100_000) == pattern(100_000, n)
        ours.close()
        assert theirs.recv(1) == b""
        eventually(lambda: ours.state == "CLOSED")

    def test_machnet_half_closes(self, pair: Pair) -> None:
        ours, theirs = pair
        sendall(ours, b"all I have to say")
        ours.shutdown(socket.SHUT_WR)
        assert read_to_end(theirs) == b"all I have to say"
        eventually(lambda: ours.state == "FIN-WAIT-2")
        with pytest.raises(BrokenPipeError):
            ours.send(b"more")
        for n in range(10):
            theirs.sendall(pattern(100_000, n))
            assert recv_all(ours, 100_000) == pattern(100_000, n)
        theirs.close()
        assert recv(ours) == b""
        eventually(lambda: ours.state in {"TIME-WAIT", "CLOSED"})

    def test_both_close_at_once(self, pair: Pair) -> None:
        ours, theirs = pair
        ours.shutdown(socket.SHUT_WR)
        theirs.shutdown(socket.SHUT_WR)
        assert (recv(ours), theirs.recv(1)) == (b"", b"")
        ours.close()
        eventually(lambda: ours.state in {"TIME-WAIT", "CLOSED"})

    @pytest.mark.parametrize("unread", [0, 1000])
    def test_linux_resets(self, pair: Pair, unread: int) -> None:
        ours, theirs = pair
        theirs.sendall(bytes(unread))
        eventually(lambda: ours.info().recv_queue == unread)
        reset(theirs)
        if unread:
            assert recv_all(ours, unread) == bytes(unread)
        with pytest.raises(ConnectionResetError) as error:
            recv(ours)
        assert error.value.errno == errno.ECONNRESET
        assert ours.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            ours.send(b"x")
        assert ours.state == "CLOSED"

    def test_so_error_after_a_reset(self, pair: Pair) -> None:
        ours, theirs = pair
        reset(theirs)
        error = eventually(lambda: ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        assert error == errno.ECONNRESET
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert ours.recv(1) == b""

    def test_so_error_after_a_refused_connect(self, peer: Peer) -> None:
        with peer.stack.socket() as sock:
            assert sock.connect_ex((KERNEL_IP, 9)) == errno.EINPROGRESS
            error = eventually(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            assert error == errno.ECONNREFUSED
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

    def test_linger_zero_resets(self, pair: Pair) -> None:
        ours, theirs = pair
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ours.close()
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
        assert ours.state == "CLOSED"

    def test_close_over_unread_data_resets(self, pair: Pair) -> None:
        """RFC 9293, 3.6.1: the peer hears that not everything was read."""
        ours, theirs = pair
        theirs.sendall(b"never read")
        eventually(lambda: ours.info().recv_queue == 10)
        ours.close()
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
        eventually(lambda: ours.state == "CLOSED")

    def test_close_sends_what_was_sent_before(self, pair: Pair) -> None:
        ours, theirs = pair
        with beside(lambda: read_to_end(theirs)) as (got,):
            sendall(ours, pattern(3_000_000, 1))
            ours.close()
            assert got.result(PATIENCE_S) == pattern(3_000_000, 1)

    def test_shut_down_for_reading(self, pair: Pair) -> None:
        ours, theirs = pair
        ours.shutdown(socket.SHUT_RD)
        assert ours.recv(1) == b""
        sendall(ours, b"still sending")
        assert recv_exactly(theirs, 13) == b"still sending"


class TestUrgent:
    def test_from_linux(self, pair: Pair) -> None:
        """Urgent bytes come in line; the mark says where they end (RFC 6093)."""
        ours, theirs = pair
        theirs.sendall(b"before")
        theirs.send(b"!", socket.MSG_OOB)
        theirs.sendall(b"after")
        assert recv_all(ours, 6) == b"before"
        until(
            ours, lambda: ours.recv(1, socket.MSG_PEEK)
        )  # the mark is known once its byte is here
        got = b""
        marks = []
        for _ in range(6):
            marks.append(ours.sockatmark())
            got += recv(ours, 1)
        assert got == b"!after"
        assert marks == [True, False, False, False, False, False]

    def test_to_linux_in_line(self, pair: Pair) -> None:
        ours, theirs = pair
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sendall(ours, b"before")
        sendall(ours, b"!", socket.MSG_OOB)
        eventually(lambda: select.select([], [], [theirs], 0)[2])
        sendall(ours, b"after")
        # Linux ends a read at the mark.
        assert recv_exactly(theirs, 6) == b"before"
        assert recv_exactly(theirs, 6) == b"!after"

    def test_to_linux_out_of_line(self, pair: Pair) -> None:
        ours, theirs = pair
        sendall(ours, b"before")
        sendall(ours, b"!", socket.MSG_OOB)
        sendall(ours, b"after")
        eventually(lambda: select.select([], [], [theirs], 0)[2])
        assert theirs.recv(1, socket.MSG_OOB) == b"!"
        assert recv_exactly(theirs, 11) == b"beforeafter"

    def test_while_the_window_of_linux_is_closed(self, pair: Pair) -> None:
        """That there is something urgent is said although no data get through (SIGURG)."""
        ours, theirs = pair
        signals: list[int] = []
        before = signal.signal(signal.SIGURG, lambda number, _: signals.append(number))
        try:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            fcntl.fcntl(theirs, fcntl.F_SETOWN, os.getpid())
            data = pattern(16 * MIB, 5)
            sent = send_until_full(ours, data)
            assert ours.info().send_queue > 0
            assert not signals
            with beside(lambda: recv_exactly(theirs, 3 * MIB)):
                until(ours, lambda: ours.send(b"!", socket.MSG_OOB))
            eventually(lambda: signals)
            ours.shutdown(socket.SHUT_WR)
            assert read_to_end(theirs) == data[3 * MIB : sent] + b"!"
        finally:
            signal.signal(signal.SIGURG, before)


class TestOptions:
    def test_tos_and_ttl_are_seen_by_linux(self, peer: Peer) -> None:
        """Set before connecting, and changed on the way (RFC 9293, MUST-48, SHLD-22)."""
        with (
            peer.host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
            peer.listen() as listener,
            peer.stack.socket() as ours,
        ):
            raw.settimeout(PATIENCE_S)
            ours.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
            ours.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 7)
            assert ours.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0xB8
            connect(peer, ours)
            theirs = peer.accept(listener)
            sendall(ours, b"one")
            assert data_packet(raw, b"one") == (0xB8, 7)
            ours.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x28)
            ours.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 200)
            sendall(ours, b"two")
            assert data_packet(raw, b"two") == (0x28, 200)
            assert recv_exactly(theirs, 6) == b"onetwo"

    def test_the_defaults_of_the_stack(self) -> None:
        with (
            linux_peer(dscp=46, ttl=33) as peer,
            peer.host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw,
            peer.listen() as listener,
        ):
            raw.settimeout(PATIENCE_S)
            channel = peer.stack.attach()
            flow, _ = peer.to_kernel(channel, listener)
            channel.send(flow, b"data")
            assert data_packet(raw, b"\0\0\0\4data") == (46 << 2, 33)

    def test_maxseg_bounds_what_we_send(self, peer: Peer) -> None:
        with peer.listen() as listener, peer.stack.socket() as ours:
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 600)
            connect(peer, ours)
            theirs = peer.accept(listener)
            before = peer.tap.stats()["tx_frames"]
            with beside(lambda: recv_exactly(theirs, 588_000)) as (got,):
                sendall(ours, pattern(588_000, 1))
                assert got.result(PATIENCE_S) == pattern(588_000, 1)
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 600
            assert peer.tap.stats()["tx_frames"] - before >= 1
            assert tcp_info(theirs)["rcv_mss"] <= 600

    def test_rcvbuf_bounds_the_window(self, peer: Peer) -> None:
        with peer.stack.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
            listener.bind((OUR_IP, PORT))
            listener.listen()
            theirs = peer.connect()
            ours, _ = until(listener, listener.accept)
            theirs.settimeout(0.3)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 64 * MIB:
                    sent += theirs.send(bytes(100_000))
            assert sent < 64 * MIB
            assert ours.info().recv_queue <= 90_000
            theirs.settimeout(PATIENCE_S)
            theirs.shutdown(socket.SHUT_WR)
            got = 0
            while part := recv(ours):
                got += len(part)
            assert got == sent
            ours.close()

    def test_keepalive(self, pair: Pair) -> None:
        ours, theirs = pair
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        before = ours.stack.stats()["rx_frames"]
        eventually(lambda: ours.stack.stats()["rx_frames"] > before)
        assert ours.state == "ESTABLISHED"
        sendall(ours, b"alive")
        assert recv_exactly(theirs, 5) == b"alive"

    def test_user_timeout(self) -> None:
        with linux_peer(rto_min_us=20_000) as peer, peer.listen() as listener:
            ours = peer.stack.socket()
            connect(peer, ours)
            peer.accept(listener)
            ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
            peer.host.set_link("mn0", up=False)
            begin = time.monotonic()
            sendall(ours, b"is anybody there?")
            with pytest.raises(TimeoutError):
                recv(ours)
            assert time.monotonic() - begin >= 0.4


def data_packet(raw: socket.socket, payload: bytes) -> tuple[int, int]:
    """TOS and TTL of the packet from us with that payload, as a raw socket of Linux has it."""
    while True:
        packet = raw.recv(65536)
        tcp = packet[(packet[0] & 15) * 4 :]
        if packet[12:16] == socket.inet_aton(OUR_IP) and tcp[(tcp[12] >> 4) * 4 :] == payload:
            return packet[1], packet[8]


def test_many_streams_at_once_over_asyncio(peer: Peer) -> None:
    """An asyncio echo server with fifty Linux clients, one of which never reads."""
    import asyncio

    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    def client(n: int) -> bytes:
        with peer.connect() as sock:
            got = bytearray()
            for turn in range(10):
                data = pattern(20_000, n + turn)
                sock.sendall(data)
                assert recv_exactly(sock, len(data)) == data
                got += data
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
            return bytes(got)

    async def main() -> None:
        server = await aio.start_server(peer.stack, on_client, OUR_IP, PORT)
        loop = asyncio.get_running_loop()
        stuck = peer.connect()
        stuck.settimeout(0.5)
        with pytest.raises(TimeoutError):
            await loop.run_in_executor(None, stuck.sendall, bytes(64 * MIB))
        jobs = [loop.run_in_executor(None, client, n) for n in range(50)]
        results = await asyncio.wait_for(asyncio.gather(*jobs), PATIENCE_S)
        assert [len(result) for result in results] == [200_000] * 50
        reset(stuck)
        server.close()

    asyncio.run(main())
