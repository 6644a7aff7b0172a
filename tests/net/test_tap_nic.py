# SPDX-License-Identifier: MIT
"""The TAP NIC and the kernel behind it: frames, checksums, large segments."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest
from rawnic import CSUM_NONE, CSUM_PARTIAL, Meta, RawTap
from taplink import KERNEL_IP, OUR_IP, Link, l4_sum_is_right, linked, pseudo_sum

from machnet.sim.kernel_host import KernelHost

if TYPE_CHECKING:
    from collections.abc import Iterator


MSS = 1448

#: Of <linux/if_packet.h>; Python's socket module lacks them.
SOL_PACKET, PACKET_VNET_HDR = 263, 15


@pytest.fixture
def link(host: KernelHost) -> Iterator[Link]:
    with linked(host) as link:
        yield link


@pytest.fixture
def kernel_udp(host: KernelHost, link: Link) -> Iterator[socket.socket]:
    with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((KERNEL_IP, 7))
        sock.settimeout(10)
        yield sock


class TestWithKernel:
    def test_capabilities(self, host: KernelHost, link: Link) -> None:
        info = link.tap.info
        assert (info.mtu, info.queues, info.tx_max_frame) == (1500, 1, 65549)
        assert [info.tx_csum_tcp, info.tx_csum_udp, info.tx_gso, info.rx_csum_trusted] == [1] * 4
        assert info.rx_max_frame >= 65549
        assert info.rx_fd >= 0
        assert link.tap.name == "mn0"
        assert link.tap.kernel_mac == host.mac("mn0")
        assert int(link.tap.mac[:2], 16) & 3 == 2
        assert link.tap.mac != link.tap.kernel_mac

    def test_the_kernel_answers_arp(self, link: Link) -> None:
        from scapy.layers.l2 import ARP, Ether

        ask = Ether(src=link.tap.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(
            hwsrc=link.tap.mac, psrc=OUR_IP, pdst=KERNEL_IP
        )
        link.tap.send(bytes(ask))
        answer = Ether(link.tap.wait())
        assert answer[ARP].op == 2
        assert answer[ARP].hwsrc == answer.src == link.tap.kernel_mac
        assert (answer[ARP].psrc, answer.dst) == (KERNEL_IP, link.tap.mac)

    def test_a_datagram_comes_with_its_checksum_unfinished(
        self, link: Link, kernel_udp: socket.socket
    ) -> None:
        kernel_udp.sendto(b"hello", (OUR_IP, 9))
        frame, meta = link.tap.wait_meta()
        assert meta == Meta(CSUM_PARTIAL, 34, 6)
        assert frame[42:] == b"hello"
        assert int.from_bytes(frame[40:42], "big") == pseudo_sum(frame)

    @pytest.mark.parametrize("pieces", [1, 3])
    def test_the_kernel_finishes_our_checksum(
        self, link: Link, kernel_udp: socket.socket, pieces: int
    ) -> None:
        from scapy.layers.inet import UDP

        payload = os.urandom(1000)
        frame, meta = link.unfinished(UDP(sport=9, dport=7) / payload, 6)
        link.tap.send(frame, dataclasses.replace(meta, pieces=pieces))
        assert kernel_udp.recv(2000) == payload

    def test_a_finished_checksum_is_verified_by_the_kernel(
        self, link: Link, kernel_udp: socket.socket
    ) -> None:
        from scapy.layers.inet import UDP

        link.tap.send(link.frame(UDP(sport=9, dport=7, chksum=0x1234) / b"wrong"))
        link.tap.send(link.frame(UDP(sport=9, dport=7) / b"right"))
        assert kernel_udp.recv(100) == b"right"

    @pytest.mark.parametrize("flags", ["PA", "PAC"])
    @pytest.mark.parametrize("pieces", [1, 5])
    def test_the_kernel_takes_a_segment_of_many_pieces(
        self, host: KernelHost, link: Link, flags: str, pieces: int
    ) -> None:
        from scapy.layers.inet import TCP

        payload = os.urandom(40 * MSS)
        with host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((KERNEL_IP, 80))
            listener.listen()
            syn = TCP(sport=1000, dport=80, seq=99, flags="S", window=65535, options=[("MSS", MSS)])
            link.tap.send(link.frame(syn))
            answer, _ = link.wait_tcp()
            assert answer[TCP].flags == "SA"
            ports = {"sport": 1000, "dport": 80, "seq": 100, "ack": answer[TCP].seq + 1}
            link.tap.send(link.frame(TCP(**ports, flags="A")))
            frame, meta = link.unfinished(TCP(**ports, flags=flags) / payload, 16, MSS)
            link.tap.send(frame, dataclasses.replace(meta, pieces=pieces))
            before = link.tap.stats
            assert (before.tx_frames, before.tx_errors) == (3, 0)
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(10)
                got = b""
                while len(got) < len(payload):
                    got += accepted.recv(1 << 20)
            assert got == payload

    def test_a_64_kib_segment_of_the_kernel_is_one_packet(
        self, host: KernelHost, link: Link
    ) -> None:
        """What TCP hands to its interface at its best, from a packet socket: no TCP decides."""
        from scapy.layers.inet import TCP

        payload = os.urandom(65535 - 54)  # the kernel cuts up what takes more, in the frame
        layers = TCP(sport=7, dport=80, seq=1, ack=1, flags="A") / payload
        frame, meta = link.unfinished(layers, 16, 1460)
        frame = bytes(frame[6:12]) + bytes(frame[:6]) + frame[12:]  # towards our end
        needs_csum, tcpv4 = 1, 1
        header = struct.pack("=BBHHHH", needs_csum, tcpv4, 54, 1460, 34, 16)
        with host.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
            sender.bind(("mn0", 0x0800))
            before = link.tap.stats
            assert sender.send(header + frame) == len(header) + len(frame)
            got = link.tap.wait_meta()
            while got[0][12:14] != b"\x08\x00":  # an ARP request of the kernel
                before = link.tap.stats
                got = link.tap.wait_meta()
        assert got == (frame, meta)
        assert link.tap.stats.rx_frames - before.rx_frames == 1

    def test_a_large_segment_of_the_kernels_tcp_is_one_packet(
        self, host: KernelHost, link: Link
    ) -> None:
        from scapy.layers.inet import TCP
        from scapy.layers.l2 import Ether

        # How large the kernel makes its segments depends on how fast it is answered: at least two
        # of them are one from the start.
        host.sysctl("net.ipv4.tcp_min_tso_segs", 44)
        with host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            assert client.connect_ex((OUR_IP, 80)) == errno.EINPROGRESS
            syn, _ = link.wait_tcp()
            ports = {"sport": 80, "dport": syn[TCP].sport, "window": 65535}
            answer = {"seq": 500, "ack": syn[TCP].seq + 1}
            options = [("MSS", 1460), ("NOP", None), ("WScale", 7)]
            link.tap.send(link.frame(TCP(**ports, **answer, flags="SA", options=options)))
            established, _ = link.wait_tcp()
            assert established[TCP].flags == "A"
            sent = os.urandom(1 << 16)
            sent = sent[: client.send(sent)]
            received, metas = b"", []
            while len(received) < len(sent):
                frame, meta = link.tap.wait_meta()
                if frame[12:14] != b"\x08\x00":
                    continue
                segment = Ether(frame)[TCP]
                offset = segment.seq - answer["ack"]
                if offset >= len(received):  # else sent again, as this test was slow to answer
                    assert offset == len(received)
                    received += bytes(segment.payload)
                    metas.append((len(segment.payload), meta))
                acknowledge = {"seq": 501, "ack": answer["ack"] + len(received)}
                link.tap.send(link.frame(TCP(**ports, **acknowledge, flags="A")))
        assert received == sent
        assert max(size for size, _ in metas) > 2 * 1460
        for size, meta in metas:
            assert meta == Meta(CSUM_PARTIAL, 34, 16, 1460 if size > 1460 else 0)
        # One system call for each.
        assert link.tap.stats.rx_frames <= link.tap.stats.rx_calls

    def test_without_offload_frames_are_finished_and_small(self, host: KernelHost) -> None:
        from scapy.layers.inet import TCP

        with linked(host, no_offload=True) as link:
            info = link.tap.info
            assert [info.tx_csum_tcp, info.tx_csum_udp, info.tx_gso, info.rx_csum_trusted] == [
                0
            ] * 4
            assert info.tx_max_frame == 1514
            with host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.setblocking(False)
                assert client.connect_ex((OUR_IP, 80)) == errno.EINPROGRESS
                syn, meta = link.wait_tcp()
                ports = {"sport": 80, "dport": syn[TCP].sport, "window": 65535}
                answer = {"seq": 500, "ack": syn[TCP].seq + 1, "flags": "SA"}
                link.tap.send(link.frame(TCP(**ports, **answer, options=[("MSS", 1460)])))
                link.wait_tcp()
                client.send(bytes(10_000))
                for _ in range(3):
                    frame, meta = link.tap.wait_meta()
                    assert meta == Meta(CSUM_NONE)
                    assert len(frame) == 1514
                    assert l4_sum_is_right(frame)

    @pytest.mark.parametrize("vnet_hdr_bytes", [10, 12])
    def test_any_header_size_that_was_set_before(
        self, host: KernelHost, vnet_hdr_bytes: int
    ) -> None:
        fd = host.open_tap("mn0", kernel_ip=f"{KERNEL_IP}/24", vnet_hdr_bytes=vnet_hdr_bytes)
        with RawTap.open(fd) as tap, host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            host.neighbor(OUR_IP, tap.mac, "mn0")
            sock.sendto(b"hello", (OUR_IP, 9))
            assert tap.wait()[42:] == b"hello"

    def test_a_descriptor_without_vnet_header(self, host: KernelHost) -> None:
        from scapy.layers.inet import UDP

        with linked(host, vnet_hdr=False) as link:
            assert link.tap.info.tx_gso == link.tap.info.rx_csum_trusted == 0
            with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((KERNEL_IP, 7))
                sock.settimeout(10)
                sock.sendto(b"hello", (OUR_IP, 9))
                frame, meta = link.tap.wait_meta()
                assert meta == Meta(CSUM_NONE)
                assert frame[42:] == b"hello"
                assert l4_sum_is_right(frame)
                for pieces in (1, 2):
                    frame = link.frame(UDP(sport=9, dport=7) / bytes(200))
                    link.tap.send(frame, Meta(pieces=pieces))
                    assert sock.recv(300) == bytes(200)

    def test_the_largest_mtu(self, host: KernelHost) -> None:
        fd = host.open_tap("mn0", kernel_ip=f"{KERNEL_IP}/24", mtu=65521)
        with (
            RawTap.open(fd, mtu=65521) as tap,
            host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        ):
            assert tap.info.mtu == 65521
            host.neighbor(OUR_IP, tap.mac, "mn0")
            payload = os.urandom(65521 - 28)
            sock.sendto(payload, (OUR_IP, 9))
            frame = tap.wait()
            assert len(frame) == 65521 + 14
            assert frame[42:] == payload

    def test_the_mtu_of_another_namespaces_interface_is_not_guessed(self, host: KernelHost) -> None:
        # It is called "lo" on purpose: that name exists here too, with another MTU.
        with RawTap.open(host.open_tap("mn0", mtu=9000)) as tap:
            with host.iproute() as route:
                for old, new in (("lo", "loop"), ("mn0", "lo")):
                    index = route.link_lookup(ifname=old)[0]
                    route.link("set", index=index, state="down")
                    route.link("set", index=index, ifname=new)
            with RawTap.open(os.dup(tap.info.rx_fd)) as again:
                assert (again.name, again.info.mtu) == ("lo", 1500)

    def test_an_interface_that_is_down_loses_frames_and_says_so(
        self, host: KernelHost, link: Link, kernel_udp: socket.socket
    ) -> None:
        from scapy.layers.inet import UDP

        frame = link.frame(UDP(sport=9, dport=7) / b"hello")
        host.set_link("mn0", up=False)
        link.tap.send(frame)
        assert (link.tap.stats.tx_errors, link.tap.stats.last_errno) == (1, errno.EIO)
        assert link.tap.info.link_up == 0
        assert link.tap.recv() is None
        host.set_link("mn0", up=True)
        link.tap.send(frame)
        assert kernel_udp.recv(100) == b"hello"
        assert link.tap.info.link_up == 1

    def test_a_device_that_is_removed_is_an_error_count(self, host: KernelHost, link: Link) -> None:
        with host.iproute() as route:
            route.link("del", index=route.link_lookup(ifname="mn0")[0])
        assert link.tap.recv() is None
        link.tap.send(bytes(60))
        stats = link.tap.stats
        assert (stats.rx_errors, stats.tx_errors, stats.last_errno) == (1, 1, errno.EBADFD)
        assert link.tap.info.link_up == 0
