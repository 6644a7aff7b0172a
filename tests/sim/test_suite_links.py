# SPDX-License-Identifier: MIT
"""Suite of network faults, J1 to J5: what links do to frames, far beyond what is usual.

No transfer stalls, and every byte arrives, once and in order; the invariants of `Network` are on.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from suite_talk import MS, SECOND, End, FramedEnd, Talk, ends_met, noise

from machnet.sim import PASS, GilbertElliott, Hop, Network, delay, replace
from machnet.sim.faults import Duplicate
from machnet.testing import Packet

NIGHTLY = "MACHNET_NIGHTLY" in os.environ
SEEDS = range(20) if NIGHTLY else range(1)

RTTS = {"10us": "5us", "100us": "50us", "1ms": "500us", "100ms": "50ms"}
BUFFERS = {"8KiB": 8 << 10, "64KiB": 64 << 10, "512KiB": 512 << 10}


def transfer_both_ways(
    seed: int,
    params: dict[str, Any],
    within_ns: int,
    size: int = 200_000,
    settings: dict[str, Any] | None = None,
    burst_loss: GilbertElliott | None = None,
) -> int:
    """One conversation across a link; how long it took. Bursts begin once it is connected.

    The stacks are patient: a timeout that has grown to a minute may meet many more losses.
    """
    settings = {"user_timeout_ms": 36_000_000, "syn_timeout_ms": 36_000_000, **(settings or {})}
    with Network(seed, record=2000) as net:
        a = net.host("10.0.0.1", **settings)
        b = net.host("10.0.0.2", **settings)
        link = net.link(a, b, **params)
        talk = Talk(net, a, b, noise(size), noise(size // 3, 5))
        if burst_loss is not None:
            # The listener's patience with a handshake (63 s) is less than some bursts need.
            talk.run_until_accepted()
            link.set(burst_loss=burst_loss)
        took = talk.run(within_ns)
        link.set(loss=0, corrupt=0, burst_loss=None)
        talk.leaves_nothing()
        return took


# ---- J1: loss, round-trip time, buffers ----------------------------------------------------------


@pytest.mark.parametrize("rtt", RTTS)
@pytest.mark.parametrize("loss", ["0%", "0.1%", "1%", "2%", "5%", "10%", "20%", "30%"])
def test_j1_loss_rtt_buffer(loss: str, rtt: str) -> None:
    within = {"30%": 3000, "20%": 300, "10%": 60}.get(loss, 20) * SECOND
    for seed in SEEDS:
        for n, size in enumerate(BUFFERS.values()):
            params = {"latency": RTTS[rtt], "loss": loss, "bandwidth": "100Mbps"}
            settings = {"rcv_buf_bytes": size}
            transfer_both_ways(10 * seed + n, params, within, settings=settings)


@pytest.mark.parametrize("queue", ["2p", "5p", "20p", "3KiB", "64KiB"])
@pytest.mark.parametrize("bandwidth", ["1Mbps", "100Mbps", None])
def test_j1_short_queues(bandwidth: str | None, queue: str) -> None:
    for latency in ("10us", "10ms"):
        params = {"latency": latency, "bandwidth": bandwidth, "queue": queue}
        transfer_both_ways(1, params, 120 * SECOND)


# ---- J2: losses in bursts ------------------------------------------------------------------------


@pytest.mark.parametrize("good", ["50%", "20%", "5%"])
@pytest.mark.parametrize("bad", ["0.5%", "2%", "10%"])
def test_j2_losses_in_bursts(bad: str, good: str) -> None:
    for seed in SEEDS:
        for loss_bad, loss_good in ((1.0, 0.0), (0.7, 0.02)):
            burst = GilbertElliott(bad=bad, good=good, loss_bad=loss_bad, loss_good=loss_good)
            for latency in ("50us", "20ms"):
                params = {"latency": latency, "bandwidth": "100Mbps"}
                transfer_both_ways(seed, params, 36_000 * SECOND, 60_000, burst_loss=burst)


# ---- J3: reordering ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 8, 50])
def test_j3_reordered_by_packets(k: int) -> None:
    # So long does a full frame take at 100 Mbit/s.
    frame_ns = 1514 * 8 * 10
    with Network(3) as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        net.link(a, b, latency="1ms", bandwidth="100Mbps")
        count = 0

        def hold(packet: Packet, hop: Hop) -> Any:
            nonlocal count
            if hop.sender is not a or not packet.payload:
                return PASS
            count += 1
            return delay(k * frame_ns + frame_ns // 2) if count % 20 == 0 else PASS

        talk = Talk(net, a, b, noise(300_000))
        with net.rule(hold) as rule:
            talk.run(5 * SECOND)
        assert rule.hits > 5
        again = a.stack.stats()["tcp_retransmits"]
        # Less than three duplicate acknowledgements are no loss (RFC 5681 3.2).
        assert again == 0 if k < 3 else again > 0
        talk.leaves_nothing()


@pytest.mark.parametrize("held", ["1us", "100us", "3ms", "50ms", "300ms", "2s"])
def test_j3_reordered_by_time(held: str) -> None:
    for seed in SEEDS:
        for share in ("1%", "10%", "50%"):
            params = {"latency": "1ms", "bandwidth": "100Mbps", "reorder": share}
            transfer_both_ways(seed, {**params, "reorder_delay": held}, 300 * SECOND)


@pytest.mark.parametrize("distribution", ["uniform", "normal", "exponential"])
def test_j3_jitter_without_order(distribution: str) -> None:
    for seed in SEEDS:
        for jitter in ("100us", "5ms", "19ms"):
            params = {"latency": "20ms", "jitter": jitter, "distribution": distribution}
            transfer_both_ways(seed, {**params, "keep_order": False}, 60 * SECOND)


# ---- J4: duplication -----------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["1%", "10%", "50%", "100%"])
def test_j4_duplication(share: str) -> None:
    for seed in SEEDS:
        for held in (0, "100us", "30ms", "500ms", "65s"):
            params = {"latency": "1ms", "duplicate": share, "duplicate_delay": held}
            transfer_both_ways(seed, {**params, "bandwidth": "100Mbps"}, 20 * SECOND)
            transfer_both_ways(seed, {**params, "loss": "5%"}, 60 * SECOND)


def test_j4_each_frame_of_a_short_conversation_twice() -> None:
    for name in ("h1>h2", "h2>h1"):
        for nth in range(14):
            with Network(4) as net:
                a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
                net.link(a, b, latency="1ms")
                net.apply([Duplicate(name, nth)])
                talk = Talk(net, a, b, noise(4000), noise(4000, 1))
                assert talk.run(SECOND) < 200 * MS
                talk.leaves_nothing()


# ---- J5: corruption ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", ["1%", "10%", "30%"])
def test_j5_one_bit(share: str) -> None:
    for seed in SEEDS:
        params = {"latency": "1ms", "bandwidth": "100Mbps", "corrupt": share}
        transfer_both_ways(seed, params, 3000 * SECOND)


@pytest.mark.parametrize("bits", [2, 3, 8, 100])
def test_j5_many_bits(bits: int) -> None:
    """Two and more may cancel out in a checksum: then the bytes are others, as in life."""
    for seed in range(len(SEEDS) * 3):
        with Network(seed, invariants=False) as net:
            a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
            net.link(a, b, latency="1ms", bandwidth="100Mbps")
            draw = random.Random(seed)

            def flip(packet: Packet, hop: Hop, draw: random.Random = draw) -> Any:
                if draw.random() > 0.1:
                    return PASS
                frame = bytearray(bytes(packet))
                for _ in range(bits):
                    frame[draw.randrange(len(frame))] ^= 1 << draw.randrange(8)
                return replace(bytes(frame))

            rule = net.rule(flip)
            talk = Talk(net, a, b, noise(200_000), noise(50_000))
            net.at("20s", rule.remove)
            assert ends_met(net, talk.ends, 400 * SECOND)
            rule.remove()
            talk.close()
            survives(net, a, b)


def swap_words(packet: Packet, draw: random.Random, first: int) -> Any:
    """Two 16-bit words of a segment change places, which no checksum sees."""
    frame = bytearray(bytes(packet))
    words = range(first, len(frame) - 1, 2)
    if len(words) < 2:
        return PASS
    i, j = draw.sample(words, 2)
    frame[i : i + 2], frame[j : j + 2] = frame[j : j + 2], frame[i : i + 2]
    return replace(bytes(frame))


def test_j5_swapped_words_of_payload() -> None:
    """Streams bring other bytes, as many; frames may break, and then both sides are told."""
    broken = 0
    for seed in range(len(SEEDS) * 12):
        with Network(seed, invariants=False) as net:
            a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
            net.link(a, b, latency="1ms", bandwidth="100Mbps")
            draw = random.Random(seed)

            def swap(packet: Packet, hop: Hop, draw: random.Random = draw) -> Any:
                if packet.tcp is None or not packet.payload or draw.random() > 0.2:
                    return PASS
                return swap_words(packet, draw, len(bytes(packet)) - len(packet.payload))

            talk = Talk(net, a, b, noise(100_000))
            server, client = b.attach(), a.attach()
            server.listen(b.ip, 7001, protocol="tcp")
            flow = client.connect(a.ip, b.ip, 7001, protocol="tcp")
            messages = [noise(size) for size in range(0, 4000, 100)]
            ends: list[End] = [
                FramedEnd(client, flow, messages, 10, closes=True),
                FramedEnd(server, None, messages[:10], 40, closes=False),
            ]
            with net.rule(swap):
                assert ends_met(net, talk.ends, 60 * SECOND)
                ends_met(net, ends, 30 * SECOND)
            assert len(talk.server.got) == 100_000
            broken += any(end.error is not None for end in ends)
            client.close()
            server.close()
            talk.close()
            survives(net, a, b)
    assert broken


def test_j5_swapped_words_anywhere() -> None:
    """Numbers, ports, flags and options that nobody sent: both stacks live through it."""
    for seed in range(len(SEEDS) * 30):
        with Network(seed, invariants=False) as net:
            a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
            net.link(a, b, latency="1ms", bandwidth="100Mbps")
            draw = random.Random(seed)

            def swap(packet: Packet, hop: Hop, draw: random.Random = draw) -> Any:
                if packet.tcp is None or draw.random() > 0.1:
                    return PASS
                return swap_words(packet, draw, 34)

            talk = Talk(net, a, b, noise(100_000), noise(10_000))
            with net.rule(swap):
                ends_met(net, talk.ends, 30 * SECOND)
            talk.close()
            survives(net, a, b)


def survives(net: Network, a: Any, b: Any) -> None:
    """What comes after is as if nothing had been."""
    net.advance("1s")
    after = Talk(net, a, b, noise(30_000), noise(30_000, 7), port=7777)
    after.run(5 * SECOND)
    after.leaves_nothing()
