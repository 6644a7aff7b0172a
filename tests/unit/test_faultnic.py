# SPDX-License-Identifier: MIT
"""The fault layer around a NIC: order, times, memory, and what it hides of the NIC below."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rawnic import CSUM_PARTIAL, CSUM_VALID, Meta, RawWire, check

from machnet._native import ffi, lib
from machnet.testing.nic import NicHandle

if TYPE_CHECKING:
    from collections.abc import Iterator

PPB = 10**9
TX, RX = lib.MN_FAULTNIC_TX, lib.MN_FAULTNIC_RX


class FaultNic(NicHandle):
    """A fault layer around a wire that is fed by hand."""

    def __init__(
        self,
        wire: RawWire,
        *,
        tx: dict[str, int] | None = None,
        rx: dict[str, int] | None = None,
        **config: Any,
    ) -> None:
        out = ffi.new("struct mn_nic **")
        full = {"seed": 1, "tx": tx or {}, "rx": rx or {}, **config}
        check(lib.mn_faultnic_open(wire.nic, ffi.new("struct mn_faultnic_config *", full), out))
        super().__init__(ffi.gc(out[0], lib.mn_faultnic_close))
        self.wire = wire

    def at(self, now: int) -> FaultNic:
        lib.mn_wire_set_now(self.wire.wire, now)
        lib.mn_faultnic_set_now(self.nic, now)
        return self

    def set(self, direction: int, **shape: int) -> None:
        check(lib.mn_faultnic_set(self.nic, direction, ffi.new("struct mn_shape *", shape)))

    def shape(self, direction: int) -> Any:
        out = ffi.new("struct mn_shape *")
        lib.mn_faultnic_get(self.nic, direction, out)
        return out

    def stats(self, direction: int) -> Any:
        out = ffi.new("struct mn_faultnic_stats *")
        lib.mn_faultnic_get_stats(self.nic, direction, out)
        return out

    def all(self) -> list[bytes]:
        frames = []
        while (frame := self.recv()) is not None:
            frames.append(frame)
        return frames

    def sent(self) -> list[tuple[int, bytes]]:
        assert self.recv() is None  # what is due goes out when the host polls
        return self.wire.drain()


@pytest.fixture
def wire() -> Iterator[RawWire]:
    wire = RawWire.single()
    yield wire
    wire.close()


def frame(n: int, size: int = 60) -> bytes:
    return b"\xff" * 12 + b"\x08\x00" + n.to_bytes(4, "big") * ((size - 14) // 4)


def pool_live(wire: RawWire) -> int:
    return int(wire.stats.pool_live)


def test_plain_layer_passes_both_ways_without_holding_packets(wire: RawWire) -> None:
    nic = FaultNic(wire).at(5)
    frames = [frame(n) for n in range(10)]
    for one in frames:
        wire.inject(one)
        nic.send(one)
    assert nic.all() == frames
    assert nic.sent() == [(5, one) for one in frames]
    assert nic.stats(TX).passed == nic.stats(RX).passed == 10
    assert nic.info.wake_ns == 0
    assert pool_live(wire) == 0


def test_capabilities_say_that_there_is_no_offload() -> None:
    rich = RawWire.single(mtu=3000, tx_csum_tcp=True, tx_gso=True, rx_csum_trusted=True)
    info = FaultNic(rich).info
    assert (info.mtu, info.tx_max_frame) == (3000, 3014)
    assert not any((info.tx_csum_tcp, info.tx_csum_udp, info.tx_gso, info.rx_csum_trusted))
    assert bytes(info.mac) == bytes(rich.info.mac)
    rich.close()


def test_sent_frames_leave_when_they_are_due(wire: RawWire) -> None:
    nic = FaultNic(wire, tx={"latency_ns": 1000}).at(100)
    nic.send(frame(1))
    assert nic.info.wake_ns == 1100
    assert pool_live(wire) == 0  # it waits in a packet of the layer's own
    assert nic.at(1099).sent() == []
    assert nic.at(1100).sent() == [(1100, frame(1))]
    assert nic.info.wake_ns == 0


def test_received_frames_arrive_when_they_are_due(wire: RawWire) -> None:
    nic = FaultNic(wire, rx={"latency_ns": 1000}).at(100)
    wire.inject(frame(1))
    assert nic.all() == []
    assert nic.info.wake_ns == 1100
    nic.at(600)
    wire.inject(frame(2))
    assert nic.all() == []
    assert nic.at(1100).all() == [frame(1)]
    assert nic.info.wake_ns == 1600
    assert nic.at(5000).all() == [frame(2)]
    assert pool_live(wire) == 0


def test_directions_are_apart(wire: RawWire) -> None:
    nic = FaultNic(wire, tx={"loss_ppb": PPB}, rx={"duplicate_ppb": PPB}).at(1)
    nic.send(frame(1))
    wire.inject(frame(2))
    assert nic.all() == [frame(2)] * 2
    assert nic.sent() == []
    assert nic.stats(TX).faults[lib.MN_FAULT_LOSS] == 1
    assert nic.stats(RX).faults[lib.MN_FAULT_DUPLICATE] == 1
    assert (nic.stats(RX).frames, nic.stats(RX).bytes, nic.stats(RX).passed) == (1, 58, 2)


def test_corruption_changes_one_bit_of_one_copy(wire: RawWire) -> None:
    nic = FaultNic(wire, rx={"corrupt_ppb": PPB}).at(1)
    sent = frame(7, 500)
    wire.inject(sent)
    (got,) = nic.all()
    assert got[:14] == sent[:14]
    changed = int.from_bytes(got, "big") ^ int.from_bytes(sent, "big")
    assert changed.bit_count() == 1


def test_burst_that_has_to_wait_is_taken_in_whole(wire: RawWire) -> None:
    nic = FaultNic(wire, rx={"latency_ns": 10}).at(1)
    for n in range(200):
        wire.inject(frame(n))
    # This host takes one frame at a time: each poll of it still takes in several that wait.
    for _ in range(200 // 8):
        assert nic.recv() is None
    assert lib.mn_wire_rx_pending(wire.wire) == 0
    assert nic.at(11).all() == [frame(n) for n in range(200)]


def test_full_pool_loses_frames_and_counts_them(wire: RawWire) -> None:
    nic = FaultNic(wire, rx={"latency_ns": 10}, pool_pkts=3).at(1)
    for n in range(5):
        wire.inject(frame(n))
    assert nic.all() == []
    assert (nic.stats(RX).waiting, nic.stats(RX).dropped_pool) == (3, 2)
    assert nic.at(11).all() == [frame(n) for n in range(3)]
    wire.inject(frame(9))
    assert nic.at(11).all() == []
    assert nic.at(21).all() == [frame(9)]


def test_inner_nic_that_is_full_gets_frames_later_and_in_order() -> None:
    wire = RawWire.single(queue_frames=2, tx_backpressure=True)
    nic = FaultNic(wire).at(1)
    for n in range(5):
        nic.send(frame(n))
    assert nic.stats(TX).waiting == 3
    assert nic.info.wake_ns == 1 + 100_000
    got = [data for _, data in wire.drain()]
    while nic.stats(TX).waiting:
        got += [data for _, data in nic.at(nic.info.wake_ns).sent()]
    assert got == [frame(n) for n in range(5)]
    assert nic.stats(TX).passed == 5
    assert nic.stats(TX).refused > 0
    wire.close()


def test_clog_holds_frames_until_it_ends(wire: RawWire) -> None:
    nic = FaultNic(wire, tx={"blocked": 2}, rx={"blocked": 2, "queue_pkts": 2}).at(1)
    for n in range(4):
        nic.send(frame(n))
        wire.inject(frame(n))
    assert nic.all() == []
    assert nic.sent() == []
    assert nic.info.wake_ns == 0
    assert nic.stats(RX).faults[lib.MN_FAULT_QUEUE] == 2
    nic.set(TX)
    nic.set(RX)
    assert nic.at(7).all() == [frame(0), frame(1)]
    assert nic.sent() == [(7, frame(n)) for n in range(4)]
    assert nic.stats(TX).waiting == nic.stats(RX).waiting == 0


def test_partition_after_a_clog_lets_frames_wait_on(wire: RawWire) -> None:
    nic = FaultNic(wire, tx={"blocked": 2}).at(1)
    nic.send(frame(1))
    nic.set(TX, blocked=1)
    nic.at(2).send(frame(2))
    assert nic.sent() == []
    nic.set(TX)
    assert nic.at(3).sent() == [(3, frame(1))]


def test_new_shape_is_in_force_from_the_next_poll(wire: RawWire) -> None:
    nic = FaultNic(wire).at(1)
    nic.set(RX, loss_ppb=PPB)
    assert nic.shape(RX).loss_ppb == PPB
    assert nic.shape(TX).loss_ppb == 0
    wire.inject(frame(1))
    assert nic.at(2).all() == []
    nic.set(RX)
    wire.inject(frame(2))
    assert nic.at(3).all() == [frame(2)]


def test_shapes_out_of_range_are_refused(wire: RawWire) -> None:
    nic = FaultNic(wire)
    bad = ffi.new("struct mn_shape *", {"loss_ppb": PPB + 1})
    assert lib.mn_faultnic_set(nic.nic, RX, bad) == -errno.EINVAL
    assert lib.mn_faultnic_set(nic.nic, 2, ffi.new("struct mn_shape *")) == -errno.EINVAL
    with pytest.raises(OSError, match="EINVAL"):
        FaultNic(wire, tx={"mtu": 1})
    with pytest.raises(OSError, match="EINVAL"):
        FaultNic(wire, pool_pkts=2**31)


def test_unfinished_checksum_from_below_is_finished() -> None:
    wire = RawWire.single(tx_csum_tcp=True, rx_csum_trusted=True)
    nic = FaultNic(wire).at(1)
    wire.inject(bytes(34) + b"\x12\x34" * 13, Meta(CSUM_PARTIAL, 34, 16))
    got = nic.recv_meta()
    assert got is not None
    data, meta = got
    assert meta.csum == 0
    words = [int.from_bytes(data[i : i + 2], "big") for i in range(34, len(data), 2)]
    # The field held the sum of the pseudo header; with that all is the ones' complement of 0.
    assert (sum(words) + 0x1234) % 0xFFFF == 0
    wire.close()


def test_segments_of_many_frames_are_no_wire_frames() -> None:
    wire = RawWire.single(tx_csum_tcp=True, tx_gso=True, rx_csum_trusted=True)
    nic = FaultNic(wire).at(1)
    wire.inject(bytes(4000), Meta(CSUM_PARTIAL, 34, 16, 1448))
    assert nic.recv() is None
    assert nic.stats(RX).dropped_size == 1
    wire.close()


def test_received_copies_may_be_sent_on(wire: RawWire) -> None:
    """An engine does not do it, but any holder of a packet may."""
    nic = FaultNic(wire, rx={"duplicate_ppb": PPB}).at(1)
    wire.inject(frame(1))
    assert lib.mn_nic_forward(nic.nic, nic.nic, 4) == 2
    assert nic.sent() == [(1, frame(1))] * 2


def test_received_frames_that_were_verified_may_be_sent_on() -> None:
    """As a bouncer does behind a TAP, whose kernel says so of what its own NIC has verified."""
    wire = RawWire.single(rx_csum_trusted=True)
    nic = FaultNic(wire)
    wire.inject(frame(1), Meta(CSUM_VALID))
    assert lib.mn_nic_forward(nic.nic, nic.nic, 4) == 1
    assert [sent for _, sent in nic.sent()] == [frame(1)]
    wire.close()


def test_frame_of_a_larger_mtu_is_dropped() -> None:
    wire = RawWire.single(mtu=1500)
    nic = FaultNic(wire).at(1)
    with pytest.raises(OSError, match="EMSGSIZE"):
        nic.send(bytes(1515))
    assert lib.mn_nic_probe_alloc(nic.nic, 0, 1514) >= 1514
    assert lib.mn_nic_probe_alloc(nic.nic, 0, 1515) == -errno.ENOBUFS
    wire.close()


def test_layers_may_be_stacked_and_tell_when_the_inner_one_is_due(wire: RawWire) -> None:
    inner = FaultNic(wire, rx={"latency_ns": 100}).at(1)
    out = ffi.new("struct mn_nic **")
    config = ffi.new("struct mn_faultnic_config *", {"rx": {"latency_ns": 50}})
    check(lib.mn_faultnic_open(inner.nic, config, out))
    outer = NicHandle(ffi.gc(out[0], lib.mn_faultnic_close))

    def at(now: int) -> bytes | None:
        inner.at(now)
        lib.mn_faultnic_set_now(outer.nic, now)
        return outer.recv()

    wire.inject(frame(1))
    assert at(1) is None
    assert outer.info.wake_ns == 101
    assert at(101) is None
    assert outer.info.wake_ns == 151
    assert at(151) == frame(1)


@given(
    seed=st.integers(0, 2**32),
    latency=st.integers(0, 50),
    jitter=st.integers(0, 50),
    gaps=st.lists(st.integers(0, 30), max_size=80),
)
def test_frames_arrive_in_the_order_of_their_times(
    seed: int, latency: int, jitter: int, gaps: list[int]
) -> None:
    """The layer delivers at the times that the shaper alone says, and nothing else happens."""
    shape = {
        "latency_ns": latency,
        "jitter_ns": jitter,
        "latency_kind": lib.MN_LATENCY_UNIFORM,
        "duplicate_ppb": PPB // 3,
        "duplicate_ns": 7,
        "loss_ppb": PPB // 5,
    }
    wire = RawWire.single()
    nic = FaultNic(wire, rx=shape, seed=seed)
    model = ffi.gc(ffi.new("struct mn_shaper *"), lib.mn_shaper_fini)
    assert lib.mn_shaper_init(model, seed, b"rx", ffi.new("struct mn_shape *", shape)) == 0
    want: list[tuple[int, int, bytes]] = []
    got: list[tuple[int, bytes]] = []
    verdict = ffi.new("struct mn_verdict *")
    arrivals: dict[int, list[bytes]] = {}
    now = 0
    for n, gap in enumerate(gaps):
        now += gap
        arrivals.setdefault(now, []).append(frame(n))
        lib.mn_shaper_offer(model, now, len(frame(n)), verdict)
        if not verdict.drop:
            want.append((verdict.at_ns, 2 * n, frame(n)))
            if verdict.dup:
                want.append((verdict.dup_at_ns, 2 * n + 1, frame(n)))
    for t in range(now + 200):
        nic.at(t)
        for one in arrivals.get(t, []):
            wire.inject(one)
        got += [(t, one) for one in nic.all()]
    assert got == [(t, one) for t, _, one in sorted(want)]
    assert nic.info.wake_ns == 0
    assert nic.stats(RX).waiting == 0
    assert pool_live(wire) == 0
    wire.close()
