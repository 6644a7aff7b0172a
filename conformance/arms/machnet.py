# SPDX-License-Identifier: MIT
"""machnet as an arm: a stack on a wire that is fed by hand, in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from machnet import Stack
from machnet.sim import Wire
from machnet.stack.socket import TCP_ISN

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.arms import Settings

ARM_IP, PEER_IP, PEER_MAC = "10.9.0.1", "10.9.0.2", "02:00:00:00:00:02"
_SEC = 1_000_000_000
#: Least step of time between two looks of `wait`.
_STEP_NS = 1_000_000


class WirePort:
    """The far end of the stack's wire."""

    def __init__(self, stack: Stack) -> None:
        self.ip, self.mac = PEER_IP, PEER_MAC
        self._stack = stack
        self._frames: list[tuple[int, bytes]] = []

    @property
    def now_ns(self) -> int:
        """Virtual time."""
        return self._stack.now_ns

    def send(self, frame: bytes) -> None:
        """Put a frame on the wire; it is processed at once."""
        self._stack.inject(frame)

    def recv(self, within_ns: int = 0) -> tuple[int, bytes] | None:
        """The next frame; time goes on from one deadline of the stack to the next."""
        end = self.now_ns + within_ns
        while True:
            self._frames += self._stack.drain()
            if self._frames:
                return self._frames.pop(0)
            if self.now_ns >= end:
                return None
            due = self._stack.deadline()
            self._stack.advance(
                (end if due is None else min(end, max(due, self.now_ns + 1))) - self.now_ns
            )


class MachnetArm:
    """See `conformance.arms.Arm`."""

    name = "machnet"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
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
        self.wire = WirePort(self.stack)

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
        import socket

        sock.setsockopt(socket.IPPROTO_TCP, TCP_ISN, isn)

    def wait(self, call: Callable[[], Any], within_ns: int = 10 * _SEC) -> Any:
        """Call again and again, a millisecond apart."""
        end = self.now_ns + within_ns
        while True:
            try:
                return call()
            except BlockingIOError:
                if self.now_ns >= end:
                    raise
                self.stack.advance(_STEP_NS)

    def state(self, local: tuple[str, int], remote: tuple[str, int]) -> str:
        """From the stack's table."""
        info = self.stack.find_socket(local, remote)
        return "CLOSED" if info is None else info.state

    def sysctl(self, name: str, value: str | int) -> None:
        """There is none here."""

    def close(self) -> None:
        """Close the stack and its wire."""
        self.stack.close()
        self._nic.close()
