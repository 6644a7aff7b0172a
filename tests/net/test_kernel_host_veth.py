# SPDX-License-Identifier: MIT
"""KernelHost and the namespace of its maker: a cable between them, and an interface lent to it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest

from machnet.sim.kernel_host import KernelHost, KernelHostError, change_link


@pytest.fixture(autouse=True)
def _needs_root():
    if os.geteuid() != 0:
        pytest.skip("only root may make interfaces in the namespace of this process")
    if reason := KernelHost.available():
        pytest.skip(reason)


@pytest.fixture
def name():
    """Of an interface here that is gone at the end."""
    name = f"mk{os.getpid():x}"
    yield name
    change_link(name, delete=True)


def conf(name, key, family="ipv4"):
    return Path(f"/proc/sys/net/{family}/conf/{name}/{key}").read_text().strip()


def test_a_cable_to_the_makers_namespace_that_the_kernel_here_leaves_alone(name):
    with KernelHost("veth") as host:
        host.open_veth("eth0", name, mtu=1400, kernel_ip="10.0.0.2/24")
        assert host.mtu("eth0") == 1400
        assert not any(host.offloads("eth0").values())
        if os.access(f"/proc/sys/net/ipv4/conf/{name}/forwarding", os.W_OK):
            assert [conf(name, key) for key in ("forwarding", "arp_ignore", "rp_filter")] == [
                "0",
                "8",
                "1",
            ]
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as raw:
            raw.bind((name, 0x0806))
            raw.settimeout(20)
            with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", ("10.0.0.1", 9))
            frame = raw.recv(2000)
        assert frame[38:42] == bytes([10, 0, 0, 1])  # who has it?
        with pytest.raises(KernelHostError, match="File exists"):
            host.open_veth("eth1", name)
    end = time.monotonic() + 20
    while Path("/sys/class/net", name).exists():  # the kernel takes a namespace away later
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_interface_is_lent_and_given_back(name):
    other = f"{name}b"
    command = ["ip", "link", "add", name, "type", "veth", "peer", "name", other]
    subprocess.run(command, check=True)
    with KernelHost("lent") as host:
        change_link(name, state="up")
        host.adopt(other)
        assert other not in {path.name for path in Path("/sys/class/net").iterdir()}
        host.add_address(other, "10.0.0.2/24")
        host.give_back(other)
        assert other in {path.name for path in Path("/sys/class/net").iterdir()}
        with pytest.raises(KernelHostError, match="No such device"):
            host.give_back(other)
    with KernelHost("none") as host, pytest.raises(KernelHostError, match="No such device"):
        host.adopt("there-is-none")


def test_a_listener_that_is_closed_refuses_at_once():
    """The holder, which made the socket, has no copy of it any more."""
    with KernelHost("closed") as host:
        for _ in range(200):
            with host.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                address = listener.getsockname()
            with host.socket() as sock, pytest.raises(ConnectionRefusedError):
                sock.connect(address)
