# SPDX-License-Identifier: MIT
"""``machnet pktgen``: sends UDP packets from any NIC, sends them back, or measures with them."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Any, TextIO

import click

from machnet._native import lib
from machnet.cli._flags import GflagsCommand, Integer, Ipv4, Seconds, parameters_of, run_options
from machnet.cli._nics import check_nic_usage, open_cli_nic, probe_options
from machnet.cli._probe import (
    DUPLICATE,
    ERROR,
    FRAME_BYTES_MIN,
    LATE,
    LOST,
    REPLY,
    Event,
    Probe,
    histogram_rows,
    next_hop,
)
from machnet.cli._report import Outcome, Reporter, Sample
from machnet.cli._run import RunError, finish, refusals, run

TOOL = "machnet pktgen"
#: The port of the echo service (RFC 862), which is what a bouncer is.
ECHO_PORT = 7
#: Upper ends of the rows of --histogram, in microseconds.
_HISTOGRAM_US = [round(step * 10.0**power, 1) for power in range(6) for step in (1, 2, 5)]

_KINDS = {REPLY: "reply", DUPLICATE: "duplicate", LOST: "lost", LATE: "late", ERROR: "error"}


class _Reporter(Reporter):
    """Adds what the probe counted, and the histogram, to the summary."""

    def __init__(self, role: str, parameters: dict[str, Any], *, as_json: bool) -> None:
        super().__init__(TOOL, role, parameters, as_json=as_json, noun="packet", extra=self._counts)
        self.probe: Probe | None = None
        self.histogram = False

    def _counts(self) -> dict[str, Any]:
        return {**self.probe.counts(), "cost": self.probe.costs()} if self.probe else {}

    def summary(self, total: Sample, outcome: Outcome) -> None:
        """Write totals, rates, losses and round-trip times."""
        counts = self._counts()
        self.status(f"--- {self._tool} {self._role}: summary of {outcome.elapsed_s:.3f} s ---")
        self.status(f"Packets sent/received: {total.tx_msgs}/{total.rx_msgs}")
        self.status(total.rates_text("packet"))
        if total.latency is not None:
            figures = total.latency.as_json()
            self.status(
                "RTT (us): " + ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
            )
            if self.histogram:
                self._write_histogram(total.rtt)
        for way, cost in counts.get("cost", {}).items():
            self.status(
                f"Cost of a packet {'sent' if way == 'tx' else 'received'}: {cost['ns']:.1f} ns "
                f"({cost['ticks']:.0f} ticks), {cost['burst']:.1f} in a burst"
            )
        shown = ("lost", "late", "duplicates", "unreachable", "refused", "bad", "other")
        said = [f"{name} {counts[name]}" for name in shown if counts.get(name)]
        if total.payload_faults:
            said.append(f"wrong payloads {total.payload_faults}")
        if said:
            self.status("Also: " + ", ".join(said))

    def _write_histogram(self, rtt: Any) -> None:
        for end_us, packets in histogram_rows(rtt, _HISTOGRAM_US):
            if packets:
                bar = "#" * max(1, round(50 * packets / rtt.count))
                self.status(f"  <= {end_us:>9g} us {packets:>12} {bar}")


class _RttLog:
    """A text file with a line for each packet: number, fate, round-trip time in ns."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        file.write("# seq what rtt_ns\n")

    def event(self, event: Event) -> None:
        """Write one line."""
        self._file.write(f"{event.seq} {_KINDS[event.kind]} {round(event.rtt_us * 1e3)}\n")


def _config(settings: dict[str, Any], mode: str, mtu: int) -> dict[str, Any]:
    ip = settings["ip"].partition("/")[0]
    if mode == "bouncer":
        return {
            "mode": lib.MN_PROBE_BOUNCE,
            "ip": ip,
            "local_port": settings["remote_port"],
            "burst": 32,
        }
    target, rate = settings["remote_ip"], settings["rate"]
    if settings["size"] > mtu + 14:
        raise RunError(
            f"--size {settings['size']}: frames of this NIC have at most {mtu + 14} bytes"
        )
    config = {
        "mode": lib.MN_PROBE_UDP,
        "ip": ip,
        "target_ip": target,
        "next_hop_ip": next_hop(settings["ip"], target, settings["gateway"]),
        "local_port": settings["local_port"] or 49152 + secrets.randbelow(16384),
        "remote_port": settings["remote_port"],
        "frame_len": settings["size"],
        "count": settings["count"] or 0,
        "burst": settings["burst"],
        "window": 1 if mode == "ping" and not rate else 0,
        "from_due": True,
        "period_ns": 1_000_000_000 if rate else 0,
        "period_packets": rate or 1,
        "timeout_ns": round(settings["timeout"] * 1e9),
        "arp_timeout_ns": round(settings["arp_timeout"] * 1e9),
    }
    if settings["remote_mac"]:
        config["next_hop_mac"] = settings["remote_mac"]
    return config


def _announce(settings: dict[str, Any], mode: str, mac: str) -> str:
    here = f"{settings['ip']} on {settings['nic']}"
    if mode == "bouncer":
        return f"[BOUNCING] [{here}, UDP port {settings['remote_port']}, MAC {mac}]"
    rate = f"{settings['rate']} packets/s" if settings["rate"] else "as fast as it goes"
    if mode == "ping" and not settings["rate"]:
        rate = "one at a time"
    return (
        f"[{mode.upper()}] {here} to {settings['remote_ip']}:{settings['remote_port']}, "
        f"{settings['size']} bytes, {rate}"
    )


def _pktgen(reporter: _Reporter, settings: dict[str, Any], mode: str) -> int:
    with contextlib.ExitStack() as cleanup:
        log = None
        with refusals():
            if settings["rtt_log"]:
                path = Path(settings["rtt_log"])
                log = _RttLog(cleanup.enter_context(path.open("w", encoding="ascii")))
            nic = open_cli_nic(settings, offload=False)
        cleanup.callback(nic.close)
        probe = Probe(
            nic,
            _config(settings, mode, nic.mtu),
            (settings["poll"], settings["spin_us"]),
            log.event if log is not None else None,
            wants_answers=mode == "ping",
        )
        reporter.probe = probe
        reporter.histogram = settings["histogram"]
        return run(
            probe,
            reporter,
            announce=_announce(settings, mode, nic.mac),
            duration_s=settings["duration"],
            drain_s=settings["timeout"] if mode != "bouncer" else 0.0,
        )


def _mode(ctx: click.Context, settings: dict[str, Any]) -> str:
    """The mode, by option or by what else is given; what contradicts it is refused."""
    mode: str = settings["mode"] or ("generator" if settings["remote_ip"] else "bouncer")
    if mode == "bouncer" and settings["remote_ip"]:
        raise click.UsageError("--remote_ip is for the other modes: a bouncer waits.", ctx)
    if mode != "bouncer" and not settings["remote_ip"]:
        raise click.UsageError(f"--mode {mode} needs a --remote_ip.", ctx)
    if mode == "bouncer":
        for name in ("rate", "count", "rtt_log"):
            if settings[name]:
                raise click.UsageError(f"--{name} is for the other modes: a bouncer waits.", ctx)
    if settings["local_port"] == settings["remote_port"]:
        raise click.UsageError(
            "--local_port and --remote_port must differ, or two bouncers would go on for ever.", ctx
        )
    return mode


class _Mac(click.types.StringParamType):
    """An Ethernet address."""

    name = "mac"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it in its usual form; anything else is a usage error."""
        from machnet.stack.names import format_mac, parse_mac

        try:
            return format_mac(parse_mac(str(value)))
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


@click.command(
    cls=GflagsCommand, name="pktgen", context_settings={"help_option_names": ["-h", "--help"]}
)
@probe_options
@click.option(
    "--mode",
    type=click.Choice(["generator", "bouncer", "ping"]),
    help="Send packets; send others' packets back; or send one at a time and measure its way "
    "there and back.  [default: generator with --remote_ip, else bouncer]",
)
@click.option("--remote_ip", type=Ipv4(), default="", help="Where the packets go.")
@click.option("--remote_mac", type=_Mac(), help="Its Ethernet address.  [default: ask by ARP]")
@click.option(
    "--remote_port",
    type=Integer(1, 65535),
    default=ECHO_PORT,
    show_default=True,
    help="UDP port that the packets go to, and that a bouncer serves.",
)
@click.option(
    "--local_port", type=Integer(1, 65535), help="UDP port that they come from.  [default: random]"
)
@click.option(
    "--size",
    type=Integer(FRAME_BYTES_MIN, 65535, "bytes"),
    default=64,
    show_default=True,
    help="Bytes of each frame, with its Ethernet header, without the checksum behind it.",
)
@click.option(
    "--rate",
    type=Integer(1, 1_000_000_000, "packets per second"),
    help="Packets per second, by the clock: round trips count from when a packet was due, so that a "
    "sender or network that stalls shows.  [default: as fast as the NIC takes them; in ping mode, "
    "the next one when the last one is back]",
)
@click.option("--count", type=Integer(1, 2**63 - 1, "packets"), help="Stop after so many packets.")
@click.option(
    "--burst",
    type=Integer(1, 32, "packets"),
    default=32,
    show_default=True,
    help="Packets that are handed to the NIC, or taken from it, at once, at most.",
)
@click.option(
    "--timeout",
    type=Seconds(),
    default=0.2,
    show_default=True,
    help="Seconds until a packet that does not come back counts as lost.",
)
@click.option(
    "--rtt_log",
    type=click.Path(dir_okay=False),
    help="Write a line for each packet to this file: number, what became of it, round trip in ns.",
)
@click.option("--histogram/--nohistogram", default=False, help="Print round trips as a histogram.")
@run_options(spin_us=200)
@click.pass_context
def main(ctx: click.Context, /, *, as_json: bool, **settings: Any) -> None:
    """Send UDP packets from a NIC of machnet's own, send others' packets back, or measure with them.

    Packets are numbered and checked when they come back; what does not come back in time is lost.
    The other end of a generator is a bouncer, another machine's echo service (UDP port 7), or anything:
    then nothing comes back.

    \b
    Two processes on this machine, without any privileges:
      machnet pktgen --nic link:/tmp/cable --ip 10.0.0.2
      machnet pktgen --nic link:/tmp/cable --ip 10.0.0.1 --remote_ip 10.0.0.2 --mode ping

    Exit status: 0 when all went well, which in ping mode means that an answer came and none was wrong;
    1 on any failure; 2 when the command line is wrong.
    """  # noqa: D301 - \b is click's
    check_nic_usage(ctx, settings)
    mode = _mode(ctx, settings)
    parameters = {**parameters_of(settings), "mode": mode, "json": as_json}
    role = "server" if mode == "bouncer" else "client"
    reporter = _Reporter(role, parameters, as_json=as_json)
    finish(ctx, reporter, lambda: _pktgen(reporter, settings, mode))


if __name__ == "__main__":
    main()
