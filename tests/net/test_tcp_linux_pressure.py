# SPDX-License-Identifier: MIT
"""Back-pressure between machnet and Linux sockets over a TAP, and messages that wait for their turn."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from linux_peer import (
    MESSAGE_MAX,
    MIB,
    OUR_IP,
    PATIENCE_S,
    PORT,
    Peer,
    beside,
    ends,
    eventually,
    fill,
    frame,
    linux_peer,
    needs_tap,
    nothing_more,
    pattern,
    recv,
    recv_message,
    reset,
    scaled,
    send,
    send_message,
)

from machnet import FlowResetError, FlowTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machnet import Channel, Flow

pytestmark = pytest.mark.skipif(needs_tap() is not None, reason=str(needs_tap()))


@pytest.fixture
def peer() -> Iterator[Peer]:
    with linux_peer(large_progress_ms=PATIENCE_S * 1000) as peer:
        yield peer


@pytest.fixture
def channel(peer: Peer) -> Channel:
    return peer.stack.attach()


def fill_from_kernel(sock: socket.socket, messages: list[bytes]) -> int:
    """Send without blocking until nothing more goes for a while; bytes sent."""
    stream, sent = memoryview(b"".join(map(frame, messages))), 0
    sock.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while sent < len(stream):
            sent += sock.send(stream[sent : sent + MIB])
    sock.settimeout(PATIENCE_S)
    return sent


class TestBackPressure:
    @pytest.mark.parametrize("size", [100, 16_000, MIB])
    def test_the_application_does_not_read(self, peer: Peer, channel: Channel, size: int) -> None:
        """The window closes, the kernel stops; later all 64 MB arrive, each byte once."""
        total = scaled(64, 32) * MIB if size > 100 else 6 * MIB
        _, sock = ends(peer, channel, "client")
        messages = [pattern(size, n) for n in range(total // size)]
        stream_bytes = (size + 4) * len(messages)
        with sock:
            sent = fill_from_kernel(sock, messages)
            assert sent < stream_bytes, "the window never closed"
            info = peer.info()
            assert info is not None
            # Nothing that was acknowledged may be lost, and nothing beyond the buffers was taken.
            assert info.recv_queue <= 8192 * 2048
            rest = memoryview(b"".join(map(frame, messages)))[sent:]
            with beside(lambda: sock.sendall(rest)):
                for n, data in enumerate(messages):
                    message = recv(channel)
                    assert message.data == data, n
        nothing_more(channel)
        stats = peer.stack.stats()
        assert stats["framing_errors"] == 0
        assert stats["drop_tcp_nobuf"] == 0 or size != 100

    def test_other_flows_go_on_while_one_is_not_read_by_its_application(self, peer: Peer) -> None:
        slow, quick = peer.stack.attach(), peer.stack.attach()
        slow.listen(OUR_IP, PORT, "tcp")
        quick.listen(OUR_IP, PORT + 1, "tcp")
        with peer.connect() as stuck, peer.connect(PORT + 1) as lively:
            sent = fill_from_kernel(stuck, [pattern(16_000, n) for n in range(3000)])
            assert sent < 16_004 * 3000
            for n in range(200):
                send_message(lively, pattern(5000, n))
                message = recv(quick)
                send(quick, message.flow, message.data)
                assert recv_message(lively) == pattern(5000, n)

    @pytest.mark.parametrize("size", [100, 16_000, MIB, MESSAGE_MAX])
    def test_the_kernel_does_not_read(self, peer: Peer, channel: Channel, size: int) -> None:
        """`send` says no; what it took arrives whole, what it did not take does not arrive at all."""
        flow, sock = ends(peer, channel, "server")
        taken = fill(channel, flow, lambda n: pattern(size, n))
        assert taken * size <= 64 * MIB
        with pytest.raises(BlockingIOError) as error:
            channel.send(flow, pattern(size, taken))
        assert error.value.errno == errno.EAGAIN
        more = 40 if size < MIB else 5

        def take() -> None:
            for n in range(taken + more):
                assert recv_message(sock) == pattern(size, n), n
            assert recv_message(sock) is None

        with sock, beside(take):
            for n in range(taken, taken + more):
                send(channel, flow, pattern(size, n))
            flow.shutdown()

    def test_a_flow_that_is_stuck_leaves_room_for_small_messages(
        self, peer: Peer, channel: Channel
    ) -> None:
        channel.listen(OUR_IP, PORT, "tcp")
        with peer.listen(PORT + 1) as listener:
            stuck_flow, stuck = peer.to_kernel(channel, listener)
        with stuck, peer.connect() as lively:
            fill(channel, stuck_flow, lambda n: pattern(60_000, n))
            for n in range(100):
                send_message(lively, pattern(1000, n))
                message = recv(channel)
                channel.send(message.flow, message.data)
                assert recv_message(lively) == pattern(1000, n)

    def test_a_send_with_a_timeout_waits_for_room(self, peer: Peer, channel: Channel) -> None:
        flow, sock = ends(peer, channel, "server")
        with sock:
            fill(channel, flow, lambda n: pattern(MIB, n))
            begin = time.monotonic()
            with pytest.raises(BlockingIOError):
                channel.send(flow, pattern(MIB, 0), timeout=0.1)
            assert time.monotonic() - begin >= 0.1
            with pytest.raises(OSError, match="can never fit") as error:
                channel.send(flow, bytes(MESSAGE_MAX + 1), timeout=PATIENCE_S)
            assert error.value.errno == errno.EMSGSIZE
            assert flow.live


class TestLargeMessages:
    """A message over 64 KiB waits for its turn as the channel's one large message."""

    def test_eight_mebibytes_on_several_flows_at_once(self, peer: Peer, channel: Channel) -> None:
        channel.listen(OUR_IP, PORT, "tcp")
        count, each = 6, scaled(3, 2)
        socks = [peer.connect() for _ in range(count)]
        small = peer.connect()

        def give(n: int) -> None:
            for turn in range(each):
                send_message(socks[n], bytes([n, turn]) + pattern(MESSAGE_MAX - 2, n + turn))

        def give_small() -> None:
            for turn in range(200):
                send_message(small, b"\xff" + pattern(500, turn))

        got: dict[int, int] = {}
        tasks = [lambda n=n: give(n) for n in range(count)]
        with beside(*tasks, give_small):
            for _ in range(count * each + 200):
                data = recv(channel).data
                n = data[0]
                turn = got.get(n, 0)
                got[n] = turn + 1
                if n == 0xFF:
                    assert data[1:] == pattern(500, turn)
                else:
                    assert data[1] == turn
                    assert data[2:] == pattern(MESSAGE_MAX - 2, n + turn)
        assert got == {**dict.fromkeys(range(count), each), 0xFF: 200}
        for sock in (*socks, small):
            sock.close()

    def test_to_several_flows_at_once(self, peer: Peer, channel: Channel) -> None:
        count, each = 4, scaled(3, 2)
        with peer.listen() as listener:
            pairs = [peer.to_kernel(channel, listener) for _ in range(count)]

        def take(n: int) -> None:
            for turn in range(each):
                assert recv_message(pairs[n][1]) == pattern(MESSAGE_MAX, n + 10 * turn)

        with beside(*[lambda n=n: take(n) for n in range(count)]):
            for turn in range(each):
                for n, (flow, _) in enumerate(pairs):
                    send(channel, flow, pattern(MESSAGE_MAX, n + 10 * turn))
        for _, sock in pairs:
            sock.close()

    def test_one_that_stalls_loses_its_place(self) -> None:
        """It makes no progress for `large_progress_ms`: its flow goes, and the next one gets in."""
        with linux_peer(large_progress_ms=400) as peer:
            channel = peer.stack.attach()
            channel.listen(OUR_IP, PORT, "tcp")
            with peer.connect() as stalled, peer.connect() as waiting, peer.connect() as small:
                for sock in (stalled, waiting, small):
                    send_message(sock, b"hello")
                flows = [recv(channel).flow for _ in range(3)]
                before = received(peer, flows[0])
                stalled.sendall(frame(pattern(MESSAGE_MAX, 1))[:MIB])
                eventually(lambda: (received(peer, flows[0]) - before) & 0xFFFFFFFF >= MIB)
                with beside(lambda: send_message(waiting, pattern(MESSAGE_MAX, 2))):
                    send_message(small, b"goes through meanwhile")
                    seen: list[Any] = []
                    while len(seen) < 3:
                        seen.append(recv_or_end(channel))
                assert seen[1].flow == flows[0]
                seen[1] = seen[1].errno
                assert seen == [b"goes through meanwhile", errno.ETIMEDOUT, pattern(MESSAGE_MAX, 2)]
                with pytest.raises(ConnectionResetError):
                    stalled.recv(1)
                assert channel.send(flows[1], b"still there") > 0
                assert recv_message(waiting) == b"still there"
                nothing_more(channel)

    @pytest.mark.parametrize("how", ["reset", "close"])
    def test_one_that_goes_away_gives_up_its_place(
        self, peer: Peer, channel: Channel, how: str
    ) -> None:
        channel.listen(OUR_IP, PORT, "tcp")
        with peer.connect() as waiting:
            gone = peer.connect()
            send_message(gone, b"hello")
            flow = recv(channel).flow
            gone.sendall(frame(pattern(MESSAGE_MAX, 1))[:MIB])
            with beside(lambda: send_message(waiting, pattern(MESSAGE_MAX, 2))):
                if how == "reset":
                    reset(gone)
                else:
                    gone.close()
                with pytest.raises(ConnectionError) as error:
                    recv(channel)
                assert error.value.flow == flow
                expected = errno.ECONNRESET if how == "reset" else errno.EPROTO
                assert error.value.errno == expected
                assert recv(channel).data == pattern(MESSAGE_MAX, 2)
        nothing_more(channel)

    def test_one_that_waits_may_go_away(self, peer: Peer, channel: Channel) -> None:
        channel.listen(OUR_IP, PORT, "tcp")
        with peer.connect() as first:
            whole = frame(pattern(MESSAGE_MAX, 1))
            first.sendall(whole[:MIB])
            others = [peer.connect() for _ in range(3)]
            for sock in others:
                sock.sendall(frame(pattern(MESSAGE_MAX, 2))[:100])
            eventually(lambda: peer.stack.usage()["tcbs"] == 4)
            for sock in others:
                reset(sock)
            for _ in others:
                with pytest.raises(FlowResetError):
                    recv(channel)
            with beside(lambda: first.sendall(whole[MIB:])):
                assert recv(channel).data == pattern(MESSAGE_MAX, 1)
            send_message(first, pattern(MIB, 3))
            assert recv(channel).data == pattern(MIB, 3)


def recv_or_end(channel: Channel) -> Any:
    """The next message's data, or the error with which a flow ended."""
    try:
        return recv(channel).data
    except FlowTimeoutError as error:
        return error


def received(peer: Peer, flow: Flow) -> int:
    """Where the stream stands, in bytes from its beginning somewhere."""
    info = peer.stack.find_socket(flow.local, flow.remote)
    assert info is not None
    return info.rcv_nxt


class TestSmallPools:
    """What fits no pool is refused; what fits goes through, however little room there is."""

    def test_messages_through_few_buffers(self, peer: Peer) -> None:
        channel = peer.stack.attach(buf_bytes=512, tx_bufs=64, rx_bufs=64)
        flow, sock = ends(peer, channel, "client")
        rng = random.Random(9)
        sizes = [rng.randrange(20_000) for _ in range(300)]
        with sock:

            def give() -> None:
                for n, size in enumerate(sizes):
                    send_message(sock, pattern(size, n))

            def take() -> None:
                for n, size in enumerate(sizes):
                    assert recv_message(sock) == pattern(size, n)

            with beside(give, take):
                for n, size in enumerate(sizes):
                    assert recv(channel).data == pattern(size, n)
                    send(channel, flow, pattern(size, n))
            with pytest.raises(OSError, match="can never fit") as error:
                channel.send(flow, bytes(64 * 512))
            assert error.value.errno == errno.EMSGSIZE

    def test_many_flows_through_few_buffers(self, peer: Peer) -> None:
        channel = peer.stack.attach(buf_bytes=2048, tx_bufs=128, rx_bufs=128)
        channel.listen(OUR_IP, PORT, "tcp")
        socks = [peer.connect() for _ in range(20)]

        def give(sock: socket.socket) -> None:
            for n in range(30):
                send_message(sock, pattern(30_000, n))
            sock.shutdown(socket.SHUT_WR)

        turns: dict[Flow, int] = {}
        with beside(*[lambda sock=sock: give(sock) for sock in socks]):
            for _ in range(30 * len(socks)):
                message = recv(channel)
                turn = turns.get(message.flow, 0)
                assert message.data == pattern(30_000, turn)
                turns[message.flow] = turn + 1
        assert list(turns.values()) == [30] * len(socks)
        for sock in socks:
            sock.close()

    def test_no_buffer_is_lost(self, peer: Peer) -> None:
        """After everything that can go wrong with messages, a channel has all its buffers again."""
        channel = peer.stack.attach(buf_bytes=2048, tx_bufs=64, rx_bufs=64)
        channel.listen(OUR_IP, PORT, "tcp")
        for turn in range(100):
            sock = peer.connect()
            sock.sendall(frame(pattern(5000, turn)) + frame(pattern(50_000, turn))[: 400 * turn])
            message = recv(channel)
            assert message.data == pattern(5000, turn)
            channel.send(message.flow, pattern(40_000, turn), timeout=PATIENCE_S)
            if turn % 3 == 0:
                reset(sock)
            elif turn % 3 == 1:
                sock.close()
            else:
                message.flow.close(0)
                sock.close()
            if turn % 3 != 2:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    channel.recv(timeout=0.1)
        eventually(lambda: peer.stack.usage()["tcbs"] == 0)
        with peer.connect() as sock:
            with beside(lambda: send_message(sock, pattern(60_000, 1))):
                message = None
                while message is None:  # an end from above may be told as late as now
                    with contextlib.suppress(ConnectionError):
                        message = recv(channel)
            assert message.data == pattern(60_000, 1)
            with beside(lambda: recv_message(sock)) as (got,):
                send(channel, message.flow, pattern(60_000, 2))
                assert got.result(PATIENCE_S) == pattern(60_000, 2)
