# SPDX-License-Identifier: MIT
"""Ports that come and go, and those that are refused."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from dpdk_kit import need_root

from machnet import dpdk
from machnet.dpdk import EalError
from machnet.sidecar.config import ConfigError, parse_config

SANITIZED = "MACHNET_TEST_SANITIZED" in os.environ

#: More than EAL has of anything that a port takes: 32 ports, 2560 memory zones.
MANY = 200


def rss_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError


def descriptors() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.append(str(entry.readlink()).partition(":")[0])
    # Each is a piece of EAL's memory, of which it may keep some.
    return sorted(name for name in found if not name.startswith("/memfd"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"queues": 0}, "queues: 0 is not a number within 1 to 16"),
        ({"queues": 17}, "queues: 17 is not"),
        ({"queues": "2"}, "queues: '2' is not"),
        ({"mtu": 67}, "mtu: 67 is not a number within 68 to 65279"),
        ({"mtu": 65280}, "mtu: 65280 is not"),
        ({"mtu": -1}, "mtu: -1 is not"),
        ({"rx_desc": 7}, "rx_desc: 7 is not a number within 32 to 32768, nor 0, the usual number"),
        ({"rx_desc": 32769}, "rx_desc: 32769 is not"),
        ({"tx_desc": -1}, "tx_desc: -1 is not"),
        ({"tx_desc": 31}, "tx_desc: 31 is not"),
        ({"pool_mbufs": 255}, "pool_mbufs: 255 is not a number within 256 to 1048576, nor 0"),
        ({"pool_mbufs": (1 << 20) + 1}, "pool_mbufs: 1048577 is not"),
        ({"nap_max_us": 1_000_001}, "nap_max_us: 1000001 is not"),
        ({"mac": "01:00:00:00:00:01"}, "mac: 01:00:00:00:00:01 is no address of a host"),
        ({"mac": "00:00:00:00:00:00"}, "is no address of a host"),
        ({"mac": "one"}, "'one' is no MAC address"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_accepted(value, said):
    with pytest.raises(ValueError, match=said):
        dpdk.open_port("net_null0", **value)
    if "mac" not in value:  # a pair has two
        with pytest.raises(ValueError, match=said):
            dpdk.ring_pair(**value)
    dpdk.open_port("net_null0").close()


def test_the_configuration_takes_what_a_port_takes():
    taken = {"rx_desc": 32, "tx_desc": 32768, "pool_mbufs": 1 << 20}
    text = '{"machnet_config": {"02:00:00:00:00:01": {"ip": "10.0.0.2", "%s": %d}}}'
    for name, value in taken.items():
        assert getattr(parse_config(text % (name, value)).nics[0], name) == value
        with pytest.raises(ConfigError, match=f"{name}: "):
            parse_config(text % (name, value - 1 if value == 32 else value + 1))
    dpdk.open_port("net_null0", rx_desc=32, tx_desc=0, pool_mbufs=0).close()


def test_a_number_of_slots_that_rings_do_not_have():
    for slots, said in ((1000, "slots: 1000 is no power of two"), (1, "slots: 1 is not")):
        with pytest.raises(ValueError, match=said):
            dpdk.ring_pair(slots=slots)


def test_an_option_that_there_is_not():
    with pytest.raises(TypeError, match="rx_descs"):
        dpdk.open_port("net_null0", rx_descs=64)
    dpdk.open_port("net_null0").close()


@pytest.mark.parametrize(
    ("device", "code", "said"),
    [
        (
            "net_xyzzy0",
            errno.ENODEV,
            "dpdk:net_xyzzy0: no bus or driver of DPDK has that name; EAL",
        ),
        (
            "net_null0,colour=red",
            errno.EINVAL,
            "] dpdk:net_null0,colour=red: its driver refuses it",
        ),
        ("net_afpacket3,a=b", errno.ENODEV, r"] dpdk:net_afpacket3,a=b: .* mean net_af_packet3\?"),
        (
            "vdev:eth_nul",
            errno.ENODEV,
            r"] dpdk:vdev:eth_nul: .* that name: did you mean net_null0\?",
        ),
        ("net_pcap0,rx_pcap=/nosuch", errno.EINVAL, "Couldn't open /nosuch"),
        ("net_null0," + "x" * 260, errno.ENAMETOOLONG, "more than 255 characters"),
    ],
)
def test_a_device_that_no_driver_takes(device, code, said):
    for _ in range(40):  # more than there can be ports
        with pytest.raises(EalError, match=said) as caught:
            dpdk.open_port(device)
        assert caught.value.errno == code
        assert "root" not in str(caught.value)
        assert "DPDK was asked for" not in str(caught.value)  # it was asked for what the user said


REFUSED = """
import sys
from machnet import dpdk
for given in sys.argv[1:]:
    try:
        dpdk.open_port(given)
    except dpdk.EalError as error:
        print(error.strerror)
"""


def test_a_refusal_begins_with_what_the_user_said(veth):
    """And says at its end what that stood for; whoever lacks permission is told what takes it."""
    by_hand = f"net_af_packet5,iface={veth.name}"
    asked_for = veth.name, by_hand, "net_memif0", "net_memif0,socket=/run/x.sock,id=1"
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_raw", sys.executable, "-c", REFUSED, *asked_for],
        env={**os.environ, "MACHNET_DPDK": "huge=off,memory_mb=32"},
        check=True,
        capture_output=True,
        text=True,
    )
    plain, said, memif, other = done.stdout.splitlines()
    why = "its driver refuses it; [^;]*Could not open AF_PACKET socket; DPDK needs root, or CAP_NET_RAW .*"
    asked = "; DPDK was asked for"
    assert re.fullmatch(
        rf"dpdk:{veth.name}: {why}{asked} net_af_packet\d+,iface={veth.name},.*", plain
    )
    assert re.fullmatch(f"dpdk:{by_hand}: {why}{asked} {by_hand},.*qpairs=1", said)
    # That a memif is a client which nobody serves takes no root to mend.
    assert memif == (
        "dpdk:net_memif0: nobody serves its socket /run/memif.sock: start the other end first, with "
        "role=server, or let this end be the server: dpdk:net_memif0,role=server"
    )
    assert "nobody serves its socket /run/x.sock: " in other
    assert other.endswith(": dpdk:net_memif0,role=server,socket=/run/x.sock,id=1")


def test_a_device_can_be_opened_once():
    with contextlib.closing(dpdk.open_port("net_null3")) as port:
        for _ in range(3):
            with pytest.raises(EalError, match="net_null3 is open already; this process") as caught:
                dpdk.open_port("net_null3")
            assert caught.value.errno == errno.EEXIST
        assert port.info()["present"]
    dpdk.open_port("net_null3").close()


def test_an_interface_can_be_opened_once(veth):
    with contextlib.closing(dpdk.open_port(veth.name)) as port:
        with pytest.raises(EalError, match=f"same interface .{veth.name}.") as caught:
            dpdk.open_port(veth.name)
        assert caught.value.errno == errno.EEXIST
        assert port.link()[0]
    dpdk.open_port(f"net_af_packet0,iface={veth.name}").close()


SECOND = """
import sys
from machnet import dpdk
dpdk.open_port(sys.argv[1]).close()
"""


def test_a_second_process_on_an_interface_is_told_of_the_first(veth):
    """Both get all frames: that is how packet sockets are, and it may be meant."""

    def said() -> str:
        done = subprocess.run(
            [sys.executable, "-c", SECOND, f"net_af_packet0,iface={veth.name}"],
            env={**os.environ, "MACHNET_DPDK": "huge=on,memory_mb=32"},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stderr

    told = f"{veth.name} is used by process {os.getpid()} too: each gets every frame that comes in"
    with contextlib.closing(dpdk.open_port(veth.name)):
        assert told in said()
    assert "is used by" not in said()


def test_an_mtu_that_the_interface_does_not_have(veth):
    with pytest.raises(ValueError, match=f"{veth.name} has 1500 bytes, not 3000; .*mtu 3000"):
        dpdk.open_port(veth.name, mtu=3000)
    with contextlib.closing(dpdk.open_port(veth.name, mtu=1000)) as port:
        assert port.mtu == 1000


def test_opening_and_closing_leaves_nothing():
    for _ in range(2):
        for one in (dpdk.open_port("net_null0"), *dpdk.ring_pair(queues=2)):
            one.close()
    rss, open_files = rss_kb(), descriptors()
    for i in range(MANY):
        with contextlib.closing(dpdk.open_port(f"net_null{i % 7}", pool_mbufs=600)) as port:
            assert port.stats()["mbufs_free"] == 600
    for _ in range(MANY // 10):
        for one in dpdk.ring_pair(queues=2, pool_mbufs=600):
            one.close()
    assert descriptors() == open_files
    if not SANITIZED:  # which keeps what was freed for a while, to notice its use
        assert rss_kb() - rss < 8192


def test_packet_sockets_are_closed(veth):
    dpdk.open_port(veth.name, queues=2).close()
    open_files = descriptors()
    for _ in range(8):
        dpdk.open_port(veth.name, queues=2, pool_mbufs=600).close()
    assert descriptors() == open_files


def test_pairs_that_can_not_be_opened_leave_nothing():
    # Each has two ports, and EAL has 32.
    for _ in range(20):
        with pytest.raises(TypeError, match="colour"):
            dpdk.ring_pair(colour="red")
        with pytest.raises(ValueError, match="is no address of a host"):
            dpdk.ring_pair(macs=("02:00:00:00:00:01", "ff:ff:ff:ff:ff:ff"))
    for one in dpdk.ring_pair():
        one.close()


def test_ports_side_by_side():
    with contextlib.ExitStack() as opened:
        ports = []
        for i in range(20):
            ports.append(dpdk.open_port(f"net_null{i}", pool_mbufs=256))
            opened.callback(ports[-1].close)
        assert len({port.info()["port"] for port in ports}) == 20
        assert all(port.info()["present"] for port in ports)
        ports.pop(7).close()
        assert all(port.info()["present"] for port in ports)


def test_a_port_without_an_address_gets_one():
    with contextlib.closing(dpdk.open_port("net_ring7")) as port:
        assert port.mac != "00:00:00:00:00:00"
        assert int(port.mac[:2], 16) & 3 == 2


def test_a_process_without_descriptors_to_spare_keeps_its_interfaces(veth):
    need_root()
    with contextlib.closing(dpdk.open_port(veth.name)) as port:
        old = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, old[1]))
        try:
            port.look()
            found, link = port.info(), port.link()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, old)
        assert found["present"]
        assert link[0]
        assert port.stats()["unplugged"] == 0


def test_who_asks_a_port_while_it_is_closed_gets_nothing():
    """Another thread may have looked whether it is open, and ask when it is not any more."""
    port = dpdk.open_port("net_null0", pool_mbufs=256)
    lib, ffi, native = port._lib, port._ffi, port._port
    port.close()
    stats, info = ffi.new("struct mn_dpdk_stats *"), ffi.new("struct mn_dpdk_info *")
    lib.mn_dpdk_get_stats(native, stats)
    lib.mn_dpdk_get_info(native, info)
    lib.mn_dpdk_close(native)
    assert (stats.mbufs, info.present, ffi.string(info.driver)) == (0, False, b"")


NO_MEMORY = """
import errno
from machnet import dpdk
dpdk.configure(huge="off", memory_mb=64)
for _ in range(5):
    try:
        dpdk.ring_pair(queues=4, slots=64, pool_mbufs=8000)
    except dpdk.EalError as error:
        assert error.errno == errno.ENOMEM
        assert "no memory for 8000 packets" in str(error), error
        assert "(queue 0)" not in str(error), error
    else:
        raise AssertionError
    dpdk.open_port("net_null0", pool_mbufs=12000).close()
"""


def test_a_port_that_can_not_be_opened_gives_back_what_it_had():
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


FORKED = """
import os, signal, sys
from machnet import dpdk
dpdk.configure(huge="off", memory_mb=64)
port = dpdk.open_port("net_null0")
pid = os.fork()
if pid == 0:
    signal.alarm(10)  # its threads are not here: whoever waits for them waits for ever
    for what in port.stats, port.info, port.look:
        try:
            what()
        except RuntimeError as error:
            print(error)
    try:
        dpdk.open_port("net_null1")
    except dpdk.EalError as error:
        print(error.errno)
    if sys.argv[1] == "close":
        port.close()
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stats = port.stats()
assert stats["mbufs"] > 0
port.close()
dpdk.open_port("net_null1").close()
"""


@pytest.mark.parametrize("how", ["close", "exit"])
def test_a_forked_child_ends_and_does_nothing_to_the_ports_of_its_parent(how):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = "dpdk:net_null0 belongs to the process that this one was forked from"
    assert done.stdout.splitlines() == [said] * 3 + [str(errno.ECHILD)]


def test_a_group_of_sockets_that_another_has(veth):
    number = (os.getpid() ^ socket.if_nametoindex(veth.name)) & 0xFFFF
    sol_packet, packet_fanout, everything = 263, 18, socket.htons(3)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, everything) as other:
        other.bind(("lo", everything))
        other.setsockopt(sol_packet, packet_fanout, number)
        with pytest.raises(EalError, match="another process may have that number") as refused:
            dpdk.open_port(veth.name)
        assert refused.value.errno == errno.EADDRINUSE
    dpdk.open_port(veth.name).close()
