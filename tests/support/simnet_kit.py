# SPDX-License-Identifier: MIT
"""The simulated network as the C code has it: nodes, links, and hosts with one channel each."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.config import ChannelSettings

if TYPE_CHECKING:
    pass

MS = 1_000_000
S = 1_000_000_000
NEVER: int = lib.MN_NEVER


def ip_number(text: str) -> int:
    return int(struct.unpack("!I", socket.inet_aton(text))[0])


@dataclasses.dataclass(frozen=True)
class LinkStats:
    """`struct mn_link_stats` by value."""

    frames: int
    bytes: int
    delivered: int
    faults: list[int]


class Host:
    """A node with an engine and one channel."""

    def __init__(self, net: Net, node: int, ip: str, **config: int) -> None:
        self.net = net
        self.node = node
        self.ip = ip_number(ip)
        self.config = config
        self.stack: Any = None
        self.chan: Any = None
        self.boot()

    def boot(self) -> None:
        config = ffi.new("struct mn_config *")
        lib.mn_config_defaults(config)
        config.ip = self.ip
        config.prefix = 8
        for name, value in self.config.items():
            setattr(config, name, value)
        lib.mn_host_seeded(self.net.seed + self.node, config.secret, 16)
        out = ffi.new("struct mn_stack **")
        nic = lib.mn_simnet_nic(self.net.c, self.node)
        assert lib.mn_stack_open(out, config, nic, self.net.group) == 0
        self.stack = out[0]
        assert lib.mn_simnet_bind(self.net.c, self.node, self.stack) == 0

    def attach(self) -> Any:
        if self.chan is None:
            sizes = ChannelSettings()
            geometry = ffi.new("struct mn_chan_geometry *", {"n_lanes": 1})
            for name in sizes.__struct_fields__:
                setattr(geometry, name, getattr(sizes, name))
            out = ffi.new("struct mn_chan **")
            assert lib.mn_chan_open(out, self.stack, geometry, 0) == 0
            self.chan = out[0]
        return self.chan

    def end(self) -> None:
        """As a crash does: not a word to anybody."""
        if self.stack is not None:
            assert lib.mn_stack_close(self.stack) == 0
            if self.chan is not None:
                lib.mn_chan_free(self.chan)
            lib.mn_stack_free(self.stack)
            self.stack = self.chan = None

    def answer(self, token: int) -> Any:
        assert token > 0, token
        event = ffi.new("struct mn_ctl_evt *")
        while lib.mn_chan_result(self.chan, token, event) == 0:
            assert lib.mn_chan_wait(self.chan, 60 * S) == 1
        return event

    def listen(self, port: int, proto: int = lib.MN_PROTO_TCP) -> int:
        token = lib.mn_chan_listen(self.attach(), self.ip, port, proto, 16)
        event = self.answer(token)
        assert event.status == 0
        return int(event.value)

    def connect(self, to: Host, port: int, proto: int = lib.MN_PROTO_TCP) -> int:
        token = lib.mn_chan_connect(self.attach(), self.ip, 0, to.ip, port, proto, 30_000)
        event = self.answer(token)
        if event.status != 0:
            raise OSError(-event.status, os.strerror(-event.status))
        return int(event.flow)

    def send(self, flow: int, data: bytes) -> None:
        while (rc := lib.mn_chan_send(self.chan, flow, data, len(data))) == -errno.EAGAIN:
            self.net.advance(MS)
        assert rc == 0, rc

    def recv(self, timeout_ns: int = 60 * S) -> bytes | None:
        """The next message; None: nothing in time, or a flow ended."""
        buf, event = ffi.new("uint8_t[]", 1 << 20), ffi.new("struct mn_chan_event *")
        end = self.net.now + timeout_ns
        while (rc := lib.mn_chan_recv(self.attach(), buf, 1 << 20, event)) == -errno.EAGAIN:
            if self.net.now >= end:
                return None
            got = lib.mn_chan_wait(self.chan, end - self.net.now)
            assert got in (0, 1, -errno.EINTR), got
        if rc == lib.MN_CHAN_EVENT:
            return None
        assert rc >= 0, rc
        return bytes(ffi.buffer(buf, rc & ((1 << lib.MN_CHAN_LEN_BITS) - 1)))

    def counter(self, name: str) -> int:
        names = []
        while (text := lib.mn_host_stat_name(len(names))) != ffi.NULL:
            names.append(ffi.string(text).decode())
        out = ffi.new("uint64_t[]", len(names))
        assert lib.mn_stack_stats(self.stack, ffi.cast("struct mn_stats *", out)) == 0
        return int(out[names.index(name)])


class Net:
    """A network; closes its hosts when it is left."""

    def __init__(self, seed: int = 1, **config: int) -> None:
        out = ffi.new("struct mn_simnet **")
        settings = {"pool_pkts": 4096, "frame_max": 2048, **config}
        rc = lib.mn_simnet_new(
            out, ffi.new("struct mn_simnet_config *", {"seed": seed, **settings})
        )
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        self.seed = seed
        self.c = out[0]
        self.group = lib.mn_simnet_group(self.c)
        self.all: list[Host] = []
        self.keep: list[Any] = []  # callbacks
        self.n = 0

    def __enter__(self) -> Net:
        return self

    def __exit__(self, *exc: object) -> None:
        for host in self.all:
            host.end()
        lib.mn_simnet_free(self.c)

    @property
    def now(self) -> int:
        return int(lib.mn_simnet_now(self.c))

    @property
    def error(self) -> str:
        return str(ffi.string(lib.mn_simnet_error(self.c)).decode())

    def node(self, mtu: int = 1500) -> int:
        self.n += 1
        rc = lib.mn_simnet_host(self.c, b"h%d" % self.n, mtu, ffi.NULL)
        assert rc >= 0, rc
        return int(rc)

    def host(self, ip: str | None = None, mtu: int = 1500, **config: int) -> Host:
        node = self.node(mtu)
        host = Host(
            self, node, ip or f"10.{self.n >> 16}.{self.n >> 8 & 255}.{self.n & 255}", **config
        )
        self.all.append(host)
        return host

    def raw(self, mtu: int = 1500) -> int:
        self.n += 1
        rc = lib.mn_simnet_raw(self.c, b"r%d" % self.n, mtu, ffi.NULL)
        assert rc >= 0, rc
        return int(rc)

    def switch(self) -> int:
        self.n += 1
        rc = lib.mn_simnet_switch(self.c, b"s%d" % self.n)
        assert rc >= 0, rc
        return int(rc)

    def link(
        self, a: Host | int, b: Host | int, back: dict[str, int] | None = None, **shape: int
    ) -> int:
        a, b = (x.node if isinstance(x, Host) else x for x in (a, b))
        there = ffi.new("struct mn_shape *", shape)
        other = ffi.NULL if back is None else ffi.new("struct mn_shape *", back)
        rc = lib.mn_simnet_link(self.c, a, b, there, other)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        return int(rc)

    def shape(self, link: int, direction: int = 2, **shape: int) -> None:
        assert (
            lib.mn_simnet_shape(self.c, link, direction, ffi.new("struct mn_shape *", shape)) == 0
        )

    def pair(self, **shape: int) -> tuple[Host, Host]:
        a, b = self.host(), self.host()
        self.link(a, b, **{"latency_ns": 50_000, **shape})
        return a, b

    def advance(self, ns: int) -> int:
        """What the call says, repeated while it only wants to be called again."""
        until = self.now + ns
        while (rc := lib.mn_group_advance(self.group, until)) == -errno.EINTR:
            pass
        return int(rc)

    def settle(self) -> int:
        return int(lib.mn_group_settle(self.group))

    def mac(self, node: int) -> bytes:
        return bytes.fromhex("024d4e") + (node + 1).to_bytes(3, "big")

    def send(self, node: int, frame: bytes) -> int:
        return int(lib.mn_simnet_send(self.c, node, frame, len(frame)))

    def take(self, node: int) -> list[tuple[int, bytes]]:
        """Everything that a scripted host has received."""
        buf, when = ffi.new("uint8_t[]", 70_000), ffi.new("uint64_t *")
        frames = []
        while (rc := lib.mn_simnet_take(self.c, node, buf, len(buf), when)) > 0:
            frames.append((int(when[0]), bytes(ffi.buffer(buf, rc))))
        assert rc == 0, rc
        return frames

    def at(self, t_ns: int, call: Any, arg: int = 0) -> int:
        def run(_ctx: Any, value: int) -> None:
            call(value)

        fn = ffi.callback("void(void *, uint64_t)", run)
        self.keep.append(fn)
        return int(lib.mn_simnet_at(self.c, t_ns, fn, ffi.NULL, arg))

    def rule(self, link: int, direction: int, call: Any) -> None:
        fn = ffi.callback(
            "int(void *, struct mn_rule_frame *)",
            lambda _ctx, frame: call(frame),
            error=lib.MN_RULE_ABORT,
            onerror=lambda *_: None,
        )
        self.keep.append(fn)
        assert lib.mn_simnet_rule(self.c, link, direction, fn, ffi.NULL) == 0

    def stats(self) -> Any:
        out = ffi.new("struct mn_simnet_stats *")
        lib.mn_simnet_get_stats(self.c, out)
        return out

    def link_stats(self, link: int, direction: int = 0) -> LinkStats:
        out = ffi.new("struct mn_link_stats *")
        assert lib.mn_simnet_link_stats(self.c, link, direction, out) == 0
        return LinkStats(out.frames, out.bytes, out.delivered, list(out.faults))

    def idle(self) -> tuple[bool, Any]:
        out = ffi.new("struct mn_simnet_idle *")
        return bool(lib.mn_simnet_is_idle(self.c, out)), out

    def records(self) -> list[tuple[Any, bytes]]:
        """The record: a copy of each entry and its bytes."""
        found = []
        for seq in range(lib.mn_simnet_oldest(self.c), lib.mn_simnet_recorded(self.c)):
            entry, buf = ffi.new("struct mn_sim_record *"), ffi.new("uint8_t[]", 70_000)
            assert lib.mn_simnet_record(self.c, seq, entry, buf, len(buf)) == 0
            found.append((entry, bytes(ffi.buffer(buf, entry.kept))))
        return found

    def fate(self, entry: Any) -> str:
        buf = ffi.new("char[]", 256)
        lib.mn_simnet_fate(entry, buf, 256)
        return str(ffi.string(buf).decode())

    def faults(self, first: int = 0) -> list[tuple[int, int, int, int]]:
        out = ffi.new("struct mn_fault_id[]", 4096)
        n = lib.mn_simnet_faults(self.c, first, out, 4096)
        return [(f.link, f.dir, f.kind, f.frame_no) for f in out[0:n]]

    def capture(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        assert lib.mn_simnet_capture(self.c, fd) == 0

    def dump(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        assert lib.mn_simnet_dump(self.c, fd) == 0
