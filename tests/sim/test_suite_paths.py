# SPDX-License-Identifier: MIT
"""Suite of network faults, J8 to J13: paths that change, and boxes on them that meddle."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from suite_talk import MS, SECOND, Talk, ends_met, noise

import machnet
from machnet.sim import DROP, PASS, Hop, Network, replace
from machnet.sim.nodes import Host, RawHost
from machnet.testing import Packet, icmp, tcp


def pair(net: Network, **settings: Any) -> tuple[Host, Host]:
    return net.host("10.0.0.1", **settings), net.host("10.0.0.2", **settings)


# ---- J8: bandwidth -------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", ["20p", "200p", None])
@pytest.mark.parametrize(
    ("fast", "slow", "size"), [("1Gbps", "1Mbps", 2_000_000), ("10Mbps", "10kbps", 60_000)]
)
def test_j8_bandwidth_steps_by_a_thousand(
    fast: str, slow: str, size: int, queue: str | None
) -> None:
    bits = {"1Mbps": 1_000_000, "10kbps": 10_000}[slow]
    for first, then in ((fast, slow), (slow, fast)):
        with Network(8) as net:
            a, b = pair(net)
            link = net.link(a, b, latency="1ms", bandwidth=first, queue=queue)
            talk = Talk(net, a, b, noise(size))
            # In the middle of it.
            half = size * 8 * SECOND // bits // 2 if first == slow else 5 * MS
            net.at(net.now_ns + half, lambda link=link, then=then: link.set(bandwidth=then))
            took = talk.run(3600 * SECOND)
            ideal = size * 8 * SECOND // bits
            assert took < 4 * ideal + 10 * SECOND, (took, ideal)
            talk.leaves_nothing()


def test_j8_bandwidth_that_swings() -> None:
    with Network(8) as net:
        a, b = pair(net)
        link = net.link(a, b, latency="1ms", bandwidth="1Gbps", queue="100p")
        talk = Talk(net, a, b, noise(3_000_000), noise(3_000_000, 3))
        for i in range(40):
            rate = "1Mbps" if i % 2 == 0 else "1Gbps"
            net.at(net.now_ns + (3 + 50 * i) * MS, lambda rate=rate: link.set(bandwidth=rate))
        talk.run(60 * SECOND)
        talk.leaves_nothing()


# ---- J9: bufferbloat -----------------------------------------------------------------------------


@pytest.mark.parametrize(("ranges", "share"), [(64, 2.0), (1024, 1.2)])
def test_j9_a_queue_of_ten_seconds(ranges: int, share: float) -> None:
    """Slow start overruns it and loses every second frame, 800 of them.

    With the default of 64 ranges of SACK most of that is not told, and waits for a timeout.
    """
    with Network(9) as net:
        ranges_max = {"ooo_ranges_max": ranges, "sack_ranges_max": ranges}
        a, b = pair(net, rcv_buf_bytes=8 << 20, **ranges_max)
        net.link(a, b, latency="10ms", bandwidth="1Mbps", queue="1250kB", back={"queue": None})
        talk = Talk(net, a, b, noise(6_000_000))
        took = talk.run(600 * SECOND)
        ideal = 6_000_000 * 8 * SECOND // 1_000_000
        assert took < share * ideal, took / ideal
        talk.leaves_nothing()


def test_j9_the_queue_appears_from_nowhere() -> None:
    """A round trip of 2 ms becomes one of seconds: timeouts come too early, and are got over."""
    with Network(9) as net:
        a, b = pair(net, rcv_buf_bytes=4 << 20)
        link = net.link(a, b, latency="1ms", bandwidth="1Gbps", queue="1250kB")
        talk = Talk(net, a, b, noise(4_000_000))
        net.at(net.now_ns + 12 * MS, lambda: link.forward.set(bandwidth="1Mbps"))
        took = talk.run(600 * SECOND)
        assert took < 70 * SECOND, took / SECOND
        talk.leaves_nothing()


# ---- J10: a short receive ring -------------------------------------------------------------------


@pytest.mark.parametrize("lasts_ms", [1, 20, 150, 1000, 5000])
def test_j10_the_ring_overflows_while_the_host_is_stopped(lasts_ms: int) -> None:
    with Network(10) as net:
        a, b = pair(net, rcv_buf_bytes=4 << 20)
        net.link(a, b, latency="5ms", bandwidth="10Gbps")
        talk = Talk(net, a, b, noise(8_000_000), noise(8_000_000, 9))
        pauses: list[Any] = []
        for i in range(3):
            at = net.now_ns + (60 + i * 300) * MS + i * lasts_ms * MS
            net.at(at, lambda: pauses.append(b.pause()))
            net.at(at + lasts_ms * MS, lambda: pauses[-1].heal())
        talk.run(60 * SECOND)
        net.run(until=max(net.now_ns, 20 * SECOND))
        talk.leaves_nothing()


@pytest.mark.parametrize("lasts_ms", [1, 20, 150, 1000])
def test_j10_tail_drop_at_256_frames(lasts_ms: int) -> None:
    with Network(10) as net:
        a, b = pair(net, rcv_buf_bytes=4 << 20)
        link = net.link(a, b, latency="5ms", bandwidth="10Gbps", queue="256p")
        talk = Talk(net, a, b, noise(8_000_000))
        clogs: list[Any] = []
        for i in range(3):
            at = net.now_ns + (50 + i * 300) * MS + i * lasts_ms * MS
            net.at(at, lambda: clogs.append(net.clog(a, b)))
            net.at(at + lasts_ms * MS, lambda: clogs[-1].heal())
        talk.run(60 * SECOND)
        assert link.forward.stats().faults["queue"] > 0
        net.run(until=max(net.now_ns, 20 * SECOND))
        talk.leaves_nothing()


# ---- J11: boxes in the middle --------------------------------------------------------------------

#: What is stripped of a SYN, as fields of `Packet.with_`.
STRIPPED: dict[str, dict[str, Any]] = {
    "mss": {"mss": None},
    "wscale": {"wscale": None},
    "sack": {"sack_ok": None},
    "timestamps": {"ts": None},
    "all": {"options": []},
}


@pytest.mark.parametrize("where", ["syn", "both", "all segments"])
@pytest.mark.parametrize("what", STRIPPED)
def test_j11_options_are_stripped(what: str, where: str) -> None:
    with Network(11) as net:
        a, b = pair(net)
        net.link(a, b, latency="5ms", bandwidth="100Mbps", loss=0.01)

        def strip(packet: Packet, hop: Hop) -> Any:
            if packet.tcp is None:
                return PASS
            syn = "S" in packet.tcp.flags
            if where == "all segments":
                return replace(
                    packet.with_(**({"options": []} if what == "all" else STRIPPED[what]))
                )
            wanted = syn and (where == "both" or hop.sender is a)
            return replace(packet.with_(**STRIPPED[what])) if wanted else PASS

        net.rule(strip)
        talk = Talk(net, a, b, noise(400_000), noise(400_000, 3))
        talk.run(60 * SECOND)
        talk.leaves_nothing()


@pytest.mark.parametrize("what", STRIPPED)
def test_j11_options_of_the_syn_ack_alone_are_stripped(what: str) -> None:
    """The two sides take different things for agreed: data or errors arrive, and none waits."""
    with Network(11) as net:
        a, b = pair(net, user_timeout_ms=20_000)
        net.link(a, b, latency="5ms", bandwidth="100Mbps")

        def strip(packet: Packet, hop: Hop) -> Any:
            wanted = packet.tcp is not None and "S" in packet.tcp.flags and hop.sender is b
            return replace(packet.with_(**STRIPPED[what])) if wanted else PASS

        net.rule(strip)
        talk = Talk(net, a, b, noise(400_000), noise(400_000, 3))
        if what in {"timestamps", "all"}:
            # What has no timestamp is dropped by the server, for which they are agreed.
            assert not ends_met(net, talk.ends, 120 * SECOND)
            assert isinstance(talk.client.error, machnet.FlowError)
            assert talk.server.flow is None
        else:
            talk.run(120 * SECOND)
        talk.leaves_nothing()


@pytest.mark.parametrize("delta", [1, 12345, 2**31, 2**32 - 5000])
def test_j11_sequence_numbers_are_rewritten(delta: int) -> None:
    with Network(11) as net:
        a, b = pair(net)
        net.link(a, b, latency="2ms", bandwidth="100Mbps", loss=0.02, reorder=0.02)

        def rewrite(packet: Packet, hop: Hop) -> Any:
            if packet.tcp is None:
                return PASS
            if hop.sender is a:
                return replace(packet.with_(seq=(packet.seq + delta) % 2**32))
            changes: dict[str, Any] = {"ack": (packet.ack - delta) % 2**32}
            if packet.sack:
                changes["sack"] = [tuple((n - delta) % 2**32 for n in r) for r in packet.sack]
            return replace(packet.with_(**changes))

        net.rule(rewrite)
        talk = Talk(net, a, b, noise(300_000), noise(300_000, 3))
        talk.run(30 * SECOND)
        talk.leaves_nothing()


def boxed(net: Network, **params: Any) -> tuple[Host, Host, RawHost]:
    """Two hosts on a switch, and a third party that can put in frames."""
    a, b = pair(net, **params)
    switch, box = net.switch(), net.raw_host("10.0.0.254")
    net.link(a, switch, latency="1ms", bandwidth="100Mbps")
    net.link(b, switch, latency="1ms", bandwidth="100Mbps")
    net.link(box, switch, latency=0, bandwidth=None)
    return a, b, box


def put_in(net: Network, box: RawHost, packet: Packet, after_ns: int = 0) -> None:
    """The box sends a packet, under its own address on the link."""
    frame = bytes(packet.with_(eth_src=box.mac))
    net.at(net.now_ns + after_ns, lambda: box.send(frame), "put_in")


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_j11_segments_are_split(parts: int) -> None:
    with Network(11) as net:
        a, b, box = boxed(net)

        def split(packet: Packet, hop: Hop) -> Any:
            data = packet.payload
            if packet.tcp is None or hop.sender not in {a, b} or len(data) < parts:
                return PASS
            size = -(-len(data) // parts)
            for at in range(size, len(data), size):
                last = at + size >= len(data)
                flags = packet.flags if last else packet.flags.replace("F", "")
                part = packet.with_(
                    seq=(packet.seq + at) % 2**32, payload=data[at : at + size], flags=flags
                )
                put_in(net, box, part)
            first = packet.with_(payload=data[:size], flags=packet.flags.replace("F", ""))
            return replace(first)

        net.rule(split)
        talk = Talk(net, a, b, noise(100_000), noise(100_000, 3))
        talk.run(30 * SECOND)
        talk.leaves_nothing()


def test_j11_segments_are_coalesced() -> None:
    """As receive offload does: two segments become one, longer than the MSS, or come late."""
    with Network(11) as net:
        a, b, box = boxed(net)
        held: dict[Any, Packet] = {}
        merged = 0

        def release(sender: Any, packet: Packet) -> None:
            if held.get(sender) is packet:
                del held[sender]
                box.send(bytes(packet.with_(eth_src=box.mac)))

        def coalesce(packet: Packet, hop: Hop) -> Any:
            nonlocal merged
            if packet.tcp is None or hop.sender not in {a, b} or not packet.payload:
                return PASS
            before = held.pop(hop.sender, None)
            if before is not None:
                if (before.seq + len(before.payload)) % 2**32 == packet.seq:
                    merged += 1
                    data = before.payload + packet.payload
                    return replace(packet.with_(seq=before.seq, payload=data))
                put_in(net, box, before)
            if len(packet.payload) > 700:
                return PASS
            held[hop.sender] = packet
            net.at(hop.now_ns + MS, lambda: release(hop.sender, packet), "release")
            return DROP

        net.rule(coalesce)
        talk = Talk(
            net, a, b, noise(100_000), noise(100_000, 3), before_connect=lambda: small_mss(net)
        )
        talk.run(30 * SECOND)
        assert merged > 10
        talk.leaves_nothing()


def small_mss(net: Network) -> None:
    """Make all segments of 600 bytes, so that two fit a frame."""

    def clamp(packet: Packet, hop: Hop) -> Any:
        syn = packet.tcp is not None and "S" in packet.tcp.flags
        return replace(packet.with_(mss=600)) if syn else PASS

    net.rule(clamp)


@pytest.mark.parametrize("offset", [1, 999, 30_001, 2**31, 2**32 - 1, 2**32 - 1000])
def test_j11_resets_that_miss_do_nothing(offset: int) -> None:
    """RFC 5961 3.2: only the very next number counts, in the window there is a challenge."""
    with Network(11) as net:
        a, b, box = boxed(net)
        talk = Talk(net, a, b, noise(200_000), noise(100_000, 3))

        def inject(packet: Packet, hop: Hop) -> Any:
            if packet.tcp is not None and hop.sender in {a, b} and "S" not in packet.tcp.flags:
                # The acknowledgement says what its sender waits for.
                number = (packet.ack + offset) % 2**32
                back = tcp("R", seq=number, sport=packet.dport, dport=packet.sport)
                ends = {"src": packet.dst, "dst": packet.src, "eth_dst": packet.eth_src}
                put_in(net, box, Packet(back.build(ends)))
            return PASS

        with net.rule(inject) as rule:
            talk.run(30 * SECOND)
        assert rule.packets > 100
        talk.leaves_nothing()


@pytest.mark.parametrize("victim", ["client", "server"])
def test_j11_a_reset_that_hits_ends_both_sides(victim: str) -> None:
    with Network(11) as net:
        a, b = pair(net)
        net.link(a, b, latency="1ms", bandwidth="100Mbps")
        talk = Talk(net, a, b, noise(400_000), noise(400_000, 3))
        hit = a if victim == "client" else b
        done: list[int] = []

        def inject(packet: Packet, hop: Hop) -> Any:
            if done or hop.receiver is not hit or not packet.payload or hop.now_ns < 15 * MS:
                return PASS
            done.append(hop.now_ns)
            return replace(packet.with_(flags="R", payload=b"", options=[]))

        with net.rule(inject):
            talk.run_to_an_end(30 * SECOND)
        assert done
        assert isinstance(talk.client.error, machnet.FlowResetError)
        assert isinstance(talk.server.error, machnet.FlowResetError)
        talk.leaves_nothing()


# ---- J12: NAT rebinding --------------------------------------------------------------------------


class Nat:
    """Translates the client's ports; `rebind` gives them other ones and forgets the old ones."""

    def __init__(self, inside: Host) -> None:
        self.inside, self.shift = inside, 0
        self.known: set[int] = set()

    def rebind(self) -> None:
        """From now on everything from inside comes from a new port."""
        self.shift += 1

    def __call__(self, packet: Packet, hop: Hop) -> Any:
        if packet.tcp is None:
            return PASS
        if hop.sender is self.inside:
            self.known.add(packet.sport)
            return replace(packet.with_(sport=packet.sport - self.shift))
        port = packet.dport + self.shift
        return replace(packet.with_(dport=port)) if port in self.known else DROP


@pytest.mark.parametrize("at_ms", [3, 5, 12, 30])
def test_j12_nat_rebinding(at_ms: int) -> None:
    """The server knows no such connection: RST. Its own, old one ends by its user timeout."""
    with Network(12) as net:
        a, b = pair(net, user_timeout_ms=10_000)
        net.link(a, b, latency="1ms", bandwidth="100Mbps")
        nat = Nat(a)
        net.rule(nat)
        talk = Talk(net, a, b, noise(1_000_000), noise(1_000_000, 3))
        net.at(at_ms * MS, nat.rebind)
        talk.run_to_an_end(60 * SECOND)
        assert isinstance(talk.client.error, machnet.FlowResetError)
        assert talk.server.error is not None
        assert talk.server.error.errno == errno.ETIMEDOUT
        talk.close()
        after = Talk(net, a, b, noise(10_000), noise(10_000, 3), port=7001)
        after.run(5 * SECOND)
        after.leaves_nothing()


# ---- J13: the MTU changes ------------------------------------------------------------------------


def too_long(net: Network, box: RawHost, sender: Host, mtu: int) -> Callable[..., Any]:
    """A router that drops what is longer than ``mtu``, and says so."""

    def router(packet: Packet, hop: Hop) -> Any:
        if packet.ip is None or hop.sender is not sender or packet.ip_len <= mtu:
            return PASS
        quoted = packet.ip_packet[:28]
        answer = icmp("unreachable", 4, mtu=mtu, quoted=quoted)
        ends = {"src": box.ip, "dst": packet.src, "eth_dst": packet.eth_src, "eth_src": box.mac}
        frame = answer.build(ends)
        net.at(hop.now_ns, lambda: box.send(frame), "icmp")
        return DROP

    return router


@pytest.mark.parametrize("mtu", [1499, 1280, 1000, 600, 552])
def test_j13_the_mtu_falls_and_a_router_says_so(mtu: int) -> None:
    with Network(13) as net:
        a, b, box = boxed(net)
        talk = Talk(net, a, b, noise(1_000_000), noise(50_000, 3))
        net.at(30 * MS, lambda: net.rule(too_long(net, box, a, mtu)))
        took = talk.run(30 * SECOND)
        assert took < 2 * SECOND
        assert a.stack.stats()["icmp_errors"] > 0
        talk.leaves_nothing()


def test_j13_the_mtu_falls_step_by_step_and_rises() -> None:
    with Network(13) as net:
        a, b, box = boxed(net)
        talk = Talk(net, a, b, noise(2_000_000), noise(50_000, 3))
        rules: list[Any] = []
        for i, mtu in enumerate((1400, 1100, 800, 1500)):

            def step(mtu: int = mtu) -> None:
                for rule in rules:
                    rule.remove()
                rules.append(net.rule(too_long(net, box, a, mtu)))

            net.at((20 + 40 * i) * MS, step)
        assert talk.run(30 * SECOND) < 3 * SECOND
        talk.leaves_nothing()


def test_j13_the_mtu_falls_and_nobody_says_so() -> None:
    """A black hole (RFC 4821 is not done): the timeout ends it, and who is left is told."""
    with Network(13) as net:
        a, b = pair(net, user_timeout_ms=20_000)
        link = net.link(a, b, latency="1ms", bandwidth="100Mbps")
        talk = Talk(net, a, b, noise(1_000_000), noise(1_000_000, 3))
        net.at(30 * MS, lambda: link.set(mtu=1000))
        talk.run_to_an_end(60 * SECOND)
        for end in talk.ends:
            assert isinstance(end.error, machnet.FlowError)
        link.set(mtu=None)
        talk.close()
        after = Talk(net, a, b, noise(10_000), noise(10_000, 3), port=7001)
        after.run(5 * SECOND)
        after.leaves_nothing()
