# SPDX-License-Identifier: MIT
# ruff: noqa: SLF001 (the C calls below the channels' methods)
"""How fast the simulated network is: frames a second in bulk TCP, and networks that are mostly idle.

Times are CPU time of the one thread that simulates; a machine with other work on it changes them less
than it changes the clock on the wall.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machnet._native import ffi, lib
from machnet.sim import DROP, PASS, Network

#: A link with faults of all kinds.
LOSSY: dict[str, Any] = {
    "queue": "1000p",
    "loss": 0.001,
    "reorder": 0.001,
    "reorder_delay": "100us",
    "duplicate": 0.001,
    "corrupt": 0.001,
}

CHUNK = bytes(256 << 10)
#: Virtual time between two turns of the applications: less than a window takes.
STEP_NS = 100_000


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def bulk(
    seconds: float,
    *,
    record: int = 4096,
    invariants: bool = True,
    rule: Callable[[Any, Any], Any] | None = None,
    link: dict[str, Any] | None = None,
) -> dict[str, float]:
    """One TCP connection between two hosts as fast as the link lets it, for so many seconds of CPU time.

    Args:
        seconds: How long.
        record: Frames that the network keeps.
        invariants: Whether they are checked meanwhile.
        rule: A rule on the link.
        link: Its parameters, where they are not the default.

    Returns:
        `frames_per_s` (that entered the link), `gbit_per_s` (of payload, by CPU time),
        `virtual_gbit_per_s`.
    """
    with Network(seed=1, record=record) as net:
        net.invariants = invariants
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        wire = net.link(a, b, **(link or {}))
        server, client = b.attach(), a.attach()
        listener = server.listen(b.ip, 80, protocol="stream")
        flow = client.connect(a.ip, b.ip, 80, protocol="stream", timeout=5)
        net.advance("10ms")
        peer = listener.accept(timeout=5)
        if rule is not None:
            net.rule(rule, link=wire)
        # The C calls below the channel's methods, with a buffer that stays: what is measured is the
        # network.
        near, far, buf = client._native, server._native, ffi.new("uint8_t[]", len(CHUNK))
        received, first, t_ns, began = 0, _frames(wire), net.now_ns, time.process_time()
        while (spent := time.process_time() - began) < seconds:
            lib.mn_chan_stream_send(near, flow.id, CHUNK, len(CHUNK), 0)
            while (got := lib.mn_chan_stream_recv(far, peer.id, buf, len(CHUNK), 0)) > 0:
                received += got
            net.advance(STEP_NS)
        return {
            "frames_per_s": (_frames(wire) - first) / spent,
            "gbit_per_s": received * 8e-9 / spent,
            "virtual_gbit_per_s": received * 8 / (net.now_ns - t_ns),
        }


def _frames(link: Any) -> int:
    return int(link.forward.stats().frames + link.backward.stats().frames)


def keepalive_hour() -> dict[str, float]:
    """A simulated hour of ten idle connections with a keep-alive each ten seconds, in seconds of CPU time."""
    with Network(seed=1, record=0) as net:
        hosts = [net.host(f"10.0.0.{i}", keepalive_idle_s=10) for i in range(1, 12)]
        switch = net.switch()
        for host in hosts:
            net.link(host, switch, latency="50us")
        server = hosts[0].attach()
        server.listen(hosts[0].ip, 80, protocol="tcp")
        for host in hosts[1:]:
            channel = host.attach()
            flow = channel.connect(host.ip, hosts[0].ip, 80, protocol="tcp", timeout=5)
            channel.set_option(flow, lib.MN_OPT_KEEPALIVE, 1)
        began = time.process_time()
        net.advance("1h")
        return {"seconds": time.process_time() - began}


def many_hosts(count: int = 1000) -> dict[str, float]:
    """So many hosts on one switch, each with a connection to its neighbour and one message across it."""
    before, began = _resident_bytes(), time.process_time()
    with Network(seed=1, record=0) as net:
        switch = net.switch()
        hosts = [net.host(f"10.1.{i >> 8}.{i & 255}/16") for i in range(1, count + 1)]
        for host in hosts:
            net.link(host, switch, latency="50us", bandwidth="10Gbps")
        built = time.process_time()
        channels = [host.attach() for host in hosts]
        for host, channel in zip(hosts, channels, strict=True):
            channel.listen(host.ip, 80, protocol="tcp")
        for i, channel in enumerate(channels):
            other = hosts[(i + 1) % count]
            flow = channel.connect(hosts[i].ip, other.ip, 80, protocol="tcp", timeout=5)
            channel.send(flow, b"hello")
        for channel in channels:
            assert channel.recv(timeout=5).data == b"hello"
        talked, resident = time.process_time(), _resident_bytes()
        net.advance("1h")
        return {
            "build_s": built - began,
            "talk_s": talked - built,
            "idle_hour_s": time.process_time() - talked,
            "kib_per_host": (resident - before) / count / 1024,
        }


def watch_port(packet: Any, hop: Any) -> Any:
    """A rule that looks into each packet and lets it pass."""
    return DROP if packet.tcp is not None and packet.dport == 9 else PASS


#: What bulk transfers are measured with, by name. But for what a row says, the network and its link are
#: the default: invariants are checked, and the last 4096 frames kept.
BULK_ROWS: dict[str, dict[str, Any]] = {
    "two hosts": {},
    "two hosts, no record": {"record": 0},
    "two hosts, no invariants": {"invariants": False},
    "two hosts, neither": {"record": 0, "invariants": False},
    "two hosts, faults of all kinds": {"link": LOSSY},
    "two hosts, a Python rule that passes": {"rule": lambda packet, hop: PASS},
    "two hosts, a Python rule that looks at the port": {"rule": watch_port},
}
