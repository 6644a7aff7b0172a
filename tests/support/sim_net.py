# SPDX-License-Identifier: MIT
"""Networks that several tests use, and what they do with them."""

from __future__ import annotations

import contextlib
from typing import Any

from machnet import Channel, Flow
from machnet.sim import Network
from machnet.sim.nodes import Host, RawHost


def raw_pair(seed: int = 1, **params: Any) -> tuple[Network, RawHost, RawHost]:
    """Two scripted hosts and a link between them."""
    net = Network(seed, record=1 << 14)
    a, b = net.raw_host("10.0.0.1"), net.raw_host("10.0.0.2")
    net.link(a, b, **params)
    return net, a, b


def host_pair(seed: int = 1, **params: Any) -> tuple[Network, Host, Host]:
    """Two hosts and a link between them."""
    net = Network(seed)
    a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
    net.link(a, b, **params)
    return net, a, b


def framed_flow(a: Host, b: Host) -> tuple[Channel, Channel, Flow]:
    """The server's and the client's channel, and the flow of framed messages from ``a`` to ``b``."""
    server, client = b.attach(), a.attach()
    server.listen(b.ip, 7, protocol="tcp")
    return server, client, client.connect(a.ip, b.ip, 7, protocol="tcp")


def frame(sender: RawHost, receiver: RawHost, number: int = 0, size: int = 60) -> bytes:
    """An Ethernet frame of an experimental type that carries a number."""
    head = mac(receiver.mac) + mac(sender.mac) + b"\x88\xb5"
    return (head + number.to_bytes(4, "big")).ljust(size, b"\0")


def number_of(data: bytes) -> int:
    """The number that a `frame` carries."""
    return int.from_bytes(data[14:18], "big")


def mac(text: str) -> bytes:
    """Six bytes."""
    return bytes.fromhex(text.replace(":", ""))


def transfer(net: Network, a: Host, b: Host, data: bytes, port: int = 7000) -> bytes:
    """Send bytes over a stream from ``a`` to ``b``; what arrived, up to the end of the stream."""
    server, client = b.attach(), a.attach()
    listener = server.listen(b.ip, port, protocol="stream")
    flow = client.connect(a.ip, b.ip, port, protocol="stream", timeout=None)
    other = listener.accept(timeout=None)
    done, got = 0, bytearray()
    while done < len(data):
        with contextlib.suppress(BlockingIOError):
            done += client.send(flow, data[done : done + 65536])
            continue
        got += server.read(other, 1 << 20, timeout=None)
    flow.shutdown()
    while part := server.read(other, 1 << 20, timeout=None):
        got += part
    other.close()
    flow.close()
    client.close()
    server.close()
    return bytes(got)
