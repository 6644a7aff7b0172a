# SPDX-License-Identifier: MIT
"""``machnet ss``: the connections of a sidecar."""

from __future__ import annotations

import json
from typing import Any

import click

from machnet.cli._asking import asking, pick, printable, socket_option
from machnet.cli._flags import GflagsCommand, Integer


def _address(pair: list[Any]) -> str:
    ip, port = pair
    return f"{ip if ip != '0.0.0.0' else '*'}:{port or '*'}"  # noqa: S104 - shown, not bound


def _owner(row: dict[str, Any]) -> str:
    if row["pid"] is None:
        return "-"
    return f"{printable(row['name'] or '?')},pid={row['pid']},channel={row['channel']}"


def details(row: dict[str, Any]) -> str:
    """The second line of a connection: what `ss -i` shows, with its unit where it is not bytes."""
    words = [
        f"rto:{row['rto_us'] / 1000:g}ms",
        f"rtt:{row['srtt_us'] / 1000:g}/{row['rttvar_us'] / 1000:g}ms",
        f"mss:{row['mss']}",
        f"cwnd:{row['cwnd']}",
    ]
    # A threshold of "none yet" is a number without a meaning.
    if row["ssthresh"] < 2**30:
        words.append(f"ssthresh:{row['ssthresh']}")
    words += [
        f"snd_wnd:{row['snd_wnd']}",
        f"rcv_wnd:{row['rcv_wnd']}",
        f"unacked:{(row['snd_nxt'] - row['snd_una']) % 2**32}",
    ]
    if row["retransmits"]:
        words.append(f"retrans:{row['retransmits']}")
    if row["backoff"]:
        words.append(f"backoff:{row['backoff']}")
    words += [f"nic:{row['nic']}", f"engine:{row['engine']}"]
    # Who has closed it has no number for it any more.
    if row["flow"] is not None:
        words.append(f"flow:{row['flow']}")
    return " ".join(words)


@click.command(
    cls=GflagsCommand, name="ss", context_settings={"help_option_names": ["-h", "--help"]}
)
@socket_option
@click.option("-l", "--listening", is_flag=True, help="Listeners alone.")
@click.option("-a", "--all", "every", is_flag=True, help="Listeners too.")
@click.option("-i", "--info", is_flag=True, help="Times, windows and retransmissions too.")
@click.option("--protocol", type=click.Choice(["udp", "tcp", "stream"]), help="These alone.")
@click.option("--state", metavar="STATE", help="These alone, such as ESTABLISHED.")
@click.option("--pid", type=Integer(1, 2**31 - 1), help="Of this application alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array, with every field.")
def main(
    *,
    path: str | None,
    listening: bool,
    every: bool,
    info: bool,
    protocol: str | None,
    state: str | None,
    pid: int | None,
    as_json: bool,
) -> None:
    """List the connections of a sidecar, as ss lists those of the kernel.

    Queues are bytes to be read by the application, and bytes that are to be sent or acknowledged.

    Exit status: 0; 1 when there is no sidecar, or it refuses; 2 when the command line is wrong; 130
    when interrupted.
    """
    with asking("ss", path) as sidecar:
        rows = pick(
            sidecar.ask("ss"),
            protocol=protocol,
            state=None if state is None else state.upper(),
            pid=pid,
        )
        if listening:
            rows = [row for row in rows if row["state"] == "LISTEN"]
        elif not every and not as_json and state is None:
            rows = [row for row in rows if row["state"] != "LISTEN"]
        if as_json:
            print(json.dumps(rows))
            return
        titles = ["Proto", "State", "Recv-Q", "Send-Q", "Local", "Peer", "Application"]
        table = [
            [
                row["protocol"],
                row["state"],
                str(row["recv_queue"]),
                str(row["send_queue"]),
                _address(row["local"]),
                _address(row["remote"]),
                _owner(row),
            ]
            for row in rows
        ]
        widths = [max(map(len, column)) for column in zip(titles, *table, strict=True)]
        print(_line(titles, widths))
        for cells, row in zip(table, rows, strict=True):
            print(_line(cells, widths))
            if info and row["state"] != "LISTEN":
                print(f"         {details(row)}")


def _line(cells: list[str], widths: list[int]) -> str:
    right = {2, 3}
    return "  ".join(
        cell.rjust(width) if i in right else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


if __name__ == "__main__":
    main()
