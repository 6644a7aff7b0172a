# SPDX-License-Identifier: MIT
"""KernelHost: a Linux host of a test's own, with real namespaces, devices and processes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import select
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from machnet.sim.kernel_host import KernelHost, KernelHostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_S = 20.0  # far more than anything here takes: reached only when something is broken
PEER_MAC = "02:00:00:00:00:02"
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"


pytestmark = pytest.mark.usefixtures("_needs_namespaces")


@pytest.fixture
def host() -> Iterator[KernelHost]:
    with KernelHost() as made:
        yield made


def own_namespace(pid: int | str = "self") -> int:
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


def open_descriptors() -> set[str]:
    """What this process has open, by number and target."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            found.add(f"{path.name} {path.readlink()}")
    return found


def read_frame(fd: int) -> bytes:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(DEADLINE_S * 1000), "the kernel sent no frame"
    return os.read(fd, 65536 + 32)


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def arp_request(sender_mac: str, sender_ip: str, target_ip: str) -> bytes:
    return (
        mac_bytes(BROADCAST_MAC)
        + mac_bytes(sender_mac)
        + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1)
        + mac_bytes(sender_mac)
        + ipaddress.IPv4Address(sender_ip).packed
        + bytes(6)
        + ipaddress.IPv4Address(target_ip).packed
    )


def exchange_tcp(client: KernelHost, server: KernelHost, server_ip: str, size: int) -> None:
    """Send `size` bytes from a kernel socket of one host to one of the other and check them."""
    sent = bytes(i % 251 for i in range(size))
    with server.socket() as listener, client.socket() as out:
        listener.settimeout(DEADLINE_S)
        out.settimeout(DEADLINE_S)
        listener.bind((server_ip, 7000))
        listener.listen()
        out.connect((server_ip, 7000))
        incoming, _ = listener.accept()
        sender = threading.Thread(target=lambda: (out.sendall(sent), out.shutdown(socket.SHUT_WR)))
        sender.start()
        received = bytearray()
        with incoming:
            incoming.settimeout(DEADLINE_S)
            while piece := incoming.recv(1 << 16):
                received += piece
        sender.join()
    assert bytes(received) == sent


# ---- the namespace ------------------------------------------------------------------------------


def test_it_has_lo_alone_and_lo_works(make_host: Callable[..., KernelHost]) -> None:
    host = make_host()
    names = [line.split(":")[0].strip() for line in
             host.run(["cat", "/proc/net/dev"]).stdout.splitlines()[2:]]  # fmt: skip
    # Kernels with built-in tunnel drivers put a fallback device of theirs into each namespace.
    assert [name for name in names if "0" not in name] == ["lo"]
    exchange_tcp(host, host, "127.0.0.1", 1000)


def test_its_ports_and_processes_are_apart_from_ours(make_host: Callable[..., KernelHost]) -> None:
    host = make_host()
    assert host.call(own_namespace) != own_namespace()
    with host.socket() as inside, socket.socket() as outside:
        inside.bind(("127.0.0.1", 0))
        inside.listen()
        with pytest.raises(ConnectionRefusedError):
            outside.connect(inside.getsockname())


@pytest.mark.usefixtures("_needs_user_namespace")
def test_user_namespace_is_used_where_asked_for_and_makes_us_root_there() -> None:
    with KernelHost(user_namespace=True) as host:
        assert host.in_user_namespace
        assert host.run(["id", "-u"]).stdout == "0\n"
        assert host.call(os.getuid) == 0


def test_root_needs_no_user_namespace() -> None:
    if os.geteuid() != 0:
        pytest.skip("this test is about root, and runs as another user")
    with KernelHost() as host:
        assert not host.in_user_namespace


def test_ipv6_is_off_unless_asked_for(make_host: Callable[..., KernelHost]) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this kernel has no IPv6")
    quiet, talking = make_host("quiet"), make_host("talking", ipv6=True)
    assert (quiet.ipv6, talking.ipv6) == (False, True)
    KernelHost.connect(quiet, talking)
    assert quiet.run(["cat", "/proc/net/if_inet6"]).stdout == ""
    assert quiet.sysctl("net/ipv6/conf/veth0/disable_ipv6") == "1"
    addresses = talking.run(["cat", "/proc/net/if_inet6"]).stdout
    assert addresses.count("fe80") == 1


# ---- TAP ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_needs_tap")
@pytest.mark.parametrize("header", [0, 10, 12])
def test_tap_passes_frames_both_ways(make_host: Callable[..., KernelHost], header: int) -> None:
    host = make_host()
    # fmt: off
    fd = host.open_tap(
        "mn0", vnet_hdr=header > 0, vnet_hdr_bytes=header or 12, kernel_ip="10.0.0.1/24",
        mac="02:00:00:00:00:01", mtu=9000,
    )
    # fmt: on
    try:
        assert host.mac("mn0") == "02:00:00:00:00:01"
        assert host.mtu("mn0") == 9000
        request = bytes(header) + arp_request(PEER_MAC, "10.0.0.2", "10.0.0.1")
        assert os.write(fd, request) == len(request)
        reply = read_frame(fd)[header:]
        assert reply[:6] == mac_bytes(PEER_MAC)
        assert reply[6:12] == mac_bytes("02:00:00:00:00:01")
        assert struct.unpack("!HHHBBH", reply[12:22]) == (0x0806, 1, 0x0800, 6, 4, 2)
        assert reply[22:32] == mac_bytes("02:00:00:00:00:01") + bytes([10, 0, 0, 1])
        assert reply[32:42] == mac_bytes(PEER_MAC) + bytes([10, 0, 0, 2])
    finally:
        os.close(fd)


@pytest.mark.usefixtures("_needs_tap")
@pytest.mark.parametrize("offloads", [False, True])
def test_tap_hands_over_unfinished_checksums_only_with_offloads(
    host: KernelHost, offloads: bool
) -> None:
    fd = host.open_tap("mn0", offloads=offloads, kernel_ip="10.0.0.1/24")
    try:
        host.neighbor("10.0.0.2", PEER_MAC, "mn0")  # so that the first frame is no ARP request
        with host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"hello", ("10.0.0.2", 9))
            frame = read_frame(fd)
        needs_checksum = frame[0] & 1
        assert needs_checksum == int(offloads)
        assert frame[12:18] == mac_bytes(PEER_MAC)
        assert frame[18:24] == mac_bytes(host.mac("mn0"))
        assert frame[12 + 42 :] == b"hello"
    finally:
        os.close(fd)


@pytest.mark.usefixtures("_needs_tap")
def test_tap_name_is_taken_until_its_descriptor_is_closed(host: KernelHost) -> None:
    fd = host.open_tap("mn0")
    with pytest.raises(KernelHostError, match="the name is taken"):
        host.open_tap("mn0")
    os.close(fd)
    os.close(host.open_tap("mn0"))


@pytest.mark.usefixtures("_needs_tap")
def test_tap_that_fails_half_way_leaves_no_descriptor(host: KernelHost) -> None:
    os.close(host.open_tap("mn0"))  # what is imported lazily, now
    before = open_descriptors()
    with pytest.raises(KernelHostError, match=r"setting .*mtu.* on the interface mn0"):
        host.open_tap("mn0", mtu=1_000_000)
    assert open_descriptors() == before


def test_default_macs_are_unique_unicast_and_local(make_host: Callable[..., KernelHost]) -> None:
    a, b = make_host("a"), make_host("b")
    pairs = [KernelHost.connect(a, b) for _ in range(3)]
    macs = [host.mac(name) for pair in pairs for host, name in zip((a, b), pair, strict=True)]
    assert len(set(macs)) == 6
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)


# ---- veth, routes -------------------------------------------------------------------------------


@pytest.mark.parametrize("offloads", [True, False])
def test_veth_carries_tcp(make_host: Callable[..., KernelHost], offloads: bool) -> None:
    a, b = make_host("a"), make_host("b")
    names = KernelHost.connect(a, b, "10.0.1.1/24", "10.0.1.2/24", mtu=1400, offloads=offloads)
    assert names == ("veth0", "veth0")
    assert a.mtu("veth0") == b.mtu("veth0") == 1400
    for host in (a, b):
        states = host.offloads("veth0")
        assert [states["tso"], states["gso"], states["tx-checksum"]] == [offloads] * 3
    with b.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as sniffer:
        sniffer.bind(("veth0", 0x0800))
        exchange_tcp(a, b, "10.0.1.2", 1 << 20)
        sniffer.setblocking(False)
        sizes = []
        with contextlib.suppress(BlockingIOError):
            while True:
                sizes.append(len(sniffer.recv(1 << 17)))
    assert (max(sizes) > 1414) == offloads


@pytest.mark.usefixtures("_needs_user_namespace")
def test_hosts_of_both_kinds_can_be_connected() -> None:
    if os.geteuid() != 0:
        pytest.skip("without root every host is in the user namespace")
    with KernelHost("plain") as plain, KernelHost("user", user_namespace=True) as user:
        KernelHost.connect(user, plain, "10.0.1.1/24", "10.0.1.2/24")
        KernelHost.connect(plain, user, "10.0.2.1/24", "10.0.2.2/24")
        exchange_tcp(user, plain, "10.0.1.2", 1000)
        exchange_tcp(user, plain, "10.0.2.1", 1000)


def test_routes_lead_through_a_third_host(make_host: Callable[..., KernelHost]) -> None:
    a, router, b = make_host("a"), make_host("router"), make_host("b")
    KernelHost.connect(a, router, "10.0.1.1/24", "10.0.1.254/24")
    KernelHost.connect(router, b, "10.0.2.254/24", "10.0.2.1/24")
    assert router.sysctl("net.ipv4.ip_forward", 1) == "1"
    with a.socket() as sock, pytest.raises(OSError, match="Network is unreachable"):
        sock.connect(("10.0.2.1", 7000))
    a.add_route("default", via="10.0.1.254")
    b.add_route("10.0.1.0/24", via="10.0.2.254", ifname="veth0")
    exchange_tcp(a, b, "10.0.2.1", 1000)


def test_link_down_stops_traffic_and_a_second_address_works(host: KernelHost) -> None:
    with KernelHost("other") as other:
        KernelHost.connect(host, other, "10.0.1.1/24", "10.0.1.2/24")
        other.add_address("veth0", "10.0.3.2/24")
        host.add_route("10.0.3.0/24", ifname="veth0")
        exchange_tcp(host, other, "10.0.3.2", 1000)
        host.set_link("veth0", up=False)
        with host.socket() as sock, pytest.raises(OSError, match="Network is unreachable"):
            sock.connect(("10.0.3.2", 7000))


def test_it_works_inside_an_event_loop(make_host: Callable[..., KernelHost]) -> None:
    async def main() -> bytes:
        a, b = make_host("a"), make_host("b")
        KernelHost.connect(a, b, "10.0.1.1/24", "10.0.1.2/24")

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(5))
            writer.close()
            await writer.wait_closed()

        listener = b.socket()
        listener.bind(("10.0.1.2", 7000))
        server = await asyncio.start_server(echo, sock=listener)
        sock = a.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("10.0.1.2", 7000))
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(b"hello")
        answer = await asyncio.wait_for(reader.read(), DEADLINE_S)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        assert a.call(lambda: asyncio.run(asyncio.sleep(0, "a loop of its own"))) == (
            "a loop of its own"
        )
        with pytest.raises(KernelHostError, match="event loop"), a.iproute():
            pass
        return answer

    assert asyncio.run(main()) == b"hello"


def test_iproute_reaches_what_has_no_method(host: KernelHost) -> None:
    with host.iproute() as route:
        route.link("add", ifname="br0", kind="bridge")
        assert len(route.link_lookup(ifname="br0")) == 1
    assert host.mtu("br0") == 1500


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda host: host.mac("none0"), "MAC address of none0 failed: No such device"),
        (lambda host: host.set_link("none0", up=True), "interface none0 failed: No such device"),
        (lambda host: host.set_offloads("none0", on=False), "of none0 failed: No such device"),
        (lambda host: host.add_address("lo", "127.0.0.1/8"), "127.0.0.1/8 to lo failed: File ex"),
        (lambda host: host.add_route("default", via="10.9.9.9"), "default failed: Network is unr"),
        (lambda host: host.sysctl("net.ipv4.none"), "no such setting per network namespace"),
        (lambda host: host.sysctl("net.ipv4.ip_forward", "x"), "to 'x' failed: Invalid argument"),
        (lambda host: host.socket(socket.AF_INET, socket.SOCK_STREAM, 99), "creating a socket"),
    ],
)
def test_what_the_kernel_refuses_is_named(
    host: KernelHost, use: Callable[[KernelHost], Any], message: str
) -> None:
    with pytest.raises(KernelHostError, match=message) as caught:
        use(host)
    assert caught.value.errno
    assert str(caught.value).startswith("KernelHost 'host': ")
    exchange_tcp(host, host, "127.0.0.1", 10)  # it goes on working


@pytest.mark.parametrize(
    "use",
    [
        lambda host: host.sysctl("kernel.hostname", "x"),
        lambda host: host.sysctl("net.ipv4/../../kernel/hostname"),
        lambda host: host.sysctl("net/../kernel/hostname"),
        lambda host: host.mac("a/b"),
        lambda host: host.open_tap("sixteen-letters-"),
        lambda host: host.open_tap("mn0", mac="01:00:00:00:00:01"),
        lambda host: host.open_tap("mn0", mac="02-00-00-00-00-01"),
        lambda host: host.open_tap("mn0", vnet_hdr_bytes=11),
        lambda host: host.open_tap("mn0", kernel_ip="10.0.0.256/24"),
        lambda host: host.add_route("10.0.0.0/8"),
        lambda host: KernelHost.connect(host, host, "10.0.0.1/33"),
    ],
)
def test_bad_values_are_refused_here(host: KernelHost, use: Callable[[KernelHost], Any]) -> None:
    with pytest.raises(ValueError):
        use(host)


# ---- sockets ------------------------------------------------------------------------------------


def test_passed_sockets_are_ordinary_ones_of_this_process(make_host: Callable[..., Any]) -> None:
    with make_host().socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert not os.get_inheritable(sock.fileno())
        assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.sendto(b"to myself", sock.getsockname())
        sock.settimeout(DEADLINE_S)
        assert sock.recv(100) == b"to myself"


def test_threads_share_a_host(host: KernelHost) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(10):
                with host.socket() as sock:
                    sock.bind(("127.0.0.1", 0))
                assert host.call(lambda: number) == number
                assert host.run(["echo", str(number)]).stdout == f"{number}\n"
        except BaseException as error:  # handed to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
