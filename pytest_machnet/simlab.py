# SPDX-License-Identifier: MIT
"""The lab of a simulated test: a `machnet.sim.Network` in virtual time.

The local stack ("local") and one other party ("peer" or "raw") are the ends of one link, which has
the marker's parameters. With more parties each has a link of that sort to a switch, and the local
stack one that costs nothing, so that between it and any other there is always one such link.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_machnet import report
from pytest_machnet.labs import Lab, LeakError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from machnet.sim.network import Network
    from machnet.sim.nodes import Host, Node
    from machnet.sim.records import PacketRecord
    from machnet.sim.units import Duration
    from machnet.testing.peer import RawPeer
    from pytest_machnet.cases import Case

T = TypeVar("T")

#: Of an established connection every segment has them, and they say least.
_TIMESTAMPS = re.compile(r", options \[nop,nop,TS val \d+ ecr \d+\]|nop,nop,TS val \d+ ecr \d+,")


class SimClock:
    """The virtual time of a network; see `pytest_machnet.labs.Clock`."""

    def __init__(self, net: Network) -> None:
        self._net = net

    @property
    def now_ns(self) -> int:
        """Nanoseconds since the network was made."""
        return self._net.now_ns

    def sleep(self, duration: Duration) -> None:
        """Let virtual time pass."""
        self._net.advance(duration)

    def advance(self, duration: Duration) -> None:
        """Let virtual time pass."""
        self._net.advance(duration)

    def eventually(
        self, predicate: Callable[[], T], within: Duration = "5s", message: str = ""
    ) -> T:
        """Let virtual time pass until something is true, and return it."""
        __tracebackhide__ = True
        found: T = self._net.eventually(predicate, within=within, message=message)
        return found


class SimPcap:
    """The capture of a simulated test; see `pytest_machnet.labs.Pcap`."""

    def __init__(self, lab: SimLab) -> None:
        self._lab = lab

    @property
    def path(self) -> Path:
        """The pcapng file; complete when the test is over."""
        return self._lab.capture_path()

    def packets(self, last: int | None = None) -> list[PacketRecord]:
        """What the network recorded, the last 4096 frames at most."""
        return self._lab.net.packets(last)


class SimLab(Lab):
    """What the fixtures of a simulated test are made from."""

    def __init__(self, case: Case) -> None:
        from pytest_machnet.testnet import TestNetwork

        super().__init__(case)
        self.net = TestNetwork(case.seed)
        self._local: Host | None = None
        self._switch: Node | None = None
        self._closed = False
        self._set_faults()
        if self.wants_capture():
            self.net.capture(self.capture_path())

    def _set_faults(self) -> None:
        """Hold the network to the faults of the marker, or to those that are tried."""
        case = self.case
        given = case.settings.faults
        chosen = given if case.only is None else case.only
        if chosen is not None:
            self.net.only(list(chosen))
            if given is not None:
                self.net.pending = list(chosen)

    def capture_path(self) -> Path:
        """Where the packets are written to."""
        return self.folder() / "packets.pcapng"

    @property
    def where(self) -> str:
        """The driver, for messages."""
        return "simulation"

    # ---- what fixtures are made of ---------------------------------------------------------------

    def _join(self, node: Node, *, local: bool = False) -> None:
        """Connect a node with the others."""
        others = self.case.fixtures & {"machnet_peer", "raw_peer", "machnet_host"}
        link = dict(self.case.settings.link)
        if len(others) <= 1 and "machnet_host" not in others:
            if not local:
                self.net.link(self.local(), node, **link)
            return
        if self._switch is None:
            self._switch = self.net.switch("sw")
        if local:
            link = {"latency": 0, "bandwidth": None}
        self.net.link(self._switch, node, **link)

    def _host(self, ip: str, name: str | None, gateway: str | None, **settings: Any) -> Host:
        return self.net.host(
            ip, name=name, gateway=gateway, mtu=self.case.settings.mtu or 1500, **settings
        )

    def local(self) -> Host:
        """The local stack's host."""
        if self._local is None:
            settings = self.case.settings
            self._local = self._host(settings["ip"], "local", settings["gateway"])
            self._join(self._local, local=True)
        return self._local

    def make_net(self) -> Network:
        """The network."""
        return self.net

    def make_host(self) -> Callable[..., Host]:
        """A function that makes hosts."""

        def machnet_host(
            ip: str | None = None, name: str | None = None, gateway: str | None = None, **more: Any
        ) -> Host:
            """Make a host on the test's network.

            Args:
                ip: Its address; None: the next free one.
                name: Its name; None: h1, h2 and so on.
                gateway: Its router.
                more: Fields of machnet.config.Settings.
            """
            if self._switch is None and "machnet_host" not in self.case.fixtures:
                pytest.fail("name machnet_host in the arguments of the test", pytrace=False)
            host = self._host(self.take_ip(ip), name, gateway, **more)
            self._join(host)
            return host

        return machnet_host

    def make_peer(self) -> Host:
        """The host across the link."""
        self.local()
        host = self._host(self.take_ip(self.case.settings.peer_ip), "peer", None)
        self._join(host)
        return host

    def make_raw_peer(self) -> RawPeer:
        """The scripted host across the link."""
        from machnet.testing import RawPeer

        local = self.local()
        alone = "machnet_peer" not in self.case.fixtures
        ip = self.take_ip(self.case.settings.peer_ip if alone else None).partition("/")[0]
        raw = self.net.raw_host(ip, name="raw")
        self._join(raw)
        return RawPeer(raw, remote_ip=local.ip)

    def make_posix_peer(self) -> Any:
        """There is none in virtual time."""
        pytest.fail(
            "posix_peer was asked for by request.getfixturevalue: name it in the arguments of the "
            "test, which then runs in real time",
            pytrace=False,
        )

    def make_clock(self) -> SimClock:
        """Its time."""
        return SimClock(self.net)

    def make_pcap(self) -> SimPcap:
        """Its capture."""
        if "machnet_pcap" not in self.case.fixtures and self.case.settings["pcap"] != "always":
            pytest.fail("name machnet_pcap in the arguments of the test", pytrace=False)
        return SimPcap(self)

    # ---- reports ---------------------------------------------------------------------------------

    def progress(self) -> object:
        """Frames that have moved."""
        from machnet._native import ffi, lib

        # A look at a counter, which may be done from any thread.
        stats = ffi.new("struct mn_simnet_stats *")
        lib.mn_simnet_get_stats(self.net._native, stats)  # noqa: SLF001
        return id(self), int(stats.frames)

    def why_stuck(self) -> str:
        """Time, timers and connections."""
        from machnet.errors import ReentrantError

        try:
            timers = self._timers()
        except ReentrantError:  # an engine waits for it, and can't be asked
            return f"virtual time {self._time()}, {self.net.clock.under_way} is under way"
        lines = [f"virtual time {self._time()}", *report.group("armed timers", timers, 20)]
        lines += report.group("sockets", self._sockets(), 10)
        return "\n".join(lines if len(lines) > 1 else [lines[0] + ", no timer is armed"])

    def _time(self) -> str:
        from machnet.sim.units import format_ms

        return format_ms(self.net.now_ns)

    def _timers(self) -> list[str]:
        return list(self.net.timers())

    def _sockets(self) -> list[str]:
        from machnet.sim.records import socket_text

        return [socket_text(host.name, info) for host, info in self.net.sockets()]

    def schedule(self) -> tuple[Any, ...]:
        """The faults that happened."""
        return tuple(self.net.schedule)

    def _packets(self) -> list[tuple[PacketRecord, str]]:
        """What is recorded of packets, with what each says."""
        from pytest_machnet.numbers import summaries

        packets = self.net.packets()
        return list(zip(packets, summaries(packet.frame for packet in packets), strict=True))

    def _faults(self, packets: list[tuple[PacketRecord, str]]) -> list[str]:
        """What was done to packets, hosts and links, and when."""
        from machnet.sim.units import format_ms

        found = [(t_ns, 0, text) for t_ns, text in self.net.events]
        for packet, summary in packets:
            if packet.fate:
                # What a rule has dropped was not numbered: it has not entered the link.
                nth = "" if packet.fate.startswith("rule") else f" #{packet.nth}"
                what = _TIMESTAMPS.sub("", summary)
                found.append((packet.t_ns, 1, f"{packet.link}{nth} {packet.fate}: {what}"))
        found.sort(key=lambda entry: entry[:2])
        return [f"{format_ms(t_ns):>12} {text}" for t_ns, _, text in found]

    def describe(self, *, short: bool) -> list[str]:
        """The state of things, for the failure section."""
        packets = self._packets()
        sent = [_line(packet, text) for packet, text in packets if packet.direction == "out"]
        lines = [f"virtual time {self._time()}"]
        lines += report.group("packets", sent, 5 if short else 12, last=True)
        lines += report.group("sockets", self._sockets(), 3 if short else 6)
        lines += report.group("timers", self._timers(), 3 if short else 5)
        lines += report.group("faults", self._faults(packets), 3 if short else 6, last=True)
        return lines

    def write_artifacts(self) -> None:
        """The capture, and the trace of events."""
        if self.case.settings["pcap"] != "never" and not self.wants_capture():
            self.net.write_pcapng(self.capture_path())
        packets = self._packets()
        trace = [_head(packet) + text + _fate(packet) for packet, text in packets]
        lines = [
            f"seed {self.case.seed}",
            f"replay: {self.case.replay}",
            f"virtual time {self._time()}",
            *report.group("sockets", self._sockets(), 10_000),
            *report.group("timers", self._timers(), 10_000),
            *report.group("faults that happened", [repr(f) for f in self.schedule()], 100_000),
            *report.group("events and fates", self._faults(packets), 100_000),
            *report.group("packets", trace, 100_000),
        ]
        text = "\n".join(lines) + "\n"
        (self.folder() / "trace.txt").write_text(text, encoding="utf-8")

    # ---- the end ---------------------------------------------------------------------------------

    def check_leaks(self) -> None:
        """Close the channels, let the network come to rest, and see that everything is back."""
        if self._closed or self.net.closed:
            return
        self.net.stop_capture()
        for host in self.net.hosts:
            if host.up:
                _close_channels(host)
        leaks = self.net.leaks()
        if leaks:
            self.section = None
            raise LeakError("the network's hosts did not get back: " + "; ".join(leaks))

    def close(self) -> None:
        """Close the network; a capture is complete from now on."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ValueError):
            self.net.close()


def _close_channels(host: Host) -> None:
    """Close what is left of a host's channels, in the order in which they were attached."""
    from machnet._native import lib

    channels = [channel for channel in host.stack._channels if not channel.closed]  # noqa: SLF001
    for channel in sorted(channels, key=lambda it: int(lib.mn_chan_lane_no(it._native))):  # noqa: SLF001
        channel.close()


def _head(packet: PacketRecord) -> str:
    from machnet.sim.units import format_ms

    arrow = ">" if packet.direction == "out" else "<"
    return f"{format_ms(packet.t_ns):>14} {packet.host} {arrow} "


def _fate(packet: PacketRecord) -> str:
    return f"  [{packet.fate}]" if packet.fate else ""


def _line(packet: PacketRecord, summary: str) -> str:
    """A packet on one line, short enough for its fate to be seen."""
    room = report.WIDTH_MAX - len(_fate(packet)) - 2
    text = _head(packet) + _TIMESTAMPS.sub("", summary)
    return (text if len(text) <= room else f"{text[: room - 3]}...") + _fate(packet)
