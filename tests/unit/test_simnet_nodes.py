# SPDX-License-Identifier: MIT
"""Switches, hosts with several links, and scripted hosts."""

from __future__ import annotations

import errno
import itertools

from simnet_kit import MS, Host, Net, S

from machnet._native import ffi, lib

BROADCAST = b"\xff" * 6


def frame(dst: bytes, src: bytes, payload: bytes = b"", size: int = 60) -> bytes:
    """An Ethernet frame of a type for experiments."""
    return (dst + src + b"\x88\xb5" + payload).ljust(size, b"\0")


def exchange(a: Host, b: Host, port: int = 7) -> None:
    b.listen(port)
    flow = a.connect(b, port)
    a.send(flow, b"there")
    assert b.recv() == b"there"


def test_hosts_talk_across_a_switch() -> None:
    with Net() as net:
        switch = net.switch()
        hosts = [net.host() for _ in range(4)]
        for host in hosts:
            net.link(host, switch, latency_ns=1000)
        exchange(hosts[0], hosts[1])
        exchange(hosts[2], hosts[3])
        exchange(hosts[3], hosts[0])


def test_a_switch_floods_what_it_does_not_know_and_forwards_what_it_knows() -> None:
    with Net() as net:
        switch = net.switch()
        a, b, c = (net.raw() for _ in range(3))
        for raw in (a, b, c):
            net.link(raw, switch, latency_ns=100)
        assert net.send(a, frame(net.mac(b), net.mac(a))) == 0
        net.advance(MS)
        assert [len(net.take(x)) for x in (a, b, c)] == [0, 1, 1]
        assert net.send(b, frame(net.mac(a), net.mac(b))) == 0
        net.advance(MS)
        assert [len(net.take(x)) for x in (a, b, c)] == [1, 0, 0]
        assert net.send(c, frame(BROADCAST, net.mac(c))) == 0
        net.advance(MS)
        assert [len(net.take(x)) for x in (a, b, c)] == [1, 1, 0]
        # An address that moves is found at its new place.
        assert net.send(c, frame(BROADCAST, net.mac(a))) == 0
        net.advance(MS)
        assert [len(net.take(x)) for x in (a, b, c)] == [1, 1, 0]
        assert net.send(b, frame(net.mac(a), net.mac(b))) == 0
        net.advance(MS)
        assert [len(net.take(x)) for x in (a, b, c)] == [0, 0, 1]
        assert net.stats().pool_live == 0


def test_a_frame_to_where_it_came_from_goes_nowhere() -> None:
    with Net() as net:
        switch = net.switch()
        a, b = net.raw(), net.raw()
        for raw in (a, b):
            net.link(raw, switch)
        net.send(a, frame(BROADCAST, net.mac(a)))
        net.advance(MS)
        net.take(b)
        net.send(a, frame(net.mac(a), net.mac(a)))
        net.advance(MS)
        assert net.take(a) == net.take(b) == []
        assert net.stats().pool_live == 0


def test_loops_of_switches_are_harmless() -> None:
    with Net() as net:
        switches = [net.switch() for _ in range(4)]
        for i, one in enumerate(switches):
            for other in switches[i + 1 :]:
                net.link(one, other, latency_ns=1000)
        net.link(switches[0], switches[1])  # and one more beside
        raws = [net.raw() for _ in switches]
        for raw, switch in zip(raws, switches, strict=True):
            net.link(raw, switch)
        net.send(raws[2], frame(BROADCAST, net.mac(raws[2])))
        assert net.advance(S) == 0
        assert [len(net.take(raw)) for raw in raws] == [1, 1, 0, 1]
        net.send(raws[0], frame(net.mac(raws[2]), net.mac(raws[0])))
        assert net.advance(S) == 0
        assert [len(net.take(raw)) for raw in raws] == [0, 0, 1, 0]


def test_switches_in_a_line_carry_tcp() -> None:
    with Net() as net:
        switches = [net.switch() for _ in range(5)]
        for one, other in itertools.pairwise(switches):
            net.link(one, other, latency_ns=MS)
        a, b = net.host(), net.host()
        net.link(a, switches[0])
        net.link(switches[-1], b)
        exchange(a, b)
        assert net.now == 4 * 5 * MS - 4 * MS + 4 * MS  # ARP and SYN there and back, and the data


def test_a_host_with_two_links_learns_which_one_to_use() -> None:
    with Net() as net:
        middle, left, right = net.host(), net.host(), net.host()
        first, second = net.link(middle, left), net.link(middle, right)
        exchange(middle, left)
        exchange(middle, right)
        exchange(left, middle)
        arp = 2  # a question to all goes over both links
        assert net.link_stats(first).frames > arp
        assert net.link_stats(second).frames > arp
        assert all(host.counter("drop_eth_dst") == 0 for host in (left, right))


def test_a_host_does_not_forward() -> None:
    with Net() as net:
        left, middle, right = net.raw(), net.host(), net.raw()
        net.link(left, middle)
        net.link(middle, right)
        net.send(left, frame(net.mac(right), net.mac(left)))
        net.send(left, frame(BROADCAST, net.mac(left)))
        net.advance(MS)
        assert net.take(right) == []


def test_many_addresses_behind_a_switch() -> None:
    with Net() as net:
        switch = net.switch()
        many, one = net.raw(), net.raw()
        net.link(many, switch)
        net.link(one, switch)
        for i in range(70_000):
            net.send(many, frame(BROADCAST, b"\x02" + i.to_bytes(5, "big")))
            if i % 1000 == 0:
                net.advance(1000)
                net.take(one)
        net.advance(1000)
        net.take(one)
        net.send(one, frame(b"\x02" + (5).to_bytes(5, "big"), net.mac(one)))
        net.advance(1000)
        assert len(net.take(many)) == 1


def test_a_scripted_host_sends_and_takes_with_the_time() -> None:
    with Net() as net:
        a, b = net.raw(), net.raw()
        net.link(a, b, latency_ns=7 * MS)
        sent = frame(net.mac(b), net.mac(a), b"x", 777)
        assert net.send(a, sent) == 0
        assert net.take(b) == []
        assert net.advance(6 * MS) == 0
        assert net.take(b) == []
        assert net.advance(MS) == 0
        assert net.take(b) == [(7 * MS, sent)]
        assert net.take(b) == []


def test_scripted_hosts_are_checked() -> None:
    with Net() as net:
        a, b, host = net.raw(), net.raw(mtu=100), net.node()
        assert net.send(host, b"x" * 60) == -errno.EINVAL
        assert net.send(99, b"x" * 60) == -errno.EINVAL
        assert net.send(a, b"") == -errno.EINVAL
        assert net.send(a, b"x" * 1515) == -errno.EMSGSIZE
        assert net.send(a, b"x" * 60) == -errno.ENETDOWN
        link = net.link(a, b)
        assert net.send(a, b"x" * 115) == 0
        assert net.send(a, b"x" * 114) == 0
        assert net.send(a, b"x" * 3) == 0
        assert net.advance(1) == 0
        assert net.link_stats(link).faults[lib.MN_FAULT_MTU] == 1
        buf = ffi.new("uint8_t[]", 10)
        assert lib.mn_simnet_take(net.c, b, buf, 10, ffi.NULL) == -errno.EMSGSIZE
        assert lib.mn_simnet_take(net.c, host, buf, 10, ffi.NULL) == -errno.EINVAL
        assert [len(data) for _, data in net.take(b)] == [114, 3]
        lib.mn_simnet_down(net.c, a, True)
        assert net.send(a, b"x" * 60) == -errno.ENETDOWN


def test_what_a_scripted_host_does_not_take_is_bounded() -> None:
    with Net(pool_pkts=10_000) as net:
        a, b = net.raw(), net.raw()
        link = net.link(a, b)
        for _ in range(9000):
            assert net.send(a, b"x" * 60) == 0
        net.advance(1)
        assert net.link_stats(link).delivered == 8192
        assert net.link_stats(link).faults[lib.MN_FAULT_QUEUE] == 808
        for _ in range(10_000 - 8192):
            assert net.send(a, b"x" * 60) == 0
        assert net.send(a, b"x" * 60) == -errno.ENOBUFS
        assert len(net.take(b)) == 8192


def test_frames_that_wait_everywhere_are_freed_with_the_network() -> None:
    with Net() as net:
        a, b = net.raw(), net.raw()
        net.link(a, b, latency_ns=MS, jitter_ns=MS, latency_kind=1)
        held = net.link(a, b, blocked=2)
        for _ in range(10):
            net.send(a, frame(BROADCAST, net.mac(a)))
        net.advance(MS)
        net.link_stats(held)
        assert net.stats().pool_live > 0
