# SPDX-License-Identifier: MIT
"""Message generators as processes, and plain sockets that speak to them."""

from __future__ import annotations

import contextlib
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

TIMEOUT_S = 60
KIB, MIB = 1 << 10, 1 << 20
PATTERN = bytes(range(256)) * (8 * MIB // 256)


def payload(slot: int, size: int) -> bytes:
    return struct.pack("<Q", slot) + PATTERN[8:size]


def frame(slot: int, size: int = 64) -> bytes:
    return struct.pack(">I", size) + payload(slot, size)


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes; ``EOFError`` when the peer closes before."""
    data = bytearray()
    # MSG_WAITALL does not wait on a socket with a timeout.
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError(f"{len(data)} of {size} bytes")
        data += piece
    return bytes(data)


def receive_message(sock: socket.socket) -> bytes:
    (size,) = struct.unpack(">I", receive(sock, 4))
    return receive(sock, size)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# ---- peers that do wrong -----------------------------------------------------------------------


def over_the_limit(sock: socket.socket) -> None:
    """Not framed at all."""
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""


def too_short(sock: socket.socket) -> None:
    """A message without room for its number."""
    sock.sendall(frame(1) + struct.pack(">I", 7) + bytes(7))
    with contextlib.suppress(ConnectionResetError):
        assert receive_message(sock) == payload(1, 64)
        assert sock.recv(1) == b""


def torn(sock: socket.socket) -> None:
    sock.sendall(frame(1)[:30])


def torn_prefix(sock: socket.socket) -> None:
    sock.sendall(frame(1)[:3])


def reset_in_a_message(sock: socket.socket) -> None:
    sock.sendall(frame(1) + frame(2)[:30])
    receive_message(sock)
    reset(sock)


class Tool:
    """A running message generator whose output can be waited for.

    ``popen`` is ``subprocess.Popen`` or what a ``KernelHost`` has in its place.
    """

    def __init__(
        self,
        *args: str,
        module: str = "machnet.cli.tcp_msg_gen",
        popen: Callable[..., subprocess.Popen[str]] = subprocess.Popen,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        command = [sys.executable, "-m", module, *args]
        pipe = subprocess.PIPE
        self.process = popen(command, stdout=pipe, stderr=pipe, text=True, pass_fds=pass_fds)
        self.lines: dict[str, list[str]] = {"out": [], "err": []}
        self._new: dict[str, queue.SimpleQueue[str | None]] = {}
        self._readers = []
        for name, stream in (("out", self.process.stdout), ("err", self.process.stderr)):
            self._new[name] = queue.SimpleQueue()
            reader = threading.Thread(target=self._read, args=(stream, self._new[name]))
            reader.start()
            self._readers.append(reader)

    @staticmethod
    def _read(stream, lines) -> None:
        with stream:
            for line in stream:
                lines.put(line.rstrip("\n"))
        lines.put(None)

    def line(self, pattern: str, where: str = "out") -> re.Match[str]:
        """The next line that matches; an error with all output if it does not come."""
        while (line := self._new[where].get(timeout=TIMEOUT_S)) is not None:
            self.lines[where].append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"no line {pattern!r} in {self.lines}")

    def listening_port(self, where: str = "out") -> int:
        return int(self.line(r"^\[LISTENING\] \[[\d.]+:(\d+)\]$", where)[1])

    def signal(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for the end; exit status and everything printed."""
        code = self.process.wait(TIMEOUT_S)
        for reader in self._readers:
            reader.join(TIMEOUT_S)
        for where, lines in self._new.items():
            while not lines.empty():
                line = lines.get()
                if line is not None:
                    self.lines[where].append(line)
        return code, "\n".join(self.lines["out"]), "\n".join(self.lines["err"])

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()


@contextlib.contextmanager
def tools() -> Iterator[Callable[..., Tool]]:
    """Yields what starts a `Tool` with given arguments; ends what still runs."""
    started: list[Tool] = []

    def start(*args: str, **options: Any) -> Tool:
        started.append(Tool(*args, **options))
        return started[-1]

    try:
        yield start
    finally:
        for each in started:
            each.close()


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def client_args(port: int, *args: str) -> list[str]:
    return ["--remote_ip=127.0.0.1", f"--remote_port={port}", *args]


@contextlib.contextmanager
def serving(listener: socket.socket, handle: Callable[[socket.socket], Any]) -> Iterator[None]:
    """While entered, one connection to a listening socket is handled in a thread."""
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            with listener.accept()[0] as sock:
                sock.settimeout(TIMEOUT_S)
                handle(sock)
        except (ConnectionError, EOFError):
            pass  # the client has what it wanted
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        # Ends a wait for a client that never came.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(TIMEOUT_S)
    assert failures == []


@contextlib.contextmanager
def peers() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """Yields what starts a server that handles one connection in Python, and returns its port."""
    with contextlib.ExitStack() as stack:

        def start(handle: Callable[[socket.socket], None]) -> int:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            stack.enter_context(serving(listener, handle))
            return listener.getsockname()[1]

        yield start
