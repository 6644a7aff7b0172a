# SPDX-License-Identifier: MIT
"""Seeds: one base for a run, one seed for each test, and how they come together."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_machnet.options import Settings

#: Where the base seed of the last run is kept, in pytest's cache.
CACHE_KEY = "machnet/seed"
#: The parameter by which a test is run with several seeds.
PARAMETER = "_machnet_seed_no"

SEED_MASK = 2**64 - 1

#: The seed of pytest-randomly for this run; see `from_randomly`.
_randomly_seed: int | None = None


def from_randomly(seed: int) -> None:
    """Called by pytest-randomly (entry point ``pytest_randomly.random_seeder``) when it seeds.

    The first seed of a run is the one that it prints; later ones are mixed with node ids. Where
    nobody says otherwise, it is the base of the simulations too.
    """
    global _randomly_seed
    if _randomly_seed is None:
        _randomly_seed = seed & SEED_MASK


def forget_randomly() -> None:
    """A new run begins."""
    global _randomly_seed
    _randomly_seed = None


def randomly() -> int | None:
    """The seed of pytest-randomly for this run; None: it is not there."""
    return _randomly_seed


def base_seed(config: pytest.Config, settings: Settings) -> int:
    """The base seed of this run; what is drawn is drawn now.

    Raises:
        pytest.UsageError: It is to be that of the last run, and there is none.
    """
    seed = settings["seed"]
    if seed == "random":
        # Four bytes: it has to be typed again.
        return int.from_bytes(os.urandom(4), "big")
    if seed == "last":
        cache = getattr(config, "cache", None)
        if cache is None:
            raise pytest.UsageError("--machnet-seed=last needs pytest's cache (-p cacheprovider)")
        last = cache.get(CACHE_KEY, None)
        if not isinstance(last, int) or not 0 <= last <= SEED_MASK:
            raise pytest.UsageError("--machnet-seed=last: there is no run before this one")
        return last
    if settings.origin["seed"] == "default" and _randomly_seed is not None:
        return _randomly_seed
    return int(seed)


def remember(config: pytest.Config, base: int) -> None:
    """Keep the base for ``--machnet-seed=last``."""
    cache = getattr(config, "cache", None)
    if cache is not None:
        cache.set(CACHE_KEY, base)


def strip_suffix(nodeid: str, number: int) -> str:
    """A node id without the part that parametrisation over seeds has added."""
    tag = f"seed{number}"
    head, bracket, inner = nodeid.partition("[")
    if not bracket or not inner.endswith("]"):
        return nodeid
    if inner == f"{tag}]":
        return head
    if inner.endswith(f"-{tag}]"):
        return f"{head}[{inner[: -len(tag) - 2]}]"
    if inner.startswith(f"{tag}-"):
        return f"{head}[{inner[len(tag) + 1 :]}"
    return nodeid.replace(f"-{tag}-", "-", 1)


def test_seed(nodeid: str, number: int, base: int) -> int:
    """The seed of one test.

    Args:
        nodeid: Its node id, without the suffix for the seed's number.
        number: Number of the seed, from 0: that of a test that is run with one seed only.
        base: The run's base seed; with ``base + 1``, number 0 is what number 1 is with ``base``.
    """
    return zlib.crc32(nodeid.encode(errors="surrogatepass")) ^ ((base + number) & SEED_MASK)


test_seed.__test__ = False  # type: ignore[attr-defined]


def example_seed(seed: int, number: int) -> int:
    """The seed of a hypothesis example: the test's own for number 0, and spread out from there."""
    return (seed ^ (number * 0x9E3779B97F4A7C15)) & SEED_MASK
