# SPDX-License-Identifier: MIT
"""Workloads and schedules of faults for hypothesis, and one run of both."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from suite_talk import MS, SECOND, End, FramedEnd, SocketEnd, StreamEnd, ends_met, noise

import machnet
from machnet._native import ffi, lib
from machnet.sim import Crash, Network
from machnet.sim.faults import Clog, Degrade, Drop, Duplicate, Fault, Partition, Pause, Skew
from machnet.sim.nodes import Host

#: All faults begin before, and last at most as long.
FAULTS_NS = 3 * SECOND
#: Then everything must be over: the longest timeout meanwhile, keep-alives, and the transfers.
BOUND_NS = 120 * SECOND
SETTINGS = {
    "user_timeout_ms": 30_000,
    "syn_timeout_ms": 30_000,
    "keepalive_idle_s": 10,
    "keepalive_interval_s": 5,
    "keepalive_count": 3,
}
HOSTS = ("h1", "h2", "h3")


@dataclass(frozen=True)
class Job:
    """One conversation.

    Attributes:
        kind: "stream", "tcp" or "socket".
        client: Number of a host.
        server: Number of another one.
        at_ms: When it begins.
        up: What the client says: sizes of messages; of a stream, their sum counts.
        down: What the server says.
        leaves: The client closes when it has heard so many bytes (streams of channels only).
    """

    kind: str
    client: int
    server: int
    at_ms: int
    up: tuple[int, ...]
    down: tuple[int, ...]
    leaves: int | None = None


#: Links that a run may have, chosen by its seed: slow ones, so that faults meet with something.
PATHS: tuple[dict[str, Any], ...] = (
    {"latency": "500us", "bandwidth": "2Mbps", "queue": "60p"},
    {"latency": "20ms", "bandwidth": "4Mbps", "queue": "200p"},
    {"latency": "5ms", "jitter": "4ms", "keep_order": False, "bandwidth": "20Mbps"},
    {"latency": "500us", "bandwidth": "100Mbps", "queue": "200p"},
)
SIZES = st.one_of(st.integers(0, 3000), st.integers(0, 70_000), st.integers(50_000, 66_000))
#: Mostly at about the same time.
TIMES_MS = st.one_of(st.integers(0, 100), st.integers(0, 700), st.integers(0, 2500))


@st.composite
def jobs(draw: Any) -> Job:
    """Any conversation: at most 200 KB each way."""
    client = draw(st.integers(0, 2))
    server = (client + draw(st.integers(1, 2))) % 3
    return Job(
        draw(st.sampled_from(["stream", "tcp", "socket"])),
        client,
        server,
        draw(TIMES_MS),
        tuple(draw(st.lists(SIZES, min_size=1, max_size=3))),
        tuple(draw(st.lists(SIZES, max_size=3))),
        draw(st.one_of(st.none(), st.integers(0, 100_000))),
    )


@st.composite
def timed(draw: Any, *, crashes: bool) -> Fault:
    """A fault on schedule: over after twice `FAULTS_NS`."""
    at = draw(TIMES_MS) * MS
    for_ = draw(st.one_of(st.integers(1, 300), st.integers(1, FAULTS_NS // MS))) * MS
    kinds = ["partition", "one way", "clog", "pause", "degrade", "skew", *["crash"] * crashes]
    kind = draw(st.sampled_from(kinds))
    host = draw(st.sampled_from(HOSTS))
    if kind == "partition":
        return Partition(host, [h for h in HOSTS if h != host], at=at, for_=for_)
    if kind == "one way":
        ends = draw(st.permutations([host, "sw1"]))
        return Partition(*ends, at=at, for_=for_, one_way=True)
    if kind == "clog":
        return Clog(host, "sw1", at=at, for_=for_)
    if kind == "pause":
        return Pause(host, at=at, for_=for_)
    if kind == "crash":
        return Crash(host, at=at, for_=for_)
    if kind == "skew":
        ppm = float(draw(st.integers(-100_000, 100_000)))
        return Skew(host, at=at, for_=for_, ppm=ppm, jump=draw(st.sampled_from([0, MS, SECOND])))
    bad: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"loss": 0.5},
                {"reorder": 0.3, "reorder_delay": "20ms"},
                {"duplicate": 0.5, "duplicate_delay": "3ms"},
                {"corrupt": 0.2},
                {"latency": "400ms"},
                {"bandwidth": "100kbps"},
                {"queue": "2p"},
            ]
        )
    )
    return Degrade(f"{host}<>sw1", at=at, for_=for_, **bad)


@st.composite
def frame_faults(draw: Any) -> Fault:
    """A fault of one frame."""
    host = draw(st.sampled_from(HOSTS))
    name = draw(st.sampled_from([f"{host}>sw1", f"sw1>{host}"]))
    kind = draw(st.sampled_from([Drop, Drop, Duplicate]))
    found: Fault = kind(name, draw(st.integers(0, 80)))
    return found


def schedules(*, crashes: bool) -> st.SearchStrategy[list[Fault]]:
    """Some of each."""
    return st.tuples(
        st.lists(timed(crashes=crashes), min_size=1, max_size=5),
        st.lists(frame_faults(), max_size=6),
    ).map(lambda both: [*both[0], *both[1]])


class Conversation:
    """A job that is under way: two ends, of which the client's begins at its time."""

    def __init__(self, net: Network, hosts: Sequence[Host], number: int, job: Job) -> None:
        self.net, self.job, self.port = net, job, 7000 + number
        self.a, self.b = hosts[job.client], hosts[job.server]
        self.up = [noise(size, i) for i, size in enumerate(job.up)]
        self.down = [noise(size, 7 * i + 1) for i, size in enumerate(job.down)]
        self.token: int | None = None
        self.begun = False
        self.kept: list[machnet.Flow] = []
        self.channels: list[machnet.Channel] = []
        make = {"stream": self._streams, "tcp": self._frames, "socket": self._sockets}
        self.client, self.server = make[job.kind]()

    def _attach(self) -> tuple[machnet.Channel, machnet.Channel]:
        self.channels = [self.a.attach(), self.b.attach()]
        return self.channels[0], self.channels[1]

    def _streams(self) -> tuple[End, End]:
        mine, theirs = self._attach()
        listener = theirs.listen(self.b.ip, self.port, protocol="stream")
        up, down = b"".join(self.up), b"".join(self.down)
        client = StreamEnd(mine, None, up, leaves_after=self.job.leaves)
        return client, StreamEnd(theirs, None, down, listener=listener)

    def _frames(self) -> tuple[End, End]:
        mine, theirs = self._attach()
        theirs.listen(self.b.ip, self.port, protocol="tcp")
        client = FramedEnd(mine, None, self.up, len(self.down), closes=True)
        return client, FramedEnd(theirs, None, self.down, len(self.up), closes=False)

    def _sockets(self) -> tuple[End, End]:
        listener, sock = self.b.socket(), self.a.socket()
        listener.bind((self.b.ip, self.port))
        listener.listen()
        for one in (listener, sock):
            one.setsockopt(1, 9, 1)  # SOL_SOCKET, SO_KEEPALIVE
        server = SocketEnd(listener, b"".join(self.down), listens=True)
        return SocketEnd(sock, b"".join(self.up)), server

    def pump(self) -> bool:
        """Whether nothing is left to do, on either side."""
        if not self.begun:
            if self.net.now_ns < self.job.at_ms * MS:
                return False
            self.begun = True
            if not self.client.channel.closed:
                self._connect()
        self._connected()
        ready = self.token is None or self.client.over
        clients = self.client.pump() if ready else False
        servers = self.server.pump()
        self._keep_alive(self.client)
        self._keep_alive(self.server)
        # A server that nobody came to has nothing to do; what a host has to send dies with it.
        nobody = self.client.error is not None or self.client.channel.closed or self._left()
        return clients and (servers or (nobody and not self.came))

    def _keep_alive(self, end: End) -> None:
        """Each flow asks whether its peer is still there: else one that only listens never knows."""
        flow = getattr(end, "flow", None)
        if flow is not None and flow not in self.kept and not end.over:
            self.kept.append(flow)
            native = end.channel._native
            token = lib.mn_chan_setopt(native, flow.id, lib.MN_OPT_KEEPALIVE, 1)
            if token >= 0:
                lib.mn_chan_forget(native, token)

    @property
    def came(self) -> bool:
        """Whether the server knows of its client."""
        if isinstance(self.server, SocketEnd):
            return not self.server.listens
        return self.server.flow is not None  # type: ignore[attr-defined, no-any-return]

    def _connect(self) -> None:
        if isinstance(self.client, SocketEnd):
            self.client.sock.connect_ex((self.b.ip, self.port))
            return
        protocol = "tcp" if self.job.kind == "tcp" else "stream"
        channel = self.client.channel
        self.token = channel._connect_start(self.a.ip, self.b.ip, self.port, protocol, None)

    def _connected(self) -> None:
        channel = self.client.channel
        if self.token is None or self.client.over:
            return
        if channel.closed:
            self.client.over = self.client.dead = True
            return
        event = ffi.new("struct mn_ctl_evt *")
        if channel._result(self.token, event) is None:
            return
        self.token = None
        try:
            self.client.flow = channel._connect_finish(event, "connect")  # type: ignore[attr-defined]
        except OSError as error:
            self.client.error, self.client.over = error, True

    def check(self, crashed: set[str]) -> None:
        """What was heard is what was said; all of it, where no host crashed and nobody left."""
        for end, said in ((self.client, self.down), (self.server, self.up)):
            if isinstance(end, FramedEnd):
                assert end.got == said[: len(end.got)]
            else:
                assert b"".join(said).startswith(bytes(end.got))  # type: ignore[attr-defined]
        if {self.a.name, self.b.name} & crashed:
            return
        assert not isinstance(self.client.error, TimeoutError), f"{self.job}: {self.client.error!r}"
        assert not self.client.dead
        assert not self.server.dead
        if self._left():
            return
        if self.client.error is not None and self.client.error.errno == errno.EHOSTUNREACH:
            assert not self.came
            return
        assert self.client.error is None, f"{self.job}: client: {self.client.error!r}"
        assert self.server.error is None, f"{self.job}: server: {self.server.error!r}"
        for end, said in ((self.client, self.down), (self.server, self.up)):
            if isinstance(end, FramedEnd):
                assert end.got == said, self.job
            else:
                assert bytes(end.got) == b"".join(said), self.job  # type: ignore[attr-defined]

    def _left(self) -> bool:
        return self.job.kind == "stream" and self.job.leaves is not None

    def close(self) -> None:
        """Everything of it is given up."""
        for end in (self.client, self.server):
            if isinstance(end, SocketEnd) and not end.channel.closed:
                end.sock.close()
                if end.listener is not None:
                    end.listener.close()
        for channel in self.channels:
            channel.close()


def run(seed: int, schedule: list[Fault], work: Sequence[Job]) -> list[str]:
    """Everything that is demanded of one run; what it did, packet for packet."""
    with Network(seed, record=1 << 14) as net:
        switch = net.switch()
        hosts = [net.host(f"10.0.0.{i}", **SETTINGS) for i in (1, 2, 3)]
        for host in hosts:
            net.link(host, switch, **PATHS[seed % len(PATHS)])
        talks = [Conversation(net, hosts, i, job) for i, job in enumerate(work)]
        net.apply(schedule)
        end = net.now_ns + 2 * FAULTS_NS + BOUND_NS
        for job in work:
            net.at(job.at_ms * MS, lambda: None, "a conversation begins")
        met = _run(net, talks, end)
        state = [(t.job, t.client.over, t.server.over, t.came) for t in talks]
        assert met, f"{state}\n{net.report()}"
        # Faults are over even if there was less to do than they lasted.
        net.run(until=max(net.now_ns, 2 * FAULTS_NS))
        crashed = {fault.host[0] for fault in schedule if isinstance(fault, Crash)}
        for talk in talks:
            talk.check(crashed)
        for talk in talks:
            talk.close()
        for host in hosts:
            if host.up:
                host.stack.socket_channel().close()
        assert net.leaks() == [], net.report()
        said = [f"{packet.t_ns} {packet}" for packet in net.packets()]
        return [*said, *(f"{t} {text}" for t, text in net.events), str(net.now_ns)]


def _run(net: Network, talks: list[Conversation], end_ns: int) -> bool:
    class All(End):
        channel = None  # type: ignore[assignment]

        def pump(self) -> bool:
            waiting = False
            for talk in talks:
                waiting = not talk.pump() or waiting
            return not waiting

    return ends_met(net, [All()], end_ns - net.now_ns)
