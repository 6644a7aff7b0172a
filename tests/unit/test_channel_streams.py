# SPDX-License-Identifier: MIT
"""Byte streams through the application's side of a channel, against a scripted engine."""

from __future__ import annotations

import errno

import pytest
from channel_peer import STREAM, TCP, UDP, Rig, rig

from machnet._native import ffi, lib

FLOW = 0x00050001
OTHER = 0x00010002
MSG = 0x00010003
BUF = 512
MORE: int = lib.MN_DESC_MORE
URG: int = lib.MN_DESC_URG
READ: int = lib.MN_READY_STREAM
SPACE: int = lib.MN_READY_SPACE


def pattern(size: int) -> bytes:
    return bytes(i * 13 & 0xFF for i in range(size))


def stream(**changes: int) -> Rig:
    r = rig(**changes)
    r.new_flow(FLOW, STREAM)
    return r


@pytest.mark.parametrize("size", [1, BUF - 1, BUF, BUF + 1, 5 * BUF])
def test_bytes_go_out_in_buffers(size: int) -> None:
    r = stream()
    assert r.stream_send(FLOW, pattern(size)) == size
    descs = r.take_submitted()
    assert b"".join(d.data for d in descs) == pattern(size)
    assert [d.flags for d in descs] == [MORE] * (len(descs) - 1) + [0]


def test_marks_are_on_the_last_piece() -> None:
    r = stream()
    assert r.stream_send(FLOW, pattern(BUF + 1), lib.MN_APP_URG) == BUF + 1
    assert r.stream_send(FLOW, b"x", lib.MN_APP_MORE) == 1
    assert r.stream_send(FLOW, b"x", lib.MN_APP_MORE | lib.MN_APP_URG) == 1
    assert [d.flags for d in r.take_submitted()] == [MORE, URG, MORE, MORE | URG]


def test_a_send_takes_what_fits_and_its_marks_wait() -> None:
    r = stream()
    assert r.stream_send(FLOW, bytes(20 * BUF), lib.MN_APP_URG | lib.MN_APP_MORE) == 14 * BUF
    assert r.stream_send(FLOW, b"x") == -errno.EAGAIN
    assert [d.flags for d in r.take_submitted()] == [MORE] * 13 + [0]
    r.complete(*list(r.tx_engine)[:3])
    assert r.stream_send(FLOW, bytes(20 * BUF)) == 3 * BUF
    r.check_buffers()


def test_a_huge_length_takes_what_fits() -> None:
    r = stream()
    data = ffi.new("uint8_t[]", 16 * BUF)
    assert lib.mn_app_stream_send(r.app, FLOW, data, 0xFFFFFFFFFFFFFFFF, 0) == 14 * BUF


def test_no_bytes() -> None:
    r = stream()
    assert r.stream_send(FLOW, b"") == 0
    assert r.take_submitted() == []
    assert r.stream_recv(FLOW, 0) == b""
    r.deliver_piece(FLOW, b"")
    assert r.stream_recv(FLOW) == -errno.EAGAIN
    assert len(r.reclaim()) == 1


def test_a_full_pool_still_has_two_buffers_for_another_stream() -> None:
    r = stream()
    r.new_flow(OTHER, STREAM)
    assert r.stream_send(FLOW, bytes(20 * BUF)) == 14 * BUF
    assert r.stream_send(OTHER, bytes(20 * BUF)) == 2 * BUF
    assert r.stream_send(OTHER, b"x") == -errno.EAGAIN


@pytest.mark.parametrize("step", [1, 7, 100, BUF, 4096])
def test_bytes_come_in_whatever_portions(step: int) -> None:
    r = stream()
    data = pattern(2000)
    for start in range(0, 2000, 300):
        r.deliver_piece(FLOW, data[start : start + 300])
    got = b""
    while isinstance(part := r.stream_recv(FLOW, step), bytes):
        assert len(part) <= step
        got += part
    assert part == -errno.EAGAIN
    assert got == data
    assert r.info(FLOW).read_off == 2000
    r.reclaim()
    assert r.rx_app == set()


def test_peek_leaves_the_bytes() -> None:
    r = stream()
    r.deliver_piece(FLOW, b"abc")
    r.deliver_piece(FLOW, b"def")
    assert r.stream_recv(FLOW, 5, lib.MN_APP_PEEK) == b"abcde"
    assert r.stream_recv(FLOW, 2) == b"ab"
    assert r.stream_recv(FLOW, 9, lib.MN_APP_PEEK) == b"cdef"
    assert r.info(FLOW).read_off == 2
    assert r.reclaim() == []
    assert r.stream_recv(FLOW) == b"cdef"
    assert len(r.reclaim()) == 2


def test_read_buffers_are_told_at_once() -> None:
    r = stream(rx_bufs=1024)
    r.deliver_piece(FLOW, b"a")
    r.deliver_piece(FLOW, b"b")
    lib.mn_app_poll(r.app)
    r.sh.engine_sleeps = 1
    assert r.stream_recv(FLOW, 1) == b"a"
    assert r.kicks == 1
    assert len(r.reclaim()) == 1


def test_streams_are_separate_and_apart_from_messages() -> None:
    r = stream()
    r.new_flow(OTHER, STREAM)
    r.new_flow(MSG, TCP)
    r.deliver_piece(OTHER, b"other")
    r.deliver_message(MSG, b"message")
    r.deliver_piece(FLOW, b"flow")
    assert r.stream_recv(FLOW) == b"flow"
    assert r.take() == b"message"
    assert r.stream_recv(OTHER) == b"other"


def test_fin_is_the_end_of_the_bytes() -> None:
    r = stream()
    r.deliver_piece(FLOW, b"last")
    r.deliver_fin(FLOW)
    lib.mn_app_poll(r.app)
    assert not r.info(FLOW).eof
    assert r.stream_recv(FLOW) == b"last"
    assert r.info(FLOW).eof
    assert r.stream_recv(FLOW) == b""
    assert r.stream_recv(FLOW) == b""
    # Half-closed: sending goes on.
    assert r.info(FLOW).live
    assert r.stream_send(FLOW, b"x") == 1


@pytest.mark.parametrize("fin", [False, True])
def test_an_error_comes_behind_the_bytes(fin: bool) -> None:
    r = stream()
    r.deliver_piece(FLOW, b"last")
    if fin:
        r.deliver_fin(FLOW)
    r.deliver_end(FLOW, errno.ECONNRESET)
    assert r.stream_recv(FLOW) == b"last"
    assert r.stream_recv(FLOW) == -errno.ECONNRESET
    assert r.stream_recv(FLOW) == -errno.ECONNRESET
    assert r.stream_send(FLOW, b"x") == -errno.ECONNRESET
    # The record is the application's until it closes.
    assert r.told() == []
    assert r.flows() == [FLOW]
    assert r.info(FLOW).error == errno.ECONNRESET
    assert r.peek() == 0
    assert r.close(FLOW) == 0
    assert r.told() == [(lib.MN_CTL_RELEASE, FLOW)]
    assert r.take_submitted() == []
    assert r.close(FLOW) == -errno.ENOTCONN


def test_a_clean_end_reads_as_end_of_stream() -> None:
    r = stream()
    r.deliver_end(FLOW)
    assert r.stream_recv(FLOW) == b""
    assert r.stream_send(FLOW, b"x") == -errno.EPIPE
    assert r.info(FLOW).error == errno.ENOTCONN


def test_shutdown_is_ordered_behind_the_bytes_and_done_once() -> None:
    r = stream()
    assert r.stream_send(FLOW, b"x") == 1
    assert lib.mn_app_shutdown_write(r.app, FLOW) == 0
    assert lib.mn_app_shutdown_write(r.app, FLOW) == 0
    assert r.stream_send(FLOW, b"y") == -errno.EPIPE
    assert [d.flags for d in r.take_submitted()] == [0, lib.MN_DESC_FIN]
    r.deliver_piece(FLOW, b"still")
    assert r.stream_recv(FLOW) == b"still"
    assert r.close(FLOW, 0) == 0
    assert [(d.flags, d.len) for d in r.take_submitted()] == [(lib.MN_DESC_CLOSE, 0)]
    assert lib.mn_app_shutdown_write(r.app, FLOW) == -errno.ENOTCONN


def test_shutdown_by_protocol_and_state() -> None:
    r = rig()
    r.new_flow(FLOW, TCP)
    r.new_flow(OTHER, UDP)
    assert lib.mn_app_shutdown_write(r.app, OTHER) == -errno.EINVAL
    assert lib.mn_app_shutdown_write(r.app, MSG) == -errno.ENOTCONN
    assert lib.mn_app_shutdown_write(r.app, FLOW) == 0
    assert r.send(FLOW, b"x") == -errno.EPIPE
    r.deliver_end(FLOW)
    assert lib.mn_app_shutdown_write(r.app, FLOW) == -errno.ENOTCONN


def test_close_drops_unread_bytes() -> None:
    r = stream()
    r.deliver_piece(FLOW, b"a")
    r.deliver_piece(FLOW, b"b")
    lib.mn_app_poll(r.app)
    assert r.stats()["rx_held"] == 2
    assert r.close(FLOW) == 0
    assert len(r.reclaim()) == 2
    r.deliver_piece(FLOW, b"late")
    r.deliver_end(FLOW)
    lib.mn_app_poll(r.app)
    assert len(r.reclaim()) == 1
    assert r.told() == [(lib.MN_CTL_RELEASE, FLOW)]
    assert r.stream_recv(FLOW) == -errno.ENOTCONN
    assert r.stream_send(FLOW, b"x") == -errno.ENOTCONN


@pytest.mark.parametrize("taken_in", [False, True])
@pytest.mark.parametrize(("asked", "told"), [(lib.MN_LINGER_DEFAULT, 0), (5, 5), (0, 0)])
def test_close_with_unread_bytes_tells_the_peer(taken_in: bool, asked: int, told: int) -> None:
    r = stream()
    r.deliver_piece(FLOW, b"unread")
    if taken_in:
        lib.mn_app_poll(r.app)
    assert r.close(FLOW, asked) == 0
    assert [(d.flags, d.len) for d in r.take_submitted()] == [(lib.MN_DESC_CLOSE, told)]


def test_close_with_everything_read_lingers() -> None:
    r = stream()
    r.deliver_piece(FLOW, b"read")
    assert r.stream_recv(FLOW) == b"read"
    assert r.close(FLOW) == 0
    assert [d.len for d in r.take_submitted()] == [lib.MN_LINGER_DEFAULT]


def test_calls_of_the_other_kind_are_invalid() -> None:
    r = stream()
    r.new_flow(MSG, TCP)
    assert r.send(FLOW, b"x") == -errno.EINVAL
    assert r.stream_send(MSG, b"x") == -errno.EINVAL
    assert r.stream_recv(MSG) == -errno.EINVAL


@pytest.mark.parametrize("flow", [OTHER, FLOW + 0x10000, 0xFFFFFFFF])
def test_unknown_and_stale_flows(flow: int) -> None:
    r = stream()
    assert r.stream_send(flow, b"x") == -errno.ENOTCONN
    assert r.stream_recv(flow) == -errno.ENOTCONN
    assert r.close(flow) == -errno.ENOTCONN


# Accepting.


def test_flows_are_accepted_by_listener_and_in_order() -> None:
    r = rig()
    for flow, listener in [(1, 7), (2, 8), (3, 7), (4, 9)]:
        r.accept_event(flow, STREAM, listener)
    assert lib.mn_app_ready(r.app) & lib.MN_READY_ACCEPT
    assert r.stats()["accepts"] == 4
    assert r.told() == []
    assert lib.mn_app_accept(r.app, 9) == 4
    assert lib.mn_app_accept(r.app, 7) == 1
    assert lib.mn_app_accept(r.app, 7) == 3
    assert lib.mn_app_accept(r.app, 7) == lib.MN_FLOW_NONE
    r.accept_event(5, STREAM, 7)
    assert lib.mn_app_accept(r.app, 7) == 5
    assert lib.mn_app_accept(r.app, 8) == 2
    assert r.told() == [(lib.MN_CTL_ACCEPT, flow) for flow in (4, 1, 3, 5, 2)]
    assert not lib.mn_app_ready(r.app) & lib.MN_READY_ACCEPT


def test_a_flow_that_was_reset_can_still_be_accepted_with_its_data() -> None:
    r = rig()
    r.accept_event(FLOW, STREAM)
    r.deliver_piece(FLOW, b"data")
    r.deliver_end(FLOW, errno.ECONNRESET)
    # What nobody accepted is not ready for reading.
    assert not lib.mn_app_ready(r.app) & READ
    assert not r.info(FLOW).accepted
    assert lib.mn_app_accept(r.app, 77) == FLOW
    assert lib.mn_app_ready(r.app) & READ
    assert r.stream_recv(FLOW) == b"data"
    assert r.stream_recv(FLOW) == -errno.ECONNRESET
    r.close(FLOW)
    assert r.told() == [(lib.MN_CTL_ACCEPT, FLOW), (lib.MN_CTL_RELEASE, FLOW)]


def test_unaccepted_flows_are_reset_with_their_listener() -> None:
    r = rig()
    for flow, listener in [(1, 7), (2, 8), (3, 7), (4, 8)]:
        r.accept_event(flow, STREAM, listener)
        r.deliver_piece(flow, b"x")
    lib.mn_app_poll(r.app)
    token = lib.mn_app_unlisten(r.app, 7)
    (command,) = r.commands()
    assert (command.op, command.flow) == (lib.MN_CTL_UNLISTEN, 7)
    r.event(lib.MN_EVT_RESULT, token=token)
    assert r.result(token).status == 0
    assert r.told() == [(lib.MN_CTL_ACCEPT, 1), (lib.MN_CTL_ACCEPT, 3)]
    assert [(d.flags, d.flow, d.len) for d in r.take_submitted()] == [
        (lib.MN_DESC_CLOSE, 1, 0),
        (lib.MN_DESC_CLOSE, 3, 0),
    ]
    assert len(r.reclaim()) == 2
    assert lib.mn_app_accept(r.app, 7) == lib.MN_FLOW_NONE
    assert lib.mn_app_accept(r.app, 8) == 2
    assert lib.mn_app_accept(r.app, 8) == 4


def test_an_unaccepted_flow_can_be_closed_by_its_id() -> None:
    r = rig()
    for flow in (1, 2, 3):
        r.accept_event(flow, STREAM)
    lib.mn_app_poll(r.app)
    assert r.close(2, 0) == 0
    assert r.close(3, 0) == 0
    r.accept_event(4, STREAM)
    assert [lib.mn_app_accept(r.app, 77) for _ in range(3)] == [1, 4, lib.MN_FLOW_NONE]


# Readiness.


def test_readiness_of_a_flow() -> None:
    r = stream()

    def ready(flow: int = FLOW) -> int:
        return int(lib.mn_app_flow_ready(r.app, flow))

    assert ready() == SPACE
    r.deliver_piece(FLOW, b"x")
    assert ready() == READ | SPACE
    r.stream_recv(FLOW)
    assert r.stream_send(FLOW, bytes(20 * BUF)) == 14 * BUF
    assert ready() == 0
    r.take_submitted()
    r.complete()
    assert ready() == SPACE
    r.deliver_fin(FLOW)
    assert ready() == READ | SPACE
    r.deliver_end(FLOW, errno.ECONNRESET)
    assert ready() == READ | SPACE
    # Calls on what is not there answer at once.
    assert ready(OTHER) == READ | SPACE


def test_readiness_of_the_channel_counts_streams() -> None:
    r = stream()
    r.new_flow(OTHER, STREAM)

    def ready() -> bool:
        return bool(lib.mn_app_ready(r.app) & READ)

    assert not ready()
    r.deliver_piece(FLOW, b"x")
    r.deliver_piece(OTHER, b"xy")
    assert ready()
    r.stream_recv(FLOW)
    assert ready()
    r.stream_recv(OTHER, 1)
    assert ready()
    r.stream_recv(OTHER, 1)
    assert not ready()
    r.deliver_fin(OTHER)
    assert ready()
    r.stream_recv(OTHER)
    assert ready()
    r.close(OTHER)
    assert not ready()


def test_urgent_data_are_reported_by_offset() -> None:
    r = stream()
    r.event(lib.MN_EVT_URGENT, flow=FLOW, value=3)
    r.deliver_piece(FLOW, b"ab!cd", URG)
    assert r.stream_recv(FLOW, 2) == b"ab"
    info = r.info(FLOW)
    assert (info.urgent_off, info.read_off) == (3, 2)
