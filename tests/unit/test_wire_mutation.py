# SPDX-License-Identifier: MIT
"""Each view on 100,000 mutated headers: it answers as the reference does and reads no byte too far.

The inputs lie against a guard page, so that a read behind the end kills the run in any build.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wire_frames as frames
import wire_reference
import wire_views as views
from sanitized import fewer

#: With sanitizers, tests/fuzz/mutated_frames.c does the 100,000.
MUTATIONS = fewer(100_000, 20_000)

VIEWS: dict[str, Callable[[bytearray], Any]] = {
    "eth": views.ETH,
    "arp": views.ARP,
    "ipv4": views.IPV4,
    "icmp": views.ICMP,
    "icmp_quote": views.ICMP_QUOTE,
    "udp": views.UDP,
    "tcp": views.TCP,
    "tcp_opts": views.tcp_opts,
}
#: Where the checksum that the view verifies lies; wrong ones would hide everything behind it.
CHECKSUM_AT = {"ipv4": 10, "icmp": 2}
#: Values at the edges of what a length, a type or an address byte may be.
EDGES = (0, 1, 2, 4, 5, 0x0F, 0x44, 0x45, 0x46, 0x4F, 0x7F, 0x80, 0xE0, 0xFE, 0xFF)


@pytest.mark.parametrize(("data", "survives"), [("abcd", True), ("abc", False)])
def test_the_guard_page_catches_one_byte_too_far(repo: Path, data: str, survives: bool) -> None:
    code = f"import wire_views; wire_views.lib.mn_rd32be(wire_views.guarded(b'{data}'))"
    environment = {**os.environ, "PYTHONPATH": str(repo / "tests" / "support")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode == 0) is survives, done.stderr


def mutate(rng: random.Random, data: bytearray) -> None:
    """Change up to four bytes, most of them in the header; sometimes cut or extend the whole."""
    for _ in range(int(rng.random() * 4) + 1):
        at = int(rng.random() ** 2 * len(data))
        pick = rng.random()
        if pick < 0.4:
            data[at] = EDGES[int(rng.random() * len(EDGES))]
        elif pick < 0.7:
            data[at] ^= 1 << int(rng.random() * 8)
        else:
            data[at] = int(rng.random() * 256)
    pick = rng.random()
    if pick < 0.1:
        del data[int(rng.random() * len(data)) :]
    elif pick < 0.15:
        data += bytes(int(rng.random() * 40))


def repair(data: bytearray, at: int, length: int) -> None:
    """Put the right checksum over ``length`` bytes at offset ``at``."""
    if len(data) >= length >= at + 2:
        data[at : at + 2] = b"\0\0"
        data[at : at + 2] = wire_reference.checksum(data[:length]).to_bytes(2, "big")


@pytest.mark.parametrize("name", VIEWS)
def test_mutated_headers(name: str) -> None:
    rng = random.Random(f"mutations of {name}")
    valid = frames.VALID[name]
    view, reference = VIEWS[name], getattr(wire_reference, name)
    answers: set[str] = set()
    for _ in range(MUTATIONS):
        data = bytearray(valid)
        mutate(rng, data)
        if name in CHECKSUM_AT and data and rng.random() < 0.8:
            header = (data[0] & 15) * 4 if name == "ipv4" else len(data)
            repair(data, CHECKSUM_AT[name], header)
        answer = view(data)
        assert answer == reference(data), data.hex()
        if isinstance(answer, tuple):
            answers.add("legal" if answer[1] else "BAD_OPTION")
        else:
            answers.add(answer if isinstance(answer, str) else "accepted")
    # The mutations have to reach every refusal, or they prove little.
    assert (
        answers
        == {
            "eth": {"accepted", "TRUNCATED", "UNSUPPORTED"},
            "arp": {"accepted", "TRUNCATED", "UNSUPPORTED", "BAD_LENGTH", "BAD_ADDR"},
            "ipv4": {
                *("accepted", "TRUNCATED", "BAD_VERSION", "BAD_LENGTH"),
                *("BAD_CSUM", "FRAGMENT", "BAD_ADDR"),
            },
            "icmp": {"accepted", "TRUNCATED", "BAD_CSUM"},
            "icmp_quote": {"accepted", "TRUNCATED", "BAD_VERSION", "BAD_LENGTH", "FRAGMENT"},
            "udp": {"accepted", "TRUNCATED", "BAD_LENGTH"},
            "tcp": {"accepted", "TRUNCATED", "BAD_LENGTH"},
            "tcp_opts": {"legal", "BAD_OPTION"},
        }[name]
    )
