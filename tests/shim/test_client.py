# SPDX-License-Identifier: MIT
"""The controller's client against controllers that say all kinds of things, by `machnet.attach`."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import machnet
from machnet._native import lib
from machnet.sidecar.protocol import Geometry, Op, Reply, Request
from machnet.stack.lending import lend

Answer = Callable[[Request], "tuple[bytes, list[int]] | None"]


class Scripted:
    """A controller that answers each request as it is told; None ends the connection."""

    def __init__(self, answer: Answer) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="mn-ctrl-")
        self.path = f"{self._directory.name}/s"
        self.requests: list[Request] = []
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        while packet := connection.recv(65536):
            request = Request.unpack(packet)
            self.requests.append(request)
            answer = self._answer(request)
            if answer is None:
                return
            data, fds = answer
            socket.send_fds(connection, [data], fds)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._directory.cleanup()


@pytest.fixture
def scripted() -> Iterator[Callable[[Answer], Scripted]]:
    made: list[Scripted] = []

    def make(answer: Answer) -> Scripted:
        made.append(Scripted(answer))
        return made[-1]

    yield make
    for controller in made:
        controller.close()
