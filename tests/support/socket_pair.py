# SPDX-License-Identifier: MIT
"""Two stacks on a wire in virtual time, and what tests of their sockets say again and again."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import pytest

import machnet
from machnet.sim import Wire

MS = 1_000_000
A, B = "10.0.0.1", "10.0.0.2"


class Pair:
    """Two stacks on a wire, with the sockets that a test makes on them."""

    def __init__(self, **settings: Any) -> None:
        one, two = Wire.pair()
        self.a = machnet.Stack(one, ip=A, **settings)
        self.b = machnet.Stack(two, ip=B, **settings)

    def close(self) -> None:
        self.a.close()
        self.b.close()

    def listen(self, port: int = 80, backlog: int = 16) -> machnet.Socket:
        sock = self.b.socket()
        sock.bind((B, port))
        sock.listen(backlog)
        return sock

    def established(self, port: int = 80) -> tuple[machnet.Socket, machnet.Socket]:
        """Both ends of a connection: the client's and the server's."""
        listener = self.listen(port)
        client = self.a.socket()
        assert client.connect_ex((B, port)) == errno.EINPROGRESS
        assert client.connect_ex((B, port)) == 0
        server, _ = listener.accept()
        listener.close()
        return client, server


@contextlib.contextmanager
def fails(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]
    assert isinstance(caught.value, type(OSError(number, "")))
