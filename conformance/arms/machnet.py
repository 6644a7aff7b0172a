# SPDX-License-Identifier: MIT
"""machnet as an arm: a stack on a wire that is fed by hand, in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.arms import PEER_IP, PEER_MAC
from conformance.arms.stack import StackArm
from machnet.sim import Wire
from machnet.testing import WirePort

if TYPE_CHECKING:
    from conformance.arms import Settings


class MachnetArm(StackArm):
    """See `conformance.arms.Arm`."""

    def __init__(self, settings: Settings) -> None:
        self._nic = Wire(mtu=settings.mtu)
        super().__init__(settings, self._nic, seed=7)
        self.wire = WirePort(self.stack, PEER_IP, PEER_MAC)

    def sleep(self, ns: int) -> None:
        """Let virtual time pass."""
        self.stack.advance(ns)

    def settle(self) -> None:
        """Whatever can be done at the present time is done."""
        self.stack.advance(0)

    def socket(self) -> Any:
        """A stream socket of the stack."""
        return self.stack.socket()

    def close(self) -> None:
        """Close the stack and its wire."""
        self.stack.close()
        self._nic.close()
