# SPDX-License-Identifier: MIT
"""Wireshark's dissector of mnp, by tshark, on captures that are made from bytes."""

from __future__ import annotations

from pathlib import Path

import mnp_wire as w
import pytest
from click.testing import CliRunner
from mnp_dissect import Row, dissect, said, tshark
from mnp_wire import Addresses, Mnp

from machnet.cli import main as cli
from machnet.cli.dissector import dissector_path

A = Addresses("02:00:00:00:00:0a", "02:00:00:00:00:0b", "10.0.0.1", "10.0.0.2", 1024, 888)
B = A.turned()
GARBAGE = bytes(range(1, 33))


def one(layers: dict[str, list[str]], name: str) -> str:
    """The only value of a field."""
    values = layers[f"mnp.{name}"]
    assert len(values) == 1, (name, values)
    return values[0]


def numbers(layers: dict[str, list[str]], *names: str) -> list[int]:
    """Fields as numbers."""
    return [int(one(layers, name), 0) for name in names]


def shake(isn_a: int, isn_b: int, a: bytes = bytes(32), b: bytes = bytes(32)) -> list[Row]:
    """A handshake between A and B."""
    return [
        (A, Mnp(w.SYN, isn_a, 0, body=a)),
        (B, Mnp(w.SYN_ACK, isn_b, w.add32(isn_a, 1), body=b)),
        (A, Mnp(w.ACK, w.add32(isn_a, 1), w.add32(isn_b, 1))),
    ]


def test_plain_flow(tmp_path: Path) -> None:
    message = bytes(3000)
    data = [packet.with_(body=GARBAGE, count=0xFFFF) for packet in w.cut(message, 1)]
    rows: list[Row] = [
        *shake(0, 0),
        (A, data[0]), (B, Mnp(w.ACK, 1, 2)),
        (A, data[2]), (B, Mnp(w.ACK, 1, 2, count=1, body=b"\0" * 7 + b"\2" + bytes(24))),
        (A, data[1]), (B, Mnp(w.ACK, 1, 4)),
        (A, data[1]), (B, Mnp(w.ACK, 1, 4)),
        (B, w.cut(b"answer", 1)[0]), (A, Mnp(w.ACK, 4, 2)),
        (B, Mnp(w.RST, 2, 4)),
    ]  # fmt: skip
    seen = dissect(tmp_path / "plain.pcap", rows)
    assert {one(layers, "mode") for layers in seen} == {"plain"}
    assert {one(layers, "stream") for layers in seen} == {"0"}
    for layers, (_, packet) in zip(seen, rows, strict=True):
        assert isinstance(packet, Mnp)
        assert layers["_ws.col.Protocol"] == ["MNP"]
        assert numbers(layers, "magic", "net_flags", "msg_flags", "seqno", "ackno", "len") == [
            0x4E53, packet.net_flags, packet.msg_flags, packet.seqno, packet.ackno,
            len(packet.payload),
        ]  # fmt: skip
        # Bytes that a plain sender of DATA does not write are not shown as if they meant something.
        if packet.net_flags == w.DATA:
            assert "mnp.sack_bitmap" not in layers
            assert one(layers, "unwritten") == bytes(packet)[12:46].hex()
            assert one(layers, "payload") == packet.payload.hex()
        else:
            assert one(layers, "sack_bitmap") == packet.body.hex()
            assert numbers(layers, "sack_bitmap_count") == [packet.count]
    assert [one(seen[3], f"msg_flags.{name}") for name in ("first", "more", "last")] == [
        "1",
        "1",
        "0",
    ]
    assert seen[3]["_ws.col.Info"] == ["1024 > 888 DATA seq=1 len=1418 [first more]"]
    # The message is complete with the packet that closes the gap.
    assert numbers(seen[7], "message.number", "message.bytes", "message.packets") == [1, 3000, 3]
    assert numbers(seen[7], "message.first_frame") == [4]
    assert "mnp.message.bytes" not in seen[5]
    assert "Missing before this one: 1 packets" in said(seen[5])
    assert "Out of order" in said(seen[7])
    assert numbers(seen[9], "analysis.retransmission") == [8]
    assert "Retransmission" in said(seen[9])
    assert numbers(seen[6], "analysis.duplicate_ack") == [1]
    assert numbers(seen[10], "analysis.duplicate_ack") == [1]
    assert "mnp.analysis.duplicate_ack" not in seen[8]
    assert numbers(seen[4], "analysis.acks_frame") == [4]
    assert float(one(seen[4], "analysis.ack_rtt")) == pytest.approx(0.001)
    assert numbers(seen[11], "message.bytes", "message.first_frame") == [6, 12]
    assert "Reset" in said(seen[13])


def test_extended_flow_across_the_wrap_in_two_passes(tmp_path: Path) -> None:
    isn = 0xFFFFFFFE
    hello = w.offer(features=0x7F, mss=8900, window=256)
    first = Mnp(
        w.DATA, isn + 1, 8, w.FIRST | w.MORE, w.word_body(1500), 200, w.stamps(5, 6), b"x" * 1000
    )
    rest = Mnp(w.DATA, 0, 8, w.LAST, bytes(32), 200, w.stamps(7, 6), b"y" * 500)
    sacks = [2, 64, 65, 66, 256]
    rows: list[Row] = [
        *shake(isn, 7, hello, w.offer(features=0x5F, mss=1438, window=100)),
        (A, first), (A, rest),
        (B, Mnp(w.ACK, 8, 1, 0, w.sack_body(1, sacks), 64, w.stamps(9, 7))),
        (B, Mnp(w.ACK, 8, 1, 0, bytes(32), 0, w.stamps(10, 7))),
        (A, Mnp(w.FIN, 1, 8, count=200, stamp=w.stamps(11, 9))),
        (B, Mnp(w.RST, 8, 2, body=w.word_body(7))),
    ]  # fmt: skip
    seen = dissect(tmp_path / "extended.pcap", rows, passes=2)
    assert [one(layers, "mode") for layers in seen] == ["extended, offered", *["extended"] * 8]
    assert numbers(seen[0], "marker", "version", "mss", "window", "features") == [
        0x4D4E5854, 1, 8900, 256, 0x7F,
    ]  # fmt: skip
    assert numbers(seen[1], "mss", "window", "features") == [1438, 100, 0x5F]
    assert [one(seen[1], f"features.{name}") for name in ("sack", "fin", "length")] == ["1"] * 3
    assert numbers(seen[3], "message_length", "window", "tsval", "tsecr") == [1500, 200, 5, 6]
    assert "mnp.unwritten" not in seen[3]
    assert numbers(seen[4], "message.bytes", "message.packets") == [1500, 2]
    assert not {"Retransmission", "Out of order"} & {
        text for layers in seen for text in said(layers)
    }
    assert seen[5]["mnp.sack.seqno"] == [str(number) for number in sacks]
    assert numbers(seen[5], "sack.count", "window", "tsval", "tsecr") == [5, 64, 9, 7]
    assert "SACK=2,64-66,256 win=64" in seen[5]["_ws.col.Info"][0]
    # It says a new window: no duplicate.
    assert "mnp.analysis.duplicate_ack" not in seen[6]
    assert "Receive window closed" in said(seen[6])
    assert "This direction is closed" in said(seen[7])
    assert numbers(seen[8], "reset_reason") == [7]
    assert "Reset: Application gone" in said(seen[8])


@pytest.mark.parametrize("reason", [*w.REASONS, 99])
def test_refusal_is_worded_as_the_syn_offered(tmp_path: Path, reason: int) -> None:
    rows: list[Row] = [
        (A, Mnp(w.SYN, 5, 0, body=w.offer())),
        (B, Mnp(w.RST, 0, 6, body=w.word_body(reason))),
    ]
    seen = dissect(tmp_path / "refused.pcap", rows)
    name = w.REASONS.get(reason, f"reason {reason}")
    assert [text.lower() for text in said(seen[1])] == [f"reset: {name}"]


def test_offer_that_is_not_accepted_leaves_plain_mode(tmp_path: Path) -> None:
    rows: list[Row] = [
        *shake(100, 0, w.offer()),
        (A, Mnp(w.DATA, 101, w.NO_ACK, w.SINGLE, w.word_body(3), 9, 0, b"abc")),
    ]
    seen = dissect(tmp_path / "fallback.pcap", rows)
    assert [one(layers, "mode") for layers in seen[1:]] == ["plain"] * 3
    assert "mnp.message_length" not in seen[3]
    assert numbers(seen[3], "message.bytes") == [3]


def test_ports_that_are_used_again_are_another_flow(tmp_path: Path) -> None:
    again = shake(0, 0, w.offer(), w.offer())
    rows = [*shake(0, 0), (A, w.cut(b"one", 1)[0]), *again]
    seen = dissect(tmp_path / "again.pcap", rows)
    assert [one(layers, "stream") for layers in seen] == ["0"] * 4 + ["1"] * 3
    assert one(seen[6], "mode") == "extended"


def test_repeated_handshake_is_the_same_flow(tmp_path: Path) -> None:
    rows = [shake(4, 9)[0], *shake(4, 9)[:2], *shake(4, 9)[1:]]
    seen = dissect(tmp_path / "repeated.pcap", rows)
    assert {one(layers, "stream") for layers in seen} == {"0"}
    assert ["Retransmission" in said(layers) for layers in seen] == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_flow_without_handshake(tmp_path: Path) -> None:
    data = Mnp(w.DATA, 50, 9, w.SINGLE, w.word_body(3), 20, w.stamps(1, 2), b"abc")
    path = tmp_path / "middle.pcap"
    seen = dissect(path, [(A, data)])
    assert one(seen[0], "mode") == "plain"
    assert numbers(seen[0], "message.bytes") == [3]
    seen = dissect(path, [(A, data)], "-o", "mnp.unseen:extended")
    assert one(seen[0], "mode") == "extended"
    assert numbers(seen[0], "message_length", "window") == [3, 20]


SUSPICIOUS = {
    "type": (Mnp(0x42, 5), "Unknown packet type"),
    "empty": (Mnp(w.DATA, 1, w.NO_ACK, w.SINGLE), "DATA without payload"),
    "oversize": (
        Mnp(w.DATA, 1, w.NO_ACK, w.SINGLE, payload=bytes(1419)),
        "Payload of more than a plain peer takes (1418 bytes)",
    ),
    "trailing": (Mnp(w.ACK, 1, 1, payload=b"x"), "Payload behind a packet that carries none"),
    "framing": (
        Mnp(w.DATA, 1, w.NO_ACK, w.MORE | w.LAST, payload=b"x"),
        "Message flags that contradict each other or those before",
    ),
    "short": (
        Mnp(w.DATA, 1, w.NO_ACK, w.FIRST | w.MORE, payload=bytes(1417)),
        "A packet of a message is longer or shorter than it may",
    ),
    "beyond": (Mnp(w.DATA, 65, w.NO_ACK, w.SINGLE, payload=b"x"), "Beyond the receive window"),
}


@pytest.mark.parametrize("name", SUSPICIOUS)
def test_suspicious_packet_is_named(tmp_path: Path, name: str) -> None:
    packet, text = SUSPICIOUS[name]
    seen = dissect(tmp_path / "bad.pcap", [*shake(0, 0), (A, packet)], "-d", "udp.port==888,mnp")
    assert text in said(seen[3])


def test_wrong_length_and_impossible_offers_are_named(tmp_path: Path) -> None:
    lie = Mnp(w.DATA, 1, 1, w.SINGLE, w.word_body(9), 20, 0, b"abc")
    seen = dissect(tmp_path / "lie.pcap", [*shake(0, 0, w.offer(), w.offer()), (A, lie)])
    assert "The message's length is not what its first packet says" in said(seen[3])
    strange = w.offer(version=9, mss=100)
    seen = dissect(tmp_path / "offer.pcap", [(A, Mnp(w.SYN, 0, 0, body=strange))])
    assert "Version 9: known is 1" in said(seen[0])
    assert "MSS of 100 bytes: it is 512 to 8900" in said(seen[0])


def test_every_truncation_is_survived(tmp_path: Path) -> None:
    whole = bytes(Mnp(w.DATA, 1, 1, w.SINGLE, GARBAGE, 7, 7, b"abc"))
    offered = shake(0, 0, w.offer(), w.offer())
    rows: list[Row] = [*offered, *((A, whole[:size]) for size in range(len(whole)))]
    seen = dissect(tmp_path / "short.pcap", rows)
    for size, layers in enumerate(seen[3:]):
        if 2 <= size < 54:
            assert f"A header of {size} bytes, 54 are needed" in said(layers)
        else:
            assert ("mnp.seqno" in layers) == (size >= 54)
    # What does not begin a known flow is nobody's, if it is too short.
    assert "mnp.magic" not in dissect(tmp_path / "alone.pcap", [(A, whole[:53])])[0]


@pytest.mark.parametrize("snap", [42 + size for size in (1, 2, 3, 11, 23, 53, 54, 55, 60)])
def test_packets_that_were_cut_off_by_the_capture(tmp_path: Path, snap: int) -> None:
    rows: list[Row] = [*shake(0, 0, w.offer(), w.offer()), (A, w.cut(bytes(100), 1)[0])]
    decode = ("-d", "udp.port==888,mnp")
    seen = dissect(tmp_path / "snap.pcap", rows, *decode, snap=snap)
    if 44 <= snap < 96:
        assert f"Only {snap - 42} bytes of the header were captured" in said(seen[3])
    elif snap >= 96:
        assert numbers(seen[3], "len") == [100]


def test_other_udp_is_left_alone(tmp_path: Path) -> None:
    wrong = Mnp(w.SYN, 1, 2, magic=0x4E54)
    kind = Mnp(0x42)
    seen = dissect(tmp_path / "other.pcap", [(A, wrong), (A, bytes(60)), (A, b""), (A, kind)])
    assert all("mnp.magic" not in layers for layers in seen)


def test_filters_select_packets(tmp_path: Path) -> None:
    path = tmp_path / "filter.pcap"
    dissect(path, [*shake(0, 0), (A, w.cut(b"abc", 1)[0])])
    only = tshark("-r", str(path), "-Y", "mnp.seqno == 1 && mnp.net_flags == 0", "-T", "fields",
                  "-e", "frame.number")  # fmt: skip
    assert only.split() == ["4"]


def test_command_prints_the_path_and_the_use() -> None:
    result = CliRunner().invoke(cli.main, ["dissector", "--path"])
    assert result.exit_code == 0
    assert result.output == f"{dissector_path()}\n"
    assert dissector_path().is_file()
    result = CliRunner().invoke(cli.main, ["dissector"])
    assert str(dissector_path()) in result.output
    assert "tshark -X lua_script:" in result.output
