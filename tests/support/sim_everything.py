# SPDX-License-Identifier: MIT
"""A small network in which everything goes wrong: `python sim_everything.py DIRECTORY FIRST LAST`.

Writes one capture per seed, and one file with everything else that a run has to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import Any

import machnet
from machnet.sim import DROP, DUPLICATE, PASS, GilbertElliott, Hop, Network, delay, replace
from machnet.testing import Packet

LINK: dict[str, Any] = {
    "latency": "200us",
    "jitter": "80us",
    "distribution": "normal",
    "bandwidth": "50Mbps",
    "queue": "30p,64KiB",
    "loss": 0.02,
    "burst_loss": GilbertElliott(bad=0.01, good=0.3),
    "reorder": 0.03,
    "reorder_delay": "700us",
    "duplicate": 0.02,
    "duplicate_delay": "50us",
    # On the last hop only: two inverted bits may cancel out in a checksum, and the rule below makes
    # checksums good.
    "back": {"corrupt": 0.01},
}


async def serve(host: Any) -> None:
    """Answers messages with themselves, whatever happens to their flows."""
    async with machnet.aio.attach(host.stack) as channel:
        channel.listen(host.ip, 7, protocol="tcp")
        channel.listen(host.ip, 7, protocol="udp")
        while True:
            with contextlib.suppress(OSError):
                message = await channel.recv()
                await channel.send(message.flow, message.data)


async def talk(host: Any, peers: list[Any], words: set[str]) -> int:
    """Sends messages of many sizes to everybody, in the order of a set that was sorted."""
    answers = 0
    for i, word in enumerate(sorted(words)):
        peer = peers[i % len(peers)]
        try:
            async with machnet.aio.attach(host.stack) as channel:
                protocol = "udp" if i // 2 % 2 else "tcp"
                flow = await channel.connect(host.ip, peer.ip, 7, protocol=protocol, timeout=1)
                await channel.send(flow, word.encode() * (1 + 400 * i))
                await channel.recv(timeout=1)
                answers += 1
        except (OSError, ValueError, RuntimeError):  # the last two: its own host is down
            await asyncio.sleep(0.05)
    return answers


def meddle(packet: Packet, hop: Hop) -> Any:
    """Does one of all things to some packets of a host."""
    if packet.tcp is None and packet.udp is None:
        return PASS
    choice = len(bytes(packet)) * 7 + hop.now_ns // 1000
    if choice % 41 == 0:
        return DROP
    if choice % 41 == 1:
        return DUPLICATE
    if choice % 41 == 2:
        return delay("3ms")
    if choice % 41 == 3 and packet.tcp is not None:
        return replace(packet.with_(window=2000))
    return PASS


def run(seed: int, path: Path) -> list[str]:
    """One run; what there is to say of it beside its packets."""
    with Network(seed, record=256) as net:
        net.capture(path)
        switch = net.switch()
        hosts = [net.host(f"10.0.0.{i}") for i in (1, 2, 3)]
        for host in hosts:
            net.link(host, switch, **LINK)
        noisy = net.raw_host("10.0.0.99")
        net.link(noisy, switch, loss=0.1)
        for host in hosts:
            host.on_restart = lambda host: net.create_task(serve(host), host=host)
            host.on_restart(host)
        hosts[2].skew(ppm=200, jump="1h")
        net.rule(meddle, net.links[1])
        net.chaos("2s", mean_interval="150ms")
        for i in range(20):
            broadcast = b"\xff" * 6 + bytes.fromhex(noisy.mac.replace(":", "")) + b"\x88\xb5"
            net.at(i * 31_000_000, lambda frame=broadcast: noisy.send(frame.ljust(64, b"\0")))
        net.at("700ms", hosts[1].restart)
        net.at("900ms", lambda: net.partition([hosts[0]], [hosts[1]], one_way=True))
        net.at("950ms", net.heal)
        words = {f"word-{i}-{net.random.random()}" for i in range(8)}
        tasks = [
            net.create_task(talk(hosts[0], hosts[1:], words), name="talk"),
            net.create_task(talk(hosts[2], hosts[:2], words)),
        ]
        net.eventually(lambda: all(task.done() for task in tasks), within="5min")
        net.run(until=max(net.now_ns, 2_500_000_000))
        said = [f"{t} {text}" for t, text in net.events]
        said += [repr(fault) for fault in net.schedule]
        said += [repr(packet) for packet in net.packets(last=20)]
        said += [repr(link.forward.stats()) for link in net.links]
        said += [repr(task.result()) for task in tasks]
        return [*said, str(net.now_ns), *net.timers(), net.report()]


def main(directory: Path, first: int, last: int) -> None:
    """All runs."""
    for seed in range(first, last):
        said = run(seed, directory / f"{seed}.pcapng")
        (directory / f"{seed}.txt").write_text("\n".join(said), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
