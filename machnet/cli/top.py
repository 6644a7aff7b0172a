# SPDX-License-Identifier: MIT
"""``machnet top``: a sidecar as it works."""

from __future__ import annotations

import contextlib
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from machnet.cli._asking import asking, bytes_text, printable, socket_option
from machnet.cli._flags import GflagsCommand, Integer, Seconds
from machnet.cli.stat import changes
from machnet.sidecar.asking import Asking


@contextlib.contextmanager
def _keys() -> Iterator[bool]:
    """Keys come one by one and unseen; whether there is a terminal to press them on."""
    if not sys.stdin.isatty():
        yield False
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _wait(seconds: float, *, keys: bool) -> bool:
    """Wait; whether ``q`` was pressed meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if not keys:
            time.sleep(left)
            return False
        if select.select([sys.stdin], [], [], left)[0]:
            key = sys.stdin.read(1)
            if key in {"q", "Q", "", "\x04"}:
                return True
    return False


def _engines(old: dict[str, Any], new: dict[str, Any], rows: int) -> Table:
    seconds = max(new["time"] - old["time"], 1e-3)
    table = Table(box=SIMPLE_HEAD, padding=0, title="Engines", title_justify="left")
    for name in ("engine", "nic", "address"):
        table.add_column(name, no_wrap=True)
    for name in ("rx/s", "tx/s", "rx B/s", "tx B/s", "msgs in/s", "out/s", "retrans/s", "drops/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in new["engines"][:rows]:
        counted = changes(old, new, row["engine"])
        drops = sum(value for name, value in counted.items() if name.startswith("drop_"))
        cells = [
            *(f"{counted[name] / seconds:,.0f}" for name in ("rx_frames", "tx_frames")),
            *(bytes_text(counted[name] / seconds) for name in ("rx_bytes", "tx_bytes")),
            *(f"{counted[n] / seconds:,.0f}" for n in ("msgs_delivered", "msgs_submitted")),
            f"{counted['tcp_retransmits'] / seconds:,.0f}",
            f"{drops / seconds:,.0f}",
        ]
        table.add_row(str(row["engine"]), row["nic"], row["ip"], *cells)
    return table


def _applications(sockets: list[dict[str, Any]], channels: list[dict[str, Any]]) -> list[list[str]]:
    found: dict[tuple[Any, Any], dict[str, int]] = {}
    for channel in channels:
        row = found.setdefault((channel["pid"], channel["name"]), _nothing())
        row["channels"] += 1
        row["memory"] += channel["bytes"]
    for sock in sockets:
        row = found.setdefault((sock["pid"], sock["name"]), _nothing())
        row["listeners" if sock["state"] == "LISTEN" else "flows"] += 1
        row["recv"] += sock["recv_queue"]
        row["send"] += sock["send_queue"]
        row["retransmits"] += sock["retransmits"]
    ordered = sorted(found.items(), key=lambda item: (-item[1]["flows"], str(item[0])))
    return [
        [
            str(pid or "-"),
            printable(name or "-"),
            *(str(row[key]) for key in ("channels", "listeners", "flows")),
            *(bytes_text(row[key]) for key in ("recv", "send")),
            str(row["retransmits"]),
            bytes_text(row["memory"]),
        ]
        for (pid, name), row in ordered
    ]


def _nothing() -> dict[str, int]:
    names = ("channels", "listeners", "flows", "recv", "send", "retransmits", "memory")
    return dict.fromkeys(names, 0)


def render(
    info: dict[str, Any],
    old: dict[str, Any],
    new: dict[str, Any],
    sockets: list[dict[str, Any]],
    channels: list[dict[str, Any]],
    lines: int,
) -> Group:
    """The whole picture, at most so many lines."""
    up = int(new["time"] - info["started"])
    numbers = new["controller"]
    head = (
        f"machnet {info['version']}, pid {info['pid']}, up {up // 3600}:{up // 60 % 60:02}:"
        f"{up % 60:02}, {numbers['connections']} applications, {numbers['channels']} channels"
    )
    engines = _engines(old, new, max(lines - 12, 1))
    table = Table(box=SIMPLE_HEAD, padding=0, title="Applications", title_justify="left")
    table.add_column("pid", justify="right")
    table.add_column("name", no_wrap=True, max_width=24)
    for name in ("channels", "listeners", "flows", "recv-q", "send-q", "retrans", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = _applications(sockets, channels)
    room = max(lines - 10 - engines.row_count, 1)
    for row in rows[:room]:
        # As text: a name in brackets is not markup.
        table.add_row(*map(Text, row))
    more = Text(f"... and {len(rows) - room} more") if len(rows) > room else Text("q: quit")
    return Group(Text(head, style="bold"), engines, table, more)


def _loop(sidecar: Asking, interval: float, count: int | None, console: Console) -> None:
    info, old = sidecar.ask("info"), sidecar.ask("stat")
    shown = 0
    with (
        _keys() as keys,
        Live(console=console, screen=console.is_terminal, auto_refresh=False) as live,
    ):
        while not _wait(0 if shown == 0 and count == 1 else interval, keys=keys):
            new = sidecar.ask("stat")
            sockets, channels = sidecar.ask("ss"), sidecar.ask("channels")
            picture = render(info, old, new, sockets, channels, console.height)
            if console.is_terminal:
                live.update(picture, refresh=True)
            else:
                console.print(picture)
            old = new
            shown += 1
            if shown == count:
                return


@click.command(
    cls=GflagsCommand, name="top", context_settings={"help_option_names": ["-h", "--help"]}
)
@socket_option
@click.option("--interval", type=Seconds(), default=1.0, show_default=True, help="Seconds.")
@click.option("--count", type=Integer(1, 2**31 - 1), help="End after so many pictures.")
def main(*, path: str | None, interval: float, count: int | None) -> None:
    """Watch a sidecar: what its engines do, and which applications it has.

    q or Ctrl-C ends it. Without a terminal each picture is printed below the last one.

    Exit status: 0 (by q, or --count); 1 when there is no sidecar, it refuses or it ends; 2 when the
    command line is wrong; 130 when interrupted.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with asking("top", path) as sidecar:
        _loop(sidecar, interval, count, console)


if __name__ == "__main__":
    main()
