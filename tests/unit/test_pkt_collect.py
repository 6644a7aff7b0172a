# SPDX-License-Identifier: MIT
"""Packetdrill scripts as pytest items, and those of our own on machnet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pkt_reader
import pytest

parse = pkt_reader.module("parser").parse
parse_file = pkt_reader.module("parser").parse_file
run = pkt_reader.module("run").run

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "conformance" / "pkt" / "scripts").glob("*.pkt"))
GOOD = "0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3\n+0 listen(3, 1) = 0\n"
CONFTEST = """
import sys
sys.path.insert(0, {support!r})
import pkt_reader
collect = pkt_reader.module("collect")

def pytest_addoption(parser):
    collect.add_options(parser)

def pytest_configure(config):
    config.pluginmanager.register(collect.PktPlugin(), "machnet-pkt")
"""


@pytest.fixture
def session(tmp_path):
    """Run pytest in a directory with such scripts."""
    (tmp_path / "conftest.py").write_text(CONFTEST.format(support=str(ROOT / "tests" / "support")))
    (tmp_path / "test_other.py").write_text("def test_other():\n    pass\n")

    def run_pytest(*arguments: str, **scripts: str):
        for name, text in scripts.items():
            (tmp_path / f"{name}.pkt").write_text(text)
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        environment.pop("PYTEST_ADDOPTS", None)
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-v", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
            timeout=120,
        )  # fmt: skip

    return run_pytest


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_our_own_scripts_pass_on_machnet(path):
    script = parse_file(path)
    if script.arms is not None and "machnet" not in script.arms:
        assert script.arms_reason
        return
    run(script, "machnet")


def test_there_are_scripts():
    assert len(SCRIPTS) >= 25


def test_scripts_are_collected_beside_tests_once_per_arm(session):
    done = session("--collect-only", "-qq", good=GOOD)
    assert (
        "good.pkt::good[machnet]\ngood.pkt::good[linux]\ntest_other.py::test_other" in done.stdout
    )


def test_named_scripts_alone_are_run(session, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "a.pkt").write_text(GOOD)
    (mine / "b.pkt").write_text(GOOD.replace("= 0", "= 1"))
    done = session("--machnet-pkt", "mine/a.pkt", "mine/b.pkt", "--machnet-pkt-arm=machnet", x=GOOD)
    assert done.returncode == 1
    assert "mine/a.pkt::a[machnet] PASSED" in done.stdout
    assert "mine/b.pkt::b[machnet] FAILED" in done.stdout
    assert "b.pkt:2: listen() did not return what the script says" in done.stdout
    assert "result: expected 1, found 0" in done.stdout
    assert "collected 2 items" in done.stdout
    assert "Traceback" not in done.stdout


def test_file_that_is_not_there(session):
    done = session("--machnet-pkt", "nothing.pkt")
    assert done.returncode == 4
    assert "--machnet-pkt: there is no nothing.pkt" in done.stderr


def test_script_that_can_not_be_read_fails_with_its_place(session):
    done = session("--machnet-pkt", "bad.pkt", bad="0 close(3) 0\n")
    assert done.returncode == 1
    assert "bad.pkt:1:12: expected '=' and what close returns, found '0'" in done.stdout
    assert "1 failed" in done.stdout


UDP = "0 socket(..., SOCK_DGRAM, IPPROTO_UDP) = 3\n"


def test_what_an_arm_can_not_do_is_a_skip_with_the_reason_or_a_failure(session):
    done = session("udp.pkt", "-k", "machnet", udp=UDP)
    assert done.returncode == 0
    assert (
        "machnet: not supported: machnet has sockets for AF_INET, SOCK_STREAM only" in done.stdout
    )
    done = session("udp.pkt", "--machnet-pkt-arm=machnet", udp=UDP)
    assert done.returncode == 1
    assert "udp.pkt:1:1: not supported: machnet has sockets for" in done.stdout


def test_script_for_another_arm_is_skipped_with_its_reason(session):
    done = session("one.pkt", "--machnet-pkt-arm=machnet", one=f"// @arms linux: why not\n{GOOD}")
    assert done.returncode == 0
    assert "for linux only: why not" in done.stdout


def test_shell_commands_are_refused_by_default(session):
    done = session("sh.pkt", "--machnet-pkt-arm=machnet", sh=f"{GOOD}+0 `touch made`\n")
    assert done.returncode == 1
    assert "sh.pkt:3:1: a shell command; --machnet-pkt-allow-shell runs those" in done.stdout


def test_the_script_of_the_documentation_runs():
    page = (ROOT / "docs" / "packetdrill.md").read_text(encoding="utf-8")
    (text,) = [block for block in page.split("```\n") if block.startswith("0    socket")]
    log = str(run(parse(text), "machnet"))
    assert log.count("P. 1:1001(1000)") == 2
