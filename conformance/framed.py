# SPDX-License-Identifier: MIT
"""A machnet engine with framed messages on the other end of an arm's wire.

The engine is stepped, and its wire is fed with what the arm sends, and the other way round: so it
meets Linux's sockets and machnet's with the same code, in the arm's time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import struct
from typing import TYPE_CHECKING, Any

from conformance.arms import MS, SEC
from machnet import Stack
from machnet.sim import Wire
from machnet.stack.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.arms import Arm

__all__ = ["Framed", "frame"]

#: How long a case waits for what must come.
_PATIENCE_NS = 30 * SEC
#: How long the wire may be silent before somebody looks again.
_STEP_NS = 1 * MS


def frame(payload: bytes) -> bytes:
    """A message as it is on the byte stream: four octets of length, big-endian, and the payload."""
    return struct.pack("!I", len(payload)) + payload


class _PumpedClock(Clock):
    """Who waits on it carries frames meanwhile."""

    def __init__(self) -> None:
        super().__init__(realtime=False)
        self.pump: Callable[[int], None] = lambda _: None

    def wait(self, channel: Any, left_ns: int, what: str) -> int:
        """Carry frames for a moment; 0 when there is no time left."""
        self.pump(min(left_ns, _STEP_NS))
        return int(left_ns > 0)


class _PumpedWire(Wire):
    """A wire fed by hand whose stack waits by `_PumpedClock`."""

    def new_clock(self) -> Clock:
        """The clock of the one stack on it."""
        self.pumped = _PumpedClock()
        return self.pumped


class Framed:
    """An engine with one channel, which speaks to the arm.

    Attributes:
        ip: Its address.
        channel: Its `machnet.Channel`. Blocking calls carry frames between the two.
    """

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.ip = arm.wire.ip
        self._nic = _PumpedWire(mtu=arm.settings.mtu, mac=arm.wire.mac)
        self.stack = Stack(self._nic, f"{self.ip}/16", seed=11, rto_min_us=4_000_000)
        self._nic.pumped.pump = self.pump
        self.stack.neighbor(arm.ip, arm.mac)
        self.channel = self.stack.attach()
        self._origin_ns = arm.now_ns - self.stack.now_ns

    def close(self) -> None:
        """Close the engine."""
        self.stack.close(0)
        self._nic.close()

    def pump(self, within_ns: int = 0) -> None:
        """Carry frames both ways until neither side has any, waiting that long for the first."""
        while True:
            for _, sent in self.stack.drain():
                self.arm.wire.send(sent)
            self.arm.settle()
            got = self.arm.wire.recv(0) or (self.arm.wire.recv(within_ns) if within_ns else None)
            self.stack.advance(max(0, self.arm.now_ns - self._origin_ns - self.stack.now_ns))
            if got is None:
                return
            within_ns = 0
            self.stack.inject(got[1])

    def until(self, look: Callable[[], Any]) -> Any:
        """Carry frames until that gives something (not None, not EAGAIN); what it gave."""
        end = self.arm.now_ns + _PATIENCE_NS
        while True:
            self.pump()
            with contextlib.suppress(BlockingIOError):
                if (value := look()) is not None:
                    return value
            assert self.arm.now_ns < end, "nothing came"
            self.pump(_STEP_NS)

    # ---- the arm's program -----------------------------------------------------------------------

    def program_connects(self, port: int) -> Any:
        """A socket of the arm, connected to the engine's port."""
        sock = self.arm.socket()
        with contextlib.suppress(BlockingIOError):
            sock.connect((self.ip, port))
        self.until(lambda: connected(sock, (self.ip, port)))
        return sock

    def program_sends(self, sock: Any, data: bytes) -> None:
        """All of it, in as many calls as it takes."""
        sent = 0
        while sent < len(data):
            sent += self.until(functools.partial(sock.send, data[sent : sent + 65536]))

    def program_reads(self, sock: Any, size: int) -> bytes:
        """Exactly that much, fewer at the end of the stream."""
        data = b""
        while len(data) < size:
            part = self.until(functools.partial(sock.recv, size - len(data)))
            if not part:
                break
            data += part
        return data

    def program_reads_message(self, sock: Any) -> bytes:
        """One message, by its length."""
        (size,) = struct.unpack("!I", self.program_reads(sock, 4))
        return self.program_reads(sock, size)


def connected(sock: Any, address: tuple[str, int]) -> bool | None:
    """Whether a connect() has ended well; None while it is under way."""
    number = sock.connect_ex(address)
    if number in {errno.EALREADY, errno.EINPROGRESS}:
        return None
    if number not in {0, errno.EISCONN}:
        raise OSError(number, errno.errorcode[number])
    return True
