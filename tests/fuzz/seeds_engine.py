# SPDX-License-Identifier: MIT
"""Inputs for ``fuzz_engine``: one engine between a peer that is fed by hand and its applications."""

from __future__ import annotations

from seed_ops import (
    ACK,
    ANY,
    ARP,
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
    PSH,
    RECEIVE,
    RST,
    S1,
    S3,
    S6,
    S30,
    S120,
    S600,
    SACK,
    SEND,
    SEND_FLAGS,
    SETOPT,
    SHUTDOWN,
    SYN,
    SYN_ACK,
    UNLISTEN,
    URGENT,
    WINDOW,
    active,
    app,
    listen,
    new_conn,
    passive,
    seg,
    time,
)

ENGINE = bytes([0, 0, 0, 7, 7])  # configuration: all defaults, large channels
ENGINE_NO_NEIGHBOR = bytes([0, 0, 0x40, 7, 7])  # the peers' addresses must be asked for
ENGINE_TIGHT = bytes(5)  # the same with the smallest channels
ENGINE_SMALL = bytes([0x7F, 0x40, 0x20, 0, 0])


def lives() -> dict[str, bytes]:
    """A connection from beginning to end, once for each kind of flow."""
    body: dict[str, bytes] = {}
    for index, name in enumerate(["stream", "stream2", "framed", "framed_large"]):
        body[f"passive_{name}"] = (
            passive(index)
            + seg(DATA, 0, PSH, 127)
            + app(SEND, 0, 3, 100)
            + seg(ACK)
            + seg(FIN, 0, 0, 20)
            + app(CLOSE, 0, 0)
            + seg(ACK)
            + time(S6)
        )
        body[f"active_{name}"] = (
            active(index)
            + app(SEND, 0, 1, 200)
            + seg(ACK)
            + app(SHUTDOWN, 0)
            + seg(FIN, 0, 0, 9)
            + time(S3)
        )
        body[f"bulk_in_{name}"] = passive(index) + seg(DATA, 0, 0, 255) * 4 + time(S1)
        body[f"bulk_out_{name}"] = (
            passive(index)
            + app(SEND, 0, 15, 255)
            + seg(ACK) * 3
            + seg(PARTIAL, 0, 0, 200)
            + time(S1) * 3
        )
        body[f"loop_{name}"] = (
            listen(index)
            + app(CONNECT, 2 | index << 2, lane=1)
            + time(MS1)
            + app(SEND, 0, 4, 150, lane=1)
            + time(MS40)
            + app(CLOSE, 0, 0, lane=1)
            + time(S30)
        )
    return body


def losses() -> dict[str, bytes]:
    """Segments that are missing or come out of order, in both directions."""
    return {
        "gap": (
            passive()
            + seg(DATA_AT, 0, 0, 100, 50)
            + seg(DATA_AT, 0, 0, 120, 60)
            + seg(DATA, 0, 0, 110) * 2
        ),
        "fin_ahead": passive() + seg(FIN_AT, 0, 0, 30) + seg(DATA, 0, 0, 30) + seg(DATA, 0, 0, 5),
        "fin_inside": (
            passive()
            + seg(DATA_AT, 0, 0, 100, 60)
            + seg(FIN_AT, 0, 0, 110)
            + seg(DATA, 0, 0, 100) * 2
        ),
        "fin_then_more": (
            passive() + seg(FIN_AT, 0, 0, 50) + seg(DATA_AT, 0, 0, 30, 90) + seg(DATA, 0, 0, 30)
        ),
        "fast_retransmit": (
            passive()
            + app(SEND, 0, 15, 200)
            + seg(DUPACK, 0, SACK, 2, 20, 90, 40, 90, 4) * 2
            + seg(ACK)
        ),
        "no_sack": (
            passive() + app(SEND, 0, 15, 200) + seg(DUPACK, 0, 0, 5) + seg(PARTIAL, 0, 0, 150) * 3
        ),
        "rto": (
            passive()
            + app(SEND, 0, 8, 180)
            + time(S1) * 2
            + time(S6)
            + seg(PARTIAL, 0, 0, 140)
            + seg(ACK)
        ),
    }


def openings() -> dict[str, bytes]:
    """Connections that open in unusual ways, or too many at once."""
    return {
        "syn_flood": (
            listen(0)
            + b"".join(seg(SYN, new_conn(0, p), NO_POLL, 0, 0) for p in range(4)) * 3
            + time(S30)
        ),
        "syn_flood_slow": (
            listen(0)
            + b"".join(
                seg(SYN, new_conn(0, p), 0, 0, 0) + time(MS1 if p < 4 else S3) for p in range(8)
            )
        ),
        "backlog": (
            listen(0, 1)
            + b"".join(
                seg(SYN, new_conn(0, p), 0, 0, 0) + seg(ACK, new_conn(0, p)) for p in range(4)
            )
            + app(UNLISTEN)
        ),
        "refused": app(CONNECT, 0) + seg(RST, 0, 0, 0, 0) + time(S1),
        "simultaneous_open": (
            app(CONNECT, 0) + seg(SYN, 0, 0, 0, 0) + seg(SYN_ACK, 0, 0, 0, 0) + seg(ACK)
        ),
        "time_wait_reuse": (
            passive()
            + app(CLOSE, 0, 0)
            + seg(ACK)
            + seg(FIN, 0, 0, 0)
            + seg(SYN, new_conn(0), 0, 1, 0)
            + time(S1)
        ),
    }


def windows() -> dict[str, bytes]:
    """Windows that are small, or closed."""
    return {
        "zero_window": (
            passive()
            + seg(ACK, 0, WINDOW, 0)
            + app(SEND, 0, 3, 150)
            + time(S3)
            + time(S6)
            + seg(ACK, 0, WINDOW, 0)
            + seg(ACK, 0, WINDOW, 4)
            + time(S1)
        ),
        "small_window": (
            passive()
            + seg(ACK, 0, WINDOW, 2)
            + app(SEND, 0, 9, 170)
            + seg(ACK, 0, WINDOW, 2) * 4
            + time(S3)
        ),
        "receiver_full": (
            bytes([NIC, 3 | 1 << 2])
            + passive()
            + seg(DATA, 0, 0, 250) * 6
            + app(RECEIVE, 255) * 4
            + time(S1)
        ),
    }


def shared() -> dict[str, bytes]:
    """Two framed connections that share the room of one channel."""
    body: dict[str, bytes] = {}
    for index in (2, 3):
        two = passive(index) + passive(index, 1)
        body[f"two_large_{index}"] = (
            two
            + seg(DATA, 0, 0, 200)
            + seg(DATA, 1, 0, 200)
            + seg(DATA, 1, 0, 220)
            + time(S1)
            + (seg(DATA, 0, 0, 220) * 4 + seg(DATA, 1, 0, 220) * 4) * 2
            + time(S30)
        )
        body[f"two_unread_{index}"] = (
            bytes([NIC, 3 | 1 << 2])
            + two
            + (seg(DATA, 0, 0, 190) + seg(DATA, 1, 0, 200)) * 6
            + time(S3)
            + app(RECEIVE, 3) * 4
            + seg(FIN, 0, 0, 0)
            + seg(RST, 1, 0, 1, 0)
            + app(RECEIVE, 9) * 4
            + time(S30)
        )
    return body


def left_unread() -> dict[str, bytes]:
    """Connections that end before the application has read what came."""
    body: dict[str, bytes] = {}
    unread = bytes([NIC, 3 | 1 << 2]) + passive() + seg(DATA, 0, 0, 250) * 8
    for name, end in {
        "fin": seg(FIN, 0, 0, 0),
        "rst": seg(RST, 0, 0, 1, 0),
        "close": app(CLOSE, 0, 0),
    }.items():
        body[f"unread_{name}"] = (
            unread + end + time(S3) + app(RECEIVE, 200) * 5 + time(S30) + app(RECEIVE, 255) * 3
        )
    time_wait = unread + app(SHUTDOWN, 0) + seg(ACK) + seg(FIN, 0, 0, 0)
    body["unread_time_wait"] = time_wait + app(RECEIVE, 255) * 8 + time(S30)
    body["unread_time_wait_close"] = time_wait + app(CLOSE, 0, 0) + time(S30)
    body["unread_time_wait_over"] = time_wait + time(S30) + app(RECEIVE, 255) * 8
    return body


def ends_and_calls() -> dict[str, bytes]:
    """Other ways to end, and what applications ask for."""
    return {
        "reset": passive() + seg(RST, 0, 0, 0, 5) + seg(RST, 0, 0, 1, 0) + time(S1),
        "simultaneous_close": (
            passive() + app(CLOSE, 0, 0) + seg(FIN_AT, 0, 0, 0) + seg(ACK) + time(S6)
        ),
        "urgent": (
            passive()
            + seg(URGENT, 0, 0, 40, 20)
            + app(SEND_FLAGS, 0, 2, 50, 2)
            + seg(ACK)
            + seg(URGENT, 0, 0, 3, 0)
        ),
        "keepalive": (
            passive() + app(SETOPT, 0, 2 | 1 << 5) + app(SETOPT, 0, 3 | 1 << 5) + time(S600)
        ),
        "options": (
            passive()
            + b"".join(app(SETOPT, 0, opt | value << 5) for opt in range(24) for value in (1, 2))
        ),
        "detach": (
            passive(2)
            + seg(DATA, 0, 0, 90)
            + app(SEND, 0, 3, 10)
            + app(DETACH)
            + time(S6)
            + app(ATTACH)
            + time(S1)
        ),
    }


def around() -> dict[str, bytes]:
    """What comes from around a connection: ICMP, ARP, a NIC without room; and all flags."""
    return {
        "unreachable": (
            active()
            + app(SEND, 0, 1, 99)
            + b"".join(
                bytes([ICMP, 0, kind | code << 3, 0]) for kind in range(7) for code in range(6)
            )
        ),
        "arp": (
            bytes([NIC, 3 | 4 << 2])
            + app(CONNECT, 1)
            + time(S1)
            + bytes([ARP, 2, 3])
            + bytes([ARP, 0, 9])
            + bytes([ARP, 10, 3])
            + time(S120)
            + bytes([ARP, 2, 3])
        ),
        "nic_full": (
            passive()
            + bytes([NIC, 0xF1])
            + app(SEND, 0, 5, 150)
            + bytes([NIC, 0xF0])
            + seg(ACK) * 2
            + time(S1)
        ),
        "flags": passive() + b"".join(seg(ANY, 0, 0, 0, flags, 0, 0) for flags in range(64)),
    }


def engine_seeds() -> dict[str, bytes]:
    """Scenarios for one engine, under several configurations."""
    parts = (lives, losses, openings, windows, shared, left_unread, ends_and_calls, around)
    body = {name: ops for part in parts for name, ops in part().items()}
    seeds = {f"engine_{name}": ENGINE + ops for name, ops in body.items()}
    seeds |= {f"small_{name}": ENGINE_SMALL + ops for name, ops in body.items() if "bulk" in name}
    for name in ("arp", "unreachable", "active_stream", "passive_stream", "rto"):
        seeds[f"unresolved_{name}"] = ENGINE_NO_NEIGHBOR + body[name]
    tight = ("bulk", "unread", "large", "loop", "full", "gap", "detach")
    for name, ops in body.items():
        if any(word in name for word in tight):
            seeds[f"tight_{name}"] = ENGINE_TIGHT + ops
    for name in ("fast_retransmit", "no_sack", "gap", "rto", "zero_window"):
        for bits in (1, 2, 3, 4, 8 | 16, 32):  # without timestamps, SACK, scaling; Nagle; no delay
            seeds[f"engine_{name}_{bits}"] = bytes([0, bits]) + ENGINE[2:] + body[name]
    return seeds
