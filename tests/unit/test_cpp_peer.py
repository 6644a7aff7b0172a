# SPDX-License-Identifier: MIT
"""The emulated C++ Machnet does what is known of the original, its defects included."""

from __future__ import annotations

import mnp_wire as w
import pytest
from cpp_host import CppHost
from cpp_peer import CppCrash, CppFlow, CppMachnet
from mnp_wire import Addresses, Mnp

from machnet.sim import Network
from machnet.testing import Packet, arp, icmp

HERE = Addresses("02:00:00:00:00:0a", "02:00:00:00:00:0b", "10.0.0.1", "10.0.0.2", 5000, 888)


class Lab:
    """The emulated host at 10.0.0.2, and packets from 10.0.0.1."""

    def __init__(self, **settings: str) -> None:
        self.peer = CppMachnet(HERE.dst, HERE.dst_mac, **settings)  # type: ignore[arg-type]
        self.path = HERE

    def put(self, *packets: Mnp) -> list[Mnp]:
        """Its answers to packets."""
        for packet in packets:
            self.peer.receive(w.frame(self.path, packet))
        return self.out()

    def out(self) -> list[Mnp]:
        found = [w.parse_frame(raw) for raw in self.peer.take()]
        assert None not in found
        return [one[1] for one in found if one is not None]

    def ticks(self, count: int = 1) -> list[list[Mnp]]:
        """What it sends at each tick."""
        said = []
        for _ in range(count):
            self.peer.tick()
            said.append(self.out())
        return said

    def passive(self, isn: int = 700) -> CppFlow:
        """A flow that it has accepted."""
        self.peer.listen(888)
        self.put(Mnp(w.SYN, isn, 0), Mnp(w.ACK, isn + 1, 1))
        (flow,) = self.peer.flows.values()
        assert flow.state == "ESTABLISHED"
        return flow

    def active(self, isn: int = 700) -> CppFlow:
        """A flow that it has opened."""
        box = self.peer.connect(HERE.src, 888)
        self.peer.tick()
        (query,) = self.peer.take()
        asked = Packet(query).arp
        assert asked is not None
        reply = arp("reply", eth_src=HERE.src_mac, eth_dst=HERE.dst_mac, sender_mac=HERE.src_mac,
                    sender_ip=HERE.src, target_mac=HERE.dst_mac, target_ip=HERE.dst)  # fmt: skip
        self.peer.receive(bytes(Packet(reply.build({}))))
        assert self.ticks() == [[Mnp(w.SYN, 0, 0)]]
        (flow,) = box
        self.path = flow.path.turned()
        assert flow.path.sport == 1024
        assert self.put(Mnp(w.SYN_ACK, isn, 1)) == [Mnp(w.ACK, 1, isn + 1)]
        return flow


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_handshake_of_the_passive_side(lab: Lab) -> None:
    assert lab.put(Mnp(w.SYN, 700, 0)) == [], "nobody listens: silence"
    lab.peer.listen(888)
    assert lab.put(Mnp(w.SYN, 700, 0)) == [Mnp(w.SYN_ACK, 0, 701)]
    assert lab.put(Mnp(w.SYN, 700, 0)) == [Mnp(w.SYN_ACK, 0, 701)]
    assert lab.put(w.cut(b"early", 701)[0]) == [], "DATA is dropped before the last ACK"
    assert lab.ticks(12) == [[]] * 12, "its SYN-ACK is not repeated by a timer"
    assert lab.put(Mnp(w.ACK, 701, 1)) == []
    assert lab.put(Mnp(w.SYN, 700, 0)) == []
    assert lab.put(w.cut(b"late", 701)[0])[0].ackno == 702
    (flow,) = lab.peer.flows.values()
    assert flow.messages == [b"late"]


def test_handshake_of_the_active_side(lab: Lab) -> None:
    flow = lab.active()
    assert lab.put(Mnp(w.SYN_ACK, 700, 1)) == [Mnp(w.ACK, 1, 701)]
    flow.send(b"x")
    lab.out()
    assert lab.put(Mnp(w.SYN_ACK, 700, 1)) == [], "once DATA is out, it is not the number expected"


def test_connecting_is_given_up_after_three_repetitions(lab: Lab) -> None:
    lab.peer._arp[HERE.src] = HERE.src_mac
    box = lab.peer.connect(HERE.src, 888)
    assert not box, "the request is looked at on the next tick"
    said = [len(one) for one in lab.ticks(14)]
    assert said == [1] + [0, 0, 1] * 3 + [0] * 4
    assert box[0].gone == "given up"
    assert box[0].failed


def test_retransmission_at_the_third_tick_thrice_then_silence(lab: Lab) -> None:
    flow = lab.passive()
    flow.send(b"x")
    (first,) = lab.out()
    assert (first.seqno, first.ackno, first.msg_flags) == (1, w.NO_ACK, w.SINGLE)
    said = [[packet.seqno for packet in one] for one in lab.ticks(12)]
    assert said == [[], [], [1]] * 3 + [[]] * 3
    assert flow.gone == "given up"
    assert not lab.peer.flows, "and no RST"


def test_bytes_12_to_45_of_data_are_garbage(lab: Lab) -> None:
    lab.passive().send(b"x")
    (data,) = lab.out()
    assert data.body == b"\xff" * 32
    assert data.count == 0xFFFF
    other = Lab(garbage="marker", csum="zero")
    other.passive().send(b"x")
    (raw,) = other.peer.take()
    found = w.parse_frame(raw)
    assert found is not None
    assert found[1].marked
    assert Packet(raw).udp is not None
    assert raw[40:42] == b"\0\0"


def test_messages_are_cut_and_flagged(lab: Lab) -> None:
    flow = lab.passive()
    flow.send(bytes(3000))
    said = [(packet.seqno, packet.msg_flags, len(packet.payload)) for packet in lab.out()]
    assert said == [(1, 3, 1418), (2, 2, 1418), (3, 4, 164)]


def test_chain_and_notify_leak(lab: Lab) -> None:
    flow = lab.passive()
    flow.send(b"a", notify=True)
    assert lab.out()[0].msg_flags == w.SINGLE | w.NOTIFY
    flow.send(b"b")
    assert lab.out()[0].msg_flags == w.SINGLE
    assert lab.ticks(3)[2][0].msg_flags == w.SINGLE | w.NOTIFY | w.CHAIN


def test_thirty_two_packets_are_in_flight(lab: Lab) -> None:
    flow = lab.passive()
    flow.send(bytes(1418 * 40))
    assert [packet.seqno for packet in lab.out()] == list(range(1, 33))
    assert [packet.seqno for packet in lab.put(Mnp(w.ACK, 701, 3))] == [33, 34]
    assert [packet.seqno for packet in lab.put(Mnp(w.ACK, 701, 3, count=4))] == [35, 36, 37, 38]
    assert lab.put(Mnp(w.ACK, 701, 3, count=0)) == [], "the count shrank: no room is left"


def test_every_data_packet_is_acknowledged_at_once(lab: Lab) -> None:
    flow = lab.passive()
    one, two, three = w.cut(bytes(3000), 701)
    assert [packet.ackno for packet in lab.put(one, three)] == [702, 702]
    assert [packet.ackno for packet in lab.put(one, two)] == [702, 704]
    assert flow.messages == [bytes(3000)]
    lab.peer.starved = True
    assert lab.put(w.cut(b"x", 704)[0]) == [], "no buffer: no ACK"
    assert [packet.ackno for packet in lab.put(one)] == [704]


def test_receive_window_is_64_packets(lab: Lab) -> None:
    flow = lab.passive()
    assert lab.put(w.cut(b"x", 701 + 63)[0])[0].count == 1
    (answer,) = lab.put(w.cut(b"x", 701 + 64)[0])
    assert (answer.ackno, answer.count) == (701, 1)
    assert len(lab.peer.violations) == 1
    assert flow.messages == []


def test_bitmap_is_out_of_order(lab: Lab) -> None:
    lab.passive()
    (answer,) = lab.put(w.cut(b"x", 701 + 3)[0])
    assert answer.body[:8] == (1 << 3).to_bytes(8, "big")
    (answer,) = lab.put(w.cut(b"x", 701 + 9)[0])
    assert answer.body[8:16] == (1 << 1).to_bytes(8, "big")
    assert answer.count == 2


def test_stray_ones_come_with_each_packet_in_order(lab: Lab) -> None:
    lab.passive()
    for i in range(260):
        (answer,) = lab.put(w.cut(b"x", 701 + i)[0])
    assert answer.body == bytes(8) + b"\xff" * 24
    assert answer.count == 0


def test_third_duplicate_resends_the_first_packet(lab: Lab) -> None:
    flow = lab.passive()
    flow.send(bytes(1418 * 6))
    lab.out()
    again = Mnp(w.ACK, 701, 1)
    # The ACK of the handshake was the first with this number.
    assert lab.put(again, again) == []
    assert [packet.seqno for packet in lab.put(again)] == [1]
    assert lab.put(again, again, again) == [], "with a count of zero it does no more"
    with pytest.raises(CppCrash, match="walks past"):
        lab.put(again.with_(count=2))


def test_old_flow_with_all_ones_survives_and_does_nothing(lab: Lab) -> None:
    flow = lab.passive()
    flow.send(bytes(1418 * 6))
    lab.out()
    again = Mnp(w.ACK, 701, 1, body=bytes(8) + b"\xff" * 24, count=2)
    assert [packet.seqno for packet in lab.put(*[again] * 5)] == [1]


@pytest.mark.parametrize("active", [False, True])
def test_three_duplicates_end_an_idle_host(lab: Lab, active: bool) -> None:
    flow = lab.active() if active else lab.passive()
    again = Mnp(w.ACK, 701, 1)
    lab.put(again, again)
    assert flow.idle
    with pytest.raises(CppCrash, match="nothing outstanding"):
        lab.put(again)


def test_payload_over_1418_ends_it(lab: Lab) -> None:
    lab.passive()
    with pytest.raises(CppCrash, match="1419"):
        lab.put(Mnp(w.DATA, 701, w.NO_ACK, w.SINGLE, payload=bytes(1419)))


def test_reset_only_at_the_exact_number(lab: Lab) -> None:
    flow = lab.passive()
    lab.put(Mnp(w.RST, 702, 1), Mnp(w.RST, 700, 1))
    assert flow.state == "ESTABLISHED"
    lab.put(Mnp(w.RST, 701, 1))
    assert flow.state == "CLOSED"
    lab.ticks()
    assert not lab.peer.flows


def test_closing_sends_one_reset(lab: Lab) -> None:
    lab.passive()
    lab.peer.close()
    assert lab.out() == [Mnp(w.RST, 1, 701)]
    assert lab.ticks(3) == [[]] * 3


def test_frames_must_have_their_exact_length(lab: Lab) -> None:
    lab.peer.listen(888)
    raw = w.frame(HERE, Mnp(w.SYN, 1))
    lab.peer.receive(raw + b"\0")
    assert lab.out() == []
    assert lab.peer.counts["frame length"] == 1
    lab.peer.receive(raw)
    assert len(lab.out()) == 1


def test_checksums_are_not_looked_at_but_noted(lab: Lab) -> None:
    lab.peer.listen(888)
    lab.peer.receive(w.frame(HERE, Mnp(w.SYN, 1), udp_csum=0x1234))
    assert len(lab.out()) == 1
    assert lab.peer.violations == ["a wrong checksum"]


def test_echo_is_answered_for_any_address(lab: Lab) -> None:
    ask = icmp("echo-request", eth_src=HERE.src_mac, eth_dst=HERE.dst_mac, src=HERE.src, dst="10.9.9.9",
               icmp_id=3, icmp_seq=4, payload=b"ping")  # fmt: skip
    lab.peer.receive(ask.build({}))
    (raw,) = lab.peer.take()
    answer = Packet(raw)
    assert answer.icmp is not None
    assert answer.ip is not None
    assert (answer.icmp.type, answer.icmp.id, answer.icmp.seq) == (0, 3, 4)
    assert (answer.ip.src, answer.ip.id, answer.csum_ok) == ("10.9.9.9", 0x1513, True)


class Two:
    """Two of them back to back; frames to the second one go through ``keep``."""

    def __init__(self) -> None:
        self.a = CppMachnet("10.0.0.1", HERE.src_mac)
        self.b = CppMachnet("10.0.0.2", HERE.dst_mac)
        self.b.listen(888)
        box = self.a.connect("10.0.0.2", 888)
        for _ in range(2):
            self.a.tick()
            self.settle()
        self.flow = box[0]
        (self.other,) = self.b.flows.values()

    def settle(self, lost: int | None = None) -> None:
        while (to_b := self.a.take()) or (to_a := self.b.take()):
            to_b = [raw for i, raw in enumerate(to_b) if i != lost]
            lost = None
            for raw in to_b:
                self.b.receive(raw)
            to_a = self.b.take()
            for raw in to_a:
                self.a.receive(raw)


def test_two_of_them_talk_without_loss() -> None:
    two = Two()
    for i in range(40):
        two.flow.send(bytes([i]) * 10_000)
        two.settle()
    assert two.other.messages == [bytes([i]) * 10_000 for i in range(40)]


def test_one_lost_packet_of_a_young_flow_kills_the_sender() -> None:
    # Seen with the original: 10 kB messages, a window of 4, one packet lost.
    two = Two()
    for _ in range(4):
        two.flow.send(bytes(10_000))
    with pytest.raises(CppCrash, match=r"duplicate ACK number .* walks past the end"):
        two.settle(lost=2)


def test_two_of_them_talk_in_a_simulated_network() -> None:
    with Network(seed=1) as net:
        switch = net.switch()
        a = CppHost(net, switch, "10.0.0.1", phase=100_000_000)
        b = CppHost(net, switch, "10.0.0.2")
        b.listen(888)
        box = a.connect(b.ip, 888)
        net.run(until="3s")
        for i in range(20):
            box[0].send(bytes([i]) * 3000)
        a.flush()
        net.advance("1s")
        assert b.only.messages == [bytes([i]) * 3000 for i in range(20)]
        # They do to each other what a better peer should not.
        assert set(a.violations) == {"an ACK that says what is held"}
        assert set(b.violations) == {"message flags 0x0c are the original's own"}
