# SPDX-License-Identifier: MIT
"""Peers that mean no good, or are broken, against mnp: the flow ends or goes on, defined either way."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import mnp_wire as w
import pytest
from mnp_lab import MS, SECOND, MnpLab
from mnp_wire import Mnp

FULL = w.offer()


@pytest.fixture(params=["plain", "extended"])
def lab(request: pytest.FixtureRequest) -> Iterator[MnpLab]:
    offer = FULL if request.param == "extended" else bytes(32)
    with MnpLab(offer=offer) as made:
        yield made


@pytest.fixture
def ext() -> Iterator[MnpLab]:
    with MnpLab(offer=FULL) as made:
        yield made


def ask(lab: MnpLab, data: bytes = b"ping") -> None:
    """The flow is alive: a message of the peer's arrives."""
    lab.put(*lab.data(data))
    assert lab.ch.recv(timeout=0).data == data, lab.text()


def with_offer(packet: Mnp, **fields: int) -> Mnp:
    return packet.with_(body=w.offer(**fields))


class TestEarly:
    def test_data_in_the_pass_of_the_syn(self, lab: MnpLab) -> None:
        """Nobody can have had the SYN-ACK yet: neither DATA nor a guessed ACK opens the flow."""
        lab.listen()
        early = lab.stack.stats()["drop_mnp_ack"]
        (answer,) = lab.put_together(lab.syn(), *lab.data(b"early"), lab.ack(count=64))
        assert answer.net_flags == w.SYN_ACK
        assert lab.stack.stats()["drop_mnp_ack"] == early + 2
        assert lab.ch.flows() == []
        lab.snd = w.add32(lab.peer_isn, 1)
        lab.rcv = w.add32(answer.seqno, 1)
        lab.put(lab.ack(count=64))
        ask(lab)


class TestOffers:
    @pytest.mark.parametrize("mss", [0, 1, 511, 512, 1418, 8900, 8901, 0xFFFF])
    @pytest.mark.parametrize("window", [0, 1, 256, 257, 0xFFFF])
    def test_any_values_in_a_syn(self, mss: int, window: int) -> None:
        with MnpLab(offer=w.offer(mss=mss, window=window)) as lab:
            lab.listen()
            answers = lab.put(lab.syn())
            assert all(len(packet.payload) == 0 for packet in answers)
            if not answers or answers[0].net_flags != w.SYN_ACK:
                return
            lab.rcv = w.add32(answers[0].seqno, 1)
            lab.put(lab.ack(count=window))
            ask(lab)
            flow = lab.ch.flows()[0]
            lab.ch.send(flow, bytes(5000), timeout=0)
            for _, packet in lab.wait(SECOND):
                # What is said to be taken, but at least what each host must take.
                assert len(packet.payload) <= max(mss, 512)

    @pytest.mark.parametrize("features", range(0, 128, 7))
    def test_accepted_features_are_among_the_offered(self, features: int) -> None:
        with MnpLab(offer=w.offer(features=features | 0xFF80)) as lab:
            lab.listen()
            (answer,) = lab.put(lab.syn())
            assert answer.marked
            assert answer.features & ~features == 0
            lab.rcv = w.add32(answer.seqno, 1)
            lab.put(lab.ack(count=64))
            ask(lab)

    @pytest.mark.parametrize(("version", "answer"), [(1, 1), (2, 1), (255, 1), (0, None)])
    def test_version_of_a_syn(self, version: int, answer: int | None) -> None:
        with MnpLab(offer=w.offer(version=version)) as lab:
            lab.listen()
            (packet,) = lab.put(lab.syn())
            assert (packet.version if packet.marked else None) == answer

    @pytest.mark.parametrize("version", [2, 9, 255])
    def test_answer_with_a_version_that_was_not_offered_is_ignored(
        self, ext: MnpLab, version: int
    ) -> None:
        ext.start()
        ext.put(with_offer(ext.syn_ack(), version=version))
        assert ext.result() is None
        ext.put(ext.syn_ack())
        assert ext.result() is not None

    def test_answer_with_features_that_were_not_offered(self, ext: MnpLab) -> None:
        ext.start()
        ext.put(with_offer(ext.syn_ack(), features=0xFFFF))
        flow = ext.result()
        if flow is not None:
            ext.put(ext.ack(count=64))
            ask(ext)

    @pytest.mark.parametrize("mss", [0, 1, 511, 0xFFFF])
    def test_impossible_mss_in_the_answer(self, ext: MnpLab, mss: int) -> None:
        ext.start()
        ext.put(with_offer(ext.syn_ack(), mss=mss))
        flow = ext.result()
        if flow is None:
            return
        ext.ch.send(flow, bytes(20_000))
        for packet in ext.out():
            assert 1 <= len(packet.payload) <= 1418

    def test_half_a_marker_is_plain_mode(self) -> None:
        with MnpLab(offer=w.offer(marker=w.MARKER ^ 1)) as lab:
            lab.listen()
            (answer,) = lab.put(lab.syn())
            assert not answer.marked

    def test_mode_does_not_change_once_it_is_set(self, lab: MnpLab) -> None:
        lab.active()
        plain = not any(lab.offer)
        other = lab.syn_ack().with_(body=FULL if plain else bytes(32))
        lab.put(other)
        ask(lab)
        flow = lab.ch.flows()[0]
        lab.ch.send(flow, b"abc")
        (data,) = (packet for packet in lab.out() if packet.net_flags == w.DATA)
        assert (data.ackno == w.NO_ACK) == plain

    def test_plain_stack_answers_an_offer_in_plain_mode(self) -> None:
        with MnpLab(offer=FULL, mnp_extended=False) as lab:
            lab.listen()
            (answer,) = lab.put(lab.syn())
            assert bytes(answer) == bytes(Mnp(w.SYN_ACK, lab.isn or 0, lab.snd))
        with MnpLab(mnp_extended=False) as lab:
            syn = lab.start()
            assert bytes(syn) == bytes(Mnp(w.SYN, lab.isn or 0, 0))


class TestFraming:
    @pytest.mark.parametrize("flags", [f for f in range(8) if f not in {5, 3}])
    def test_message_that_does_not_begin(self, lab: MnpLab, flags: int) -> None:
        lab.passive()
        lab.put(Mnp(w.DATA, lab.snd, w.NO_ACK, flags, payload=b"x" * 1418))
        self.ended_or_unheard(lab)

    @pytest.mark.parametrize("flags", [0, 1, 3, 5, 6, 7])
    def test_message_that_does_not_go_on(self, lab: MnpLab, flags: int) -> None:
        lab.passive()
        first, _ = lab.data(bytes(2000))
        body = w.word_body(2000) if any(lab.offer) else bytes(32)
        lab.put(first.with_(body=body, ackno=lab.rcv if any(lab.offer) else w.NO_ACK, count=64))
        lab.put(Mnp(w.DATA, first.seqno + 1, w.NO_ACK, flags, payload=bytes(582)))
        self.ended_or_unheard(lab)

    def test_data_without_payload(self, lab: MnpLab) -> None:
        lab.passive()
        lab.put(Mnp(w.DATA, lab.snd, w.NO_ACK, w.SINGLE))
        self.ended_or_unheard(lab)

    @pytest.mark.parametrize("total", [0, 1, 1999, 2001, (8 << 20) + 1, 0xFFFFFFFF])
    def test_message_length_that_is_a_lie(self, ext: MnpLab, total: int) -> None:
        ext.passive()
        first, last = ext.data(bytes(2000))
        ext.put(first.with_(ackno=ext.rcv, body=w.word_body(total), count=64))
        ext.put(last.with_(ackno=ext.rcv, count=64))
        self.ended_or_unheard(ext)

    def test_message_without_end(self, lab: MnpLab) -> None:
        """More than 8 MiB: refused, and the memory is given back."""
        lab.passive()
        extended = any(lab.offer)
        over = False
        for i in range(6200):
            flags = w.FIRST | w.MORE if i == 0 else w.MORE
            body = w.word_body(8 << 20) if extended and i == 0 else bytes(32)
            packet = Mnp(
                w.DATA, lab.snd, lab.rcv if extended else w.NO_ACK, flags, body,
                64 if extended else 0, payload=bytes(1418),
            )  # fmt: skip
            lab.snd = w.add32(lab.snd, 1)
            if any(answer.net_flags == w.RST for answer in lab.put(packet)):
                over = True
                break
        assert over, "a message of 8.8 MB"
        assert lab.stack.usage()["ooo_blocks"] == 0

    @staticmethod
    def ended_or_unheard(lab: MnpLab) -> None:
        """The application gets no message; at most an error."""
        lab.wait(2 * SECOND)
        try:
            message = lab.ch.try_recv()
        except ConnectionError:
            return
        assert message is None


class TestAcknowledgements:
    def test_bitmap_of_what_was_not_sent(self, ext: MnpLab) -> None:
        flow = ext.active()
        ext.ch.send(flow, bytes(5000))
        sent = ext.out()
        for held in ([5], [100, 255], list(range(1, 256))):
            body = w.sack_body(ext.rcv, [w.add32(ext.rcv, i + 1) for i in held])
            ext.put(ext.ack(body=body, count=256))
        again = [packet for _, packet in ext.wait(SECOND)]
        assert {packet.seqno for packet in again} <= {packet.seqno for packet in sent}
        # All of it is still delivered to a peer that comes to its senses.
        ext.rcv = w.add32(sent[-1].seqno, 1)
        ext.put(ext.ack(count=256))
        assert ext.wait(SECOND) == []

    def test_peer_that_takes_back_what_it_said_to_hold(self, ext: MnpLab) -> None:
        flow = ext.active()
        ext.ch.send(flow, bytes(1418 * 8))
        sent = ext.out()
        assert len(sent) == 8
        held = [packet.seqno for packet in sent[1:]]
        ext.put(ext.ack(body=w.sack_body(ext.rcv, held), count=256))
        heard = ext.wait(100 * MS)
        ext.put(ext.ack(count=256))
        ext.rcv = w.add32(ext.rcv, 1)
        ext.put(ext.ack(count=256))
        heard += ext.wait(5 * SECOND)
        ext.rcv = w.add32(sent[-1].seqno, 1)
        ext.put(ext.ack(count=256))
        assert ext.wait(SECOND) == []
        assert ext.stack.usage()["tcbs"] == 1

    @pytest.mark.parametrize("count", [0, 1, 31, 255, 256, 0xFFFF])
    def test_count_in_plain_acks_is_a_hint(self, count: int) -> None:
        with MnpLab() as lab:
            flow = lab.active()
            lab.ch.send(flow, bytes(1418 * 100))
            first = lab.out()
            for _ in range(20):
                lab.put(lab.ack(body=b"\xff" * 32, count=count))
            una = lab.rcv
            sent = {p.seqno for _, way, p in lab.log if way == "<" and p.net_flags == w.DATA}
            assert all(w.diff32(seqno, una) < 32 for seqno in sent)
            assert len(first) <= 32

    @pytest.mark.parametrize("window", [0, 1, 255, 256, 257, 0xFFFF])
    def test_advertised_window_is_kept(self, ext: MnpLab, window: int) -> None:
        flow = ext.active()
        ext.put(ext.ack(count=window))
        ext.ch.send(flow, bytes(1418 * 300))
        una = ext.rcv
        ext.wait(50 * MS)
        sent = {p.seqno for _, way, p in ext.log if way == "<" and p.net_flags == w.DATA}
        # Of a closed window, one packet may ask.
        assert all(w.diff32(seqno, una) < max(min(window, 256), 1) for seqno in sent)

    def test_window_that_stays_closed_is_asked_and_waited_for(self, ext: MnpLab) -> None:
        flow = ext.active()
        ext.put(ext.ack(count=0))
        ext.ch.send(flow, b"x")
        for _ in range(60):
            asked = ext.until_sent(2 * SECOND)
            assert asked, ext.text()
            assert len(asked) <= 2
            ext.put(ext.ack(count=0))
        ext.put(ext.ack(count=10))
        assert any(packet.payload == b"x" for packet in ext.until_sent(2 * SECOND))

    @pytest.mark.parametrize("stamp", [0, 0xFFFFFFFF, 0x80000000, 12345])
    def test_echo_that_is_a_lie(self, ext: MnpLab, stamp: int) -> None:
        flow = ext.active()
        for i in range(20):
            ext.ch.send(flow, bytes([i]))
            (data,) = (p for p in ext.out() if p.net_flags == w.DATA)
            ext.stack.advance(100_000)
            ext.rcv = w.add32(data.seqno, 1)
            ext.put(ext.ack(count=64, stamp=w.stamps(i, stamp)))
        ext.ch.send(flow, b"lost")
        assert ext.until_sent(SECOND), "a timeout that a lie has made endless"
        assert ext.until_sent(2 * SECOND)


class TestResets:
    @pytest.mark.parametrize("reason", [0, *w.REASONS, 8, 0xFFFFFFFF])
    def test_reasons(self, ext: MnpLab, reason: int) -> None:
        errors = {2: 111, 3: 110, 4: 71, 5: 90, 6: 105}
        ext.passive()
        ask(ext)
        ext.put(Mnp(w.RST, ext.snd, ext.rcv, body=w.word_body(reason)))
        with pytest.raises(OSError, match=r"\S") as info:
            ext.ch.recv(timeout=0)
        assert info.value.errno == errors.get(reason, 104)

    @pytest.mark.parametrize("off", [1, 10, 255])
    def test_inside_the_window_it_is_answered_by_an_ack(self, ext: MnpLab, off: int) -> None:
        ext.passive()
        ask(ext)
        (answer,) = ext.put(Mnp(w.RST, w.add32(ext.snd, off), ext.rcv, body=w.word_body(1)))
        assert (answer.net_flags, answer.ackno) == (w.ACK, ext.snd)
        ask(ext)

    @pytest.mark.parametrize("off", [-1, -1000, 257, 2**31 - 1])
    def test_outside_it_is_ignored(self, ext: MnpLab, off: int) -> None:
        ext.passive()
        ask(ext)
        assert ext.put(Mnp(w.RST, w.add32(ext.snd, off), ext.rcv, body=w.word_body(1))) == []
        ask(ext)

    def test_refusal_of_a_syn(self, ext: MnpLab) -> None:
        ext.start()
        ext.put(Mnp(w.RST, 0, w.add32(ext.rcv, 5), body=w.word_body(2)))
        assert ext.result() is None, "it is about another SYN"
        ext.put(Mnp(w.RST, 0, ext.rcv, body=w.word_body(2)))
        with pytest.raises(ConnectionRefusedError):
            ext.result()

    def test_syn_to_nobody_that_offers_is_refused(self, ext: MnpLab) -> None:
        (answer,) = ext.put(ext.syn())
        assert (answer.net_flags, answer.ackno, answer.reason) == (w.RST, ext.snd, 2)

    def test_resets_are_never_answered_by_resets(self, ext: MnpLab) -> None:
        for kind in (bytes(32), FULL, w.word_body(2)):
            assert ext.put(Mnp(w.RST, 1, 2, body=kind)) == []


class TestFin:
    def test_in_plain_mode_means_nothing(self) -> None:
        with MnpLab() as lab:
            lab.passive()
            ask(lab)
            lab.put(Mnp(w.FIN, lab.snd, lab.rcv))
            ask(lab)

    def test_before_its_data(self, ext: MnpLab) -> None:
        ext.passive()
        ask(ext)
        (data,) = ext.data(b"last")
        fin = Mnp(w.FIN, ext.snd, ext.rcv, count=64)
        ext.put(fin)
        ext.put(data.with_(ackno=ext.rcv, count=64))
        assert ext.ch.recv(timeout=0).data == b"last"

    def test_data_behind_it(self, ext: MnpLab) -> None:
        ext.passive()
        ask(ext)
        ext.put(Mnp(w.FIN, ext.snd, ext.rcv, count=64))
        ext.put(*w.cut(b"too late", w.add32(ext.snd, 1)))
        ext.wait(20 * SECOND)
        assert not [m for m in iter(lambda: quiet(ext), None) if m == b"too late"]


def quiet(lab: MnpLab) -> bytes | None:
    """The next message, if there is one."""
    try:
        message = lab.ch.try_recv()
    except OSError:
        return b""
    return None if message is None else message.data


@pytest.mark.parametrize("mode", ["plain", "extended"])
@pytest.mark.parametrize("seed", range(8))
def test_random_packets_into_a_flow(seed: int, mode: str) -> None:
    """Whatever comes, in and around the numbers of a flow: no crash, and memory comes back."""
    draw = random.Random(f"{mode} {seed}")
    with MnpLab(offer=FULL if mode == "extended" else bytes(32)) as lab:
        flow = lab.active()
        for _ in range(400):
            near = draw.choice([0, 0, 1, 2, 5, 63, 64, 255, 256, -1, 2**31, draw.getrandbits(32)])
            acked = draw.choice([0, 0, 1, 2, 3, 32, -1, draw.getrandbits(32)])
            body = draw.choice(
                [
                    bytes(32),
                    b"\xff" * 32,
                    draw.randbytes(32),
                    w.offer(),
                    w.word_body(5),
                    w.word_body(9999),
                ]
            )
            packet = Mnp(
                draw.choice([w.DATA] * 5 + [w.ACK] * 4 + [w.SYN, w.SYN_ACK, w.FIN, w.RST, 0x55]),
                w.add32(lab.snd, near), w.add32(lab.rcv, acked), draw.choice([5, 3, 2, 4, 0, 0x8D]),
                body, draw.choice([0, 1, 64, 256, 0xFFFF]), draw.getrandbits(64),
                draw.randbytes(draw.choice([0, 1, 100, 1418])),
            )  # fmt: skip
            for answer in lab.put(packet):
                if answer.net_flags == w.DATA:
                    lab.rcv = w.add32(answer.seqno, draw.choice([0, 1]))
            if flow.live and draw.random() < 0.1:
                with contextlib.suppress(OSError, ValueError):
                    lab.ch.send(flow, draw.randbytes(draw.choice([1, 3000, 60_000])))
            if draw.random() < 0.05:
                lab.wait(draw.choice([MS, 10 * MS, 300 * MS]))
            while quiet(lab) is not None:
                pass
        lab.ch.close(linger=0)
        lab.wait(60 * SECOND)
        usage = lab.stack.usage()
        assert {name: usage[name] for name in ("tcbs", "ooo_blocks", "mnp_flows")} == {
            "tcbs": 0, "ooo_blocks": 0, "mnp_flows": 0,
        }  # fmt: skip


@pytest.mark.parametrize("size", range(54))
def test_short_datagrams(size: int) -> None:
    with MnpLab() as lab:
        lab.listen()
        lab.put(bytes(Mnp(w.SYN, 0, 0))[:size])
        assert lab.stack.usage()["tcbs"] == 0


@pytest.mark.parametrize("magic", [0, 0x534E, 0x4E54, 0xFFFF])
def test_other_magic_numbers(magic: int) -> None:
    with MnpLab() as lab:
        lab.listen()
        lab.put(Mnp(w.SYN, 0, 0, magic=magic))
        assert lab.stack.usage()["tcbs"] == 0


def test_a_flood_of_syns_is_bounded() -> None:
    with MnpLab(syn_backlog_max=16) as lab:
        lab.listen()
        for port in range(1024, 1324):
            lab.path = w.Addresses(
                lab.path.src_mac, lab.path.dst_mac, lab.path.src, lab.path.dst, port, 888
            )
            lab.put(lab.syn())
        assert lab.stack.usage()["half_open"] <= 16
        lab.stack.advance(200 * SECOND)
        assert lab.stack.usage()["tcbs"] == 0
