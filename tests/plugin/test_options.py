# SPDX-License-Identifier: MIT
"""Options, ini values and markers: what is accepted, what is refused, who goes before whom."""

from __future__ import annotations

import re

import pytest

from pytest_machnet.options import KNOBS

PASSES = "def test_it(): pass\n"


def shown_by(source_marker: str = "") -> str:
    """A test that shows what is in force for it."""
    return f"""
        import pytest
        from pytest_machnet import cases

        {source_marker}
        def test_it(request):
            s = cases.item_settings(request.node)
            print("IN FORCE", s.mode, dict(s.values), dict(s.link), s.mtu)
    """


def in_force(result) -> str:
    (line,) = [line for line in result.outlines if "IN FORCE" in line]
    return line


# ---- help and registration -----------------------------------------------------------------------


def test_the_help_text_has_one_group_with_every_option_and_ini_value(inner):
    text = inner(PASSES, "--help").stdout.str()
    assert text.count("machnet: networks in virtual time, or a NIC") == 1
    for knob in KNOBS.values():
        assert re.search(rf"^  {knob.option}\b", text, re.MULTILINE), knob.option
        assert re.search(rf"^  {knob.dest} ", text, re.MULTILINE), knob.dest


def test_the_marker_is_registered(inner):
    source = "import pytest\n@pytest.mark.machnet(loss=0.1)\ndef test_it(): pass\n"
    inner(source, "--strict-markers").assert_outcomes(passed=1)
    inner(PASSES, "--markers").stdout.fnmatch_lines(["@pytest.mark.machnet(loss=, latency=*"])


def test_the_fixtures_have_a_documentation_and_none_is_automatic(inner):
    result = inner(PASSES, "--fixtures", "-q")
    for name in ("net", "host", "channel", "peer", "clock", "pcap"):
        result.stdout.re_match_lines([rf"machnet_{name} -- .*fixtures.py.*", r"    \w.*"])
    result.stdout.re_match_lines_random([r"posix_peer -- .*", r"raw_peer -- .*"])


# ---- what is refused -----------------------------------------------------------------------------

WRONG = [
    (("--machnet-sim", "--machnet-nic=tap:mn0"), "--machnet-sim and --machnet-nic exclude each"),
    (("--machnet-nic=tap:a/b",), "--machnet-nic: 'tap:a/b':*an interface name is ASCII*"),
    (("--machnet-nic=tap:a?loss=200%",), "--machnet-nic: 'tap:a?loss=200%': NIC*no probability*"),
    (("--machnet-nic=tpa:x",), "--machnet-nic: 'tpa:x':*there is no driver 'tpa'*"),
    (("--machnet-seed=seven",), "--machnet-seed: 'seven': not a whole number from 0 to *'last'"),
    (("--machnet-seed=-1",), "--machnet-seed: '-1': not a whole number*"),
    (("--machnet-seed=18446744073709551616",), "--machnet-seed: '18446744073709551616': not from*"),
    (("--machnet-seed=last",), "--machnet-seed=last: there is no run before this one"),
    (
        ("--machnet-seed=last", "-p", "no:cacheprovider"),
        "--machnet-seed=last needs pytest's cache*",
    ),
    (("--machnet-seeds=0",), "--machnet-seeds: '0': not from 1 to 1000000"),
    (("--machnet-seeds=many",), "--machnet-seeds: 'many': not a whole number from 1 to 1000000"),
    (("--machnet-ip=10.0.0.1",), "--machnet-ip: '10.0.0.1': not an IPv4 address with its prefix*"),
    (("--machnet-ip=10.0.0.0/24",), "--machnet-ip: '10.0.0.0/24': not the address of a host*"),
    (("--machnet-ip=10.0.0.1/31",), "--machnet-ip: '10.0.0.1/31': not the address of a host*"),
    (("--machnet-gateway=there",), "--machnet-gateway: 'there': not an IPv4 address*"),
    (("--machnet-gateway=10.1.0.1",), "machnet gateway 10.1.0.1 is not in 10.0.0.0/24"),
    (("--machnet-peer=10.0.0.1",), "machnet peer 10.0.0.1 is the local stack's own address"),
    (("--machnet-peer=10.0.0.1/24",), "--machnet-peer: '10.0.0.1/24': not an IPv4 address*"),
    (("--machnet-peer=ssh://",), "--machnet-peer: 'ssh://': neither ssh:// nor tcp:// and a host*"),
    (("--machnet-peer=http://a:1",), "--machnet-peer: 'http://a:1': neither ssh:// nor tcp://*"),
    (("--machnet-peer=tcp://a",), "--machnet-peer: 'tcp://a': no port: it is an IPv4 address*"),
    (("--machnet-peer=ssh://a?port=1",), "--machnet-peer: 'ssh://a?port=1': no 'port' is known*"),
    (("--machnet-peer=10.0.0.2?ftp=1",), "--machnet-peer: '10.0.0.2?ftp=1': ftp=1 is no service*"),
    (("--machnet-peer=tcp://t@a:1",), "--machnet-peer=tcp://a:1 is for a NIC: --machnet-nic=NIC"),
    (("--machnet-peer-ip=there",), "--machnet-peer-ip: 'there': not an IPv4 address*"),
    (("--machnet-peer-ip=10.0.0.1",), "machnet peer_ip 10.0.0.1 is the local stack's own address"),
    (("--machnet-peer-nic=",), "--machnet-peer-nic: '': not a NIC string*"),
    (("--machnet-engines=17",), "--machnet-engines: '17': not from 1 to 16"),
    (("--machnet-pcap=sometimes",), "--machnet-pcap: 'sometimes': it is 'never', 'failed' or*"),
    (("--machnet-artifacts=test_inner.py",), "--machnet-artifacts: 'test_inner.py': not a folder*"),
    (("--machnet-guard=soon",), "--machnet-guard: 'soon': not a number of seconds from 0*"),
    (("--machnet-guard=-1",), "--machnet-guard: '-1': not a number of seconds*"),
    (("--machnet-guard=nan",), "--machnet-guard: 'nan': not a number of seconds*"),
    (("-o", "machnet_seeds=none"), "ini value machnet_seeds: 'none': not a whole number*"),
    (("-o", "machnet_shrink=perhaps"), "ini value machnet_shrink: invalid truth value 'perhaps'"),
    (
        ("-o", "machnet_sim=true", "-o", "machnet_nic=tap:mn0"),
        "machnet_sim and machnet_nic exclude each other*",
    ),
]


@pytest.mark.parametrize(("args", "text"), WRONG, ids=lambda part: " ".join(part)[:40])
def test_a_wrong_value_is_a_usage_error_at_configure_time(inner, args, text):
    result = inner(PASSES, *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {text.rstrip('*')}*"])
    assert "Traceback" not in result.stderr.str()


WRONG_MARKERS = [
    ("los=0.1", "there is no argument 'los': did you mean 'loss'?"),
    ("wherever=1", "there is no argument 'wherever'; there are artifacts, *"),
    ("0.1", "it takes keyword arguments only, not 0.1"),
    ("loss=1.5", "loss: 1.5 is no probability*"),
    ("latency=0.001", "latency: 0.001 is no duration*"),
    ("bandwidth='fast'", "bandwidth: 'fast' is no rate*"),
    ("queue='0p'", "queue: '0p': 0 packets are not*"),
    ("back=dict(lost=1)", "back: there is no link parameter 'lost'"),
    ("back=dict(loss=2)", "loss: 2 is no probability*"),
    ("mtu=20", "mtu=20: not from 68 to 65521"),
    ("seeds=0", "seeds=0: not from 1 to 1000000"),
    ("seed='random'", "seed='random': not a whole number from 0 to*"),
    ("pcap='sometimes'", "pcap='sometimes': it is 'never', 'failed' or 'always'"),
    ("sim=True, nic='tap:mn0'", "sim= and nic= exclude each other: leave one out"),
    ("nic='tpa:x'", "nic='tpa:x': NIC 'tpa:x': there is no driver*"),
    ("faults=['Drop']", "faults: 'Drop' is no fault of machnet.sim.faults"),
    ("peer='10.0.0.1'", "machnet peer 10.0.0.1 is the local stack's own address"),
]


@pytest.mark.parametrize(("arguments", "text"), WRONG_MARKERS, ids=lambda part: part[:30])
def test_a_wrong_marker_is_an_error_at_collection_that_names_the_test(inner, arguments, text):
    source = f"import pytest\n@pytest.mark.machnet({arguments})\ndef test_it(): pass\n"
    result = inner(source)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"test_inner.py::test_it: @pytest.mark.machnet: {text}"])
    assert "pytest_machnet/options.py" not in result.stdout.str()


# ---- precedence ----------------------------------------------------------------------------------


def test_a_marker_goes_before_an_option_before_an_ini_value_before_the_default(inner, pytester):
    assert "'guard': 60.0" in in_force(inner(shown_by(), "-s"))
    pytester.makeini("[pytest]\nmachnet_guard = 7\nmachnet_ip = 10.7.0.1/16\nmachnet_shrink = yes")
    text = in_force(inner(shown_by(), "-s"))
    assert "'guard': 7.0" in text
    assert "'ip': '10.7.0.1/16'" in text
    assert "'shrink': True" in text
    assert "'guard': 8.0" in in_force(inner(shown_by(), "-s", "--machnet-guard=8"))
    marked = shown_by("@pytest.mark.machnet(guard=9, shrink=False)")
    text = in_force(inner(marked, "-s", "--machnet-guard=8"))
    assert "'guard': 9.0" in text
    assert "'shrink': False" in text


def test_the_driver_follows_the_same_precedence(inner, pytester):
    assert "IN FORCE simulation" in in_force(inner(shown_by(), "-s"))
    pytester.makeini("[pytest]\nmachnet_nic = tap:mn0")
    assert "IN FORCE nic" in in_force(inner(shown_by(), "-s"))
    assert "IN FORCE simulation" in in_force(inner(shown_by(), "-s", "--machnet-sim"))
    marked = shown_by("@pytest.mark.machnet(nic='tap:mn1')")
    assert "IN FORCE nic" in in_force(inner(marked, "-s", "--machnet-sim"))
    marked = shown_by("@pytest.mark.machnet(sim=True)")
    assert "IN FORCE simulation" in in_force(inner(marked, "-s", "--machnet-nic=tap:mn0"))


def test_the_nearest_marker_goes_first_and_adds_to_those_further_away(inner):
    source = """
        import pytest
        from pytest_machnet import cases

        pytestmark = pytest.mark.machnet(loss=0.1, latency="1ms", mtu=900)

        @pytest.mark.machnet(latency="2ms")
        class TestThem:
            @pytest.mark.machnet(loss="5%")
            def test_it(self, request):
                s = cases.item_settings(request.node)
                print("IN FORCE", s.mtu, dict(s.link))
    """
    text = in_force(inner(source, "-s"))
    assert "IN FORCE 900 {'loss': '5%', 'latency': '2ms'}" in text


def test_settings_of_toml_files_are_taken_too(inner, pytester):
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\nmachnet_seeds = 3\nmachnet_shrink = true\nmachnet_pcap = "always"'
    )
    text = in_force(inner(shown_by(), "-s"))
    assert "'seeds': 3" in text
    assert "'shrink': True" in text
    assert "'pcap': 'always'" in text


# ---- the header ----------------------------------------------------------------------------------


def test_there_is_no_header_unless_somebody_says_something(inner):
    assert "machnet: " not in inner(PASSES).stdout.str()


def test_the_header_has_the_driver_the_seed_as_a_flag_the_policy_and_the_core(inner):
    result = inner(PASSES, "--machnet-sim", "--machnet-seed=7", "--machnet-seeds=3")
    (line,) = [line for line in result.outlines if line.startswith("machnet: ")]
    assert re.fullmatch(
        r"machnet: simulation, --machnet-seed=7 --machnet-seeds=3, pcap failed, core \d+\.\d+\.\d+",
        line,
    )
    result = inner(PASSES, "--machnet-nic=tap:mn0", "--machnet-pcap=always")
    (line,) = [line for line in result.outlines if line.startswith("machnet: ")]
    assert line.startswith("machnet: NIC tap:mn0, ip 10.0.0.1/24, pcap always, core ")


def test_simulation_by_default_says_so_once_tests_use_it(inner):
    source = "def test_it(machnet_net): pass\n"
    result = inner(source, "--collect-only")
    result.stdout.fnmatch_lines(
        ["machnet: simulation (the default; --machnet-nic=IFACE: a NIC), --machnet-seed=0, *"]
    )


# ---- seeds ---------------------------------------------------------------------------------------


def seed_in_header(result) -> int:
    return int(re.search(r"--machnet-seed=(\d+)", result.stdout.str()).group(1))


def test_a_random_seed_is_repeated_by_last(inner):
    first = seed_in_header(inner(PASSES, "--machnet-seed=random"))
    assert first != seed_in_header(inner(PASSES, "--machnet-seed=random"))
    second = seed_in_header(inner(PASSES, "--machnet-seed=random"))
    assert seed_in_header(inner(PASSES, "--machnet-seed=last")) == second
    assert seed_in_header(inner(PASSES, "--machnet-seed=last")) == second


def ids_of(result) -> list[str]:
    return [line for line in result.outlines if "::" in line]


def test_seeds_parametrise_simulated_tests_in_a_stable_order(inner):
    source = """
        import pytest

        @pytest.mark.parametrize("way", ["a", "b"])
        def test_ways(machnet_net, way): pass

        @pytest.mark.machnet(seeds=2)
        def test_marked(machnet_channel): pass

        def test_linux(posix_peer, machnet_channel): pass

        def test_plain(): pass
    """
    ids = ids_of(inner(source, "--collect-only", "-q", "--machnet-seeds=3"))
    assert ids == [
        *[f"test_inner.py::test_ways[{way}-seed{i}]" for way in "ab" for i in range(3)],
        "test_inner.py::test_marked[seed0]",
        "test_inner.py::test_marked[seed1]",
        "test_inner.py::test_linux",
        "test_inner.py::test_plain",
    ]
    ids = ids_of(
        inner(source, "--collect-only", "-q", "--machnet-seeds=3", "--machnet-nic=tap:mn0")
    )
    assert len(ids) == 5


# ---- what the plugin costs those who don't use it ------------------------------------------------


def test_importing_the_plugin_imports_nothing_of_machnet(pytester):
    pytester.makepyfile(
        look="""
        import sys
        import pytest
        before = set(sys.modules)
        import pytest_machnet.plugin
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        assert new & {"pytest_machnet"}, new
        assert not new & {"machnet", "scapy", "hypothesis", "cffi", "_cffi_backend", "msgspec"}, new
        """
    )
    assert pytester.runpython("look.py").ret == 0


def test_a_run_that_uses_nothing_of_it_imports_nothing_of_machnet(pytester):
    pytester.makepyfile(
        test_look="""
        import sys

        def test_it():
            assert "pytest_machnet.plugin" in sys.modules
            assert "machnet" not in sys.modules
            assert "scapy" not in sys.modules
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1)


def test_without_the_plugin_there_is_no_trace_of_it(pytester):
    pytester.makepyfile(
        test_look="""
        import sys

        def test_it():
            assert not [name for name in sys.modules if name.startswith("pytest_machnet")]
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:machnet", "-p", "no:randomly")
    result.assert_outcomes(passed=1)
    for what in ("--help", "--markers", "--fixtures"):
        text = pytester.runpytest_subprocess("-p", "no:machnet", what).stdout.str()
        # (pytest says of an editable install's loader that it can't be rewritten, and where fixtures
        # are: in a folder of that name, perhaps.)
        text = re.sub(r"\S*/\S*", "", text.replace("_machnet_editable_loader", ""))
        assert "machnet" not in text
