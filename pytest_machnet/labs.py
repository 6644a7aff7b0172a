# SPDX-License-Identifier: MIT
"""Labs: what the fixtures of one test are made from, on a simulated network or on a NIC."""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

import pytest

from pytest_machnet import artifacts, options

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from machnet import Channel
    from machnet.sim.units import Duration
    from pytest_machnet.cases import Case

T = TypeVar("T")


class LeakError(AssertionError):
    """After a test that passed, its network holds what it should have given back."""


class Clock(Protocol):
    """The fixture ``machnet_clock``: the time of the test's network.

    Durations are nanoseconds, or strings such as "50ms".
    """

    @property
    def now_ns(self) -> int:
        """Nanoseconds since the test's network was made."""

    def sleep(self, duration: Duration) -> None:
        """Let time pass: at once on a simulated network, by waiting on a NIC."""

    def advance(self, duration: Duration) -> None:
        """Let virtual time pass; on a NIC the test is skipped, since real time can't be advanced."""

    def eventually(
        self, predicate: Callable[[], T], within: Duration = "5s", message: str = ""
    ) -> T:
        """Let time pass until something is true, and return it.

        Raises:
            AssertionError: It was not within that time.
        """


class Pcap(Protocol):
    """The fixture ``machnet_pcap``."""

    @property
    def path(self) -> Path:
        """The pcapng file; complete when the test is over."""

    def packets(self, last: int | None = None) -> list[Any]:
        """What was recorded so far (`machnet.sim.Network.packets`), or its end."""


class Attachable(Protocol):
    """What channels are attached to."""

    def attach(self, **settings: int) -> Channel:
        """See `machnet.Stack.attach`."""


class Lab(ABC):
    """What the fixtures of one test are made from."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._made: dict[str, Any] = {}
        self._folder: Path | None = None
        #: Those that the test attached; here they live until the end.
        self._channels: list[Channel] = []
        self._addresses = {str(ipaddress.IPv4Interface(case.settings["ip"]).ip)}
        #: What the failure section says, once it has been asked for.
        self.section: list[str] | None = None

    def fixture(self, name: str) -> Any:
        """The value of a fixture, made when it is first asked for."""
        if name not in self._made:
            self._made[name] = getattr(self, f"make_{name.removeprefix('machnet_')}")()
        return self._made[name]

    def folder(self) -> Path:
        """The folder for the test's artifacts, made now."""
        if self._folder is None:
            self._folder = artifacts.make_folder(self.case.folder)
        return self._folder

    def wants_capture(self) -> bool:
        """Whether everything is captured from the beginning."""
        return self.case.only is None and (
            self.case.settings["pcap"] == "always" or "machnet_pcap" in self.case.fixtures
        )

    def next_ip(self) -> str:
        """An address of the network that nobody has."""
        own = ipaddress.IPv4Interface(self.case.settings["ip"])
        return str(options.next_address(own, {*self._addresses, self.case.settings.peer_ip}))

    def take_ip(self, ip: str | None) -> str:
        """Note an address as used, the next free one if none is given; with its prefix length."""
        own = ipaddress.IPv4Interface(self.case.settings["ip"])
        text = ip if ip is not None else self.next_ip()
        self._addresses.add(text.partition("/")[0])
        return text if "/" in text else f"{text}/{own.network.prefixlen}"

    def missing(self, name: str, why: str) -> NoReturn:
        """Skip the test: what it uses does not exist here."""
        pytest.skip(f"{name}: {why} ({self.where})")

    @abstractmethod
    def local(self) -> Attachable:
        """The host with the local stack."""

    def make_channel(self) -> Callable[..., Channel]:
        """A function that attaches channels to the local stack."""
        host = self.local()

        def machnet_channel(**settings: int) -> Channel:
            """Attach a channel to the local stack; arguments as for machnet.Stack.attach."""
            channel = host.attach(**settings)
            self._channels.append(channel)
            return channel

        return machnet_channel

    @property
    @abstractmethod
    def where(self) -> str:
        """The driver, for messages."""

    @abstractmethod
    def progress(self) -> object:
        """What changes while there is progress. Called by another thread."""

    @abstractmethod
    def why_stuck(self) -> str:
        """What it waits for."""

    @abstractmethod
    def schedule(self) -> tuple[Any, ...]:
        """The faults that happened, for `machnet.sim.Network.only`."""

    @abstractmethod
    def describe(self, *, short: bool) -> list[str]:
        """The state of things, for the failure section."""

    def describe_late(self) -> list[str]:
        """What can be said of a failure only when everything has ended."""
        return []

    @abstractmethod
    def write_artifacts(self) -> None:
        """Write what helps to explain a failure into `folder`."""

    @abstractmethod
    def check_leaks(self) -> None:
        """Raise LeakError if anything was not given back."""

    @abstractmethod
    def close(self) -> None:
        """End everything; again: nothing."""


def open_lab(case: Case) -> Lab:
    """The lab for a test."""
    if case.simulated:
        from pytest_machnet.simlab import SimLab

        return SimLab(case)
    from pytest_machnet.niclab import NicLab

    return NicLab(case)
