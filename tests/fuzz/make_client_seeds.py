# SPDX-License-Identifier: MIT
"""Writes the inputs that fuzz_client and fuzz_lanes begin with: `make_client_seeds.py FOLDER`.

The bytes are those that fuzz_client.c, fz_sidecar.c and fz_engines.c read, in their order.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Operations of the application (fuzz_client.c); those of a channel are followed by an argument.
LISTEN, CONNECT, SEND, SENDMMSG, RECV, RECVMSG, CLOSE, ERROR, FD = 0, 1, 2, 3, 4, 7, 8, 9, 10
ATTACH, INIT, ENGINE = 11, 12, 13
# What an engine does (fz_engines.c), lane 0.
EVENT, ACCEPTS, DELIVER, MESSAGES, COMPLETED, INDEX = 0, 2, 3, 5, 7, 8
POKE, DRAIN, FLAGS, WAKE, ANSWER = 9, 10, 12, 13, 14

TWO_LANES = bytes([0x21, 0x21])  # of both channels: two lanes, 20 flows
ACCEPT_TCP, ACCEPT_STREAM = 1 << 5, 2 << 5


def engine(what: int, *arguments: int, lane: int = 0) -> bytes:
    """An operation of the engine of a lane."""
    return bytes([ENGINE, what | lane << 4, *arguments])


LISTENS = bytes([LISTEN, 1 << 2]) + engine(ANSWER)
MESSAGE = engine(ACCEPTS, ACCEPT_TCP | 1) + engine(MESSAGES, 0, 1)
LANES = {
    "message": LISTENS + MESSAGE + bytes([RECV, 0, 100, SEND, 0, 50]) + engine(COMPLETED, 0),
    "two_lanes": LISTENS
    + MESSAGE
    + engine(ACCEPTS, ACCEPT_TCP | 1, lane=1)
    + engine(MESSAGES, 0, 2, lane=1)
    + bytes([RECV, 0, 100, RECVMSG, 1, 100, ERROR, 0, CLOSE, 0])
    + engine(DRAIN),
    "connect": bytes([CONNECT, 2]) + bytes([ANSWER, 1, ANSWER, 1]) + bytes([SENDMMSG, 0x80, 9]),
    "stream": bytes([LISTEN, 2 << 2])
    + engine(ANSWER)
    + engine(ACCEPTS, ACCEPT_STREAM | 1)
    + engine(DELIVER, 0, 0, 0)
    + bytes([RECV, 0, 100, ERROR, 0]),
    "owed_to_an_engine_without_room": bytes([FD, 0])
    + engine(ACCEPTS, ACCEPT_TCP | 16)
    + bytes([RECV, 0, 16])
    + engine(ACCEPTS, ACCEPT_TCP | 4)
    + bytes([RECV, 0, 16]),
    "impossible_index": LISTENS + engine(INDEX, 9, 100) + bytes([RECV, 0, 1]),
    "closed": LISTENS + engine(FLAGS, 7, 0, 0, 0, 9) + bytes([RECVMSG, 7, 1]),
    "wakes": bytes([FD, 0]) + engine(WAKE, 200) + bytes([RECV, 0, 1]) + engine(WAKE, 255),
    "header": engine(POKE, 7, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8) + bytes([ATTACH, ATTACH]),
}

GOOD = bytes([1, 0])  # one reply, as it should be
CLIENT = {
    "good": GOOD + GOOD + bytes([0x21]) + LISTENS + bytes([ATTACH]) + GOOD,
    "silent": b"",
    "flood": bytes([0x30]),
    "hangs_up": GOOD + bytes([0x10]),
    "short": bytes([1, 2, 0, 0, 200]),
    "no_size": bytes([1, 2, 0, 0, 0]),
    "refused": bytes([1, 9, 13]),
    "another_id_first": bytes([2, 4, 1, 0]) + GOOD + b"\x01",
    "fewer_descriptors": GOOD + bytes([1, 8, 0x01, 9]),
    "more_descriptors": GOOD + bytes([1, 6, 0x01, 0x3F]) + bytes(range(32)),
    "odd_descriptors": GOOD + bytes([1, 7, 0x01, 2, 2]),
    "lanes": GOOD + bytes([1, 10, 0x01, 200]),
    "unsealed": GOOD + bytes([1, 13, 1, 0x01, 0]),
    "short_memory": GOOD + bytes([1, 13, 4, 0x01, 0x10, 0]),
    "large_memory": GOOD + bytes([1, 13, 12, 0x01, 40]),
    "odd_header": GOOD + bytes([1, 13, 0x40, 0x01, 32, 3, 9, 9, 9, 9]),
    "one_number_twice": GOOD + GOOD + bytes([0x01, ATTACH | 0x40, 1, 11, 0x01, 1]),
    "raw": bytes([1, 12, 0]) + bytes(range(200)),
}


def main() -> None:
    """Writes them."""
    folder = Path(sys.argv[1])
    for harness, inputs in (
        ("fuzz_client", CLIENT),
        ("fuzz_lanes", {name: TWO_LANES + data for name, data in LANES.items()}),
    ):
        (folder / harness).mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / harness / name).write_bytes(data)


if __name__ == "__main__":
    main()
