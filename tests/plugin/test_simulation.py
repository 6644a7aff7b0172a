# SPDX-License-Identifier: MIT
"""The fixtures on the simulated network."""

from __future__ import annotations

import zlib

from plugin_runs import ECHO

from pytest_machnet.pcapng import read_frames


def test_the_example_runs_for_many_seeds(outer):
    outer(ECHO, "--machnet-sim", "--machnet-seeds=20").assert_outcomes(passed=20)


def test_simulation_is_the_default_and_says_so(outer):
    result = outer(ECHO)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["machnet: simulation (the default; *"])


def test_under_xdist_the_default_says_so_at_the_end(outer):
    result = outer(ECHO, "-n", "1")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["machnet: simulation (the default; *"])


def test_a_network_is_fresh_and_seeded_by_node_id_and_base(outer):
    source = """
        import pytest

        @pytest.mark.parametrize("way", ["a"])
        def test_seed(machnet_net, way, request):
            assert machnet_net.now_ns == 0 and not machnet_net.hosts
            print("SEED", request.node.nodeid, machnet_net.seed)

        @pytest.mark.machnet(seed=99)
        def test_pinned(machnet_net, request):
            print("SEED", request.node.nodeid, machnet_net.seed)
    """
    result = outer(source, "-s", "--machnet-seed=7", "--machnet-seeds=2")
    result.assert_outcomes(passed=4)
    found = [line.partition("SEED ")[2].split() for line in result.outlines if "SEED" in line]
    ways = zlib.crc32(b"test_inner.py::test_seed[a]")
    pinned = zlib.crc32(b"test_inner.py::test_pinned")
    assert found == [
        ["test_inner.py::test_seed[a-seed0]", str(ways ^ 7)],
        ["test_inner.py::test_seed[a-seed1]", str(ways ^ 8)],
        ["test_inner.py::test_pinned[seed0]", str(pinned ^ 99)],
        ["test_inner.py::test_pinned[seed1]", str(pinned ^ 100)],
    ]


def test_hosts_reach_each_other_and_the_marker_is_about_each_ones_link(outer):
    source = """
        import pytest

        @pytest.mark.machnet(latency="1ms", mtu=900, ip="10.1.0.5/16")
        def test_hosts(machnet_host, machnet_channel, machnet_peer, machnet_clock):
            first, second = machnet_host(), machnet_host(name="other")
            assert [first.ip, second.ip, machnet_peer.ip] == ["10.1.0.7", "10.1.0.8", "10.1.0.6"]
            assert second.name == "other"
            hosts = [first, second, machnet_peer]
            assert all(host.stack.mtu == 900 for host in hosts)
            ch = machnet_channel()
            for host in hosts:
                server = host.attach()
                server.listen(host.ip, 7000, protocol="tcp")
                before = machnet_clock.now_ns
                flow = ch.connect(ch.ip, host.ip, 7000, protocol="tcp", timeout=5)
                # ARP, SYN, SYN-ACK: two ways there and back.
                assert 4_000_000 <= machnet_clock.now_ns - before < 4_100_000
                ch.send(flow, b"to " + host.name.encode())
                assert server.recv(timeout=5).data == b"to " + host.name.encode()
            client = first.attach()
            flow = client.connect(first.ip, second.ip, 7000, protocol="tcp", timeout=5)
    """
    outer(source).assert_outcomes(passed=1)


def test_two_parties_are_the_ends_of_one_link(outer):
    source = """
        def test_link(machnet_net, machnet_channel, machnet_peer):
            (link,) = machnet_net.links
            assert link.name == "local<>peer"

        def test_raw(machnet_net, raw_peer):
            (link,) = machnet_net.links
            assert link.name == "local<>raw"

        def test_nobody(machnet_net):
            assert not machnet_net.links
    """
    outer(source).assert_outcomes(passed=3)


def test_a_scripted_peer_sees_the_packets_of_the_local_stack(outer):
    source = """
        import errno
        from machnet.testing import tcp

        def test_refused(machnet_channel, raw_peer, machnet_clock):
            sock = machnet_channel().stack.socket()
            assert sock.connect_ex((raw_peer.ip, 80)) == errno.EINPROGRESS
            syn = raw_peer.expect(tcp(flags="S", dport=80), within="1ms")
            raw_peer.send(tcp(flags="RA", sport=80, dport=syn.sport, seq=0, ack=syn.seq + 1))
            machnet_clock.advance("1ms")
            assert sock.connect_ex((raw_peer.ip, 80)) == errno.ECONNREFUSED
    """
    outer(source).assert_outcomes(passed=1)


def test_the_clock_is_the_networks(outer):
    source = """
        import pytest

        def test_clock(machnet_clock, machnet_net):
            machnet_clock.advance("50ms")
            machnet_clock.sleep(1000)
            assert machnet_clock.now_ns == machnet_net.now_ns == 50_001_000
            assert machnet_clock.eventually(lambda: "found", within="1s") == "found"
            with pytest.raises(AssertionError, match="never comes"):
                machnet_clock.eventually(lambda: False, within="10ms", message="never comes")
    """
    outer(source).assert_outcomes(passed=1)


def test_a_capture_is_kept_though_the_test_passes(outer, pytester):
    source = """
        def test_kept(machnet_channel, machnet_peer, machnet_pcap, record_property):
            server = machnet_peer.attach()
            server.listen(machnet_peer.ip, 7000, protocol="tcp")
            ch = machnet_channel()
            ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=5)
            print("COUNT", len(machnet_pcap.packets()), len(machnet_pcap.packets(last=2)))
            print("PATH", machnet_pcap.path)

        def test_not_kept(machnet_channel, machnet_peer):
            machnet_channel()
    """
    result = outer(source, "-s")
    result.assert_outcomes(passed=2)
    (folder,) = [path for path in pytester.path.glob("machnet-artifacts/*") if path.is_dir()]
    assert folder.name.startswith("test_inner-test_kept-")
    frames = read_frames(folder / "packets.pcapng")
    assert result.outlines.count(f"PATH {folder / 'packets.pcapng'}") == 1
    (count,) = [line.split() for line in result.outlines if "COUNT" in line]
    assert int(count[-2]) == len(frames) == 9
    assert int(count[-1]) == 2
    ignored = (pytester.path / "machnet-artifacts" / ".gitignore").read_text()
    assert "*" in ignored.splitlines()


def test_always_captures_every_simulated_test(outer, pytester):
    outer(ECHO, "--machnet-pcap=always", "--machnet-artifacts=kept").assert_outcomes(passed=1)
    (path,) = pytester.path.glob("kept/*/packets.pcapng")
    assert len(read_frames(path)) > 10


def test_channels_sockets_and_asyncio_share_the_network(outer):
    source = """
        import asyncio
        from machnet import aio

        def test_streams(machnet_net, machnet_peer, machnet_channel):
            ch = machnet_channel()
            async def serve(reader, writer):
                writer.write((await reader.read()).upper())
                writer.close()

            async def main():
                server = await aio.start_server(machnet_peer.stack, serve, machnet_peer.ip, 80)
                reader, writer = await aio.open_connection(ch.stack, machnet_peer.ip, 80)
                await asyncio.sleep(60)
                writer.write(b"hello")
                writer.write_eof()
                assert await reader.read() == b"HELLO"
                writer.close()
                server.close()

            machnet_net.run(main())
            assert machnet_net.now_ns > 60_000_000_000
    """
    outer(source).assert_outcomes(passed=1)


def test_what_is_named_too_late_is_a_failure_that_says_so(outer):
    source = """
        import pytest

        @pytest.mark.parametrize("name", ["posix_peer", "machnet_pcap", "machnet_host"])
        def test_late(machnet_channel, request, name):
            made = request.getfixturevalue(name)
            if name == "machnet_host":
                made()
    """
    result = outer(source)
    assert result.ret == 1
    text = result.stdout.str()
    for name in ("posix_peer", "machnet_pcap", "machnet_host"):
        assert f"name {name} in the arguments of the test" in text or (
            f"{name} was asked for by request.getfixturevalue" in text
        )


# ---- leaks ---------------------------------------------------------------------------------------


def test_what_a_test_leaves_behind_is_cleared_up_without_a_word(outer):
    """Open connections, with data under way, and listeners are the test's right."""
    source = """
        import pytest

        @pytest.mark.machnet(loss=0.05)
        def test_left(machnet_channel, machnet_peer):
            server = machnet_peer.attach()
            server.listen(machnet_peer.ip, 7000, protocol="tcp")
            ch = machnet_channel()
            flow = ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=60)
            ch.send(flow, bytes(100_000))

        def test_sockets(machnet_channel, machnet_peer):
            sock = machnet_peer.socket()
            sock.bind((machnet_peer.ip, 80))
            sock.listen(5)
            machnet_channel().stack.socket().connect_ex((machnet_peer.ip, 80))
    """
    outer(source, "--machnet-seeds=5").assert_outcomes(passed=10)


def test_a_leak_is_an_error_of_the_test_that_says_what_leaked(outer):
    """The engine does not leak; so that it does, its host's baseline is falsified."""
    source = """
        def test_leaky(machnet_peer, machnet_channel):
            machnet_channel()
            machnet_peer._baseline["listeners"] = -1
    """
    result = outer(source)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["E *LeakError: the network's hosts did not get back: peer: 1 list*"]
    )
    result.stdout.fnmatch_lines(["*- machnet -*", "seed *"])


def test_a_failing_test_is_not_blamed_for_leaks_too(outer):
    source = """
        def test_leaky(machnet_peer):
            machnet_peer._baseline["listeners"] = -1
            assert False
    """
    outer(source).assert_outcomes(failed=1)
