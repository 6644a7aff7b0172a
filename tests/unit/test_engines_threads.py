# SPDX-License-Identifier: MIT
"""Engines with threads that sleep whenever they can, on a cable to another stack: no privileges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engines_net import OURS, PEER

import machnet
from machnet._native import lib
from machnet.stack.engines import Engines, open_engines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from machnet.channel import Channel, Flow

PATIENCE_S = 60.0 if lib.mn_build_sanitized() else 20.0
ENGINES = 3


@pytest.fixture
def ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Engines, machnet.Stack]]:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with (
        open_engines("link:cable", ENGINES, f"{OURS}/24", spin_us=0) as engines,
        machnet.Stack("link:cable", f"{PEER}/24", spin_us=0) as peer,
    ):
        yield engines, peer


def talk(a: Channel, flow: Flow, b: Channel) -> None:
    """Messages one by one, so that every engine on their way goes to sleep in between."""
    for size in (1, 100, 50_000):
        a.send(flow, bytes(size), timeout=PATIENCE_S)
        message = b.recv(timeout=PATIENCE_S)
        assert message.data == bytes(size)
        b.send(message.flow, b"answer", timeout=PATIENCE_S)
        assert a.recv(timeout=PATIENCE_S).data == b"answer"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_engines_that_sleep_are_woken_for_frames_and_to_transmit(ends, protocol):
    engines, peer = ends
    app = peer.attach()
    app.listen(PEER, 80, protocol)
    for stack in engines:
        channel = stack.attach()
        flow = channel.connect(OURS, PEER, 80, protocol, timeout=PATIENCE_S)
        talk(channel, flow, app)
        channel.close()
    views = [view.stats() for view in engines.shared.views]
    assert views[0]["relayed"] > 0
    assert views[0]["dispatched"] > 0
    assert views[0]["wakes"] > 0, "the others slept"
    assert sum(view["wakes"] for view in views[1:]) > 0, "the first one slept"
    assert all(stack.host_stats()["sleeps"] > 0 for stack in engines)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_applications_on_engines_that_sleep_reach_each_other(ends, protocol):
    engines, _ = ends
    channels = [stack.attach() for stack in engines]
    for i, server in enumerate(channels):
        client = channels[i - 1]
        server.listen(OURS, 700 + i, protocol)
        flow = client.connect(OURS, OURS, 700 + i, protocol, timeout=PATIENCE_S)
        talk(client, flow, server)
    assert all(stack.stats()["handoff_received"] > 0 for stack in engines)
    assert sum(stack.stats()["drop_handoff_full"] for stack in engines) == 0


def test_a_thread_can_be_pinned_for_each_engine(tmp_path, monkeypatch):
    import os

    monkeypatch.chdir(tmp_path)
    cpus = sorted(os.sched_getaffinity(0))[:1]
    with open_engines("link:cable", 2, f"{OURS}/24", cpus=cpus) as engines:
        assert len(engines) == 2
    with pytest.raises(ValueError, match="cpus: there is none in it"):
        open_engines("link:cable", 2, f"{OURS}/24", cpus=[])
