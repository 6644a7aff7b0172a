# SPDX-License-Identifier: MIT
"""NICs that a command opens itself: the ``--nic`` option, and the options that go with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from machnet.cli._flags import Integer, Interface, Ipv4, Seconds, stacked

if TYPE_CHECKING:
    from machnet.stack.nics import Nic

_F = TypeVar("_F", bound=Callable[..., Any])

_TAP_FD = re.compile(r"tap:fd=(\d{1,9})(?=\?|$)")
#: Drivers that run by the clock and need nothing but their string.
_LIVE = ("tap", "link", "dpdk")


class NicParam(click.types.StringParamType):
    """A NIC string, or ``tap:fd=N`` for a descriptor that this process inherited."""

    name = "nic"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the string; anything else than a NIC that can be opened is a usage error."""
        from machnet.sim.faulty import check_faults
        from machnet.sim.nicstr import parse_nic

        text = str(value)
        try:
            parsed = parse_nic(text)
            check_faults(parsed)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        if parsed.scheme not in _LIVE:
            self.fail(
                f"{text!r}: the {parsed.scheme} driver is not one that runs by the clock; use tap:NAME or "
                "link:PATH.",
                param,
                ctx,
            )
        if parsed.scheme == "dpdk":
            from machnet.dpdk import available, missing_reason

            if not available():
                self.fail(f"{text!r}: {missing_reason()}", param, ctx)
        return text


def is_descriptor(nic: str) -> bool:
    """Whether the string names a TAP's descriptor."""
    return _TAP_FD.match(nic) is not None


def nic_options(*, required: bool) -> Callable[[_F], _F]:
    """Return a decorator that adds ``--nic`` and what goes with it."""
    options = [
        click.option(
            "--nic",
            type=NicParam(),
            envvar="MACHNET_NIC",
            show_envvar=True,
            required=required,
            help="NIC to open: by DPDK eth1, a PCI or MAC address, or a virtual device; tap:NAME, which is "
            "made if it is not there; tap:fd=N, a TAP's descriptor that was inherited; link:PATH, a cable "
            "to another process. Faults of the network behind a '?', as in tap:mn0?loss=1%&latency=2ms "
            "(see docs/nics.md).",
        ),
        click.option(
            "--bind/--nobind",
            default=False,
            help="Take the NIC from the kernel for the time of the run, if the kernel has it (DPDK; root).",
        ),
        click.option(
            "--kernel_ip",
            type=Interface(),
            help="Address to give to the kernel's end of the TAP, e.g. 10.0.0.1/24 (root).",
        ),
        click.option("--gateway", type=Ipv4(), default="", help="Router to other networks."),
        click.option(
            "--mtu",
            type=Integer(68, 65521, "bytes"),
            help="Largest IP packet, in bytes.  [default: the interface's; 1500 of a link]",
        ),
    ]
    return stacked(options)


def probe_options(command: _F) -> _F:
    """Add what both commands have that measure on a NIC of their own: the NIC, and this end of it."""
    options = [
        nic_options(required=True),
        click.option(
            "--ip",
            type=Interface(),
            required=True,
            help="Address of this end, with its prefix length (10.0.0.2/24; 24 without).",
        ),
        click.option(
            "--arp_timeout",
            type=Seconds(),
            default=5.0,
            show_default=True,
            help="Seconds until the other end (or the gateway) must have answered ARP.",
        ),
    ]
    return stacked(options)(command)


def check_nic_usage(ctx: click.Context, settings: dict[str, Any]) -> None:
    """Refuse ``--bind`` for what is not DPDK's, and ``--kernel_ip`` for what is no TAP by name."""
    from machnet.sim.nicstr import parse_nic

    if settings["bind"] and parse_nic(settings["nic"]).scheme != "dpdk":
        raise click.UsageError(f"--bind is for a NIC of DPDK, not for {settings['nic']}.", ctx)
    if not settings["kernel_ip"]:
        return
    if is_descriptor(settings["nic"]):
        raise click.UsageError("--kernel_ip needs a TAP by name, not a descriptor.", ctx)
    if not settings["nic"].startswith("tap:"):
        raise click.UsageError(f"--kernel_ip is for a TAP, not for {settings['nic']}.", ctx)


def open_cli_nic(settings: dict[str, Any], *, offload: bool = True) -> Nic:
    """Open the NIC of ``nic``, ``mtu``, ``bind`` and ``kernel_ip``.

    Args:
        settings: The command's.
        offload: False: finished frames within the MTU only.

    Raises:
        OSError: It can't be opened; the text says why.
        ValueError: A fault's value is wrong.
    """
    from machnet.sim.nicstr import parse_nic
    from machnet.stack.nics import Tap, open_nic, with_faults

    spec = parse_nic(settings["nic"])
    if spec.scheme != "tap":
        return open_nic(settings["nic"], settings["mtu"], bind=settings["bind"])
    options: dict[str, Any] = {"mtu": settings["mtu"], "offload": offload and not spec.faults}
    by_descriptor = _TAP_FD.match(settings["nic"])
    if by_descriptor:
        return with_faults(Tap(fd=int(by_descriptor[1]), **options), spec)
    return with_faults(Tap(spec.rest, kernel_ip=settings["kernel_ip"] or None, **options), spec)
