# SPDX-License-Identifier: MIT
"""The wall-clock guard."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from plugin_runs import section_of

from pytest_machnet.guard import Guard, Stuck

SPINS = """
    import pytest

    def test_stuck(machnet_channel, machnet_peer):
        server = machnet_peer.attach()
        server.listen(machnet_peer.ip, 7000, protocol="tcp")
        ch = machnet_channel()
        flow = ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=5)
        ch.send(flow, b"never looked at")
        while True:
            {body}

    def test_after(machnet_net): pass
"""

BODIES = {
    "looking without letting time pass": "ch.try_recv()",
    "nothing at all": "pass",
    "catching everything": "\n".join(
        ("try:", " " * 16 + "ch.try_recv()", " " * 12 + "except Exception:", " " * 16 + "pass")
    ),
    "virtual time without a frame": "ch.stack.core.clock.advance_to(ch.stack.now_ns + 1000)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_simulation_without_progress_fails_with_its_armed_timers(outer, body):
    result = outer(SPINS.format(body=body), "--machnet-guard=0.5")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["E *no progress for 0.5 s by the wall clock: virtual time *"])
    result.stdout.fnmatch_lines(["E *sockets:"])
    assert section_of(result)[0].startswith("seed ")


def test_a_rule_that_does_not_come_back_is_named(outer):
    source = """
        def test_stuck(machnet_channel, machnet_peer, machnet_net):
            def waits(packet, hop):
                while True:
                    pass

            ch = machnet_channel()
            with machnet_net.rule(waits):
                ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=5)
    """
    result = outer(source, "--machnet-guard=0.3")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E *no progress for 0.3 s by the wall clock: virtual time 0.000 ms, the rule *waits is under way"
        ]
    )


def test_the_armed_timers_are_named(outer):
    source = """
        def test_stuck(machnet_channel, machnet_peer):
            ch = machnet_channel()
            sock = ch.stack.socket()
            sock.connect_ex((machnet_peer.ip, 80))
            ch.stack.core.clock.advance_to(1000)
            while True:
                pass
    """
    result = outer(source, "--machnet-guard=0.3")
    result.stdout.fnmatch_lines(["E *armed timers:", "E *local 10.0.0.1:*retransmission in * ms"])


@pytest.mark.parametrize("args", [("--timeout=60",), ("-n", "1"), ("-p", "no:timeout")])
def test_it_gets_along_with_others(outer, args):
    result = outer(SPINS.format(body="pass"), "--machnet-guard=0.5", *args)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["E *no progress for 0.5 s by the wall clock: *"])


def test_pytest_timeout_goes_first_where_it_is_shorter(outer):
    result = outer(SPINS.format(body="pass"), "--machnet-guard=30", "--timeout=1")
    result.assert_outcomes(failed=1, passed=1)
    assert "Timeout" in result.stdout.str()
    assert "no progress" not in result.stdout.str()


@pytest.mark.parametrize("how", ["--pdb", "breakpoint()"])
def test_a_debugger_has_time(pytester, how):
    source = f"""
        def test_looked_at(machnet_net):
            {"assert 0" if how == "--pdb" else "breakpoint()"}
    """
    pytester.makepyfile(test_inner=source)
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "--machnet-guard=0.3"]
    with subprocess.Popen(
        [*command, *([how] if how == "--pdb" else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=pytester.path,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        shown = b""
        while not shown.endswith(b"(Pdb) ") and (byte := process.stdout.read(1)):
            shown += byte
        time.sleep(1)  # longer than the guard waits
        rest, _ = process.communicate(b"p 6 * 7\nc\n", timeout=60)
    assert b"(Pdb) 42" in shown + rest
    assert b"no progress" not in shown + rest


def test_zero_switches_it_off(outer):
    result = outer(SPINS.format(body="pass"), "--machnet-guard=0", "--timeout=1")
    assert "no progress" not in result.stdout.str()


def test_progress_holds_it_back():
    numbers = iter(range(1_000_000))
    guard = Guard(0.05, lambda: next(numbers), lambda: "never")
    with guard.watching():
        time.sleep(0.3)


def test_it_interrupts_a_lock_that_nobody_releases():
    guard = Guard(0.05, lambda: None, lambda: "a lock")
    with (
        pytest.raises(Stuck, match=r"no progress for 0\.05 s by the wall clock: a lock"),
        guard.watching(),
    ):
        threading.Event().wait(60)


def test_it_works_beside_the_main_thread():
    caught = []

    def spin() -> None:
        end = time.monotonic() + 60
        try:
            with Guard(0.05, lambda: None, lambda: "spinning").watching():
                while time.monotonic() < end:
                    pass
        except Stuck as stuck:
            caught.append(stuck)

    thread = threading.Thread(target=spin)
    thread.start()
    thread.join()
    assert len(caught) == 1


def test_the_report_of_a_stuck_test_may_take_its_time(outer, pytester):
    """The guard repeats itself, in case something swallows it, but not once the test has ended."""
    pytester.makeconftest("""
        import time

        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            if call.when == "call":
                time.sleep(1.5)
            return (yield)
    """)
    source = """
        def test_stuck(machnet_net):
            while True:
                pass
    """
    result = outer(source, "--machnet-guard=0.3")
    result.assert_outcomes(failed=1)
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
