# SPDX-License-Identifier: MIT
"""Applications that write nonsense into their channel: they lose it, and nobody else notices."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator

import pytest
from shm_lab import IP, Lab, Raw, eventually, hostile, kills, make_lab
from shm_local import attach_to

import machnet
from machnet._native import lib
from machnet.stack.lending import attach_fds, lend

FIRST: int = lib.MN_DESC_FIRST
LAST: int = lib.MN_DESC_LAST
NONE: int = lib.MN_BUF_NONE
WHOLE = FIRST | LAST


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with make_lab() as lab:
        yield lab


INDICES: dict[str, Callable[[Raw], None]] = {
    "submit too far": lambda r: setattr(r.flags.submit, "tail", r.layout.msg_slots_tx + 1),
    "submit backwards": lambda r: setattr(r.flags.submit, "tail", 0xFFFFFFFF),
    "released too far": lambda r: setattr(r.flags.released, "tail", r.layout.ret_slots_rx + 1),
    "released half way round": lambda r: setattr(r.flags.released, "tail", 0x80000000),
    "commands too far": lambda r: setattr(r.flags.ctl_submit, "tail", r.geo.ctl_slots + 1),
    "commands backwards": lambda r: setattr(r.flags.ctl_submit, "tail", 0xFFFFFFFF),
}


@pytest.mark.parametrize("name", INDICES)
def test_impossible_index(lab, name):
    with hostile(lab) as (lent, raw):
        INDICES[name](raw)
        raw.kick(lent)
        kills(lent)
        lab.served()
    lab.clean()


DESCRIPTORS: dict[str, list[tuple[int, int, int, int]]] = {
    "buffer out of range": [(64, 1, 0, WHOLE)],
    "buffer far out of range": [(0xFFFFFFFE, 1, 0, WHOLE)],
    "no buffer": [(NONE, 1, 0, WHOLE)],
    "longer than a buffer": [(0, 513, 0, WHOLE)],
    "huge": [(0, 0xFFFFFFFF, 0, WHOLE)],
    "one buffer twice": [(3, 512, 0, FIRST), (3, 1, 0, LAST)],
    "a beginning in the middle": [(0, 512, 0, FIRST), (1, 512, 0, FIRST)],
    "a piece that is not full": [(0, 100, 0, FIRST), (1, 1, 0, LAST)],
    "an empty last piece": [(0, 512, 0, FIRST), (1, 0, 0, LAST)],
    "a piece of another flow": [(0, 512, 0, FIRST), (1, 1, 1, LAST)],
    "a close in a message": [(0, 512, 0, FIRST), (NONE, 0, 0, lib.MN_DESC_CLOSE)],
    "a mark with a buffer": [(5, 0, 0, lib.MN_DESC_FIN)],
}


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_descriptors_that_make_no_sense(lab, name):
    with hostile(lab) as (lent, raw):
        for desc in DESCRIPTORS[name]:
            raw.desc(*desc)
        raw.kick(lent)
        kills(lent)
        lab.served()
    lab.clean()


@pytest.mark.parametrize("buf", [0, 63, 64, 0xFFFFFFFF])
def test_a_buffer_that_was_never_delivered_is_given_back(lab, buf):
    with hostile(lab) as (lent, raw):
        raw.release(buf)
        raw.kick(lent)
        kills(lent)
    lab.clean()


def test_a_buffer_is_given_back_twice(lab):
    with hostile(lab) as (lent, raw):
        channel = attach_fds([os.dup(fd) for fd in lent.fds])
        channel.listen(IP, 7000, "tcp")
        with lab.stack.attach() as client:
            flow = client.connect(IP, IP, 7000, "tcp")
            client.send(flow, b"one")
            assert channel.recv(timeout=5).data == b"one"
            lab.served()
            assert lent.dead == 0
            raw.release(0)
            raw.kick(lent)
            kills(lent)
            lab.served()
        channel.close()
    lab.clean()


def test_a_buffer_is_sent_twice_while_it_is_on_its_way(lab):
    """The second descriptor names a buffer that the engine still sends from."""
    with hostile(lab) as (lent, raw):
        channel = attach_fds([os.dup(fd) for fd in lent.fds])
        flow = channel.connect(IP, IP, 90, "tcp")
        raw.desc(7, 100, flow.id, WHOLE)
        raw.desc(7, 100, flow.id, WHOLE)
        raw.kick(lent)
        kills(lent)
        channel.close()
    lab.clean()


@pytest.mark.parametrize(
    "fields",
    [
        {"op": 0},
        {"op": 99},
        {"op": 0xFFFFFFFF},
        {"op": lib.MN_CTL_LISTEN, "proto": 77, "local_port": 5},
        {"op": lib.MN_CTL_ACCEPT, "flow": 0xFFFFFFFF},
        {"op": lib.MN_CTL_RELEASE, "flow": 3},
        {"op": lib.MN_CTL_SETOPT, "flow": 0x00020001, "opt": 0xFFFFFFFF, "value": 2**64 - 1},
        {"op": lib.MN_CTL_GETOPT, "flow": 0xFFFFFFFF, "opt": 0xFFFFFFFF},
        {"op": lib.MN_CTL_CANCEL, "flow": 12345},
        {"op": lib.MN_CTL_UNLISTEN, "flow": 0xFFFFFFFF},
        {"op": lib.MN_CTL_CONNECT, "proto": 0xFFFFFFFF, "remote_ip": 0xFFFFFFFF},
    ],
)
def test_commands_that_make_no_sense(lab, fields):
    """Some are answered by an error, some end the channel: neither is anybody else's business."""
    with hostile(lab) as (lent, raw):
        for _ in range(5):
            raw.command(**fields)
        raw.kick(lent)
        lab.served()
    lab.clean()


@pytest.mark.parametrize("proto", [lib.MN_PROTO_UDP, lib.MN_PROTO_TCP])
def test_message_for_a_flow_that_is_still_connecting(lab, proto):
    """Its id is easily guessed, but nothing can be sent before the other end has answered."""
    before = lab.stack.stats()["drop_stale_flow"]
    with hostile(lab) as (lent, raw):
        raw.command(
            op=lib.MN_CTL_CONNECT, token=1, proto=proto, remote_ip=0x0A000002, remote_port=9
        )
        raw.desc(0, 100, 0, WHOLE)
        raw.kick(lent)
        eventually(lambda: lab.stack.stats()["drop_stale_flow"] > before, "the message's end")
        lab.served()
        assert lent.dead == 0
    lab.clean()


@pytest.mark.parametrize("seed", range(40))
def test_random_bytes_anywhere(lab, seed):
    """Nothing of what comes of it reaches anybody else."""
    rng = random.Random(seed)
    with hostile(lab) as (lent, raw):
        channel = attach_fds([os.dup(fd) for fd in lent.fds])
        flow = channel.connect(IP, IP, 90, "tcp")
        for _ in range(8):
            channel.send(flow, b"honest so far")
        shared = 128 + 64 * 16
        for _ in range(60):
            where = rng.randrange(shared) if rng.random() < 0.5 else rng.randrange(1 << 20)
            raw.scribble(where, rng.randbytes(rng.choice((1, 4, 4, 16, 64))))
            if rng.random() < 0.2:
                raw.kick(lent)
                lab.served(1)
        raw.kick(lent)
        lab.served()
        channel.close()
    lab.clean()


@pytest.mark.parametrize("name", ["submit", "completed", "deliver", "released", "ctl_complete"])
def test_consumer_indices_that_lie(lab, name):
    """An application that says it has read what it has not, while data come and go."""
    with hostile(lab) as (lent, raw):
        channel = attach_fds([os.dup(fd) for fd in lent.fds])
        channel.listen(IP, 7000, "tcp")
        with lab.stack.attach() as client:
            flow = client.connect(IP, IP, 7000, "tcp")
            for turn in range(30):
                getattr(raw.flags, name).head = turn * 0x11111111 & 0xFFFFFFFF
                with contextlib.suppress(BlockingIOError, machnet.FlowError):
                    client.send(flow, b"x" * 600)
                raw.kick(lent)
                if lent.dead:
                    break
            lab.served()
        channel.close()
    lab.clean()


def test_an_address_of_others_and_a_port_of_others(lab):
    with lend([lab.stack]) as lent, attach_to(lent) as channel:
        with pytest.raises(OSError, match="7000") as caught:
            channel.listen("10.9.9.9", 7000, "tcp")
        assert caught.value.errno == errno.EADDRNOTAVAIL
        for ip in (IP, "0.0.0.0"):
            with pytest.raises(OSError, match="80") as caught:
                channel.listen(ip, 80, "tcp")
            assert caught.value.errno == errno.EADDRINUSE
        lab.served()
    lab.clean()
