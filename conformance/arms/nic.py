# SPDX-License-Identifier: MIT
"""machnet as an arm on a NIC: in real time, with a packet socket at the other end of the cable."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

from conformance.arms import SEC, wait_for
from machnet import Stack
from machnet.sim import KernelHost
from machnet.sim.nicstr import parse_nic
from machnet.stack.nics import Tap, open_nic, with_faults
from machnet.stack.socket import TCP_ISN
from machnet.testing import Packet, icmp

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.arms import Settings
    from machnet.stack.nics import Nic

ARM_IP, PEER_IP, PEER_MAC = "10.9.0.1", "10.9.0.2", "02:00:00:00:00:02"
#: Nobody connects to it; a call on it is a call on a socket of the stack.
_OTHER_PORT = 1
_INNER, _ALL_KINDS, _OUTGOING = "wire0", 0x0003, 4
#: Nothing is lost while nobody looks; more than the limit is root's right.
_SO_RCVBUFFORCE, _RCVBUF_BYTES = 33, 64 << 20
_ICMP, _PING_ID = 1, 0x4D4E
_SETTLE_NS = 30 * SEC


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


class PacketPort:
    """A packet socket on the other end of the cable; see `machnet.testing.Port`."""

    patience_ns = 5 * SEC
    ip, mac, remote_ip = PEER_IP, PEER_MAC, ARM_IP

    def __init__(self, host: KernelHost, arm_mac: str) -> None:
        self.neighbors = {ARM_IP: arm_mac}
        self._sock = host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_KINDS))
        self._sock.bind((_INNER, _ALL_KINDS))
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RCVBUF_BYTES)
        self._frames: list[tuple[int, bytes]] = []
        self._pings = 0

    @property
    def now_ns(self) -> int:
        """``time.monotonic_ns``."""
        return time.monotonic_ns()

    def send(self, frame: bytes) -> None:
        """Transmit a frame, and return when it has been processed: what a case does next, comes next."""
        self._sock.send(frame)
        self._ping()

    def recv(self, within_ns: int = 0) -> tuple[int, bytes] | None:
        """The next frame of the stack; waits for it."""
        return self._frames.pop(0) if self._frames else self._receive(within_ns)

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
            self._ping()

    def _ping(self) -> None:
        self._pings = (self._pings + 1) & 0xFFFF
        ping = icmp("echo-request", id=_PING_ID, seq=self._pings)
        addresses = {"eth_src": self.mac, "eth_dst": self.neighbors[ARM_IP], "src": self.ip}
        self._sock.send(ping.build({**addresses, "dst": ARM_IP}))
        pong = icmp("echo-reply", id=_PING_ID, seq=self._pings)
        end = self.now_ns + _SETTLE_NS
        while (got := self._receive(max(0, end - self.now_ns))) is not None:
            if got[1][23] == _ICMP and pong.matches(Packet(got[1])):
                return
            self._frames.append(got)
        raise TimeoutError("the stack does not answer a ping")

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


class NicArm:
    """See `conformance.arms.Arm`."""

    name = "machnet"

    def __init__(self, settings: Settings, nic: str) -> None:
        self.settings = settings
        self._hosts = 0
        cable = _cable(nic, settings.mtu)
        self.wire = cable.port
        self.stack = Stack(
            cable.nic,
            f"{ARM_IP}/16",
            timestamps=settings.timestamps,
            sack=settings.sack,
            wscale=settings.wscale,
            rto_min_us=settings.rto_min_ms * 1000,
            rto_initial_us=1_000_000,
            fin_wait2_ms=settings.fin_wait2_s * 1000,
            syn_timeout_ms=1000 * ((2 << settings.syn_retries) - 1),
            challenge_per_s=1000 // settings.challenge_ms if settings.challenge_ms else 1000,
        )
        self.stack.neighbor(PEER_IP, PEER_MAC)
        self.ip, self.mac = ARM_IP, self.stack.mac
        self._other = self.stack.socket()
        self._other.bind((ARM_IP, _OTHER_PORT))
        self._other.listen(1)
        while self.wire.recv(0) is not None:
            pass  # of the case before

    @property
    def now_ns(self) -> int:
        """Real time."""
        return self.wire.now_ns

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

    def set_isn(self, sock: Any, isn: int) -> None:
        """By the socket option that machnet has for it."""
        sock.setsockopt(socket.IPPROTO_TCP, TCP_ISN, isn)

    def wait(self, call: Callable[[], Any], within_ns: int = 10 * SEC) -> Any:
        """Call again and again, a millisecond apart."""
        return wait_for(self, call, within_ns)

    def state(self, local: tuple[str, int], remote: tuple[str, int]) -> str:
        """From the stack's table."""
        self.settle()
        info = self.stack.find_socket(local, remote)
        return "CLOSED" if info is None else info.state

    def new_host(self) -> str:
        """An address that the stack knows the MAC of."""
        self._hosts += 1
        ip = f"10.9.{1 + self._hosts // 250}.{1 + self._hosts % 250}"
        self.stack.neighbor(ip, PEER_MAC)
        return ip

    def sysctl(self, name: str, value: str | int) -> None:
        """There is none here."""

    def close(self) -> None:
        """Close the stack; the cable stays."""
        with contextlib.suppress(OSError):
            self.stack.close(0)
