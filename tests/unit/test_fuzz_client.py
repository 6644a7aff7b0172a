# SPDX-License-Identifier: MIT
"""What fuzz_client and fuzz_lanes have found: sidecars that are hostile, broken, or just stopped."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from shm_local import SMALL, attach_to

import machnet
from machnet._native import ffi, lib
from machnet.sidecar.protocol import Geometry, Op, Reply, Request
from machnet.sim import Wire
from machnet.stack.lending import Lent, attach_fds, lend

IP = "10.0.0.1"
PATIENCE_S = 30.0


@contextlib.contextmanager
def controller(serve: Callable[[socket.socket, Request], None]) -> Iterator[str]:
    """A controller's socket; what it does with each request is the test's."""
    with (
        tempfile.TemporaryDirectory(prefix="mn-ctrl-") as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        listener.bind(f"{folder}/s")
        listener.listen()

        ends = [listener]

        def run() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                ends.append(connection)
                while packet := connection.recv(65536):
                    serve(connection, Request.unpack(packet))

        thread = threading.Thread(target=run)
        thread.start()
        yield f"{folder}/s"
        for end in ends:  # a client that is still there must not keep it
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def stack() -> Iterator[machnet.Stack]:
    with machnet.Stack(Wire(), ip=IP) as stack:
        yield stack


def geometry(lent: Lent) -> Geometry:
    return Geometry(1, *[getattr(lent.settings, name) for name in Geometry._fields[1:]])


def answer(connection: socket.socket, request: Request, lent: Lent, **changes: object) -> None:
    """As a sidecar would, but for some fields of the answer to an attach."""
    reply = Reply(Op(request.op), request.id, chan_version=lib.MN_CHAN_VERSION)
    fds: list[int] = []
    if request.op == Op.ATTACH:
        fds = lent.fds
        reply = reply._replace(channel=7, n_fds=3, geo=geometry(lent))._replace(**changes)  # type: ignore[arg-type]
    socket.send_fds(connection, [reply.pack()], fds)


def test_a_flood_of_answers_to_nothing_is_no_answer_in_time() -> None:
    """Each of them is passed over, but only until the time is up."""
    stray = Reply(Op.HELLO, 12345).pack()
    began = time.monotonic()

    def flood(connection: socket.socket, _: Request) -> None:
        while time.monotonic() < began + PATIENCE_S:
            connection.send(stray)

    with controller(flood) as path, pytest.raises(TimeoutError, match="did not answer within"):
        machnet.attach(path)
    assert time.monotonic() < began + PATIENCE_S


def test_an_engine_that_does_nothing_holds_up_no_call_that_does_not_wait(stack) -> None:
    """With a descriptor in use and something owed to an engine whose ring is full."""
    with lend([stack], SMALL) as lent, attach_to(lent) as channel, stack.attach() as client:
        native = channel._native
        token = lib.mn_chan_listen(native, 0, 7000, lib.MN_PROTO_STREAM, 0)
        stack.poll()
        event = ffi.new("struct mn_ctl_evt *")
        assert lib.mn_chan_result(native, token, event) == 1
        client.connect(IP, IP, 7000, "stream")
        while lib.mn_chan_setopt(native, lib.MN_FLOW_NONE, lib.MN_OPT_NODELAY, 1) > 0:
            pass
        assert lib.mn_chan_fd(native) >= 0
        assert lib.mn_chan_accept(native, event.value) >= 0
        got: list[int] = []

        def receive() -> None:
            got.append(lib.mn_chan_recv(native, ffi.NULL, 0, ffi.new("struct mn_chan_event *")))

        thread = threading.Thread(target=receive, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert got == [-errno.EAGAIN]


def test_a_channel_with_the_number_of_another_one_is_refused(stack) -> None:
    """The record of the first one would be taken away with the second one's memory still in use."""
    with (
        lend([stack], SMALL) as first,
        lend([stack], SMALL) as second,
    ):
        loans = iter((first, second))

        def serve(connection: socket.socket, request: Request) -> None:
            answer(connection, request, next(loans) if request.op == Op.ATTACH else first)

        with controller(serve) as path, machnet.attach(path) as channel:
            with pytest.raises(OSError, match="can't be used") as caught:
                channel.stack.attach()
            assert caught.value.errno == errno.EPROTO


def test_the_geometry_is_that_of_the_memory(stack) -> None:
    with lend([stack], SMALL) as lent:
        wrong = geometry(lent)._replace(buf_bytes=65536)

        def serve(connection: socket.socket, request: Request) -> None:
            answer(connection, request, lent, geo=wrong)

        with controller(serve) as path, pytest.raises(OSError, match="can't be used") as caught:
            machnet.attach(path)
        assert caught.value.errno == errno.EPROTO


def test_a_reason_that_is_no_text_is_shown_as_far_as_it_is_one(stack) -> None:
    with lend([stack], SMALL) as lent:

        def serve(connection: socket.socket, request: Request) -> None:
            if request.op == Op.HELLO:
                answer(connection, request, lent)
            else:
                packet = Reply(Op.ATTACH, request.id, -errno.EDQUOT, why="no!").pack()
                connection.send(packet.replace(b"no!", b"n\xff!"))

        with controller(serve) as path, pytest.raises(OSError, match="n\ufffd!") as caught:
            machnet.attach(path)
        assert caught.value.errno == errno.EDQUOT


ODD = [
    (1, "pipe"),
    (1, "file"),
    (1, "waits"),
    (2, "pipe"),
    (2, "file"),
    (2, "waits"),
    (2, "socket"),
]


@pytest.mark.parametrize(("which", "kind"), ODD)
def test_descriptors_that_could_wait_or_raise_a_signal_are_refused(stack, which, kind) -> None:
    """A kick is written to without looking, and a wake-up read: neither may hold up anybody."""
    made: list[int] = []
    if kind == "pipe":
        made += os.pipe()
    elif kind == "file":
        made.append(os.open("/dev/zero", os.O_RDWR))
    elif kind == "waits":
        made.append(os.eventfd(0))
    else:
        made += [end.detach() for end in socket.socketpair()]
    with lend([stack], SMALL) as lent:
        fds = list(lent.fds)
        fds[which] = made[-1]
        with pytest.raises(OSError, match="attaching") as caught:
            attach_fds(fds)
        assert caught.value.errno == errno.EPROTO
    for fd in made:
        os.close(fd)


def test_a_flow_is_looked_at_while_a_forgotten_command_ends() -> None:
    """Its record goes as the answers are taken in, which is when listeners are looked up."""
    with contextlib.ExitStack() as ends:
        stacks = [ends.enter_context(machnet.Stack(Wire(), ip=IP)) for _ in range(2)]
        lent = ends.enter_context(lend(stacks, SMALL))
        channel = ends.enter_context(attach_to(lent))
        client = ends.enter_context(stacks[0].attach())
        native = channel._native
        token = lib.mn_chan_listen(native, 0, 7000, lib.MN_PROTO_TCP, 0)
        for stack in stacks:
            stack.poll()
        assert lib.mn_chan_result(native, token, ffi.new("struct mn_ctl_evt *")) == 1
        client.send(client.connect(IP, IP, 7000, "tcp"), b"x")
        stacks[0].poll()
        assert lib.mn_chan_ready(native) & lib.MN_READY_MSG
        flows = ffi.new("uint32_t[4]")
        assert lib.mn_chan_flows(native, flows, 4) == 1
        option = lib.mn_chan_setopt(native, lib.MN_FLOW_NONE, lib.MN_OPT_NODELAY, 1)
        assert lib.mn_chan_forget(native, option) == 0
        for stack in stacks:
            stack.poll()
        info = ffi.new("struct mn_app_flow_info *")
        assert lib.mn_chan_flow_info(native, flows[0], info) == 0
        assert info.listener == 1
