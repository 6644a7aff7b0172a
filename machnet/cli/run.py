# SPDX-License-Identifier: MIT
"""``machnet run``: the sidecar."""

from __future__ import annotations

import contextlib
import json
import os
import sys

import click

from machnet.cli._flags import GflagsCommand, Integer, Interface, Ipv4
from machnet.sidecar.config import (
    Config,
    ConfigError,
    Controller,
    NicConfig,
    check_config,
    load_config,
    socket_path,
)


def _from_flags(
    mac: str | None, ip: str | None, nic: str | None, more: dict[str, object]
) -> Config:
    if ip is None:
        raise click.UsageError("--ip is missing: the address that the sidecar answers to.")
    from machnet.stack.names import format_mac, parse_mac

    if mac is not None:
        try:
            mac = format_mac(parse_mac(mac))
        except ValueError as error:
            raise click.UsageError(f"--mac: {error}.") from None
    given = {name: value for name, value in more.items() if value is not None}
    return Config(nics=(NicConfig(mac=mac, ip=ip, nic=nic or "", **given),))  # type: ignore[arg-type]


def _wrong(error: ConfigError, where: str | None) -> click.ClickException:
    place = f"{where}: " if where is not None else ""
    lines = [f"{place}{problem}" for problem in error.problems]
    return click.UsageError("\n       ".join(lines))


@click.command(
    cls=GflagsCommand, name="run", context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--config", metavar="FILE", help="Configuration; see docs/sidecar.md.")
@click.option("--mac", metavar="MAC", help="MAC address of the NIC.")
@click.option("--ip", type=Interface(), help="Address on it, with its length (default 24).")
@click.option("--nic", metavar="NIC", help="NIC string, such as eth1; default: DPDK, by --mac.")
@click.option(
    "--bind", is_flag=True, default=None, help="Take the NIC from the kernel for the run."
)
@click.option("--kernel_ip", metavar="ADDRESS/LENGTH", help="For the kernel's end of a TAP.")
@click.option("--gateway", type=Ipv4(), help="Router to other networks.")
@click.option("--mtu", type=Integer(256, 65535, "bytes"), help="Largest IP packet, bytes.")
@click.option("--engine_threads", type=Integer(1, 16), help="Engines on the NIC.")
@click.option("--cpu_mask", metavar="MASK", help="CPUs for the engines, such as 0x3.")
@click.option("--poll", type=click.Choice(["adaptive", "busy"]), help="How engines wait.")
@click.option("--socket", "path", metavar="PATH", help="The controller's; default MACHNET_SOCKET.")
@click.option("--metrics", metavar="ADDRESS", help="127.0.0.1:PORT or unix:PATH, for Prometheus.")
@click.option("--log_level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log_format", type=click.Choice(["text", "json"]))
@click.option("--drain_ms", type=Integer(0, 600_000), help="How long SIGTERM lets flows send.")
@click.option(
    "--isolate",
    is_flag=False,
    flag_value="run",
    type=click.Choice(["run", "check"]),
    help="Print what this machine lacks for low latency, do what this process can do about it, and run; "
    "--isolate=check prints only.",
)
@click.option("--ready_fd", type=Integer(0, 2**31 - 1), help="Gets a line when ready.")
def main(
    *,
    config: str | None,
    mac: str | None,
    ip: str | None,
    nic: str | None,
    path: str | None,
    ready_fd: int | None,
    metrics: str | None,
    log_level: str | None,
    log_format: str | None,
    drain_ms: int | None,
    isolate: str | None,
    **more: object,
) -> None:
    """Run the sidecar: it owns the NIC, and applications attach to it.

    What it serves comes from a file (--config) or from --ip with --nic or --mac. A NIC by its
    interface, PCI or MAC address is DPDK's; machnet nic list has what there is. With --bind one that the
    kernel has is taken from it and given back at the end, also after a crash.

    SIGTERM and SIGINT let it send what applications have published, then it ends; a second one ends it at
    once. SIGHUP reads --config again and applies allow list, quotas and log level.

    Exit status: 0 after SIGTERM or SIGINT; 1 when it can't start, and when --isolate=check found
    something missing; 2 when the command line or the
    configuration is wrong; 128 and the signal's number when it was told twice.
    """
    from machnet.sidecar.checks import check_socket
    from machnet.sidecar.log import Log
    from machnet.sidecar.process import Sidecar, StartError

    if ready_fd is not None and not _is_open(ready_fd):
        raise click.UsageError(f"--ready_fd: there is no open descriptor {ready_fd}.")
    flags = {"--mac": mac, "--ip": ip, "--nic": nic, **{f"--{k}": v for k, v in more.items()}}
    try:
        if config is not None:
            both = [name for name, value in flags.items() if value is not None]
            if both:
                raise click.UsageError(f"{both[0]} is in the file that --config names, not beside.")
            settings = load_config(config)
        else:
            settings = _from_flags(mac, ip, nic, more)
        overrides = {
            "metrics": metrics,
            "log_level": log_level,
            "log_format": log_format,
            "drain_ms": drain_ms,
        }
        settings = _with(settings, {k: v for k, v in overrides.items() if v is not None})
        where = socket_path(path, settings.controller)
        problems = [*check_config(settings), *(f"--socket: {text}" for text in check_socket(where))]
        if problems:
            raise ConfigError(problems)
    except ConfigError as error:
        raise _wrong(error, config) from None
    except OSError as error:
        raise click.UsageError(f"--config: {config}: {error.strerror}.") from None
    log = Log(settings.controller.log_level, settings.controller.log_format)
    sidecar = Sidecar(settings, where, config, log, isolate=isolate is not None)
    with contextlib.ExitStack() as measures:
        if isolate is not None:
            missing = _isolate(settings, measures if isolate == "run" else None)
            if isolate == "check":
                sys.exit(1 if missing else 0)
        try:
            status = sidecar.run(lambda socket: _ready(ready_fd, socket))
        except StartError as error:
            log.error("start_failed", why=str(error))
            sys.exit(1)
    sys.exit(status)


def _isolate(config: Config, until: contextlib.ExitStack | None) -> int:
    """Print what the machine lacks, after measures that hold ``until`` the end; how much it is."""
    from machnet.sidecar.isolate import as_json, look, render
    from machnet.sidecar.measures import Measures

    taken = until.enter_context(Measures()).take() if until is not None else []
    items = [*look(config.nics), *taken]
    if config.controller.log_format == "json":
        print(json.dumps(as_json(items)), flush=True)
    else:
        print(*render(items), sep="\n", flush=True)
    return sum(item.state == "missing" for item in items)


def _with(config: Config, overrides: dict[str, object]) -> Config:
    fields = {name: getattr(config.controller, name) for name in Controller.__struct_fields__}
    controller = Controller(**{**fields, **overrides})
    return Config(nics=config.nics, controller=controller, dpdk=config.dpdk)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _ready(fd: int | None, socket: str) -> None:
    if fd is None:
        return
    with contextlib.suppress(OSError):  # whoever wanted to know has gone
        os.write(fd, f"ready {socket}\n".encode())
        os.close(fd)


if __name__ == "__main__":
    main()
