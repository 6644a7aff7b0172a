# SPDX-License-Identifier: MIT
"""EAL in processes of its own: with huge pages and without, several at once, and when it does not start."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dpdk_kit import Veth, need_root, sh

import machnet
from machnet.dpdk import eal

if TYPE_CHECKING:
    from collections.abc import Iterator

#: In front of what a process is to do.
BEGIN = """
import contextlib, errno, json, logging, os, sys
warned = []
class Keep(logging.Handler):
    def emit(self, record):
        warned.append(record.getMessage())
logging.getLogger("machnet.dpdk").addHandler(Keep(logging.WARNING))
from machnet import dpdk
from machnet.dpdk import EalError, eal
from machnet.testing.nic import NicHandle

def talk():
    one, two = dpdk.ring_pair()
    with contextlib.closing(one), contextlib.closing(two):
        a, b = NicHandle(one.native), NicHandle(two.native)
        for i in range(2000):
            a.send(i.to_bytes(60, "big"))
            assert b.recv() == i.to_bytes(60, "big")

def refused(call):
    try:
        call()
    except (OSError, ValueError, RuntimeError) as error:
        return [type(error).__name__, getattr(error, "errno", None), str(error)]
    raise AssertionError("it was not refused")

def tell(*what):
    print(json.dumps(what), flush=True)
"""


def process(
    code: str, settings: str = "", inside: tuple[str, ...] = (), **options
) -> subprocess.Popen[str]:
    environment = {**os.environ, "MACHNET_DPDK": settings}
    return subprocess.Popen(
        [*inside, sys.executable, "-c", BEGIN + code],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def ended(child: subprocess.Popen[str]) -> list:
    out, said = child.communicate(timeout=60)
    assert child.returncode == 0, said
    # EAL itself writes its usage where it likes.
    return json.loads(out.splitlines()[-1])


@pytest.fixture(autouse=True)
def _no_folders_left() -> Iterator[None]:
    yield
    # EAL leaves one for each prefix.
    for folder in Path("/run/dpdk").glob(f"mn{os.getpid()}*"):
        shutil.rmtree(folder)


def run(code: str, settings: str = "", **options) -> list:
    return ended(process(code, settings, **options))


MEMORY = """
talk()
memory = open("/proc/self/smaps").read()
tell(eal.settings().huge, "hugetlb" in memory or " ht" in memory, warned)
"""


def test_with_huge_pages():
    assert run(MEMORY, "huge=on,memory_mb=32") == ["on", True, []]


def test_without_huge_pages():
    assert run(MEMORY, "huge=off") == ["off", False, []]


def test_without_enough_huge_pages_there_is_one_warning():
    # Of pages that nobody has reserved there are none, in another sysfs too.
    code = "eal.free_huge_mb.__defaults__ = (eal.Path('/nowhere'),)\n"
    setting, huge, warned = run(code + MEMORY)
    assert (setting, huge) == ("auto", False)
    assert len(warned) == 1
    assert "0 MiB of huge pages are free" in warned[0]
    assert "vm.nr_hugepages" in warned[0]


def test_the_command_makes_the_pages_that_are_missing(tmp_path):
    from machnet.dpdk import eal

    lines = "HugePages_Total: 100\nHugePages_Free: 40\nHugepagesize: 2048 kB\n"
    (tmp_path / "meminfo").write_text(lines)
    said = [
        eal._more_pages(eal.EalSettings(memory_mb=mb), tmp_path) for mb in (None, 64, 101, 2048)
    ]
    assert said == [f"sysctl vm.nr_hugepages={pages}" for pages in (316, 100, 111, 1084)]


def test_files_of_huge_pages_where_there_is_no_place_for_them():
    need_root()
    inside = ("unshare", "-m", "sh", "-c", 'umount -a -t hugetlbfs; exec "$0" "$@"')
    prefix = f"file_prefix=mn{os.getpid()}c"
    _, huge, warned = run(MEMORY, prefix, inside=inside)
    assert not huge
    assert len(warned) == 1
    assert "mount -t hugetlbfs none /dev/hugepages" in warned[0]
    _, code, text = run("tell(*refused(talk))", f"huge=on,{prefix}", inside=inside)
    assert code == errno.ENOENT
    assert text.endswith("mount -t hugetlbfs none /dev/hugepages")


@pytest.mark.parametrize(
    "settings",
    [
        ("huge=off,file_prefix=mn{pid}a", "huge=off,file_prefix=mn{pid}b"),
        ("huge=on,memory_mb=32", "huge=on,memory_mb=32"),
    ],
    ids=["prefixes", "in memory"],
)
def test_two_processes_at_once(settings):
    code = "talk(); tell('up'); sys.stdin.read(); talk(); tell('done')"
    side_by_side(code, [one.format(pid=os.getpid()) for one in settings])


def side_by_side(code: str, settings: list[str]) -> None:
    children = [process(code, one) for one in settings]
    for child in children:
        line = child.stdout.readline()
        assert line == '["up"]\n', child.communicate()
    assert [ended(child) for child in children] == [["done"], ["done"]]


def test_two_prefixes_with_huge_pages_in_files(tmp_path):
    need_root()
    # Files of huge pages need a file system of huge pages.
    sh("mount", "-t", "hugetlbfs", "none", tmp_path)
    try:
        common = f"huge=on,memory_mb=32,args=--huge-dir+{tmp_path},file_prefix=mn{os.getpid()}"
        code = """
talk(); tell('up'); sys.stdin.read(); talk(); tell('done')
"""
        side_by_side(code, [f"{common}a", f"{common}b"])
    finally:
        sh("umount", tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("huge=maybe", 'MACHNET_DPDK: huge: \'maybe\' is not "auto", "on" or "off"'),
        ("huge", "MACHNET_DPDK: 'huge' is not of the form key=value"),
        ("memory_mb=much", "MACHNET_DPDK: memory_mb: 'much' is no number"),
        ("memory_mb=3", "memory_mb: 3 is not within 16 to 1048576"),
        ("file_prefix=a/b", "file_prefix: 'a/b' is not 1 to 63 letters"),
        ("cores=4000", "this process may not run on CPU 4000"),
        ("cores=x", "cores: 'x' is not of the form 0+1"),
        ("log_level=loud", "log_level: 'loud' is none of"),
        ("hugh=on", "DPDK has no setting 'hugh': did you mean 'huge'?"),
    ],
)
def test_a_wrong_setting(settings, said):
    with pytest.raises(ValueError, match="MACHNET_DPDK") as caught:
        eal._from_environment(settings)
    assert said in str(caught.value)


def test_settings_when_it_runs_already():
    kind, _, text = run(
        "dpdk.configure(huge='off'); talk(); dpdk.configure(huge='off')\n"
        "tell(*refused(lambda: dpdk.configure(huge='on')))"
    )
    assert kind == "RuntimeError"
    assert text.startswith("EAL runs already, with EalSettings(huge='off'")


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ("huge=off,args=--no-such-option", errno.EINVAL, "its arguments were"),
        ("huge=off,args=--help", errno.EINVAL, "it ends a process"),
        ("huge=on,memory_mb=900000", errno.ENOMEM, "free huge pages"),
    ],
)
def test_when_it_does_not_start_the_process_goes_on(settings, code, said):
    first, second, wire = run(
        "first, second = refused(talk), refused(talk)\n"
        "import machnet\n"
        "from machnet.sim import Wire\n"
        "with machnet.Stack(Wire(), ip='10.0.0.1/24') as stack: tell(first, second, str(stack.nic))",
        settings,
    )
    assert first[:2] == ["EalError", code]
    assert said in first[2]
    assert second[:2] == ["EalError", code]
    assert "only a new process can start EAL again: EAL did not start" in second[2]
    assert wire == "wire"


ABSENT = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "machnet._dpdk":
            raise {error}
sys.meta_path.insert(0, Finder())
from machnet.stack.nics import open_nic
tell(dpdk.available(), dpdk.missing_reason(), refused(lambda: open_nic("dpdk:net_null0")))
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ModuleNotFoundError(name)", "built without DPDK: install libdpdk-dev and dpdk-dev"),
        (
            "ImportError('librte_eal.so.23: cannot open')",
            "librte_eal.so.23: cannot open; install dpdk",
        ),
    ],
)
def test_when_it_is_not_there(error, said):
    there, why, (_, code, text) = run(ABSENT.format(error=error))
    assert not there
    assert said in why
    assert code == errno.ENOSYS
    assert said in text


class TestWithoutPermission:
    """Nobody's process."""

    NOBODY = 65534

    def run(self, code: str, settings: str = "huge=off") -> list:
        need_root()
        # What is imported later may lie where nobody must not look.
        become = "import machnet.dpdk.port, machnet.dpdk.forrun, machnet.dpdk.bind, machnet._dpdk\n"
        become += f"os.setgroups([]); os.setgid({self.NOBODY}); os.setuid({self.NOBODY})\n"
        return run(become + code, settings)

    def test_memory_is_enough(self):
        assert self.run("talk(); dpdk.open_port('net_null0').close(); tell(warned)") == [[]]

    def test_a_packet_socket_is_not_allowed(self):
        pair = Veth()
        try:
            code = f"tell(*refused(lambda: dpdk.open_port('{pair.name}'))); talk()"
            kind, code, text = self.run(code)
        finally:
            pair.close()
        assert (kind, code) == ("EalError", errno.EPERM)
        assert "CAP_NET_RAW" in text


def test_the_version():
    module = eal.start()
    assert module.ffi.string(module.lib.mn_dpdk_version()).startswith(b"DPDK 2")
    assert machnet.__version__
