# SPDX-License-Identifier: MIT
"""The network in C: nodes, links, hosts, time."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from simnet_kit import MS, NEVER, Host, Net, S

from machnet._native import ffi, lib


def exchange(a: Host, b: Host, n: int = 20, size: int = 5000) -> None:
    """Messages each way, checked."""
    b.listen(7)
    flow = a.connect(b, 7)
    for i in range(n):
        data = bytes([i]) * size
        a.send(flow, data)
        assert b.recv() == data


def test_two_hosts_talk_in_virtual_time() -> None:
    with Net() as net:
        a, b = net.pair(latency_ns=MS)
        b.listen(7)
        assert net.now == 0
        flow = a.connect(b, 7)
        assert net.now == 4 * MS  # ARP there and back, SYN there and back
        a.send(flow, b"hello")
        assert b.recv() == b"hello"
        assert net.now == 5 * MS


def test_megabytes_arrive_at_the_rate_of_the_link() -> None:
    with Net() as net:
        a, b = net.pair(bandwidth_bps=1_000_000_000)
        exchange(a, b, n=50, size=50_000)
        sent = 50 * 50_000
        assert sent * 8 <= net.now < sent * 8 * 2
        assert net.stats().dropped == 0


def test_nothing_stays_behind() -> None:
    with Net() as net:
        a, b = net.pair()
        exchange(a, b)
        assert net.advance(10 * S) == 0
        stats = net.stats()
        assert stats.pool_live == 0
        assert stats.frames == stats.delivered


def test_time_goes_exactly_where_it_is_sent() -> None:
    with Net() as net:
        net.pair()
        assert net.advance(123_457) == 0
        assert net.now == 123_457
        assert lib.mn_simnet_next(net.c) == NEVER


def test_a_wait_without_end_in_which_nothing_can_happen_is_a_deadlock() -> None:
    with Net() as net:
        a, _ = net.pair()
        a.attach()
        assert lib.mn_chan_wait(a.chan, NEVER) == -errno.EDEADLK


def test_a_wait_ends_at_its_timeout() -> None:
    with Net() as net:
        a, _ = net.pair()
        a.attach()
        assert lib.mn_chan_wait(a.chan, 7 * MS) == 0
        assert net.now == 7 * MS


def test_only_what_was_touched_is_polled() -> None:
    with Net() as net:
        a, b = net.pair()
        for _ in range(50):
            net.host()
        net.settle()
        before = net.stats().polls
        exchange(a, b, n=10, size=100)
        with_many = net.stats().polls - before
    with Net() as net:
        a, b = net.pair()
        net.settle()
        before = net.stats().polls
        exchange(a, b, n=10, size=100)
        assert net.stats().polls - before == with_many


def test_the_same_seed_and_calls_give_the_same_frames() -> None:
    def run(seed: int) -> list[tuple[int, int, bytes]]:
        with Net(seed=seed, record_pkts=4096) as net:
            a, b = net.pair(loss_ppb=50_000_000, jitter_ns=20_000, latency_kind=1)
            exchange(a, b)
            return [(entry.t_ns, entry.faults, frame) for entry, frame in net.records()]

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize(
    "config",
    [
        {"pool_pkts": 1 << 21},
        {"frame_max": 100},
        {"frame_max": 70_000},
        {"record_pkts": 1 << 21},
        {"record_pkts": 1, "record_snap": 127},
    ],
)
def test_a_network_with_a_number_out_of_range_is_refused(config: dict[str, int]) -> None:
    with pytest.raises(OSError, match="Invalid"):
        Net(**config)


def test_nodes_are_checked() -> None:
    with Net() as net:
        null = ffi.NULL
        assert lib.mn_simnet_host(net.c, b"a", 0, null) == 0
        assert lib.mn_simnet_host(net.c, b"a", 0, null) == -errno.EEXIST
        assert lib.mn_simnet_switch(net.c, b"a") == -errno.EEXIST
        assert lib.mn_simnet_host(net.c, b"", 0, null) == -errno.EINVAL
        assert lib.mn_simnet_host(net.c, null, 0, null) == -errno.EINVAL
        assert lib.mn_simnet_host(net.c, b"x" * 64, 0, null) == -errno.EINVAL
        assert lib.mn_simnet_host(net.c, b"b", 67, null) == -errno.EINVAL
        assert lib.mn_simnet_host(net.c, b"b", 2048, null) == -errno.EINVAL
        assert lib.mn_simnet_host(net.c, b"b", 0, bytes.fromhex("01005e000001")) == -errno.EINVAL
        assert lib.mn_simnet_host(net.c, b"b", 0, bytes.fromhex("024d4e000001")) == -errno.EEXIST
        assert lib.mn_simnet_nic(net.c, 1) == null
        assert lib.mn_simnet_nic(net.c, 0) != null


def test_links_are_checked_and_named() -> None:
    with Net() as net:
        a, b = net.node(), net.node()
        shape = ffi.new("struct mn_shape *")
        bad = ffi.new("struct mn_shape *", {"loss_ppb": 1_000_000_001})
        null = ffi.NULL
        for args in [(a, a, shape, null), (a, 9, shape, null), (a, b, null, null)]:
            assert lib.mn_simnet_link(net.c, *args) == -errno.EINVAL
        assert lib.mn_simnet_link(net.c, a, b, bad, null) == -errno.EINVAL
        assert lib.mn_simnet_link(net.c, a, b, shape, bad) == -errno.EINVAL
        assert [net.link(a, b), net.link(b, a)] == [0, 1]
        names = [ffi.string(lib.mn_simnet_dir_name(net.c, x, d)) for x in (0, 1) for d in (0, 1)]
        assert names == [b"h1>h2", b"h2>h1", b"h2>h1#2", b"h1>h2#2"]
        assert lib.mn_simnet_dir_name(net.c, 2, 0) == null
        assert lib.mn_simnet_shape(net.c, 0, 3, shape) == -errno.EINVAL
        assert lib.mn_simnet_shape(net.c, 2, 0, shape) == -errno.EINVAL
        assert lib.mn_simnet_shape(net.c, 0, 2, bad) == -errno.EINVAL
        net.shape(0, 1, latency_ns=5)
        assert lib.mn_simnet_get_shape(net.c, 0, 0, shape) == 0
        assert shape.latency_ns == 0
        assert lib.mn_simnet_get_shape(net.c, 0, 1, shape) == 0
        assert shape.latency_ns == 5
        assert lib.mn_simnet_get_shape(net.c, 0, 2, shape) == -errno.EINVAL


def test_binding_is_checked() -> None:
    with Net() as net:
        a, b = net.pair()
        switch = net.switch()
        assert lib.mn_simnet_bind(net.c, a.node, b.stack) == -errno.EINVAL
        assert lib.mn_simnet_bind(net.c, switch, ffi.NULL) == -errno.EINVAL
        assert lib.mn_simnet_bind(net.c, 99, ffi.NULL) == -errno.EINVAL
        third = net.node()
        assert lib.mn_simnet_bind(net.c, third, ffi.NULL) == 0
        assert lib.mn_simnet_bind(net.c, b.node, ffi.NULL) == 0
        assert lib.mn_simnet_bind(net.c, a.node, b.stack) == -errno.EBUSY
        assert lib.mn_simnet_bind(net.c, b.node, b.stack) == 0
        exchange(a, b, n=2)


def test_hosts_that_keep_each_other_busy_at_one_moment_are_found_out() -> None:
    with Net(instant_max=1000) as net:
        first, second = net.raw(), net.raw()
        link = net.link(first, second)

        net.at(MS, lambda _: [net.send(first, b"\xff" * 60) for _ in range(1100)])
        assert net.advance(2 * MS) == -errno.ELOOP
        assert "1000" in net.error
        assert net.now == MS
        assert net.advance(2 * MS) == 0
        assert net.link_stats(link).delivered == 1100


def test_the_end_of_time_stops_a_step_and_a_wait() -> None:
    with Net(end_ns=10 * MS) as net:
        a, _ = net.pair()
        a.attach()
        assert net.advance(11 * MS) == -errno.ETIME
        assert net.now == 10 * MS
        assert "10000000" in net.error
        assert lib.mn_chan_wait(a.chan, MS) == -errno.ETIME
        assert net.advance(0) == 0


def test_a_stack_of_a_network_is_not_polled_past_its_events() -> None:
    with Net() as net:
        a, _ = net.pair()
        assert lib.mn_stack_poll(a.stack, 5 * MS) == -errno.EINVAL
        assert lib.mn_stack_poll(a.stack, 0) == 0


def test_a_thousand_hosts_take_no_descriptors() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    with Net() as net:
        for _ in range(20):
            net.host().attach()
        assert descriptors() == before
        assert lib.mn_chan_fd(net.all[0].chan) >= 0
        assert descriptors() == before + 1


def test_a_frame_finds_a_pool_that_is_empty_and_the_host_tries_again() -> None:
    with Net(pool_pkts=24) as net:
        a, b = net.pair(bandwidth_bps=100_000_000, latency_ns=5 * MS)
        exchange(a, b, n=20, size=60_000)
        assert a.counter("drop_tx_nobuf") > 0


@pytest.mark.parametrize("end_ns", [0, 1 << 62, NEVER - 1, NEVER])
def test_time_ends_before_sums_of_times_overflow(end_ns: int) -> None:
    with Net(end_ns=end_ns) as net:
        a, b = net.pair()
        assert net.advance((1 << 62) - S) == 0
        exchange(a, b, n=2)
        assert net.advance(1 << 63) == -errno.ETIME
        assert net.now == 1 << 62
