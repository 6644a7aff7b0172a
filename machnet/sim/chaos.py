# SPDX-License-Identifier: MIT
"""Schedules of faults that a seed draws."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from machnet.sim.faults import Clog, Crash, Degrade, Partition, Pause, Skew, TimedFault
from machnet.sim.units import format_duration

__all__ = ["KINDS", "Surroundings", "draw"]

#: Kinds of faults that chaos knows.
KINDS = ("partition", "one_way", "clog", "pause", "crash", "degrade", "skew")

_US = 1_000


@dataclass(frozen=True)
class Surroundings:
    """What faults can happen to, by name.

    Attributes:
        hosts: All hosts.
        links: The two ends of each link, and its name.
    """

    hosts: Sequence[str]
    links: Sequence[tuple[str, str, str]]


def draw(
    rng: random.Random,
    there: Surroundings,
    start_ns: int,
    duration_ns: int,
    kinds: Iterable[str],
    mean_interval_ns: int,
) -> list[TimedFault]:
    """Faults at exponential intervals, each over before ``start_ns + duration_ns``.

    All of them end within the duration, so that what must recover can be seen to.
    """
    wanted = [kind for kind in KINDS if kind in set(kinds)]
    if not there.links:
        wanted = [kind for kind in wanted if kind in {"pause", "crash", "skew"}]
    if not there.hosts:
        wanted = [kind for kind in wanted if kind not in {"pause", "crash", "skew"}]
    found: list[TimedFault] = []
    at = start_ns
    end = start_ns + duration_ns
    while wanted:
        # Whole microseconds: a schedule is printed as code that people read.
        at += max(int(rng.expovariate(1 / mean_interval_ns)) // _US, 1) * _US
        lasts = max(int(rng.expovariate(2 / mean_interval_ns)) // _US, 1) * _US
        fault = _one(rng, there, rng.choice(wanted), at, lasts)
        if at >= end:
            break
        if at + lasts < end:
            found.append(fault)
    return found


def _one(
    rng: random.Random, there: Surroundings, kind: str, at_ns: int, lasts_ns: int
) -> TimedFault:
    at, for_ = format_duration(at_ns), format_duration(lasts_ns)
    if kind in {"pause", "crash", "skew"}:
        host = rng.choice(there.hosts)
        if kind == "pause":
            return Pause(host, at=at, for_=for_)
        if kind == "crash":
            return Crash(host, at=at, for_=for_)
        return Skew(host, at=at, for_=for_, ppm=float(rng.randrange(-500, 501)))
    a, b, name = rng.choice(there.links)
    if kind == "clog":
        return Clog(a, b, at=at, for_=for_)
    if kind == "degrade":
        return Degrade(name, at=at, for_=for_, loss=rng.randrange(1, 60) / 100)
    if rng.random() < 0.5:
        a, b = b, a
    return Partition(a, b, at=at, for_=for_, one_way=kind == "one_way")
