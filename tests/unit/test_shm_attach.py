# SPDX-License-Identifier: MIT
"""Channels between processes: lending, attaching, messages, and the ends of both."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from shm_peer import IP, Peer

import machnet
from machnet.sim import Wire


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
