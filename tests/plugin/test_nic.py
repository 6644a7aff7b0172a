# SPDX-License-Identifier: MIT
"""The fixtures in real time: on TAPs in a namespace, beside Linux, and what is skipped there."""

from __future__ import annotations

import re

import pytest
from plugin_runs import ECHO, section_of

from machnet.sim import KernelHost
from pytest_machnet.pcapng import read_frames


@pytest.fixture
def taps():
    """Skips where there can be no TAP in a namespace."""
    if reason := KernelHost.tap_available():
        pytest.skip(reason)


LINUX = """
    import pytest

    def test_linux(posix_peer, machnet_channel, machnet_clock):
        with posix_peer.socket() as listener:
            listener.bind((posix_peer.ip, 80))
            listener.listen()
            listener.settimeout(20)
            ch = machnet_channel()
            flow = ch.connect(ch.ip, posix_peer.ip, 80, protocol="stream", timeout=20)
            with listener.accept()[0] as sock:
                sock.sendall(b"from Linux")
                assert flow.read(timeout=20) == b"from Linux"
        assert machnet_clock.now_ns > 0
        assert posix_peer.run(["cat", "/proc/net/dev"]).stdout.count("mn") >= 1
        assert posix_peer.sysctl("net.ipv4.tcp_sack") == "1"
"""


def test_the_example_runs_on_taps_unchanged(taps, outer):
    outer(ECHO, "--machnet-nic=tap:mn0").assert_outcomes(passed=1)


def test_and_on_workers_side_by_side(taps, outer):
    source = ECHO + ECHO.replace("import pytest", "").replace("test_echo", "test_again")
    outer(source, "--machnet-nic=tap:mn0", "-n", "2").assert_outcomes(passed=2)


def test_linux_is_a_peer_in_real_time_though_others_are_simulated(taps, outer):
    source = LINUX + "\n    def test_sim(machnet_net): pass\n"
    outer(source, "--machnet-sim", "--machnet-seeds=2").assert_outcomes(passed=3)


def test_linux_and_a_machnet_peer_share_a_bridge(taps, outer):
    source = """
        def test_three(posix_peer, machnet_peer, machnet_host, machnet_channel):
            ch = machnet_channel()
            other = machnet_host()
            assert [machnet_peer.ip, posix_peer.ip, other.ip] == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
            for host in (machnet_peer, other):
                server = host.attach()
                server.listen(host.ip, 7000, protocol="tcp")
                flow = ch.connect(ch.ip, host.ip, 7000, protocol="tcp", timeout=20)
                ch.send(flow, b"x")
                assert server.recv(timeout=20).data == b"x"
            with posix_peer.socket() as sock:
                sock.settimeout(20)
                sock.connect((machnet_peer.ip, 7000))
    """
    outer(source, "--machnet-nic=tap:mn0").assert_outcomes(passed=1)


def test_several_engines_share_the_address(taps, outer):
    source = """
        import pytest

        @pytest.mark.machnet(engines=2)
        def test_two(posix_peer, machnet_channel):
            first, second = machnet_channel(), machnet_channel()
            assert first.stack is not second.stack
            assert first.ip == second.ip
            port = posix_peer.service("echo")
            for ch in (first, second):
                flow = ch.connect(ch.ip, posix_peer.ip, port, protocol="tcp", timeout=20)
                ch.send(flow, b"hello")
                assert ch.recv(timeout=20).data == b"hello"

        def test_one(machnet_channel):
            assert machnet_channel().stack is machnet_channel().stack
    """
    outer(source, "--machnet-nic=tap:mn0").assert_outcomes(passed=2)


def test_the_markers_link_is_a_layer_on_the_nic(taps, outer):
    source = """
        import pytest, time

        @pytest.mark.machnet(latency="30ms", mtu=1000)
        def test_slow(posix_peer, machnet_channel):
            with posix_peer.socket() as listener:
                listener.bind((posix_peer.ip, 80))
                listener.listen()
                ch = machnet_channel()
                assert ch.stack.mtu == 1000
                start = time.monotonic()
                ch.connect(ch.ip, posix_peer.ip, 80, protocol="stream", timeout=20)
                # ARP and SYN, each there and back: what is slower than the link passes too.
                assert time.monotonic() - start >= 0.12
    """
    outer(source).assert_outcomes(passed=1)


def test_a_failure_on_a_nic_has_its_section_and_captures(taps, outer, pytester):
    result = outer(ECHO.replace('b"gnip"', 'b"pong"'), "--machnet-nic=tap:mn0")
    result.assert_outcomes(failed=1)
    lines = section_of(result)
    assert lines[0].startswith("on --machnet-nic=tap:mn0, in real time; link loss=0.05")
    assert lines[1] == "replay: pytest 'test_inner.py::test_echo' --machnet-nic=tap:mn0"
    result.stdout.re_match_lines([r"-+ machnet teardown -+", r"packets of local.*:"])
    syn = r"10\.0\.0\.1\.\d+ > 10\.0\.0\.2\.7000: Flags \[S\]"
    assert any(re.search(syn, line) for line in result.outlines)
    assert any("ESTABLISHED" in line for line in lines)
    assert "  peer 10.0.0.2:7000 LISTEN" in lines  # whose queue is no bytes
    (folder,) = [path for path in pytester.path.glob("machnet-artifacts/*") if path.is_dir()]
    assert {path.name for path in folder.iterdir()} == {"local.pcapng", "peer.pcapng"}
    assert len(read_frames(folder / "local.pcapng")) >= 8


def test_captures_are_kept_where_that_is_asked_for(taps, outer, pytester):
    outer(ECHO, "--machnet-nic=tap:mn0", "--machnet-pcap=always").assert_outcomes(passed=1)
    assert len(list(pytester.path.glob("machnet-artifacts/*/local.pcapng"))) == 1
    outer(LINUX, "--machnet-pcap=never").assert_outcomes(passed=1)


def test_linux_and_a_simulated_network_exclude_each_other(outer):
    source = "def test_both(machnet_net, posix_peer): pass\n"
    result = outer(source)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["posix_peer and machnet_net exclude each other: *"])


SKIPPED = [
    ("machnet_net", "machnet_net", "machnet_net: there is no simulated network on a NIC"),
    ("raw_peer", "raw_peer", "raw_peer: packets are scripted in virtual time only"),
    (
        "machnet_clock",
        "machnet_clock.advance('1s')",
        "machnet_clock.advance: real time can't be advanced by 1s",
    ),
    (
        "machnet_peer",
        "machnet_peer",
        "machnet_peer: it needs a NIC of its own: --machnet-peer-nic=IFACE",
    ),
    (
        "machnet_host",
        "machnet_host",
        "machnet_host: further hosts can be made beside a TAP or a veth of its own only",
    ),
    (
        "posix_peer",
        "posix_peer",
        "posix_peer: say who is at the other end: --machnet-peer=ssh://HOST, *",
    ),
]


@pytest.mark.parametrize(("fixture", "body", "reason"), SKIPPED, ids=lambda part: part[:20])
def test_what_a_nic_does_not_have_skips_the_test_with_the_reason(outer, fixture, body, reason):
    source = f"def test_it({fixture}):\n    {body}\n"
    result = outer(source, "--machnet-nic=wire:w0", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED * {reason} (--machnet-nic=wire:w0)"])


def test_a_veth_whose_namespace_is_not_ours_to_enter_skips_with_the_reason(outer, pytester):
    """As without root, where the other end is in a namespace of /run/netns."""
    pytester.makeconftest(
        """
        import os
        from machnet.testing.remote import AgentError
        from pytest_machnet import ends

        def refused(name):
            raise AgentError(f"the other end of {name}: Operation not permitted")

        ends.find_end = refused
        os.geteuid = lambda: 65534
        """
    )
    nic = "dpdk:net_af_packet0,iface=x0"
    result = outer("def test_it(posix_peer): pass\n", f"--machnet-nic={nic}", "-rs")
    result.assert_outcomes(skipped=1)
    said = "posix_peer: the other end of x0: Operation not permitted; say who is at the other end"
    result.stdout.fnmatch_lines([f"SKIPPED * {said}*"])


def test_a_namespace_that_is_refused_skips_with_the_reason(outer, pytester):
    """As where neither root nor user namespaces are to be had."""
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(autouse=True)
        def refused(monkeypatch):
            from machnet.sim import KernelHost
            monkeypatch.setattr(KernelHost, "tap_available", classmethod(lambda cls: "not here"))
        """
    )
    result = outer(ECHO, "--machnet-nic=tap:mn0", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * no TAP in a namespace of the test's own: not here"])


def test_any_nic_string_will_do(outer):
    source = """
        def test_it(machnet_channel):
            ch = machnet_channel()
            assert str(ch.stack.nic).startswith("wire:w0")
            assert ch.ip == "10.5.0.1"
            sock = ch.stack.socket()
            assert sock.connect_ex(("10.5.0.9", 80)) != 0
    """
    args = ("--machnet-nic=wire:w0?loss=0.5", "--machnet-ip=10.5.0.1/24")
    outer(source, *args).assert_outcomes(passed=1)


SKIPPED = """
    import pytest

    def test_one(posix_peer): pass

    @pytest.mark.skip
    def test_two(machnet_channel): pass

    def test_without_the_plugin(): pass
"""
NOTHING = (
    "nothing ran on --machnet-nic=wire:w0: all 2 tests that use it were skipped (-rs says why)"
)


@pytest.mark.parametrize("args", [(), ("-n", "1")])
def test_a_run_in_which_all_was_skipped_says_that_nothing_ran(outer, args):
    result = outer(SKIPPED, "--machnet-nic=wire:w0", *args)
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["*= machnet =*", NOTHING])


def test_a_run_in_which_something_ran_does_not(outer):
    ran = "@pytest.mark.xfail(raises=OSError)\n    def test_it(machnet_channel): raise OSError"
    result = outer(f"{SKIPPED}\n    {ran}\n", "--machnet-nic=wire:w0")
    result.assert_outcomes(passed=1, skipped=2, xfailed=1)
    result.stdout.no_fnmatch_line("nothing ran on *")
