# SPDX-License-Identifier: MIT
"""What a case runs against: the Linux kernel, or machnet. See `Arm` for what they have in common."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from machnet.testing import Port

__all__ = [
    "ARMS",
    "ARM_IP",
    "MS",
    "PEER_IP",
    "PEER_MAC",
    "SEC",
    "US",
    "Arm",
    "Settings",
    "open_arm",
    "unavailable",
    "wait_for",
]

US, MS, SEC = 1_000, 1_000_000, 1_000_000_000

ARMS = ("linux", "machnet")

#: Both ends of every arm's wire.
ARM_IP, PEER_IP, PEER_MAC = "10.9.0.1", "10.9.0.2", "02:00:00:00:00:02"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What both arms can be told, under one name. The values here are those of most cases.

    The retransmission timeout is far above anything that a slow machine takes to answer, so that a
    timer fires only in the cases that are about it: these ask for the 200 ms that both have by
    themselves.

    Attributes:
        timestamps: Offer and take timestamps (RFC 7323).
        sack: Offer and take selective acknowledgements (RFC 2018).
        wscale: Offer and take window scaling (RFC 7323).
        rto_min_ms: Least retransmission timeout.
        syn_retries: SYNs sent again before an active open fails.
        fin_wait2_s: How long a closed connection waits for the peer's FIN.
        challenge_ms: Least time between two answers to segments that may be forged; 0: no limit.
        mtu: Of the wire, bytes.
    """

    timestamps: bool = True
    sack: bool = True
    wscale: bool = True
    rto_min_ms: int = 4000
    syn_retries: int = 6
    fin_wait2_s: int = 60
    challenge_ms: int = 0
    mtu: int = 1500


class Arm(Protocol):
    """A TCP with sockets on one side and a wire on the other.

    Attributes:
        name: "linux" or "machnet".
        ip: Its address.
        mac: Its MAC address.
        wire: The other end of its wire.
        settings: What it was made with.
    """

    name: str
    ip: str
    mac: str
    wire: Port
    settings: Settings

    @property
    def now_ns(self) -> int:
        """The arm's time: the wire's."""

    def sleep(self, ns: int) -> None:
        """Let time pass, real or virtual."""

    def settle(self) -> None:
        """Return when what was sent on the wire has been processed and what answers it is there."""

    def socket(self) -> Any:
        """A non-blocking TCP socket with the methods, options and errors of POSIX."""

    def set_isn(self, sock: Any, isn: int) -> None:
        """Choose the initial sequence number of the connection that a fresh socket will open."""

    def wait(self, call: Callable[[], Any], within_ns: int = 10 * SEC) -> Any:
        """What a call gives when it no longer says "not now" (EAGAIN).

        Raises:
            BlockingIOError: It still says so after ``within_ns``.
        """

    def state(self, local: tuple[str, int], remote: tuple[str, int]) -> str:
        """State of a connection as RFC 9293 names it; "CLOSED" if there is none."""

    def new_host(self) -> str:
        """The address of one more host on the wire, with the MAC of the first, never used before."""

    def sysctl(self, name: str, value: str | int) -> None:
        """Set a Linux sysctl (``net.ipv4.`` is understood) on an arm that has them."""

    def close(self) -> None:
        """Let go of everything."""


def wait_for(arm: Arm, call: Callable[[], Any], within_ns: int) -> Any:
    """See `Arm.wait`: looks once in a millisecond of the arm's time."""
    end = arm.now_ns + within_ns
    while True:
        with contextlib.suppress(BlockingIOError):
            return call()
        if arm.now_ns >= end:
            return call()
        arm.sleep(MS)


def unavailable(name: str, nic: str | None = None) -> str | None:
    """Why an arm can't run here; None if it can."""
    if name == "machnet":
        if nic is None:
            return None
        from conformance.arms import nic as on_nic

        return on_nic.unavailable(nic)
    from machnet.sim import KernelHost

    return KernelHost.tap_available()


def open_arm(name: str, settings: Settings, nic: str | None = None) -> Arm:
    """An arm with these settings; machnet's on a wire in virtual time, or on a NIC."""
    if name == "linux":
        from conformance.arms.linux import LinuxArm

        return LinuxArm(settings)
    if nic is not None:
        from conformance.arms.nic import NicArm

        return NicArm(settings, nic)
    from conformance.arms.machnet import MachnetArm

    return MachnetArm(settings)
