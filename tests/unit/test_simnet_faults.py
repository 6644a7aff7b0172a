# SPDX-License-Identifier: MIT
"""Faults of links and hosts, rules, calls on schedule, idleness."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from simnet_kit import MS, NEVER, Net, S

from machnet._native import ffi, lib

HELLO = b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + bytes(46)


def linked(net: Net, **shape: int) -> tuple[int, int, int]:
    a, b = net.raw(), net.raw()
    return a, b, net.link(a, b, **shape)


def numbered(i: int, size: int = 60) -> bytes:
    return HELLO[:14] + i.to_bytes(4, "big") + bytes(size - 18)


def numbers(frames: list[tuple[int, bytes]]) -> list[int]:
    return [int.from_bytes(data[14:18], "big") for _, data in frames]


# ---- links -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        {"loss_ppb": 100_000_000},
        {"duplicate_ppb": 200_000_000, "duplicate_ns": 30_000},
        {"corrupt_ppb": 50_000_000},
        {"reorder_ppb": 100_000_000, "reorder_ns": 300_000},
        {"jitter_ns": 40_000, "latency_kind": 3},
        {"ge_bad_ppb": 20_000_000, "ge_good_ppb": 300_000_000, "ge_loss_bad_ppb": 900_000_000},
        {"bandwidth_bps": 20_000_000, "queue_pkts": 5},
        {
            "loss_ppb": 50_000_000,
            "duplicate_ppb": 50_000_000,
            "corrupt_ppb": 50_000_000,
            "reorder_ppb": 50_000_000,
            "reorder_ns": 900_000,
            "bandwidth_bps": 100_000_000,
            "queue_pkts": 40,
        },
    ],
)
def test_tcp_gets_everything_across(shape: dict[str, int]) -> None:
    with Net() as net:
        a, b = net.pair(**shape)
        b.listen(7)
        flow = a.connect(b, 7)
        sent = [bytes([i]) * (1 + 997 * i) for i in range(60)]
        for data in sent:
            a.send(flow, data)
        assert [b.recv() for _ in sent] == sent
        assert net.advance(600 * S) == 0
        assert net.stats().pool_live == 0


def test_a_copy_comes_later_and_whole_although_the_first_is_corrupted() -> None:
    with Net() as net:
        a, b, _ = linked(
            net, corrupt_ppb=10**9, duplicate_ppb=10**9, duplicate_ns=5 * MS, latency_ns=MS
        )
        net.send(a, HELLO)
        net.advance(10 * MS)
        (first, bad), (second, good) = net.take(b)
        assert (first, second) == (MS, 6 * MS)
        assert good == HELLO
        assert sum((x ^ y).bit_count() for x, y in zip(bad, HELLO, strict=True)) == 1


def test_what_is_held_back_is_overtaken() -> None:
    with Net() as net:
        a, b, link = linked(net, latency_ns=MS, reorder_ppb=10**9, reorder_ns=10 * MS)
        net.send(a, numbered(0))
        net.shape(link, 0, latency_ns=MS)
        for i in range(1, 4):
            net.send(a, numbered(i))
        net.advance(20 * MS)
        assert numbers(net.take(b)) == [1, 2, 3, 0]


def test_a_clog_holds_frames_until_it_ends() -> None:
    with Net() as net:
        a, b, link = linked(net, latency_ns=MS, blocked=2, queue_pkts=30)
        for i in range(40):
            net.send(a, numbered(i))
        assert net.advance(S) == 0
        assert net.take(b) == []
        assert net.link_stats(link).faults[lib.MN_FAULT_QUEUE] == 10
        assert net.idle()[1].frames == 30
        assert lib.mn_simnet_next(net.c) == NEVER
        net.shape(link, 0, latency_ns=MS)
        assert net.advance(MS) == 0
        frames = net.take(b)
        assert numbers(frames) == list(range(30))
        assert {t for t, _ in frames} == {S + MS}
        assert net.idle()[0]


def test_a_partition_loses_what_is_sent_from_then_on() -> None:
    with Net() as net:
        a, b, link = linked(net, latency_ns=MS)
        net.send(a, numbered(0))
        net.shape(link, 0, latency_ns=MS, blocked=1)
        net.send(a, numbered(1))
        net.send(b, numbered(2))
        net.advance(5 * MS)
        assert numbers(net.take(b)) == [0]
        assert numbers(net.take(a)) == [2]  # the other way is open


# ---- hosts -----------------------------------------------------------------------------------


def test_a_paused_host_hears_nothing_and_catches_up() -> None:
    with Net() as net:
        a, b = net.pair(latency_ns=MS)
        b.listen(7)
        flow = a.connect(b, 7)
        assert lib.mn_simnet_pause(net.c, b.node, True) == 0
        a.send(flow, b"late")
        assert b.recv(timeout_ns=S) is None
        assert net.stats().pool_live > 0  # its ring holds what came
        assert lib.mn_simnet_pause(net.c, b.node, False) == 0
        assert b.recv() == b"late"
        assert lib.mn_simnet_pause(net.c, 99, True) == -errno.EINVAL


def test_the_ring_of_a_paused_host_fills_up() -> None:
    with Net() as net:
        raw, host = net.raw(), net.host()
        link = net.link(raw, host)
        lib.mn_simnet_pause(net.c, host.node, True)
        for _ in range(300):
            net.send(raw, HELLO)
        net.advance(MS)
        assert net.link_stats(link).faults[lib.MN_FAULT_QUEUE] == 44
        assert net.idle()[0]  # what it has does not count while it stands still
        lib.mn_simnet_pause(net.c, host.node, False)
        net.advance(MS)
        assert host.counter("rx_frames") == 256


def test_timers_of_a_paused_host_stand_still() -> None:
    with Net() as net:
        a, b = net.pair(latency_ns=MS)
        b.listen(7)
        flow = a.connect(b, 7)
        lib.mn_simnet_down(net.c, b.node, True)
        a.send(flow, b"x")
        net.advance(10 * MS)
        before = a.counter("tcp_rto")
        lib.mn_simnet_pause(net.c, a.node, True)
        net.advance(5 * S)
        assert lib.mn_simnet_next(net.c) == NEVER
        assert a.counter("tcp_rto") == before
        lib.mn_simnet_pause(net.c, a.node, False)
        net.advance(MS)
        assert a.counter("tcp_rto") == before + 1


def test_a_host_that_crashed_is_gone_and_a_new_one_takes_its_place() -> None:
    with Net() as net:
        a, b = net.pair(latency_ns=MS)
        b.listen(7)
        flow = a.connect(b, 7)
        a.send(flow, b"on its way")
        net.advance(MS // 2)
        assert lib.mn_simnet_down(net.c, b.node, True) == 0
        b.end()
        net.advance(S)
        dropped = net.stats().dropped
        assert dropped > 0
        assert lib.mn_simnet_down(net.c, b.node, False) == 0
        b.boot()
        b.listen(7)
        again = a.connect(b, 7)
        a.send(again, b"hello again")
        assert b.recv() == b"hello again"
        # The old connection is answered by a reset.
        net.advance(10 * S)
        assert net.idle()[1].timers == 0


def test_frames_to_a_host_without_an_engine_are_lost() -> None:
    with Net(record_pkts=16) as net:
        raw, host = net.raw(), net.node()
        link = net.link(raw, host)
        net.send(raw, HELLO)
        net.advance(1)
        assert net.link_stats(link).faults[lib.MN_FAULT_DOWN] == 1
        (_, _), (entry, _) = net.records()
        assert net.fate(entry) == "host down"
        assert lib.mn_simnet_lost(entry)


@pytest.mark.parametrize("ppb", [-900_000_000, -100_000_000, 50_000, 500_000_000])
def test_a_clock_that_runs_at_another_rate(ppb: int) -> None:
    with Net() as net:
        a, b = net.pair(latency_ns=MS)
        assert lib.mn_simnet_skew(net.c, a.node, ppb, 0) == 0
        assert net.advance(10 * S) == 0
        assert lib.mn_simnet_local(net.c, a.node) == 10 * S * (10**9 + ppb) // 10**9
        assert lib.mn_simnet_local(net.c, b.node) == 10 * S
        # Its timers run by it: the first retransmission of a SYN comes after a second of its own.
        lib.mn_simnet_down(net.c, b.node, True)
        lib.mn_host_seeded(1, ffi.new("uint8_t[16]"), 16)
        assert lib.mn_stack_neighbor(a.stack, b.ip, net.mac(b.node)) == 0
        start = net.now
        lib.mn_chan_connect(a.attach(), a.ip, 0, b.ip, 7, lib.MN_PROTO_TCP, 0)
        net.settle()
        second = S * 10**9 // (10**9 + ppb)
        net.advance(second - second // 1000)
        assert a.counter("tcp_rto") == 0
        net.advance(second // 500)
        assert a.counter("tcp_rto") == 1
        assert net.now > start


def test_a_clock_that_jumps() -> None:
    with Net() as net:
        a, _ = net.pair()
        net.advance(S)
        assert lib.mn_simnet_skew(net.c, a.node, 0, 3600 * S) == 0
        assert lib.mn_simnet_local(net.c, a.node) == 3601 * S
        net.advance(S)
        assert lib.mn_simnet_local(net.c, a.node) == 3602 * S
        assert lib.mn_simnet_when(net.c, a.node, 3603 * S) == 3 * S
        assert lib.mn_simnet_when(net.c, a.node, NEVER) == NEVER
        # A machine that boots starts anew.
        a.end()
        a.boot()
        assert lib.mn_simnet_local(net.c, a.node) == 2 * S


def test_skews_out_of_range_are_refused() -> None:
    with Net() as net:
        a, _ = net.pair()
        switch = net.switch()
        for node, ppb, jump in [
            (a.node, 900_000_001, 0),
            (a.node, -900_000_001, 0),
            (a.node, 0, 1 << 63),
            (switch, 0, 0),
            (99, 0, 0),
        ]:
            assert lib.mn_simnet_skew(net.c, node, ppb, jump) == -errno.EINVAL
        assert lib.mn_simnet_skew(net.c, a.node, 0, 1 << 62) == 0
        assert lib.mn_simnet_skew(net.c, a.node, 0, 1 << 62) == -errno.EINVAL
        assert net.advance(S) == 0


# ---- rules -----------------------------------------------------------------------------------


def test_rules_decide_frame_by_frame() -> None:
    def rule(f: Any) -> int:
        i = int.from_bytes(bytes(f.frame[14:18]), "big")
        if i == 1:
            return int(lib.MN_RULE_DROP)
        if i == 2:
            return int(lib.MN_RULE_DUPLICATE)
        if i == 3:
            f.delay_ns = 10 * MS
        if i == 4:
            new = numbered(44, 70)
            ffi.memmove(f.frame, new, len(new))
            f.len = len(new)
            return int(lib.MN_RULE_REPLACED)
        return int(lib.MN_RULE_PASS)

    with Net(record_pkts=64) as net:
        a, b, link = linked(net, latency_ns=MS)
        net.rule(link, 0, rule)
        for i in range(6):
            net.send(a, numbered(i))
        net.advance(20 * MS)
        frames = net.take(b)
        assert numbers(frames) == [0, 2, 2, 44, 5, 3]
        assert frames[-1][0] == 11 * MS
        assert len(frames[3][1]) == 70
        fates = [net.fate(entry) for entry, _ in net.records() if entry.out]
        assert fates == [
            "",
            "rule: dropped",
            "rule: duplicated",
            "rule: duplicated",
            "rule, delayed 10.000 ms",
            "rule: replaced",
            "",
        ]
        assert net.link_stats(link).faults[lib.MN_FAULT_RULE] == 5
        assert lib.mn_simnet_rule(net.c, link, 2, ffi.NULL, ffi.NULL) == 0
        assert lib.mn_simnet_rule(net.c, 99, 2, ffi.NULL, ffi.NULL) == -errno.EINVAL
        net.send(a, numbered(1))
        net.advance(2 * MS)
        assert numbers(net.take(b)) == [1]


def test_a_rule_that_fails_ends_the_step_and_the_network_goes_on() -> None:
    with Net() as net:
        a, b = net.pair(latency_ns=MS)
        calls = []

        def rule(f: Any) -> int:
            calls.append(f.now_ns)
            if len(calls) == 1:
                raise ValueError
            return int(lib.MN_RULE_PASS)

        net.rule(0, 0, rule)
        b.listen(7)
        lib.mn_chan_connect(a.attach(), a.ip, 0, b.ip, 7, lib.MN_PROTO_TCP, 30_000)
        assert net.advance(S) == -errno.ECANCELED
        assert net.error == "a rule failed on h1>h2"
        assert net.now == 0
        lib.mn_simnet_rule(net.c, 0, 2, ffi.NULL, ffi.NULL)
        a.connect(b, 7)


@pytest.mark.parametrize("answer", [-1, 99, lib.MN_RULE_ABORT, "long"])
def test_a_rule_that_answers_nonsense_has_failed(answer: int | str) -> None:
    def rule(f: Any) -> int:
        if answer == "long":
            f.len = f.room + 1
            return int(lib.MN_RULE_REPLACED)
        return int(answer)

    with Net() as net:
        a, b, link = linked(net)
        net.rule(link, 0, rule)
        assert net.send(a, HELLO) == -errno.ECANCELED
        net.at(MS, lambda _: net.send(a, HELLO))
        assert net.advance(2 * MS) == -errno.ECANCELED
        assert net.now == MS
        assert net.advance(MS) == 0
        assert net.take(b) == []
        assert net.stats().pool_live == 0


def test_a_rule_may_change_the_network_but_not_step_it() -> None:
    with Net() as net:
        a, b, link = linked(net, latency_ns=MS)
        said = []

        def rule(f: Any) -> int:
            said.append(lib.mn_group_settle(net.group))
            said.append(lib.mn_group_advance(net.group, S))
            net.shape(link, 0, latency_ns=5 * MS)
            lib.mn_simnet_rule(net.c, link, 2, ffi.NULL, ffi.NULL)
            net.link(net.raw(), net.raw())
            return int(lib.MN_RULE_PASS)

        net.rule(link, 0, rule)
        net.at(MS, lambda _: net.send(a, numbered(1)))
        assert net.advance(10 * MS) == 0
        assert said == [-errno.EBUSY, -errno.EBUSY]
        assert net.take(b) == [(6 * MS, numbered(1))]


# ---- calls -----------------------------------------------------------------------------------


def test_calls_come_in_order_with_frames() -> None:
    with Net() as net:
        a, b, _ = linked(net, latency_ns=5 * MS)
        seen: list[object] = []
        net.at(5 * MS, lambda arg: seen.append((arg, net.now, len(net.take(b)))), 1)
        net.send(a, HELLO)
        net.at(5 * MS, lambda arg: seen.append((arg, net.now, len(net.take(b)))), 2)
        net.at(3 * MS, lambda arg: seen.append((arg, net.now)), 3)
        assert net.idle()[1].calls == 3
        assert net.advance(10 * MS) == 0
        assert seen == [(3, 3 * MS), (1, 5 * MS, 0), (2, 5 * MS, 1)]
        assert net.idle()[0]


def test_calls_can_be_taken_back_once() -> None:
    with Net() as net:
        seen: list[int] = []
        ids = [net.at(MS * i, seen.append, i) for i in range(1, 101)]
        assert all(i > 0 for i in ids)
        for i in ids[::2]:
            assert lib.mn_simnet_cancel(net.c, i) == 0
            assert lib.mn_simnet_cancel(net.c, i) == -errno.ENOENT
        assert net.advance(50 * MS) == 0
        assert lib.mn_simnet_cancel(net.c, ids[1]) == -errno.ENOENT
        assert net.advance(S) == 0
        assert seen == list(range(2, 101, 2))
        for nonsense in (0, -1, 1 << 40, 5):
            assert lib.mn_simnet_cancel(net.c, nonsense) == -errno.ENOENT
        # A place that is used again has another name.
        again = net.at(2 * S, seen.append)
        assert again not in ids
        assert lib.mn_simnet_cancel(net.c, ids[-1]) == -errno.ENOENT


def test_a_call_in_the_past_comes_now() -> None:
    with Net() as net:
        net.advance(S)
        seen: list[int] = []
        net.at(5, lambda _: seen.append(net.now))
        assert lib.mn_simnet_next(net.c) == S
        assert net.settle() == 0
        assert seen == [S]


def test_a_call_may_crash_and_restart_hosts() -> None:
    with Net() as net:
        a, b = net.pair(latency_ns=MS)
        b.listen(7)
        flow = a.connect(b, 7)
        said = []

        def crash(_: int) -> None:
            lib.mn_simnet_down(net.c, b.node, True)
            b.end()
            said.append(net.settle())

        def restart(_: int) -> None:
            lib.mn_simnet_down(net.c, b.node, False)
            b.boot()
            b.attach()

        net.at(S, crash)
        net.at(2 * S, restart)
        assert net.advance(3 * S) == 0
        assert said == [-errno.EBUSY]
        b.listen(7)
        flow = a.connect(b, 7)
        a.send(flow, b"new")
        assert b.recv() == b"new"


def test_a_call_of_nothing_interrupts_the_step() -> None:
    with Net() as net:
        lib.mn_simnet_at(net.c, MS, ffi.NULL, ffi.NULL, 0)
        assert lib.mn_group_advance(net.group, S) == -errno.EINTR
        assert net.now == MS
        assert lib.mn_group_advance(net.group, S) == 0
        a, _ = net.pair()
        lib.mn_simnet_at(net.c, 2 * S, ffi.NULL, ffi.NULL, 0)
        assert lib.mn_chan_wait(a.attach(), 60 * S) == -errno.EINTR
        assert net.now == 2 * S


# ---- replays ---------------------------------------------------------------------------------


def lossy(net: Net, only: list[tuple[int, int, int, int]] | None = None) -> list[int]:
    a, b, _ = linked(
        net,
        latency_ns=MS,
        loss_ppb=200_000_000,
        reorder_ppb=100_000_000,
        reorder_ns=30 * MS,
        duplicate_ppb=100_000_000,
        corrupt_ppb=100_000_000,
        jitter_ns=10_000,
        latency_kind=1,
    )
    if only is not None:
        ids = ffi.new("struct mn_fault_id[]", max(len(only), 1))
        for slot, (link, direction, kind, number) in zip(ids, only, strict=False):
            slot.link, slot.dir, slot.kind, slot.frame_no = link, direction, kind, number
        assert lib.mn_simnet_only(net.c, ids, len(only)) == 0
    for i in range(100):
        net.send(a, numbered(i))
        net.advance(MS)
    net.advance(S)
    return [len(net.take(b)), *[kind for *_, kind, _ in net.faults()]]


def test_only_the_faults_that_are_listed_happen() -> None:
    with Net() as net:
        lossy(net)
        found = net.faults()
        assert net.faults(len(found)) == []
        assert net.faults(5) == found[5:]
        assert {kind for _, _, kind, _ in found} == {1, 3, 4, 5}
    with Net() as net:
        lossy(net, found[::-1])
        assert net.faults() == found
    some = found[1::3]
    with Net() as net:
        lossy(net, some)
        assert net.faults() == some
    with Net() as net:
        lossy(net, [])
        assert net.faults() == []
        assert net.link_stats(0).faults[lib.MN_FAULT_JITTER] == 0
        assert lib.mn_simnet_only(net.c, ffi.NULL, 0) == 0
        lossy(net)
        assert net.faults() != []
        assert lib.mn_simnet_only(net.c, ffi.NULL, 1) == -errno.EINVAL


# ---- idleness --------------------------------------------------------------------------------


def test_a_network_is_idle_when_only_housekeeping_is_left() -> None:
    with Net() as net:
        a, b = net.pair(latency_ns=MS)
        assert net.idle()[0]
        b.listen(7)
        flow = a.connect(b, 7)
        a.send(flow, b"x")
        net.settle()
        idle, what = net.idle()
        assert not idle
        assert what.frames > 0
        assert b.recv() == b"x"
        idle, what = net.idle()
        assert not idle  # the acknowledgement is delayed
        assert what.timers == 2
        assert what.node == a.node
        net.advance(100 * MS)
        assert net.idle()[0]


def test_an_unanswered_question_is_no_idleness() -> None:
    with Net() as net:
        a, b = net.pair()
        lib.mn_simnet_down(net.c, b.node, True)
        lib.mn_chan_connect(a.attach(), a.ip, 0, b.ip, 7, lib.MN_PROTO_TCP, 5000)
        net.settle()
        net.advance(MS)
        idle, what = net.idle()
        assert not idle
        assert (what.frames, what.node) == (0, a.node)
        net.advance(20 * S)
        assert net.idle()[0]


def test_a_host_that_waits_for_ever_is_idle() -> None:
    with Net() as net:
        a, b = net.pair()
        b.listen(7)
        a.connect(b, 7)
        net.advance(5 * S)  # the addresses that were learnt by the way are confirmed
        assert net.idle()[0]
        assert net.advance(3600 * S) == 0
