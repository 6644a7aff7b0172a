# SPDX-License-Identifier: MIT
"""``machnet demo``: message rates between machnet and Linux's own TCP, on this machine, now.

Every role is a process of its own: message generators attach to sidecars, each of which has a TAP
device. Its other end is an interface of a Linux host (a network namespace), or, between two sidecars, a bridge
there; for scale, the same between two such hosts over a veth, with the kernel's TCP at both ends. With
``--dpdk`` each sidecar has a DPDK port on one end of a veth pair instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click

import machnet
from machnet.cli._flags import MSG_SIZE_MAX, MSG_WINDOW_MAX, GflagsCommand, Integer, Seconds
from machnet.cli._pair import PERCENTILES, Case, Lab, Outcome, Placement
from machnet.sim.kernel_host import KernelHost, KernelHostError

SIZES = (64, 1024)
WINDOWS = (1, 8, 32)
EXPERIMENTS = (1, 2, 3)
#: Transports of experiment 2.
PROTOCOLS = ("tcp", "udp")
SECONDS_MAX = 5.0
#: Exit status where the machine does not permit the demo.
EXIT_UNAVAILABLE = 3

_NAMES = {
    0: "kernel -> kernel",
    1: "kernel -> machnet",
    2: "machnet -> machnet",
    3: "machnet -> kernel",
}


_NICS = {
    "tap": "machnet on TAP devices",
    "dpdk:net_af_packet": "machnet on DPDK, net_af_packet over veths",
}


class _Terminated(BaseException):
    """SIGTERM came; like KeyboardInterrupt, nothing but the top level is to catch it."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that what was started is ended too."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Progress:
    """One line on standard error: rewritten on a terminal, a line for each outcome elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._live = sys.stderr.isatty()

    def start(self, case: Case) -> None:
        if self._live:
            text = f"[{self._done + 1}/{self._total}] {case} ..."
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)

    def end(self, outcome: Outcome) -> None:
        self._done += 1
        if self._live and outcome.error is None:
            return
        text = f"{outcome.msgs_per_s:,.0f} messages/s, p50 {_number(outcome.latency_us['p50'])} us"
        if outcome.error is not None:
            text = f"FAILED: {outcome.error}"
        self.clear()
        print(f"[{self._done}/{self._total}] {outcome.case}: {text}", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._live:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def plan(
    experiments: tuple[int, ...],
    sizes: tuple[int, ...],
    windows: tuple[int, ...],
    *,
    baseline: bool,
    protocols: tuple[str, ...] = PROTOCOLS,
) -> list[Case]:
    """Return the cases in the order in which they are run: what is compared, one after another."""
    kinds = ((0,) if baseline else ()) + experiments
    return [
        Case(kind, size, window, protocol)
        for size in sizes
        for window in windows
        for kind in kinds
        for protocol in (protocols if kind == 2 else ("tcp",))
    ]


def machine_facts(placement: Placement, *, dpdk: bool = False) -> dict[str, Any]:
    """Return what a figure should be read with: the machine, and how it was used."""
    model = None
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        model = found[1] if found else None
    return {
        "cpu": model or platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "machnet": machnet.__version__,
        "load_1min": round(os.getloadavg()[0], 2),
        "client_cpu": placement.client_cpu,
        "server_cpu": placement.server_cpu,
        "poll": placement.poll,
        "nic": "dpdk:net_af_packet" if dpdk else "tap",
    }


def _print_table(outcomes: list[Outcome], machine: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    table = Table(
        title="Request-reply, payloads checked; round-trip times in us",
        caption=f"Experiment 1: kernel -> machnet, 2: machnet -> machnet, 3: machnet -> kernel. "
        f"udp is Machnet's own transport. {_NICS[machine['nic']]}; {machine['cpu']}, "
        f"Linux {machine['kernel']}, {machine['poll']} polling.",
        box=SIMPLE_HEAD,
        padding=0,
    )
    for name in ("bytes", "window"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("client -> server", no_wrap=True)
    for name in ("messages/s", "ratio", *PERCENTILES, "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    group, scale = None, 0.0
    for outcome in outcomes:
        case = outcome.case
        first = (case.msg_size, case.msg_window) != group
        if first:
            if group is not None:
                table.add_section()
            group, scale = (case.msg_size, case.msg_window), 0.0
        if case.experiment == 0:
            scale = outcome.msgs_per_s
        compared = case.experiment != 0 and scale > 0 and outcome.error is None
        table.add_row(
            str(case.msg_size) if first else "",
            str(case.msg_window) if first else "",
            f"{_NAMES[case.experiment]}, {case.protocol}",
            f"{outcome.msgs_per_s:,.0f}",
            f"{outcome.msgs_per_s / scale:.2f} x" if compared else "",
            *(_number(outcome.latency_us[name]) for name in PERCENTILES),
            str(outcome.errors),
            style="dim" if case.experiment == 0 else "bold red" if outcome.errors else None,
        )
    console.print(table)


def _measure(
    cases: list[Case], seconds: float, placement: Placement, *, dpdk: bool
) -> list[Outcome]:
    progress = _Progress(len(cases))
    outcomes = []
    with Lab(seconds, placement, dpdk=dpdk) as lab:
        try:
            for case in cases:
                progress.start(case)
                outcomes.append(lab.measure(case))
                progress.end(outcomes[-1])
        finally:
            progress.clear()
    return outcomes


def _report(
    outcomes: list[Outcome], machine: dict[str, Any], seconds: float, *, as_json: bool
) -> bool:
    ok = all(outcome.errors == 0 for outcome in outcomes)
    if as_json:
        figures = [outcome.as_json() for outcome in outcomes]
        result = {
            "experiments": [row for row in figures if row["experiment"] != 0],
            "baseline": [row for row in figures if row["experiment"] == 0],
            "ok": ok,
            "seconds_each": seconds,
            "machine": machine,
        }
        print(json.dumps(result, indent=2), flush=True)
        return ok
    _print_table(outcomes, machine)
    for outcome in outcomes:
        if outcome.error is not None:
            print(f"machnet demo: {outcome.case}: {outcome.error}", file=sys.stderr)
    print("Every message came back right." if ok else "Not every message came back right.")
    return ok


def unavailable(*, dpdk: bool) -> str | None:
    """Why the demo can't be run here; None: it can."""
    if not dpdk:
        return KernelHost.tap_available()
    from machnet.dpdk import available, missing_reason

    if os.geteuid() != 0:
        return "--dpdk takes root: DPDK's net_af_packet opens packet sockets (without it, no root)"
    return KernelHost.available() if available() else missing_reason()


class _DemoSeconds(Seconds):
    """A positive number of seconds up to SECONDS_MAX."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = super().convert(value, param, ctx)
        if seconds > SECONDS_MAX:
            self.fail(f"{value!r} is more than {SECONDS_MAX:g} seconds.", param, ctx)
        return seconds


def _several(name: str, kind: Any, default: tuple[Any, ...], what: str) -> Callable[[Any], Any]:
    return click.option(
        name,
        name.lstrip("-") + "s",
        type=kind,
        multiple=True,
        default=default,
        show_default=True,
        help=f"{what}; may be given more than once.",
    )


@click.command(
    cls=GflagsCommand, name="demo", context_settings={"help_option_names": ["-h", "--help"]}
)
@_several("--experiment", click.Choice([1, 2, 3]), EXPERIMENTS, "Experiment of the TCP guide")
@_several("--size", Integer(9, MSG_SIZE_MAX, "bytes"), SIZES, "Payload bytes of each message")
@_several("--window", Integer(1, MSG_WINDOW_MAX, "messages"), WINDOWS, "Messages in flight")
@_several("--protocol", click.Choice(["tcp", "udp"]), PROTOCOLS, "Transport of experiment 2")
@click.option(
    "--seconds",
    type=_DemoSeconds(),
    default=2.0,
    show_default=True,
    help=f"How long each measurement takes, at most {SECONDS_MAX:g}.",
)
@click.option(
    "--baseline/--nobaseline",
    default=True,
    help="Measure the kernel at both ends too, for scale.",
)
@click.option("--client_cpu", type=Integer(0, 1023), help="CPU for the client.")
@click.option("--server_cpu", type=Integer(0, 1023), help="CPU for the server.")
@click.option(
    "--poll",
    type=click.Choice(["busy", "adaptive"]),
    default="adaptive",
    show_default=True,
    help="Both ends spin for ever, which wants two CPUs that nothing else uses, or spin for a moment "
    "and then sleep.",
)
@click.option(
    "--dpdk/--nodpdk",
    default=False,
    help="Sidecars on DPDK (net_af_packet on veths) instead of TAP devices; takes root.",
)
@click.option(
    "--json/--nojson", "as_json", default=False, help="Write one JSON object to standard output."
)
@click.pass_context
def main(
    ctx: click.Context,
    /,
    *,
    experiments: tuple[int, ...],
    sizes: tuple[int, ...],
    windows: tuple[int, ...],
    protocols: tuple[str, ...],
    seconds: float,
    baseline: bool,
    client_cpu: int | None,
    server_cpu: int | None,
    poll: str,
    dpdk: bool,
    as_json: bool,
) -> None:
    """Measure message rates and round-trip times between machnet and Linux's own TCP.

    Experiment 1 is a client over POSIX sockets (tcp_msg_gen) and a machnet server (msg_gen with its
    sidecar), experiment 3 a machnet client and a server over POSIX sockets, experiment 2 machnet on both
    ends, with a sidecar each, over TCP and over Machnet's own transport. Each is a process; each payload
    is checked on both ends. Where there are two CPUs, each end runs on one of its own.

    Needs a TAP device in a network namespace: root, or a user for whom user namespaces and
    /dev/net/tun are permitted. With --dpdk each sidecar instead runs DPDK's poll-mode driver for packet
    sockets (net_af_packet) on one end of a veth pair, whose other end is the kernel's, or the other
    sidecar's; that takes root, and machnet built with DPDK. Nothing outside these namespaces is touched.

    Exit status: 0 when every message came back right; 1 when one did not; 2 when the command line is
    wrong; 3 when this machine does not permit the demo; 130 when interrupted.
    """
    reason = unavailable(dpdk=dpdk)
    if reason is not None:
        print(f"machnet demo: this can't be run here: {reason}", file=sys.stderr)
        ctx.exit(EXIT_UNAVAILABLE)
    try:
        placement = Placement.choose(client_cpu, server_cpu, poll)
    except ValueError as error:
        raise click.UsageError(f"{error}.", ctx) from error
    cases = plan(experiments, sizes, windows, baseline=baseline, protocols=protocols)
    machine = machine_facts(placement, dpdk=dpdk)
    try:
        with _terminable():
            outcomes = _measure(cases, seconds, placement, dpdk=dpdk)
    except KernelHostError as error:
        print(f"machnet demo: {error}", file=sys.stderr)
        ctx.exit(EXIT_UNAVAILABLE)
    except KeyboardInterrupt:
        print("machnet demo: interrupted", file=sys.stderr)
        ctx.exit(130)
    except _Terminated:
        print("machnet demo: terminated", file=sys.stderr)
        ctx.exit(143)
    ctx.exit(0 if _report(outcomes, machine, seconds, as_json=as_json) else 1)


if __name__ == "__main__":
    main()
