# SPDX-License-Identifier: MIT
"""The operations that ``fuzz_engine`` and ``fuzz_mnp`` read, for inputs made by hand."""

from __future__ import annotations

SYN, SYN_ACK, ACK, DATA, DATA_AT, FIN, FIN_AT, RST, PARTIAL, DUPACK, URGENT, ANY = range(12)
NO_TS, BAD_CSUM, SPLIT, WINDOW, SACK, TS_DELTA, NO_POLL, PSH = (1 << i for i in range(8))
RAW, ARP, ICMP, NIC, TIME, TIME2 = range(12, 18)
(
    SEND,
    SEND2,
    SEND_FLAGS,
    SHUTDOWN,
    CLOSE,
    SETOPT,
    LISTEN,
    CONNECT,
    RESULTS,
    RECEIVE,
    SKIP,
    DETACH,
) = range(18, 30)
ATTACH, UNLISTEN = 30, 31
MS1, MS40, MS200, S1, S3, S6, S30, S120, S600, DEADLINE = range(2, 12)


def new_conn(port_index: int, peer_port: int = 0) -> int:
    """Selects the pair of a peer's port and one that may be listened on."""
    return 8 | peer_port & 3 | port_index << 4 | (peer_port & 4) << 4


def seg(kind: int, conn: int = 0, mods: int = 0, *params: int) -> bytes:
    """One segment of connection number `conn` in the order they appeared."""
    return bytes([kind, conn, mods, *params])


def app(op: int, *params: int, lane: int = 0) -> bytes:
    """One call of the application of a lane."""
    return bytes([op, lane, *params])


def listen(port_index: int, backlog: int = 0) -> bytes:
    """Listens on port 1001 + index: streams, then framed."""
    return bytes([LISTEN, port_index << 1 | backlog << 3])


def passive(port_index: int = 0, peer_port: int = 0) -> bytes:
    """A connection that a peer opens."""
    pair = new_conn(port_index, peer_port)
    return listen(port_index) + seg(SYN, pair, 0, 0, 0) + seg(ACK, pair)


def active(port: int = 0) -> bytes:
    """A connection that the application opens."""
    return app(CONNECT, port << 2) + seg(SYN_ACK, 0, 0, 0, 0)


def time(step: int) -> bytes:
    """A step of time, with all timers on the way."""
    return bytes([TIME, step])
