# SPDX-License-Identifier: MIT
"""A connection to the controller: one application process, or one command of an operator."""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from machnet.sidecar.protocol import PACKET_BYTES_MAX, MalformedError

if TYPE_CHECKING:
    from machnet.sidecar.access import Peer
    from machnet.sidecar.captures import Capture
    from machnet.stack.lending import Lent

__all__ = ["Connection"]

_MSG_CTRUNC = socket.MSG_CTRUNC


class Connection:
    """One connection. Never blocks: a reply that finds no room waits, and nothing is read meanwhile.

    Attributes:
        peer: Who it is, as the kernel says.
        name: What it calls itself, once it has said hello; None before.
        channels: What it has attached, by number.
        attached: Whether it ever had a channel: an application, not an operator's command.
        busy: A question of its is being answered: nothing is to be read.
    """

    def __init__(self, sock: socket.socket, peer: Peer) -> None:
        self.sock = sock
        self.peer = peer
        self.name: str | None = None
        self.channels: dict[int, Lent] = {}
        self.attached = False
        self.memory_bytes = 0
        self.flows = 0
        self.capture: Capture | None = None
        self.busy = False
        self.closed = False
        self.born = time.monotonic()
        self._unsent: tuple[bytes, Sequence[int], Callable[[], None] | None] | None = None

    @property
    def waits_to_send(self) -> bool:
        """Whether a reply has found no room."""
        return self._unsent is not None

    def receive(self) -> bytes | None:
        """The next packet; None: there is none yet; empty: the application has closed.

        Raises:
            MalformedError: It brought descriptors (which the kernel has dropped), or was too long.
            OSError: The connection is broken.
        """
        try:
            # No room for ancillary data: what somebody sends along is never installed here.
            packet, _, flags, _ = self.sock.recvmsg(PACKET_BYTES_MAX)
        except (BlockingIOError, InterruptedError):
            return None
        if flags & _MSG_CTRUNC:
            raise MalformedError("descriptors came with a packet")
        if flags & socket.MSG_TRUNC:
            raise MalformedError(f"a packet of more than {PACKET_BYTES_MAX} bytes")
        return packet

    def send(
        self, packet: bytes, fds: Sequence[int] = (), sent: Callable[[], None] | None = None
    ) -> bool:
        """Send a reply, or keep it until there is room.

        Args:
            packet: The reply.
            fds: Descriptors that go along; they stay the caller's.
            sent: Called once it is on its way, or given up.

        Returns:
            Whether it is on its way.

        Raises:
            OSError: The connection is broken.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.sock.sendmsg([packet], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            self._unsent = (packet, fds, sent)
            return False
        except OSError:
            if sent is not None:
                sent()
            raise
        if sent is not None:
            sent()
        return True

    def send_more(self) -> bool:
        """Try again what found no room; whether nothing is left."""
        if self._unsent is None:
            return True
        packet, fds, sent = self._unsent
        self._unsent = None
        return self.send(packet, fds, sent)

    def shut(self) -> None:
        """Close the socket; what was to be sent is given up."""
        self.closed = True
        if self._unsent is not None:
            _, _, sent = self._unsent
            self._unsent = None
            if sent is not None:
                sent()
        self.sock.close()


def memfd_of(data: bytes) -> int:
    """A descriptor of a file in memory with ``data`` in it, read from its beginning."""
    fd = os.memfd_create("machnet-answer", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
