# SPDX-License-Identifier: MIT
"""The controller's socket as a file: made, taken over from a dead sidecar, and removed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

__all__ = ["BusySocketError", "ControlSocket", "bound_socket", "is_stale", "remove_stale"]

BACKLOG = 1024


class BusySocketError(OSError):
    """Somebody serves on this path already."""


def bound_socket(path: str, mode: int, kind: int) -> socket.socket:
    """A listening, non-blocking UNIX socket; a file that nobody serves on is replaced.

    Raises:
        BusySocketError: Somebody serves on it, or it is no socket.
        OSError: It can't be made.
    """
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path, kind)
            sock.bind(path)
        Path(path).chmod(mode)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def _remove_stale(path: str, kind: int) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise BusySocketError(errno.EEXIST, "there is a file of this name that is no socket", path)
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
            return
        except OSError:
            pass  # its queue is full, or it is of another type: somebody is there
    raise BusySocketError(errno.EADDRINUSE, "another process serves on this socket", path)


def is_stale(path: str) -> bool:
    """Whether a socket's file was left by a process that has ended.

    Raises:
        OSError: It can't be looked at.
    """
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    flags = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_UNIX, flags) as probe:
        # Of a socket of another type that is served the error is another one.
        return probe.connect_ex(path) == errno.ECONNREFUSED


def remove_stale(path: str) -> bool:
    """Remove a socket's file that a process has left, and say whether that was so.

    No sidecar can start on it in the meantime.

    Raises:
        OSError: It can't be removed.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(f"{path}.lock", flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_stale(path):
            return False
        Path(path).unlink()
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(lock)


class ControlSocket:
    """The controller's listening socket. A context manager.

    A lock beside it keeps two sidecars that start at the same time apart, and tells a live one from
    a file that a dead one has left.

    Args:
        path: Of the socket. Its directory is made.
        mode: Permissions of the file.

    Raises:
        BusySocketError: A live sidecar, or something else, is there.
        OSError: It can't be made.
    """

    def __init__(self, path: str, mode: int) -> None:
        self.path = path
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._lock = os.open(f"{path}.lock", flags, 0o600)
        try:
            self._take_lock()
            self.sock = bound_socket(path, mode, socket.SOCK_SEQPACKET)
        except BaseException:
            os.close(self._lock)
            raise
        self._inode = os.lstat(path).st_ino
        self._open = True

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            who = f"a sidecar (process {pid})" if pid.isdigit() else "a sidecar"
            raise BusySocketError(
                errno.EADDRINUSE, f"{who} is running on this socket", self.path
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Take no more connections, and remove the file. Again: nothing."""
        if not self._open:
            return
        self._open = False
        with contextlib.suppress(OSError):
            if os.lstat(self.path).st_ino == self._inode:
                Path(self.path).unlink()
        self.sock.close()
        # The lock's file stays: removing it would let two sidecars lock two files of one name.
        os.close(self._lock)

    def __enter__(self) -> ControlSocket:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
