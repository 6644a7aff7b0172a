# SPDX-License-Identifier: MIT
"""The wheel by itself: what is in it, and that it works where nothing else of the project is.

Under tox it is the wheel that tox has built and installed; elsewhere one is built here.
"""

from __future__ import annotations

import dataclasses
import email
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

from machnet import dpdk

pytestmark = [
    pytest.mark.skipif(
        "MACHNET_TEST_SANITIZED" in os.environ,
        reason="the wheel with sanitizers is for tests, not for other environments",
    ),
    pytest.mark.timeout(600),  # building and downloading, where nothing is cached
]

COMMANDS = ("machnet", "msg_gen", "tcp_msg_gen")

TALK = """
import importlib.util, json, sys
import machnet
loaded = sorted(sys.modules)
from machnet.sim import Wire

ends = Wire.pair()
with machnet.Stack(ends[0], ip="10.0.0.1/24") as a, machnet.Stack(ends[1], ip="10.0.0.2/24") as b:
    with a.attach() as client, b.attach() as server:
        server.listen("10.0.0.2", 888, protocol="tcp")
        flow = client.connect("10.0.0.1", "10.0.0.2", 888, protocol="tcp")
        client.send(flow, b"question")
        asked = server.recv(timeout=1.0)
        server.send(asked.flow, b"answer to " + asked.data)
        answer = client.recv(timeout=1.0)
print(json.dumps({
    "answer": answer.data.decode(),
    "file": machnet.__file__,
    "loaded": loaded,
    "found": [name for name in ("pytest", "scapy", "hypothesis") if importlib.util.find_spec(name)],
}))
"""

CONSUMER = """
from __future__ import annotations

import machnet
from machnet.sim import Wire


def ask(stack: machnet.Stack, data: bytes) -> bytes:
    with stack.attach() as channel:
        flow: machnet.Flow = channel.connect("10.0.0.1", "10.0.0.2", 888, protocol="tcp")
        sent: int = channel.send(flow, data, timeout=None)
        message: machnet.Message = channel.recv(timeout=float(sent))
        return message.data


with machnet.Stack(Wire(mtu=1500), ip="10.0.0.1/24", seed=7) as wire_stack:
    answer: bytes = ask(wire_stack, b"x")
"""


def run(argv: list[str | Path], cwd: Path) -> str:
    """A command's output. It runs without anything that would lead it to other packages."""
    names = ("PATH", "HOME", "TMPDIR", "TERM", "SSL_CERT_FILE", "http_proxy", "https_proxy")
    kept = {
        name: value for name, value in os.environ.items() if name in names or name[:4] == "PIP_"
    }
    done = subprocess.run(
        argv, cwd=cwd, env=kept, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def installed_wheel() -> Path | None:
    """The file that the machnet of this environment was installed from, if it is still there."""
    text = importlib.metadata.distribution("machnet").read_text("direct_url.json")
    url = urllib.parse.urlsplit(json.loads(text)["url"] if text else "")
    path = Path(urllib.request.url2pathname(url.path))
    return path if path.suffix == ".whl" and path.is_file() else None


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = installed_wheel()
    if found is None:
        home = tmp_path_factory.mktemp("wheel")
        # What the build needs may be here already; else pip fetches it.
        ready = all(importlib.util.find_spec(name) for name in ("mesonpy", "mesonbuild", "cffi"))
        isolation = ["--no-build-isolation"] if ready else []
        argv = ["pip", "wheel", "-q", "--no-deps", *isolation, "-w", str(home), str(repo)]
        run([sys.executable, "-m", *argv], home)
        (found,) = home.glob("*.whl")
    return found


@dataclasses.dataclass
class Environment:
    """A virtual environment with the wheel and what it depends on, and nothing else."""

    home: Path

    @property
    def python(self) -> Path:
        return self.home / "venv" / "bin" / "python"


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    here = Environment(tmp_path_factory.mktemp("clean"))
    venv.create(here.python.parent.parent, symlinks=True)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", here.python]
    run([*pip, "install", "-q", "--disable-pip-version-check", wheel], here.home)
    return here


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_no_source_of_the_build_is_in_it(wheel: Path) -> None:
    names = names_in(wheel)
    inside = [name for name in names if name.startswith(("machnet/", "pytest_machnet/"))]
    endings = {Path(name).suffix for name in inside}
    assert endings == {".lua", ".py", ".pyi", ".so", ".typed", ".h", ".pc", ".0"}
    libraries = {Path(name).name for name in names if ".so" in name}
    assert libraries - {"_dpdk.abi3.so"} == {
        "_native.abi3.so",
        "libmachnet_shim.so",
        "libmachnet_shim.so.0",
    }
    assert ("_dpdk.abi3.so" in libraries) == dpdk.available()
    assert [name for name in names if name.endswith(".h")] == ["machnet/include/machnet.h"]
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {
        "machnet",
        "pytest_machnet",
    }
    extra = {name.split(".data/")[1] for name in names if ".data/" in name}
    assert extra == {"data/man/man3/machnet.3"}
    assert "machnet/native_build.py" not in names


def test_it_says_what_it_is_and_under_which_licence(wheel: Path, repo: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (home,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = email.message_from_bytes(archive.read(f"{home}/METADATA"))
        licence = archive.read(f"{home}/licenses/LICENSE")
        entries = archive.read(f"{home}/entry_points.txt").decode()
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert licence == (repo / "LICENSE").read_bytes()
    needs = {line.split(">")[0] for line in metadata.get_all("Requires-Dist")}
    assert needs == {
        "cffi",
        "click",
        "rich",
        "msgspec",
        "pcapy-ng",
        "prometheus-client",
        "pyroute2",
    }
    assert all(f"{command} = machnet.cli." in entries for command in COMMANDS)


def test_two_stacks_exchange_messages_in_a_clean_environment(clean: Environment) -> None:
    said = json.loads(run([clean.python, "-I", "-c", TALK], clean.home))
    assert said["answer"] == "answer to question"
    assert clean.home in Path(said["file"]).parents
    assert said["found"] == []  # so that what works here works without them
    # What a library costs at import: no test tools, no netlink, no terminal, no asyncio.
    tops = {name.split(".")[0] for name in said["loaded"]}
    assert tops.isdisjoint({"pytest", "scapy", "pyroute2", "rich", "click", "asyncio"})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_there(clean: Environment, command: str) -> None:
    said = run([clean.python.with_name(command), "--help"], clean.home)
    assert "usage" in said.lower()
    assert command in said


def test_its_types_are_there_for_those_who_use_it(clean: Environment) -> None:
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("no mypy here; the environment `types` has it")
    program = clean.home / "consumer.py"
    program.write_text(CONSUMER)
    strict = ["--strict", "--config-file=", "--cache-dir", str(clean.home / "mypy")]
    argv: list[str | Path] = [sys.executable, "-m", "mypy", *strict]
    said = run([*argv, "--python-executable", clean.python, program], clean.home)
    assert "Success" in said
    program.write_text(CONSUMER + "\nwrong: str = answer\n")
    with pytest.raises(AssertionError, match=r"Incompatible types in assignment"):
        run([*argv, "--python-executable", clean.python, program], clean.home)
