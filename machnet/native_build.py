# SPDX-License-Identifier: MIT
"""Build steps that meson runs: emit the C source of the extensions, list what not to install.

The declarations that Python sees live in ``cdef.h`` files beside the C code. This script joins
them in a fixed order (later ones use types of earlier ones), writes a prelude that includes the
real headers, and lets cffi generate the extension's source. It is not part of the installed package.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

#: For each module the directories that may have a ``cdef.h``, with the header that its declarations
#: come from.
CDEFS = {
    "native": (
        ("machnet/stack/core", "core.h"),
        ("machnet/stack/core/wire", "wire.h"),
        ("machnet/stack/host", "host.h"),
        ("machnet/sim", "sim.h"),
        ("machnet/cli", "cli.h"),
        ("machnet/shim", "client.h"),
    ),
    "dpdk": (("machnet/dpdk", "dpdk.h"),),
}

#: What ``machnet._native`` says about its own build; needs no other source.
BUILD_CDEF = """
const char *mn_build_version(void);
int mn_build_sanitized(void);
"""

BUILD_SOURCE = """
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MN_BUILD_SANITIZED 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define MN_BUILD_SANITIZED 1
#endif
#ifndef MN_BUILD_SANITIZED
#define MN_BUILD_SANITIZED 0
#endif

static const char *mn_build_version(void) { return MN_VERSION; }
static int mn_build_sanitized(void) { return MN_BUILD_SANITIZED; }
"""

#: The panic hook for a build in which no host part brings one.
PANIC_SOURCE = """
#include <stdio.h>
#include <stdlib.h>

void mn_panic(const char *file, int line, const char *what) __attribute__((noreturn, cold));
void mn_panic(const char *file, int line, const char *what)
{
    fprintf(stderr, "machnet: %s:%d: %s\\n", file, line, what);
    abort();
}
"""


def emit(module: str, root: Path, output: Path, depfile: Path) -> None:
    """Write a module's C source to ``output`` and what it was made from to ``depfile``.

    A ``cdef.h`` that does not exist is left out; its directory is a dependency all the same, so that
    the source is made anew when the file appears.

    Raises:
        cffi.CDefError: A ``cdef.h`` has something that cffi's parser does not take.
    """
    # Only this step needs cffi: the other runs before the build's dependencies are known.
    from cffi import FFI

    ffi = FFI()
    if module == "native":
        ffi.cdef(BUILD_CDEF)
    includes: list[str] = []
    depends: list[Path] = []
    for directory, header in CDEFS[module]:
        if not (root / directory).is_dir():
            continue
        depends.append(root / directory)
        cdef = root / directory / "cdef.h"
        if not cdef.is_file():
            continue
        depends.append(cdef)
        if (root / directory / header).is_file():
            includes.append(f'#include "{directory}/{header}"')
        try:
            ffi.cdef(cdef.read_text(encoding="utf-8"))
        except Exception as error:
            # cffi names a line of the text it was given; the file is what the reader needs too.
            raise SystemExit(f"{cdef}: {error}") from error
    prelude = "\n".join(includes) + "\n"
    if module == "native":
        prelude += BUILD_SOURCE
        if not (root / "machnet/stack/host/meson.build").is_file():
            prelude += PANIC_SOURCE
    ffi.set_source(f"machnet._{module}", prelude)
    ffi.emit_c_code(str(output))
    names = " ".join(str(path).replace(" ", "\\ ") for path in depends)
    depfile.write_text(f"{output.name}: {names}\n", encoding="utf-8")


def _installed(path: Path) -> bool:
    """Whether a file is for the run-time."""
    if path == Path(__file__).resolve():
        return False
    return path.suffix in {".py", ".pyi", ".lua"} or path.name == "py.typed"


def unwanted(package: Path) -> list[str]:
    """Paths under ``package`` that are no part of an installed wheel; directories end in ``/``."""
    names: list[str] = []
    for path in sorted(package.rglob("*")):
        relative = path.relative_to(package)
        if "__pycache__" in relative.parts[:-1]:
            continue
        if path.is_dir():
            if path.name == "__pycache__" or not any(_installed(one) for one in path.rglob("*")):
                names.append(f"{relative}/")
        elif not _installed(path):
            names.append(str(relative))
    return names


def main(argv: list[str]) -> None:
    """Run the step that the first argument names."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("emit")
    step.add_argument("--module", choices=tuple(CDEFS), default="native")
    step.add_argument("--root", type=Path, required=True)
    step.add_argument("--output", type=Path, required=True)
    step.add_argument("--depfile", type=Path, required=True)
    step = steps.add_parser("unwanted")
    step.add_argument("package", type=Path)
    options = parser.parse_args(argv)
    if options.step == "emit":
        emit(options.module, options.root, options.output, options.depfile)
    else:
        print("\n".join(unwanted(options.package)))


if __name__ == "__main__":
    main(sys.argv[1:])
