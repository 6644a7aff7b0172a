# SPDX-License-Identifier: MIT
"""The examples of docs/languages.md, run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from language_kit import Program, compile_csharp, need, run
from sidecar import Sidecar, joined_sidecars

pytestmark = pytest.mark.plain_only


@pytest.fixture(scope="module")
def documented() -> Iterator[tuple[Sidecar, Sidecar]]:
    """Sidecars with the addresses of the page."""
    with joined_sidecars(ips=("10.0.0.2", "10.0.0.3")) as both:
        yield both


def blocks(repo: Path, language: str) -> list[str]:
    """The page's code in a language."""
    page = (repo / "docs" / "languages.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def test_the_examples_talk_to_each_other(
    repo: Path,
    js: Path,
    documented: tuple[Sidecar, Sidecar],
    shim_env: dict[str, str],
    tmp_path: Path,
) -> None:
    need("mono", "mcs")
    first, second = documented
    server, client = blocks(repo, "js")
    # The page says that the function has to be there, and the server says nothing when it is ready.
    listening = server.replace("888);\n", "888);\nconsole.error('ready');\n")
    scripts = {}
    for name, text in (("server", listening), ("client", client)):
        scripts[name] = tmp_path / f"{name}.js"
        text = text.replace("./machnet", str(js / "machnet"))
        scripts[name].write_text(f"(async () => {{\n{text}\n}})();\n")
    (example,) = blocks(repo, "csharp")
    (tmp_path / "Client.cs").write_text(example)
    sources = [path for path in (repo / "csharp/HelloWorld").glob("*.cs") if path.stem != "Program"]
    compile_csharp([tmp_path / "Client.cs", *sources], tmp_path / "Client.exe")

    here = {**shim_env, "MACHNET_SOCKET": first.socket}
    there = {**shim_env, "MACHNET_SOCKET": second.socket}
    with Program(["node", scripts["server"]], here) as program:
        program.wait_said("ready")
        expected = (0, "you said hello from 10.0.0.2:888\n", "")
        assert run(["node", scripts["client"]], there) == expected
        assert run(["mono", tmp_path / "Client.exe"], there) == expected
