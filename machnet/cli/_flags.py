# SPDX-License-Identifier: MIT
"""Command-line flags in gflags' spelling, and the options that both message generators have.

The commands take what the C++ originals took: ``--msg_size=64``, ``--msg_size 64``,
``-msg_size=64``, ``--verify``, ``--verify=false``, ``--noverify``; a ``-`` inside a name is as good
as a ``_``.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from machnet._native import lib

#: The largest message, in payload bytes.
MSG_SIZE_MAX: int = lib.MN_MSG_MAX_BYTES
#: The most messages that a client can have in flight.
MSG_WINDOW_MAX: int = lib.MN_MSG_WINDOW_MAX

_TRUE = frozenset({"true", "t", "yes", "y", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "0"})

_F = TypeVar("_F", bound=Callable[..., Any])


class Integer(click.types.IntParamType):
    """A whole number from ``low`` to ``high``; ``unit`` is part of the error message only."""

    name = "integer"

    def __init__(self, low: int, high: int, unit: str = "") -> None:
        self._low = low
        self._high = high
        self._unit = f" {unit}" if unit else ""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; anything else is a usage error that says what is accepted."""
        try:
            number = int(str(value), 10)
        except ValueError:
            number = None
        if number is None or not self._low <= number <= self._high:
            accepted = f"a whole number from {self._low} to {self._high}{self._unit}"
            self.fail(f"{value!r} is not {accepted}.", param, ctx)
        return number


class Seconds(click.types.FloatParamType):
    """A positive, finite number of seconds; a fraction is allowed."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number of seconds; anything else is a usage error."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        # A century: longer ones do not fit the nanosecond clock they are added to.
        if not 0 < seconds <= 3e9:
            self.fail(
                f"{value!r} is not a positive number of seconds, such as 5 or 0.5.", param, ctx
            )
        return seconds


class Ipv4(click.types.StringParamType):
    """An IPv4 address in dotted form; the empty string is no address."""

    name = "ipv4"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the address in its usual form; anything else is a usage error."""
        if value == "":
            return ""
        try:
            return str(ipaddress.IPv4Address(value))
        except ValueError:
            self.fail(f"{value!r} is not an IPv4 address, such as 10.0.0.2.", param, ctx)


class Interface(click.types.StringParamType):
    """An IPv4 address with its prefix length; without one, the length is 24."""

    name = "ipv4[/length]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the address with its prefix length; anything else is a usage error."""
        address, slash, length = str(value).partition("/")
        try:
            interface = ipaddress.IPv4Interface(f"{address}/{length if slash else 24}")
        except ValueError:
            self.fail(
                f"{value!r} is not an IPv4 address, such as 10.0.0.2 or 10.0.0.2/16.", param, ctx
            )
        # A mask in dotted form comes out as a length.
        return str(interface)


class GflagsCommand(click.Command):
    """A command whose options may be spelled as gflags spells them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse ``args`` after bringing them into click's own spelling."""
        return super().parse_args(ctx, _click_spelling(self, ctx, args))


def _click_spelling(command: click.Command, ctx: click.Context, args: Sequence[str]) -> list[str]:
    """Rewrite each option of ``args``; values, and what follows ``--``, stay as they are."""
    flags: dict[str, tuple[str, str]] = {}
    takes_value: set[str] = set()
    for param in command.get_params(ctx):
        if not isinstance(param, click.Option):
            continue
        if param.is_flag and param.secondary_opts:
            flags[param.opts[0]] = (param.opts[0], param.secondary_opts[0])
        elif not param.is_flag and not isinstance(param.flag_value, str):  # else its value may lack
            takes_value.update(param.opts)
    rewritten: list[str] = []
    pending = iter(args)
    for arg in pending:
        if arg == "--":
            rewritten += [arg, *pending]
            break
        if len(arg) < 3 or not arg.startswith("-"):
            rewritten.append(arg)
            continue
        name, equals, value = arg.partition("=")
        name = "--" + name.lstrip("-").replace("-", "_")
        if name in flags and equals:
            rewritten.append(flags[name][not _truth(name, value, ctx)])
        elif name in takes_value and not equals:
            # The value may begin with a dash: only a value can stand here.
            rewritten += [name, *[value for value in [next(pending, None)] if value is not None]]
        else:
            rewritten.append(name + equals + value)
    return rewritten


def _truth(name: str, value: str, ctx: click.Context) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    message = f"Invalid value for '{name}': {value!r} is neither true nor false."
    raise click.UsageError(message, ctx)


def stacked(options: Sequence[Callable[[_F], _F]]) -> Callable[[_F], _F]:
    """Return a decorator that adds options in this order."""

    def decorate(command: _F) -> _F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def run_options(*, spin_us: int) -> Callable[[_F], _F]:
    """Return a decorator that adds what all commands with a run have: its end, polling, and JSON.

    Args:
        spin_us: The default of ``--spin_us``.
    """
    return stacked(
        [
            click.option(
                "--duration",
                type=Seconds(),
                help="Stop after this many seconds.  [default: run until Ctrl-C]",
            ),
            click.option(
                "--poll",
                type=click.Choice(["busy", "adaptive"]),
                default="adaptive",
                show_default=True,
                help="Spin for ever, or spin for --spin_us and then sleep.",
            ),
            click.option(
                "--spin_us",
                type=Integer(0, 1_000_000, "microseconds"),
                default=spin_us,
                show_default=True,
                help="How long --poll=adaptive looks for work before it sleeps.",
            ),
            click.option(
                "--json/--nojson",
                "as_json",
                default=False,
                help="Write one JSON object a line to stdout: one per second and a last one with all "
                "parameters. What a person would read goes to stderr.",
            ),
        ]
    )


#: The option of both message generators that comes last.
connect_timeout: Callable[[_F], _F] = click.option(
    "--connect_timeout",
    type=Seconds(),
    default=10.0,
    show_default=True,
    help="How long to wait for the connection (client).",
)


def message_options(
    *, msg_size_min: int, local_ip: str | None, own_stack: bool = False
) -> Callable[[_F], _F]:
    """Return a decorator that adds the options of both message generators to a command.

    Args:
        msg_size_min: The smallest ``--msg_size``, in bytes.
        local_ip: The default of ``--local_ip``; ``None`` makes it required.
        own_stack: The addresses are those of a stack of our own: ``--local_ip`` takes a prefix
            length, and no system chooses a port.
    """
    # An explicit default of None would count as one, and the option as optional.
    presence: dict[str, Any] = {"required": True} if local_ip is None else {"default": local_ip}
    address = click.option(
        "--local_ip",
        type=Interface() if own_stack else Ipv4(),
        show_default=local_ip is not None,
        help="Address of this end, with its prefix length (10.0.0.2/24; 24 without)."
        if own_stack
        else "Local address to bind to.",
        **presence,
    )
    port_help = "" if own_stack else "; 0 lets the system choose"
    options = [
        address,
        click.option(
            "--local_port",
            type=Integer(1 if own_stack else 0, 65535),
            default=888,
            show_default=True,
            help=f"Local port to listen on (server){port_help}.",
        ),
        click.option(
            "--remote_ip",
            type=Ipv4(),
            default="",
            help="Address of the server: with it this is a client, without it a server.",
        ),
        click.option(
            "--remote_port",
            type=Integer(1, 65535),
            default=888,
            show_default=True,
            help="Port of the server (client).",
        ),
        click.option(
            "--msg_size",
            type=Integer(msg_size_min, MSG_SIZE_MAX, "bytes"),
            default=64,
            show_default=True,
            help=f"Payload bytes of a request (client) or a reply (server), {msg_size_min} to "
            f"{MSG_SIZE_MAX}.",
        ),
        click.option(
            "--msg_window",
            type=Integer(1, MSG_WINDOW_MAX, "messages"),
            default=8,
            show_default=True,
            help="Messages in flight (client).",
        ),
        click.option(
            "--msg_nr",
            type=Integer(1, 2**63 - 1, "messages"),
            help="How many messages to send (client).  [default: unlimited]",
        ),
        click.option(
            "--verify/--noverify",
            default=False,
            help="Check every payload that arrives: byte i is i mod 256 from byte 8 on.",
        ),
    ]

    return stacked([*options, run_options(spin_us=50)])


def parameters_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return every setting under a name that carries its unit."""
    units = {
        "msg_size": "msg_size_bytes",
        "duration": "duration_s",
        "connect_timeout": "connect_timeout_s",
        "mtu": "mtu_bytes",
        "size": "size_bytes",
        "rate": "rate_per_s",
        "timeout": "timeout_s",
        "arp_timeout": "arp_timeout_s",
        "interval": "interval_s",
    }
    return {units.get(name, name): value for name, value in settings.items()}
