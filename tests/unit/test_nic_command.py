# SPDX-License-Identifier: MIT
"""``machnet nic``, in machines made of plain files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_sysfs import FakeSysfs, Reacting, fake_machine

from machnet.cli.main import main as machnet
from machnet.cli.nic import main
from machnet.dpdk.bind import Machine
from machnet.dpdk.records import Former, load_all, new_owner
from machnet.stack.nics import open_nic

NIC = "0000:00:05.0"
OTHER = "0000:00:06.0"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[FakeSysfs]:
    made = FakeSysfs(tmp_path)
    made.pci(NIC, "e1000", "eth1", "52:54:00:00:00:02", numa=0)
    made.pci(OTHER, "mlx5_core", "enp6", "b8:ce:f6:00:00:01", ident="15b3:101d")
    made.pci("0000:00:07.0", "e1000", bound=False)
    made.virtual("veth0")
    made.virtual("lo", "00:00:00:00:00:00", kind=772)
    made.other("usb0", "usb")
    with Reacting(made):
        yield made


@pytest.fixture
def machine(tree: FakeSysfs) -> Machine:
    return fake_machine(tree)


def run(machine: Machine, *args: str) -> Result:
    return CliRunner().invoke(main, args, obj=machine)


def rows(machine: Machine) -> list[str]:
    """The table less its head and its frame, a blank between words."""
    lines = run(machine, "list").stdout.splitlines()
    return [" ".join(line.split()) for line in lines[3:] if line.strip()]


def test_list(machine: Machine) -> None:
    assert rows(machine) == [
        f"eth1 {NIC} 8086:100e Intel e1000 kernel 0 machnet nic bind eth1",
        f"enp6 {OTHER} 15b3:101d NVIDIA mlx5_core kernel and DPDK - machnet run --nic enp6",
        "- 0000:00:07.0 8086:100e Intel - no driver - machnet nic bind 0000:00:07.0",
        "usb0 - - - kernel - -",
        "veth0 - - - virtual - machnet run --nic veth0",
    ]


def test_list_of_what_is_bound(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    assert run(machine, "bind", "eth1").exit_code == 0
    assert rows(machine)[0] == (
        f"(eth1) {NIC} 8086:100e Intel uio_pci_generic DPDK 0 machnet run --nic eth1"
    )


def test_list_as_json(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("vfio-pci")
    result = run(machine, "list", "--json")
    assert result.exit_code == 0
    found = {row["name"]: row for row in json.loads(result.stdout)}
    assert list(found) == ["eth1", "enp6", "0000:00:07.0", "usb0", "veth0"]
    assert found["eth1"] == {
        "name": "eth1",
        "interfaces": ["eth1"],
        "former_interfaces": [],
        "address": NIC,
        "bus": "pci",
        "device": "8086:100e",
        "vendor": "Intel",
        "macs": ["52:54:00:00:00:02"],
        "driver": "e1000",
        "usable_drivers": ["vfio-pci"],
        "state": "kernel",
        "numa_node": 0,
        "iommu_group": None,
        "bound_for_pid": None,
        "why_not": "the kernel has it (e1000): `machnet nic bind eth1` takes it from there, --bind for the "
        "time of one run",
        "in_use": [],
        "use": "machnet nic bind eth1",
    }
    assert found["veth0"]["why_not"] is None


def test_list_does_not_offer_what_bind_refuses(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    machine.links.default.add("eth1")
    machine.links.known["eth1"] = Former("eth1", "52:54:00:00:00:02", addresses=("10.0.0.1/24",))
    (tree.sys / "class/net/eth1/master").symlink_to("../../class/net/br0")
    uses = ["it carries the default route", "it has the address 10.0.0.1/24", "it is a port of br0"]
    told = f"the kernel uses it: {', '.join(uses)}"
    assert rows(machine)[0] == f"eth1 {NIC} 8086:100e Intel e1000 kernel 0 - ({told})"
    found = json.loads(run(machine, "list", "--json").stdout)
    assert [row["in_use"] for row in found] == [uses, [], [], [], []]
    assert found[0]["use"] == "-"
    assert told in run(machine, "bind", "eth1").stderr
    # Once it is bound nothing of it is in use.
    assert run(machine, "bind", "--force", "eth1").exit_code == 0
    assert rows(machine)[0].endswith("machnet run --nic eth1")


def test_list_says_for_whose_run_a_nic_is_bound(tree: FakeSysfs, machine: Machine) -> None:
    from machnet.dpdk.bind import bind

    tree.load("uio_pci_generic")
    owner = new_owner()
    bind("eth1", owner=owner, machine=machine)
    assert json.loads(run(machine, "list", "--json").stdout)[0]["bound_for_pid"] == owner.pid


def test_list_of_nothing(tmp_path: Path) -> None:
    result = run(Machine(sysfs=str(tmp_path), run=str(tmp_path)), "list")
    assert (result.exit_code, result.output) == (0, "There are no NICs.\n")


def test_bind_and_unbind(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    result = run(machine, "bind", "eth1")
    assert (result.exit_code, result.output) == (
        0,
        "eth1 (0000:00:05.0) is bound to uio_pci_generic: machnet run --nic eth1\n",
    )
    assert tree.driver(NIC) == "uio_pci_generic"
    result = run(machine, "bind", "eth1")
    assert (result.exit_code, result.output) == (
        0,
        "eth1 (0000:00:05.0) has uio_pci_generic already: machnet run --nic eth1\n",
    )
    result = run(machine, "unbind", "eth1")
    assert (result.exit_code, result.output) == (
        0,
        "eth1 (0000:00:05.0): the kernel has it again (e1000)\n",
    )
    assert tree.driver(NIC) == "e1000"
    result = run(machine, "unbind", "eth1")
    assert (result.exit_code, result.output) == (
        0,
        "eth1 (0000:00:05.0): the kernel has it (e1000)\n",
    )


def test_bind_with_a_driver_of_one_s_choice(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    tree.load("igb_uio")
    assert run(machine, "bind", "--driver", "igb_uio", NIC).exit_code == 0
    assert tree.driver(NIC) == "igb_uio"
    result = run(machine, "bind", "--driver=e1000", NIC)
    assert result.exit_code == 2
    assert "driver 'e1000': on the pci bus it is vfio-pci or uio_pci_generic" in result.stderr


def test_force(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    machine.links.known["eth1"] = Former("eth1", "52:54:00:00:00:02", addresses=("10.0.0.1/24",))
    result = run(machine, "bind", "eth1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "machnet nic: eth1 (0000:00:05.0): the kernel uses it: it has the address 10.0.0.1/24. "
        "`machnet nic bind --force eth1` takes it all the same\n"
    )
    assert run(machine, "bind", "--force", "eth1").exit_code == 0
    assert tree.driver(NIC) == "uio_pci_generic"


def test_either_all_or_none(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    result = run(machine, "bind", "eth1", "enp6")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "mlx5_core serves the kernel and DPDK at once" in result.stderr
    assert tree.driver(NIC) == "e1000"
    assert load_all(tree.run) == {}
    assert run(machine, "bind", "eth1", "00:07.0").exit_code == 0
    result = run(machine, "unbind", "eth1", "00:07.0")
    assert result.output.splitlines() == [
        "eth1 (0000:00:05.0): the kernel has it again (e1000)",
        "0000:00:07.0: the kernel has it again (e1000)",
    ]


def test_a_whole_iommu_group(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("vfio-pci")
    tree.pci("0000:09:00.0", "e1000", "eth5", "52:54:00:00:00:05", group=3)
    tree.pci("0000:09:00.1", "e1000", "eth6", "52:54:00:00:00:06", group=3)
    assert "its IOMMU group 3 also has 0000:09:00.1 (e1000)" in run(machine, "bind", "eth5").stderr
    assert run(machine, "bind", "eth5", "eth6").exit_code == 0
    assert [tree.driver(f"0000:09:00.{port}") for port in (0, 1)] == ["vfio-pci", "vfio-pci"]


@pytest.mark.parametrize("command", ["bind", "unbind"])
def test_there_is_no_such_nic(machine: Machine, command: str) -> None:
    result = run(machine, command, "eth2")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(
        "machnet nic: there is no NIC 'eth2': did you mean 'eth1'? There are "
    )


def test_what_did_not_come_back(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    run(machine, "bind", "eth1")
    machine.links.refusal = OSError(1, "Operation not permitted")
    result = run(machine, "unbind", "eth1")
    assert result.exit_code == 1
    assert result.stdout == "eth1 (0000:00:05.0): the kernel has it again (e1000)\n"
    assert "not quite as it was: Operation not permitted" in result.stderr


@pytest.mark.parametrize("args", [["bind"], ["unbind"], ["list", "x"], ["bnid", "eth1"]])
def test_usage(machine: Machine, args: list[str]) -> None:
    assert run(machine, *args).exit_code == 2


def test_it_is_a_command_of_machnet() -> None:
    runner = CliRunner()
    assert "take them from the kernel" in runner.invoke(machnet, ["--help"]).output
    for command in ("list", "bind", "unbind"):
        result = runner.invoke(machnet, ["nic", command, "--help"])
        assert result.exit_code == 0
        assert "Exit status: 0" in result.output


@pytest.mark.parametrize(
    "command",
    [
        ["machnet.cli.ping", "--ip=10.0.0.2", "10.0.0.1"],
        ["machnet.cli.pktgen", "--ip=10.0.0.2"],
        ["machnet.cli.msg_gen", "--local_ip=10.0.0.2"],
    ],
)
def test_only_a_nic_of_dpdk_is_bound_for_a_run(command: list[str]) -> None:
    """The commands that open a NIC themselves; the sidecar's are in tests/sidecar/test_config.py."""
    command = [sys.executable, "-m", *command, "--nic=tap:mn0", "--bind"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--bind is for a NIC of DPDK, not for tap:mn0." in done.stderr


def test_a_nic_of_the_sidecar_s_is_not_bound() -> None:
    command = [sys.executable, "-m", "machnet.cli.msg_gen", "--local_ip=10.0.0.2", "--bind"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--bind is for a NIC of msg_gen's own (--nic)" in done.stderr


@pytest.mark.parametrize("nic", ["tap:mn0", "link:/tmp/x", "wire:x", "pcap:x"])
def test_open_nic_binds_nothing_but_dpdk(nic: str) -> None:
    with pytest.raises(ValueError, match="only a NIC of DPDK can be bound, not a "):
        open_nic(nic, bind=True)


def test_this_machine_is_listed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "machnet.cli.nic", "list", "--json"], check=True, capture_output=True
    )
    assert isinstance(json.loads(done.stdout), list)
