# SPDX-License-Identifier: MIT
"""A Linux host on the other end of machnet's TAP, and the small things that tests do with both."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from machnet import FlowClosedError, FlowError, Stack
from machnet._native import lib
from machnet.sim import KernelHost, Tap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from machnet import Channel, Flow, Message
    from machnet.stack.stack import SocketInfo

KERNEL_IP, OUR_IP = "10.9.0.1", "10.9.0.2"
PORT = 888
#: How long anything may take that takes milliseconds when all is well.
PATIENCE_S = 60 if lib.mn_build_sanitized() else 20
SANITIZED = bool(lib.mn_build_sanitized())

MIB = 1 << 20
MESSAGE_MAX = 8 * MIB
_LENGTH = struct.Struct("!I")
_PATTERN = bytes(range(251)) * 67_000


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes that differ from each other at any offset and for any two seeds nearby."""
    start = (seed * 7) % 251
    return _PATTERN[start : start + size]


def foreign_env() -> dict[str, str]:
    """The environment for a program that is not ours: without what sanitizers load into it."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def scaled(count: int, sanitized: int) -> int:
    """How often to do something that a sanitized build does ten times slower."""
    return sanitized if SANITIZED else count


class Peer:
    """A stack and the Linux host that its TAP leads to."""

    def __init__(self, host: KernelHost, tap: Tap, stack: Stack) -> None:
        self.host, self.tap, self.stack = host, tap, stack
        self._sockets: list[socket.socket] = []

    def socket(self) -> socket.socket:
        """A TCP socket of the Linux host, closed with the peer at the latest."""
        return self._own(self.host.socket(socket.AF_INET, socket.SOCK_STREAM))

    def host_socket(self) -> socket.socket:
        """A TCP socket of the Linux host that is the caller's to close: for thousands of them."""
        sock = self.host.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE_S)
        return sock

    def _own(self, sock: socket.socket) -> socket.socket:
        sock.settimeout(PATIENCE_S)
        self._sockets.append(sock)
        return sock

    def close_sockets(self) -> None:
        """Close what is left of the Linux host's sockets."""
        for sock in self._sockets:
            sock.close()

    def accept(self, listener: socket.socket) -> socket.socket:
        """The next connection of a socket that listens."""
        sock = self._own(listener.accept()[0])
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def connect(self, port: int = PORT, **options: int) -> socket.socket:
        """A connection from the Linux host to the stack; options: of SOL_SOCKET, by name."""
        sock = self.socket()
        for name, value in options.items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        sock.connect((OUR_IP, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def listen(self, port: int = PORT, backlog: int = 64) -> socket.socket:
        """A listening socket of the Linux host."""
        sock = self.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((KERNEL_IP, port))
        sock.listen(backlog)
        return sock

    def to_kernel(
        self, channel: Channel, listener: socket.socket, protocol: str = "tcp"
    ) -> tuple[Any, socket.socket]:
        """A connection from the stack to a socket that listens: the flow and the kernel's end."""
        flow = channel.connect(
            OUR_IP, KERNEL_IP, listener.getsockname()[1], protocol, timeout=PATIENCE_S
        )
        return flow, self.accept(listener)

    def run(self, command: list[str], **options: Any) -> Any:
        """Run a program that is not ours on the Linux host; see `KernelHost.run`."""
        return self.host.run(command, env=foreign_env(), **options)

    def info(self, port: int = PORT) -> SocketInfo | None:
        """The stack's connection with that port at either end, if there is just one."""
        found = [
            info
            for info in self.stack.sockets()
            if port in {info.local[1], info.remote[1]} and info.state != "LISTEN"
        ]
        assert len(found) <= 1, found
        return found[0] if found else None


@contextlib.contextmanager
def linux_peer(
    *,
    mtu: int = 1500,
    offload: bool = True,
    vnet_hdr: bool = True,
    host: KernelHost | None = None,
    gateway: str | None = None,
    pcap: Any = None,
    **settings: Any,
) -> Iterator[Peer]:
    """A stack on a TAP that leads into a Linux host.

    Args:
        mtu: Of both ends, bytes.
        offload: The stack may hand segments and unfinished checksums to the kernel, and take them.
        vnet_hdr: The TAP has the header which that takes.
        host: A host that is there already.
        gateway: Of the stack.
        pcap: A capture file.
        settings: Of the stack.
    """
    with contextlib.ExitStack() as exits:
        if host is None:
            host = exits.enter_context(KernelHost("peer", ipv6=False))
        fd = host.open_tap(
            "mn0", kernel_ip=f"{KERNEL_IP}/24", mtu=mtu, vnet_hdr=vnet_hdr, offloads=offload
        )
        tap = Tap(fd=fd, mtu=mtu, offload=offload)
        exits.callback(tap.close)
        settings = {"seed": 7, "msl_ms": 50, "app_exit_linger_ms": 500, **settings}
        stack = Stack(tap, f"{OUR_IP}/24", gateway, pcap=pcap, **settings)
        exits.callback(stack.close, 0)
        peer = Peer(host, tap, stack)
        exits.callback(peer.close_sockets)
        yield peer


def needs_tap() -> str | None:
    """Why these tests can't run here; None: they can."""
    return KernelHost.tap_available()


# ---- the kernel's side of the framing ------------------------------------------------------------


def frame(payload: bytes) -> bytes:
    """A message as it is on the wire."""
    return _LENGTH.pack(len(payload)) + payload


def send_message(sock: socket.socket, payload: bytes) -> None:
    """One message from a Linux socket."""
    sock.sendall(frame(payload))


def recv_exactly(sock: socket.socket, size: int) -> bytes:
    """That many bytes; fewer only at the end of the stream."""
    data = bytearray(size)
    view, have = memoryview(data), 0
    while have < size:
        n = sock.recv_into(view[have:])
        if n == 0:
            break
        have += n
    return bytes(data[:have])


def recv_message(sock: socket.socket) -> bytes | None:
    """One message at a Linux socket; None at the end of the stream between two messages."""
    prefix = recv_exactly(sock, _LENGTH.size)
    if not prefix:
        return None
    assert len(prefix) == _LENGTH.size, f"the stream ended inside a prefix: {prefix!r}"
    (size,) = _LENGTH.unpack(prefix)
    data = recv_exactly(sock, size)
    assert len(data) == size, f"the stream ended {size - len(data)} bytes before the message did"
    return data


def read_to_end(sock: socket.socket) -> bytes:
    """What there is until the end of the stream."""
    parts = []
    while part := sock.recv(MIB):
        parts.append(part)
    return b"".join(parts)


def reset(sock: socket.socket) -> None:
    """Close a Linux socket with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def ends(peer: Peer, channel: Channel, kernel_is: str) -> tuple[Any, socket.socket]:
    """A framed flow and the kernel's end of it, which is "client" or "server"."""
    if kernel_is == "server":
        with peer.listen() as listener:
            return peer.to_kernel(channel, listener)
    channel.listen(OUR_IP, PORT, "tcp")
    sock = peer.connect()
    send_message(sock, b"hello")
    hello = recv(channel)
    assert hello.data == b"hello"
    return hello.flow, sock


def greeted(peer: Peer, channel: Channel, port: int = PORT) -> tuple[Flow, socket.socket]:
    """A framed flow that was accepted, with one message answered, and the kernel's end."""
    sock = peer.connect(port)
    send_message(sock, b"hello")
    flow = recv(channel).flow
    send(channel, flow, b"hello yourself")
    assert recv_message(sock) == b"hello yourself"
    return flow, sock


def end_of(channel: Channel) -> FlowError:
    """The error with which a flow ends, which is the next thing to be received."""
    with pytest.raises(FlowError) as error:
        recv(channel)
    return error.value


def is_over(channel: Channel, flow: Flow) -> None:
    """The flow's end was reported once, and nothing can be sent on it."""
    nothing_more(channel)
    assert not flow.live
    with pytest.raises(FlowClosedError) as error:
        channel.send(flow, b"too late")
    assert error.value.errno == errno.ENOTCONN
    assert error.value.flow == flow


# ---- waiting -------------------------------------------------------------------------------------


def eventually(what: Callable[[], Any], timeout: float = PATIENCE_S, step: float = 0.005) -> Any:
    """Look until it is true; what it was. For what has no event to wait for."""
    end = time.monotonic() + timeout
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(step)


def recv(channel: Channel) -> Message:
    """A message that is under way."""
    return channel.recv(timeout=PATIENCE_S)


def send(channel: Channel, flow: Any, data: bytes) -> None:
    """Send a message as soon as there is room."""
    channel.send(flow, data, timeout=PATIENCE_S)


def try_send(channel: Channel, flow: Any, data: bytes, timeout: float = 0.0) -> bool:
    """Whether there was room for a message."""
    with contextlib.suppress(BlockingIOError):
        return channel.send(flow, data, timeout) == len(data)
    return False


def fill(channel: Channel, flow: Any, message: Callable[[int], bytes]) -> int:
    """Send messages until there has been no room for 0.2 s; how many were taken."""
    count = 0
    while try_send(channel, flow, message(count), timeout=0.2):
        count += 1
        assert count < 1_000_000, "there is always room"
    return count


def nothing_more(channel: Channel) -> None:
    """Nothing waits to be received."""
    assert channel.try_recv() is None


@contextlib.contextmanager
def beside(*tasks: Callable[[], Any]) -> Iterator[list[concurrent.futures.Future[Any]]]:
    """Run functions in threads beside a block, which end with it; an exception of theirs is raised."""
    with concurrent.futures.ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(task) for task in tasks]
        yield futures
        for future in futures:
            future.result(PATIENCE_S)


def readable(sock: socket.socket, timeout: float = PATIENCE_S) -> bool:
    """Whether there is something to be read, or comes in time."""
    return _polled(sock, select.POLLIN, timeout)


def writable(sock: socket.socket, timeout: float = PATIENCE_S) -> bool:
    """Whether something can be written, or can be in time: it is connected, or has failed."""
    return _polled(sock, select.POLLOUT, timeout)


def _polled(sock: socket.socket, what: int, timeout: float) -> bool:
    # Not select(), which knows no descriptor from 1024 on.
    poll = select.poll()
    poll.register(sock, what)
    return bool(poll.poll(timeout * 1000))


def tcp_info(sock: socket.socket) -> dict[str, int]:
    """Some of the Linux socket's TCP_INFO."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    options = raw[5]
    return {
        "state": raw[0],
        "timestamps": options & 1,
        "sack": (options >> 1) & 1,
        "wscale": (options >> 2) & 1,
        "ecn": (options >> 3) & 1,
        "snd_wscale": raw[6] & 15,
        "rcv_wscale": raw[6] >> 4,
        "snd_mss": struct.unpack_from("=I", raw, 16)[0],
        "rcv_mss": struct.unpack_from("=I", raw, 20)[0],
        "total_retrans": struct.unpack_from("=I", raw, 100)[0],
    }


def cpu_time_s() -> float:
    """Processor time of this process, all its threads, in seconds."""
    times = os.times()
    return times.user + times.system
