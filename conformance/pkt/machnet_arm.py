# SPDX-License-Identifier: MIT
"""machnet as the host under test: a stack on a wire that is fed by hand, in virtual time."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import select
import socket as posix
from typing import TYPE_CHECKING, Any

from machnet import Stack
from machnet.sim import Wire

from .constants import CONSTANTS
from .flows import Endpoints
from .tcpinfo import from_machnet

if TYPE_CHECKING:
    from collections.abc import Callable

    from .arms import Configuration, Pending

__all__ = ["MachnetArm"]

REMOTE_MAC = "02:00:00:00:00:02"
#: A call that waits for something that no timer brings is looked at this often.
_STEP_NS = 1_000_000
#: What poll tells without being asked.
_ALWAYS = select.POLLERR | select.POLLHUP
_PEER_FINISHED = ("CLOSE-WAIT", "LAST-ACK", "CLOSING", "TIME-WAIT")
_LATER = (errno.EAGAIN, errno.EINPROGRESS, errno.EALREADY)


def _retries_ms(value: int) -> int:
    # Every SYN doubles the time to the next one, which begins with a second.
    return 1000 * ((2 << value) - 1)


#: Settings of `machnet.Stack` for a sysctl under net.ipv4, and how to make them of its value.
_SETTINGS: dict[str, tuple[str, Callable[[int], int | bool]]] = {
    "tcp_timestamps": ("timestamps", bool),
    "tcp_sack": ("sack", bool),
    "tcp_window_scaling": ("wscale", bool),
    "tcp_rto_min_us": ("rto_min_us", int),
    "tcp_rto_max_ms": ("rto_max_us", lambda value: value * 1000),
    "tcp_fin_timeout": ("fin_wait2_ms", lambda value: value * 1000),
    "tcp_keepalive_time": ("keepalive_idle_s", int),
    "tcp_keepalive_intvl": ("keepalive_interval_s", int),
    "tcp_keepalive_probes": ("keepalive_count", int),
    "tcp_syn_retries": ("syn_timeout_ms", _retries_ms),
}
#: What machnet always does, by the value that says so to Linux; None: nothing that it could do.
_ALREADY: dict[str, tuple[str, ...] | None] = {
    "tcp_congestion_control": ("reno",),
    "tcp_early_retrans": ("0",),
    "tcp_recovery": ("0",),
    "tcp_frto": ("0",),
    "tcp_fastopen": ("0",),
    "tcp_ecn": ("0", "2"),
    "tcp_dsack": ("1",),
    "tcp_syncookies": ("0", "1"),
    "tcp_slow_start_after_idle": ("1",),
    "tcp_comp_sack_nr": ("0",),
    "tcp_mtu_probing": ("0",),
    "tcp_abort_on_overflow": ("0",),
    "tcp_synack_retries": ("5",),
    "tcp_moderate_rcvbuf": None,
    "tcp_autocorking": None,
    "tcp_no_metrics_save": None,
    "tcp_tso_win_divisor": None,
    "tcp_min_tso_segs": None,
    "tcp_invalid_ratelimit": None,
    "tcp_pacing_ss_ratio": None,
    "tcp_pacing_ca_ratio": None,
}


class _Attempt:
    """A call that is made again until it no longer says "not now"."""

    def __init__(self, call: Callable[[], Any], blocking: bool, arm: MachnetArm) -> None:
        self._call, self._blocking, self._arm = call, blocking, arm
        self.done, self.ended_ns = False, 0
        self._result: Any = None
        self._error: OSError | None = None
        self.again()

    def again(self) -> None:
        """Look whether it can return now."""
        if self.done:
            return
        try:
            self._result = self._call()
        except OSError as error:
            if self._blocking and error.errno in _LATER:
                return
            self._error = error
        self.done, self.ended_ns = True, self._arm.now_ns

    def result(self) -> Any:
        """What it returned."""
        if self._error is not None:
            raise self._error
        return self._result


class MachnetArm:
    """See `arms.Arm`."""

    name = "machnet"
    realtime = False
    tolerance_factor = 1

    def __init__(self, configuration: Configuration) -> None:
        settings: dict[str, Any] = {"rto_min_us": 200_000}
        for name, value in configuration.sysctls:
            settings |= self._setting(name, value)
        self._wire = Wire(mtu=configuration.mtu)
        address = f"{configuration.local_ip}/{configuration.prefix}"
        network = ipaddress.IPv4Interface(address).network
        on_link = ipaddress.IPv4Address(configuration.remote_ip) in network
        router = str(network[-2] if str(network[-2]) != configuration.local_ip else network[-3])
        self.stack = Stack(
            self._wire,
            address,
            None if on_link else router,
            seed=11,
            challenge_per_s=1000,
            **settings,
        )
        self.stack.neighbor(configuration.remote_ip if on_link else router, REMOTE_MAC)
        self.ends = Endpoints(
            configuration.local_ip, self.stack.mac, configuration.remote_ip, REMOTE_MAC
        )
        self.frames: list[tuple[int, bytes]] = []
        self._accepted: set[tuple[tuple[str, int], tuple[str, int]]] = set()

    @staticmethod
    def _setting(name: str, value: str) -> dict[str, Any]:
        short = name.replace("/", ".").removeprefix("net.ipv4.")
        if short in _SETTINGS:
            setting, convert = _SETTINGS[short]
            try:
                return {setting: convert(int(value))}
            except ValueError:
                raise ValueError(f"sysctl {name}: {value!r} is not an integer") from None
        if short in _ALREADY:
            fixed = _ALREADY[short]
            if fixed is None or value in fixed:
                return {}
            raise ValueError(f"sysctl {name} = {value}: machnet has only {' or '.join(fixed)}")
        raise ValueError(f"sysctl {name}: machnet has nothing like it")

    # ---- time and frames -------------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        """Virtual time."""
        return self.stack.now_ns

    def send(self, frame: bytes) -> None:
        """Put a frame on the wire; it is processed at once."""
        self.stack.inject(frame)

    def settle(self) -> None:
        """Collect what the stack sends now."""
        self.frames += self.stack.drain()

    def wait(self, until_ns: int, pending: Pending | None) -> None:
        """Go on, timer by timer."""
        have = len(self.frames)
        while True:
            if isinstance(pending, _Attempt):
                pending.again()
            self.settle()
            if len(self.frames) > have or (pending is not None and pending.done):
                return
            now = self.now_ns
            if now >= until_ns:
                return
            due = self.stack.deadline()
            step = until_ns if due is None else min(until_ns, max(due, now + 1))
            if pending is not None:
                step = min(step, now + _STEP_NS)
            self.stack.advance(step - now)

    def start(self, call: Callable[[], Any], *, blocking: bool) -> Pending:
        """Make a call, again and again if it blocks."""
        return _Attempt(call, blocking, self)

    # ---- system calls ----------------------------------------------------------------------------

    def socket(self, family: int, kind: int, protocol: int) -> Any:
        """A stream socket of the stack."""
        del protocol
        if family != posix.AF_INET or kind != posix.SOCK_STREAM:
            raise ValueError("machnet has sockets for AF_INET, SOCK_STREAM only")
        return self.stack.socket()

    def adopt(self, sock: Any) -> None:
        """Its connection no longer waits to be accepted."""
        with contextlib.suppress(OSError):  # it may have ended
            self._accepted.add((sock.getsockname(), sock.getpeername()))

    def set_nonblocking(self, sock: Any, on: bool) -> None:
        """They never block; whether they seem to is the executor's to remember."""

    def read(self, sock: Any, size: int) -> bytes:
        """The same as recv without flags."""
        return bytes(sock.recv(size))

    def write(self, sock: Any, data: bytes) -> int:
        """The same as send without flags."""
        return int(sock.send(data))

    def queued(self, sock: Any, request: int) -> int:
        """Bytes in a queue."""
        info = sock.info()
        if info is None or info.state == "LISTEN":
            raise OSError(errno.EINVAL, "ioctl")
        if request == CONSTANTS["SIOCINQ"]:
            # The engine counts a buffer until all of it was read; what can be read is exact.
            return len(sock.recv(1 << 20, posix.MSG_PEEK)) if info.recv_queue else 0
        if request == CONSTANTS["SIOCOUTQ"]:
            return int(info.send_queue)
        unsent = int(info.send_queue) - int(info.snd_nxt - info.snd_una) % 2**32
        return max(unsent, 0)

    def poll(self, wanted: list[tuple[Any, int]], timeout_ms: int) -> list[int]:
        """From the state of the sockets."""
        found = [self._events(sock) & (events | _ALWAYS) for sock, events in wanted]
        if not any(found) and timeout_ms:
            raise BlockingIOError(errno.EAGAIN, "poll")
        return found

    def _events(self, sock: Any) -> int:
        info = sock.info()
        if info is None:
            if sock.getsockname()[1] == 0:
                return select.POLLOUT | select.POLLHUP  # never connected
            # What ended it is told by the next call, and by poll until then.
            untold = sock._flow is not None and not sock._failed and sock._flow.error  # noqa: SLF001
            error = select.POLLERR if untold not in {False, errno.ENOTCONN} else 0
            return select.POLLIN | select.POLLOUT | select.POLLRDHUP | select.POLLHUP | error
        if info.state == "LISTEN":
            return self._listener_events(info)
        if info.state in {"SYN-SENT", "SYN-RECEIVED"}:
            return 0
        events = select.POLLOUT
        if info.state in _PEER_FINISHED:
            events |= select.POLLIN | select.POLLRDHUP
        if info.recv_queue:
            events |= select.POLLIN
        return events

    def _listener_events(self, listener: Any) -> int:
        port, complete = listener.local[1], {"ESTABLISHED", "CLOSE-WAIT"}
        waiting = any(
            info.local[1] == port
            and info.state in complete
            and (info.local, info.remote) not in self._accepted
            for info in self.stack.sockets()
        )
        return select.POLLIN if waiting else 0

    def tcp_info(self, sock: Any) -> dict[str, int]:
        """What a socket's info says."""
        info = sock.info()
        if info is None:
            raise ValueError("the connection is gone")
        return from_machnet(info)

    def sysctl(self, name: str, value: str) -> None:
        """Only before the first system call."""
        if self._setting(name, value):
            raise ValueError(f"sysctl {name}: machnet takes it before the first system call only")

    def shell(self, command: str, folder: str) -> None:
        """There is no shell inside."""
        del folder
        raise ValueError(f"`{command}`: shell commands are for the Linux arm only")

    def close(self) -> None:
        """Close the stack and its wire."""
        self.stack.close()
        self._wire.close()
