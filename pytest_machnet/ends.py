# SPDX-License-Identifier: MIT
"""Veth pairs: which one a NIC string names, and where its other end is."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import socket
import struct
from pathlib import Path
from typing import Any

#: DPDK's drivers on top of an interface of the kernel.
_VDEV = re.compile(r"(net_af_(?:packet|xdp)[^,]*)((?:,[^,]+)*)")
_RTM_NEWNSID, _RTM_GETNSID, _NLM_F_REQUEST = 88, 90, 1
_NETNSA_NSID, _NETNSA_FD = 1, 3
_NAMED_VETH = re.compile(r"veth[A-Za-z0-9_.-]*")


def interface_of(nic: str) -> str | None:
    """The kernel's interface that a NIC string leads to, if it can be a veth's end.

    It is what ``iface=`` of net_af_packet or net_af_xdp says, or a bare name, if there is a virtual
    interface of this name, or none and it begins with "veth".
    """
    from machnet.sim.nicstr import parse_nic

    spec = parse_nic(nic)
    if spec.scheme != "dpdk":
        return None
    if (match := _VDEV.fullmatch(spec.rest)) is not None:
        arguments = dict(part.partition("=")[::2] for part in match[2].split(",") if part)
        return arguments.get("iface")
    path = Path("/sys/class/net") / spec.rest
    if "/" not in spec.rest and path.exists():
        return None if (path / "device").exists() else spec.rest
    return spec.rest if _NAMED_VETH.fullmatch(spec.rest) else None


def not_there(nic: str) -> str:
    """That a NIC string of DPDK names nothing that this machine has, and what there is; "" if it does."""
    from machnet.dpdk.devices import resolve
    from machnet.sim.nicstr import parse_nic

    spec = parse_nic(nic)
    if spec.scheme != "dpdk":
        return ""
    try:
        resolve(spec.rest)
    except OSError as error:  # that it is not ours to use is for who opens it
        return str(error.strerror) if error.errno == errno.ENODEV else ""
    except ValueError as error:
        return str(error)
    return ""


def with_interface(nic: str, name: str) -> str:
    """The NIC string with another interface's name in the place of the one it has."""
    from machnet.sim.nicstr import parse_nic

    spec = parse_nic(nic)
    rest = re.sub(r"(,iface=)[^,]+", rf"\g<1>{name}", spec.rest) if "," in spec.rest else name
    return str(dataclasses.replace(spec, rest=rest))


@dataclasses.dataclass(frozen=True)
class End:
    """The other end of a veth.

    Attributes:
        netns: Where it is: a path, or None for this process's own namespace.
        name: Its name there; "" if that can't be seen from here.
        addresses: Its IPv4 addresses with their prefix lengths.
        master: Whether it is a port of something, a bridge for instance.
    """

    netns: str | None
    name: str
    addresses: tuple[str, ...] = ()
    master: bool = False

    @property
    def unused(self) -> bool:
        """Whether nobody would miss it."""
        return self.netns is None and not self.addresses and not self.master


def find_end(name: str) -> End | None:
    """Where the other end of an interface is; None if there is no such interface.

    Raises:
        ValueError: It is no veth, or its other end can't be reached from here.
    """
    from pyroute2 import IPRoute  # type: ignore[import-untyped,unused-ignore]

    with IPRoute() as route:
        found = route.link_lookup(ifname=name)
        if not found:
            return None
        (link,) = route.get_links(found[0])
        info = link.get_attr("IFLA_LINKINFO")
        kind = None if info is None else info.get_attr("IFLA_INFO_KIND")
        if kind != "veth":
            raise ValueError(
                f"{name} is {'no virtual interface' if kind is None else f'a {kind}'} and no veth"
            )
        nsid, index = link.get_attr("IFLA_LINK_NETNSID"), link.get_attr("IFLA_LINK")
        if nsid is None:
            return _end_in(route, None, index)
        path = _namespace(nsid)
    if path is None:
        raise ValueError(
            f"the other end of {name} is in a network namespace that nothing here leads to: neither "
            "a name of /run/netns nor a process that may be looked at"
        )
    return End(path, _name_in(path, index))


def _end_in(route: Any, netns: str | None, index: int) -> End:
    (link,) = route.get_links(index)
    addresses = tuple(
        f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}"
        for message in route.get_addr(index=index, family=2)
    )
    master = link.get_attr("IFLA_MASTER") is not None
    return End(netns, str(link.get_attr("IFLA_IFNAME")), addresses, master)


def _namespace(nsid: int) -> str | None:
    """The path of a namespace that is known here by a number."""
    seen = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        for path in [*Path("/run/netns").glob("*"), *Path("/proc").glob("[0-9]*/ns/net")]:
            with contextlib.suppress(OSError):
                if (node := path.stat().st_ino) in seen:
                    continue
                seen.add(node)
                if _number_of(sock, path) == nsid:
                    return str(path)
    return None


def _number_of(sock: socket.socket, path: Path) -> int | None:
    """By what number this namespace knows another one, if it has one for it (RTM_GETNSID)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # nlmsghdr, rtgenmsg with its padding, and one attribute: the descriptor.
        request = struct.pack(
            "=IHHII4xHHi", 28, _RTM_GETNSID, _NLM_F_REQUEST, 1, 0, 8, _NETNSA_FD, fd
        )
        sock.send(request)
        answer = sock.recv(4096)
    finally:
        os.close(fd)
    kind, end = struct.unpack_from("=H", answer, 4)[0], len(answer)
    at = 20
    while kind == _RTM_NEWNSID and at + 8 <= end:
        size, name = struct.unpack_from("=HH", answer, at)
        if name == _NETNSA_NSID:
            return int(struct.unpack_from("=i", answer, at + 4)[0])
        at += (max(size, 4) + 3) & ~3
    return None


def _name_in(path: str, index: int) -> str:
    """The name of an interface of another namespace, asked for there."""
    from pytest_machnet import peers

    names = peers.agent_at(path).interfaces()
    return next((str(entry["name"]) for entry in names if entry["index"] == index), "")
