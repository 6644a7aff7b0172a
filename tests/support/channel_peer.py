# SPDX-License-Identifier: MIT
"""Both ends of a channel for tests: the real application's side, and an engine that a test scripts.

The scripted engine writes rings and buffers through raw pointers and keeps a table of its own about
who has which buffer, so that it notices whenever the application's side breaks the protocol.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from machnet._native import ffi, lib

MASK32 = 0xFFFFFFFF
FIRST: int = lib.MN_DESC_FIRST
LAST: int = lib.MN_DESC_LAST
WHOLE = FIRST | LAST
UDP: int = lib.MN_PROTO_UDP
TCP: int = lib.MN_PROTO_TCP
STREAM: int = lib.MN_PROTO_STREAM

SMALL = {
    "n_lanes": 1,
    "buf_bytes": 512,
    "tx_bufs": 16,
    "rx_bufs": 16,
    "flows_max": 8,
    "ctl_slots": 16,
}


def geometry(**changes: int) -> Any:
    """A small geometry with some of its values changed."""
    return ffi.new("struct mn_chan_geometry *", {**SMALL, **changes})


class Memory:
    """Aligned bytes, filled with a pattern that tells what was written."""

    def __init__(self, size: int, align: int = 64, fill: int = 0) -> None:
        self._owner = ffi.new("uint8_t[]", size + align)
        address = int(ffi.cast("uintptr_t", self._owner))
        self.size = size
        self.ptr = self._owner + (-address % align)
        if fill:
            ffi.memmove(self.ptr, bytes([fill]) * size, size)

    def bytes(self, offset: int = 0, size: int | None = None) -> bytes:
        """A copy of part of it."""
        return bytes(ffi.buffer(self.ptr + offset, self.size - offset if size is None else size))


@dataclass(frozen=True)
class Desc:
    """One descriptor of the submit ring, with the bytes of its buffer."""

    buf: int
    len: int
    flow: int
    flags: int
    data: bytes = b""


class Ring:
    """One end of a ring, as the engine has it."""

    def __init__(self, idx: Any, slots: Any, n: int) -> None:
        self.idx = idx
        self.slots = slots
        self.n = n

    @property
    def fill(self) -> int:
        """Slots between consumer and producer."""
        return int(self.idx.tail - self.idx.head) & MASK32

    def put(self, value: Any) -> None:
        """Write a slot and publish it."""
        assert self.fill < self.n, "the scripted engine overran a ring"
        self.slots[self.idx.tail % self.n] = value
        self.idx.tail = (self.idx.tail + 1) & MASK32

    def take(self) -> list[Any]:
        """Every filled slot, given back."""
        assert self.fill <= self.n
        found = []
        while self.fill:
            slot = self.slots[self.idx.head % self.n]
            found.append(slot if isinstance(slot, int) else ffi.new(f"{ffi.typeof(slot).cname} *"))
            if not isinstance(slot, int):
                found[-1][0] = slot
            self.idx.head = (self.idx.head + 1) & MASK32
        return found


@dataclass
class Rig:
    """A formatted channel, the application's side, and the scripted engine."""

    geo: Any
    start: int = 0
    kicks: int = 0
    with_kick: bool = True
    tx_engine: dict[int, Desc] = field(default_factory=dict)
    rx_app: set[int] = field(default_factory=set)
    rx_free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lay = ffi.new("struct mn_lane_layout *")
        assert lib.mn_chan_layout(self.geo, self.lay) == 0
        self.region = Memory(lib.mn_chan_bytes(self.geo))
        assert lib.mn_chan_format(self.region.ptr, self.region.size, self.geo) == 0
        self.lane = lib.mn_chan_lane(self.region.ptr, self.lay, 0)
        self.sh = ffi.cast("struct mn_lane_shared *", self.lane)
        lay, sh = self.lay, self.sh
        for idx in (sh.submit, sh.completed, sh.deliver, sh.released, sh.ctl_submit):
            idx.tail = idx.head = self.start
        sh.ctl_complete.tail = sh.ctl_complete.head = self.start
        self.submit = self._ring(sh.submit, lay.submit_off, "struct mn_desc *", lay.msg_slots_tx)
        self.completed = self._ring(sh.completed, lay.completed_off, "uint32_t *", lay.ret_slots_tx)
        self.deliver = self._ring(sh.deliver, lay.deliver_off, "struct mn_desc *", lay.msg_slots_rx)
        self.released = self._ring(sh.released, lay.released_off, "uint32_t *", lay.ret_slots_rx)
        slots = self.geo.ctl_slots
        self.ctl_submit = self._ring(
            sh.ctl_submit, lay.ctl_submit_off, "struct mn_ctl_cmd *", slots
        )
        self.ctl_complete = self._ring(
            sh.ctl_complete, lay.ctl_complete_off, "struct mn_ctl_evt *", slots
        )
        self.rx_free = list(range(self.geo.rx_bufs - 1, -1, -1))
        self._handle = ffi.new_handle(self)
        # Garbage, to show that nothing relies on zeros.
        self.mem = Memory(lib.mn_app_bytes(self.geo), align=8, fill=0xA5)
        out = ffi.new("struct mn_app **")
        kick = _kick if self.with_kick else ffi.NULL
        rc = lib.mn_app_open(
            out,
            self.mem.ptr,
            self.mem.size,
            self.region.ptr,
            self.region.size,
            kick,
            self._handle,
        )
        assert rc == 0
        self.app = out[0]

    def _ring(self, idx: Any, offset: int, slot: str, n: int) -> Ring:
        return Ring(idx, ffi.cast(slot, self.lane + offset), n)

    # The engine's side.

    def tx_data(self, buf: int, size: int) -> bytes:
        """Bytes of a transmit buffer."""
        return bytes(ffi.buffer(self.lane + self.lay.tx_pool_off + buf * self.geo.buf_bytes, size))

    def take_submitted(self) -> list[Desc]:
        """What the application submitted; data buffers are the engine's from here on."""
        found = []
        for slot in self.submit.take():
            assert slot.zero == 0
            if slot.buf == lib.MN_BUF_NONE:
                assert slot.flags in (lib.MN_DESC_FIN, lib.MN_DESC_CLOSE)
                found.append(Desc(slot.buf, slot.len, slot.flow, slot.flags))
                continue
            assert slot.buf < self.geo.tx_bufs
            assert slot.buf not in self.tx_engine, "submitted twice"
            assert slot.len <= self.geo.buf_bytes
            data = self.tx_data(slot.buf, slot.len)
            desc = Desc(slot.buf, slot.len, slot.flow, slot.flags, data)
            self.tx_engine[slot.buf] = desc
            found.append(desc)
        return found

    def complete(self, *bufs: int) -> None:
        """Give transmit buffers back; all of them when none is named."""
        for buf in bufs or list(self.tx_engine):
            del self.tx_engine[buf]
            self.completed.put(buf)

    def take_messages(self, complete: bool = True) -> list[tuple[int, bytes]]:
        """Submitted messages put together, with the protocol of their pieces checked."""
        messages = []
        flow, parts = None, []
        for desc in self.take_submitted():
            assert desc.buf != lib.MN_BUF_NONE
            if desc.flags & FIRST:
                assert flow is None
                flow = desc.flow
            assert desc.flow == flow, "pieces of two messages interleaved"
            parts.append(desc.data)
            if desc.flags & LAST:
                messages.append((desc.flow, b"".join(parts)))
                flow, parts = None, []
            else:
                assert desc.len == self.geo.buf_bytes
        assert flow is None, "part of a message was published"
        if complete:
            self.complete()
        return messages

    def reclaim(self) -> list[int]:
        """Receive buffers that came back."""
        bufs = [int(buf) for buf in self.released.take()]
        for buf in bufs:
            assert buf in self.rx_app, "released twice, or never delivered"
            self.rx_app.remove(buf)
            self.rx_free.append(buf)
        return bufs

    def deliver_piece(self, flow: int, data: bytes, flags: int = 0) -> int:
        """One filled buffer into the deliver ring; returns its number."""
        buf = self.rx_free.pop()
        self.rx_app.add(buf)
        where = self.lane + self.lay.rx_pool_off + buf * self.geo.buf_bytes
        assert len(data) <= self.geo.buf_bytes
        ffi.memmove(where, data, len(data))
        self.deliver_raw(buf, len(data), flow, flags)
        return buf

    def deliver_raw(self, buf: int, size: int, flow: int, flags: int) -> None:
        """A descriptor into the deliver ring."""
        self.deliver.put({"buf": buf, "len": size, "flow": flow, "flags": flags, "zero": 0})

    def deliver_message(self, flow: int, data: bytes) -> None:
        """A message in as many pieces as it takes."""
        step = self.geo.buf_bytes
        starts = list(range(0, len(data), step)) or [0]
        for start in starts:
            flags = FIRST if start == 0 else 0
            flags |= LAST if start == starts[-1] else 0
            self.deliver_piece(flow, data[start : start + step], flags)

    def deliver_fin(self, flow: int) -> None:
        """The peer's FIN."""
        self.deliver_raw(lib.MN_BUF_NONE, 0, flow, lib.MN_DESC_FIN)

    def deliver_end(self, flow: int, error: int = 0) -> None:
        """The flow's last word."""
        self.deliver_raw(lib.MN_BUF_NONE, error, flow, lib.MN_DESC_END)

    def event(self, kind: int, **values: Any) -> None:
        """An event into the control ring."""
        self.ctl_complete.put({"kind": kind, **values})

    def commands(self) -> list[Any]:
        """Commands of the application."""
        return self.ctl_submit.take()

    def told(self) -> list[tuple[int, int]]:
        """Commands as pairs of operation and flow."""
        return [(command.op, command.flow) for command in self.commands()]

    def accept_event(self, flow: int, proto: int = TCP, listener: int = 77) -> None:
        """Announce a flow that came from a listener."""
        self.event(
            lib.MN_EVT_ACCEPT,
            flow=flow,
            proto=proto,
            listener=listener,
            local_ip=0x0A000001,
            local_port=80,
            remote_ip=0x0A000002,
            remote_port=(1024 + flow) & 0xFFFF,
        )

    def new_flow(self, flow: int, proto: int = TCP) -> int:
        """Announce a flow, and have it taken in and accepted."""
        self.accept_event(flow, proto)
        lib.mn_app_poll(self.app)
        if proto == STREAM:
            assert lib.mn_app_accept(self.app, 77) == flow
        assert self.told() == [(lib.MN_CTL_ACCEPT, flow)]
        return flow

    # The application's side.

    def send(self, flow: int, data: bytes) -> int:
        """Send a message."""
        return int(lib.mn_app_send(self.app, flow, data, len(data)))

    def peek(self) -> tuple[int, int, int] | int:
        """Flow, length and status of the head of the queue, or what mn_app_peek answered."""
        msg = ffi.new("struct mn_app_msg *")
        rc = lib.mn_app_peek(self.app, msg)
        return (msg.flow, msg.len, msg.status) if rc == 1 else int(rc)

    def take(self, size: int = 1 << 23) -> bytes | int:
        """The head message, or the error."""
        head = self.peek()
        room = min(size, head[1]) if isinstance(head, tuple) else 0
        buf = ffi.new("uint8_t[]", max(room, 1))
        n = lib.mn_app_take(self.app, buf, room)
        return bytes(ffi.buffer(buf, n)) if n >= 0 else int(n)

    def stream_send(self, flow: int, data: bytes, flags: int = 0) -> int:
        """Send bytes."""
        return int(lib.mn_app_stream_send(self.app, flow, data, len(data), flags))

    def stream_recv(self, flow: int, size: int = 4096, flags: int = 0) -> bytes | int:
        """Receive bytes, or the error."""
        buf = ffi.new("uint8_t[]", max(size, 1))
        n = lib.mn_app_stream_recv(self.app, flow, buf, size, flags)
        return bytes(ffi.buffer(buf, n)) if n >= 0 else int(n)

    def close(self, flow: int, linger_ms: int = lib.MN_LINGER_DEFAULT) -> int:
        """Give a flow up."""
        return int(lib.mn_app_close_flow(self.app, flow, linger_ms))

    def info(self, flow: int) -> Any:
        """What is known of a flow, or None."""
        out = ffi.new("struct mn_app_flow_info *")
        rc = lib.mn_app_flow_info(self.app, flow, out)
        assert rc in (0, -errno.ENOENT)
        return out if rc == 0 else None

    def flows(self) -> list[int]:
        """Flows that have something left."""
        n = lib.mn_app_flows(self.app, ffi.NULL, 0)
        ids = ffi.new("uint32_t[]", max(n, 1))
        assert lib.mn_app_flows(self.app, ids, n) == n
        return [int(ids[i]) for i in range(n)]

    def result(self, token: int) -> Any:
        """The answer to a command: an event, 0 for none yet, or the error."""
        evt = ffi.new("struct mn_ctl_evt *")
        rc = lib.mn_app_result(self.app, token, evt)
        return evt if rc == 1 else int(rc)

    def stats(self) -> dict[str, int]:
        """Where the buffers are."""
        out = ffi.new("struct mn_app_stats *")
        lib.mn_app_stats(self.app, out)
        names: Sequence[str] = [name for name, _ in ffi.typeof(out[0]).fields]
        return {name: int(getattr(out, name)) for name in names}

    def dead(self) -> int:
        """Errno of the dead channel, or 0."""
        return int(lib.mn_app_dead(self.app))

    def check_buffers(self) -> None:
        """Every buffer is at exactly one place."""
        stats = self.stats()
        assert stats["tx_free"] + stats["tx_in_flight"] == self.geo.tx_bufs
        on_the_way = self.submit_data_fill() + self.completed.fill
        assert stats["tx_in_flight"] == len(self.tx_engine) + on_the_way
        assert len(self.rx_app) + len(self.rx_free) == self.geo.rx_bufs
        back = stats["rx_unreleased"] + self.released.fill
        assert stats["rx_held"] + back + self.deliver_data_fill() == len(self.rx_app)

    def _data_fill(self, ring: Ring) -> int:
        slots = (ring.slots[(ring.idx.head + i) % ring.n] for i in range(ring.fill))
        return sum(slot.buf != lib.MN_BUF_NONE for slot in slots)

    def submit_data_fill(self) -> int:
        """Buffers in the submit ring, published."""
        return self._data_fill(self.submit)

    def deliver_data_fill(self) -> int:
        """Buffers in the deliver ring."""
        return self._data_fill(self.deliver)


@ffi.callback("void(void *)")
def _kick(handle: Any) -> None:
    ffi.from_handle(handle).kicks += 1


def rig(start: int = 0, with_kick: bool = True, **changes: int) -> Rig:
    """A channel of the small geometry with changes; ring indices begin at ``start``."""
    return Rig(geometry(**changes), start=start, with_kick=with_kick)
