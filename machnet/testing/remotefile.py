# SPDX-License-Identifier: MIT
"""Files over the sockets of another host."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machnet.testing.remote import RemoteSocket


class RemoteFile(io.RawIOBase):
    """What `RemoteSocket.makefile` reads from and writes to."""

    def __init__(self, sock: RemoteSocket, mode: str) -> None:
        if not set(mode) <= set("rwb") or not set(mode) & set("rw"):
            raise ValueError(f"mode {mode!r}: it is made of r, w and b")
        self._sock, self._mode = sock, mode

    def readable(self) -> bool:
        """Whether it was opened to be read."""
        return "r" in self._mode

    def writable(self) -> bool:
        """Whether it was opened to be written."""
        return "w" in self._mode

    def readinto(self, buffer: Any) -> int:
        """As `socket.socket.recv_into`."""
        return self._sock.recv_into(buffer)

    def write(self, data: Any) -> int:
        """As `socket.socket.send`."""
        return self._sock.send(data)
