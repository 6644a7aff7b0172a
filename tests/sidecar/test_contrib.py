# SPDX-License-Identifier: MIT
"""The service's unit, the Dockerfile and the example configuration fit what there is."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from machnet.cli import main as cli
from machnet.sidecar.config import SOCKET_DEFAULT, load_config


@pytest.fixture
def contrib(repo: Path) -> Path:
    return repo / "contrib"


def test_the_example_configuration_is_right(contrib: Path) -> None:
    result = CliRunner().invoke(cli.main, ["check", str(contrib / "machnet.json")])
    assert result.exit_code == 0, result.output


class Unit(configparser.RawConfigParser):
    """A unit's sections; names keep their case."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=True, interpolation=None)
        self.optionxform = str  # type: ignore[assignment, method-assign]
        self.read_string(path.read_text(encoding="utf-8"))


def test_the_unit_runs_commands_that_exist_and_waits_for_their_word(contrib: Path) -> None:
    service = Unit(contrib / "machnet.service")["Service"]
    assert service["Type"] == "notify"
    for name, words in (
        ("ExecStartPre", ["check", "/etc/machnet/machnet.json"]),
        ("ExecStart", ["run", "--config", "/etc/machnet/machnet.json"]),
    ):
        program, command, *arguments = shlex.split(service[name])
        assert Path(program).name == "machnet"
        assert [command, *arguments] == words
        assert command in cli.COMMANDS
    help_text = CliRunner().invoke(cli.main, ["run", "--help"]).output
    assert "--config" in help_text


def test_the_unit_makes_the_directory_of_the_socket_and_waits_for_the_drain(
    contrib: Path,
) -> None:
    service = Unit(contrib / "machnet.service")["Service"]
    directory = Path("/run") / service["RuntimeDirectory"]
    assert str(directory / Path(SOCKET_DEFAULT).name) == SOCKET_DEFAULT.removeprefix("/var")
    drain_ms = load_config(contrib / "machnet.json").controller.drain_ms
    assert int(service["TimeoutStopSec"]) > drain_ms / 1000 + 2


def copied(dockerfile: Path) -> list[tuple[list[str], str]]:
    """Sources, from the checkout, and the destination of each COPY."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text(encoding="utf-8"))
    found = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["COPY"] and not words[1].startswith("--from"):
            found.append((words[1:-1], words[-1]))
    return found


def test_the_image_copies_all_that_the_build_needs(
    repo: Path, contrib: Path, tmp_path: Path
) -> None:
    for sources, target in copied(contrib / "Dockerfile"):
        for source in sources:
            path = repo / source
            assert path.exists(), source
            if target.startswith("/"):
                continue
            inside = tmp_path / (target if target not in {"./", "."} else source)
            inside.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, inside, ignore=ignore)
            else:
                shutil.copy(path, inside)
    # tomllib came with Python 3.11.
    project = (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    (readme,) = re.findall(r'^readme = "(.+)"$', project, re.MULTILINE)
    (licence,) = re.findall(r'^license-files = \["(.+)"\]$', project, re.MULTILINE)
    for name in (readme, licence):
        assert (tmp_path / name).is_file()
    # What a build file names beside it is there.
    for build in tmp_path.rglob("meson.build"):
        text = build.read_text(encoding="utf-8")
        for name in re.findall(
            r"install_data\(\s*'([^']+)'|configure_file\(\s*input: '([^']+)'", text
        ):
            assert (build.parent / (name[0] or name[1])).resolve().is_file(), (build, name)
        for name in re.findall(r"^subdir\('([^']+)'\)", text, re.MULTILINE):
            assert (build.parent / name / "meson.build").is_file(), (build, name)


def test_the_image_runs_the_sidecar_with_the_file_that_it_has(contrib: Path) -> None:
    lines = (contrib / "Dockerfile").read_text(encoding="utf-8").splitlines()
    words = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines if line[:3] in {"CMD", "ENT"}}  # fmt: skip
    assert json.loads(words["ENTRYPOINT"]) == ["machnet"]
    command, option, path = json.loads(words["CMD"])
    assert command in cli.COMMANDS
    assert option == "--config"
    assert ["contrib/machnet.json"] in [s for s, t in copied(contrib / "Dockerfile") if t == path]
