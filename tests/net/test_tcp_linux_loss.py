# SPDX-License-Identifier: MIT
"""Messages between machnet and Linux TCP over a network that loses, repeats, reorders, corrupts."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal

import pytest
from linux_peer import (
    MIB,
    PATIENCE_S,
    beside,
    ends,
    eventually,
    needs_tap,
    nothing_more,
    pattern,
    recv,
    recv_message,
    scaled,
    send,
    send_message,
)
from lossy_link import LossyPeer, lossy_peer

if TYPE_CHECKING:
    import socket

    from machnet import Channel, Flow

pytestmark = pytest.mark.skipif(needs_tap() is not None, reason=str(needs_tap()))

FAULTS = {
    "loss": {"loss": 0.03},
    "duplicate": {"duplicate": 0.2},
    "reorder": {"reorder": 0.1, "reorder_delay": "500us"},
    "corrupt": {"corrupt": 0.02},
    "jitter": {"latency": "200us", "jitter": "200us", "keep_order": False},
    "all": {"loss": 0.01, "duplicate": 0.05, "reorder": 0.05, "corrupt": 0.01},
}
SIZE = scaled(MIB, MIB // 4)


def both_ways(channel: Channel, flow: Flow, sock: socket.socket, count: int) -> None:
    def give() -> None:
        for n in range(count):
            send_message(sock, pattern(SIZE, n))

    def take() -> None:
        for n in range(count):
            assert recv_message(sock) == pattern(SIZE, n + 100)

    with beside(give, take):
        for n in range(count):
            send(channel, flow, pattern(SIZE, n + 100))
        for n in range(count):
            assert recv(channel).data == pattern(SIZE, n)
    nothing_more(channel)


@pytest.mark.parametrize("sack", [True, False], ids=["sack", "newreno"])
@pytest.mark.parametrize("kind", list(FAULTS))
def test_every_byte_arrives_once(kind: str, sack: bool) -> None:
    with lossy_peer(faults=FAULTS[kind], sack=sack, rto_min_us=20_000) as peer:
        channel = peer.stack.attach()
        flow, sock = ends(peer, channel, "client")
        both_ways(channel, flow, sock, 3)
        assert peer.met("corrupt" if kind == "all" else kind) > 0
        stats = peer.stack.stats()
        if kind in {"loss", "corrupt", "all"}:
            assert stats["tcp_retransmits"] > 0
        if kind == "corrupt":
            assert stats["drop_tcp_csum"] > 0
        assert stats["framing_errors"] == 0
        assert leaves_nothing(peer, flow, sock)


def leaves_nothing(peer: LossyPeer, flow: Flow, sock: socket.socket) -> bool:
    """Both ends close in spite of the faults, and the engine is empty then."""
    flow.close()
    assert recv_message(sock) is None
    sock.close()
    eventually(lambda: peer.stack.usage()["tcbs"] == 0)
    usage = peer.stack.usage()
    return usage["ooo_blocks"] == usage["ooo_ranges"] == usage["sack_ranges"] == 0


def test_fast_retransmit_repairs_most_losses() -> None:
    """With SACK, single losses cost no timeout."""
    with lossy_peer(seed=3, tx={"loss": 0.01}, rto_min_us=200_000) as peer:
        channel = peer.stack.attach()
        flow, sock = ends(peer, channel, "server")
        count = scaled(6, 2)

        def take() -> None:
            for n in range(count):
                assert recv_message(sock) == pattern(SIZE, n)

        with beside(take):
            for n in range(count):
                send(channel, flow, pattern(SIZE, n))
        stats = peer.stack.stats()
        assert peer.met("loss") > 10 // scaled(1, 8)
        assert stats["tcp_fast_recoveries"] > 0
        assert stats["tcp_rto"] <= stats["tcp_fast_recoveries"]


@pytest.mark.parametrize("direction", ["tx", "rx"])
def test_a_cable_that_is_cut_for_a_while(direction: Literal["tx", "rx"]) -> None:
    with lossy_peer(rto_min_us=20_000) as peer:
        channel = peer.stack.attach()
        flow, sock = ends(peer, channel, "client")
        for _ in range(3):
            least, cut = peer.met("blocked") + 3, threading.Event()

            def interrupt(least: int = least, cut: threading.Event = cut) -> None:
                with peer.faulty.partitioned(direction):
                    cut.set()
                    eventually(lambda: peer.met("blocked") >= least)

            with beside(interrupt):
                assert cut.wait(PATIENCE_S)
                both_ways(channel, flow, sock, 1)
        assert flow.live


@pytest.mark.parametrize("kernel_is", ["client", "server"])
def test_handshakes_and_closes_under_loss(kernel_is: str) -> None:
    """Lost SYNs cost a second each, so there are few connections and the loss is high."""
    with lossy_peer(
        seed=7, faults={"loss": 0.15}, rto_min_us=20_000, rto_initial_us=100_000
    ) as peer:
        channel = peer.stack.attach()
        for n in range(scaled(5, 3)):
            flow, sock = (
                ends(peer, channel, kernel_is) if n == 0 else again(peer, channel, kernel_is)
            )
            send(channel, flow, pattern(3000, n))
            assert recv_message(sock) == pattern(3000, n)
            send_message(sock, pattern(3000, n))
            assert recv(channel).data == pattern(3000, n)
            flow.close()
            assert recv_message(sock) is None
            sock.close()
        eventually(lambda: peer.stack.usage()["tcbs"] == 0)


def again(peer: LossyPeer, channel: Channel, kernel_is: str) -> tuple[Flow, socket.socket]:
    if kernel_is == "server":
        return ends(peer, channel, kernel_is)
    sock = peer.connect()
    send_message(sock, b"hello")
    return recv(channel).flow, sock
