# SPDX-License-Identifier: MIT
"""The owner's side of a `KernelHost`: starting, asking and ending the process that holds it."""

from __future__ import annotations

import array
import contextlib
import errno
import itertools
import marshal
import os
import socket as socketlib
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machnet.sim import _nsinit

if TYPE_CHECKING:
    from typing_extensions import Self

REQUEST_TIMEOUT_S = 10.0

_host_numbers = itertools.count(1)
_start_lock = threading.Lock()
_shared_user: weakref.ref[UserNamespace] | None = None


class KernelHostError(OSError):
    """Something about a host failed: what, why and what helps. `errno` is the kernel's, or None."""

    def __init__(self, text: str, number: int | None = None) -> None:
        super().__init__(number, text)

    def __str__(self) -> str:
        return str(self.args[1])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[1], self.args[0])


class UserNamespace:
    """A user namespace, shared by all hosts of this process so that they can be connected."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def _read_text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="ascii").strip()
    return ""


def _user_namespace_remedy() -> str:
    if _read_text("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "set the sysctl kernel.unprivileged_userns_clone=1, or run as root"
    if _read_text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "set the sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root"
    for limit in ("max_user_namespaces", "max_net_namespaces"):
        if _read_text(f"/proc/sys/user/{limit}") == "0":
            return f"raise the sysctl user.{limit}"
    return (
        "run as root; in a container, allow unshare(2): --cap-add SYS_ADMIN, or a seccomp profile "
        "with user namespaces"
    )


def _remedy(step: str, number: int) -> str:
    """What helps when the kernel refuses a step; empty when there is nothing general to say."""
    if "namespace" in step and number in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS):
        return _user_namespace_remedy()
    if "mapping the" in step:
        return _user_namespace_remedy()
    if "/dev/net/tun" in step:
        if number in (errno.EACCES, errno.EPERM):
            return (
                "run as root, or let root give everybody the device as distributions do (chmod 666 "
                "/dev/net/tun); in a container, start it with --device /dev/net/tun"
            )
        return "load the driver (modprobe tun); in a container, add --device /dev/net/tun"
    if "TAP device" in step and number == errno.EBUSY:
        return "the name is taken on this host: give another, or close the descriptor of the first"
    if "sysctl" in step:
        if number == errno.ENOENT:
            return "the kernel has no such setting per network namespace"
        if number == errno.EROFS:
            return "/proc/sys is mounted read-only here, as containers do: use --privileged"
    return ""


def failure(who: object, step: str, number: int) -> KernelHostError:
    """The error to raise when the kernel refused a step with this errno."""
    remedy = _remedy(step, number)
    text = f"{who}: {step} failed: {os.strerror(number)}"
    return KernelHostError(f"{text}; {remedy}" if remedy else text, number)


class HostCore:
    """The life of a host and the conversation with its holder; `KernelHost` has the whole story."""

    def __init__(
        self, name: str = "host", *, ipv6: bool = False, user_namespace: bool | None = None
    ) -> None:
        self.name = name
        self._number = next(_host_numbers)
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()
        self._macs = itertools.count(1)
        self._veths = itertools.count()
        self._processes: list[subprocess.Popen[Any]] = []
        self._fds: list[int] = []
        self._control: socketlib.socket | None = None
        self._holder: subprocess.Popen[bytes] | None = None
        self._user: UserNamespace | None = None
        try:
            with _start_lock:
                self._start(ipv6, bool(user_namespace))
        except BaseException:
            self.close()
            raise

    # ---- life ------------------------------------------------------------------------------------

    def _start(self, ipv6: bool, force_user: bool) -> None:
        global _shared_user
        if sys.platform != "linux":
            raise KernelHostError(f"{self}: network namespaces need Linux, this is {sys.platform}")
        shared = _shared_user() if _shared_user is not None else None
        control, theirs = socketlib.socketpair(socketlib.AF_UNIX, socketlib.SOCK_SEQPACKET)
        self._control = control
        with theirs:
            try:
                self._owner_fd = os.pidfd_open(os.getpid())
            except OSError as error:
                raise KernelHostError(f"{self}: pidfds need Linux 5.3: {error}") from error
            self._fds.append(self._owner_fd)
            inherited = [theirs.fileno(), self._owner_fd, shared.fd if shared else -1]
            # fmt: off
            self._holder = subprocess.Popen(
                [
                    sys.executable, "-I", "-S", _nsinit.__file__, "hold", _nsinit.TAG,
                    f"owner={self._owner_pid}", f"name={self.name}",
                    *map(str, inherited), str(int(force_user)), str(int(ipv6)),
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                pass_fds=[fd for fd in inherited if fd >= 0],
                start_new_session=True,  # the terminal's Ctrl-C is for the test
            )
            # fmt: on
        try:
            (in_user, quiet), fds = self._exchange(None, 2)
        except KernelHostError:
            raise
        except OSError as error:
            raise KernelHostError(f"{self}: its holder did not start ({error!r})") from error
        self._fds.append(fds[0])
        self._net_fd = fds[0]
        self.ipv6 = not quiet
        if in_user:
            self._user = shared or UserNamespace(fds.pop())
            _shared_user = weakref.ref(self._user)
        for extra in fds[1:]:
            os.close(extra)

    def __repr__(self) -> str:
        return f"KernelHost {self.name!r}"

    @property
    def pid(self) -> int:
        """Process id of the holder, in whose ``/proc/PID/ns`` the namespaces are."""
        self._check_open()
        assert self._holder is not None
        return self._holder.pid

    @property
    def in_user_namespace(self) -> bool:
        """Whether the host lies in a user namespace (made without root)."""
        return self._user is not None

    @property
    def closed(self) -> bool:
        """Whether the host is gone."""
        return self._control is None

    def close(self) -> None:
        """End every process of the host and the host itself; again, or half made, does no harm.

        Descriptors that were handed out (TAP, sockets) stay the caller's to close. The kernel
        keeps the bare namespace until the last of them is.
        """
        control, self._control = self._control, None
        if control is None or os.getpid() != self._owner_pid:
            return
        # The holder reads the end of file, kills the inhabitants and ends. Shut down and not only
        # closed: a child that is being forked by another thread may have a copy of the descriptor.
        with contextlib.suppress(OSError):
            control.shutdown(socketlib.SHUT_RDWR)
        control.close()
        if self._holder is not None:
            try:
                self._holder.wait(2 * _nsinit.KILL_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._holder.kill()
                self._holder.wait()
        while self._processes:
            process = self._processes.pop()
            if process.returncode is None:
                process.kill()  # the holder has, unless it was killed itself
                process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        with contextlib.suppress(OSError):
                            stream.close()
        self._user = None
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Parts may be missing: __init__ may have failed at once, or the interpreter be ending.
        if getattr(self, "_control", None) is not None:
            with contextlib.suppress(Exception):
                self.close()

    def _check_open(self) -> None:
        if self._control is None:
            raise KernelHostError(f"{self} is closed", errno.EBADF)
        if os.getpid() != self._owner_pid:
            raise KernelHostError(
                f"{self} belongs to process {self._owner_pid}, this is {os.getpid()}: make a host "
                "in the process that uses it",
                errno.EPERM,
            )

    # ---- talking to the holder -------------------------------------------------------------------

    def _exchange(self, request: bytes | None, fds_max: int) -> tuple[Any, list[int]]:
        """Send a request (None: the holder speaks first), and return its answer."""
        assert self._control is not None
        control = self._control
        control.settimeout(REQUEST_TIMEOUT_S)
        if request is not None:
            control.send(request)
        # Not socket.recv_fds, which drops the flags that it is given.
        numbers = array.array("i")
        data, ancillary, _, _ = control.recvmsg(
            _nsinit.MESSAGE_BYTES_MAX,
            socketlib.CMSG_LEN(fds_max * numbers.itemsize),
            socketlib.MSG_CMSG_CLOEXEC,
        )
        for level, kind, content in ancillary:
            if (level, kind) == (socketlib.SOL_SOCKET, socketlib.SCM_RIGHTS):
                numbers.frombytes(content[: len(content) // numbers.itemsize * numbers.itemsize])
        fds = list(numbers)
        if not data:
            raise ConnectionResetError
        answer = marshal.loads(data)  # noqa: S302 (from our own holder)
        if answer[0] == "error":
            raise failure(self, answer[1], answer[2])
        if request is not None and fds and control.recv(len(_nsinit.DONE)) != _nsinit.DONE:
            raise ConnectionResetError
        return answer[1], fds

    def _request(self, operation: str, *args: Any, fds: int = 0) -> tuple[Any, list[int]]:
        with self._lock:
            self._check_open()
            try:
                return self._exchange(marshal.dumps((operation, args)), fds)
            except KernelHostError:
                raise
            except BaseException as error:
                # The answer may still come and would be taken for the next request's.
                self.close()
                if isinstance(error, OSError):
                    text = f"{self}: its holder process does not answer ({error!r}): host closed"
                    raise KernelHostError(text, errno.EPIPE) from error
                raise

    def socket(
        self,
        family: int = socketlib.AF_INET,
        type: int = socketlib.SOCK_STREAM,  # noqa: A002 (socket.socket's name)
        proto: int = 0,
    ) -> socketlib.socket:
        """Create a socket on this host for use in this process.

        It is the host's kernel socket: it binds to the host's addresses and sends by its routes,
        and any thread or event loop of this process may use it. AF_PACKET and SOCK_RAW work too.

        Raises:
            KernelHostError: The kernel refused.
        """
        _, (fd,) = self._request("socket", int(family), int(type), int(proto), fds=1)
        return socketlib.socket(family, type, proto, fileno=fd)
