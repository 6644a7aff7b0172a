# SPDX-License-Identifier: MIT
"""machnet as an arm on a NIC: in real time, with a packet socket at the other end of the cable."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

from conformance.arms import ARM_IP, PEER_IP, PEER_MAC, SEC
from conformance.arms.ping import PingingPort
from conformance.arms.stack import StackArm
from machnet.sim import KernelHost
from machnet.sim.nicstr import parse_nic
from machnet.stack.nics import Tap, open_nic, with_faults

if TYPE_CHECKING:
    from conformance.arms import Settings
    from machnet.stack.nics import Nic

#: Nobody connects to it; a call on it is a call on a socket of the stack.
_OTHER_PORT = 1
_INNER, _ALL_KINDS, _OUTGOING = "wire0", 0x0003, 4
#: Nothing is lost while nobody looks; more than the limit is root's right.
_SO_RCVBUFFORCE, _RCVBUF_BYTES = 33, 64 << 20


def unavailable(nic: str) -> str | None:
    """Why scripted packets can't be sent to a stack on this NIC; None if they can."""
    if nic.startswith("tap:"):
        return KernelHost.tap_available()
    from pytest_machnet import ends

    name = ends.interface_of(nic)
    try:
        if name is None or ends.find_end(name) is not None:
            return "scripted packets need the other end of the cable: a TAP, or a veth that is not there yet"
    except ValueError as error:
        return str(error)
    return KernelHost.available()


class PacketPort(PingingPort):
    """A packet socket on the other end of the cable; see `machnet.testing.Port`."""

    patience_ns = 5 * SEC
    ip, mac, remote_ip = PEER_IP, PEER_MAC, ARM_IP

    def __init__(self, host: KernelHost, arm_mac: str) -> None:
        super().__init__()
        self.neighbors = {ARM_IP: arm_mac}
        self._sock = host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_KINDS))
        self._sock.bind((_INNER, _ALL_KINDS))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RCVBUF_BYTES)

    def send(self, frame: bytes) -> None:
        """Transmit a frame, and return when it has been processed: what a case does next, comes next."""
        self._transmit(frame)
        self.ping()

    def _transmit(self, frame: bytes) -> None:
        self._sock.send(frame)

    def _receive(self, within_ns: int) -> tuple[int, bytes] | None:
        end = time.monotonic_ns() + within_ns
        while True:
            self._sock.settimeout(max(0.0, (end - time.monotonic_ns()) / SEC))
            try:
                frame, source = self._sock.recvfrom(65536)
            except (BlockingIOError, TimeoutError):
                return None
            if source[2] != _OUTGOING:
                return time.monotonic_ns(), frame

    def settle(self) -> None:
        """Ping the stack, twice: behind the second answer is what the first one came too early for.

        An engine looks at its NIC, then at its applications, and then transmits: so what a call has
        asked for may leave behind the answer to a ping, but not behind that to the next.
        """
        for _ in range(2):
            self.ping()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class Cable:
    """A NIC and the namespace in which its other end is; one for all cases of a process.

    Args:
        nic: A NIC string: of a TAP, or of a veth that there is not yet.
        mtu: Bytes.
    """

    def __init__(self, nic: str, mtu: int) -> None:
        self.host = KernelHost("conformance-nic")
        self.nic = self._open(nic, mtu)
        self.port = PacketPort(self.host, self.nic.mac)

    def _open(self, text: str, mtu: int) -> Nic:
        spec = parse_nic(text)
        if spec.scheme == "tap":
            fd = self.host.open_tap(_INNER, offloads=False, mtu=1500)
            return with_faults(Tap(fd=fd, mtu=mtu, offload=False), spec)
        import os

        from pytest_machnet import ends

        name = f"mc{os.getpid():x}"
        self.host.open_veth(_INNER, name)
        return open_nic(ends.with_interface(text, name), mtu)

    def close(self) -> None:
        """Take it away."""
        self.nic.close()
        self.port.close()
        self.host.close()


_cables: dict[tuple[str, int], Cable] = {}


def _cable(nic: str, mtu: int) -> Cable:
    if (nic, mtu) not in _cables:
        close_cables()
        _cables[nic, mtu] = Cable(nic, mtu)
    return _cables[nic, mtu]


def close_cables() -> None:
    """Take all away."""
    while _cables:
        _cables.popitem()[1].close()


class NicSocket:
    """A socket of the stack. Its send() is as that of a kernel: the segment is on its way behind it."""

    def __init__(self, arm: NicArm, sock: Any) -> None:
        self._arm, self._sock = arm, sock

    def accept(self) -> tuple[NicSocket, tuple[str, int]]:
        """The next connection, with the peer's address."""
        sock, address = self._sock.accept()
        return NicSocket(self._arm, sock), address

    def send(self, data: bytes, flags: int = 0) -> int:
        """Send, and wait until the engine has looked at it."""
        sent: int = self._sock.send(data, flags)
        self._arm.wire.settle()
        return sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class NicArm(StackArm):
    """See `conformance.arms.Arm`."""

    def __init__(self, settings: Settings, nic: str) -> None:
        cable = _cable(nic, settings.mtu)
        self.wire = cable.port
        super().__init__(settings, cable.nic)
        self._other = self.stack.socket()
        self._other.bind((ARM_IP, _OTHER_PORT))
        self._other.listen(1)
        while self.wire.recv(0) is not None:
            pass  # of the case before

    def sleep(self, ns: int) -> None:
        """Let real time pass."""
        time.sleep(ns / SEC)

    def settle(self) -> None:
        """Wait until the stack has answered what came before.

        A connection whose socket was closed while it connected is reset with the next call on any
        socket of the stack: here it is.
        """
        self.wire.settle()
        with contextlib.suppress(BlockingIOError):
            self._other.accept()
        self.wire.settle()

    def socket(self) -> Any:
        """A stream socket of the stack, whose send() returns when the engine has what it was given."""
        return NicSocket(self, self.stack.socket())

    def close(self) -> None:
        """Close the stack; the cable stays."""
        with contextlib.suppress(OSError):
            self.stack.close(0)
