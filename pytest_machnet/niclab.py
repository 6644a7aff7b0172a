# SPDX-License-Identifier: MIT
"""The lab of a test in real time: stacks on NICs, and Linux hosts.

A TAP lies in a network namespace that the lab makes (without root in a user namespace); there a
bridge connects it with the TAPs of further machnet hosts and with the Linux host. Any other NIC is
opened by its string, and what it leads to is the user's affair.
"""

from __future__ import annotations

import contextlib
import ipaddress
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_machnet import report
from pytest_machnet.labs import Lab, LeakError
from pytest_machnet.options import KNOBS

if TYPE_CHECKING:
    from collections.abc import Callable

    from machnet import Channel, Socket, Stack
    from machnet.sim.kernel_host import KernelHost
    from machnet.sim.units import Duration
    from machnet.stack.info import SocketInfo
    from machnet.stack.nics import Nic
    from pytest_machnet.cases import Case

T = TypeVar("T")

#: How long what is under way between two tests in real time may take to be over.
_SETTLE_S = 2.0
_VIRTUAL_SETTLE_NS = 600_000_000_000
_POLL_S = 0.001
_BRIDGE = "machnet0"
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
        stack: Its `machnet.Stack`.
    """

    def __init__(self, name: str, stack: Stack) -> None:
        self.name = name
        self.stack = stack
        self.baseline = stack.usage()

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
        """A new channel; see `machnet.Stack.attach`."""
        return self.stack.attach(**settings)

    def socket(self) -> Socket:
        """A new non-blocking stream socket; see `machnet.Stack.socket`."""
        return self.stack.socket()

    def sockets(self) -> list[SocketInfo]:
        """Its connections and listeners."""
        return self.stack.sockets()

    def __repr__(self) -> str:
        return f"<NicHost {self.name} {self.ip} on {self.stack.nic}>"


class PosixPeer:
    """The fixture ``posix_peer``: a Linux host with ordinary sockets.

    Attributes:
        host: The `machnet.sim.KernelHost`, for everything else.
        ip: Its address.
        interface: Name of its interface towards the local stack.
    """

    def __init__(self, host: KernelHost, ip: str, interface: str) -> None:
        self.host = host
        self.ip = ip
        self.interface = interface

    def socket(self, *args: Any) -> Any:
        """A kernel socket of this host, as `socket.socket` makes it (family, type, protocol)."""
        return self.host.socket(*args)

    def run(self, command: list[str], **options: Any) -> Any:
        """Run a command on it to its end; see `machnet.sim.KernelHost.run`."""
        return self.host.run(command, **options)

    def popen(self, command: list[str], **options: Any) -> Any:
        """Start a command on it; see `machnet.sim.KernelHost.popen`."""
        return self.host.popen(command, **options)

    def call(self, func: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run a function on it, in a forked child; see `machnet.sim.KernelHost.call`."""
        return self.host.call(func, *args, **options)

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Read, or write, a setting under ``net.``; see `machnet.sim.KernelHost.sysctl`."""
        return self.host.sysctl(name, value)

    def __repr__(self) -> str:
        return f"<PosixPeer {self.ip} on {self.host!r}>"


class RealClock:
    """The real time; see `pytest_machnet.labs.Clock`."""

    def __init__(self, lab: NicLab) -> None:
        self._lab = lab
        self._start_ns = time.monotonic_ns()

    @property
    def now_ns(self) -> int:
        """Nanoseconds since the lab was made."""
        return time.monotonic_ns() - self._start_ns

    def sleep(self, duration: Duration) -> None:
        """Wait."""
        from machnet.sim.units import duration_ns

        time.sleep(duration_ns(duration, "sleep") / 1e9)

    def advance(self, duration: Duration) -> None:
        """Skip the test."""
        self._lab.missing("machnet_clock.advance", f"real time can't be advanced by {duration}")

    def eventually(
        self, predicate: Callable[[], T], within: Duration = "5s", message: str = ""
    ) -> T:
        """Wait until something is true, and return it."""
        from machnet.sim.units import duration_ns

        end = time.monotonic_ns() + duration_ns(within, "within")
        while not (found := predicate()):
            if time.monotonic_ns() >= end:
                raise AssertionError(f"not within {within}: {message or predicate}")
            time.sleep(_POLL_S)
        return found


class NicPcap:
    """The capture of a test on a NIC; see `pytest_machnet.labs.Pcap`."""

    def __init__(self, lab: NicLab) -> None:
        self._lab = lab

    @property
    def path(self) -> Path:
        """The local stack's pcapng file; complete when the test is over."""
        return self._lab.folder() / "local.pcapng"

    def packets(self, last: int | None = None) -> list[Any]:
        """Skip the test: only a simulated network keeps a record."""
        self._lab.missing("machnet_pcap.packets", "there is a record of simulated packets only")


class NicLab(Lab):
    """What the fixtures of a test in real time are made from."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._exits = contextlib.ExitStack()
        self._hosts: list[NicHost] = []
        self._channels: list[Channel] = []
        self._kernel: KernelHost | None = None
        self._failed = False
        self._late_packets: list[str] = []
        self._taps = 0
        self._clock = RealClock(self)
        nic = case.settings["nic"] if not case.settings.simulated else None
        if nic is None:
            # A Linux peer while everything else is simulated.
            nic = f"tap:mn{case.tag.replace('-', '')}"[:15]
        self._nic: str = nic
        self._in_namespace = nic.startswith("tap:")
        self._captures: Path | None = None
        try:
            self._check_fixtures()
            if case.settings["pcap"] != "never":
                made = self._exits.enter_context(tempfile.TemporaryDirectory("machnet-pcap"))
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
            for name in fixtures & {"machnet_host", "posix_peer"}:
                self.missing(name, "further hosts can be made beside a TAP only")
            if "machnet_peer" in fixtures and self.case.settings["peer_nic"] is None:
                option = KNOBS["peer_nic"].option
                self.missing("machnet_peer", f"it needs a NIC of its own: {option}=IFACE")

    def _interface(self) -> str:
        """Name of the TAP in the namespace."""
        return self._nic.removeprefix("tap:").partition("?")[0]

    # ---- the namespace ---------------------------------------------------------------------------

    def _bridged(self) -> bool:
        return bool(self.case.fixtures & {"machnet_peer", "machnet_host"})

    def kernel(self) -> KernelHost:
        """The namespace in which the TAPs are; skips the test where there can be none."""
        if self._kernel is None:
            from machnet.sim import KernelHost

            reason = KernelHost.tap_available()
            if reason is not None:
                pytest.skip(f"no TAP in a namespace of the test's own: {reason}")
            self._kernel = self._exits.enter_context(KernelHost(f"machnet-{self.case.tag}"))
            if self._bridged():
                self._make_bridge(self._kernel)
        return self._kernel

    def _make_bridge(self, kernel: KernelHost) -> None:
        with kernel.iproute() as route:
            route.link("add", ifname=_BRIDGE, kind="bridge")
        kernel.set_link(_BRIDGE, up=True)

    def _tap(self, name: str) -> Nic:
        """A NIC on a TAP of the namespace, a port of the bridge if there is one."""
        from machnet.sim import Tap

        kernel, mtu = self.kernel(), self.case.settings.mtu or 1500
        fd = kernel.open_tap(name, mtu=mtu, offloads=False)
        tap = Tap(fd=fd, mtu=mtu, offload=False)
        self._exits.callback(tap.close)
        if self._bridged():
            with kernel.iproute() as route:
                (port,) = route.link_lookup(ifname=name)
                (bridge,) = route.link_lookup(ifname=_BRIDGE)
                route.link("set", index=port, master=bridge)
        return tap

    # ---- stacks ----------------------------------------------------------------------------------

    def _open(self, name: str, nic: str | Nic, ip: str, gateway: str | None = None) -> NicHost:
        from machnet import Stack

        pcap = None if self._captures is None else self._captures / f"{name}.pcapng"
        mtu = self.case.settings.mtu if isinstance(nic, str) else None
        settings: dict[str, Any] = {"app_exit_linger_ms": 500}
        if self._in_namespace:
            settings["msl_ms"] = 50  # the next test is another network
        try:
            stack = Stack(nic, ip, gateway, mtu=mtu, pcap=pcap, **settings)
        except PermissionError as error:
            pytest.skip(f"{nic} can't be opened: {error}")
        self._exits.callback(stack.close, 0)
        host = NicHost(name, stack)
        self._hosts.append(host)
        return host

    def local(self) -> NicHost:
        """The local stack."""
        if "local" in self._made:
            host: NicHost = self._made["local"]
            return host
        settings = self.case.settings
        host = self._open("local", self._local_nic(), settings["ip"], settings["gateway"])
        self._made["local"] = host
        return host

    def _local_nic(self) -> Nic:
        """The NIC of the local stack, behind a layer that does what the marker says of the link."""
        from machnet.sim import Faulty
        from machnet.sim.nicstr import parse_nic
        from machnet.stack.nics import open_nic, with_faults

        if self._in_namespace:
            spec = parse_nic(self._nic)
            nic = with_faults(self._tap(spec.rest), spec)
        else:
            nic = open_nic(self._nic, self.case.settings.mtu)
        self._exits.callback(nic.close)
        link = dict(self.case.settings.link)
        back = link.pop("back", None)
        if link or back:
            nic = Faulty(nic, seed=self.case.seed, rx=back, **link)
            self._exits.callback(nic.close)
        return nic

    def make_channel(self) -> Callable[..., Channel]:
        """A function that attaches channels to the local stack."""
        host = self.local()

        def machnet_channel(**settings: int) -> Channel:
            """Attach a channel to the local stack; arguments as for machnet.Stack.attach."""
            channel = host.attach(**settings)
            self._channels.append(channel)
            return channel

        return machnet_channel

    def make_peer(self) -> NicHost:
        """A second machnet host."""
        ip = self.take_ip(self.case.settings.peer_ip)
        self.local()
        if not self._in_namespace:
            return self._open("peer", str(self.case.settings["peer_nic"]), ip)
        return self._open("peer", self._next_tap(), ip)

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
        kernel = self.kernel()
        self.local()
        alone = "machnet_peer" not in self.case.fixtures
        ip = self.take_ip(self.case.settings.peer_ip if alone else None)
        interface = _BRIDGE if self._bridged() else self._interface()
        kernel.add_address(interface, ip)
        return PosixPeer(kernel, str(ipaddress.IPv4Interface(ip).ip), interface)

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
        from machnet.sim.units import format_ms

        sockets: list[str] = []
        timers: list[tuple[int, str]] = []
        for host in self._hosts:
            if not host.up:
                continue
            now = host.stack.now_ns
            for info in host.sockets():
                text = f"{host.name} {_ends(info)}"
                queued = f", {info.send_queue} bytes not acknowledged" if info.send_queue else ""
                sockets.append(f"{text} {info.state}{queued}")
                if info.timer_ns is not None:
                    left = max(info.timer_ns - now, 0)
                    timers.append((left, f"{text} next timer in {format_ms(left)}"))
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
        for channel in self._channels:
            channel.close()
        for host in self._hosts:
            host.stack._close_channels(None)  # noqa: SLF001 (as Stack.close does)
            if not host.stack.threaded and not host.stack.nic.realtime:
                host.stack.advance(_VIRTUAL_SETTLE_NS)
        end = time.monotonic() + _SETTLE_S
        while (leaks := self._leaks()) and time.monotonic() < end:
            time.sleep(_POLL_S)
        if leaks:
            raise LeakError("stacks did not get back: " + "; ".join(leaks))

    def _leaks(self) -> list[str]:
        found = []
        for host in self._hosts:
            usage = host.stack.usage()
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
            host.stack.close(0)
        if self._failed:
            self._late_packets = self._packets()
        if self._failed or self.wants_capture():
            self._keep_captures()
        self._exits.close()


def _ends(info: SocketInfo) -> str:
    """The addresses of a connection, or of a listener."""
    local = f"{info.local[0]}:{info.local[1]}"
    return local if info.state == "LISTEN" else f"{local}-{info.remote[0]}:{info.remote[1]}"
