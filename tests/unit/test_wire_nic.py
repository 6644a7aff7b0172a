# SPDX-License-Identifier: MIT
"""The NIC in memory: pairs, hand-fed wires, the packet pool below them."""

from __future__ import annotations

import errno
import faulthandler
import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rawnic import CSUM_NONE, CSUM_PARTIAL, CSUM_VALID, Meta, RawWire

from machnet._native import lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TCP = Meta(CSUM_PARTIAL, 34, 16)
OFFLOADS = {"tx_csum_tcp": True, "tx_csum_udp": True, "tx_gso": True, "rx_csum_trusted": True}


def frame(number: int, length: int = 60) -> bytes:
    return number.to_bytes(4, "big") + bytes(length - 4)


@pytest.fixture
def pair() -> Iterator[tuple[RawWire, RawWire]]:
    a, b = RawWire.pair(queue_frames=8)
    yield a, b
    assert a.stats.pool_live == 0
    a.close()
    b.close()


@pytest.fixture
def single() -> Iterator[RawWire]:
    wire = RawWire.single(queue_frames=8)
    yield wire
    wire.close()


def dies(action: Callable[[], object]) -> bool:
    """Whether the action ends a forked process by abort."""
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            action()
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGABRT


class TestPair:
    def test_frames_arrive_at_the_other_end_in_order(self, pair: tuple[RawWire, RawWire]) -> None:
        a, b = pair
        for i in range(5):
            a.send(frame(i))
        b.send(frame(99))
        assert [b.recv() for _ in range(6)] == [*(frame(i) for i in range(5)), None]
        assert [a.recv(), a.recv()] == [frame(99), None]
        assert (a.stats.tx_frames, a.stats.tx_bytes) == (5, 300)
        assert (b.stats.rx_frames, b.stats.rx_bytes, b.stats.rx_drops) == (5, 300, 0)

    def test_it_is_the_same_packet_that_arrives(self, pair: tuple[RawWire, RawWire]) -> None:
        a, b = pair
        a.send(frame(1))
        for _ in range(1000):
            assert lib.mn_nic_forward(b.nic, b.nic, 64) == 1
            assert lib.mn_nic_forward(a.nic, a.nic, 64) == 1
        assert b.recv() == frame(1)
        assert a.stats.pool_high == 1

    def test_a_full_queue_loses_frames_and_counts_them(self, pair: tuple[RawWire, RawWire]) -> None:
        a, b = pair
        for i in range(11):
            a.send(frame(i))
        assert lib.mn_wire_rx_pending(b.wire) == lib.mn_wire_tx_pending(a.wire) == 8
        assert (a.stats.tx_frames, a.stats.tx_drops, b.stats.rx_drops) == (11, 3, 3)
        assert [b.recv() for _ in range(9)] == [*(frame(i) for i in range(8)), None]

    def test_back_pressure_keeps_what_does_not_fit_with_the_sender(self) -> None:
        a, b = RawWire.pair(queue_frames=2, tx_backpressure=True)
        a.send(frame(1))
        a.send(frame(2))
        with pytest.raises(OSError) as caught:
            a.send(frame(3))
        assert caught.value.errno == errno.EAGAIN
        assert b.recv() == frame(1)
        a.send(frame(4))
        assert [b.recv(), b.recv(), b.recv()] == [frame(2), frame(4), None]
        assert (a.stats.tx_frames, a.stats.tx_bytes, a.stats.tx_drops) == (3, 180, 0)
        assert (a.stats.tx_full, b.stats.rx_drops, a.stats.pool_live) == (1, 0, 0)
        b.close()
        a.send(frame(5))
        assert a.stats.tx_drops == 1
        a.close()

    def test_ends_have_macs_of_their_own(self, pair: tuple[RawWire, RawWire]) -> None:
        assert [w.mac for w in pair] == ["02:4d:4e:00:00:01", "02:4d:4e:00:00:02"]

    def test_given_macs(self) -> None:
        a, b = RawWire.pair(mac=[bytes.fromhex("02aabbccddee"), bytes(6)])
        assert [a.mac, b.mac] == ["02:aa:bb:cc:dd:ee", "02:4d:4e:00:00:02"]
        a.close()
        b.close()

    def test_plain_capabilities(self, pair: tuple[RawWire, RawWire]) -> None:
        info = pair[0].info
        assert (info.mtu, info.queues) == (1500, 1)
        assert (info.rx_max_frame, info.tx_max_frame) == (1514, 1514)
        assert [info.tx_csum_tcp, info.tx_csum_udp, info.tx_gso, info.rx_csum_trusted] == [0] * 4
        assert (info.link_up, info.rx_fd) == (1, -1)

    @pytest.mark.parametrize("first", [0, 1])
    def test_closing_one_end_takes_the_link_of_the_other_down(self, first: int) -> None:
        ends = RawWire.pair()
        gone, stays = ends[first], ends[1 - first]
        gone.send(frame(1))
        stays.send(frame(2))
        gone.close()
        assert stays.info.link_up == 0
        stays.send(frame(3))
        assert stays.stats.tx_drops == 1
        assert stays.recv() == frame(1)
        assert stays.stats.pool_live == 0
        stays.close()

    def test_an_exhausted_pool_gives_no_packet(self) -> None:
        a, b = RawWire.pair(pool_pkts=2)
        a.send(frame(1))
        a.send(frame(2))
        with pytest.raises(OSError) as caught:
            b.send(frame(3))
        assert caught.value.errno == errno.ENOBUFS
        assert b.recv() == frame(1)
        b.send(frame(3))
        a.close()
        b.close()

    def test_alloc_of_more_than_a_frame_gives_no_packet(
        self, pair: tuple[RawWire, RawWire]
    ) -> None:
        assert lib.mn_nic_probe_alloc(pair[0].nic, 0, 1514) >= 1514
        assert lib.mn_nic_probe_alloc(pair[0].nic, 0, 1515) == -errno.ENOBUFS

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=40))
    def test_any_sequence_of_bursts_matches_bounded_queues(
        self, steps: list[tuple[bool, int]]
    ) -> None:
        a, b = RawWire.pair(queue_frames=5)
        queue: list[bytes] = []
        lost = count = 0
        for send, n in steps:
            for _ in range(n):
                if send:
                    count += 1
                    a.send(frame(count))
                    if len(queue) < 5:
                        queue.append(frame(count))
                    else:
                        lost += 1
                else:
                    assert b.recv() == (queue.pop(0) if queue else None)
        assert a.stats.tx_drops == lost
        assert a.stats.pool_live == len(queue)
        a.close()
        b.close()


class TestOffload:
    def test_an_unfinished_segment_arrives_with_its_marks(self) -> None:
        a, b = RawWire.pair(**OFFLOADS)
        assert a.info.tx_max_frame == b.info.rx_max_frame == 65549
        big = bytes(range(256)) * 256
        meta = Meta(CSUM_PARTIAL, 34, 16, 1460)
        a.send(big[:65549], meta)
        a.send(frame(1), TCP)
        assert b.recv_meta() == (big[:65549], meta)
        assert b.recv_meta() == (frame(1), TCP)
        a.close()
        b.close()

    @pytest.mark.parametrize("pieces", [2, 3, 17])
    def test_a_frame_in_pieces_arrives_in_pieces(self, pieces: int) -> None:
        a, b = RawWire.pair()
        whole = os.urandom(1501)
        a.send(whole, Meta(pieces=pieces))
        assert a.stats.pool_live == pieces
        assert b.recv_meta() == (whole, Meta(pieces=pieces))
        assert a.stats.pool_live == 0
        a.close()
        b.close()

    def test_running_out_of_packets_in_the_middle_of_a_frame_leaks_none(self) -> None:
        a, b = RawWire.pair(pool_pkts=2)
        with pytest.raises(OSError) as caught:
            a.send(bytes(1500), Meta(pieces=3))
        assert caught.value.errno == errno.ENOBUFS
        assert a.stats.pool_live == 0
        a.close()
        b.close()

    def test_a_verified_checksum_is_not_passed_on(self) -> None:
        single = RawWire.single()
        single.inject(frame(1), Meta(CSUM_VALID))
        assert lib.mn_nic_forward(single.nic, single.nic, 1) == 1
        got = single.drain_meta()
        assert got is not None
        assert got[2].csum == CSUM_NONE
        single.close()

    @pytest.mark.parametrize(
        ("config", "meta", "length"),
        [
            ({}, TCP, 60),
            ({}, Meta(CSUM_PARTIAL, 34, 16, 1460), 60),
            ({"tx_csum_tcp": True}, Meta(CSUM_PARTIAL, 34, 16, 1460), 60),
            ({**OFFLOADS, "mtu": 1000}, None, 1015),
            ({**OFFLOADS, "tx_max_frame": 3000}, None, 1515),
        ],
    )
    def test_a_frame_in_a_form_it_did_not_offer_is_an_assertion(
        self, config: dict[str, int], meta: Meta | None, length: int
    ) -> None:
        # What is injected is transmitted as it is, past the checks of the kit.
        single = RawWire.single(**config)
        single.inject(frame(1, length), meta)
        assert dies(lambda: lib.mn_nic_forward(single.nic, single.nic, 1))
        single.close()

    def test_the_kit_refuses_what_the_nic_does_not_take(self, single: RawWire) -> None:
        for meta, number in [
            (TCP, errno.EINVAL),
            (Meta(CSUM_PARTIAL, 34, 16, 1460), errno.EINVAL),
            (Meta(CSUM_VALID), errno.EINVAL),
        ]:
            with pytest.raises(OSError) as caught:
                single.send(frame(1), meta)
            assert caught.value.errno == number
        for length in (0, 1515):
            with pytest.raises(OSError) as caught:
                single.send(bytes(length))
            assert caught.value.errno == errno.EMSGSIZE


class TestSingle:
    def test_injected_frames_are_received(self, single: RawWire) -> None:
        single.inject(frame(1))
        single.inject(frame(2, 1514))
        assert [single.recv(), single.recv(), single.recv()] == [frame(1), frame(2, 1514), None]

    def test_transmitted_frames_carry_the_time(self, single: RawWire) -> None:
        single.send(frame(1))
        lib.mn_wire_set_now(single.wire, 5_000_000_000)
        single.send(frame(2))
        single.send(frame(3))
        assert single.drain() == [(0, frame(1)), (5 * 10**9, frame(2)), (5 * 10**9, frame(3))]
        assert single.drain() == []

    def test_a_full_queue_says_so_and_counts(self, single: RawWire) -> None:
        for i in range(8):
            single.inject(frame(i))
        with pytest.raises(OSError) as caught:
            single.inject(frame(8))
        assert caught.value.errno == errno.ENOBUFS
        assert single.stats.rx_drops == 1
        for i in range(9):
            single.send(frame(i))
        assert single.stats.tx_drops == 1
        assert len(single.drain()) == 8

    def test_sizes_that_the_wire_does_not_carry(self, single: RawWire) -> None:
        for length in (0, 1515, 70_000):
            with pytest.raises(OSError) as caught:
                single.inject(bytes(length))
            assert caught.value.errno == errno.EMSGSIZE

    def test_a_short_buffer_leaves_the_frame_in_place(self, single: RawWire) -> None:
        single.send(frame(7))
        with pytest.raises(OSError) as caught:
            single.drain_meta(size=59)
        assert caught.value.errno == errno.EMSGSIZE
        assert single.drain() == [(0, frame(7))]

    def test_a_short_receive_buffer_drops_the_frame(self, single: RawWire) -> None:
        single.inject(frame(7))
        with pytest.raises(OSError) as caught:
            single.recv_meta(size=59)
        assert caught.value.errno == errno.EMSGSIZE
        assert single.recv() is None
        assert single.stats.pool_live == 0

    @given(
        st.integers(0, 3),
        st.integers(0, 1600),
        st.integers(0, 65535) | st.integers(0, 20),
        st.integers(0, 2),
        st.integers(1, 1514),
    )
    def test_injected_marks_stay_inside_the_frame(
        self, csum: int, l4_off: int, csum_off: int, gso: int, length: int
    ) -> None:
        single = RawWire.single()
        meta = Meta(csum, l4_off, csum_off, gso)
        result = lib.mn_wire_inject_meta(single.wire, bytes(length), length, meta.c())
        inside = csum != CSUM_PARTIAL or 14 <= l4_off <= length - csum_off - 2
        segment = gso == 0 or (csum == CSUM_PARTIAL and l4_off + 20 <= length)
        assert result == (0 if csum <= CSUM_VALID and inside and segment else -errno.EINVAL)
        single.close()


class TestConfig:
    @pytest.mark.parametrize(
        "config",
        [
            {"mtu": 67},
            {"mtu": 65536},
            {"queue_frames": (1 << 18) + 1},
            {"pool_pkts": (1 << 20) + 1},
            {"tx_max_frame": 1513},
            {"tx_max_frame": 1515},
            {"tx_max_frame": 65550, "tx_gso": True, "tx_csum_tcp": True, "rx_csum_trusted": True},
            {"tx_gso": True, "rx_csum_trusted": True},
            {"tx_csum_tcp": True},
            {"tx_csum_udp": True},
        ],
    )
    def test_numbers_out_of_range_and_contradictions(self, config: dict[str, int]) -> None:
        with pytest.raises(OSError) as caught:
            RawWire.pair(**config)
        assert caught.value.errno == errno.EINVAL

    @pytest.mark.parametrize("mtu", [68, 1500, 9000, 65535])
    def test_any_mtu_carries_a_full_frame(self, mtu: int) -> None:
        a, b = RawWire.pair(mtu=mtu)
        full = os.urandom(mtu + 14)
        a.send(full)
        assert b.recv() == full
        a.close()
        b.close()

    def test_memory_that_is_not_used_is_not_touched(self) -> None:
        def resident() -> int:
            pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
            return int(pages) * resource.getpagesize()

        if lib.mn_build_sanitized():
            pytest.skip("ASan's shadow memory is touched for whatever is mapped")
        before = resident()
        pairs = [RawWire.pair(pool_pkts=1 << 15, mtu=9000) for _ in range(16)]
        for a, b in pairs:
            a.send(frame(1))
            assert b.recv() == frame(1)
        # 16 pools of 300 MB; what is used is two pages and the queues of each.
        assert resident() - before < 16 << 20
        for a, b in pairs:
            a.close()
            b.close()
