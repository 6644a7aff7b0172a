# SPDX-License-Identifier: MIT
"""How message flows end and how they are given up, against a scripted engine."""

from __future__ import annotations

import errno

import pytest
from channel_peer import FIRST, WHOLE, rig

from machnet._native import lib

FLOW = 0x00050001  # slot 1, generation 5
OTHER = 0x00010002
BUF = 512


def test_an_error_comes_once_behind_the_data() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.deliver_message(FLOW, b"last words")
    r.deliver_end(FLOW, errno.ECONNRESET)
    lib.mn_app_poll(r.app)
    assert r.send(FLOW, b"x") == -errno.ENOTCONN
    assert r.told() == []
    assert r.take() == b"last words"
    assert r.peek() == (FLOW, 0, errno.ECONNRESET)
    assert r.told() == []
    assert r.info(FLOW).error == errno.ECONNRESET
    assert r.take() == b""
    assert r.peek() == 0
    assert r.told() == [(lib.MN_CTL_RELEASE, FLOW)]
    assert r.info(FLOW).error == errno.ECONNRESET
    r.new_flow(FLOW + 0x10000)
    assert r.info(FLOW) is None


def test_an_error_can_be_skipped() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.deliver_end(FLOW, errno.ETIMEDOUT)
    assert r.peek() == (FLOW, 0, errno.ETIMEDOUT)
    lib.mn_app_skip(r.app)
    assert r.peek() == 0
    assert r.told() == [(lib.MN_CTL_RELEASE, FLOW)]


def test_a_clean_end_is_no_event_and_waits_for_the_last_message() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.deliver_message(FLOW, b"1")
    r.deliver_message(FLOW, b"2")
    r.deliver_fin(FLOW)
    r.deliver_end(FLOW)
    assert r.peek() == (FLOW, 1, 0)
    assert r.send(FLOW, b"x") == -errno.ENOTCONN
    info = r.info(FLOW)
    assert (info.error, info.live, info.eof, info.ended) == (errno.ENOTCONN, 0, 1, 1)
    assert r.take() == b"1"
    assert r.told() == []
    assert r.flows() == [FLOW]
    assert r.take() == b"2"
    assert r.told() == [(lib.MN_CTL_RELEASE, FLOW)]
    assert r.flows() == []
    assert r.peek() == 0
    assert r.info(FLOW).error == errno.ENOTCONN


def test_a_send_sees_an_end_that_was_published_before_it() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.deliver_end(FLOW)
    assert r.send(FLOW, b"x") == -errno.ENOTCONN
    assert r.take_submitted() == []


def test_half_of_a_message_is_dropped_with_its_flow() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.deliver_piece(FLOW, b"a" * BUF, FIRST)
    r.deliver_piece(FLOW, b"a" * BUF)
    r.deliver_end(FLOW, errno.ECONNABORTED)
    assert r.peek() == (FLOW, 0, errno.ECONNABORTED)
    assert len(r.reclaim()) == 2
    r.check_buffers()


def test_close_drops_what_is_queued_for_the_flow_only() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.new_flow(OTHER)
    for i in range(3):
        r.deliver_message(FLOW, b"f" * 600)
        r.deliver_message(OTHER, bytes([i]))
    r.deliver_piece(FLOW, b"f" * BUF, FIRST)
    lib.mn_app_poll(r.app)
    assert r.close(FLOW, 250) == 0
    assert len(r.reclaim()) == 7
    closes = r.take_submitted()
    assert [(d.flags, d.flow, d.len) for d in closes] == [(lib.MN_DESC_CLOSE, FLOW, 250)]
    assert [r.take() for _ in range(3)] == [b"\0", b"\1", b"\2"]
    assert r.peek() == 0
    # What arrives until the engine has seen the mark goes straight back.
    r.deliver_message(FLOW, b"late" * 200)
    r.deliver_fin(FLOW)
    r.deliver_end(FLOW, errno.ECONNRESET)
    assert r.peek() == 0
    r.reclaim()
    assert r.rx_app == set()
    assert r.told() == [(lib.MN_CTL_RELEASE, FLOW)]
    assert r.close(FLOW) == -errno.ENOTCONN


def test_close_is_ordered_behind_the_data() -> None:
    r = rig()
    r.new_flow(FLOW)
    assert r.send(FLOW, b"bye") == 0
    assert r.close(FLOW) == 0
    assert r.send(FLOW, b"x") == -errno.ENOTCONN
    assert [(d.flags, d.data, d.len) for d in r.take_submitted()] == [
        (WHOLE, b"bye", 3),
        (lib.MN_DESC_CLOSE, b"", lib.MN_LINGER_DEFAULT),
    ]


@pytest.mark.parametrize("error", [0, errno.ECONNRESET])
def test_close_of_an_ended_flow_sends_nothing(error: int) -> None:
    r = rig()
    r.new_flow(FLOW)
    r.deliver_message(FLOW, b"unread")
    r.deliver_end(FLOW, error)
    lib.mn_app_poll(r.app)
    assert r.close(FLOW) == 0
    assert r.told() == [(lib.MN_CTL_RELEASE, FLOW)]
    assert r.take_submitted() == []
    assert r.peek() == 0
    assert len(r.reclaim()) == 1


def test_close_of_a_flow_whose_slot_has_a_successor_in_the_ring() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.deliver_end(FLOW)
    lib.mn_app_poll(r.app)
    assert r.told() == [(lib.MN_CTL_RELEASE, FLOW)]
    successor = FLOW + 0x10000
    r.accept_event(successor)
    assert r.close(FLOW) == -errno.ENOTCONN
    assert r.take_submitted() == []
    assert r.info(successor).live


def test_closing_flows_in_any_order_keeps_the_queue_whole() -> None:
    flows = [0x10000 + slot for slot in range(6)]
    for doomed in range(1 << len(flows)):
        r = rig()
        for flow in flows:
            r.accept_event(flow)
        for flow in flows:
            r.deliver_message(flow, flow.to_bytes(4, "big"))
        for flow in flows[::2]:
            r.deliver_end(flow, errno.ECONNRESET)
        lib.mn_app_poll(r.app)
        gone = {flow for i, flow in enumerate(flows) if doomed >> i & 1}
        for flow in gone:
            assert r.close(flow) == 0
        r.deliver_message(flows[1], b"tail")
        lib.mn_app_poll(r.app)
        got = []
        while isinstance(head := r.peek(), tuple):
            got.append((head[0], head[2]))
            r.take()
        expected = [(flow, 0) for flow in flows] + [(f, errno.ECONNRESET) for f in flows[::2]]
        expected.append((flows[1], 0))
        assert got == [(flow, status) for flow, status in expected if flow not in gone]
        r.reclaim()
        assert r.rx_app == set()
        assert r.stats()["msgs"] == 0


def test_the_first_message_may_be_seen_before_its_introduction() -> None:
    r = rig()
    # Both are published; the rings say nothing about which came first.
    r.deliver_message(FLOW, b"hello")
    r.accept_event(FLOW)
    assert r.peek() == (FLOW, 5, 0)
    assert r.info(FLOW).listener == 77


def test_ten_thousand_flows_through_one_slot() -> None:
    r = rig(flows_max=1)
    for i in range(10_000):
        flow = (i & 0xFFFF) << 16
        r.accept_event(flow)
        r.deliver_message(flow, b"hi")
        r.deliver_end(flow)
        assert r.take() == b"hi"
        assert r.told() == [(lib.MN_CTL_ACCEPT, flow), (lib.MN_CTL_RELEASE, flow)]
        r.reclaim()
    assert r.dead() == 0
    r.check_buffers()
