# SPDX-License-Identifier: MIT
"""What rules and calls on schedule may do to the network that called them, and what they may not."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from simnet_kit import MS, NEVER, Net, S

from machnet._native import ffi, lib

HELLO = b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + bytes(46)


def test_a_rule_may_add_links_to_the_node_whose_frame_it_is_asked_about() -> None:
    with Net() as net:
        a = net.raw()
        peers = [net.raw() for _ in range(2)]
        links = [net.link(a, peer) for peer in peers]

        def rule(_frame: Any) -> int:
            for _ in range(100):
                peers.append(net.raw())
                net.link(a, peers[-1])
            lib.mn_simnet_rule(net.c, links[0], 0, ffi.NULL, ffi.NULL)
            return int(lib.MN_RULE_PASS)

        net.rule(links[0], 0, rule)
        assert net.send(a, HELLO) == 0
        assert net.advance(MS) == 0
        assert [len(net.take(peer)) for peer in peers] == [1] * 102


def test_a_stack_is_not_closed_from_within_a_call_on_its_channel() -> None:
    with Net() as net:
        a, b = net.pair(latency_ns=MS)
        a.attach()
        said = []

        def close(_: int) -> None:
            said.append(lib.mn_stack_close(a.stack))
            said.append(lib.mn_chan_close(a.chan, 0))
            said.append(lib.mn_stack_close(b.stack))

        net.at(S, close)
        assert lib.mn_chan_wait(a.chan, 2 * S) == 0
        assert said == [-errno.EBUSY, -errno.EBUSY, 0]
        assert lib.mn_chan_close(a.chan, 0) == 0


def test_a_channel_is_not_closed_in_a_rule() -> None:
    with Net() as net:
        a, b = net.pair(latency_ns=MS)
        b.listen(7)
        said = []

        def rule(_frame: Any) -> int:
            said.append(lib.mn_chan_close(a.chan, 0))
            said.append(lib.mn_stack_close(a.stack))
            return int(lib.MN_RULE_PASS)

        net.rule(0, 2, rule)
        a.connect(b, 7)
        assert said
        assert set(said) == {-errno.EBUSY}
        lib.mn_simnet_rule(net.c, 0, 2, ffi.NULL, ffi.NULL)


@pytest.mark.parametrize("checks", [False, True])
def test_a_rule_may_take_away_the_engine_that_is_sending(checks: bool) -> None:
    with Net() as net:
        assert lib.mn_simnet_checks(net.c, checks) == 0
        a, b = net.pair(latency_ns=MS)

        def rule(_frame: Any) -> int:
            return int(lib.mn_simnet_bind(net.c, a.node, ffi.NULL))

        net.rule(0, 0, rule)
        assert lib.mn_chan_connect(a.attach(), a.ip, 0, b.ip, 7, lib.MN_PROTO_TCP, 30_000) > 0
        assert net.advance(S) == 0
        assert lib.mn_simnet_next(net.c) == NEVER
