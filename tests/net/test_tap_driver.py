# SPDX-License-Identifier: MIT
"""Opening a TAP, and the driver on a descriptor that says whatever a test wants."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
from rawnic import RawTap
from taplink import Link, linked

from machnet._native import ffi, lib
from machnet.sim.kernel_host import KernelHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TUN, IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x1, 0x2, 0x100, 0x1000, 0x4000
SIOCGIFFLAGS, SIOCGIFADDR, SIOCGIFNETMASK, SIOCSIFMTU = 0x8913, 0x8915, 0x891B, 0x8922
IFF_UP = 1


@pytest.fixture
def link(host: KernelHost) -> Iterator[Link]:
    with linked(host) as link:
        yield link


class TestByName:
    """In the host's own namespace, in a forked child."""

    def test_the_interface_is_made_configured_and_gone_after(self, host: KernelHost) -> None:
        def work() -> tuple[Any, ...]:
            with RawTap.open(name="mn5", kernel_ip=0x0A050001, kernel_prefix=20) as tap:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    address = ifreq(sock, "mn5", SIOCGIFADDR)[4:8]
                    netmask = ifreq(sock, "mn5", SIOCGIFNETMASK)[4:8]
                    flags = struct.unpack_from("=H", ifreq(sock, "mn5", SIOCGIFFLAGS))[0]
                found = (tap.name, tap.info.tx_gso, address, netmask, flags & IFF_UP)
            return (*found, "mn5" in [name for _, name in socket.if_nameindex()])

        assert host.call(work) == (
            "mn5", 1, bytes([10, 5, 0, 1]), bytes([255, 255, 240, 0]), IFF_UP, False,
        )  # fmt: skip

    def test_frames_cross_it(self, host: KernelHost) -> None:
        def work() -> bytes:
            with RawTap.open(name="mn5", kernel_ip=0x0A050001, kernel_prefix=24) as tap:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                    sock.sendto(b"hello", ("10.5.0.255", 9))
                while (frame := tap.wait())[12:14] != b"\x08\x00" or frame[23] != 17:
                    pass
                return frame[42:]

        assert host.call(work) == b"hello"

    @pytest.mark.parametrize(
        "flags",
        [IFF_TAP | IFF_NO_PI, IFF_TAP, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE],
    )
    def test_a_persistent_interface_of_any_flags_is_attached_to(
        self, host: KernelHost, flags: int
    ) -> None:
        def work() -> tuple[Any, ...]:
            with persistent("mn6", flags):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    fcntl.ioctl(sock, SIOCSIFMTU, struct.pack("16si20x", b"mn6", 9000))
                macs = []
                for _ in range(2):
                    with RawTap.open(name="mn6") as tap:
                        info = tap.info
                        macs.append((tap.mac, tap.kernel_mac))
                return (info.mtu, info.tx_gso, info.rx_csum_trusted, macs)

        mtu, gso, trusted, macs = host.call(work)
        assert (mtu, gso, trusted) == (9000, 1, 1)
        # Ours stays the same, so the kernel's neighbour cache stays right.
        assert macs[0] == macs[1]
        assert macs[0][0] != macs[0][1]

    def test_an_interface_in_use(self, host: KernelHost) -> None:
        def work() -> str:
            with RawTap.open(name="mn5"):
                return refusal(lambda: RawTap.open(name="mn5"), errno.EBUSY)

        assert host.call(work) == "tap:mn5: the interface is in use by another process"

    def test_another_kind_of_interface(self, host: KernelHost) -> None:
        said = host.call(lambda: refusal(lambda: RawTap.open(name="lo"), errno.EINVAL))
        assert said.startswith("tap:lo: cannot attach (is it another kind of interface?)")

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a:b", "tap%d", "x" * 16, "ä"])
    def test_bad_names(self, name: str) -> None:
        said = refusal(lambda: RawTap.open(name=name), errno.EINVAL)
        assert said.startswith("tap: an interface name has 1 to 15 characters")


class TestBadDescriptors:
    @pytest.fixture
    def pipe(self) -> Iterator[int]:
        ends = os.pipe()
        yield ends[0]
        for end in ends:
            os.close(end)

    def test_no_tap_at_all(self, pipe: int) -> None:
        said = refusal(lambda: RawTap.open(pipe), errno.ENOTTY)
        assert f"descriptor {pipe} is not a TAP" in said
        os.fstat(pipe)  # still ours

    def test_not_attached(self, host: KernelHost) -> None:
        def work() -> str:
            fd = os.open("/dev/net/tun", os.O_RDWR)
            return refusal(lambda: RawTap.open(fd), errno.EBADFD)

        assert "is not a TAP that is attached" in host.call(work)

    def test_a_tun_device(self, host: KernelHost) -> None:
        def work() -> str:
            fd = attach("mn7", IFF_TUN | IFF_NO_PI)
            return refusal(lambda: RawTap.open(fd), errno.EINVAL)

        assert host.call(work) == "tap:mn7: it is a TUN device, without Ethernet headers"

    @pytest.mark.parametrize(
        ("config", "why"),
        [
            ({"mtu": 67}, "an MTU is 68 to 65521 bytes; got 67"),
            ({"mtu": 65522}, "got 65522"),
            ({"pool_pkts": 1 << 21}, "no memory for 2097152 packets"),
            ({"mac": bytes.fromhex("010203040506")}, "must be a unicast one"),
            ({"mac": bytes.fromhex("024d4e0a0b0c")}, "not the kernel's"),
            ({"kernel_ip": 1, "kernel_prefix": 24}, "an interface opened by name"),
        ],
    )
    def test_bad_settings_leave_the_descriptor_to_the_caller(
        self, host: KernelHost, config: dict[str, Any], why: str
    ) -> None:
        fd = host.open_tap("mn0", mac="02:4d:4e:0a:0b:0c")
        assert why in refusal(lambda: RawTap.open(fd, **config), errno.EINVAL)
        os.close(fd)

    def test_a_given_mac(self, host: KernelHost) -> None:
        with RawTap.open(host.open_tap("mn0"), mac=bytes.fromhex("06aabbccddee")) as tap:
            assert tap.mac == "06:aa:bb:cc:dd:ee"


class TestAnyDescriptor:
    """The driver on a socket instead of the TAP: it hands over whatever the test writes."""

    @pytest.fixture
    def far(self, link: Link) -> Iterator[socket.socket]:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        os.dup2(near.fileno(), link.tap.info.rx_fd)
        near.close()
        far.settimeout(10)
        yield far
        far.close()

    def test_reads_per_frame(self, link: Link, far: socket.socket) -> None:
        nic, tap = link.tap.nic, link.tap

        def polled(count: int) -> tuple[list[int], int]:
            """Frames of each poll until one finds nothing, and reads that were made."""
            for _ in range(count):
                far.send(bytes(70))
            before, sizes = tap.stats.rx_calls, []
            while not sizes or sizes[-1]:
                sizes.append(lib.mn_nic_forward(nic, nic, 64))
            for _ in range(count):
                far.recv(100)
            return sizes, tap.stats.rx_calls - before

        assert polled(0) == ([0], 1)
        # A lone frame is handed over at once, without a second read.
        assert polled(1) == ([1, 0], 2)
        assert polled(1) == ([1, 0], 2)
        assert polled(40) == ([1, 2, 4, 8, 16, 9, 0], 42)
        assert polled(1) == ([1, 0], 2)

    def test_what_is_written(self, link: Link, far: socket.socket) -> None:
        from scapy.layers.inet import TCP

        plain = link.frame(TCP(sport=1, dport=2) / b"x")
        link.tap.send(plain)
        assert far.recv(100) == bytes(10) + plain
        for flags, gso_type in (("PA", 1), ("PAC", 0x81)):
            layers = TCP(sport=1, dport=2, flags=flags, options=[("MSS", 1)]) / bytes(5000)
            frame, meta = link.unfinished(layers, 16, 1000)
            for pieces in (1, 4):
                link.tap.send(frame, dataclasses.replace(meta, pieces=pieces))
                got = far.recv(70_000)
                assert struct.unpack("=BBHHHH", got[:10]) == (1, gso_type, 58, 1000, 34, 16)
                assert got[10:] == frame

    @pytest.mark.parametrize("length", [1, 9, 10, 23])
    def test_frames_shorter_than_their_headers(
        self, link: Link, far: socket.socket, length: int
    ) -> None:
        far.send(bytes(length))
        far.send(bytes(24))
        assert [link.tap.recv(), link.tap.recv()] == [bytes(14), None]
        assert (link.tap.stats.rx_bad_len, link.tap.stats.rx_frames) == (1, 1)

    def test_a_frame_that_fills_the_buffer_was_cut_off(
        self, link: Link, far: socket.socket
    ) -> None:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        room = lib.mn_nic_probe_alloc(link.tap.nic, 0, 65549)
        far.send(bytes(10 + room - 1))
        assert link.tap.recv() == bytes(room - 1)
        far.send(bytes(10 + room))
        assert link.tap.recv() is None
        assert link.tap.stats.rx_bad_len == 1

    def test_a_header_that_contradicts_its_frame(self, link: Link, far: socket.socket) -> None:
        far.send(struct.pack("=BBHHHH", 1, 0, 0, 0, 34, 25) + bytes(60))
        far.send(bytes(70))
        assert [link.tap.recv(), link.tap.recv()] == [bytes(60), None]
        assert (link.tap.stats.rx_bad_vnet, link.tap.stats.rx_frames) == (1, 1)

    def test_a_descriptor_without_room_takes_no_frame_and_loses_none(
        self, link: Link, far: socket.socket
    ) -> None:
        results, sent = [0], -1
        while results[-1] == 0:
            sent += 1
            frame = sent.to_bytes(4, "big") * 250
            results.append(lib.mn_nic_tx_bytes(link.tap.nic, 0, frame, 1000, ffi.NULL))
        assert results[-1] == -errno.EAGAIN
        assert link.tap.stats.tx_full == 1
        assert link.tap.stats.tx_frames == sent > 0
        for number in range(sent):
            assert far.recv(2000)[10:] == number.to_bytes(4, "big") * 250
        link.tap.send(b"last" * 15)
        assert far.recv(100)[10:] == b"last" * 15
        assert link.tap.stats.tx_errors == 0

    def test_a_burst_stops_at_the_first_frame_that_is_not_taken(
        self, link: Link, far: socket.socket
    ) -> None:
        # Frames come in and go out through the same socket: it fills up in the middle of bursts.
        far.setblocking(False)
        pending = sent = kept = 0
        while link.tap.stats.tx_full == 0:
            far.send(sent.to_bytes(4, "big") * 250)
            sent += 1
            pending += 1
            if pending == 4:
                kept += lib.mn_nic_forward(link.tap.nic, link.tap.nic, 64)
                pending = 0
        assert link.tap.stats.tx_frames == kept
        far.setblocking(True)
        assert len([far.recv(2000) for _ in range(kept)]) == kept

    def test_an_empty_pool_leaves_frames_where_they_are(self, host: KernelHost) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with linked(host, pool_pkts=1) as link:
            near.setblocking(False)
            os.dup2(near.fileno(), link.tap.info.rx_fd)
            for _ in range(3):
                far.send(bytes(70))
            # The second poll would read two frames, and there is but one packet.
            assert lib.mn_nic_forward(link.tap.nic, link.tap.nic, 64) == 1
            assert lib.mn_nic_forward(link.tap.nic, link.tap.nic, 64) == 1
            assert link.tap.stats.rx_no_pkt == 1
            assert link.tap.recv() == bytes(60)
        near.close()
        far.close()


def ifreq(sock: socket.socket, name: str, command: int) -> bytes:
    return fcntl.ioctl(sock, command, struct.pack("16s24x", name.encode()))[16:]


def attach(name: str, flags: int) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    return fd


@contextlib.contextmanager
def persistent(name: str, flags: int) -> Iterator[None]:
    """An interface as `ip tuntap add` makes it, for the while."""
    fd = attach(name, flags)
    fcntl.ioctl(fd, TUNSETPERSIST, 1)
    os.close(fd)
    yield
    fd = attach(name, flags)
    fcntl.ioctl(fd, TUNSETPERSIST, 0)
    os.close(fd)


def refusal(action: Callable[[], RawTap], number: int) -> str:
    """The message with which it fails."""
    try:
        action().close()
    except OSError as error:
        if error.errno != number:
            raise
        return str(error.strerror)
    raise AssertionError("it was accepted")
