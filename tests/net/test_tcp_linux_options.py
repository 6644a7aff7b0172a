# SPDX-License-Identifier: MIT
"""Offloads, MTUs and what is negotiated, between machnet and Linux TCP over a TAP."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
from linux_peer import (
    KERNEL_IP,
    MIB,
    OUR_IP,
    PATIENCE_S,
    PORT,
    beside,
    ends,
    eventually,
    linux_peer,
    needs_tap,
    pattern,
    recv,
    recv_message,
    scaled,
    send,
    send_message,
    tcp_info,
)

from machnet._native import lib

if TYPE_CHECKING:
    from pathlib import Path

    from machnet import Channel, Flow

pytestmark = pytest.mark.skipif(needs_tap() is not None, reason=str(needs_tap()))

BULK = scaled(32, 8) * MIB
MESSAGE = 4 * MIB


def both_ways(channel: Channel, flow: Flow, sock: socket.socket, size: int, count: int = 1) -> None:
    """Messages from Linux, then to Linux, byte-exact."""

    def give() -> None:
        for n in range(count):
            send_message(sock, pattern(size, n))

    def take() -> None:
        for n in range(count):
            assert recv_message(sock) == pattern(size, n + 100)

    with beside(give):
        for n in range(count):
            assert recv(channel).data == pattern(size, n)
    with beside(take):
        for n in range(count):
            send(channel, flow, pattern(size, n + 100))


class TestOffloads:
    def test_bulk_crosses_in_large_segments(self) -> None:
        """With vnet header and segmentation offload, most frames carry many segments' payload."""
        with linux_peer() as peer:
            channel = peer.stack.attach()
            flow, sock = ends(peer, channel, "client")
            before = peer.tap.stats()
            both_ways(channel, flow, sock, MESSAGE, BULK // MESSAGE)
            after = peer.tap.stats()
            segments = BULK // 1448
            sent = after["tx_frames"] - before["tx_frames"]
            received = after["rx_frames"] - before["rx_frames"]
            # Each direction's frames are data and the other one's acknowledgements.
            assert sent < segments / 4
            assert received < segments / 4
            assert after["tx_errors"] == 0
            assert peer.stack.stats()["tcp_retransmits"] == 0

    @pytest.mark.parametrize("vnet_hdr", [True, False])
    def test_without_offloads_each_frame_is_one_segment(self, vnet_hdr: bool) -> None:
        with linux_peer(offload=False, vnet_hdr=vnet_hdr) as peer:
            channel = peer.stack.attach()
            flow, sock = ends(peer, channel, "client")
            before = peer.tap.stats()
            both_ways(channel, flow, sock, MESSAGE, 2)
            after = peer.tap.stats()
            segments = 2 * MESSAGE // 1448
            assert after["tx_frames"] - before["tx_frames"] >= segments
            assert after["rx_frames"] - before["rx_frames"] >= segments
            assert peer.stack.stats()["drop_tcp_csum"] == 0
            snmp = peer.run(["cat", "/proc/net/snmp"]).stdout
            assert counter(snmp, "Tcp", "InCsumErrors") == 0

    def test_an_offload_of_one_side_alone(self) -> None:
        """The kernel's TAP could take more than the stack makes use of."""
        with linux_peer() as peer:
            peer.host.set_offloads("mn0", on=False)
            channel = peer.stack.attach()
            flow, sock = ends(peer, channel, "client")
            both_ways(channel, flow, sock, MESSAGE, 2)
            snmp = peer.run(["cat", "/proc/net/snmp"]).stdout
            assert counter(snmp, "Tcp", "InCsumErrors") == 0


def counter(snmp: str, protocol: str, name: str) -> int:
    names, values = (
        line.split() for line in snmp.splitlines() if line.startswith(f"{protocol}:")
    )  # fmt: skip
    return int(values[names.index(name)])


@pytest.mark.parametrize("kernel_is", ["client", "server"])
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "plain"])
@pytest.mark.parametrize("mtu", [296, 576, 1500, 9000, 65000])
def test_mtu(mtu: int, offload: bool, kernel_is: str) -> None:
    with linux_peer(mtu=mtu, offload=offload) as peer:
        channel = peer.stack.attach()
        flow, sock = ends(peer, channel, kernel_is)
        for size in (0, 1, mtu - 57, mtu - 56, mtu - 55, mtu - 44, mtu - 40, mtu, 2 * mtu, 100_000):
            both_ways(channel, flow, sock, size)
        both_ways(channel, flow, sock, min(MIB, 2000 * mtu), 2)
        info = peer.info()
        assert info is not None
        assert info.mss <= mtu - 40
        assert tcp_info(sock)["snd_mss"] <= mtu - 40
        assert peer.stack.stats()["drop_ip_fragment"] == 0


def test_mtus_that_differ() -> None:
    """Each side sends what the other one announced, and neither more than its own MTU."""
    with linux_peer(mtu=1500) as peer:
        peer.host.set_link("mn0", mtu=1000)
        channel = peer.stack.attach()
        flow, sock = ends(peer, channel, "client")
        both_ways(channel, flow, sock, MIB)
        info = peer.info()
        assert info is not None
        assert info.mss == 1000 - 40 - 12
        assert tcp_info(sock)["snd_mss"] == 1000 - 40 - 12


EXTENSIONS = {
    "timestamps": "net.ipv4.tcp_timestamps",
    "sack": "net.ipv4.tcp_sack",
    "wscale": "net.ipv4.tcp_window_scaling",
}


class TestNegotiation:
    @pytest.mark.parametrize("kernel_is", ["client", "server"])
    @pytest.mark.parametrize("who", ["kernel", "machnet", "both"])
    @pytest.mark.parametrize("off", [*([name] for name in EXTENSIONS), list(EXTENSIONS)])
    def test_an_extension_is_off(self, off: list[str], who: str, kernel_is: str) -> None:
        settings = dict.fromkeys(off, False) if who != "kernel" else {}
        with linux_peer(**settings) as peer:
            if who != "machnet":
                for name in off:
                    peer.host.sysctl(EXTENSIONS[name], 0)
            channel = peer.stack.attach()
            flow, sock = ends(peer, channel, kernel_is)
            info = tcp_info(sock)
            assert {name: info[name] for name in EXTENSIONS} == {
                name: int(name not in off) for name in EXTENSIONS
            }
            both_ways(channel, flow, sock, 2 * MIB, 2)
            assert peer.stack.stats()["drop_tcp_no_ts"] == 0

    @pytest.mark.parametrize("kernel_is", ["client", "server"])
    def test_all_are_on_by_default(self, kernel_is: str) -> None:
        with linux_peer() as peer:
            _, sock = ends(peer, peer.stack.attach(), kernel_is)
            info = tcp_info(sock)
            assert {name: info[name] for name in EXTENSIONS} == dict.fromkeys(EXTENSIONS, 1)
            assert info["ecn"] == 0

    @pytest.mark.parametrize("kernel_is", ["client", "server"])
    def test_linux_wants_ecn(self, kernel_is: str) -> None:
        """We do not do ECN, so it must be off at both ends, and data flow."""
        with linux_peer() as peer:
            peer.host.sysctl("net.ipv4.tcp_ecn", 1)
            channel = peer.stack.attach()
            flow, sock = ends(peer, channel, kernel_is)
            assert tcp_info(sock)["ecn"] == 0
            both_ways(channel, flow, sock, MIB)

    @pytest.mark.parametrize("kernel_is", ["client", "server"])
    def test_linux_has_tiny_buffers(self, kernel_is: str) -> None:
        with linux_peer() as peer:
            peer.host.sysctl("net.ipv4.tcp_rmem", "4096 4096 4096")
            peer.host.sysctl("net.ipv4.tcp_wmem", "4096 4096 4096")
            channel = peer.stack.attach()
            flow, sock = ends(peer, channel, kernel_is)
            both_ways(channel, flow, sock, 200_000, 2)
            assert peer.stack.stats()["tcp_rto"] == 0

    def test_linux_asks_for_a_fast_open_cookie(self) -> None:
        """An option of another kind in the SYN is passed over (MUST-6)."""
        with linux_peer() as peer:
            peer.host.sysctl("net.ipv4.tcp_fastopen", 1)
            channel = peer.stack.attach()
            channel.listen(OUR_IP, PORT, "tcp")
            sock = peer.socket()
            sock.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT: with the first send
            sock.connect((OUR_IP, PORT))
            send_message(sock, b"hello")
            assert recv(channel).data == b"hello"
            netstat = peer.run(["cat", "/proc/net/netstat"]).stdout
            assert counter(netstat, "TcpExt", "TCPFastOpenActive") == 0

    @pytest.mark.parametrize("mss", [88, 536, 1000, 1460])
    def test_linux_announces_another_mss(self, mss: int) -> None:
        with linux_peer() as peer:
            channel = peer.stack.attach()
            channel.listen(OUR_IP, PORT, "tcp")
            sock = peer.socket()
            sock.setsockopt(6, 2, mss)  # IPPROTO_TCP, TCP_MAXSEG
            sock.connect((OUR_IP, PORT))
            send_message(sock, b"hello")
            flow = recv(channel).flow
            both_ways(channel, flow, sock, 300_000)
            info = peer.info()
            assert info is not None
            assert info.mss == mss - 12


class TestQueues:
    def test_a_small_transmit_queue_of_linux(self) -> None:
        """Frames that the TAP drops, as its queue holds few, are sent again by Linux."""
        with linux_peer(offload=False) as peer:
            with peer.host.iproute() as ip:
                index = ip.link_lookup(ifname="mn0")[0]
                ip.link("set", index=index, txqlen=3)
            channel = peer.stack.attach()
            flow, sock = ends(peer, channel, "client")
            both_ways(channel, flow, sock, 2 * MIB, 2)

    def test_a_small_receive_window_of_the_stack(self) -> None:
        with linux_peer(rcv_buf_bytes=4096) as peer:
            channel = peer.stack.attach()
            flow, sock = ends(peer, channel, "client")
            both_ways(channel, flow, sock, 300_000, 2)

    @pytest.mark.parametrize(
        "settings", [{"delack_us": 0}, {"initial_window": 1}, {"poll_burst": 1}]
    )
    def test_settings_at_their_ends(self, settings: dict[str, int]) -> None:
        with linux_peer(**settings) as peer:
            channel = peer.stack.attach()
            flow, sock = ends(peer, channel, "client")
            both_ways(channel, flow, sock, MIB, 2)
            both_ways(channel, flow, sock, 10, 100)


def segments(capture: Path, port: int) -> list[tuple[bool, int, int, int, int]]:
    """TCP segments of a capture: ours or not, sequence number, payload length, ACK, flags."""
    from scapy.utils import PcapNgReader

    found = []
    with PcapNgReader(str(capture)) as reader:
        for packet in reader:
            raw = bytes(packet)
            if raw[12:14] != b"\x08\x00" or raw[23] != 6:
                continue
            total = int.from_bytes(raw[16:18], "big")
            sport, dport, seq, ack = struct.unpack_from("!HHII", raw, 34)
            if port in {sport, dport}:
                length = total - 20 - (raw[46] >> 4) * 4
                ours = raw[26:30] == bytes(map(int, OUR_IP.split(".")))
                found.append((ours, seq, length, ack, raw[47]))
    return found


class TestNagle:
    """Many small writes in a row; the capture shows in which order segments and ACKs went."""

    def small_writes(self, capture: Path, *, nodelay: bool) -> tuple[int, int]:
        """Data segments, and how many of them went out while data were unacknowledged."""
        with linux_peer(pcap=capture) as peer, peer.listen() as listener:
            channel = peer.stack.attach()
            flow, sock = peer.to_kernel(channel, listener, "stream")
            channel.set_option(flow, lib.MN_OPT_NODELAY, int(nodelay))
            # Linux acknowledges late, as it does for programs that answer.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            data = pattern(400, 3)
            for n in range(len(data)):
                channel.send(flow, data[n : n + 1], timeout=PATIENCE_S)
            got = b""
            while len(got) < len(data):
                got += sock.recv(len(data))
            assert got == data
            eventually(lambda: peer.info().send_queue == 0)
        count = early = 0
        first = una = nxt = None
        for ours, seq, length, ack, _ in segments(capture, PORT):
            if ours and length > 0:
                first = seq if first is None else first
                una = first if una is None else una
                early += nxt is not None and una != nxt
                count += 1
                nxt = (seq + length) & 0xFFFFFFFF
            elif not ours and nxt is not None and (nxt - ack) & 0xFFFFFFFF < 1 << 31:
                una = ack
        return count, early

    def test_on_waits_for_the_acknowledgement(self, tmp_path: Path) -> None:
        count, early = self.small_writes(tmp_path / "nagle.pcapng", nodelay=False)
        assert early == 0
        assert count < 400

    def test_off_does_not_wait(self, tmp_path: Path) -> None:
        count, early = self.small_writes(tmp_path / "nodelay.pcapng", nodelay=True)
        assert early > 0
        assert count > 1


def test_kernel_sees_no_wrong_checksum_or_header() -> None:
    """After all kinds of traffic, no error counter of Linux's IP and TCP has moved."""
    with linux_peer() as peer:
        channel = peer.stack.attach()
        flow, sock = ends(peer, channel, "client")
        both_ways(channel, flow, sock, 300_000, 5)
        sock.close()
        with pytest.raises(ConnectionRefusedError):
            channel.connect(OUR_IP, KERNEL_IP, 9, "tcp", timeout=PATIENCE_S)
        snmp = peer.run(["cat", "/proc/net/snmp"]).stdout
        assert counter(snmp, "Tcp", "InErrs") == 0
        assert counter(snmp, "Tcp", "InCsumErrors") == 0
        assert counter(snmp, "Ip", "InHdrErrors") == 0
        assert counter(snmp, "Ip", "InAddrErrors") == 0
        assert counter(snmp, "Ip", "InDiscards") == 0
