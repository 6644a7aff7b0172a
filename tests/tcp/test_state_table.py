# SPDX-License-Identifier: MIT
"""Every state, every combination of the six flags: 704 cases, and the same with other numbers."""

from __future__ import annotations

import pytest
import tcp_peer as tp
from tcp_oracle import ACK_KINDS, SEQ_KINDS, STATES, Outcome, expected
from tcp_peer import MS, Got, Peer
from tcp_segment import ACK, FIN, SYN, flag_text

MAX_SND_WND = 65535

CONSTRUCTORS = {
    "CLOSED": lambda p: p,
    "LISTEN": tp.listen,
    "SYN-SENT": tp.syn_sent,
    "SYN-RECEIVED": tp.syn_received,
    "SYN-RECEIVED from active": tp.syn_received_active,
    "ESTABLISHED": tp.established,
    "FIN-WAIT-1": tp.fin_wait_1,
    "FIN-WAIT-2": tp.fin_wait_2,
    "CLOSE-WAIT": tp.close_wait,
    "CLOSING": tp.closing,
    "LAST-ACK": tp.last_ack,
    "TIME-WAIT": tp.time_wait,
}
#: States in which our FIN or SYN is in flight, so that SND.UNA is one less than SND.NXT.
IN_FLIGHT = ("SYN-SENT", "SYN-RECEIVED", "FIN-WAIT-1", "CLOSING", "LAST-ACK")
ACTIVE = ("SYN-SENT", "SYN-RECEIVED from active")


def numbers(p: Peer, state: str, seq: str, ack: str) -> tuple[int, int]:
    nxt = p.rcv_nxt
    una = nxt - 1 if state in IN_FLIGHT else nxt
    acks = {"nxt": nxt, "una": una, "old": una - 1, "unsent": nxt + 1}
    return p.snd_nxt + SEQ_KINDS[seq], acks.get(ack, una - MAX_SND_WND - 1)


def answer_of(
    p: Peer, got: list[Got], before: tuple[int, int], seq: int, ack: int, flags: int
) -> str:
    """Which of the oracle's answers this is, or a description when it is none of them."""
    if not got:
        return "none"
    snd_nxt, rcv_nxt = before
    if len(got) == 1 and got[0].len == 0:
        one = got[0]
        seg_len = bool(flags & SYN) + bool(flags & FIN)
        known = {
            ("A", snd_nxt, rcv_nxt): "ack",
            ("A", snd_nxt, rcv_nxt + 1): "ack+1",
            ("SA", 0, rcv_nxt): "synack",
            ("SA", 0, seq + 1): "synack",
            ("R", ack, 0): "rst",
        }
        if one.raw.raw_seq == 0 and one.flags == "RA" and one.ack == seq + seg_len:
            return "rst0"
        return known.get((one.flags, one.seq, one.ack), repr(one))
    return repr(got)


@pytest.mark.rows(76, 77, 78, 80, 116, 117, 118)
@pytest.mark.parametrize("seq", SEQ_KINDS)
@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_segment_without_data(lab, name, seq):
    state = name.removesuffix(" from active")
    lab = lab(rst_per_s=1_000_000)
    listener = None if state == "CLOSED" or name in ACTIVE else lab.listen(backlog=64)
    wrong = []
    port = 20000
    for ack in ACK_KINDS:
        if ack == "una" and state not in IN_FLIGHT:
            continue
        for flags in range(64):
            if ack != "nxt" and not flags & ACK:
                continue
            port += 1
            p = lab.peer(port=port, stack_port=port if name in ACTIVE else tp.STACK_PORT)
            p.listener = listener
            CONSTRUCTORS[name](p)
            seq_no, ack_no = numbers(p, state, seq, ack)
            before = p.rcv_nxt, seq_no + 1 if state == "SYN-SENT" else p.snd_nxt
            p.send(flag_text(flags).strip("-"), seq=seq_no, ack=ack_no)
            outcome = Outcome(answer_of(p, p.drain(), before, seq_no, ack_no, flags), p.state)
            want = expected(state, flags, seq, ack, passive=name not in ACTIVE)
            if outcome not in want:
                wrong.append(
                    f"{flag_text(flags):6} ack {ack}: {outcome}, permitted: {sorted(want)}"
                )
            # Nothing of this case may be in the way of the next one.
            if p.sock is not None:
                p.abort()
            p.send("R")
            lab.advance(MS)
            p.drain()
    assert not wrong, f"{len(wrong)} cases:\n" + "\n".join(wrong)


def test_the_table_has_all_states():
    assert {name.removesuffix(" from active") for name in CONSTRUCTORS} == set(STATES)
