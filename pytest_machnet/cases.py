# SPDX-License-Identifier: MIT
"""What the plugin knows about a run, and about each test of it."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_machnet import artifacts, options, seeds

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_machnet.labs import Lab

#: The fixtures for tests.
FIXTURES = frozenset(
    {
        "machnet_net",
        "machnet_host",
        "machnet_channel",
        "machnet_peer",
        "posix_peer",
        "raw_peer",
        "machnet_clock",
        "machnet_pcap",
    }
)


class Run:
    """What is the same for all tests of a run.

    Attributes:
        settings: What options and ini values say.
        used: Whether a test that uses the plugin was run, here or on a worker.
        id: Tells this run from others on the machine; workers of one run share it.
        worker: "gw0" and so on, or "main" without xdist.
        on_nic: Of the tests that are to use the NIC, how many ran, and how many were skipped.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.settings = options.from_config(config)
        self.used = False
        self.on_nic = [0, 0]
        given: dict[str, Any] = getattr(config, "workerinput", {})
        self.worker = str(given.get("workerid", "main"))
        self.id = str(given.get("machnet_run", f"{os.getpid():x}"))
        self._base: int | None = given.get("machnet_base")
        if self._base is None and self.settings["seed"] in {"random", "last"}:
            self._base = seeds.base_seed(config, self.settings)
            seeds.remember(config, self._base)

    @property
    def base(self) -> int:
        """The base seed."""
        if self._base is None:
            self._base = seeds.base_seed(self.config, self.settings)
        return self._base

    @property
    def on_worker(self) -> bool:
        """Whether this is a worker of xdist."""
        return self.worker != "main"

    def count(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Take note of a test that is to use the NIC of this run."""
        decided = report.when == "call" or (report.when == "setup" and not report.passed)
        if self.settings.simulated or not decided or not uses_plugin(item):
            return
        if not item_settings(item).simulated:
            self.on_nic[report.skipped and not hasattr(report, "wasxfail")] += 1

    @property
    def nothing_ran(self) -> str:
        """That a NIC was given and all tests that would use it were skipped; "": it was used, or none would."""
        ran, skipped = self.on_nic
        if ran or not skipped:
            return ""
        nic = f"{options.KNOBS['nic'].option}={self.settings['nic']}"
        them = (
            "the test that uses it was" if skipped == 1 else f"all {skipped} tests that use it were"
        )
        return f"nothing ran on {nic}: {them} skipped (-rs says why)"

    def for_worker(self) -> dict[str, Any]:
        """What a worker is told."""
        return {"machnet_base": self.base, "machnet_run": self.id}


RUN = pytest.StashKey[Run]()


@dataclasses.dataclass(frozen=True)
class Case:
    """One test, with all that it takes to make its network.

    Attributes:
        nodeid: As pytest has it.
        settings: What is in force.
        fixtures: Those of `FIXTURES` that it uses.
        base: The base seed in force.
        number: Number of the seed, from 0.
        seed: The test's seed.
        example: Number of the hypothesis example's seed; None: it has no examples.
        folder: Where its artifacts go.
        replay: The command that repeats it.
        tag: Names of what it makes in the system carry it.
        only: The faults that may happen, while they are reduced; None: all.
    """

    nodeid: str
    settings: options.Settings
    fixtures: frozenset[str]
    base: int
    number: int
    seed: int
    example: int | None
    folder: Path
    replay: str
    tag: str
    only: tuple[Any, ...] | None = None

    @property
    def simulated(self) -> bool:
        """Whether its time is virtual."""
        return self.settings.simulated and "posix_peer" not in self.fixtures

    def for_example(self, number: int) -> Case:
        """The same with the seed of an example of hypothesis."""
        return dataclasses.replace(self, example=number, seed=seeds.example_seed(self.seed, number))


#: The lab of the test that is running, and the faults to which it is held.
LAB: pytest.StashKey[Lab] = pytest.StashKey()
ONLY = pytest.StashKey[tuple[Any, ...]]()
#: Ends the watch over the test that is running.
RELEASE: pytest.StashKey[Callable[[], None]] = pytest.StashKey()
#: Whether the test has failed already.
FAILED = pytest.StashKey[bool]()


def uses_plugin(item: pytest.Item) -> frozenset[str]:
    """The fixtures of the plugin that a test uses, also through other fixtures."""
    return FIXTURES.intersection(getattr(item, "fixturenames", ()))


def seed_number(item: pytest.Item) -> int:
    """Which of several seeds a test is run with."""
    callspec = getattr(item, "callspec", None)
    return 0 if callspec is None else int(callspec.params.get(seeds.PARAMETER, 0))


def item_settings(item: pytest.Item) -> options.Settings:
    """What is in force for a test."""
    run = item.config.stash[RUN]
    marks = list(item.iter_markers(options.MARKER))
    return options.with_markers(run.settings, marks, item.nodeid)


def make_case(item: pytest.Item) -> Case:
    """Everything about one test."""
    run = item.config.stash[RUN]
    settings = item_settings(item)
    number = seed_number(item)
    parametrised = seeds.PARAMETER in getattr(getattr(item, "callspec", None), "params", {})
    bare = seeds.strip_suffix(item.nodeid, number) if parametrised else item.nodeid
    base = settings["seed"] if settings.origin["seed"] == "marker" else run.base
    root = Path(settings["artifacts"])
    if not root.is_absolute():
        root = item.config.rootpath / root
    return Case(
        nodeid=item.nodeid,
        settings=settings,
        fixtures=uses_plugin(item),
        base=base,
        number=number,
        seed=seeds.test_seed(bare, number, base),
        example=None,
        folder=root / artifacts.folder_name(item.nodeid, run.worker),
        replay=_replay(item, run, settings, base),
        tag=f"{run.id}-{run.worker}",
        only=item.stash.get(ONLY, None),
    )


def _replay(item: pytest.Item, run: Run, settings: options.Settings, base: int) -> str:
    """The command that repeats a test, for the folder that pytest was started in."""
    _, colons, rest = item.nodeid.partition("::")
    path = os.path.relpath(item.path, item.config.invocation_params.dir)
    nodeid = f"{path}{colons}{rest}"
    quoted = shlex.quote(nodeid)
    words = ["pytest", quoted if quoted != nodeid else f"'{nodeid}'"]
    if settings.simulated:
        words += ["--machnet-sim", f"--machnet-seed={base}"]
    for name, knob in options.KNOBS.items():
        if settings.origin[name] != "option" or name in {"sim", "seed", "shrink", "artifacts"}:
            continue
        words.append(shlex.quote(f"{knob.option}={settings[name]}"))
    if seeds.randomly() is not None and settings.simulated:
        words.append(f"--randomly-seed={seeds.randomly()}")
    words += map(shlex.quote, _same_ids(item.config, item.path))
    return " ".join(words)


#: What pytest looks for above the tests it is given: the first one tells the root of node ids.
_INI_NAMES = (
    "pytest.toml",
    ".pytest.toml",
    "pytest.ini",
    ".pytest.ini",
    "pyproject.toml",
    "tox.ini",
    "setup.cfg",
    "setup.py",
)


def _same_ids(config: pytest.Config, path: Path) -> list[str]:
    """Options with which a run of one test alone has the root and the ini values of this one.

    The node id is part of the seed, and what it is relative to depends on all that pytest was given.
    """
    start = config.invocation_params.dir
    given = config.option
    words = [f"-o{text}" for text in getattr(given, "override_ini", None) or []]
    root, ini = config.rootpath, config.inipath
    if ini is not None and (getattr(given, "inifilename", None) or _hidden(ini, path)):
        words.append(f"-c{os.path.relpath(ini, start)}")
    elsewhere = ini is None and not _is_root_without_ini(root, start, path)
    if getattr(given, "rootdir", None) or elsewhere:
        words.append(f"--rootdir={os.path.relpath(root, start)}")
    return words


def _hidden(ini: Path, path: Path) -> bool:
    """Whether a file nearer to the test could be taken for the ini file."""
    between = [folder for folder in path.parents if ini.parent in folder.parents]
    return any((folder / name).exists() for folder in between for name in _INI_NAMES)


def _is_root_without_ini(root: Path, start: Path, path: Path) -> bool:
    """Whether pytest finds this root when it is given one test and finds no ini file."""
    folders = [path.parent, *path.parent.parents]
    setups = [folder for folder in folders if (folder / "setup.py").exists()]
    return root == (setups[0] if setups else Path(os.path.commonpath([start, path.parent])))
