# SPDX-License-Identifier: MIT
"""The sidecar's configuration: its JSON form, and what is wrong with one.

The form is the one of the C++ Machnet, with additions::

    {"machnet_config": {"02:00:00:00:00:01": {"ip": "10.0.0.2", "engine_threads": 1}},
     "controller": {"socket": "/run/machnet/machnet_ctrl.sock"},
     "dpdk": {"huge": "auto"}}

All that is wrong is reported at once, each with the place, the value and what would be accepted.
"""

from __future__ import annotations

import difflib
import json
import os
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from machnet.config import ChannelSettings, Settings
from machnet.dpdk.ranges import DESCRIPTORS, POOL_MBUFS
from machnet.sidecar.checks import check_controller, check_dpdk, check_nics
from machnet.stack.cpus import usable_cpus

__all__ = [
    "SOCKET_DEFAULT",
    "Config",
    "ConfigError",
    "Controller",
    "Dpdk",
    "NicConfig",
    "Quotas",
    "load_config",
    "parse_config",
    "socket_path",
]

#: Where applications look for the controller when nothing else is said (MN_CTRL_SOCKET).
SOCKET_DEFAULT = "/var/run/machnet/machnet_ctrl.sock"
#: A UNIX socket's path has room for so many bytes, and a zero byte.
SOCKET_BYTES_MAX = 107
ENGINES_MAX = 16
#: Of the controller's settings, those that only a new process takes over.
FIXED = ("socket", "mode", "metrics", "log_format")
_CONFIG_BYTES_MAX = 1 << 20


class ConfigError(ValueError):
    """A configuration is wrong.

    Attributes:
        problems: What is wrong, a line each.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class NicConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One NIC with its engines: an entry of ``machnet_config``.

    Attributes:
        mac: Its address, the key of the entry; None: the driver's choice (``machnet run --nic``).
        nic: NIC string; empty: the DPDK port with this MAC address.
        kernel_ip: Given to the kernel's end of a TAP device.
        bind: Take the NIC from the kernel for the run, if it is DPDK's to be and the kernel has it.
        rx_desc: Of each receive queue of a DPDK port; None: the driver's choice.
        tx_desc: Likewise, of each transmit queue.
        pool_mbufs: Packets of each queue of a DPDK port; None: as many as the descriptors need, and more.
    """

    # fmt: off
    mac: str | None = None
    ip: Annotated[str, Meta(description="an IPv4 address of this host, such as 10.0.0.2")]
    prefix: Annotated[int, Meta(ge=1, le=32)] | None = None
    gateway: Annotated[str, Meta(description="an IPv4 address in the network of ip")] | None = None
    mtu: Annotated[int, Meta(ge=256, le=65535, description="bytes")] | None = None
    bind: bool = False
    nic: Annotated[str, Meta(description="a NIC string, such as tap:mn0")] = ""
    kernel_ip: Annotated[str, Meta(description="an address with its length, such as 10.0.0.1/24")] | None = None
    engine_threads: Annotated[int, Meta(ge=1, le=ENGINES_MAX)] = 1
    cpu_mask: Annotated[str, Meta(description="a mask of CPUs, such as 0x3")] | int | None = None
    poll: Literal["adaptive", "busy"] = "adaptive"
    spin_us: Annotated[int, Meta(ge=0, le=1_000_000, description="us")] = 50
    rx_desc: Annotated[int, Meta(ge=DESCRIPTORS[0], le=DESCRIPTORS[1], description="descriptors")] | None = None
    tx_desc: Annotated[int, Meta(ge=DESCRIPTORS[0], le=DESCRIPTORS[1], description="descriptors")] | None = None
    pool_mbufs: Annotated[int, Meta(ge=POOL_MBUFS[0], le=POOL_MBUFS[1], description="packets")] | None = None
    settings: Settings = msgspec.field(default_factory=Settings)
    # fmt: on

    @property
    def label(self) -> str:
        """A short name: the NIC string, or the MAC address."""
        return self.nic or str(self.mac)

    @property
    def string(self) -> str:
        """The NIC string; "": neither that nor a MAC address is given."""
        return self.nic or (f"dpdk:{self.mac}" if self.mac else "")

    @property
    def address(self) -> str:
        """Address and prefix length, as "10.0.0.2/24"."""
        ip, _, length = self.ip.partition("/")
        return f"{ip}/{length or self.prefix or 24}"

    def cpus(self, usable: frozenset[int] | None = None) -> list[int]:
        """The CPUs of ``cpu_mask`` on which this process may run; without a mask none.

        Args:
            usable: Those on which it may; None: `usable_cpus`.

        Raises:
            ValueError: It is no mask.
        """
        if self.cpu_mask is None:
            return []
        mask = self.cpu_mask if isinstance(self.cpu_mask, int) else int(self.cpu_mask, 0)
        if mask <= 0:
            raise ValueError(f"{self.cpu_mask!r} is no mask of CPUs")
        usable = usable_cpus() if usable is None else usable
        return [cpu for cpu in sorted(usable) if mask >> cpu & 1]


class Quotas(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one application, that is one connection to the controller, may have."""

    # fmt: off
    channels_max: Annotated[int, Meta(ge=1, le=1024, description="channels of one application")] = 64
    memory_bytes_max: Annotated[int, Meta(ge=1 << 16, le=1 << 44, description="bytes of all its channels")] = 4 << 30
    flows_max: Annotated[int, Meta(ge=1, le=1 << 24, description="flows that its channels have room for")] = 1 << 20
    connections_max: Annotated[int, Meta(ge=1, le=65536, description="applications at once")] = 1024
    connections_per_user_max: Annotated[int, Meta(ge=1, le=65536, description="of one user, other than root and the sidecar's own")] = 256
    # fmt: on


class Controller(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The controller, and what concerns the whole process.

    Attributes:
        users: Who may attach besides root and the sidecar's own user; names or numbers.
        groups: Whose members may attach; None: the group ``machnet``, if there is one.
    """

    # fmt: off
    socket: Annotated[str, Meta(description="the path of a UNIX socket, at most 107 bytes")] | None = None
    mode: Annotated[str, Meta(pattern=r"^0?[0-7]{3}$", description="the socket file's permissions in octal digits, such as 0660")] = "0666"
    users: list[Annotated[str, Meta(description="a user's name")] | int] = []
    groups: list[Annotated[str, Meta(description="a group's name")] | int] | None = None
    quotas: Quotas = Quotas()
    channel: ChannelSettings = ChannelSettings()
    metrics: Annotated[str, Meta(description="a loopback address with a port, such as 127.0.0.1:9464, or unix:PATH")] | None = None
    drain_ms: Annotated[int, Meta(ge=0, le=600_000, description="ms")] = 5000
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    # fmt: on


class Dpdk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How DPDK's environment layer is started: `machnet.dpdk.EalSettings`."""

    # fmt: off
    huge: Literal["auto", "on", "off"] = "auto"
    memory_mb: Annotated[int, Meta(ge=16, le=1 << 20, description="MiB")] | None = None
    file_prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,63}$", description="1 to 63 letters, digits, '_', '.' or '-'")] | None = None
    cores: list[Annotated[int, Meta(ge=0, le=65535, description="the number of a CPU")]] = []
    log_level: Literal["emergency", "alert", "critical", "error", "warning", "notice", "info", "debug"] = "notice"
    args: list[Annotated[str, Meta(min_length=1, description="an argument of EAL")]] = []
    # fmt: on

    def settings(self) -> dict[str, Any]:
        """For `machnet.dpdk.configure`."""
        return msgspec.structs.asdict(self)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A whole configuration.

    Attributes:
        dpdk: None: what the environment variable ``MACHNET_DPDK`` says, or the defaults.
    """

    nics: tuple[NicConfig, ...]
    controller: Controller = Controller()
    dpdk: Dpdk | None = None


def socket_path(option: str | None, controller: Controller | None = None) -> str:
    """Where the controller's socket is: option, configuration, ``MACHNET_SOCKET``, default."""
    configured = controller.socket if controller is not None else None
    return option or configured or os.environ.get("MACHNET_SOCKET") or SOCKET_DEFAULT


# ---- the schema, with errors that say what is accepted -------------------------------------------


def _parts(kind: Any) -> Iterator[tuple[Any, Meta | None]]:
    """The alternatives of a type, each with its `Meta`."""
    origin = typing.get_origin(kind)
    if origin in {typing.Union, types.UnionType}:
        for part in typing.get_args(kind):
            yield from _parts(part)
    elif origin is Annotated:
        base, *metas = typing.get_args(kind)
        for part, _ in _parts(base):
            yield part, next((meta for meta in metas if isinstance(meta, Meta)), None)
    else:
        yield kind, None


def _accepted(kind: Any) -> str:
    """What values of a type look like, for people."""
    found = []
    for part, meta in _parts(kind):
        about = meta.description if meta is not None and meta.description else ""
        if typing.get_origin(part) is Literal:
            found.append(" or ".join(json.dumps(word) for word in typing.get_args(part)))
        elif part is bool:
            found.append("true or false")
        elif part is int:
            low = meta.ge if meta is not None else None
            high = meta.le if meta is not None else None
            span = f" from {low} to {high}" if high is not None else ""
            found.append(f"a whole number{span}{f' ({about})' if about else ''}")
        elif part is str:
            found.append(about or "a text")
        elif typing.get_origin(part) is list:
            found.append(f"a list, each item {_accepted(typing.get_args(part)[0])}")
    return ", or ".join(found)


def _near(name: str, names: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"


def _object(value: Any, place: str, problems: list[str]) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    problems.append(f"{place}: {_shown(value)} is not an object, such as {{...}}")
    return {}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _struct(kind: type[Any], value: Any, place: str, problems: list[str], **given: Any) -> Any:
    """``value`` as a struct; what is wrong is added to ``problems`` and left out."""
    fields = {
        field.name: field for field in msgspec.structs.fields(kind) if field.name not in given
    }
    for name, item in _object(value, place, problems).items():
        where = f"{place}.{name}"
        if name not in fields:
            problems.append(f"{where}: there is no such setting: {_near(name, list(fields))}")
            continue
        nested = [part for part, _ in _parts(fields[name].type) if _is_struct(part)]
        if nested:
            given[name] = _struct(nested[0], item, where, problems)
            continue
        try:
            converted = msgspec.convert(item, fields[name].type)
        except msgspec.ValidationError:
            problems.append(f"{where}: {_shown(item)} is not {_accepted(fields[name].type)}")
            given[name] = None  # only to be looked at, never used
        else:
            given[name] = converted
    for name, field in fields.items():
        if field.required and name not in given:
            problems.append(f"{place}: {name!r} is missing: {_accepted(field.type)}")
            given[name] = None
    return kind(**given)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


# ---- reading -------------------------------------------------------------------------------------


def load_config(path: str | os.PathLike[str]) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: It is wrong.
        OSError: It can't be read.
    """
    with Path(path).open("rb") as file:
        data = file.read(_CONFIG_BYTES_MAX + 1)
    if len(data) > _CONFIG_BYTES_MAX:
        raise ConfigError([f"it is longer than {_CONFIG_BYTES_MAX} bytes"])
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError([f"byte {error.start} is not UTF-8"]) from None
    return parse_config(text)


def parse_config(text: str) -> Config:
    """A configuration from its JSON text.

    Raises:
        ConfigError: It is wrong.
    """
    problems: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        problems.extend(
            f"{name!r} is there {names.count(name)} times"
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        )
        return dict(pairs)

    try:
        raw = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ConfigError([f"line {error.lineno}, column {error.colno}: {error.msg}"]) from None
    except RecursionError:
        raise ConfigError(["it is nested too deeply"]) from None
    top = _object(raw, "the configuration", problems)
    known = ("machnet_config", "controller", "dpdk")
    problems += [
        f"{name}: there is no such key: {_near(name, known)}" for name in top if name not in known
    ]
    nics, sound = _nics(top, problems)
    problems += check_nics(sound)
    malformed: list[str] = []
    controller = _struct(Controller, top.get("controller", {}), "controller", malformed)
    problems += malformed or check_controller(controller)
    dpdk = None
    if "dpdk" in top:
        malformed = []
        dpdk = _struct(Dpdk, top["dpdk"], "dpdk", malformed)
        problems += malformed or check_dpdk(dpdk)
    if problems:
        raise ConfigError(problems)
    return Config(nics=nics, controller=controller, dpdk=dpdk)


def _nics(
    top: dict[str, Any], problems: list[str]
) -> tuple[tuple[NicConfig, ...], tuple[NicConfig, ...]]:
    """All entries, and those of them whose values all have the right form."""
    from machnet.stack.names import format_mac, parse_mac

    if "machnet_config" not in top:
        problems.append("'machnet_config' is missing: an object with an entry for each NIC")
        return (), ()
    entries = _object(top["machnet_config"], "machnet_config", problems)
    if not entries and isinstance(top["machnet_config"], dict):
        problems.append('machnet_config: it names no NIC, as in {"02:00:00:00:00:01": {...}}')
    found, sound = [], []
    for key, value in entries.items():
        before = len(problems)
        place = f"machnet_config.{key}"
        try:
            mac = format_mac(parse_mac(key))
        except ValueError as error:
            problems.append(f"{place}: {error}")
            mac = key
        found.append(_struct(NicConfig, value, place, problems, mac=mac))
        if len(problems) == before:
            sound.append(found[-1])
    return tuple(found), tuple(sound)


def check_config(config: Config) -> list[str]:
    """What is wrong with values that are of the right form."""
    found = [*check_nics(config.nics), *check_controller(config.controller)]
    return found if config.dpdk is None else [*found, *check_dpdk(config.dpdk)]


def changes(old: Config, new: Config) -> list[str]:
    """What is different in ``new`` and takes effect only in a new process, by name."""
    found = []
    if old.nics != new.nics:
        found.append("machnet_config")
    if old.dpdk != new.dpdk:
        found.append("dpdk")
    found += [
        f"controller.{name}"
        for name in FIXED
        if getattr(old.controller, name) != getattr(new.controller, name)
    ]
    return found
