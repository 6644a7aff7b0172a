# SPDX-License-Identifier: MIT
"""`machnet.Channel`: messages, streams, flows and their ends, waiting, descriptors, callbacks.

Most tests run twice: over a wire between two stacks in virtual time, and between two applications of
one stack that runs in its own thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

import machnet
from machnet.sim import Wire

MS = 1_000_000


@dataclass
class Net:
    """A client's and a server's channel, with the stacks that they are on."""

    client: machnet.Channel
    server: machnet.Channel
    client_stack: machnet.Stack
    server_stack: machnet.Stack

    @property
    def stepped(self) -> bool:
        return not self.client_stack.threaded

    def connect(self, port: int = 888, protocol: str = "tcp") -> machnet.Flow:
        ip, peer = self.client_stack.ip, self.server_stack.ip
        return self.client.connect(ip, peer, port, protocol=protocol)

    def listen(self, port: int = 888, protocol: str = "tcp") -> machnet.Listener:
        return self.server.listen(self.server_stack.ip, port, protocol=protocol)

    def pass_time(self, ns: int) -> None:
        if self.stepped:
            self.client_stack.advance(ns)
        else:
            time.sleep(ns / 1e9)

    def eventually(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true; it has 20 seconds of the stacks' time."""
        for _ in range(2000):
            if condition():
                return
            self.pass_time(10 * MS)
        raise AssertionError("it never became true")


@contextlib.contextmanager
def make_net(kind: str, **settings: int) -> Iterator[Net]:
    with contextlib.ExitStack() as exits:
        if kind == "pair":
            a, b = Wire.pair()
            one = exits.enter_context(machnet.Stack(a, ip="10.0.0.1/24", **settings))
            two = exits.enter_context(machnet.Stack(b, ip="10.0.0.2/24", **settings))
        else:
            one = two = exits.enter_context(
                machnet.Stack(Wire(), ip="10.0.0.2/24", thread=True, **settings)
            )
        yield Net(one.attach(), two.attach(), one, two)
        if kind != "pair":
            one.close(linger=0)


@pytest.fixture(params=["pair", "threaded"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with make_net(request.param) as net:
        yield net


@pytest.fixture
def pair() -> Iterator[Net]:
    with make_net("pair") as net:
        yield net


@pytest.fixture
def threaded() -> Iterator[Net]:
    with make_net("threaded") as net:
        yield net


def pattern(size: int) -> bytes:
    return bytes(i * 7 % 251 for i in range(min(size, 251 * 8))) * (size // (251 * 8) + 1)


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


def test_the_default_transport_says_that_it_is_not_there_yet(pair):
    for call in (
        lambda: pair.server.listen("10.0.0.2", 888),
        lambda: pair.client.connect("10.0.0.1", "10.0.0.2", 888),
    ):
        with pytest.raises(OSError, match="protocol='tcp'") as caught:
            call()
        assert caught.value.errno == errno.EPROTONOSUPPORT


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
    for wrong in ("abc", None, 5):
        with pytest.raises(TypeError):
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
    net.server.send(message.flow, b"too late for anyone")
    net.eventually(lambda: message.flow.error != 0)
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


# --- streams --------------------------------------------------------------------------------------


@pytest.fixture
def stream(net: Net) -> tuple[machnet.Flow, machnet.Flow]:
    """Both ends of a byte stream: the client's and the server's."""
    listener = net.listen(80, "stream")
    flow = net.connect(80, "stream")
    return flow, listener.accept(timeout=5)


def test_bytes_go_both_ways(net, stream):
    flow, served = stream
    assert served.remote == flow.local
    assert flow.send(b"GET /") == 5
    assert served.read(3, timeout=5) == b"GET"
    assert served.read(timeout=5) == b" /"
    assert served.send(b"answer") == 6
    assert flow.read(timeout=5) == b"answer"
    with pytest.raises(TimeoutError):
        flow.read(timeout=0.01)
    with pytest.raises(ValueError, match="size"):
        flow.read(0)


def test_a_megabyte_through_a_stream(net, stream):
    flow, served = stream
    data = pattern(1 << 20)[: 1 << 20]
    sent, got = 0, bytearray()
    while len(got) < len(data):
        if sent < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += flow.send(memoryview(data)[sent : sent + 300_000])
        got += served.read(1 << 20, timeout=5)
    assert bytes(got) == data


def test_half_close(net, stream):
    flow, served = stream
    flow.send(b"request")
    flow.shutdown()
    flow.shutdown()
    with pytest.raises(machnet.FlowShutdownError) as caught:
        flow.send(b"more")
    assert isinstance(caught.value, BrokenPipeError)
    assert served.read(timeout=5) == b"request"
    assert served.read(timeout=5) == b""
    assert served.read(timeout=5) == b""
    served.send(b"response")
    served.close()
    assert flow.read(timeout=5) == b"response"
    assert flow.read(timeout=5) == b""
    flow.close()


def test_a_reset_stream(net, stream):
    flow, served = stream
    flow.close(linger=0)
    with pytest.raises(machnet.FlowResetError):
        served.read(timeout=5)
    with pytest.raises(machnet.FlowError):
        served.send(b"x")
    served.close()


def test_streams_and_messages_are_not_mixed_up(net, stream):
    flow, _ = stream
    net.listen(888)
    framed = net.connect(888)
    with pytest.raises(ValueError, match="use recv"):
        framed.read(timeout=0)
    assert net.client.try_recv() is None
    with pytest.raises(ValueError, match="framed flows need no accept"):
        net.server.listen(net.server_stack.ip, 889, protocol="tcp").accept(timeout=0)
    flow.close()


def test_accept_waits(net):
    listener = net.listen(80, "stream")
    with pytest.raises(TimeoutError, match="accept"):
        listener.accept(timeout=0.05)


# --- waiting in real time -------------------------------------------------------------------------


class Interrupted(Exception):
    """What the signal handler of a test raises."""


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    def handler(*_: object) -> None:
        raise Interrupted

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("poll", ["adaptive", "busy"])
def test_a_signal_ends_a_blocking_call(poll):
    with machnet.Stack(Wire(), ip="10.0.0.2", thread=True, poll=poll) as stack:
        channel = stack.attach()
        with pytest.raises(Interrupted), interrupted_after(0.05):
            channel.recv()
        with pytest.raises(Interrupted), interrupted_after(0.05):
            channel.recv(timeout=100)
        assert channel.try_recv() is None


def test_a_waiting_channel_does_not_spin(threaded):
    before = time.thread_time()
    with pytest.raises(TimeoutError):
        threaded.client.recv(timeout=0.5)
    assert time.thread_time() - before < 0.1


def test_a_message_wakes_a_sleeping_receiver(threaded):
    threaded.listen()
    flow = threaded.connect()
    for _ in range(20):
        timer = threading.Timer(0.005, lambda: threaded.client.send(flow, b"x"))
        timer.start()
        assert threaded.server.recv(timeout=20).data == b"x"
        timer.join()


def test_a_second_thread_on_a_channel_is_refused(threaded):
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        with pytest.raises(TimeoutError):
            threaded.client.recv(timeout=0.5)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()

    def use() -> None:
        for _ in range(100_000):
            threaded.client.try_recv()
            threaded.client.flows()

    with pytest.raises(machnet.ConcurrentUseError, match="attach a channel for each thread"):
        use()
    thread.join()


def test_closing_the_stack_ends_the_wait_of_another_thread():
    stack = machnet.Stack(Wire(), ip="10.0.0.2", thread=True)
    channel = stack.attach()
    outcome = []

    def wait() -> None:
        try:
            channel.recv()
        except ValueError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 20
    while thread.is_alive() and time.monotonic() < deadline:
        with contextlib.suppress(machnet.ConcurrentUseError):
            stack.close()
        stack.core.close()
        thread.join(0.01)
    assert not thread.is_alive()
    assert outcome == ["recv: the channel is closed"]


# --- descriptors and callbacks --------------------------------------------------------------------


def readable(channel: machnet.Channel, timeout: float = 0.0) -> bool:
    return bool(select.select([channel], [], [], timeout)[0])


def test_fileno_is_readable_when_there_is_something(net):
    net.listen()
    flow = net.connect()
    fd = net.server.fileno()
    assert net.server.fileno() == fd
    while net.server.try_recv() is not None:
        pass
    assert not readable(net.server)
    net.client.send(flow, b"1")
    net.client.send(flow, b"2")
    net.pass_time(1)
    assert readable(net.server, 20)
    assert net.server.recv(timeout=5).data == b"1"
    assert readable(net.server)
    assert net.server.recv(timeout=5).data == b"2"
    assert net.server.try_recv() is None
    assert not readable(net.server)
    flow.close(linger=0)
    net.pass_time(1)
    assert readable(net.server, 20)
    with pytest.raises(machnet.FlowResetError):
        net.server.recv(timeout=5)
    assert net.server.try_recv() is None
    assert not readable(net.server)


def test_fileno_after_blocking_calls(threaded):
    """A wait empties the descriptor; what came with it must still be announced."""
    threaded.listen()
    flow = threaded.connect()
    threaded.server.fileno()
    for _ in range(50):
        threaded.client.send(flow, b"1")
        assert threaded.server.recv(timeout=5).data == b"1"
        threaded.client.send(flow, b"2")
        assert readable(threaded.server, 20)
        assert threaded.server.recv(timeout=5).data == b"2"


def test_a_selector_serves_a_channel(threaded):
    threaded.listen()
    flow = threaded.connect()
    done = threading.Event()

    def serve() -> None:
        poll = select.poll()
        poll.register(threaded.server, select.POLLIN)
        while not done.is_set():
            poll.poll(50)
            while (message := threaded.server.try_recv()) is not None:
                threaded.server.send(message.flow, message.data)

    thread = threading.Thread(target=serve)
    thread.start()
    for i in range(300):
        threaded.client.send(flow, bytes([i % 256]))
        assert threaded.client.recv(timeout=20).data == bytes([i % 256])
    done.set()
    thread.join()


def test_on_ready_of_a_stepped_stack(pair):
    pair.listen()
    flow = pair.connect()
    got = []

    def ready() -> None:
        while (message := pair.server.try_recv()) is not None:
            got.append((pair.server_stack.now_ns, message.data))

    pair.server.on_ready(ready)
    pair.client.send(flow, b"now")
    pair.client_stack.advance(MS)
    assert [data for _, data in got] == [b"now"]
    pair.client.send(flow, b"then")
    pair.server_stack.poll()
    pair.client_stack.advance(0)
    assert [data for _, data in got] == [b"now", b"then"]
    pair.server.on_ready(None)
    pair.client.send(flow, b"unheard")
    pair.client_stack.advance(MS)
    assert len(got) == 2
    assert pair.server.recv(timeout=1).data == b"unheard"


def test_on_ready_hears_of_a_timer_at_its_time(pair):
    """The callback runs in the middle of advance, when it is that time."""
    pair.client_stack.neighbor("10.0.0.77", "02:00:00:00:00:77")
    times = []
    pair.client.on_ready(lambda: times.append(pair.client_stack.now_ns))
    token = pair.client._connect_start("0.0.0.0", "10.0.0.77", 80, "tcp", 2.0)
    assert token > 0
    pair.client_stack.advance(60_000 * MS)
    assert len(times) == 2, times
    assert 3_000 * MS <= times[1] <= 3_000 * MS + 2048


def test_on_ready_needs_a_loop_when_the_stack_has_a_thread(threaded):
    with pytest.raises(RuntimeError, match="no running event loop"):
        threaded.client.on_ready(lambda: None)


def test_on_ready_in_a_loop(threaded):
    threaded.listen()
    flow = threaded.connect()

    async def run() -> list[bytes]:
        got: list[bytes] = []
        done = asyncio.get_running_loop().create_future()

        def ready() -> None:
            while (message := threaded.server.try_recv()) is not None:
                got.append(message.data)
            if len(got) == 100 and not done.done():
                done.set_result(None)

        threaded.server.on_ready(ready)
        for i in range(100):
            threaded.client.send(flow, bytes([i]))
            await asyncio.sleep(0)
        await asyncio.wait_for(done, 20)
        threaded.server.on_ready(None)
        return got

    assert asyncio.run(run()) == [bytes([i]) for i in range(100)]


# --- the end --------------------------------------------------------------------------------------


def test_what_was_sent_before_close_still_arrives(net):
    net.listen()
    flow = net.connect()
    with net.client as client:
        for i in range(50):
            client.send(flow, bytes([i]) * 1000)
    assert net.client.closed
    net.client.close()
    for i in range(50):
        assert net.server.recv(timeout=5).data == bytes([i]) * 1000
    with pytest.raises(ValueError, match="closed"):
        net.client.recv(timeout=0)
    assert (flow.live, flow.error) == (False, errno.ENOTCONN)
    flow.close()


def test_close_without_linger_resets(net):
    net.listen()
    flow = net.connect()
    net.client.send(flow, b"x")
    assert net.server.recv(timeout=5).data == b"x"
    net.client.close(linger=0)
    with pytest.raises(machnet.FlowResetError):
        net.server.recv(timeout=5)


def test_a_forgotten_channel_is_closed_as_if_its_application_had_exited(net):
    listener = net.listen()
    net.connect()
    assert listener.protocol == "tcp"
    net.client = net.client_stack.attach()
    gc.collect()
    net.eventually(lambda: all(info.state != "ESTABLISHED" for info in net.client_stack.sockets()))


def test_closing_a_threaded_stack_waits_for_what_was_sent():
    stack = machnet.Stack(Wire(), ip="10.0.0.2", thread=True)
    server, client = stack.attach(), stack.attach()
    server.listen("10.0.0.2", 888, protocol="tcp")
    flow = client.connect("10.0.0.2", "10.0.0.2", 888, protocol="tcp")
    client.send(flow, b"x" * 100_000)
    start = time.monotonic()
    stack.close(linger=2)
    assert time.monotonic() - start < 10
