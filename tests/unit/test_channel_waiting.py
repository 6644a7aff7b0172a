# SPDX-License-Identifier: MIT
"""`machnet.Channel`: streams, waiting, descriptors, callbacks, and the channel's own end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import select
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from channel_net import MS, Net, pattern

import machnet
from machnet.sim import Wire

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
