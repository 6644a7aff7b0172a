# SPDX-License-Identifier: MIT
"""The plugin's settings: each is an option, an ini value and a marker argument.

Precedence: marker, option, ini, default. A marker nearer to the test (function, class, module)
goes before one further away.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_machnet.peers import Where

SEED_MAX = 2**64 - 1
SEEDS_MAX = 1_000_000
ENGINES_MAX = 16
PCAP_POLICIES = ("never", "failed", "always")
MARKER = "machnet"


class MarkerError(pytest.Collector.CollectError):
    """A marker is wrong: the collection fails, without a stack of calls."""


# ---- parsers: from an option's text, an ini value or a marker's argument -------------------------


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise ValueError("neither true nor false")


def _whole(value: Any, low: int, high: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and re.fullmatch(r"\s*[0-9][0-9_]*\s*", value):
        number = int(value)
    else:
        raise ValueError(f"not a whole number from {low} to {high}")
    if not low <= number <= high:
        raise ValueError(f"not from {low} to {high}")
    return number


def _seed(value: Any) -> int | str:
    if isinstance(value, str) and value.strip() in {"random", "last"}:
        return value.strip()
    try:
        return _whole(value, 0, SEED_MAX)
    except ValueError as error:
        raise ValueError(f"{error}, 'random' or 'last'") from None


def _fixed_seed(value: Any) -> int:
    return _whole(value, 0, SEED_MAX)


def _seeds(value: Any) -> int:
    return _whole(value, 1, SEEDS_MAX)


def _engines(value: Any) -> int:
    return _whole(value, 1, ENGINES_MAX)


def _nic(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("not a NIC string such as 'tap:mn0'")
    from machnet.sim.nicstr import parse_nic  # of machnet only this, and only when asked for

    spec = parse_nic(value)
    if spec.faults:
        from machnet.sim.faulty import check_faults

        check_faults(spec)
    return value


def _interface(value: Any) -> str:
    try:
        parsed = ipaddress.IPv4Interface(value)
    except (ValueError, TypeError):
        parsed = None
    if parsed is None or "/" not in str(value):
        raise ValueError("not an IPv4 address with its prefix length, such as 10.0.0.1/24")
    if parsed.network.prefixlen > 30 or parsed.ip in {
        parsed.network.network_address,
        parsed.network.broadcast_address,
    }:
        raise ValueError("not the address of a host in a network with room for two")
    return str(parsed)


def _address(value: Any) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise ValueError("not an IPv4 address such as 10.0.0.2") from None


def _peer(value: Any) -> Where:
    from pytest_machnet.peers import parse_peer

    return parse_peer(str(value))


def _pcap(value: Any) -> str:
    if value not in PCAP_POLICIES:
        raise ValueError("it is 'never', 'failed' or 'always'")
    return str(value)


def _folder(value: Any) -> str:
    text = str(value)
    if not text or "\0" in text or (Path(text).exists() and not Path(text).is_dir()):
        raise ValueError("not a folder, nor a name for one")
    return text


def _seconds(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0 <= number <= 1e6:
        raise ValueError("not a number of seconds from 0 (off) to 1,000,000")
    return number


@dataclasses.dataclass(frozen=True)
class Knob:
    """One setting: ``--machnet-NAME``, ini ``machnet_NAME``, ``@pytest.mark.machnet(NAME=...)``.

    Attributes:
        name: With underscores.
        parse: Makes the value of what was given, or raises ValueError with what is wrong.
        default: The value when nobody gives one.
        metavar: What the help text calls the value; None: it is a flag.
        help: One sentence.
        in_marker: The parser for marker arguments, if it is another one.
    """

    name: str
    parse: Callable[[Any], Any]
    default: Any
    metavar: str | None
    help: str
    in_marker: Callable[[Any], Any] | None = None

    @property
    def option(self) -> str:
        """As on the command line."""
        return "--machnet-" + self.name.replace("_", "-")

    @property
    def dest(self) -> str:
        """In ``config.option``, and as an ini value."""
        return "machnet_" + self.name


KNOBS: dict[str, Knob] = {
    knob.name: knob
    for knob in (
        Knob("sim", _flag, False, None, "Run tests on the simulated network (the default)."),
        Knob(
            "nic",
            _nic,
            None,
            "IFACE",
            "Run tests on this NIC: a NIC string such as tap:mn0 or eth1.",
        ),
        Knob(
            "seed",
            _seed,
            0,
            "N|random|last",
            "Base seed of the simulations; 'last' is that of the run before (default: 0).",
            _fixed_seed,
        ),
        Knob("seeds", _seeds, 1, "N", "Run each simulated test with N seeds (default: 1)."),
        Knob(
            "ip",
            _interface,
            "10.0.0.1/24",
            "CIDR",
            "Address of the local stack and its prefix length (default: 10.0.0.1/24).",
        ),
        Knob("gateway", _address, None, "IP", "Router of the local stack to other networks."),
        Knob(
            "peer",
            _peer,
            None,
            "IP|URL",
            "The peer: an address (default: the one after --machnet-ip), or the agent of the host "
            "at the other end of a NIC: ssh://HOST?iface=eth1 or tcp://HOST:PORT.",
        ),
        Knob(
            "peer_ip",
            _address,
            None,
            "IP",
            "Address of the peer, where --machnet-peer says something else of it.",
        ),
        Knob(
            "peer_nic",
            _nic,
            None,
            "IFACE",
            "NIC of machnet_peer, where --machnet-nic is neither a TAP nor a veth of the test's.",
        ),
        Knob(
            "engines",
            _engines,
            1,
            "N",
            "Engines of the local stack on a NIC, each with a queue of its own where the NIC has "
            "that many (default: 1).",
        ),
        Knob(
            "pcap",
            _pcap,
            "failed",
            "never|failed|always",
            "When to keep a capture of a test's packets (default: failed).",
        ),
        Knob(
            "artifacts",
            _folder,
            "machnet-artifacts",
            "DIR",
            "Folder for captures and event traces (default: machnet-artifacts).",
        ),
        Knob(
            "shrink",
            _flag,
            False,
            None,
            "Reduce the faults of a failing simulation to the fewest that still fail.",
        ),
        Knob(
            "guard",
            _seconds,
            60.0,
            "SECONDS",
            "Fail a simulation that makes no progress for so long by the wall clock; 0: never "
            "(default: 60).",
        ),
    )
}

#: Parameters of a link (`machnet.sim.Network.link`) that the marker takes; its values are checked
#: by the network's own parsers.
LINK_PARAMETERS = (
    "latency",
    "jitter",
    "distribution",
    "bandwidth",
    "loss",
    "burst_loss",
    "reorder",
    "reorder_delay",
    "duplicate",
    "duplicate_delay",
    "corrupt",
    "queue",
    "keep_order",
    "back",
)
MTU_RANGE = (68, 65521)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is in force for one test.

    Attributes:
        mode: "simulation" or "nic".
        values: Of all knobs, by name.
        origin: Where each comes from: "marker", "option", "ini" or "default".
        link: Parameters of the link between the stacks.
        mtu: Of stacks and links, bytes; None: 1500.
        faults: Faults that happen instead of those drawn; None: those drawn.
    """

    mode: str
    values: Mapping[str, Any]
    origin: Mapping[str, str]
    link: Mapping[str, Any]
    mtu: int | None = None
    faults: tuple[Any, ...] | None = None

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def simulated(self) -> bool:
        """Whether time is virtual."""
        return self.mode == "simulation"

    @property
    def explicit(self) -> bool:
        """Whether somebody said anything about machnet."""
        return any(origin != "default" for origin in self.origin.values())

    @property
    def peer_ip(self) -> str:
        """The address of the peer: the one given, else the next one of the network."""
        peer: Where | None = self.values["peer"]
        if self.values["peer_ip"] is not None:
            return str(self.values["peer_ip"])
        if peer is not None and not peer.scheme:
            return peer.host
        own = ipaddress.IPv4Interface(self.values["ip"])
        return str(next_address(own, {str(own.ip)}))


def next_address(own: ipaddress.IPv4Interface, taken: set[str]) -> ipaddress.IPv4Address:
    """The first free address of a network after ``own``, else the first free one."""
    size = own.network.num_addresses
    first = int(own.network.network_address)
    for step in range(1, size):
        offset = (int(own.ip) - first + step) % size
        if offset not in {0, size - 1} and str(ipaddress.IPv4Address(first + offset)) not in taken:
            return ipaddress.IPv4Address(first + offset)
    raise ValueError(f"there is no free address left in {own.network}")


def add_options(parser: pytest.Parser) -> None:
    """Declare all options and ini values."""
    group = parser.getgroup("machnet", "machnet: networks in virtual time, or a NIC")
    for knob in KNOBS.values():
        if knob.metavar is None:
            group.addoption(
                knob.option, action="store_true", default=None, dest=knob.dest, help=knob.help
            )
        else:
            group.addoption(
                knob.option, metavar=knob.metavar, default=None, dest=knob.dest, help=knob.help
            )
        kind: Any = "bool" if knob.metavar is None else None
        parser.addini(knob.dest, f"{knob.help} As {knob.option}.", type=kind, default=None)


def _parse(knob: Knob, value: Any, where: str) -> Any:
    try:
        return knob.parse(value)
    except ValueError as error:
        raise pytest.UsageError(f"{where}: {value!r}: {error}") from None


def _of_ini(config: pytest.Config, knob: Knob) -> Any:
    try:
        value = config.getini(knob.dest)
    except (ValueError, TypeError, pytest.UsageError) as error:
        raise pytest.UsageError(f"ini value {knob.dest}: {error}") from None
    # A string that nobody set is "" in older versions of pytest, and an unset flag is False.
    if value is None or value == "" or (knob.metavar is None and value is False):
        return None
    return value


def from_config(config: pytest.Config) -> Settings:
    """What options and ini values say.

    Raises:
        pytest.UsageError: One is wrong; the text names it, its value and what is accepted.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, knob in KNOBS.items():
        values[name], origin[name] = knob.default, "default"
        option, ini = getattr(config.option, knob.dest, None), _of_ini(config, knob)
        if ini is not None:
            values[name], origin[name] = _parse(knob, ini, f"ini value {knob.dest}"), "ini"
        if option is not None:
            values[name], origin[name] = _parse(knob, option, knob.option), "option"
    mode = "simulation"
    for level, (sim, nic) in {
        "ini": ("machnet_sim", "machnet_nic"),
        "option": ("--machnet-sim", "--machnet-nic"),
    }.items():
        has_sim = values["sim"] and origin["sim"] == level
        has_nic = origin["nic"] == level
        if has_sim and has_nic:
            raise pytest.UsageError(f"{sim} and {nic} exclude each other: leave one out")
        if has_sim or has_nic:
            mode = "nic" if has_nic else "simulation"
    try:
        _check_together(values)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if mode == "simulation" and origin["peer"] == "option" and values["peer"].scheme:
        raise pytest.UsageError(f"--machnet-peer={values['peer']} is for a NIC: --machnet-nic=NIC")
    return Settings(mode, values, origin, {})


def _check_together(values: Mapping[str, Any]) -> None:
    own = ipaddress.IPv4Interface(values["ip"])
    peer: Where | None = values["peer"]
    addresses = {"gateway": values["gateway"], "peer_ip": values["peer_ip"]}
    if peer is not None and not peer.scheme:
        addresses["peer"] = peer.host
    for name, text in addresses.items():
        if text is None:
            continue
        address = ipaddress.IPv4Address(text)
        if address == own.ip:
            raise ValueError(f"machnet {name} {address} is the local stack's own address")
        if name == "gateway" and address not in own.network:
            raise ValueError(f"machnet gateway {address} is not in {own.network}")


def _check_link(name: str, value: Any) -> None:
    """Check one link parameter with the parser that the network has for it."""
    from machnet.sim import units

    parsers: dict[str, Callable[..., Any]] = {
        "latency": units.duration_ns,
        "jitter": units.duration_ns,
        "reorder_delay": units.duration_ns,
        "duplicate_delay": units.duration_ns,
        "bandwidth": units.rate_bps,
        "loss": units.probability_ppb,
        "reorder": units.probability_ppb,
        "duplicate": units.probability_ppb,
        "corrupt": units.probability_ppb,
        "queue": units.parse_queue,
    }
    if name == "back":
        if value is None:
            return
        if not isinstance(value, dict):
            raise ValueError("back: a dict of link parameters")
        for key, item in value.items():
            if key == "back" or key not in LINK_PARAMETERS:
                raise ValueError(f"back: there is no link parameter {key!r}")
            _check_link(key, item)
    elif name in parsers and value is not None:
        parsers[name](value, name)


def merge_markers(marks: list[pytest.Mark]) -> dict[str, Any]:
    """The arguments of all machnet markers of a test, which come nearest first."""
    merged: dict[str, Any] = {}
    for mark in reversed(marks):
        if mark.args:
            raise ValueError(f"it takes keyword arguments only, not {mark.args[0]!r}")
        if "sim" in mark.kwargs or "nic" in mark.kwargs:
            merged.pop("sim", None)
            merged.pop("nic", None)
        merged.update(mark.kwargs)
    return merged


def with_markers(base: Settings, marks: list[pytest.Mark], where: str) -> Settings:
    """What is in force for a test with these markers.

    Raises:
        MarkerError: A marker is wrong; the text names the test.
    """
    try:
        arguments = merge_markers(marks)
        return _with_arguments(base, arguments) if arguments else base
    except (ValueError, TypeError) as error:
        raise MarkerError(f"{where}: @pytest.mark.{MARKER}: {error}") from None


def _with_arguments(base: Settings, arguments: dict[str, Any]) -> Settings:
    values, origin = dict(base.values), dict(base.origin)
    link: dict[str, Any] = {}
    mtu, faults, mode = base.mtu, base.faults, base.mode
    for name, value in arguments.items():
        if name in KNOBS:
            knob = KNOBS[name]
            try:
                values[name] = (knob.in_marker or knob.parse)(value)
            except ValueError as error:
                raise ValueError(f"{name}={value!r}: {error}") from None
            origin[name] = "marker"
        elif name in LINK_PARAMETERS:
            _check_link(name, value)
            link[name] = value
        elif name == "mtu":
            try:
                mtu = None if value is None else _whole(value, *MTU_RANGE)
            except ValueError as error:
                raise ValueError(f"mtu={value!r}: {error}") from None
        elif name == "faults":
            faults = _faults(value)
        else:
            raise ValueError(_unknown(name))
    if origin["sim"] == "marker" and values["sim"] and origin["nic"] == "marker":
        raise ValueError("sim= and nic= exclude each other: leave one out")
    if origin["sim"] == "marker" and values["sim"]:
        mode = "simulation"
    elif origin["nic"] == "marker":
        mode = "nic"
    _check_together(values)
    return Settings(mode, values, origin, link, mtu, faults)


def _unknown(name: str) -> str:
    import difflib

    known = [*KNOBS, *LINK_PARAMETERS, "mtu", "faults"]
    near = difflib.get_close_matches(name, known, 1)
    hint = f": did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"
    return f"there is no argument {name!r}{hint}"


def _faults(value: Any) -> tuple[Any, ...] | None:
    from machnet.sim import faults as kinds

    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise ValueError(f"faults={value!r}: a list such as [Drop('local>peer', nth=3)]")
    for fault in value:
        if not dataclasses.is_dataclass(fault) or not hasattr(kinds, type(fault).__name__):
            raise ValueError(f"faults: {fault!r} is no fault of machnet.sim.faults")
    return tuple(value)
