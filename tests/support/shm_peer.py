# SPDX-License-Identifier: MIT
"""Applications in processes of their own, attached to a stack of the test's process.

``python shm_peer.py ROLE SOCKET_FD ...`` is the application: it gets the channel's descriptors over
the socket, and says over it when it is ready.
"""

from __future__ import annotations

import socket
import subprocess
import sys

import machnet
from machnet.config import ChannelSettings
from machnet.stack.lending import Lent, attach_fds, lend

IP = "10.0.0.2"
SMALL = ChannelSettings(buf_bytes=2048, tx_bufs=256, rx_bufs=256, flows_max=64, ctl_slots=64)
_FDS_MAX = 18


def send_fds(sock: socket.socket, fds: list[int]) -> None:
    """Hand descriptors over."""
    socket.send_fds(sock, [b"fds"], fds)


def recv_fds(sock: socket.socket) -> list[int]:
    """Descriptors that were handed over."""
    _, fds, _, _ = socket.recv_fds(sock, 16, _FDS_MAX)
    return list(fds)


class Peer:
    """An application in a process of its own, with a channel lent to it. A context manager.

    Attributes:
        sock: What it says, and is told.
        lent: Its channel.
    """

    def __init__(
        self,
        stacks: machnet.Stack | list[machnet.Stack],
        role: str,
        *args: object,
        settings: ChannelSettings = SMALL,
    ) -> None:
        self.lent: Lent = lend(stacks if isinstance(stacks, list) else [stacks], settings)
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(30)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, __file__, role, str(theirs.fileno()), *map(str, args)],
                pass_fds=[theirs.fileno()],
            )
        send_fds(self.sock, self.lent.fds)
        self.lent.close_fds()

    def say(self, what: bytes) -> None:
        """Tell the application something."""
        self.sock.sendall(what)

    def hear(self, what: bytes) -> None:
        """Wait for the application to say something."""
        heard = self.sock.recv(len(what), socket.MSG_WAITALL)
        assert heard == what, heard

    def kill(self) -> None:
        """End the process, wherever it is."""
        self.process.kill()
        self.process.wait(30)

    def close(self) -> None:
        """End the process and the loan."""
        self.kill()
        self.lent.close()
        self.sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def echo(channel: machnet.Channel, sock: socket.socket, port: str) -> None:
    """Answer every message with itself, for ever."""
    channel.listen("0.0.0.0", int(port), "tcp")
    sock.sendall(b"ready")
    while True:
        try:
            message = channel.recv()
        except machnet.FlowError:
            continue
        channel.send(message.flow, message.data, timeout=None)


def lender(sock: socket.socket) -> None:
    """The other side: a stack with an echo application of its own, which lends one channel."""
    from machnet.sim import Wire

    with machnet.Stack(Wire(), ip=IP, thread=True) as stack:
        lent = lend([stack], SMALL)
        send_fds(sock, lent.fds)
        lent.close_fds()
        echo(stack.attach(), sock, "7000")


class Lender:
    """A process with a stack of its own, which has lent us a channel. A context manager.

    Attributes:
        fds: The channel's descriptors.
    """

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(30)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "lender", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
        self.fds = recv_fds(self.sock)
        assert self.sock.recv(5, socket.MSG_WAITALL) == b"ready"

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait(30)

    def __enter__(self) -> Lender:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        self.sock.close()


ROLES = {"echo": echo}


def main() -> None:
    """Be the application that the command line asks for."""
    sock = socket.socket(fileno=int(sys.argv[2]))
    if sys.argv[1] == "lender":
        lender(sock)
    channel = attach_fds(recv_fds(sock))
    ROLES[sys.argv[1]](channel, sock, *sys.argv[3:])


if __name__ == "__main__":
    main()
