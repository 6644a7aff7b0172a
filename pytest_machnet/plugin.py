# SPDX-License-Identifier: MIT
"""The hooks. What they need beyond pytest is imported when a test that uses the plugin runs."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import pytest

from pytest_machnet import cases, options, report, seeds, shrink
from pytest_machnet.fixtures import (
    _machnet_lab,
    machnet_channel,
    machnet_clock,
    machnet_host,
    machnet_net,
    machnet_pcap,
    machnet_peer,
    posix_peer,
    raw_peer,
)

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = [
    "_machnet_lab",
    "machnet_channel",
    "machnet_clock",
    "machnet_host",
    "machnet_net",
    "machnet_pcap",
    "machnet_peer",
    "posix_peer",
    "raw_peer",
]

_MARKER_LINE = (
    "machnet(loss=, latency=, bandwidth=, mtu=, seed=, seeds=, faults=, ...): the network of a test "
    "that uses machnet's fixtures: parameters of its link as for machnet.sim.Network.link, and the "
    "plugin's options by their names without --machnet-."
)


# ---- the run -------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare options and ini values."""
    options.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Check what was given, before anything runs."""
    config.addinivalue_line("markers", _MARKER_LINE)
    seeds.forget_randomly()
    config.stash[cases.RUN] = cases.Run(config)


def pytest_report_header(config: pytest.Config) -> str | None:
    """One line, when somebody has said something about machnet."""
    run = config.stash[cases.RUN]
    return report.header(run) if run.settings.explicit else None


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """The same line, when nobody has, but there are tests that use the plugin."""
    run = config.stash[cases.RUN]
    if run.settings.explicit or not any(cases.uses_plugin(item) for item in items):
        return None
    return report.header(run)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Xdist: a worker learns the base seed."""
    node.workerinput.update(node.config.stash[cases.RUN].for_worker())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Xdist: a worker has told whether it used the plugin, and its NIC."""
    output, run = getattr(node, "workeroutput", None) or {}, node.config.stash[cases.RUN]
    if output.get("machnet_used"):
        run.used = True
    told = output.get("machnet_on_nic", (0, 0))
    run.on_nic = [mine + theirs for mine, theirs in zip(run.on_nic, told, strict=True)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep the base seed for the next run; a worker tells whether it used it."""
    run = session.config.stash[cases.RUN]
    if run.on_worker:
        told = {"machnet_used": run.used, "machnet_on_nic": run.on_nic}
        session.config.workeroutput.update(told)  # type: ignore[attr-defined]


def pytest_unconfigure() -> None:
    """Give back interfaces that tests ran on, and end the agents of a run that had any."""
    if (borrowed := sys.modules.get("pytest_machnet.borrowed")) is not None:
        borrowed.give_back_all()
    if (peers := sys.modules.get("pytest_machnet.peers")) is not None:
        peers.close_agents()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Under xdist, where nothing is collected here, the line comes last; and the seed is kept.

    A run on a NIC in which all was skipped is green, and says that it has tested nothing.
    """
    run = config.stash[cases.RUN]
    if run.nothing_ran:
        terminalreporter.write_sep("=", "machnet", yellow=True)
        terminalreporter.write_line(run.nothing_ran, yellow=True)
    if not run.used:
        return
    seeds.remember(config, run.base)
    distributed = config.pluginmanager.hasplugin("dsession")
    if distributed and not run.settings.explicit and config.get_verbosity() >= 0:
        terminalreporter.write_sep("=", "machnet")  # else it would be part of the last failure
        terminalreporter.write_line(report.header(run))


# ---- collection ----------------------------------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Check markers, and run simulated tests with several seeds where that is asked for."""
    config, definition = metafunc.config, metafunc.definition
    marks = list(definition.iter_markers(options.MARKER))
    used = cases.FIXTURES.intersection(metafunc.fixturenames)
    if not used and not marks:
        return
    settings = options.with_markers(config.stash[cases.RUN].settings, marks, definition.nodeid)
    simulated = settings.simulated and bool(used) and "posix_peer" not in used
    if simulated and settings["seeds"] > 1 and seeds.PARAMETER not in metafunc.fixturenames:
        numbers = range(settings["seeds"])
        metafunc.fixturenames.append(seeds.PARAMETER)
        metafunc.parametrize(seeds.PARAMETER, numbers, ids=[f"seed{i}" for i in numbers])


# ---- tests ---------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Take over where faults are to be reduced: a test is then run many times."""
    if not shrink.wanted(item):
        return None
    shrink.run_and_shrink(item, nextitem)
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Give each example of hypothesis a network of its own."""
    lab = item.stash.get(cases.LAB, None)
    with contextlib.ExitStack() as exits:
        if lab is not None and lab.case.simulated:
            from pytest_machnet import hypo

            if hypo.is_hypothesis(item):
                exits.enter_context(hypo.fresh_examples(item, lab))
        return (yield)


def pytest_enter_pdb(config: pytest.Config) -> None:
    """Who looks around in a debugger may take their time."""
    _release(config)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """What comes after the test's own code is not the guard's to watch."""
    try:
        return (yield)
    finally:
        _release(pyfuncitem.config)


def _release(config: pytest.Config) -> None:
    release = config.stash.get(cases.RELEASE, None)
    if release is not None:
        release()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say what the network looked like when a test failed."""
    if call.excinfo is not None:
        _release(item.config)
    made = yield
    item.config.stash[cases.RUN].count(item, made)
    lab = item.stash.get(cases.LAB, None)
    if lab is not None and made.failed:
        report.add_section(item, call, made, lab)
    if call.when == "teardown" and lab is not None:
        if item.stash.get(cases.FAILED, False):
            report.add_late_section(made, lab)
        del item.stash[cases.LAB]
    return made
