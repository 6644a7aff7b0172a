# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (channels, sockets and streams are one implementation in several files)
"""What a channel deals in: messages, flows and listeners."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import msgspec

from machnet.stack.names import format_ip, protocol_name

if TYPE_CHECKING:
    from machnet.channel import Channel

__all__ = ["Flow", "Listener", "Message"]


class Message(msgspec.Struct):
    """What `Channel.recv` returns.

    Attributes:
        data: The message's bytes, without framing.
        flow: Where it came from, which is also the handle for answering.
    """

    data: bytes
    flow: Flow

    def __repr__(self) -> str:
        data = repr(self.data[:32]) + ("..." if len(self.data) > 32 else "")
        return f"Message({len(self.data)} bytes {data}, {self.flow})"


class Flow:
    """One connection, as its channel sees it.

    Attributes:
        channel: The channel that it belongs to.
        id: Its number in the channel, which has its generation in it: no later flow gets the same.
        protocol: "udp", "tcp" (messages) or "stream" (bytes).
        local: Our address and port.
        remote: The peer's.
    """

    __slots__ = ("__weakref__", "_error", "channel", "id", "local", "protocol", "remote")

    def __init__(self, channel: Channel, info: Any) -> None:
        self.channel = channel
        self.id = int(info.flow)
        self.protocol = protocol_name(info.proto)
        self.local = (format_ip(info.local_ip), int(info.local_port))
        self.remote = (format_ip(info.remote_ip), int(info.remote_port))
        self._error: int | None = None

    @property
    def generation(self) -> int:
        """How often the flow's slot has been used before (modulo 65536)."""
        return self.id >> 16

    @property
    def error(self) -> int:
        """0 while data can go both ways; ``ENOTCONN`` after a clean close; else the ``errno`` of its end."""
        if self._error is not None:
            return self._error
        info = self.channel._flow_info(self.id)
        if info is None:
            return errno.ENOTCONN
        if info.ended:
            self._error = int(info.error)
            return self._error
        return int(info.error)

    @property
    def soft_error(self) -> int:
        """``errno`` of the last thing that went wrong without ending the flow (ICMP, R1), or 0."""
        info = self.channel._flow_info(self.id)
        return int(info.soft_error) if info is not None else 0

    @property
    def live(self) -> bool:
        """Whether it may be sent on."""
        info = self.channel._flow_info(self.id)
        return info is not None and bool(info.live)

    def send(self, data: bytes | bytearray | memoryview, timeout: float | None = 0.0) -> int:
        """`Channel.send` on this flow."""
        return self.channel.send(self, data, timeout)

    def read(self, size: int = 65536, timeout: float | None = None) -> bytes:
        """`Channel.read` on this flow."""
        return self.channel.read(self, size, timeout)

    def shutdown(self) -> None:
        """Send no more: the peer gets FIN behind what was sent. Receiving goes on.

        Raises:
            FlowError: The flow has ended.
        """
        self.channel._shutdown(self)

    def close(self, linger: float | None = None) -> None:
        """Give the flow up. Unread data are dropped; again: nothing.

        Args:
            linger: Seconds to go on sending what was sent, then FIN; then the flow is reset. None:
                the default of the engine. 0: reset it now.
        """
        self.channel._close_flow(self, linger)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Flow):
            return NotImplemented
        return self.id == other.id and self.channel is other.channel

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        (local, lport), (remote, rport) = self.local, self.remote
        return f"<Flow {self.protocol} {local}:{lport} -> {remote}:{rport}>"


class Listener:
    """An address and port on which a channel takes connections.

    Attributes:
        channel: The channel whose flows they become.
        id: Its number.
        protocol: "udp", "tcp" or "stream".
        local: Address ("0.0.0.0": any of the engine's) and port.
    """

    __slots__ = ("__weakref__", "channel", "id", "local", "protocol")

    def __init__(
        self, channel: Channel, number: int, protocol: str, local: tuple[str, int]
    ) -> None:
        self.channel = channel
        self.id = number
        self.protocol = protocol
        self.local = local

    def accept(self, timeout: float | None = None) -> Flow:
        """The next connection of a stream listener. Framed flows show up with their first message.

        Args:
            timeout: Seconds; None: for ever; 0: only look.

        Raises:
            TimeoutError: There was none in time.
            ValueError: It is a framed listener.
        """
        return self.channel._accept(self, timeout)

    def close(self) -> None:
        """Take no more connections. Those that were accepted live on."""
        self.channel._unlisten(self)

    def __repr__(self) -> str:
        return f"<Listener {self.protocol} {self.local[0]}:{self.local[1]}>"
