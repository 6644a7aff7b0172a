# SPDX-License-Identifier: MIT
"""Linux hosts for tests: with a TAP, as this user may make them, and in a user namespace."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import pytest
from linux_peer import linux_peer

from machnet.sim.kernel_host import KernelHost, KernelHostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from linux_peer import Peer


@pytest.fixture
def host() -> Iterator[KernelHost]:
    """A host that can have a TAP, and says nothing by itself."""
    if reason := KernelHost.tap_available():
        pytest.skip(reason)
    with KernelHost("peer", ipv6=False) as host:
        yield host


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A stack and a Linux host, joined by a TAP."""
    with linux_peer() as peer:
        yield peer


@functools.cache
def why_no_user_namespace() -> str | None:
    try:
        KernelHost(user_namespace=True).close()
    except KernelHostError as error:
        return str(error)
    return None


@pytest.fixture
def _needs_namespaces() -> None:
    if reason := KernelHost.available():
        pytest.skip(reason)


@pytest.fixture
def _needs_tap() -> None:
    if reason := KernelHost.tap_available():
        pytest.skip(reason)


@pytest.fixture
def _needs_user_namespace() -> None:
    if reason := why_no_user_namespace():
        pytest.skip(reason)


@pytest.fixture(params=[None, True], ids=["as-permitted", "user-namespace"])
def make_host(
    request: pytest.FixtureRequest, _needs_namespaces: None
) -> Iterator[Callable[..., KernelHost]]:
    """Make hosts as this user may, and in a user namespace."""
    if request.param and (reason := why_no_user_namespace()):
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:

        def make(name: str = "host", **options: Any) -> KernelHost:
            return stack.enter_context(KernelHost(name, user_namespace=request.param, **options))

        yield make
