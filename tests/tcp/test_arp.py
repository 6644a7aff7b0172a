# SPDX-License-Identifier: MIT
"""ARP messages that lie (attack F6): what is known is not overwritten, what is learnt is bounded."""

from __future__ import annotations

import struct

import pytest
import tcp_peer as tp
from tcp_peer import PEER_IP, PEER_MAC, SEC, STACK_IP, STACK_MAC

REQUEST, REPLY = 1, 2
THIEF_MAC = bytes.fromhex("020000000066")
GATEWAY = "10.0.0.254"
FAR_IP = "192.168.7.7"


def octets(ip):
    return bytes(map(int, ip.split(".")))


def message(op, sender_mac, sender_ip, target_ip=STACK_IP):
    """An ARP message to the stack, from the station that it says."""
    head = STACK_MAC + sender_mac + b"\x08\x06" + struct.pack(">HHBBH", 1, 0x0800, 6, 4, op)
    return head + sender_mac + octets(sender_ip) + bytes(6) + octets(target_ip)


def resolved(lab, ip=PEER_IP):
    """An established connection, for which the stack had to ask for its next hop."""
    p = lab.peer(ip=ip)
    p.listener = lab.listen()
    p.send("S")
    lab.answer_arp()
    p.syn = p.expect("SA", ack=1)
    p.send("A")
    p.accept()
    return p


def serves(p):
    """Segments go to the peer's own station, and are acknowledged."""
    at = p.rcv_nxt
    p.write(100)
    got = p.expect("A", seq=at, len=100)
    assert got.raw.dst_mac == PEER_MAC
    p.send("A", data=10)
    assert p.read() == 10
    p.lab.advance(SEC)
    assert all(seg.raw.dst_mac == PEER_MAC for seg in p.drain())


LIES = {
    "gratuitous question": (REQUEST, True),
    "gratuitous answer": (REPLY, True),
    "question": (REQUEST, False),
    "answer": (REPLY, False),
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("hop", [PEER_IP, GATEWAY])
def test_established_neighbour_is_not_overwritten(labs, name, hop):
    """It is asked again instead, by itself; the thief's answers to that change nothing either."""
    lab = labs(resolve=True, gateway=GATEWAY)
    p = resolved(lab, PEER_IP if hop == PEER_IP else FAR_IP)
    op, gratuitous = LIES[name]
    lab.inject(message(op, THIEF_MAC, hop, hop if gratuitous else STACK_IP))
    asked = [f for f in lab._arp() if f[20:22] == b"\0\1"]
    # A question for another address says nothing to us: it is not even looked at.
    assert [f[:6] for f in asked] == ([] if name == "gratuitous question" else [PEER_MAC])
    serves(p)
    for _ in range(3):
        lab.inject(message(REPLY, THIEF_MAC, hop))
        serves(p)
    assert lab.stack.usage()["neighbors"] == 1


def test_established_static_neighbour_is_not_even_doubted(tcp):
    p = tp.established(tcp())
    for op in (REQUEST, REPLY):
        p.lab.inject(message(op, THIEF_MAC, PEER_IP))
    assert [f for f in p.lab._arp() if f[20:22] == b"\0\1"] == []
    serves(p)


def test_answers_that_nobody_asked_for_are_not_learnt(labs):
    lab = labs(resolve=True)
    with lab.counts(drop_arp_unsolicited=100, arp_replies=0):
        for i in range(100):
            lab.inject(message(REPLY, THIEF_MAC, f"10.0.0.{100 + i}"))
    assert lab.stack.usage()["neighbors"] == 0
    assert lab.frames == []


@pytest.mark.parametrize("op", [REQUEST, REPLY])
@pytest.mark.parametrize("mac", [b"\xff" * 6, bytes.fromhex("01005e000001")])
def test_a_group_is_no_station(labs, op, mac):
    """Nobody is answered at the address of all, and it is nobody's."""
    lab = labs(resolve=True)
    with lab.counts(drop_arp_bad=1, arp_replies=0):
        lab.inject(message(op, mac, "10.0.0.100"))
    assert lab.stack.usage()["neighbors"] == 0
    assert lab.frames == []


@pytest.mark.parametrize("op", [REQUEST, REPLY])
@pytest.mark.parametrize(
    "ip", [STACK_IP, "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.0.0.255"]
)
def test_what_is_no_hosts_address_is_not_learnt(labs, op, ip):
    lab = labs(resolve=True)
    lab.inject(message(op, THIEF_MAC, ip))
    assert lab.stack.usage()["neighbors"] == 0


def test_a_flood_of_senders_is_bounded(labs):
    """65,536 stations ask for us: the table keeps its size, and a connection goes on."""
    lab = labs(resolve=True, neighbors_max=64, ip=f"{STACK_IP}/8")
    p = resolved(lab)
    first = int.from_bytes(octets("10.1.0.0"), "big")
    before = lab.stack.stats()["arp_replies"]
    for i in range(1 << 16):
        frame = bytearray(message(REQUEST, THIEF_MAC, PEER_IP))
        frame[28:32] = (first + i).to_bytes(4, "big")
        lab.stack.inject(bytes(frame))
        if i % 4096 == 4095:
            lab.stack.drain()
    assert lab.stack.stats()["arp_replies"] - before == 1 << 16
    assert lab.stack.usage()["neighbors"] <= 64
    p.write(100)
    if lab.arp_requests():  # it had to make room: it is asked for anew
        lab.answer_arp()
    assert p.expect("A", len=100).raw.dst_mac == PEER_MAC
