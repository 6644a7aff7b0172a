# SPDX-License-Identifier: MIT
"""Random calls of the simulated network's C interface, in any order, with values out of range.

What a program does depends on its numbers alone; two runs of it must leave the same trace.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Callable
from typing import Any

from simnet_kit import MS, NEVER, Host, Net, S

from machnet._native import ffi, lib

DAY = 86_400 * S
DELAYS = [0, 1, 999, 50_000, MS, 20 * MS, S, DAY]
CHANCES = [0, 0, 10_000_000, 300_000_000, 1_000_000_000]
TIMES = [0, 1, 1000, 50_000, MS, MS, 20 * MS, 200 * MS, S, 60 * S, 3600 * S, DAY, 100 * DAY]
EXTREMES = [0, 1, (1 << 31) - 1, 1 << 32, (1 << 62) - 1, 1 << 62, (1 << 63) + 5, NEVER - 1, NEVER]
SIZES = [1, 5, 13, 14, 15, 33, 34, 42, 54, 60, 127, 128, 129, 1514, 1515, 2048]
NODES_MAX = 9


class Chaos(Net):
    """A network to which a program of random calls is done."""

    def __init__(self, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        super().__init__(
            seed=seed,
            pool_pkts=dice.choice([1, 8, 64, 1024]),
            frame_max=2048,
            record_pkts=dice.choice([0, 1, 2, 7, 256]),
            record_snap=dice.choice([0, 128, 129, 1536]),
            instant_max=dice.choice([0, 1, 100, 20_000]),
            end_ns=dice.choice([0, 0, 0, 1, 5 * S, 1 << 62, NEVER]),
        )
        assert lib.mn_simnet_checks(self.c, dice.random() < 0.5) == 0
        self.hosts: list[Host] = []
        self.raws: list[int] = []
        self.links = 0
        self.calls: list[int] = []
        self.flows: list[tuple[Host, int]] = []
        self.depth = 0
        self.stepping = False  # in a rule
        self.trace = hashlib.blake2b(digest_size=16)
        self.done: list[tuple[str, object]] = []
        self.full = False  # the capture's file

    def note(self, *what: object) -> None:
        self.trace.update(repr(what).encode())

    # ---- choices ---------------------------------------------------------------------------------

    def any_node(self) -> int:
        return self.dice.randrange(self.n + 1)  # also one that is not there

    def any_link(self) -> int:
        return self.dice.randrange(self.links + 1)

    def any_shape(self) -> Any:
        d = self.dice
        shape = {
            "latency_ns": d.choice(DELAYS[:6]),
            "jitter_ns": d.choice(DELAYS[:6]),
            "latency_kind": d.randrange(4),
            "keep_order": d.randrange(2),
            "bandwidth_bps": d.choice([0, 1000, 9600, 10**6, 10**9, 10**15]),
            "queue_bytes": d.choice([0, 0, 1, 3000]),
            "queue_pkts": d.choice([0, 0, 1, 5, 65536]),
            "mtu": d.choice([0, 0, 0, 68, 1500, 65535]),
            "blocked": d.choice([0, 0, 0, 0, 1, 2]),
            "reorder_ns": d.choice(DELAYS),
            "duplicate_ns": d.choice(DELAYS),
        }
        for name in ("loss", "reorder", "duplicate", "corrupt"):
            shape[f"{name}_ppb"] = d.choice(CHANCES)
        for name in ("bad", "good", "loss_bad", "loss_good"):
            shape[f"ge_{name}_ppb"] = d.choice(CHANCES)
        if d.random() < 0.05:
            shape[d.choice(list(shape))] = (1 << 32) - 1
        return ffi.new("struct mn_shape *", shape)

    def any_frame(self) -> bytes:
        d = self.dice
        start, end = lib.mn_simnet_oldest(self.c), lib.mn_simnet_recorded(self.c)
        if end > start and d.random() < 0.6:
            entry, buf = ffi.new("struct mn_sim_record *"), ffi.new("uint8_t[]", 2048)
            assert lib.mn_simnet_record(self.c, d.randrange(start, end), entry, buf, 2048) == 0
            frame = bytearray(ffi.buffer(buf, entry.kept))
            for _ in range(d.choice([0, 0, 1, 4])):
                frame[d.randrange(len(frame))] = d.randrange(256)
            return bytes(frame)
        to = d.choice([b"\xff" * 6, self.mac(self.any_node()), bytes(6), d.randbytes(6)])
        head = to + self.mac(self.any_node()) + d.choice([b"\x08\x00", b"\x08\x06", b"\x00\x00"])
        size = d.choice(SIZES)
        return (head + d.randbytes(size))[:size]

    # ---- operations ------------------------------------------------------------------------------

    def op_grow(self) -> object:
        if self.n >= NODES_MAX:
            return None
        if self.full:  # a file that is full takes no further interface
            self.note(lib.mn_simnet_capture_end(self.c))
            self.full = False
        kind = self.dice.randrange(4)
        if kind == 0:
            return self.switch()
        if kind == 1:
            self.raws.append(self.raw(self.dice.choice([68, 1500, 2034])))
            return self.raws[-1]
        if self.stepping:
            return None
        mtu = self.dice.choice([576, 1500, 1500, 2034])
        host = self.host(mtu=mtu, flows_max=64)
        self.hosts.append(host)
        return host.node

    def op_link(self) -> object:
        there = self.any_shape()
        back = self.dice.choice([ffi.NULL, self.any_shape()])
        rc = lib.mn_simnet_link(self.c, self.any_node(), self.any_node(), there, back)
        self.links += rc >= 0
        return rc

    def op_shape(self) -> object:
        shape, link, way = self.any_shape(), self.any_link(), self.dice.randrange(4)
        rc = lib.mn_simnet_shape(self.c, link, way, shape)
        got = ffi.new("struct mn_shape *")
        if rc == 0 and way < 2:
            assert lib.mn_simnet_get_shape(self.c, link, way, got) == 0
            assert ffi.buffer(got)[:] == ffi.buffer(shape)[:]
        return rc

    def op_unblock(self) -> object:
        got, rcs = ffi.new("struct mn_shape *"), []
        for link in range(self.links):
            for way in range(2):
                assert lib.mn_simnet_get_shape(self.c, link, way, got) == 0
                got.blocked = 0
                rcs.append(lib.mn_simnet_shape(self.c, link, way, got))
        return rcs

    def op_rule(self) -> object:
        dice = self.dice

        def decide(frame: Any) -> int:
            verdict = dice.choice([0, 0, 0, 0, 1, 2, 3, 3, 3, 4, 77])
            if verdict in (0, 2):
                frame.delay_ns = dice.choice([0, 0, 1, MS, DAY, NEVER])
            if verdict == lib.MN_RULE_REPLACED:
                room = frame.room
                frame.len = dice.choice([0, 1, 13, 14, 60, room - 1, room, room + 1, 1 << 31])
                n = min(frame.len, room)
                ffi.buffer(frame.frame, n)[:] = dice.randbytes(n)
            if self.depth < 3 and dice.random() < 0.2:
                before, self.stepping = self.stepping, True
                self.some(1)
                self.stepping = before
            return int(verdict)

        link, way = self.any_link(), dice.randrange(4)
        if link >= self.links or way > 2 or dice.random() < 0.5:
            return lib.mn_simnet_rule(self.c, link, way, ffi.NULL, ffi.NULL)
        self.rule(link, way, decide)
        return 0

    def op_send(self) -> object:
        frame = self.any_frame()
        node = self.dice.choice(self.raws) if self.raws else self.any_node()
        return [self.send(node, frame) for _ in range(self.dice.choice([1, 1, 3, 300]))]

    def op_take(self) -> object:
        size = self.dice.choice([0, 1, 60, 1514, 2048])
        buf, when = ffi.new("uint8_t[]", size + 1), ffi.new("uint64_t *")
        rc = lib.mn_simnet_take(self.c, self.any_node(), buf, size, when)
        return rc, bytes(buf), when[0]

    def op_pause(self) -> object:
        return lib.mn_simnet_pause(self.c, self.any_node(), self.dice.random() < 0.5)

    def op_down(self) -> object:
        return lib.mn_simnet_down(self.c, self.any_node(), self.dice.random() < 0.5)

    def op_unbind(self) -> object:
        return lib.mn_simnet_bind(self.c, self.any_node(), ffi.NULL)

    def op_bind(self) -> object:
        if not self.hosts:
            return None
        host = self.dice.choice(self.hosts)
        stack = host.stack if host.stack is not None else ffi.NULL
        return lib.mn_simnet_bind(self.c, self.dice.choice([host.node, self.any_node()]), stack)

    def op_restart(self) -> object:
        if not self.hosts or self.stepping:
            return None
        host = self.dice.choice(self.hosts)
        if host.stack is not None and lib.mn_stack_close(host.stack) != 0:
            assert self.depth  # called back from within a call on its channel
            return -errno.EBUSY
        self.flows = [entry for entry in self.flows if entry[0] is not host]
        host.end()
        if self.dice.random() < 0.8:
            assert lib.mn_simnet_bind(self.c, host.node, ffi.NULL) == 0
            host.boot()
        return host.node

    def op_app(self) -> object:
        up = [host for host in self.hosts if host.stack is not None]
        if not up or (self.stepping and any(host.chan is None for host in up)):
            return None
        host, peer = self.dice.choice(up), self.dice.choice(self.hosts)
        chan = host.attach()
        proto = self.dice.choice([lib.MN_PROTO_TCP, lib.MN_PROTO_UDP])
        port = self.dice.choice([7, 8])
        if self.dice.random() < 0.4:
            return lib.mn_chan_listen(chan, host.ip, port, proto, 16)
        return lib.mn_chan_connect(chan, host.ip, 0, peer.ip, port, proto, 30_000)

    def op_results(self) -> object:
        told = []
        for host in self.hosts:
            if host.chan is not None and host.stack is not None:
                event = ffi.new("struct mn_ctl_evt *")
                for token in range(1, 6):
                    if (rc := lib.mn_chan_result(host.chan, token, event)) > 0:
                        told.append((host.node, token, event.status))
                        if event.status == 0 and event.flow:
                            self.flows.append((host, int(event.flow)))
                    else:
                        told.append((host.node, token, rc))
        return told

    def op_write(self) -> object:
        if not self.flows:
            return None
        host, flow = self.dice.choice(self.flows)
        data = bytes(self.dice.choice([0, 1, 100, 1400, 20_000, 200_000]))
        return lib.mn_chan_send(host.chan, flow, data, len(data))

    def op_read(self) -> object:
        told = []
        for host in self.hosts:
            if host.chan is not None and host.stack is not None:
                buf, event = ffi.new("uint8_t[]", 1 << 18), ffi.new("struct mn_chan_event *")
                while (rc := lib.mn_chan_recv(host.chan, buf, 1 << 18, event)) >= 0:
                    told.append((host.node, int(rc)))
                    if rc == lib.MN_CHAN_EVENT and len(told) > 1000:
                        break
                told.append((host.node, int(rc)))
        return told

    def op_wait(self) -> object:
        up = [host for host in self.hosts if host.stack is not None and host.chan is not None]
        if not up or self.depth:
            return None
        return lib.mn_chan_wait(self.dice.choice(up).chan, self.dice.choice(TIMES))

    def op_advance(self) -> object:
        until = self.now + self.dice.choice(TIMES)
        if self.dice.random() < 0.02:
            until = self.dice.choice(EXTREMES)
        rc = -errno.EINTR
        for _ in range(20):
            if rc != -errno.EINTR:
                break
            rc = lib.mn_group_advance(self.group, until)
        if self.depth:
            assert rc == -errno.EBUSY
        return rc

    def op_settle(self) -> object:
        return self.settle()

    def op_skew(self) -> object:
        ppb = self.dice.choice([0, 1, -1, 10**6, 900_000_000, -900_000_000, 900_000_001, 1 << 62])
        return lib.mn_simnet_skew(self.c, self.any_node(), ppb, self.dice.choice(EXTREMES))

    def op_local(self) -> object:
        node, t = self.any_node(), self.dice.choice(EXTREMES)
        return lib.mn_simnet_local(self.c, node), lib.mn_simnet_when(self.c, node, t)

    def op_at(self) -> object:
        def run(_arg: int) -> None:
            if self.depth < 3:
                self.some(self.dice.randrange(3))

        t_ns = self.now + self.dice.choice(TIMES)
        if self.dice.random() < 0.1:
            t_ns = self.dice.choice(EXTREMES)
        many = self.dice.choice([1, 1, 1, 30])
        for _ in range(many):
            if self.dice.random() < 0.3:
                self.calls.append(lib.mn_simnet_at(self.c, t_ns, ffi.NULL, ffi.NULL, 0))
            else:
                self.calls.append(self.at(t_ns, run))
            assert self.calls[-1] > 0
        return self.calls[-many:]

    def op_cancel(self) -> object:
        known = self.dice.choice(self.calls) if self.calls else 0
        return [lib.mn_simnet_cancel(self.c, i) for i in (known, known + 1, -1, 0, 1 << 40)]

    def op_lists(self) -> object:
        d, n = self.dice, self.dice.randrange(20)
        ids = ffi.new("struct mn_fault_id[]", n + 1)
        for i in range(n):
            ids[i].link, ids[i].dir = self.any_link(), d.randrange(3)
            ids[i].kind, ids[i].frame_no = d.randrange(13), d.choice([0, 1, 2, 3, 9, NEVER])
        call = d.choice([lib.mn_simnet_only, lib.mn_simnet_force])
        which = d.choice([ids, ids, ffi.NULL])
        return [call(self.c, which, n), call(self.c, which, (1 << 20) + 1)]

    def op_part(self) -> object:
        on = self.dice.random() < 0.6
        return lib.mn_simnet_part(self.c, self.any_node(), self.any_node(), on)

    def op_capture(self) -> object:
        if self.dice.random() < 0.4:
            return lib.mn_simnet_capture_end(self.c)
        full = self.dice.random() < 0.5
        fd = os.open("/dev/full" if full else "/dev/null", os.O_WRONLY)
        rc = lib.mn_simnet_capture(self.c, fd)
        if rc < 0:
            os.close(fd)
        else:
            self.full = full
        return rc, lib.mn_simnet_capture(self.c, -1)

    def op_dump(self) -> object:
        fd = os.open(self.dice.choice(["/dev/null", "/dev/full"]), os.O_WRONLY)
        return lib.mn_simnet_dump(self.c, fd), lib.mn_simnet_dump(self.c, -1)

    def op_look(self) -> object:
        idle, out = self.idle()
        stats = self.stats()
        told: list[object] = [idle, out.frames, out.calls, out.timers, out.node]
        told += [bytes(ffi.buffer(stats)), self.faults(self.dice.choice([0, 1, 5000, NEVER]))]
        told += [lib.mn_simnet_faults(self.c, 0, ffi.NULL, 0), lib.mn_simnet_next(self.c)]
        for entry, frame in self.records():
            told += [bytes(ffi.buffer(entry)), self.fate(entry), frame]
        for link in range(self.links + 1):
            name = lib.mn_simnet_dir_name(self.c, link, 0)
            told.append(name if name == ffi.NULL else ffi.string(name))
        return told

    # ---- running ---------------------------------------------------------------------------------

    def some(self, n: int) -> None:
        self.depth += 1
        try:
            for _ in range(n):
                self.one()
        finally:
            self.depth -= 1

    def one(self) -> None:
        op: Callable[[], object] = getattr(self, self.dice.choice(OPERATIONS))
        result = op()
        self.done.append((op.__name__, result if op.__name__ not in QUIET else None))
        self.note(op.__name__, result, self.now)

    def run(self, n: int) -> str:
        """Do so many random operations; a digest of all that they answered."""
        for _ in range(6):
            self.note(self.op_grow(), self.op_link())
        for _ in range(n):
            self.one()
        self.op_unblock()
        self.note(self.op_advance(), self.op_look(), self.error)
        return self.trace.hexdigest()


QUIET = {"op_look"}
WEIGHTS = {
    "op_advance": 12, "op_app": 8, "op_results": 6, "op_write": 8, "op_read": 5, "op_send": 6,
    "op_wait": 3, "op_unblock": 2, "op_grow": 1, "op_capture": 1, "op_lists": 1,
}  # fmt: skip
OPERATIONS = [
    name
    for name in sorted(vars(Chaos))
    if name.startswith("op_")
    for _ in range(WEIGHTS.get(name, 2))
]
