# SPDX-License-Identifier: MIT
"""Builds the fuzzers and runs them: first every known input, then new ones.

    python tests/fuzz/run.py [HARNESS ...]                    what CI runs: the same inputs each time
    python tests/fuzz/run.py --seconds 600 [HARNESS ...]      as many new inputs as fit into the time
    python tests/fuzz/run.py --merge [--from DIR] HARNESS     make the checked-in corpus again
    python tests/fuzz/run.py --coverage HARNESS               source coverage of the corpus

Needs clang 14 with its run-time for libFuzzer. The first input that fails ends the run with status 1,
its path and the command that repeats it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# New inputs in CI: a number, not a time, so that a run elsewhere tries the same ones. About a minute.
HARNESSES = {
    "fuzz_engine": 12_000,
    "fuzz_pair": 6_000,
    "fuzz_mnp": 4_000,
    "fuzz_mnp_pair": 600,
    "fuzz_channel": 6_000,
    "fuzz_channel_lanes": 1_500,
    "fuzz_wire": 200_000,
    "fuzz_client": 6_000,
    "fuzz_lanes": 4_000,
}
SEEDS = ["make_seeds.py", "make_client_seeds.py"]
INPUT_BYTES_MAX = 700
INPUT_SECONDS_MAX = 25
CORPUS_BYTES_MAX = 1 << 20
SEED = 1


class Failed(Exception):
    """Something to report; not a bug of this script."""


def compiler() -> str:
    """The clang to build with: CC, or what Debian calls it."""
    return os.environ.get("CC", "clang-14")


def has_fuzzer() -> bool:
    """Whether there is a clang that can link a libFuzzer."""
    cc = compiler()
    if shutil.which(cc.split()[0]) is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.c"
        probe.write_text("int LLVMFuzzerTestOneInput(void) { return 0; }\n")
        command = [
            *cc.split(),
            "-fsanitize=fuzzer,address,undefined",
            probe,
            "-o",
            f"{folder}/probe",
        ]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def run(command: list[str | Path], **kwargs: object) -> None:
    """Runs a command that must succeed, and shows its output when it does not."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **kwargs
    )
    if done.returncode != 0:
        raise Failed(f"{done.stdout}\n{' '.join(map(str, command))}: status {done.returncode}")


def build(build_dir: Path, targets: list[str], *options: str) -> None:
    """Configures once, and builds what is asked for."""
    env = {**os.environ, "CC": compiler()}
    if not (build_dir / "build.ninja").exists():
        setup = ["-Dfuzz=true", "-Dbuildtype=debugoptimized", "-Db_lundef=false", *options]
        run(["meson", "setup", *setup, build_dir, ROOT], env=env)
    run(["ninja", "-C", build_dir, *(f"tests/fuzz/{target}" for target in targets)], env=env)


def known_inputs(harness: str) -> list[Path]:
    """Folders with inputs that were interesting, or failed once."""
    folders = [HERE / "corpus" / harness, HERE / "regressions" / harness]
    return [folder for folder in folders if folder.is_dir()]


class Fuzzer:
    """One harness: its program, and where it leaves what it finds."""

    def __init__(self, build_dir: Path, harness: str) -> None:
        self.name = harness
        self.program = build_dir / "tests" / "fuzz" / harness
        self.findings = build_dir / "findings" / harness
        self.findings.mkdir(parents=True, exist_ok=True)

    def __call__(self, *arguments: str | Path) -> str:
        """Runs the program; its output, or Failed with the input that broke it."""
        command = [
            self.program,
            f"-artifact_prefix={self.findings}/",
            f"-timeout={INPUT_SECONDS_MAX}",
            f"-max_len={INPUT_BYTES_MAX}",
            f"-seed={SEED}",
            *arguments,
        ]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0:
            return done.stdout
        raise Failed(self.explain(done.stdout))

    def explain(self, output: str) -> str:
        """What failed and how to see it again."""
        lines = output.splitlines()
        marker = "Test unit written to "
        path = next((line.split(marker)[1] for line in lines if marker in line), None)
        tail = "\n".join(line for line in lines if not line.startswith("#"))[-6000:]
        return (
            f"{tail}\n\n{self.name} failed on the input {path}\n"
            f"again:    {self.program} {path}\n"
            f"smaller:  {self.program} -minimize_crash=1 -max_total_time=60 {path}\n"
            f"to keep:  copy it to tests/fuzz/regressions/{self.name}/ under a name that says what it is"
        )

    def replay(self) -> int:
        """Runs every known input once; how many."""
        folders = known_inputs(self.name)
        if folders:
            self("-runs=0", *folders)
        return sum(1 for folder in folders for _ in folder.iterdir())

    def fuzz(self, limit: str) -> str:
        """Looks for new inputs that fail; libFuzzer's last words."""
        with tempfile.TemporaryDirectory() as new:
            output = self(limit, "-print_final_stats=1", new, *known_inputs(self.name))
        lines = output.splitlines()
        state = next((line for line in reversed(lines) if re.match(r"#\d", line)), "")
        return state.split(" lim:")[0] + (re.search(r" exec/s: \d+", state) or [""])[0]


def check(fuzzers: list[Fuzzer], seconds: int | None) -> None:
    """Replays everything, then tries new inputs: so many, or each harness for its share of the time."""
    for fuzzer in fuzzers:
        print(f"{fuzzer.name}: {fuzzer.replay()} known inputs pass", flush=True)
    for fuzzer in fuzzers:
        limit = f"-runs={HARNESSES[fuzzer.name]}"
        if seconds is not None:
            limit = f"-max_total_time={max(1, seconds // len(fuzzers))}"
        print(f"{fuzzer.name}: {fuzzer.fuzz(limit)}", flush=True)


def mutated_frames(build_dir: Path) -> None:
    """100,000 mutations of valid frames for each header, each counted under its reason."""
    program = build_dir / "tests" / "fuzz" / "mutated_frames"
    done = subprocess.run(
        [program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        raise Failed(f"{program}: status {done.returncode}")


def merge(fuzzers: list[Fuzzer], more: list[Path]) -> None:
    """Replaces the corpus by the smallest one that reaches the same edges."""
    for fuzzer in fuzzers:
        corpus = HERE / "corpus" / fuzzer.name
        with tempfile.TemporaryDirectory() as folder:
            seeds, result = Path(folder) / "seeds", Path(folder) / "result"
            result.mkdir()
            for script in SEEDS:
                run([sys.executable, HERE / script, seeds])
            sources = [seeds / fuzzer.name, *more, *known_inputs(fuzzer.name)]
            sources = [folder for folder in sources if folder.is_dir()]
            fuzzer("-merge=1", "-use_counters=0", result, *sources)
            size = sum(path.stat().st_size for path in result.iterdir())
            if size > CORPUS_BYTES_MAX:
                raise Failed(f"{fuzzer.name}: a corpus of {size} bytes is too large to check in")
            shutil.rmtree(corpus, ignore_errors=True)
            shutil.copytree(result, corpus)
        print(f"{fuzzer.name}: {sum(1 for _ in corpus.iterdir())} inputs, {size} bytes")


def coverage(build_dir: Path, harness: str, more: list[Path]) -> None:
    """Prints the source coverage of the core by the known inputs."""
    flags = "-Dc_args=-fprofile-instr-generate -fcoverage-mapping"
    build(build_dir, [harness], flags, "-Dc_link_args=-fprofile-instr-generate")
    fuzzer = Fuzzer(build_dir, harness)
    raw, data = build_dir / "fuzz.profraw", build_dir / "fuzz.profdata"
    os.environ["LLVM_PROFILE_FILE"] = str(raw)
    fuzzer("-runs=0", *known_inputs(harness), *more)
    run(["llvm-profdata-14", "merge", "-sparse", raw, "-o", data])
    command = ["llvm-cov-14", "report", fuzzer.program, f"-instr-profile={data}", ROOT / "machnet"]
    subprocess.run(command, check=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("harness", nargs="*", choices=[*HARNESSES, []], help="default: all")
    parser.add_argument(
        "--seconds",
        type=int,
        help="for new inputs, all harnesses together, instead of the number that CI tries",
    )
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build" / "fuzz", help="build directory"
    )
    parser.add_argument("--merge", action="store_true", help="make the corpus again")
    parser.add_argument("--coverage", action="store_true", help="report source coverage")
    parser.add_argument(
        "--from", dest="more", type=Path, action="append", default=[], help="more inputs"
    )
    options = parser.parse_args()
    if not has_fuzzer():
        print(
            f"skipped: {compiler()} cannot link -fsanitize=fuzzer (Debian: clang-14, libclang-rt-14-dev)"
        )
        return 1 if os.environ.get("MACHNET_FUZZ_REQUIRED") else 0
    names = options.harness or list(HARNESSES)
    try:
        if options.coverage:
            coverage(options.build.with_name("fuzz-coverage"), names[0], options.more)
            return 0
        build(options.build, [*names, "mutated_frames"], "-Db_sanitize=address,undefined")
        fuzzers = [Fuzzer(options.build, name) for name in names]
        if options.merge:
            merge(fuzzers, options.more)
        else:
            mutated_frames(options.build)
            check(fuzzers, options.seconds)
    except Failed as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
