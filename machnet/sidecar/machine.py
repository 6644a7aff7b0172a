# SPDX-License-Identifier: MIT
"""What sysfs and procfs say of a machine's CPUs, interrupts and NICs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from machnet.dpdk.devices import Device, find
from machnet.dpdk.names import absent
from machnet.dpdk.records import RUN

__all__ = ["LATENCY", "Machine", "parse_ranges", "ranges"]

#: Held open with a number in it, it limits how long CPUs may take to wake, us.
LATENCY = "dev/cpu_dma_latency"


def ranges(cpus: Sequence[int] | frozenset[int] | set[int]) -> str:
    """CPUs as the kernel writes them: "0,2-5"."""
    spans: list[list[int]] = []
    for cpu in sorted(cpus):
        if spans and cpu == spans[-1][1] + 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in spans)


def parse_ranges(text: str) -> frozenset[int]:
    """CPUs from the kernel's form, of which flags such as ``nohz,domain`` are left out."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if span:
            cpus.update(range(int(span[1]), int(span[2] or span[1]) + 1))
    return frozenset(cpus)


class Machine:
    """Files of the system, below ``root``."""

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self.root = Path(root)

    def text(self, path: str) -> str | None:
        """What a file says; None: it is not there or not to be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """A file's number."""
        text = self.text(path)
        return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None

    def cpus(self, path: str) -> frozenset[int] | None:
        """A file's CPUs."""
        text = self.text(path)
        return None if text is None else parse_ranges(text)

    def names(self, path: str, pattern: str = "*") -> list[str]:
        """Names in a directory; none: it is not there."""
        try:
            return sorted(entry.name for entry in (self.root / path).glob(pattern))
        except OSError:
            return []

    def in_use(self, irq: str) -> bool:
        """Whether an interrupt has a handler, which is a directory with its name."""
        try:
            return any(entry.is_dir() for entry in (self.root / "proc/irq" / irq).iterdir())
        except OSError:
            return False

    def latency_limit_us(self) -> int | None:
        """How long waking a CPU may take by all requests (Linux: power/pm_qos_interface.rst)."""
        try:
            data = (self.root / LATENCY).read_bytes()
        except OSError:  # it is root's
            return None
        return int.from_bytes(data, sys.byteorder, signed=True) if len(data) == 4 else None

    def boot_word(self, name: str) -> str | None:
        """The value of a word of the kernel's command line; the last one counts."""
        found = None
        for word in (self.text("proc/cmdline") or "").split():
            key, _, value = word.partition("=")
            if key == name:
                found = value
        return found

    def is_virtual(self) -> bool:
        """Whether a hypervisor is beneath."""
        info = self.text("proc/cpuinfo") or ""
        return re.search(r"^flags\s*:.*\bhypervisor\b", info, re.MULTILINE) is not None

    def running(self, command: str) -> bool:
        """Whether a process of this name runs."""
        return any(self.text(f"proc/{pid}/comm") == command for pid in self.names("proc", "[0-9]*"))

    def node_of_cpu(self, cpu: int) -> int | None:
        """The NUMA node of a CPU."""
        for name in self.names("sys/devices/system/node", "node[0-9]*"):
            if cpu in (self.cpus(f"sys/devices/system/node/{name}/cpulist") or ()):
                return int(name[4:])
        return None

    def no_nic(self, string: str) -> str:
        """That what a string names to DPDK is not here, and what is; "": it is, or is made."""
        from machnet.sim.nicstr import parse_nic

        return absent(
            parse_nic(string).rest, str(self.root / "sys"), str(self.root / RUN.lstrip("/"))
        )

    def nic(self, name: str) -> Device | None:
        """A NIC by kernel name, MAC or PCI address; None: there is no such device."""
        try:
            return find(name, str(self.root / "sys"), str(self.root / RUN.lstrip("/")))
        except OSError:
            return None
