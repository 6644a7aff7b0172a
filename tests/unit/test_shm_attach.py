# SPDX-License-Identifier: MIT
"""Channels between processes: lending, attaching, messages, and the ends of both."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import math
import mmap
import os
import select
import threading
import time
from collections.abc import Iterator

import pytest
from shm_local import SMALL, attach_to, attached
from shm_peer import IP, Lender, Peer

import machnet
from machnet._native import ffi, lib
from machnet.config import ChannelSettings
from machnet.sim import Wire
from machnet.stack.lending import attach_fds, lend


@pytest.fixture(params=["adaptive", "busy"])
def stack(request: pytest.FixtureRequest) -> Iterator[machnet.Stack]:
    with machnet.Stack(Wire(), ip=IP, thread=True, poll=request.param) as stack:
        yield stack


def test_another_process_answers_messages(stack):
    """Two applications of one engine: one in this process, one in a process of its own."""
    with Peer(stack, "echo", 7000) as peer, stack.attach() as mine:
        peer.hear(b"ready")
        flow = mine.connect(IP, IP, 7000, "tcp")
        for size in (0, 1, 64, 2048, 5000, 200_000):
            data = os.urandom(size)
            mine.send(flow, data, timeout=5)
            answer = mine.recv(timeout=10)
            assert answer.flow == flow
            assert answer.data == data


def test_the_channel_says_what_it_is(stack):
    with attached(stack) as channel:
        assert channel.settings == SMALL
        assert channel.ip == IP
        assert channel.stack.ip == IP
        assert IP in repr(channel)
    assert channel.closed


def test_the_lender_dies_while_we_sleep():
    with Lender() as lender, attach_fds(lender.fds) as channel:
        flow = channel.connect(IP, IP, 7000, "tcp")
        killer = threading.Timer(0.05, lender.kill)
        killer.start()
        with pytest.raises(BrokenPipeError):
            channel.recv(timeout=20)
        killer.join()
        with pytest.raises(BrokenPipeError):
            channel.recv(timeout=0)
        with pytest.raises((BrokenPipeError, machnet.FlowError)):
            channel.send(flow, b"x")
        with pytest.raises(BrokenPipeError):
            channel.connect(IP, IP, 7000, "tcp")


@pytest.mark.parametrize("call", ["send", "send_many"])
def test_who_only_sends_hears_of_the_lenders_death(call):
    """At the next tick of the coarse clock, not when all buffers are on their way to nobody."""
    with Lender() as lender, attach_fds(lender.fds, spin_us=math.inf) as channel:
        flow = channel.connect(IP, IP, 7000, "tcp")
        channel.send(flow, b"x")
        lender.kill()
        coarse = 6  # CLOCK_MONOTONIC_COARSE, which Python has no name for
        tick = time.clock_gettime(coarse)
        while time.clock_gettime(coarse) == tick:
            pass
        with pytest.raises(BrokenPipeError):
            channel.send(flow, b"x") if call == "send" else channel.send_many(flow, [b"x"])


@pytest.mark.parametrize("call", ["recv", "send", "result", "wait", "ready", "stream_recv"])
def test_the_lender_dies_while_we_spin(call):
    """Callers that never sleep hear of it too, whatever they call."""
    with Lender() as lender, attach_fds(lender.fds, spin_us=math.inf) as channel:
        native = channel._native
        flow = channel.connect(IP, IP, 7000, "tcp")
        token = 0
        if call == "result":
            token = lib.mn_chan_connect(native, 0, 0, 0x0A000063, 9, lib.MN_PROTO_TCP, 60_000)
            assert token > 0
        spins = {
            "recv": lambda: channel.try_recv(),
            "send": lambda: channel.send(flow, bytes(2000)),
            "result": lambda: channel._result(token, event),
            "wait": lambda: lib.mn_chan_wait(native, 10**9) == -errno.EINTR,
            "ready": lambda: lib.mn_chan_ready(native),
            "stream_recv": lambda: lib.mn_chan_stream_recv(native, 1, channel._buf, 1, 0),
        }
        event = ffi.new("struct mn_ctl_evt *")
        lender.kill()
        end = time.monotonic() + 10
        while True:
            assert time.monotonic() < end
            try:
                found = spins[call]()
            except BlockingIOError:
                continue
            except (BrokenPipeError, machnet.FlowError):
                break
            if call == "result" and found is not None:
                assert found.status == -errno.EPIPE
                break
            if call == "ready" and found & lib.MN_READY_DEAD:
                break
            if call == "wait":
                with pytest.raises(BrokenPipeError):
                    channel.recv(timeout=5)
                break
            if call == "stream_recv" and found == -errno.ENOTCONN:
                break
        drain(channel)


def drain(channel: machnet.Channel) -> list[bytes]:
    """What there is to be received before the end of the channel."""
    got = []
    try:
        while True:
            got.append(channel.recv(timeout=5).data)
    except BrokenPipeError:
        return got


def test_what_came_before_the_end_is_received():
    with Lender() as lender, attach_fds(lender.fds) as channel:
        flow = channel.connect(IP, IP, 7000, "tcp")
        for i in range(20):
            channel.send(flow, b"%d" % i)
        # All answers are in the channel once the engine was asked behind them.
        assert channel.recv(timeout=5).data == b"0"
        deadline = time.monotonic() + 10
        while channel.get_option(flow, lib.MN_OPT_SNDQ) and time.monotonic() < deadline:
            pass
        lender.kill()
        got = drain(channel)
        assert got == [b"%d" % i for i in range(1, len(got) + 1)]


def test_the_loan_is_ended_by_the_lender(stack):
    with lend([stack], SMALL) as lent, attach_to(lent) as channel:
        threading.Timer(0.05, lent.close).start()
        with pytest.raises(BrokenPipeError):
            channel.recv(timeout=20)


def test_the_stack_is_closed():
    stack = machnet.Stack(Wire(), ip=IP, thread=True)
    with lend([stack], SMALL) as lent, attach_to(lent) as channel:
        threading.Timer(0.05, stack.close).start()
        with pytest.raises(BrokenPipeError):
            channel.recv(timeout=20)
        with pytest.raises(ValueError, match="closed"):
            lend([stack], SMALL)


def test_closing_from_another_thread_ends_a_wait(stack):
    with lend([stack], SMALL) as lent, attach_to(lent) as channel:
        threading.Timer(0.05, channel.close).start()
        with pytest.raises(ValueError, match="closed"):
            channel.recv(timeout=20)


@pytest.mark.parametrize("size", [0, 1, 3000])
def test_selectors_see_messages(stack, size):
    """The descriptor is readable until a look finds nothing, and when the lender's end is gone."""
    with lend([stack], SMALL) as lent, attach_to(lent) as channel, stack.attach() as client:
        channel.listen(IP, 7000, "tcp")
        flow = client.connect(IP, IP, 7000, "tcp")
        poller = select.poll()
        poller.register(channel.fileno(), select.POLLIN)
        for _ in range(20):
            while channel.try_recv() is not None:
                pass
            assert poller.poll(0) == []
            client.send(flow, bytes(size))
            assert poller.poll(5000)
            assert channel.recv(timeout=5).data == bytes(size)
        assert channel.try_recv() is None
        lent.close()
        assert poller.poll(5000)
        with pytest.raises(BrokenPipeError):
            channel.recv(timeout=5)


def test_edges_come_for_every_event(stack):
    with lend([stack], SMALL) as lent, attach_to(lent) as channel, stack.attach() as client:
        channel.listen(IP, 7000, "tcp")
        flow = client.connect(IP, IP, 7000, "tcp")
        edge = lib.mn_chan_edge_fd(channel._native)
        assert edge >= 0
        waiters = [select.epoll(), select.epoll()]
        for waiter in waiters:
            waiter.register(edge, select.EPOLLIN | select.EPOLLET)
        for i in range(600):
            while channel.try_recv() is not None:
                pass
            for waiter in waiters:
                waiter.poll(0)
            assert channel.try_recv() is None
            client.send(flow, b"%d" % i)
            for waiter in waiters:
                assert waiter.poll(5), i
            assert channel.recv(timeout=5).data == b"%d" % i
        for waiter in waiters:
            waiter.close()


def test_asyncio_is_told(stack):
    async def run() -> list[bytes]:
        got: list[bytes] = []
        done = asyncio.get_running_loop().create_future()

        def ready() -> None:
            while (message := channel.try_recv()) is not None:
                got.append(message.data)
            if len(got) == 50 and not done.done():
                done.set_result(None)

        channel.on_ready(ready)
        for i in range(50):
            client.send(flow, b"%d" % i)
            await asyncio.sleep(0)
        await asyncio.wait_for(done, 10)
        channel.on_ready(None)
        return got

    with attached(stack) as channel, stack.attach() as client:
        channel.listen(IP, 7000, "tcp")
        flow = client.connect(IP, IP, 7000, "tcp")
        assert asyncio.run(run()) == [b"%d" % i for i in range(50)]


def memfd(data: bytes, seals: int) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, 1033, seals)
    return fd


def test_what_is_no_channel_is_refused(stack):
    with lend([stack], SMALL) as lent:
        _, wake, kick = lent.fds
        size = os.fstat(lent.fds[0]).st_size
        with mmap.mmap(lent.fds[0], size) as memory:
            good = memory[:]
        other_version = good[:8] + b"\x63" + good[9:]
        for data, seals, error in (
            (b"", 2, errno.EPROTO),
            (b"short", 2, errno.EINVAL),
            (os.urandom(4096), 2, errno.EPROTO),
            (good, 0, errno.EPROTO),
            (good[: len(good) // 2], 2, errno.EINVAL),
            (other_version, 2, errno.EPROTO),
        ):
            fd = memfd(data, seals)
            with pytest.raises(OSError, match="attaching") as caught:
                attach_fds([fd, wake, kick])
            assert caught.value.errno == error
            os.close(fd)  # it stayed ours
        with pytest.raises(OSError, match="attaching") as caught:
            attach_fds([*lent.fds, kick])
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(ValueError, match="descriptors"):
            attach_fds([1, 2])
        attach_to(lent).close()


def test_a_loan_that_has_ended_has_no_lanes(stack):
    """Who asks may be another thread than who ends it."""
    lent = lend([stack], SMALL)
    assert lent.lanes == (0,)
    seen, running = {(0,)}, threading.Event()

    def ask() -> None:
        running.set()
        while lent.lanes:
            pass
        seen.add(lent.lanes)

    thread = threading.Thread(target=ask)
    thread.start()
    assert running.wait(10)
    lent.close(0)
    thread.join(10)
    assert not thread.is_alive()
    assert seen == {(0,), ()}


def test_descriptors_are_not_inherited(stack):
    with lend([stack], SMALL) as lent:
        assert not any(os.get_inheritable(fd) for fd in lent.fds)
        channel = attach_to(lent)
        assert not os.get_inheritable(channel.fileno())
        channel.close()


def test_a_forked_child_can_let_go(stack):
    """Closing in the child of a fork says nothing to the engine."""
    with attached(stack) as channel, stack.attach() as client:
        channel.listen(IP, 7000, "tcp")
        flow = client.connect(IP, IP, 7000, "tcp")
        child = os.fork()
        if child == 0:
            channel.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        client.send(flow, b"still there")
        assert channel.recv(timeout=5).data == b"still there"


def test_all_channels_are_in_use():
    with machnet.Stack(Wire(), ip=IP, thread=True, lanes_max=2) as stack:
        loans = [lend([stack], SMALL) for _ in range(2)]
        with pytest.raises(OSError, match="lending") as caught:
            lend([stack], SMALL)
        assert caught.value.errno == errno.ENOSPC
        loans.pop().close(linger=0)
        loans.append(lend([stack], SMALL))
        for loan in loans:
            loan.close()
            loan.close()


def test_a_stepped_stack_lends_too():
    with (
        machnet.Stack(Wire(), ip=IP) as stack,
        lend([stack], ChannelSettings(flows_max=8)) as lent,
        attach_to(lent) as channel,
    ):
        token = lib.mn_chan_listen(channel._native, 0, 7000, lib.MN_PROTO_TCP, 0)
        assert token > 0
        stack.poll()
        assert stack.find_socket((IP, 7000)) is not None
