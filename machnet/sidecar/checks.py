# SPDX-License-Identifier: MIT
"""What is wrong with a configuration whose values are all of the right form."""

from __future__ import annotations

import grp
import ipaddress
import os
import pwd
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from machnet.stack.cpus import usable_cpus

if TYPE_CHECKING:
    from machnet.sidecar.config import Controller, Dpdk, NicConfig

__all__ = [
    "check_controller",
    "check_dpdk",
    "check_nics",
    "group_id",
    "parse_listen",
    "user_id",
]

_T = TypeVar("_T")

#: Settings of a NIC that only a DPDK port has.
_DPDK_KEYS = ("rx_desc", "tx_desc", "pool_mbufs")


def check_nics(nics: tuple[NicConfig, ...]) -> list[str]:
    """What is wrong with the NICs, by themselves and beside each other."""
    problems: list[str] = []
    for nic in nics:
        problems += [_place(nic, text) + text for text in _check_nic(nic)]
    problems += _twice(nics, "ip", lambda nic: nic.ip.partition("/")[0])
    problems += _twice(nics, "nic", _identity if len(nics) > 1 else _named)
    problems += _twice(nics, "MAC address", lambda nic: nic.mac)
    return problems


def _place(nic: NicConfig, text: str) -> str:
    """Which NIC it is that something is wrong with, if that is not said."""
    # An entry of a file has a MAC address; one from the command line may have a NIC or nothing.
    if nic.mac:
        return f"machnet_config.{nic.mac}: "
    named = text.replace("'", " ").split()
    return f"{nic.nic}: " if nic.nic and nic.nic not in named else ""


def _named(nic: NicConfig) -> str | None:
    """What the NIC string names, less its faults."""
    return nic.string.partition("?")[0] or None


def _identity(nic: NicConfig) -> str | None:
    """The same for all strings that mean the same NIC."""
    from machnet.dpdk.names import identity
    from machnet.sim.nicstr import parse_nic

    try:
        spec = parse_nic(nic.string)
    except ValueError:
        return _named(nic)
    return identity(spec.rest) if spec.scheme == "dpdk" else _named(nic)


def _twice(
    nics: tuple[NicConfig, ...], what: str, key: Callable[[NicConfig], str | None]
) -> Iterator[str]:
    seen: dict[str, str] = {}
    for nic in nics:
        value = key(nic)
        if value is None:
            continue
        if value in seen:
            yield f"{what} {value} is that of two entries: {seen[value]} and {nic.mac or nic.label}"
        seen[value] = nic.mac or nic.label


def _check_nic(nic: NicConfig) -> Iterator[str]:
    yield from _check_mac(nic.mac)
    yield from _check_addresses(nic)
    yield from _check_driver(nic)
    yield from _check_cpus(nic)


def _check_mac(mac: str | None) -> Iterator[str]:
    if mac is None:
        return
    if int(mac[:2], 16) & 1:
        yield f"{mac} is a group's MAC address: the lowest bit of its first byte is 1"
    elif mac == "00:00:00:00:00:00":
        yield f"{mac} is no station's MAC address"


def _check_addresses(nic: NicConfig) -> Iterator[str]:
    from machnet.stack.opening import native_config

    _, slash, length = nic.ip.partition("/")
    if slash and nic.prefix is not None and length != str(nic.prefix):
        yield f"ip: {nic.ip} has another length than prefix, which is {nic.prefix}"
        return
    try:
        ipaddress.IPv4Interface(nic.address)
    except ValueError:
        yield f"ip: {nic.ip!r} is not an IPv4 address, such as 10.0.0.2"
        return
    try:
        native_config(nic.address, nic.gateway, nic.settings)
    except ValueError as error:
        yield str(error)


def _check_driver(nic: NicConfig) -> Iterator[str]:
    from machnet.dpdk import available, missing_reason
    from machnet.sim.faulty import check_faults
    from machnet.sim.nicstr import parse_nic
    from machnet.stack.names import parse_interface

    if not nic.string:
        yield "it is not said which NIC: --mac MAC or --nic NIC, such as --nic tap:mn0"
        return
    try:
        spec = parse_nic(nic.string)
        check_faults(spec)
    except ValueError as error:
        yield f"nic: {error}"
        return
    if spec.scheme != "dpdk":
        yield from (
            f"{key}: only a NIC of DPDK has this, not {nic.nic}"
            for key in _DPDK_KEYS
            if getattr(nic, key) is not None
        )
    if spec.scheme == "dpdk" and not available():
        yield f"nic: {nic.string!r}: {missing_reason()}"
    elif spec.scheme in {"wire", "pcap"}:
        yield f"nic: {nic.nic!r} is not one that runs by the clock; use tap:NAME"
    elif nic.bind and spec.scheme != "dpdk":
        yield f"bind: only a NIC of DPDK can be bound, not {nic.nic}"
    elif nic.kernel_ip is not None and _host(nic.kernel_ip) == _host(nic.ip):
        yield f"kernel_ip: {_host(nic.ip)} is the address of the engines; the kernel wants another"
    elif nic.kernel_ip is not None and spec.scheme != "tap":
        yield f"kernel_ip: only a TAP device has an end in the kernel, not {nic.string}"
    elif nic.kernel_ip is not None:
        try:
            parse_interface(nic.kernel_ip, "kernel_ip")
        except ValueError as error:
            yield str(error)


def _host(interface: str) -> str:
    return interface.partition("/")[0]


def _check_cpus(nic: NicConfig) -> Iterator[str]:
    if nic.cpu_mask is None:
        return
    here = f"CPUs {', '.join(map(str, sorted(usable_cpus())))}"
    try:
        cpus = nic.cpus()
    except ValueError:
        yield f"cpu_mask: {nic.cpu_mask!r} is not a mask of CPUs, such as 0x3"
        return
    if not cpus:
        yield f"cpu_mask: {nic.cpu_mask} has none of the CPUs that this process may use: {here}"
    elif len(cpus) < nic.engine_threads:
        yield (
            f"cpu_mask: {nic.cpu_mask} leaves {len(cpus)} CPUs for {nic.engine_threads} engine_threads "
            f"({here})"
        )


def check_dpdk(dpdk: Dpdk) -> list[str]:
    """What is wrong with the settings of DPDK's environment layer, which is not asked."""
    from machnet.dpdk import EalSettings

    values = dpdk.settings()
    try:
        EalSettings(**values | {name: tuple(values[name]) for name in ("cores", "args")})
    except ValueError as error:
        return [f"dpdk.{error}"]
    return []


def check_controller(controller: Controller) -> list[str]:
    """What is wrong with the controller's settings."""
    problems = []
    if controller.socket is not None:
        problems += [f"controller.socket: {text}" for text in check_socket(controller.socket)]
    for what, names, find in (
        ("users", controller.users, user_id),
        ("groups", controller.groups or [], group_id),
    ):
        for name in names:
            try:
                find(name)
            except ValueError as error:  # noqa: PERF203 - a handful, once
                problems.append(f"controller.{what}: {error}")
    if controller.metrics is not None:
        try:
            parse_listen(controller.metrics)
        except ValueError as error:
            problems.append(f"controller.metrics: {error}")
    return problems


def check_socket(path: str) -> Iterator[str]:
    """What is wrong with the path of a UNIX socket."""
    from machnet.sidecar.config import SOCKET_BYTES_MAX

    size = len(os.fsencode(path))
    if not path.startswith("/"):
        yield f"{path!r} is not an absolute path"
    elif "\0" in path:
        yield f"{path!r} has a zero byte in it"
    elif size > SOCKET_BYTES_MAX:
        yield f"{path!r} has {size} bytes: a socket's path has at most {SOCKET_BYTES_MAX}"


def user_id(name: str | int) -> int:
    """The number of a user.

    Raises:
        ValueError: There is none of this name.
    """
    return _number("user", name, lambda text: pwd.getpwnam(text).pw_uid)


def group_id(name: str | int) -> int:
    """The number of a group.

    Raises:
        ValueError: There is none of this name.
    """
    return _number("group", name, lambda text: grp.getgrnam(text).gr_gid)


def _number(what: str, name: str | int, find: Callable[[str], int]) -> int:
    if isinstance(name, int):
        if not 0 <= name < 2**32 - 1:
            raise ValueError(f"{name} is no number of a {what}")
        return name
    try:
        return find(name)
    except KeyError:
        raise ValueError(f"there is no {what} {name!r} on this machine") from None


def parse_listen(text: str) -> tuple[str, int] | str:
    """Where metrics are served: a loopback address and a port, or the path of a UNIX socket.

    Raises:
        ValueError: It is neither.
    """
    if text.startswith("unix:"):
        path = text[len("unix:") :]
        for problem in check_socket(path):
            raise ValueError(problem)
        return path
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        number = int(port) if port.isascii() and port.isdigit() else -1
    except ValueError:
        address, number = None, -1
    if address is None or not 0 <= number <= 65535:
        raise ValueError(f"{text!r} is not an address with a port, such as 127.0.0.1:9464")
    if not address.is_loopback:
        raise ValueError(
            f"{text!r} would be open to other machines, and metrics ask for no password: it is a "
            "loopback address such as 127.0.0.1:9464, or unix:PATH, with a proxy in front"
        )
    return str(address), number
