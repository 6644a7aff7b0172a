# SPDX-License-Identifier: MIT
"""RFC 6675 once more, in units of whole segments: which segment is sent on which acknowledgement.

Segments are numbered from 0. Before the loss the congestion window is full; the first segment is
among the lost ones, so that every ACK before recovery is a duplicate.
"""

from __future__ import annotations

DUP_THRESH = 3


class Sender:
    """A sender with ``flight`` segments out and ``total`` to send in all."""

    def __init__(self, flight: int, total: int) -> None:
        self.total = total
        self.cwnd = flight
        self.flight_at_loss = flight
        self.una = 0  # HighACK
        self.nxt = flight  # HighData
        self.rxt = 0  # HighRxt: every retransmission below
        self.rescue: int | None = None
        self.sacked: set[int] = set()
        self.dupacks = 0
        self.recovery_point: int | None = None

    def _lost(self, seg: int) -> bool:
        above = sorted(s for s in self.sacked if s > seg)
        runs = sum(1 for s in above if s - 1 not in self.sacked or s - 1 <= seg)
        return runs >= DUP_THRESH or len(above) > DUP_THRESH - 1

    def pipe(self) -> int:
        count = 0
        for seg in range(self.una, self.nxt):
            if seg not in self.sacked:
                count += not self._lost(seg)
                count += seg < self.rxt
        return count

    def _next_seg(self) -> int | None:
        highest = max(self.sacked, default=-1)
        holes = [s for s in range(max(self.una, self.rxt), highest) if s not in self.sacked]
        for seg in holes:
            if self._lost(seg):
                return seg
        if self.nxt < self.total:
            return self.nxt
        if holes:
            return holes[0]
        left = [s for s in range(self.una, self.nxt) if s not in self.sacked]
        if left and (self.rescue is None or self.una > self.rescue):
            return -1 - left[-1]
        return None

    def _send(self, seg: int) -> int:
        if seg < 0:  # rescue retransmission
            assert self.recovery_point is not None
            self.rescue = self.recovery_point
            return -1 - seg
        if seg == self.nxt:
            self.nxt += 1
        else:
            self.rxt = seg + 1
        return seg

    def _send_while_room(self) -> list[int]:
        out = []
        while self.cwnd - self.pipe() >= 1:
            seg = self._next_seg()
            if seg is None:
                break
            out.append(self._send(seg))
        return out

    def on_ack(self, una: int, sacked: set[int]) -> list[int]:
        """What is sent when this acknowledgement arrives."""
        advanced = una > self.una
        news = bool(sacked - self.sacked)
        self.una = una
        self.rxt = max(self.rxt, una)
        self.sacked = {s for s in self.sacked | sacked if s >= una}
        if self.recovery_point is not None:
            if una >= self.recovery_point:
                self.recovery_point = None
                return []
            return self._send_while_room()
        if advanced or not news:
            return []
        self.dupacks += 1
        if self.dupacks >= DUP_THRESH or self._lost(self.una):
            self.recovery_point = self.nxt
            self.cwnd = max(self.flight_at_loss // 2, 2)
            self.rxt = self.una + 1
            return [self.una, *self._send_while_room()]
        if self.cwnd - self.pipe() >= 1 and self.nxt < self.total:
            return [self._send(self.nxt)]
        return []
