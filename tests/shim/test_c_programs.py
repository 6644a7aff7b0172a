# SPDX-License-Identifier: MIT
"""Programs in C and C++ against the three libraries, with a real sidecar."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shim_kit import IP, PATIENCE_S, PORT, SANITIZED, Compiler, Program, have
from sidecar import Sidecar, joined_sidecars

import machnet
from machnet.cli import paths

PROGRAMS = Path(__file__).parent / "programs"
LANGUAGES = {"C": ("gcc", "-std=c99"), "C++": ("g++", "-x", "c++")}


@pytest.fixture(scope="module")
def hello(compiler: Compiler, hello_source: Path) -> dict[str, Path]:
    """The hello world, as C and as C++."""
    return {
        name: compiler.build(hello_source, f"hello-{len(name)}", command=command)
        for name, command in LANGUAGES.items()
        if have(command[0])
    }


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Sidecar, Sidecar]]:
    with joined_sidecars() as both:
        yield both


def greet(
    server: tuple[Sidecar, Path], client: tuple[Sidecar, Path], protocol: str
) -> tuple[str, str]:
    """What the server has printed, and the client."""
    (there, serve), (here, call) = server, client
    env = {"MACHNET_PROTOCOL": protocol}
    with Program(serve, "--local", there.ip, socket=there.socket, **env) as program:
        assert program.line() == f"listening on {there.ip}:31580"
        with Program(
            call, "--local", here.ip, "--remote", there.ip, socket=here.socket, **env
        ) as caller:
            assert caller.ends_well() == ""
        assert program.line().startswith(f"received from {here.ip}:")
        return program.ends_well(), there.ip


def test_every_compiler_of_the_tests_is_there(hello: dict[str, Path]) -> None:
    assert set(hello) == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_program_that_sends_a_string_needs_no_other_header(
    compiler: Compiler, tmp_path: Path, language: str
) -> None:
    source = tmp_path / "string.c"
    source.write_text(
        "#include <machnet.h>\n"
        "int main(void) {\n"
        "    MachnetFlow_t flow = {0, 0, 0, 0};\n"
        '    return machnet_send(NULL, flow, "hello", strlen("hello"), NULL) == -1 ? 0 : 1;\n'
        "}\n"
    )
    program = compiler.build(source, f"string-{len(language)}", command=LANGUAGES[language])
    with Program(program, socket="nowhere") as running:
        assert running.result()[0] == 0


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize(("server", "client"), [("C", "C++"), ("C++", "C")])
def test_hello_world_between_two_applications_of_one_sidecar(
    sidecar: Sidecar, hello: dict[str, Path], server: str, client: str, protocol: str
) -> None:
    said, _ = greet((sidecar, hello[server]), (sidecar, hello[client]), protocol)
    assert said == "Hello World!\n"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_hello_world_between_two_sidecars(
    pair: tuple[Sidecar, Sidecar], hello: dict[str, Path], protocol: str
) -> None:
    first, second = pair
    assert greet((first, hello["C"]), (second, hello["C++"]), protocol)[0] == "Hello World!\n"
    assert greet((second, hello["C++"]), (first, hello["C"]), protocol)[0] == "Hello World!\n"


def test_hello_world_says_what_is_wrong_with_its_arguments(hello: dict[str, Path]) -> None:
    for arguments, word in (
        ([], "usage"),
        (["--local", "10.0.0.300"], "'10.0.0.300'"),
        (["--local", IP, "--remote", "b"], "--remote must be an IPv4 address"),
        (["--local", IP, "--port", "0"], "--port"),
        (["--local", IP, "--protocol", "sctp"], "--protocol"),
    ):
        with Program(hello["C"], *arguments, socket="nowhere") as program:
            status, _, err = program.result()
        assert (status, word in err) == (2, True)


def test_without_a_sidecar_it_fails_at_once_and_the_library_is_silent(
    hello: dict[str, Path], tmp_path: Path
) -> None:
    missing = str(tmp_path / "nobody")
    start = time.monotonic()
    with Program(hello["C"], "--local", IP, socket=missing) as program:
        status, out, err = program.result()
    assert time.monotonic() - start < 2
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "Connection refused" in err
    with Program(hello["C"], "--local", IP, socket=missing, MACHNET_DEBUG="1") as program:
        assert (
            f"machnet: connecting: Connection refused: no sidecar at {missing}"
            in (program.result()[2])
        )


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("end", ["exit", "kill"])
@pytest.mark.parametrize(("count", "size"), [(3000, 64), (40, 200_000)])
def test_an_application_that_sends_and_is_gone_loses_nothing(
    sidecar: Sidecar, compiler: Compiler, count: int, size: int, end: str, protocol: str
) -> None:
    burst = compiler.build(PROGRAMS / "burst.c", "burst")
    arguments = (str(count), str(size), end)
    got = []
    with machnet.attach(sidecar.socket) as channel:
        channel.listen(IP, PORT, protocol=protocol)
        with Program(
            burst, *arguments, socket=sidecar.socket, MACHNET_PROTOCOL=protocol
        ) as program:
            while len(got) < count:
                message = channel.recv(timeout=PATIENCE_S)
                assert len(message.data) == size
                got.append(int.from_bytes(message.data[:4], "little"))
            status = program.result()[0]
    assert got == list(range(count))
    assert status == (-signal.SIGKILL if end == "kill" else 0)


def test_a_forked_child_has_channels_of_its_own(sidecar: Sidecar, compiler: Compiler) -> None:
    program = compiler.build(PROGRAMS / "fork.c", "fork", command=("gcc", "-std=gnu99"))
    with Program(program, socket=sidecar.socket, MACHNET_PROTOCOL="tcp") as running:
        running.ends_well()


@pytest.mark.parametrize(
    ("library", "flags", "protocol"),
    [("compat", (), "udp"), ("compat", (), "tcp"), ("compat-tcp", ("-DTCP_BRANCH",), "tcp")],
)
def test_programs_for_the_original_run_with_its_manners(
    sidecar: Sidecar, compiler: Compiler, library: str, flags: tuple[str, ...], protocol: str
) -> None:
    program = compiler.build(PROGRAMS / "compat.c", library, library, flags=flags)
    needed = subprocess.run(
        ["readelf", "-d", program], check=True, capture_output=True, text=True
    ).stdout
    assert "[libmachnet_shim.so.0]" in needed
    # The TCP branch's programs say it themselves.
    env = "" if library == "compat-tcp" else protocol
    with (
        Program(program, socket=sidecar.socket, MACHNET_PROTOCOL=env) as running,
        machnet.attach(sidecar.socket) as channel,
    ):
        assert running.line() == "serving"
        flow = channel.connect(IP, IP, 1888, protocol=protocol)
        # The message transport has no empty ones.
        for data in (b"one",) if protocol == "udp" else (b"", b"one", b""):
            flow.send(data)
        while channel.get_option(flow, 12) != 0:  # MN_OPT_SNDQ
            pass
        flow.close(linger=0)
        flow = channel.connect(IP, IP, 1888, protocol=protocol)
        flow.send(b"done")
        assert running.ends_well().splitlines() == ["one", "done"]


def test_a_compatible_library_takes_no_stream(sidecar: Sidecar, compiler: Compiler) -> None:
    program = compiler.build(PROGRAMS / "compat.c", "compat-stream", "compat")
    with Program(
        program, socket=sidecar.socket, MACHNET_PROTOCOL="stream", MACHNET_DEBUG="1"
    ) as running:
        status, _, err = running.result()
    assert status == 1
    assert "a stream of bytes has no messages" in err


def test_build_shim_makes_all_three_with_a_compiler_alone(
    repo: Path, sidecar: Sidecar, compiler: Compiler, hello_source: Path, tmp_path: Path
) -> None:
    flags = "-O0 -DMN_SHIM_CHECKED" + (" -fsanitize=address,undefined" if SANITIZED else "")
    subprocess.run(
        [repo / "build_shim.sh", tmp_path],
        check=True,
        env={
            "PATH": os.environ["PATH"],
            "CC": "gcc",
            "CFLAGS": flags,
        },
    )
    made = [tmp_path / where / "libmachnet_shim.so" for where in (".", "compat", "compat-tcp")]
    assert all(path.is_file() and path.with_name(path.name + ".0").exists() for path in made)
    built = compiler.build(hello_source, "hello-built", tmp_path)
    assert greet((sidecar, built), (sidecar, built), "tcp")[0] == "Hello World!\n"
    threads = compiler.build(PROGRAMS / "threads.c", "threads", tmp_path, flags=("-pthread",))
    with Program(threads, socket=sidecar.socket, MACHNET_DEBUG="1") as running:
        status, _, err = running.result()
    assert (status, "another thread is using this channel" in err) == (0, True), err


def test_pkg_config_finds_header_and_library(
    sidecar: Sidecar, compiler: Compiler, hello_source: Path
) -> None:
    if not have("pkg-config"):
        pytest.skip("pkg-config is not installed")
    folder = paths.lib_dir() / "pkgconfig"
    if not folder.is_dir():
        pytest.skip("an editable install has no machnet.pc in its place; tox runs this on a wheel")
    said = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "machnet"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PKG_CONFIG_PATH": str(folder)},
    ).stdout.split()
    include = next(word[2:] for word in said if word.startswith("-I"))
    library = next(word[2:] for word in said if word.startswith("-L"))
    assert (Path(include) / "machnet.h").is_file()
    assert (Path(library) / "libmachnet_shim.so").is_file()
    assert "-lmachnet_shim" in said
