# SPDX-License-Identifier: MIT
"""Invariants are checked while a network runs, and a violation is an error of the call."""

from __future__ import annotations

from typing import Any

import pytest
from check_kit import stats_of
from sim_net import host_pair, transfer

import machnet
from machnet._native import ffi, lib
from machnet.sim import Network


def checked(net: Network) -> Any:
    return stats_of(lib.mn_simnet_check(net._native))


def test_they_are_on_and_see_what_goes_on() -> None:
    net, a, b = host_pair(loss=0.05)
    with net:
        assert net.invariants
        transfer(net, a, b, bytes(50_000))
        stats = checked(net)
        assert stats.delivered == 50_000
        assert stats.frames > 30
        assert stats.compared > 0
        assert net.leaks() == []


def test_they_can_be_switched_off() -> None:
    with Network(invariants=False) as net:
        assert not net.invariants
        net.invariants = True
        assert net.invariants
        net.invariants = False
        assert not net.invariants


@pytest.mark.parametrize("how", ["recv", "advance", "send"])
def test_a_violation_is_raised_once_by_the_call_that_met_it(how: str) -> None:
    net, a, b = host_pair()
    with net:
        server, client = b.attach(), a.attach()
        server.listen(b.ip, 7, protocol="stream")
        flow = client.connect(a.ip, b.ip, 7, protocol="stream")
        info = ffi.new("struct mn_app_flow_info *")
        lib.mn_chan_flow_info(client._native, flow.id, info)
        # An application that says it was given what nobody sent.
        conn = ffi.new("struct mn_check_conn *")
        conn.laddr, conn.lport = info.remote_ip, info.remote_port
        conn.raddr, conn.rport = info.local_ip, info.local_port
        check = lib.mn_simnet_check(net._native)
        client.send(flow, b"right")
        calls: dict[str, Any] = {
            "recv": lambda: client.read(flow, timeout=1),
            "advance": lambda: net.advance("1s"),
            "send": lambda: send_on(net, client, flow),
        }
        lib.mn_check_taken(check, conn, 99, b"wrong", 5, False, net.now_ns)
        with pytest.raises(machnet.InvariantError) as error:
            calls[how]()
        assert "10.0.0.1" in str(error.value)
        net.advance("1s")


def send_on(net: Network, client: Any, flow: Any) -> None:
    for _ in range(100):
        client.send(flow, b"more")
