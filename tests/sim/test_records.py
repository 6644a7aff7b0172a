# SPDX-License-Identifier: MIT
"""What a network remembers: packets, captures, events, sockets and timers."""

from __future__ import annotations

from pathlib import Path

import pytest
from sim_net import frame, framed_flow, host_pair, raw_pair

from machnet.sim import Network


def test_each_frame_is_recorded_where_it_leaves_and_where_it_arrives() -> None:
    net, a, b = raw_pair(latency="1ms", bandwidth=None, loss=0)
    with net:
        a.send(frame(a, b, 1))
        net.advance("2ms")
        net.links[0].set(loss=1)
        a.send(frame(a, b, 2))
        net.run_until_idle()
        rows = [(p.t_ns, p.host, p.direction, p.link, p.nth, p.dropped) for p in net.packets()]
        assert rows == [
            (0, "raw1", "out", "raw1>raw2", 0, False),
            (1_000_000, "raw2", "in", "raw1>raw2", 0, False),
            (2_000_000, "raw1", "out", "raw1>raw2", 1, True),
        ]
        assert net.packets()[0].frame == frame(a, b, 1)
        assert [p.fate for p in net.packets()] == ["", "", "lost"]
        assert [p.nth for p in net.packets(last=1)] == [1]


def test_fates_are_told() -> None:
    net, a, b = raw_pair(reorder=1, reorder_delay="1ms", duplicate=1, corrupt=1)
    with net:
        a.send(frame(a, b))
        fate = net.packets()[0].fate
        assert "delayed 1.000 ms" in fate
        assert "duplicated" in fate
        assert "corrupted bit " in fate
        assert not net.packets()[0].dropped


def test_only_the_last_frames_are_kept() -> None:
    with Network(record=4) as net:
        a, b = net.raw_host("10.0.0.1"), net.raw_host("10.0.0.2")
        net.link(a, b)
        for i in range(10):
            a.send(frame(a, b, i))
        assert [p.nth for p in net.packets()] == [6, 7, 8, 9]
    with Network(record=0) as net:
        a, b = net.raw_host("10.0.0.1"), net.raw_host("10.0.0.2")
        net.link(a, b)
        a.send(frame(a, b))
        assert net.packets() == []


def test_records_read_like_tcpdump() -> None:
    net, a, b = host_pair()
    with net:
        b.attach().listen(b.ip, 7, protocol="tcp")
        a.attach().connect(a.ip, b.ip, 7, protocol="tcp")
        lines = [str(packet) for packet in net.packets()]
        assert any("h1 > 10.0.0.1." in line and "Flags [S]" in line for line in lines)
        assert any("h2 < 10.0.0.1." in line for line in lines)
        assert lines[0].lstrip().startswith("0.000 ms h1 >")


def test_what_is_kept_is_written_as_pcapng(tmp_path: Path) -> None:
    from scapy.utils import PcapNgReader

    net, a, b = host_pair(loss=0.1)
    with net:
        b.attach().listen(b.ip, 7, protocol="tcp")
        a.attach().connect(a.ip, b.ip, 7, protocol="tcp", timeout=60)
        net.write_pcapng(tmp_path / "kept.pcapng")
        packets = net.packets()
    with PcapNgReader(str(tmp_path / "kept.pcapng")) as reader:
        frames = [bytes(packet) for packet in reader]
    assert frames == [packet.frame for packet in packets]
    assert b"h1" in (tmp_path / "kept.pcapng").read_bytes()


def test_a_capture_has_everything_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "all.pcapng"
    with Network(record=2) as net:
        a, b = net.raw_host("10.0.0.1"), net.raw_host("10.0.0.2")
        net.link(a, b)
        a.send(frame(a, b, 0))
        net.capture(path)
        with pytest.raises(RuntimeError, match="there is one already"):
            net.capture(path)
        for i in range(1, 6):
            a.send(frame(a, b, i))
        net.run_until_idle()
        net.stop_capture()
        net.stop_capture()
        size = path.stat().st_size
        a.send(frame(a, b, 9))
    assert path.stat().st_size == size
    from scapy.utils import PcapNgReader

    with PcapNgReader(str(path)) as reader:
        assert len(list(reader)) == 11  # the first one had left before, and arrives


def test_the_end_of_the_network_completes_its_capture(tmp_path: Path) -> None:
    path = tmp_path / "all.pcapng"
    net, a, b = raw_pair()
    with net:
        net.capture(path)
        a.send(frame(a, b))
    assert path.stat().st_size > 200
    with pytest.raises(OSError, match="No such file"):
        net.write_pcapng(tmp_path / "nowhere" / "x.pcapng")


def test_records_outlive_the_network(tmp_path: Path) -> None:
    net, a, b = raw_pair()
    with net:
        a.send(frame(a, b))
        net.partition([a], [b])
    assert len(net.packets()) == 1
    assert net.events == [(0, "partition raw1 <> raw2")]
    assert net.sockets() == []
    assert net.timers() == []
    net.write_pcapng(tmp_path / "late.pcapng")
    assert (tmp_path / "late.pcapng").stat().st_size > 200


def test_sockets_and_timers_of_all_hosts() -> None:
    net, a, b = host_pair(latency="1ms")
    with net:
        _server, client, flow = framed_flow(a, b)
        net.run_until_idle()
        net.partition([a], [b])
        client.send(flow, b"x" * 100)
        net.advance("1ms")
        states = [(host.name, info.state) for host, info in net.sockets()]
        assert states == [("h1", "ESTABLISHED"), ("h2", "ESTABLISHED"), ("h2", "LISTEN")]
        port = flow.local[1]
        assert net.timers() == [f"h1 10.0.0.1:{port}-10.0.0.2:7 retransmission in 199.000 ms"]
        net.at("10s", lambda: None, name="later")
        assert net.timers()[-1].startswith("callback later in ")
        text = net.report()
        assert "104 bytes not acknowledged" in text
        assert "partition h1 <> h2" in text
        client.close()
        assert len(net.report(limit=3).splitlines()) == 3


def test_timers_of_a_skewed_host_are_told_in_the_networks_time() -> None:
    net, a, b = host_pair()
    with net:
        _server, client, flow = framed_flow(a, b)
        net.run_until_idle()
        a.skew(ppm=-500_000, jump="1h")
        net.partition([a], [b])
        client.send(flow, b"x")
        net.advance(0)
        assert net.timers()[0].endswith("retransmission in 400.000 ms")
