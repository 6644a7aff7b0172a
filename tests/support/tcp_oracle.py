# SPDX-License-Identifier: MIT
"""What RFC 9293 section 3.10.7 says about a segment without data, for each state.

Modified as RFC 5961 (sections 3 to 5), RFC 1337 (no assassination of TIME-WAIT) and RFC 6191 (new
connection out of TIME-WAIT) say. Where the RFCs leave a choice, or speak of what no correct peer
sends (a second FIN), the oracle lists all answers that they permit.
"""

from __future__ import annotations

from typing import NamedTuple

from tcp_segment import ACK, FIN, RST, SYN

#: Where the segment begins, relative to RCV.NXT.
SEQ_KINDS = {"next": 0, "inside": 100, "before": -1, "outside": 1 << 29}
#: What it acknowledges. una equals nxt where nothing is in flight; past: UNA - MAX.SND.WND - 1.
ACK_KINDS = ("nxt", "una", "old", "past", "unsent")

STATES = (
    "CLOSED",
    "LISTEN",
    "SYN-SENT",
    "SYN-RECEIVED",
    "ESTABLISHED",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "CLOSE-WAIT",
    "CLOSING",
    "LAST-ACK",
    "TIME-WAIT",
)


class Outcome(NamedTuple):
    """The answer and the state after it. LISTEN is CLOSED here: there is no connection.

    Answers: none; ack (SND.NXT, RCV.NXT); ack+1 (the FIN is acknowledged too); synack; rst (sequence
    number from the segment's acknowledgement); rst0 (sequence number 0, acknowledges the segment).
    """

    answer: str
    state: str


def either(answers: str, *states: str) -> set[Outcome]:
    return {Outcome(answer, state) for answer in answers.split() for state in states}


def _closed(flags: int) -> set[Outcome]:
    if flags & RST:
        return either("none", "CLOSED")
    return either("rst" if flags & ACK else "rst0", "CLOSED")


def _listen(flags: int) -> set[Outcome]:
    if flags & RST:
        return either("none", "CLOSED")
    if flags & ACK:
        return either("rst", "CLOSED")
    if flags & SYN:
        opened = either("synack", "SYN-RECEIVED")
        # What comes with the SYN may be kept for later, or the nonsense dropped as a whole.
        return opened | either("none", "CLOSED") if flags & FIN else opened
    return either("none", "CLOSED")


def _syn_sent(flags: int, ack: str) -> set[Outcome]:
    acceptable = bool(flags & ACK) and ack == "nxt"
    if flags & ACK and not acceptable:
        return either("none" if flags & RST else "rst", "SYN-SENT")
    if flags & RST:
        return either("none", "CLOSED" if acceptable else "SYN-SENT")
    if not flags & SYN:
        return either("none", "SYN-SENT")
    if not acceptable:
        return either("synack", "SYN-RECEIVED")
    if flags & FIN:
        return either("ack+1", "CLOSE-WAIT") | either("ack", "ESTABLISHED")
    return either("ack", "ESTABLISHED")


def _time_wait(flags: int, seq: str) -> set[Outcome]:
    stays = either("none ack", "TIME-WAIT")
    if flags & RST:
        return stays if seq == "inside" else either("none", "TIME-WAIT")
    if flags & SYN:
        if seq == "before":
            return either("ack", "TIME-WAIT")
        if flags & (ACK | FIN):
            return stays | either("synack", "SYN-RECEIVED")
        return either("synack", "SYN-RECEIVED")
    if seq in ("before", "outside"):
        return either("ack", "TIME-WAIT")
    return either("none ack ack+1" if flags & FIN else "none ack", "TIME-WAIT")


#: An acknowledgement of all that was sent, the FIN included, moves these states.
_ACKED = {
    "SYN-RECEIVED": "ESTABLISHED",
    "FIN-WAIT-1": "FIN-WAIT-2",
    "CLOSING": "TIME-WAIT",
    "LAST-ACK": "CLOSED",
}
_FIN = {
    "ESTABLISHED": "CLOSE-WAIT",
    "FIN-WAIT-1": "CLOSING",
    "FIN-WAIT-2": "TIME-WAIT",
}


def _reset(state: str, seq: str) -> set[Outcome]:
    """RFC 5961 section 3."""
    if seq == "next":
        return either("none", "CLOSED")
    return either("ack" if seq == "inside" else "none", state)


def _syn(state: str, seq: str, passive: bool) -> set[Outcome]:
    """A SYN in a synchronised state, RFC 5961 section 4; in SYN-RECEIVED, RFC 9293 step four."""
    if state != "SYN-RECEIVED":
        return either("ack", state)
    if seq in ("before", "outside"):
        return either("ack synack", state)
    if passive:
        # Back to LISTEN (RFC 9293), or a challenge as in the later states.
        return either("none", "CLOSED") | either("ack", state)
    return either("ack", state)


def _fin_again(state: str, seq: str) -> set[Outcome]:
    """Something behind the peer's FIN: no correct peer sends it, the connection just goes on."""
    return either("none ack ack+1", state) if seq == "next" else either("none ack", state)


def _acked(state: str, flags: int, seq: str, ack: str) -> set[Outcome]:
    """Step five on, for a segment in the window with an acceptable ACK."""
    before = state
    if ack == "nxt":
        state = _ACKED.get(state, state)
    if state == "CLOSED":
        return either("none", state) | (either("none ack", before) if seq == "inside" else set())
    if not flags & FIN:
        silent = either("none", state) if seq == "next" else either("none ack", state)
        past_fin = before in ("CLOSE-WAIT", "CLOSING", "LAST-ACK") and seq == "inside"
        return silent | either("none ack", before) if past_fin else silent
    if state in _FIN:
        if seq == "next":
            return either("ack+1", _FIN[state])
        return either("none ack", state)
    again = _fin_again(state, seq)
    return again | _fin_again(before, seq) if seq == "inside" else again


def expected(state: str, flags: int, seq: str, ack: str, *, passive: bool = True) -> set[Outcome]:
    """All permitted outcomes of one segment. ``ack`` means something only with the ACK flag.

    ``passive``: how a connection in SYN-RECEIVED came to be.
    """
    if state == "CLOSED":
        return _closed(flags)
    if state == "LISTEN":
        return _listen(flags)
    if state == "SYN-SENT":
        return _syn_sent(flags, ack)
    if state == "TIME-WAIT":
        return _time_wait(flags, seq)
    if flags & RST:
        return _reset(state, seq)
    if flags & SYN:
        both = state == "SYN-RECEIVED" and not passive and seq == "before"
        if both and flags & ACK and not flags & FIN and ack == "nxt":
            # The SYN-ACK of a simultaneous open: RFC 9293 3.5, figure 8.
            return either("ack", "ESTABLISHED")
        return _syn(state, seq, passive)
    if seq in ("before", "outside"):
        return either("ack synack" if state == "SYN-RECEIVED" else "ack", state)
    if not flags & ACK:
        return either("none", state)
    if state == "SYN-RECEIVED" and ack != "nxt":
        return either("rst", state)
    if ack in ("unsent", "past"):
        return either("ack", state)
    return _acked(state, flags, seq, ack)
