# SPDX-License-Identifier: MIT
"""The core takes time, randomness, memory and wake-ups from outside.

Whatever it can't link against it can't call: its objects, joined into one, may leave undefined only
what moves memory, the stack protector, and the host's panic hook.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ALLOWED = {
    "memchr",
    "memcmp",
    "memcpy",
    "memmove",
    "memset",
    "mn_panic",
    "__stack_chk_fail",
    "_GLOBAL_OFFSET_TABLE_",
}

# Without -U, a distribution that turns fortification on by default would have memcpy as __memcpy_chk.
FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-c")


def undefined_symbols(objects: list[Path], joined: Path) -> set[str]:
    """What the objects need from elsewhere, after all that they give each other."""
    subprocess.run(["ld", "-r", "-o", joined, *objects], check=True)
    listing = subprocess.run(
        ["nm", "--undefined-only", "--format=posix", joined],
        check=True,
        capture_output=True,
        text=True,
    )
    return {line.split()[0] for line in listing.stdout.splitlines()}


def compile_all(compiler: str, sources: list[Path], include: Path, into: Path) -> list[Path]:
    into.mkdir()
    objects = []
    for number, source in enumerate(sources):
        target = into / f"{number}_{source.stem}.o"
        subprocess.run([compiler, *FLAGS, f"-I{include}", "-o", target, source], check=True)
        objects.append(target)
    return objects


def find_compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None or shutil.which("ld") is None or shutil.which("nm") is None:
        pytest.skip(f"{name}, ld and nm are needed to look at the core's symbols")
    return found


@pytest.mark.skipif(
    "MACHNET_TEST_SANITIZED" in os.environ, reason="it compiles for itself: once is enough"
)
@pytest.mark.parametrize("compiler", ["gcc", "clang-14"])
def test_the_core_needs_nothing_but_memory_functions_and_the_panic_hook(
    repo: Path, tmp_path: Path, compiler: str
) -> None:
    core = repo / "machnet" / "stack" / "core"
    sources = sorted(core.rglob("*.c"))
    if not core.is_dir():
        pytest.skip("there is no core yet")
    assert sources
    objects = compile_all(find_compiler(compiler), sources, repo, tmp_path / "objects")
    assert undefined_symbols(objects, tmp_path / "core.o") - ALLOWED == set()


@pytest.mark.parametrize(
    ("call", "symbol"),
    [
        ("clock_gettime(0, (struct timespec *)p)", "clock_gettime"),
        ("free(p)", "free"),
        ("(void)random()", "random"),
        ("(void)getpid()", "getpid"),
    ],
)
def test_the_check_sees_a_call_that_the_core_must_not_make(
    tmp_path: Path, call: str, symbol: str
) -> None:
    source = tmp_path / "bad.c"
    source.write_text(
        "#include <stdlib.h>\n#include <time.h>\n#include <unistd.h>\n"
        f"void bad(void *p);\nvoid bad(void *p) {{ (void)p; {call}; }}\n"
    )
    objects = compile_all(find_compiler("gcc"), [source], tmp_path, tmp_path / "objects")
    assert symbol in undefined_symbols(objects, tmp_path / "joined.o") - ALLOWED
