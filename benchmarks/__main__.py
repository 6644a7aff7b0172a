# SPDX-License-Identifier: MIT
"""`python -m benchmarks`: machnet and its yardsticks beside each other in one run.

One JSON object with `--json`, else tables. Figures, never assertions.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks import channel, machine, nic, pair
from benchmarks.peers import lwip

STACKS = ("lwip", "machnet-raw", "machnet-framed")


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def lwip_options(row: str) -> list[str]:
    """The same writes as ours where lwIP's own program differs: bulk goes in pieces of 8 KiB in both."""
    return ["--msg-bytes", "8192"] if row == "bulk" else []


def measure_pair(rows: tuple[str, ...], seconds: float, repeats: int) -> list[dict[str, Any]]:
    """Every row of every stack, `repeats` times, the stacks taking turns so that noise hits all of them."""
    ours, theirs = pair.build(), lwip.build()
    samples: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for n in range(repeats):
        for row in rows:
            progress(f"pair: {row}, run {n + 1} of {repeats}")
            found = lwip.run(theirs, [row], seconds=seconds, options=lwip_options(row))
            samples.setdefault((row, "lwip"), []).extend(found)
            for one in pair.run(ours, [row], seconds=seconds):
                samples.setdefault((row, one["peer"]), []).append(one)
    return [
        {
            "row": row,
            "stack": stack,
            "ns_per_msg": spread([s["ns_per_msg"] for s in samples[row, stack]]),
            "msgs_per_s": spread([s["msgs_per_s"] for s in samples[row, stack]]),
            "gbit_per_s": spread([s["gbit_per_s"] for s in samples[row, stack]]),
        }
        for row in rows
        for stack in STACKS
    ]


def count_pair(rows: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Instructions per message by stack and row."""
    progress("pair: counting instructions")
    ours = pair.count_instructions(pair.build(march="haswell"), rows)
    theirs = lwip.count_instructions(lwip.build(), rows)
    return {"lwip": theirs, **{f"machnet-{mode}": counts for mode, counts in ours.items()}}


NIC_STACKS = tuple(f"machnet-{mode}" for mode in pair.MODES)


def measure_nics(rows: tuple[str, ...], seconds: float, repeats: int) -> list[dict[str, Any]]:
    """Every row over a Wire and over DPDK's net_ring, in turns: CPU time of the one thread."""
    program = pair.build(dpdk=True)
    samples: dict[tuple[str, str, str], list[float]] = {}
    for n in range(repeats):
        for row in rows:
            progress(f"pair: {row}, run {n + 1} of {repeats}")
            for one in pair.run(program, [row], seconds=seconds, nics=pair.NICS):
                key = (row, one["peer"], one["nic"])
                samples.setdefault(key, []).append(one["cpu_ns_per_msg"])
    return [
        {
            "row": row,
            "stack": stack,
            "cpu_ns_per_msg": {kind: spread(samples[row, stack, kind]) for kind in pair.NICS},
            "ratio": round(
                statistics.median(samples[row, stack, "ring"])
                / statistics.median(samples[row, stack, "wire"]),
                3,
            ),
        }
        for row in rows
        for stack in NIC_STACKS
    ]


def count_nics(rows: tuple[str, ...]) -> dict[str, dict[str, dict[str, float]]]:
    """Instructions per message by NIC, stack and row; of the same program for both."""
    progress("pair: counting instructions")
    program = pair.build(march="haswell", dpdk=True)
    return {
        kind: {
            f"machnet-{mode}": counts
            for mode, counts in pair.count_instructions(program, rows, nic=kind).items()
        }
        for kind in pair.NICS
    }


def nics_table(
    results: list[dict[str, Any]], counts: dict[str, dict[str, dict[str, float]]] | None
) -> Table:
    table = Table(title="two stacks back to back in one thread: a Wire, and DPDK's net_ring")
    names = ("row", "stack", "wire ns", "min..max", "ring ns", "min..max", "ring/wire")
    for name in (*names, "instructions", "ring/wire"):
        table.add_column(name, justify="left" if name in {"row", "stack"} else "right")
    for r in results:
        cells = []
        for kind in pair.NICS:
            ns = r["cpu_ns_per_msg"][kind]
            cells += [f"{ns['median']:.1f}", f"{ns['min']:.1f}..{ns['max']:.1f}"]
        cells.append(f"{r['ratio']:.2f}")
        if counts:
            wire, ring = (counts[kind][r["stack"]][r["row"]] for kind in pair.NICS)
            cells += [f"{wire:.0f}, {ring:.0f}", f"{ring / wire:.2f}"]
        table.add_row(r["row"], r["stack"], *cells, end_section=r["stack"] == NIC_STACKS[-1])
    return table


def pair_table(results: list[dict[str, Any]], counts: dict[str, dict[str, float]] | None) -> Table:
    table = Table(title="two stacks back to back in one thread, no kernel")
    for name in (
        "row",
        "stack",
        "ns/message",
        "min..max",
        "M messages/s",
        "Gbit/s",
        "instructions",
    ):
        table.add_column(name, justify="left" if name in {"row", "stack"} else "right")
    for r in results:
        ns = r["ns_per_msg"]
        instructions = counts[r["stack"]][r["row"]] if counts else None
        table.add_row(
            r["row"],
            r["stack"],
            f"{ns['median']:.1f}",
            f"{ns['min']:.1f}..{ns['max']:.1f}",
            f"{r['msgs_per_s']['median'] / 1e6:.2f}",
            f"{r['gbit_per_s']['median']:.2f}",
            "" if instructions is None else f"{instructions:.0f}",
            end_section=r["stack"] == STACKS[-1],
        )
    return table


@click.group(invoke_without_command=False)
def main() -> None:
    """Benchmarks of machnet, each beside a yardstick in the same run."""


@main.command(name="pair")
@click.option("--seconds", default=1.0, type=click.FloatRange(min=0.05), help="Length of a run.")
@click.option("--repeats", default=5, type=click.IntRange(min=1), help="Runs of each row.")
@click.option("--row", "rows", multiple=True, type=click.Choice(pair.ROWS), help="Only this row.")
@click.option(
    "--nic",
    "kind",
    default="wire",
    type=click.Choice(pair.NICS),
    help="wire: with lwIP beside. ring: over two ports of DPDK, with the Wire beside.",
)
@click.option("--instructions/--no-instructions", default=True, help="Count with callgrind too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the JSON there as well.")
def pair_command(
    seconds: float,
    repeats: int,
    rows: tuple[str, ...],
    kind: str,
    instructions: bool,
    as_json: bool,
    output: Path | None,
) -> None:
    """Request and reply, and bulk, between two stacks in one thread, with lwIP beside."""
    measure, count, table_of = (
        (measure_pair, count_pair, pair_table)
        if kind == "wire"
        else (measure_nics, count_nics, nics_table)
    )
    rows = rows or pair.ROWS
    report: dict[str, Any] = {
        "benchmark": "pair",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "nic": kind,
        "seconds": seconds,
        "repeats": repeats,
        "load": os.getloadavg()[0],
        "cache_line_round_trip_ns": {"before": machine.cache_line_round_trip_ns()},
    }
    results = measure(rows, seconds, repeats)
    counts = count(rows) if instructions else None
    report["cache_line_round_trip_ns"]["after"] = machine.cache_line_round_trip_ns()
    report["results"] = results
    report["instructions_per_msg"] = counts
    if output is not None:
        output.write_text(json.dumps(report, indent=1) + "\n")
    if as_json:
        print(json.dumps(report))
        return
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table_of(results, counts))
    trips = report["cache_line_round_trip_ns"]
    console.print(f"cache-line round trip: {trips['before']} ns before, {trips['after']} ns after")


@main.command(name="idle")
@click.option("--mode", default="framed", type=click.Choice(pair.MODES), help="Which interface.")
@click.option("--cycles", default=200, type=click.IntRange(1, 20_000), help="Opened and closed.")
def idle_command(mode: str, cycles: int) -> None:
    """What a message, and opening and closing, cost beside up to 100,000 idle connections."""
    program = pair.build(march="haswell")
    rows = []
    for idle in (0, 1000, 10_000, 100_000):
        progress(f"idle: {idle} connections")
        message, _ = pair.count_beside_idle(program, mode, idle)
        cycle, _ = pair.count_beside_idle(program, mode, idle, cycles=cycles)
        rows.append(
            {"idle": idle, "instructions_per_msg": message, "instructions_per_open_close": cycle}
        )
    report = {"benchmark": "idle", "mode": mode, "memory": pair.memory_per_connection(program)}
    print(json.dumps({**report, "results": rows}, indent=1))


@main.command(name="sim")
@click.option("--seconds", default=2.0, type=click.FloatRange(min=0.05), help="CPU time of a run.")
@click.option("--repeats", default=3, type=click.IntRange(min=1), help="Runs of each row.")
@click.option("--hosts", default=1000, type=click.IntRange(2, 10_000), help="Of the large network.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def sim_command(seconds: float, repeats: int, hosts: int, as_json: bool) -> None:
    """Simulated frames per second of CPU time, an idle hour, and a network of many hosts."""
    from benchmarks import sim  # it wants machnet installed, which the others do without

    bulk: dict[str, dict[str, dict[str, float]]] = {}
    for row, options in sim.BULK_ROWS.items():
        progress(f"sim: {row}")
        runs = [sim.bulk(seconds, **options) for _ in range(repeats)]
        bulk[row] = {name: spread([run[name] for run in runs]) for name in runs[0]}
    progress(f"sim: an idle hour, {hosts} hosts")
    report = {
        "benchmark": "sim",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "seconds": seconds,
        "repeats": repeats,
        "bulk": bulk,
        "keepalive_hour": sim.keepalive_hour(),
        "many_hosts": {"hosts": hosts, **sim.many_hosts(hosts)},
    }
    if as_json:
        print(json.dumps(report))
        return
    table = Table(title="bulk TCP in a simulated network, by CPU time of its one thread")
    for name in ("row", "frames/s", "min..max", "Gbit/s"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for row, found in bulk.items():
        rate = found["frames_per_s"]
        table.add_row(
            row,
            f"{rate['median']:,.0f}",
            f"{rate['min']:,.0f}..{rate['max']:,.0f}",
            f"{found['gbit_per_s']['median']:.2f}",
        )
    console = Console()
    console.print(table)
    console.print("ten idle connections for an hour:", report["keepalive_hour"])
    console.print("many hosts on a switch:", report["many_hosts"])


@main.command(name="sidecar")
@click.option("--seconds", default=1.0, type=click.FloatRange(0.1, 5.0), help="Length of a run.")
@click.option("--repeats", default=3, type=click.IntRange(min=1), help="Runs of each row.")
@click.option("--poll", default="adaptive", type=click.Choice(["adaptive", "busy"]))
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def sidecar_command(seconds: float, repeats: int, poll: str, as_json: bool) -> None:
    """Experiments 1, 2 and 3 of the TCP guide through sidecars; needs a TAP device."""
    from benchmarks import sidecar  # it wants machnet installed, which the others do without

    before = machine.cache_line_round_trip_ns()
    results = sidecar.measure(seconds, repeats, poll, progress)
    report: dict[str, Any] = {
        "benchmark": "sidecar",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "seconds": seconds,
        "repeats": repeats,
        "poll": poll,
        "cache_line_round_trip_ns": {
            "before": before,
            "after": machine.cache_line_round_trip_ns(),
        },
        "results": results,
    }
    if as_json:
        print(json.dumps(report))
        return
    table = Table(title="message generators through sidecars, every role a process")
    names = ("experiment", "bytes", "window", "messages/s", "min..max", "p50 us", "p99 us")
    for name in (*names, "x original"):
        table.add_column(name, justify="left" if name == "experiment" else "right", no_wrap=True)
    for row in results:
        rate = row["msgs_per_s"]
        kind = f"{row['experiment']}, {row['protocol']}" if row["experiment"] else "kernel, tcp"
        table.add_row(
            kind,
            str(row["msg_size_bytes"]),
            str(row["msg_window"]),
            f"{rate['median']:,.0f}",
            f"{rate['min']:,.0f}..{rate['max']:,.0f}",
            f"{row['p50_us']:.1f}",
            f"{row['p99_us']:.1f}",
            str(row.get("times_the_original", "")),
            end_section=row["experiment"] == 3,
        )
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    trips = report["cache_line_round_trip_ns"]
    console.print(f"cache-line round trip: {trips['before']} ns before, {trips['after']} ns after")


@main.command(name="nic")
@click.option("--seconds", default=0.5, type=click.FloatRange(0.1, 10.0), help="Length of a run.")
@click.option("--repeats", default=3, type=click.IntRange(min=1), help="Runs of each row.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def nic_command(seconds: float, repeats: int, as_json: bool) -> None:
    """What a packet of 64 bytes costs, sent and received, by driver of DPDK and size of the bursts."""
    report: dict[str, Any] = {
        "benchmark": "nic",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "seconds": seconds,
        "repeats": repeats,
        "load": os.getloadavg()[0],
        "rows": nic.measure(seconds, repeats, progress),
        "engine_ns": nic.engine(),
    }
    if as_json:
        print(json.dumps(report))
        return
    table = Table(title="pktgen through DPDK's drivers, 64-byte frames, the least of the runs")
    for name in ("driver", "burst", "tx ns", "tx ticks", "rx ns", "rx ticks", "rx burst"):
        table.add_column(name, justify="left" if name == "driver" else "right", no_wrap=True)
    for r in report["rows"]:
        cells = [f"{r['tx']['ns']:.1f}", f"{r['tx']['ticks']:.0f}"]
        if "rx" in r:
            cells += [f"{r['rx']['ns']:.1f}", f"{r['rx']['ticks']:.0f}", f"{r['rx']['burst']:.1f}"]
        table.add_row(r["nic"], str(r["burst"]), *cells, end_section=r["burst"] == nic.BURSTS[-1])
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print("engine, ns a frame:", report["engine_ns"])


@main.command(name="channel")
@click.option("--seconds", default=1.0, type=click.FloatRange(min=0.05), help="Length of a run.")
@click.option("--mode", "modes", multiple=True, type=click.Choice(channel.MODES), help="Only this.")
@click.option("--python/--no-python", "with_python", default=True, help="Python's calls as well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def channel_command(
    seconds: float, modes: tuple[str, ...], with_python: bool, as_json: bool
) -> None:
    """A channel between two processes by itself: round trips, messages per second, Python's calls."""
    program = channel.build()
    trip_ns = machine.cache_line_round_trip_ns()
    rows = []
    for mode in modes or channel.MODES:
        progress(f"channel: {mode}")
        rows += channel.run(program, mode, seconds)
    report: dict[str, Any] = {
        "benchmark": "channel",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine.describe(),
        "seconds": seconds,
        "rows": rows,
    }
    if with_python:
        progress("channel: Python")
        report["python_ns_per_message"] = channel.python_calls(program)
    report["cache_line_round_trip_ns"] = {
        "before": trip_ns,
        "after": machine.cache_line_round_trip_ns(),
    }
    if as_json:
        print(json.dumps(report))
        return
    table = Table(title="a channel between two processes, copies in and out included")
    for name in ("row", "mode", "bytes", "ns p50", "ns p99", "M/s", "best M/s"):
        table.add_column(name, justify="left" if name in {"row", "mode"} else "right")
    for r in rows:
        table.add_row(
            r["row"],
            r["mode"],
            str(r["len"]),
            *(str(r.get(name, "")) for name in ("ns_p50", "ns_p99")),
            f"{r['per_s'] / 1e6:.3f}",
            f"{r['best_per_s'] / 1e6:.3f}" if "best_per_s" in r else "",
        )
    console = Console()
    console.print(table)
    if with_python:
        console.print("Python, ns a message:", report["python_ns_per_message"])
    console.print("cache-line round trip:", report["cache_line_round_trip_ns"])


if __name__ == "__main__":
    main()
