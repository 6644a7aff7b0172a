# SPDX-License-Identifier: MIT
"""DPDK's environment abstraction layer (EAL): started once per process, when a port is first opened.

What it is started with comes from `configure`, else from the environment variable ``MACHNET_DPDK``
(``huge=off,memory_mb=256``), else from the defaults of `EalSettings`. Nothing is probed at the start: ports
are plugged in one by one, at any time (`machnet.dpdk.open_port`).
"""

from __future__ import annotations

import atexit
import dataclasses
import difflib
import errno
import logging
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any, Literal

from machnet.dpdk.rehearsal import survives
from machnet.stack.cpus import usable_cpus

__all__ = [
    "EalError",
    "EalSettings",
    "available",
    "configure",
    "missing_reason",
    "settings",
    "start",
]

#: EAL's levels, as DPDK names them, and what Python calls them.
LOG_LEVELS = {
    "emergency": (1, logging.CRITICAL),
    "alert": (2, logging.CRITICAL),
    "critical": (3, logging.CRITICAL),
    "error": (4, logging.ERROR),
    "warning": (5, logging.WARNING),
    "notice": (6, logging.INFO),
    "info": (7, logging.INFO),
    "debug": (8, logging.DEBUG),
}
#: Environment variable with settings, when `configure` was not called.
ENVIRONMENT = "MACHNET_DPDK"
_HUGE_PAGE_MIN_MB = 64
_NO_HUGE_DEFAULT_MB = 256
#: How much of them to make, where nobody has said how much is wanted.
_HUGE_PAGES_MB = 512
#: A device that no machine has: without an allow list EAL would take all NICs that it can.
_NOTHING = "0000:00:00.0"
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,63}")

log = logging.getLogger("machnet.dpdk")
#: What DPDK itself says; below the other, so that whoever wants to can tell them apart.
_said = logging.getLogger("machnet.dpdk.eal")


class EalError(OSError):
    """DPDK could not do what was asked for: what, why in its own words, and what helps.

    ``errno`` is what DPDK said, such as ``ENODEV``, ``EBUSY``, ``ENOMEM`` or ``EACCES``.
    """


@dataclasses.dataclass(frozen=True)
class EalSettings:
    """How EAL is started.

    Attributes:
        huge: Whether its memory is in huge pages: "on", "off", or "auto", on when at least 64 MiB of them
            are free.
        memory_mb: MiB of memory at the start, 16 to 1048576. With huge pages more is taken when it is
            needed; without them this is all there is (256 when it is not set).
        file_prefix: Keep the memory in files of this name, which other DPDK programs can attach to
            (1 to 63 letters, digits, "_", "." or "-"; each process needs its own). None: in no file, so
            that nothing is left behind, however the process ends.
        cores: CPUs that EAL's own threads may run on; empty: those of this process. Engines are pinned by
            ``cpu``, not by this.
        log_level: What is written to the log ``machnet.dpdk``: a key of `LOG_LEVELS`.
        args: Further arguments for EAL, as DPDK documents them.
    """

    huge: Literal["auto", "on", "off"] = "auto"
    memory_mb: int | None = None
    file_prefix: str | None = None
    cores: tuple[int, ...] = ()
    log_level: str = "notice"
    args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check each value.

        Raises:
            ValueError: One is wrong; the text names it and what is accepted.
        """
        if self.huge not in {"auto", "on", "off"}:
            raise ValueError(f'huge: {self.huge!r} is not "auto", "on" or "off"')
        if self.memory_mb is not None and not 16 <= self.memory_mb <= 1 << 20:
            raise ValueError(f"memory_mb: {self.memory_mb} is not within 16 to {1 << 20}")
        if self.file_prefix is not None and not _PREFIX.fullmatch(self.file_prefix):
            raise ValueError(
                f"file_prefix: {self.file_prefix!r} is not 1 to 63 letters, digits, '_', '.' or '-'"
            )
        if self.log_level not in LOG_LEVELS:
            raise ValueError(f"log_level: {self.log_level!r} is none of {', '.join(LOG_LEVELS)}")
        # This thread may have been kept off some of them since (``machnet run --isolate``).
        allowed = usable_cpus() | os.sched_getaffinity(0)
        if wrong := [core for core in self.cores if core not in allowed]:
            raise ValueError(
                f"cores: this process may not run on CPU {wrong[0]}, only on "
                f"{', '.join(map(str, sorted(allowed)))}"
            )


_lock = threading.RLock()
_configured: EalSettings | None = None
_started: EalSettings | None = None
#: Why EAL did not start.
_failed: EalError | None = None
_native: Any = None
_why_missing: str | None = None


def _load() -> None:
    """Import the extension, or find out why that can't be."""
    global _native, _why_missing
    if _native is not None or _why_missing is not None:
        return
    try:
        import machnet._dpdk as module
    except ModuleNotFoundError:
        _why_missing = (
            "machnet was built without DPDK: install libdpdk-dev and dpdk-dev (Debian, Ubuntu; "
            "22.11 or later), then install machnet again"
        )
    except ImportError as error:
        _why_missing = f"DPDK's libraries can't be loaded: {error}; install dpdk (Debian, Ubuntu)"
    else:
        _native = module


def available() -> bool:
    """Whether this machnet has its DPDK part, and the library that it needs is there."""
    with _lock:
        _load()
        return _native is not None


def missing_reason() -> str:
    """Why not, and what helps; empty: it is `available`."""
    with _lock:
        _load()
        return _why_missing or ""


def native() -> Any:
    """The extension module.

    Raises:
        EalError: It is not there (``ENOSYS``).
    """
    if not available():
        raise EalError(errno.ENOSYS, missing_reason())
    return _native


def settings() -> EalSettings:
    """What EAL was started with, or will be.

    Raises:
        ValueError: The environment variable ``MACHNET_DPDK`` is wrong.
    """
    if _started is not None:
        return _started
    if _configured is not None:
        return _configured
    return _from_environment(os.environ.get(ENVIRONMENT, ""))


def configure(**values: Any) -> EalSettings:
    """Say how EAL is to be started, before the first port is opened.

    Args:
        values: Those of `EalSettings`; what is left out has its default.

    Raises:
        ValueError, TypeError: A value is wrong, or there is no such setting.
        RuntimeError: EAL runs already, with other settings.
    """
    global _configured
    new = _settings(values)
    with _lock:
        if _started is not None and new != _started:
            raise RuntimeError(f"EAL runs already, with {_started}")
        _configured = new
        return new


def _settings(values: dict[str, Any]) -> EalSettings:
    names = [field.name for field in dataclasses.fields(EalSettings)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise TypeError(f"DPDK has no setting {name!r}: {hint}")
    for name in ("cores", "args"):
        if name in values:
            values[name] = tuple(values[name])
    return EalSettings(**values)


def _from_environment(text: str) -> EalSettings:
    """Parse "key=value,..."; several cores or arguments have a "+" in between.

    Raises:
        ValueError: It is something else.
    """
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{ENVIRONMENT}: {part!r} is not of the form key=value")
        if key == "memory_mb" and not value.isdigit():
            raise ValueError(f"{ENVIRONMENT}: {key}: {value!r} is no number")
        if key == "cores" and not all(core.isdigit() for core in value.split("+")):
            raise ValueError(f"{ENVIRONMENT}: cores: {value!r} is not of the form 0+1")
        if key == "memory_mb":
            values[key] = int(value)
        elif key == "cores":
            values[key] = [int(core) for core in value.split("+")]
        elif key == "args":
            values[key] = value.split("+")
        else:
            values[key] = value
    try:
        return _settings(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{ENVIRONMENT}: {error}") from None


def free_huge_mb(root: Path = Path("/sys/kernel/mm/hugepages")) -> int:
    """Huge pages that are free, of all sizes, in MiB."""
    total = 0
    for size in root.glob("hugepages-*kB"):
        try:
            free = int((size / "free_hugepages").read_text())
        except (OSError, ValueError):
            continue
        total += free * int(size.name.removeprefix("hugepages-").removesuffix("kB")) // 1024
    return total


def arguments(wanted: EalSettings, *, huge: bool) -> list[str]:
    """EAL's command line."""
    cores = wanted.cores or tuple(sorted(os.sched_getaffinity(0)))
    args = ["machnet", "--lcores", f"0@({','.join(map(str, cores))})", "-a", _NOTHING]
    args += ["--no-telemetry"]
    if wanted.file_prefix is not None:
        args += ["--file-prefix", wanted.file_prefix]
    else:
        # EAL does not let --in-memory and --no-huge stand together; both keep no files.
        args += ["--in-memory" if huge else "--no-shconf"]
    if not huge:
        args += ["--no-huge"]
    memory_mb = wanted.memory_mb
    if memory_mb is None and not huge:
        memory_mb = _NO_HUGE_DEFAULT_MB
    if memory_mb is not None:
        args += ["-m", str(memory_mb)]
    return [*args, *wanted.args]


def _more_pages(wanted: EalSettings, proc: Path = Path("/proc")) -> str:
    """The command that makes as many huge pages as are missing, beside those that there are."""
    lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
    fields = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    page_mb = max(1, fields.get("Hugepagesize", 2048) // 1024)
    pages = -(-(wanted.memory_mb or _HUGE_PAGES_MB) // page_mb)
    missing = max(0, pages - fields.get("HugePages_Free", 0))
    return f"sysctl vm.nr_hugepages={fields.get('HugePages_Total', 0) + missing}"


def _use_huge(wanted: EalSettings) -> bool:
    if wanted.huge == "off":
        return False
    if wanted.file_prefix is not None and not _hugetlbfs_mounted():
        if wanted.huge == "on":  # EAL would say "permission denied"
            raise EalError(errno.ENOENT, f"no huge pages: {_NO_HUGETLBFS}")
        log.warning("DPDK runs without huge pages (slower): %s", _NO_HUGETLBFS)
        return False
    free_mb = free_huge_mb()
    if wanted.huge == "on":
        if free_mb == 0:  # EAL would say "permission denied"
            raise EalError(
                errno.ENOMEM,
                f"no huge page is free: {_more_pages(wanted)} (as root) makes some, and "
                'huge="off" does without',
            )
        return True
    if free_mb >= (wanted.memory_mb or _HUGE_PAGE_MIN_MB):
        return True
    log.warning(
        "%d MiB of huge pages are free, and %d are wanted: DPDK runs without (slower; to have them: %s)",
        free_mb,
        wanted.memory_mb or _HUGE_PAGE_MIN_MB,
        _more_pages(wanted),
    )
    return False


#: Why files of huge pages can't be.
_NO_HUGETLBFS = (
    "with a file_prefix they are in files, and no hugetlbfs is mounted; to have one: "
    "mount -t hugetlbfs none /dev/hugepages"
)


def _hugetlbfs_mounted() -> bool:
    lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.split()[2] == "hugetlbfs" for line in lines)


#: What errors of EAL's start mean for who started it.
_REMEDIES = {
    errno.EACCES: "DPDK needs root, or access to the device files that the text above names",
    errno.EPERM: "DPDK needs root, or access to the device files that the text above names",
    errno.EALREADY: "another library of this process has started it",
}


def start() -> Any:
    """Start EAL if it does not run yet; the extension module.

    Raises:
        EalError: It does not start, or is not there. EAL can be tried once in a process. ``ECHILD``: it
            runs, in the process that this one was forked from.
        ValueError: The environment variable ``MACHNET_DPDK`` is wrong.
    """
    global _started, _failed
    with _lock:
        module = native()
        if _started is not None:
            if module.lib.mn_dpdk_forked():
                raise EalError(
                    errno.ECHILD,
                    "DPDK belongs to the process that this one was forked from; a process of its own "
                    "(exec, multiprocessing's spawn) may start DPDK",
                )
            return module
        if _failed is not None:  # EAL keeps what it has parsed and allocated until then
            raise EalError(
                _failed.errno, f"only a new process can start EAL again: {_failed.strerror}"
            )
        wanted = settings()
        huge = _use_huge(wanted)
        args = arguments(wanted, huge=huge)
        log.debug("EAL: %s", " ".join(args))
        if wanted.args and not survives(args):
            _failed = EalError(
                errno.EINVAL,
                "EAL did not start: it ends a process that gives it such arguments; "
                f"its arguments were {' '.join(args[1:])}",
            )
            raise _failed
        ffi, lib = module.ffi, module.lib
        kept = [ffi.new("char[]", os.fsencode(arg)) for arg in args]
        level = LOG_LEVELS[wanted.log_level][0]
        sys.stdout.flush()
        rc, said = ask(lib.mn_dpdk_init, len(kept), kept, max(level, 5))
        if rc < 0:
            remedy = _REMEDIES.get(-rc, f"its arguments were {' '.join(args[1:])}")
            if -rc == errno.ENOMEM:
                remedy = "there is not enough memory for it: a smaller memory_mb"
                if huge:
                    remedy += f', free huge pages ({_more_pages(wanted)}) or huge="off"'
            _failed = error(-rc, said, remedy)
            raise _failed
        _started = wanted
        atexit.register(lib.mn_dpdk_fini)
        drain_log()
        return module


def ask(function: Any, *args: Any) -> tuple[int, str]:
    """Call a function of the extension module that says in words what went wrong.

    Args:
        function: Its last two parameters are where the words go, and how many bytes of them.
        args: Those before.

    Returns:
        What the function returned, and the words; empty, where nothing went wrong.
    """
    module = native()
    size = module.lib.MN_DPDK_ERR_BYTES
    text = module.ffi.new("char[]", size)
    rc = int(function(*args, text, size))
    return rc, module.ffi.string(text).decode(errors="replace")


#: What EAL adds to the driver's own words, and says nothing new.
_ECHOES = ("EAL: Driver cannot attach the device", "EAL: Failed to attach device on primary")


def error(code: int, text: str, remedy: str | None = None) -> EalError:
    """An exception that says what happened, what DPDK logged about it, and what helps."""
    said = [line for level, line in drain_log() if level <= LOG_LEVELS["warning"][0]]
    said = [line for line in said if not line.startswith(_ECHOES)]
    parts = [text, *dict.fromkeys(said[-4:])]
    if remedy is not None:
        parts.append(remedy)
    return EalError(code, "; ".join(part.strip() for part in parts if part.strip()))


def drain_log() -> list[tuple[int, str]]:
    """Hand DPDK's log to Python's (``machnet.dpdk.eal``); the lines, with their levels (1 to 8)."""
    lines: list[tuple[int, str]] = []
    if _native is None:
        return lines
    ffi, lib = _native.ffi, _native.lib
    buf, level = ffi.new("char[]", 1024), ffi.new("uint32_t *")
    python = dict(LOG_LEVELS.values())
    while (size := lib.mn_dpdk_log_take(buf, len(buf), level)) > 0:
        line = ffi.unpack(buf, size).decode(errors="replace").strip()
        lines.append((int(level[0]), line))
        # What matters is in the exception, or in the port's statistics: EAL warns of much.
        _said.log(min(python.get(int(level[0]), logging.INFO), logging.INFO), "%s", line)
    return lines
