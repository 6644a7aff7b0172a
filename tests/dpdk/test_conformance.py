# SPDX-License-Identifier: MIT
"""Ports as the engine wants NICs: `check_nic` on every virtual device whose other end can be held."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

import pytest
from dpdk_kit import Veth, need_root, packet_socket, sh

from machnet import dpdk
from machnet.testing.nic import NicHandle, nic_checks

_numbers = itertools.count()


class Far:
    """The other end of a bench that is a NIC too."""

    def __init__(self, port: dpdk.Port) -> None:
        self.port, self.nic = port, NicHandle(port.native)

    def send(self, frame: bytes) -> None:
        self.nic.send(frame)

    def collect(self) -> list[bytes]:
        return list(iter(self.nic.recv, None))

    def close(self) -> None:
        self.port.close()


class Packets:
    """The other end of a bench that is an interface of the kernel, through a packet socket."""

    def __init__(self, name: str, namespace: str | None = None) -> None:
        self.sock = packet_socket(namespace)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self.sock.bind((name, 3))
        self.sock.setblocking(False)

    def send(self, frame: bytes) -> None:
        self.sock.send(frame)

    def collect(self) -> list[bytes]:
        got = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, address = self.sock.recvfrom(1 << 17)
                if address[2] != socket.PACKET_OUTGOING:
                    got.append(frame)
        return got

    def close(self) -> None:
        self.sock.close()


class Bench:
    """As `check_nic` wants it."""

    wire_marks = False

    def __init__(self, port: dpdk.Port, far: Far | Packets) -> None:
        self.port, self.far = port, far
        self.nic = NicHandle(port.native)

    def deliver(self, frame: bytes) -> None:
        with contextlib.suppress(OSError):
            self.far.send(frame)

    def collect(self) -> list[bytes]:
        return self.far.collect()

    def close(self) -> None:
        stats = self.port.stats()
        assert stats["rx_bad"] == stats["tx_refused"] == 0
        self.far.close()
        self.port.close()


class Benches:
    """Makes benches of one kind; the interfaces that they use are made once."""

    def __init__(self, cleanup: contextlib.ExitStack) -> None:
        self.cleanup = cleanup

    def ring(self, **options) -> Bench:
        near, far = dpdk.ring_pair(**options)
        return Bench(near, Far(far))

    def interface(self, driver: str, mtu: int = 1500, **options) -> Bench:
        if not hasattr(self, "veth"):
            need_root()
            self.veth = Veth(mtu=mtu)
            self.cleanup.callback(self.veth.close)
        port = dpdk.open_port(f"{driver}0,iface={self.veth.name}", **options)
        return Bench(port, Packets(self.veth.peer, self.veth.namespace))

    def tap(self, **options) -> Bench:
        need_root()
        name = f"mnt{os.getpid()}{next(_numbers)}"
        port = dpdk.open_port(f"net_tap0,iface={name}", **options)
        # What the kernel has to say of itself is not for us.
        sh("sysctl", "-q", "-w", f"net.ipv6.conf.{name}.disable_ipv6=1")
        nic = NicHandle(port.native)
        while nic.recv() is not None:
            pass
        return Bench(port, Packets(name))


BENCHES = {
    "ring": lambda make: make.ring(),
    "ring, jumbo, software checksums": lambda make: make.ring(mtu=9000, offload=False),
    "af_packet": lambda make: make.interface("net_af_packet"),
    "af_packet, jumbo, software checksums": lambda make: make.interface(
        "net_af_packet", mtu=9000, offload=False
    ),
    "tap": lambda make: make.tap(),
    "tap, software checksums": lambda make: make.tap(offload=False),
}
#: These send tens of thousands of frames, each through the kernel: once is enough.
_MANY_FRAMES = {"no_leak_receiving", "no_leak_transmitting", "overload"}


@pytest.mark.parametrize("name", BENCHES)
def test_it_is_a_nic_as_the_engine_wants_them(name):
    with contextlib.ExitStack() as cleanup:
        make = Benches(cleanup)
        for check_name, check in nic_checks():
            if check_name in _MANY_FRAMES and name not in {"ring", "af_packet"}:
                continue
            with contextlib.closing(BENCHES[name](make)) as bench:
                check(bench)


def test_a_port_on_af_xdp():
    with contextlib.ExitStack() as cleanup:
        # The driver (22.11, with Debian's libxdp) opens a queue once in the life of an interface.
        bench = cleanup.enter_context(contextlib.closing(Benches(cleanup).interface("net_af_xdp")))
        assert bench.port.info()["wake"] == "descriptor"
        for check_name, check in nic_checks():
            if check_name not in _MANY_FRAMES:
                check(bench)
