# SPDX-License-Identifier: MIT
"""System calls that move data."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from .errors import UnsupportedError
from .files import Descriptor, Job
from .flows import pattern
from .nodes import AnyValue, Dots, Number, String, Symbol

if TYPE_CHECKING:
    from collections.abc import Callable

    from .arms import Arm
    from .flows import Flow
    from .nodes import Call, Expression
    from .values import Values

__all__ = ["DataCalls"]


class DataCalls:
    """The part of `calls.Calls` that reads and writes."""

    def __init__(self, arm: Arm, find_flow: Callable[[int, int], Flow | None]) -> None:
        self.arm = arm
        self.files: dict[int, Descriptor] = {}
        self.complaints: list[str] = []
        self._find_flow = find_flow

    def complain(self, text: str) -> None:
        """The call returned, but with something else than the script says."""
        self.complaints.append(text)

    def unsupported(self, values: Values, feature: str) -> UnsupportedError:
        """The language has it, and we don't."""
        return UnsupportedError(values.where, f"not supported: {feature}")

    def file(self, values: Values, call: Call) -> Descriptor:
        """The descriptor that is the first argument."""
        return self.file_number(values, values.number(call.args[0]))

    def file_number(self, values: Values, number: int) -> Descriptor:
        """A descriptor by its number; one that isn't open fails as the kernel's would."""
        if number not in self.files:
            return Descriptor(number, _NoSocket())
        return self.files[number]

    def flow_of(self, file: Descriptor) -> Flow | None:
        """The script's connection that a socket belongs to."""
        try:
            local, remote = file.sock.getsockname(), file.sock.getpeername()
        except OSError:
            return None
        return self._find_flow(local[1], remote[1])

    # ---- reading ---------------------------------------------------------------------------------

    def _reader(
        self, file: Descriptor, buffers: list[tuple[Expression, int]], flags: int,
        receive: Callable[[int], bytes],
    ) -> Job:  # fmt: skip
        size = sum(length for _, length in buffers)
        found = bytearray()
        blocking = not file.nonblocking and not flags & socket.MSG_DONTWAIT

        def work() -> bytes:
            data = receive(size - len(found))
            found.extend(data)
            wait_for_all = flags & socket.MSG_WAITALL and blocking and not self.arm.realtime
            if wait_for_all and data and len(found) < size:
                raise BlockingIOError(11, "recv")
            return bytes(found)

        def finish(data: bytes) -> int:
            self._compare(file, buffers, data, peek=bool(flags & socket.MSG_PEEK))
            return len(data)

        return Job(work, finish, blocking)

    def _compare(
        self, file: Descriptor, buffers: list[tuple[Expression, int]], data: bytes, *, peek: bool
    ) -> None:
        wanted, at = bytearray(), 0
        for contents, length in buffers:
            part = data[at : at + length]
            if isinstance(contents, String):
                wanted += contents.value[: len(part)].ljust(len(part), b"\0")
            elif isinstance(contents, Dots):
                wanted += pattern(file.read_bytes + at, len(part))
            else:
                wanted += part
            at += length
        if file.sock.type == socket.SOCK_STREAM and data != wanted:
            place = next(i for i, (a, b) in enumerate(zip(data, wanted, strict=False)) if a != b)
            self.complain(
                f"data: octet {file.read_bytes + place} of the stream is {data[place]:#04x}, "
                f"expected {wanted[place]:#04x}"
            )
        if not peek:
            file.read_bytes += len(data)

    @staticmethod
    def _flags(values: Values, expression: Expression) -> int:
        return values.number(expression)

    def _do_read(self, values: Values, call: Call) -> Job:
        file, size = self.file(values, call), values.number(call.args[2])
        return self._reader(
            file, [(call.args[1], size)], 0, lambda count: self.arm.read(file.sock, count)
        )

    def _do_readv(self, values: Values, call: Call) -> Job:
        file = self.file(values, call)
        buffers = values.buffers(call.args[1])
        return self._reader(file, buffers, 0, lambda count: self.arm.read(file.sock, count))

    def _do_recv(self, values: Values, call: Call) -> Job:
        file, size = self.file(values, call), values.number(call.args[2])
        flags = values.number(call.args[3])
        return self._reader(
            file, [(call.args[1], size)], flags, lambda count: self._receive(file, count, flags)
        )

    _do_recvfrom = _do_recv

    def _do_recvmsg(self, values: Values, call: Call) -> Job:
        file = self.file(values, call)
        buffers, wanted = values.message(call.args[1])
        if wanted:
            raise self.unsupported(values, "msg_flags other than 0 of what was received")
        flags = values.number(call.args[2])
        return self._reader(file, buffers, flags, lambda count: self._receive(file, count, flags))

    def _receive(self, file: Descriptor, count: int, flags: int) -> bytes:
        if not self.arm.realtime:
            flags &= ~socket.MSG_WAITALL  # sockets that never wait don't know it; `_reader` does
        return bytes(file.sock.recv(count, flags))

    # ---- writing ---------------------------------------------------------------------------------

    def _writer(
        self, file: Descriptor, buffers: list[tuple[Expression, int]], flags: int,
        transmit: Callable[[bytes], int],
    ) -> Job:  # fmt: skip
        data = bytearray()
        for contents, length in buffers:
            if isinstance(contents, String):
                data += contents.value[:length].ljust(length, b"\0")
            else:
                data += pattern(file.wrote_bytes + len(data), length)
        whole = bytes(data)
        sent = 0
        blocking = not file.nonblocking and not flags & socket.MSG_DONTWAIT

        def work() -> int:
            nonlocal sent
            flow = self.flow_of(file)
            count = transmit(whole[sent:])
            if flow is not None:
                flow.wrote(whole[sent:], count)
            sent += count
            if sent < len(whole) and blocking and not self.arm.realtime:
                raise BlockingIOError(11, "send")
            return sent

        def finish(count: int) -> int:
            file.wrote_bytes += count
            return count

        return Job(work, finish, blocking)

    def _do_write(self, values: Values, call: Call) -> Job:
        file, size = self.file(values, call), values.number(call.args[2])
        return self._writer(
            file, [(call.args[1], size)], 0, lambda data: self.arm.write(file.sock, data)
        )

    def _do_writev(self, values: Values, call: Call) -> Job:
        file = self.file(values, call)
        buffers = values.buffers(call.args[1])
        return self._writer(file, buffers, 0, lambda data: self.arm.write(file.sock, data))

    def _do_send(self, values: Values, call: Call) -> Job:
        file, size = self.file(values, call), values.number(call.args[2])
        flags = values.number(call.args[3])
        return self._writer(
            file, [(call.args[1], size)], flags,
            lambda data: int(file.sock.send(data, flags | socket.MSG_NOSIGNAL)),
        )  # fmt: skip

    def _do_sendto(self, values: Values, call: Call) -> Job:
        file, size = self.file(values, call), values.number(call.args[2])
        flags = values.number(call.args[3])
        address = values.address(call.args[4])
        none = (Number(0), Symbol("NULL", values.where))
        if file.sock.type == socket.SOCK_STREAM:
            if flags & 0x20000000:
                raise self.unsupported(values, "MSG_FASTOPEN")
            return self._do_send(values, call)
        given = not isinstance(call.args[4], AnyValue) and call.args[4] not in none
        target = address or (self.names.remote_ip, self.names.connect_port)  # type: ignore[attr-defined]
        data = pattern(0, size)

        def work() -> int:
            return int(file.sock.sendto(data, flags, target) if given else file.sock.send(data))

        return Job(work, int, not file.nonblocking)

    def _do_sendmsg(self, values: Values, call: Call) -> Job:
        file = self.file(values, call)
        buffers, _ = values.message(call.args[1])
        flags = values.number(call.args[2])
        return self._writer(
            file, buffers, flags,
            lambda data: int(file.sock.send(data, flags | socket.MSG_NOSIGNAL)),
        )  # fmt: skip


class _NoSocket:
    """What a number stands for that is not open: every call fails with EBADF."""

    type = socket.SOCK_STREAM

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any) -> Any:
            raise OSError(9, "Bad file descriptor")

        if name.startswith("__"):
            raise AttributeError(name)
        return fail
