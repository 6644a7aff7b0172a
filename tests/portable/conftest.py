# SPDX-License-Identifier: MIT
"""What the files of this folder share. They use the plugin's public fixtures and nothing else.

The same files pass with ``--machnet-sim``, ``--machnet-nic=tap:mn0``, over DPDK on a veth pair, and in
a guest of QEMU with ``--machnet-nic=eth1 --machnet-peer=tcp://...``: see docs/pytest.md. The folder
can be copied by itself.
"""

from __future__ import annotations

import struct

import pytest

#: Seconds; for what takes milliseconds, on a machine that does other things too.
TIMEOUT = 30


class Program:
    """A program with a POSIX socket, that speaks messages with their length in front."""

    def __init__(self, sock):
        self.sock = sock
        sock.settimeout(TIMEOUT)

    def send(self, *messages):
        self.sock.sendall(b"".join(struct.pack(">I", len(data)) + data for data in messages))

    def read(self, size):
        parts, left = [], size
        while left:
            part = self.sock.recv(min(left, 1 << 20))
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def recv(self):
        (size,) = struct.unpack(">I", self.read(4))
        return self.read(size)

    def close(self):
        self.sock.close()


class Linux:
    """What tests do with the host at the other end."""

    def __init__(self, peer):
        self.peer = peer
        self.ip = peer.ip
        self.opened = []

    def socket(self):
        sock = self.peer.socket()
        sock.settimeout(TIMEOUT)
        self.opened.append(sock)
        return sock

    def connect(self, ip, port):
        sock = self.socket()
        sock.connect((ip, port))
        return Program(sock)

    def listen(self, backlog=64):
        sock = self.socket()
        sock.bind((self.ip, 0))
        sock.listen(backlog)
        return sock, sock.getsockname()[1]

    def accept(self, listener):
        sock, _ = listener.accept()
        self.opened.append(sock)
        return Program(sock)


@pytest.fixture
def linux(posix_peer):
    host = Linux(posix_peer)
    yield host
    for sock in host.opened:
        sock.close()


@pytest.fixture
def timeout():
    return TIMEOUT
