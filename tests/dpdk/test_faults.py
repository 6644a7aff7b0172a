# SPDX-License-Identifier: MIT
"""What goes wrong under a port: each is a counter or an error, and what was lost comes back."""

from __future__ import annotations

import contextlib
import errno
import functools
import select
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from dpdk_kit import KERNEL_IP, OUR_IP, packet_socket, wait_for

import machnet
from machnet import dpdk
from machnet.dpdk import port as port_module
from machnet.testing.nic import NicHandle

HEAD = bytes.fromhex("02000000000202000000000188b5")

#: Answers each message of the stack with the same bytes, until it is told to stop.
ECHO = f"""
import socket
with socket.create_server(("{KERNEL_IP}", 99)) as listener:
    print("up", flush=True)
    sock = listener.accept()[0]
    while data := sock.recv(65536):
        sock.sendall(data)
print("done")
"""


def frame(number: int, size: int = 60) -> bytes:
    return (HEAD + number.to_bytes(4, "big")).ljust(size, b"\xaa")


@pytest.fixture
def _small_pools(monkeypatch):
    """A pool that runs dry at once is smaller than any that may be asked for."""
    monkeypatch.setitem(port_module._RANGES, "pool_mbufs", (1, 1 << 20))


def numbers(nic: NicHandle) -> list[int]:
    got = list(iter(nic.recv, None))
    return [int.from_bytes(one[14:18], "big") for one in got if one[12:14] == b"\x88\xb5"]


@contextlib.contextmanager
def echoing(veth, nic=None):
    """A connection to the kernel, which sends back all that it is sent."""
    with (
        machnet.Stack(nic or veth.nic, ip=f"{OUR_IP}/24", thread=True) as stack,
        stack.attach() as ch,
        veth.popen("python3", "-c", ECHO, stdout=-1) as server,
    ):
        assert server.stdout.readline() == "up\n"
        flow = ch.connect(OUR_IP, KERNEL_IP, 99, protocol="tcp", timeout=20)
        yield stack, ch, flow
        flow.close()
        assert server.stdout.read() == "done\n"


def talk(ch, flow, data: bytes) -> None:
    flow.send(data, timeout=20)
    assert ch.recv(timeout=20).data == data


def same_frames(stats: dict[str, int]) -> bool:
    """One that comes in between the looks at the driver's counter and at ours is in one of them."""
    return stats["rx_frames"] == stats["ipackets"]


def test_a_connection_outlives_its_device(veth):
    with echoing(veth) as (stack, ch, flow):
        talk(ch, flow, b"before")
        for turn in (1, 2):
            veth.unplug()
            stack.nic.look()
            flow.send(b"while it is away")
            wait_for(lambda: stack.nic.stats()["tx_down"])
            veth.plug_in()
            stack.nic.look()
            assert ch.recv(timeout=20).data == b"while it is away"
            talk(ch, flow, bytes(100_000))
            stats = stack.nic.stats()
            assert (stats["unplugged"], stats["replugged"]) == (turn, turn)
            wait_for(lambda: same_frames(stack.nic.stats()))


def test_a_connection_outlives_an_interface_that_is_down(veth):
    with echoing(veth) as (stack, ch, flow):
        talk(ch, flow, b"before")
        veth.run("ip", "link", "set", veth.peer, "down")
        stack.nic.look()
        # The kernel tells of links in its own time.
        wait_for(lambda: not stack.nic.link()[0])
        flow.send(b"while it is down")
        veth.run("ip", "link", "set", veth.peer, "up")
        stack.nic.look()
        wait_for(lambda: stack.nic.link()[0])
        assert ch.recv(timeout=20).data == b"while it is down"
        assert stack.nic.stats()["unplugged"] == 0


def test_a_thread_sleeps_again_after_its_device_came_back(veth):
    with machnet.Stack(veth.nic, ip=f"{OUR_IP}/24", thread=True) as stack:
        for _ in range(2):
            veth.unplug()
            stack.nic.look()
            wait_for(lambda: stack.host_stats()["sleeps"])
            veth.plug_in()
            stack.nic.look()
        assert stack.nic.info()["wake"] == "descriptor"
        wait_for(functools.partial(is_quiet, stack))


def is_quiet(stack: machnet.Stack) -> bool:
    """Whether nothing woke the thread for a fifth of a second."""
    before = stack.host_stats()["sleeps"]
    time.sleep(0.2)
    return stack.host_stats()["sleeps"] - before <= 20


def test_a_receive_queue_that_overflows(veth):
    with contextlib.closing(dpdk.open_port(veth.name)) as port:
        nic, sock = NicHandle(port.native), packet_socket(veth.namespace)
        with sock:
            sock.bind((veth.peer, 3))
            for i in range(3000):
                sock.send(frame(i))
            got = numbers(nic)
            assert got == sorted(set(got))
            assert 100 < len(got) < 3000
            sock.send(frame(5000))
            wait_for(lambda: numbers(nic) == [5000])
        stats = port.stats()
        assert stats["rx_frames"] == stats["ipackets"]
        # Those that the kernel has no room for.
        assert stats["imissed"] == 3000 - len(got)


def test_a_ring_that_is_full_is_said_to_the_sender():
    near, far = dpdk.ring_pair(slots=64)
    with contextlib.closing(near), contextlib.closing(far):
        a, b = NicHandle(near.native), NicHandle(far.native)
        for i in range(63):
            a.send(frame(i))
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                a.send(frame(99))
        assert near.stats()["tx_full"] == 3
        assert near.stats()["tx_frames"] == 63
        assert numbers(b) == [*range(63)]
        a.send(frame(63))
        assert numbers(b) == [63]


def test_a_full_transmit_ring_holds_up_and_loses_nothing():
    near, far = dpdk.ring_pair(slots=16)
    with contextlib.closing(near), contextlib.closing(far):
        with (
            machnet.Stack(near, ip="10.8.0.1/24") as one,
            machnet.Stack(far, ip="10.8.0.2/24") as two,
            one.attach() as a,
            two.attach() as b,
        ):
            b.listen("10.8.0.2", 99, protocol="tcp")
            flow = a.connect("10.8.0.1", "10.8.0.2", 99, protocol="tcp", timeout=20)
            data = bytes(range(256)) * 400
            for _ in range(40):
                flow.send(data, timeout=20)
                assert b.recv(timeout=20).data == data
            assert near.stats()["tx_full"] > 0
            assert one.stats()["tcp_retransmits"] == 0
        stats = near.stats()
        assert stats["mbufs_free"] == stats["mbufs"]


@pytest.mark.usefixtures("_small_pools")
def test_a_pool_that_runs_dry(veth):
    with contextlib.closing(dpdk.open_port(veth.name, pool_mbufs=16)) as port:
        nic, sock = NicHandle(port.native), packet_socket(veth.namespace)
        with sock:
            sock.bind((veth.peer, 3))
            for i in range(100):
                sock.send(frame(i))
            # It looks once more before it sleeps, and keeps what it found.
            assert not nic.arm()
            assert port.stats()["mbufs_free"] == 0
            with pytest.raises(OSError, match="ENOBUFS"):
                nic.send(frame(1))
            assert port.stats()["no_mbuf"] == 1
            assert numbers(nic) == [*range(100)]
        nic.send(frame(1))
        stats = port.stats()
        assert stats["mbufs_free"] == stats["mbufs"] == 16


@pytest.mark.usefixtures("_small_pools")
def test_a_connection_on_a_pool_that_runs_dry(veth):
    with contextlib.closing(dpdk.open_port(veth.name, pool_mbufs=24)) as port:
        with echoing(veth, port) as (_, ch, flow):
            for _ in range(5):
                talk(ch, flow, bytes(range(256)) * 400)
        stats = port.stats()
        assert stats["no_mbuf"] > 0
        assert stats["mbufs_free"] == stats["mbufs"] == 24


def test_a_port_that_is_closed_with_frames_held(veth):
    port = dpdk.open_port(veth.name)
    sock = packet_socket(veth.namespace)
    with sock:
        sock.bind((veth.peer, 3))
        for i in range(50):
            sock.send(frame(i))
    assert not NicHandle(port.native).arm()
    assert port.stats()["mbufs_free"] < port.stats()["mbufs"]
    port.close()
    with contextlib.closing(dpdk.open_port(veth.name)) as port:
        assert NicHandle(port.native).arm()


def test_threads_take_turns_on_a_port():
    near, far = dpdk.ring_pair(slots=64)
    with contextlib.closing(near), contextlib.closing(far):
        ends = NicHandle(near.native), NicHandle(far.native)

        def both_ways() -> list[list[int]]:
            """What each end has received: it gives the packets back to the pool of the other."""
            seen: list[list[int]] = [[], []]
            for first in range(0, 900, 30):
                for i in range(first, first + 30):
                    ends[0].send(frame(i))
                    ends[1].send(frame(i))
                for got, nic in zip(seen, ends, strict=True):
                    got += numbers(nic)
            return seen

        # Each thread has shares of the pools, one that ends leaves them to the next.
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
            for thread in (one, two, one):
                assert thread.submit(both_ways).result() == [[*range(900)]] * 2
        assert both_ways() == [[*range(900)]] * 2
        for port in (near, far):
            stats = port.stats()
            assert stats["mbufs_free"] == stats["mbufs"]
            assert stats["no_mbuf"] == 0


@pytest.mark.parametrize("first", [0, 1])
def test_one_end_of_a_pair_goes_first(first):
    ends = dpdk.ring_pair(slots=64)
    nics = [NicHandle(end.native) for end in ends]
    for i in range(20):
        nics[0].send(frame(i))
        nics[1].send(frame(i))
    assert numbers(nics[1])[:5] == [*range(5)]
    ends[first].close()
    left = nics[1 - first]
    with contextlib.suppress(BlockingIOError):
        for i in range(200):
            left.send(frame(i))
    assert ends[1 - first].stats()["tx_full"] == 1
    assert numbers(left) == ([*range(20)] if first == 1 else [])
    ends[1 - first].close()


class TestSleep:
    def test_on_a_descriptor(self, veth):
        with machnet.Stack(veth.nic, ip=f"{OUR_IP}/24", thread=True) as stack:
            assert stack.nic.info()["wake"] == "descriptor"
            wait_for(functools.partial(is_quiet, stack))
            refused = f"import socket; print(socket.socket().connect_ex(('{OUR_IP}', 1)))"
            assert veth.run("python3", "-c", refused) == f"{errno.ECONNREFUSED}\n"
            wait_for(functools.partial(is_quiet, stack))

    def test_on_a_timer(self):
        near, far = dpdk.ring_pair(nap_max_us=200_000)
        with contextlib.closing(near), contextlib.closing(far):
            stack = machnet.Stack(near, ip="10.8.0.1/24")
            with stack:
                assert near.info()["wake"] == "timer"
                wait_for(functools.partial(is_quiet, stack))
                used = time.process_time()
                time.sleep(0.2)
                assert time.process_time() - used < 0.1
                # A frame ends the naps: the next ones are short again.
                naps = stack.host_stats()["sleeps"]
                ask = bytes.fromhex(
                    "ffffffffffff020000000002080600010800060400010200000000020a080002"
                    "0000000000000a080001"
                )
                other = NicHandle(far.native)
                other.send(ask.ljust(60, b"\0"))
                wait_for(lambda: [got for got in iter(other.recv, None) if got[20:22] == b"\0\2"])
                wait_for(lambda: stack.host_stats()["sleeps"] > naps + 5)

    def test_longer_than_a_second(self):
        near, far = dpdk.ring_pair(nap_max_us=1_000_000)
        with contextlib.closing(near), contextlib.closing(far):
            nic = NicHandle(near.native)
            for _ in range(15):  # each is twice as long, up to a second
                assert nic.arm()
            assert select.select([nic.info.rx_fd], [], [], 20)[0]
            nic.arm(on=False)
            assert not select.select([nic.info.rx_fd], [], [], 0)[0]
