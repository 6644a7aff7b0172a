# SPDX-License-Identifier: MIT
"""What is said when DPDK refuses a device: what the user called it, why, and what helps."""

from __future__ import annotations

import difflib
import errno
import os
from pathlib import Path

from machnet.dpdk import eal
from machnet.dpdk.devices import driver_of
from machnet.dpdk.eal import EalError

__all__ = ["REMEDIES", "not_plugged_in", "refusal"]

#: What helps when a port can't be opened.
REMEDIES = {
    errno.ENOMEM: "more memory: free huge pages (sysctl vm.nr_hugepages=512), a larger memory_mb, or "
    "fewer descriptors",
    errno.EACCES: "DPDK needs root, or access to the device",
    errno.EPERM: "DPDK needs root, or CAP_NET_RAW for net_af_packet and CAP_NET_ADMIN for others",
    errno.EBUSY: "another program has the device",
    errno.EEXIST: "this process has it already: several engines take one port with several queues",
}

#: DPDK's drivers of virtual devices, from 22.11 to 25.11.
VIRTUAL_DRIVERS = (
    "net_af_packet",
    "net_af_xdp",
    "net_bonding",
    "net_failsafe",
    "net_memif",
    "net_null",
    "net_pcap",
    "net_ring",
    "net_softnic",
    "net_tap",
    "net_tun",
    "net_vdev_netvsc",
    "net_vhost",
    "net_virtio_user",
)

#: Of CAP_NET_ADMIN and CAP_NET_RAW, in what /proc says of a process.
_NETWORK_CAPABILITIES = 1 << 12 | 1 << 13
_MEMIF_SOCKET = "/run/memif.sock"
_MEMIF_ALONE = "Failed to connect socket"
_GROUP_TAKEN = "could not set PACKET_FANOUT"
_GROUP_REMEDY = (
    "net_af_packet numbers its group of sockets by process XOR interface, and another process may have "
    "that number: start again, as a new process"
)


def _may_use_network() -> bool:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
            return held & _NETWORK_CAPABILITIES == _NETWORK_CAPABILITIES
    return False


def refusal(code: int, name: str, why: str) -> EalError:
    """The exception for a device that can't be used.

    Args:
        code: The errno that DPDK gave.
        name: What the user called the device, as "dpdk:near0".
        why: What DPDK said.
    """
    # Most drivers return -1, which is EPERM, whatever is wrong.
    if code == errno.EPERM and _may_use_network():
        code = errno.EINVAL
        why = why.removesuffix(f": {os.strerror(errno.EPERM)}")
    made = eal.error(code, f"{name}: {why}", REMEDIES.get(code))
    if _MEMIF_ALONE in str(made.strerror):
        return _no_memif_server(name)
    if _GROUP_TAKEN in str(made.strerror):
        return EalError(errno.EADDRINUSE, f"{made.strerror}; {_GROUP_REMEDY}")
    return made


def _no_memif_server(name: str) -> EalError:
    """A memif is a client, unless it is told otherwise; its driver says nothing but "-1"."""
    device, _, args = name.partition(",")
    given = dict(part.partition("=")[::2] for part in args.split(",") if part)
    path = given.get("socket", _MEMIF_SOCKET)
    here = ",".join(
        [device, "role=server", *(p for p in args.split(",") if p and "role=" not in p)]
    )
    return EalError(
        errno.ECONNREFUSED,
        f"{name}: nobody serves its socket {path}: start the other end first, with role=server, or let "
        f"this end be the server: {here}",
    )


def not_plugged_in(code: int, name: str, devargs: str, said: str) -> EalError:
    """The exception for a device that DPDK does not make a port of.

    Args:
        code: The errno that DPDK gave.
        name: What the user called the device.
        devargs: What DPDK was asked for, which may be another name.
        said: Why, with ``devargs`` before it.
    """
    why = said.removeprefix(f"{devargs}: ")
    if code == errno.ENODEV and (near := _near_driver(devargs)):
        why += f": did you mean {near}?"
    made = refusal(code, name, why)
    if name.partition(":")[2].removeprefix("vdev:") == devargs:
        return made
    # Behind all that helps, for who knows DPDK.
    return EalError(made.errno, f"{made.strerror}; DPDK was asked for {devargs}")


def _near_driver(devargs: str) -> str:
    """A virtual device whose driver there is, and whose name is nearly this one; "": none."""
    device = devargs.partition(",")[0]
    driver = driver_of(device)
    if driver in VIRTUAL_DRIVERS:  # the package that it is in is missing
        return ""
    near = difflib.get_close_matches(driver, VIRTUAL_DRIVERS, n=1)
    return f"{near[0]}{device.removeprefix(driver) or '0'}" if near else ""
