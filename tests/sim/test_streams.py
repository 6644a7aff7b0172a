# SPDX-License-Identifier: MIT
"""Bytes arrive, all of them and in order, through every combination of what links can do to frames."""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

import pytest
from sim_net import framed_flow, host_pair, transfer

from machnet.sim import DROP, PASS, Network

MIB = 1 << 20
DATA = random.Random(20).randbytes(MIB)

LOSSES = [0.0, 0.01, 0.05, 0.2]
FAULTS: dict[str, dict[str, Any]] = {
    "reorder": {"reorder": 0.05, "reorder_delay": "2ms"},
    "duplicate": {"duplicate": 0.05, "duplicate_delay": "100us"},
    "corrupt": {"corrupt": 0.02},
}
COMBINATIONS = [
    (loss, names)
    for loss in LOSSES
    for n in range(len(FAULTS) + 1)
    for names in itertools.combinations(FAULTS, n)
]


@pytest.mark.parametrize(
    ("loss", "names"),
    COMBINATIONS,
    ids=[f"{loss:.0%}-{'-'.join(names) or 'nothing'}" for loss, names in COMBINATIONS],
)
def test_a_mebibyte_through_a_bad_link(loss: float, names: tuple[str, ...]) -> None:
    params: dict[str, Any] = {"latency": "500us", "bandwidth": "100Mbps", "queue": "200p"}
    for name in names:
        params.update(FAULTS[name])
    net, a, b = host_pair(20, loss=loss, **params)
    with net:
        got = transfer(net, a, b, DATA)
        assert got == DATA
        # A fifth of all frames lost each way is slow, but none stalls.
        assert net.now_ns < 900 * 10**9
        assert net.leaks() == []


@pytest.mark.skipif(
    "MACHNET_NIGHTLY" not in os.environ, reason="takes minutes: set MACHNET_NIGHTLY to run it"
)
@pytest.mark.timeout(3600)
def test_a_gibibyte_through_the_worst() -> None:
    params = {key: value for fault in FAULTS.values() for key, value in fault.items()}
    with Network(20, max_time="10000h", record=0) as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        net.link(a, b, loss=0.2, latency="500us", bandwidth="100Mbps", queue="200p", **params)
        server, client = b.attach(), a.attach()
        listener = server.listen(b.ip, 7000, protocol="stream")
        flow = client.connect(a.ip, b.ip, 7000, protocol="stream", timeout=None)
        other = listener.accept(timeout=None)
        piece, sent, got = DATA[:65536], 0, 0
        while got < 1 << 30:
            while sent < 1 << 30 and (n := client._try_send(flow, piece[sent % 65536 :])):
                sent += n
            part = server.read(other, 1 << 20, timeout=3600)
            at = got % 65536
            assert part == (piece * (len(part) // 65536 + 2))[at : at + len(part)]
            got += len(part)


def test_a_lost_acknowledgement_is_no_round_trip() -> None:
    with Network() as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2", delack_us=0)
        net.link(a, b, latency="1ms")
        _server, client, flow = framed_flow(a, b)
        for _ in range(10):
            client.send(flow, b"x")
            net.run_until_idle()
        before = a.sockets()[0]
        lost: list[int] = []

        def lose_one(packet: Any, hop: Any) -> Any:
            if lost or hop.sender is not b:
                return PASS
            lost.append(hop.now_ns)
            return DROP

        with net.rule(lose_one):
            client.send(flow, b"y")
            net.run_until_idle()
        # The copy is answered with a D-SACK, and an echo of the first: 200 ms ago.
        after = a.sockets()[0]
        assert lost
        assert after.retransmits == before.retransmits + 1
        assert after.send_queue == 0
        assert after.srtt_us == before.srtt_us < 3000


@pytest.mark.skipif(
    bool(os.environ.get("MACHNET_TEST_SANITIZED")), reason="2 GiB take a sanitized build a minute"
)
def test_more_than_2_gib_on_one_connection() -> None:
    """Numbers that are half the sequence space from the first one break no invariant."""
    with Network(seed=1) as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        net.link(a, b)
        server, client = b.attach(), a.attach()
        server.listen(b.ip, 7, protocol="tcp")
        flow = client.connect(a.ip, b.ip, 7, protocol="tcp", timeout=5)
        data = bytes(4 << 20)
        for _ in range(2048 // 4 + 8):
            client.send(flow, data, timeout=5)
            assert len(server.recv(timeout=5).data) == len(data)
