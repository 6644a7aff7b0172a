# SPDX-License-Identifier: MIT
"""Scripts as pytest items: each ``*.pkt`` file once per arm."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .arms import ARMS, unavailable
from .errors import ArmUnsupportedError, PktError, ScriptError
from .parser import parse_file
from .run import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .nodes import Script

__all__ = ["PktPlugin", "add_options"]


def add_options(parser: pytest.Parser) -> None:
    """The options that belong to scripts."""
    group = parser.getgroup("machnet-pkt", "packetdrill scripts")
    group.addoption(
        "--machnet-pkt", nargs="+", action="extend", metavar="FILE", default=[],
        help="run these packetdrill scripts, or those in these directories, and nothing else",
    )  # fmt: skip
    group.addoption(
        "--machnet-pkt-arm", choices=[*ARMS, "both"], default="both",
        help="what packetdrill scripts run against (default: both, where possible)",
    )  # fmt: skip
    group.addoption(
        "--machnet-pkt-allow-shell", action="store_true",
        help="run the shell commands of packetdrill scripts, in the Linux arm's network namespace "
        "but otherwise with your rights",
    )  # fmt: skip
    group.addoption(
        "--machnet-pkt-kernel-defaults", action="store_true",
        help="leave Linux as the kernel has it, instead of turning off what the RFCs don't have",
    )  # fmt: skip


class PktPlugin:
    """Collects scripts; registered by the suite's conftest."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        """With ``--machnet-pkt`` nothing else is collected."""
        config = session.config
        files = config.getoption("--machnet-pkt")
        if not files:
            return
        base = config.invocation_params.dir
        for name in files:
            if not (base / name).exists():
                raise pytest.UsageError(f"--machnet-pkt: there is no {name}")
        config.args[:] = [str(base / name) for name in files]

    @pytest.hookimpl
    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> PktFile | None:
        """Files that end with .pkt."""
        if file_path.suffix != ".pkt":
            return None
        made: PktFile = PktFile.from_parent(parent, path=file_path)
        return made


class PktFile(pytest.File):
    """One script."""

    def collect(self) -> Iterator[PktItem]:
        """It on each arm. One that can't be read is an item that fails and says why."""
        script: Script | None = None
        problem: ScriptError | None = None
        try:
            script = parse_file(self.path)
        except ScriptError as error:
            problem = error
        wanted = self.config.getoption("--machnet-pkt-arm")
        arms = ARMS if wanted == "both" else (wanted,)
        for arm in arms[:1] if problem else arms:
            name = f"{self.path.stem}[{arm}]"
            yield PktItem.from_parent(self, name=name, script=script, problem=problem, arm=arm)


class PktItem(pytest.Item):
    """One script on one arm."""

    def __init__(
        self, *, script: Script | None, problem: ScriptError | None, arm: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._script, self._problem, self.arm = script, problem, arm
        real_time = arm == "linux" and problem is None
        reruns = self.config.pluginmanager.hasplugin("rerunfailures")
        if real_time and reruns and os.environ.get("CI"):
            # Real time, on a machine that is shared: as tests/net does. The report lists it.
            self.add_marker(pytest.mark.flaky(reruns=1))

    def runtest(self) -> None:
        """Run it."""
        if self._problem is not None:
            raise self._problem
        script = self._script
        assert script is not None
        if script.arms is not None and self.arm not in script.arms:
            pytest.skip(f"for {', '.join(script.arms)} only: {script.arms_reason}")
        if (why := unavailable(self.arm)) is not None:
            pytest.skip(f"no Linux host can be made here: {why}")
        option = self.config.getoption
        try:
            run(
                script, self.arm, allow_shell=option("--machnet-pkt-allow-shell"),
                kernel_defaults=option("--machnet-pkt-kernel-defaults"),
            )  # fmt: skip
        except ArmUnsupportedError as error:
            if option("--machnet-pkt-arm") != "both":
                raise
            pytest.skip(f"{self.arm}: {error.what} (line {error.where.line})")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """A script's failure speaks for itself; whatever else is shown as pytest shows it."""
        if isinstance(excinfo.value, PktError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it is."""
        return self.path, None, f"script: {self.name}"
