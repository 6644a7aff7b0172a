# SPDX-License-Identifier: MIT
"""What an application does with the descriptors that it was given."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
from collections.abc import Iterator

import pytest
from shm_lab import IP, Lab, Raw, eventually, hostile, make_lab

from machnet._native import ffi, lib
from machnet.stack.lending import attach_fds

F_ADD_SEALS, F_GET_SEALS = 1033, 1034
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 1, 2, 4, 8
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with make_lab() as lab:
        yield lab


def test_the_memory_can_be_neither_cut_nor_grown_nor_sealed(lab):
    with hostile(lab) as (lent, _):
        memfd = lent.fds[0]
        size = os.fstat(memfd).st_size
        for length in (0, 4096, size - 1, size + 1, 2 * size):
            with pytest.raises(PermissionError):
                os.ftruncate(memfd, length)
        with pytest.raises(PermissionError):
            fcntl.fcntl(memfd, F_ADD_SEALS, F_SEAL_WRITE)
        assert fcntl.fcntl(memfd, F_GET_SEALS) == F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW
        lab.served()


def test_its_pages_are_taken_away(lab):
    """Holes read as zeros: an engine that is reading them goes on."""
    libc = ctypes.CDLL(None, use_errno=True)
    with hostile(lab) as (lent, raw):
        channel = attach_fds([os.dup(fd) for fd in lent.fds])
        flow = channel.connect(IP, IP, 90, "tcp")
        for _ in range(10):
            channel.send(flow, bytes(500), timeout=5)
            rc = libc.fallocate(
                lent.fds[0],
                FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
                ctypes.c_long(0),
                ctypes.c_long(os.fstat(lent.fds[0]).st_size),
            )
            assert rc == 0, os.strerror(ctypes.get_errno())
            raw.kick(lent)
            lab.served()
            if lent.dead:
                break
        channel.close()
    lab.clean()


def test_wake_ups_that_nobody_takes(lab):
    """The flag says "wake me" all the time, and the socket is never read: it fills, and that is all.

    One wake-up for a pass at most, whatever the flag says.
    """
    with hostile(lab) as (lent, raw):
        channel = attach_fds([os.dup(fd) for fd in lent.fds])
        flow = channel.connect(IP, IP, 90, "tcp")
        for _ in range(400):
            raw.flags.app_sleeps = 1
            channel.send(flow, b"x", timeout=5)
            lab.served(1)
            lab.drain_sink()
        before = lab.stack.host_stats()["passes"], lab.stack.stats()["wakeups"]
        raw.flags.app_sleeps = 1
        for _ in range(100):
            channel.send(flow, b"x", timeout=5)
            lab.drain_sink()
        after = lab.stack.host_stats()["passes"], lab.stack.stats()["wakeups"]
        # Four other channels of the lab, which are woken as well.
        assert after[1] - before[1] <= 5 * (after[0] - before[0] + 1)
        channel.close()
    lab.clean()


def test_descriptors_are_made_blocking_and_filled(lab):
    """The engine neither reads nor waits for what the application may block."""
    with hostile(lab) as (lent, raw):
        channel = attach_fds([os.dup(fd) for fd in lent.fds])
        flow = channel.connect(IP, IP, 90, "tcp")
        _, wake, kick = lent.fds
        for fd in (wake, kick):
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        for _ in range(300):
            raw.flags.app_sleeps = 1
            channel.send(flow, b"x", timeout=5)
            lab.served(1)
            lab.drain_sink()
        # Full: whoever writes to it now waits, which can only be the application.
        raw.kick(lent)  # or the read would wait for one
        os.read(kick, 8)
        os.write(kick, (2**64 - 2).to_bytes(8, "little"))
        lab.served(20)
        os.read(kick, 8)
        channel.close()
    lab.clean()


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR, None])
def test_the_wake_up_socket_is_closed(lab, how):
    """No signal, no error that anybody sees."""
    with hostile(lab) as (lent, raw):
        channel = attach_fds([os.dup(fd) for fd in lent.fds])
        flow = channel.connect(IP, IP, 90, "tcp")
        native = channel._native
        sock = socket.socket(fileno=os.dup(lent.fds[1]))
        if how is None:
            lent.close_fds()
            channel.close()
        else:
            sock.shutdown(how)
        sock.close()
        for _ in range(20):
            raw.flags.app_sleeps = 1
            if how is not None:
                lib.mn_chan_send(native, flow.id, b"x", 1)
            lab.served(1)
        channel.close()
    lab.clean()


def test_an_idle_engine_sleeps_although_it_was_kicked_for_nothing(lab):
    """A kick that stays in the eventfd is one edge, not a level: the engine sleeps again."""
    with hostile(lab) as (lent, raw):
        for _ in range(5):
            raw.kick(lent)
        lab.served(1)
        eventually(lambda: raw.flags.engine_sleeps == 1, "an engine that sleeps")
        sleeps = lab.stack.host_stats()["sleeps"]
        raw.kick(lent)
        eventually(lambda: lab.stack.host_stats()["sleeps"] > sleeps, "an engine that was woken")
        eventually(lambda: raw.flags.engine_sleeps == 1, "an engine that sleeps again")


def test_nothing_of_others_is_in_its_memory(lab):
    """E6: neither while another application talks through the same engine, nor in what comes after it."""
    secret = b"what nobody else may read"
    with hostile(lab) as (lent, raw):
        mine = attach_fds([os.dup(fd) for fd in lent.fds])
        my_flow = mine.connect(IP, IP, 90, "tcp")
        with hostile(lab) as (theirs_lent, theirs_raw):
            theirs = attach_fds([os.dup(fd) for fd in theirs_lent.fds])
            theirs.listen(IP, 7000, "tcp")
            flow = theirs.connect(IP, IP, 90, "tcp")
            back = theirs.connect(IP, IP, 7000, "tcp")
            for _ in range(50):
                mine.send(my_flow, bytes(500), timeout=5)
                theirs.send(flow, secret * 15, timeout=5)
                theirs.send(back, secret * 15, timeout=5)
                assert theirs.recv(timeout=5).data == secret * 15
                lab.drain_sink()
            lab.served()
            assert secret in theirs_raw.content()
            assert secret not in raw.content()
            theirs.close()
        with hostile(lab) as (_, next_raw):
            assert secret not in next_raw.content()
        assert secret not in raw.content()
        mine.close()
    lab.clean()


def test_many_loans_are_given_and_taken_back(lab):
    """Attach and detach, without an application: nothing is left behind."""
    for _ in range(300):
        with hostile(lab):
            pass
    lab.clean()


def test_random_flags(lab):
    """The words that only the engine writes say nothing to the engine."""
    with hostile(lab) as (lent, raw):
        channel = attach_fds([os.dup(fd) for fd in lent.fds])
        flow = channel.connect(IP, IP, 90, "tcp")
        for turn in range(20):
            raw.flags.engine_sleeps = turn & 1
            raw.flags.ip = turn
            raw.flags.closed = 0
            ffi.cast("struct mn_chan_hdr *", raw.base).geo.buf_bytes = turn * 12345
            ffi.cast("struct mn_chan_hdr *", raw.base).lane_stride = turn * 123456789
            channel.send(flow, b"still here")
            raw.kick(lent)
        got = []
        eventually(lambda: bool(got.extend(lab.drain_sink()) or len(got) == 20), "all messages")
        assert lent.dead == 0
        channel.close()
    lab.clean()


def test_raw_memory_is_what_the_engine_uses(lab):
    """The tools of these tests reach the real thing: a rule that is broken by them is noticed."""
    with hostile(lab) as (lent, raw):
        assert isinstance(raw, Raw)
        raw.flags.submit.tail = 1 << 20
        raw.kick(lent)
        eventually(lambda: lent.dead == errno.EPROTO, "the channel's end")
        assert raw.flags.closed == errno.EPROTO
