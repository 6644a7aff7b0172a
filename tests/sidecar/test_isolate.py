# SPDX-License-Identifier: MIT
"""``machnet run --isolate``: what is said of made-up machines, and what is done on this one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dpdk_kit import need_dpdk
from sidecar import Sidecar

from machnet.sidecar.config import NicConfig
from machnet.sidecar.isolate import Item, engine_cpus, look, render
from machnet.sidecar.machine import parse_ranges, ranges
from machnet.sidecar.measures import Measures
from machnet.stack.cpus import usable_cpus

EIGHT = frozenset(range(8))
PCI = "sys/devices/pci0000:40/0000:40:01.0/0000:41:00.0"


class Tree:
    """A machine of eight CPUs on two nodes, with nothing that would disturb engines on 2 and 3."""

    def __init__(self, root: Path) -> None:
        self.root = root
        cpu = "sys/devices/system/cpu"
        self.write(f"{cpu}/online", "0-7")
        self.write(f"{cpu}/isolated", "2-3")
        self.write(f"{cpu}/nohz_full", "2-3")
        for number in range(8):
            self.write(f"{cpu}/cpu{number}/topology/thread_siblings_list", str(number))
            self.write(f"{cpu}/cpu{number}/cpufreq/scaling_governor", "performance")
            self.write(f"{cpu}/cpu{number}/cpuidle/state0/latency", "0")
            self.write(f"{cpu}/cpu{number}/cpuidle/state0/name", "POLL")
        for node, listed in ((0, "0-3"), (1, "4-7")):
            place = f"sys/devices/system/node/node{node}"
            self.write(f"{place}/cpulist", listed)
            self.write(f"{place}/hugepages/hugepages-2048kB/free_hugepages", "512")
        clock = "sys/devices/system/clocksource/clocksource0"
        self.write(f"{clock}/current_clocksource", "tsc")
        self.write(f"{clock}/available_clocksource", "tsc hpet acpi_pm")
        self.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
        for name in ("timer_migration", "nmi_watchdog", "numa_balancing"):
            self.write(f"proc/sys/kernel/{name}", "0")
        self.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority")
        self.write("proc/cmdline", "quiet isolcpus=managed_irq,domain,2-3 nohz_full=2-3")
        self.write("proc/cpuinfo", "vendor_id : GenuineIntel\nflags\t\t: fpu tsc")
        self.interrupt(30, "eth0-rx", "0-1,4-7")
        self.interrupt(31, None, "0-7")
        (root / "sys/kernel/iommu_groups/7").mkdir(parents=True)
        self.write(f"{PCI}/numa_node", "0")
        self.write(f"{PCI}/class", "0x020000")
        self.link(f"{PCI}/subsystem", "sys/bus/pci")
        self.link(f"{PCI}/driver", "sys/bus/pci/drivers/ixgbe")
        self.write(f"{PCI}/net/eth1/address", "02:00:00:00:00:07")
        self.link("sys/class/net/eth1", f"{PCI}/net/eth1")
        self.link(f"{PCI}/net/eth1/device", PCI)
        self.link("sys/bus/pci/devices/0000:41:00.0", PCI)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def link(self, path: str, to: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(self.root / to)

    def interrupt(self, number: int, name: str | None, cpus: str) -> None:
        self.write(f"proc/irq/{number}/smp_affinity_list", cpus)
        if name is not None:
            (self.root / f"proc/irq/{number}/{name}").mkdir()

    def item(self, name: str, *nics: NicConfig) -> Item:
        found = {item.name: item for item in look(nics or (nic(),), self.root, EIGHT)}
        return found[name]


def nic(string: str = "dpdk:eth1", **more: object) -> NicConfig:
    options = {"cpu_mask": "0xc", "engine_threads": 2, "poll": "busy", **more}
    return NicConfig(ip="10.0.0.2", nic=string, **options)  # type: ignore[arg-type]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize("cpus", ["", "0", "0-7", "0,2-5,9"])
def test_cpus_are_written_as_the_kernel_reads_them(cpus: str) -> None:
    assert ranges(parse_ranges(cpus)) == cpus
    assert parse_ranges(f"managed_irq,domain,{cpus}\n") == parse_ranges(cpus)


def test_a_machine_that_has_all_of_it_lacks_nothing(tree: Tree) -> None:
    items = look((nic(),), tree.root, EIGHT)
    assert {item.state for item in items} == {"ok"}
    assert not any(item.remedy for item in items)
    assert list(render(items))[-1] == "nothing is missing"


CPU = "sys/devices/system/cpu"
#: A file that is otherwise; the item that is missing then; what is said of it and of its remedy.
WRONG = [
    (f"{CPU}/isolated", "2", "isolated", "on CPU 3", "isolcpus=managed_irq,domain,2-3"),
    (f"{CPU}/isolated", "", "isolated", "on CPU 2-3", "isolcpus=managed_irq,domain,2-3"),
    (f"{CPU}/nohz_full", "(null)", "tick", "CPU 2-3", "nohz_full=2-3"),
    (f"{CPU}/nohz_full", "3", "rcu", "on CPU 2", "rcu_nocbs=2-3"),
    (f"{CPU}/cpu3/cpufreq/scaling_governor", "powersave", "governor", "CPU 3: powersave", "-c 3 "),
    (f"{CPU}/cpu2/cpuidle/state0/latency", "133", "c-states", "takes 133 us", "--isolate"),
    (f"{CPU}/cpu2/topology/thread_siblings_list", "2,6", "smt", "CPU 6 shares", "for c in 6;"),
    (f"{CPU}/cpu2/topology/thread_siblings_list", "2-3", "smt", "CPU 3 of", "one CPU of each"),
    ("proc/irq/30/smp_affinity_list", "0-7", "irqs", "interrupts 30", "irqaffinity=0-1,4-7;"),
    ("proc/88/comm", "irqbalance", "irqbalance", None, None),
    ("proc/swaps", "Filename\n/dev/sda2 partition 8 0 -2", "swap", "/dev/sda2", "swapoff"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "[always] never", "thp", "for all", "madvise"),
    ("proc/sys/kernel/timer_migration", "1", "timer_migration", "on", "kernel.timer_migration=0"),
    ("proc/sys/kernel/numa_balancing", "1", "numa_balancing", "on", "kernel.numa_balancing=0"),
    (f"{PCI}/numa_node", "1", "numa", "CPU 2-3 is not", "among 4-7"),
    (
        "sys/devices/system/clocksource/clocksource0/current_clocksource",
        "hpet",
        "clock",
        "hpet",
        "echo tsc > /sys/devices/system/clocksource",
    ),
    (
        "sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages",
        "0",
        "huge pages",
        "node 0",
        "for n in 0;",
    ),
]


@pytest.mark.parametrize(("path", "text", "name", "found", "remedy"), WRONG)
def test_each_thing_that_is_wrong_is_named_with_its_remedy(
    tree: Tree, path: str, text: str, name: str, found: str | None, remedy: str | None
) -> None:
    tree.write(path, text)
    item = tree.item(name)
    if found is None:
        assert item.state == "ok"  # irqbalance keeps off isolated CPUs by itself
        return
    assert item.state == "missing"
    assert found in item.found
    assert remedy is not None
    assert remedy in item.remedy


def test_engines_without_a_mask_are_proposed_cpus_and_the_rest_is_about_these(tree: Tree) -> None:
    item = tree.item("pinned", nic(cpu_mask=None))
    assert item.state == "missing"
    assert '"cpu_mask": "0xc"' in item.remedy  # the isolated ones
    assert tree.item("isolated", nic(cpu_mask=None)).state == "ok"
    tree.write(f"{CPU}/isolated", "")
    assert '"cpu_mask": "0xc0"' in tree.item("pinned", nic(cpu_mask=None)).remedy  # not CPU 0


def test_engines_of_two_nics_on_one_cpu_are_told(tree: Tree) -> None:
    item = tree.item("pinned", nic("dpdk:eth1"), nic("tap:mn0", engine_threads=1))
    assert (item.state, item.found) == ("missing", "several engines are on CPU 2")


def test_more_engines_than_cpus_but_one_are_too_many(tree: Tree) -> None:
    item = tree.item("pinned", nic(engine_threads=8, cpu_mask="0xff"))
    assert (item.state, item.remedy) == ("missing", "at most 7 engines (engine_threads)")


def test_engines_that_sleep_are_told(tree: Tree) -> None:
    item = tree.item("polling", nic(poll="adaptive"))
    assert (item.state, item.remedy) == ("missing", '"poll": "busy" (--poll busy)')


def test_irqbalance_without_isolated_cpus_is_told_which_to_leave_alone(tree: Tree) -> None:
    tree.write("proc/88/comm", "irqbalance")
    tree.write(f"{CPU}/isolated", "")
    tree.write(f"{CPU}/nohz_full", "")
    item = tree.item("irqbalance")
    assert item.state == "missing"
    assert "IRQBALANCE_BANNED_CPULIST=2-3" in item.remedy


def test_an_iommu_that_is_off_is_missing_on_hardware_and_unknown_in_a_guest(tree: Tree) -> None:
    (tree.root / "sys/kernel/iommu_groups/7").rmdir()
    assert "intel_iommu=on" in tree.item("iommu").remedy
    tree.write("proc/cpuinfo", "vendor_id : AuthenticAMD\nflags : fpu")
    assert "amd_iommu=on" in tree.item("iommu").remedy
    tree.write("proc/cpuinfo", "vendor_id : AuthenticAMD\nflags : fpu hypervisor")
    assert tree.item("iommu").state == "unknown"


def test_a_guest_is_told_what_its_host_decides(tree: Tree) -> None:
    tree.write("proc/cpuinfo", "flags : fpu hypervisor")
    tree.write("proc/stat", "cpu  100 0 100 700 0 0 0 100 0 0")
    (tree.root / f"{CPU}/cpu2/cpufreq/scaling_governor").unlink()
    assert "10.0 %" in tree.item("host").found
    assert "host decides" in tree.item("governor").found


@pytest.mark.parametrize("name", ["eth1", "0000:41:00.0", "02:00:00:00:00:07"])
def test_the_node_of_a_nic_is_found_by_any_of_its_names(tree: Tree, name: str) -> None:
    tree.write(f"{PCI}/numa_node", "1")
    assert tree.item("numa", nic(f"dpdk:{name}")).state == "missing"
    assert tree.item("numa", nic(name)).state == "missing"  # a bare name means DPDK


def test_a_nic_that_the_kernel_keeps_wants_no_iommu(tree: Tree) -> None:
    (tree.root / f"{PCI}/driver").unlink()
    tree.link(f"{PCI}/driver", "sys/bus/pci/drivers/mlx5_core")
    names = {item.name for item in look((nic("dpdk:eth1"),), tree.root, EIGHT)}
    assert "numa" in names
    assert "iommu" not in names


def test_a_virtual_device_has_no_node(tree: Tree) -> None:
    item = tree.item("numa", nic("dpdk:net_af_packet0,iface=veth0"))
    assert (item.state, item.remedy) == ("unknown", "")


def test_a_nic_that_is_not_dpdks_wants_no_huge_pages_and_no_iommu(tree: Tree) -> None:
    items = {item.name: item for item in look((nic("tap:mn0"),), tree.root, EIGHT)}
    assert items["huge pages"].state == "unknown"
    assert not {"iommu", "numa"} & items.keys()


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    items = look((nic(),), tmp_path, EIGHT)
    lacking = {item.name for item in items if item.state == "missing"}
    assert lacking == {"nic", "isolated", "rcu"}


@pytest.mark.parametrize("name", ["eth9", "net_af_packet0,iface=eth9", "02:00:00:00:00:99"])
def test_a_nic_that_is_not_there_is_missing(tree: Tree, name: str) -> None:
    item = tree.item("nic", nic(f"dpdk:{name}?loss=1%"))
    assert item.state == "missing"
    assert re.search(r"no NIC .*(eth9|:99).* There are .*eth1", item.found)
    assert tree.item("nic").found == "dpdk:eth1 is there"
    for made in ("dpdk:net_null0", "net_pcap0,rx_pcap=x"):
        assert tree.item("nic", nic(made)).state == "ok"


def test_check_says_that_there_is_no_such_nic() -> None:
    need_dpdk()
    done = _run("--isolate=check", "--nic=eth99")
    assert done.returncode == 1
    assert done.stdout.startswith("missing  nic ")
    assert "there is no NIC 'eth99'" in done.stdout


def test_a_limit_that_another_process_holds_is_seen(tree: Tree) -> None:
    tree.write(f"{CPU}/cpu2/cpuidle/state0/latency", "133")
    (tree.root / "dev").mkdir()
    (tree.root / "dev/cpu_dma_latency").write_bytes((0).to_bytes(4, sys.byteorder))
    assert tree.item("c-states").state == "ok"


# ---- measures, and the whole command -------------------------------------------------------------


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_cpus_are_held_awake_until_the_end(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    device = tmp_path / "dev/cpu_dma_latency"
    device.write_bytes((2_000_000_000).to_bytes(4, sys.byteorder))
    before = _descriptors()
    with Measures(tmp_path) as measures:
        assert measures.take()[0].state == "ok"
        assert device.read_bytes() == bytes(4)
        assert _descriptors() == before + 1
    assert _descriptors() == before


def test_a_device_that_is_not_there_is_told(tmp_path: Path) -> None:
    with Measures(tmp_path) as measures:
        item = measures.take()[0]
    assert item.state == "missing"
    assert "root" in item.remedy


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "machnet.cli.run", "--ip=10.0.0.2", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_check_prints_and_starts_nothing(tmp_path: Path) -> None:
    done = _run("--isolate=check", f"--nic=link:{tmp_path}/cable")
    assert done.returncode == 1, done.stderr
    assert '"cpu_mask": "0x' in done.stdout
    assert not list(tmp_path.iterdir())


def test_check_as_json(tmp_path: Path) -> None:
    done = _run("--isolate=check", f"--nic=link:{tmp_path}/cable", "--log-format=json")
    report = json.loads(done.stdout)
    missing = [item for item in report["items"] if item["state"] == "missing"]
    assert report["missing"] == len(missing)
    assert all(item["remedy"] for item in missing)


def test_what_is_accepted_is_said_and_another_option_is_no_value(tmp_path: Path) -> None:
    assert "'run', 'check'" in _run("--isolate=yes", f"--nic=link:{tmp_path}/cable").stderr
    done = _run("-isolate", "-kernel-ip=10.0.0.1/24", f"--nic=link:{tmp_path}/cable")
    assert "only a TAP device has an end in the kernel" in done.stderr


@pytest.fixture
def isolated(tmp_path: Path) -> Iterator[Sidecar]:
    # The report is on standard output, which is the log here; another option follows.
    mask = hex(1 << max(usable_cpus()))
    nics = {"02:00:00:00:00:01": {"ip": "10.0.0.2", "nic": f"link:{tmp_path}/cable"}}
    nics["02:00:00:00:00:01"]["cpu_mask"] = mask
    file = tmp_path / "machnet.json"
    # What is said of the engines' CPUs is still right when the process keeps off them.
    dpdk = {"cores": sorted(usable_cpus())}
    file.write_text(json.dumps({"machnet_config": nics, "dpdk": dpdk}))
    with Sidecar(None, "", "--isolate", f"--config={file}") as sidecar:
        yield sidecar


def _affinities(pid: int) -> list[set[int]]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            found.append(os.sched_getaffinity(int(task.name)))
    return found


def test_a_sidecar_keeps_off_its_engines_and_can_still_be_reloaded(isolated: Sidecar) -> None:
    cpus = usable_cpus()
    if len(cpus) == 1:
        pytest.skip("one CPU: there is none without an engine")
    assert "pinned" in isolated.log()
    assert "missing  isolated" in isolated.log() or "ok       isolated" in isolated.log()
    engine = {max(cpus)}
    affinities = _affinities(isolated.pid)
    assert affinities.count(engine) == 1
    assert all(may == cpus - engine for may in affinities if may != engine)
    isolated.send_signal(1)
    assert "reload_failed" not in isolated.wait_log("info reload ")


def test_the_measures_of_this_machine_are_told(isolated: Sidecar) -> None:
    status = Path(f"/proc/{isolated.pid}/status").read_text()
    locked = next(line for line in status.splitlines() if line.startswith("VmLck:"))
    assert ("ok       locked" in isolated.log()) == (int(locked.split()[1]) > 0)
    assert " awake " in isolated.log()


def test_engines_of_a_nic_are_on_the_cpus_of_its_mask() -> None:
    assert engine_cpus((nic(), nic("tap:mn0", cpu_mask=None)), EIGHT) == [[2, 3], []]


def test_the_page_has_every_item(tree: Tree, repo: Path) -> None:
    page = (repo / "docs" / "sidecar.md").read_text(encoding="utf-8")
    table = page.split("\n## Latency\n")[1].split("\n## ")[0].split("| --- | --- | --- |\n")[1]
    named = [
        name
        for row in table.splitlines()
        if row[:1] == "|"
        for name in row[2:].split(" |")[0].split(", ")
    ]
    tree.write("proc/cpuinfo", "flags : fpu hypervisor")
    assert sorted(named) == sorted({item.name for item in look((nic(),), tree.root, EIGHT)})
