# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (a network, its nodes and its links are one implementation in several files)
"""The nodes of a simulated network: hosts with an engine, scripted hosts, and switches."""

from __future__ import annotations

import errno
import hashlib
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.config import Settings, convert
from machnet.errors import os_error
from machnet.sim.units import Duration, duration_ns
from machnet.stack.names import parse_interface
from machnet.stack.nics import Nic
from machnet.stack.opening import check_mtu, native_config
from machnet.stack.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable

    from machnet.channel import Channel
    from machnet.sim.control import ActiveFault
    from machnet.sim.network import Network
    from machnet.stack.clock import Clock
    from machnet.stack.info import SocketInfo
    from machnet.stack.socket import Socket

__all__ = ["Host", "Node", "RawHost", "SimNic", "Switch"]


class SimNic(Nic):
    """A host's NIC in a simulated network, for its `machnet.Stack`."""

    realtime = False

    def __init__(self, net: Network, node: int, name: str) -> None:
        super().__init__(lib.mn_simnet_nic(net._native, node), name)
        self._net = net

    def new_clock(self) -> Clock:
        """The network's clock."""
        return self._net.clock


def check_host(
    interface: str, gateway: str | None, mtu: int, settings: dict[str, Any], what: str
) -> None:
    """Refuse what no engine would start with, before anything is made or taken down for it."""
    config = native_config(interface, gateway, convert(Settings, settings, what))
    check_mtu(config, mtu, what)


class Node:
    """What a link can end at.

    Attributes:
        net: The network.
        name: Its name, unique in the network.
        number: Its number, from 0, in the order the nodes were made; also that of its interface in
            captures.
    """

    def __init__(self, net: Network, number: int, name: str) -> None:
        self.net = net
        self.name = name
        self.number = number

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class Switch(Node):
    """Learns addresses, floods what it does not know, and is not harmed by loops of links."""


class RawHost(Node):
    """A scripted host: sends what it is told to, and keeps what it receives; it answers nothing.

    It is a *port* for `machnet.testing.RawPeer`.

    Attributes:
        ip: The address it stands for. Only the script knows of it.
        mac: Its MAC address; it receives everything that its link delivers.
    """

    def __init__(self, net: Network, number: int, name: str, ip: str, mtu: int) -> None:
        super().__init__(net, number, name)
        self.ip = ip
        self.mac = SimNic(net, number, name).mac
        self.mtu = mtu
        self._buf = ffi.new("uint8_t[]", mtu + 18)
        self._when = ffi.new("uint64_t *")

    @property
    def now_ns(self) -> int:
        """The present virtual time."""
        return self.net.now_ns

    def send(self, frame: bytes) -> None:
        """Put a frame on the link, with its Ethernet header and without a frame check sequence.

        Raises:
            ValueError: It is shorter than its Ethernet header, or too long.
            BlockingIOError: The network holds as many frames as it can.
        """
        self.net._usable("send")
        raw = ffi.from_buffer("uint8_t[]", frame)
        rc = lib.mn_simnet_send(self.net._native, self.number, raw, len(frame))
        if rc in {-errno.EMSGSIZE, -errno.EINVAL}:
            raise ValueError(
                f"{self.name}: a frame has 14 to {self.mtu + 14} bytes, not {len(frame)}"
            )
        if rc == -errno.ENOBUFS:
            raise BlockingIOError(errno.EAGAIN, f"{self.name}: no room for another frame")
        if rc == -errno.ENETDOWN:
            raise ValueError(f"{self.name}: send: it has no link")
        self.net._check(rc, f"{self.name}: send")

    def _take_one(self) -> tuple[int, bytes] | None:
        size = len(self._buf)
        n = lib.mn_simnet_take(self.net._native, self.number, self._buf, size, self._when)
        if n == -errno.EMSGSIZE:
            self._buf = ffi.new("uint8_t[]", 65536 + 64)
            return self._take_one()
        self.net._check(n, f"{self.name}: take")
        return (int(self._when[0]), bytes(ffi.buffer(self._buf, n))) if n > 0 else None

    def take(self) -> list[tuple[int, bytes]]:
        """The frames that came in since the last call, each with its time in ns; and forget them."""
        self.net._usable("take")
        frames = []
        while (frame := self._take_one()) is not None:
            frames.append(frame)
        return frames

    def recv(self, within_ns: Duration = 0) -> tuple[int, bytes] | None:
        """The next frame and its time, letting virtual time pass until it comes.

        Args:
            within_ns: How long to wait at most; 0: only look.

        Returns:
            None when none came.

        Raises:
            ReentrantError: It would have to wait inside a coroutine, a rule or a callback.
        """
        self.net._usable("recv")
        found = self._take_one()
        limit = duration_ns(within_ns, "within_ns")
        if found is None and limit > 0:
            box: list[tuple[int, bytes]] = []

            def came() -> bool:
                frame = self._take_one()
                if frame is not None:
                    box.append(frame)
                return frame is not None

            self.net._drive(came, self.net.now_ns + limit, f"{self.name}: recv")
            found = box[0] if box else None
        return found


class Host(Node):
    """A host with a real engine; made by `Network.host`.

    Attributes:
        ip: Its address.
        mac: Its MAC address.
        settings: What its stack was given (fields of `machnet.config.Settings`).
        on_restart: A function of the host that is called after each restart, to start its
            applications anew; None: none. It may not let time pass.
    """

    def __init__(
        self,
        net: Network,
        number: int,
        name: str,
        interface: str,
        gateway: str | None,
        settings: dict[str, Any],
    ) -> None:
        super().__init__(net, number, name)
        self._interface = interface
        self._gateway = gateway
        self.settings = settings
        self.ip = interface.partition("/")[0]
        self._nic = SimNic(net, number, name)
        self.mac = self._nic.mac
        self._boots = 0
        self._paused = 0
        self._stack: Stack | None = None
        #: Called with the host after each restart: starts its applications anew.
        self.on_restart: Callable[[Host], object] | None = None
        #: What `Stack.usage` said when the stack was new.
        self._baseline: dict[str, int] = {}

    # ---- its engine ------------------------------------------------------------------------------

    def _check(self, settings: dict[str, Any]) -> None:
        """Refuse settings that it could not start with."""
        what = f"{self.name}: restart"
        check_host(self._interface, self._gateway, self._nic.mtu, settings, what)

    def _boot(self) -> None:
        self._boots += 1
        word = f"{self.net.seed} host {self.name} boot {self._boots}"
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        interface, gateway = self._interface, self._gateway
        stack = Stack(self._nic, interface, gateway, seed=seed, **self.settings)
        rc = lib.mn_simnet_bind(self.net._native, self.number, stack.core.native)
        if rc < 0:
            stack.core.close()
            raise os_error(-rc, f"{self.name}: starting the host")
        self._stack = stack
        self._baseline = stack.usage()

    def _shut(self) -> None:
        """The engine is gone, without a word to anybody; its channels are closed."""
        stack, self._stack = self._stack, None
        if stack is None:
            return
        lib.mn_simnet_bind(self.net._native, self.number, ffi.NULL)
        stack._finalizer.detach()
        stack.core.close()
        stack._close_channels(0)

    @property
    def stack(self) -> Stack:
        """Its engine.

        Raises:
            RuntimeError: The host is down.
        """
        if self._stack is None:
            self.net._usable(self.name)
            raise RuntimeError(f"{self.name} is down since it crashed: restart() it first")
        return self._stack

    @property
    def up(self) -> bool:
        """Whether it has an engine: it was not crashed, and its stack not closed."""
        return self._stack is not None and not self._stack.closed

    @property
    def is_paused(self) -> bool:
        """Whether it stands still."""
        return self._paused > 0

    @property
    def prefix(self) -> int:
        """Prefix length of its network."""
        return parse_interface(self._interface)[1]

    @property
    def now_ns(self) -> int:
        """The time by its own clock, which may be skewed."""
        return int(lib.mn_simnet_local(self.net._native, self.number))

    def attach(self, **settings: int) -> Channel:
        """A new channel; see `machnet.Stack.attach`."""
        self.net._usable("attach")
        return self.stack.attach(**settings)

    def socket(self) -> Socket:
        """A new non-blocking stream socket; see `machnet.Stack.socket`."""
        self.net._usable("socket")
        return self.stack.socket()

    def sockets(self) -> list[SocketInfo]:
        """Its connections and listeners; none while it is down."""
        return self.stack.sockets() if self.up else []

    # ---- faults ----------------------------------------------------------------------------------

    def pause(self) -> ActiveFault:
        """Let it stand still: neither frames nor timers reach it, as a process that is stopped.

        Its applications should stand still too: a call that its engine has to answer (`listen`)
        waits, and in a coroutine raises `machnet.ReentrantError`. A crash or restart ends it.

        Returns:
            The fault: `resume` ends it, and so does its ``heal`` or the end of a ``with``.
        """
        return self.net.pause(self)

    def paused(self) -> ActiveFault:
        """The same, in the words of ``with host.paused(): ...``."""
        return self.pause()

    def resume(self) -> None:
        """Let it go on, however often it was paused; nothing happens if it was not."""
        self.net._control.resume(self)

    def crash(self) -> None:
        """Take it down at once, without a word to its peers; its channels are dead.

        Frames on their way to it are lost, and its tasks (`Network.create_task`) are cancelled.
        """
        self.net._control.crash(self)

    def restart(self, **settings: Any) -> Host:
        """Start it anew, with the same addresses and another secret; a host that is up crashes first.

        Args:
            settings: Instead of those that it was made with; none: the same again.
        """
        self.net._control.restart(self, settings)
        return self

    def skew(self, ppm: float = 0.0, jump: Duration = 0) -> None:
        """Its clock runs faster from now on.

        Args:
            ppm: By so many parts per million; negative: slower. -900,000 to 900,000.
            jump: And first jumps forward by that much.

        Raises:
            ValueError: One of them is out of its range.
        """
        self.net._control.skew(self, ppm, jump)

    def __repr__(self) -> str:
        state = "" if self.up else ", down"
        return f"<Host {self.name} {self.ip}{', paused' if self.is_paused else ''}{state}>"
