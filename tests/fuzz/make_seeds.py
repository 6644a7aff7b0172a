# SPDX-License-Identifier: MIT
"""Writes the hand-made inputs of the fuzzers: ``make_seeds.py DIRECTORY``.

Each is a scenario that a fuzzer would need long to find (a handshake, a gap, a closed window, ...) in
the encoding that the harness of the same name reads. The checked-in corpus is these and what the
fuzzers made of them, minimised (``run.py --merge``). When an encoding changes, these change with it
(``seeds_engine.py``, ``seeds_mnp.py`` and, for the other harnesses, this file), and the corpus is made
again.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from seeds_engine import engine_seeds
from seeds_mnp import mnp_seeds

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
