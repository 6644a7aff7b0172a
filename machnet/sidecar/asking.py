# SPDX-License-Identifier: MIT
"""The other end of `machnet.sidecar.admin`: a command that asks a sidecar something."""

from __future__ import annotations

import array
import contextlib
import errno
import json
import mmap
import os
import socket
import struct
from typing import Any

from machnet._native import lib
from machnet.sidecar.protocol import REP_BYTES, MalformedError, Op, Reply, Request

__all__ = ["Asking"]

_FDS_MAX = 64
_TIMEOUT_S = 30.0


class Asking:
    """A connection to a sidecar's controller. A context manager.

    Args:
        path: Of its socket.
        name: What the asking one is called, for the sidecar's log.

    Raises:
        ConnectionRefusedError: There is no sidecar.
        PermissionError: This user may not ask it.
        OSError: It speaks another version (``EPROTO``), or does not answer.
    """

    def __init__(self, path: str, name: str) -> None:
        self._path = path
        self._ids = 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            # Python's timeout would make a full queue of connections an error.
            timeval = struct.pack("ll", int(_TIMEOUT_S), 0)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
            try:
                self._sock.connect(path)
                self._sock.settimeout(_TIMEOUT_S)
            except (ConnectionRefusedError, FileNotFoundError):
                raise ConnectionRefusedError(
                    errno.ECONNREFUSED, "there is no sidecar on this socket", path
                ) from None
            except OSError as error:
                raise type(error)(error.errno, os.strerror(error.errno or 0), path) from None
            hello = Request(Op.HELLO, chan_version=lib.MN_CHAN_VERSION, name=name.encode())
            self._exchange(hello)
        except BaseException:
            self._sock.close()
            raise

    def _exchange(self, request: Request) -> tuple[Reply, list[int]]:
        self._ids += 1
        fds: list[int] = []
        try:
            self._sock.send(request._replace(id=self._ids).pack())
            room = socket.CMSG_SPACE(_FDS_MAX * array.array("i").itemsize)
            packet, ancillary, _, _ = self._sock.recvmsg(
                REP_BYTES + 1, room, socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds += array.array("i", data[: len(data) // 4 * 4]).tolist()
            if not packet:
                raise ConnectionResetError(
                    errno.ECONNRESET, "the sidecar has ended the connection", self._path
                )
            reply = Reply.unpack(packet)
            if reply.id != self._ids:
                raise MalformedError(f"an answer to {reply.id}, not to {self._ids}")
        except BaseException as error:
            _close_all(fds)
            if isinstance(error, TimeoutError):
                raise OSError(errno.ETIMEDOUT, "the sidecar does not answer", self._path) from None
            if isinstance(error, MalformedError):
                raise OSError(errno.EPROTO, f"no machnet sidecar: {error}", self._path) from None
            raise
        if reply.status != 0:
            _close_all(fds)
            raise OSError(-reply.status, reply.why or os.strerror(-reply.status), self._path)
        return reply, fds

    def ask(self, cmd: str, **more: Any) -> Any:
        """Ask for what `machnet.sidecar.admin.Question` knows; the answer.

        Raises:
            OSError: It is refused; the text says why.
        """
        answer, fds = self.ask_fds(cmd, **more)
        _close_all(fds)
        return answer

    def ask_fds(self, cmd: str, **more: Any) -> tuple[Any, list[int]]:
        """The same, with the descriptors that came along; they are the caller's."""
        payload = json.dumps({"cmd": cmd, **more}).encode()
        reply, fds = self._exchange(Request(Op.ADMIN, payload=payload))
        if not fds:
            raise OSError(errno.EPROTO, "no answer came with the reply", self._path)
        answer_fd, *rest = fds
        try:
            with mmap.mmap(answer_fd, reply.value, prot=mmap.PROT_READ) as text:
                answer = json.loads(text[:])
        except BaseException:
            _close_all(rest)
            raise
        finally:
            os.close(answer_fd)
        if isinstance(answer, dict) and "error" in answer:
            _close_all(rest)
            raise OSError(errno.EIO, answer["error"], self._path)
        return answer, rest

    def close(self) -> None:
        """End the connection. Again: nothing."""
        self._sock.close()

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
