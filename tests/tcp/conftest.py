# SPDX-License-Identifier: MIT
"""Fixtures of the TCP conformance tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tcp_peer import ORDINARY, PLAIN, WRAP_31, WRAP_32, Isns, Lab, Offer, Peer


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "rows(*numbers): requirements of tests/support/tcp_rows.py that the test covers",
    )


@pytest.fixture(params=[ORDINARY, WRAP_32, WRAP_31], ids=lambda isns: isns.name)
def isns(request: pytest.FixtureRequest) -> Isns:
    """Every test that opens a connection runs with ordinary numbers and across both wraps."""
    return request.param


@pytest.fixture
def labs() -> Iterator[Callable[..., Lab]]:
    """Makes a stack; all are closed at the end."""
    made: list[Lab] = []

    def make(isns: Isns = ORDINARY, **config: Any) -> Lab:
        made.append(Lab(isns, **config))
        return made[-1]

    yield make
    for lab in made:
        lab.close()


@pytest.fixture
def lab(labs: Callable[..., Lab], isns: Isns) -> Callable[..., Lab]:
    """Makes a stack with the initial sequence numbers of this run."""

    def make(**config: Any) -> Lab:
        return labs(isns, **config)

    return make


@pytest.fixture
def tcp(lab: Callable[..., Lab]) -> Callable[..., Peer]:
    """Makes a stack and one scripted peer: ``tcp(offer, mtu=..., settings...)``."""

    def make(offer: Offer = PLAIN, **config: Any) -> Peer:
        return lab(**config).peer(offer)

    return make
