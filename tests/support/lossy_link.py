# SPDX-License-Identifier: MIT
"""A cable between machnet's TAP and a Linux host that loses, repeats and reorders frames."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

from linux_peer import KERNEL_IP, OUR_IP, Peer

from machnet import Stack
from machnet.sim import KernelHost, Tap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_HOLD_S = 0.001


class Faults:
    """What happens to each frame of one direction; probabilities from 0 to 1.

    Args:
        seed: Of the decisions, which depend on nothing but the number of the frame.
        loss: It vanishes.
        duplicate: It comes twice.
        reorder: The next few overtake it.
        corrupt: One of its bits changes.
    """

    def __init__(
        self,
        seed: int,
        *,
        loss: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        corrupt: float = 0.0,
    ) -> None:
        self.rates = (loss, duplicate, reorder, corrupt)
        self.counts = dict.fromkeys(("frames", "lost", "repeated", "reordered", "corrupted"), 0)
        self._rng = random.Random(seed)
        self._held: list[bytes] = []
        self.blocked = False

    def pass_on(self, frame: bytes) -> list[bytes]:
        """What arrives at the other end now."""
        loss, duplicate, reorder, corrupt = (self._rng.random() < rate for rate in self.rates)
        self.counts["frames"] += 1
        out = [frame]
        if self.blocked or loss:
            self.counts["lost"] += 1
            return []
        if corrupt and len(frame) > 54:
            self.counts["corrupted"] += 1
            at = self._rng.randrange(34, len(frame))
            changed = frame[at] ^ 1 << self._rng.randrange(8)
            out = [frame[:at] + bytes([changed]) + frame[at + 1 :]]
        if duplicate:
            self.counts["repeated"] += 1
            out *= 2
        if reorder and len(self._held) < 3:
            self.counts["reordered"] += 1
            self._held += out
            return []
        return out + self.release()

    def release(self) -> list[bytes]:
        """What was held back."""
        held, self._held = self._held, []
        return held


class LossyPeer(Peer):
    """A `Peer` behind such a cable.

    Attributes:
        to_linux: Faults of what the stack sends.
        to_stack: Faults of what it receives.
    """

    to_linux: Faults
    to_stack: Faults


class _Relay(threading.Thread):
    """Moves frames between a packet socket and a TAP until it is told to stop."""

    def __init__(self, packet: socket.socket, tap_fd: int, peer: LossyPeer) -> None:
        super().__init__(name="relay")
        self._packet, self._tap_fd, self._peer = packet, tap_fd, peer
        self._ours, self._theirs = socket.socketpair()

    def stop(self) -> None:
        """End the thread."""
        self._theirs.close()
        self.join()
        self._ours.close()

    def run(self) -> None:
        """Both directions."""
        while True:
            ready = select.select([self._packet, self._tap_fd, self._ours], [], [], _HOLD_S)[0]
            if self._ours in ready:
                return
            if not ready:
                self._put(self._to_linux, self._peer.to_linux.release())
                self._put(self._to_stack, self._peer.to_stack.release())
            if self._packet in ready:
                frame, address = self._packet.recvfrom(65536)
                if address[2] != _PACKET_OUTGOING:
                    self._put(self._to_linux, self._peer.to_linux.pass_on(frame))
            if self._tap_fd in ready:
                frame = os.read(self._tap_fd, 65536)
                self._put(self._to_stack, self._peer.to_stack.pass_on(frame))

    @staticmethod
    def _put(put: Callable[[bytes], Any], frames: list[bytes]) -> None:
        for frame in frames:
            # A queue that is full loses the frame, as queues do.
            with contextlib.suppress(BlockingIOError, InterruptedError):
                put(frame)

    def _to_linux(self, frame: bytes) -> None:
        os.write(self._tap_fd, frame)

    def _to_stack(self, frame: bytes) -> None:
        with contextlib.suppress(OSError):
            self._packet.send(frame)


@contextlib.contextmanager
def lossy_peer(to_linux: Faults, to_stack: Faults, **settings: Any) -> Iterator[LossyPeer]:
    """A stack and a Linux host with such a cable between them; settings of the stack."""
    with contextlib.ExitStack() as exits:
        linux = exits.enter_context(KernelHost("linux", ipv6=False))
        middle = exits.enter_context(KernelHost("middle", ipv6=False))
        plain = {"vnet_hdr": False, "offloads": False}
        linux_fd = linux.open_tap("eth0", kernel_ip=f"{KERNEL_IP}/24", **plain)
        exits.callback(os.close, linux_fd)
        linux.set_offloads("eth0", on=False)
        tap = Tap(fd=middle.open_tap("mn0", **plain), offload=False)
        exits.callback(tap.close)
        packet = exits.enter_context(
            middle.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        )
        packet.bind(("mn0", _ETH_P_ALL))
        packet.setblocking(False)
        settings = {"seed": 7, "msl_ms": 50, "app_exit_linger_ms": 500, **settings}
        stack = Stack(tap, f"{OUR_IP}/24", **settings)
        exits.callback(stack.close, 0)
        peer = LossyPeer(linux, tap, stack)
        peer.to_linux, peer.to_stack = to_linux, to_stack
        exits.callback(peer.close_sockets)
        relay = _Relay(packet, linux_fd, peer)
        relay.start()
        exits.callback(relay.stop)
        yield peer
