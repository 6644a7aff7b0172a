# SPDX-License-Identifier: MIT
"""An application of a sidecar by hand: the controller's protocol, byte by byte where it matters."""

from __future__ import annotations

import array
import os
import socket
from pathlib import Path
from typing import Any

from machnet._native import lib
from machnet.channel import Channel
from machnet.sidecar.protocol import REP_BYTES, Geometry, Op, Reply, Request
from machnet.stack.lending import attach_fds

TIMEOUT_S = 60.0


class ControllerPeer:
    """A connection to a controller. A context manager.

    Attributes:
        fds: Descriptors that came with the last reply.
    """

    def __init__(self, path: str, *, hello: bool = True, name: bytes = b"peer") -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Without Python's timeout, which would make a full queue of connections an error.
        self.sock.connect(path)
        self.sock.settimeout(TIMEOUT_S)
        self.fds: list[int] = []
        if hello:
            assert self.hello(name=name).status == 0

    def send(self, packet: bytes, fds: list[int] | None = None) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([packet], rights)

    def receive(self) -> Reply | None:
        """The next reply; None: the sidecar has ended the connection."""
        self.close_fds()
        try:
            packet, ancillary, _, _ = self.sock.recvmsg(
                REP_BYTES + 1, socket.CMSG_SPACE(64 * 4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None
        for _, _, data in ancillary:
            self.fds += array.array("i", data).tolist()
        if not packet:
            return None
        reply = Reply.unpack(packet)
        assert reply.n_fds == len(self.fds)
        return reply

    def request(self, op: int, **fields: Any) -> Reply:
        """Ask, and wait for the answer."""
        self.send(Request(op, **fields).pack())
        reply = self.receive()
        assert reply is not None
        return reply

    def hello(self, **fields: Any) -> Reply:
        fields.setdefault("chan_version", lib.MN_CHAN_VERSION)
        return self.request(Op.HELLO, **fields)

    def attach_only(self, **geometry: int) -> Reply:
        """A channel whose descriptors stay in `fds`."""
        return self.request(Op.ATTACH, geo=Geometry(**geometry))

    def attach(self, **geometry: int) -> Channel:
        """A channel that works."""
        reply = self.attach_only(**geometry)
        assert reply.status == 0, reply.why
        fds, self.fds = self.fds, []
        return attach_fds(fds)

    def ended(self) -> bool:
        """Whether the sidecar ends the connection, without another word."""
        return self.receive() is None

    def close_fds(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def close(self) -> None:
        self.close_fds()
        self.sock.close()

    def __enter__(self) -> ControllerPeer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def open_descriptors(pid: int) -> int:
    """How many a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
