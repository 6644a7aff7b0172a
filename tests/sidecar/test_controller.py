# SPDX-License-Identifier: MIT
"""The controller: handshake, channels, quotas, and clients that mean no good (attacks I6, I11)."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from controller_peer import ControllerPeer, open_descriptors
from sidecar import Sidecar, SidecarError

import machnet
from machnet._native import lib
from machnet.sidecar.protocol import (
    MAGIC,
    PAYLOAD_BYTES_MAX,
    REP_BYTES,
    REQ_BYTES,
    Geometry,
    MalformedError,
    Op,
    Reply,
    Request,
)
from machnet.sidecar.server import HELLO_S, PENDING_MAX

TIMEOUT_S = 60.0
CONFIG = """{{
  "machnet_config": {{"02:00:00:00:00:01": {{"ip": "10.0.0.2", "nic": "link:{nic}"}}}},
  "controller": {{{controller}}}
}}"""
SMALL = {"buf_bytes": 512, "tx_bufs": 16, "rx_bufs": 16, "flows_max": 16, "ctl_slots": 16}


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    nic = tmp_path_factory.mktemp("nic") / "cable"
    with Sidecar(f"link:{nic}", "10.0.0.2", "--log_level=debug") as sidecar:
        with ControllerPeer(sidecar.socket) as peer:  # an engine's first channel leaves something
            peer.attach_only(**SMALL)
        yield sidecar


@pytest.fixture
def settled(sidecar: Sidecar) -> Iterator[Sidecar]:
    """What a test does to the sidecar leaves nothing in it."""
    before = open_descriptors(sidecar.pid)
    yield sidecar
    wait_for_descriptors(sidecar, before)


def wait_for_descriptors(sidecar: Sidecar, most: int) -> None:
    end = time.monotonic() + TIMEOUT_S
    while (now := open_descriptors(sidecar.pid)) > most:
        assert time.monotonic() < end, f"{now} descriptors are open, {most} were"
        time.sleep(0.01)


def configured(tmp_path: Path, controller: str, *args: str) -> Sidecar:
    file = tmp_path / "machnet.json"
    file.write_text(CONFIG.format(nic=tmp_path / "cable", controller=controller))
    return Sidecar(None, "10.0.0.2", f"--config={file}", *args)


# ---- the protocol's packets ------------------------------------------------------------------------


def test_packets_have_the_sizes_of_the_header_and_come_back_as_they_were() -> None:
    request = Request(4, 1, 2, 3, 5, 6, Geometry(1, 2, 3, 4, 5, 6), b"name", b"{}")
    assert len(request.pack()) == REQ_BYTES + 2 == 130
    assert Request.unpack(request.pack()) == request
    reply = Reply(2, 7, -13, 4, 5, 3, Geometry(1, 2, 3, 4, 5, 6), 1, 99, "wh\u00fc")
    assert len(reply.pack()) == REP_BYTES == 256
    assert Reply.unpack(reply.pack()) == reply


def test_a_reason_that_is_too_long_is_cut_between_characters() -> None:
    reply = Reply.unpack(Reply(1, 1, why="\u00fc" * 200).pack())
    assert reply.why == "\u00fc" * 79


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        bytes(REQ_BYTES - 1),
        bytes(REQ_BYTES),
        Request(1).pack() + b"x",
        Request(1, payload=b"x").pack(),
        Request(4, payload=b"x").pack()[:-1],
        Request(4, payload=bytes(PAYLOAD_BYTES_MAX + 1)).pack(),
        Request(1).pack()[:56] + b"n" * 64 + bytes(8),
    ],
)
def test_what_is_no_request_is_refused(packet: bytes) -> None:
    with pytest.raises(MalformedError):
        Request.unpack(packet)


@pytest.mark.parametrize("packet", [b"", bytes(REP_BYTES), bytes(REP_BYTES + 1)])
def test_what_is_no_reply_is_refused(packet: bytes) -> None:
    with pytest.raises(MalformedError):
        Reply.unpack(packet)


# ---- hello, attach, detach -------------------------------------------------------------------------


def test_hello_says_who_serves(settled: Sidecar) -> None:
    with ControllerPeer(settled.socket, hello=False) as peer:
        reply = peer.hello(id=77, name=b"me")
        assert (reply.id, reply.op, reply.status) == (77, Op.HELLO, 0)
        assert reply.pid == settled.pid
        assert reply.chan_version == lib.MN_CHAN_VERSION


@pytest.mark.parametrize("fields", [{"version": 99}, {"chan_version": 99}, {"chan_version": 0}])
def test_another_version_is_told_which_there_is(settled: Sidecar, fields: dict[str, int]) -> None:
    with ControllerPeer(settled.socket, hello=False) as peer:
        reply = peer.hello(**fields)
        assert (reply.status, reply.version) == (-errno.EPROTO, 1)
        assert "this sidecar" in reply.why
        assert peer.ended()


def test_a_channel_comes_with_its_sizes_and_descriptors(settled: Sidecar) -> None:
    with ControllerPeer(settled.socket) as peer:
        first = peer.attach_only()
        assert first.status == 0
        assert first.geo == Geometry(1, 2048, 8192, 8192, 4096, 2048)
        assert first.n_fds == 3
        second = peer.attach_only(**SMALL)
        assert second.geo == Geometry(1, **SMALL)
        assert second.channel != first.channel


def test_detach_ends_one_channel_and_others_go_on(settled: Sidecar) -> None:
    with ControllerPeer(settled.socket) as peer:
        gone, kept = peer.attach_only(**SMALL), peer.attach(**SMALL)
        assert peer.request(Op.DETACH, channel=gone.channel, value=0).status == 0
        again = peer.request(Op.DETACH, channel=gone.channel)
        assert again.status == -errno.ENOENT
        kept.listen("10.0.0.2", 7, protocol="tcp")
        kept.close()


def test_a_channel_of_another_application_can_not_be_detached(settled: Sidecar) -> None:
    with ControllerPeer(settled.socket) as owner, ControllerPeer(settled.socket) as thief:
        channel = owner.attach(**SMALL)
        assert thief.request(Op.DETACH, channel=1).status == -errno.ENOENT
        channel.listen("10.0.0.2", 7, protocol="tcp")
        channel.close()


@pytest.mark.parametrize(
    "wish", [{"buf_bytes": 1000}, {"tx_bufs": 1}, {"rx_bufs": 1 << 31}, {"flows_max": 65536}]
)
def test_sizes_that_no_channel_can_have_are_refused(settled: Sidecar, wish: dict[str, int]) -> None:
    with ControllerPeer(settled.socket) as peer:
        reply = peer.attach_only(**wish)
        assert reply.status == -errno.EINVAL
        assert str(next(iter(wish.values()))) in reply.why
        assert peer.attach_only(**SMALL).status == 0  # the connection goes on


def test_an_unknown_operation_is_refused(settled: Sidecar) -> None:
    with ControllerPeer(settled.socket) as peer:
        assert peer.request(77).status == -errno.EINVAL
        assert peer.hello().status == -errno.EINVAL


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"cmd": "no"}', b'{"cmd": "ss", "x": 1}'])
def test_a_question_that_is_none_is_refused(settled: Sidecar, payload: bytes) -> None:
    with ControllerPeer(settled.socket) as peer:
        reply = peer.request(Op.ADMIN, payload=payload)
        assert (reply.status, reply.n_fds) == (-errno.EINVAL, 0)


# ---- clients that mean no good ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        bytes(REQ_BYTES),
        Request(Op.HELLO).pack()[:-1],
        Request(Op.ATTACH).pack(),
        Request(Op.HELLO, payload=b"more").pack(),
        Request(Op.HELLO).pack()[:56] + b"n" * 72,
        os.urandom(4096),
        bytes(100_000),
    ],
    ids=["a byte", "zeros", "short", "no hello", "payload", "endless name", "noise", "huge"],
)
def test_a_packet_that_is_none_ends_the_connection(settled: Sidecar, packet: bytes) -> None:
    with ControllerPeer(settled.socket, hello=False) as peer:
        peer.send(packet)
        assert peer.ended()


def test_descriptors_that_come_along_are_never_taken(settled: Sidecar) -> None:
    reader, writer = os.pipe()
    with ControllerPeer(settled.socket, hello=False) as peer:
        peer.send(Request(Op.HELLO, chan_version=lib.MN_CHAN_VERSION).pack(), [writer] * 50)
        assert peer.ended()
    os.close(writer)
    # The last writer is gone: had the sidecar taken one, the pipe would not end.
    assert select.select([reader], [], [], TIMEOUT_S)[0]
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_name_can_not_forge_the_log(settled: Sidecar) -> None:
    with ControllerPeer(settled.socket, name=b"x\n1970 info ready\xff") as peer:
        peer.attach_only(**SMALL)
        said = settled.wait_log("1970 info ready")
        assert '"x\\n1970 info ready\\ufffd"' in said


def test_who_does_not_read_replies_stops_no_one(settled: Sidecar) -> None:
    with ControllerPeer(settled.socket) as deaf, ControllerPeer(settled.socket) as other:
        deaf.sock.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 100_000:
                deaf.send(Request(77, sent).pack())
                sent += 1
        assert sent < 100_000  # nothing is taken from it any more
        assert other.attach_only(**SMALL).status == 0
        deaf.sock.settimeout(TIMEOUT_S)
        for expected in range(100):
            reply = deaf.receive()
            assert reply is not None
            assert reply.id == expected


def test_crowds_of_connections_that_say_nothing_are_bounded(settled: Sidecar) -> None:
    before = open_descriptors(settled.pid)
    peers = [ControllerPeer(settled.socket, hello=False) for _ in range(3 * PENDING_MAX)]
    with ControllerPeer(settled.socket) as honest:  # is let in all the same
        assert open_descriptors(settled.pid) <= before + PENDING_MAX + 2
        assert honest.attach_only(**SMALL).status == 0
    # The oldest had to go, the newest may still speak.
    assert peers[0].ended()
    assert peers[-1].hello().status == 0
    for peer in peers:
        peer.close()


def test_thousands_of_connects_leave_nothing(settled: Sidecar) -> None:
    for number in range(5000):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(settled.socket)
        if number % 3 == 0:
            sock.send(b"rubbish")
        sock.close()
    with ControllerPeer(settled.socket) as honest:
        assert honest.attach_only(**SMALL).status == 0
    assert settled.log().count("malformed") < 500  # the log is limited


def test_who_says_nothing_is_shown_the_door(settled: Sidecar) -> None:
    with ControllerPeer(settled.socket, hello=False) as silent:
        began = time.monotonic()
        assert silent.ended()
        assert time.monotonic() - began > HELLO_S / 2


def test_attach_and_detach_leave_nothing(settled: Sidecar) -> None:
    with ControllerPeer(settled.socket) as peer:
        peer.attach_only(**SMALL)
        peer.request(77)  # it has closed what it has sent
        first = open_descriptors(settled.pid)
        for _ in range(500):
            reply = peer.attach_only(**SMALL)
            assert peer.request(Op.DETACH, channel=reply.channel, value=0).status == 0
        wait_for_descriptors(settled, first)  # an engine gives a lane's back when it next passes by


# ---- quotas and the allow list ---------------------------------------------------------------------


def test_quotas_hold_for_each_application(tmp_path: Path) -> None:
    size = 100_000
    quotas = f'"quotas": {{"channels_max": 2, "memory_bytes_max": {size}, "flows_max": 100}}'
    with configured(tmp_path, quotas) as sidecar:
        with ControllerPeer(sidecar.socket) as peer, ControllerPeer(sidecar.socket) as other:
            assert "memory_bytes_max" in peer.attach_only().why
            assert "flows_max" in peer.attach_only(**{**SMALL, "flows_max": 101}).why
            assert peer.attach_only(**SMALL).status == 0
            last = peer.attach_only(**SMALL)
            assert last.status == 0
            refused = peer.attach_only(**SMALL)
            assert (refused.status, refused.n_fds) == (-errno.EDQUOT, 0)
            assert "channels_max" in refused.why
            assert other.attach_only(**SMALL).status == 0  # has its own
            peer.request(Op.DETACH, channel=last.channel, value=0)
            assert peer.attach_only(**SMALL).status == 0
        assert "EDQUOT" in sidecar.log()


AS_NOBODY = """
import os, sys
from controller_peer import ControllerPeer
from machnet.sidecar.protocol import Op
os.setgroups([int(g) for g in sys.argv[3].split(",") if g])
os.setgid(65534); os.setuid(65534)
peers = []
for _ in range(int(sys.argv[2])):
    peer = ControllerPeer(sys.argv[1], hello=False)
    peers.append(peer)
    reply = peer.hello()
    print(reply.status, reply.why)
    if reply.status == 0:
        reply = peer.request(Op.ADMIN, payload=b'{"cmd": "ss"}')
        print(reply.status, reply.why)
"""


def as_nobody(sidecar: Sidecar, connections: int = 1, groups: str = "") -> list[str]:
    """What a user without any rights is told: for each connection, and its question."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    support = Path(__file__).resolve().parent.parent / "support"
    package = Path(machnet.__file__).resolve().parent.parent
    run = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, sidecar.socket, str(connections), groups],
        env={**os.environ, "PYTHONPATH": f"{support}:{package}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_a_user_who_is_not_on_the_list_is_refused(settled: Sidecar) -> None:
    (said,) = as_nobody(settled)
    assert said == f"{-errno.EACCES} user 65534 is not on the allow list (users, groups)"


def test_users_on_the_list_may_attach_but_not_ask(tmp_path: Path) -> None:
    with configured(tmp_path, '"users": [65534], "quotas": {"connections_per_user_max": 2}') as it:
        lines = as_nobody(it, 3)
    assert lines[0].startswith("0 ")
    assert lines[1] == f"{-errno.EACCES} only root and the sidecar's own user may ask this"
    assert lines[4] == f"{-errno.EDQUOT} user 65534 has 2 (connections_per_user_max)"


def test_members_of_a_group_on_the_list_may_attach(tmp_path: Path) -> None:
    with configured(tmp_path, '"groups": [54321]') as sidecar:
        assert as_nobody(sidecar)[0].startswith(f"{-errno.EACCES} ")
        assert as_nobody(sidecar, groups="1,54321")[0].startswith("0 ")


def test_there_is_a_limit_of_applications_but_not_for_root(tmp_path: Path) -> None:
    quotas = '"users": [65534], "quotas": {"connections_max": 1}'
    with configured(tmp_path, quotas) as sidecar, ControllerPeer(sidecar.socket):
        (said,) = as_nobody(sidecar)
        assert said == f"{-errno.EDQUOT} there are 1 applications (connections_max)"
        ControllerPeer(sidecar.socket).close()


# ---- the socket as a file --------------------------------------------------------------------------


def test_the_directory_is_made_and_the_file_has_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "ctrl.sock"
    file = tmp_path / "machnet.json"
    file.write_text(CONFIG.format(nic=tmp_path / "cable", controller='"mode": "0640"'))
    with Sidecar(None, "10.0.0.2", f"--config={file}", socket=str(path)) as sidecar:
        assert path.stat().st_mode & 0o777 == 0o640
        sidecar.stop()
        assert not path.exists()


def test_a_second_sidecar_on_the_socket_is_refused(settled: Sidecar, tmp_path: Path) -> None:
    with pytest.raises(SidecarError, match=f"process {settled.pid}") as failure:
        Sidecar(f"link:{tmp_path}/cable", "10.0.0.2", socket=settled.socket)
    assert "status 1" in str(failure.value)
    ControllerPeer(settled.socket).close()  # the first one is untouched


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_socket_of_something_else_is_left_alone(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "ctrl.sock"
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(SidecarError, match="another process serves on this socket"):
            Sidecar(f"link:{tmp_path}/cable", "10.0.0.2", socket=str(path))
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ctrl.sock"
    path.write_text("precious")
    with pytest.raises(SidecarError, match="that is no socket"):
        Sidecar(f"link:{tmp_path}/cable", "10.0.0.2", socket=str(path))
    assert path.read_text() == "precious"


def test_the_socket_of_a_dead_sidecar_is_taken_over(tmp_path: Path) -> None:
    path = str(tmp_path / "ctrl.sock")
    first = Sidecar(f"link:{tmp_path}/one", "10.0.0.2", socket=path)
    first.kill()
    first.close()
    assert Path(path).exists()
    with Sidecar(f"link:{tmp_path}/two", "10.0.0.2", socket=path), ControllerPeer(path):
        pass


def test_the_magic_number_is_that_of_the_header() -> None:
    assert MAGIC.to_bytes(4, "little") == b"NTRL"


def test_without_free_descriptors_it_waits_for_some_and_does_not_spin(tmp_path: Path) -> None:
    with Sidecar(f"link:{tmp_path}/cable", "10.0.0.2") as sidecar:
        ControllerPeer(sidecar.socket).close()
        free = 6
        most = open_descriptors(sidecar.pid) + free
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (most, most))
        peers = [ControllerPeer(sidecar.socket, hello=False) for _ in range(2 * free)]
        sidecar.wait_log("accept_failed")
        first, *others = peers
        first.close()
        for peer in others:
            peer.close()
        with ControllerPeer(sidecar.socket) as peer:
            assert peer.attach_only().status in {0, -errno.EMFILE}
        assert sidecar.log().count("accept_failed") < 50
