# SPDX-License-Identifier: MIT
"""``machnet stat``: the counters of a sidecar, now or as they go on."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from machnet.cli._asking import asking, socket_option
from machnet.cli._flags import GflagsCommand, Integer, Seconds
from machnet.sidecar.asking import Asking


def total(answer: dict[str, Any], engine: int | None = None) -> dict[str, int]:
    """The counters of one engine and its DPDK port, or the sums over all, and those of the controller."""
    found: dict[str, int] = {}
    for row in answer["engines"]:
        if engine is not None and row["engine"] != engine:
            continue
        for group in ("stats", "usage", "host", "between"):
            for name, value in row[group].items():
                found[name] = found.get(name, 0) + value
    nics = {row["nic"] for row in answer["engines"] if engine in {None, row["engine"]}}
    for port in answer["ports"]:
        if port["nic"] in nics:
            for name, value in (port["stats"] | port["levels"]).items():
                found[f"port_{name}"] = found.get(f"port_{name}", 0) + value
    return found | {f"controller_{name}": value for name, value in answer["controller"].items()}


#: What says how much there is, not how often something happened.
_LEVELS = frozenset(
    {"mem_bytes", "lanes_lingering"}
    | {f"controller_{name}" for name in ("connections", "pending", "channels")}
)


def changes(old: dict[str, Any], new: dict[str, Any], engine: int | None) -> dict[str, int]:
    """What was counted between two answers, and levels as they are now."""
    levels = _LEVELS | {name for row in new["engines"] for name in row["usage"]}
    levels |= {f"port_{name}" for row in new["ports"] for name in row["levels"]}
    before = total(old, engine)
    return {
        name: value if name in levels else value - before.get(name, 0)
        for name, value in total(new, engine).items()
    }


def _print(values: dict[str, int], *, every: bool) -> None:
    shown = {name: value for name, value in values.items() if value or every}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        print(f"{name.ljust(width)}  {value}")


def _line(port: dict[str, Any]) -> str:
    """What a DPDK port is."""
    words = [f"{port['driver']} {port['device']}", f"link {port['link']}"]
    words += [f"{port['queues']} queues" if port["queues"] > 1 else "1 queue"]
    words += [f"woken by {port['wake']}", *port["missing"]]
    return f"# {port['nic']}: {', '.join(words)}"


def _watch(
    sidecar: Asking, interval: float, count: int | None, engine: int | None, *, as_json: bool
) -> None:
    last, due = sidecar.ask("stat"), time.monotonic()
    done = 0
    while count is None or done < count:
        due += interval
        time.sleep(max(due - time.monotonic(), 0))
        answer = sidecar.ask("stat")
        seconds = answer["time"] - last["time"]
        values = changes(last, answer, engine)
        if as_json:
            print(json.dumps({"time": answer["time"], "seconds": seconds, **values}), flush=True)
        else:
            print(f"-- {time.strftime('%H:%M:%S')}, {seconds:.3f} s")
            _print(values, every=False)
            print(flush=True)
        last = answer
        done += 1


@click.command(
    cls=GflagsCommand, name="stat", context_settings={"help_option_names": ["-h", "--help"]}
)
@socket_option
@click.option("--all", "every", is_flag=True, help="Counters that are 0 too.")
@click.option("--engine", type=Integer(0, 255), help="Of one engine, not the sum of all.")
@click.option("--interval", type=Seconds(), help="Seconds; what is counted meanwhile, for ever.")
@click.option("--count", type=Integer(1, 2**31 - 1), help="With --interval: so often.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, or one for each interval.")
def main(
    *,
    path: str | None,
    every: bool,
    engine: int | None,
    interval: float | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Show what the engines of a sidecar have counted and what they hold.

    With --interval: what was counted in each one, and levels as they are then. --json gives every
    counter of every engine.

    Exit status: 0; 1 when there is no sidecar, or it refuses; 2 when the command line is wrong; 130
    when interrupted.
    """
    if count is not None and interval is None:
        raise click.UsageError("--count needs an --interval.")
    with asking("stat", path) as sidecar:
        answer = sidecar.ask("stat")
        engines = [row["engine"] for row in answer["engines"]]
        if engine is not None and engine not in engines:
            there_are = ", ".join(map(str, engines))
            raise click.UsageError(f"--engine: there is no engine {engine}, only {there_are}.")
        if interval is not None:
            _watch(sidecar, interval, count, engine, as_json=as_json)
        elif as_json:
            print(json.dumps(answer))
        else:
            for port in answer["ports"]:
                print(_line(port))
            _print(total(answer, engine), every=every)


if __name__ == "__main__":
    main()
