# SPDX-License-Identifier: MIT
"""Linux as an arm: the kernel's TCP in a network namespace, behind a TAP without offloads."""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from conformance.arms import ARM_IP, PEER_IP, PEER_MAC, SEC, wait_for
from conformance.arms.ping import PingingPort
from machnet.sim import KernelHost, Tap
from machnet.sim.kernel_host import KernelHostError
from machnet.testing import TapPort

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.arms import Settings

_IFNAME = "mn0"

_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_SEND_QUEUE, _REPAIR_OFF_SILENTLY = 2, -1
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_F_REQUEST_DUMP, _NLMSG_ERROR, _NLMSG_DONE = 0x301, 2, 3

#: Names of RFC 9293 for the kernel's numbers; 12 is how it counts a SYN in the backlog.
_STATES = {
    1: "ESTABLISHED", 2: "SYN-SENT", 3: "SYN-RECEIVED", 4: "FIN-WAIT-1", 5: "FIN-WAIT-2", 6: "TIME-WAIT",
    7: "CLOSED", 8: "CLOSE-WAIT", 9: "LAST-ACK", 10: "LISTEN", 11: "CLOSING", 12: "SYN-RECEIVED",
}  # fmt: skip

#: What makes the kernel do what the RFCs say and nothing beyond, at the same moment in each run; the
#: cases that are about one of these set it themselves. A kernel that lacks one of them goes without.
_SYSCTLS: dict[str, str | int] = {
    "tcp_congestion_control": "reno",  # CUBIC and BBR have other windows, BBR paces
    "tcp_early_retrans": 0,  # no tail loss probe before the timeout
    "tcp_recovery": 0,  # three duplicates count, not time (RACK)
    "tcp_frto": 0,
    "tcp_comp_sack_nr": 0,  # each segment out of order is answered at once
    "tcp_autocorking": 0,
    "tcp_moderate_rcvbuf": 0,
    "tcp_no_metrics_save": 1,  # no case learns from the one before
    "tcp_syncookies": 0,
    "tcp_slow_start_after_idle": 1,
    "tcp_syn_linear_timeouts": 0,  # the backoff of RFC 6298 from the first SYN on
    "tcp_ecn": 0,
    "tcp_synack_retries": 5,
    "tcp_rto_max_ms": 120_000,
    "tcp_challenge_ack_limit": 2**31 - 1,
    "tcp_mtu_probing": 0,
    "tcp_fastopen": 0,
    "tcp_abort_on_overflow": 0,
    "tcp_rfc1337": 0,
    "tcp_stdurg": 0,
    "tcp_shrink_window": 0,
    "tcp_retries2": 15,
    "icmp_ratelimit": 0,
    "icmp_msgs_per_sec": 1_000_000,
}


class KernelPort(PingingPort, TapPort):
    """The TAP's near end, which can tell when the kernel has done what it was given to do."""

    def __init__(self, tap: Tap) -> None:
        TapPort.__init__(self, tap, PEER_IP, PEER_MAC, remote_ip=ARM_IP)
        PingingPort.__init__(self)
        self.kernel_mac = self.neighbors[ARM_IP]

    _transmit, _receive = TapPort.send, TapPort.recv


class LinuxSocket:
    """A kernel socket that doesn't block; what it accepts doesn't either."""

    def __init__(self, arm: LinuxArm, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._arm, self.kernel = arm, sock
        arm.sockets.append(self)

    def accept(self) -> tuple[LinuxSocket, tuple[str, int]]:
        """The next connection, with the peer's address."""
        sock, address = self.kernel.accept()
        return LinuxSocket(self._arm, sock), address

    def send(self, data: bytes, flags: int = 0) -> int:
        """Send without a signal."""
        return self.kernel.send(data, flags | socket.MSG_NOSIGNAL)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)


_HOSTS = itertools.count()


@functools.cache
def _host() -> tuple[KernelHost, KernelPort]:
    """One namespace for all cases of a process, which ends with it: making it takes 0.2 s."""
    host = KernelHost("conformance", ipv6=False)
    fd = host.open_tap(_IFNAME, vnet_hdr=False, offloads=False, kernel_ip=f"{ARM_IP}/16")
    host.set_offloads(_IFNAME, on=False)
    host.neighbor(PEER_IP, PEER_MAC, _IFNAME)
    with host.iproute() as route:
        # One segment at a time: none that may go out is kept back for the sake of a larger burst.
        route.link("set", index=route.link_lookup(ifname=_IFNAME)[0], gso_max_segs=1)
    return host, KernelPort(Tap(fd=fd, offload=False))


class LinuxArm:
    """See `conformance.arms.Arm`."""

    name = "linux"

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.sockets: list[LinuxSocket] = []
        self.host, self.wire = _host()
        self.ip, self.mac = ARM_IP, self.wire.kernel_mac
        for name, value in _SYSCTLS.items():
            # Kernels differ in what they have; what they lack they do not do either.
            with contextlib.suppress(KernelHostError):
                self.sysctl(name, value)
        self.sysctl("tcp_timestamps", int(settings.timestamps))
        self.sysctl("tcp_sack", int(settings.sack))
        self.sysctl("tcp_window_scaling", int(settings.wscale))
        self.sysctl("tcp_syn_retries", settings.syn_retries)
        self.sysctl("tcp_fin_timeout", settings.fin_wait2_s)
        self.sysctl("tcp_invalid_ratelimit", settings.challenge_ms)
        with contextlib.suppress(KernelHostError):
            self.sysctl("tcp_rto_min_us", settings.rto_min_ms * 1000)
        if self.host.mtu(_IFNAME) != settings.mtu:
            self.host.set_link(_IFNAME, mtu=settings.mtu)
        self.wire.forget()

    @property
    def now_ns(self) -> int:
        """Real time."""
        return self.wire.now_ns

    def sleep(self, ns: int) -> None:
        """Let real time pass."""
        time.sleep(ns / SEC)

    def settle(self) -> None:
        """Wait until the kernel has answered what came before."""
        self.wire.ping()

    def socket(self) -> Any:
        """A kernel socket of the namespace."""
        return LinuxSocket(self, self.host.socket())

    def set_isn(self, sock: Any, isn: int) -> None:
        """By the kernel's repair mode, which root in the namespace may use."""
        level = socket.IPPROTO_TCP
        sock.setsockopt(level, _TCP_REPAIR, 1)
        sock.setsockopt(level, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
        sock.setsockopt(level, _TCP_QUEUE_SEQ, struct.pack("=I", isn))
        sock.setsockopt(level, _TCP_REPAIR, _REPAIR_OFF_SILENTLY)

    def wait(self, call: Callable[[], Any], within_ns: int = 10 * SEC) -> Any:
        """Call again and again, a millisecond apart: the kernel may be at work for somebody else."""
        return wait_for(self, call, within_ns)

    def state(self, local: tuple[str, int], remote: tuple[str, int]) -> str:
        """From the kernel's table, by inet_diag."""
        self.settle()
        request = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFF) + bytes(
            48
        )
        head = struct.pack(
            "=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0
        )
        with self.host.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
            diag.settimeout(10)
            diag.send(head + request)
            ends = struct.pack("!HH", local[1], remote[1])
            ends += socket.inet_aton(local[0]).ljust(16, b"\0")
            ends += socket.inet_aton(remote[0]).ljust(16, b"\0")
            while True:
                data = diag.recv(1 << 16)
                while data:
                    length, kind = struct.unpack_from("=IH", data)
                    if kind in {_NLMSG_DONE, _NLMSG_ERROR}:
                        return "CLOSED"
                    # struct inet_diag_msg: family, state, timer, retrans, then the addresses.
                    if data[20 : 20 + len(ends)] == ends:
                        return _STATES[data[17]]
                    data = data[(length + 3) & ~3 :]

    def new_host(self) -> str:
        """An address that the kernel knows the MAC of, and nothing else yet."""
        number = next(_HOSTS)
        ip = f"10.9.{1 + number // 250}.{1 + number % 250}"
        self.host.neighbor(ip, PEER_MAC, _IFNAME)
        return ip

    def sysctl(self, name: str, value: str | int) -> None:
        """Set a sysctl of the namespace."""
        self.host.sysctl(f"net.ipv4.{name}", value)

    def close(self) -> None:
        """Reset what is still connected, so that nothing of it disturbs the next case."""
        for sock in self.sockets:
            if sock.kernel.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.kernel.close()
        self.wire.forget()
