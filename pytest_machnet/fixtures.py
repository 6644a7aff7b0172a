# SPDX-License-Identifier: MIT
"""The fixtures. None is automatic; all of one test share its lab."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_machnet import cases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from machnet.channel import Channel
    from machnet.sim.network import Network
    from machnet.sim.nodes import Host
    from machnet.testing.peer import RawPeer
    from pytest_machnet.labs import Clock, Lab, Pcap
    from pytest_machnet.peers import PosixPeer


@pytest.fixture
def _machnet_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    from pytest_machnet.guard import Guard
    from pytest_machnet.labs import open_lab

    item = request.node
    config = request.config
    config.stash[cases.RUN].used = True
    case = cases.make_case(item)
    lab = open_lab(case)
    item.stash[cases.LAB] = lab
    item.stash[cases.FAILED] = False  # it may be run again
    limit_s = case.settings["guard"]

    def current() -> Lab:
        # With hypothesis there is another one for each example.
        last: Lab = item.stash.get(cases.LAB, lab)
        return last

    try:
        if case.simulated and limit_s > 0:
            guard = Guard(limit_s, lambda: current().progress(), lambda: current().why_stuck())
            config.stash[cases.RELEASE] = guard.release
            with guard.watching():
                yield lab
        else:
            yield lab
        if not item.stash.get(cases.FAILED, False):
            lab.check_leaks()
    finally:
        last = current()
        if last is not lab:
            last.close()
        lab.close()


@pytest.fixture
def machnet_net(_machnet_lab: Lab) -> Network:
    """A fresh simulated network (machnet.sim.Network), seeded for this test."""
    net: Network = _machnet_lab.fixture("machnet_net")
    return net


@pytest.fixture
def machnet_host(_machnet_lab: Lab) -> Callable[..., Host]:
    """A function that makes hosts on the test's network: arguments ip, name, and the stack's."""
    factory: Callable[..., Host] = _machnet_lab.fixture("machnet_host")
    return factory


@pytest.fixture
def machnet_channel(_machnet_lab: Lab) -> Callable[..., Channel]:
    """A function that attaches channels to the local stack: arguments as Stack.attach."""
    factory: Callable[..., Channel] = _machnet_lab.fixture("machnet_channel")
    return factory


@pytest.fixture
def machnet_peer(_machnet_lab: Lab) -> Any:
    """A second machnet host across the link: ip, attach(), socket(), stack."""
    return _machnet_lab.fixture("machnet_peer")


@pytest.fixture
def posix_peer(_machnet_lab: Lab) -> PosixPeer:
    """A Linux host with ordinary sockets, at the other end of the NIC, and in real time."""
    peer: PosixPeer = _machnet_lab.fixture("posix_peer")
    return peer


@pytest.fixture
def raw_peer(_machnet_lab: Lab) -> RawPeer:
    """A scripted host that sends and expects packets, in virtual time (machnet.testing.RawPeer)."""
    peer: RawPeer = _machnet_lab.fixture("raw_peer")
    return peer


@pytest.fixture
def machnet_clock(_machnet_lab: Lab) -> Clock:
    """The time of the test's network: now_ns, sleep(), advance(), eventually()."""
    clock: Clock = _machnet_lab.fixture("machnet_clock")
    return clock


@pytest.fixture
def machnet_pcap(_machnet_lab: Lab) -> Pcap:
    """A capture of the whole test, kept whether it fails or not: path, packets()."""
    pcap: Pcap = _machnet_lab.fixture("machnet_pcap")
    return pcap
