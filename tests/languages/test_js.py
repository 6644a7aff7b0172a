# SPDX-License-Identifier: MIT
"""The JavaScript wrapper and its programs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from language_kit import PROTOCOLS, Program, copy_sources, need, run, run_tool
from sidecar import Sidecar

from machnet.cli.paths import lib_dir

HERE = Path(__file__).parent


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_the_wrapper_can_do(
    js: Path, sidecars: tuple[Sidecar, Sidecar], shim_env: dict[str, str], protocol: str
) -> None:
    sidecar = sidecars[0]
    base = {"udp": 32100, "tcp": 32200}[protocol]
    status, out, err = run(
        [
            "node",
            "--test-reporter=tap",
            HERE / "api.js",
            js / "machnet.js",
            sidecar.ip,
            protocol,
            str(base),
        ],
        {**shim_env, "MACHNET_SOCKET": sidecar.socket},
    )
    assert status == 0, out + err
    assert "# fail 0" in out


@pytest.mark.plain_only
def test_types_fit(js: Path) -> None:
    run_tool(["npm", "run", "--silent", "check"], js)


@pytest.mark.plain_only
def test_the_wrapper_has_the_version_of_the_package(
    repo: Path, js: Path, shim_env: dict[str, str]
) -> None:
    version = json.loads((repo / "js" / "package.json").read_text())["version"]
    script = "console.log(require('./machnet').version())"
    assert run(["node", "-e", script], shim_env, js) == (0, f"{version}\n", "")


@pytest.mark.plain_only
def test_what_is_declared_is_what_there_is(js: Path) -> None:
    exported = "console.log(Object.keys(require('./machnet')).sort().join())"
    assert run(["node", "-e", exported], {}, js) == (
        0,
        "Channel,Flow,MSG_MAX_BYTES,MachnetError,attach,libraryPath,version\n",
        "",
    )


@pytest.mark.plain_only
@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], "--local is missing"),
        (["--local"], "argument missing"),
        (["--local", "10.0.0.300"], "not '10.0.0.300'"),
        (["--local", "10.0.0.1", "--remote", "host"], "--remote must be an IPv4 address"),
        (
            ["--local", "10.0.0.1", "--port", "0"],
            "--port must be a number from 1 to 65535, not '0'",
        ),
        (["--local", "10.0.0.1", "--protocol", "stream"], "udp or tcp, not 'stream'"),
        (["--local", "10.0.0.1", "--what"], "Unknown option '--what'"),
        (["--local", "10.0.0.1", "more"], "Unexpected argument 'more'"),
    ],
)
def test_wrong_arguments_are_status_2_and_say_why(
    js: Path, args: list[str], complaint: str
) -> None:
    status, out, err = run(["node", js / "hello_world.js", *args], {})
    assert (status, out) == (2, "")
    assert err.startswith("usage: node hello_world.js --local IP")
    assert complaint in err.splitlines()[-1]


@pytest.mark.plain_only
def test_help_is_no_failure(js: Path) -> None:
    for program in ("hello_world.js", "latency.js"):
        status, out, err = run(["node", js / program, "--help"], {})
        assert (status, err) == (0, "")
        assert out.startswith(f"usage: node {program} --local IP")


def test_without_a_sidecar_it_says_where_it_looked(
    js: Path, shim_env: dict[str, str], tmp_path: Path
) -> None:
    socket = str(tmp_path / "none.sock")
    env = {**shim_env, "MACHNET_SOCKET": socket}
    status, out, err = run(["node", js / "hello_world.js", "--local", "10.0.0.1"], env)
    assert (status, out) == (1, "")
    assert err == f"ECONNREFUSED: connection refused, no connection to the sidecar ({socket})\n"


def test_a_sidecar_that_dies_ends_the_wait(
    js: Path, shim_env: dict[str, str], tmp_path: Path
) -> None:
    with Sidecar(f"link:{tmp_path}/cable") as sidecar:
        env = {**shim_env, "MACHNET_SOCKET": sidecar.socket, "MACHNET_PROTOCOL": "tcp"}
        with Program(["node", js / "hello_world.js", "--local", sidecar.ip], env) as program:
            program.wait_said("listening on")
            sidecar.kill()
            status, out, err = program.finish()
    assert (status, out) == (1, "")
    assert "EPIPE" in err


@pytest.mark.plain_only
class TestLibraryIsFound:
    """In the order of docs/languages.md."""

    SCRIPT = "console.log(require('./machnet').libraryPath())"

    @pytest.fixture
    def checkout(self, js: Path, tmp_path: Path) -> Path:
        """js/ in a directory where there is no library."""
        shutil.copytree(js, tmp_path / "js", symlinks=True)
        return tmp_path

    def look(self, checkout: Path, **env: str) -> tuple[int, str, str]:
        """What the wrapper finds."""
        return run(["node", "-e", self.SCRIPT], {"MACHNET_LIB": "", **env}, checkout / "js")

    def test_beside_the_wrapper_before_the_root_and_where_it_is_told_before_both(
        self, checkout: Path
    ) -> None:
        library = lib_dir() / "libmachnet_shim.so"
        shutil.copy(library, checkout)
        assert self.look(checkout) == (0, f"{checkout}/libmachnet_shim.so\n", "")
        shutil.copy(library, checkout / "js")
        assert self.look(checkout) == (0, f"{checkout}/js/libmachnet_shim.so\n", "")
        assert self.look(checkout, MACHNET_LIB=str(lib_dir())) == (0, f"{library}\n", "")
        assert self.look(checkout, MACHNET_LIB=str(library)) == (0, f"{library}\n", "")

    def test_where_the_system_looks(self, checkout: Path) -> None:
        path = os.pathsep.join([str(lib_dir()), os.environ.get("LD_LIBRARY_PATH", "")])
        assert self.look(checkout, LD_LIBRARY_PATH=path) == (0, "libmachnet_shim.so\n", "")

    def test_nowhere(self, checkout: Path) -> None:
        status, _, err = self.look(checkout)
        assert status != 0
        assert "build it with ./build_shim.sh, or say in MACHNET_LIB where it is" in err
        assert f"{checkout}/js/libmachnet_shim.so, {checkout}/libmachnet_shim.so" in err
        status, _, err = self.look(checkout, MACHNET_LIB="/no/such.so")
        assert "libmachnet_shim.so not found (MACHNET_LIB names it); looked for: /no/such.so" in err

    def test_something_else(self, checkout: Path) -> None:
        (checkout / "text.so").write_text("no library")
        status, _, err = self.look(checkout, MACHNET_LIB=str(checkout / "text.so"))
        assert status != 0
        assert f"cannot load {checkout}/text.so" in err
        status, _, err = self.look(checkout, MACHNET_LIB="libc.so.6")
        assert status != 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_latency_is_measured(
    js: Path, sidecars: tuple[Sidecar, Sidecar], shim_env: dict[str, str], protocol: str, port: int
) -> None:
    first, second = sidecars
    command = ["node", js / "latency.js", "--protocol", protocol, "--port", str(port)]
    server_env = {**shim_env, "MACHNET_SOCKET": first.socket}
    with Program([*command, "--local", first.ip], server_env) as server:
        server.wait_said("listening on")
        work = ["--count", "200", "--warmup", "10", "--size", "1000"]
        client = [*command, "--local", second.ip, "--remote", first.ip, *work]
        client_env = {**shim_env, "MACHNET_SOCKET": second.socket}
        status, out, err = run([*client, "--json"], client_env)
        assert status == 0, err
        result = json.loads(out)
        assert (result["count"], result["size_bytes"]) == (200, 1000)
        order = ["min_us", "p50_us", "p90_us", "p99_us", "p999_us", "max_us"]
        times = [result[name] for name in order]
        assert times == sorted(times)
        assert 0 < result["min_us"] <= result["mean_us"] <= result["max_us"]
        # The server goes on; a person gets a table.
        status, out, err = run(client, client_env)
        assert status == 0, err
        assert out.startswith(f"200 round trips of 1000 bytes with {first.ip}:{port}\n  min ")
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.finish()[0] == -signal.SIGTERM


@pytest.mark.plain_only
def test_the_commands_of_the_seed(
    repo: Path, sidecars: tuple[Sidecar, Sidecar], tmp_path: Path
) -> None:
    """In a fresh checkout, where koffi is not installed either; C# as dotnet would place it."""
    need("node", "npm", "mono", "mcs")
    copy_sources(repo, ["js", "csharp"], tmp_path)
    library = lib_dir() / "libmachnet_shim.so"
    for directory in ("js", "csharp/HelloWorld"):
        shutil.copy(library, tmp_path / directory)
    project = tmp_path / "csharp" / "HelloWorld"
    output = project / "bin" / "Debug" / "net8.0"
    output.mkdir(parents=True)
    sources = sorted(project.glob("*.cs"))
    run_tool(["mcs", "-langversion:7", f"-out:{output}/HelloWorld.exe", *sources], project)
    first, second = sidecars
    env = {"MACHNET_LIB": "", "MACHNET_PROTOCOL": "tcp"}
    server = ["node", "hello_world.js", "--local", first.ip]
    with Program(server, {**env, "MACHNET_SOCKET": first.socket}, tmp_path / "js") as listening:
        listening.wait_said("listening on")
        status, out, err = run(
            ["mono", output / "HelloWorld.exe", "--local", second.ip, "--remote", first.ip],
            {**env, "MACHNET_SOCKET": second.socket},
            project,
        )
        assert (status, out) == (0, ""), err
        status, out, err = listening.finish()
    assert (status, out) == (0, "Hello World!\n"), err
    assert err.startswith("koffi is not installed yet: npm ci --omit=dev\n")
    assert (tmp_path / "js" / "node_modules" / "koffi").is_dir()
