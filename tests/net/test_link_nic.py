# SPDX-License-Identifier: MIT
"""`link:PATH`: a cable between two processes that is a UNIX socket."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import machnet
from machnet.sim import LinkNic
from machnet.testing.nic import NicHandle, check_nic

#: A frame's bytes, by number.
HEAD = bytes.fromhex("02000000000202000000000188b5")
ENOUGH_S = 20.0
SO_SNDBUFFORCE = 32  # asm/socket.h; Python does not name it


def frame(number: int, length: int = 60) -> bytes:
    return (HEAD + number.to_bytes(4, "big")).ljust(length, b"\xaa")


class End:
    """One end, driven with plain bytes."""

    def __init__(self, path: Path, **settings: int) -> None:
        self.link = LinkNic(path, **settings)
        self.nic = NicHandle(self.link.native)

    def poll(self) -> list[bytes]:
        return list(iter(self.nic.recv, None))

    def stats(self, name: str) -> int:
        return self.link.stats()[name]

    def close(self) -> None:
        self.link.close()


def until(holds: Callable[[], bool], *ends: End) -> list[bytes]:
    """Poll the ends until it holds; returns what the first one received."""
    deadline, got = time.monotonic() + ENOUGH_S, list[bytes]()
    while not holds():
        assert time.monotonic() < deadline, [end.link.stats() for end in ends]
        for end in ends:
            frames = end.poll()
            got += frames if end is ends[0] else []
        select.select([end.nic.info.rx_fd for end in ends], [], [], 0.005)
    return got


def meet(*ends: End) -> None:
    until(lambda: all(end.link.connected for end in ends), *ends)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    # A socket's path is short; pytest's need not be.
    short = Path(f"/tmp/mn-link-{os.getpid()}-{time.monotonic_ns():x}")
    yield short
    for left in (short, Path(f"{short}.lock")):
        left.unlink(missing_ok=True)


@pytest.fixture
def ends(path: Path) -> Iterator[tuple[End, End]]:
    a, b = End(path), End(path)
    meet(a, b)
    yield a, b
    a.close()
    b.close()


class Bench:
    """As `check_nic` wants it."""

    wire_marks = False

    def __init__(self, path: Path, first: bool, mtu: int) -> None:
        self.ends = [End(path, mtu=mtu), End(path, mtu=mtu)]
        meet(*self.ends)
        one, two = self.ends if first else self.ends[::-1]
        self.nic, self.other = one.nic, two.nic

    def deliver(self, frame: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            self.other.send(frame)

    def collect(self) -> list[bytes]:
        return list(iter(self.other.recv, None))

    def close(self) -> None:
        for end in self.ends:
            end.close()


@pytest.mark.parametrize(("first", "mtu"), [(True, 1500), (False, 9000)])
def test_it_is_a_nic_as_the_engine_wants_them(path: Path, first: bool, mtu: int) -> None:
    assert check_nic(lambda: Bench(path, first, mtu))
    assert not path.exists()


@pytest.mark.parametrize("mtu", [68, 65521])
def test_the_largest_frame_of_an_mtu_arrives(path: Path, mtu: int) -> None:
    a, b = End(path, mtu=mtu), End(path, mtu=mtu)
    meet(a, b)
    a.nic.send(frame(1, mtu + 14))
    assert b.poll() == [frame(1, mtu + 14)]
    with pytest.raises(OSError) as caught:
        a.nic.send(frame(1, mtu + 15))
    assert caught.value.errno == errno.EMSGSIZE
    a.close()
    b.close()


def test_a_burst_is_one_message(ends: tuple[End, End]) -> None:
    a, b = ends
    for number in range(7):
        b.nic.send(frame(number))
    assert b.stats("tx_msgs") == 7
    taken = 0
    while (count := a.nic.bounce(64)) > 0:
        taken += count
    assert taken == 7
    assert b.poll() == [frame(number) for number in range(7)]
    assert b.stats("rx_msgs") < 7
    assert b.stats("rx_frames") == 7


def test_a_small_burst_takes_a_large_message_in_parts(ends: tuple[End, End]) -> None:
    a, b = ends
    for number in range(20):
        b.nic.send(frame(number, 61 + number))
    while a.nic.bounce(64) > 0:
        pass
    got, bounced = list[bytes](), 0
    while (count := b.nic.bounce(3)) > 0:
        assert count <= 3
        bounced += count
        got += a.poll()
    assert bounced == 20
    assert got == [frame(number, 61 + number) for number in range(20)]


def test_what_is_sent_while_nobody_is_there_is_lost_and_counted(path: Path) -> None:
    a = End(path)
    a.nic.send(frame(1))
    assert (a.stats("tx_no_peer"), a.stats("tx_frames"), a.link.connected) == (1, 0, False)
    b = End(path)
    a.nic.send(frame(2))  # the other end has said hello already, and is heard now
    assert b.poll() == [frame(2)]
    a.close()
    b.close()


@pytest.mark.parametrize("who", [0, 1], ids=["listener", "connector"])
def test_an_end_that_goes_away_may_come_back(path: Path, who: int) -> None:
    pair = [End(path), End(path)]
    for round_ in range(3):
        meet(*pair)
        pair[0].nic.send(frame(round_))
        pair[1].nic.send(frame(100 + round_))
        assert pair[1].poll() == [frame(round_)]
        assert pair[0].poll() == [frame(100 + round_)]
        pair[who].close()
        stays = pair[1 - who]
        until(lambda end=stays: not end.link.connected, stays)
        stays.nic.send(frame(7))
        pair[who] = End(path)
    meet(*pair)
    assert pair[1 - who].stats("peers") == 4
    for end in pair:
        end.close()


def test_a_process_that_is_killed_leaves_no_obstacle(path: Path) -> None:
    text = (
        "import sys, time; from machnet.sim import LinkNic\n"
        f"link = LinkNic({str(path)!r}); print('up', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"up\n"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert path.exists()
    a, b = End(path), End(path)
    meet(a, b)
    a.close()
    b.close()
    assert not path.exists()
    assert not Path(f"{path}.lock").exists()


def test_a_third_one_waits_for_its_turn(ends: tuple[End, End], path: Path) -> None:
    a, b = ends
    third = End(path)
    third.nic.send(frame(1))
    a.nic.send(frame(2))
    assert b.poll() == [frame(2)]
    assert a.poll() == []
    assert (third.stats("tx_no_peer"), third.link.connected) == (1, False)
    assert not select.select([a.nic.info.rx_fd], [], [], 0)[0]
    b.close()
    meet(a, third)
    third.nic.send(frame(3))
    assert a.poll() == [frame(3)]
    third.close()


def test_an_end_that_reads_nothing_holds_the_other_up_for_10_ms_only(
    ends: tuple[End, End],
) -> None:
    a, b = ends
    sent, refused = 0, 0
    deadline = time.monotonic() + ENOUGH_S
    while a.stats("tx_stalled") == 0:
        assert time.monotonic() < deadline
        try:
            a.nic.send(frame(sent, 1514))
            sent += 1
        except BlockingIOError:
            refused += 1
    assert refused > 0
    assert a.stats("tx_full") == refused + 1
    arrived = b.poll()
    assert arrived == [frame(number, 1514) for number in range(sent - 1)]
    a.nic.send(frame(5))
    assert b.poll() == [frame(5)]


def test_the_descriptor_stays_the_same_from_peer_to_peer(path: Path) -> None:
    a = End(path)
    fd = a.nic.info.rx_fd
    for _ in range(2):
        b = End(path)
        assert select.select([fd], [], [], ENOUGH_S)[0] == [fd]
        meet(a, b)
        assert select.select([fd], [], [], 0)[0] == []
        b.nic.send(frame(1))
        assert select.select([fd], [], [], ENOUGH_S)[0] == [fd]
        assert a.poll() == [frame(1)]
        b.close()
        assert select.select([fd], [], [], ENOUGH_S)[0] == [fd]
        a.poll()
        assert select.select([fd], [], [], 0)[0] == []
    a.close()


HELLO = b"MNLK\1\0\0\0" + (1500).to_bytes(4, "big")


def said(*frames: bytes) -> bytes:
    return b"".join(len(one).to_bytes(2, "little") + one for one in frames)


class TestHostilePeer:
    """A program that speaks the socket's protocol wrongly."""

    @pytest.fixture
    def end(self, path: Path) -> Iterator[End]:
        end = End(path)
        yield end
        end.close()

    @pytest.fixture
    def peer(self, end: End, path: Path) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(path))
            sock.settimeout(ENOUGH_S)
            end.poll()
            assert sock.recv(100) == HELLO
            yield sock

    @pytest.mark.parametrize(
        "hello",
        [b"x", b"GET / HTTP/1.0\r\n", HELLO[:-1], HELLO + b"\0", HELLO.replace(b"\1", b"\2")],
    )
    def test_a_wrong_hello_ends_the_connection(
        self, end: End, peer: socket.socket, hello: bytes
    ) -> None:
        peer.send(hello)
        assert end.poll() == []
        assert peer.recv(1) == b""
        assert (end.stats("rx_bad"), end.stats("peers"), end.link.connected) == (1, 0, False)

    @pytest.mark.parametrize(
        ("message", "wanted"),
        [
            (said(frame(1)), [frame(1)]),
            (said(frame(1), frame(2, 14)), [frame(1), frame(2, 14)]),
            (b"\x05", []),
            (b"\0\0", []),
            (said(frame(1)[:13]), []),
            (said(frame(1)) + b"\x0e", [frame(1)]),
            (said(frame(1)) + said(frame(2))[:-1], [frame(1)]),
            (said(frame(1)) + b"\xff\xff" + frame(2), [frame(1)]),
            (said(frame(1), b"", frame(3)), [frame(1)]),
            (bytes(70_000), []),
        ],
    )
    def test_what_is_no_frame_is_dropped(
        self, end: End, peer: socket.socket, message: bytes, wanted: list[bytes]
    ) -> None:
        peer.send(HELLO)
        peer.send(message)
        got = end.poll()  # so that a large one does not fill the socket
        peer.send(said(frame(9)))
        assert [*got, *end.poll()] == [*wanted, frame(9)]
        assert end.stats("rx_bad") == (0 if said(*wanted) == message else 1)
        assert end.stats("peer_mtu") == 1500

    @pytest.mark.parametrize("bad", [b"bad", bytes(70_000)])
    def test_frames_behind_many_bad_messages_are_not_forgotten(
        self, end: End, peer: socket.socket, bad: bytes
    ) -> None:
        if len(bad) > 1000:
            try:
                peer.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 23)
            except PermissionError:
                pytest.skip("only root may have a buffer that holds all of these at once")
        for message in (HELLO, *[bad] * 20, said(frame(9))):
            peer.send(message)
        got = end.poll()
        # They don't hold up whoever polls, either.
        assert 0 < end.stats("rx_bad") < 20
        while not got and end.nic.info.wake_ns:
            got = end.poll()
        assert got == [frame(9)]
        assert (end.nic.info.wake_ns, end.stats("rx_bad")) == (0, 20)


class TestRefusals:
    def test_a_directory_that_is_not_there(self, path: Path) -> None:
        with pytest.raises(OSError, match="no such directory") as caught:
            LinkNic(path / "x")
        assert caught.value.errno == errno.ENOENT

    def test_a_file_that_is_no_socket_is_left_alone(self, path: Path) -> None:
        path.write_text("precious", encoding="ascii")
        with pytest.raises(OSError, match="it is no socket"):
            LinkNic(path)
        assert path.read_text(encoding="ascii") == "precious"

    def test_another_program_s_socket(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.bind(str(path))
            sock.listen()
            with pytest.raises(OSError, match="socket of another program"):
                LinkNic(path)
        assert path.exists()

    @pytest.mark.parametrize("length", [0, 108])
    def test_a_path_that_no_socket_can_have(self, length: int) -> None:
        with pytest.raises(OSError, match="1 to 107 bytes"):
            LinkNic(f"/{'x' * length}"[1 if length == 0 else 0 :])

    @pytest.mark.parametrize("mtu", [67, 65522])
    def test_an_mtu_out_of_range(self, path: Path, mtu: int) -> None:
        with pytest.raises(OSError, match=f"68 to 65521 bytes, not {mtu}"):
            LinkNic(path, mtu=mtu)
        assert not path.exists()

    def test_a_mac_that_is_a_group_s(self, path: Path) -> None:
        with pytest.raises(OSError, match="unicast"):
            LinkNic(path, mac="01:00:00:00:00:01")


def test_two_processes_talk_over_it(path: Path) -> None:
    text = (
        "import machnet\n"
        f"with machnet.Stack('link:{path}', ip='10.9.0.2/24') as stack:\n"
        "    channel = stack.attach()\n"
        "    channel.listen('10.9.0.2', 888, protocol='tcp')\n"
        "    print('up', flush=True)\n"
        "    for _ in range(3):\n"
        "        message = channel.recv(timeout=20)\n"
        "        channel.send(message.flow, message.data[::-1])\n"
        "    assert channel.recv(timeout=20).data == b'bye'\n"
    )
    child = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"up\n"
        with machnet.Stack(f"link:{path}?latency=1ms", ip="10.9.0.1/24") as stack:
            channel = stack.attach()
            flow = channel.connect("10.9.0.1", "10.9.0.2", 888, protocol="tcp", timeout=ENOUGH_S)
            for size in (1, 1000, 100_000):
                data = os.urandom(size)
                channel.send(flow, data)
                assert channel.recv(timeout=ENOUGH_S).data == data[::-1]
            channel.send(flow, b"bye")
            assert child.wait(ENOUGH_S) == 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
