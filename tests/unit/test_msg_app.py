# SPDX-License-Identifier: MIT
"""What both message generators share in C: the payload pattern and TCP's frames."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machnet._native import ffi, lib

PATTERN = bytes(range(256)) * 80
LIMIT = 8 << 20


def payload(slot: int, size: int) -> bytes:
    return struct.pack("<Q", slot) + PATTERN[8:size]


def frame(slot: int, size: int) -> bytes:
    return struct.pack(">I", size) + payload(slot, size)


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_fill_writes_the_pattern_at_any_offset(offset, length):
    data = ffi.new("uint8_t[]", length + 1)
    data[length] = 0xEE
    lib.mn_msg_fill(data, length, offset)
    assert bytes(ffi.buffer(data)) == PATTERN[offset : offset + length] + b"\xee"


@given(st.integers(0, 600), st.integers(0, 9_000))
def test_check_accepts_the_pattern(offset, length):
    data = PATTERN[offset : offset + length]
    assert lib.mn_msg_check(data, length, offset) == lib.MN_MSG_MATCH


@given(st.integers(1, 10_000), st.data())
def test_check_names_the_first_wrong_byte(length, data):
    offset = data.draw(st.integers(0, 300))
    wrong = sorted(data.draw(st.sets(st.integers(0, length - 1), min_size=1, max_size=3)))
    received = bytearray(PATTERN[offset : offset + length])
    for index in wrong:
        received[index] ^= 0x40
    found = [offset + index for index in wrong if offset + index >= 8]
    expected = found[0] if found else lib.MN_MSG_MATCH
    assert lib.mn_msg_check(bytes(received), length, offset) == expected


class Receiver:
    """A frame parser, fed piece by piece."""

    def __init__(self, *, verify: bool = False) -> None:
        self.rx = ffi.new("struct mn_frame_rx *")
        self.rx.verify = verify
        self.messages: list[tuple[int, int]] = []
        self.wrong: list[int] = []

    def feed(self, piece: bytes) -> int:
        data = ffi.new("uint8_t[]", piece)
        at = ffi.new("uint8_t *[1]", [data])
        end = data + len(piece)
        cursor = ffi.cast("const uint8_t **", at)
        while (rc := lib.mn_frame_rx_next(self.rx, cursor, end)) == 1:
            self.messages.append((self.rx.slot, self.rx.length))
            self.wrong.append(self.rx.wrong_at)
        if rc == 0:
            assert at[0] == end
        return rc


sizes = st.one_of(st.integers(8, 40), st.integers(8, 9_000))
messages = st.lists(st.tuples(st.integers(0, 2**64 - 1), sizes), max_size=8)


@given(messages, st.data())
def test_frames_are_read_however_they_are_cut(sent, data):
    stream = b"".join(frame(*message) for message in sent)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=20)))
    receiver = Receiver(verify=True)
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        assert receiver.feed(stream[start:end]) == 0
    assert receiver.messages == sent
    assert receiver.wrong == [lib.MN_MSG_MATCH] * len(sent)
    assert receiver.rx.seen == 0


@given(st.integers(8, 300), st.data())
def test_a_wrong_byte_is_found_however_the_frame_is_cut(size, data):
    wrong = data.draw(st.integers(8, size - 1)) if size > 8 else None
    stream = bytearray(frame(7, size) * 2)
    if wrong is not None:
        stream[4 + wrong] ^= 1
    cut = data.draw(st.integers(0, len(stream)))
    receiver = Receiver(verify=True)
    receiver.feed(bytes(stream[:cut]))
    receiver.feed(bytes(stream[cut:]))
    assert receiver.messages == [(7, size)] * 2
    assert receiver.wrong == [lib.MN_MSG_MATCH if wrong is None else wrong, lib.MN_MSG_MATCH]
    if wrong is not None:
        assert receiver.rx.wrong_got == wrong % 256 ^ 1


@pytest.mark.parametrize("length", [0, 1, 7, LIMIT + 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("cut", [1, 4, 20])
def test_a_length_out_of_range_is_an_error_at_once(length, cut):
    receiver = Receiver()
    stream = frame(1, 8) + struct.pack(">I", length) + bytes(16)
    assert receiver.feed(stream[:12]) == 0
    results = [receiver.feed(stream[12 : 12 + cut]), receiver.feed(stream[12 + cut : 12 + 4])]
    assert min(results) < 0
    assert receiver.rx.length == length
    assert receiver.messages == [(1, 8)]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=16), sizes, st.data())
def test_frames_are_written_however_the_socket_takes_them(slots, size, data):
    tx = ffi.new("struct mn_frame_tx *")
    assert lib.mn_frame_tx_open(tx, 16, size) == 0
    out = ffi.new("uint8_t[]", 16 * 9_004)
    waiting, stream, frames = list(slots), b"", 0
    while waiting or tx.count:
        for slot in waiting[: data.draw(st.integers(0 if tx.count else 1, 16))]:
            lib.mn_frame_tx_push(tx, slot)
            waiting.pop(0)
        room = data.draw(st.integers(1, 30_000))
        ready = lib.mn_frame_tx_copy(tx, out, room)
        assert 0 < ready <= room
        taken = data.draw(st.integers(max(1, ready // 4), ready))
        stream += bytes(ffi.buffer(out, taken))
        frames += lib.mn_frame_tx_consume(tx, taken)
    lib.mn_frame_tx_close(tx)
    assert stream == b"".join(frame(slot, size) for slot in slots)
    assert frames == len(slots)


@given(messages, st.data(), st.integers(1, 4))
def test_a_read_of_the_limit_never_completes_more_messages_than_allowed(sent, data, allowed):
    stream = b"".join(frame(*message) for message in sent) + frame(0, 8) * 8
    receiver = Receiver()
    begun = data.draw(st.integers(0, len(stream)))
    receiver.feed(stream[:begun])
    before = len(receiver.messages)
    limit = lib.mn_frame_rx_limit(receiver.rx, allowed)
    assert limit > 0
    receiver.feed(stream[begun : begun + limit])
    assert len(receiver.messages) - before <= allowed
    assert lib.mn_frame_rx_limit(receiver.rx, 0) == 0


class TestStats:
    def test_moving_adds_to_the_total_and_empties_the_interval(self):
        total, interval = ffi.new("struct mn_msg_stats *"), ffi.new("struct mn_msg_stats *")
        lib.mn_msg_stats_reset(total)
        for round_nr in (1, 2):
            lib.mn_msg_stats_reset(interval)
            interval.tx_msgs, interval.tx_bytes = 3, 300
            interval.rx_msgs, interval.rx_bytes = 2, 200
            interval.payload_faults = 1
            lib.mn_hist_record(ffi.addressof(interval, "rtt"), 5)
            lib.mn_msg_stats_move(total, interval)
            assert (total.tx_msgs, total.tx_bytes) == (3 * round_nr, 300 * round_nr)
            assert (total.rx_msgs, total.rx_bytes) == (2 * round_nr, 200 * round_nr)
            assert (total.payload_faults, total.rtt.count) == (round_nr, round_nr)
            assert (interval.tx_msgs, interval.rx_bytes, interval.rtt.count) == (0, 0, 0)
