# SPDX-License-Identifier: MIT
"""Programs in other languages, built once, and sidecars for them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from language_kit import compile_c, compile_csharp, copy_sources, need, npm_ci, python_command
from sidecar import Sidecar, joined_sidecars

from machnet.cli.paths import lib_dir


def pytest_configure(config: pytest.Config) -> None:
    """Declare what this directory's tests are marked with."""
    config.addinivalue_line("markers", "plain_only: runs no C of ours, or none but what others run")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a sanitizer build has nothing to say about."""
    if "MACHNET_TEST_SANITIZED" not in os.environ:
        return
    spared = [item for item in items if item.get_closest_marker("plain_only") is not None]
    config.hook.pytest_deselected(items=spared)
    items[:] = [item for item in items if item not in spared]


@pytest.fixture(scope="session")
def shim_env() -> dict[str, str]:
    """The environment in which JS and C# find the library under test."""
    return {"MACHNET_LIB": str(lib_dir())}


@pytest.fixture(scope="session")
def js(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """js/ with its dependencies."""
    need("node", "npm")
    directory = tmp_path_factory.mktemp("js")
    copy_sources(repo, ["js"], directory)
    npm_ci(directory / "js")
    return directory / "js"


@pytest.fixture(scope="session")
def csharp(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled HelloWorld."""
    need("mono", "mcs")
    program = tmp_path_factory.mktemp("csharp") / "HelloWorld.exe"
    compile_csharp(sorted((repo / "csharp" / "HelloWorld").glob("*.cs")), program)
    return program


@pytest.fixture(scope="session")
def c_hello(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled examples/hello_world.c."""
    program = tmp_path_factory.mktemp("c") / "hello_world"
    compile_c(repo / "examples" / "hello_world.c", program)
    return program


@pytest.fixture(scope="session")
def hello(repo: Path, request: pytest.FixtureRequest) -> Callable[[str], list[str | Path]]:
    """The command of hello world in a language."""

    def command(language: str) -> list[str | Path]:
        if language == "js":
            return ["node", request.getfixturevalue("js") / "hello_world.js"]
        if language == "csharp":
            return ["mono", request.getfixturevalue("csharp")]
        if language == "c":
            return [request.getfixturevalue("c_hello")]
        return python_command(repo)

    return command


@pytest.fixture(scope="module")
def sidecars() -> Iterator[tuple[Sidecar, Sidecar]]:
    """Two of them, with a cable between them."""
    with joined_sidecars() as both:
        yield both


_PORTS = itertools.count(31600)


@pytest.fixture
def port() -> int:
    """A port that no other test has."""
    return next(_PORTS)
