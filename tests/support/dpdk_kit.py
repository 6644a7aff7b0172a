# SPDX-License-Identifier: MIT
"""What tests of DPDK share: huge pages, virtual Ethernet pairs with the kernel at the other end."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import random
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from machnet import dpdk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CLONE_NEWNET = 0x40000000
_NR = Path("/proc/sys/vm/nr_hugepages")
_LOCK = Path("/tmp/machnet-test-hugepages.lock")
#: For all workers of a test run together: 2 MiB each.
HUGE_PAGES = 512
_numbers = itertools.count()

KERNEL_IP, OUR_IP = "10.9.1.1", "10.9.1.2"


def need_dpdk() -> None:
    """Skip the test where this machnet has no DPDK; in CI it fails instead: there it must be."""
    if not dpdk.available():
        if os.environ.get("CI"):
            pytest.fail(f"CI has no DPDK: {dpdk.missing_reason()}")
        pytest.skip(dpdk.missing_reason())


def need_root() -> None:
    """Skip where interfaces can't be made."""
    if os.geteuid() != 0:
        pytest.skip("only root may make network namespaces and virtual Ethernet pairs")


def reserve_huge_pages(pages: int = HUGE_PAGES) -> int:
    """See to it that the machine has some; how many are free. They stay: other workers use them."""
    with _LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if int(_NR.read_text()) < pages:
            with contextlib.suppress(OSError):
                _NR.write_text(str(pages))
    return int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text())


def sh(*argv: str | Path, check: bool = True) -> str:
    """A command's output; its errors are in the exception."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, argv))}: {done.stdout}{done.stderr}")
    return done.stdout


class Veth:
    """A pair of interfaces: one here, for the port, one in a namespace, with the kernel's addresses.

    The kernel there finishes its checksums and cuts its segments itself: what it would leave to a device
    arrives at a packet socket as it is.
    """

    def __init__(self, queues: int = 1, mtu: int = 1500) -> None:
        tag = f"{os.getpid()}{next(_numbers)}"
        self.namespace = f"mnd{tag}"
        self.name, self.peer = f"md{tag}", f"mp{tag}"
        self.queues, self.mtu = queues, mtu
        #: The same after the pair was plugged in again: its neighbour knows it.
        self.peer_mac = "02:4d:4e:" + os.urandom(3).hex(":")
        sh("ip", "netns", "add", self.namespace)
        self.run("ip", "link", "set", "lo", "up")
        self.plug_in()

    def plug_in(self) -> None:
        """Make the pair."""
        count = ("numrxqueues", str(self.queues), "numtxqueues", str(self.queues))
        # net_af_packet numbers its sockets' group by process XOR interface: where both are small numbers
        # in a row, as here, two processes may come to the same.
        index = ("index", str(random.SystemRandom().randrange(1 << 12, 1 << 24)))
        sh("ip", "link", "add", self.name, *index, *count, "type", "veth", "peer", self.peer, *count,
           "address", self.peer_mac, "netns", self.namespace)  # fmt: skip
        sh("ip", "link", "set", self.name, "mtu", str(self.mtu), "addrgenmode", "none", "up")
        self.run("ip", "link", "set", self.peer, "mtu", str(self.mtu), "addrgenmode", "none", "up")
        self.run("ethtool", "-K", self.peer, "tx", "off")
        self.run("ip", "addr", "add", f"{KERNEL_IP}/24", "dev", self.peer)

    def add_addresses(self, count: int) -> list[str]:
        """Give the kernel's end more addresses; what they are."""
        found = [f"10.9.1.{number}" for number in range(11, 11 + count)]
        for address in found:
            self.run("ip", "addr", "add", f"{address}/24", "dev", self.peer)
        return found

    def unplug(self) -> None:
        """Take the pair away."""
        sh("ip", "link", "del", self.name)

    def run(self, *argv: str, check: bool = True) -> str:
        """A command in the namespace."""
        return sh("ip", "netns", "exec", self.namespace, *argv, check=check)

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """A process in the namespace."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *argv], text=True, **options
        )

    @property
    def nic(self) -> str:
        """The NIC string of our end."""
        return f"dpdk:{self.name}"

    def close(self) -> None:
        """Take all away."""
        sh("ip", "link", "del", self.name, check=False)
        sh("ip", "netns", "del", self.namespace, check=False)


def wait_for(holds: Callable[[], object], seconds: float = 10.0) -> None:
    """Look until it holds, for what there is no event to wait for."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.002)


def packet_socket(namespace: str | None = None) -> socket.socket:
    """A packet socket for all protocols that is not bound to an interface yet, in a namespace or here."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        try:
            if namespace is not None:
                with Path(f"/var/run/netns/{namespace}").open() as file:
                    if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"setns {namespace}")
            made.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        except OSError as error:
            made.append(error)

    # A thread's namespace is its own.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


@contextlib.contextmanager
def veth(queues: int = 1, mtu: int = 1500) -> Iterator[Veth]:
    """A pair for a test."""
    need_dpdk()
    need_root()
    pair = Veth(queues, mtu)
    try:
        yield pair
    finally:
        pair.close()
