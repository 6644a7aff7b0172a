# SPDX-License-Identifier: MIT
"""Two fresh interpreters with different hash seeds: the same packets, byte for byte."""

from __future__ import annotations

from machnet._native import lib

#: Everything that can go wrong does.
STORM = """
    import pytest
    from machnet import FlowError
    from machnet.sim import GilbertElliott

    @pytest.mark.machnet(
        loss=0.02, burst_loss=GilbertElliott(bad=0.01, good=0.3), reorder=0.05, duplicate=0.05,
        corrupt=0.02, latency="200us", jitter="100us", queue="64p", bandwidth="100Mbps",
    )
    def test_storm(machnet_net, machnet_host, machnet_channel, machnet_peer):
        machnet_net.chaos("2s", mean_interval="200ms")
        hosts = {machnet_host(), machnet_host(), machnet_peer}
        client = machnet_channel()
        for host in sorted(hosts, key=lambda host: host.name):
            try:
                server = host.attach()
                server.listen(host.ip, 7000, protocol="tcp")
                flow = client.connect(client.ip, host.ip, 7000, protocol="tcp", timeout=3)
                for size in (10, 5000, 20_000):
                    client.send(flow, bytes(size))
                    server.recv(timeout=3)
            except (OSError, RuntimeError, ValueError):
                pass  # what ends is part of the game
        machnet_net.advance("3s")
"""


def test_captures_are_the_same_in_every_process(outer, pytester, monkeypatch):
    seeds = 5 if lib.mn_build_sanitized() else 50
    captures = []
    for hash_seed in ("1", "4242"):
        monkeypatch.setenv("PYTHONHASHSEED", hash_seed)
        args = (f"--machnet-seeds={seeds}", "--machnet-pcap=always")
        outer(STORM, *args, f"--machnet-artifacts=run{hash_seed}").assert_outcomes(passed=seeds)
        paths = sorted(pytester.path.glob(f"run{hash_seed}/*/packets.pcapng"))
        captures.append({path.parent.name: path.read_bytes() for path in paths})
    assert len(captures[0]) == seeds
    assert len(set(captures[0].values())) == seeds
    assert captures[0] == captures[1]
    everything = b"".join(captures[0].values())
    assert sum(map(len, captures[0].values())) > seeds * 20_000
    for word in (b"lost", b"duplicated", b"corrupted"):
        assert word in everything
    assert str(pytester.path).encode() not in everything
