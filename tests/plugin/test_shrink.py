# SPDX-License-Identifier: MIT
"""Reducing faults: the algorithm by itself, and in a run; and finding one seed of a thousand."""

from __future__ import annotations

import random
import re
import textwrap

import pytest
from plugin_runs import section_of

from machnet._native import lib
from pytest_machnet import report, shrink

# ---- the algorithm -------------------------------------------------------------------------------


@pytest.mark.parametrize("needed", [{3}, {0, 99}, {17, 18, 19}, {5, 50, 95, 96}, set(range(20))])
def test_the_smallest_part_is_found(needed):
    reducer = shrink.Reducer(lambda part: needed <= set(part))
    assert reducer.reduce(range(100)) == (sorted(needed), True)
    assert reducer.runs < 1000


def test_what_fails_without_anything_needs_nothing():
    reducer = shrink.Reducer(lambda part: True)
    assert reducer.reduce(range(100)) == ([], True)
    assert reducer.runs == 1


def test_what_does_not_fail_again_is_not_reduced():
    reducer = shrink.Reducer(lambda part: False)
    assert reducer.reduce(range(100)) is None
    assert reducer.runs == 2


def test_the_result_is_minimal_even_if_failing_is_not_monotonic():
    numbers = random.Random(7)
    for _ in range(50):
        causes = [set(numbers.sample(range(30), numbers.randint(1, 4))) for _ in range(3)]
        masks = numbers.sample(range(30), 2)

        def fails(part, causes=causes, masks=masks):
            found = set(part)
            return any(cause <= found for cause in causes) and len(found & set(masks)) != 1

        result = shrink.Reducer(fails).reduce(range(30))
        if result is None:
            continue
        part, minimal = result
        assert minimal
        assert fails(part)
        assert not any(fails(part[:i] + part[i + 1 :]) for i in range(len(part)))


def test_the_effort_is_bounded():
    asked = []

    def fails(part):
        asked.append(part)
        return {1, 50, 99} <= set(part)

    part, minimal = shrink.Reducer(fails, runs_max=10).reduce(range(100))
    assert len(asked) == 10
    assert not minimal
    assert {1, 50, 99} <= set(part)
    part, minimal = shrink.Reducer(fails, seconds_max=0.0).reduce(range(100))
    assert (part, minimal) == (list(range(100)), False)


# ---- in a run ------------------------------------------------------------------------------------

#: Fails when both the first SYN and its retransmission are lost, among many faults that don't matter.
SYN_LOST_TWICE = """
    import pytest
    from machnet.sim.faults import Drop

    MARK = {mark}

    @pytest.fixture
    def server(machnet_peer):
        channel = machnet_peer.attach()
        channel.listen(machnet_peer.ip, 7000, protocol="tcp")
        return channel

    @pytest.mark.machnet(**MARK)
    def test_connect(machnet_channel, machnet_peer, machnet_clock, server):
        ch = machnet_channel()
        for _ in range({rounds}):
            before = machnet_clock.now_ns
            flow = ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=100)
            took_ns = machnet_clock.now_ns - before
            ch.send(flow, bytes(5000))
            server.recv(timeout=100)
            assert took_ns < 3_000_000_000
"""


def drops_of(lines: list[str]) -> list[tuple[str, int]]:
    text = "\n".join(lines)
    return [(link, int(nth)) for link, nth in re.findall(r"Drop\('([^']+)', nth=(\d+)\)", text)]


def test_the_fewest_faults_are_found_and_their_code_fails_again(outer, pytester):
    mark = 'dict(loss=0.2, latency="100us", duplicate=0.1)'
    source = SYN_LOST_TWICE.format(mark=mark, rounds=100)
    result = outer(source, "--machnet-shrink", "--machnet-seed=3")
    result.assert_outcomes(failed=1)
    lines = section_of(result)
    assert len(lines) <= report.LINES_MAX
    (head,) = [line for line in lines if line.startswith("shrunk: ")]
    assert re.fullmatch(
        r"shrunk: \d of \d+ faults still fail \(each is needed; \d+ runs\); as code:", head
    )
    at = lines.index(head)
    drops = drops_of(lines[at:])
    assert len(drops) >= 2
    # The code that it printed, instead of the marker.
    code = "\n".join(line.strip() for line in lines[at + 1 :])
    assert "from machnet.sim.faults import Drop\n" in code
    (arguments,) = re.findall(r"@pytest\.mark\.machnet\((.*)\)$", code, re.DOTALL)
    again = outer(
        SYN_LOST_TWICE.format(mark=f"dict({arguments.replace(chr(10), ' ')})", rounds=100),
        "--machnet-seed=3",
    )
    again.assert_outcomes(failed=1)
    fates = [line for line in section_of(again) if " lost" in line or "duplicated" in line]
    assert len(fates) == min(len(drops), 6)
    # And with one of them less it does not fail.
    for left_out in drops[0], drops[-1]:
        kept = ", ".join(f"Drop({d[0]!r}, nth={d[1]})" for d in drops if d != left_out)
        mark = f'dict(loss=0.2, latency="100us", duplicate=0.1, faults=[{kept}])'
        less = outer(SYN_LOST_TWICE.format(mark=mark, rounds=100), "--machnet-seed=3")
        less.assert_outcomes(passed=1)


def test_what_is_not_the_networks_doing_is_said_so(outer):
    source = """
        import pytest

        @pytest.mark.machnet(loss=0.5)
        def test_it(machnet_channel, machnet_peer):
            server = machnet_peer.attach()
            server.listen(machnet_peer.ip, 7000, protocol="tcp")
            ch = machnet_channel()
            ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=100)
            assert False

        def test_no_faults(machnet_channel, machnet_peer):
            assert False
    """
    result = outer(source, "--machnet-shrink", "--machnet-seed=1")
    result.assert_outcomes(failed=2)
    text = result.stdout.str()
    assert re.search(r"shrunk: fails with none of the \d+ faults too \(1 runs\)", text)
    assert "shrunk: no fault had happened: the failure is not the network's doing" in text


def test_more_faults_than_the_section_has_room_for_are_in_a_file(outer, pytester):
    source = """
        import pytest

        MARK = {mark}

        @pytest.mark.machnet(**MARK)
        def test_it(machnet_channel, machnet_peer):
            server = machnet_peer.attach()
            server.listen(machnet_peer.ip, 7000, protocol="tcp")
            ch = machnet_channel()
            flow = ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=100)
            for _ in range(100):
                ch.send(flow, bytes(1000))
                server.recv(timeout=100)
            assert [p.fate for p in machnet_peer.net.packets()].count("duplicated") < 8
    """
    mark = 'dict(latency="100us", duplicate=0.3)'
    result = outer(source.format(mark=mark), "--machnet-shrink", "--machnet-seeds=2", "-k", "seed1")
    result.assert_outcomes(failed=1)
    lines = section_of(result)
    assert "      ...  # and 2 more: shrunk.py, with the artifacts, has all" in lines
    (path,) = pytester.path.glob("machnet-artifacts/*/shrunk.py")
    code = path.read_text()
    assert code.count("    Duplicate(") == 8
    assert "latency='100us', duplicate=0.3, seed=1, faults=[" in code
    (arguments,) = re.findall(r"@pytest\.mark\.machnet\((.*)\)$", code.strip(), re.DOTALL)
    again = outer(
        "from machnet.sim.faults import Duplicate\n"
        + textwrap.dedent(source.format(mark=f"dict({arguments.replace(chr(10), ' ')})"))
    )
    again.assert_outcomes(failed=1)
    assert section_of(again)[0].split()[1] == section_of(result)[0].split()[1]


def test_faults_on_schedule_are_reduced_too(outer):
    source = """
        import pytest

        def test_it(machnet_net, machnet_channel, machnet_peer):
            server = machnet_peer.attach()
            server.listen(machnet_peer.ip, 7000, protocol="tcp")
            machnet_net.chaos("20s", kinds=["pause", "partition"], mean_interval="1s")
            ch = machnet_channel()
            for _ in range(100):
                before = machnet_net.now_ns
                flow = ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=100)
                assert machnet_net.now_ns - before < 500_000_000
                flow.close()
                machnet_net.advance("100ms")
    """
    result = outer(source, "--machnet-shrink", "--machnet-seed=1")
    result.assert_outcomes(failed=1)
    lines = section_of(result)
    (head,) = [line for line in lines if line.startswith("shrunk: ")]
    assert re.match(r"shrunk: 1 of \d+ faults still fail \(each is needed", head)
    assert any(re.search(r"faults=\[(Pause|Partition)\(", line) for line in lines)


def test_one_seed_of_a_thousand_is_found_and_shrunk(outer):
    """SYN and its retransmission are lost with a chance of about 1 in 1000."""
    source = SYN_LOST_TWICE.format(mark="dict(loss=0.03)", rounds=1)
    seeds = 200 if lib.mn_build_sanitized() else 1000
    result = outer(
        source, f"--machnet-seeds={seeds}", "-n", "2", "--machnet-shrink", "--machnet-seed=350"
    )
    result.assert_outcomes(passed=seeds - 1, failed=1)
    lines = section_of(result)
    (number,) = re.findall(r"test_connect\[seed(\d+)\]", lines[1])
    assert re.match(rf"seed \d+ \(--machnet-seed=350, number {number}\)", lines[0])
    assert any("Flags [S]" in line for line in lines)
    (at,) = [i for i, line in enumerate(lines) if line.startswith("shrunk: ")]
    assert re.match(r"shrunk: \d of \d+ faults still fail \(each is needed", lines[at])
    assert len(drops_of(lines[at:])) >= 2
