# SPDX-License-Identifier: MIT
# ruff: noqa: PTH116, PTH208, S302
# (pathlib is slow to import; what is unmarshalled comes from our own processes)
"""The inside of a `KernelHost`: the process that holds its namespaces, and the way into them.

This file is run by its path, with ``python -I -S``, so that a host starts in a few milliseconds:
it imports the standard library only, and little of that. `kernel_host.py` imports it too, for the
constants and for `enter_namespaces`.

``hold`` keeps the namespaces alive and does what has to be done from inside (sockets, TAP devices,
sysctls, offloads) on request. It watches a pidfd of its owner and ends with it, however the owner
ends. PR_SET_PDEATHSIG would not do: it fires when the *thread* that started us ends.

``exec`` is what stands between `subprocess.Popen` and a command: it enters and becomes the command.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import marshal
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

TAG = "machnet-kernel-host"
MESSAGE_BYTES_MAX = 65536
#: What the holder says when it has closed its copies of the descriptors that it passed on.
DONE = b"done"
KILL_DEADLINE_S = 5.0

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

_TUN_PATH = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_TUN_F_CSUM = 0x01
_TUN_F_TSO4 = 0x02
_TUN_F_TSO6 = 0x04

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCETHTOOL = 0x8946
_IFF_UP = 0x1

# Feature: (ethtool command that reads it, the one that sets it). In the order to switch them on:
# segmentation needs checksums and scatter-gather.
_OFFLOADS = {
    "rx-checksum": (0x14, 0x15),
    "tx-checksum": (0x16, 0x17),
    "scatter-gather": (0x18, 0x19),
    "tso": (0x1E, 0x1F),
    "gso": (0x23, 0x24),
    "gro": (0x2B, 0x2C),
}


class StepError(Exception):
    """A step that the kernel refused: which one, and its errno."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(step)
        self.step = step
        self.errno = error.errno or errno.EIO


def attempt(step: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call `function`; a refusal becomes a `StepError` that names the step."""
    try:
        return function(*args)
    except OSError as error:
        raise StepError(step, error) from error


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _unshare(flags: int) -> None:
    # os.unshare and os.setns came with Python 3.12 only.
    _check(ctypes.CDLL(None, use_errno=True).unshare(flags))


def setns(fd: int, kind: int) -> None:
    """Move the calling thread into the namespace that `fd` refers to."""
    _check(ctypes.CDLL(None, use_errno=True).setns(fd, kind))


def _write_file(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


# ---- entering -----------------------------------------------------------------------------------


def enter_namespaces(owner_fd: int, user_fd: int, net_fd: int) -> None:
    """Move this single-threaded process into a host's namespaces.

    Args:
        owner_fd: pidfd of the process that owns the host.
        user_fd: its user namespace, or -1.
        net_fd: its network namespace.

    Raises:
        StepError: The kernel refused, or the owner is gone (errno ESRCH).
    """
    if user_fd >= 0:
        attempt("entering the user namespace", setns, user_fd, CLONE_NEWUSER)
    attempt("entering the network namespace", setns, net_fd, CLONE_NEWNET)
    # In this order: an owner that ends from here on finds us inside, where the holder ends us.
    if _is_readable(owner_fd):
        raise StepError("its owner has ended", OSError(errno.ESRCH, ""))


def _enter_and_exec(fds: list[int], drop_lc_ctype: bool, command: list[str]) -> None:
    """Become `command` inside the namespaces; a failure goes to the error pipe, the last of fds."""
    owner_fd, user_fd, net_fd, error_fd = fds
    try:
        enter_namespaces(owner_fd, user_fd, net_fd)
        for fd in fds:
            if fd >= 0:
                os.set_inheritable(fd, False)
        # The interpreter ignores these two, and in a C locale sets LC_CTYPE (PEP 538).
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        if drop_lc_ctype:
            os.environ.pop("LC_CTYPE", None)
        attempt("running the command", os.execvp, command[0], command)
    except StepError as error:
        os.write(error_fd, marshal.dumps((error.step, error.errno)))
    os._exit(127)


# ---- holding ------------------------------------------------------------------------------------


def _make_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    attempt("creating a user namespace", _unshare, CLONE_NEWUSER)
    # A process without privilege may map its group only once it has given up setgroups(2).
    attempt("mapping the group to root", _write_file, "/proc/self/setgroups", "deny")
    attempt("mapping the group to root", _write_file, "/proc/self/gid_map", f"0 {gid} 1")
    attempt("mapping the user to root", _write_file, "/proc/self/uid_map", f"0 {uid} 1")


def _make_namespaces(user_fd: int, force_user: bool) -> bool:
    """Create the network namespace, in a user namespace where it has to be; says whether."""
    if not force_user:
        try:
            _unshare(CLONE_NEWNET)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise StepError("creating a network namespace", error) from error
        else:
            return False
    if user_fd >= 0:
        attempt("entering the user namespace", setns, user_fd, CLONE_NEWUSER)
    else:
        _make_user_namespace()
    attempt("creating a network namespace", _unshare, CLONE_NEWNET)
    return True


def _disable_ipv6() -> bool:
    """Keep IPv6 quiet on every interface to come; False where /proc/sys can't be written."""
    try:
        for which in ("all", "default"):
            _write_file(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6", "1")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _lo_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sH22x", b"lo", 0))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | _IFF_UP))


Reply = tuple[Any, list[int]]  # the answer, and descriptors that go with it and are closed here


def _op_socket(family: int, kind: int, proto: int) -> Reply:
    sock = attempt("creating a socket", socket.socket, family, kind, proto)
    return None, [sock.detach()]


def _op_tap(name: str, flags: int, vnet_hdr_bytes: int, offloads: bool) -> Reply:
    open_flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    fd = attempt(f"opening {_TUN_PATH}", os.open, _TUN_PATH, open_flags)
    try:
        request = struct.pack("16sH22x", name.encode(), flags)
        attempt(f"creating the TAP device {name}", fcntl.ioctl, fd, _TUNSETIFF, request)
        if vnet_hdr_bytes:
            size = struct.pack("i", vnet_hdr_bytes)
            attempt("setting the vnet header's size", fcntl.ioctl, fd, _TUNSETVNETHDRSZ, size)
            mask = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 if offloads else 0
            attempt("setting the TAP offloads", fcntl.ioctl, fd, _TUNSETOFFLOAD, mask)
    except BaseException:
        os.close(fd)
        raise
    return None, [fd]


def _op_read_file(step: str, path: str) -> Reply:
    fd = attempt(step, os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return attempt(step, os.read, fd, MESSAGE_BYTES_MAX // 2).decode(), []
    finally:
        os.close(fd)


def _op_write_file(step: str, path: str, text: str) -> Reply:
    attempt(step, _write_file, path, text)
    return None, []


def _ethtool(sock: socket.socket, name: str, command: int, value: int = 0) -> int:
    data = array.array("I", [command, value])
    request = struct.pack("16sP16x", name.encode(), data.buffer_info()[0])
    fcntl.ioctl(sock, _SIOCETHTOOL, request)
    return data[1]


def _op_offloads(name: str, on: bool | list[str] | None) -> Reply:
    """Switch every offload of an interface, and say how they stand.

    With a list these are on and no others; None: they stay as they are.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if on is not None:
            for feature, (_, command) in _OFFLOADS.items():
                try:
                    wanted = on if isinstance(on, bool) else feature in on
                    _ethtool(sock, name, command, int(wanted))
                except OSError as error:  # noqa: PERF203 (six rounds)
                    # What a device has not got can't be on; that it can't be set is no failure.
                    if error.errno != errno.EOPNOTSUPP:
                        raise StepError(f"setting {feature} of {name}", error) from error
        return {
            feature: bool(attempt(f"reading {feature} of {name}", _ethtool, sock, name, command))
            for feature, (command, _) in _OFFLOADS.items()
        }, []


_OPERATIONS: dict[str, Callable[..., Reply]] = {
    "socket": _op_socket,
    "tap": _op_tap,
    "read_file": _op_read_file,
    "write_file": _op_write_file,
    "offloads": _op_offloads,
}


def _send(control: socket.socket, message: Any, fds: list[int]) -> None:
    socket.send_fds(control, [marshal.dumps(message)], fds)


def _serve_one(control: socket.socket) -> bool:
    """Answer one request; False when the owner has closed its end."""
    data = control.recv(MESSAGE_BYTES_MAX)
    if not data:
        return False
    operation, args = marshal.loads(data)
    try:
        answer, fds = _OPERATIONS[operation](*args)
    except StepError as error:
        _send(control, ("error", error.step, error.errno), [])
        return True
    try:
        _send(control, ("ok", answer), fds)
    finally:
        for fd in fds:
            os.close(fd)
    if fds:
        # Only now are they the owner's alone: a listener that it closes must be closed.
        control.send(DONE)
    return True


def _is_inside(pid: int, namespace: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino == namespace
    except OSError:
        return False  # not ours to look at, or ended


def _kill_inhabitants(namespace: int) -> bool:
    """End every other process of the namespace and wait until it has; False if there was none."""
    poll, killed = select.poll(), set()
    for entry in os.listdir("/proc"):
        if (
            not entry.isdigit()
            or int(entry) == os.getpid()
            or not _is_inside(int(entry), namespace)
        ):
            continue
        try:
            fd = os.pidfd_open(int(entry))
        except OSError:
            continue
        # Looked at again now that the descriptor pins it: the number may have passed to another.
        if not _is_inside(int(entry), namespace):
            os.close(fd)
            continue
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        poll.register(fd, select.POLLIN)
        killed.add(fd)
    found = bool(killed)
    deadline = time.monotonic() + KILL_DEADLINE_S / 2
    while killed and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            killed.remove(fd)
            os.close(fd)
    for fd in killed:
        os.close(fd)
    return found


def _hold(control_fd: int, owner_fd: int, user_fd: int, force_user: bool, ipv6: bool) -> None:
    control = socket.socket(fileno=control_fd)
    try:
        in_user = _make_namespaces(user_fd, force_user)
        attempt("bringing up lo", _lo_up)
        if user_fd >= 0:
            os.close(user_fd)
        quiet = not ipv6 and _disable_ipv6()
        kinds = ["net", "user"] if in_user else ["net"]
        fds = [
            attempt("opening its namespace", os.open, f"/proc/self/ns/{kind}", os.O_RDONLY)
            for kind in kinds
        ]
    except StepError as error:
        _send(control, ("error", error.step, error.errno), [])
        return
    namespace = os.fstat(fds[0]).st_ino
    _send(control, ("ok", (in_user, quiet)), fds)
    for fd in fds:
        os.close(fd)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(owner_fd, select.POLLIN)
    try:
        while owner_fd not in dict(poll.poll()) and _serve_one(control):
            pass
    except ConnectionError:
        pass  # the owner ended in the middle of a request
    finally:
        deadline = time.monotonic() + KILL_DEADLINE_S
        while _kill_inhabitants(namespace) and time.monotonic() < deadline:
            pass  # again: one of them may have forked meanwhile


def main(arguments: list[str]) -> None:
    """Run as ``hold TAG owner=PID name=NAME FDS...`` or ``exec FDS... -- COMMAND...``."""
    if arguments[0] == "hold":
        control_fd, owner_fd, user_fd, force_user, ipv6 = map(int, arguments[4:9])
        _hold(control_fd, owner_fd, user_fd, bool(force_user), bool(ipv6))
    else:
        fds = [int(fd) for fd in arguments[1:5]]
        _enter_and_exec(fds, arguments[5] == "1", arguments[7:])


if __name__ == "__main__":
    main(sys.argv[1:])
