# SPDX-License-Identifier: MIT
"""Applications in processes of their own that die, stop, or never do what others wait for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from shm_lab import IP, Lab, eventually, make_lab
from shm_zygote import SETTINGS, Zygote

import machnet
from machnet.sim import Wire
from machnet.stack.lending import lend

CYCLES = 100_000 if os.environ.get("MACHNET_NIGHTLY") else 200


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.fixture
def lab(zygote) -> Iterator[Lab]:
    with make_lab() as lab:
        yield lab


def test_killed_anywhere_leaves_nothing(lab, zygote):
    """SIGKILL at whatever the application does, again and again."""
    for cycle in range(CYCLES):
        zygote.run(lab.stack, "busy", cycle)
        if cycle % 50 == 49:
            lab.served()
            lab.clean()


@pytest.mark.parametrize("count", [1, 10, 50])
def test_what_was_published_is_sent_by_the_dead(lab, zygote, count):
    zygote.run(lab.stack, "send", count, linger=5)
    got: list[bytes] = []

    def all_there() -> bool:
        got.extend(lab.drain_sink())
        return len(got) == count

    eventually(all_there, "all messages of the dead")
    assert got == [b"%d" % i for i in range(count)]


def test_peers_of_the_dead_are_told(lab, zygote):
    """Connections of the dead are closed: at once when nothing may linger."""
    zygote.run(lab.stack, "send", 1, linger=0)
    eventually(lambda: not lab.sink.flows() or bool(lab.drain_sink()), "the end of the flow")


@pytest.mark.parametrize("seed", range(6))
def test_memory_that_changes_while_it_is_read(lab, zygote, seed):
    with lend([lab.stack], SETTINGS) as lent:
        kick = os.dup(lent.fds[2])
        zygote.start(lent, "rewrite", seed)
        for _ in range(20):
            os.write(kick, (1).to_bytes(8, "little"))
            lab.served(2)
        zygote.wait()
        os.close(kick)
        lent.close(linger=0)


def test_a_noisy_neighbour_leaves_room_to_live(lab, zygote):
    with lend([lab.stack], SETTINGS) as lent:
        zygote.start(lent, "noise", 1)
        for _ in range(100):
            lab.served(1)
            lab.drain_sink()
        zygote.wait()
        lent.close(linger=0)


def test_a_stopped_application_stops_nobody_else(lab, zygote):
    """As one under SIGSTOP: it takes nothing, and what it was sent waits for it."""
    with lend([lab.stack], SETTINGS) as lent:
        zygote.start(lent, "stop")
        assert zygote.wait() == b"stopped"
        with lab.stack.attach() as client:
            flow = client.connect(IP, IP, 7000, "tcp")
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(flow, bytes(500))
                    sent += 500
            lab.served(20)
            with pytest.raises(BlockingIOError):
                client.send(flow, bytes(500), timeout=0.05)
            # Back-pressure: whatever was acknowledged is there when it goes on.
            assert flow.live
            zygote.go_on()
            client.send(flow, b"end", timeout=10)
            assert client.recv(timeout=10).data == b"%d" % sent
        zygote.wait()
        lent.close(linger=0)


def test_a_stack_may_go_before_its_loans(lab):
    other = machnet.Stack(Wire(), ip=IP, thread=True)
    lent = lend([other, lab.stack], SETTINGS)
    other.close(linger=0)
    assert lent.dead != 0
    lent.close(linger=0)
