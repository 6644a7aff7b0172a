# SPDX-License-Identifier: MIT
"""``machnet prune``: what killed processes have left goes, what living ones have stays."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_sysfs import FakeSysfs, Reacting, fake_machine

from machnet.cli.prune import main
from machnet.dpdk.bind import Machine, bind
from machnet.dpdk.records import Owner, load_all, new_owner, remember
from machnet.leftovers import run_directory
from machnet.sidecar.listen import ControlSocket

NIC = "0000:00:05.0"

LEAVE = """
import os, signal, sys
from machnet.leftovers import run_directory
from machnet.sidecar.listen import ControlSocket
made = run_directory("demo")
sock = ControlSocket(sys.argv[1], 0o600)
print(made.name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSysfs]:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "machine").mkdir()
    made = FakeSysfs(tmp_path / "machine")
    made.pci(NIC, "e1000", "eth1", "52:54:00:00:00:02")
    with Reacting(made):
        yield made


@pytest.fixture
def machine(tree: FakeSysfs) -> Machine:
    return fake_machine(tree)


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    made = tmp_path / "sockets"
    made.mkdir()
    return made


def prune(machine: Machine, sockets: Path, *args: str) -> Result:
    return CliRunner().invoke(main, [f"--socket_dir={sockets}", *args], obj=machine)


def killed(path: Path) -> str:
    """A process with a socket and a directory, killed; the directory."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVE, str(path)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -9
    return done.stdout.strip()


def test_nothing_was_left(machine: Machine, sockets: Path) -> None:
    for folder in (sockets, sockets / "nosuch"):
        done = prune(machine, folder)
        assert (done.exit_code, done.output) == (0, "Nothing was left.\n")


def test_what_a_killed_process_left(machine: Machine, sockets: Path) -> None:
    left = killed(sockets / "a.sock")
    assert Path(left).is_dir()
    wanted = [f"socket {sockets / 'a.sock'}", f"directory {left}"]
    for _ in range(2):
        done = prune(machine, sockets, "--dry_run")
        assert done.output.splitlines() == [f"left: {what}" for what in wanted]
    done = prune(machine, sockets)
    assert (done.exit_code, done.output.splitlines()) == (
        0,
        [f"removed: {what}" for what in wanted],
    )
    assert not (sockets / "a.sock").exists()
    assert not Path(left).exists()
    assert prune(machine, sockets).output == "Nothing was left.\n"
    with ControlSocket(str(sockets / "a.sock"), 0o600):
        pass


def test_what_the_living_have_stays(machine: Machine, sockets: Path) -> None:
    (sockets / "file").write_text("mine")
    with (
        ControlSocket(str(sockets / "served.sock"), 0o600),
        socket.socket(socket.AF_UNIX) as other,
        run_directory("demo") as mine,
    ):
        other.bind(str(sockets / "stream.sock"))
        other.listen()
        others = Path(tempfile.gettempdir()) / "machnet-notes"
        others.mkdir()
        assert prune(machine, sockets).output == "Nothing was left.\n"
        assert Path(mine).is_dir()
        assert others.is_dir()
        assert sorted(path.name for path in sockets.iterdir()) == [
            "file",
            "served.sock",
            "served.sock.lock",
            "stream.sock",
        ]


def test_a_nic_that_was_bound_for_a_run(tree: FakeSysfs, machine: Machine, sockets: Path) -> None:
    tree.load("uio_pci_generic")
    bind("eth1", owner=new_owner(), machine=machine)
    assert prune(machine, sockets).output == "Nothing was left.\n"
    record = load_all(machine.run)[NIC]
    # A process of this number, that has not started when the owner did.
    remember(dataclasses.replace(record, owner=Owner(os.getpid(), 1)), machine.run)
    done = prune(machine, sockets)
    assert done.exit_code == 0, done.output
    assert done.output == f"removed: {NIC}, bound to uio_pci_generic for a run that has ended\n"
    assert load_all(machine.run) == {}
    assert tree.driver(NIC) == "e1000"


def test_what_can_not_be_removed(machine: Machine, sockets: Path) -> None:
    killed(sockets / "a.sock")
    (sockets / "a.sock.lock").unlink()
    (sockets / "a.sock.lock").mkdir()
    done = prune(machine, sockets)
    assert done.exit_code == 1
    assert f"machnet prune: socket {sockets / 'a.sock'}: Is a directory" in done.output
    assert (sockets / "a.sock").exists()
