# SPDX-License-Identifier: MIT
"""What machnet has as an arm whatever its wire is: a stack with the settings of a case."""

from __future__ import annotations

import abc
import socket
from typing import TYPE_CHECKING, Any

from conformance.arms import ARM_IP, PEER_IP, PEER_MAC, SEC, wait_for
from machnet import Stack
from machnet.stack.socket import TCP_ISN

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.arms import Settings
    from machnet.stack.nics import Nic
    from machnet.testing import Port


class StackArm(abc.ABC):
    """See `conformance.arms.Arm`; what is missing of it (`wire`, time, the end) is the wire's.

    Args:
        settings: Of the case.
        nic: What the stack is opened on.
        seed: See `machnet.Stack`.
    """

    name = "machnet"
    wire: Port

    def __init__(self, settings: Settings, nic: Nic, *, seed: int | None = None) -> None:
        self.settings = settings
        self._hosts = 0
        self.stack = Stack(
            nic,
            f"{ARM_IP}/16",
            seed=seed,
            timestamps=settings.timestamps,
            sack=settings.sack,
            wscale=settings.wscale,
            rto_min_us=settings.rto_min_ms * 1000,
            rto_initial_us=1_000_000,
            fin_wait2_ms=settings.fin_wait2_s * 1000,
            # Every SYN doubles the time to the next one, which begins with a second.
            syn_timeout_ms=1000 * ((2 << settings.syn_retries) - 1),
            challenge_per_s=1000 // settings.challenge_ms if settings.challenge_ms else 1000,
        )
        self.stack.neighbor(PEER_IP, PEER_MAC)
        self.ip, self.mac = ARM_IP, self.stack.mac

    @property
    def now_ns(self) -> int:
        """The wire's time."""
        return self.wire.now_ns

    @abc.abstractmethod
    def sleep(self, ns: int) -> None:
        """Let that time pass."""

    @abc.abstractmethod
    def settle(self) -> None:
        """See `conformance.arms.Arm`."""

    def set_isn(self, sock: Any, isn: int) -> None:
        """By the socket option that machnet has for it."""
        sock.setsockopt(socket.IPPROTO_TCP, TCP_ISN, isn)

    def wait(self, call: Callable[[], Any], within_ns: int = 10 * SEC) -> Any:
        """Call again and again, a millisecond apart."""
        return wait_for(self, call, within_ns)

    def state(self, local: tuple[str, int], remote: tuple[str, int]) -> str:
        """From the stack's table."""
        self.settle()
        info = self.stack.find_socket(local, remote)
        return "CLOSED" if info is None else info.state

    def new_host(self) -> str:
        """An address that the stack knows the MAC of."""
        self._hosts += 1
        ip = f"10.9.{1 + self._hosts // 250}.{1 + self._hosts % 250}"
        self.stack.neighbor(ip, PEER_MAC)
        return ip

    def sysctl(self, name: str, value: str | int) -> None:  # noqa: B027 (as it should)
        """There is none here."""
