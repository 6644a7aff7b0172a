# SPDX-License-Identifier: MIT
"""A Linux host across a network that loses, repeats, reorders and corrupts frames."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from linux_peer import KERNEL_IP, OUR_IP, Peer

from machnet import Stack
from machnet.sim import Faulty, KernelHost, Tap

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class LossyPeer(Peer):
    """A `Peer` behind such a network.

    Attributes:
        faulty: The network.
    """

    faulty: Faulty

    def met(self, fault: str) -> int:
        """How many frames met with a fault, in both directions."""
        stats = self.faulty.stats()
        return stats[f"tx_{fault}"] + stats[f"rx_{fault}"]


@contextlib.contextmanager
def lossy_peer(
    *,
    seed: int = 1,
    faults: Mapping[str, Any] | None = None,
    tx: Mapping[str, Any] | None = None,
    rx: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Iterator[LossyPeer]:
    """A stack and a Linux host with such a network between them.

    Args:
        seed: Of the faults.
        faults: Parameters of `machnet.sim.Faulty` for both directions.
        tx: The same for what the stack sends.
        rx: The same for what it receives.
        settings: Of the stack.
    """
    with contextlib.ExitStack() as exits:
        host = exits.enter_context(KernelHost("linux", ipv6=False))
        fd = host.open_tap("mn0", kernel_ip=f"{KERNEL_IP}/24", vnet_hdr=False, offloads=False)
        tap = Tap(fd=fd, offload=False)
        exits.callback(tap.close)
        faulty = Faulty(tap, seed=seed, tx=tx, rx=rx, **(faults or {}))
        exits.callback(faulty.close)
        settings = {"seed": 7, "msl_ms": 50, "app_exit_linger_ms": 500, **settings}
        stack = Stack(faulty, f"{OUR_IP}/24", **settings)
        exits.callback(stack.close, 0)
        peer = LossyPeer(host, tap, stack)
        peer.faulty = faulty
        exits.callback(peer.close_sockets)
        yield peer
