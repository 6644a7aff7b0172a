# SPDX-License-Identifier: MIT
"""A mark on an interface of the kernel that a process has a port on, for others to see.

Packet sockets share an interface: a second process gets all frames too, and nobody tells it. So each
process listens on a UNIX socket in the abstract namespace with the interface's name in its own. Such names
belong to a network namespace, as interfaces do, they need no permission and no directory, and they are gone
when their process is, however it ended. Anybody may take such a name: so it is a reason for a warning, and
not for a refusal.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import weakref

__all__ = ["Mark"]

#: Processes with a mark on one interface; one more has none, and still sees theirs.
_MARKS_MAX = 8
#: Who asks waits in the listener's queue, which nobody empties.
_BACKLOG = 1024


class Mark:
    """Marks an interface until `close`, or until this process ends.

    Args:
        interface: Its name.

    Attributes:
        others: The processes that had marked it before; 0: one whose number is not known here.
    """

    def __init__(self, interface: str) -> None:
        mine: int | None = None
        found: set[int] = set()
        for number in range(_MARKS_MAX):
            name = f"\0machnet/nic/{interface}/{number}"
            try:
                if mine is None and (mine := _take(name)) is not None:
                    continue
            except OSError:  # no such sockets here: nothing is known, and nothing said
                break
            pid = _owner(name)
            if pid is not None:
                found.add(pid)
            elif mine is None:  # it was not free, and nobody listens yet
                found.add(0)
        self._close = weakref.finalize(self, os.close, mine) if mine is not None else None
        self.others = tuple(sorted(found - {os.getpid()}))

    def close(self) -> None:
        """Take it away. Again: nothing."""
        if self._close is not None:
            self._close()


def _take(name: str) -> int | None:
    """A socket that listens by this name; None: it is not free."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return None
        sock.listen(_BACKLOG)
        return sock.detach()


def _owner(name: str) -> int | None:
    """The process that has a name; None: nobody, as far as can be seen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            sock.connect(name)
        except OSError:
            return None
        said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", said)[0])
