# SPDX-License-Identifier: MIT
"""Capture: what tshark and scapy read in the files, and what happens when they can't be written."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import resource
import shutil
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rawnic import CSUM_PARTIAL, Meta, RawWire, check

from machnet._native import ffi, lib
from machnet.testing.nic import NicHandle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IN, OUT = 1, 2
BUF_BYTES_MIN = 128 << 10
T0 = 1_700_000_000_123_456_789


class Writer:
    """One `struct mn_pcapng *` over a descriptor that it owns."""

    def __init__(self, fd: int, app: str | None = "machnet tests") -> None:
        out = ffi.new("struct mn_pcapng **")
        self._app = ffi.NULL if app is None else ffi.new("char[]", app.encode())
        config = {"fd": fd, "buf_bytes": BUF_BYTES_MIN, "app": self._app}
        check(lib.mn_pcapng_open(ffi.new("struct mn_pcapng_config *", config), out))
        self.c: Any = out[0]

    def iface(self, name: str, snaplen: int = 0, mac: bytes = bytes(6)) -> int:
        text = ffi.new("char[]", name.encode())
        config = {"name": text, "snaplen": snaplen, "mac": mac}
        return check(lib.mn_pcapng_add_iface(self.c, ffi.new("struct mn_pcapng_iface *", config)))

    def write(
        self, iface: int, t_ns: int, direction: int, data: bytes, comment: bytes | None = None
    ) -> int:
        text = ffi.NULL if comment is None else ffi.new("char[]", comment)
        pkt = {
            "iface": iface,
            "dir": direction,
            "t_ns": t_ns,
            "cap_len": len(data),
            "orig_len": len(data),
            "comment": text,
            "comment_len": len(comment or b""),
        }
        result: int = lib.mn_pcapng_write(self.c, ffi.new("struct mn_pcapng_pkt *", pkt), data)
        return result

    def capture(self, inner: Any, name: str, snaplen: int = 0, epoch_ns: int = 0) -> NicHandle:
        out = ffi.new("struct mn_nic **")
        text = ffi.new("char[]", name.encode())
        config = {"writer": self.c, "if_name": text, "snaplen": snaplen, "epoch_ns": epoch_ns}
        check(lib.mn_capture_open(inner, ffi.new("struct mn_capture_config *", config), out))
        return NicHandle(out[0])

    @property
    def stats(self) -> Any:
        stats = ffi.new("struct mn_pcapng_stats *")
        lib.mn_pcapng_get_stats(self.c, stats)
        return stats

    def flush(self) -> int:
        return int(lib.mn_pcapng_flush(self.c))

    def close(self) -> int:
        result: int = lib.mn_pcapng_close(self.c)
        self.c = ffi.NULL
        return result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.pcapng"


def create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    writer = Writer(create(path))
    yield writer
    if writer.c != ffi.NULL:
        writer.close()


def blocks(data: bytes) -> list[tuple[int, bytes]]:
    """Type and body of every block; fails on a torn file."""
    found = []
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from("=II", data, at)
        assert length % 4 == 0
        assert length >= 12
        assert at + length <= len(data), "torn"
        assert struct.unpack_from("=I", data, at + length - 4) == (length,)
        found.append((kind, data[at + 8 : at + length - 4]))
        at += length
    return found


def packets(path: Path) -> list[tuple[int, int, bytes]]:
    """Interface, time and bytes of every packet."""
    found = []
    for kind, body in blocks(path.read_bytes()):
        if kind == 6:
            iface, high, low, cap, _ = struct.unpack_from("=IIIII", body)
            found.append((iface, high << 32 | low, body[20 : 20 + cap]))
    return found


def tshark(path: Path, *fields: str) -> list[list[str]]:
    """The fields of each packet, as tshark reads them."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    options = [word for field in fields for word in ("-e", field)]
    run = subprocess.run(
        ["tshark", "-r", path, "-T", "json", "-o", "tcp.check_checksum:TRUE",
         "-o", "udp.check_checksum:TRUE", *options],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    layers = [packet["_source"]["layers"] for packet in json.loads(run.stdout)]
    return [[layer.get(field, [""])[0] for field in fields] for layer in layers]


def udp_frame(payload: bytes, seed_only: bool = False) -> tuple[bytes, Meta]:
    return l4_frame(17, 8, 6, payload, seed_only)


def l4_frame(
    proto: int, header: int, csum_off: int, payload: bytes, seed_only: bool
) -> tuple[bytes, Meta]:
    """An Ethernet frame whose checksum field holds the pseudo header's sum, or the right checksum."""
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.l2 import Ether

    layer = UDP(sport=7, dport=9) if proto == 17 else TCP(sport=7, dport=9, flags="PA", seq=1)
    ip = IP(src="10.0.0.1", dst="10.0.0.2", id=1)
    whole = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / ip / layer / payload)
    if seed_only:
        length = header + len(payload)
        words = [0x0A00, 0x0001, 0x0A00, 0x0002, proto, length]
        seed = sum(words)
        while seed >> 16:
            seed = (seed & 0xFFFF) + (seed >> 16)
        at = 34 + csum_off
        whole = whole[:at] + seed.to_bytes(2, "big") + whole[at + 2 :]
    return whole, Meta(CSUM_PARTIAL, 34, csum_off)


class TestFile:
    def test_tshark_reads_time_direction_interface_and_comment(
        self, writer: Writer, path: Path
    ) -> None:
        a, b = writer.iface("wire-a"), writer.iface("wire-b", mac=bytes.fromhex("024d4e000002"))
        frame, _ = udp_frame(b"hello")
        assert writer.write(a, T0, OUT, frame) == 0
        assert writer.write(b, T0 + 1, IN, frame, "dropped: früh".encode()) == 0
        assert writer.close() == 0
        got = tshark(path, "frame.time_epoch", "frame.interface_name", "frame.packet_flags_direction",
                     "frame.comment", "frame.len", "udp.checksum.status")  # fmt: skip
        assert got == [
            ["1700000000.123456789", "wire-a", "0x00000002", "", str(len(frame)), "1"],
            ["1700000000.123456790", "wire-b", "0x00000001", "dropped: früh", str(len(frame)), "1"],
        ]

    def test_scapy_reads_it(self, writer: Writer, path: Path) -> None:
        from scapy.utils import PcapNgReader

        a, b = writer.iface("wire-a"), writer.iface("wire-b")
        frame, _ = udp_frame(b"hello")
        writer.write(b, T0, IN, frame, b"why")
        writer.write(a, 5, OUT, frame)
        assert writer.close() == 0
        with PcapNgReader(str(path)) as reader:
            first, second = list(reader)
        assert int(first.time * 10**9) == T0
        assert int(second.time * 10**9) == 5
        assert (first.sniffed_on, second.sniffed_on) == ("wire-b", "wire-a")
        assert (first.direction, second.direction) == (IN, OUT)
        assert first.comment == b"why"
        assert bytes(first) == frame

    def test_blocks_of_an_empty_capture(self, writer: Writer, path: Path) -> None:
        writer.iface("x", snaplen=100)
        assert writer.close() == 0
        (section, head), (kind, iface) = blocks(path.read_bytes())
        assert section == 0x0A0D0D0A
        assert struct.unpack_from("=IHHq", head) == (0x1A2B3C4D, 1, 0, -1)
        assert b"machnet tests" in head
        assert kind == 1
        assert struct.unpack_from("=HHI", iface) == (1, 0, 100)

    def test_the_same_calls_write_the_same_bytes(self, tmp_path: Path) -> None:
        contents = []
        for name in ("1", "2"):
            writer = Writer(create(tmp_path / name))
            writer.write(writer.iface("x"), T0, IN, b"y" * 61, b"z")
            writer.close()
            contents.append((tmp_path / name).read_bytes())
        assert contents[0] == contents[1]

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 2),
                st.integers(0, 2**64 - 1),
                st.binary(max_size=70),
                st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=9),
            ),
            max_size=20,
        )
    )
    def test_any_packets_come_back(
        self, tmp_path_factory: pytest.TempPathFactory, entries: list[Any]
    ) -> None:
        path = tmp_path_factory.mktemp("any") / "f"
        writer = Writer(create(path))
        for i in range(3):
            writer.iface(f"if{i}")
        for iface, t_ns, data, comment in entries:
            said = None if comment is None else comment.encode()
            assert writer.write(iface, t_ns, IN, data, said) == 0
        assert writer.close() == 0
        assert packets(path) == [tuple(entry[:3]) for entry in entries]

    def test_a_long_comment_is_cut_between_characters(self, writer: Writer, path: Path) -> None:
        writer.write(writer.iface("x"), 0, IN, bytes(60), ("x" + "ü" * 3000).encode())
        assert writer.close() == 0
        ((comment,),) = tshark(path, "frame.comment")
        assert comment == "x" + "ü" * 2047

    def test_a_large_frame_and_one_over_the_limit(self, writer: Writer, path: Path) -> None:
        iface = writer.iface("x")
        assert writer.write(iface, 0, IN, bytes(lib.MN_PCAPNG_FRAME_MAX)) == 0
        assert writer.write(iface, 0, IN, bytes(lib.MN_PCAPNG_FRAME_MAX + 1)) == -errno.ENOSPC
        assert (writer.stats.packets, writer.stats.dropped) == (1, 1)
        assert writer.close() == 0
        assert [len(data) for _, _, data in packets(path)] == [lib.MN_PCAPNG_FRAME_MAX]

    def test_a_full_buffer_goes_to_the_file(self, writer: Writer, path: Path) -> None:
        iface = writer.iface("x")
        for i in range(1000):
            assert writer.write(iface, i, IN, i.to_bytes(4, "big") * 250) == 0
        assert path.stat().st_size >= 1000 * 1000 - BUF_BYTES_MIN
        assert writer.flush() == 0
        assert path.stat().st_size == writer.stats.written_bytes
        assert writer.close() == 0
        assert [t for _, t, _ in packets(path)] == list(range(1000))

    @pytest.mark.parametrize("name", ["", "x" * 256])
    def test_an_interface_needs_a_name_of_bounded_length(self, writer: Writer, name: str) -> None:
        with pytest.raises(OSError) as caught:
            writer.iface(name)
        assert caught.value.errno == errno.EINVAL

    def test_bad_configurations(self) -> None:
        out = ffi.new("struct mn_pcapng **")
        for config in ({"fd": -1}, {"fd": 1, "buf_bytes": 1}, {"fd": 1, "buf_bytes": 1 << 30}):
            c = ffi.new("struct mn_pcapng_config *", config)
            assert lib.mn_pcapng_open(c, out) == -errno.EINVAL


class TestFullDisk:
    """A file-size limit stands in for a full disk: write() first comes up short, then fails."""

    @pytest.fixture
    def limited(self, path: Path) -> Iterator[Writer]:
        # SIGXFSZ is ignored by Python itself, so that write() fails with EFBIG.
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        writer = Writer(create(path))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_001, before[1]))
        try:
            yield writer
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            if writer.c != ffi.NULL:
                writer.close()

    def test_packets_are_dropped_and_counted_and_the_file_ends_whole(
        self, limited: Writer, path: Path
    ) -> None:
        iface = limited.iface("x")
        results = [limited.write(iface, i, IN, bytes(1000)) for i in range(1000)]
        stats = limited.stats
        assert results.count(-errno.ENOSPC) == stats.dropped > 0
        assert results.count(0) == stats.packets
        assert stats.written_bytes == 200_001
        assert stats.last_errno == errno.EFBIG
        # It does not try again for each packet.
        assert 1 <= stats.write_errors < 10
        assert limited.close() == -errno.EFBIG
        kept = packets(path)
        assert [t for _, t, _ in kept] == list(range(len(kept)))
        assert path.stat().st_size <= 200_001

    def test_it_goes_on_where_it_was_when_there_is_room_again(
        self, limited: Writer, path: Path
    ) -> None:
        iface = limited.iface("x")
        count = 0
        while limited.write(iface, count, IN, bytes(1000)) == 0:
            count += 1
        assert limited.flush() == -errno.EFBIG
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        # The room comes in two steps, the first of which ends in the middle of the same block.
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_101, hard))
        assert limited.flush() == -errno.EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert limited.flush() == 0
        assert limited.write(iface, 10**6, IN, bytes(1000)) == 0
        assert limited.close() == 0
        assert [t for _, t, _ in packets(path)] == [*range(count), 10**6]

    def test_a_reader_that_left_is_an_error_value(self) -> None:
        end, fd = os.pipe()
        os.close(end)
        writer = Writer(fd)
        writer.write(writer.iface("x"), 0, IN, bytes(60))
        assert writer.flush() == -errno.EPIPE
        assert writer.close() == -errno.EPIPE

    def test_a_slow_reader_gets_whole_blocks_all_the_same(self) -> None:
        end, fd = os.pipe()
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(fd, False)
        writer = Writer(fd)
        iface = writer.iface("x")
        for i in range(100):
            assert writer.write(iface, i, IN, bytes(300)) == 0
        data = b""
        while writer.flush() == -errno.EAGAIN:
            data += os.read(end, 1000)
        assert writer.close() == 0
        while more := os.read(end, 65536):
            data += more
        os.close(end)
        assert sum(kind == 6 for kind, _ in blocks(data)) == 100


class TestCapture:
    @pytest.fixture
    def wires(self) -> Iterator[tuple[RawWire, RawWire]]:
        a, b = RawWire.pair(queue_frames=64)
        yield a, b
        a.close()
        b.close()

    def test_both_directions_on_two_nics_in_one_file(
        self, writer: Writer, path: Path, wires: tuple[RawWire, RawWire]
    ) -> None:
        a, b = (writer.capture(w.nic, f"if-{i}", epoch_ns=T0) for i, w in enumerate(wires))
        assert a.mac == wires[0].mac
        assert a.info.mtu == 1500
        lib.mn_capture_set_now(a.nic, 100)
        lib.mn_capture_set_now(b.nic, 250)
        a.send(b"ping" * 15)
        assert b.recv() == b"ping" * 15
        b.send(b"pong" * 15)
        assert a.recv() == b"pong" * 15
        assert a.recv() is None
        assert lib.mn_capture_flush(a.nic) == 0
        fields = ("frame.interface_name", "frame.packet_flags_direction", "frame.time_epoch")
        ns = [f"1700000000.{123456789 + t}" for t in (100, 250)]
        assert tshark(path, *fields) == [
            ["if-0", "0x00000002", ns[0]],
            ["if-1", "0x00000001", ns[1]],
            ["if-1", "0x00000002", ns[1]],
            ["if-0", "0x00000001", ns[0]],
        ]
        lib.mn_capture_close(a.nic)
        lib.mn_capture_close(b.nic)

    def test_it_leaves_the_packets_as_they_are(self, writer: Writer) -> None:
        wire = RawWire.single()
        nic = writer.capture(wire.nic, "x")
        frame, meta = udp_frame(b"odd", seed_only=True)
        wire.inject(frame, meta)
        assert nic.recv_meta() == (frame, meta)
        lib.mn_capture_close(nic.nic)
        wire.close()

    @pytest.mark.parametrize("size", [0, 1, 2, 63, 64, 1000, 1459])
    @pytest.mark.parametrize("proto", [6, 17])
    def test_checksums_are_completed_in_the_file(
        self, writer: Writer, path: Path, proto: int, size: int
    ) -> None:
        wire = RawWire.single()
        nic = writer.capture(wire.nic, "x")
        parts = (proto, 20, 16) if proto == 6 else (proto, 8, 6)
        payload = bytes(i * 7 & 255 for i in range(size))
        unfinished, meta = l4_frame(*parts, payload, seed_only=True)
        finished, _ = l4_frame(*parts, payload, seed_only=False)
        assert unfinished != finished
        wire.inject(unfinished, meta)
        nic.recv()
        assert writer.flush() == 0
        assert [data for _, _, data in packets(path)] == [finished]
        lib.mn_capture_close(nic.nic)
        wire.close()

    @pytest.mark.parametrize("pieces", [2, 3, 8])
    def test_a_checksum_over_pieces_that_start_at_odd_offsets(
        self, writer: Writer, path: Path, pieces: int
    ) -> None:
        wire = RawWire.single(tx_csum_tcp=True)
        nic = writer.capture(wire.nic, "x")
        payload = os.urandom(1443)
        unfinished, meta = l4_frame(6, 20, 16, payload, seed_only=True)
        finished, _ = l4_frame(6, 20, 16, payload, seed_only=False)
        nic.send(unfinished, dataclasses.replace(meta, pieces=pieces))
        assert writer.flush() == 0
        assert [data for _, _, data in packets(path)] == [finished]
        lib.mn_capture_close(nic.nic)
        wire.close()

    def test_a_udp_checksum_of_zero_is_written_as_ones(self, writer: Writer, path: Path) -> None:
        wire = RawWire.single()
        nic = writer.capture(wire.nic, "x")
        # The first two bytes of payload make the sum come out as zero.
        plain, _ = udp_frame(bytes(2))
        frame, meta = udp_frame(plain[40:42], seed_only=True)
        wire.inject(frame, meta)
        nic.recv()
        assert writer.flush() == 0
        assert packets(path)[0][2][40:42] == b"\xff\xff"
        lib.mn_capture_close(nic.nic)
        wire.close()

    def test_a_short_snaplen_keeps_the_right_checksum(self, writer: Writer, path: Path) -> None:
        wire = RawWire.single()
        nic = writer.capture(wire.nic, "x", snaplen=60)
        payload = os.urandom(1000)
        unfinished, meta = l4_frame(6, 20, 16, payload, seed_only=True)
        kept = l4_frame(6, 20, 16, payload, seed_only=False)[0][:60]
        wire.inject(unfinished, meta)
        nic.recv()
        assert writer.flush() == 0
        assert packets(path)[0][2] == kept
        assert tshark(path, "frame.len", "frame.cap_len") == [[str(len(unfinished)), "60"]]
        lib.mn_capture_close(nic.nic)
        wire.close()

    def test_frames_that_the_nic_did_not_take_are_not_in_the_file(
        self, writer: Writer, path: Path
    ) -> None:
        wire = RawWire.single(queue_frames=50, tx_backpressure=True)
        nic = writer.capture(wire.nic, "x")
        for number in range(50):
            wire.inject(number.to_bytes(4, "big") * 15)
        # Two bursts of the capture's: the queue is full in the middle of the second.
        assert lib.mn_nic_forward(wire.nic, nic.nic, 45) == 45
        assert lib.mn_nic_forward(wire.nic, nic.nic, 45) == 5
        for number in range(40):
            wire.inject(number.to_bytes(4, "big") * 15)
        assert lib.mn_nic_forward(wire.nic, nic.nic, 40) == 0
        assert wire.drain_meta() is not None
        nic.send(b"last" * 15)
        assert writer.stats.packets == 51
        assert writer.flush() == 0
        sent = [data[:4] for _, _, data in packets(path)]
        assert sent == [*(i.to_bytes(4, "big") for i in range(50)), b"last"]
        lib.mn_capture_close(nic.nic)
        wire.close()

    def test_bursts_that_meet_a_full_buffer(self, writer: Writer, path: Path) -> None:
        wire = RawWire.single(queue_frames=256)
        nic = writer.capture(wire.nic, "x")
        rounds = 40
        for number in range(rounds):
            for i in range(64):
                wire.inject((number * 64 + i).to_bytes(4, "big") * 300)
            assert lib.mn_nic_forward(wire.nic, nic.nic, 64) == 64
            assert len(wire.drain()) == 64
        assert writer.flush() == 0
        got = [int.from_bytes(data[:4], "big") for _, _, data in packets(path)]
        assert got == list(range(rounds * 64))
        lib.mn_capture_close(nic.nic)
        wire.close()

    def test_traffic_goes_on_when_the_file_cannot_be_written(
        self, wires: tuple[RawWire, RawWire]
    ) -> None:
        writer = Writer(os.open("/dev/full", os.O_WRONLY))
        a = writer.capture(wires[0].nic, "x")
        for i in range(2000):
            a.send(i.to_bytes(4, "big") * 300)
            assert wires[1].recv() == i.to_bytes(4, "big") * 300
        stats = writer.stats
        assert stats.last_errno == errno.ENOSPC
        assert stats.packets + stats.dropped == 2000
        assert 0 < stats.write_errors <= stats.dropped / 200 + 1
        lib.mn_capture_close(a.nic)
        assert writer.close() == -errno.ENOSPC

    def test_captures_of_one_writer_may_not_be_nested(
        self, writer: Writer, wires: tuple[RawWire, RawWire]
    ) -> None:
        a = writer.capture(wires[0].nic, "x")
        with pytest.raises(OSError) as caught:
            writer.capture(a.nic, "y")
        assert caught.value.errno == errno.EINVAL
        lib.mn_capture_close(a.nic)

    def test_a_closed_link_shows_through(
        self, writer: Writer, wires: tuple[RawWire, RawWire]
    ) -> None:
        c, d = RawWire.pair()
        nic = writer.capture(c.nic, "x")
        d.close()
        assert nic.recv() is None
        assert nic.info.link_up == 0
        lib.mn_capture_close(nic.nic)
        c.close()
