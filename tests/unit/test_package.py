# SPDX-License-Identifier: MIT
"""What every build must have, whatever else is in it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import machnet
import machnet._lazy
from machnet import dpdk
from machnet._native import ffi, lib


def installed_files() -> list[str]:
    """The files of the installed wheel; skips where machnet is an editable install."""
    files = importlib.metadata.files("machnet") or []
    if any(path.name == "_machnet_editable_loader.py" for path in files):
        pytest.skip("an editable install has no files of its own; tox runs this against a wheel")
    return [str(path) for path in files]


def test_package_metadata_and_extension_have_one_version() -> None:
    assert ffi.string(lib.mn_build_version()).decode() == machnet.__version__
    assert importlib.metadata.version("machnet") == machnet.__version__


def test_under_tox_the_wheel_is_tested_and_not_the_checkout(repo: Path) -> None:
    if "MACHNET_TEST_INSTALLED" not in os.environ:
        pytest.skip("not run by tox, which sets MACHNET_TEST_INSTALLED")
    package = Path(machnet.__file__).resolve().parent
    assert package != repo / "machnet"
    assert Path(sys.prefix).resolve() in package.parents
    # And so it is for the processes that tests start.
    code = "import machnet; print(machnet.__file__)"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert Path(other.stdout.strip()).resolve().parent == package


@pytest.mark.parametrize("name", ["machnet.Stack", "machnet.sim.Wire"])
def test_sources_that_are_not_built_say_so(tmp_path: Path, name: str) -> None:
    package = Path(machnet._lazy.__file__).resolve().parent
    shutil.copytree(
        package, tmp_path / "machnet", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    # Without `site`, which knows where an editable install is; with what it needs besides.
    path = os.pathsep.join([str(tmp_path), str(Path(msgspec.__file__).resolve().parents[1])])
    result = subprocess.run(
        [sys.executable, "-S", "-c", f"import machnet, machnet.sim; {name}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 1
    assert f"{tmp_path / 'machnet'} is not a built machnet" in result.stderr.splitlines()[-1]


def test_the_sanitized_build_is_sanitized_and_no_other_is() -> None:
    assert bool(lib.mn_build_sanitized()) == ("MACHNET_TEST_SANITIZED" in os.environ)


def test_the_wheel_has_every_python_file_and_nothing_else_of_the_sources(repo: Path) -> None:
    installed = {name for name in installed_files() if not name.endswith(".pyc")}
    expected = {
        str(path.relative_to(repo))
        for package in ("machnet", "pytest_machnet")
        for path in (repo / package).rglob("*.py*")
        if path.suffix in {".py", ".pyi"} and path.name != "native_build.py"
    }
    expected |= {"machnet/py.typed", "machnet/_native.abi3.so", "machnet/data/mnp.lua"}
    if dpdk.available():
        expected.add("machnet/_dpdk.abi3.so")
    expected |= {"machnet/include/machnet.h", "machnet/lib/pkgconfig/machnet.pc"}
    expected |= {
        f"machnet/lib/{build}libmachnet_shim.so{soname}"
        for build in ("", "compat/", "compat-tcp/")
        for soname in ("", ".0")
    }
    packages = {name for name in installed if name.startswith(("machnet/", "pytest_machnet/"))}
    assert packages == expected


def test_the_wheel_is_tagged_for_the_stable_abi() -> None:
    installed_files()
    wheel = importlib.metadata.distribution("machnet").read_text("WHEEL")
    assert wheel is not None
    assert "-abi3-" in wheel
    suffix = Path(sys.modules["machnet._native"].__file__ or "").name
    assert suffix == "_native.abi3.so"
