# SPDX-License-Identifier: MIT
"""Two hosts with a channel each: stepped, or with a thread each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from channel_net import make_net

if TYPE_CHECKING:
    from collections.abc import Iterator

    from channel_net import Net


@pytest.fixture(params=["pair", "threaded"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with make_net(request.param) as net:
        yield net


@pytest.fixture
def pair() -> Iterator[Net]:
    with make_net("pair") as net:
        yield net


@pytest.fixture
def threaded() -> Iterator[Net]:
    with make_net("threaded") as net:
        yield net
