# SPDX-License-Identifier: MIT
"""The same script with a machnet socket and with a Linux socket as server: the same outcome.

A script is a list of steps of the client (always a Linux socket) and of the server. What each step of
both gave (data, end of stream, errno) is written down; between the steps everything settles. POSIX
leaves some answers open; what Linux does in these scripts, machnet does too.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest
from linux_peer import OUR_IP, PATIENCE_S, PORT, eventually, linux_peer, needs_tap

from machnet.sim import KernelHost

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(needs_tap() is not None, reason=str(needs_tap()))

LINGER_0 = struct.pack("ii", 1, 0)


class End:
    """One socket, of either kind; each method says what came of it as a short text."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        sock.setblocking(False) if isinstance(sock, socket.socket) else None

    def _try(self, call: Any) -> str:
        try:
            answer = call()
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return repr(answer) if isinstance(answer, bytes) else "ok"

    def send(self, data: bytes) -> str:
        return self._try(lambda: self.sock.send(data, socket.MSG_NOSIGNAL))

    def recv(self, size: int = 100) -> str:
        return self._try(lambda: self.sock.recv(size))

    def shutdown(self, how: int) -> str:
        return self._try(lambda: self.sock.shutdown(how))

    def error(self) -> str:
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return errno.errorcode[number] if number else "0"

    def peername(self) -> str:
        return self._try(self.sock.getpeername)

    def close(self) -> str:
        self.sock.close()
        return "closed"

    def reset(self) -> str:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self.sock.close()
        return "reset"


RD, WR, RDWR = socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR

#: Client steps are "c.", server steps "s.".
SCRIPTS: dict[str, list[tuple[Any, ...]]] = {
    "nothing": [("s.recv",), ("c.recv",)],
    "data there and back": [("c.send", b"ab"), ("s.recv",), ("s.send", b"cd"), ("c.recv",)],
    "client closes": [("c.close",), ("s.recv",), ("s.recv",), ("s.error",)],
    "client closes, server sends twice": [
        ("c.close",), ("s.recv",), ("s.send", b"x"), ("s.send", b"y"), ("s.send", b"z"), ("s.recv",),
    ],
    "client closes, server sends and reads": [
        ("c.close",), ("s.send", b"x"), ("s.recv",), ("s.recv",), ("s.send", b"x"),
    ],
    "client closes, server sends, error asked": [
        ("c.close",), ("s.send", b"x"), ("s.error",), ("s.error",), ("s.recv",), ("s.send", b"x"),
    ],
    "client closes over unread data": [
        ("s.send", b"unread"), ("c.close",), ("s.recv",), ("s.recv",), ("s.send", b"x"),
    ],
    "client resets": [("c.reset",), ("s.recv",), ("s.recv",), ("s.send", b"x"), ("s.send", b"y")],
    "client resets, server sends first": [("c.reset",), ("s.send", b"x"), ("s.send", b"y"), ("s.recv",)],
    "client resets, error asked": [("c.reset",), ("s.error",), ("s.error",), ("s.recv",), ("s.send", b"x")],
    "client resets, name asked": [("c.reset",), ("s.peername",), ("s.recv",), ("s.peername",)],
    "client resets, server shuts down": [
        ("c.reset",), ("s.shutdown", WR), ("s.recv",), ("s.shutdown", WR),
    ],
    "client half-closes": [
        ("c.send", b"ab"), ("c.shutdown", WR), ("s.recv",), ("s.recv",), ("s.send", b"cd"),
        ("c.recv",), ("s.close",), ("c.recv",), ("c.recv",),
    ],
    "client half-closes, sends": [("c.shutdown", WR), ("c.send", b"x"), ("s.recv",), ("s.send", b"y"), ("c.recv",)],
    "server half-closes": [
        ("s.send", b"ab"), ("s.shutdown", WR), ("c.recv",), ("c.recv",), ("c.send", b"cd"),
        ("s.recv",), ("s.send", b"no"), ("c.close",), ("s.recv",), ("s.recv",),
    ],
    "server half-closes twice": [("s.shutdown", WR), ("s.shutdown", WR), ("s.shutdown", RDWR), ("c.recv",)],
    "server shuts down reading": [
        ("s.shutdown", RD), ("s.recv",), ("s.send", b"x"), ("c.recv",), ("s.recv",),
    ],
    "server shuts down reading over unread data": [
        ("c.send", b"abcd"), ("s.recv", 2), ("s.shutdown", RD), ("s.recv",), ("s.recv",),
    ],
    "server shuts down both ways": [("s.shutdown", RDWR), ("s.send", b"x"), ("s.recv",), ("c.recv",)],
    "server closes": [("s.close",), ("c.recv",), ("c.recv",), ("c.error",)],
    "server closes, client sends": [
        ("s.close",), ("c.send", b"x"), ("c.recv",), ("c.send", b"y"), ("c.recv",),
    ],
    "server closes with data": [("s.send", b"last"), ("s.close",), ("c.recv",), ("c.recv",)],
    "server closes over unread data": [("c.send", b"unread"), ("s.close",), ("c.recv",), ("c.recv",)],
    "server resets": [("s.reset",), ("c.recv",), ("c.recv",), ("c.send", b"x")],
    "server resets over unread data": [("c.send", b"unread"), ("s.reset",), ("c.recv",), ("c.error",)],
    "server resets behind data": [("s.send", b"last"), ("s.reset",), ("c.recv",), ("c.recv",)],
    "both half-close": [
        ("c.shutdown", WR), ("s.shutdown", WR), ("c.recv",), ("s.recv",), ("c.send", b"x"),
        ("s.send", b"x"), ("s.shutdown", WR), ("c.peername",),
    ],
    "half-close, then reset": [
        ("c.send", b"ab"), ("c.shutdown", WR), ("s.recv",), ("c.reset",), ("s.recv",), ("s.send", b"x"),
        ("s.recv",),
    ],
    "half-close with unread data, then reset": [
        ("c.send", b"ab"), ("c.shutdown", WR), ("c.reset",), ("s.recv",), ("s.recv",), ("s.send", b"x"),
    ],
    "data, then reset": [
        ("c.send", b"ab"), ("c.reset",), ("s.error",), ("s.recv",), ("s.recv",), ("s.send", b"x"),
    ],
    "our half-close, then its reset": [
        ("s.shutdown", WR), ("c.recv",), ("c.reset",), ("s.recv",), ("s.recv",), ("s.send", b"x"),
    ],
    "our half-close, its data, its close": [
        ("s.shutdown", WR), ("c.send", b"ab"), ("c.close",), ("s.recv",), ("s.recv",), ("s.error",),
    ],
    "peek and pieces": [("c.send", b"abcdef"), ("s.recv", 2), ("s.recv", 3), ("s.recv", 9), ("s.recv", 9)],
    "empty sends": [("s.send", b""), ("c.send", b""), ("s.recv", 0), ("c.shutdown", WR), ("s.recv", 0), ("s.recv",)],
}  # fmt: skip


def settle(server: Any) -> None:
    """What is under way has arrived: microseconds are enough; a thread may be slow to be run."""
    time.sleep(0.02)
    if not isinstance(server, socket.socket):
        with contextlib.suppress(OSError, ValueError):
            select.select([server], [], [], 0)


def run(script: list[tuple[Any, ...]], client: Any, server: Any) -> list[str]:
    ends = {"c": End(client), "s": End(server)}
    log = []
    for step, *arguments in script:
        who, name = step.split(".")
        log.append(f"{step}{tuple(arguments)}: {getattr(ends[who], name)(*arguments)}")
        settle(server)
    for end in ends.values():
        end.close()
    return log


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[KernelHost, KernelHost]]:
    """Two Linux hosts with a cable between them: the oracle."""
    with KernelHost("client", ipv6=False) as client, KernelHost("server", ipv6=False) as server:
        KernelHost.connect(client, server, "10.9.1.1/24", "10.9.1.2/24")
        yield client, server


def with_linux(script: list[tuple[Any, ...]], hosts: tuple[KernelHost, KernelHost]) -> list[str]:
    client, server = hosts
    with server.socket() as listener, client.socket() as sock:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("10.9.1.2", PORT))
        listener.listen()
        sock.connect(("10.9.1.2", PORT))
        return run(script, sock, listener.accept()[0])


def with_machnet(script: list[tuple[Any, ...]]) -> list[str]:
    with linux_peer() as peer, peer.stack.socket() as listener:
        listener.bind((OUR_IP, PORT))
        listener.listen()
        sock = peer.connect()

        def accept() -> Any:
            with contextlib.suppress(BlockingIOError):
                return listener.accept()[0]
            return None

        log = run(script, sock, eventually(accept))
        eventually(lambda: peer.stack.usage()["tcbs"] == 0, timeout=PATIENCE_S)
        return log


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_as_linux_does(name: str, hosts: tuple[KernelHost, KernelHost]) -> None:
    assert with_machnet(SCRIPTS[name]) == with_linux(SCRIPTS[name], hosts)
