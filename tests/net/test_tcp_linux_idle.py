# SPDX-License-Identifier: MIT
"""An engine that has nothing to do uses no processor, and wakes up for whatever comes."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import pytest
from linux_peer import (
    OUR_IP,
    PATIENCE_S,
    PORT,
    Peer,
    beside,
    cpu_time_s,
    fill,
    linux_peer,
    needs_tap,
    nothing_more,
    recv,
    recv_message,
    send,
    send_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(needs_tap() is not None, reason=str(needs_tap()))

#: The aim is 2 % of a core. Other processes on the machine make measured times vary.
LIMIT = 0.10


def share_of_a_core(
    record: Callable[[str, object], None], wait: Callable[[float], object]
) -> float:
    begin, used = time.monotonic(), cpu_time_s()
    wait(1.0)
    share = (cpu_time_s() - used) / (time.monotonic() - begin)
    record("share_of_a_core", round(share, 4))
    print(f"idle: {share:.2%} of a core")
    return share


def test_without_connections(
    peer: Peer, record_property: Callable[[str, object], None]
) -> None:  # fmt: skip
    assert peer.stack.threaded
    assert share_of_a_core(record_property, time.sleep) < LIMIT


def test_with_an_idle_connection(
    peer: Peer, record_property: Callable[[str, object], None]
) -> None:  # fmt: skip
    channel = peer.stack.attach()
    channel.listen(OUR_IP, PORT, "tcp")
    sock = peer.connect()
    send_message(sock, b"hello")
    flow = recv(channel).flow
    assert share_of_a_core(record_property, time.sleep) < LIMIT
    sleeps = peer.stack.host_stats()["sleeps"]
    send_message(sock, b"wake up")
    assert recv(channel).data == b"wake up"
    send(channel, flow, b"awake")
    assert recv_message(sock) == b"awake"
    assert peer.stack.host_stats()["sleeps"] >= sleeps


def test_with_an_application_that_waits(
    peer: Peer, record_property: Callable[[str, object], None]
) -> None:
    """`recv` with a timeout sleeps; it does not look again and again."""
    channel = peer.stack.attach()
    channel.listen(OUR_IP, PORT, "tcp")

    def wait(seconds: float) -> None:
        with pytest.raises(TimeoutError):
            channel.recv(timeout=seconds)

    assert share_of_a_core(record_property, wait) < LIMIT
    nothing_more(channel)


def test_with_data_that_wait_for_a_closed_window(
    peer: Peer, record_property: Callable[[str, object], None]
) -> None:
    channel = peer.stack.attach()
    with peer.listen() as listener:
        flow, _ = peer.to_kernel(channel, listener)
    assert fill(channel, flow, lambda _: bytes(4_000_000)) >= 2
    assert share_of_a_core(record_property, time.sleep) < LIMIT


def test_each_of_many_pauses_ends_by_the_next_message(peer: Peer) -> None:
    """The engine falls asleep in each of them; no wake-up may get lost."""
    channel = peer.stack.attach()
    channel.listen(OUR_IP, PORT, "tcp")
    sock = peer.connect()

    def ask() -> None:
        for n in range(300):
            time.sleep((n % 7) * 0.0005)
            send_message(sock, n.to_bytes(2, "big"))
            assert recv_message(sock) == n.to_bytes(2, "big")
        sock.shutdown(socket.SHUT_WR)

    with beside(ask):
        for n in range(300):
            message = recv(channel)
            assert message.data == n.to_bytes(2, "big")
            send(channel, message.flow, message.data)
    host = peer.stack.host_stats()
    assert host["sleeps"] > 10, host


def test_busy_mode_does_not_sleep() -> None:
    with linux_peer(poll="busy") as peer:
        channel = peer.stack.attach()
        channel.listen(OUR_IP, PORT, "tcp")
        sock = peer.connect()
        for n in range(100):
            send_message(sock, n.to_bytes(2, "big"))
            message = channel.recv(timeout=PATIENCE_S)
            send(channel, message.flow, message.data)
            assert recv_message(sock) == n.to_bytes(2, "big")
        assert peer.stack.host_stats()["sleeps"] == 0
