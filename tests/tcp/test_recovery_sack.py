# SPDX-License-Identifier: MIT
"""Selective acknowledgements: sent (RFC 2018, 2883) and used (RFC 6675)."""

from __future__ import annotations

import random

import pytest
import tcp_peer as tp
from tcp_peer import FULL, MS, PURE_ACK, SACK, SEC, TS, Offer
from tcp_sack_model import Sender
from tcp_segment import opt, opt_sack

MSS = 1460
BOTH = Offer(sack=True, ts=True)


# --- received ------------------------------------------------------------------------------------


@pytest.mark.rows(94)
def test_syn_sack_permitted(tcp):
    assert tp.syn_sent(tcp()).syn.sack_ok
    assert tp.syn_received(tcp(SACK)).syn.sack_ok
    assert not tp.syn_received(tcp()).syn.sack_ok
    assert not tp.syn_received(tcp(SACK, sack=False)).syn.sack_ok
    assert not tp.syn_sent(tcp(sack=False)).syn.sack_ok


@pytest.mark.rows(94)
def test_established_out_of_order_without_sack(tcp):
    p = tp.established(tcp())
    p.send("A", data=100, seq=201)
    assert p.expect(**PURE_ACK).sack == []


@pytest.mark.rows(94)
def test_established_active_without_sack_in_syn_ack(tcp):
    p = tp.established_active(tcp())
    p.send("A", data=100, seq=201)
    assert p.expect(**PURE_ACK).sack == []


@pytest.mark.rows(94)
@pytest.mark.parametrize("make", [tp.established, tp.established_active])
def test_established_out_of_order(tcp, make):
    """Newest block first; four at most; a block grows with what joins it."""
    p = make(tcp(SACK))
    p.send("A", data=100, seq=201)
    p.expect(**PURE_ACK, ack=1, sack=[(201, 301)])
    p.send("A", data=100, seq=401)
    p.expect(**PURE_ACK, ack=1, sack=[(401, 501), (201, 301)])
    p.send("A", data=100, seq=601)
    p.expect(**PURE_ACK, ack=1, sack=[(601, 701), (401, 501), (201, 301)])
    p.send("A", data=100, seq=801)
    p.expect(**PURE_ACK, sack=[(801, 901), (601, 701), (401, 501), (201, 301)])
    p.send("A", data=100, seq=1001)
    p.expect(**PURE_ACK, sack=[(1001, 1101), (801, 901), (601, 701), (401, 501)])
    p.send("A", data=50, seq=301)
    got = p.expect(**PURE_ACK, ack=1)
    assert got.sack[0] == (201, 351)
    p.send("A", data=100, seq=701)
    got = p.expect(**PURE_ACK, ack=1)
    assert got.sack[0] == (601, 901)
    p.send("A", data=200, seq=1)
    got = p.expect(**PURE_ACK, ack=351)
    assert set(got.sack) == {(401, 501), (601, 901), (1001, 1101)}


@pytest.mark.rows(94)
def test_established_out_of_order_with_timestamps(tcp):
    """Beside timestamps there is room for three."""
    p = tp.established(tcp(BOTH))
    for seq in (201, 401, 601, 801):
        p.send("A", data=100, seq=seq)
        got = p.expect(**PURE_ACK, ack=1)
    assert got.sack == [(801, 901), (601, 701), (401, 501)]
    assert got.ts


@pytest.mark.rows(94)
def test_established_sack_on_data(tcp):
    """While there is a gap, data segments report it too, within their size."""
    p = tp.established(tcp(SACK))
    p.send("A", data=100, seq=201)
    p.expect(**PURE_ACK)
    p.write(3000)
    for got in p.drain():
        assert got.sack in ([(201, 301)], [])
        assert len(got.data) + len(got.sack) * 12 <= MSS


@pytest.mark.rows(96)
def test_established_duplicate_segment(tcp):
    """RFC 2883, 4: the first block names the duplicate, below the acknowledgement."""
    p = tp.established(tcp(SACK))
    p.send("A", data=100)
    p.send("A", data=100)
    p.lab.advance(50 * MS)
    p.drain()
    with p.lab.counts(tcp_dsack_sent=1):
        p.send("A", data=100, seq=1)
    p.expect(**PURE_ACK, ack=201, sack=[(1, 101)])
    p.send("A", data=10, seq=201)
    p.lab.advance(50 * MS)
    p.expect(**PURE_ACK, sack=[])


@pytest.mark.rows(96)
def test_established_duplicate_out_of_order_segment(tcp):
    """RFC 2883, 4.1: then the block that it lies in."""
    p = tp.established(tcp(SACK))
    p.send("A", data=100, seq=201)
    p.send("A", data=100, seq=301)
    p.drain()
    p.send("A", data=100, seq=201)
    p.expect(**PURE_ACK, ack=1, sack=[(201, 301), (201, 401)])
    p.send("A", data=100, seq=601)
    p.expect(**PURE_ACK, ack=1, sack=[(601, 701), (201, 401)])


@pytest.mark.rows(96)
def test_established_partly_duplicate_segment(tcp):
    """RFC 2883, 4.2: only the octets received twice are named."""
    p = tp.established(tcp(SACK))
    p.send("A", data=100)
    p.lab.advance(50 * MS)
    p.drain()
    p.send("A", data=100, seq=51)
    p.lab.advance(50 * MS)
    got = p.drain()[-1]
    assert got.ack == 151
    assert got.sack in ([(51, 101)], [])


@pytest.mark.rows(96)
def test_established_no_dsack_without_sack(tcp):
    p = tp.established(tcp())
    p.send("A", data=100)
    p.lab.advance(50 * MS)
    p.drain()
    p.send("A", data=100, seq=1)
    p.expect(**PURE_ACK, sack=[])


# --- used ----------------------------------------------------------------------------------------


def seq_of(segment):
    return 1 + segment * MSS


def blocks_of(sacked):
    """Blocks for a set of segment numbers, the highest first."""
    out = []
    for segment in sorted(sacked):
        if out and out[-1][1] == seq_of(segment):
            out[-1] = (out[-1][0], seq_of(segment + 1))
        else:
            out.append((seq_of(segment), seq_of(segment + 1)))
    return out[::-1]


def in_flight(p, total=60, segments=10):
    tp.established(p)
    p.write(total * MSS)
    p.expect_data([MSS] * segments)
    p.expect_nothing()
    return p


def sack(p, una, *sacked):
    p.send("A", ack=seq_of(una), sack=blocks_of(sacked)[:4] or None)


def sent(p):
    """What came out, as segment numbers."""
    return [(seg.seq - 1) // MSS for seg in p.drain()]


@pytest.mark.rows(87, 97)
def test_established_three_sacks(tcp):
    """Limited transmit, fast retransmit, half the window; then as pipe permits."""
    p = in_flight(tcp(SACK))
    sack(p, 0, 1)
    assert sent(p) == [10]
    sack(p, 0, 1, 2)
    assert sent(p) == [11]
    sack(p, 0, 1, 2, 3)
    assert sent(p) == [0]
    assert p.info().ssthresh == 5 * MSS
    assert p.lab.stat("tcp_fast_recoveries") == 1
    for last in (4, 5, 6, 7):  # pipe 8, 7, 6, 5
        sack(p, 0, *range(1, last + 1))
        assert sent(p) == []
    sack(p, 0, *range(1, 9))
    assert sent(p) == [12]


@pytest.mark.rows(97)
def test_established_one_sack_of_much(tcp):
    """RFC 6675, 5 (2): more than two segments' worth above: lost, after a single ACK."""
    p = in_flight(tcp(SACK))
    sack(p, 0, 1, 2, 3)
    assert sent(p)[0] == 0
    assert p.lab.stat("tcp_fast_recoveries") == 1


@pytest.mark.rows(97)
def test_established_one_sack_of_little(tcp):
    """Two segments' worth is not enough."""
    p = in_flight(tcp(SACK))
    sack(p, 0, 1, 2)
    assert 0 not in sent(p)
    assert p.lab.stat("tcp_fast_recoveries") == 0


@pytest.mark.rows(97)
@pytest.mark.parametrize("seed", range(25))
def test_established_random_losses_against_the_model(tcp, seed):
    """Each ACK has exactly those segments sent that RFC 6675 says, up to the end of recovery."""
    rng = random.Random(seed)
    p = in_flight(tcp(SACK), total=40)
    model = Sender(10, 40)
    lost = {0} | {s for s in range(1, 10) if rng.random() < 0.3}
    wire = [s for s in range(10) if s not in lost]
    have = set()
    una = 0
    while wire:
        have.add(wire.pop(0))
        while una in have:
            una += 1
        sacked = {s for s in have if s >= una}
        if model.recovery_point is not None and una >= model.recovery_point:
            break
        sack(p, una, *sacked)
        now = sent(p)
        want = model.on_ack(una, sacked)
        if model.recovery_point is None and una > 0:
            break
        assert now == want, f"una {una} sacked {sorted(sacked)}\n{p.history()}"
        wire += now
    assert p.lab.stat("tcp_rto") == 0


@pytest.mark.rows(97)
def test_established_rescue_retransmission(tcp):
    """NextSeg rule 4: nothing new, no hole left: the last unSACKed segment goes once more."""
    p = in_flight(tcp(SACK), total=10)
    sack(p, 0, 4)
    sack(p, 0, 4, 5)
    assert sent(p) == []
    sack(p, 0, 4, 5, 6)
    got = sent(p)
    model = Sender(10, 10)
    want = []
    for sacked in ({4}, {4, 5}, {4, 5, 6}):
        want += model.on_ack(0, sacked)
    assert got == want
    sack(p, 3, 4, 5, 6)
    assert sent(p) == model.on_ack(3, {4, 5, 6})
    sack(p, 7)
    assert sent(p) == model.on_ack(7, set())
    assert p.lab.stat("tcp_rescue_retransmits") == 1


@pytest.mark.rows(97)
def test_fast_recovery_sacked_segments_are_not_sent_again(tcp):
    p = in_flight(tcp(SACK))
    sack(p, 0, 1, 2, 3, 5, 6, 7, 8)
    first = sent(p)
    sack(p, 4, 5, 6, 7, 8, 9)
    assert not {1, 2, 3, 5, 6, 7, 8} & set(first + sent(p))


@pytest.mark.rows(97)
def test_fast_recovery_end(tcp):
    p = in_flight(tcp(SACK))
    sack(p, 0, 1, 2, 3)
    p.drain()
    high = p.rcv_nxt
    p.send("A", ack=high)
    info = p.info()
    assert info.cwnd <= 6 * MSS
    assert info.ssthresh == 5 * MSS
    assert p.stack.usage()["sack_ranges"] == 0


@pytest.mark.rows(95)
def test_established_peer_reneges(tcp):
    """After a timeout what was SACKed counts as not received: it is sent again when need be."""
    p = in_flight(tcp(SACK), total=10)
    sack(p, 0, 2, 3, 4)
    p.drain()
    got = p.next_segment(3 * SEC)
    assert got.seq == 1
    seen = set()
    una = 1
    p.send("A", ack=seq_of(1))  # no SACK any more: the peer threw it away
    for _ in range(200):
        segments = sent(p)
        if not segments:
            if una == 10:
                break
            p.lab.advance(100 * MS)
            continue
        seen.update(segments)
        while una in seen:
            una += 1
        p.send("A", ack=seq_of(una))
    assert una == 10
    assert {2, 3, 4} <= seen


@pytest.mark.rows(95)
def test_established_timeout_clears_the_scoreboard(tcp):
    p = in_flight(tcp(SACK), total=10)
    sack(p, 0, 5, 6, 7, 8, 9)
    p.drain()
    p.next_segment(5 * SEC)
    assert p.stack.usage()["sack_ranges"] == 0
    assert p.info().cwnd == MSS


@pytest.mark.rows(95)
def test_established_sacked_data_is_kept(tcp):
    """The send queue shrinks by the cumulative acknowledgement only."""
    p = in_flight(tcp(SACK), total=10)
    sack(p, 0, *range(1, 10))
    assert p.info().send_queue == 10 * MSS
    sack(p, 10)
    assert p.info().send_queue == 0


@pytest.mark.rows(97)
@pytest.mark.parametrize(
    "block",
    [
        (seq_of(3), seq_of(3)),
        (seq_of(4), seq_of(3)),
        (seq_of(20), seq_of(21)),
        (seq_of(9), seq_of(30)),
        (1 - MSS * 100, 1 - MSS * 99),
        (seq_of(3), seq_of(3) + (1 << 31)),
        (1 << 31, (1 << 31) + 5),
    ],
    ids=["empty", "reversed", "unsent", "reaches-unsent", "long-past", "half-the-space", "far"],
)
def test_established_impossible_sack_block(tcp, block):
    """B6: ignored and counted."""
    p = in_flight(tcp(SACK))
    with p.lab.counts(tcp_sack_invalid=1):
        p.send("A", ack=1, sack=[block])
    assert p.stack.usage()["sack_ranges"] == 0
    assert 0 not in sent(p)


@pytest.mark.rows(97)
@pytest.mark.parametrize(
    "blocks",
    [
        [(2, 4), (3, 6)],
        [(3, 6), (2, 4)],
        [(3, 4), (2, 6)],
        [(2, 6), (3, 4)],
        [(2, 3), (4, 5), (3, 4)],
        [(2, 3), (5, 6), (2, 6)],
    ],
)
@pytest.mark.parametrize("shift", [0, 1, 700])
def test_established_overlapping_sack_blocks(tcp, blocks, shift):
    """B6: blocks overlap, join, contain each other, and cut segments: their union counts."""
    p = in_flight(tcp(SACK), total=10)
    for left, right in blocks:
        p.send("A", ack=1, sack=[(seq_of(left) + shift, seq_of(right) + shift)])
    assert p.stack.usage()["sack_ranges"] == 1
    got = p.drain()
    p.lab.advance(100 * MS)
    for seg in [*got, *p.drain()]:
        assert not seq_of(2) + shift <= seg.seq < seq_of(6) + shift
    # The acknowledgement then lands in the middle of what was SACKed.
    p.send("A", ack=seq_of(3) + 5 + shift)
    p.drain()
    p.send("A", ack=seq_of(10))
    assert p.info().send_queue == 0
    assert p.stack.usage()["sack_ranges"] == 0


@pytest.mark.rows(97)
def test_established_sack_beside_an_advancing_ack(tcp):
    """The news of a loss comes with progress: no later than the next duplicate it is repaired."""
    p = in_flight(tcp(SACK), total=10)
    sack(p, 1, 2, 3, 4, 5)
    first = sent(p)
    sack(p, 1, 2, 3, 4, 5, 6)
    assert 1 in first + sent(p)
    assert p.lab.stat("tcp_rto") == 0


@pytest.mark.rows(96)
def test_established_dsack_from_the_peer(tcp):
    """Below the acknowledgement: a duplicate was received, nothing is lost."""
    p = in_flight(tcp(SACK))
    with p.lab.counts(tcp_dsack_received=1, tcp_sack_invalid=0):
        p.send("A", ack=seq_of(5), sack=[(seq_of(2), seq_of(3))])
    assert p.stack.usage()["sack_ranges"] == 0
    assert all(segment >= 10 for segment in sent(p))


def test_established_sack_block_holes_are_bounded(tcp):
    """B7: a scoreboard of many tiny blocks has a limit, and recovery still works."""
    p = in_flight(tcp(SACK, sack_ranges_max=16))
    for i in range(0, 9000, 40):
        at = seq_of(1) + i
        p.lab.inject(p.make("A", ack=1, sack=[(at, at + 8)]))
    assert p.stack.usage()["sack_ranges"] <= 16
    total = 1
    for _ in range(400):
        for got in p.drain():
            if got.seq <= total:
                total = max(total, got.end)
        p.send("A", ack=total)
        if total == seq_of(60):
            break
        p.lab.advance(200 * MS)
    assert total == seq_of(60)


@pytest.mark.rows(94)
def test_established_sack_not_negotiated_is_ignored(tcp):
    p = in_flight(tcp())
    isn = p.stack_isn
    p.send("A", ack=1, opts=opt_sack([(isn + seq_of(1), isn + seq_of(9))]))
    assert 0 not in sent(p)
    assert p.stack.usage()["sack_ranges"] == 0


@pytest.mark.parametrize("size", [0, 1, 7, 9, 15, 17])
def test_established_sack_option_of_odd_length(tcp, size):
    p = in_flight(tcp(SACK))
    p.send("A", ack=1, opts=opt(5, bytes(size)))
    assert 0 not in sent(p)
    assert p.state == "ESTABLISHED"


@pytest.mark.rows(97)
@pytest.mark.parametrize("offer", [SACK, FULL, TS], ids=["sack", "full", "ts"])
@pytest.mark.parametrize("seed", range(5))
def test_established_random_loss_both_flights(tcp, offer, seed):
    """10 % of all segments and ACKs are lost: everything arrives."""
    rng = random.Random(seed)
    p = tp.established(tcp(offer))
    total = 300_000
    p.write(total)
    pieces = []
    done = 1
    for _ in range(6000):
        got = p.recv()
        if got is None:
            p.lab.advance(5 * MS)
            p.tsval += 5
            continue
        if rng.random() < 0.1:
            continue
        pieces = merge([*pieces, (got.seq, got.end)])
        done = pieces[0][1] if pieces[0][0] == 1 else 1
        if rng.random() < 0.9:
            above = [piece for piece in pieces if piece[0] > done]
            p.send("A", ack=done, sack=above[-3:] if offer.sack else None)
        if done == total + 1:
            break
    assert done == total + 1


def merge(pieces):
    out = []
    for left, right in sorted(pieces):
        if out and left <= out[-1][1]:
            out[-1] = (out[-1][0], max(right, out[-1][1]))
        else:
            out.append((left, right))
    return out


@pytest.mark.rows(96)
def test_established_dsack_undoes_nothing(tcp):
    """G5: whatever it says was received twice: the window stays as the loss has left it."""
    p = in_flight(tcp(SACK))
    sack(p, 0, 1, 2, 3)
    p.drain()
    high = p.rcv_nxt
    p.send("A", ack=high)
    info = p.info()
    p.drain()
    for segment in range(8):
        p.send("A", ack=high, sack=[(seq_of(segment), seq_of(segment + 1))])
    assert (p.info().cwnd, p.info().ssthresh) == (info.cwnd, info.ssthresh)
    assert p.lab.stat("tcp_fast_recoveries") == 1
