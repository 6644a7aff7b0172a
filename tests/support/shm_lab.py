# SPDX-License-Identifier: MIT
"""A stack with two honest applications and room for hostile ones, and a hostile one's tools."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import machnet
from machnet._native import ffi, lib
from machnet.config import ChannelSettings
from machnet.sim import Wire
from machnet.stack.lending import Lent, lend

IP = "10.0.0.2"
SMALL = ChannelSettings(buf_bytes=512, tx_bufs=64, rx_bufs=64, flows_max=16, ctl_slots=16)
_WAIT_S = 20.0


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that nobody reports: bounded, and it says what never came."""
    end = time.monotonic() + _WAIT_S
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.001)


class Lab:
    """An engine, and two applications that want nothing but to talk to each other.

    Attributes:
        stack: The engine.
        sink: A channel of an honest server, for hostile clients to connect to (port 90).
    """

    def __init__(self, **settings: Any) -> None:
        # TIME-WAIT of those who end properly is over soon.
        self.stack = machnet.Stack(
            Wire(), ip=IP, thread=True, **{"msl_ms": 5, "eof_linger_ms": 50, **settings}
        )
        self._server = self.stack.attach()
        self._server.listen(IP, 80, "tcp")
        self._client = self.stack.attach()
        self._flow = self._client.connect(IP, IP, 80, "tcp")
        self.sink = self.stack.attach()
        self.sink.listen(IP, 90, "tcp")
        self._turn = 0
        self.served()
        with lend([self.stack], SMALL):
            pass  # the first loan gives the stack a descriptor that it keeps
        self._before = self._state()

    def served(self, turns: int = 5) -> None:
        """The two are served as ever."""
        for _ in range(turns):
            self._turn += 1
            data = b"%d" % self._turn * 100
            self._client.send(self._flow, data)
            message = self._server.recv(timeout=_WAIT_S)
            assert message.data == data
            self._server.send(message.flow, data)
            assert self._client.recv(timeout=_WAIT_S).data == data

    def drain_sink(self) -> list[bytes]:
        """What the honest server was sent so far."""
        found = []
        while True:
            try:
                message = self.sink.try_recv()
            except machnet.FlowError:
                continue
            if message is None:
                return found
            found.append(message.data)

    def _state(self) -> dict[str, int]:
        usage = self.stack.usage()
        usage.pop("timers")
        usage["lingering"] = self.stack.host_stats()["lanes_lingering"]
        usage["descriptors"] = sum(1 for _ in Path("/proc/self/fd").iterdir())
        usage["mappings"] = Path("/proc/self/maps").read_text().count("memfd:machnet-channel")
        return usage

    def clean(self) -> None:
        """Nothing is left of those who are gone."""

        def same() -> bool:
            self.drain_sink()
            return self._state() == self._before

        try:
            eventually(same, "the engine's pools as before")
        except AssertionError:
            after = self._state().items()
            raise AssertionError(f"left behind: {dict(after - self._before.items())}") from None

    def close(self) -> None:
        """End the engine."""
        self.stack.close(linger=0)


@contextmanager
def make_lab(**settings: Any) -> Iterator[Lab]:
    """A lab, which at the end serves as before and has nothing left of others."""
    lab = Lab(**settings)
    try:
        yield lab
        lab.served()
        lab.clean()
    finally:
        lab.close()


class Raw:
    """A channel's memory as an application sees it that keeps to no rule."""

    def __init__(self, memfd: int) -> None:
        self._map = mmap.mmap(memfd, 0)
        self._pinned = ffi.from_buffer(self._map)
        self.base = ffi.cast("uint8_t *", self._pinned)
        self.geo = ffi.cast("struct mn_chan_hdr *", self.base).geo
        self.layout = ffi.new("struct mn_lane_layout *")
        assert lib.mn_chan_layout(ffi.addressof(self.geo), self.layout) == 0
        self.lane = lib.mn_chan_lane(self.base, self.layout, 0)
        self.flags = ffi.cast("struct mn_lane_shared *", self.lane)
        self._size = len(self._map)

    def desc(self, buf: int, length: int, flow: int, flags: int) -> None:
        """Publish a descriptor in the submit ring."""
        slots = ffi.cast("struct mn_desc *", self.lane + self.layout.submit_off)
        at = self.flags.submit.tail & (self.layout.msg_slots_tx - 1)
        slots[at] = (buf, length, flow, flags, 0)
        self.flags.submit.tail += 1

    def release(self, buf: int) -> None:
        """Publish a receive buffer in the released ring."""
        slots = ffi.cast("uint32_t *", self.lane + self.layout.released_off)
        slots[self.flags.released.tail & (self.layout.ret_slots_rx - 1)] = buf
        self.flags.released.tail += 1

    def command(self, **fields: int) -> None:
        """Publish a command."""
        slots = ffi.cast("struct mn_ctl_cmd *", self.lane + self.layout.ctl_submit_off)
        slots[self.flags.ctl_submit.tail & (self.geo.ctl_slots - 1)] = fields
        self.flags.ctl_submit.tail += 1

    def kick(self, lent: Lent) -> None:
        """Wake the engine, as one does who does not look whether it sleeps."""
        os.write(lent.fds[2], (1).to_bytes(8, "little"))

    def content(self) -> bytes:
        """All of it."""
        return bytes(ffi.buffer(self.base, self._size))

    def close(self) -> None:
        """Let go of the memory: nothing else may be called after this."""
        ffi.release(self._pinned)
        self._map.close()

    def scribble(self, offset: int, data: bytes) -> None:
        """Write anywhere."""
        offset %= self._size - len(data)
        ffi.buffer(self.base, self._size)[offset : offset + len(data)] = data


def kills(lent: Lent) -> None:
    """The engine ends the channel because of what is in it."""
    eventually(lambda: lent.dead == errno.EPROTO, "the channel's end")


@contextmanager
def hostile(lab: Lab, settings: ChannelSettings = SMALL) -> Iterator[tuple[Lent, Raw]]:
    """A loan and its memory; at the end the application is gone."""
    with lend([lab.stack], settings) as lent:
        raw = Raw(lent.fds[0])
        try:
            yield lent, raw
        finally:
            raw.close()
            lent.close(linger=0)
