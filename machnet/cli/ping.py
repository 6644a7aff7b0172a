# SPDX-License-Identifier: MIT
"""``machnet ping``: ICMP echo requests over any NIC, by no kernel's help."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import click

from machnet._native import lib
from machnet.cli._flags import GflagsCommand, Integer, Ipv4, Seconds, parameters_of, run_options
from machnet.cli._nics import check_nic_usage, open_cli_nic, probe_options
from machnet.cli._probe import (
    DUPLICATE,
    ERROR,
    HEADER_BYTES,
    LATE,
    LOST,
    Event,
    Probe,
    next_hop,
)
from machnet.cli._report import Outcome, Reporter, Sample
from machnet.cli._run import finish, refusals, run

TOOL = "machnet ping"
#: Answers printed in any one second; the others are only counted.
LINES_PER_S = 50

_UNREACHABLE = {0: "network", 1: "host", 2: "protocol", 3: "port", 13: "host (prohibited)"}


class _Interval(Seconds):
    """A number of seconds; 0 is one, too."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if str(value).strip() in {"0", "0.0"}:
            return 0.0
        return super().convert(value, param, ctx)


class _Reporter(Reporter):
    """Writes as ping does: a line for each answer, and the statistics."""

    def __init__(self, target: str, parameters: dict[str, Any], *, as_json: bool, quiet: bool):
        super().__init__(
            TOOL, "client", parameters, as_json=as_json, noun="packet", extra=self._counts
        )
        self.probe: Probe | None = None
        self._target = target
        self._quiet = quiet
        self._json = as_json
        self._second = -1
        self._lines = 0

    def _counts(self) -> dict[str, Any]:
        return {"target": self._target, **(self.probe.counts() if self.probe else {})}

    def event(self, event: Event) -> None:
        """Write one line, unless there were too many this second."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._quiet or self._lines > LINES_PER_S:
            return
        if event.kind == LOST:
            self.status(f"no answer to icmp_seq={event.seq + 1}")
        elif event.kind == ERROR:
            kind, code = event.icmp
            text = f"ICMP error {kind}, code {code}"
            if kind == 3:
                text = f"destination {_UNREACHABLE.get(code, f'(code {code})')} unreachable"
            elif kind == 11:
                text = "time to live exceeded"
            self.status(f"from {event.source}: {text}")
        else:
            more = {DUPLICATE: " (DUP!)", LATE: " (late)"}.get(event.kind, "")
            self.status(
                f"{event.length} bytes from {event.source}: icmp_seq={event.seq + 1} "
                f"ttl={event.ttl} time={event.rtt_us / 1e3:.3f} ms{more}"
            )

    def interval(self, sample: Sample, at_s: float) -> None:
        """As JSON; for people only where lines were left out."""
        if self._json or self._parameters["interval_s"] == 0 or self._lines > LINES_PER_S:
            super().interval(sample, at_s)

    def summary(self, total: Sample, outcome: Outcome) -> None:
        """Write what ping writes, and percentiles."""
        counts = self.probe.counts() if self.probe else {}
        sent, answered = total.tx_msgs, total.rx_msgs
        lost = 100 * (sent - answered) / sent if sent else 0.0
        more = "".join(
            f", +{counts[name]} {name}"
            for name in ("duplicates", "late", "unreachable")
            if counts.get(name)
        )
        self.status(f"\n--- {self._target} ping statistics ---")
        self.status(
            f"{sent} packets transmitted, {answered} received{more}, {lost:.3g}% packet loss, "
            f"time {outcome.elapsed_s * 1e3:.0f} ms"
        )
        if total.payload_faults:
            self.status(f"{total.payload_faults} answers with a wrong payload")
        if total.latency is not None:
            figures = total.latency.as_json()
            self.status(
                "RTT (us): " + ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
            )


def _ping(reporter: _Reporter, settings: dict[str, Any], target: str) -> int:
    with contextlib.ExitStack() as cleanup:
        with refusals():
            nic = open_cli_nic(settings, offload=False)
        cleanup.callback(nic.close)
        interval_ns = round(settings["interval"] * 1e9)
        probe = Probe(
            nic,
            {
                "mode": lib.MN_PROBE_ICMP,
                "ip": settings["ip"].partition("/")[0],
                "target_ip": target,
                "next_hop_ip": next_hop(settings["ip"], target, settings["gateway"]),
                "frame_len": HEADER_BYTES + settings["size"],
                "count": settings["count"] or 0,
                "period_ns": interval_ns,
                "period_packets": 1,
                "window": 0 if interval_ns else 1,
                "timeout_ns": round(settings["timeout"] * 1e9),
                "arp_timeout_ns": round(settings["arp_timeout"] * 1e9),
            },
            (settings["poll"], settings["spin_us"]),
            # One after the other, lines would be what is measured.
            reporter.event if interval_ns and not settings["quiet"] else None,
            wants_answers=True,
        )
        reporter.probe = probe
        return run(
            probe,
            reporter,
            announce=f"PING {target} from {settings['ip']} ({nic}, {nic.mac}): "
            f"{settings['size']} data bytes",
            duration_s=settings["duration"],
            drain_s=settings["timeout"],
        )


@click.command(
    cls=GflagsCommand, name="ping", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.argument("target", type=Ipv4())
@probe_options
@click.option("-c", "--count", type=Integer(1, 2**63 - 1, "packets"), help="Stop after so many.")
@click.option(
    "-i",
    "--interval",
    type=_Interval(),
    default=1.0,
    show_default=True,
    help="Seconds from one to the next; 0: as soon as the last one is answered.",
)
@click.option(
    "-s",
    "--size",
    type=Integer(0, 65521 - 28, "bytes"),
    default=56,
    show_default=True,
    help="Data bytes of each, behind the ICMP header.",
)
@click.option(
    "-W",
    "--timeout",
    type=Seconds(),
    default=1.0,
    show_default=True,
    help="Seconds until one that is not answered counts as lost.",
)
@click.option("-q", "--quiet", is_flag=True, help="No line for each answer.")
@run_options(spin_us=200)
@click.pass_context
def main(ctx: click.Context, /, *, target: str, as_json: bool, **settings: Any) -> None:
    """Ask TARGET for echoes from a NIC of machnet's own, and print round-trip times.

    No kernel and no sidecar takes part on this end, so what is measured is the NIC, the network and
    the other end. The target may be a Linux host, a machnet stack or sidecar, or a bouncer of
    machnet pktgen.

    \b
    To try it as root, without hardware:
      machnet ping --nic tap:mn0 --kernel_ip 10.0.0.1 --ip 10.0.0.2 10.0.0.1

    Exit status: 0 when an answer came and none was wrong; 1 when none came, or on any failure; 2 when
    the command line is wrong.
    """  # noqa: D301 - \b is click's
    check_nic_usage(ctx, settings)
    if not target:
        raise click.UsageError("The TARGET is an IPv4 address, such as 10.0.0.1.", ctx)
    parameters = {**parameters_of(settings), "target": target, "json": as_json}
    reporter = _Reporter(target, parameters, as_json=as_json, quiet=settings["quiet"])
    finish(ctx, reporter, lambda: _ping(reporter, settings, target))


if __name__ == "__main__":
    main()
