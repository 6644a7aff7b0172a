# SPDX-License-Identifier: MIT
"""Who may attach: the kernel says who is at the other end, the allow list whether that is enough."""

from __future__ import annotations

import os
import pwd
import socket
import struct
from typing import NamedTuple

from machnet.sidecar.checks import group_id, user_id
from machnet.sidecar.config import Controller

__all__ = ["GROUP_DEFAULT", "AllowList", "Peer", "peer_of"]

#: Members of this group may attach when the configuration names no group.
GROUP_DEFAULT = "machnet"

_SO_PEERGROUPS = 59
#: Python asks for no more.
_GETSOCKOPT_BYTES_MAX = 1024


class Peer(NamedTuple):
    """A process at the other end, as it was when it connected."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]


def peer_of(sock: socket.socket) -> Peer:
    """Who has connected, by SO_PEERCRED and SO_PEERGROUPS.

    Raises:
        OSError: The kernel does not say.
    """
    size = struct.calcsize("3i")
    pid, uid, gid = struct.unpack(
        "3I", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GETSOCKOPT_BYTES_MAX)
        groups = struct.unpack(f"{len(raw) // 4}I", raw)
    except OSError:  # more of them, or a kernel before 4.13
        groups = _groups_of_user(uid, gid)
    return Peer(pid, uid, gid, frozenset(groups) | {gid})


def _groups_of_user(uid: int, gid: int) -> tuple[int, ...]:
    try:
        return tuple(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    except KeyError:
        return ()


class AllowList:
    """Root, the sidecar's own user, and who the configuration names.

    Raises:
        ValueError: The configuration names somebody who does not exist.
    """

    def __init__(self, controller: Controller) -> None:
        self._admins = frozenset({0, os.geteuid()})
        self._users = self._admins | {user_id(name) for name in controller.users}
        if controller.groups is not None:
            self._groups = frozenset(group_id(name) for name in controller.groups)
        else:
            try:
                self._groups = frozenset({group_id(GROUP_DEFAULT)})
            except ValueError:
                self._groups = frozenset()

    def allows(self, peer: Peer) -> bool:
        """Whether a process may attach."""
        return peer.uid in self._users or not self._groups.isdisjoint(peer.groups)

    def is_admin(self, peer: Peer) -> bool:
        """Whether it may ask about others' channels, and capture."""
        return peer.uid in self._admins
