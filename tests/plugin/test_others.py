# SPDX-License-Identifier: MIT
"""Together with xdist, pytest-randomly, pytest-rerunfailures and hypothesis."""

from __future__ import annotations

import re

import pytest
from plugin_runs import section_of

SEEDS = """
    import pytest

    @pytest.mark.parametrize("way", range(6))
    def test_seed(machnet_net, way, request):
        with open("seeds.txt", "a") as file:
            print(request.node.nodeid, machnet_net.seed, file=file)
"""


def seeds_of(pytester) -> dict[str, int]:
    path = pytester.path / "seeds.txt"
    rows = [line.split() for line in path.read_text().splitlines()]
    path.unlink()
    return {nodeid: int(seed) for nodeid, seed in rows}


# ---- xdist ---------------------------------------------------------------------------------------


def test_workers_use_the_seeds_that_one_process_uses(outer, pytester):
    outer(SEEDS, "--machnet-seed=5").assert_outcomes(passed=6)
    alone = seeds_of(pytester)
    outer(SEEDS, "--machnet-seed=5", "-n", "4").assert_outcomes(passed=6)
    assert seeds_of(pytester) == alone


def test_workers_share_a_base_that_is_drawn(outer, pytester):
    outer(SEEDS, "--machnet-seed=random", "-n", "2").assert_outcomes(passed=6)
    first = seeds_of(pytester)
    outer(SEEDS, "--machnet-seed=last", "-n", "2").assert_outcomes(passed=6)
    assert seeds_of(pytester) == first


def test_the_base_of_a_plain_run_is_that_of_last_too(outer, pytester):
    outer(SEEDS).assert_outcomes(passed=6)
    first = seeds_of(pytester)
    outer(SEEDS, "--machnet-seed=last").assert_outcomes(passed=6)
    assert seeds_of(pytester) == first


def test_each_worker_has_folders_of_its_own(outer, pytester):
    source = """
        import pytest

        @pytest.mark.parametrize("way", range(8))
        def test_fails(machnet_channel, machnet_peer, way):
            machnet_channel()
            assert False
    """
    result = outer(source, "-n", "4")
    result.assert_outcomes(failed=8)
    folders = [path.name for path in pytester.path.glob("machnet-artifacts/*") if path.is_dir()]
    assert len(folders) == 8
    assert all(re.search(r"-gw[0-3]$", name) for name in folders)


# ---- pytest-randomly -----------------------------------------------------------------------------


def randomly(pytester, *args: str):
    pytest.importorskip("pytest_randomly")
    pytester.makepyfile(test_inner=SEEDS)
    return pytester.runpytest_subprocess(*args, timeout=120)


def test_the_seed_of_pytest_randomly_is_the_base(pytester, outer):
    result = randomly(pytester, "-p", "randomly", "--randomly-seed=1234", "--machnet-sim")
    result.stdout.fnmatch_lines(["machnet: simulation, --machnet-seed=1234, *"])
    shuffled = seeds_of(pytester)
    outer(SEEDS, "--machnet-seed=1234")
    assert seeds_of(pytester) == shuffled


def test_under_xdist_too(pytester):
    randomly(pytester, "--randomly-seed=1234", "-n", "2").assert_outcomes(passed=6)
    spread = seeds_of(pytester)
    randomly(pytester, "--randomly-seed=1234").assert_outcomes(passed=6)
    assert seeds_of(pytester) == spread


def test_a_seed_that_is_given_goes_before_that_of_pytest_randomly(pytester):
    randomly(pytester, "--randomly-seed=1234", "--machnet-seed=5").assert_outcomes(passed=6)
    first = seeds_of(pytester)
    randomly(pytester, "--randomly-seed=99", "--machnet-seed=5").assert_outcomes(passed=6)
    assert seeds_of(pytester) == first


def test_the_replay_command_repeats_the_random_numbers_too(pytester):
    pytest.importorskip("pytest_randomly")
    pytester.makepyfile(test_inner="def test_it(machnet_net): assert 0\n")
    result = pytester.runpytest_subprocess("--randomly-seed=77", timeout=120)
    assert section_of(result)[1].endswith("--machnet-sim --machnet-seed=77 --randomly-seed=77")


# ---- pytest-rerunfailures ------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--machnet-shrink",)])
def test_a_rerun_uses_the_same_seed(outer, pytester, more):
    source = """
        def test_seed(machnet_net):
            with open("seeds.txt", "a") as file:
                print(machnet_net.seed, file=file)
            assert False
    """
    outer(source, "--reruns=2", "--machnet-seed=random", *more)
    seeds = (pytester.path / "seeds.txt").read_text().split()
    assert len(seeds) == (1 if more else 3)
    assert len(set(seeds)) == 1


# ---- hypothesis ----------------------------------------------------------------------------------

HYPOTHESIS = """
    import pytest
    from hypothesis import given, settings, strategies as st, example, HealthCheck
    settings.register_profile("t", derandomize=True, deadline=None, database=None, max_examples=20)
    settings.load_profile("t")
"""


def test_each_example_starts_with_a_fresh_network(outer):
    source = (
        HYPOTHESIS
        + """
    SEEN = []

    @given(size=st.integers(0, 3000))
    @example(size=7)
    @pytest.mark.machnet(loss=0.1)
    def test_it(machnet_net, machnet_channel, machnet_peer, machnet_clock, size):
        assert machnet_net.now_ns == 0 == machnet_clock.now_ns
        SEEN.append((machnet_net, machnet_net.seed))
        server = machnet_peer.attach()
        server.listen(machnet_peer.ip, 7000, protocol="tcp")
        ch = machnet_channel()
        flow = ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=60)
        ch.send(flow, bytes(size))
        assert server.recv(timeout=60).data == bytes(size)

    def test_then():
        assert len(SEEN) >= 20
        assert len({id(net) for net, _ in SEEN}) == len(SEEN)
        assert len({seed for _, seed in SEEN}) > 10
        assert all(net.closed for net, _ in SEEN)
    """
    )
    outer(source).assert_outcomes(passed=2)


def test_the_networks_of_examples_follow_the_tests_seed(outer, pytester):
    source = (
        HYPOTHESIS
        + """
    @given(size=st.integers(0, 3000))
    def test_it(machnet_net, size):
        with open("seeds.txt", "a") as file:
            print(size, machnet_net.seed, file=file)
    """
    )
    runs = []
    for base in (1, 1, 2):
        outer(source, f"--machnet-seed={base}").assert_outcomes(passed=1)
        path = pytester.path / "seeds.txt"
        runs.append(path.read_text())
        path.unlink()
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    ("decorator", "args"), [("", ()), ("@seed(4)", ()), ("", ("--hypothesis-seed=7",))]
)
def test_examples_are_drawn_by_the_tests_seed(outer, pytester, decorator, args):
    source = f"""
        from hypothesis import given, settings, seed, strategies as st
        # Said, because in CI hypothesis is derandomized by itself.
        settings.register_profile(
            "t", deadline=None, database=None, max_examples=20, derandomize=False
        )
        settings.load_profile("t")

        {decorator}
        @given(size=st.integers(0, 3000))
        def test_it(machnet_net, size):
            with open("sizes.txt", "a") as file:
                print(size, file=file)
    """
    runs = []
    for base in (1, 1, 2):
        outer(source, f"--machnet-seed={base}", *args).assert_outcomes(passed=1)
        path = pytester.path / "sizes.txt"
        runs.append(path.read_text())
        path.unlink()
    assert runs[0] == runs[1]
    assert (runs[1] == runs[2]) == bool(decorator or args)


def test_the_smallest_failing_example_is_shown_with_its_packets(outer):
    source = (
        HYPOTHESIS
        + """
    @given(size=st.integers(0, 3000))
    def test_it(machnet_channel, machnet_peer, size):
        server = machnet_peer.attach()
        server.listen(machnet_peer.ip, 7000, protocol="tcp")
        ch = machnet_channel()
        flow = ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=60)
        ch.send(flow, bytes(size))
        assert len(server.recv(timeout=60).data) < 100
    """
    )
    result = outer(source, "--machnet-seed=3")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*size=100,*"])
    lines = section_of(result)
    assert re.search(r"hypothesis example's number 0\)", lines[0])
    assert any(line.endswith("length 104") for line in lines)


def test_a_fixture_that_is_not_made_anew_is_refused(outer):
    source = (
        HYPOTHESIS
        + """
    @pytest.fixture
    def mine(machnet_net):
        return machnet_net

    @given(size=st.integers())
    def test_between(mine, size): pass

    @given(size=st.integers())
    def test_other(machnet_net, tmp_path, size): pass
    """
    )
    result = outer(source)
    result.assert_outcomes(failed=2)
    text = result.stdout.str()
    assert "fixture 'mine' is built on 'machnet_net', and would be made once" in text
    assert "uses a function-scoped fixture" in text
