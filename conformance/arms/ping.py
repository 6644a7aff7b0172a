# SPDX-License-Identifier: MIT
"""How a port in real time learns that its arm has processed what it was sent: by a ping."""

from __future__ import annotations

import abc
import time

from conformance.arms import ARM_IP, SEC
from machnet.testing import Packet, icmp

_ICMP, _PING_ID = 1, 0x4D4E
#: How long an arm may take to answer on a machine that is busy.
_PATIENCE_NS = 30 * SEC


class PingingPort(abc.ABC):
    """What ports in real time have in common; the other members of a `machnet.testing.Port` are theirs.

    Frames keep their order, so that the answer to an earlier one comes before that to a ping; what
    comes before it is kept for `recv`.
    """

    ip: str
    mac: str
    neighbors: dict[str, str]

    def __init__(self) -> None:
        self._kept: list[tuple[int, bytes]] = []
        self._pings = 0

    @property
    def now_ns(self) -> int:
        """``time.monotonic_ns``."""
        return time.monotonic_ns()

    @abc.abstractmethod
    def _transmit(self, frame: bytes) -> None:
        """Send a frame, no more."""

    @abc.abstractmethod
    def _receive(self, within_ns: int) -> tuple[int, bytes] | None:
        """Wait for the next frame of the wire."""

    def recv(self, within_ns: int = 0) -> tuple[int, bytes] | None:
        """The next frame; waits for it."""
        return self._kept.pop(0) if self._kept else self._receive(within_ns)

    def ping(self) -> None:
        """Ping the arm, and wait for its answer.

        Raises:
            TimeoutError: None came.
        """
        self._pings = (self._pings + 1) & 0xFFFF
        request = icmp("echo-request", id=_PING_ID, seq=self._pings)
        addresses = {"eth_src": self.mac, "eth_dst": self.neighbors[ARM_IP], "src": self.ip}
        self._transmit(request.build({**addresses, "dst": ARM_IP}))
        reply = icmp("echo-reply", id=_PING_ID, seq=self._pings)
        end = self.now_ns + _PATIENCE_NS
        while (got := self._receive(max(0, end - self.now_ns))) is not None:
            if got[1][23] == _ICMP and reply.matches(Packet(got[1])):
                return
            self._kept.append(got)
        raise TimeoutError(f"{ARM_IP} does not answer a ping")

    def forget(self) -> None:
        """Drop what is left of an earlier case."""
        self.ping()
        self._kept.clear()
