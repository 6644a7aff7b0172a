# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (channels, sockets and streams are one implementation in several files)
"""Several messages at once, of a `machnet.Channel`."""

from __future__ import annotations

import contextlib
import errno
import weakref
from array import array
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.stack.flows import Flow, Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from machnet.channel import Channel

__all__ = ["MANY", "Batches"]

_EAGAIN = -errno.EAGAIN
#: Messages that are received at once at most.
MANY = 256


class Batches:
    """What `Channel.send_many` and `Channel.recv_many` do."""

    def __init__(self, channel: Channel) -> None:
        self._channel = weakref.proxy(channel)  # which has us
        self._got: Any = None
        self._words: Any = None

    def send(
        self,
        flow: Flow,
        messages: Sequence[bytes | bytearray | memoryview],
        timeout: float | None,
    ) -> int:
        """As `Channel.send_many`, on a flow of the channel."""
        channel = self._channel
        lens = array("I", map(len, messages))
        data = b"".join(messages)
        count = len(lens)
        if len(data) != sum(lens):
            raise ValueError("messages: bytes, or views of bytes, are wanted")
        raw = ffi.from_buffer("uint32_t[]", lens) if count else ffi.NULL

        def attempt() -> int | None:
            rc = int(lib.mn_chan_send_many(channel._native, flow.id, data, raw, count))
            if rc < 0 and rc != _EAGAIN:
                channel._send_failed(rc, flow, lens[0])
            return None if rc < 0 else rc

        taken = attempt()
        if taken is None and timeout != 0:
            with contextlib.suppress(TimeoutError):
                taken = channel._block(attempt, timeout, f"send on {flow}")
        if taken is None:
            raise BlockingIOError(errno.EAGAIN, f"no room for {lens[0]} bytes on {flow}")
        return taken

    def recv(self, limit: int, timeout: float | None) -> list[Message]:
        """As `Channel.recv_many`."""
        if not 1 <= limit <= MANY:
            raise ValueError(f"limit: {limit!r} is not within 1 to {MANY}")
        found = self._try(limit)
        if found is None:
            blocked: list[Message] = self._channel._block(lambda: self._try(limit), timeout, "recv")
            return blocked
        return found

    def _try(self, limit: int) -> list[Message] | None:
        channel = self._channel
        if self._got is None:
            self._got = ffi.new("struct mn_chan_got[]", MANY)
            self._words = memoryview(ffi.buffer(self._got)).cast("I")
        n = lib.mn_chan_recv_many(
            channel._native, channel._buf, channel._size, self._got, limit, channel._event
        )
        if n < 0:
            message = channel._received(n)
            return None if message is None else [message]
        flows, view = channel._flows, channel._view
        found: list[Message] = []
        at = 0
        got = iter(self._words[: 2 * n].tolist())
        for number, length in zip(got, got, strict=False):
            flow = flows.get(number)
            if flow is None:
                flow = channel._flow(number)
            end = at + length
            found.append(Message(view[at:end], flow))
            at = end
        return found
