# SPDX-License-Identifier: MIT
"""The views of a shared NIC hold to the rules of NICs; frames keep order and marks on their way."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from engines_net import OURS, PEER, echo, net
from wire_bench import WireBench

import machnet
from machnet._native import ffi
from machnet.sim import Wire
from machnet.stack.engines import VIEW_STATS, SharedNic, open_engines
from machnet.stack.nics import Capture, Rss
from machnet.testing import tcp
from machnet.testing.nic import NicHandle, check_nic

if TYPE_CHECKING:
    from pathlib import Path


class ViewBench(WireBench):
    """The first view of a wire with one queue, or with several."""

    def __init__(self, queues: int, **settings: bool) -> None:
        super().__init__(queues=queues, **settings)
        self.shared = SharedNic(self.wire, 3)
        self.nic = NicHandle(self.shared.views[0].native)

    def close(self) -> None:
        self.shared.close()
        super().close()


@pytest.mark.parametrize("queues", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"segmentation": True}], ids=str)
def test_a_view_keeps_the_rules(queues, settings):
    check_nic(lambda: ViewBench(queues, **settings))


def segment(number: int, size: int) -> bytes:
    template = tcp(
        "PA", src=PEER, dst=OURS, sport=number, dport=80, seq=number, payload=bytes(size)
    )
    return template.with_(eth_src="02:00:00:00:00:99", eth_dst="02:4d:4e:00:00:01").build({})


def test_frames_of_all_sizes_keep_their_order_round_after_round_of_a_ring():
    wire = Wire(mtu=9000)
    shared = SharedNic(wire, 2, ring_bytes=256 << 10, rss=Rss([1]))
    first, second = (NicHandle(view.native) for view in shared.views)
    frames = [segment(1 + i % 60000, (i * 37) % 8900) for i in range(600)]
    got: list[bytes] = []
    for i, frame in enumerate(frames):
        wire.inject(frame)
        assert first.recv() is None, "it is for the second"
        if i % 23 == 0:
            got += iter(second.recv, None)
    got += iter(second.recv, None)
    assert got == frames
    stats = shared.views[0].stats()
    assert stats["dispatched"] == 600
    assert stats["dispatch_dropped"] == 0
    shared.close()
    wire.close()


def test_what_other_views_transmit_goes_out_when_the_first_one_looks():
    wire = Wire()
    shared = SharedNic(wire, 3)
    handles = [NicHandle(view.native) for view in shared.views]
    frames = [segment(i, 100) for i in range(1, 41)]
    for i, frame in enumerate(frames):
        handles[1 + i % 2].send(frame)
    assert wire.drain() == []
    assert handles[0].recv() is None
    assert sorted(frame for _, frame in wire.drain()) == sorted(frames)
    assert shared.views[0].stats()["relayed"] == 40
    shared.close()
    wire.close()


def test_a_full_ring_to_the_first_view_takes_no_more():
    wire = Wire()
    shared = SharedNic(wire, 2, ring_bytes=256 << 10)
    first, second = (NicHandle(view.native) for view in shared.views)
    frame = segment(5, 1400)
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while taken < 10_000:
            second.send(frame)
            taken += 1
    assert 150 < taken < 200, "256 KiB"
    assert shared.views[1].stats()["tx_full"] == 1
    while first.recv() is not None or wire.drain():
        pass
    second.send(frame)
    shared.close()
    wire.close()


def test_each_engine_can_be_captured(tmp_path: Path):
    """Capture goes around a view like around any NIC."""
    wire, other = Wire.pair(queues=(2, 1), rss_hidden=True)
    shared = SharedNic(wire, 2)
    files = [tmp_path / f"{i}.pcapng" for i in range(2)]
    captures = [Capture(view, path) for view, path in zip(shared.views, files, strict=True)]
    with (
        machnet.Stack(other, f"{PEER}/24") as peer,
        machnet.Stack(captures[0], f"{OURS}/24"),
        machnet.Stack(captures[1], f"{OURS}/24") as second,
    ):
        app = peer.attach()
        app.listen(PEER, 80, "tcp")
        channel = second.attach()
        echo(channel, channel.connect(OURS, PEER, 80, "tcp"), app)
        assert second.stats()["handoff_received"] > 0
    for capture in captures:
        capture.close()
    shared.close()
    assert all(b"question" in path.read_bytes() for path in files[1:])


def test_faults_go_below_the_views():
    wire, other = Wire.pair()
    from machnet.sim.faulty import Faulty

    lossy = Faulty(wire, seed=3, loss=0.05, latency="1ms")
    with (
        machnet.Stack(other, f"{PEER}/24") as peer,
        open_engines(lossy, 3, f"{OURS}/24") as engines,
    ):
        app = peer.attach()
        app.listen(PEER, 80, "tcp")
        for stack in engines:
            channel = stack.attach()
            flow = channel.connect(OURS, PEER, 80, "tcp", timeout=60)
            channel.send(flow, bytes(50_000))
            assert app.recv(timeout=60).data == bytes(50_000)
            app.send(app.flows()[-1], b"answer")
            assert channel.recv(timeout=60).data == b"answer"
    lossy.close()


def test_a_frame_that_was_handed_over_is_the_same_frame():
    with net(2, rss_hidden=True) as lab:
        listener = lab.channels[1].listen(OURS, 80, "stream")
        flow = lab.peer_channel.connect(PEER, OURS, 80, "stream")
        accepted = listener.accept(timeout=1)
        data = bytes(range(256)) * 40
        flow.send(data)
        got = b""
        while len(got) < len(data):
            got += accepted.read(timeout=1)
        assert got == data


def test_each_counter_of_a_view_says_what_it_counts():
    fields = [name for name, _ in ffi.typeof("struct mn_shared_stats").fields]
    assert list(VIEW_STATS) == fields
    assert all(VIEW_STATS.values())
