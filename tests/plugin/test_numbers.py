# SPDX-License-Identifier: MIT
"""Packets as text, with relative numbers."""

from __future__ import annotations

from machnet.testing import tcp
from pytest_machnet.numbers import summaries

ISN, OTHER = 0xFFFFFFF0, 3_000_000_000
THERE = {"src": "10.0.0.1", "dst": "10.0.0.2", "sport": 5, "dport": 80}
BACK = {"src": "10.0.0.2", "dst": "10.0.0.1", "sport": 80, "dport": 5}


def wanted(*frames: bytes) -> list[str]:
    """From the flags on, without window and length."""
    texts = [text.partition("Flags ")[2] for text in summaries(frames)]
    return [text.partition(", win")[0] for text in texts]


def test_what_follows_a_syn_is_counted_from_it():
    assert wanted(
        tcp("S", seq=ISN, **THERE).build(),
        tcp("SA", seq=OTHER, ack=ISN + 1, **BACK).build(),
        tcp("A", seq=ISN + 1, ack=OTHER + 1, **THERE).build(),
        tcp("PA", seq=ISN + 1, ack=OTHER + 1, payload=bytes(100), **THERE).build(),
        tcp("A", seq=OTHER + 1, ack=(ISN + 101) % 2**32, **BACK).build(),
    ) == [
        f"[S], seq {ISN}",
        f"[S.], seq {OTHER}, ack 1",
        "[.], ack 1",
        "[P.], seq 1:101, ack 1",
        "[.], ack 101",
    ]


def test_without_a_syn_the_numbers_are_those_of_the_wire():
    assert wanted(tcp("PA", seq=1000, ack=2000, payload=b"x", **THERE).build()) == [
        "[P.], seq 1000:1001, ack 2000"
    ]


def test_a_new_connection_between_the_same_ports_has_its_own_numbers():
    assert wanted(
        tcp("S", seq=100, **THERE).build(),
        tcp("SA", seq=200, ack=101, **BACK).build(),
        tcp("S", seq=5000, **THERE).build(),
        tcp("S", seq=5000, **THERE).build(),
        tcp("RA", seq=0, ack=5001, **BACK).build(),
    )[2:] == ["[S], seq 5000", "[S], seq 5000", "[R.], seq 0, ack 1"]


def test_both_may_send_a_syn():
    assert wanted(
        tcp("S", seq=100, **THERE).build(),
        tcp("S", seq=200, **BACK).build(),
        tcp("SA", seq=100, ack=201, **THERE).build(),
        tcp("PA", seq=201, ack=101, payload=b"x", **BACK).build(),
    ) == ["[S], seq 100", "[S], seq 200", "[S.], seq 100, ack 1", "[P.], seq 1:2, ack 1"]


def test_what_is_damaged_changes_nothing():
    assert wanted(
        tcp("S", seq=100, **THERE).build(),
        tcp("S", seq=900, csum=0xBAD, **THERE).build(),
        tcp("PA", seq=101, ack=0, payload=b"x", **THERE).build(),
    )[2].startswith("[P.], seq 1:2")
    assert summaries([b"", b"\x00" * 60, tcp("S", **THERE).build()[:40]])
