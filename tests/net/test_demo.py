# SPDX-License-Identifier: MIT
"""``machnet demo``: real pairs of processes, what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from dpdk_kit import need_dpdk, need_root, reserve_huge_pages

from machnet.cli import _pair, demo
from machnet.cli._pair import Case, Lab, Placement, judge
from machnet.sim import KernelHost

TIMEOUT_S = 90
SHORT = ["--seconds=0.3", "--size=64", "--window=8"]


@pytest.fixture(scope="module")
def tap() -> None:
    if reason := KernelHost.tap_available():
        pytest.skip(reason)


def run(*args: str) -> tuple[int, str, str]:
    code = "from machnet.cli.main import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "demo", *args],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return result.returncode, result.stdout, result.stderr


# --- a run -------------------------------------------------------------------------------------


def test_json_has_all_experiments_and_the_kernel_for_scale(tap):
    code, out, err = run("--json", *SHORT)
    assert code == 0, err
    result = json.loads(out)
    assert set(result) == {"experiments", "baseline", "ok", "seconds_each", "machine"}
    assert (result["ok"], result["seconds_each"]) == (True, 0.3)
    rows = [*result["baseline"], *result["experiments"]]
    ends = [(row["experiment"], row["protocol"], row["client"], row["server"]) for row in rows]
    assert ends == [
        (0, "tcp", "posix", "posix"),
        (1, "tcp", "posix", "machnet"),
        (2, "tcp", "machnet", "machnet"),
        (2, "udp", "machnet", "machnet"),
        (3, "tcp", "machnet", "posix"),
    ]
    for row in rows:
        assert set(row) == {
            "experiment", "protocol", "client", "server", "msg_size", "msg_window", "seconds",
            "msgs_per_s", "latency_us", "errors",
        }  # fmt: skip
        assert (row["msg_size"], row["msg_window"]) == (64, 8)
        assert row["errors"] == 0
        assert row["seconds"] >= 0.3
        assert row["msgs_per_s"] > 0
        assert list(row["latency_us"]) == ["p50", "p99", "p99.9"]
        figures = list(row["latency_us"].values())
        assert 0 < figures[0] <= figures[1] <= figures[2]
    assert result["machine"]["cpus"] == os.cpu_count()
    assert result["machine"]["nic"] == "tap"
    assert err.splitlines()[0].startswith("[1/5] kernel at both ends, 64 bytes, window 8: ")
    assert err.splitlines()[-1].startswith("[5/5] experiment 3, 64 bytes, window 8: ")


def test_with_dpdk_the_table_has_the_same_rows():
    need_dpdk()
    need_root()
    reserve_huge_pages()
    code, out, err = run(*SHORT, "--seconds=0.1", "--nobaseline", "--protocol=udp", "--dpdk")
    assert code == 0, err
    for row in ("kernel -> machnet, tcp", "machnet -> machnet, udp", "machnet -> kernel, tcp"):
        assert row in out
    assert "net_af_packet over veths" in " ".join(out.split())
    assert out.endswith("Every message came back right.\n")


def test_dpdk_wants_root_and_to_be_there(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(demo.main, ["--dpdk"])
    assert result.exit_code == demo.EXIT_UNAVAILABLE
    assert "--dpdk takes root" in result.output
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("machnet.dpdk.available", lambda: False, raising=False)
    monkeypatch.setattr("machnet.dpdk.missing_reason", lambda: "install it", raising=False)
    result = CliRunner().invoke(demo.main, ["--dpdk"])
    assert result.exit_code == demo.EXIT_UNAVAILABLE
    assert "this can't be run here: install it" in result.output


def test_a_table_of_what_was_asked_for(tap):
    args = ["--experiment=3", "--size", "1000", "--window=1", "--window=2", "--nobaseline"]
    code, out, err = run("--seconds", "0.2", *args)
    assert code == 0, err
    # In the rows. The caption says it too, but breaks its lines where the figures' widths have it.
    assert out.count("machnet -> kernel, tcp") == 2
    assert "Experiment 1: kernel -> machnet" in out
    assert "kernel -> kernel" not in out
    assert out.splitlines()[-1] == "Every message came back right."
    assert len(err.splitlines()) == 2
    assert max(map(len, out.splitlines())) <= 100


def test_a_sidecar_that_died_is_an_outcome_and_the_next_one_is_another(tap):
    case = Case(2, 64, 8)
    with Lab(0.2, Placement(None, None, "adaptive")) as lab:
        assert lab.measure(case).errors == 0
        far = lab._sidecars["mnb"]
        far._process.kill()
        far._process.wait()
        outcome = lab.measure(case)
        assert outcome.errors >= 1
        assert outcome.error is not None
        assert lab.measure(case).errors == 0


@pytest.mark.parametrize("server", ["posix", "machnet"])
def test_a_pair_that_can_not_start_is_an_outcome(tap, monkeypatch, server):
    monkeypatch.setitem(_pair._MODULES, server, "machnet.cli.nothing")
    case = Case(1 if server == "machnet" else 3, 64, 8)
    with Lab(0.2, Placement(None, None, "adaptive")) as lab:
        outcome = lab.measure(case)
        assert "nothing" in outcome.error, outcome.error
        assert (outcome.errors, outcome.msgs_per_s) == (1, 0.0)
        monkeypatch.undo()
        # And the hosts are as good as before.
        assert lab.measure(case).errors == 0
    assert outcome.as_json()["error"] == outcome.error


# --- how it ends -------------------------------------------------------------------------------


def children(pid: int) -> set[int]:
    """All descendants of a process."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{todo.pop()}/task").iterdir():
                below = {int(word) for word in (task / "children").read_text().split()}
                todo += below - found
                found |= below
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


@pytest.fixture
def running(tap) -> Iterator[subprocess.Popen[str]]:
    """A demo in a process group of its own, in the middle of its second measurement."""
    code = "from machnet.cli.main import main; main()"
    command = [sys.executable, "-c", code, "demo", "--seconds=5", "--json", "--window=1"]
    first = ["--size=64", "--experiment=2", "--nobaseline"]
    with subprocess.Popen(
        [*command, *first],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while not any(is_client(pid) for pid in children(process.pid)):
                assert time.monotonic() < deadline
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def is_client(pid: int) -> bool:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return any(word.startswith(b"--remote_ip=") for word in words) and b"exec" not in words
    return False


@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "termin")],
)
def test_a_signal_ends_it_and_all_that_it_started(running, number, code, word, whole_group):
    below = children(running.pid)
    assert len(below) >= 6  # two hosts, two sidecars, a server and a client
    if whole_group:
        os.killpg(running.pid, number)
    else:
        running.send_signal(number)
    out, err = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == code, err
    assert out == ""
    assert err.splitlines()[-1].startswith(f"machnet demo: {word}")
    assert "Traceback" not in err
    # The holders of the namespaces leave when their owner is gone, a moment later.
    deadline = time.monotonic() + TIMEOUT_S
    while left := [pid for pid in below if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def test_where_it_can_not_run_it_says_why(monkeypatch):
    monkeypatch.setattr(KernelHost, "tap_available", staticmethod(lambda: "no /dev/net/tun"))
    result = CliRunner().invoke(demo.main, ["--json"])
    assert result.exit_code == 3
    assert result.output == "machnet demo: this can't be run here: no /dev/net/tun\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seconds=6"], "'6' is more than 5 seconds"),
        (["--seconds=0"], "'0' is not a positive number"),
        (["--experiment=4"], "'4' is not one of"),
        (["--protocol=mnp"], "'mnp' is not one of"),
        (["--size=8"], "from 9 to 8388608 bytes"),
        (["--window=0"], "from 1 to 65536 messages"),
        (["--client_cpu=1023"], "CPU 1023 is not one that this process may run on"),
    ],
)
def test_a_wrong_command_line_is_status_2(monkeypatch, args, message):
    monkeypatch.setattr(KernelHost, "tap_available", staticmethod(lambda: None))
    result = CliRunner().invoke(demo.main, args)
    assert result.exit_code == 2
    assert message in result.output


def test_one_failed_measurement_is_status_1(monkeypatch):
    class Broken:
        def __init__(self, _seconds: float, _placement: Placement, *, dpdk: bool) -> None: ...

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_exc: object) -> None: ...

        def measure(self, case: Case) -> _pair.Outcome:
            bad = case.experiment == 3
            result = final(**({"errors": 2, "exit_code": 1} if bad else {}))
            return judge(case, result, final())

    monkeypatch.setattr(KernelHost, "tap_available", staticmethod(lambda: None))
    monkeypatch.setattr(demo, "Lab", Broken)
    for as_json in (True, False):
        args = ["--size=64", "--window=1", *(["--json"] if as_json else [])]
        result = CliRunner().invoke(demo.main, args)
        assert result.exit_code == 1
        assert "client: 2 errors" in result.stderr
        if as_json:
            rows = json.loads(result.stdout)["experiments"]
            assert [row["errors"] for row in rows] == [0, 0, 0, 2]
        else:
            assert "Not every message came back right." in result.stdout


# --- its parts ---------------------------------------------------------------------------------


def final(**changes: Any) -> dict[str, Any]:
    """What a message generator says at its end, when all went well."""
    usual = {
        "errors": 0, "exit_code": 0, "error": None, "tx_msgs": 10, "rx_msgs": 10,
        "rx_msgs_per_s": 10.0, "elapsed_s": 1.0,
        "latency_us": {"min": 1, "p50": 2.0, "p90": 2, "p99": 3.0, "p99.9": 4.0, "max": 5},
    }  # fmt: skip
    return {**usual, **changes}


def test_a_good_pair_has_no_errors():
    outcome = judge(Case(1, 64, 8), final(), final())
    assert (outcome.errors, outcome.error) == (0, None)
    assert outcome.latency_us == {"p50": 2.0, "p99": 3.0, "p99.9": 4.0}


@pytest.mark.parametrize(
    ("client", "server", "errors", "error"),
    [
        ({"errors": 3, "exit_code": 1}, {}, 3, "client: 3 errors"),
        ({"errors": 0, "exit_code": 1, "error": "refused"}, {}, 1, "client: refused"),
        ({}, {"errors": 1}, 1, "server: 1 errors"),
        ({"rx_msgs": 9}, {}, 1, "10 sent, 10 arrived, 10 answered, 9 came back"),
        ({}, {"rx_msgs": 11}, 1, "10 sent, 11 arrived, 10 answered, 10 came back"),
        (
            {"tx_msgs": 0, "rx_msgs": 0, "latency_us": None},
            {"tx_msgs": 0, "rx_msgs": 0},
            1,
            "no message was answered",
        ),
    ],
)
def test_anything_wrong_is_counted_and_named(client, server, errors, error):
    outcome = judge(Case(3, 64, 8), final(**client), final(**server))
    assert (outcome.errors, outcome.error) == (errors, error)


def test_what_is_compared_runs_one_after_another():
    cases = demo.plan((1, 3), (64, 1024), (1, 8), baseline=True)
    assert [case.experiment for case in cases] == [0, 1, 3] * 4
    assert [(case.msg_size, case.msg_window) for case in cases[::3]] == [
        (64, 1), (64, 8), (1024, 1), (1024, 8),
    ]  # fmt: skip
    assert {case.experiment for case in demo.plan((3,), (64,), (1,), baseline=False)} == {3}
    both = demo.plan((2, 3), (64,), (1,), baseline=False)
    assert [(case.experiment, case.protocol) for case in both] == [
        (2, "tcp"),
        (2, "udp"),
        (3, "tcp"),
    ]


@pytest.mark.parametrize(
    ("allowed", "given", "chosen"),
    [
        ({0}, (None, None), (None, None)),
        ({0, 1}, (None, None), (0, 1)),
        ({2, 5, 7}, (None, None), (2, 5)),
        ({0, 1}, (1, None), (1, 0)),
        ({0, 1}, (None, 0), (1, 0)),
        ({0, 1}, (1, 1), (1, 1)),
    ],
)
def test_each_end_gets_a_cpu_of_its_own_where_there_are_two(monkeypatch, allowed, given, chosen):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: allowed)
    placement = Placement.choose(*given, "busy")
    assert (placement.client_cpu, placement.server_cpu) == chosen
    # Who spins on a shared CPU keeps the other end from answering.
    assert ("--spin_us=0" in placement.flags()) == (chosen[0] == chosen[1])
