# SPDX-License-Identifier: MIT
"""Random use of a channel from both ends, against a model made of plain queues."""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass, field

from channel_peer import FIRST, LAST, STREAM, TCP, UDP, rig
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from machnet._native import lib

BUF = 512
SLOTS = 4


@dataclass
class Flow:
    """What the model knows of one flow, on both sides."""

    id: int
    proto: int
    # Engine's side.
    ended: int | None = None
    fin: bool = False
    stale: bool = False  # its slot has another flow
    submitted: list[object] = field(default_factory=list)  # as the engine got it
    # Application's side.
    sent: list[object] = field(default_factory=list)  # what the engine must get
    unread: bytes = b""
    closed: bool = False
    shut: bool = False
    accepted: bool = True


class ChannelMachine(RuleBasedStateMachine):
    """Rules are what the application calls and what the engine does; order is random."""

    @initialize(start=st.sampled_from([0, 0xFFFFFFF0, 0x7FFFFFF8]), rx=st.sampled_from([16, 64]))
    def set_up(self, start: int, rx: int) -> None:
        self.rig = rig(start=start, rx_bufs=rx, flows_max=SLOTS)
        self.flows: dict[int, Flow] = {}
        self.queue: deque[tuple[int, bytes, int]] = deque()  # flow, data, status
        self.gen = 0
        self.free_slots = set(range(SLOTS))
        self.partial: dict[int, list[bytes]] = {}
        self.seed = 0

    def bytes(self, size: int) -> bytes:
        self.seed += 1
        return bytes((self.seed * 31 + i) & 0xFF for i in range(size))

    def some(self, pick: int, *, ended: bool | None = None) -> Flow | None:
        """One of the flows that the application has not closed."""
        flows = [
            f
            for f in self.flows.values()
            if not (f.closed or f.stale) and (ended is None or (f.ended is not None) == ended)
        ]
        return flows[pick % len(flows)] if flows else None

    # The engine.

    @precondition(lambda self: self.free_slots)
    @rule(proto=st.sampled_from([UDP, TCP, STREAM]))
    def open_flow(self, proto: int) -> None:
        slot = min(self.free_slots)
        self.free_slots.remove(slot)
        self.gen += 1
        flow = Flow(self.gen << 16 | slot, proto, accepted=proto != STREAM)
        for old in self.flows.values():
            old.stale |= old.id & 0xFFFF == slot
        self.flows[flow.id] = flow
        self.rig.accept_event(flow.id, proto)

    @rule(pick=st.integers(0, 9), size=st.integers(0, 4 * BUF))
    def deliver(self, pick: int, size: int) -> None:
        flow = self.some(pick, ended=False)
        if flow is None or flow.fin or flow.id in self.partial:
            return
        data = self.bytes(size)
        if len(self.rig.rx_free) < size // BUF + 1:
            return
        if flow.proto == STREAM:
            for at in range(0, size, 300):
                if self.rig.rx_free:
                    self.rig.deliver_piece(flow.id, data[at : at + 300])
                    flow.unread += data[at : at + 300]
        else:
            self.rig.deliver_message(flow.id, data)
            self.queue.append((flow.id, data, 0))

    @rule(pick=st.integers(0, 9), last=st.booleans())
    def deliver_a_piece(self, pick: int, last: bool) -> None:
        flow = self.some(pick, ended=False)
        if flow is None or flow.proto == STREAM or flow.fin or not self.rig.rx_free:
            return
        parts = self.partial.setdefault(flow.id, [])
        data = self.bytes(7 if last else BUF)
        self.rig.deliver_piece(flow.id, data, (0 if parts else FIRST) | (LAST if last else 0))
        parts.append(data)
        if last:
            self.queue.append((flow.id, b"".join(parts), 0))
            del self.partial[flow.id]

    @rule(pick=st.integers(0, 9))
    def deliver_fin(self, pick: int) -> None:
        flow = self.some(pick, ended=False)
        if flow is not None and not flow.fin and flow.id not in self.partial:
            flow.fin = True
            self.rig.deliver_fin(flow.id)

    @rule(pick=st.integers(0, 9), error=st.sampled_from([0, errno.ECONNRESET, errno.ETIMEDOUT]))
    def end_flow(self, pick: int, error: int) -> None:
        flow = self.some(pick, ended=False)
        if flow is None:
            return
        flow.ended = error
        self.partial.pop(flow.id, None)
        self.rig.deliver_end(flow.id, error)
        if flow.proto != STREAM and error:
            self.queue.append((flow.id, b"", error))

    @rule()
    def end_what_the_application_closed(self) -> None:
        lib.mn_app_flush(self.rig.app)
        self.engine_takes()
        for flow in self.flows.values():
            if flow.closed and flow.ended is None:
                flow.ended = 0
                self.rig.deliver_end(flow.id, 0)

    @rule()
    def engine_takes(self) -> None:
        message: list[bytes] = []
        for desc in self.rig.take_submitted():
            flow = self.flows[desc.flow]
            if desc.flags == lib.MN_DESC_FIN:
                flow.submitted.append("fin")
            elif desc.flags == lib.MN_DESC_CLOSE:
                flow.submitted.append("close")
            elif flow.proto == STREAM:
                flow.submitted.append(desc.data)
            else:
                assert bool(desc.flags & FIRST) == (not message)
                message.append(desc.data)
                if desc.flags & LAST:
                    flow.submitted.append(b"".join(message))
                    message = []
        assert message == []
        self.check_submitted()

    def check_submitted(self) -> None:
        """What the engine got so far is the beginning of what was sent."""
        for flow in self.flows.values():
            if flow.proto == STREAM:
                got = b"".join(x for x in flow.submitted if isinstance(x, bytes))
                sent = b"".join(x for x in flow.sent if isinstance(x, bytes))
                assert sent.startswith(got)
                marks = [x for x in flow.submitted if isinstance(x, str)]
                assert marks == [x for x in flow.sent if isinstance(x, str)][: len(marks)]
            else:
                assert flow.submitted == flow.sent[: len(flow.submitted)]

    @rule(n=st.integers(1, 16), newest=st.booleans())
    def engine_completes(self, n: int, newest: bool) -> None:
        bufs = sorted(self.rig.tx_engine, reverse=newest)[:n]
        if bufs:
            self.rig.complete(*bufs)

    @rule()
    def engine_reclaims(self) -> None:
        self.rig.reclaim()

    @rule()
    def engine_takes_commands(self) -> None:
        for op, flow in self.rig.told():
            assert flow in self.flows
            if op == lib.MN_CTL_RELEASE:
                assert self.flows[flow].ended is not None
                assert flow & 0xFFFF not in self.free_slots
                self.free_slots.add(flow & 0xFFFF)
            else:
                assert op == lib.MN_CTL_ACCEPT

    # The application.

    @rule()
    def poll(self) -> None:
        lib.mn_app_poll(self.rig.app)

    @rule()
    def accept(self) -> None:
        flow = lib.mn_app_accept(self.rig.app, 77)
        waiting = [f.id for f in self.flows.values() if not f.accepted and not f.closed]
        if flow == lib.MN_FLOW_NONE:
            assert not waiting
        else:
            assert flow == waiting[0]
            self.flows[flow].accepted = True

    @rule(pick=st.integers(0, 9), size=st.integers(0, 5 * BUF), publish=st.booleans())
    def send(self, pick: int, size: int, publish: bool) -> None:
        flow = self.some(pick)
        if flow is None or flow.proto == STREAM:
            return
        lib.mn_app_poll(self.rig.app)
        data = self.bytes(size)
        room = lib.mn_app_send_room(self.rig.app, flow.id)
        if publish:
            rc = self.rig.send(flow.id, data)
        else:
            rc = lib.mn_app_send_nopub(self.rig.app, flow.id, data, size)
        if flow.ended is not None:
            assert rc == -errno.ENOTCONN
        elif flow.shut:
            assert rc == -errno.EPIPE
        elif size == 0 and flow.proto == UDP:
            assert rc == -errno.EINVAL
        elif max(1, -(-size // BUF)) * BUF <= room:
            assert rc == 0
            flow.sent.append(data)
        else:
            assert rc == -errno.EAGAIN

    @rule(pick=st.integers(0, 9), size=st.integers(1, 20 * BUF))
    def stream_send(self, pick: int, size: int) -> None:
        flow = self.some(pick)
        if flow is None or flow.proto != STREAM:
            return
        lib.mn_app_poll(self.rig.app)
        data = self.bytes(size)
        room = lib.mn_app_send_room(self.rig.app, flow.id)
        rc = self.rig.stream_send(flow.id, data)
        if flow.ended is not None:
            # What ended it is said before what the application did itself.
            assert rc == -(flow.ended or errno.EPIPE)
        elif flow.shut:
            assert rc == -errno.EPIPE
        elif room == 0:
            assert rc == -errno.EAGAIN
        else:
            assert rc == min(size, room)
            flow.sent.append(data[:rc])

    @rule(pick=st.integers(0, 9))
    def shutdown(self, pick: int) -> None:
        lib.mn_app_poll(self.rig.app)
        flow = self.some(pick)
        if flow is None or flow.proto == UDP:
            return
        rc = lib.mn_app_shutdown_write(self.rig.app, flow.id)
        if flow.ended is not None:
            assert rc == -errno.ENOTCONN
        else:
            assert rc == 0
            if not flow.shut:
                flow.sent.append("fin")
            flow.shut = True

    @rule(small=st.booleans(), skip=st.booleans())
    def take(self, small: bool, skip: bool) -> None:
        head = self.rig.peek()
        if not self.queue:
            assert head == 0
            return
        flow, data, status = self.queue[0]
        assert head == (flow, len(data), status)
        if small and data:
            assert self.rig.take(len(data) - 1) == -errno.EMSGSIZE
            return
        if skip:
            lib.mn_app_skip(self.rig.app)
        else:
            assert self.rig.take() == data
        self.queue.popleft()

    @rule(pick=st.integers(0, 9), size=st.integers(1, 3 * BUF), peek=st.booleans())
    def stream_recv(self, pick: int, size: int, peek: bool) -> None:
        flow = self.some(pick)
        if flow is None or flow.proto != STREAM:
            return
        lib.mn_app_poll(self.rig.app)
        got = self.rig.stream_recv(flow.id, size, lib.MN_APP_PEEK if peek else 0)
        if flow.unread:
            assert got == flow.unread[:size]
            if not peek:
                flow.unread = flow.unread[size:]
        elif flow.ended:
            assert got == -flow.ended
        elif flow.fin or flow.ended == 0:
            assert got == b""
        else:
            assert got == -errno.EAGAIN

    @rule(pick=st.integers(0, 9))
    def close(self, pick: int) -> None:
        flow = self.some(pick)
        if flow is None:
            return
        lib.mn_app_poll(self.rig.app)
        assert self.rig.close(flow.id) == 0
        assert self.rig.close(flow.id) == -errno.ENOTCONN
        flow.closed = True
        self.partial.pop(flow.id, None)
        self.queue = deque(item for item in self.queue if item[0] != flow.id)
        if flow.ended is None:
            flow.sent.append("close")

    @rule()
    def sleep(self) -> None:
        lib.mn_app_poll(self.rig.app)
        # Room for what is owed may be missing in the control ring, and nothing else.
        full = self.rig.ctl_submit.fill == self.rig.ctl_submit.n
        assert lib.mn_app_prepare_sleep(self.rig.app) or full
        lib.mn_app_cancel_sleep(self.rig.app)

    @invariant()
    def no_buffer_is_lost(self) -> None:
        if not hasattr(self, "rig"):
            return
        assert self.rig.dead() == 0
        stats = self.rig.stats()
        assert stats["tx_free"] + stats["tx_in_flight"] == self.rig.geo.tx_bufs
        # Less than what is published can't be in flight; the rest waits for a flush.
        on_the_way = self.rig.submit_data_fill() + self.rig.completed.fill
        assert stats["tx_in_flight"] >= len(self.rig.tx_engine) + on_the_way
        back = stats["rx_unreleased"] + self.rig.released.fill
        there = self.rig.deliver_data_fill()
        assert stats["rx_held"] + back + there == len(self.rig.rx_app)

    def teardown(self) -> None:
        """Everything is given up: every buffer and every slot comes back."""
        if not hasattr(self, "rig"):
            return
        lib.mn_app_poll(self.rig.app)
        for flow in list(self.flows.values()):
            if not flow.closed and not flow.stale:
                assert self.rig.close(flow.id) == 0
                flow.closed = True
                if flow.ended is None:
                    flow.sent.append("close")
        for _ in range(3):
            self.end_what_the_application_closed()
            lib.mn_app_poll(self.rig.app)
            self.engine_takes_commands()
        assert len(self.free_slots) == SLOTS
        self.engine_takes()
        for flow in self.flows.values():
            sent = [x for x in flow.sent if isinstance(x, str) or flow.proto != STREAM]
            got = [x for x in flow.submitted if isinstance(x, str) or flow.proto != STREAM]
            assert got == sent
        self.rig.complete()
        lib.mn_app_poll(self.rig.app)
        self.rig.reclaim()
        assert self.rig.rx_app == set()
        assert self.rig.stats()["tx_free"] == self.rig.geo.tx_bufs
        assert self.rig.stats()["msgs"] == 0
        assert self.rig.stats()["accepts"] == 0
        assert not lib.mn_app_ready(self.rig.app) & (lib.MN_READY_MSG | lib.MN_READY_STREAM)
        assert self.rig.flows() == []


ChannelMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60)
TestChannel = ChannelMachine.TestCase
