# SPDX-License-Identifier: MIT
"""``machnet nic``: the NICs of this machine, and whose they are."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from machnet.dpdk.bind import Machine, bind, unbind, used_for
from machnet.dpdk.devices import Device, inventory

_HELP = {"help_option_names": ["-h", "--help"]}
#: What states are called, for people.
_STATES = {
    "bifurcated": "kernel and DPDK",
    "kernel": "kernel",
    "none": "no driver",
    "userspace": "DPDK",
    "virtual": "virtual",
}


@contextlib.contextmanager
def _reporting() -> Iterator[None]:
    """What can't be done ends the command with a line that says why."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(f"{error}.") from None
    except OSError as error:
        print(f"machnet nic: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)


def _in_use(device: Device, machine: Machine) -> list[str]:
    """Why the kernel can't do without it; nothing of one that nobody would take from the kernel."""
    if device.state != "kernel" or not device.address:
        return []
    return used_for(device, machine)


def _use(device: Device, in_use: list[str]) -> str:
    """What to say to run on it; "-": nothing would help."""
    if not device.why_not:
        return f"machnet run --nic {device.name}"
    if device.state == "userspace" or not device.address or in_use:
        return "-"
    return f"machnet nic bind {device.name}"


def _row(device: Device, machine: Machine) -> dict[str, Any]:
    """As JSON; None and empty lists stand for what there is not, or what is not known."""
    in_use = _in_use(device, machine)
    owner = device.record.owner if device.record is not None else None
    return {
        "name": device.name,
        "interfaces": device.interfaces,
        "former_interfaces": device.former,
        "address": device.address or None,
        "bus": device.bus,
        "device": device.ident or None,
        "vendor": device.vendor or None,
        "macs": [mac for mac in device.macs if mac],
        "driver": device.driver or None,
        "usable_drivers": device.usable,
        "state": device.state,
        "numa_node": device.numa_node,
        "iommu_group": device.iommu_group,
        "bound_for_pid": owner.pid if owner is not None else None,
        "why_not": device.why_not or None,
        "in_use": in_use,
        "use": _use(device, in_use),
    }


def _table(devices: list[Device], machine: Machine) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)  # for grep: a line each
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("Interface", "Address", "Device", "Driver", "Belongs to", "NUMA", "To use it"):
        table.add_column(title, overflow="fold")
    for device in devices:
        in_use = _in_use(device, machine)
        former = f"({', '.join(device.former)})" if device.former else "-"
        table.add_row(
            ", ".join(device.interfaces) or former,
            device.address or "-",
            f"{device.ident} {device.vendor}".strip() or "-",
            device.driver or "-",
            _STATES[device.state],
            "-" if device.numa_node is None else str(device.numa_node),
            f"- (the kernel uses it: {', '.join(in_use)})" if in_use else _use(device, in_use),
        )
    console.print(table)


@click.group(name="nic", context_settings=_HELP)
def main() -> None:
    """The NICs of this machine: list them, take them from the kernel for DPDK, give them back.

    A NIC with a driver that serves both (mlx4, mlx5, mana) and virtual interfaces (veth, TAP, bridge) are
    used as they are. Any other one must be bound to a driver that hands it to a process; the kernel has
    it no longer then. machnet run --bind does so for one run.
    """


@main.command(name="list", context_settings=_HELP)
@click.option("--json", "as_json", is_flag=True, help="One JSON array, with every field.")
@click.pass_context
def list_(ctx: click.Context, *, as_json: bool) -> None:
    """List the NICs, whose they are, and what to say to use them.

    One that the kernel uses (it carries the default route, has an address, or is a port of a bridge) is
    not offered: bind refuses it.

    A name in parentheses is the one that the kernel had for a NIC before it was bound; it is still good
    as a name here.

    Exit status: 0; 2 when the command line is wrong.
    """
    machine = ctx.ensure_object(Machine)
    devices = [one for one in inventory(machine.sysfs, machine.run) if one.name != "lo"]
    if as_json:
        print(json.dumps([_row(device, machine) for device in devices], indent=1))
    elif devices:
        _table(devices, machine)
    else:
        print("There are no NICs.")


@main.command(name="bind", context_settings=_HELP)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option(
    "--driver", metavar="DRIVER", help="vfio-pci, uio_pci_generic, igb_uio, uio_hv_generic."
)
@click.option("--force", is_flag=True, help="Also one that has addresses, or the default route.")
@click.pass_context
def bind_(ctx: click.Context, *, names: tuple[str, ...], driver: str | None, force: bool) -> None:
    """Take NICs from the kernel for DPDK: by interface, PCI address, VMBUS UUID or MAC address.

    Without --driver it is vfio-pci where there is an IOMMU, else uio_pci_generic; uio_hv_generic on
    Hyper-V and Azure. Either all that are named are bound, or none. Name, MAC address and IP addresses are
    remembered, so that the NIC is found by its old name and comes back as it was. Takes root.

    Exit status: 0; 1 when it can't be done; 2 when the command line is wrong.
    """
    machine = ctx.ensure_object(Machine)
    done: list[Device] = []
    with _reporting():
        before = [machine.find(name) for name in names]
        together = [device.address for device in before]
        try:
            for name, old in zip(names, before, strict=True):
                now = bind(name, driver, force=force, together=together, machine=machine)
                if old.driver == now.driver:
                    print(f"{now.label} has {now.driver} already: machnet run --nic {now.name}")
                else:
                    done.append(now)
        except BaseException:
            for device in done:
                unbind(device.address, machine=machine)
            raise
    for device in done:
        print(f"{device.label} is bound to {device.driver}: machnet run --nic {device.name}")


@main.command(name="unbind", context_settings=_HELP)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.pass_context
def unbind_(ctx: click.Context, *, names: tuple[str, ...]) -> None:
    """Give NICs back to the kernel: by former interface, PCI address, VMBUS UUID or MAC address.

    Those that machnet took come back with their names, MTU and addresses, and up if they were; routes are up
    to whoever made them. Takes root.

    Exit status: 0; 1 when one can't be given back, or not quite as it was; 2 when the command line is
    wrong.
    """
    machine = ctx.ensure_object(Machine)
    failed = False
    for name in names:
        with _reporting():
            device = machine.find(name)
            problems = unbind(name, machine=machine)
            for text in problems:
                print(f"machnet nic: {text}", file=sys.stderr)
            failed = failed or bool(problems)
            now = machine.find(device.address) if device.address else device
            again = "again " if device.driver != now.driver else ""
            print(f"{now.label}: the kernel has it {again}({now.driver or 'no driver'})")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
