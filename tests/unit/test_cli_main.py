# SPDX-License-Identifier: MIT
"""The machnet command: what it lists, and that it imports only what it runs."""

from __future__ import annotations

import io
import os
import pathlib
import re
import subprocess
import sys
import types

import click
import pytest
from click.testing import CliRunner

import machnet
from machnet.cli import main as cli
from machnet.cli import msg_gen
from machnet.cli._report import Outcome, Reporter, Sample
from machnet.cli._run import new_stats


def test_version_names_the_package() -> None:
    result = CliRunner().invoke(cli.main, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"machnet, version {machnet.__version__}\n"


def test_no_arguments_show_the_help() -> None:
    result = CliRunner().invoke(cli.main, [])
    assert "Usage: " in result.output


def test_an_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli.main, ["no-such-command"])
    assert result.exit_code == 2
    assert "no-such-command" in result.output


def test_a_command_is_found_listed_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("machnet_test_command")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]

    @click.command()
    @click.option("--number", type=int)
    def main(number: int) -> None:
        click.echo(number + 1)

    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "add-one", (module.__name__, "Adds one."))
    runner = CliRunner()
    assert re.search(r"add-one +Adds one\.", runner.invoke(cli.main, ["--help"]).output)
    assert runner.invoke(cli.main, ["add-one", "--number", "41"]).output == "42\n"


def test_a_command_that_is_not_installed_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "absent", ("machnet.cli.no_such_module", "Is not there."))
    runner = CliRunner()
    assert "absent" not in runner.invoke(cli.main, ["--help"]).output
    assert runner.invoke(cli.main, ["absent"]).exit_code == 2


def test_a_main_that_is_no_click_command_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("machnet_test_command")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.main = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "odd", (module.__name__, "Is not a command."))
    result = CliRunner().invoke(cli.main, ["odd"])
    assert isinstance(result.exception, TypeError)


def test_help_imports_no_subcommand() -> None:
    code = (
        "import sys\n"
        "from machnet.cli.main import COMMANDS, main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print([module for module, _ in COMMANDS.values() if module in sys.modules])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert run.stdout.splitlines()[-1] == "[]"


def test_the_console_script_is_installed() -> None:
    from importlib.metadata import entry_points

    scripts = {script.name: script for script in entry_points(group="console_scripts")}
    assert scripts["machnet"].load() is cli.main
    assert scripts["msg_gen"].value == "machnet.cli.msg_gen:main"
    assert scripts["tcp_msg_gen"].value == "machnet.cli.tcp_msg_gen:main"


def test_a_file_that_cannot_be_made_is_named(tmp_path: pathlib.Path) -> None:
    arguments = ["--local_ip=10.0.0.2", f"--nic=link:{tmp_path}/cable", f"--pcap={tmp_path}/no/x"]
    result = CliRunner().invoke(msg_gen.main, arguments)
    assert result.exit_code == 1
    assert f"msg_gen: {tmp_path}/no/x: No such file or directory\n" in result.output


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize(
    ("module", "options", "begin"),
    [
        ("tcp_msg_gen", ["--local_ip=127.0.0.1", "--local_port=0"], "tcp_msg_gen: "),
        ("main", ["prune", "--dry_run"], "machnet: standard output: "),
        ("main", ["nic", "--help"], "machnet: standard output: "),
    ],
)
def test_lines_that_cannot_be_written_end_a_run_without_a_traceback(
    module: str, options: list[str], begin: str, buffered: str
) -> None:
    code = f"from machnet.cli.{module} import main; main()"
    with pathlib.Path("/dev/full").open("w", encoding="utf-8") as full:
        run = subprocess.run(
            [sys.executable, "-c", code, *options],
            env={**os.environ, "PYTHONUNBUFFERED": buffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (run.returncode, run.stderr) == (1, f"{begin}No space left on device\n")


@pytest.mark.parametrize(("errors", "line"), [(1, None), (3, "Faults of peers: 2")])
def test_a_servers_own_failure_is_not_its_peers(errors: int, line: str | None) -> None:
    out = io.StringIO()
    reporter = Reporter("msg_gen", "server", {}, as_json=False, out=out, err=io.StringIO())
    outcome = Outcome("failure", 1.0, errors=errors, error="the sidecar has ended", ok=False)
    reporter.final(Sample.of(new_stats(), 1.0, keep=True), outcome, 1)
    assert ([text for text in out.getvalue().splitlines() if "Faults" in text] or [None]) == [line]
