# SPDX-License-Identifier: MIT
"""The ``machnet`` command: a group whose subcommands are imported when they are asked for."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

import machnet
from machnet.cli._stdout import forget_unwritten

if TYPE_CHECKING:
    from collections.abc import Callable

#: What an option is put on.
FC = TypeVar("FC", bound="Callable[..., Any] | click.Command")

#: Subcommand, the module whose ``main`` it is, and its line in ``machnet --help``. A command whose
#: module is not part of this installation is not offered.
COMMANDS = {
    "capture": ("machnet.cli.capture", "Record what passes the NIC of a sidecar."),
    "check": ("machnet.cli.check", "Check the configuration of a sidecar."),
    "nic": ("machnet.cli.nic", "NICs: list them, take them from the kernel, give them back."),
    "prune": ("machnet.cli.prune", "Remove what killed processes have left."),
    "run": ("machnet.cli.run", "Run the sidecar: it owns the NIC, applications attach to it."),
    "ss": ("machnet.cli.ss", "List the connections of a sidecar."),
    "stat": ("machnet.cli.stat", "Show the counters of a sidecar."),
    "top": ("machnet.cli.top", "Watch a sidecar: rates, connections, applications."),
    "dissector": ("machnet.cli.dissector", "Wireshark's dissector of the message protocol."),
    "ping": ("machnet.cli.ping", "Echo requests from any NIC, with round-trip times."),
    "pktgen": ("machnet.cli.pktgen", "Packet generator, bouncer and ping for any NIC."),
    "demo": ("machnet.cli.demo", "Message rates between machnet and Linux's own TCP."),
}


class LazyGroup(click.Group):
    """A group that neither imports its commands to list them nor to run another one."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run to the end of the process; a full disk below standard output is said in one line."""
        try:
            return super().main(*args, **kwargs)
        except (OSError, SystemExit) as error:
            why = forget_unwritten()
            # Without a buffer there is nothing left to write; other files would be named.
            if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
                why = str(error.strerror)
            if not why:
                raise
            print(f"machnet: standard output: {why}", file=sys.stderr)
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands that are installed, sorted."""
        return sorted(name for name, (module, _) in COMMANDS.items() if _installed(module))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command, or ``None`` if there is none of this name.

        Raises:
            TypeError: The module's ``main`` is not a click command.
        """
        if cmd_name not in self.list_commands(ctx):
            return None
        module = COMMANDS[cmd_name][0]
        command = importlib.import_module(module).main
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.main is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table, without importing any."""
        rows = [(name, COMMANDS[name][1]) for name in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _directory_option(name: str, which: str, what: str) -> Callable[[FC], FC]:
    """A flag that prints where a part of the C library is, and is done."""

    def show(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
        if not wanted or ctx.resilient_parsing:
            return
        from machnet.cli import paths

        try:
            click.echo(getattr(paths, which)())
        except FileNotFoundError as error:
            raise click.ClickException(str(error)) from None
        ctx.exit()

    return click.option(
        name, is_flag=True, is_eager=True, expose_value=False, callback=show, help=what
    )


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(machnet.__version__, "--version", prog_name="machnet")
@_directory_option("--include-dir", "include_dir", "Where machnet.h is, and exit.")
@_directory_option("--lib-dir", "lib_dir", "Where libmachnet_shim.so is, and exit.")
def main() -> None:
    """Low-latency userspace networking, and the same stack in your tests."""
