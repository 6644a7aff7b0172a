# SPDX-License-Identifier: MIT
"""machnet as an arm: a stack on a wire that is fed by hand, in virtual time."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from conformance.arms import SEC, wait_for
from machnet import Stack
from machnet.sim import Wire
from machnet.stack.socket import TCP_ISN
from machnet.testing import WirePort

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.arms import Settings

ARM_IP, PEER_IP, PEER_MAC = "10.9.0.1", "10.9.0.2", "02:00:00:00:00:02"


class MachnetArm:
    """See `conformance.arms.Arm`."""

    name = "machnet"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._hosts = 0
        self._nic = Wire(mtu=settings.mtu)
        self.stack = Stack(
            self._nic,
            f"{ARM_IP}/16",
            seed=7,
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
        self.wire = WirePort(self.stack, PEER_IP, PEER_MAC)

    @property
    def now_ns(self) -> int:
        """Virtual time."""
        return self.stack.now_ns

    def sleep(self, ns: int) -> None:
        """Let virtual time pass."""
        self.stack.advance(ns)

    def settle(self) -> None:
        """Whatever can be done at the present time is done."""
        self.stack.advance(0)

    def socket(self) -> Any:
        """A stream socket of the stack."""
        return self.stack.socket()

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

    def sysctl(self, name: str, value: str | int) -> None:
        """There is none here."""

    def close(self) -> None:
        """Close the stack and its wire."""
        self.stack.close()
        self._nic.close()
