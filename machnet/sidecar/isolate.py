# SPDX-License-Identifier: MIT
"""What a machine lacks for engines that nothing disturbs, and what a sidecar itself can do about it.

`look` reads sysfs and procfs and changes nothing; what the sidecar does is in `measures`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from machnet.sidecar.machine import Machine, parse_ranges, ranges
from machnet.stack.cpus import usable_cpus

if TYPE_CHECKING:
    from machnet.dpdk.devices import Device
    from machnet.sidecar.config import NicConfig

__all__ = ["Item", "as_json", "engine_cpus", "look", "render"]

State = Literal["ok", "missing", "unknown"]

_CPU = "sys/devices/system/cpu"
#: Clocks that are read without a system call, by the vDSO (Linux: tools/testing/selftests/vDSO).
_FAST_CLOCKS = frozenset({"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"})
#: States of a NIC that DPDK has, or is to have, for itself.
_HANDED_OVER = frozenset({"kernel", "userspace", "none"})


@dataclass(frozen=True)
class Item:
    """One thing that matters for latency.

    Attributes:
        name: What it is.
        state: "ok"; "missing"; "unknown": it does not apply here, or this machine can't tell.
        found: What is there.
        remedy: What to do about it: a command, or a word for the kernel's command line.
    """

    name: str
    state: State
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Engines:
    """Where the engines run, or should.

    Attributes:
        cpus: The CPU of each engine, or one that is proposed for it.
        pinned: Whether all of them have it by ``cpu_mask``.
        nodes: NICs by DPDK string and their engines' CPUs.
    """

    cpus: tuple[int, ...]
    pinned: bool
    nics: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def text(self) -> str:
        """The CPUs, as the kernel writes them."""
        return ranges(set(self.cpus))


def engine_cpus(nics: Sequence[NicConfig], allowed: frozenset[int]) -> list[list[int]]:
    """The CPUs of each NIC's engines; empty: they have none of their own."""
    return [nic.cpus(allowed)[: nic.engine_threads] for nic in nics]


def plan(nics: Sequence[NicConfig], machine: Machine, allowed: frozenset[int]) -> Engines:
    """Where engines are pinned; for those that are not, CPUs that would do."""
    given = engine_cpus(nics, allowed)
    used = {cpu for cpus in given for cpu in cpus}
    isolated = machine.cpus(f"{_CPU}/isolated") or frozenset()
    # Isolated ones first, then the last ones: CPU 0 has work of its own.
    free = sorted(allowed - used, key=lambda cpu: (cpu not in isolated, -cpu))
    found: list[int] = []
    by_nic = []
    for nic, cpus in zip(nics, given, strict=True):
        mine = list(cpus)
        while len(mine) < nic.engine_threads and free:
            mine.append(free.pop(0))
        found += mine
        if (name := _dpdk_name(nic.nic, nic.mac)) is not None:
            by_nic.append((name, tuple(mine)))
    return Engines(tuple(found), all(given), tuple(by_nic))


def _dpdk_name(text: str, mac: str | None) -> str | None:
    """What a NIC string names to DPDK; None: it means another driver."""
    text = text.partition("?")[0]
    if not text:
        return mac
    scheme, colon, rest = text.partition(":")
    if scheme == "dpdk" and colon:
        text = rest
    elif colon and re.fullmatch(r"tap|link|wire|pcap", scheme):
        return None
    return text.partition(",")[0]  # device arguments are behind it


def look(
    nics: Sequence[NicConfig],
    root: str | os.PathLike[str] = "/",
    allowed: frozenset[int] | None = None,
) -> list[Item]:
    """What this machine has and lacks for the engines of these NICs.

    Args:
        nics: As they are to be run.
        root: Where ``sys`` and ``proc`` are.
        allowed: CPUs that this process may use; None: those that it may.
    """
    machine = Machine(root)
    if allowed is None:
        allowed = usable_cpus()
    engines = plan(nics, machine, allowed)
    return [item for check in _CHECKS for item in check(machine, nics, engines, allowed)]


_Check = Callable[[Machine, "Sequence[NicConfig]", Engines, frozenset[int]], Iterator[Item]]


def _mask(cpus: Sequence[int]) -> str:
    return hex(sum(1 << cpu for cpu in set(cpus)))


def _pinning(
    machine: Machine, nics: Sequence[NicConfig], engines: Engines, allowed: frozenset[int]
) -> Iterator[Item]:
    wanted = sum(nic.engine_threads for nic in nics)
    online = machine.cpus(f"{_CPU}/online") or allowed
    given = [cpu for cpus in engine_cpus(nics, allowed) for cpu in cpus]
    twice = sorted({cpu for cpu in given if given.count(cpu) > 1})
    if wanted >= len(online):
        yield Item(
            "pinned",
            "missing",
            f"{wanted} engines on {len(online)} CPUs leave none for the rest of the machine",
            f"at most {len(online) - 1} engines (engine_threads)"
            if len(online) > 1
            else "more CPUs",
        )
    elif twice:
        yield Item(
            "pinned",
            "missing",
            f"several engines are on CPU {ranges(twice)}",
            "a cpu_mask for each NIC that has no CPU of another one",
        )
    elif not engines.pinned:
        yield Item(
            "pinned",
            "missing",
            "engines have no CPUs of their own",
            f'"cpu_mask": "{_mask(engines.cpus)}" (--cpu_mask {_mask(engines.cpus)}); what follows is '
            "about these CPUs",
        )
    else:
        yield Item("pinned", "ok", f"engines on CPU {engines.text}")
    adaptive = [nic.label for nic in nics if nic.poll != "busy"]
    if adaptive:
        yield Item(
            "polling",
            "missing",
            f"{', '.join(adaptive)}: engines sleep when idle, and take tens of us to wake",
            '"poll": "busy" (--poll busy)',
        )
    else:
        yield Item("polling", "ok", "engines never sleep")


def _isolation(
    machine: Machine, _nics: Sequence[NicConfig], engines: Engines, _allowed: frozenset[int]
) -> Iterator[Item]:
    cpus, listed = set(engines.cpus), engines.text
    isolated = (machine.cpus(f"{_CPU}/isolated") or frozenset()) | (
        machine.cpus("sys/fs/cgroup/cpuset.cpus.isolated") or frozenset()
    )
    if cpus <= isolated:
        yield Item("isolated", "ok", f"the scheduler leaves CPU {listed} alone")
    else:
        yield Item(
            "isolated",
            "missing",
            f"the scheduler puts other threads on CPU {ranges(cpus - isolated)}",
            f"boot with isolcpus=managed_irq,domain,{listed}",
        )
    tickless = machine.cpus(f"{_CPU}/nohz_full")
    if tickless is None:
        yield Item("tick", "unknown", "this kernel has no nohz_full: the tick goes on in engines")
    elif cpus <= tickless:
        yield Item("tick", "ok", f"no tick on CPU {listed} while one thread runs there")
    else:
        yield Item(
            "tick",
            "missing",
            f"the tick interrupts CPU {ranges(cpus - tickless)} up to 1000 times a second",
            f"boot with nohz_full={listed}",
        )
    # nohz_full takes callbacks along (Linux: Documentation/admin-guide/kernel-parameters.txt).
    word = machine.boot_word("rcu_nocbs")
    everywhere = word is not None and word in {"", "all"}
    offloaded = parse_ranges(word or "") | (tickless or frozenset())
    if everywhere or cpus <= offloaded:
        yield Item("rcu", "ok", f"RCU callbacks of CPU {listed} run elsewhere")
    else:
        yield Item(
            "rcu",
            "missing",
            f"RCU callbacks run on CPU {ranges(cpus - offloaded)}",
            f"boot with rcu_nocbs={listed}",
        )


def _power(
    machine: Machine, _nics: Sequence[NicConfig], engines: Engines, _allowed: frozenset[int]
) -> Iterator[Item]:
    governors = {
        cpu: machine.text(f"{_CPU}/cpu{cpu}/cpufreq/scaling_governor")
        for cpu in sorted(set(engines.cpus))
    }
    slow = {cpu: word for cpu, word in governors.items() if word not in {None, "performance"}}
    if slow:
        yield Item(
            "governor",
            "missing",
            ", ".join(f"CPU {cpu}: {word}" for cpu, word in slow.items()),
            f"cpupower -c {ranges(set(slow))} frequency-set -g performance",
        )
    elif None in governors.values():
        whose = ": the hypervisor's host decides" if machine.is_virtual() else ""
        yield Item("governor", "unknown", f"the kernel does not set the CPUs' frequency{whose}")
    else:
        yield Item("governor", "ok", "performance")
    deepest = max((_exit_us(machine, cpu) for cpu in set(engines.cpus)), default=(0, ""))
    if not machine.names(f"{_CPU}/cpu{min(engines.cpus, default=0)}/cpuidle", "state*"):
        whose = ": the hypervisor's host decides" if machine.is_virtual() else ""
        yield Item("c-states", "unknown", f"the kernel does not choose idle states{whose}")
    elif (limit := machine.latency_limit_us()) is not None and limit <= 1:
        yield Item("c-states", "ok", f"CPUs are held to {limit} us to wake")
    elif deepest[0] > 1:
        yield Item(
            "c-states",
            "missing",
            f"leaving {deepest[1]} takes {deepest[0]} us",
            "machnet run --isolate, as root, holds CPUs awake while it runs; "
            "or boot with intel_idle.max_cstate=0 processor.max_cstate=1",
        )
    else:
        yield Item("c-states", "ok", "none that takes more than 1 us to leave")


def _exit_us(machine: Machine, cpu: int) -> tuple[int, str]:
    """The longest exit latency of a CPU's idle states, us, and that state's name."""
    states = []
    for state in machine.names(f"{_CPU}/cpu{cpu}/cpuidle", "state*"):
        place = f"{_CPU}/cpu{cpu}/cpuidle/{state}"
        if machine.number(f"{place}/disable") in {None, 0}:
            states.append((machine.number(f"{place}/latency") or 0, machine.text(f"{place}/name")))
    worst = max(states, key=lambda state: state[0], default=(0, ""))
    return worst[0], worst[1] or ""


def _siblings(
    machine: Machine, _nics: Sequence[NicConfig], engines: Engines, _allowed: frozenset[int]
) -> Iterator[Item]:
    mine = set(engines.cpus)
    online = machine.cpus(f"{_CPU}/online") or frozenset()
    known, shared = False, frozenset[int]()
    for cpu in mine:
        siblings = machine.cpus(f"{_CPU}/cpu{cpu}/topology/thread_siblings_list")
        known = known or siblings is not None
        shared |= ((siblings or frozenset()) & online) - {cpu}
    if not known:
        yield Item("smt", "unknown", "the kernel does not say which CPUs share a core")
    elif shared & mine:
        yield Item(
            "smt",
            "missing",
            f"CPU {ranges(shared & mine)} of engines share their core with one another",
            "a cpu_mask with one CPU of each core",
        )
    elif shared:
        off = " ".join(str(cpu) for cpu in sorted(shared))
        yield Item(
            "smt",
            "missing",
            f"CPU {ranges(shared)} shares a core with an engine",
            f"for c in {off}; do echo 0 > /sys/devices/system/cpu/cpu$c/online; done",
        )
    else:
        yield Item("smt", "ok", "engines have their cores for themselves")


def _interrupts(
    machine: Machine, _nics: Sequence[NicConfig], engines: Engines, allowed: frozenset[int]
) -> Iterator[Item]:
    mine = set(engines.cpus)
    online = machine.cpus(f"{_CPU}/online") or allowed
    there = []
    for irq in machine.names("proc/irq", "[0-9]*"):
        cpus = machine.cpus(f"proc/irq/{irq}/effective_affinity_list")
        if not cpus:  # not in use, or an old kernel
            cpus = machine.cpus(f"proc/irq/{irq}/smp_affinity_list") or frozenset()
        if cpus & mine and machine.in_use(irq):
            there.append(int(irq))
    rest = ranges(online - mine)
    if there and rest:
        yield Item(
            "irqs",
            "missing",
            f"CPU {engines.text} handles interrupts {ranges(there)}",
            f"boot with irqaffinity={rest}; now: for i in "
            f"{' '.join(map(str, sorted(there)))}; do echo {rest} > /proc/irq/$i/smp_affinity_list; done "
            "(what the kernel manages itself refuses)",
        )
    elif there:
        yield Item("irqs", "missing", "there is no CPU without an engine", "more CPUs")
    else:
        yield Item("irqs", "ok", f"no device interrupts CPU {engines.text}")
    isolated = (machine.cpus(f"{_CPU}/isolated") or frozenset()) | (
        machine.cpus(f"{_CPU}/nohz_full") or frozenset()
    )
    if not machine.running("irqbalance"):
        yield Item("irqbalance", "ok", "does not run")
    elif mine <= isolated:
        yield Item("irqbalance", "ok", "runs, and leaves isolated CPUs alone")
    else:
        yield Item(
            "irqbalance",
            "missing",
            f"runs, and moves interrupts to CPU {ranges(mine - isolated)}",
            f"IRQBALANCE_BANNED_CPULIST={engines.text} in /etc/default/irqbalance, "
            "then systemctl restart irqbalance",
        )


def _clock(
    machine: Machine, _nics: Sequence[NicConfig], _engines: Engines, _allowed: frozenset[int]
) -> Iterator[Item]:
    place = "sys/devices/system/clocksource/clocksource0"
    now = machine.text(f"{place}/current_clocksource")
    others = (machine.text(f"{place}/available_clocksource") or "").split()
    fast = sorted(_FAST_CLOCKS.intersection(others), key=lambda name: name != "tsc")
    if now is None:
        yield Item("clock", "unknown", "the kernel does not say what it reads the time from")
    elif now in _FAST_CLOCKS:
        yield Item("clock", "ok", f"{now}: read without a system call")
    else:
        yield Item(
            "clock",
            "missing",
            f"{now}: each look at the time is a system call",
            f"echo {fast[0]} > /{place}/current_clocksource"
            if fast
            else "dmesg | grep -i tsc says why the kernel does not trust the TSC",
        )


_SYSCTLS = (
    ("timer_migration", 0, "timers of idle CPUs move to busy ones"),
    ("nmi_watchdog", 0, "the watchdog interrupts each CPU"),
    ("numa_balancing", 0, "the kernel unmaps memory to see who uses it"),
)


def _kernel(
    machine: Machine, _nics: Sequence[NicConfig], _engines: Engines, _allowed: frozenset[int]
) -> Iterator[Item]:
    for name, wanted, why in _SYSCTLS:
        value = machine.number(f"proc/sys/kernel/{name}")
        if value is None:
            yield Item(name, "ok", "this kernel has none")
        elif value == wanted:
            yield Item(name, "ok", "off")
        else:
            yield Item(name, "missing", f"on: {why}", f"sysctl -w kernel.{name}={wanted}")


def _memory(
    machine: Machine, _nics: Sequence[NicConfig], engines: Engines, _allowed: frozenset[int]
) -> Iterator[Item]:
    swaps = (machine.text("proc/swaps") or "").splitlines()[1:]
    if swaps:
        names = ", ".join(line.split()[0] for line in swaps)
        yield Item("swap", "missing", f"{names} is in use", "swapoff -a, and out of /etc/fstab")
    else:
        yield Item("swap", "ok", "none")
    chosen = re.search(
        r"\[(\w+)\]", machine.text("sys/kernel/mm/transparent_hugepage/enabled") or ""
    )
    if chosen is not None and chosen[1] == "always":
        yield Item(
            "thp",
            "missing",
            "transparent huge pages for all: the kernel moves memory while it is used",
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
        )
    else:
        yield Item("thp", "ok", chosen[1] if chosen is not None else "this kernel has none")
    yield _huge_pages(machine, engines)


def _huge_pages(machine: Machine, engines: Engines) -> Item:
    if not engines.nics:
        return Item("huge pages", "unknown", "no NIC here is DPDK's; no other one uses them")
    nodes = {machine.node_of_cpu(cpu) for _, cpus in engines.nics for cpu in cpus} - {None}
    free: dict[int, list[str]] = {}
    for node in sorted(node for node in nodes if node is not None):
        place = f"sys/devices/system/node/node{node}/hugepages"
        free[node] = [
            f"{count} of {int(size[10:-2]) >> 10} MB on node {node}"
            for size in machine.names(place, "hugepages-*kB")
            if (count := machine.number(f"{place}/{size}/free_hugepages"))
        ]
    lacking = [node for node, found in free.items() if not found]
    if not free:
        return Item("huge pages", "unknown", "the kernel does not say what its NUMA nodes have")
    if lacking:
        where = "/sys/devices/system/node/node$n/hugepages/hugepages-2048kB/nr_hugepages"
        return Item(
            "huge pages",
            "missing",
            f"none are free on NUMA node {ranges(lacking)}; DPDK goes on without, more slowly",
            f"for n in {' '.join(map(str, lacking))}; do echo 256 > {where}; done",
        )
    return Item(
        "huge pages", "ok", "free: " + ", ".join(text for all_ in free.values() for text in all_)
    )


def _there(
    machine: Machine, nics: Sequence[NicConfig], _engines: Engines, _allowed: frozenset[int]
) -> Iterator[Item]:
    for nic in nics:
        if _dpdk_name(nic.nic, nic.mac) is None:
            continue
        if why := machine.no_nic(nic.string):
            yield Item("nic", "missing", why, "machnet nic list: the ones that there are")
        else:
            yield Item("nic", "ok", f"{nic.label} is there")


def _devices(
    machine: Machine, _nics: Sequence[NicConfig], engines: Engines, _allowed: frozenset[int]
) -> Iterator[Item]:
    devices = {name: machine.nic(name) for name, _ in engines.nics}
    # A driver that leaves the NIC to the kernel, and a virtual interface, hand no memory to a NIC.
    if any(device and device.state in _HANDED_OVER for device in devices.values()):
        yield _iommu(machine)
    for name, cpus in engines.nics:
        yield _locality(machine, name, devices[name], cpus)


def _iommu(machine: Machine) -> Item:
    if machine.names("sys/class/iommu") or machine.names("sys/kernel/iommu_groups"):
        return Item("iommu", "ok", "on: vfio-pci keeps a NIC to the memory it was given")
    if machine.is_virtual():
        found = "this virtual machine has none: vfio-pci works without its protection only"
        return Item("iommu", "unknown", found)
    amd = "AuthenticAMD" in (machine.text("proc/cpuinfo") or "")
    return Item(
        "iommu",
        "missing",
        "off: a NIC may write to any memory, and vfio-pci wants its unsafe mode",
        f"VT-d or AMD-Vi on in the firmware; boot with {'amd' if amd else 'intel'}_iommu=on iommu=pt",
    )


def _locality(machine: Machine, name: str, device: Device | None, cpus: tuple[int, ...]) -> Item:
    if device is None or device.state == "virtual":
        return Item("numa", "unknown", f"{name}: not a device whose NUMA node is known")
    node = device.numa_node
    if node is None:
        return Item("numa", "ok", f"{name}: near to all CPUs")
    far = sorted(cpu for cpu in cpus if machine.node_of_cpu(cpu) not in {None, node})
    if not far:
        return Item("numa", "ok", f"{name}: node {node}, as its engines")
    near = machine.cpus(f"sys/devices/system/node/node{node}/cpulist") or frozenset()
    return Item(
        "numa",
        "missing",
        f"{name} is on node {node}, and CPU {ranges(far)} is not",
        f"a cpu_mask of CPUs among {ranges(near)}",
    )


def _machine(
    machine: Machine, _nics: Sequence[NicConfig], _engines: Engines, _allowed: frozenset[int]
) -> Iterator[Item]:
    if not machine.is_virtual():
        return
    fields = (machine.text("proc/stat") or "").partition("\n")[0].split()[1:]
    total = sum(map(int, fields[:8])) if len(fields) >= 8 else 0
    stolen = f", which has taken {100 * int(fields[7]) / total:.1f} % of its time" if total else ""
    yield Item("host", "unknown", f"a virtual machine: what is here rests on its host{stolen}")


_CHECKS: tuple[_Check, ...] = (
    _there,
    _pinning,
    _isolation,
    _siblings,
    _interrupts,
    _power,
    _clock,
    _kernel,
    _memory,
    _devices,
    _machine,
)


def render(items: Sequence[Item]) -> Iterator[str]:
    """The report, line by line."""
    width = max(len(item.name) for item in items)
    for item in items:
        yield f"{item.state:<8} {item.name:<{width}}  {item.found}"
        if item.remedy:
            yield f"{'':<8} {'':<{width}}  -> {item.remedy}"
    count = sum(item.state == "missing" for item in items)
    if any("boot with" in item.remedy for item in items):
        yield (
            "Words to boot with go to GRUB_CMDLINE_LINUX in /etc/default/grub; then update-grub "
            "and a reboot."
        )
    yield f"{count} missing" if count else "nothing is missing"


def as_json(items: Sequence[Item]) -> dict[str, Any]:
    """The report as one object."""
    return {
        "missing": sum(item.state == "missing" for item in items),
        "items": [item.as_dict() for item in items],
    }
