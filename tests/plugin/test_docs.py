# SPDX-License-Identifier: MIT
"""The examples of docs/pytest.md are tests; and what it says of options is true."""

from __future__ import annotations

import re

import pytest
from plugin_runs import section_of

from machnet._native import lib
from machnet.sim import KernelHost
from pytest_machnet import cases, options


@pytest.fixture(scope="module")
def page(repo):
    return (repo / "docs" / "pytest.md").read_text(encoding="utf-8")


def test_every_example_runs(page, pytester):
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    files = {f"test_{i}": block for i, block in enumerate(blocks)}
    pytester.makepyfile(**files)
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-rs", timeout=200)
    taps = KernelHost.tap_available() is None
    linux = sum("posix_peer" in block for block in blocks)
    tests = sum(len(re.findall(r"^def test_", block, re.MULTILINE)) for block in blocks)
    result.assert_outcomes(passed=tests if taps else tests - linux, skipped=0 if taps else linux)


def test_the_tutorial_fails_with_the_seed_that_it_says(page, pytester):
    (source,) = re.findall(
        r"Write `test_echo.py`:\n\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    pytester.makepyfile(test_echo=source)
    seeds = 60 if lib.mn_build_sanitized() else 1000
    args = ("-p", "no:randomly", f"--machnet-seeds={seeds}", "--machnet-shrink")
    result = pytester.runpytest_subprocess(*args, timeout=200)
    result.assert_outcomes(passed=seeds - 1, failed=1)
    lines = section_of(result)
    replay = "replay: pytest 'test_echo.py::test_echo[seed14]' --machnet-sim --machnet-seed=0 "
    assert lines[1].startswith(replay)
    shrunk = lines[lines.index("  from machnet.sim.faults import Drop") - 1 :]
    lost = [line for line in lines if line.endswith("[lost]")]
    assert len(lost) == 3
    for line in [replay, *lost, *shrunk]:
        assert line in page


def test_every_option_marker_argument_and_fixture_is_in_the_reference(page):
    for knob in options.KNOBS.values():
        assert f"| `{knob.option}" in page, knob.option
    for name in (*options.LINK_PARAMETERS, "mtu", "faults"):
        assert re.search(rf"`{name}[`=]", page), name
    for name in cases.FIXTURES:
        assert f"| `{name}` |" in page, name
