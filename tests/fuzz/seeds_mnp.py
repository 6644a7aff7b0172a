# SPDX-License-Identifier: MIT
"""Inputs for ``fuzz_mnp``: one engine that speaks the message protocol."""

from __future__ import annotations

from seed_ops import (
    ACK,
    ANY,
    ATTACH,
    CLOSE,
    CONNECT,
    DATA,
    DATA_AT,
    DETACH,
    DUPACK,
    FIN,
    FIN_AT,
    ICMP,
    MS1,
    MS40,
    NIC,
    NO_POLL,
    PARTIAL,
    RECEIVE,
    RST,
    S1,
    S3,
    S6,
    S30,
    SACK,
    SEND,
    SHUTDOWN,
    SPLIT,
    SYN,
    SYN_ACK,
    TS_DELTA,
    WINDOW,
    app,
    listen,
    new_conn,
    seg,
    time,
)

# Segments have the numbers of fuzz_engine's; a handshake has two more bytes, DATA a count.
M_EXT, M_PLAIN = 0, 4
M_DATA_OLD_ACK = 10

MESSAGE = app(SEND, 0, 9, 0)  # sent by the application


def opened(mode: int, index: int) -> bytes:
    """A connection that a peer opens to the small (0) or the large (1) listener."""
    return listen(index) + seg(SYN, new_conn(index), 0, mode, 0) + seg(ACK)


def connected(mode: int, index: int) -> bytes:
    """A connection that the application opens."""
    return app(CONNECT, index << 2) + seg(SYN_ACK, 0, 0, mode, 0)


def lives(mode: int, index: int) -> dict[str, bytes]:
    """A connection from beginning to end."""
    open_, connect, send = opened(mode, index), connected(mode, index), MESSAGE
    return {
        "passive": open_ + seg(DATA, 0, 0, 63) * 3 + send + seg(ACK) + seg(FIN) + time(S3),
        "active": connect + send + seg(ACK) + seg(DATA, 0, 0, 20) + app(CLOSE, 0, 0),
        "close": open_ + send + app(SHUTDOWN, 0) + seg(ACK) * 3 + seg(FIN) + time(S6),
        "closed": open_ + app(CLOSE, 0, 0) + seg(ACK) + seg(FIN) + time(S6),
        "reset": open_ + send + seg(RST, 0, 0, 5, 1) + seg(RST, 0, 0, 0, 3) + time(S1),
        "refused": app(CONNECT, index << 2) + seg(RST, 0, 0, 0, 2),
        "unreachable": connect + send + b"".join(bytes([ICMP, 0, k << 3, 0]) for k in range(6)),
        "again": open_
        + seg(SYN, 0, 0, mode, 0)
        + app(CLOSE, 0, 0)
        + seg(ACK)
        + seg(FIN)
        + seg(SYN, 0, 0, mode | 1, 0)
        + seg(ACK)
        + seg(DATA, 0, 0, 9),
        "detach": open_ + seg(DATA, 0, 0, 30) + send + app(DETACH) + time(S6) + app(ATTACH),
        "loop": listen(index)
        + app(CONNECT, 2 | index << 2, lane=1)
        + time(MS1)
        + app(SEND, 0, 15, 0, lane=1)
        + time(MS40)
        + app(CLOSE, 0, 0, lane=1)
        + time(S30),
    }


def losses(mode: int, index: int) -> dict[str, bytes]:
    """Segments that are missing, late or out of order, in both directions."""
    open_, connect, send = opened(mode, index), connected(mode, index), MESSAGE
    return {
        "fin_ahead": open_ + seg(FIN_AT, 0, 0, 3) + seg(DATA, 0, 0, 2) + time(S1),
        "gap": open_ + seg(DATA_AT, 0, 0, 2, 5) + seg(DATA_AT, 0, 0, 20, 3) + seg(DATA, 0, 0, 40),
        "sacked": connect
        + send
        + seg(DUPACK, 0, SACK, 3, 1, 0, 3, 3)
        + seg(DUPACK, 0, SACK, 5, 1, 1, 9)
        + time(MS1)
        + seg(ACK),
        "dupacks": connect + send + seg(DUPACK, 0, 0, 3) + seg(PARTIAL, 0, 0, 1) * 3,
        "partial": connect + send * 2 + seg(PARTIAL, 0, 0, 1) * 4 + time(MS40) + seg(ACK),
        "timeouts": connect + send + time(S1) * 3 + seg(ACK) + send + time(S30),
        "undo": connect + send + time(MS40) + seg(ACK, 0, TS_DELTA, 0, 0x80, 255, 255, 0, 0),
        "old_ack": connect + send + seg(M_DATA_OLD_ACK) * 5 + seg(ACK),
    }


def windows(mode: int, index: int) -> dict[str, bytes]:
    """No room: at the peer, at the application, at the NIC."""
    open_, connect, send = opened(mode, index), connected(mode, index), MESSAGE
    return {
        "window": connect
        + seg(ACK, 0, WINDOW, 0)
        + send
        + time(S3)
        + seg(ACK, 0, WINDOW, 0)
        + time(S1)
        + seg(ACK, 0, WINDOW, 2)
        + seg(ACK, 0, WINDOW, 4)
        + time(S1),
        "full": bytes([NIC, 3 | 1 << 2])
        + open_
        + seg(DATA, 0, 0, 63) * 6
        + time(S1)
        + app(RECEIVE, 255) * 4
        + seg(DATA, 0, 0, 63) * 3
        + app(RECEIVE, 255) * 4
        + time(S1),
        "nic_full": connect + bytes([NIC, 0xF1]) + send + bytes([NIC, 0xF0]) + seg(ACK) + time(S1),
    }


def oddities(mode: int, index: int) -> dict[str, bytes]:
    """Packets that no proper peer sends."""
    open_, connect = opened(mode, index), connected(mode, index)
    return {
        "odd": open_
        + b"".join(seg(DATA, 0, 128, 0, 2, at, at * 7 & 255) for at in range(0, 54, 3))
        + seg(DATA, 0, 128, 0, 1, 0, 30),
        "any": connect
        + b"".join(seg(ANY, 0, 0, b, 5, 0, 0, 9, 9, 9, 9) for b in range(0, 256, 17)),
        "no_csum": open_ + seg(DATA, 0, 1, 3) + seg(DATA, 0, 2, 3) + seg(DATA, 0, SPLIT, 3, 20),
    }


def mnp_seeds() -> dict[str, bytes]:
    """Scenarios for one engine that speaks the message protocol, under several configurations."""
    body: dict[str, bytes] = {}
    for mode, name in ((M_EXT, "ext"), (M_PLAIN, "plain")):
        for index, size in ((0, "small"), (1, "large")):
            for part in (lives, losses, windows, oddities):
                body |= {f"{key}_{name}_{size}": ops for key, ops in part(mode, index).items()}
    for feats in range(8):
        body[f"feats_{feats}"] = (
            listen(1)
            + seg(SYN, new_conn(1), 0, feats << 5, feats)
            + seg(ACK)
            + seg(DATA_AT, 0, 0, 2, 9)
            + seg(DATA, 0, 0, 30)
            + MESSAGE
            + seg(ACK)
            + app(CLOSE, 0, 0)
            + seg(FIN)
            + time(S6)
        )
    body["versions"] = listen(1) + b"".join(
        seg(SYN, new_conn(1, n & 3), 0, (n & 3) << 3, n << 3 & 255 | n & 7) + seg(ACK, n & 3)
        for n in range(8)
    )
    body["syn_flood"] = (
        listen(0)
        + b"".join(seg(SYN, new_conn(0, n), NO_POLL, 0, 0) for n in range(4)) * 3
        + time(S30)
    )
    seeds = {}
    for config, (m, chan) in {"": (0, 7), "narrow": (1, 0), "plain": (4, 7), "two": (8, 0)}.items():
        head = bytes([0, 0, m, 0, chan, chan])
        seeds |= {f"mnp_{name}_{config}": head + ops for name, ops in body.items()}
    return seeds
