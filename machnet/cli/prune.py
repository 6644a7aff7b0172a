# SPDX-License-Identifier: MIT
"""``machnet prune``: remove what killed processes of machnet have left.

Memory, TAPs, virtual pairs and network namespaces go with their processes. What stays is here.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from machnet.dpdk.bind import Machine, orphans, unbind
from machnet.leftovers import left_directories
from machnet.sidecar.config import SOCKET_DEFAULT
from machnet.sidecar.listen import is_stale, remove_stale

#: Whatever is left: what it is, and what removes it.
Leftover = tuple[str, Callable[[], object]]


def _sockets(folder: Path) -> list[Leftover]:
    try:
        paths = sorted(map(str, folder.iterdir()))
    except FileNotFoundError:
        return []
    return [(f"socket {path}", partial(remove_stale, path)) for path in paths if is_stale(path)]


def _nics(machine: Machine) -> list[Leftover]:
    return [
        (
            f"{record.address}, bound to {record.bound} for a run that has ended",
            partial(_give_back, record.address, machine),
        )
        for record in orphans(machine)
    ]


def _give_back(address: str, machine: Machine) -> None:
    if problems := unbind(address, machine=machine):
        raise OSError("; ".join(problems))


def _directories() -> list[Leftover]:
    return [(f"directory {path}", partial(shutil.rmtree, path)) for path in left_directories()]


@click.command(name="prune", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dry_run", "--dry-run", is_flag=True, help="Say what there is, and leave it.")
@click.option(
    "--socket_dir",
    "--socket-dir",
    type=click.Path(file_okay=False),
    default=str(Path(SOCKET_DEFAULT).parent),
    show_default=True,
    help="Where sidecars have their sockets.",
)
@click.pass_context
def main(ctx: click.Context, *, dry_run: bool, socket_dir: str) -> None:
    """Remove what processes of machnet that were killed have left.

    These are: sockets that nobody serves; NICs that were bound for the run of a process (--bind), which the
    kernel gets back; directories of demonstrations and tests. What a living process has is left alone. Memory,
    TAPs, virtual pairs and network namespaces need nothing: the kernel removes them with their process.

    Exit status: 0, also when there was nothing; 1 when something can't be removed; 2 when the command line is
    wrong.
    """
    machine = ctx.ensure_object(Machine)
    failed = False
    try:
        found = [*_sockets(Path(socket_dir)), *_nics(machine), *_directories()]
    except OSError as error:
        print(f"machnet prune: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    for what, remove in found:
        if dry_run:
            print(f"left: {what}")
            continue
        try:
            remove()
        except OSError as error:
            print(f"machnet prune: {what}: {error.strerror or error}", file=sys.stderr)
            failed = True
        else:
            print(f"removed: {what}")
    if not found:
        print("Nothing was left.")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
