# SPDX-License-Identifier: MIT
"""Each case once per arm; deviations; the record of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conformance.arms import ARMS, Settings, open_arm, unavailable
from conformance.deviations import find
from conformance.peer import Line, Peer
from conformance.pkt.collect import PktPlugin, add_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.arms import Arm


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the suite and of packetdrill scripts."""
    add_options(parser)
    group = parser.getgroup("machnet-conformance", "wire-protocol conformance")
    group.addoption(
        "--conformance-record",
        metavar="FILE",
        help="write what each case gave on each arm, for `python -m conformance.page FILE`",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Markers, and what is registered once."""
    config.addinivalue_line("markers", "clause(text): what a case is about: RFC and section")
    config.addinivalue_line(
        "markers", "arm(**settings): fields of conformance.arms.Settings, for both arms"
    )
    config.pluginmanager.register(PktPlugin(), "machnet-pkt")
    if (path := config.getoption("--conformance-record")) is not None:
        config.pluginmanager.register(_Record(Path(path)), "conformance-record")


def pytest_unconfigure() -> None:
    """The NIC of a run on one."""
    from conformance.arms import nic

    nic.close_cables()


def case_of(item: pytest.Item) -> tuple[str, str, str] | None:
    """Case, variant and arm of a test; None if it is not a case."""
    callspec = getattr(item, "callspec", None)
    if callspec is None or "arm" not in callspec.params:
        return None
    name = getattr(item, "originalname", item.name).removeprefix("test_")
    arm = callspec.params["arm"]
    parts = callspec.id.split("-")
    parts.remove(arm)
    variant = "-".join(parts)
    return f"{item.path.stem.removeprefix('test_')}/{name}", variant, arm


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is expected to deviate."""
    own = Path(__file__).parent
    if "MACHNET_TEST_SANITIZED" in os.environ:
        _leave_linux_out(config, items)
    for item in items:
        if own not in item.path.parents or (case := case_of(item)) is None:
            continue
        if (
            case[2] == "linux"
            and "CI" in os.environ
            and config.pluginmanager.has_plugin("rerunfailures")
        ):
            # As in tests/net: one late answer of a busy machine must not lose a run.
            item.add_marker(pytest.mark.flaky(reruns=1))
        item.user_properties.append(("conformance", case))
        if (deviation := find(*case)) is not None:
            # Strict: what begins to conform is a failure, so that the table stays true. On a NIC
            # its driver may do what the engine does not: net_af_packet joins fragments.
            item.add_marker(
                pytest.mark.xfail(
                    strict=config.getoption("--machnet-nic", default=None) is None,
                    raises=(AssertionError, BlockingIOError),
                    reason=f"{deviation.clause}: {deviation.reason}",
                )
            )


def _leave_linux_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The kernel's TCP is not what a sanitizer build watches: its arm runs in the plain one only."""
    linux = [
        item
        for item in items
        if getattr(item, "arm", None) == "linux" or (case_of(item) or ("", "", ""))[2] == "linux"
    ]
    if linux:
        config.hook.pytest_deselected(items=linux)
        items[:] = [item for item in items if item not in set(linux)]


class _Record:
    """What came of each case, as JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: list[dict[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties: dict[str, Any] = dict(report.user_properties)
        if "conformance" not in properties:
            return
        if report.when == "call" or (report.when == "setup" and not report.passed):
            case, variant, arm = properties["conformance"]
            outcome = "deviates" if hasattr(report, "wasxfail") else report.outcome
            self.results.append({"case": case, "variant": variant, "arm": arm, "outcome": outcome})

    def pytest_sessionfinish(self) -> None:
        system = os.uname()
        record = {"kernel": f"{system.sysname} {system.release}", "results": self.results}
        self.path.write_text(json.dumps(record, indent=1) + "\n")


@pytest.fixture(params=ARMS)
def arm(request: pytest.FixtureRequest) -> Iterator[Arm]:
    """Linux and machnet in turn, with the settings of the case's `arm` marker."""
    nic = request.config.getoption("--machnet-nic", default=None)
    if (why := unavailable(request.param, nic)) is not None:
        pytest.skip(f"there can be no {request.param} arm here: {why}")
    values: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers("arm"))):
        values |= mark.kwargs
    arm = open_arm(request.param, Settings(**values), nic)
    yield arm
    arm.close()


@pytest.fixture
def peer(arm: Arm) -> Peer:
    """The script's end of one connection with the arm."""
    return Peer(Line(arm))
