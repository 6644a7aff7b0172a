# SPDX-License-Identifier: MIT
"""mnp in plain mode, byte by byte, against what a C++ Machnet says and survives: handshake, messages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import mnp_wire as w
import pytest
from mnp_lab import MS, PEER_IP, SECOND, STACK_IP, MnpLab
from mnp_wire import Mnp

from machnet.errors import FlowTimeoutError

#: Ours and the peer's; some wrap, some change their sign, one is the original's.
ISNS = [
    (5000, 0),
    (0xFFFFFFFF, 0xFFFFFFFE),
    (0xFFFFFFF0, 0xFFFFFFFF),
    (0x7FFFFFFE, 0x7FFFFFFF),
    (0, 7),
]

GARBAGE = [b"\xff" * 32, bytes(range(32)), w.offer(window=0), w.word_body(1)]


@pytest.fixture(params=ISNS, ids=lambda pair: f"{pair[0]:x}-{pair[1]:x}")
def lab(request: pytest.FixtureRequest) -> Iterator[MnpLab]:
    with MnpLab(*request.param) as made:
        yield made


@pytest.fixture
def one() -> Iterator[MnpLab]:
    with MnpLab() as made:
        yield made


class TestPassive:
    def test_syn_is_answered_in_plain_mode(self, lab: MnpLab) -> None:
        lab.listen()
        (answer,) = lab.put(lab.syn())
        assert bytes(answer) == bytes(Mnp(w.SYN_ACK, lab.isn or 0, lab.snd))

    def test_repeated_syn_gets_the_same_answer(self, lab: MnpLab) -> None:
        lab.listen()
        assert lab.put(lab.syn()) == lab.put(lab.syn())

    def test_handshake_ends_in_silence(self, lab: MnpLab) -> None:
        lab.passive()
        assert lab.wait(20 * SECOND) == []

    def test_syn_for_an_established_flow_is_ignored(self, lab: MnpLab) -> None:
        lab.passive()
        assert lab.put(lab.syn(), lab.syn(), lab.syn()) == []

    def test_data_may_come_before_the_last_ack(self, one: MnpLab) -> None:
        one.listen()
        one.put(one.syn())
        assert one.put(*one.data(b"hello")) != []
        assert one.ch.recv(timeout=0).data == b"hello"

    def test_syn_to_nobody_is_not_answered(self, one: MnpLab) -> None:
        assert one.put(one.syn()) == []
        assert one.wait(5 * SECOND) == []

    @pytest.mark.parametrize("flags", [0x05, 0x11, 0x41, 0x81, 0x7F, 0xFF, 0x04])
    def test_only_the_exact_type_opens_a_flow(self, one: MnpLab, flags: int) -> None:
        one.listen()
        one.put(Mnp(flags, 0, 0))
        assert one.stack.usage()["tcbs"] == 0

    def test_lost_answer_is_repeated_by_a_timer_and_given_up(self, one: MnpLab) -> None:
        one.listen()
        (answer,) = one.put(one.syn())
        again = [packet for _, packet in one.wait(200 * SECOND)]
        assert all(packet == answer for packet in again)
        assert one.stack.usage()["tcbs"] == 0


class TestActive:
    def test_syn_offers_extended_mode_where_the_original_does_not_look(self, lab: MnpLab) -> None:
        syn = lab.start()
        window = syn.window
        assert 1 <= window <= 256
        expected = Mnp(w.SYN, lab.isn or 0, 0, body=w.offer(mss=1418, window=window))
        assert bytes(syn)[:46] == bytes(expected)[:46]
        assert (syn.tsecr, syn.payload) == (0, b"")

    def test_plain_answer_is_acknowledged_in_plain_mode(self, lab: MnpLab) -> None:
        lab.start()
        answers = lab.put(lab.syn_ack())
        assert [bytes(packet) for packet in answers] == [bytes(Mnp(w.ACK, lab.rcv, lab.snd))]
        assert lab.result() is not None
        assert lab.wait(20 * SECOND) == []

    @pytest.mark.parametrize("off", [-2, -1, 1, 1000, 2**31])
    def test_answer_to_something_else_is_ignored(self, lab: MnpLab, off: int) -> None:
        lab.start()
        wrong = lab.syn_ack().with_(ackno=w.add32(lab.rcv, off))
        assert not [packet for packet in lab.put(wrong) if packet.net_flags == w.ACK]
        assert lab.result() is None
        lab.put(lab.syn_ack())
        assert lab.result() is not None

    def test_repeated_answer_is_acknowledged_within_reason(self, one: MnpLab) -> None:
        one.active()
        again = one.put(*[one.syn_ack()] * 10)
        # With that of the handshake, three that say the same: two duplicates.
        assert len(again) <= 2
        assert all(packet == Mnp(w.ACK, one.rcv, one.snd) for packet in again)

    def test_syn_is_repeated_until_the_timeout(self, one: MnpLab) -> None:
        syn = one.start(timeout=3.0)
        again = one.wait(10 * SECOND)
        assert {packet.with_(stamp=0) for _, packet in again} == {syn.with_(stamp=0)}
        times = [t_ns for t_ns, _ in again]
        gaps = [b - a for a, b in zip([0, *times], times, strict=False)]
        assert all(gap <= later * 1.01 for gap, later in itertools.pairwise(gaps)), gaps
        assert max(gaps) <= 1.05 * SECOND
        with pytest.raises(TimeoutError):
            one.result()

    def test_initial_numbers_are_random(self) -> None:
        seen = set()
        for _ in range(2):
            with MnpLab(isn=None) as lab:
                for port in (1024, 1025, 1026):
                    lab.ch._connect_start(STACK_IP, PEER_IP, port, "udp", 5.0, 0)
                for _, raw in lab.stack.drain():
                    parsed = w.parse_frame(raw)
                    assert parsed is not None
                    seen.add(parsed[1].seqno)
        # The same seed twice: the same three numbers.
        assert len(seen) == 3
        assert 0 not in seen

    def test_nothing_but_a_syn_ack_opens_it(self, one: MnpLab) -> None:
        one.start()
        one.put(
            Mnp(w.ACK, 0, one.rcv), *w.cut(b"early", 1), Mnp(w.DATA, 1, one.rcv, 5, payload=b"x")
        )
        assert one.result() is None

    def test_port_unreachable_refuses(self, one: MnpLab) -> None:
        syn = one.start()
        one.stack.inject(unreachable(one, syn))
        with pytest.raises(ConnectionRefusedError):
            one.result()

    def test_two_syns_that_cross_end_in_something_defined(self, one: MnpLab) -> None:
        one.start()
        one.put(one.syn())
        one.wait(3 * SECOND)
        one.put(one.syn_ack())
        assert one.result() is not None


def unreachable(lab: MnpLab, packet: Mnp) -> bytes:
    """ICMP "port unreachable" that quotes a packet of the stack."""
    from machnet.testing import icmp

    quoted = w.frame(lab.path.turned(), packet)[14:]
    made = icmp(
        "unreachable", icmp_code=3, eth_src=lab.path.src_mac, eth_dst=lab.path.dst_mac,
        src=lab.path.src, dst=lab.path.dst, payload=quoted[:28],
    )  # fmt: skip
    return made.build({})


class TestSending:
    def test_one_packet(self, lab: MnpLab) -> None:
        flow = lab.active()
        lab.ch.send(flow, b"abc")
        (data,) = lab.out()
        assert bytes(data) == bytes(Mnp(w.DATA, lab.rcv, w.NO_ACK, w.SINGLE, payload=b"abc"))

    @pytest.mark.parametrize(
        ("size", "flags"),
        [
            (1, [5]), (1417, [5]), (1418, [5]), (1419, [3, 4]), (2836, [3, 4]), (2837, [3, 2, 4]),
            (1418 * 9 + 1, [3, *[2] * 8, 4]),
        ],
    )  # fmt: skip
    def test_messages_are_cut_as_the_original_does(
        self, one: MnpLab, size: int, flags: list[int]
    ) -> None:
        flow = one.active()
        message = bytes(i * 7 & 0xFF for i in range(size))
        one.ch.send(flow, message)
        sent = one.out()
        assert sent == w.cut(message, one.rcv)
        assert [packet.msg_flags for packet in sent] == flags

    def test_empty_message_is_refused(self, one: MnpLab) -> None:
        flow = one.active()
        with pytest.raises(ValueError, match="1 byte to 8 MiB"):
            one.ch.send(flow, b"")
        assert one.out() == []

    def test_at_most_32_packets_are_in_flight(self, lab: MnpLab) -> None:
        flow = lab.active()
        message = bytes(1418 * 200)
        lab.ch.send(flow, message)
        sent = {packet.seqno: packet for packet in lab.out()}
        una, most = lab.rcv, 0
        for _ in range(1000):
            in_flight = [s for s in sent if w.diff32(s, una) >= 0]
            most = max(most, len(in_flight))
            assert all(w.diff32(s, una) < 32 for s in sent)
            if len(sent) == 200 and not in_flight:
                break
            una = w.add32(una, 1)
            lab.stack.advance(10_000)
            for packet in lab.put(lab.ack(una)):
                sent[packet.seqno] = packet
        assert most == 32, most
        assert [sent[s] for s in sorted(sent, key=lambda s: w.diff32(s, lab.rcv))] == w.cut(
            message, lab.rcv
        )

    def test_unanswered_packet_is_sent_again_with_growing_pauses(self, lab: MnpLab) -> None:
        lab.passive()
        lab.put(*lab.data(b"ask"))
        message = lab.ch.recv(timeout=0)
        lab.ch.send(message.flow, b"answer")
        (data,) = lab.out()
        again = lab.wait(3 * SECOND)
        assert {packet for _, packet in again} == {data}
        times = [t_ns for t_ns, _ in again]
        assert times[0] < 100 * MS, "milliseconds, not the original's seconds"
        assert len(times) < 20, times

    def test_three_duplicates_bring_the_lost_packet(self, one: MnpLab) -> None:
        flow = one.active()
        one.ch.send(flow, bytes(1418 * 6))
        sent = one.out()
        assert len(sent) == 6
        one.stack.advance(100_000)
        one.put(one.ack(w.add32(one.rcv, 1)))
        lost = w.add32(one.rcv, 1)
        got = []
        for _ in range(3):
            got += one.put(one.ack(lost, count=1))
        assert sent[1] in got
        assert got.count(sent[1]) == 1

    def test_lost_last_packet_costs_milliseconds(self, one: MnpLab) -> None:
        flow = one.active()
        for _ in range(4):
            one.ch.send(flow, b"x")
            (data,) = one.out()
            one.stack.advance(100_000)
            one.rcv = w.add32(data.seqno, 1)
            one.put(one.ack())
        one.ch.send(flow, b"lost")
        (data,) = one.out()
        again = one.wait(20 * MS)
        assert again[0][1] == data
        assert again[0][0] <= 5 * MS

    @pytest.mark.parametrize("seconds", [3])
    def test_silent_peer_is_given_up(self, seconds: int) -> None:
        with MnpLab(mnp_user_timeout_ms=seconds * 1000) as lab:
            flow = lab.active()
            lab.ch.send(flow, b"x")
            lab.wait(seconds * SECOND // 2)
            assert lab.ch.try_recv() is None
            lab.wait(seconds * SECOND)
            with pytest.raises(FlowTimeoutError):
                lab.ch.recv(timeout=0)

    def test_ack_of_what_was_not_sent_is_ignored(self, lab: MnpLab) -> None:
        flow = lab.active()
        lab.ch.send(flow, b"abc")
        (data,) = lab.out()
        lab.put(lab.ack(w.add32(data.seqno, 2)), lab.ack(w.add32(data.seqno, 2**31)))
        assert data in [packet for _, packet in lab.wait(SECOND)]
        lab.put(lab.ack(w.add32(data.seqno, 1)))
        assert lab.wait(SECOND) == []


class TestHandshakeAckAgain:
    """The C++ side takes no DATA before the last ACK of the handshake, which may be lost."""

    def test_the_ack_comes_with_repeated_first_data(self, lab: MnpLab) -> None:
        flow = lab.active()
        lab.ch.send(flow, b"abc")
        (data,) = lab.out()
        again = [packet for _, packet in lab.wait(5 * SECOND)]
        acks = [packet for packet in again if packet.net_flags == w.ACK]
        assert acks == [Mnp(w.ACK, w.add32(data.seqno, 1), lab.snd)] * 2, "twice, not a third time"
        assert again[0] == acks[0], "in front of the data"
        assert data in again

    def test_not_once_the_peer_has_sent_data(self, lab: MnpLab) -> None:
        flow = lab.active()
        lab.put(*lab.data(b"hello"))
        lab.ch.send(flow, b"abc")
        (data,) = lab.out()
        assert {packet for _, packet in lab.wait(5 * SECOND)} == {data}

    def test_not_when_the_data_is_acknowledged(self, one: MnpLab) -> None:
        flow = one.active()
        one.ch.send(flow, b"abc")
        (data,) = one.out()
        one.rcv = w.add32(data.seqno, 1)
        one.put(one.ack())
        assert one.wait(20 * SECOND) == []


class TestReceiving:
    @pytest.mark.parametrize("body", GARBAGE, ids=["ones", "count", "marker", "one"])
    def test_each_packet_is_acknowledged_and_its_garbage_ignored(self, body: bytes) -> None:
        with MnpLab() as lab:
            lab.passive()
            for i in range(3):
                (data,) = lab.data(b"hello", body=body, count=0, stamp=0)
                assert lab.put(data) == [Mnp(w.ACK, lab.rcv, lab.snd)]
                assert lab.ch.recv(timeout=0).data == b"hello", i

    def test_long_message(self, lab: MnpLab) -> None:
        lab.passive()
        message = bytes(i & 0xFF for i in range(10_000))
        for packet in lab.data(message, body=b"\xff" * 32, count=0xFFFF):
            (answer,) = lab.put(packet)
            assert answer == Mnp(w.ACK, lab.rcv, w.add32(packet.seqno, 1))
        assert lab.ch.recv(timeout=0).data == message

    def test_flags_that_leak_from_the_original_are_ignored(self, one: MnpLab) -> None:
        one.passive()
        for flags in (0x05 | 0x08, 0x05 | 0x80, 0x05 | 0x88, 0x05 | 0x70):
            one.put(*(packet.with_(msg_flags=flags) for packet in one.data(b"one")))
            assert one.ch.recv(timeout=0).data == b"one"
        first, last = one.data(bytes(2000))
        one.put(first.with_(msg_flags=0x83), last.with_(msg_flags=0x0C))
        assert one.ch.recv(timeout=0).data == bytes(2000)

    def test_packets_in_any_order(self, lab: MnpLab) -> None:
        lab.passive()
        packets = lab.data(bytes(i % 251 for i in range(20_000)))
        answers = lab.put(*packets[1:], packets[0])
        assert answers[-1] == Mnp(w.ACK, lab.rcv, lab.snd)
        # Nothing is said to be held: the original would act on it, and wrongly.
        assert all(bytes(packet)[12:] == bytes(42) for packet in answers)
        first = packets[0].seqno
        assert {packet.ackno for packet in answers[:-1]} == {first}
        assert lab.ch.recv(timeout=0).data == bytes(i % 251 for i in range(20_000))

    def test_idle_peer_never_gets_three_duplicates(self, lab: MnpLab) -> None:
        lab.passive()
        (data,) = lab.data(b"again")
        answers = lab.put(*[data] * 50)
        assert 1 <= len(answers) <= 3
        assert set(answers) == {Mnp(w.ACK, lab.rcv, lab.snd)}

    def test_each_retransmission_of_the_original_is_answered(self, one: MnpLab) -> None:
        # It repeats a packet after 2 to 3 s, three times, because no ACK has arrived; a fourth
        # answer is no risk, and without it the flow would die.
        one.passive()
        (data,) = one.data(b"again")
        for _ in range(4):
            assert one.put(data) == [Mnp(w.ACK, one.rcv, one.snd)]
            one.wait(3 * SECOND)

    @pytest.mark.parametrize("kind", ["reset", "syn", "syn-ack", "far", "fin", "ack"])
    def test_nothing_but_repeated_data_brings_more_acks_in_time(
        self, one: MnpLab, kind: str
    ) -> None:
        """Strange packets every half second: an idle C++ host would not survive their answers."""
        one.active()
        strange = {
            "reset": Mnp(w.RST, w.add32(one.snd, 1), one.rcv),
            "syn": one.syn(),
            "syn-ack": one.syn_ack(),
            "far": w.cut(b"far", w.add32(one.snd, 70))[0],
            "fin": Mnp(w.FIN, one.snd, one.rcv),
            "ack": Mnp(w.ACK, w.add32(one.snd, 5), w.add32(one.rcv, 5)),
        }[kind]
        answers = []
        for _ in range(10):
            answers += one.put(strange)
            answers += [packet for _, packet in one.wait(SECOND // 2)]
        # With that of the handshake, three that say the same: two duplicates.
        assert len(answers) <= 2, one.text()

    def test_packet_beyond_the_window_harms_nothing(self, lab: MnpLab) -> None:
        lab.passive()
        for off in (64, 256, 300, 5000, 2**31 - 1):
            lab.put(*w.cut(b"far", w.add32(lab.snd, off)))
        lab.put(*lab.data(b"near"))
        assert lab.ch.recv(timeout=0).data == b"near"
        with pytest.raises(TimeoutError):
            lab.ch.recv(timeout=1)

    def test_64_packets_of_the_window_are_taken_in_reverse(self, one: MnpLab) -> None:
        one.passive()
        packets = [one.data(bytes([i]))[0] for i in range(64)]
        one.put(*reversed(packets))
        assert [one.ch.recv(timeout=0).data for _ in range(64)] == [bytes([i]) for i in range(64)]

    def test_what_the_application_does_not_take_is_not_lost(self) -> None:
        # Back-pressure in plain mode is silence, which the original answers by repeating.
        with MnpLab(channel={"rx_bufs": 32, "buf_bytes": 2048}) as lab:
            lab.passive()
            acked, packets = 0, []
            for i in range(200):
                (packet,) = lab.data(bytes([i]) * 1000)
                packets.append(packet)
                for answer in lab.put(packet):
                    acked = max(acked, w.diff32(answer.ackno, packets[0].seqno))
            assert acked < 200
            got = []
            while len(got) < 200:
                acked_before = acked
                while (message := lab.ch.try_recv()) is not None:
                    got.append(message.data)
                for answer in lab.out():
                    acked = max(acked, w.diff32(answer.ackno, packets[0].seqno))
                for packet in packets[acked : acked + 32]:
                    for answer in lab.put(packet):
                        acked = max(acked, w.diff32(answer.ackno, packets[0].seqno))
                assert acked > acked_before or len(got) == 200
            assert got == [bytes([i]) * 1000 for i in range(200)]


class TestReset:
    def test_at_the_exact_number_it_ends_the_flow(self, lab: MnpLab) -> None:
        lab.passive()
        lab.put(*lab.data(b"x"))
        flow = lab.ch.recv(timeout=0).flow
        assert lab.put(Mnp(w.RST, lab.snd, lab.rcv)) == []
        with pytest.raises(ConnectionResetError):
            lab.ch.recv(timeout=0)
        with pytest.raises(OSError, match=r"\S"):
            lab.ch.send(flow, b"x")

    @pytest.mark.parametrize("off", [-1, 1, 10, 63, 100, 2**31 - 1])
    def test_elsewhere_it_ends_nothing(self, lab: MnpLab, off: int) -> None:
        lab.passive()
        answers = lab.put(*[Mnp(w.RST, w.add32(lab.snd, off), lab.rcv)] * 20)
        assert len(answers) <= 2, "an idle C++ host would not survive a third"
        lab.put(*lab.data(b"alive"))
        assert lab.ch.recv(timeout=0).data == b"alive"

    def test_of_a_connect_under_way(self, one: MnpLab) -> None:
        one.start()
        one.put(Mnp(w.RST, 0, one.rcv))
        with pytest.raises(ConnectionRefusedError):
            one.result()

    def test_closing_sends_what_is_queued_and_one_reset(self, lab: MnpLab) -> None:
        flow = lab.active()
        lab.ch.send(flow, b"last words")
        flow.close()
        (data,) = lab.out()
        assert data.payload == b"last words"
        lab.rcv = w.add32(data.seqno, 1)
        assert lab.put(lab.ack()) == [Mnp(w.RST, lab.rcv, lab.snd)]
        assert lab.wait(10 * SECOND) == []

    def test_reason_means_nothing_in_plain_mode(self, one: MnpLab) -> None:
        one.passive()
        one.put(*one.data(b"x"))
        one.ch.recv(timeout=0)
        one.put(Mnp(w.RST, one.snd, one.rcv, body=w.word_body(3)))
        with pytest.raises(ConnectionResetError):
            one.ch.recv(timeout=0)

    @pytest.mark.parametrize("kind", [w.ACK, w.SYN_ACK, w.DATA, w.RST, 0x04])
    def test_packet_of_no_flow_in_plain_mode_is_harmless(self, one: MnpLab, kind: int) -> None:
        one.listen()
        answers = one.put(Mnp(kind, 5, w.NO_ACK if kind == w.DATA else 9, 5, payload=b""))
        assert all(packet.net_flags == w.RST for packet in answers)
        assert one.stack.usage()["tcbs"] == 0


class TestChecksums:
    def test_wrong_udp_checksum_is_dropped(self, one: MnpLab) -> None:
        one.passive()
        (data,) = one.data(b"abc")
        raw = w.frame(one.path, data)
        for at in (40, 41, 42, 45, 60, 96, 98):
            bad = raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :]
            assert one.inject(bad) == [], at
        assert one.ch.try_recv() is None
        assert one.inject(raw) != []

    def test_zero_udp_checksum_is_taken(self, one: MnpLab) -> None:
        one.passive()
        (data,) = one.data(b"abc")
        one.inject(w.frame(one.path, data, udp_csum=0))
        assert one.ch.recv(timeout=0).data == b"abc"

    def test_ethernet_padding_is_not_payload(self, one: MnpLab) -> None:
        one.passive()
        (data,) = one.data(b"abc")
        one.inject(w.frame(one.path, data) + bytes(7))
        assert one.ch.recv(timeout=0).data == b"abc"

    def test_udp_length_beyond_the_packet_is_dropped(self, one: MnpLab) -> None:
        one.passive()
        (data,) = one.data(b"abc")
        raw = bytearray(w.frame(one.path, data, udp_csum=0))
        raw[38:40] = (8 + 54 + 4).to_bytes(2, "big")
        assert one.inject(bytes(raw)) == []
        raw[38:40] = (8 + 53).to_bytes(2, "big")  # a datagram, but not of this protocol
        assert one.inject(bytes(raw)) == []
        assert one.ch.try_recv() is None
