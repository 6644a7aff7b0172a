# SPDX-License-Identifier: MIT
"""Replaying captures into a stack: what comes in and when, what is answered, what is refused."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING, Any

import pytest

import machnet
from machnet import Stack
from machnet._native import ffi, lib
from machnet.sim import Faulty, Pcap, Wire
from machnet.sim.capturefile import read_capture, select
from machnet.stack.names import parse_ip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MS = 10**6
CLIENT, SERVER, PORT = "10.0.0.1", "10.0.0.2", 888
PEER_MAC, SIDE_MAC = "02:11:22:33:44:01", "02:11:22:33:44:02"
SYN, ACK, PSH, RST, FIN = 0x02, 0x10, 0x08, 0x04, 0x01


# ---- our own sessions ----------------------------------------------------------------------------


def record(path: Path, rounds: int = 3, seed: int = 0, connections: int = 1) -> None:
    """A session of two stacks, as the server's side sees it."""
    a, b = Wire.pair()
    with (
        Stack(b, f"{SERVER}/24", pcap=path, seed=seed) as server,
        Stack(Faulty(a, rx={"latency": "1ms"}), f"{CLIENT}/24", seed=5) as client,
    ):
        listener, channel = server.attach(), client.attach()
        listener.listen(SERVER, PORT, protocol="tcp")
        flows = [
            channel.connect(CLIENT, SERVER, PORT, protocol="tcp", timeout=1)
            for _ in range(connections)
        ]
        for n in range(rounds):
            for flow in flows:
                channel.send(flow, bytes([n]) * (500 * n + 1))
                message = listener.recv(timeout=1)
                listener.send(message.flow, message.data + b"!")
                assert channel.recv(timeout=1).data == bytes([n]) * (500 * n + 1) + b"!"
                client.advance(7 * MS)
        for flow in flows:
            flow.close()
        client.advance(50 * MS)


def serve(stack: Stack) -> list[bytes]:
    """Answers as the recorded server did, until nothing has come for a while; what came."""
    channel = stack.attach()
    channel.listen(SERVER, PORT, protocol="tcp")
    got = []
    with contextlib.suppress(TimeoutError):
        while True:
            message = channel.recv(timeout=1)
            got.append(message.data)
            channel.send(message.flow, message.data + b"!")
    return got


def replayed(path: Path, out: Path, **options: Any) -> tuple[Pcap, list[bytes]]:
    nic = Pcap(path, out)
    with Stack(nic, f"{SERVER}/24", **options) as stack:
        got = serve(stack)
    nic.close()
    return nic, got


def test_answers_to_a_replayed_session_are_those_of_the_session(tmp_path: Path) -> None:
    record(tmp_path / "in.pcapng")
    nic, got = replayed(tmp_path / "in.pcapng", tmp_path / "out.pcapng")
    assert got == [bytes([n]) * (500 * n + 1) for n in range(3)]
    answers = read_capture(tmp_path / "out.pcapng")
    assert [frame.data for frame in answers] == [data for _, data in nic.original]
    # libpcap rounds to microseconds, and the first frame comes at 1 ns.
    epoch = read_capture(tmp_path / "in.pcapng")[0].t_ns
    for frame, (when, _) in zip(answers, nic.original, strict=True):
        assert abs(frame.t_ns - epoch - when) <= 1000


def test_session_replays_under_another_secret(tmp_path: Path) -> None:
    """The stack takes the recorded sequence numbers, whatever it would have chosen."""
    record(tmp_path / "in.pcapng", seed=1)
    _, got = replayed(tmp_path / "in.pcapng", tmp_path / "out.pcapng", seed=2)
    assert len(got) == 3


@pytest.mark.parametrize("isn", [None, 0, 2**32 - 10])
def test_acknowledgements_follow_the_stack_s_own_numbers(tmp_path: Path, isn: int | None) -> None:
    record(tmp_path / "in.pcapng", connections=3)
    nic, got = replayed(tmp_path / "in.pcapng", tmp_path / "out.pcapng", isn=isn)
    assert len(got) == 9
    frames = [frame.data for frame in read_capture(tmp_path / "out.pcapng")]
    assert len(frames) == len(nic.original)
    isns = {struct.unpack_from("!I", f, 38)[0] for f in frames if f[23] == 6 and f[47] & SYN}
    recorded = {
        struct.unpack_from("!I", f, 38)[0]
        for _, f in nic.original
        if f[12:14] == b"\x08\x00" and f[47] & SYN
    }
    assert len(recorded) == 3
    assert len(isns) == 1
    assert isns == {isn} if isn is not None else isns < recorded
    assert not any(f[47] & RST for f in frames if f[12:14] == b"\x08\x00")


def test_replay_is_the_same_each_time(tmp_path: Path) -> None:
    record(tmp_path / "in.pcapng")
    for n in range(2):
        replayed(tmp_path / "in.pcapng", tmp_path / f"out{n}.pcapng")
    assert (tmp_path / "out0.pcapng").read_bytes() == (tmp_path / "out1.pcapng").read_bytes()


def test_client_side_can_be_replayed_too(tmp_path: Path) -> None:
    """The stack connects by itself, from the port that was captured."""
    record(tmp_path / "in.pcapng", rounds=1)
    (syn,) = [f.data for f in read_capture(tmp_path / "in.pcapng") if f.data[12:14] == b"\x08\x00"][
        :1
    ]
    port = struct.unpack_from("!H", syn, 34)[0]
    nic = Pcap(tmp_path / "in.pcapng")
    with Stack(nic, f"{CLIENT}/24") as stack:
        channel = stack.attach()
        flow = channel.connect(CLIENT, SERVER, PORT, protocol="tcp", timeout=1, local_port=port)
        channel.send(flow, b"\0")
        assert channel.recv(timeout=1).data == b"\0!"
    nic.close()


# ---- captures from the field ---------------------------------------------------------------------


def field(path: Path, packets: list[tuple[float, Any]], **options: Any) -> Path:
    from scapy.utils import wrpcap

    for when, packet in packets:
        packet.time = when
    wrpcap(str(path), [packet for _, packet in packets], **options)
    return path


def segment(
    flags: str, seq: int, ack: int = 0, payload: bytes = b"", sport: int = 5000, **more: Any
) -> Any:
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    tcp = TCP(sport=sport, dport=PORT, flags=flags, seq=seq, ack=ack % 2**32, **more)
    ether = Ether(src=PEER_MAC, dst=SIDE_MAC)
    packet = ether / IP(src=CLIENT, dst=SERVER) / tcp / payload
    return Ether(bytes(packet))


def conversation(sport: int = 5000, isn: int = 777) -> list[tuple[float, Any]]:
    """A client's half of a connection that was captured in the field."""
    hello = struct.pack("!I", 5) + b"hello"
    return [
        (1000.000001, segment("S", 100, sport=sport, options=[("MSS", 1460)])),
        (1000.020001, segment("A", 101, isn + 1, sport=sport)),
        (1000.030001, segment("PA", 101, isn + 1, hello, sport=sport)),
        (1000.090001, segment("A", 110, isn + 1 + 10, sport=sport)),
        (1000.120001, segment("FA", 110, isn + 1 + 10, sport=sport)),
        (1000.130001, segment("A", 111, isn + 1 + 11, sport=sport)),
    ]


def opened(path: Path, out: Path | None = None, ip: str = f"{SERVER}/24") -> Any:
    text = f"pcap:{path}" + (f",{out}" if out is not None else "")
    return Stack(text, ip)


def test_one_sided_capture_is_answered_with_its_own_numbers(tmp_path: Path) -> None:
    path = field(tmp_path / "in.pcap", conversation())
    with opened(path, tmp_path / "out.pcapng") as stack:
        assert stack.mac == SIDE_MAC
        assert serve(stack) == [b"hello"]
        assert stack.stats()["tcp_retransmits"] == 0
    from scapy.layers.inet import TCP
    from scapy.layers.l2 import ARP, Ether
    from scapy.utils import rdpcap

    out = rdpcap(str(tmp_path / "out.pcapng"))
    assert ARP in out[0]
    assert (out[0][ARP].pdst, out[0][ARP].op) == (CLIENT, 1)
    assert out[1][TCP].flags == "SA"
    assert (out[1][TCP].seq, out[1][TCP].ack) == (777, 101)
    assert all(packet[Ether].dst == PEER_MAC for packet in out[1:])
    # Stamped so that it can be merged with what was captured.
    assert [float(p.time) for p in out[:2]] == pytest.approx([1000.000001] * 2, abs=1e-6)


def test_frames_come_at_their_times(tmp_path: Path) -> None:
    path = field(tmp_path / "in.pcap", conversation())
    with opened(path) as stack:
        nic = stack.nic
        assert isinstance(nic, Pcap)
        assert [t for t, _ in nic.frames] == [0, 20 * MS, 30 * MS, 90 * MS, 120 * MS, 130 * MS]
        assert nic.end_ns == 130 * MS
        assert stack.deadline() == 1
        stack.poll()
        assert nic.stats()["rx_frames"] == 0  # at 0 nothing has come in yet
        stack.advance(20 * MS - 1)
        assert nic.stats()["rx_frames"] == 1
        stack.advance(1)
        assert (nic.stats()["rx_frames"], nic.stats()["rx_left"]) == (2, 4)
        nic.run()
        assert stack.now_ns == 130 * MS
        assert nic.stats()["rx_left"] == 0
        nic.run(after="2ms")
        assert stack.now_ns == 132 * MS


def test_only_what_is_for_the_stack_comes_in(tmp_path: Path) -> None:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import ARP, Ether

    ether = Ether(src=PEER_MAC, dst=SIDE_MAC)
    packets = [
        (1.0, ether / IP(src=CLIENT, dst="10.0.0.3") / UDP()),
        (2.0, Ether(src=PEER_MAC) / ARP(psrc=CLIENT, pdst=SERVER, hwsrc=PEER_MAC)),
        (2.5, Ether(src=PEER_MAC) / ARP(psrc=CLIENT, pdst="10.0.0.3", hwsrc=PEER_MAC)),
        (3.0, ether / IP(src=SERVER, dst=CLIENT) / UDP()),
        (4.0, Ether(src="02:00:00:00:00:99", dst="02:00:00:00:00:98") / IP(dst=SERVER) / UDP()),
        (5.0, Ether(type=0x88CC) / b"lldp"),
    ]
    path = field(tmp_path / "in.pcap", packets)
    with opened(path) as stack:
        assert isinstance(stack.nic, Pcap)
        assert [t for t, _ in stack.nic.frames] == [0, 2 * 10**9]
        assert [t for t, _ in stack.nic.original] == [10**9]
        # The stack's address is the one of the capture; a frame to another one is readdressed.
        assert stack.nic.frames[1][1][:6].hex(":") == stack.mac
        stack.nic.run()
        assert stack.stats()["rx_frames"] == 2


def test_vlan_tag_is_taken_off(tmp_path: Path) -> None:
    from scapy.layers.l2 import Dot1Q, Ether

    def tagged(packet: Any) -> Any:
        ether = Ether(src=PEER_MAC, dst=SIDE_MAC)
        return ether / Dot1Q(vlan=7) / packet.payload

    path = field(tmp_path / "in.pcap", [(t, tagged(p)) for t, p in conversation()])
    with opened(path) as stack:
        assert serve(stack) == [b"hello"]


@pytest.mark.parametrize("link", [101, 12, 228, 113, 276])
def test_other_link_types_get_an_ethernet_header(tmp_path: Path, link: int) -> None:
    header = {113: bytes(14) + b"\x08\x00", 276: b"\x08\x00" + bytes(18)}.get(link, b"")
    path = tmp_path / "in.pcap"
    records = b""
    for when, packet in conversation():
        data = header + bytes(packet.payload)
        whole = int(when)
        micros = round((when - whole) * 1e6)
        records += struct.pack("<IIII", whole, micros, len(data), len(data)) + data
    path.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link) + records)
    with opened(path) as stack:
        assert serve(stack) == [b"hello"]


def test_several_connections_each_have_their_numbers(tmp_path: Path) -> None:
    packets = conversation(5000, 777) + conversation(5001, 2**32 - 5)
    path = field(tmp_path / "in.pcap", sorted(packets, key=lambda item: item[0]))
    with opened(path) as stack:
        assert serve(stack) == [b"hello", b"hello"]
        assert stack.stats()["tcp_retransmits"] == 0


def test_ports_that_are_used_again_start_anew(tmp_path: Path) -> None:
    first = conversation(isn=777)
    second = [
        (when + 100, segment(flags, seq + 10**6, ack and ack + 4444, payload))
        for when, flags, seq, ack, payload in [
            (1000.0, "S", 100, 0, b""),
            (1000.1, "A", 101, 778, b""),
            (1000.2, "PA", 101, 778, struct.pack("!I", 3) + b"two"),
            (1000.3, "A", 108, 778 + 8, b""),
            (1000.4, "RA", 108, 778 + 8, b""),
        ]
    ]
    frames = read_capture(field(tmp_path / "in.pcap", first + second))
    replay = select(frames, parse_ip(SERVER))
    acks = [struct.unpack_from("!I", data, 42)[0] for _, data in replay.frames]
    assert replay.isn == 777
    assert acks == [0, 778, 778, 788, 788, 789, 0, 778, 778, 786, 786]


def test_sack_blocks_move_with_the_acknowledgement(tmp_path: Path) -> None:
    from scapy.layers.inet import TCP
    from scapy.layers.l2 import Ether

    for pad in (0, 1, 2):
        options = [("NOP", None)] * pad + [("SAck", (1100, 1200, 1300, 1400))]
        packets = [
            (1.0, segment("S", 100)),
            (2.0, segment("A", 101, 1001)),
            (3.0, segment("A", 101, 1001, options=options)),
        ]
        frames = read_capture(field(tmp_path / "in.pcap", packets))
        shifted = Ether(select(frames, parse_ip(SERVER), isn=5).frames[2][1])
        assert shifted[TCP].ack == 6
        blocks = dict(option for option in shifted[TCP].options if option[0] == "SAck")
        assert blocks["SAck"] == (105, 205, 305, 405)
        told = shifted[TCP].chksum
        del shifted[TCP].chksum
        assert Ether(bytes(shifted))[TCP].chksum == told


def test_wrong_checksum_stays_wrong(tmp_path: Path) -> None:
    bad = segment("A", 101, 1001)
    from scapy.layers.inet import TCP

    bad[TCP].chksum ^= 0x5555
    path = field(tmp_path / "in.pcap", [(1.0, segment("S", 100)), (2.0, bad)])
    with Stack(Pcap(path), f"{SERVER}/24", isn=99) as stack:
        stack.attach().listen(SERVER, PORT, protocol="tcp")
        assert isinstance(stack.nic, Pcap)
        stack.nic.run()
        assert stack.stats()["drop_tcp_csum"] == 1


def test_merged_segments_of_a_receive_offload_are_taken_whole(tmp_path: Path) -> None:
    message = struct.pack("!I", 20_000) + bytes(20_000)
    packets = [
        (1.0, segment("S", 100, options=[("MSS", 1460)])),
        (1.1, segment("A", 101, 778)),
        (1.2, segment("PA", 101, 778, message)),
    ]
    with opened(field(tmp_path / "in.pcap", packets)) as stack:
        assert serve(stack) == [bytes(20_000)]


def test_unknown_connection_is_reset(tmp_path: Path) -> None:
    path = field(tmp_path / "in.pcap", [(1.0, segment("PA", 101, 778, b"middle"))])
    with opened(path, tmp_path / "out.pcapng") as stack:
        stack.nic.run()
    (arp, reset) = read_capture(tmp_path / "out.pcapng")
    assert arp.data[12:14] == b"\x08\x06"
    assert reset.data[47] == RST
    assert struct.unpack_from("!I", reset.data, 38)[0] == 778


def test_who_takes_one_frame_at_a_time_gets_all_answers_to_its_queries(tmp_path: Path) -> None:
    with contextlib.closing(Pcap(field(tmp_path / "in.pcap", conversation()))) as nic:
        for last in range(10, 13):
            query = bytes.fromhex("ffffffffffff 024d4e000001 0806 0001080006040001 024d4e000001")
            query += bytes([10, 0, 0, 2]) + bytes(6) + bytes([10, 0, 0, last])
            assert lib.mn_nic_tx_bytes(nic.native, 0, query, len(query), ffi.NULL) == 0
        buf = ffi.new("uint8_t[]", 2048)
        asked = []
        while (n := lib.mn_nic_rx_bytes(nic.native, 0, buf, 2048, ffi.NULL)) > 0:
            asked.append(bytes(ffi.buffer(buf, n))[28:32])
        assert asked == [bytes([10, 0, 0, last]) for last in range(10, 13)]


def test_answers_to_strangers_need_a_gateway(tmp_path: Path) -> None:
    from scapy.layers.inet import ICMP, IP
    from scapy.layers.l2 import Ether

    ping = Ether(src=PEER_MAC, dst=SIDE_MAC) / IP(src="192.0.2.1", dst=SERVER) / ICMP()
    path = field(tmp_path / "in.pcap", [(1.0, ping)])
    with Stack(f"pcap:{path},{tmp_path / 'out'}", f"{SERVER}/24", "10.0.0.254") as stack:
        stack.nic.run()
    assert [f.data[12:14] for f in read_capture(tmp_path / "out")] == [b"\x08\x06", b"\x08\x00"]


def test_capture_of_both_directions_beside(tmp_path: Path) -> None:
    """`pcap=` of the stack has what came in as well as what went out."""
    path = field(tmp_path / "in.pcap", conversation())
    with Stack(f"pcap:{path}", f"{SERVER}/24", pcap=tmp_path / "all.pcapng") as stack:
        assert serve(stack) == [b"hello"]
    seen = [f.data for f in read_capture(tmp_path / "all.pcapng")]
    assert len(seen) > len(conversation()) + 3


def test_faults_around_a_replay(tmp_path: Path) -> None:
    path = field(tmp_path / "in.pcap", conversation())
    with Stack(f"pcap:{path}?rx.latency=5ms&rx.duplicate=1", f"{SERVER}/24") as stack:
        assert serve(stack) == [b"hello"]
        stats = stack.nic.stats()
        assert (stats["rx_frames"], stats["rx_passed"]) == (7, 14)  # one is the answer to ARP


# ---- refusals ------------------------------------------------------------------------------------


def damage(kind: str, path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"this is not a capture at all",
            "header": whole[:10],
            "record": whole[:30],
            "packet": whole[:-3],
        }[kind]
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "truncated dump file"),
        ("text", "unknown file format"),
        ("header", "truncated dump file"),
        ("record", "frame 1: truncated dump file"),
        ("packet", "frame 6: truncated dump file"),
    ],
)
def test_damaged_files_are_refused_with_the_place(tmp_path: Path, kind: str, said: str) -> None:
    path = field(tmp_path / "in.pcap", conversation())
    damage(kind, path)
    with pytest.raises(ValueError, match=said) as caught:
        Pcap(path)
    assert str(path) in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError):
        Stack("pcap:no-such-file.pcap", f"{SERVER}/24")


def test_foreign_link_type(tmp_path: Path) -> None:
    path = tmp_path / "wifi.pcap"
    path.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 127))
    with pytest.raises(ValueError, match=r"link type 127 is neither Ethernet nor one of: .*raw IP"):
        Pcap(path)


def test_frame_that_was_cut_off(tmp_path: Path) -> None:
    path = field(tmp_path / "in.pcap", conversation(), snaplen=50)
    with pytest.raises(ValueError, match=r"frame 1 was not captured whole \(8 bytes are missing\)"):
        opened(path)


def test_nobody_s_capture(tmp_path: Path) -> None:
    path = field(tmp_path / "in.pcap", conversation())
    with pytest.raises(
        ValueError, match=r"no frame is for 10\.0\.0\.9; it has frames for 10\.0\.0\.2 \(6\)"
    ):
        opened(path, ip="10.0.0.9/24")
    empty = tmp_path / "empty.pcap"
    empty.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
    with pytest.raises(ValueError, match="it has no IPv4 and no ARP"):
        opened(empty)


def test_use(tmp_path: Path) -> None:
    path = field(tmp_path / "in.pcap", conversation())
    with pytest.raises(ValueError, match="is the capture that is to be read"):
        Pcap(path, path)
    with pytest.raises(ValueError, match="mtu: 10 is not within 68 to 65521"):
        Pcap(path, tmp_path / "x", mtu=10)
    with pytest.raises(FileNotFoundError):
        Pcap(path, tmp_path / "no" / "x")
    nic = Pcap(path)
    assert (nic.frames, nic.end_ns, nic.mtu) == ([], 0, 1500)
    with pytest.raises(RuntimeError, match="no stack is open on it"):
        nic.run()
    with pytest.raises(ValueError, match="thread: a replayed capture can only be stepped"):
        Stack(nic, f"{SERVER}/24", thread=True)
    with Stack(nic, f"{SERVER}/24"):
        pass
    with pytest.raises(ValueError, match="was replayed already"):
        Stack(nic, f"{SERVER}/24")
    nic.close()


def test_end_of_a_capture_is_the_end_of_waiting(tmp_path: Path) -> None:
    """Without a timeout a wait ends when nothing can happen any more."""
    path = field(tmp_path / "in.pcap", [(1.0, segment("R", 1))])
    with opened(path) as stack:
        channel = stack.attach()
        channel.listen(SERVER, PORT, protocol="tcp")
        with pytest.raises(machnet.DeadlockError):
            channel.recv(timeout=None)


# ---- the driver ----------------------------------------------------------------------------------


@pytest.fixture
def raw() -> Iterator[Callable[..., int]]:
    config = ffi.new("struct mn_pcapnic_config *", {"mtu": 1500})
    out = ffi.new("struct mn_nic **")
    assert lib.mn_pcapnic_open(config, out) == 0

    def add(when: int, size: int) -> int:
        return int(lib.mn_pcapnic_add(out[0], when, bytes(size), size))

    yield add
    lib.mn_pcapnic_close(out[0])


def test_list_takes_frames_in_order_and_of_any_size(raw: Callable[..., int]) -> None:
    assert raw(5, 14) == 0
    assert raw(5, lib.MN_PCAPNIC_FRAME_MAX) == 0
    assert raw(4, 60) == -22
    assert raw(6, 13) == -90
    assert raw(6, lib.MN_PCAPNIC_FRAME_MAX + 1) == -90
    assert [raw(7 + n, 60) for n in range(1000)] == [0] * 1000
