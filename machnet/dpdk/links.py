# SPDX-License-Identifier: MIT
"""Network interfaces of this host: what would be lost with one, and putting it back as it was."""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from machnet.dpdk.records import Former

__all__ = ["Links"]

_T = TypeVar("_T")

_UP = 1  # IFF_UP
_PERMANENT = 0x80  # IFA_F_PERMANENT
_LINK_SCOPE = 253


class Links:
    """The interfaces of the network namespace that this process is in."""

    def former(self, name: str, mac: str) -> Former:
        """An interface as it is now; of one that is not in this namespace, its name and address."""

        def ask(route: Any) -> Former:
            index = _index(route, name)
            link = route.link("get", index=index)[0]
            addresses = [
                _address(item)
                for item in route.get_addr(index=index)
                if item["scope"] != _LINK_SCOPE and _kept(item)
            ]
            up = bool(link["flags"] & _UP)
            return Former(name, mac, up, int(link.get("mtu") or 0), tuple(addresses))

        try:
            return _netlink(ask)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return Former(name, mac)
            raise

    def has_default_route(self, name: str) -> bool:
        """Whether packets to anywhere leave by this interface (the main table, IPv4 and IPv6)."""
        for line in _lines("/proc/net/route"):
            fields = line.split()
            if fields[0] == name and fields[1] == fields[7] == "00000000":
                return True
        for line in _lines("/proc/net/ipv6_route"):
            fields = line.split()
            # "::/0"; the kernel's own entry that means "nowhere" is on lo.
            if fields[9] == name and fields[0] == "0" * 32 and fields[1] == "00":
                return True
        return False

    def restore(self, former: Former, name: str) -> None:
        """Make an interface what it was: name, MTU, addresses, and up.

        Args:
            former: What it was.
            name: What it is called now.

        Raises:
            OSError: The kernel refused something.
        """
        if name == former.name and not (former.mtu or former.up or former.addresses):
            return

        def work(route: Any) -> None:
            index = _index(route, name)
            if name != former.name:
                route.link("set", index=index, ifname=former.name)
            if former.mtu:
                route.link("set", index=index, mtu=former.mtu)
            if former.up:
                route.link("set", index=index, state="up")
            for text in former.addresses:
                address = ipaddress.ip_interface(text)
                try:
                    route.addr(
                        "add",
                        index=index,
                        address=str(address.ip),
                        prefixlen=address.network.prefixlen,
                    )
                except Exception as error:
                    if getattr(error, "code", None) != errno.EEXIST:
                        raise

        _netlink(work)


def _netlink(work: Callable[[Any], _T]) -> _T:
    """``work`` with a pyroute2.IPRoute, in a thread without an event loop, which it can't stand."""
    from concurrent.futures import ThreadPoolExecutor

    def task() -> _T:
        # Here, because importing it takes longer than all the rest.
        from pyroute2 import IPRoute  # type: ignore[import-untyped,unused-ignore]

        with IPRoute() as route:
            return work(route)

    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(task).result()
        except Exception as error:
            # pyroute2's NetlinkError has the errno as its code.
            number = getattr(error, "code", None) or getattr(error, "errno", None)
            if number is None:
                raise
            raise OSError(number, os.strerror(number)) from error


def _index(route: Any, name: str) -> int:
    found = route.link_lookup(ifname=name)
    if not found:
        raise OSError(errno.ENODEV, f"there is no interface {name}")
    return int(found[0])


def _address(item: Any) -> str:
    text = item.get("IFA_LOCAL") or item.get("IFA_ADDRESS")
    return f"{text}/{item['prefixlen']}"


def _kept(item: Any) -> bool:
    """Whether an address is to be put back; the kernel makes IPv6 addresses with a lifetime anew."""
    flags = item.get("IFA_FLAGS") or item["flags"]
    return bool(item["family"] == 2 or flags & _PERMANENT)


def _lines(path: str) -> list[str]:
    """Of a table of the kernel, without a title."""
    try:
        lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip() and not line.startswith("Iface")]
