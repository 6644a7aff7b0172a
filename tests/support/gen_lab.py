# SPDX-License-Identifier: MIT
"""``msg_gen`` as a process on a TAP, and the Linux host on the other end of it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

from tcp_tool import TIMEOUT_S, Tool, serving, tools

from machnet.sim import KernelHost

KERNEL_IP, OUR_IP, PORT = "10.0.0.1", "10.0.0.2", 888


class Lab:
    """Starts message generators at both ends of a TAP, and opens sockets at the kernel's."""

    def __init__(self, host: KernelHost, fd: int, start: Callable[..., Tool]) -> None:
        self.host, self.fd, self._start = host, fd, start

    def machnet(self, *args: str) -> Tool:
        """A `msg_gen` of its own stack on the TAP."""
        flags = ["--protocol=tcp", f"--local_ip={OUR_IP}", f"--nic=tap:fd={self.fd}"]
        return self._start(*flags, *args, module="machnet.cli.msg_gen", pass_fds=(self.fd,))

    def kernel(self, *args: str) -> Tool:
        """A `tcp_msg_gen` on the Linux host."""
        return self._start(*args, popen=self.host.popen)

    def connect(self) -> socket.socket:
        """A connection of the Linux host to `msg_gen`."""
        sock = self.host.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(TIMEOUT_S)
        try:
            sock.connect((OUR_IP, PORT))
        except BaseException:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def listen(self) -> socket.socket:
        """A listening socket of the Linux host."""
        sock = self.host.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((KERNEL_IP, PORT))
        sock.listen()
        sock.settimeout(TIMEOUT_S)
        return sock

    @contextlib.contextmanager
    def serve(self, handle: Callable[[socket.socket], Any]) -> Iterator[None]:
        """While entered, one connection to the Linux host is handled in Python."""
        with self.listen() as listener, serving(listener, handle):
            yield


def to_kernel(*args: str) -> list[str]:
    """Flags of a client whose server is on the Linux host."""
    return [f"--remote_ip={KERNEL_IP}", *args]


def to_machnet(*args: str) -> list[str]:
    """Flags of a client whose server is `msg_gen`."""
    return [f"--remote_ip={OUR_IP}", *args]


@contextlib.contextmanager
def open_lab(host: KernelHost) -> Iterator[Lab]:
    """A fresh TAP on a host, and what runs on both its ends."""
    fd = host.open_tap("mn0", kernel_ip=f"{KERNEL_IP}/24")
    try:
        with tools() as start:
            yield Lab(host, fd, start)
    finally:
        os.close(fd)
