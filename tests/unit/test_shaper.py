# SPDX-License-Identifier: MIT
"""The model of one direction of a link: what it draws, and when frames leave and arrive."""

from __future__ import annotations

import dataclasses
import math
import statistics
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machnet._native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PPB = 10**9
KINDS = ("none", "loss", "burst", "reorder", "duplicate", "corrupt", "jitter", "queue", "mtu")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A verdict of the shaper, by value."""

    frame_no: int
    faults: frozenset[str]
    drop: bool
    held: bool
    dup: bool
    at_ns: int
    dup_at_ns: int
    bit: int


def name_of(kind: int) -> str:
    return str(ffi.string(lib.mn_fault_name(kind)).decode())


class Shaper:
    """One `struct mn_shaper`."""

    def __init__(self, seed: int = 1, name: str = "a>b", **shape: int) -> None:
        self.c: Any = ffi.new("struct mn_shaper *")
        self.shape = ffi.new("struct mn_shape *", shape)
        rc = lib.mn_shaper_init(self.c, seed, name.encode(), self.shape)
        assert rc == 0
        self.c = ffi.gc(self.c, lib.mn_shaper_fini)

    def set(self, **shape: int) -> None:
        for key, value in shape.items():
            setattr(self.shape, key, value)
        lib.mn_shaper_set(self.c, self.shape)

    def offer(self, now: int, size: int = 1514) -> Verdict:
        return self.seen(self.offer_raw(now, size))

    def offer_raw(self, now: int, size: int = 1514) -> Any:
        out = ffi.new("struct mn_verdict *")
        lib.mn_shaper_offer(self.c, now, size, out)
        return out

    def release(self, now: int, verdict: Any) -> Verdict:
        lib.mn_shaper_release(self.c, now, verdict)
        return self.seen(verdict)

    @staticmethod
    def seen(v: Any) -> Verdict:
        faults = frozenset(name_of(k) for k in range(lib.MN_FAULT_COUNT) if v.faults >> k & 1)
        return Verdict(v.frame_no, faults, v.drop, v.held, v.dup, v.at_ns, v.dup_at_ns, v.bit)

    def run(self, n: int, gap: int = 10_000_000, size: int = 1514) -> list[Verdict]:
        return [self.offer(i * gap, size) for i in range(n)]

    def count(self, kind: str) -> int:
        numbers = {name_of(k): int(self.c.count[k]) for k in range(lib.MN_FAULT_COUNT)}
        return numbers[kind]


def numbers(verdicts: Iterable[Verdict], kind: str) -> list[int]:
    return [v.frame_no for v in verdicts if kind in v.faults]


# ---- times ---------------------------------------------------------------------------------------


def test_plain_shape_passes_frames_at_once() -> None:
    s = Shaper()
    assert [v.at_ns for v in s.run(5, gap=7)] == [0, 7, 14, 21, 28]
    assert s.count("none") == 5
    assert not any(v.faults for v in s.run(5))


def test_latency_is_added_after_the_transmitter() -> None:
    s = Shaper(latency_ns=1000, bandwidth_bps=10**9)
    # 125 bytes take 1 us at 1 Gbit/s.
    assert [s.offer(0, 125).at_ns for _ in range(3)] == [2000, 3000, 4000]
    assert s.offer(10_000, 125).at_ns == 12_000


@given(
    bps=st.integers(1000, 10**12),
    frames=st.lists(st.tuples(st.integers(0, 10**7), st.integers(14, 9014)), max_size=60),
)
def test_serialisation_is_exact_to_the_fraction(bps: int, frames: list[tuple[int, int]]) -> None:
    s = Shaper(bandwidth_bps=bps)
    now, free = 0, Fraction(0)
    for gap, size in frames:
        now += gap
        free = max(free, Fraction(now)) + Fraction(8 * size * 10**9, bps)
        assert s.offer(now, size).at_ns == math.ceil(free)


def test_serialisation_does_not_drift_over_a_long_train() -> None:
    s = Shaper(bandwidth_bps=3 * 10**9)
    ends = [s.offer(0, 1514).at_ns for _ in range(30_000)]
    assert ends[-1] == math.ceil(Fraction(30_000 * 1514 * 8, 3))


def test_bandwidth_change_keeps_what_is_on_its_way() -> None:
    s = Shaper(bandwidth_bps=8 * 10**6)  # a byte a microsecond
    assert [s.offer(0, 100).at_ns for _ in range(3)] == [100_000, 200_000, 300_000]
    s.set(bandwidth_bps=8 * 10**9)
    assert s.offer(0, 100).at_ns == 300_100
    s.set(bandwidth_bps=0)
    assert s.offer(0, 100).at_ns == 300_100
    assert s.offer(400_000, 100).at_ns == 400_000


# ---- the queue -----------------------------------------------------------------------------------


def test_queue_bound_in_packets_leaves_out_the_frame_on_the_transmitter() -> None:
    s = Shaper(bandwidth_bps=8 * 10**6, queue_pkts=2)
    verdicts = [s.offer(0, 100) for _ in range(5)]
    assert [v.drop for v in verdicts] == [False, False, False, True, True]
    assert verdicts[3].faults == {"queue"}
    assert s.count("queue") == 2
    assert lib.mn_shaper_queued(s.c, 0) == 2
    # At 100 us the second goes to the transmitter, and one place is free.
    assert lib.mn_shaper_queued(s.c, 100_000) == 1
    assert s.offer(99_999, 100).drop
    assert s.offer(100_000, 100).at_ns == 400_000
    assert s.offer(100_000, 100).drop


def test_queue_bound_in_bytes() -> None:
    s = Shaper(bandwidth_bps=8 * 10**6, queue_bytes=250)
    assert [s.offer(0, n).drop for n in (100, 200, 51, 50, 14)] == [False, False, True, False, True]
    # An idle transmitter takes a frame that the queue has no room for.
    assert s.offer(10**9, 300).drop is False


def test_queue_without_bound_ends_at_its_limit() -> None:
    s = Shaper(bandwidth_bps=1000)
    verdicts = [s.offer(0, 64) for _ in range(lib.MN_SHAPE_QUEUE_PKTS + 3)]
    assert [v.drop for v in verdicts].count(True) == 2
    assert verdicts[-1].drop
    assert verdicts[-3].at_ns == (lib.MN_SHAPE_QUEUE_PKTS + 1) * 64 * 8 * 10**6


@given(
    pkts=st.integers(0, 20),
    size=st.integers(0, 4000),
    frames=st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(14, 1514)), max_size=80),
)
def test_queue_agrees_with_a_plain_model(
    pkts: int, size: int, frames: list[tuple[int, int]]
) -> None:
    s = Shaper(bandwidth_bps=8 * 10**6, queue_pkts=pkts, queue_bytes=size)
    now, free = 0, 0
    waiting: list[tuple[int, int]] = []  # when it leaves the queue, bytes
    for gap, length in frames:
        now += gap
        waiting = [(t, n) for t, n in waiting if t > now]
        full = (pkts and len(waiting) >= pkts) or (
            size and sum(n for _, n in waiting) + length > size
        )
        v = s.offer(now, length)
        if free > now and full:
            assert v.drop
            continue
        if free > now:
            waiting.append((free, length))
        free = max(free, now) + 1000 * length
        assert (v.drop, v.at_ns) == (False, free)
        assert lib.mn_shaper_queued(s.c, now) == len(waiting)


# ---- partition, clog, MTU ------------------------------------------------------------------------


def test_partition_drops_all() -> None:
    s = Shaper(blocked=1, duplicate_ppb=PPB)
    assert all(v.drop and v.faults == {"blocked"} and not v.dup for v in s.run(10))
    s.set(blocked=0)
    assert not s.offer(10**9).drop


def test_mtu_counts_without_the_ethernet_header() -> None:
    s = Shaper(mtu=1500)
    assert not s.offer(0, 1514).drop
    assert s.offer(0, 1515).faults == {"mtu"}


def test_clog_holds_frames_until_it_ends() -> None:
    s = Shaper(blocked=2, bandwidth_bps=8 * 10**6, latency_ns=5, queue_pkts=3, queue_bytes=1000)
    held = [s.offer_raw(i, 100) for i in range(3)]
    assert all(v.held and not v.drop for v in held)
    assert s.offer(3, 100).faults == {"queue"}
    assert lib.mn_shaper_queued(s.c, 10**9) == 3
    lib.mn_shaper_forget(s.c, held.pop(1))
    s.set(blocked=0)
    # They go on one behind the other, as from a queue.
    assert [s.release(10**6, v).at_ns for v in held] == [1_100_005, 1_200_005]
    assert s.c.held_pkts == s.c.held_bytes == 0
    assert s.offer(10**6, 100).at_ns == 1_300_005


def test_clogged_frames_keep_the_faults_they_drew() -> None:
    open_, clogged = Shaper(duplicate_ppb=PPB // 2), Shaper(duplicate_ppb=PPB // 2, blocked=2)
    seen = [open_.offer(0).dup for _ in range(50)]
    held = [clogged.offer_raw(0) for _ in range(50)]
    clogged.set(blocked=0, duplicate_ppb=0)
    assert [clogged.release(7, v).dup for v in held] == seen
    assert 10 < sum(seen) < 40


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loss", "reorder", "duplicate", "corrupt"])
@pytest.mark.parametrize("share", [0, 0.001, 0.2, 1])
def test_faults_are_as_frequent_as_asked(kind: str, share: float) -> None:
    n = 20_000
    s = Shaper(seed=11, **{f"{kind}_ppb": int(share * PPB)})
    hit = len(numbers(s.run(n), kind))
    spread = math.sqrt(n * share * (1 - share))
    assert abs(hit - n * share) <= 5 * spread
    assert s.count(kind) == hit
    assert s.count("none") == n - hit


def test_every_kind_is_independent_of_the_others() -> None:
    shape = {
        "loss_ppb": PPB // 10,
        "ge_bad_ppb": PPB // 50,
        "ge_good_ppb": PPB // 3,
        "ge_loss_bad_ppb": PPB // 2,
        "reorder_ppb": PPB // 7,
        "duplicate_ppb": PPB // 9,
        "corrupt_ppb": PPB // 5,
    }
    n = 2000
    whole = Shaper(seed=3, latency_kind=2, latency_ns=10**6, jitter_ns=10**5, **shape).run(n)
    passed = {v.frame_no for v in whole if not v.drop}
    for kind in ("loss", "burst", "reorder", "duplicate", "corrupt"):
        start = "ge_" if kind == "burst" else kind
        alone = Shaper(seed=3, **{k: v for k, v in shape.items() if k.startswith(start)}).run(n)
        mine = set(numbers(alone, kind))
        assert 20 < len(mine) < n
        if kind == "loss":
            assert set(numbers(whole, kind)) == mine
        elif kind == "burst":  # a frame is lost once
            assert set(numbers(whole, kind)) == mine - set(numbers(whole, "loss"))
        else:
            assert set(numbers(whole, kind)) == mine & passed
        assert [v.bit for v in alone if "corrupt" in v.faults and v.frame_no in passed] == [
            v.bit for v in whole if "corrupt" in v.faults and kind == "corrupt"
        ]
    jitter = Shaper(seed=3, latency_kind=2, latency_ns=10**6, jitter_ns=10**5).run(n)
    assert {v.frame_no: v.at_ns for v in jitter if v.frame_no in passed} == {
        v.frame_no: v.at_ns for v in whole if not v.drop
    }


def test_partition_and_queue_drops_shift_no_draw() -> None:
    free, cut = Shaper(loss_ppb=PPB // 4), Shaper(loss_ppb=PPB // 4)
    want = numbers(free.run(300), "loss")
    got = cut.run(100)
    cut.set(blocked=1)
    got += [cut.offer(10**9) for _ in range(100)]
    cut.set(blocked=0)
    got += [cut.offer(10**9) for _ in range(100)]
    assert numbers(got, "loss") == [i for i in want if not 100 <= i < 200]


def test_seeds_and_names_give_streams_of_their_own() -> None:
    def lost(seed: int, name: str) -> list[int]:
        return numbers(Shaper(seed, name, loss_ppb=PPB // 2).run(64), "loss")

    cases = [(1, "a>b"), (2, "a>b"), (1, "b>a"), (1, ""), (2**64 - 1, "a>b")]
    assert lost(1, "a>b") == lost(1, "a>b")
    assert len({tuple(lost(*case)) for case in cases}) == len(cases)


def test_gilbert_elliott_bursts_have_the_lengths_of_their_chain() -> None:
    bad, good = 0.01, 0.25
    s = Shaper(seed=5, ge_bad_ppb=int(bad * PPB), ge_good_ppb=int(good * PPB), ge_loss_bad_ppb=PPB)
    n = 60_000
    hits = numbers(s.run(n), "burst")
    lost = set(hits)
    starts = [i for i in hits if i - 1 not in lost]
    lengths = []
    for start in starts:
        end = start
        while end in lost:
            end += 1
        lengths.append(end - start)
    # Geometric: mean 1 / good; the share of bad time is bad / (bad + good).
    assert statistics.mean(lengths) == pytest.approx(1 / good, rel=0.1)
    assert statistics.stdev(lengths) == pytest.approx(math.sqrt(1 - good) / good, rel=0.15)
    assert len(hits) / n == pytest.approx(bad / (bad + good), rel=0.15)


def test_gilbert_elliott_loses_in_the_good_state_too() -> None:
    s = Shaper(ge_loss_good_ppb=PPB)
    assert all(v.faults == {"burst"} for v in s.run(20))


def test_gilbert_elliott_switched_off_leaves_the_bad_state() -> None:
    s = Shaper(ge_bad_ppb=PPB, ge_loss_bad_ppb=PPB)
    assert all(v.drop for v in s.run(5))
    s.set(ge_bad_ppb=0)
    assert not any(v.drop for v in s.run(5))


def test_reordered_frame_comes_later_and_holds_back_no_other() -> None:
    s = Shaper(latency_ns=100, reorder_ppb=PPB, reorder_ns=1000, keep_order=1)
    assert s.offer(0).at_ns == 1100
    s.set(reorder_ppb=0)
    assert s.offer(1).at_ns == 101


def test_copy_comes_after_the_frame() -> None:
    s = Shaper(latency_ns=100, duplicate_ppb=PPB)
    v = s.offer(5)
    assert (v.dup, v.at_ns, v.dup_at_ns) == (True, 105, 105)
    s.set(duplicate_ns=40)
    v = s.offer(6)
    assert (v.at_ns, v.dup_at_ns) == (106, 146)


def test_corruption_inverts_one_bit_behind_the_ethernet_header() -> None:
    s = Shaper(corrupt_ppb=PPB)
    seen = set()
    for i in range(500):
        v = s.offer(i, 18)
        assert v.bit < 32
        flipped = bytearray(18)
        lib.mn_shaper_corrupt(ffi.from_buffer(flipped), 18, v.bit)
        assert flipped[:14] == bytes(14)
        assert int.from_bytes(flipped[14:], "big") == 1 << (31 - v.bit)
        seen.add(v.bit)
    assert seen == set(range(32))


@pytest.mark.parametrize("size", [0, 1, 14])
def test_frame_without_payload_is_not_corrupted(size: int) -> None:
    s = Shaper(corrupt_ppb=PPB)
    assert s.offer(0, size).faults == set()
    frame = bytearray(b"\x55" * 14)
    lib.mn_shaper_corrupt(ffi.from_buffer(frame), 14, 0)
    assert frame == b"\x55" * 14


# ---- latency -------------------------------------------------------------------------------------

MS = 10**6


def delays(kind: int, latency: int, jitter: int, n: int = 20_000) -> list[int]:
    s = Shaper(seed=9, latency_ns=latency, jitter_ns=jitter, latency_kind=kind)
    return [s.offer(i * 10**9).at_ns - i * 10**9 for i in range(n)]


def quantile(values: list[int], share: float) -> float:
    return sorted(values)[int(share * len(values))]


def test_fixed_latency_takes_no_jitter() -> None:
    assert set(delays(lib.MN_LATENCY_FIXED, 5 * MS, MS, 10)) == {5 * MS}


def test_uniform_latency() -> None:
    got = delays(lib.MN_LATENCY_UNIFORM, 5 * MS, 2 * MS)
    assert 3 * MS <= min(got) < 3.01 * MS
    assert 6.99 * MS < max(got) <= 7 * MS
    assert statistics.mean(got) == pytest.approx(5 * MS, rel=0.01)
    assert statistics.stdev(got) == pytest.approx(4 * MS / math.sqrt(12), rel=0.02)


def test_uniform_latency_reaches_both_ends() -> None:
    assert set(delays(lib.MN_LATENCY_UNIFORM, 10, 1, 200)) == {9, 10, 11}


def test_normal_latency() -> None:
    got = delays(lib.MN_LATENCY_NORMAL, 50 * MS, MS)
    assert statistics.mean(got) == pytest.approx(50 * MS, rel=0.001)
    assert statistics.stdev(got) == pytest.approx(MS, rel=0.02)
    normal = statistics.NormalDist(50 * MS, MS)
    for share in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert abs(quantile(got, share) - normal.inv_cdf(share)) < 0.06 * MS


def test_exponential_latency() -> None:
    got = delays(lib.MN_LATENCY_EXPONENTIAL, 5 * MS, MS)
    assert min(got) >= 5 * MS
    assert statistics.mean(got) == pytest.approx(6 * MS, rel=0.01)
    for share in (0.1, 0.5, 0.9, 0.99):
        want = 5 * MS - math.log(1 - share) * MS
        assert abs(quantile(got, share) - want) < 0.1 * MS


@pytest.mark.parametrize("kind", [lib.MN_LATENCY_UNIFORM, lib.MN_LATENCY_NORMAL])
def test_latency_is_cut_off_at_zero(kind: int) -> None:
    got = delays(kind, MS, 3 * MS, 2000)
    assert min(got) == 0
    assert max(got) > 2 * MS


def test_longest_delays_do_not_wrap() -> None:
    longest = lib.MN_SHAPE_DELAY_MAX_NS
    for kind in range(4):
        got = delays(kind, longest, longest, 500)
        assert min(got) >= 0
        assert max(got) <= 45 * longest


@pytest.mark.parametrize("keep", [0, 1])
def test_jitter_overtakes_only_where_it_may(keep: int) -> None:
    s = Shaper(latency_ns=MS, jitter_ns=MS, latency_kind=1, keep_order=keep)
    at = [s.offer(i * 1000).at_ns for i in range(500)]
    assert (at == sorted(at)) == bool(keep)


# ---- replays -------------------------------------------------------------------------------------


def permit(s: Shaper, fn: Callable[[str, int], bool]) -> Any:
    callback = ffi.callback(
        "bool(void *, enum mn_fault, uint64_t)", lambda _, kind, no: fn(name_of(kind), no)
    )
    s.c.permit = callback
    return callback


def test_permit_lets_only_the_listed_faults_happen() -> None:
    shape = {"loss_ppb": PPB // 5, "duplicate_ppb": PPB // 5, "corrupt_ppb": PPB // 5}
    free = Shaper(seed=2, **shape).run(200)
    listed = {(kind, v.frame_no) for v in free for kind in v.faults}
    keep = {fault for fault in listed if fault[1] % 3 == 0}
    s = Shaper(seed=2, **shape)
    asked: list[tuple[str, int]] = []
    alive = permit(s, lambda kind, no: asked.append((kind, no)) or (kind, no) in keep)
    got = s.run(200)
    assert keep <= {(kind, v.frame_no) for v in got for kind in v.faults}
    assert {(kind, v.frame_no) for v in got for kind in v.faults} <= keep
    assert listed <= set(asked)
    assert len(asked) == len(set(asked))
    del alive


def test_permit_of_all_changes_nothing() -> None:
    shape = {
        "loss_ppb": PPB // 10,
        "ge_bad_ppb": PPB // 20,
        "ge_good_ppb": PPB // 2,
        "ge_loss_bad_ppb": PPB,
        "reorder_ppb": PPB // 10,
        "latency_ns": MS,
        "jitter_ns": MS,
        "latency_kind": 1,
    }
    s = Shaper(**shape)
    alive = permit(s, lambda _kind, _no: True)
    assert s.run(300) == Shaper(**shape).run(300)
    del alive


def test_jitter_that_is_not_permitted_leaves_the_latency() -> None:
    s = Shaper(latency_ns=MS, jitter_ns=MS, latency_kind=2)
    alive = permit(s, lambda kind, no: kind != "jitter" or no % 2 == 0)
    at = [s.offer(0).at_ns for _ in range(100)]
    assert set(at[1::2]) == {MS}
    assert MS not in at[::2]
    del alive


# ---- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        *[
            (f"{name}_ppb", [PPB + 1, 2**32 - 1], [0, 1, PPB])
            for name in (
                "loss",
                "ge_bad",
                "ge_good",
                "ge_loss_bad",
                "ge_loss_good",
                "reorder",
                "duplicate",
                "corrupt",
            )
        ],
        *[
            (f"{name}_ns", [lib.MN_SHAPE_DELAY_MAX_NS + 1], [0, 1, lib.MN_SHAPE_DELAY_MAX_NS])
            for name in ("latency", "jitter", "reorder", "duplicate")
        ],
        ("bandwidth_bps", [1, 999, 10**15 + 1], [0, 1000, 10**15]),
        ("queue_pkts", [65537], [0, 1, 65536]),
        ("queue_bytes", [2**40 + 1], [0, 1, 2**40]),
        ("mtu", [1, 67, 65536], [0, 68, 65535]),
        ("latency_kind", [4], [0, 3]),
        ("keep_order", [2], [0, 1]),
        ("blocked", [3], [0, 1, 2]),
    ],
)
def test_check_names_the_field_out_of_range(field: str, bad: list[int], good: list[int]) -> None:
    for value in good:
        assert lib.mn_shape_check(ffi.new("struct mn_shape *", {field: value})) == ffi.NULL
    for value in bad:
        shape = ffi.new("struct mn_shape *", {field: value})
        assert ffi.string(lib.mn_shape_check(shape)).decode() == field
        assert lib.mn_shaper_init(ffi.new("struct mn_shaper *"), 0, b"", shape) == -22


def test_every_fault_has_a_name() -> None:
    names = [name_of(k) for k in range(lib.MN_FAULT_COUNT)]
    assert len(set(names)) == len(names)
    assert names[: len(KINDS)] == list(KINDS)
    assert name_of(lib.MN_FAULT_COUNT) == "?"
