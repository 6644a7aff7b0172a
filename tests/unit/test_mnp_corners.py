# SPDX-License-Identifier: MIT
"""mnp where several unlikely things meet: packets at one moment, no memory left, years of silence."""

from __future__ import annotations

import errno

import mnp_wire as w
import pytest
from mnp_lab import MS, SECOND, MnpLab
from mnp_wire import Addresses, Mnp

FULL = w.offer()
OFFERS = {"plain": bytes(32), "extended": FULL}


def queue(lab: MnpLab, packet: Mnp) -> None:
    """Let a packet arrive at the moment of the next one, in the same pass of the engine."""
    lab.stack._hand_fed("queue").inject(w.frame(lab.path, packet))


def from_port(lab: MnpLab, port: int) -> None:
    """What the peer sends from now on comes from another port; its numbers begin anew."""
    p = lab.path
    lab.path = Addresses(p.src_mac, p.dst_mac, p.src, p.dst, port, p.dport)
    lab.snd = w.add32(lab.peer_isn, 1)


def open_flow(lab: MnpLab, port: int) -> None:
    from_port(lab, port)
    (answer,) = lab.put(lab.syn())
    assert answer.net_flags == w.SYN_ACK
    lab.rcv = w.add32(answer.seqno, 1)
    lab.put(lab.ack())


def test_data_at_the_moment_of_a_plain_syn() -> None:
    """They are taken once our SYN-ACK is out, and the flow works both ways."""
    with MnpLab() as lab:
        lab.listen()
        queue(lab, lab.syn())
        early = lab.data(b"early")
        answers = lab.put(*early)
        assert [a.net_flags for a in answers][:1] == [w.SYN_ACK]
        lab.rcv = w.add32(answers[0].seqno, 1)
        lab.put(*early)
        assert lab.ch.recv(timeout=0).data == b"early"
        lab.ch.send(lab.ch.flows()[0], b"answer")
        assert [a.payload for a in lab.out() if a.net_flags == w.DATA] == [b"answer"]


@pytest.mark.parametrize("mode", OFFERS)
def test_other_packet_in_place_of_one_that_found_no_memory(mode: str) -> None:
    """Buffers are promised with a message's first packet: without it the rest gets none."""
    plain = mode == "plain"
    with MnpLab(
        offer=OFFERS[mode], ooo_blocks_max=1, channel={"rx_bufs": 32, "buf_bytes": 4096}
    ) as lab:

        def data(flags: int, ahead: int = 0) -> Mnp:
            body = w.word_body(60_000) if flags & w.FIRST and not plain else bytes(32)
            return Mnp(
                w.DATA, w.add32(lab.snd, ahead), w.NO_ACK if plain else lab.rcv, flags, body,
                0 if plain else 64, payload=bytes(1418),
            )  # fmt: skip

        lab.listen()
        open_flow(lab, 1025)
        lab.put(data(w.FIRST | w.MORE))  # half of the buffers are promised to this one
        open_flow(lab, 1026)
        lab.put(data(w.FIRST | w.MORE, ahead=1))  # the only block
        assert lab.stack.usage()["ooo_blocks"] == 1
        open_flow(lab, 1027)
        lab.put(data(w.FIRST | w.MORE))  # has to wait, and can't
        assert lab.stack.stats()["drop_mnp_nobuf"] == 1
        broken = False
        for _ in range(42):
            broken |= any(a.net_flags == w.RST for a in lab.put(data(w.MORE)))
            lab.snd = w.add32(lab.snd, 1)
        assert broken


def test_window_after_half_a_turn_of_the_peers_clock() -> None:
    """Timestamps tell which of two packets is older, but not after more than half an hour."""
    with MnpLab(offer=FULL) as lab:
        flow = lab.active()
        lab.put(lab.ack(stamp=w.stamps(1000)))
        lab.stack.advance(2400 * SECOND)
        lab.put(lab.ack(count=2, stamp=w.stamps(1000 + 2_400_000_000)))
        lab.ch.send(flow, bytes(1418 * 6))
        assert len(lab.out()) == 2


def test_loss_after_half_a_turn_of_our_clock() -> None:
    """What was sent long ago says nothing about the packets of today."""
    with MnpLab(offer=FULL) as lab:
        flow = lab.active()
        lab.ch.send(flow, b"a")
        assert len(lab.out()) == 1
        lab.stack.advance(MS)
        lab.rcv = w.add32(lab.rcv, 1)
        lab.put(lab.ack())
        lab.stack.advance(2400 * SECOND)
        lab.ch.send(flow, bytes(1418 * 6))
        sent = lab.out()
        assert len(sent) == 6
        lab.stack.advance(2 * MS)
        lab.out()
        again = lab.put(lab.ack(body=w.sack_body(lab.rcv, [sent[1].seqno])))
        assert {a.seqno for a in again} <= {sent[0].seqno}, "only what was sent before it"


def test_time_wait_gives_way_to_a_new_flow() -> None:
    with MnpLab(offer=FULL, mnp_flows_max=1) as lab:
        lab.listen()
        open_flow(lab, 1025)
        lab.put(*lab.data(b"hello"))
        assert lab.ch.recv(timeout=0).data == b"hello"
        lab.ch.flows()[0].close()
        (fin,) = (a for a in lab.out() if a.net_flags == w.FIN)
        lab.rcv = w.add32(fin.seqno, 1)
        lab.put(Mnp(w.FIN, lab.snd, lab.rcv, count=64))
        assert lab.stack.usage()["time_wait"] == 1
        open_flow(lab, 1026)
        assert lab.stack.usage()["mnp_flows"] == 1


def test_half_open_flows_give_way_when_the_table_is_full() -> None:
    """A few spoofed SYNs, fewer than the backlog, must not keep everybody else away."""
    with MnpLab(mnp_flows_max=4) as lab:
        lab.listen()
        for port in range(1025, 1029):
            from_port(lab, port)
            assert lab.put(lab.syn())
        from_port(lab, 1030)
        assert lab.put(lab.syn()) == [], "those may still be on their way"
        for port in range(1025, 1029):  # their SYN-ACKs go to them alone
            from_port(lab, port)
        at = lab.stack.now_ns
        while lab.stack.now_ns - at < 1200 * MS:
            lab.stack.advance(100 * MS)
            lab.stack.drain()
        assert lab.stack.usage()["half_open"] == 4
        from_port(lab, 1030)
        assert [a.net_flags for a in lab.put(lab.syn())] == [w.SYN_ACK]
        assert lab.stack.usage()["mnp_flows"] == 4


@pytest.mark.parametrize("size", [65_536, 65_537, 100_000, 56 * 4096, 56 * 4096 + 1])
def test_longest_plain_message_of_a_small_channel(size: int) -> None:
    """All buffers but the reserve: the room in those that it has already counts."""
    with MnpLab(channel={"rx_bufs": 64, "buf_bytes": 4096}) as lab:
        lab.passive()
        data = bytes(range(256)) * (size // 256 + 1)
        ended = False
        for packet in lab.data(data[:size]):
            ended |= any(a.net_flags == w.RST for a in lab.put(packet))
        if size > 56 * 4096:
            assert ended
        else:
            assert lab.ch.recv(timeout=0).data == data[:size]
        assert lab.stack.usage()["ooo_blocks"] == 0


@pytest.mark.parametrize(("size", "lost"), [(100_000, []), (160_000, [1025])])
def test_plain_messages_that_grow_do_not_wait_for_each_other_for_ever(
    size: int, lost: list[int]
) -> None:
    """They take turns; when each holds what the other needs, the one that sees it loses its flow."""
    with MnpLab(channel={"rx_bufs": 64, "buf_bytes": 4096}) as lab:
        lab.listen()
        packets = w.cut(bytes(size), 1)
        ports = (1025, 1026)
        for port in ports:
            open_flow(lab, port)
        up_to = dict.fromkeys(ports, 1)
        resets: list[int] = []
        got: list[int] = []
        for turn in range(400):
            for port in ports:
                from_port(lab, port)
                if up_to[port] <= len(packets):
                    lab.stack.inject(w.frame(lab.path, packets[up_to[port] - 1]))
            for _, raw in lab.stack.drain():
                parsed = w.parse_frame(raw)
                assert parsed is not None
                path, answer = parsed
                if answer.net_flags == w.ACK and path.dport not in resets:
                    up_to[path.dport] = max(up_to[path.dport], answer.ackno)
                elif answer.net_flags == w.RST and path.dport not in resets:
                    resets.append(path.dport)
                    up_to[path.dport] = len(packets) + 1
            try:
                message = lab.ch.try_recv()
                got += [len(message.data)] if message is not None else []
            except OSError as error:
                got.append(-(error.errno or 0))
            if turn > 2 * len(packets):
                lab.stack.advance(100 * MS)
        assert resets == lost
        assert got == [-errno.ENOBUFS] * len(lost) + [size] * (len(ports) - len(lost))
        assert lab.stack.usage()["ooo_blocks"] == 0
