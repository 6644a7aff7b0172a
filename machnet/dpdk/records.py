# SPDX-License-Identifier: MIT
"""What is remembered of a NIC that was taken from the kernel: a file for each, below ``/run``.

The kernel forgets a NIC's name and addresses when its driver lets go of it. They are needed again:
``dpdk:eth1`` still means that NIC, and giving it back restores them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import stat
from pathlib import Path
from typing import Any

__all__ = ["RUN", "Former", "Owner", "Record", "forget", "load_all", "new_owner", "remember"]

#: The directory of the records.
RUN = "/run/machnet/nic"
_RUNS = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Former:
    """An interface as it was in the kernel.

    Attributes:
        name: Of the interface.
        mac: Its address, in lower case.
        up: Whether it was up.
        mtu: Bytes; 0: not known.
        addresses: With their lengths, as "10.0.0.1/24"; what the kernel makes by itself is not here.
    """

    name: str
    mac: str
    up: bool = False
    mtu: int = 0
    addresses: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process for whose run a NIC is bound.

    Attributes:
        pid: Its number.
        started: When it started, in clock ticks since boot: numbers are used again.
        run: Which of its runs.
    """

    pid: int
    started: int
    run: int = 0

    def alive(self) -> bool:
        """Whether it still runs."""
        return _started(self.pid) == self.started


@dataclasses.dataclass(frozen=True)
class Record:
    """A NIC that was taken from the kernel.

    Attributes:
        address: PCI address or VMBUS UUID.
        bus: "pci" or "vmbus".
        driver: The one it had in the kernel; "": none.
        bound: The one it was bound to.
        interfaces: What the kernel called it.
        owner: Whose run it is bound for; None: until ``machnet nic unbind``.
    """

    address: str
    bus: str
    driver: str
    bound: str
    interfaces: tuple[Former, ...] = ()
    owner: Owner | None = None


def _started(pid: int) -> int | None:
    """When a process started; None: there is none, or it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may have anything in it.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def new_owner() -> Owner:
    """This process, for a run that it has not had before."""
    pid = os.getpid()
    started = _started(pid)
    return Owner(pid, -1 if started is None else started, next(_RUNS))


def _path(run: str, address: str) -> Path:
    return Path(run) / f"{address}.json"


def remember(record: Record, run: str = RUN) -> None:
    """Write a record in the place of the last one; whoever reads sees one or the other.

    Raises:
        OSError: It can't be written.
    """
    folder = Path(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    path = _path(run, record.address)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(record), file, indent=1)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def forget(address: str, run: str = RUN) -> None:
    """Remove a record, if there is one.

    Raises:
        OSError: It can't be removed.
    """
    _path(run, address).unlink(missing_ok=True)


def load_all(run: str = RUN) -> dict[str, Record]:
    """All records, by address. What can't be read, or was not written by root or us, is left out."""
    found: dict[str, Record] = {}
    with contextlib.suppress(OSError):
        folder = Path(run)
        seen = folder.stat()
        # What it says is done by root: nobody else may have said it.
        if seen.st_uid not in {0, os.geteuid()} or seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return {}
        for path in sorted(folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                record = _from_json(json.loads(path.read_text(encoding="utf-8")))
                if record.address == path.stem:
                    found[record.address] = record
    return found


def _from_json(raw: dict[str, Any]) -> Record:
    former = tuple(
        Former(**{**item, "addresses": tuple(item["addresses"])}) for item in raw["interfaces"]
    )
    owner = None if raw["owner"] is None else Owner(**raw["owner"])
    return Record(**{**raw, "interfaces": former, "owner": owner})
