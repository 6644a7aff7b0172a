# SPDX-License-Identifier: MIT
"""The section of a failed test, its artifacts, and the command that repeats it."""

from __future__ import annotations

import re
import shlex
import sys
import xml.etree.ElementTree as ET

import pytest
from plugin_runs import section_of

from pytest_machnet import artifacts, report

#: Fails after a conversation in which packets were lost.
FAILS = """
    import pytest

    @pytest.mark.parametrize("size", [3000])
    @pytest.mark.machnet(loss=0.2, latency="200us")
    def test_it(machnet_channel, machnet_peer, size):
        server = machnet_peer.attach()
        server.listen(machnet_peer.ip, 7000, protocol="tcp")
        ch = machnet_channel()
        flow = ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=60)
        for _ in range(10):
            ch.send(flow, bytes(size))
            assert server.recv(timeout=60).data == bytes(size)
        ch.send(flow, b"under way")
        assert not "here"
"""


def test_the_section_says_what_the_network_looked_like(outer):
    result = outer(FAILS, "--machnet-seed=7")
    result.assert_outcomes(failed=1)
    lines = section_of(result)
    assert len(lines) <= report.LINES_MAX
    assert re.fullmatch(r"seed \d+ \(--machnet-seed=7\); link loss=0\.2, latency='200us'", lines[0])
    assert lines[1] == (
        "replay: pytest 'test_inner.py::test_it[3000]' --machnet-sim --machnet-seed=7"
    )
    assert re.fullmatch(r"virtual time \d+\.\d{3} ms", lines[2])
    text = "\n".join(lines)
    titles = re.findall(r"^([a-z]+)(?: \((?:last|first) \d+ of \d+\))?:$", text, re.MULTILINE)
    assert titles == ["packets", "sockets", "timers", "faults"]
    assert re.search(r"local > .*10\.0\.0\.1\.\d+ > 10\.0\.0\.2\.7000: Flags \[P?\.", text)
    assert re.search(r"^  local 10\.0\.0\.1:\d+-10\.0\.0\.2:7000 ESTABLISHED", text, re.MULTILINE)
    assert re.search(r"^  peer 10\.0\.0\.2:7000 LISTEN", text, re.MULTILINE)
    assert re.search(r"local .* retransmission in \d+\.\d{3} ms", text)
    assert re.search(r"(local>peer|peer>local) #\d+ lost: ", text)
    assert re.fullmatch(
        r"artifacts: machnet-artifacts/test_inner-test_it-3000-[0-9a-f]{8}: "
        r"packets\.pcapng, trace\.txt",
        lines[-1],
    )


def test_the_section_survives_xdist(outer):
    alone = section_of(outer(FAILS, "--machnet-seed=7"))
    spread = section_of(outer(FAILS, "--machnet-seed=7", "-n", "2"))
    assert spread[:-1] == alone[:-1]
    assert re.search(r"-gw[01]: packets\.pcapng", spread[-1])


def test_the_facts_are_properties_of_the_report_too(outer, pytester):
    outer(FAILS, "--machnet-seed=7", "--junitxml=junit.xml")
    tree = ET.parse(pytester.path / "junit.xml")
    found = {item.get("name"): item.get("value") for item in tree.iter("property")}
    assert found["machnet_base_seed"] == "7"
    assert found["machnet_replay"].endswith("--machnet-sim --machnet-seed=7")
    assert int(found["machnet_virtual_time_ns"]) > 1_000_000
    assert set(found) >= {"machnet_seed", "machnet_artifacts"}


def test_the_trace_has_everything_and_no_wall_time(outer, pytester):
    outer(FAILS, "--machnet-seed=7")
    (path,) = pytester.path.glob("machnet-artifacts/*/trace.txt")
    first = path.read_text()
    assert "replay: pytest 'test_inner.py::test_it[3000]'" in first
    assert "Drop('" in first
    assert first.count("Flags [") > 40
    outer(FAILS, "--machnet-seed=7")
    assert path.read_text() == first


@pytest.mark.parametrize("more", [(), ("--machnet-seeds=3",), ("--machnet-ip=10.3.0.1/24",)])
def test_the_replay_command_gives_the_same_packets(outer, pytester, more):
    result = outer(FAILS, "--machnet-seed=random", "-x", *more)
    lines = section_of(result)
    command = lines[1].removeprefix("replay: ")
    assert " --machnet-seed=random" not in command
    (path,) = pytester.path.glob("machnet-artifacts/*/packets.pcapng")
    first = path.read_bytes()
    path.unlink()
    program, *words = shlex.split(command)
    assert program == "pytest"
    again = pytester.runpytest_subprocess(*words, "-p", "no:randomly", timeout=60)
    again.assert_outcomes(failed=1)
    assert path.read_bytes() == first
    assert section_of(again)[2:] == lines[2:]


def test_the_replay_command_is_for_the_folder_that_pytest_was_started_in(pytester):
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(**{"deep/test_it": "def test_it(machnet_net): assert 0\n"})
    deep = pytester.path / "deep"
    result = pytester.run("sh", "-c", f"cd {deep} && {sys.executable} -m pytest -p no:randomly")
    assert section_of(result)[1].startswith("replay: pytest 'test_it.py::test_it' ")


@pytest.mark.parametrize(
    ("args", "ini"),
    [
        ([], None),
        (["a", "../b"], None),
        (["--rootdir=.."], None),
        (["--rootdir=..", "-o", "machnet_ip=10.7.0.1/16"], None),
        (["-c", "../some.ini"], None),
        (["."], "pytest.ini"),
        (["-n1"], "a/pytest.ini"),
    ],
)
def test_the_replay_command_finds_the_same_seed_whatever_pytest_was_given(pytester, args, ini):
    for folder in "start/a", "b":
        pytester.makepyfile(
            **{f"{folder}/test_{folder[-1]}": "def test_it(machnet_net): assert 0\n"}
        )
    (pytester.path / "some.ini").write_text("[pytest]\nmachnet_seed = 8\n")
    start = pytester.path / "start"
    if ini is not None:
        (pytester.path / "start" / "pytest.ini").write_text("[pytest]\n")
        (pytester.path / "start" / ini).write_text("[pytest]\n")

    def run(words: str) -> list[str]:
        python = f"cd {start} && {sys.executable} -m pytest -p no:randomly {words}"
        return section_of(pytester.run("sh", "-c", python))

    lines = run(" ".join([*args, "-k", "test_a"]))
    again = run(lines[1].removeprefix("replay: pytest "))
    assert again[:-1] == lines[:-1]  # but for the folder of artifacts, which names a worker


def test_a_failure_while_setting_up_has_the_section_too(outer):
    source = """
        import pytest

        @pytest.fixture
        def connected(machnet_channel, machnet_peer):
            ch = machnet_channel()
            return ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=5)

        def test_it(connected): pass
    """
    result = outer(source)
    result.assert_outcomes(errors=1)
    assert any("Flags [S]" in line for line in section_of(result))


def test_tests_that_pass_or_are_expected_to_fail_leave_nothing(outer, pytester):
    source = """
        import pytest

        def test_passes(machnet_net): pass

        @pytest.mark.xfail
        def test_expected(machnet_net): assert False

        def test_skipped(machnet_net): pytest.skip("so")
    """
    result = outer(source)
    result.assert_outcomes(passed=1, xfailed=1, skipped=1)
    assert not (pytester.path / "machnet-artifacts").exists()


def test_without_captures_there_is_a_trace_only(outer, pytester):
    outer(FAILS, "--machnet-pcap=never").assert_outcomes(failed=1)
    (folder,) = [path for path in pytester.path.glob("machnet-artifacts/*") if path.is_dir()]
    assert [path.name for path in folder.iterdir()] == ["trace.txt"]


def test_a_rule_that_dropped_is_told(outer):
    source = """
        import pytest
        from machnet.sim import DROP, PASS

        def test_it(machnet_net, machnet_channel, machnet_peer):
            server = machnet_peer.attach()
            server.listen(machnet_peer.ip, 7000, protocol="tcp")
            def no_syn_ack(packet, hop):
                return DROP if packet.tcp and packet.tcp.flags == "SA" else PASS
            machnet_net.rule(no_syn_ack)
            ch = machnet_channel()
            ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=5)
    """
    text = "\n".join(section_of(outer(source)))
    assert re.search(r"peer>local rule: dropped: 10\.0\.0\.2\.7000 > .*Flags \[S\.\]", text)


def test_names_of_folders_are_safe_short_and_their_own():
    names = {
        artifacts.folder_name(nodeid, "main")
        for nodeid in (
            "tests/test_a.py::test_x[a/b]",
            "tests/test_a.py::test_x[a\\b]",
            "tests/test_a.py::test_x[../../b]",
            "other/test_a.py::test_x[a/b]",
            "tests/test_a.py::TestY::test_x[" + "x" * 300 + "]",
            "tests/test_a.py::test_x[\udc80é]",
        )
    }
    assert len(names) == 6
    assert all(re.fullmatch(r"test_a-[A-Za-z0-9_-]+-[0-9a-f]{8}", name) for name in names)
    assert all(len(name) < 128 for name in names)
    assert artifacts.folder_name("t.py::a", "gw3").endswith("-gw3")


def test_expectations_fail_where_the_test_has_them(outer):
    source = """
        from machnet.testing import tcp

        def test_packet(raw_peer):
            raw_peer.expect(tcp("S"), within="1ms")

        def test_nothing_at_all(raw_peer):
            raw_peer.expect_any_of(tcp("S"), tcp("A"), within="1ms")

        def test_predicate(machnet_clock):
            machnet_clock.eventually(lambda: False, within="1s")
    """
    result = outer(source)
    result.assert_outcomes(failed=3)
    text = result.stdout.str()
    assert "def expect" not in text
    assert "def eventually" not in text
    result.stdout.fnmatch_lines(["test_inner.py:4: ExpectationError"])
    result.stdout.fnmatch_lines(["test_inner.py:10: EventuallyError"])
