# SPDX-License-Identifier: MIT
"""Ports: what a scripted host is plugged into.

A port sends and receives frames and knows the time, virtual or real. The other side may be a stack on
a hand-fed wire (`WirePort`), the Linux kernel behind a TAP (`TapPort`), or anything else with the few
members of `Port`, such as ``machnet.sim.Network``'s raw hosts.
"""

from __future__ import annotations

import collections
import errno
import select
import time
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from machnet.testing.octets import format_ip, ip_bytes

if TYPE_CHECKING:
    from machnet.stack.nics import Nic
    from machnet.stack.stack import Stack

__all__ = ["Port", "TapPort", "WirePort", "as_port"]

#: MAC address of a scripted host that nobody gave one.
PEER_MAC = "02:00:00:00:00:01"


@runtime_checkable
class Port(Protocol):
    """What `RawPeer` needs.

    It also looks at these, where a port has them:

    - ``remote_ip``: who is spoken to unless a packet says otherwise;
    - ``neighbors``: a dict of MAC addresses by IP address that need not be asked for;
    - ``patience_ns``: how long `RawPeer.expect` waits when it is not told.
    """

    ip: str
    mac: str

    @property
    def now_ns(self) -> int:
        """The present time, in nanoseconds from any origin."""

    def send(self, frame: bytes) -> None:
        """Transmit a frame now."""

    def recv(self, within_ns: int) -> tuple[int, bytes] | None:
        """The next frame with its time, waiting for it up to ``within_ns``; None if none came."""


class WirePort:
    """The other end of a stack's hand-fed wire, in virtual time.

    Waiting for a frame advances the stack, from timer to timer, as far as that frame.

    Args:
        stack: A `machnet.Stack` on a `machnet.sim.Wire` of its own.
        ip: Address of the scripted host; None: the first one of the stack's network that is free.
        mac: Its MAC address.
    """

    patience_ns = 100_000_000

    def __init__(self, stack: Stack, ip: str | None = None, mac: str = PEER_MAC) -> None:
        self.stack = stack
        self.ip = _free_address(stack) if ip is None else ip
        self.mac = mac
        self.remote_ip = stack.ip
        self.neighbors = {stack.ip: stack.mac}
        self._frames: collections.deque[tuple[int, bytes]] = collections.deque()

    @property
    def now_ns(self) -> int:
        """The stack's virtual time."""
        return self.stack.now_ns

    def send(self, frame: bytes) -> None:
        """Let the stack receive a frame, and process it."""
        self.stack.inject(frame)

    def recv(self, within_ns: int) -> tuple[int, bytes] | None:
        """The next frame that the stack sends, within so much virtual time."""
        end = self.now_ns + within_ns
        while True:
            self._frames.extend(self.stack.drain())
            if self._frames:
                return self._frames.popleft()
            now = self.now_ns
            if now >= end:
                return None
            due = self.stack.deadline()
            self.stack.advance((end if due is None else min(end, max(due, now + 1))) - now)


def _free_address(stack: Stack) -> str:
    own = int.from_bytes(ip_bytes(stack.ip), "big")
    first = (own >> (32 - stack.prefix) << (32 - stack.prefix)) + 1
    return format_ip((first + (first == own)).to_bytes(4, "big"))


class TapPort:
    """This end of a TAP, with the Linux kernel at the other one; in real time.

    Args:
        tap: A `machnet.sim.Tap` opened with ``offload=False``; it stays the caller's.
        ip: Address of the scripted host: one of the network that the kernel's end is in.
        mac: Its MAC address; None: the TAP's own.
        remote_ip: The kernel's address, for packets that don't say where to.

    Raises:
        ValueError: The TAP has offloads: frames would be unfinished.
    """

    patience_ns = 5_000_000_000

    def __init__(
        self, tap: Nic, ip: str, mac: str | None = None, *, remote_ip: str | None = None
    ) -> None:
        from machnet._native import ffi, lib

        info = ffi.new("struct mn_nic_info *")
        lib.mn_nic_get_info(tap.native, info)
        if info.tx_gso or info.rx_csum_trusted:
            raise ValueError(f"{tap} has offloads: open it with offload=False")
        self.tap, self.ip, self.mac = tap, ip, mac or tap.mac
        self.remote_ip = remote_ip
        self.neighbors: dict[str, str] = {}
        kernel_mac = getattr(tap, "kernel_mac", None)
        if remote_ip is not None and kernel_mac is not None:
            self.neighbors[remote_ip] = kernel_mac
        self._lib, self._ffi = lib, ffi
        self._bytes = int(info.rx_max_frame)
        self._buf: Any = ffi.new("uint8_t[]", self._bytes)
        self._poll = select.poll()
        self._poll.register(int(info.rx_fd), select.POLLIN)

    @property
    def now_ns(self) -> int:
        """``time.monotonic_ns``."""
        return time.monotonic_ns()

    def send(self, frame: bytes) -> None:
        """Hand a frame to the kernel.

        Raises:
            OSError: It is not taken: longer than the MTU allows, or the interface is down.
        """
        rc = self._lib.mn_nic_tx_bytes(self.tap.native, 0, frame, len(frame), self._ffi.NULL)
        if rc < 0:
            raise OSError(-rc, f"{self.tap} did not take a frame of {len(frame)} bytes")

    def _take(self) -> bytes | None:
        length = self._lib.mn_nic_rx_bytes(
            self.tap.native, 0, self._buf, self._bytes, self._ffi.NULL
        )
        if length == -errno.EAGAIN:
            return None
        if length < 0:
            raise OSError(-length, f"{self.tap}: receiving failed")
        return bytes(self._ffi.buffer(self._buf, length))

    def recv(self, within_ns: int) -> tuple[int, bytes] | None:
        """The next frame of the kernel, with the time at which it was read."""
        end = time.monotonic_ns() + within_ns
        while (frame := self._take()) is None:
            left = end - time.monotonic_ns()
            if left <= 0:
                return None
            self._poll.poll(-(-left // 1_000_000))
        return time.monotonic_ns(), frame


def as_port(where: Any, **arguments: Any) -> Port:
    """A port for what is given: a port itself, a stack on a hand-fed wire, or a TAP.

    Args:
        where: A `Port`, `machnet.Stack` or `machnet.sim.Tap`.
        arguments: For `WirePort` or `TapPort`.

    Raises:
        TypeError: It is none of these.
    """
    if hasattr(where, "recv") and isinstance(where, Port) and not arguments:
        return where
    if hasattr(where, "inject") and hasattr(where, "drain") and hasattr(where, "deadline"):
        return WirePort(where, **arguments)
    if hasattr(where, "kernel_mac"):
        return TapPort(where, **arguments)
    raise TypeError(
        f"{where!r} is no port: send(frame), recv(within_ns), now_ns, ip and mac; "
        "nor a machnet.Stack on a hand-fed Wire, nor a machnet.sim.Tap"
    )
