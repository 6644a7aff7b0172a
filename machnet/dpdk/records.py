# SPDX-License-Identifier: MIT
"""What is remembered of a NIC that was taken from the kernel: a file for each, below ``/run``.

The kernel forgets a NIC's name and addresses when its driver lets go of it. They are needed again:
``dpdk:eth1`` still means that NIC, and giving it back restores them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "RUN",
    "Former",
    "Owner",
    "Record",
    "forget",
    "load_all",
    "new_owner",
    "opened",
    "remember",
]

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


@contextlib.contextmanager
def opened(run: str, *, make: bool = False) -> Iterator[int]:
    """The directory of the records, which root or we alone can write to.

    What the records say is done by root, who writes files there: nobody else may have said it, or lead
    root to another place. Who holds the directory itself is not misled when its path changes.

    Args:
        run: Where it is.
        make: If it is not there.

    Returns:
        Its descriptor.

    Raises:
        OSError: It is not there, no directory (but a link to one), or others can write to it.
    """
    if make:
        Path(run).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            Path(run).mkdir(mode=0o700)
    fd = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        seen = os.fstat(fd)
        if seen.st_uid not in {0, os.geteuid()} or seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise OSError(errno.EPERM, f"{run}: others than root can write to it; remove it")
        yield fd
    finally:
        os.close(fd)


def _name(address: str) -> str:
    return f"{address}.json"


def remember(record: Record, run: str = RUN) -> None:
    """Write a record in the place of the last one; whoever reads sees one or the other.

    Raises:
        OSError: It can't be written.
    """
    fresh = f"{record.address}.{os.getpid()}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with opened(run, make=True) as folder:
        try:
            with os.fdopen(
                os.open(fresh, flags, 0o600, dir_fd=folder), "w", encoding="utf-8"
            ) as file:
                json.dump(dataclasses.asdict(record), file, indent=1)
            os.replace(fresh, _name(record.address), src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(fresh, dir_fd=folder)
            raise


def forget(address: str, run: str = RUN) -> None:
    """Remove a record, if there is one.

    Raises:
        OSError: It can't be removed.
    """
    with contextlib.suppress(FileNotFoundError), opened(run) as folder:
        os.unlink(_name(address), dir_fd=folder)


def load_all(run: str = RUN) -> dict[str, Record]:
    """All records, by address. What can't be read, or was not written by root or us, is left out."""
    found: dict[str, Record] = {}
    with contextlib.suppress(OSError), opened(run) as folder:
        for name in sorted(os.listdir(folder)):  # noqa: PTH208 - not a path
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                record = _from_json(json.loads(_read(folder, name)))
                if name == _name(record.address):
                    found[record.address] = record
    return found


def _read(folder: int, name: str) -> str:
    if not name.endswith(".json"):
        raise ValueError(name)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, dir_fd=folder), encoding="utf-8") as file:
        return file.read()


def _from_json(raw: dict[str, Any]) -> Record:
    former = tuple(
        Former(**{**item, "addresses": tuple(item["addresses"])}) for item in raw["interfaces"]
    )
    owner = None if raw["owner"] is None else Owner(**raw["owner"])
    return Record(**{**raw, "interfaces": former, "owner": owner})
