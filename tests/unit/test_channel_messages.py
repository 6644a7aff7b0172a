# SPDX-License-Identifier: MIT
"""Messages through the application's side of a channel, against a scripted engine."""

from __future__ import annotations

import errno

import pytest
from channel_peer import FIRST, LAST, TCP, UDP, Rig, rig

from machnet._native import ffi, lib

FLOW = 0x00050001  # slot 1, generation 5
OTHER = 0x00010002
BUF = 512
SIZES = [0, 1, 63, 64, BUF - 1, BUF, BUF + 1, 2 * BUF, 2 * BUF + 1, 3 * BUF]


def pattern(size: int, seed: int = 0) -> bytes:
    return bytes((i * 7 + seed) & 0xFF for i in range(size))


# Sending.


@pytest.mark.parametrize("size", SIZES)
def test_a_message_is_cut_into_full_buffers(size: int) -> None:
    r = rig()
    r.new_flow(FLOW)
    assert r.send(FLOW, pattern(size)) == 0
    descs = r.take_submitted()
    assert b"".join(d.data for d in descs) == pattern(size)
    assert len(descs) == max(1, -(-size // BUF))
    assert [d.flags for d in descs] == [
        (FIRST if i == 0 else 0) | (LAST if i == len(descs) - 1 else 0) for i in range(len(descs))
    ]
    assert {d.flow for d in descs} == {FLOW}
    r.complete()
    assert lib.mn_app_poll(r.app) == len(descs)
    assert r.stats()["tx_free"] == r.geo.tx_bufs
    r.check_buffers()


def test_a_message_without_bytes_may_come_without_a_pointer() -> None:
    r = rig()
    r.new_flow(FLOW)
    assert lib.mn_app_send(r.app, FLOW, ffi.NULL, 0) == 0
    assert lib.mn_app_sendv(r.app, FLOW, ffi.NULL, 0) == 0
    assert r.take_messages() == [(FLOW, b""), (FLOW, b"")]


@pytest.mark.parametrize(
    "cuts", [[0], [BUF], [3, 0, 5], [0, 0, 0], [BUF - 1, 2], [1] * 40, [2 * BUF, 1, BUF]]
)
def test_gathered_pieces_are_one_message(cuts: list[int]) -> None:
    r = rig()
    r.new_flow(FLOW)
    whole = pattern(sum(cuts))
    iov = ffi.new("struct mn_app_iov[]", len(cuts))
    keep = []
    at = 0
    for i, cut in enumerate(cuts):
        keep.append(ffi.new("uint8_t[]", whole[at : at + cut] or b"\0"))
        iov[i].base, iov[i].len = keep[-1], cut
        at += cut
    assert lib.mn_app_sendv(r.app, FLOW, iov, len(cuts)) == 0
    assert r.take_messages() == [(FLOW, whole)]


def test_gathered_lengths_that_overflow_are_too_long() -> None:
    r = rig()
    r.new_flow(FLOW)
    iov = ffi.new("struct mn_app_iov[2]")
    iov[0].len = iov[1].len = 1 << 63
    assert lib.mn_app_sendv(r.app, FLOW, iov, 2) == -errno.EMSGSIZE
    iov[0].len = iov[1].len = 8 << 20
    assert lib.mn_app_sendv(r.app, FLOW, iov, 2) == -errno.EMSGSIZE
    assert r.take_submitted() == []


def test_eight_mib_fit_where_seven_eighths_of_the_pool_hold_them() -> None:
    size = 8 << 20
    r = rig(buf_bytes=65536, tx_bufs=148)  # 130 buffers without the reserve of 18
    r.new_flow(FLOW)
    assert r.send(FLOW, bytes(size + 1)) == -errno.EMSGSIZE
    data = pattern(size)
    assert r.send(FLOW, data) == 0
    assert r.take_messages() == [(FLOW, data)]
    r = rig(buf_bytes=65536, tx_bufs=144)  # 126
    r.new_flow(FLOW)
    assert r.send(FLOW, data) == -errno.EMSGSIZE
    assert r.send(FLOW, data[: 126 * 65536 + 1]) == -errno.EMSGSIZE
    assert r.send(FLOW, data[: 126 * 65536]) == 0


def test_what_does_not_fit_now_leaves_no_trace() -> None:
    r = rig()
    r.new_flow(FLOW)
    assert r.send(FLOW, pattern(10 * BUF)) == 0
    before = r.stats()
    # 6 are left, 2 of them in reserve.
    assert r.send(FLOW, pattern(5 * BUF)) == -errno.EAGAIN
    assert r.stats() == before
    assert r.take_messages(complete=False) == [(FLOW, pattern(10 * BUF))]
    assert r.send(FLOW, pattern(5 * BUF)) == -errno.EAGAIN
    assert r.take_submitted() == []
    r.complete(next(iter(r.tx_engine)))
    assert r.send(FLOW, pattern(5 * BUF)) == 0
    assert r.take_messages() == [(FLOW, pattern(5 * BUF))]
    r.check_buffers()


def test_a_stuck_flow_leaves_two_buffers_for_the_others() -> None:
    r = rig()  # 16 buffers, 2 in reserve
    r.new_flow(FLOW)
    r.new_flow(OTHER)
    while r.send(FLOW, b"stuck") == 0:
        pass
    assert r.stats()["tx_free"] == 2
    assert r.send(OTHER, pattern(2 * BUF + 1)) == -errno.EAGAIN
    assert r.send(OTHER, b"one") == 0
    assert r.send(OTHER, b"two") == 0
    assert r.stats()["tx_free"] == 0
    assert r.send(OTHER, b"three") == -errno.EAGAIN
    r.take_messages()
    assert r.send(FLOW, b"goes on") == 0


def test_the_reserve_holds_also_when_every_buffer_was_in_use_before() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.new_flow(OTHER)
    for _ in range(3):
        assert r.send(FLOW, bytes(14 * BUF)) == 0
        assert r.send(OTHER, bytes(2 * BUF)) == 0
        assert r.stats()["tx_free"] == 0
        r.take_messages()
        lib.mn_app_poll(r.app)
    assert r.stats()["tx_touched"] == 16
    sent = 0
    while r.send(FLOW, b"stuck") == 0:
        sent += 1
    assert sent == 14
    # What came back does not count for the other one.
    assert r.send(OTHER, b"one") == 0
    assert r.send(OTHER, b"two") == 0


def test_room_is_what_a_send_takes() -> None:
    r = rig()
    r.new_flow(FLOW)
    assert lib.mn_app_send_room(r.app, FLOW) == 14 * BUF
    assert r.send(FLOW, bytes(14 * BUF)) == 0
    assert lib.mn_app_send_room(r.app, FLOW) == 0
    r.take_messages()
    assert lib.mn_app_send_room(r.app, FLOW) == 14 * BUF
    assert lib.mn_app_send_room(r.app, OTHER) == 0
    r.close(FLOW)
    assert lib.mn_app_send_room(r.app, FLOW) == 0


def test_buffers_are_used_again_before_new_ones() -> None:
    r = rig(tx_bufs=1024)
    r.new_flow(FLOW)
    for i in range(500):
        assert r.send(FLOW, pattern(BUF + 1, i)) == 0
        assert r.take_messages() == [(FLOW, pattern(BUF + 1, i))]
    assert r.stats()["tx_touched"] == 2


def test_completions_of_an_ended_flow_come_back_and_do_not_count_for_its_successor() -> None:
    r = rig()
    r.new_flow(FLOW)
    for _ in range(3):
        assert r.send(FLOW, b"x") == 0
    r.take_submitted()
    r.deliver_end(FLOW)
    lib.mn_app_poll(r.app)
    assert r.told() == [(lib.MN_CTL_RELEASE, FLOW)]
    successor = FLOW + 0x10000
    r.new_flow(successor)
    assert r.send(FLOW, b"x") == -errno.ENOTCONN
    assert r.send(successor, b"y") == 0
    r.complete()
    lib.mn_app_poll(r.app)
    r.take_messages()
    lib.mn_app_poll(r.app)
    assert r.stats()["tx_free"] == r.geo.tx_bufs
    r.check_buffers()


@pytest.mark.parametrize("flow", [0, OTHER, FLOW + 0x10000, 0xFFFF, 0xFFFFFFFF])
def test_sends_on_unknown_and_stale_flows(flow: int) -> None:
    r = rig()
    r.new_flow(FLOW)
    assert r.send(flow, b"x") == -errno.ENOTCONN
    assert lib.mn_app_send_nopub(r.app, flow, b"x", 1) == -errno.ENOTCONN
    assert lib.mn_app_sendv(r.app, flow, ffi.NULL, 0) == -errno.ENOTCONN
    assert r.take_submitted() == []


def test_a_batch_is_published_and_kicked_once() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.sh.engine_sleeps = 1
    for i in range(5):
        assert lib.mn_app_send_nopub(r.app, FLOW, bytes([i]), 1) == 0
    assert (r.submit.fill, r.kicks) == (0, 0)
    lib.mn_app_flush(r.app)
    assert (r.submit.fill, r.kicks) == (5, 1)
    lib.mn_app_flush(r.app)
    assert r.kicks == 1
    assert [data for _, data in r.take_messages()] == [bytes([i]) for i in range(5)]


def test_a_batch_that_does_not_fit_is_published_so_that_room_can_come() -> None:
    r = rig()
    r.new_flow(FLOW)
    sent = 0
    while (rc := lib.mn_app_send_nopub(r.app, FLOW, b"x", 1)) == 0:
        sent += 1
    assert rc == -errno.EAGAIN
    assert r.submit.fill == sent == 14


def test_the_engine_is_kicked_only_when_it_sleeps() -> None:
    r = rig()
    r.new_flow(FLOW)
    assert r.send(FLOW, b"x") == 0
    assert r.kicks == 0
    r.sh.engine_sleeps = 1
    assert r.send(FLOW, b"x") == 0
    assert r.kicks == 1


# Receiving.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("proto", [TCP, UDP])
def test_a_message_arrives_whole(size: int, proto: int) -> None:
    r = rig()
    r.new_flow(FLOW, proto)
    r.deliver_message(FLOW, pattern(size))
    assert r.peek() == (FLOW, size, 0)
    assert r.peek() == (FLOW, size, 0)
    assert r.take() == pattern(size)
    assert r.peek() == 0
    assert len(r.reclaim()) == max(1, -(-size // BUF))
    r.check_buffers()


def test_take_without_peek_and_with_nothing_there() -> None:
    r = rig()
    r.new_flow(FLOW)
    buf = ffi.new("uint8_t[]", 16)
    assert lib.mn_app_take(r.app, buf, 16) == -errno.EAGAIN
    r.deliver_message(FLOW, b"abc")
    assert lib.mn_app_take(r.app, buf, 16) == 3
    assert bytes(ffi.buffer(buf, 3)) == b"abc"
    lib.mn_app_skip(r.app)
    assert lib.mn_app_pieces(r.app, ffi.NULL, 0) == 0


def test_a_buffer_too_small_leaves_the_message() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.deliver_message(FLOW, pattern(600))
    assert r.take(599) == -errno.EMSGSIZE
    assert r.take(0) == -errno.EMSGSIZE
    assert r.reclaim() == []
    assert r.take(600) == pattern(600)


def test_messages_of_all_flows_come_in_order() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.new_flow(OTHER, UDP)
    sent = []
    for i, flow in enumerate([FLOW, OTHER, OTHER, FLOW, OTHER]):
        sent.append((flow, pattern(i * 300, i)))
        r.deliver_message(*sent[-1])
    got = []
    while isinstance(head := r.peek(), tuple):
        got.append((head[0], r.take()))
    assert got == sent


def test_pieces_of_two_flows_may_alternate() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.new_flow(OTHER)
    r.deliver_piece(FLOW, b"a" * BUF, FIRST)
    r.deliver_piece(OTHER, b"b" * BUF, FIRST)
    r.deliver_piece(FLOW, b"a" * BUF)
    assert r.peek() == 0
    r.deliver_piece(OTHER, b"b", LAST)
    r.deliver_piece(FLOW, b"a", LAST)
    # In the order in which they became complete.
    assert r.take() == b"b" * (BUF + 1)
    assert r.take() == b"a" * (2 * BUF + 1)
    r.reclaim()
    assert r.rx_app == set()


def test_the_pieces_of_the_head_message_can_be_read_in_place() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.deliver_message(FLOW, pattern(2 * BUF + 5))
    r.deliver_message(FLOW, b"")
    assert r.peek() == (FLOW, 2 * BUF + 5, 0)
    iov = ffi.new("struct mn_app_iov[4]")
    assert lib.mn_app_pieces(r.app, iov, 4) == 3
    assert b"".join(bytes(ffi.buffer(v.base, v.len)) for v in iov[0:3]) == pattern(2 * BUF + 5)
    iov[1].base = ffi.NULL
    assert lib.mn_app_pieces(r.app, iov, 1) == 3
    assert iov[1].base == ffi.NULL
    lib.mn_app_skip(r.app)
    assert r.peek() == (FLOW, 0, 0)
    assert lib.mn_app_pieces(r.app, iov, 4) == 0


def test_read_buffers_come_back_in_batches_and_none_is_kept_when_the_queue_is_empty() -> None:
    r = rig(rx_bufs=128)  # batches of 8
    r.new_flow(FLOW)
    for i in range(20):
        r.deliver_message(FLOW, bytes([i]))
    backs = []
    for i in range(20):
        assert r.take() == bytes([i])
        backs.append(len(r.reclaim()))
    assert backs == [0] * 7 + [8] + [0] * 7 + [8] + [0] * 3 + [4]


def test_a_released_buffer_wakes_a_sleeping_engine() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.deliver_message(FLOW, b"x")
    assert r.peek() == (FLOW, 1, 0)
    r.sh.engine_sleeps = 1
    assert r.take() == b"x"
    assert r.kicks == 1


def test_buffers_wait_while_the_engine_has_not_given_slots_back() -> None:
    r = rig()
    r.new_flow(FLOW)

    def round_trip() -> None:
        for _ in range(16):
            r.deliver_message(FLOW, b"x")
        for _ in range(16):
            assert r.take() == b"x"

    round_trip()
    # The engine has read all slots and uses the buffers again, but has not moved its index yet.
    assert r.released.fill == 16
    r.rx_free, r.rx_app = list(range(16)), set()
    round_trip()
    assert r.stats()["rx_unreleased"] == 16
    assert not lib.mn_app_prepare_sleep(r.app)
    r.released.idx.head = r.released.idx.tail
    lib.mn_app_flush(r.app)
    assert len(r.reclaim()) == 16
    assert r.stats()["rx_unreleased"] == 0
    r.check_buffers()


# Indices that wrap.


@pytest.mark.parametrize("start", [0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFFE, 12345])
def test_indices_wrap(start: int) -> None:
    r = rig(start=start)
    r.new_flow(FLOW)
    for i in range(200):
        data = pattern(i * 11 % 1500, i)
        assert r.send(FLOW, data) == 0
        assert r.take_messages() == [(FLOW, data)]
        r.deliver_message(FLOW, data)
        assert r.take() == data
        r.reclaim()
        r.check_buffers()
    for ring in (r.submit, r.completed, r.deliver, r.released):
        assert ring.idx.tail == (start + 200 * 2) & 0xFFFFFFFF or ring.fill <= ring.n
        assert (ring.idx.tail - start) & 0xFFFFFFFF >= 200
    assert r.dead() == 0


@pytest.mark.parametrize("start", [0xFFFFFFF8, 0])
def test_back_pressure_at_full_rings(start: int) -> None:
    r = rig(start=start, flows_max=1)
    flow = 0x30000
    r.new_flow(flow)
    for _ in range(10):
        for _ in range(14):
            assert r.send(flow, b"full") == 0
        assert r.send(flow, b"full") == -errno.EAGAIN
        assert len(r.take_messages()) == 14
        for i in range(16):
            r.deliver_message(flow, bytes([i]))
        assert [r.take() for _ in range(17)] == [bytes([i]) for i in range(16)] + [-errno.EAGAIN]
        assert len(r.reclaim()) == 16
        r.check_buffers()


def test_a_long_chain_and_its_neighbours() -> None:
    r = rig(rx_bufs=4096, tx_bufs=4096)
    r.new_flow(FLOW)
    r.new_flow(OTHER)
    big = pattern(3000 * BUF + 17)
    r.deliver_message(OTHER, b"before")
    r.deliver_message(FLOW, big)
    r.deliver_message(OTHER, b"after")
    assert r.take() == b"before"
    assert r.take() == big
    assert r.take() == b"after"
    assert len(r.reclaim()) == 3003
    assert r.send(FLOW, big) == 0
    assert r.take_messages() == [(FLOW, big)]


def test_memory_that_is_not_used_stays_untouched() -> None:
    r: Rig = rig(tx_bufs=4096, rx_bufs=4096, flows_max=1024, ctl_slots=64)
    r.new_flow(0x10000)
    for _ in range(100):
        assert r.send(0x10000, b"x") == 0
        r.take_messages()
        r.deliver_message(0x10000, b"y")
        assert r.take() == b"y"
        r.reclaim()
    data = r.mem.bytes()
    assert data.count(b"\xa5") > len(data) - 2048
    lay = r.lay
    pool = r.region.bytes(128 + lay.tx_pool_off, 4096 * BUF)
    assert pool.rstrip(b"\0") == b"x"
