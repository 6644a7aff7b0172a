# SPDX-License-Identifier: MIT
"""System calls of a script, on the sockets of an arm."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .constants import CONSTANTS
from .datacalls import DataCalls
from .errors import ArmUnsupportedError
from .files import Descriptor, Job
from .nodes import Dots, Number
from .values import Values

if TYPE_CHECKING:
    from collections.abc import Callable

    from .arms import Arm
    from .flows import Flow
    from .nodes import Call, Event, Expression

__all__ = ["CALL_NAMES", "Calls"]

_IPPROTO_TCP = 6


@dataclass
class Names:
    """Addresses and ports that ``...`` stands for."""

    local_ip: str
    remote_ip: str
    bind_port: int = 8080
    connect_port: int = 8080


class Calls(DataCalls):
    """The descriptors of a script, and its calls.

    Args:
        arm: Where they are made.
        names: What ``...`` stands for.
        find_flow: The connection with these ports (local, remote), if the script has one.
    """

    def __init__(
        self, arm: Arm, names: Names, find_flow: Callable[[int, int], Flow | None]
    ) -> None:
        super().__init__(arm, find_flow)
        self.names = names
        #: Port of the socket that was bound last.
        self.listen_port = names.bind_port
        #: The socket that code blocks ask about.
        self.under_test: Descriptor | None = None

    def prepare(self, event: Event, call: Call) -> Job:
        """How a call is to be made.

        Raises:
            ScriptError: Its arguments are not what it takes.
        """
        values = Values(event.where)
        handler = getattr(self, f"_do_{call.name}")
        least, most = _ARGUMENTS[call.name]
        if not least <= len(call.args) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise values.bad(f"{call.name} takes {wanted} arguments, not {len(call.args)}")
        job: Job = handler(values, call)
        return job

    def close_all(self) -> None:
        """Close what the script left open; calls that wait for one return."""
        for descriptor in self.files.values():
            with contextlib.suppress(OSError):
                descriptor.sock.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                descriptor.sock.close()
        self.files.clear()

    # ---- making and ending -----------------------------------------------------------------------

    def _new_number(self, call: Call) -> int:
        """The script says which descriptor it gets; the kernel's own number is of no use here."""
        if isinstance(call.result, Number) and call.result.value >= 0:
            return call.result.value
        return next(number for number in range(3, 1 << 16) if number not in self.files)

    def _do_socket(self, values: Values, call: Call) -> Job:
        family = socket.AF_INET if isinstance(call.args[0], Dots) else values.number(call.args[0])
        kind = values.number(call.args[1])
        protocol = values.number(call.args[2])
        flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

        def finish(sock: Any) -> int:
            number = self._new_number(call)
            made = Descriptor(number, sock, nonblocking=bool(kind & socket.SOCK_NONBLOCK))
            self.arm.set_nonblocking(sock, made.nonblocking)
            self.files[number] = made
            return number

        def make() -> Any:
            try:
                return self.arm.socket(family, kind & ~flags, protocol)
            except ValueError as error:
                raise ArmUnsupportedError(values.where, f"not supported: {error}") from error

        return Job(make, finish)

    def _do_bind(self, values: Values, call: Call) -> Job:
        file = self.file(values, call)
        address = values.address(call.args[1])
        ip, port = address or (self.names.local_ip, self.names.bind_port)

        def finish(_: Any) -> int:
            self.listen_port = port
            return 0

        return Job(lambda: file.sock.bind((ip, port)), finish)

    def _do_listen(self, values: Values, call: Call) -> Job:
        file, backlog = self.file(values, call), values.number(call.args[1])
        return Job(lambda: file.sock.listen(backlog))

    def _do_accept(self, values: Values, call: Call) -> Job:
        file = self.file(values, call)
        wanted = values.address(call.args[1]) if len(call.args) > 1 else None
        flags = values.number(call.args[3]) if call.name == "accept4" else 0

        def finish(pair: tuple[Any, tuple[str, int]]) -> int:
            sock, address = pair
            number = self._new_number(call)
            made = Descriptor(number, sock, nonblocking=bool(flags & socket.SOCK_NONBLOCK))
            self.arm.set_nonblocking(sock, made.nonblocking)
            self.files[number] = self.under_test = made
            self.arm.adopt(sock)
            if wanted is not None and wanted != address:
                self.complain(f"peer's address: expected {wanted}, found {address}")
            return number

        return Job(file.sock.accept, finish, blocking=not file.nonblocking)

    _do_accept4 = _do_accept

    def _do_connect(self, values: Values, call: Call) -> Job:
        file = self.file(values, call)
        address = values.address(call.args[1])
        address = address or (self.names.remote_ip, self.names.connect_port)
        self.under_test = file
        return Job(lambda: file.sock.connect(address), blocking=not file.nonblocking)

    def _do_shutdown(self, values: Values, call: Call) -> Job:
        file, how = self.file(values, call), values.number(call.args[1])
        return Job(lambda: file.sock.shutdown(how))

    def _do_close(self, values: Values, call: Call) -> Job:
        file = self.file(values, call)

        def finish(_: Any) -> int:
            self.files.pop(file.number, None)
            if self.under_test is file:
                self.under_test = None
            return 0

        return Job(file.sock.close, finish, blocking=file.lingers)

    # ---- what they are ---------------------------------------------------------------------------

    def _do_getsockname(self, values: Values, call: Call) -> Job:
        file, wanted = self.file(values, call), values.address(call.args[1])
        ask = getattr(file.sock, call.name)

        def finish(found: tuple[str, int]) -> int:
            if wanted is not None and wanted != found:
                self.complain(f"address: expected {wanted}, found {found}")
            return 0

        return Job(ask, finish)

    _do_getpeername = _do_getsockname

    def _do_setsockopt(self, values: Values, call: Call) -> Job:
        file = self.file(values, call)
        level, name = values.number(call.args[1]), values.number(call.args[2])
        value = values.option(call.args[3])
        if value is None:
            raise values.bad("expected the option's value, such as [1]")

        def work() -> None:
            if (level, name) == (socket.SOL_SOCKET, socket.SO_LINGER) and isinstance(value, bytes):
                on, seconds = struct.unpack("ii", value)
                file.lingers = bool(on and seconds)
            try:
                file.sock.setsockopt(level, name, value)
            except (TypeError, OSError) as error:
                missing = getattr(error, "errno", None) in {None, _ENOPROTOOPT}
                if missing and not self.arm.realtime and call.errno is None:
                    option = _text(call.args[2])
                    what = f"not supported: machnet has no socket option {option}"
                    raise ArmUnsupportedError(values.where, what) from error
                raise

        return Job(work)

    def _do_getsockopt(self, values: Values, call: Call) -> Job:
        file = self.file(values, call)
        level, name = values.number(call.args[1]), values.number(call.args[2])
        wanted = values.option(call.args[3])
        size = len(wanted) if isinstance(wanted, bytes) else 0
        if (level, name) == (_IPPROTO_TCP, socket.TCP_INFO):
            raise values.bad("TCP_INFO is for code blocks: %{ assert tcpi_snd_cwnd == 10 }%")

        def work() -> Any:
            return file.sock.getsockopt(level, name, *([size] if size else []))

        def finish(found: Any) -> int:
            if wanted is not None and found != wanted:
                self.complain(f"value: expected {wanted!r}, found {found!r}")
            return 0

        return Job(work, finish)

    def _do_fcntl(self, values: Values, call: Call) -> Job:
        file, command = self.file(values, call), values.number(call.args[1])
        value = values.number(call.args[2]) if len(call.args) > 2 else 0

        def work() -> int:
            if command == CONSTANTS["F_GETFL"]:
                return os.O_RDWR | (os.O_NONBLOCK if file.nonblocking else 0)
            file.nonblocking = bool(value & os.O_NONBLOCK)
            self.arm.set_nonblocking(file.sock, file.nonblocking)
            return 0

        if command not in {CONSTANTS["F_GETFL"], CONSTANTS["F_SETFL"]}:
            raise self.unsupported(values, "fcntl but F_GETFL and F_SETFL")
        return Job(work, int)

    def _do_ioctl(self, values: Values, call: Call) -> Job:
        file, request = self.file(values, call), values.number(call.args[1])
        if request not in {CONSTANTS[name] for name in ("SIOCINQ", "SIOCOUTQ", "SIOCOUTQNSD")}:
            raise self.unsupported(values, "ioctl but SIOCINQ, SIOCOUTQ and SIOCOUTQNSD")
        wanted = values.option(call.args[2])

        def finish(found: int) -> int:
            if wanted is not None and found != wanted:
                self.complain(f"value: expected {wanted!r}, found {found}")
            return 0

        return Job(lambda: self.arm.queued(file.sock, request), finish)

    # ---- waiting ---------------------------------------------------------------------------------

    def _do_poll(self, values: Values, call: Call) -> Job:
        entries = [
            values.struct(item, "fd", "events", "revents") for item in values.items(call.args[0])
        ]
        timeout_ms = values.number(call.args[2])
        files = [self.file_number(values, values.number(entry["fd"])) for entry in entries]
        asked = [
            (file.sock, values.number(entry["events"]))
            for file, entry in zip(files, entries, strict=True)
        ]
        began = self.arm.now_ns

        def work() -> list[int]:
            if self.arm.realtime:
                return self.arm.poll(asked, timeout_ms)
            over = 0 <= timeout_ms * 1_000_000 <= self.arm.now_ns - began
            return self.arm.poll(asked, 0 if over else -1)

        def finish(found: list[int]) -> int:
            for file, entry, events in zip(files, entries, found, strict=True):
                expected = entry.get("revents")
                if expected is not None and values.number(expected) != events:
                    self.complain(
                        f"revents of {file.number}: expected "
                        f"{_events(values.number(expected))}, found {_events(events)}"
                    )
            return sum(1 for events in found if events)

        return Job(work, finish, blocking=timeout_ms != 0)


_ENOPROTOOPT = 92


def _text(expression: Expression) -> str:
    return str(getattr(expression, "name", getattr(expression, "value", expression)))


def _events(mask: int) -> str:
    names = ("POLLIN", "POLLPRI", "POLLOUT", "POLLERR", "POLLHUP", "POLLNVAL", "POLLRDHUP")
    return "|".join(name for name in names if mask & getattr(select, name)) or "0"


_ARGUMENTS: dict[str, tuple[int, int]] = {
    "socket": (3, 3), "bind": (3, 3), "listen": (2, 2), "accept": (1, 3), "accept4": (4, 4),
    "connect": (3, 3), "shutdown": (2, 2), "close": (1, 1), "getsockname": (3, 3),
    "getpeername": (3, 3), "setsockopt": (5, 5), "getsockopt": (5, 5), "fcntl": (2, 3),
    "ioctl": (3, 3), "poll": (3, 3), "read": (3, 3), "recv": (4, 4), "recvfrom": (6, 6),
    "readv": (3, 3), "recvmsg": (3, 3), "write": (3, 3), "send": (4, 4), "sendto": (6, 6),
    "writev": (3, 3), "sendmsg": (3, 3),
}  # fmt: skip

#: What a script may call.
CALL_NAMES = frozenset(_ARGUMENTS)
