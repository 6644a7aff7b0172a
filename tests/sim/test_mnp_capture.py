# SPDX-License-Identifier: MIT
"""What the stack sends over UDP, as Wireshark's dissector and scapy see it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import mnp_layer
import pytest
from mnp_dissect import FIELDS, tshark
from mnp_wire import write_pcap

from machnet.sim import Network
from machnet.testing import Packet

SIZES = [1, 100, 1418, 1419, 5000, 50_000]


def talk(path: Path, extended: bool, **link: Any) -> None:
    """A conversation that is captured; both applications close at the end."""
    with Network(seed=3) as net:
        a = net.host("10.0.0.1", mnp_extended=extended)
        b = net.host("10.0.0.2")
        net.link(a, b, **{"latency": "50us", "bandwidth": "1Gbps", **link})
        net.capture(path)
        client, server = a.attach(), b.attach()
        server.listen("10.0.0.2", 7)
        flow = client.connect("10.0.0.1", "10.0.0.2", 7)
        for size in SIZES:
            client.send(flow, bytes(size), timeout=5)
        for size in SIZES:
            message = server.recv(timeout=5)
            assert message.data == bytes(size)
            server.send(message.flow, bytes(size), timeout=5)
        for size in SIZES:
            assert client.recv(timeout=5).data == bytes(size)
        net.advance("1s")
        flow.close()
        net.advance("15s")
    one_side(path)


def one_side(path: Path) -> None:
    """Keep of a network's capture what passed the first host's NIC: else each frame is there twice."""
    data, at, frames = path.read_bytes(), 0, []
    while at < len(data):
        kind, length, iface, high, low, kept = struct.unpack_from("=IIIIII", data, at)
        if kind == 6 and iface == 0:
            frames.append((high << 32 | low, data[at + 28 : at + 28 + kept]))
        at += length
    write_pcap(path, frames)


def frames_of(path: Path) -> list[tuple[int, bytes]]:
    """Time in ns and bytes of each frame of `write_pcap`'s."""
    data, at, frames = path.read_bytes(), 24, []
    while at < len(data):
        seconds, ns, kept, _ = struct.unpack_from("<IIII", data, at)
        frames.append((seconds * 10**9 + ns, data[at + 16 : at + 16 + kept]))
        at += 16 + kept
    return frames


def dissected(path: Path) -> list[dict[str, list[str]]]:
    """Fields of each mnp packet in the capture."""
    words = [word for field in [*FIELDS, "frame.number"] for word in ("-e", field)]
    options = ["-o", "udp.check_checksum:TRUE", "-e", "udp.checksum.status"]
    found = json.loads(tshark("-r", str(path), "-Y", "udp", "-T", "json", *words, *options))
    return [one["_source"]["layers"] for one in found]


@pytest.mark.parametrize("extended", [True, False], ids=["extended", "plain"])
def test_dissector_finds_nothing_wrong_without_loss(tmp_path: Path, extended: bool) -> None:
    path = tmp_path / "clean.pcapng"
    talk(path, extended)
    seen = dissected(path)
    mode = "extended" if extended else "plain"
    assert all(layers["mnp.mode"] == [mode] for layers in seen[1:])
    assert seen[0]["mnp.mode"] == ["extended, offered" if extended else "plain"]
    assert not any("mnp.analysis.retransmission" in layers for layers in seen)
    wrong = {
        text
        for layers in seen
        for text in layers.get("_ws.expert.message", [])
        if not text.startswith(("Message ", "Flow begins", "This direction", "Reset"))
    }
    assert wrong == set()
    assert all("_ws.malformed" not in layers for layers in seen)
    assert all(layers["udp.checksum.status"] == ["1"] for layers in seen)
    sizes = [int(size) for layers in seen for size in layers.get("mnp.message.bytes", [])]
    assert sorted(sizes) == sorted(SIZES * 2)


@pytest.mark.parametrize("extended", [True, False], ids=["extended", "plain"])
def test_dissector_and_scapy_read_the_same_under_loss(tmp_path: Path, extended: bool) -> None:
    path = tmp_path / "lossy.pcapng"
    talk(path, extended, loss=0.05, reorder=0.05, reorder_delay="200us")
    seen = {int(layers["frame.number"][0]): layers for layers in dissected(path)}
    layer = mnp_layer.layer()
    kinds = set()
    sacked = 0
    for number, (_, raw) in enumerate(frames_of(path), 1):
        packet = Packet(raw)
        if packet.udp is None:
            continue
        layers, theirs = seen[number], layer(packet.udp.payload)
        kinds.add(int(theirs.net_flags))
        for name in ("seqno", "ackno", "net_flags"):
            assert int(layers[f"mnp.{name}"][0], 0) == getattr(theirs, name)
        extended_now = layers["mnp.mode"] == ["extended"]
        if extended_now and theirs.net_flags in {0x02, 0x04}:
            held = theirs.extended().held(theirs.ackno)
            assert [int(text) for text in layers.get("mnp.sack.seqno", [])] == held
            sacked += len(held)
            assert not any(getattr(theirs.extended(), "zero", b""))
        if not extended_now and theirs.net_flags != 0x01:
            # Plain mode leaves all of it zero, whatever the packet is.
            assert packet.udp.payload[12:54] == bytes(42)
    assert kinds >= ({0x00, 0x01, 0x02, 0x03, 0x04} if extended else {0x00, 0x01, 0x02, 0x03, 0x80})
    assert (sacked > 0) == extended
