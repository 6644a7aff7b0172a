# SPDX-License-Identifier: MIT
"""The NIC whose frames can be recorded while an engine runs on it, in virtual time."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from machnet import Stack
from machnet.sidecar.engines import Recorder, SwitchedNic
from machnet.sim import Wire

MAC = bytes.fromhex("020000000099")
#: An ARP request for the engine, which answers it.
QUESTION = (
    b"\xff" * 6
    + MAC
    + bytes.fromhex("0806 0001 0800 06 04 0001")
    + MAC
    + socket.inet_aton("10.0.0.9")
    + bytes(6)
    + socket.inet_aton("10.0.0.2")
)
PACKET = 6


@pytest.fixture
def nic() -> Iterator[SwitchedNic]:
    with contextlib.closing(Wire()) as wire, contextlib.closing(SwitchedNic(wire)) as nic:
        yield nic


@pytest.fixture
def stack(nic: SwitchedNic) -> Iterator[Stack]:
    with Stack(nic, ip="10.0.0.2/24") as stack:
        yield stack


def ask(stack: Stack) -> None:
    stack.inject(QUESTION)
    ((_, answer),) = stack.drain()
    assert answer[:6] == MAC


def recorded(reader: int) -> list[bytes]:
    """The frames in a pipe whose writer has ended."""
    data = b""
    while piece := os.read(reader, 1 << 20):
        data += piece
    found, at = [], 0
    while at < len(data):
        kind, length = struct.unpack_from("=II", data, at)
        if kind == PACKET:
            size = struct.unpack_from("=I", data, at + 20)[0]
            found.append(data[at + 28 : at + 28 + size])
        at += length
    assert at == len(data)
    return found


def test_only_what_passes_while_it_is_on_is_recorded(stack: Stack, nic: SwitchedNic) -> None:
    ask(stack)
    recorder = Recorder(stack, nic)
    ask(stack)
    ask(stack)
    recorder.stop()
    ask(stack)
    assert recorder.stats() == {"frames": 4, "dropped": 0}
    assert recorder.drained()
    recorder.close()
    frames = recorded(recorder.reader)
    os.close(recorder.reader)
    assert frames[0] == frames[2] == QUESTION
    assert [frame[:6] for frame in frames[1::2]] == [MAC, MAC]


def test_there_is_one_at_a_time_and_another_after_it(stack: Stack, nic: SwitchedNic) -> None:
    first = Recorder(stack, nic)
    with pytest.raises(OSError) as failure:
        Recorder(stack, nic)
    assert failure.value.errno == errno.EBUSY
    first.close()
    os.close(first.reader)
    second = Recorder(stack, nic, snaplen=20)
    ask(stack)
    second.close()
    assert [len(frame) for frame in recorded(second.reader)] == [20, 20]
    os.close(second.reader)


def test_a_reader_that_goes_away_is_noticed_and_disturbs_nobody(
    stack: Stack, nic: SwitchedNic
) -> None:
    recorder = Recorder(stack, nic)
    assert recorder.flush()
    os.close(recorder.reader)
    ask(stack)
    assert not recorder.flush()
    recorder.close()
    recorder.close()
    ask(stack)


def test_a_pipe_that_nobody_reads_costs_frames_not_time(stack: Stack, nic: SwitchedNic) -> None:
    recorder = Recorder(stack, nic)
    times = 40_000  # far more than buffer and pipe hold
    for _ in range(times):
        stack.inject(QUESTION)
    assert len(stack.drain()) > 0
    recorder.stop()
    said = recorder.stats()
    assert said["dropped"] > 0
    assert not recorder.drained()
    os.close(recorder.reader)
    recorder.close()
