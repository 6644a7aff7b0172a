# SPDX-License-Identifier: MIT
"""The network of a test: faults of its marker happen on links that the test makes later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from machnet.sim import Network

if TYPE_CHECKING:
    from machnet.sim.faults import Fault
    from machnet.sim.links import Link


class TestNetwork(Network):
    """A `machnet.sim.Network` that has faults in store.

    Attributes:
        pending: Faults that name nodes or links which there are not yet.
    """

    __test__ = False  # it is no class of tests

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.pending: list[Fault] = []

    def link(self, *args: Any, **params: Any) -> Link:
        """As `Network.link`; then have those faults happen whose nodes and links are there."""
        made = super().link(*args, **params)
        ready = [fault for fault in self.pending if self._names(fault) <= self._known()]
        if ready:
            self.pending = [fault for fault in self.pending if fault not in ready]
            self.apply(ready)
        return made

    link.__doc__ = Network.link.__doc__

    def _known(self) -> set[str]:
        known = {node.name for link in self.links for node in (link.a, link.b)}
        for link in self.links:
            known |= {link.name, link.forward.name, link.backward.name}
        return known

    @staticmethod
    def _names(fault: Any) -> set[str]:
        """The links and nodes that a fault names."""
        if hasattr(fault, "link"):
            return {fault.link}
        return {name for part in ("a", "b", "host") for name in getattr(fault, part, ())}
