# SPDX-License-Identifier: MIT
"""What the three libraries give out: their interface, and nothing of the engine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from machnet.cli import paths
from machnet.cli.main import main

OURS = {
    "machnet_attach",
    "machnet_close",
    "machnet_connect",
    "machnet_connect_proto",
    "machnet_detach",
    "machnet_fd",
    "machnet_flow_error",
    "machnet_init",
    "machnet_listen",
    "machnet_listen_proto",
    "machnet_recv",
    "machnet_recv_wait",
    "machnet_recvmsg",
    "machnet_send",
    "machnet_sendmmsg",
    "machnet_sendmsg",
    "machnet_set_protocol",
    "machnet_unlisten",
    "machnet_version",
}
ORIGINALS = {
    "machnet_attach",
    "machnet_bind",
    "machnet_connect",
    "machnet_detach",
    "machnet_init",
    "machnet_listen",
    "machnet_recv",
    "machnet_recvmsg",
    "machnet_send",
    "machnet_sendmmsg",
    "machnet_sendmsg",
}
#: Of its data, the sizes.
ORIGINALS_DATA = {"g_ctrl_socket": 4, "g_app_uuid": 16, "g_app_uuid_str": 37}


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols(library: Path) -> dict[str, tuple[str, int]]:
    """Name: kind and size of what the library defines for others."""
    found = {}
    for line in run("nm", "-D", "-S", "--defined-only", library).splitlines():
        fields = line.split()
        # Absolute symbols and those of no size have fewer fields.
        size = int(fields[1], 16) if len(fields) == 4 else 0
        found[fields[-1]] = (fields[-2], size)
    return found


def functions(found: dict[str, tuple[str, int]]) -> set[str]:
    return {name for name, (kind, _) in found.items() if kind == "T"}


def test_the_library_gives_out_its_calls_and_nothing_else() -> None:
    found = symbols(paths.lib_path("lib"))
    assert functions(found) == set(found) == OURS


@pytest.mark.parametrize("build", ["compat", "compat-tcp"])
def test_the_compatible_libraries_give_out_what_the_original_does(build: str) -> None:
    found = symbols(paths.lib_path(build))
    assert functions(found) == ORIGINALS
    assert {name: size for name, (kind, size) in found.items() if kind != "T"} == ORIGINALS_DATA


@pytest.mark.parametrize("build", ["lib", "compat", "compat-tcp"])
def test_each_has_the_originals_soname_and_is_found_under_it(build: str) -> None:
    library = paths.lib_path(build)
    assert "Library soname: [libmachnet_shim.so.0]" in run("readelf", "-d", library)
    assert library.with_name("libmachnet_shim.so.0").is_file()


def test_every_call_is_in_the_header_and_in_the_manual(repo: Path) -> None:
    header = (paths.include_dir() / "machnet.h").read_text()
    manual = (repo / "docs/man/machnet.3").read_text()
    for name in OURS:
        assert f"{name}(" in header
        assert f"{name}(" in manual


def test_machnet_says_where_header_and_library_are() -> None:
    for option, expected in (
        ("--include-dir", paths.include_dir()),
        ("--lib-dir", paths.lib_dir()),
    ):
        result = CliRunner().invoke(main, [option])
        assert (result.exit_code, result.output) == (0, f"{expected}\n")
