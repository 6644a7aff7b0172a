# SPDX-License-Identifier: MIT
"""The plugin on a veth that there is already, wherever its other end is, and on what is no veth."""

from __future__ import annotations

import os

import pytest
from dpdk_kit import need_root, sh

from machnet.sim import KernelHost
from machnet.sim.kernel_host import change_link
from machnet.testing import agent

TAG = f"{os.getpid():x}"
SOURCE = """
    import pytest

    def echo(posix_peer, machnet_channel):
        ch = machnet_channel()
        port = posix_peer.service("echo")
        flow = ch.connect(ch.ip, posix_peer.ip, port, protocol="tcp", timeout=20)
        ch.send(flow, bytes(5000))
        assert ch.recv(timeout=20).data == bytes(5000)

    @pytest.mark.machnet(nic="unTAG")
    def test_unused_and_here(posix_peer, machnet_peer, machnet_channel):
        echo(posix_peer, machnet_channel)
        assert posix_peer.interface == "machnet0"

    @pytest.mark.machnet(nic="usTAG", ip="10.66.0.1/24")
    def test_used_and_here(posix_peer, machnet_channel):
        assert (posix_peer.ip, posix_peer.interface) == ("10.66.0.9", "usTAGb")
        echo(posix_peer, machnet_channel)
        assert posix_peer.run(["cat", "/sys/class/net/usTAGb/ifindex"]).stdout

    @pytest.mark.machnet(nic="elTAG")
    def test_elsewhere(posix_peer, machnet_channel):
        assert (posix_peer.ip, posix_peer.interface) == ("10.0.0.2", "far")
        echo(posix_peer, machnet_channel)

    @pytest.mark.machnet(nic="elTAG", ip="10.77.0.1/24")
    def test_elsewhere_with_another_address(posix_peer):
        raise AssertionError("it is not made")

    @pytest.mark.machnet(nic="elTAG", ip="10.0.0.2/24")
    def test_elsewhere_with_the_same_address(posix_peer):
        raise AssertionError("it is not made")

    @pytest.mark.machnet(nic="noTAG")
    def test_no_such_nic(posix_peer):
        raise AssertionError("it is not made")

    @pytest.mark.machnet(nic="dpdk:net_af_packet0,iface=mvTAG", peer="10.67.0.2?echo=PORT", ip="10.67.0.1/24")
    def test_no_veth_but_an_address(posix_peer, machnet_channel):
        echo(posix_peer, machnet_channel)
        posix_peer.socket()

    @pytest.mark.machnet(nic="dpdk:net_af_packet0,iface=mvTAG")
    def test_no_veth(posix_peer):
        raise AssertionError("it is skipped")
"""


@pytest.fixture
def links():
    """Interfaces of this namespace, for the time of a test."""
    need_root()
    if reason := KernelHost.tap_available():
        pytest.skip(reason)
    with KernelHost("far") as far, KernelHost("further") as further:
        made = [f"{kind}{TAG}" for kind in ("un", "us", "mv", "lo")]
        try:
            sh("ip", "link", "add", made[0], "type", "veth", "peer", f"{made[0]}b")
            sh("ip", "link", "add", made[1], "type", "veth", "peer", f"{made[1]}b")
            sh("ip", "addr", "add", "10.66.0.9/24", "dev", f"{made[1]}b")
            sh("ip", "link", "set", f"{made[1]}b", "up")
            far.open_veth("far", f"el{TAG}")
            further.open_veth("eth0", made[3], kernel_ip="10.67.0.2/24")
            # With an address of its own, so that it is no veth's end to the plugin.
            mode = ("type", "macvlan", "mode", "private")
            sh("ip", "link", "add", made[2], "link", made[3], *mode)
            sh("ip", "link", "set", made[2], "up")
            yield further
        finally:
            for name in [*made, f"el{TAG}"]:
                change_link(name, delete=True)


def state(name: str) -> dict[str, str]:
    """What the plugin changes of an interface of this namespace."""
    found = {"offloads": sh("ethtool", "-k", name)}
    found["flags"] = sh("cat", f"/sys/class/net/{name}/flags")
    for key in ("ipv4 forwarding", "ipv4 arp_ignore", "ipv4 rp_filter", "ipv6 disable_ipv6"):
        family, setting = key.split()
        found[key] = sh("cat", f"/proc/sys/net/{family}/conf/{name}/{setting}")
    found["ipv6"] = sh("ip", "-6", "-br", "addr", "show", "dev", name, "scope", "global")
    return found


def test_every_sort_of_other_end(links, pytester):
    sh("ip", "addr", "add", "fd66::1/64", "dev", f"us{TAG}", "nodad")
    sh("sysctl", "-qw", f"net.ipv4.conf.el{TAG}.forwarding=1")
    mine = [
        f"{kind}{TAG}{end}"
        for kind, end in (("un", ""), ("un", "b"), ("us", ""), ("us", "b"), ("el", ""))
    ]
    before = {name: state(name) for name in mine}
    listener = links.socket()
    port = agent.start_service("echo", listener, "10.67.0.2", lambda _: None)
    pytester.makepyfile(test_inner=SOURCE.replace("TAG", TAG).replace("PORT", str(port)))
    result = pytester.runpytest_subprocess("-p", "no:randomly", "-rs", timeout=120)
    agent.abort(listener)
    # The address that an interface there was given stays until the run ends.
    result.assert_outcomes(passed=3, skipped=2, errors=3)
    result.stdout.fnmatch_lines(
        [
            "posix_peer: * has no address in 10.77.0.0/24 (it has *far 10.0.0.2/24*",
            "posix_peer: * has the local stack's address, 10.0.0.2: *another one, --machnet-ip=10.0.0.3/24",
            f"--machnet-nic=no{TAG}: there is no NIC 'no{TAG}'*",
            "SKIPPED * posix_peer.socket: of it only the address is known: *",
            f"SKIPPED * posix_peer: mv{TAG} is a macvlan and no veth; say who is at the other end*",
        ]
    )
    assert "During handling" not in result.stdout.str()
    # What was lent is back, and as it was.
    assert {name: state(name) for name in mine} == before
