# SPDX-License-Identifier: MIT
"""The C# wrapper and its program, under Mono."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from language_kit import PROTOCOLS, compile_csharp, need, run
from sidecar import Sidecar

from machnet.cli.paths import lib_dir

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def api(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled Api.cs."""
    need("mono", "mcs")
    program = tmp_path_factory.mktemp("api") / "Api.exe"
    sources = set((repo / "csharp" / "HelloWorld").glob("*.cs"))
    sources -= {repo / "csharp" / "HelloWorld" / "Program.cs"}
    compile_csharp([HERE / "Api.cs", *sorted(sources)], program)
    return program


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_the_wrapper_can_do(
    api: Path, sidecars: tuple[Sidecar, Sidecar], shim_env: dict[str, str], protocol: str
) -> None:
    sidecar = sidecars[0]
    base = {"udp": 33100, "tcp": 33200}[protocol]
    status, out, err = run(
        ["mono", api, sidecar.ip, protocol, str(base)],
        {**shim_env, "MACHNET_SOCKET": sidecar.socket},
    )
    assert status == 0, out + err
    checks = "Layout Sizes Answers Waiting Failures Closed Threads Collector"
    assert out.split() == checks.split()


@pytest.mark.plain_only
@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "--local is missing"),
        (["--local"], "--local wants a value"),
        (["--local", "10.0.0.300"], "not '10.0.0.300'"),
        (["--local=1"], "not '1'"),
        (["--local", "10.0.0.1", "--remote", "host"], "--remote must be an IPv4 address"),
        (
            ["--local", "10.0.0.1", "--port", "0"],
            "--port must be a number from 1 to 65535, not '0'",
        ),
        (["--local", "10.0.0.1", "--protocol", "stream"], "udp or tcp, not 'stream'"),
        (["--local", "10.0.0.1", "--what", "1"], "unknown argument '--what'"),
    ],
)
def test_wrong_arguments_are_status_2_and_say_why(
    csharp: Path, args: list[str], complaint: str
) -> None:
    status, out, err = run(["mono", csharp, *args], {})
    assert (status, out) == (2, "")
    assert err.startswith("usage: dotnet run --local IP")
    assert complaint in err.splitlines()[-1]


def test_without_a_sidecar_it_says_where_it_looked(
    csharp: Path, shim_env: dict[str, str], tmp_path: Path
) -> None:
    socket = str(tmp_path / "none.sock")
    env = {**shim_env, "MACHNET_SOCKET": socket}
    status, out, err = run(["mono", csharp, "--local", "10.0.0.1"], env)
    assert (status, out) == (1, "")
    assert err == f"ECONNREFUSED: Connection refused, no connection to the sidecar ({socket})\n"


@pytest.mark.plain_only
class TestLibraryIsFound:
    """In the order of docs/languages.md: what is found first is text, and the failure names it."""

    @pytest.fixture
    def project(self, csharp: Path, tmp_path: Path) -> Path:
        """A program where dotnet places it, in a checkout where there is no library."""
        output = tmp_path / "csharp" / "HelloWorld" / "bin" / "Debug" / "net8.0"
        output.mkdir(parents=True)
        (tmp_path / "csharp" / "HelloWorld" / "HelloWorld.csproj").touch()
        shutil.copy(csharp, output)
        return tmp_path

    def look(self, project: Path, **env: str) -> str:
        """What the program says of the library."""
        program = project / "csharp" / "HelloWorld" / "bin" / "Debug" / "net8.0" / "HelloWorld.exe"
        status, out, err = run(
            ["mono", program, "--local", "10.0.0.1"],
            {"MACHNET_LIB": "", "MACHNET_SOCKET": str(project / "none.sock"), **env},
        )
        assert (status, out) == (1, "")
        return err

    def test_from_the_root_to_the_program_and_where_it_is_told(self, project: Path) -> None:
        inner = project / "csharp" / "HelloWorld"
        for directory in (project, inner, inner / "bin" / "Debug" / "net8.0"):
            (directory / "libmachnet_shim.so").write_text("text")
            assert self.look(project).startswith(f"cannot load {directory}/libmachnet_shim.so: ")
        assert "ECONNREFUSED" in self.look(project, MACHNET_LIB=str(lib_dir()))

    def test_nowhere(self, project: Path) -> None:
        said = self.look(project)
        assert "build it with ./build_shim.sh, or say in MACHNET_LIB where it is" in said
        assert f"{project}/csharp/HelloWorld/libmachnet_shim.so" in said
        assert self.look(project, MACHNET_LIB="/no/such.so") == (
            "libmachnet_shim.so not found (MACHNET_LIB names it); looked for: /no/such.so\n"
        )
