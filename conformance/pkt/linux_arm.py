# SPDX-License-Identifier: MIT
"""Linux as the host under test: the kernel's TCP in a network namespace, behind a TAP, in real time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import select
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

from machnet.sim import KernelHost
from machnet.sim._hostcore import KernelHostError
from machnet.testing.build import make_frame

from .flows import Endpoints
from .tcpinfo import KERNEL_BYTES, from_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from .arms import Configuration, Pending

__all__ = ["LinuxArm"]

REMOTE_MAC = "02:00:00:00:00:02"
_IFNAME = "pkt0"
_FRAME_BYTES_MAX = 70_000
_IPPROTO_TCP, _TCP_INFO = 6, 11
_ECHO_ID = 0x706B
#: How long the kernel may take to answer a ping on a machine that is busy.
_SETTLE_NS = 30_000_000_000

#: What makes the kernel do what the RFCs say and nothing beyond; a script may set each otherwise.
#: What a kernel lacks, it does not do either.
_SYSCTLS = {
    "tcp_congestion_control": "reno",
    "tcp_early_retrans": "0",  # no tail loss probe
    "tcp_recovery": "0",  # three duplicates count, not time
    "tcp_frto": "0",
    "tcp_comp_sack_nr": "0",
    "tcp_autocorking": "0",
    "tcp_moderate_rcvbuf": "0",
    "tcp_no_metrics_save": "1",
    "tcp_syncookies": "0",
    "tcp_syn_linear_timeouts": "0",
    "tcp_tso_win_divisor": "1",
    "tcp_ecn": "0",
    "tcp_fastopen": "0",
    "tcp_invalid_ratelimit": "0",
    "tcp_challenge_ack_limit": "2147483647",
    "icmp_ratelimit": "0",
    "icmp_msgs_per_sec": "1000000",
}


class _Worker:
    """One thread that makes the calls which may block, one after the other."""

    def __init__(self, wake_fd: int) -> None:
        self._jobs: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._wake_fd = wake_fd
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="pkt-call", daemon=True)
        self._thread.start()

    def give(self, call: _Call) -> None:
        self._jobs.put(call)

    def stop(self) -> None:
        self._stopped = True
        self._jobs.put(None)
        self._thread.join(10)

    def _work(self) -> None:
        while (call := self._jobs.get()) is not None:
            call.make()
            if self._stopped:
                return  # a call that took its time: the descriptor may be another's by now
            os.eventfd_write(self._wake_fd, 1)


class _Call:
    """A system call, which may be made by another thread."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._finished = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None
        self.ended_ns = 0

    def make(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001 (handed on to who asks for the result)
            self._error = error
        self.ended_ns = time.monotonic_ns()
        self._finished.set()

    @property
    def done(self) -> bool:
        """Whether it has returned."""
        return self._finished.is_set()

    def result(self) -> Any:
        """What it returned."""
        if self._error is not None:
            raise self._error
        return self._result


class LinuxArm:
    """See `arms.Arm`.

    Times are real: a machine that is busy with other things is late by some milliseconds, and the
    script's tolerance is widened for it.
    """

    name = "linux"
    realtime = True
    tolerance_factor = 10

    def __init__(self, configuration: Configuration) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self._pings = 0
        self.host = KernelHost("packetdrill", ipv6=False)
        self._undo = contextlib.ExitStack()
        self._undo.callback(self.host.close)
        try:
            self._open(configuration)
        except BaseException:
            self._undo.close()
            raise

    def _open(self, configuration: Configuration) -> None:
        address = f"{configuration.local_ip}/{configuration.prefix}"
        if not configuration.kernel_defaults:
            for name, value in _SYSCTLS.items():
                with contextlib.suppress(KernelHostError):
                    self.host.sysctl(f"net.ipv4.{name}", value)
        for name, value in configuration.sysctls:
            self.sysctl(name, value)
        self._tap = self.host.open_tap(
            _IFNAME, vnet_hdr=False, offloads=False, mtu=configuration.mtu, kernel_ip=address
        )
        self._undo.callback(os.close, self._tap)
        self.host.set_offloads(_IFNAME, on=False)
        self.host.add_route(f"{configuration.remote_ip}/32", ifname=_IFNAME)
        self.host.neighbor(configuration.remote_ip, REMOTE_MAC, _IFNAME)
        mac = self.host.mac(_IFNAME)
        self.ends = Endpoints(configuration.local_ip, mac, configuration.remote_ip, REMOTE_MAC)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._undo.callback(os.close, self._wake_fd)
        self._poll = select.poll()
        self._poll.register(self._tap, select.POLLIN)
        self._poll.register(self._wake_fd, select.POLLIN)
        self._worker = _Worker(self._wake_fd)
        self._undo.callback(self._worker.stop)

    # ---- time and frames -------------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        """Real time."""
        return time.monotonic_ns()

    def send(self, frame: bytes) -> None:
        """Hand a frame to the kernel."""
        os.write(self._tap, frame)

    def _read_frames(self) -> bool:
        """Take what the kernel has sent; whether it was our ping's answer."""
        answered = False
        while True:
            try:
                frame = os.read(self._tap, _FRAME_BYTES_MAX)
            except BlockingIOError:
                return answered
            now = self.now_ns
            if frame[12:14] != b"\x08\x00":
                continue
            if frame[23] == 1 and frame[34] == 0 and frame[38:40] == _ECHO_ID.to_bytes(2, "big"):
                answered |= int.from_bytes(frame[40:42], "big") == self._pings
                continue
            self.frames.append((now, frame))

    def settle(self) -> None:
        """Ping the kernel: frames keep their order, so an answer to an earlier one comes before."""
        self._pings = (self._pings + 1) & 0xFFFF
        ends = self.ends
        self.send(make_frame("icmp", {
            "eth_src": ends.remote_mac, "eth_dst": ends.local_mac,
            "src": ends.remote_ip, "dst": ends.local_ip, "ttl": 64, "ip_id": 0,
            "icmp_type": 8, "icmp_code": 0, "icmp_id": _ECHO_ID, "icmp_seq": self._pings,
            "payload": b"",
        }))  # fmt: skip
        end = self.now_ns + _SETTLE_NS
        while not self._read_frames():
            left = end - self.now_ns
            if left <= 0:
                raise TimeoutError("the kernel does not answer a ping through the TAP")
            self._sleep(left)

    def _sleep(self, ns: int) -> None:
        """Until there is a frame, or a call has ended, or the time is over."""
        if not self._poll.poll(max(0, ns) // 1_000_000):
            left = ns % 1_000_000
            if left:
                time.sleep(left / 1e9)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def wait(self, until_ns: int, pending: Pending | None) -> None:
        """Read frames as they come."""
        have = len(self.frames)
        while True:
            self._read_frames()
            left = until_ns - self.now_ns
            if len(self.frames) > have or left <= 0 or (pending is not None and pending.done):
                return
            self._sleep(left)

    def start(self, call: Callable[[], Any], *, blocking: bool) -> Pending:
        """Make a call; one that may block, in a thread."""
        made = _Call(call)
        if blocking:
            self._worker.give(made)
        else:
            made.make()
        return made

    # ---- system calls ----------------------------------------------------------------------------

    def socket(self, family: int, kind: int, protocol: int) -> Any:
        """A kernel socket of the namespace."""
        return self.host.socket(family, kind, protocol)

    def adopt(self, sock: Any) -> None:
        """The kernel knows it."""

    def set_nonblocking(self, sock: Any, on: bool) -> None:
        """O_NONBLOCK."""
        sock.setblocking(not on)

    def read(self, sock: Any, size: int) -> bytes:
        """The system call."""
        return os.read(sock.fileno(), size)

    def write(self, sock: Any, data: bytes) -> int:
        """The system call."""
        return os.write(sock.fileno(), data)

    def queued(self, sock: Any, request: int) -> int:
        """Bytes in a queue."""
        answer = fcntl.ioctl(sock.fileno(), request, struct.pack("=i", 0))
        (count,) = struct.unpack("=i", answer)
        return int(count)

    def poll(self, wanted: list[tuple[Any, int]], timeout_ms: int) -> list[int]:
        """The system call."""
        poll = select.poll()
        for sock, events in wanted:
            poll.register(sock.fileno(), events)
        found = dict(poll.poll(timeout_ms))
        return [found.get(sock.fileno(), 0) for sock, _ in wanted]

    def tcp_info(self, sock: Any) -> dict[str, int]:
        """The kernel's struct."""
        return from_kernel(sock.getsockopt(_IPPROTO_TCP, _TCP_INFO, KERNEL_BYTES))

    def sysctl(self, name: str, value: str) -> None:
        """Set a sysctl of the namespace."""
        try:
            self.host.sysctl(name, value)
        except KernelHostError as error:
            raise ValueError(str(error)) from error

    def shell(self, command: str, folder: str) -> None:
        """Run a command in the namespace."""
        done = self.host.run(["sh", "-c", command], check=False, cwd=folder)
        if done.returncode != 0:
            said = f"{done.stdout}{done.stderr}".strip()
            raise ValueError(f"`{command}` ended with status {done.returncode}: {said}")

    def close(self) -> None:
        """Let go of everything. Sockets are the caller's, and closed before."""
        self._undo.close()
