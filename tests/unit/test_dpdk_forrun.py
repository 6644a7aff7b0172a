# SPDX-License-Identifier: MIT
"""NICs that are bound for one run, which may end in any way; in machines made of plain files."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_sysfs import FakeSysfs, Reacting, fake_machine

from machnet.dpdk.bind import Machine, bind, unbind
from machnet.dpdk.devices import resolve
from machnet.dpdk.forrun import BoundForRun, prepare
from machnet.dpdk.records import load_all, new_owner, remember

NIC = "0000:00:05.0"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[FakeSysfs]:
    """A machine with a NIC that the kernel has, and no userspace driver.

    The guardian asks the real host about interfaces: no real one has this name.
    """
    made = FakeSysfs(tmp_path)
    made.pci(NIC, "e1000", "mnfake1", "52:54:00:00:00:02")
    made.virtual("veth0")
    with Reacting(made):
        yield made


@pytest.fixture
def machine(tree: FakeSysfs) -> Machine:
    return fake_machine(tree)


def test_bound_for_a_run(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    with BoundForRun("mnfake1", machine=machine) as held:
        assert held.device.driver == tree.driver(NIC) == "uio_pci_generic"
        owner = load_all(tree.run)[NIC].owner
        assert owner is not None
        assert (owner.pid, owner.alive()) == (os.getpid(), True)
    assert tree.driver(NIC) == "e1000"
    assert load_all(tree.run) == {}
    held.close()


def test_two_runs_do_not_share_a_nic(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    with BoundForRun("mnfake1", machine=machine):
        why = f"process {os.getpid()} has bound it for its run"
        with pytest.raises(OSError, match=why):
            BoundForRun("mnfake1", machine=machine)
        with pytest.raises(OSError, match=why):
            bind("mnfake1", machine=machine)
        with pytest.raises(OSError, match=why):
            unbind("mnfake1", machine=machine)
        assert tree.driver(NIC) == "uio_pci_generic"
    assert tree.driver(NIC) == "e1000"


def test_a_nic_that_was_bound_before_stays_bound(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    bind("mnfake1", machine=machine)
    with BoundForRun("mnfake1", machine=machine):
        pass
    assert tree.driver(NIC) == "uio_pci_generic"


def test_what_a_run_left_behind_is_taken_over(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    bind("mnfake1", machine=machine)
    record = load_all(tree.run)[NIC]
    gone = dataclasses.replace(new_owner(), started=1)
    remember(dataclasses.replace(record, owner=gone), tree.run)
    target, held = prepare("mnfake1", bind=True, machine=machine)
    assert target.devargs == NIC
    assert held is not None
    held.close()
    assert tree.driver(NIC) == "e1000"


def test_what_somebody_has_open_is_not_taken_over(tree: FakeSysfs, machine: Machine) -> None:
    """Its owner may be a process of another container, where numbers are others."""
    tree.load("uio_pci_generic")
    bind("mnfake1", machine=machine)
    record = load_all(tree.run)[NIC]
    gone = dataclasses.replace(new_owner(), started=1)
    remember(dataclasses.replace(record, owner=gone), tree.run)
    (machine.node(machine.find("mnfake1")) / "uio/uio0").mkdir(parents=True)
    folder = Path(machine.proc) / "4711/fd"
    folder.mkdir(parents=True)
    (folder / "9").symlink_to("/dev/uio0")
    with pytest.raises(OSError, match="process 4711 has it open"):
        prepare("mnfake1", bind=True, machine=machine)
    assert load_all(tree.run)[NIC].owner == gone
    assert tree.driver(NIC) == "uio_pci_generic"


def test_prepare_binds_what_has_to_be_bound(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    with pytest.raises(OSError, match="`machnet nic bind mnfake1`"):
        prepare("mnfake1", machine=machine)
    target, held = prepare("mnfake1,a=b", bind=True, machine=machine)
    assert held is not None
    assert target.devargs == f"{NIC},a=b"
    held.close()
    assert tree.driver(NIC) == "e1000"


@pytest.mark.parametrize("rest", ["veth0", "net_null0", "net_af_packet7,iface=veth0"])
def test_prepare_binds_nothing_else(machine: Machine, rest: str) -> None:
    target, held = prepare(rest, bind=True, machine=machine, queues=2)
    assert held is None
    assert target == resolve(rest, sysfs=machine.sysfs, run=machine.run, queues=2)


def test_prepare_gives_back_what_can_not_be_used(tree: FakeSysfs, machine: Machine) -> None:
    tree.load("uio_pci_generic")
    with pytest.raises(ValueError, match="a name, and behind a comma"):
        prepare("mnfake1,", bind=True, machine=machine)
    assert tree.driver(NIC) == "e1000"


RUN = """
import json, os, sys, time
from machnet.dpdk.bind import Machine
from machnet.dpdk.forrun import BoundForRun
from machnet.dpdk.links import Links

class Fake(Links):
    def here(self, name):
        return True

told = json.loads(sys.argv[1])
held = BoundForRun("mnfake1", machine=Machine(**told["machine"], links=Fake()))
print(json.dumps({"pid": os.getpid(), "guardian": held._guardian.pid}), flush=True)
if told["fork"]:
    if os.fork() == 0:
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    os.close(0)
    time.sleep(1000)
sys.stdin.read()
if told["close"]:
    held.close()
"""


def runs(
    tree: FakeSysfs, *, close: bool = False, fork: bool = False
) -> tuple[subprocess.Popen[str], int]:
    """A process that has the NIC for its run, and its guardian."""
    told = {"machine": {"sysfs": tree.sysfs, "run": tree.run}, "close": close, "fork": fork}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    assert tree.driver(NIC) == "uio_pci_generic"
    return process, said["guardian"]


def given_back(tree: FakeSysfs) -> None:
    """Wait for it: nobody tells when another process has written a file of sysfs."""
    end = time.monotonic() + 30
    while tree.driver(NIC) != "e1000" or load_all(tree.run):
        assert time.monotonic() < end, "the NIC was not given back"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_gives_its_nic_back(tree: FakeSysfs, number: signal.Signals) -> None:
    tree.load("uio_pci_generic")
    process, guardian = runs(tree)
    # Ctrl-C and the end of a service reach the guardian, too; it goes on.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(guardian, each)
    process.send_signal(number)
    process.communicate()
    assert process.returncode == -number
    given_back(tree)


def test_a_run_that_ends_without_a_word_gives_its_nic_back(tree: FakeSysfs) -> None:
    tree.load("uio_pci_generic")
    process, _ = runs(tree)
    process.communicate()
    assert process.returncode == 0
    given_back(tree)


def test_a_forked_child_that_lives_on_does_not_keep_the_nic(tree: FakeSysfs) -> None:
    tree.load("uio_pci_generic")
    process, _ = runs(tree, fork=True)
    process.kill()
    process.wait()
    given_back(tree)  # the child still has all descriptors
    process.communicate()


def test_a_run_whose_guardian_was_killed_gives_its_nic_back_itself(tree: FakeSysfs) -> None:
    tree.load("uio_pci_generic")
    process, guardian = runs(tree, close=True)
    os.kill(guardian, signal.SIGKILL)
    process.communicate()
    assert process.returncode == 0
    given_back(tree)
