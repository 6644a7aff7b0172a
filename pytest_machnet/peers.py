# SPDX-License-Identifier: MIT
"""The fixture ``posix_peer``: the host at the other end of the NIC, wherever that is."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

    from machnet.sim.kernel_host import KernelHost
    from machnet.testing.remote import Agent

T = TypeVar("T")

#: The TCP ports of what a host that is only an address has to serve, unless others are stated.
SERVICES = {"echo": 7, "discard": 9, "chargen": 19}
_FORMS = (
    "an IPv4 address such as 10.0.0.2 or 10.0.0.2?echo=7007, ssh://[USER@]HOST[:PORT][?iface=eth1] "
    "or tcp://[TOKEN@]HOST:PORT"
)


@dataclasses.dataclass(frozen=True)
class Where:
    """What ``--machnet-peer`` says, in parts.

    Attributes:
        scheme: "ssh", "tcp", or "" for an address.
        host: Of the agent, or the address.
        port: Of the agent; None: ssh's own.
        secret: The user for ssh, the token for tcp.
        iface: The interface there that leads to the NIC.
        python: The interpreter there.
        services: Ports of an address's services.
    """

    scheme: str
    host: str
    port: int | None = None
    secret: str | None = None
    iface: str | None = None
    python: str = "python3"
    services: tuple[tuple[str, int], ...] = tuple(SERVICES.items())

    def __str__(self) -> str:
        """Without the token."""
        if not self.scheme:
            stated = "&".join(f"{name}={port}" for name, port in self.services)
            return self.host + (f"?{stated}" if dict(self.services) != SERVICES else "")
        user = f"{self.secret}@" if self.scheme == "ssh" and self.secret else ""
        port = "" if self.port is None else f":{self.port}"
        query = "" if self.iface is None else f"?iface={self.iface}"
        query += f"{'&' if query else '?'}python={self.python}" if self.python != "python3" else ""
        return f"{self.scheme}://{user}{self.host}{port}{query}"


def parse_peer(text: str) -> Where:
    """Take ``--machnet-peer`` apart.

    Raises:
        ValueError: It is of no form that is accepted; the text has them.
    """
    try:
        if "://" not in text:
            host, question, query = text.partition("?")
            services = _services(query) if question else tuple(SERVICES.items())
            return Where("", _address(host), services=services)
        parts = urlsplit(text)
        told = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        if parts.scheme not in {"ssh", "tcp"} or not parts.hostname or parts.path not in {"", "/"}:
            raise ValueError("neither ssh:// nor tcp:// and a host")
        if parts.scheme == "tcp" and parts.port is None:
            raise ValueError("no port")
        known = {"iface", "python"} if parts.scheme == "ssh" else {"iface"}
        if unknown := sorted(set(told) - known):
            raise ValueError(f"no {unknown[0]!r} is known of {parts.scheme}")
        iface, python = told.get("iface"), told.get("python", "python3")
        return Where(parts.scheme, parts.hostname, parts.port, parts.username, iface, python)
    except ValueError as error:
        raise ValueError(f"{error}: it is {_FORMS}") from None


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError("not an IPv4 address") from None


def _services(query: str) -> tuple[tuple[str, int], ...]:
    found: dict[str, int] = {}
    for name, port in parse_qsl(query, strict_parsing=True):
        if name not in SERVICES or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError(f"{name}={port} is no service ({', '.join(SERVICES)}) and its port")
        found[name] = int(port)
    return tuple(found.items())


class PosixPeer(Protocol):
    """The host at the other end, with ordinary sockets.

    Attributes:
        ip: Its address.
        interface: Name of its interface towards the local stack; "" if that is not known.
    """

    ip: str
    interface: str

    def socket(self, *args: Any) -> Any:
        """A kernel socket of this host, as `socket.socket` makes it (family, type, protocol)."""

    def service(self, name: str) -> int:
        """The TCP port of a service there: ``echo``, ``discard`` or ``chargen``."""

    def run(self, command: list[str], **options: Any) -> Any:
        """Run a command on it to its end; see `machnet.sim.KernelHost.run`."""

    def popen(self, command: list[str], **options: Any) -> Any:
        """Start a command on it; see `machnet.sim.KernelHost.popen`."""

    def call(self, func: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run a function on it, in a forked child; see `machnet.sim.KernelHost.call`."""

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Read, or write, a setting under ``net.``; see `machnet.sim.KernelHost.sysctl`."""


class NamespacePeer:
    """A network namespace of the test's own; see `PosixPeer`.

    Attributes:
        host: The `machnet.sim.KernelHost`, for everything else.
        ip: Its address.
        interface: Its interface.
    """

    def __init__(self, host: KernelHost, ip: str, interface: str) -> None:
        self.host = host
        self.ip = ip
        self.interface = interface
        self._opened: list[Any] = []

    def socket(self, *args: Any) -> Any:
        """A kernel socket of the namespace, used from here."""
        return self.host.socket(*args)

    def service(self, name: str) -> int:
        """Start a service, in threads of this process."""
        from machnet.testing import agent

        listener = self.host.socket()
        self._opened.append(listener)
        return agent.start_service(name, listener, self.ip, self._opened.append)

    def run(self, command: list[str], **options: Any) -> Any:
        """As `machnet.sim.KernelHost.run`."""
        return self.host.run(command, **options)

    def popen(self, command: list[str], **options: Any) -> Any:
        """As `machnet.sim.KernelHost.popen`."""
        return self.host.popen(command, **options)

    def call(self, func: Callable[..., T], *args: Any, **options: Any) -> T:
        """As `machnet.sim.KernelHost.call`."""
        return self.host.call(func, *args, **options)

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """As `machnet.sim.KernelHost.sysctl`."""
        return self.host.sysctl(name, value)

    def close(self) -> None:
        """End the services."""
        from machnet.testing import agent

        while self._opened:
            agent.abort(self._opened.pop())

    def __repr__(self) -> str:
        return f"<PosixPeer {self.ip} on {self.host!r}>"


class AgentPeer:
    """A host with an agent; see `PosixPeer`.

    Attributes:
        agent: The `machnet.testing.remote.Agent`.
        ip: Its address.
        interface: Its interface.
    """

    def __init__(
        self, agent: Agent, ip: str, interface: str, missing: Callable[[str, str], NoReturn]
    ) -> None:
        self.agent = agent
        self.ip = ip
        self.interface = interface
        self._missing = missing

    def socket(self, *args: Any) -> Any:
        """A kernel socket there, by proxy; see `machnet.testing.remote.RemoteSocket`."""
        return self.agent.socket(*args)

    def service(self, name: str) -> int:
        """Start a service there."""
        return self.agent.service(name, self.ip)

    def run(self, command: list[str], **options: Any) -> Any:
        """Run a command there, if that is permitted; else skip the test."""
        self._permitted("posix_peer.run")
        return self.agent.run(command, **options)

    def popen(self, command: list[str], **options: Any) -> Any:
        """Skip the test."""
        self._missing("posix_peer.popen", "commands run to their end there: posix_peer.run")

    def call(self, func: Callable[..., T], *args: Any, **options: Any) -> T:
        """Skip the test."""
        self._missing("posix_peer.call", "functions run in namespaces of this machine only")

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """A setting there; to write one must be permitted, else the test is skipped."""
        if value is not None:
            self._permitted("posix_peer.sysctl")
        return self.agent.sysctl(name, value)

    def _permitted(self, name: str) -> None:
        if not self.agent.about["run"]:
            self._missing(name, f"the agent at {self.agent.name} was started without --allow-run")

    def close(self) -> None:
        """Leave nothing of the test there."""
        from machnet.testing.remote import AgentError

        with contextlib.suppress(AgentError):
            self.agent.reset()

    def __repr__(self) -> str:
        return f"<PosixPeer {self.ip} on {self.agent!r}>"


class StatedPeer:
    """A host of which only the address and its services are known; see `PosixPeer`.

    Attributes:
        ip: Its address.
        interface: "".
    """

    interface = ""

    def __init__(self, where: Where, missing: Callable[[str, str], NoReturn]) -> None:
        self.ip = where.host
        self._services = dict(where.services)
        self._missing = missing

    def service(self, name: str) -> int:
        """The port that was stated; skips the test if none was."""
        if name not in SERVICES:
            raise ValueError(f"there is no service {name!r}: it is {', '.join(SERVICES)}")
        if name not in self._services:
            self._missing(f"posix_peer.service({name!r})", f"--machnet-peer states no {name}=PORT")
        return self._services[name]

    def socket(self, *args: Any) -> Any:
        """Skip the test."""
        self._no_agent("posix_peer.socket")

    def run(self, command: list[str], **options: Any) -> Any:
        """Skip the test."""
        self._no_agent("posix_peer.run")

    def popen(self, command: list[str], **options: Any) -> Any:
        """Skip the test."""
        self._no_agent("posix_peer.popen")

    def call(self, func: Callable[..., T], *args: Any, **options: Any) -> T:
        """Skip the test."""
        self._no_agent("posix_peer.call")

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Skip the test."""
        self._no_agent("posix_peer.sysctl")

    def _no_agent(self, name: str) -> NoReturn:
        why = "of it only the address is known: --machnet-peer=ssh://HOST or tcp://HOST:PORT"
        self._missing(name, why)

    def close(self) -> None:
        """Nothing was opened."""

    def __repr__(self) -> str:
        return f"<PosixPeer {self.ip}>"


# ---- agents --------------------------------------------------------------------------------------

_agents: dict[Where | str | None, Agent] = {}


def agent_at(where: Where | str | None) -> Agent:
    """The agent of a run at some place: a `Where`, a network namespace, or None for this one.

    Raises:
        machnet.testing.remote.AgentError: There is none.
    """
    from machnet.testing.remote import Agent

    found = _agents.get(where)
    if found is not None and found.lost is None:
        return found
    if not isinstance(where, Where):
        made = Agent.local(where)
    elif where.scheme == "ssh":
        target = where.host if where.secret is None else f"{where.secret}@{where.host}"
        made = Agent.ssh(target, where.port, where.python)
    else:
        made = Agent.connect(where.host, where.port or 0, where.secret)
    _agents[where] = made
    return made


def close_agents() -> None:
    """End them; the run is over."""
    while _agents:
        _agents.popitem()[1].close()


def locate(agent: Agent, iface: str | None, wanted: str | None, own_ip: str) -> tuple[str, str]:
    """Address and interface of an agent's host on the network of the local stack.

    Args:
        agent: The agent.
        iface: The interface, if it is known; it is given an address if it has none.
        wanted: The address, if it is known.
        own_ip: The local stack's, with its prefix length.

    Raises:
        ValueError: The host has none, or another one.
        OSError: It can't be given one, or the agent is gone.
    """
    from pytest_machnet.options import next_address

    own = ipaddress.IPv4Interface(own_ip)
    if wanted is None and agent.about["address"] is not None:
        wanted = str(agent.about["address"])
    entries = agent.interfaces()
    mine = [entry for entry in entries if entry["name"] == iface]
    if iface is not None and not mine:
        there = ", ".join(entry["name"] for entry in entries)
        raise ValueError(f"{agent.name} has no interface {iface!r}: there are {there}")
    if mine and mine[0]["ip"] is not None:
        entries = mine
    for entry in entries:
        if entry["ip"] is None:
            continue
        address = ipaddress.IPv4Address(entry["ip"])
        fits = address in own.network and address != own.ip
        if str(address) == wanted or (wanted is None and fits):
            return str(address), str(entry["name"])
    if mine and mine[0]["ip"] is None:
        ip = wanted or str(next_address(own, {str(own.ip)}))
        agent.give_address(str(iface), ip, own.network.prefixlen)
        return ip, str(iface)
    if wanted is not None and iface is None:
        return wanted, ""  # as a further address of an interface, say
    has = ", ".join(f"{e['name']} {e['ip']}/{e['prefix']}" for e in entries if e["ip"]) or "none"
    if any(entry["ip"] == str(own.ip) for entry in entries):
        raise ValueError(
            f"{agent.name} has the local stack's address, {own.ip}: give the stack another one, "
            f"--machnet-ip={next_address(own, {str(own.ip)})}/{own.network.prefixlen}"
        )
    raise ValueError(
        f"{agent.name} has no address {wanted or f'in {own.network}'} (it has {has}): say "
        "--machnet-ip, --machnet-peer-ip, or with ?iface=NAME which interface there is to get one"
    )
