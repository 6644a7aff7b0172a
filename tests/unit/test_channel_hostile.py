# SPDX-License-Identifier: MIT
"""An engine's side that writes nonsense: the channel dies with EPROTO, and nothing else happens."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from channel_peer import FIRST, LAST, MASK32, STREAM, TCP, WHOLE, Rig, rig
from hypothesis import given
from hypothesis import strategies as st

from machnet._native import ffi, lib

FLOW = 0x00050001
BYTES = 0x00050002
BUF = 512
NONE: int = lib.MN_BUF_NONE
END: int = lib.MN_DESC_END


def ready_rig() -> Rig:
    r = rig()
    r.new_flow(FLOW, TCP)
    r.new_flow(BYTES, STREAM)
    return r


def use_everything(r: Rig) -> None:
    """Every call, whatever it answers."""
    buf = ffi.new("uint8_t[]", 9000)
    iov = ffi.new("struct mn_app_iov[4]")
    msg = ffi.new("struct mn_app_msg *")
    for flow in (FLOW, BYTES):
        lib.mn_app_send(r.app, flow, buf, 700)
        lib.mn_app_stream_send(r.app, flow, buf, 700, 0)
        lib.mn_app_stream_recv(r.app, flow, buf, 9000, 0)
        lib.mn_app_flow_ready(r.app, flow)
        lib.mn_app_send_room(r.app, flow)
    for _ in range(4):
        lib.mn_app_peek(r.app, msg)
        lib.mn_app_pieces(r.app, iov, 4)
        lib.mn_app_take(r.app, buf, 9000)
    lib.mn_app_accept(r.app, 77)
    token = lib.mn_app_getopt(r.app, FLOW, 1)
    if token > 0:
        r.result(token)
        lib.mn_app_forget(r.app, token)
    lib.mn_app_ready(r.app)
    lib.mn_app_prepare_sleep(r.app)
    lib.mn_app_cancel_sleep(r.app)
    lib.mn_app_flush(r.app)


DESCRIPTORS: dict[str, list[tuple[int, int, int, int]]] = {
    "buffer out of range": [(16, 1, FLOW, WHOLE)],
    "buffer far out of range": [(NONE, 1, FLOW, WHOLE)],
    "length over the buffer": [(0, BUF + 1, FLOW, WHOLE)],
    "huge length": [(0, MASK32, FLOW, WHOLE)],
    "buffer delivered twice": [(3, 1, FLOW, WHOLE), (3, 1, FLOW, WHOLE)],
    "buffer delivered to two flows": [(3, 1, FLOW, WHOLE), (3, 1, BYTES, 0)],
    "unknown flow": [(0, 1, 0x00050003, WHOLE)],
    "unknown generation": [(0, 1, FLOW + 0x10000, WHOLE)],
    "no flow": [(0, 1, MASK32, WHOLE)],
    "slot that does not exist": [(0, 1, 0xFFFF, WHOLE)],
    "message that does not begin": [(0, BUF, FLOW, 0)],
    "message that only ends": [(0, 1, FLOW, LAST)],
    "message in a message": [(0, BUF, FLOW, FIRST), (1, BUF, FLOW, FIRST)],
    "whole message in a message": [(0, BUF, FLOW, FIRST), (1, 1, FLOW, WHOLE)],
    "first piece not full": [(0, BUF - 1, FLOW, FIRST)],
    "middle piece not full": [(0, BUF, FLOW, FIRST), (1, 5, FLOW, 0)],
    "data after the end": [(NONE, 0, FLOW, END), (0, 1, FLOW, WHOLE)],
    "bytes after the end": [(NONE, 0, BYTES, END), (0, 1, BYTES, 0)],
    "two ends": [(NONE, 5, BYTES, END), (NONE, 0, BYTES, END)],
}


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_descriptors_that_make_no_sense(name: str) -> None:
    r = ready_rig()
    for desc in DESCRIPTORS[name]:
        r.deliver_raw(*desc)
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO
    use_everything(r)
    assert r.send(FLOW, b"x") == -errno.EPIPE
    assert r.submit.fill == 0


def test_a_message_over_the_limit() -> None:
    r = rig(buf_bytes=65536, rx_bufs=200)
    r.new_flow(FLOW)
    for buf in range(128):
        r.deliver_raw(buf, 65536, FLOW, FIRST if buf == 0 else 0)
    lib.mn_app_poll(r.app)
    assert r.dead() == 0
    r.deliver_raw(128, 1, FLOW, LAST)
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO


def test_the_longest_message() -> None:
    r = rig(buf_bytes=65536, rx_bufs=200)
    r.new_flow(FLOW)
    data = bytes(range(256)) * (1 << 15)
    r.deliver_message(FLOW, data)
    assert r.take() == data


def test_what_was_taken_in_before_stays_readable() -> None:
    r = ready_rig()
    r.deliver_message(FLOW, b"good" * 300)
    lib.mn_app_poll(r.app)
    r.deliver_raw(99, 1, FLOW, WHOLE)
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO
    assert r.take() == b"good" * 300
    assert r.take() == -errno.EPIPE


RINGS = ["submit", "completed", "deliver", "released", "ctl_submit", "ctl_complete"]
WRONG = [1, -1, 1000, 1 << 31, -(1 << 31) + 5]


@pytest.mark.parametrize("name", ["completed", "deliver", "ctl_complete"])
@pytest.mark.parametrize("off", WRONG)
def test_a_producer_index_that_makes_no_sense(name: str, off: int) -> None:
    r = ready_rig()
    ring = getattr(r, name)
    # Behind what was consumed, or further ahead than the ring is long.
    ring.idx.tail = (ring.idx.tail + off + (ring.n if off > 0 else 0)) & MASK32
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO
    use_everything(r)


@pytest.mark.parametrize("off", [1, 7, 1 << 31])
def test_more_events_than_the_ring_has_slots(off: int) -> None:
    r = ready_rig()
    for i in range(r.ctl_complete.n):
        # Each by itself makes sense.
        r.ctl_complete.slots[i] = {"kind": lib.MN_EVT_SOFT, "flow": FLOW, "status": -errno.EIO}
    tail = r.ctl_complete.idx.tail
    r.ctl_complete.idx.tail = (r.ctl_complete.idx.head + r.ctl_complete.n + off) & MASK32
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO
    assert r.info(FLOW).soft_error == 0
    assert r.ctl_complete.idx.head == tail


def test_a_consumer_that_steps_back_while_something_is_not_published() -> None:
    r = ready_rig()
    for _ in range(r.submit.n - 4):
        assert r.send(FLOW, b"x") == 0
        r.completed.put(0)
        lib.mn_app_poll(r.app)
    for _ in range(4):
        assert lib.mn_app_send_nopub(r.app, FLOW, b"x", 1) == 0
    # No more than the ring's slots behind what is published, but more behind what is written.
    r.submit.idx.head = MASK32 - 2
    assert lib.mn_app_send_nopub(r.app, FLOW, b"x", 1) == -errno.EPIPE
    assert r.dead() == errno.EPROTO


def fill_submit(r: Rig) -> None:
    assert r.send(FLOW, b"x") in (0, -errno.EAGAIN, -errno.EPIPE)
    # The buffer comes back, but its slot does not.
    if r.stats()["tx_in_flight"]:
        r.completed.put(0)


def fill_released(r: Rig) -> None:
    r.deliver_raw(r.deliver.idx.tail % 16, 1, FLOW, WHOLE)
    r.take()


def fill_ctl_submit(r: Rig) -> None:
    lib.mn_app_getopt(r.app, FLOW, 1)


@pytest.mark.parametrize("fill", [fill_submit, fill_released, fill_ctl_submit])
@pytest.mark.parametrize("off", WRONG)
def test_a_consumer_index_that_makes_no_sense(fill: Callable[[Rig], None], off: int) -> None:
    r = ready_rig()
    ring = getattr(r, fill.__name__.removeprefix("fill_"))
    # Ahead of what was published, or back behind what was given back before.
    bad = (ring.idx.head + off) & MASK32
    for _ in range(ring.n):
        fill(r)
    assert r.dead() == 0
    ring.idx.head = (ring.idx.tail + off) & MASK32 if off > 0 else bad
    for _ in range(2):
        fill(r)
    assert r.dead() == errno.EPROTO
    use_everything(r)


@pytest.mark.parametrize("buf", [0, 1, 15, 16, MASK32])
def test_a_buffer_completed_that_was_never_submitted(buf: int) -> None:
    r = ready_rig()
    r.completed.put(buf)
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO


def test_a_buffer_completed_twice() -> None:
    r = ready_rig()
    assert r.send(FLOW, b"x") == 0
    (desc,) = r.take_submitted()
    r.completed.put(desc.buf)
    r.completed.put(desc.buf)
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO
    assert r.stats()["tx_free"] == r.geo.tx_bufs


EVENTS: dict[str, Callable[[Rig], None]] = {
    "unknown kind": lambda r: r.event(99),
    "no kind": lambda r: r.event(0),
    "result nobody asked for": lambda r: r.event(lib.MN_EVT_RESULT, token=17),
    "result without a token": lambda r: r.event(lib.MN_EVT_RESULT),
    "slot out of range": lambda r: r.accept_event(8),
    "slot far out of range": lambda r: r.accept_event(MASK32),
    "slot in use": lambda r: r.accept_event(FLOW + 0x10000),
    "flow announced twice": lambda r: r.accept_event(FLOW),
    "unknown protocol": lambda r: r.accept_event(3, proto=3),
}


@pytest.mark.parametrize("name", EVENTS)
def test_events_that_make_no_sense(name: str) -> None:
    r = ready_rig()
    EVENTS[name](r)
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO
    use_everything(r)


def test_a_result_given_twice() -> None:
    r = ready_rig()
    token = lib.mn_app_getopt(r.app, FLOW, 1)
    r.event(lib.MN_EVT_RESULT, token=token)
    r.event(lib.MN_EVT_RESULT, token=token)
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO
    assert r.result(token).status == 0


@pytest.mark.parametrize("flow", [8, MASK32, FLOW])
def test_a_connect_answered_with_a_flow_that_can_not_be(flow: int) -> None:
    r = ready_rig()
    token = lib.mn_app_connect(r.app, 0, 0, 1, 80, TCP, 0)
    r.event(lib.MN_EVT_RESULT, token=token, flow=flow)
    assert r.result(token).status == -errno.EPIPE
    assert r.dead() == errno.EPROTO


def test_a_slot_used_again_before_it_was_released() -> None:
    r = ready_rig()
    r.deliver_end(FLOW, errno.ECONNRESET)
    lib.mn_app_poll(r.app)  # the event was not taken yet
    r.accept_event(FLOW + 0x10000)
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO


def test_a_slot_used_again_before_the_release_was_told() -> None:
    r = ready_rig()
    while lib.mn_app_getopt(r.app, FLOW, 1) > 0:
        pass
    r.deliver_end(FLOW)
    lib.mn_app_poll(r.app)
    r.accept_event(FLOW + 0x10000)
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO


def test_a_buffer_delivered_again_while_it_waits_to_be_told() -> None:
    r = ready_rig()
    for _ in range(2):
        for buf in range(16):
            r.deliver_raw(buf, 1, FLOW, WHOLE)
        for _ in range(16):
            assert r.take() == b"\0"
    assert r.stats()["rx_unreleased"] == 16
    r.deliver_raw(3, 1, FLOW, WHOLE)
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO


@pytest.mark.parametrize("error", [4096, 1 << 20, MASK32])
def test_a_flow_that_ends_with_no_errno(error: int) -> None:
    r = ready_rig()
    r.deliver_end(FLOW, error)
    r.deliver_end(BYTES, error)
    assert r.peek() == (FLOW, 0, errno.EPROTO)
    assert r.stream_recv(BYTES) == -errno.EPROTO


@pytest.mark.parametrize("closed", [1 << 31, MASK32, 5000])
def test_a_channel_closed_with_no_errno(closed: int) -> None:
    r = ready_rig()
    r.sh.closed = closed
    lib.mn_app_poll(r.app)
    assert r.dead() == errno.EPROTO


words = st.one_of(
    st.integers(0, 20),
    st.sampled_from([FLOW, BYTES, FLOW + 0x10000, NONE, BUF, BUF + 1, 1 << 31]),
    st.integers(0, MASK32),
)
descs = st.tuples(words, words, words, st.one_of(st.integers(0, 127), st.integers(0, 0xFFFF)))
actions = st.one_of(
    st.tuples(st.just("deliver"), descs),
    st.tuples(st.just("complete"), words),
    st.tuples(st.just("event"), st.tuples(st.integers(0, 5), words, words, words)),
    st.tuples(st.just("tail"), st.tuples(st.sampled_from(RINGS), words)),
    st.tuples(st.just("head"), st.tuples(st.sampled_from(RINGS), words)),
    st.tuples(st.just("drain"), st.just(0)),
    st.tuples(st.just("use"), st.just(0)),
)


@given(st.lists(actions, min_size=1, max_size=30))
def test_nothing_that_the_engine_writes_can_crash_the_application(
    script: list[tuple[str, object]],
) -> None:
    r = ready_rig()
    for what, value in script:
        if what == "deliver" and r.deliver.fill < r.deliver.n:
            r.deliver_raw(*value)  # type: ignore[misc]
        elif what == "complete" and r.completed.fill < r.completed.n:
            r.completed.put(value)
        elif what == "event" and r.ctl_complete.fill < r.ctl_complete.n:
            kind, token, flow, proto = value  # type: ignore[misc]
            r.event(kind, token=token, flow=flow, proto=proto & 3, listener=77)
        elif what in ("tail", "head"):
            name, index = value  # type: ignore[misc]
            setattr(getattr(r, name).idx, what, index)
        elif what == "drain":
            r.submit.idx.head = r.submit.idx.tail
            r.released.idx.head = r.released.idx.tail
            r.ctl_submit.idx.head = r.ctl_submit.idx.tail
        else:
            use_everything(r)
    use_everything(r)
    stats = r.stats()
    assert stats["tx_free"] + stats["tx_in_flight"] == r.geo.tx_bufs
    assert stats["rx_held"] <= r.geo.rx_bufs
    for flow in r.flows():
        assert r.close(flow) == 0
    lib.mn_app_poll(r.app)
