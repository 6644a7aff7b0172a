# SPDX-License-Identifier: MIT
"""The option lines at the head of a script: what they change, and which of them are refused."""

from __future__ import annotations

import ipaddress
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .arms import Configuration
from .errors import ScriptSyntaxError, UnsupportedError
from .nodes import Command

if TYPE_CHECKING:
    from .nodes import Option, Script

__all__ = ["Setup", "read_setup", "sysctls_of"]

#: Of no consequence here, with the reason.
_IGNORED = {
    "define": "done by the parser",
    "non_fatal": "every difference is fatal",
    "verbose": "the log is always kept",
    "debug": "the log is always kept",
    "speed": "the TAP has none",
    "gateway_ip": "the script is the only neighbour",
    "netmask_ip": "the script is the only neighbour",
    "persistent_tun_dev": "each script has a TAP of its own",
    "send_omit_free": "there is nothing to free",
}
_REFUSED = {
    "so_filename": "testing shared objects",
    "so_flags": "testing shared objects",
    "wire_client": "two machines",
    "wire_server": "two machines",
    "wire_client_dev": "two machines",
    "wire_server_dev": "two machines",
    "wire_server_ip": "two machines",
    "wire_server_port": "two machines",
    "init_scripts": "scripts of the shell at the start",
    "dry_run": "reading without running",
    "code_command": "another interpreter for code blocks",
    "code_sockopt": "another source of code blocks' fields",
    "strict_segments": "segments that are taken together",
    "local_linkaddr": "chosen MAC addresses",
}


@dataclass(frozen=True)
class Setup:
    """How a script is to be run.

    Attributes:
        configuration: Of the arm.
        tolerance_ns: How far a time may be off.
        ts_tick_ns: Length of the stack's timestamp tick, to be checked; 0: it is not checked.
        bind_port: What ``...`` is for bind.
        connect_port: What ``...`` is for connect.
    """

    configuration: Configuration
    tolerance_ns: int = 4_000_000
    ts_tick_ns: int = 0
    bind_port: int = 8080
    connect_port: int = 8080


def read_setup(script: Script, *, kernel_defaults: bool = False) -> Setup:
    """Follow the options of a script, and the sysctls before its first system call.

    Raises:
        ScriptSyntaxError: A value is not what the option takes.
        UnsupportedError: An option that can't be followed.
    """
    setup = Setup(Configuration(kernel_defaults=kernel_defaults))
    for option in script.options:
        setup = _checked(setup, option, script)
    first: list[tuple[str, str]] = []
    for event in script.events:
        sysctls = sysctls_of(event.action.text) if isinstance(event.action, Command) else None
        if sysctls is None:
            break
        first += sysctls
    return replace(setup, configuration=replace(setup.configuration, sysctls=tuple(first)))


def _checked(setup: Setup, option: Option, script: Script) -> Setup:
    place = (script.source, script.line(option.where))
    try:
        return _follow(setup, option)
    except ValueError as error:
        raise ScriptSyntaxError(option.where, f"--{option.name}: {error}", *place) from None
    except UnsupportedError as error:
        raise UnsupportedError(option.where, error.what, *place) from None


def _follow(setup: Setup, option: Option) -> Setup:
    name, value = option.name, option.value
    configuration = setup.configuration
    if name in {"local_ip", "remote_ip"}:
        address = str(ipaddress.IPv4Address(value))
        configuration = (
            replace(configuration, local_ip=address)
            if name == "local_ip"
            else replace(configuration, remote_ip=address)
        )
        return replace(setup, configuration=configuration)
    if name == "mtu":
        return replace(setup, configuration=replace(configuration, mtu=_number(value, 68, 65521)))
    if name == "tolerance_usecs":
        return replace(setup, tolerance_ns=_number(value, 0, 3_600_000_000) * 1000)
    if name == "tcp_ts_tick_usecs":
        return replace(setup, ts_tick_ns=_number(value, 0, 1_000_000) * 1000)
    if name == "bind_port":
        return replace(setup, bind_port=_number(value, 1, 65535))
    if name == "connect_port":
        return replace(setup, connect_port=_number(value, 1, 65535))
    if name == "ip_version":
        if value != "ipv4":
            raise UnsupportedError(option.where, f"not supported: --ip_version={value}: IPv4 only")
        return setup
    if name in _IGNORED:
        return setup
    why = _REFUSED.get(name, "it is not known")
    raise UnsupportedError(option.where, f"not supported: the option --{name} ({why})")


def _number(value: str, least: int, largest: int) -> int:
    number = int(value) if value.isdecimal() else -1
    if not least <= number <= largest:
        raise ValueError(f"expected an integer from {least} to {largest}, found {value!r}")
    return number


def sysctls_of(command: str) -> list[tuple[str, str]] | None:
    """Names and values, if a command does nothing but set sysctls; it then needs no shell."""
    settings: list[tuple[str, str]] = []
    for line in command.replace("&&", "\n").replace(";", "\n").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            return None
        if not words:
            continue
        if words[0] not in {"sysctl", "/sbin/sysctl", "/usr/sbin/sysctl"}:
            return None
        for word in words[1:]:
            if word in {"-q", "-w", "-e", "-qw", "-wq"}:
                continue
            name, equals, value = word.partition("=")
            if not equals or word.startswith("-") or not name.startswith("net."):
                return None
            settings.append((name, value))
    return settings
