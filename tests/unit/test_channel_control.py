# SPDX-License-Identifier: MIT
"""Commands, their answers, and what is owed to the engine while its rings are full."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from channel_peer import STREAM, TCP, UDP, Rig, rig

from machnet._native import lib

FLOW = 0x00050001
LOCAL, REMOTE = 0x0A000001, 0x0A000002


def connect(r: Rig, proto: int = TCP) -> int:
    return int(lib.mn_app_connect(r.app, LOCAL, 0, REMOTE, 80, proto, 500))


def connected(r: Rig, token: int, flow: int = FLOW, status: int = 0) -> None:
    r.event(
        lib.MN_EVT_RESULT,
        token=token,
        flow=flow,
        status=status,
        local_ip=LOCAL,
        local_port=4321,
        remote_ip=REMOTE,
        remote_port=80,
    )


def fields(command: Any, *names: str) -> tuple[int, ...]:
    return tuple(getattr(command, name) for name in names)


def test_what_the_commands_say() -> None:
    r = rig()
    tokens = [
        lib.mn_app_listen(r.app, LOCAL, 80, STREAM, 5),
        lib.mn_app_unlisten(r.app, 9),
        connect(r, UDP),
        lib.mn_app_setopt(r.app, FLOW, lib.MN_OPT_TTL, 1 << 40),
        lib.mn_app_getopt(r.app, FLOW, lib.MN_OPT_MSS),
    ]
    assert all(token > 0 for token in tokens)
    listen, unlisten, conn, setopt, getopt = commands = r.commands()
    assert [c.token for c in commands] == tokens
    assert len(set(tokens)) == 5
    assert fields(listen, "op", "local_ip", "local_port", "proto", "arg") == (
        lib.MN_CTL_LISTEN,
        LOCAL,
        80,
        STREAM,
        5,
    )
    assert fields(unlisten, "op", "flow") == (lib.MN_CTL_UNLISTEN, 9)
    assert fields(conn, "op", "local_ip", "remote_ip", "remote_port", "proto", "arg") == (
        lib.MN_CTL_CONNECT,
        LOCAL,
        REMOTE,
        80,
        UDP,
        500,
    )
    assert fields(setopt, "op", "flow", "opt", "value") == (
        lib.MN_CTL_SETOPT,
        FLOW,
        lib.MN_OPT_TTL,
        1 << 40,
    )
    assert fields(getopt, "op", "flow", "opt") == (lib.MN_CTL_GETOPT, FLOW, lib.MN_OPT_MSS)


def test_an_unknown_protocol_is_invalid() -> None:
    r = rig()
    assert lib.mn_app_listen(r.app, LOCAL, 80, 3, 0) == -errno.EINVAL
    assert connect(r, 3) == -errno.EINVAL
    assert r.commands() == []


def test_a_result_is_fetched_once() -> None:
    r = rig()
    token = lib.mn_app_listen(r.app, LOCAL, 80, TCP, 0)
    assert r.result(token) == 0
    r.event(lib.MN_EVT_RESULT, token=token, value=42)
    assert lib.mn_app_ready(r.app) & lib.MN_READY_RESULT
    evt = r.result(token)
    assert (evt.status, evt.value) == (0, 42)
    assert r.result(token) == -errno.ENOENT
    assert not lib.mn_app_ready(r.app) & lib.MN_READY_RESULT


@pytest.mark.parametrize("token", [0, -1, 1, 16, 1 << 32, (1 << 32) + 16, -(1 << 63)])
def test_no_such_token(token: int) -> None:
    r = rig()
    assert r.result(token) == -errno.ENOENT
    assert lib.mn_app_forget(r.app, token) == -errno.ENOENT


def test_answers_may_come_in_any_order() -> None:
    r = rig()
    tokens = [lib.mn_app_getopt(r.app, FLOW, 1) for _ in range(16)]
    for token in reversed(tokens):
        r.event(lib.MN_EVT_RESULT, token=token, value=token)
    assert [r.result(token).value for token in tokens] == tokens


def test_unfetched_answers_are_bounded() -> None:
    r = rig()
    tokens = []
    for _ in range(16):
        tokens.append(lib.mn_app_getopt(r.app, FLOW, 1))
        r.commands()
        r.event(lib.MN_EVT_RESULT, token=tokens[-1])
        lib.mn_app_poll(r.app)
    assert lib.mn_app_getopt(r.app, FLOW, 1) == -errno.EAGAIN
    assert r.commands() == []
    assert r.result(tokens[3]).status == 0
    token = lib.mn_app_getopt(r.app, FLOW, 1)
    assert token > 0
    assert token not in tokens
    assert (r.stats()["tokens"], r.stats()["results"]) == (16, 15)


def test_a_token_is_not_used_again_soon() -> None:
    r = rig()
    seen = set()
    for _ in range(1000):
        token = lib.mn_app_getopt(r.app, FLOW, 1)
        assert token not in seen
        seen.add(token)
        r.commands()
        r.event(lib.MN_EVT_RESULT, token=token)
        assert r.result(token).status == 0


def test_a_connected_flow_is_known_with_its_answer() -> None:
    r = rig()
    token = connect(r)
    assert r.result(token) == 0
    connected(r, token)
    r.deliver_message(FLOW, b"at once")
    assert r.peek() == (FLOW, 7, 0)
    info = r.info(FLOW)
    assert fields(info, "local_ip", "local_port", "remote_ip", "remote_port") == (
        LOCAL,
        4321,
        REMOTE,
        80,
    )
    assert fields(info, "proto", "listener", "live", "accepted", "ended", "error") == (
        TCP,
        0,
        1,
        1,
        0,
        0,
    )
    evt = r.result(token)
    assert (evt.flow, evt.local_port) == (FLOW, 4321)
    assert r.flows() == [FLOW]


def test_a_refused_connect_makes_no_flow() -> None:
    r = rig()
    token = connect(r)
    connected(r, token, flow=lib.MN_FLOW_NONE, status=-errno.ECONNREFUSED)
    assert r.result(token).status == -errno.ECONNREFUSED
    assert r.flows() == []


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("proto", [TCP, STREAM])
def test_a_forgotten_connect_is_reset(answered: bool, proto: int) -> None:
    r = rig()
    token = connect(r, proto)
    r.commands()
    if answered:
        connected(r, token)
        lib.mn_app_poll(r.app)
    assert lib.mn_app_forget(r.app, token) == 0
    assert lib.mn_app_forget(r.app, token) == -errno.ENOENT
    assert r.result(token) == -errno.ENOENT
    if not answered:
        # The engine is asked to stop, but may have answered already.
        assert r.told() == [(lib.MN_CTL_CANCEL, token)]
        connected(r, token)
    r.deliver_piece(FLOW, b"x", lib.MN_DESC_FIRST | lib.MN_DESC_LAST)
    assert r.peek() == 0
    assert [(d.flags, d.flow, d.len) for d in r.take_submitted()] == [(lib.MN_DESC_CLOSE, FLOW, 0)]
    assert len(r.reclaim()) == 1
    r.deliver_end(FLOW, errno.ECONNRESET)
    assert r.peek() == 0
    assert r.told() == [(lib.MN_CTL_RELEASE, FLOW)]
    assert r.stats()["tokens"] == 0


def test_a_forgotten_failure_is_nothing() -> None:
    r = rig()
    token = connect(r)
    assert lib.mn_app_forget(r.app, token) == 0
    connected(r, token, flow=lib.MN_FLOW_NONE, status=-errno.ECANCELED)
    lib.mn_app_poll(r.app)
    assert r.stats()["tokens"] == 0
    assert r.dead() == 0


def test_only_a_connect_is_cancelled() -> None:
    r = rig()
    token = lib.mn_app_getopt(r.app, FLOW, 1)
    r.commands()
    assert lib.mn_app_forget(r.app, token) == 0
    assert r.commands() == []
    r.event(lib.MN_EVT_RESULT, token=token)
    lib.mn_app_poll(r.app)
    assert r.stats()["tokens"] == 0


def test_a_connect_is_forgotten_also_when_the_ring_is_full() -> None:
    r = rig()
    token = connect(r)
    fill(r)
    assert lib.mn_app_forget(r.app, token) == 0
    assert len(r.commands()) == 16
    connected(r, token)
    lib.mn_app_poll(r.app)
    assert [(d.flags, d.flow) for d in r.take_submitted()] == [(lib.MN_DESC_CLOSE, FLOW)]


def test_soft_errors_are_kept_and_change_nothing() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.event(lib.MN_EVT_SOFT, flow=FLOW, status=-errno.EHOSTUNREACH)
    r.event(lib.MN_EVT_SOFT, flow=FLOW + 0x10000, status=-errno.ENETUNREACH)
    lib.mn_app_poll(r.app)
    info = r.info(FLOW)
    assert (info.soft_error, info.error, info.live) == (errno.EHOSTUNREACH, 0, 1)


# A full control ring.


def fill(r: Rig) -> list[int]:
    tokens = []
    while (token := lib.mn_app_getopt(r.app, FLOW, 1)) > 0:
        tokens.append(token)
    assert token == -errno.EAGAIN
    assert r.ctl_submit.fill == 16
    return tokens


def test_a_full_ring_says_so() -> None:
    r = rig()
    fill(r)
    assert r.stats()["tokens"] == 16
    r.commands()
    # Room in the ring, but no answer was fetched.
    assert lib.mn_app_getopt(r.app, FLOW, 1) == -errno.EAGAIN


def test_what_is_owed_waits_for_room_and_keeps_its_order() -> None:
    r = rig()
    fill(r)
    for flow in (1, 2, 3):
        r.accept_event(flow)
    r.deliver_end(2)
    lib.mn_app_poll(r.app)
    assert not lib.mn_app_prepare_sleep(r.app)
    assert r.sh.app_sleeps == 0
    assert len(r.commands()) == 16
    lib.mn_app_poll(r.app)
    assert r.told() == [
        (lib.MN_CTL_ACCEPT, 1),
        (lib.MN_CTL_ACCEPT, 2),
        (lib.MN_CTL_RELEASE, 2),
        (lib.MN_CTL_ACCEPT, 3),
    ]
    assert lib.mn_app_prepare_sleep(r.app)
    assert r.dead() == 0


def test_a_partly_full_ring_takes_what_fits() -> None:
    r = rig(flows_max=32)
    fill(r)
    flows = list(range(20))
    for flow in flows[:16]:
        r.accept_event(flow)
    lib.mn_app_poll(r.app)
    for flow in flows[16:]:
        r.accept_event(flow)
    lib.mn_app_poll(r.app)
    assert len(r.commands()) == 16
    told = []
    for _ in range(2):
        lib.mn_app_poll(r.app)
        told += r.told()
    assert told == [(lib.MN_CTL_ACCEPT, flow) for flow in flows]


def test_marks_wait_while_the_submit_ring_is_full() -> None:
    r = rig(flows_max=8)  # 32 slots: 16 buffers and two marks for each of 8 flows
    gen = 0
    # A slot used again and again while the engine does not look at the submit ring.
    while r.submit.fill < 32:
        flow = gen << 16
        r.new_flow(flow, STREAM)
        r.close(flow)
        r.deliver_end(flow)
        lib.mn_app_poll(r.app)
        assert r.told() == [(lib.MN_CTL_RELEASE, flow)]
        gen += 1
    flow = gen << 16
    r.new_flow(flow, STREAM)
    assert r.stream_send(flow, b"x") == -errno.EAGAIN
    assert lib.mn_app_shutdown_write(r.app, flow) == 0
    assert r.close(flow, 9) == 0
    assert not lib.mn_app_prepare_sleep(r.app)
    assert len(r.take_submitted()) == 32
    lib.mn_app_poll(r.app)
    assert [(d.flags, d.flow, d.len) for d in r.take_submitted()] == [
        (lib.MN_DESC_FIN, flow, 0),
        (lib.MN_DESC_CLOSE, flow, 9),
    ]


# Sleep.


def test_sleep_is_safe_only_with_nothing_new() -> None:
    r = rig()
    r.new_flow(FLOW)
    assert lib.mn_app_prepare_sleep(r.app)
    assert r.sh.app_sleeps == 1
    lib.mn_app_cancel_sleep(r.app)
    assert r.sh.app_sleeps == 0

    assert r.send(FLOW, b"x") == 0
    r.take_messages()
    assert not lib.mn_app_prepare_sleep(r.app)  # a buffer came back
    assert r.sh.app_sleeps == 0
    lib.mn_app_poll(r.app)
    assert lib.mn_app_prepare_sleep(r.app)

    r.deliver_message(FLOW, b"y")
    assert not lib.mn_app_prepare_sleep(r.app)
    lib.mn_app_poll(r.app)
    # Taken in but not read: whoever sleeps has decided that it is not what it waits for.
    assert lib.mn_app_prepare_sleep(r.app)

    r.event(lib.MN_EVT_SOFT, flow=FLOW, status=-errno.EHOSTUNREACH)
    assert not lib.mn_app_prepare_sleep(r.app)
    lib.mn_app_poll(r.app)
    r.sh.closed = errno.ECONNABORTED
    assert not lib.mn_app_prepare_sleep(r.app)


def test_nothing_stays_unpublished_in_sleep() -> None:
    r = rig(rx_bufs=128)
    r.new_flow(FLOW)
    r.deliver_message(FLOW, b"a")
    r.deliver_message(FLOW, b"b")
    assert r.take() == b"a"
    assert lib.mn_app_send_nopub(r.app, FLOW, b"x", 1) == 0
    assert (r.submit.fill, r.released.fill) == (0, 0)
    r.sh.engine_sleeps = 1
    assert lib.mn_app_prepare_sleep(r.app)
    assert (r.submit.fill, r.released.fill, r.kicks) == (1, 1, 1)


def test_without_a_kick_nobody_is_called() -> None:
    r = rig(with_kick=False)
    r.new_flow(FLOW)
    r.sh.engine_sleeps = 1
    assert r.send(FLOW, b"x") == 0
    assert lib.mn_app_prepare_sleep(r.app)
    assert r.kicks == 0


def test_readiness_bits() -> None:
    r = rig()
    r.new_flow(FLOW)
    assert lib.mn_app_ready(r.app) == lib.MN_READY_SPACE
    r.deliver_message(FLOW, b"")
    assert lib.mn_app_ready(r.app) == lib.MN_READY_SPACE | lib.MN_READY_MSG
    while r.send(FLOW, b"x") == 0:
        pass
    assert lib.mn_app_ready(r.app) == lib.MN_READY_MSG
    r.sh.closed = errno.ENETDOWN
    assert lib.mn_app_ready(r.app) == lib.MN_READY_MSG | lib.MN_READY_DEAD


# A channel that the engine closes.


def test_what_came_before_the_close_is_still_there() -> None:
    r = rig()
    r.new_flow(FLOW)
    r.new_flow(FLOW + 1, STREAM)
    waiting = connect(r)
    answered = connect(r)
    r.deliver_message(FLOW, b"message")
    r.deliver_piece(FLOW + 1, b"bytes")
    connected(r, answered, flow=3)
    r.sh.closed = errno.ESHUTDOWN
    assert r.peek() == (FLOW, 7, 0)
    assert r.dead() == errno.ESHUTDOWN
    assert r.take() == b"message"
    assert r.peek() == -errno.EPIPE
    assert r.take() == -errno.EPIPE
    assert r.stream_recv(FLOW + 1) == b"bytes"
    assert r.stream_recv(FLOW + 1) == -errno.EPIPE
    assert r.result(answered).status == 0
    assert r.result(waiting).status == -errno.EPIPE
    assert r.result(waiting) == -errno.ENOENT
    assert r.send(FLOW, b"x") == -errno.EPIPE
    assert r.stream_send(FLOW + 1, b"x") == -errno.EPIPE
    assert lib.mn_app_shutdown_write(r.app, FLOW + 1) == -errno.EPIPE
    assert connect(r) == -errno.EPIPE
    info = r.info(FLOW)
    assert (info.live, info.error) == (0, errno.EPIPE)
    assert r.close(FLOW) == 0
    assert r.close(FLOW + 1) == 0
    lib.mn_app_flush(r.app)
    assert r.submit.fill == 0
    assert not lib.mn_app_prepare_sleep(r.app)
