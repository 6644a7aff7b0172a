#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A small HTTP/1.1 server on machnet's byte streams, to be asked by curl or any browser.

    sudo examples/http_responder.py tap:mn0 --ip 10.0.0.2/24 --kernel-ip 10.0.0.1/24
    curl http://10.0.0.2/                   # a greeting
    curl http://10.0.0.2/bytes/1000000      # that many bytes
    curl --data-binary @file http://10.0.0.2/upload   # answers with length and SHA-256

It is there twice over the same protocol code: `serve` runs an event loop of its own over
non-blocking stream sockets, `serve_asyncio` (with ``--asyncio``) is an asyncio server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import selectors
import signal
import socket
import sys
from typing import TYPE_CHECKING

import machnet
from machnet.sim import Tap

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_BYTES = 1 << 16
HEAD_BYTES_MAX = 1 << 14
BODY_BYTES_MAX = 1 << 26
#: What a connection may have ready to be sent before its next request is looked at.
PENDING_BYTES_MAX = 1 << 20
PATTERN = bytes(range(256)) * 256


class Connection:
    """One connection's protocol without any input or output: bytes in by `feed`, out of `pending`.

    Attributes:
        pending: What is to be sent.
        closing: The connection ends once `pending` has been sent.
    """

    def __init__(self) -> None:
        self.pending: list[memoryview] = []
        self.closing = False
        self._input = bytearray()
        self._machine = self._requests()
        next(self._machine)

    @property
    def pending_bytes(self) -> int:
        """Bytes to be sent."""
        return sum(len(part) for part in self.pending)

    def feed(self, data: bytes) -> None:
        """Bytes from the client; none: it sends no more."""
        if not data:
            self.closing = True
        elif not self.closing:
            self._input += data
            self._machine.send(None)

    def sent(self, count: int) -> None:
        """The first ``count`` bytes of the first part were sent."""
        rest = self.pending[0][count:]
        self.pending[:1] = [rest] if rest else []
        if not self.pending and self._input and not self.closing:
            self._machine.send(None)

    def _requests(self) -> Iterator[None]:
        """Looks at the input whenever there is more of it; each ``yield`` waits for that."""
        while not self.closing:
            while (end := self._input.find(b"\r\n\r\n")) < 0:
                if len(self._input) > HEAD_BYTES_MAX:
                    self._answer(431, b"too long\n", keep=False)
                yield
            lines = bytes(self._input[:end]).decode("latin-1").split("\r\n")
            del self._input[: end + 4]
            try:
                method, path, version = lines[0].split(" ")
                fields = dict(line.split(":", 1) for line in lines[1:])
                headers = {name.strip().lower(): text.strip() for name, text in fields.items()}
                length = int(headers.get("content-length", "0"))
            except ValueError:
                self._answer(400, b"that is no request\n", keep=False)
                break
            if length < 0 or length > BODY_BYTES_MAX or "transfer-encoding" in headers:
                self._answer(413, b"a body needs a Content-Length, and not too much of it\n", False)
                break
            if headers.get("expect", "").lower() == "100-continue":
                self.pending.append(memoryview(b"HTTP/1.1 100 Continue\r\n\r\n"))
            digest, left = hashlib.sha256(), length
            while left > 0:
                if not self._input:
                    yield
                part = self._input[:left]
                digest.update(part)
                left -= len(part)
                del self._input[: len(part)]
            default = "keep-alive" if version == "HTTP/1.1" else "close"
            keep = headers.get("connection", default).lower() != "close"
            self._respond(method, path, length, digest.hexdigest(), keep)
            while self.pending_bytes > PENDING_BYTES_MAX:
                yield
        while True:
            yield

    def _respond(self, method: str, path: str, length: int, digest: str, keep: bool) -> None:
        head_only = method == "HEAD"
        if method == "POST" and path == "/upload":
            self._answer(200, f"{length} {digest}\n".encode(), keep)
        elif method not in {"GET", "HEAD"}:
            self._answer(405, b"GET, HEAD, or POST to /upload\n", keep)
        elif path == "/":
            self._answer(200, b"machnet says hello\n", keep, head_only)
        elif path.startswith("/bytes/") and path[7:].isascii() and path[7:].isdigit():
            self._answer_bytes(int(path[7:]), keep, head_only)
        else:
            self._answer(404, b"try / or /bytes/1000\n", keep, head_only)

    def _answer_bytes(self, size: int, keep: bool, head_only: bool) -> None:
        if size > BODY_BYTES_MAX:
            self._answer(413, b"too much\n", keep, head_only)
            return
        self._head(200, size, keep)
        if not head_only:
            whole, rest = divmod(size, len(PATTERN))
            self.pending += [memoryview(PATTERN)] * whole
            self.pending += [memoryview(PATTERN)[:rest]] if rest else []

    def _answer(self, status: int, body: bytes, keep: bool, head_only: bool = False) -> None:
        self._head(status, len(body), keep)
        if not head_only:
            self.pending.append(memoryview(body))

    def _head(self, status: int, length: int, keep: bool) -> None:
        text = (
            f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\n"
            f"Content-Type: application/octet-stream\r\n"
            f"Content-Length: {length}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        self.pending.append(memoryview(text.encode()))
        self.closing = not keep


# ---- over non-blocking stream sockets ------------------------------------------------------------


def pump(sock: machnet.Socket, connection: Connection) -> bool:
    """Send and receive until the socket says "not now"; whether the connection goes on."""
    try:
        while True:
            while connection.pending:
                connection.sent(sock.send(connection.pending[0]))
            if connection.closing:
                return False
            connection.feed(sock.recv(READ_BYTES))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def serve(stack: machnet.Stack, ip: str, port: int, stop: socket.socket) -> None:
    """Serve until ``stop`` becomes readable.

    Args:
        stack: Runs its engine in a thread of its own.
        ip: The stack's address.
        port: Usually 80.
        stop: Any Linux socket.
    """
    connections: dict[machnet.Socket, Connection] = {}
    with stack.socket() as listener, selectors.DefaultSelector() as selector:
        listener.bind((ip, port))
        listener.listen()
        selector.register(stop, selectors.EVENT_READ)
        selector.register(listener.fileno(), selectors.EVENT_READ, listener)
        while True:
            # The descriptors only say that it is worth a try: nothing is ever read from them.
            ready = [key.data for key, _ in selector.select()]
            if None in ready:
                break
            if listener in ready:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock, _ = listener.accept()
                        connections[sock] = Connection()
                        selector.register(sock.fileno(), selectors.EVENT_READ, sock)
                        ready.append(sock)
            for sock in ready:
                if sock is not listener and not pump(sock, connections[sock]):
                    selector.unregister(sock.fileno())
                    sock.close()
                    del connections[sock]
        for sock in connections:
            sock.close()


# ---- over asyncio --------------------------------------------------------------------------------


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, from beginning to end."""
    connection = Connection()
    with contextlib.suppress(ConnectionError):
        while True:
            while connection.pending:
                part = connection.pending[0]
                writer.write(part)
                await writer.drain()
                connection.sent(len(part))
            if connection.closing:
                break
            connection.feed(await reader.read(READ_BYTES))
        writer.close()
        await writer.wait_closed()


async def serve_asyncio(stack: machnet.Stack, ip: str, port: int, stop: socket.socket) -> None:
    """The same as `serve`, as an asyncio server."""
    clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(answer(reader, writer))
        clients[task] = writer
        task.add_done_callback(clients.pop)

    server = await machnet.aio.start_server(stack, on_client, ip, port)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_reader(stop, stopped.set)
    try:
        await stopped.wait()
    finally:
        loop.remove_reader(stop)
        server.close()
        for writer in clients.values():
            writer.close()
        await asyncio.gather(*clients)


def main() -> None:
    """Parse the command line and serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tap", help="TAP interface, as tap:mn0; made if it is not there")
    parser.add_argument("--ip", default="10.0.0.2/24", help="address of the server")
    parser.add_argument("--kernel-ip", help="address to give to this machine's end of the TAP")
    parser.add_argument("--port", type=int, default=80)
    parser.add_argument("--asyncio", action="store_true", help="serve from an asyncio loop")
    options = parser.parse_args()

    tap = Tap(options.tap.removeprefix("tap:"), kernel_ip=options.kernel_ip)
    ours, theirs = socket.socketpair()
    signal.signal(signal.SIGTERM, lambda *_: theirs.close())
    signal.signal(signal.SIGINT, lambda *_: theirs.close())
    with machnet.Stack(tap, options.ip) as stack, ours:
        ip = stack.ip
        print(f"serving http://{ip}:{options.port}/", flush=True)
        run = run_asyncio if options.asyncio else serve
        run(stack, ip, options.port, ours)
    tap.close()


def run_asyncio(stack: machnet.Stack, ip: str, port: int, stop: socket.socket) -> None:
    """`serve_asyncio` in a loop of its own."""
    asyncio.run(serve_asyncio(stack, ip, port, stop))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"http_responder: {error}")
