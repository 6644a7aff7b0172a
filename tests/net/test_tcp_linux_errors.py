# SPDX-License-Identifier: MIT
"""What goes wrong between machnet and Linux sockets, and how connections end."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from linux_peer import (
    KERNEL_IP,
    MESSAGE_MAX,
    OUR_IP,
    PATIENCE_S,
    PORT,
    Peer,
    beside,
    end_of,
    eventually,
    fill,
    foreign_env,
    frame,
    greeted,
    is_over,
    linux_peer,
    needs_tap,
    nothing_more,
    pattern,
    read_to_end,
    recv,
    recv_message,
    reset,
    send,
    send_message,
)

from machnet import (
    FlowError,
    FlowProtocolError,
    FlowResetError,
    FlowTimeoutError,
)

if TYPE_CHECKING:
    from machnet import Channel

pytestmark = pytest.mark.skipif(needs_tap() is not None, reason=str(needs_tap()))


@pytest.fixture
def channel(peer: Peer) -> Channel:
    channel = peer.stack.attach()
    channel.listen(OUR_IP, PORT, "tcp")
    return channel


class TestFraming:
    @pytest.mark.parametrize(
        "length", [MESSAGE_MAX + 1, 1 << 24, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    )
    def test_a_length_over_the_limit(self, peer: Peer, channel: Channel, length: int) -> None:
        flow, sock = greeted(peer, channel)
        sock.sendall(frame(b"before") + length.to_bytes(4, "big") + b"whatever follows" * 100)
        assert recv(channel).data == b"before"
        error = end_of(channel)
        assert isinstance(error, FlowProtocolError)
        assert (error.errno, error.flow) == (errno.EMSGSIZE, flow)
        assert str(KERNEL_IP) in str(error)
        assert flow.error == errno.EMSGSIZE
        is_over(channel, flow)
        with pytest.raises(ConnectionResetError):
            read_to_end(sock)
        stats = peer.stack.stats()
        assert stats["framing_errors"] == 1
        assert stats["tcp_resets_sent"] == 1
        assert peer.stack.usage()["tcbs"] == 0

    def test_the_longest_message_is_no_error(self, peer: Peer, channel: Channel) -> None:
        _, sock = greeted(peer, channel)
        with beside(lambda: send_message(sock, pattern(MESSAGE_MAX, 3))):
            assert recv(channel).data == pattern(MESSAGE_MAX, 3)
        assert peer.stack.stats()["framing_errors"] == 0

    def test_garbage(self, peer: Peer, channel: Channel) -> None:
        """Another protocol on the port: its first four letters are a length over the limit."""
        sock = peer.connect()
        sock.sendall(b"GET / HTTP/1.1\r\nHost: machnet\r\n\r\n")
        error = end_of(channel)
        assert isinstance(error, FlowProtocolError)
        assert error.errno == errno.EMSGSIZE
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        is_over(channel, error.flow)

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_the_stream_ends_inside_a_prefix(
        self, peer: Peer, channel: Channel, count: int
    ) -> None:
        flow, sock = greeted(peer, channel)
        sock.sendall(frame(b"whole") + frame(b"torn")[:count])
        sock.shutdown(socket.SHUT_WR)
        assert recv(channel).data == b"whole"
        error = end_of(channel)
        assert isinstance(error, FlowProtocolError)
        assert (error.errno, error.flow) == (errno.EPROTO, flow)
        is_over(channel, flow)
        with contextlib.suppress(ConnectionResetError):
            assert read_to_end(sock) == b""

    @pytest.mark.parametrize(("size", "sent"), [(1, 0), (100, 99), (5000, 4999), (100_000, 70_000)])
    def test_the_stream_ends_inside_a_message(
        self, peer: Peer, channel: Channel, size: int, sent: int
    ) -> None:
        flow, sock = greeted(peer, channel)
        sock.sendall(frame(b"whole") + frame(pattern(size))[: 4 + sent])
        sock.shutdown(socket.SHUT_WR)
        assert recv(channel).data == b"whole"
        error = end_of(channel)
        assert isinstance(error, FlowProtocolError)
        assert (error.errno, error.flow) == (errno.EPROTO, flow)
        is_over(channel, flow)
        eventually(lambda: peer.stack.usage()["tcbs"] == 0)

    def test_an_error_of_one_flow_leaves_the_others_alone(
        self, peer: Peer, channel: Channel
    ) -> None:
        good_flow, good = greeted(peer, channel)
        for _ in range(50):
            flow, bad = greeted(peer, channel)
            bad.sendall(b"\xff\xff\xff\xff")
            assert end_of(channel).flow == flow
            send_message(good, pattern(3000, 1))
            message = recv(channel)
            assert message.flow == good_flow
            send(channel, good_flow, message.data)
            assert recv_message(good) == pattern(3000, 1)


class TestPeerEnds:
    def test_a_clean_close_says_nothing(self, peer: Peer, channel: Channel) -> None:
        flow, sock = greeted(peer, channel)
        sock.close()
        eventually(lambda: not flow.live)
        with pytest.raises(TimeoutError):
            channel.recv(timeout=0.05)
        is_over(channel, flow)
        assert flow.error == errno.ENOTCONN
        eventually(lambda: peer.stack.usage()["tcbs"] == 0)

    @pytest.mark.parametrize("unread", [0, 1, 20])
    def test_reset(self, peer: Peer, channel: Channel, unread: int) -> None:
        flow, sock = greeted(peer, channel)
        for n in range(unread):
            send_message(sock, pattern(3000, n))
        eventually(lambda: peer.stack.stats()["msgs_delivered"] == 1 + unread)
        reset(sock)
        for n in range(unread):
            assert recv(channel).data == pattern(3000, n)
        error = end_of(channel)
        assert isinstance(error, FlowResetError)
        assert isinstance(error, ConnectionResetError)
        assert (error.errno, error.flow, flow.error) == (errno.ECONNRESET, flow, errno.ECONNRESET)
        is_over(channel, flow)
        assert peer.stack.stats()["tcp_resets_received"] == 1

    def test_reset_with_our_messages_under_way(self, peer: Peer, channel: Channel) -> None:
        flow, sock = greeted(peer, channel)
        fill(channel, flow, lambda n: pattern(50_000, n))
        reset(sock)
        assert end_of(channel).errno == errno.ECONNRESET
        is_over(channel, flow)
        again, sock = greeted(peer, channel)
        with beside(lambda: recv_message(sock)) as (got,):
            channel.send(again, pattern(5_000_000, 4), timeout=PATIENCE_S)
            assert got.result(PATIENCE_S) == pattern(5_000_000, 4)

    def test_closed_without_reading_what_we_sent(self, peer: Peer, channel: Channel) -> None:
        """Linux answers with RST when its socket is closed over unread data (RFC 1122, 4.2.2.13)."""
        flow, sock = greeted(peer, channel)
        send(channel, flow, b"never read")
        eventually(lambda: peer.stack.find_socket(flow.local, flow.remote).send_queue == 0)
        sock.close()
        assert end_of(channel).errno == errno.ECONNRESET
        is_over(channel, flow)

    @pytest.mark.parametrize("count", [1, 10])
    @pytest.mark.parametrize("size", [10, 20_000, 1_000_000])
    def test_half_close_waits_for_the_answers(
        self, peer: Peer, channel: Channel, count: int, size: int
    ) -> None:
        """A client may say that it has asked everything before it reads the answers."""
        sock = peer.connect()

        def ask() -> None:
            for n in range(count):
                send_message(sock, pattern(100, n))
            sock.shutdown(socket.SHUT_WR)

        def answers() -> list[bytes]:
            got = []
            while (message := recv_message(sock)) is not None:
                got.append(message)
            return got

        ask()
        requests = [recv(channel) for _ in range(count)]
        eventually(lambda: peer.info().state == "CLOSE-WAIT")
        with beside(answers) as (got,):
            for n, message in enumerate(requests):
                assert message.data == pattern(100, n)
                send(channel, message.flow, pattern(size, n + 1))
            assert got.result(PATIENCE_S) == [pattern(size, n + 1) for n in range(count)]
        nothing_more(channel)
        eventually(lambda: peer.stack.usage()["tcbs"] == 0)

    def test_half_close_when_everything_was_answered(self, peer: Peer, channel: Channel) -> None:
        flow, sock = greeted(peer, channel)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        eventually(lambda: not flow.live)
        is_over(channel, flow)

    def test_half_close_without_an_answer_ends_by_itself(self) -> None:
        with linux_peer(eof_linger_ms=100) as peer:
            channel = peer.stack.attach()
            channel.listen(OUR_IP, PORT, "tcp")
            sock = peer.connect()
            send_message(sock, b"no answer is expected")
            sock.shutdown(socket.SHUT_WR)
            assert recv(channel).data == b"no answer is expected"
            assert sock.recv(1) == b""
            eventually(lambda: peer.stack.usage()["tcbs"] == 0)
            nothing_more(channel)

    def test_our_half_close_goes_on_receiving(self, peer: Peer, channel: Channel) -> None:
        flow, sock = greeted(peer, channel)
        send(channel, flow, b"last question")
        flow.shutdown()
        assert recv_message(sock) == b"last question"
        assert recv_message(sock) is None
        for n in range(20):
            send_message(sock, pattern(5000, n))
            assert recv(channel).data == pattern(5000, n)
        with pytest.raises(FlowError) as error:
            channel.send(flow, b"after the end")
        assert error.value.errno == errno.EPIPE
        sock.close()
        eventually(lambda: peer.stack.usage()["tcbs"] == peer.stack.usage()["time_wait"])
        nothing_more(channel)


class TestWeEnd:
    def test_close_sends_what_was_sent_before(self, peer: Peer, channel: Channel) -> None:
        flow, sock = greeted(peer, channel)
        for n in range(20):
            send(channel, flow, pattern(100_000, n))
        flow.close()
        for n in range(20):
            assert recv_message(sock) == pattern(100_000, n)
        assert recv_message(sock) is None
        sock.close()
        is_over(channel, flow)
        eventually(lambda: peer.stack.usage()["tcbs"] == peer.stack.usage()["time_wait"])

    def test_close_without_linger_resets(self, peer: Peer, channel: Channel) -> None:
        flow, sock = greeted(peer, channel)
        flow.close(0)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        is_over(channel, flow)
        assert peer.stack.usage()["tcbs"] == 0

    def test_linger_ends(self, peer: Peer, channel: Channel) -> None:
        """A peer that reads nothing holds a closed flow for the linger time, not for ever."""
        flow, sock = greeted(peer, channel)
        fill(channel, flow, lambda n: pattern(100_000, n))
        flow.close(0.2)
        eventually(lambda: peer.stack.usage()["tcbs"] == 0)
        with pytest.raises(ConnectionResetError):
            read_to_end(sock)

    def test_data_that_come_after_close_are_answered_by_reset(
        self, peer: Peer, channel: Channel
    ) -> None:
        flow, sock = greeted(peer, channel)
        flow.close()
        assert sock.recv(1) == b""
        send_message(sock, b"nobody reads this")
        eventually(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EPIPE)
        assert peer.stack.stats()["tcp_resets_sent"] == 1
        eventually(lambda: peer.stack.usage()["tcbs"] == 0)

    def test_closing_the_channel_sends_what_was_sent_before(
        self, peer: Peer, channel: Channel
    ) -> None:
        flow, sock = greeted(peer, channel)
        for n in range(30):
            send(channel, flow, pattern(20_000, n))
        channel.close()
        for n in range(30):
            assert recv_message(sock) == pattern(20_000, n)
        assert recv_message(sock) is None
        sock.close()
        eventually(lambda: peer.stack.usage()["lanes"] == 0)

    def test_closing_the_stack_sends_what_was_sent_before(self) -> None:
        with linux_peer(app_exit_linger_ms=PATIENCE_S * 1000) as peer:
            channel = peer.stack.attach()
            channel.listen(OUR_IP, PORT, "tcp")
            flow, sock = greeted(peer, channel)

            def take() -> bool:
                return recv_message(sock) == pattern(3_000_000, 5) and recv_message(sock) is None

            with beside(take) as (right,):
                send(channel, flow, pattern(3_000_000, 5))
                peer.stack.close()
                assert right.result(PATIENCE_S)

    def test_a_closed_listener_refuses_and_its_flows_live_on(self, peer: Peer) -> None:
        channel = peer.stack.attach()
        listener = channel.listen(OUR_IP, PORT, "tcp")
        flow, sock = greeted(peer, channel)
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            peer.connect()
        send_message(sock, b"still here")
        assert recv(channel).data == b"still here"
        assert flow.live
        channel.listen(OUR_IP, PORT, "tcp")
        greeted(peer, channel)


class TestPeerVanishes:
    """The cable is cut: what was sent is given up after the user timeout, not before."""

    def test_while_data_are_under_way(self) -> None:
        with linux_peer(user_timeout_ms=700, rto_min_us=20_000) as peer:
            channel = peer.stack.attach()
            channel.listen(OUR_IP, PORT, "tcp")
            flow, _ = greeted(peer, channel)
            peer.host.set_link("mn0", up=False)
            begin = time.monotonic()
            send(channel, flow, b"is anybody there?")
            error = end_of(channel)
            assert isinstance(error, FlowTimeoutError)
            assert (error.errno, error.flow) == (errno.ETIMEDOUT, flow)
            assert time.monotonic() - begin >= 0.6
            is_over(channel, flow)
            stats = peer.stack.stats()
            assert stats["tcp_timeouts"] == 1
            assert stats["tcp_retransmits"] >= 3
            assert peer.stack.usage()["tcbs"] == 0

    def test_while_its_window_is_closed(self) -> None:
        with linux_peer(user_timeout_ms=700, rto_min_us=20_000) as peer:
            channel = peer.stack.attach()
            channel.listen(OUR_IP, PORT, "tcp")
            flow, _ = greeted(peer, channel)
            fill(channel, flow, lambda n: pattern(100_000, n))
            eventually(lambda: peer.stack.stats()["tcp_probes"] >= 2)
            peer.host.set_link("mn0", up=False)
            error = end_of(channel)
            assert error.errno == errno.ETIMEDOUT
            is_over(channel, flow)
            assert peer.stack.usage()["tcbs"] == 0

    def test_and_comes_back(self) -> None:
        with linux_peer(rto_min_us=20_000, arp_retry_ms=50) as peer:
            channel = peer.stack.attach()
            channel.listen(OUR_IP, PORT, "tcp")
            flow, sock = greeted(peer, channel)
            for n in range(3):
                peer.host.set_link("mn0", up=False)
                before = peer.stack.stats()["tcp_retransmits"]
                send(channel, flow, pattern(50_000, n))
                eventually(lambda least=before + 2: retransmits(peer) >= least)
                peer.host.set_link("mn0", up=True)
                assert recv_message(sock) == pattern(50_000, n)
                send_message(sock, pattern(50_000, n))
                assert recv(channel).data == pattern(50_000, n)

    def test_while_nothing_is_under_way_keepalive_notices(self) -> None:
        with linux_peer(keepalive_idle_s=1, keepalive_interval_s=1, keepalive_count=1) as peer:
            sock = peer.stack.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listener = peer.listen()
            with pytest.raises(BlockingIOError):
                sock.connect((KERNEL_IP, PORT))
            eventually(lambda: sock.state == "ESTABLISHED")
            peer.accept(listener)
            assert sock.connect_ex((KERNEL_IP, PORT)) == 0
            peer.host.set_link("mn0", up=False)
            error = eventually(lambda: caught(lambda: sock.recv(1)))
            assert error.errno == errno.ETIMEDOUT
            assert peer.stack.stats()["tcp_keepalive_drops"] == 1

    def test_its_interface_is_deleted(self) -> None:
        with linux_peer(user_timeout_ms=500, rto_min_us=20_000) as peer:
            channel = peer.stack.attach()
            channel.listen(OUR_IP, PORT, "tcp")
            flow, _ = greeted(peer, channel)
            peer.run(["ip", "link", "del", "mn0"])
            send(channel, flow, b"is anybody there?")
            assert end_of(channel).errno == errno.ETIMEDOUT
            is_over(channel, flow)

    def test_its_processes_are_killed(self, peer: Peer, channel: Channel) -> None:
        """The kernel closes the sockets of a process that is killed."""
        script = (
            "import socket, time\n"
            f"s = socket.create_connection(({OUR_IP!r}, {PORT}))\n"
            "s.sendall(b'\\0\\0\\0\\2hi')\n"
            "time.sleep(1000)\n"
        )
        with peer.host.popen([sys.executable, "-c", script], env=foreign_env()) as process:
            flow = recv(channel).flow
            process.kill()
            process.wait()
        eventually(lambda: peer.info() is None or peer.info().state == "CLOSE-WAIT")
        send(channel, flow, b"answer to nobody")
        assert end_of(channel).errno == errno.ECONNRESET


def retransmits(peer: Peer) -> int:
    return peer.stack.stats()["tcp_retransmits"]


def caught(call: Any) -> OSError | None:
    """The error of a call; None while it only says "not now"."""
    try:
        call()
    except BlockingIOError:
        return None
    except OSError as error:
        return error
    raise AssertionError("no error")
