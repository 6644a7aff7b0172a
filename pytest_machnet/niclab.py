# SPDX-License-Identifier: MIT
"""The lab of a test in real time: stacks on NICs, and Linux hosts.

A TAP lies in a network namespace that the lab makes (without root in a user namespace), and so does
the other end of a veth pair; there a bridge connects it with the TAPs of further machnet hosts and
with the Linux host. Any other NIC is opened by its string, and the host at its other end is reached by
an agent, or is an address with services.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from machnet.leftovers import run_directory
from pytest_machnet import peers, report
from pytest_machnet.labs import Lab, LeakError
from pytest_machnet.options import KNOBS
from pytest_machnet.realtime import NicPcap, RealClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from machnet import Channel, Socket
    from machnet.sim.kernel_host import KernelHost
    from machnet.stack.engines import Engines
    from machnet.stack.info import SocketInfo
    from machnet.stack.nics import Nic
    from pytest_machnet.cases import Case
    from pytest_machnet.ends import End
    from pytest_machnet.peers import PosixPeer, Where

#: How long what is under way between two tests in real time may take to be over.
_SETTLE_S = 2.0
_VIRTUAL_SETTLE_NS = 600_000_000_000
_POLL_S = 0.001
_BRIDGE = "machnet0"
#: The inner end of a veth pair that a test makes.
_VETH = "veth0"
_WHO = "say who is at the other end: --machnet-peer=ssh://HOST, tcp://HOST:PORT or an address"
#: What `Stack.usage` counts that must go back to what it was.
_USAGE = {
    "tcbs": "connections",
    "half_open": "half-open connections",
    "listeners": "listeners",
    "ooo_blocks": "blocks of out-of-order data",
    "ooo_ranges": "ranges of out-of-order data",
    "sack_ranges": "ranges of the send scoreboard",
    "lanes": "channels",
    "loop_frames": "frames to itself",
}


class NicHost:
    """A machnet host on a NIC, with the face of `machnet.sim.nodes.Host`.

    Attributes:
        name: For messages.
        stacks: Its `machnet.Stack`, or several, one for each engine.
        stack: The first one.
    """

    def __init__(self, name: str, stacks: Engines) -> None:
        self.name = name
        self.stacks = stacks
        self.stack = stacks[0]
        self.baseline = self.usage()
        self._turns = itertools.cycle(stacks)

    @property
    def ip(self) -> str:
        """Its address."""
        return self.stack.ip

    @property
    def mac(self) -> str:
        """Its MAC address."""
        return self.stack.mac

    @property
    def up(self) -> bool:
        """Whether it has an engine."""
        return not self.stack.closed

    def attach(self, **settings: int) -> Channel:
        """A new channel, of each engine in turn; see `machnet.Stack.attach`."""
        return next(self._turns).attach(**settings)

    def socket(self) -> Socket:
        """A new non-blocking stream socket; see `machnet.Stack.socket`."""
        return self.stack.socket()

    def sockets(self) -> list[SocketInfo]:
        """Its connections and listeners."""
        return [info for stack in self.stacks for info in stack.sockets()]

    def usage(self) -> dict[str, int]:
        """What the pools of all its engines hold."""
        parts = [stack.usage() for stack in self.stacks]
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    def __repr__(self) -> str:
        return f"<NicHost {self.name} {self.ip} on {self.stack.nic}>"


class NicLab(Lab):
    """What the fixtures of a test in real time are made from."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._exits = contextlib.ExitStack()
        self._hosts: list[NicHost] = []
        self._kernel: KernelHost | None = None
        self._failed = False
        self._late_packets: list[str] = []
        self._taps = 0
        self._peers: list[peers.NamespacePeer | peers.AgentPeer] = []
        self._interface = ""
        self._clock = RealClock(self)
        nic = case.settings["nic"] if not case.settings.simulated else None
        if nic is None:
            # A Linux peer while everything else is simulated.
            nic = f"tap:mn{case.tag.replace('-', '')}"[:15]
        self._nic: str = nic
        #: Whether the other end is in a namespace of the test's own.
        self._in_namespace = False
        self._veth: str | None = None
        self._end: End | None = None
        #: Where the agent of the host at the other end is, and the interface there.
        self._reach: tuple[Where | str | None, str | None] | None = None
        self._stated: Where | None = None
        self._nobody = _WHO
        self._look_around()
        self._captures: Path | None = None
        try:
            self._check_fixtures()
            if case.settings["pcap"] != "never":
                made = self._exits.enter_context(run_directory("pcap"))
                self._captures = Path(made)
        except BaseException:
            self._exits.close()
            raise

    @property
    def where(self) -> str:
        """The driver, for messages."""
        if self.case.settings.simulated:
            return "posix_peer, a Linux host across a TAP"
        return f"{KNOBS['nic'].option}={self._nic}"

    def _check_fixtures(self) -> None:
        fixtures = self.case.fixtures
        if "machnet_net" in fixtures:
            if "posix_peer" in fixtures:
                pytest.fail(
                    "posix_peer and machnet_net exclude each other: a Linux host lives in real "
                    "time, a simulated network in virtual time",
                    pytrace=False,
                )
            self.missing("machnet_net", "there is no simulated network on a NIC")
        if "raw_peer" in fixtures:
            self.missing("raw_peer", "packets are scripted in virtual time only")
        if self.case.settings.faults is not None:
            self.missing("faults=", "a schedule of faults needs a simulated network")
        if not self._in_namespace:
            if "machnet_host" in fixtures:
                self.missing(
                    "machnet_host",
                    "further hosts can be made beside a TAP or a veth of its own only",
                )
            if "posix_peer" in fixtures and self._reach is None and self._stated is None:
                self.missing("posix_peer", self._nobody)
            if "machnet_peer" in fixtures and self.case.settings["peer_nic"] is None:
                option = KNOBS["peer_nic"].option
                self.missing("machnet_peer", f"it needs a NIC of its own: {option}=IFACE")

    def _look_around(self) -> None:
        """Find out who is at the other end."""
        from pytest_machnet import ends

        peer: Where | None = self.case.settings["peer"]
        if not self.case.settings.simulated and peer is not None and peer.scheme:
            self._reach = peer, peer.iface
            return
        if self._nic.startswith("tap:"):
            self._in_namespace = True
            return
        self._stated = peer
        self._veth = ends.interface_of(self._nic)
        if self._veth is None:
            # Skipping what has no peer there would make a run with a misspelt name look well.
            if not self.case.settings.simulated and (reason := ends.not_there(self._nic)):
                pytest.fail(f"{self.where}: {reason}", pytrace=False)
            return
        try:
            end = ends.find_end(self._veth)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and os.geteuid() == 0:
                raise
            self._veth, self._nobody = None, f"{error}; {_WHO}"
            return
        self._stated = None
        if end is None or end.unused:
            self._in_namespace, self._end = True, end
        else:
            self._reach = end.netns, end.name or None

    # ---- the namespace ---------------------------------------------------------------------------

    def _bridged(self) -> bool:
        return bool(self.case.fixtures & {"machnet_peer", "machnet_host"})

    def kernel(self) -> KernelHost:
        """The namespace in which the TAPs are; skips the test where there can be none."""
        if self._kernel is None:
            from machnet.sim import KernelHost

            taps = self._veth is None or self._bridged()
            reason = KernelHost.tap_available() if taps else KernelHost.available()
            if reason is not None:
                what = "no TAP in a namespace" if taps else "no namespace"
                pytest.skip(f"{what} of the test's own: {reason}")
            self._kernel = self._exits.enter_context(KernelHost(f"machnet-{self.case.tag}"))
            if self._bridged():
                self._make_bridge(self._kernel)
        return self._kernel

    def _make_bridge(self, kernel: KernelHost) -> None:
        with kernel.iproute() as route:
            route.link("add", ifname=_BRIDGE, kind="bridge")
        kernel.set_link(_BRIDGE, up=True)

    def _tap(self, name: str, queues: int = 1) -> Nic:
        """A NIC on a TAP of the namespace, a port of the bridge if there is one."""
        from machnet.sim import Tap

        kernel, mtu = self.kernel(), self.case.settings.mtu or 1500
        fd, *more = kernel.open_tap_queues(name, queues, mtu=mtu, offloads=False)
        tap = Tap(fd=fd, more_fds=more, mtu=mtu, offload=False)
        self._exits.callback(tap.close)
        self._join(name)
        return tap

    def _join(self, name: str) -> None:
        """Make an interface of the namespace a port of the bridge, if there is one."""
        if self._bridged():
            with self.kernel().iproute() as route:
                (port,) = route.link_lookup(ifname=name)
                (bridge,) = route.link_lookup(ifname=_BRIDGE)
                route.link("set", index=port, master=bridge)

    def _plug_veth(self) -> str:
        """Have the other end of the veth in the namespace; the NIC string of this one."""
        from machnet.sim.kernel_host import KernelHostError, change_link
        from pytest_machnet import borrowed, ends

        assert self._veth is not None
        kernel, nic = self.kernel(), self._nic
        try:
            if self._end is not None:
                borrowed.take_end(self._end.name)
                borrowed.take_near(self._veth)
                kernel.adopt(self._end.name)
                self._exits.callback(kernel.give_back, self._end.name)
            else:
                name = f"mn{self.case.tag.replace('-', '')}"[:15]
                kernel.open_veth(_VETH, name, mtu=self.case.settings.mtu or 1500)
                self._exits.callback(change_link, name, delete=True)
                nic = ends.with_interface(nic, name)
        except KernelHostError as error:
            if error.errno not in {errno.EPERM, errno.EACCES}:
                raise
            pytest.skip(f"no veth pair whose one end is here: {error}; it takes root")
        self._interface = _VETH if self._end is None else self._end.name
        self._join(self._interface)
        return nic

    # ---- stacks ----------------------------------------------------------------------------------

    def _open(
        self, name: str, nic: str | Nic, ip: str, gateway: str | None = None, engines: int = 1
    ) -> NicHost:
        from machnet.stack.engines import open_engines

        mtu = self.case.settings.mtu if isinstance(nic, str) else None
        settings: dict[str, Any] = {"app_exit_linger_ms": 500}
        if self._in_namespace:
            settings["msl_ms"] = 50  # the next test is another network
        if self._captures is not None and engines == 1:
            settings["pcap"] = self._captures / f"{name}.pcapng"
        try:
            stacks = open_engines(nic, engines, ip, gateway, mtu=mtu, **settings)
        except PermissionError as error:
            pytest.skip(f"{nic} can't be opened: {error}")
        self._exits.callback(stacks.close, 0)
        if stacks.shared is not None:
            self._exits.callback(stacks.shared.close)
        host = NicHost(name, stacks)
        self._hosts.append(host)
        return host

    def local(self) -> NicHost:
        """The local stack."""
        if "local" in self._made:
            host: NicHost = self._made["local"]
            return host
        settings = self.case.settings
        host = self._open(
            "local", self._local_nic(), settings["ip"], settings["gateway"], settings["engines"]
        )
        self._made["local"] = host
        return host

    def _local_nic(self) -> Nic:
        """The NIC of the local stack, behind a layer that does what the marker says of the link."""
        from machnet.sim import Faulty
        from machnet.sim.nicstr import parse_nic
        from machnet.stack.nics import open_nic, with_faults

        spec = parse_nic(self._nic)
        engines = self.case.settings["engines"]
        one = bool(spec.faults or self.case.settings.link)  # that layer has a single queue
        if self._in_namespace and spec.scheme == "tap":
            self._interface = spec.rest
            nic = with_faults(self._tap(spec.rest, 1 if one else engines), spec)
        else:
            text = self._plug_veth() if self._in_namespace else self._nic
            try:
                nic = open_nic(text, self.case.settings.mtu, 1 if one else engines)
            except PermissionError as error:
                pytest.skip(f"{text} can't be opened: {error}")
        self._exits.callback(nic.close)
        link = dict(self.case.settings.link)
        back = link.pop("back", None)
        if link or back:
            nic = Faulty(nic, seed=self.case.seed, rx=back, **link)
            self._exits.callback(nic.close)
        return nic

    def make_peer(self) -> NicHost:
        """A second machnet host."""
        self.local()
        ip: str | None = self.case.settings.peer_ip
        if self._reach is not None or self._stated is not None:
            self.fixture("posix_peer")  # it has an address, and may have this one
            ip = None if ip in self._addresses else ip
        address = self.take_ip(ip)
        if not self._in_namespace:
            return self._open("peer", str(self.case.settings["peer_nic"]), address)
        return self._open("peer", self._next_tap(), address)

    def _next_tap(self) -> Nic:
        self._taps += 1
        return self._tap(f"mnpeer{self._taps}")

    def make_host(self) -> Callable[..., NicHost]:
        """A function that makes further machnet hosts."""
        self.local()

        def machnet_host(ip: str | None = None, name: str | None = None) -> NicHost:
            """Make a host on the test's network.

            Args:
                ip: Its address; None: the next free one.
                name: For messages; None: h1, h2 and so on.
            """
            tap = self._next_tap()
            return self._open(name or f"h{self._taps}", tap, self.take_ip(ip))

        return machnet_host

    def make_posix_peer(self) -> PosixPeer:
        """The Linux host."""
        if self._reach is not None:
            return self._agent_peer(*self._reach)
        if self._stated is not None:
            self._addresses.add(self._stated.host)
            return peers.StatedPeer(self._stated, self.missing)
        kernel = self.kernel()
        self.local()
        alone = "machnet_peer" not in self.case.fixtures
        ip = self.take_ip(self.case.settings.peer_ip if alone else None)
        interface = _BRIDGE if self._bridged() else self._interface
        kernel.add_address(interface, ip)
        made = peers.NamespacePeer(kernel, str(ipaddress.IPv4Interface(ip).ip), interface)
        self._exits.callback(made.close)
        self._peers.append(made)
        return made

    def _agent_peer(self, where: Where | str | None, iface: str | None) -> PosixPeer:
        from pytest_machnet import borrowed

        settings = self.case.settings
        wanted = settings["peer_ip"]
        if wanted is None and settings["peer"] is not None and not settings["peer"].scheme:
            wanted = settings["peer"].host
        self.local()  # whose interface may be the other end's
        try:
            agent = peers.agent_at(where)
            ip, interface = peers.locate(agent, iface, wanted, settings["ip"])
            if self._veth is not None and iface is not None:
                borrowed.take_near(self._veth)
                borrowed.take_far(agent, iface)
        except (OSError, ValueError) as error:
            raise pytest.fail.Exception(f"posix_peer: {error}", pytrace=False) from None
        self._addresses.add(ip)
        made = peers.AgentPeer(agent, ip, interface, self.missing)
        self._exits.callback(made.close)
        self._peers.append(made)
        return made

    def make_net(self) -> Any:
        """There is none."""
        self.missing("machnet_net", "there is no simulated network on a NIC")

    def make_raw_peer(self) -> Any:
        """There is none."""
        self.missing("raw_peer", "packets are scripted in virtual time only")

    def make_clock(self) -> RealClock:
        """The real time."""
        return self._clock

    def make_pcap(self) -> NicPcap:
        """The captures."""
        self.local()
        return NicPcap(self)

    # ---- reports ---------------------------------------------------------------------------------

    def progress(self) -> object:
        """Nothing is watched in real time."""
        return None

    def why_stuck(self) -> str:
        """Nothing is watched in real time."""
        return "in real time"

    def schedule(self) -> tuple[Any, ...]:
        """There is none in real time."""
        return ()

    def describe(self, *, short: bool) -> list[str]:
        """The state of things, for the failure section."""
        from machnet.sim.records import ends_text, socket_text
        from machnet.sim.units import format_ms

        sockets: list[str] = []
        timers: list[tuple[int, str]] = []
        for host in self._hosts:
            if not host.up:
                continue
            now = host.stack.now_ns
            for info in host.sockets():
                sockets.append(socket_text(host.name, info))
                if info.timer_ns is not None:
                    left = max(info.timer_ns - now, 0)
                    text = f"{host.name} {ends_text(info)} next timer in {format_ms(left)}"
                    timers.append((left, text))
        limit = 4 if short else 8
        lines = report.group("sockets", sockets, limit)
        return lines + report.group("timers", [text for _, text in sorted(timers)], limit)

    def describe_late(self) -> list[str]:
        """The last packets: a capture in real time is complete only when its stack has ended."""
        return report.group("packets of local", self._late_packets, 20, last=True)

    def _packets(self) -> list[str]:
        if self._captures is None or not (self._captures / "local.pcapng").exists():
            return []
        from pytest_machnet.numbers import summaries
        from pytest_machnet.pcapng import read_frames

        frames = read_frames(self._captures / "local.pcapng")
        start = frames[0][0] if frames else 0
        texts = summaries(frame for _, frame in frames)
        return [
            report.narrow(f"{(t_ns - start) / 1e6:12.3f} ms {text}")
            for (t_ns, _), text in zip(frames, texts, strict=True)
        ]

    def _keep_captures(self) -> None:
        if self._captures is None:
            return
        import shutil

        for path in self._captures.glob("*.pcapng"):
            shutil.copyfile(path, self.folder() / path.name)

    def write_artifacts(self) -> None:
        """The captures so far; they are written again when they are complete."""
        self._failed = True
        self._keep_captures()

    # ---- the end ---------------------------------------------------------------------------------

    def check_leaks(self) -> None:
        """Close the channels, wait until what they sent has arrived, and see that all is back."""
        for posix in self._peers:
            posix.close()  # of what the test left open there, nobody would see the end
        for channel in self._channels:
            channel.close()
        for stack in [stack for host in self._hosts for stack in host.stacks]:
            stack._close_channels(None)  # noqa: SLF001 (as Stack.close does)
            if not stack.threaded and not stack.nic.realtime:
                stack.advance(_VIRTUAL_SETTLE_NS)
        end = time.monotonic() + _SETTLE_S
        while (leaks := self._leaks()) and time.monotonic() < end:
            time.sleep(_POLL_S)
        if leaks:
            raise LeakError("stacks did not get back: " + "; ".join(leaks))

    def _leaks(self) -> list[str]:
        found = []
        for host in self._hosts:
            usage = host.usage()
            # A connection in TIME-WAIT has been closed, and goes by itself.
            usage["tcbs"] -= usage["time_wait"]
            found += [
                f"{host.name}: {usage[name] - host.baseline[name]} {what} ({name})"
                for name, what in _USAGE.items()
                if usage[name] > host.baseline[name]
            ]
        return found

    def close(self) -> None:
        """End the stacks and the namespace, and keep what was captured if it is to be kept."""
        for host in self._hosts:
            host.stacks.close(0)
        if self._failed:
            self._late_packets = self._packets()
        if self._failed or self.wants_capture():
            self._keep_captures()
        self._exits.close()
