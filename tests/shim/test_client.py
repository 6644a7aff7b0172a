# SPDX-License-Identifier: MIT
"""The controller's client against controllers that say all kinds of things, by `machnet.attach`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import machnet
import machnet.sim
from machnet._native import lib
from machnet.sidecar.protocol import Geometry, Op, Reply, Request
from machnet.stack.lending import Lent, lend

Answer = Callable[[Request], "tuple[bytes, list[int]] | None"]


class Scripted:
    """A controller that answers each request as it is told; None ends the connection."""

    def __init__(self, answer: Answer) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="mn-ctrl-")
        self.path = f"{self._directory.name}/s"
        self.requests: list[Request] = []
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        self._connection = self._listener
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connection, _ = self._listener.accept()
                with self._connection:
                    self._serve(self._connection)

    def _serve(self, connection: socket.socket) -> None:
        while packet := connection.recv(65536):
            request = Request.unpack(packet)
            self.requests.append(request)
            answer = self._answer(request)
            if answer is None:
                return
            data, fds = answer
            socket.send_fds(connection, [data], fds)

    def close(self) -> None:
        # A client that is still there must not keep it.
        for end in (self._listener, self._connection):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._directory.cleanup()


@pytest.fixture
def scripted() -> Iterator[Callable[[Answer], Scripted]]:
    made: list[Scripted] = []

    def make(answer: Answer) -> Scripted:
        made.append(Scripted(answer))
        return made[-1]

    yield make
    for controller in made:
        controller.close()


def hello(request: Request, **changes: object) -> tuple[bytes, list[int]]:
    reply = Reply(Op.HELLO, request.id, chan_version=lib.MN_CHAN_VERSION, pid=1)
    return reply._replace(**changes).pack(), []  # type: ignore[arg-type]


def open_fds() -> set[str]:
    listed = list(Path("/proc/self/fd").iterdir())
    return {path.name for path in listed if path.is_symlink()}  # less that of the listing


def attach_error(controller: Scripted) -> OSError:
    with pytest.raises(OSError) as caught:
        machnet.attach(controller.path)
    return caught.value


@pytest.fixture
def lent() -> Iterator[Lent]:
    """A channel of a stack of this process, to be handed out by a scripted controller."""
    with machnet.Stack(machnet.sim.Wire(), ip="10.0.0.2/24") as stack, lend([stack]) as loan:
        yield loan


def geometry(lent: Lent) -> Geometry:
    return Geometry(1, *[getattr(lent.settings, name) for name in Geometry._fields[1:]])


def test_nobody_there_is_refused_and_the_text_has_the_path(tmp_path: Path) -> None:
    path = tmp_path / "nobody"
    with pytest.raises(ConnectionRefusedError, match=str(path)):
        machnet.attach(path)
    path.touch()  # a file, and no socket
    with pytest.raises(ConnectionRefusedError, match=str(path)):
        machnet.attach(path)
    with pytest.raises(ConnectionRefusedError, match="nobody/below"):
        machnet.attach(path / "below")


def test_a_socket_of_another_kind_is_no_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(ConnectionRefusedError, match=str(path)):
            machnet.attach(path)


def test_a_path_that_is_too_long_is_said_to_be() -> None:
    with pytest.raises(OSError, match="longer than 107 bytes") as caught:
        machnet.attach("/" + "x" * 200)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_arguments_are_checked_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="spin_us"):
        machnet.attach(tmp_path / "s", spin_us=-1)
    with pytest.raises(ValueError, match="zero byte"):
        machnet.attach("a\0b")


def test_the_environment_names_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACHNET_SOCKET", str(tmp_path / "mine"))
    with pytest.raises(ConnectionRefusedError, match=str(tmp_path / "mine")):
        machnet.attach()


def test_hello_has_the_name_and_the_version(
    scripted: Callable[[Answer], Scripted],
) -> None:
    controller = scripted(lambda request: None)
    with pytest.raises(ConnectionError):
        machnet.attach(controller.path, name="it's me" + "x" * 100)
    with pytest.raises(ConnectionError):
        machnet.attach(controller.path)
    named, unnamed = controller.requests
    assert (named.op, named.chan_version) == (Op.HELLO, lib.MN_CHAN_VERSION)
    assert named.name == (b"it's me" + b"x" * 100)[:63]
    assert unnamed.name != b""


@pytest.mark.parametrize(
    "changes",
    [{"version": 2}, {"chan_version": lib.MN_CHAN_VERSION + 1}, {"chan_version": 0}],
)
def test_another_version_is_EPROTO_and_says_which(
    scripted: Callable[[Answer], Scripted], changes: dict[str, int]
) -> None:
    error = attach_error(scripted(lambda request: hello(request, **changes)))
    assert error.errno == errno.EPROTO
    assert "the sidecar speaks version" in str(error)


@pytest.mark.parametrize("status", [-errno.EACCES, -errno.EPROTO, -errno.EDQUOT])
def test_a_refusal_comes_with_its_reason(
    scripted: Callable[[Answer], Scripted], status: int
) -> None:
    controller = scripted(lambda request: hello(request, status=status, why="because"))
    error = attach_error(controller)
    assert error.errno == -status
    assert str(error).endswith("because")


def test_a_status_that_is_no_errno_is_EPROTO(scripted: Callable[[Answer], Scripted]) -> None:
    for status in (1, -5000, -(2**31)):
        controller = scripted(lambda request, s=status: hello(request, status=s))  # type: ignore[misc]
        assert attach_error(controller).errno == errno.EPROTO


@pytest.mark.parametrize(
    "packet",
    [b"x", b"x" * 256, b"\0" * 256, b"x" * 255, b"x" * 300],
    ids=["short", "magic", "zeros", "one-less", "longer"],
)
def test_what_is_no_reply_is_EPROTO(scripted: Callable[[Answer], Scripted], packet: bytes) -> None:
    assert attach_error(scripted(lambda request: (packet, []))).errno == errno.EPROTO


class Stale(Scripted):
    """Before each answer to an attach it sends one to another request, with descriptors."""

    def __init__(self, answer: Answer, fds: list[int]) -> None:
        self._fds = fds
        super().__init__(answer)

    def _serve(self, connection: socket.socket) -> None:
        while packet := connection.recv(65536):
            request = Request.unpack(packet)
            self.requests.append(request)
            if request.op == Op.ATTACH:
                stale = Reply(Op.ATTACH, request.id - 1, n_fds=len(self._fds)).pack()
                socket.send_fds(connection, [stale], self._fds)
            answer = self._answer(request)
            assert answer is not None
            socket.send_fds(connection, [answer[0]], answer[1])


def attached(request: Request, lent: Lent, **changes: object) -> tuple[bytes, list[int]]:
    if request.op == Op.HELLO:
        return hello(request)
    if request.op == Op.DETACH:
        return Reply(Op.DETACH, request.id).pack(), []
    reply = Reply(Op.ATTACH, request.id, channel=7, n_fds=3, geo=geometry(lent))
    fds = changes.pop("fds", lent.fds)
    assert isinstance(fds, list)
    return reply._replace(**changes).pack(), fds  # type: ignore[arg-type]


def test_an_answer_to_something_else_is_passed_over_and_its_descriptors_are_closed(
    lent: Lent,
) -> None:
    controller = Stale(lambda request: attached(request, lent), lent.fds[:2])
    try:
        before = open_fds()
        with machnet.attach(controller.path) as channel:
            assert channel.settings == lent.settings
        assert [request.op for request in controller.requests] == [Op.HELLO, Op.ATTACH, Op.DETACH]
        assert controller.requests[-1].channel == 7
        del channel
        assert open_fds() <= before | server_side(controller)
    finally:
        controller.close()


def server_side(controller: Scripted) -> set[str]:
    """The controller's own end of a connection, which it may not have closed yet."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if "socket" in str(path.readlink()):
                found.add(path.name)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"n_fds": 2},
        {"n_fds": 4},
        {"fds": [], "n_fds": 0},
        {"geo": Geometry()},
        {"geo": Geometry(2, 2048, 64, 64, 64, 64)},
        {"geo": Geometry(17, 2048, 64, 64, 64, 64)},
    ],
    ids=["fewer", "more", "none", "no-geometry", "lanes", "too-many-lanes"],
)
def test_an_attach_that_does_not_add_up_is_EPROTO_and_keeps_no_descriptor(
    scripted: Callable[[Answer], Scripted], lent: Lent, changes: dict[str, object]
) -> None:
    controller = scripted(lambda request: attached(request, lent, **changes))
    before = open_fds()
    assert attach_error(controller).errno == errno.EPROTO
    assert open_fds() <= before | server_side(controller)


def test_memory_that_is_no_channel_is_EPROTO_and_given_back(
    scripted: Callable[[Answer], Scripted], lent: Lent
) -> None:
    memory = os.memfd_create("nonsense")
    try:
        os.ftruncate(memory, 4096)
        fds = [memory, *lent.fds[1:]]
        controller = scripted(lambda request: attached(request, lent, fds=fds))
        before = open_fds()
        error = attach_error(controller)
        assert (error.errno, "can't be used" in str(error)) == (errno.EPROTO, True)
        assert [request.op for request in controller.requests] == [Op.HELLO, Op.ATTACH, Op.DETACH]
        assert open_fds() <= before | server_side(controller)
    finally:
        os.close(memory)


def test_a_sidecar_that_closes_every_connection_is_refused_after_a_second_try(
    scripted: Callable[[Answer], Scripted],
) -> None:
    controller = scripted(lambda request: hello(request) if request.op == Op.HELLO else None)
    with pytest.raises(ConnectionRefusedError, match="closes its connections"):
        machnet.attach(controller.path)
    assert [request.op for request in controller.requests] == [Op.HELLO, Op.ATTACH] * 2


def test_sizes_that_are_not_given_are_the_sidecars_choice(
    scripted: Callable[[Answer], Scripted],
) -> None:
    controller = scripted(
        lambda request: (
            hello(request)
            if request.op == Op.HELLO
            else (Reply(Op.ATTACH, request.id, -errno.EDQUOT, why="enough").pack(), [])
        )
    )
    with pytest.raises(OSError, match="enough") as caught:
        machnet.attach(controller.path, tx_bufs=64)
    assert caught.value.errno == errno.EDQUOT
    assert controller.requests[-1].geo == Geometry(tx_bufs=64)
    with pytest.raises(TypeError, match="did you mean 'tx_bufs'"):
        machnet.attach(controller.path, tx_buf=64)
    with pytest.raises(ValueError, match="tx_bufs"):
        machnet.attach(controller.path, tx_bufs=1)
