# SPDX-License-Identifier: MIT
"""A TAP between a kernel host and a raw NIC."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING, Any

from rawnic import CSUM_PARTIAL, Meta, RawTap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machnet.sim.kernel_host import KernelHost

KERNEL_IP, OUR_IP = "10.9.0.1", "10.9.0.2"


class Link:
    """A TAP between a kernel host and a raw NIC, with both ends' addresses."""

    def __init__(self, host: KernelHost, tap: RawTap) -> None:
        self.host, self.tap = host, tap

    def frame(self, layers: Any) -> bytes:
        from scapy.layers.inet import IP
        from scapy.layers.l2 import Ether

        ether = Ether(src=self.tap.mac, dst=self.tap.kernel_mac)
        return bytes(ether / IP(src=OUR_IP, dst=KERNEL_IP) / layers)

    def unfinished(self, layers: Any, csum_off: int, gso_size: int = 0) -> tuple[bytes, Meta]:
        """A frame whose checksum field holds the pseudo header's sum alone."""
        frame = self.frame(layers)
        at = 34 + csum_off
        frame = frame[:at] + pseudo_sum(frame).to_bytes(2, "big") + frame[at + 2 :]
        return frame, Meta(CSUM_PARTIAL, 34, csum_off, gso_size)

    def wait_tcp(self) -> tuple[Any, Meta]:
        """The next TCP segment as scapy sees it."""
        from scapy.layers.inet import TCP
        from scapy.layers.l2 import Ether

        while True:
            frame, meta = self.tap.wait_meta()
            packet = Ether(frame)
            if TCP in packet:
                return packet, meta


def ones_sum(data: bytes) -> int:
    words = struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_sum(frame: bytes) -> int:
    length = int.from_bytes(frame[16:18], "big") - 20
    return ones_sum(frame[26:34] + bytes([0, frame[23]]) + length.to_bytes(2, "big"))


def l4_sum_is_right(frame: bytes) -> bool:
    return ones_sum(pseudo_sum(frame).to_bytes(2, "big") + frame[34:]) == 0xFFFF


@contextlib.contextmanager
def linked(
    host: KernelHost, *, mtu: int = 1500, vnet_hdr: bool = True, **config: Any
) -> Iterator[Link]:
    fd = host.open_tap("mn0", kernel_ip=f"{KERNEL_IP}/24", vnet_hdr=vnet_hdr, mtu=mtu)
    with RawTap.open(fd, **config) as tap:
        host.neighbor(OUR_IP, tap.mac, "mn0")
        yield Link(host, tap)
