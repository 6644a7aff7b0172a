# SPDX-License-Identifier: MIT
"""Writes the hand-made inputs of the fuzzers: ``make_seeds.py DIRECTORY``.

Each is a scenario that a fuzzer would need long to find (a handshake, a gap, a closed window, ...) in
the encoding that the harness of the same name reads. The checked-in corpus is these and what the
fuzzers made of them, minimised (``run.py --merge``). When an encoding changes, this file changes
with it, and the corpus is made again.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

# ---- fuzz_engine ----

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

ENGINE = bytes([0, 0, 0, 7, 7])  # configuration: all defaults, large channels
ENGINE_NO_NEIGHBOR = bytes([0, 0, 0x40, 7, 7])  # the peers' addresses must be asked for
ENGINE_TIGHT = bytes(5)  # the same with the smallest channels
ENGINE_SMALL = bytes([0x7F, 0x40, 0x20, 0, 0])


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


def engine_seeds() -> dict[str, bytes]:
    """Scenarios for one engine."""
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
    body["gap"] = (
        passive()
        + seg(DATA_AT, 0, 0, 100, 50)
        + seg(DATA_AT, 0, 0, 120, 60)
        + seg(DATA, 0, 0, 110) * 2
    )
    body["fin_ahead"] = passive() + seg(FIN_AT, 0, 0, 30) + seg(DATA, 0, 0, 30) + seg(DATA, 0, 0, 5)
    body["fast_retransmit"] = (
        passive()
        + app(SEND, 0, 15, 200)
        + seg(DUPACK, 0, SACK, 2, 20, 90, 40, 90, 4) * 2
        + seg(ACK)
    )
    body["no_sack"] = (
        passive() + app(SEND, 0, 15, 200) + seg(DUPACK, 0, 0, 5) + seg(PARTIAL, 0, 0, 150) * 3
    )
    body["rto"] = (
        passive()
        + app(SEND, 0, 8, 180)
        + time(S1) * 2
        + time(S6)
        + seg(PARTIAL, 0, 0, 140)
        + seg(ACK)
    )
    body["zero_window"] = (
        passive()
        + seg(ACK, 0, WINDOW, 0)
        + app(SEND, 0, 3, 150)
        + time(S3)
        + time(S6)
        + seg(ACK, 0, WINDOW, 0)
        + seg(ACK, 0, WINDOW, 4)
        + time(S1)
    )
    body["small_window"] = (
        passive()
        + seg(ACK, 0, WINDOW, 2)
        + app(SEND, 0, 9, 170)
        + seg(ACK, 0, WINDOW, 2) * 4
        + time(S3)
    )
    body["receiver_full"] = (
        bytes([NIC, 3 | 1 << 2])
        + passive()
        + seg(DATA, 0, 0, 250) * 6
        + app(RECEIVE, 255) * 4
        + time(S1)
    )
    body["syn_flood_slow"] = listen(0) + b"".join(
        seg(SYN, new_conn(0, p), 0, 0, 0) + time(MS1 if p < 4 else S3) for p in range(8)
    )
    body["fin_inside"] = (
        passive() + seg(DATA_AT, 0, 0, 100, 60) + seg(FIN_AT, 0, 0, 110) + seg(DATA, 0, 0, 100) * 2
    )
    body["fin_then_more"] = (
        passive() + seg(FIN_AT, 0, 0, 50) + seg(DATA_AT, 0, 0, 30, 90) + seg(DATA, 0, 0, 30)
    )
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
    body["urgent"] = (
        passive()
        + seg(URGENT, 0, 0, 40, 20)
        + app(SEND_FLAGS, 0, 2, 50, 2)
        + seg(ACK)
        + seg(URGENT, 0, 0, 3, 0)
    )
    body["reset"] = passive() + seg(RST, 0, 0, 0, 5) + seg(RST, 0, 0, 1, 0) + time(S1)
    body["refused"] = app(CONNECT, 0) + seg(RST, 0, 0, 0, 0) + time(S1)
    body["time_wait_reuse"] = (
        passive()
        + app(CLOSE, 0, 0)
        + seg(ACK)
        + seg(FIN, 0, 0, 0)
        + seg(SYN, new_conn(0), 0, 1, 0)
        + time(S1)
    )
    body["simultaneous_open"] = (
        app(CONNECT, 0) + seg(SYN, 0, 0, 0, 0) + seg(SYN_ACK, 0, 0, 0, 0) + seg(ACK)
    )
    body["simultaneous_close"] = (
        passive() + app(CLOSE, 0, 0) + seg(FIN_AT, 0, 0, 0) + seg(ACK) + time(S6)
    )
    body["syn_flood"] = (
        listen(0)
        + b"".join(seg(SYN, new_conn(0, p), NO_POLL, 0, 0) for p in range(4)) * 3
        + time(S30)
    )
    body["backlog"] = (
        listen(0, 1)
        + b"".join(seg(SYN, new_conn(0, p), 0, 0, 0) + seg(ACK, new_conn(0, p)) for p in range(4))
        + app(UNLISTEN)
    )
    body["unreachable"] = (
        active()
        + app(SEND, 0, 1, 99)
        + b"".join(bytes([ICMP, 0, kind | code << 3, 0]) for kind in range(7) for code in range(6))
    )
    body["arp"] = (
        bytes([NIC, 3 | 4 << 2])
        + app(CONNECT, 1)
        + time(S1)
        + bytes([ARP, 2, 3])
        + bytes([ARP, 0, 9])
        + bytes([ARP, 10, 3])
        + time(S120)
        + bytes([ARP, 2, 3])
    )
    body["keepalive"] = (
        passive() + app(SETOPT, 0, 2 | 1 << 5) + app(SETOPT, 0, 3 | 1 << 5) + time(S600)
    )
    body["options"] = passive() + b"".join(
        app(SETOPT, 0, opt | value << 5) for opt in range(24) for value in (1, 2)
    )
    body["nic_full"] = (
        passive()
        + bytes([NIC, 0xF1])
        + app(SEND, 0, 5, 150)
        + bytes([NIC, 0xF0])
        + seg(ACK) * 2
        + time(S1)
    )
    body["detach"] = (
        passive(2)
        + seg(DATA, 0, 0, 90)
        + app(SEND, 0, 3, 10)
        + app(DETACH)
        + time(S6)
        + app(ATTACH)
        + time(S1)
    )
    body["flags"] = passive() + b"".join(seg(ANY, 0, 0, 0, flags, 0, 0) for flags in range(64))
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


# ---- fuzz_mnp ----

# Segments have the numbers of fuzz_engine's; a handshake has two more bytes, DATA a count.
M_EXT, M_PLAIN = 0, 4
M_DATA_OLD_ACK = 10


def mnp_seeds() -> dict[str, bytes]:
    """Scenarios for one engine that speaks the message protocol."""
    body: dict[str, bytes] = {}
    for mode, name in ((M_EXT, "ext"), (M_PLAIN, "plain")):
        for index, size in ((0, "small"), (1, "large")):
            pair = new_conn(index)
            open_ = listen(index) + seg(SYN, pair, 0, mode, 0) + seg(ACK)
            connect = app(CONNECT, index << 2) + seg(SYN_ACK, 0, 0, mode, 0)
            send = app(SEND, 0, 9, 0)
            bodies = {
                "passive": open_ + seg(DATA, 0, 0, 63) * 3 + send + seg(ACK) + seg(FIN) + time(S3),
                "active": connect + send + seg(ACK) + seg(DATA, 0, 0, 20) + app(CLOSE, 0, 0),
                "close": open_ + send + app(SHUTDOWN, 0) + seg(ACK) * 3 + seg(FIN) + time(S6),
                "closed": open_ + app(CLOSE, 0, 0) + seg(ACK) + seg(FIN) + time(S6),
                "fin_ahead": open_ + seg(FIN_AT, 0, 0, 3) + seg(DATA, 0, 0, 2) + time(S1),
                "gap": open_
                + seg(DATA_AT, 0, 0, 2, 5)
                + seg(DATA_AT, 0, 0, 20, 3)
                + seg(DATA, 0, 0, 40),
                "sacked": connect
                + send
                + seg(DUPACK, 0, SACK, 3, 1, 0, 3, 3)
                + seg(DUPACK, 0, SACK, 5, 1, 1, 9)
                + time(MS1)
                + seg(ACK),
                "dupacks": connect + send + seg(DUPACK, 0, 0, 3) + seg(PARTIAL, 0, 0, 1) * 3,
                "partial": connect + send * 2 + seg(PARTIAL, 0, 0, 1) * 4 + time(MS40) + seg(ACK),
                "timeouts": connect + send + time(S1) * 3 + seg(ACK) + send + time(S30),
                "undo": connect
                + send
                + time(MS40)
                + seg(ACK, 0, TS_DELTA, 0, 0x80, 255, 255, 0, 0),
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
                "reset": open_ + send + seg(RST, 0, 0, 5, 1) + seg(RST, 0, 0, 0, 3) + time(S1),
                "refused": app(CONNECT, index << 2) + seg(RST, 0, 0, 0, 2),
                "unreachable": connect
                + send
                + b"".join(bytes([ICMP, 0, k << 3, 0]) for k in range(6)),
                "again": open_
                + seg(SYN, 0, 0, mode, 0)
                + app(CLOSE, 0, 0)
                + seg(ACK)
                + seg(FIN)
                + seg(SYN, 0, 0, mode | 1, 0)
                + seg(ACK)
                + seg(DATA, 0, 0, 9),
                "old_ack": connect + send + seg(M_DATA_OLD_ACK) * 5 + seg(ACK),
                "odd": open_
                + b"".join(seg(DATA, 0, 128, 0, 2, at, at * 7 & 255) for at in range(0, 54, 3))
                + seg(DATA, 0, 128, 0, 1, 0, 30),
                "any": connect
                + b"".join(seg(ANY, 0, 0, b, 5, 0, 0, 9, 9, 9, 9) for b in range(0, 256, 17)),
                "no_csum": open_
                + seg(DATA, 0, 1, 3)
                + seg(DATA, 0, 2, 3)
                + seg(DATA, 0, SPLIT, 3, 20),
                "detach": open_ + seg(DATA, 0, 0, 30) + send + app(DETACH) + time(S6) + app(ATTACH),
                "loop": listen(index)
                + app(CONNECT, 2 | index << 2, lane=1)
                + time(MS1)
                + app(SEND, 0, 15, 0, lane=1)
                + time(MS40)
                + app(CLOSE, 0, 0, lane=1)
                + time(S30),
                "nic_full": connect
                + bytes([NIC, 0xF1])
                + send
                + bytes([NIC, 0xF0])
                + seg(ACK)
                + time(S1),
            }
            body |= {f"{key}_{name}_{size}": ops for key, ops in bodies.items()}
    for feats in range(8):
        body[f"feats_{feats}"] = (
            listen(1)
            + seg(SYN, new_conn(1), 0, feats << 5, feats)
            + seg(ACK)
            + seg(DATA_AT, 0, 0, 2, 9)
            + seg(DATA, 0, 0, 30)
            + app(SEND, 0, 9, 0)
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


# ---- fuzz_pair ----

PAIR = bytes([0, 0, 0, 7, 0, 0, 7])
P_LISTEN, P_CONNECT, P_BOTH, P_READS, P_RECEIVE, P_FAULT, P_FAULT2, P_TIME, P_TIME2 = range(9)
P_SEND, P_SEND2, P_SEND_URG, P_SHUTDOWN, P_CLOSE, P_SETOPT = range(9, 15)
B = 128  # done by the second side


def p_fault(kind: int, side: int, *params: int) -> bytes:
    """Kind 0: the fates of 16 frames, 1: a rate, 2: the path is cut or healed, 3: no packets."""
    return bytes([P_FAULT | (side | kind << 1) << 4, *params])


def p_time(step: int) -> bytes:
    """Steps from 0 to 20 s."""
    return bytes([P_TIME, step])


def pair_seeds() -> dict[str, bytes]:
    """Scenarios for two engines."""
    seeds = {}
    for index, name in enumerate(["stream", "stream2", "framed", "framed_large"]):
        begin = bytes([P_LISTEN | index << 4, P_CONNECT | B | index << 4]) + p_time(2)
        talk = bytes([P_SEND, 0, 15, 255]) + bytes([P_SEND | B, 0, 7, 250]) + p_time(3)
        end = bytes([P_SHUTDOWN, 0]) + p_time(4) + bytes([P_CLOSE | B, 0, 0]) + p_time(6)
        seeds[f"pair_{name}"] = PAIR + begin + talk * 3 + end
        seeds[f"pair_{name}_small"] = bytes([1, 0x3F, 0x20, 0, 0xC0, 2, 0]) + begin + talk * 3 + end
        seeds[f"pair_{name}_offload"] = bytes([4, 0, 0, 7, 0, 0, 7]) + begin + talk * 3 + end
        for rate in (20, 90):
            lossy = p_fault(1, 0, rate) + p_fault(1, 1, rate)
            seeds[f"pair_{name}_lossy_{rate}"] = PAIR + begin + lossy + talk * 4 + p_time(6) + end
        drops = p_fault(0, 1, 0x15, 0x01, 0x41, 0x10)
        seeds[f"pair_{name}_drops"] = PAIR + begin + drops + talk + drops + talk + end
        seeds[f"pair_{name}_cut"] = (
            PAIR + begin + talk + p_fault(2, 0) + talk + p_time(7) + p_fault(2, 0) + end
        )
        full = (
            bytes([P_READS])
            + talk * 4
            + p_time(7)
            + bytes([P_RECEIVE, 90, P_RECEIVE, 200])
            + p_time(6)
        )
        seeds[f"pair_{name}_full"] = PAIR + begin + full + bytes([P_READS]) + end
        seeds[f"pair_{name}_syn_lost"] = (
            PAIR + p_fault(0, 1, 0x44, 0, 0, 0) + begin + p_time(6) + talk + end
        )
        opts = b"".join(bytes([P_SETOPT | B, 0, k]) + talk for k in range(9))
        seeds[f"pair_{name}_options"] = PAIR + begin + opts + end
    seeds["pair_simultaneous"] = (
        PAIR
        + bytes([P_BOTH])
        + p_time(5)
        + bytes([P_SEND, 0, 3, 90, P_CLOSE, 0, 0, P_CLOSE | B, 0, 0])
    )
    return seeds


def mnp_pair_seeds() -> dict[str, bytes]:
    """The same over the message protocol: both extended, one of them plain, small windows."""
    configs = {"ext": (0, 0), "plain": (0, 4), "narrow": (1, 1), "five": (3, 2 | 32)}
    seeds = {}
    for name, data in pair_seeds().items():
        head, ops = data[: len(PAIR)], data[len(PAIR) :]
        for config, (a, b) in configs.items():
            new = bytes([head[0] & 4, *head[1:3], a, *head[3:6], b, head[6]])
            seeds[f"mnp_{name}_{config}"] = new + ops
    return seeds


# ---- fuzz_channel ----


def channel_seeds() -> dict[str, bytes]:
    """What an application may do to its rings."""
    head = bytes([0, 0, 5])
    # Streams on 1002, messages on 1003 and 1004; a peer's connection to each.
    listens = bytes([3, 8, 1 << 6, 0]) + bytes([3, 0, 2 << 6, 0]) + bytes([3, 0, 3 << 6, 0])
    stream = bytes([9, 0x10, 0, 9, 0x10, 6])
    framed = bytes([9, 0x20, 0, 9, 0x20, 6])
    data = bytes([9, 0x10, 4, 100])
    connect = bytes([3, 8 | 2, 1, 0]) + bytes([9, 0, 1])
    desc = bytes([0, 0, 2, 0, 0])
    seeds = {
        "calls": listens + stream + framed + connect + b"\x0f" * 2,
        "send": listens + stream + desc + bytes([0, 1, 2, 0, 0]) + bytes([9, 0x10, 6]) + desc,
        "message": listens
        + framed
        + bytes([0, 0, 3, 0, 1, 0, 1, 7, 0, 2])
        + bytes([0, 2, 7, 0, 3]),
        "twice": listens + stream + desc * 2,
        "range": listens + stream + desc + bytes([0, 0x7F, 2, 0, 0]),
        "edge": listens + stream + bytes([0, 16, 2, 0, 0]),
        "long": listens + stream + bytes([0, 1, 4, 0, 0]),
        "marks": listens + stream + bytes([0, 0x80, 0, 0, 8, 0, 0x80, 0, 0, 16, 4, 4, 0, 0]),
        "release": listens + stream + data * 3 + bytes([6, 0]) + data + bytes([6, 1, 6, 0]),
        "release_twice": listens + stream + data * 2 + bytes([6, 0, 6, 0]),
        "release_all": listens + stream + data * 2 + bytes([6, 254]),
        "release_other": listens + stream + data + bytes([6, 9]),
        "full": listens
        + stream
        + bytes([9, 0x10, 4, 220]) * 9
        + bytes([6, 0, 6, 1, 6, 2])
        + data * 2,
        "indices": b"".join(bytes([7, ring << 2 | bit, 1]) for ring in range(6) for bit in (0, 1)),
        "wild": bytes([7, 0x03, 1, 2, 3, 4]) + bytes([8, 0, 5, 31]) + bytes(range(32)),
        "closed": listens + stream + bytes([9, 0x10, 3]) + bytes([13]) + bytes([4, 4, 0, 0]) * 2,
        "cancel": bytes([3, 8 | 2, 1, 0, 3, 7, 1, 0]) + bytes([12, 4]),
        "late": listens + stream + bytes([12, 6]) * 2 + data + bytes([13]) + data,
    }
    for ring in range(6):
        for side in (0, 1):
            poke = bytes([7, ring << 2 | side, 3])
            seeds[f"poke_{ring}_{side}"] = listens + stream + data + desc + poke + data + desc
    return {f"channel_{name}": head + ops for name, ops in seeds.items()}


# ---- fuzz_wire ----


def wire_seeds() -> dict[str, bytes]:
    """One packet of each kind; checksums are put right by the harness."""
    ip = bytes([0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1])
    tcp = struct.pack(">HHIIBBHHH", 5000, 1001, 1, 2, 0xA0, 0x12, 65535, 0, 0)
    opts = bytes([2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7])
    sack = bytes([1, 1, 5, 18]) + struct.pack(">IIII", 1, 2, 3, 4)
    arp = struct.pack(
        ">HHBBH6sI6sI", 1, 0x800, 6, 4, 1, b"\2\0\0\0\0\1", 0x0A000002, bytes(6), 0x0A000001
    )
    echo = struct.pack(">BBHHH", 8, 0, 0, 1, 1) + b"ping"
    return {
        "wire_tcp": ip + tcp + opts + b"data",
        "wire_tcp_plain": tcp + opts,
        "wire_opts": opts,
        "wire_sack": sack,
        "wire_udp": ip + struct.pack(">HHHH", 1, 2, 12, 0) + b"data",
        "wire_echo": ip + echo,
        "wire_quote": ip + struct.pack(">BBHI", 3, 4, 0, 1000) + ip + tcp[:8],
        "wire_arp": arp,
        "wire_eth": bytes(12) + b"\x08\x00" + ip + tcp,
    }


def seeds() -> dict[str, dict[str, bytes]]:
    """All inputs, by harness and name."""
    return {
        "fuzz_engine": engine_seeds(),
        "fuzz_mnp": mnp_seeds(),
        "fuzz_pair": pair_seeds(),
        "fuzz_mnp_pair": mnp_pair_seeds(),
        "fuzz_channel": channel_seeds(),
        "fuzz_wire": wire_seeds(),
    }


def main() -> None:
    """Writes each input to DIRECTORY/harness/name."""
    root = Path(sys.argv[1])
    for harness, inputs in seeds().items():
        folder = root / harness
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
