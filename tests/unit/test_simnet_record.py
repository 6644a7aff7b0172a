# SPDX-License-Identifier: MIT
"""The record of the last frames, captures, and that runs repeat."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from scapy.utils import RawPcapNgReader
from simnet_kit import MS, Net, S

from machnet._native import ffi, lib

HELLO = b"\xff" * 6 + b"\x02" * 6 + b"\x88\xb5" + bytes(46)


def packets(path: Path) -> list[tuple[int, int, int, str, bytes]]:
    """Interface, time, direction, comment and bytes of each packet of a pcapng file."""
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        if kind == 6:
            iface, high, low, kept, _ = struct.unpack_from("<5I", data, at + 8)
            option = at + 28 + (kept + 3) // 4 * 4
            direction, comment = 0, ""
            while (code := struct.unpack_from("<H", data, option)[0]) != 0:
                (size,) = struct.unpack_from("<H", data, option + 2)
                value = data[option + 4 : option + 4 + size]
                if code == 2:
                    direction = value[0] & 3
                elif code == 1:
                    comment = value.decode()
                option += 4 + (size + 3) // 4 * 4
            frame = data[at + 28 : at + 28 + kept]
            found.append((iface, high << 32 | low, direction, comment, frame))
        at += length
    return found


def test_each_frame_is_recorded_as_it_left_and_as_it_came() -> None:
    with Net(record_pkts=16) as net:
        a, b = net.raw(), net.raw()
        link = net.link(a, b, latency_ns=MS)
        net.send(a, HELLO)
        net.advance(2 * MS)
        net.send(b, HELLO + b"more")
        net.advance(2 * MS)
        seen = [
            (e.seq, e.t_ns, e.at_ns, e.node, e.link, e.dir, e.out, e.faults, e.len, data)
            for e, data in net.records()
        ]
        assert seen == [
            (0, 0, MS, a, link, 0, 1, 0, 60, HELLO),
            (1, MS, 0, b, link, 0, 0, 0, 60, HELLO),
            (2, 2 * MS, 3 * MS, b, link, 1, 1, 0, 64, HELLO + b"more"),
            (3, 3 * MS, 0, a, link, 1, 0, 0, 64, HELLO + b"more"),
        ]


@pytest.mark.parametrize(
    ("shape", "fate"),
    [
        ({"loss_ppb": 10**9}, "lost"),
        ({"ge_loss_good_ppb": 10**9}, "burst loss"),
        ({"blocked": 1}, "partition"),
        ({"blocked": 2}, "clogged"),
        ({"mtu": 68}, "longer than the MTU"),
        ({"reorder_ppb": 10**9, "reorder_ns": 2_500_000}, "reordered, delayed 2.500 ms"),
        ({"duplicate_ppb": 10**9}, "duplicated"),
        ({"corrupt_ppb": 10**9}, "corrupted bit "),
        ({}, ""),
    ],
)
def test_fates(shape: dict[str, int], fate: str) -> None:
    with Net(record_pkts=4) as net:
        a, b = net.raw(), net.raw()
        net.link(a, b, **shape)
        net.send(a, HELLO + bytes(40))
        net.advance(5 * MS)
        entry, _ = net.records()[0]
        assert net.fate(entry).startswith(fate)
        assert net.fate(entry) == fate or entry.faults == 1 << lib.MN_FAULT_CORRUPT
        lost = fate in {"lost", "burst loss", "partition", "longer than the MTU"}
        assert lib.mn_simnet_lost(entry) is lost
        assert len(net.take(b)) == (0 if lost or fate == "clogged" else 1 + (fate == "duplicated"))


def test_the_queue_of_a_link_is_full() -> None:
    with Net(record_pkts=8) as net:
        a, b = net.raw(), net.raw()
        net.link(a, b, bandwidth_bps=1_000_000, queue_pkts=1)
        for _ in range(3):
            net.send(a, HELLO)
        assert [net.fate(entry) for entry, _ in net.records()] == ["", "", "queue full"]


def test_a_short_buffer_gets_a_short_text() -> None:
    entry = ffi.new("struct mn_sim_record *", {"faults": 0xFFE, "rule": 99, "delay_ns": 5})
    for size in range(1, 200):
        buf = ffi.new("char[]", size)
        assert lib.mn_simnet_fate(entry, buf, size) == len(ffi.string(buf)) < size
    assert lib.mn_simnet_fate(entry, ffi.NULL, 0) == 0


def test_the_last_ones_are_kept_whatever_their_sizes() -> None:
    sizes = [60, 1500, 128, 129, 1514, 14, 1536, 700, 2000] * 30
    with Net(record_pkts=50, frame_max=2048) as net:
        a, b = net.raw(mtu=2000), net.raw(mtu=2000)
        net.link(a, b)
        for i, size in enumerate(sizes):
            net.send(a, (HELLO[:14] + i.to_bytes(2, "big") * size)[:size])
            net.advance(1)
        assert lib.mn_simnet_recorded(net.c) == 2 * len(sizes)
        assert lib.mn_simnet_oldest(net.c) == 2 * len(sizes) - 50
        records = net.records()
        assert [data for _, data in records] == [
            (HELLO[:14] + i.to_bytes(2, "big") * size)[:size]
            for i, size in list(enumerate(sizes))[-25:]
            for _ in range(2)
        ]
        entry = ffi.new("struct mn_sim_record *")
        for seq in (0, 2 * len(sizes), 2**64 - 1):
            rc = lib.mn_simnet_record(net.c, seq, entry, ffi.NULL, 0)
            assert rc == -errno.ENOENT


def test_a_record_may_keep_the_beginnings_only() -> None:
    with Net(record_pkts=4, record_snap=200) as net:
        a, b = net.raw(), net.raw()
        net.link(a, b)
        net.send(a, HELLO.ljust(1000, b"x"))
        ((entry, data),) = net.records()
        assert (entry.len, entry.kept) == (1000, 200)
        assert data == HELLO.ljust(200, b"x")


def test_without_a_record_there_is_none() -> None:
    with Net() as net:
        a, b = net.pair()
        b.listen(7)
        a.connect(b, 7)
        assert lib.mn_simnet_recorded(net.c) == lib.mn_simnet_oldest(net.c) == 0
        assert net.records() == []


def test_a_capture_has_everything_with_fates(tmp_path: Path) -> None:
    with Net(record_pkts=1000) as net:
        a, b = net.raw(), net.raw()
        net.link(a, b, latency_ns=MS)
        net.capture(tmp_path / "all.pcapng")
        assert lib.mn_simnet_capture(net.c, 0) == -errno.EBUSY
        net.send(a, HELLO)
        net.advance(2 * MS)
        net.shape(0, 2, blocked=1)
        net.send(b, HELLO)
        late = net.raw()  # its interface is in the file all the same
        net.link(late, b)
        net.send(late, HELLO)
        net.dump(tmp_path / "record.pcapng")
        assert lib.mn_simnet_capture_end(net.c) == 0
        assert lib.mn_simnet_capture_end(net.c) == 0
        net.send(late, HELLO)
    found = packets(tmp_path / "all.pcapng")
    assert found == [
        (a, 0, 2, "", HELLO),
        (b, MS, 1, "", HELLO),
        (b, 2 * MS, 2, "partition", HELLO),
        (late, 2 * MS, 2, "", HELLO),
    ]
    assert packets(tmp_path / "record.pcapng") == found


def test_captures_that_cannot_be(tmp_path: Path) -> None:
    with Net(record_pkts=8) as net:
        net.raw()
        assert lib.mn_simnet_capture(net.c, -1) == -errno.EINVAL
        assert lib.mn_simnet_dump(net.c, -1) == -errno.EINVAL
        fd = os.open("/dev/full", os.O_WRONLY)
        assert lib.mn_simnet_dump(net.c, fd) == -errno.ENOSPC
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
        fd = os.open("/dev/full", os.O_WRONLY)
        assert lib.mn_simnet_capture(net.c, fd) == 0
        assert lib.mn_simnet_capture_end(net.c) == -errno.ENOSPC


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from simnet_kit import MS, Net, S
from machnet._native import lib

with Net(seed=int(sys.argv[3]), record_pkts=64) as net:
    net.capture(Path(sys.argv[2]))
    switch = net.switch()
    hosts = [net.host() for _ in range(4)]
    for host in hosts:
        net.link(host, switch, latency_ns=50_000, bandwidth_bps=10**8, queue_pkts=30,
                 loss_ppb=2 * 10**7, duplicate_ppb=10**7, corrupt_ppb=10**7, reorder_ppb=10**7,
                 reorder_ns=10**6, jitter_ns=20_000, latency_kind=2, keep_order=1,
                 ge_bad_ppb=10**6, ge_good_ppb=5 * 10**8, ge_loss_bad_ppb=10**9)
    lib.mn_simnet_skew(net.c, hosts[1].node, 200_000, 5 * MS)
    for host in hosts:
        host.listen(7)
    flows = [(a, a.connect(b, 7)) for a in hosts for b in hosts if a is not b]
    for i in range(5):
        for host, flow in flows:
            host.send(flow, bytes([i]) * 3000)
    net.advance(S)
    lib.mn_simnet_pause(net.c, hosts[2].node, True)
    net.at(2 * S, lambda _: lib.mn_simnet_pause(net.c, hosts[2].node, False))
    net.advance(60 * S)
    assert lib.mn_simnet_capture_end(net.c) == 0
"""


def test_fresh_interpreters_write_the_same_bytes(tmp_path: Path) -> None:
    def run(name: str, seed: int, hash_seed: int) -> bytes:
        path = tmp_path / name
        subprocess.run(
            [
                sys.executable,
                "-c",
                SCRIPT,
                str(Path(__file__).parents[1] / "support"),
                str(path),
                str(seed),
            ],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        )
        return path.read_bytes()

    first = run("first", 1, 1)
    assert len(packets(tmp_path / "first")) > 1000
    assert run("second", 1, 2) == first
    assert run("other", 3, 1) != first
    assert str(tmp_path).encode() not in first


def test_scapy_reads_a_dump(tmp_path: Path) -> None:
    with Net(record_pkts=100) as net:
        a, b = net.pair()
        b.listen(7)
        flow = a.connect(b, 7)
        a.send(flow, b"x" * 3000)
        net.advance(S)
        net.dump(tmp_path / "x.pcapng")
        frames = [data for _, data in net.records()]
    with RawPcapNgReader(str(tmp_path / "x.pcapng")) as reader:
        assert [data for data, _ in reader] == frames
