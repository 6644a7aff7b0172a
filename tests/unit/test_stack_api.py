# SPDX-License-Identifier: MIT
"""`machnet.Stack`: stepping in virtual time, threads, what it says of itself, its end."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import machnet
from machnet._native import ffi
from machnet.sim import Wire
from machnet.stack.stack import TCP_STATES

MS = 1_000_000
ARP_REQUEST = bytes.fromhex(
    "ffffffffffff 020000000001 0806 0001 0800 06 04 0001 020000000001 0a000001 000000000000 0a000002"
)


@pytest.fixture
def stack() -> Iterator[machnet.Stack]:
    with machnet.Stack(Wire(mtu=1500), ip="10.0.0.2/24") as stack:
        yield stack


@pytest.fixture
def threaded() -> Iterator[machnet.Stack]:
    """A stack with a thread, on a wire that leads nowhere: its applications talk to each other."""
    with machnet.Stack(Wire(), ip="10.0.0.2/24", thread=True) as stack:
        yield stack


# --- virtual time ---------------------------------------------------------------------------------


def test_time_starts_at_zero_and_goes_on_only_when_told(stack):
    assert stack.now_ns == 0
    time.sleep(0.002)
    assert stack.now_ns == 0
    stack.advance(5 * MS)
    assert stack.now_ns == 5 * MS
    stack.advance(0)
    assert stack.now_ns == 5 * MS
    with pytest.raises(ValueError, match="can't go back"):
        stack.advance(-1)


def test_poll_goes_on_to_the_time_given_but_never_back(stack):
    assert stack.poll(now=7 * MS) == 0
    assert stack.now_ns == 7 * MS
    stack.poll(now=3 * MS)
    assert stack.now_ns == 7 * MS


def test_a_frame_is_answered_at_the_time_it_came(stack):
    stack.advance(3 * MS)
    stack.inject(ARP_REQUEST)
    frames = stack.drain()
    assert [t_ns for t_ns, _ in frames] == [3 * MS]
    reply = frames[0][1]
    assert reply[:6] == bytes.fromhex("020000000001")
    assert reply[12:14] == b"\x08\x06"
    assert reply[28:32] == bytes([10, 0, 0, 2])
    assert stack.drain() == []
    assert stack.stats()["arp_replies"] == 1


def test_a_frame_that_the_wire_cannot_carry_is_refused(stack):
    for frame in (b"", b"x" * 1515):
        with pytest.raises(ValueError, match="1 to 1514 bytes"):
            stack.inject(frame)
    stack.inject(b"x" * 13)
    assert stack.stats()["drop_eth_short"] == 1


def test_timers_fire_in_order_each_at_its_time(stack):
    """An ARP request that nobody answers is repeated: each copy bears the time of its own timer."""
    sock = stack.socket()
    with pytest.raises(BlockingIOError):
        sock.connect(("10.0.0.9", 80))
    deadline = stack.deadline()
    assert deadline is not None
    stack.advance(10_000 * MS)
    frames = stack.drain()
    times = [t_ns for t_ns, _ in frames]
    retry_ns = stack.settings.arp_retry_ms * MS
    assert len(times) == stack.settings.arp_retries
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert all(retry_ns <= gap <= retry_ns + 2048 for gap in gaps), gaps
    assert stack.now_ns == 10_000 * MS
    assert sock.getsockopt(1, 4) == errno.EHOSTUNREACH  # SOL_SOCKET, SO_ERROR


def test_a_static_neighbour_needs_no_arp(stack):
    stack.neighbor("10.0.0.9", "02:00:00:00:00:09")
    sock = stack.socket()
    with pytest.raises(BlockingIOError):
        sock.connect(("10.0.0.9", 80))
    ((_, frame),) = stack.drain()
    assert frame[:6] == bytes.fromhex("020000000009")
    assert frame[12:14] == b"\x08\x00"


def test_the_gateway_is_the_way_out_of_the_network():
    with machnet.Stack(Wire(), ip="10.0.0.2/24", gateway="10.0.0.254") as stack:
        assert stack.gateway == "10.0.0.254"
        stack.neighbor("10.0.0.254", "02:00:00:00:00:fe")
        with pytest.raises(BlockingIOError):
            stack.socket().connect(("192.0.2.1", 80))
        ((_, frame),) = stack.drain()
        assert frame[:6] == bytes.fromhex("0200000000fe")


def test_without_a_gateway_there_is_no_way_out(stack):
    sock = stack.socket()
    with pytest.raises(BlockingIOError):
        sock.connect(("192.0.2.1", 80))
    with pytest.raises(OSError, match="connect") as caught:
        sock.connect(("192.0.2.1", 80))
    assert caught.value.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH}


def syn_of(**arguments) -> bytes:
    with machnet.Stack(Wire(), ip="10.0.0.2/24", **arguments) as stack:
        stack.neighbor("10.0.0.9", "02:00:00:00:00:09")
        with pytest.raises(BlockingIOError):
            stack.socket().connect(("10.0.0.9", 80))
        ((_, frame),) = stack.drain()
        return frame


def test_the_seed_decides_everything_random():
    assert syn_of() == syn_of() == syn_of(seed=0)
    assert syn_of(seed=1) == syn_of(seed=1)
    assert syn_of(seed=1) != syn_of(seed=2)
    assert syn_of(seed=-1) == syn_of(seed=2**64 - 1)


def test_isn_sets_the_initial_sequence_number():
    assert int.from_bytes(syn_of(isn=0xFFFFFFFE)[38:42], "big") == 0xFFFFFFFE


def test_the_wires_of_a_pair_share_their_time():
    a, b = Wire.pair()
    with machnet.Stack(a, ip="10.0.0.1") as one, machnet.Stack(b, ip="10.0.0.2") as two:
        one.advance(5 * MS)
        assert two.now_ns == 5 * MS
        two.advance(1)
        assert one.now_ns == 5 * MS + 1
        for stack in (one, two):
            with pytest.raises(RuntimeError, match="not of a pair"):
                stack.drain()
        with pytest.raises(ValueError, match="can only be stepped"):
            machnet.Stack(Wire.pair()[0], ip="10.0.0.3", thread=True)


def test_a_pair_goes_on_when_one_end_is_closed():
    a, b = Wire.pair()
    one, two = machnet.Stack(a, ip="10.0.0.1"), machnet.Stack(b, ip="10.0.0.2")
    one.close()
    with pytest.raises(BlockingIOError):
        two.socket().connect(("10.0.0.1", 80))
    two.advance(100 * MS)
    assert two.stats()["arp_requests"] >= 1
    two.close()


def test_real_time_cannot_be_advanced():
    with machnet.Stack(Wire(), ip="10.0.0.2", thread=True) as stack:
        for call in (lambda: stack.advance(1), stack.poll, stack.deadline, stack.drain):
            with pytest.raises(RuntimeError):
                call()
        with pytest.raises(RuntimeError):
            stack.inject(b"x" * 60)
        assert abs(stack.now_ns - time.monotonic_ns()) < 10**9


def test_two_threads_may_not_step_the_same_stacks(stack):
    """One of them is refused, nothing is corrupted."""
    channel = stack.attach()
    started, done = threading.Event(), threading.Event()

    def hammer() -> None:
        started.set()
        while not done.is_set():
            with contextlib.suppress(machnet.ConcurrentUseError):
                stack.advance(1)

    thread = threading.Thread(target=hammer)
    thread.start()
    started.wait()
    for _ in range(20_000):
        with contextlib.suppress(machnet.ConcurrentUseError):
            channel.try_recv()
    done.set()
    thread.join()
    assert channel.try_recv() is None
    assert stack.stats()["rx_frames"] == 0


# --- threads --------------------------------------------------------------------------------------


def thread_names() -> list[str]:
    names = []
    for path in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it ended while we were looking
            names.append((path / "comm").read_text().strip())
    return names


def test_the_engines_thread_has_a_name_and_goes_with_the_stack():
    with machnet.Stack(Wire(), ip="10.0.0.2", thread=True) as stack:
        assert thread_names().count("machnet-engine") == 1
        assert stack.threaded
        assert stack.clock is None
    assert "machnet-engine" not in thread_names()


def test_an_idle_thread_sleeps(threaded):
    time.sleep(0.1)
    before = threaded.host_stats()
    time.sleep(0.3)
    after = threaded.host_stats()
    assert after["passes"] - before["passes"] < 3_000
    assert after["sleeps"] > before["sleeps"]


def test_a_busy_thread_does_not_sleep():
    with machnet.Stack(Wire(), ip="10.0.0.2", thread=True, poll="busy") as stack:
        stack.usage()
        assert stack.host_stats()["sleeps"] == 0
        assert stack.host_stats()["passes"] > 0


def test_a_sleeping_engine_is_woken_for_a_call(threaded):
    """Each of these would otherwise wait for the nap's end; all come back at once."""
    time.sleep(0.05)
    start = time.monotonic()
    for _ in range(50):
        threaded.usage()
    assert time.monotonic() - start < 5
    assert threaded.host_stats()["calls"] >= 50


def test_calls_from_many_threads_at_once(threaded):
    results = []

    def ask() -> None:
        for i in range(100):
            threaded.neighbor(f"10.0.0.{i + 10}", "02:00:00:00:00:01")
            results.append(threaded.stats()["rx_frames"])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 400
    assert threaded.usage()["neighbors"] == 100


@pytest.mark.parametrize("has_thread", [True, False])
def test_threads_that_close_one_stack_at_once(has_thread):
    """One of them does; the others find it closed, or are told that somebody is at it."""
    refused = []

    def close(stack: machnet.Stack, start: threading.Barrier) -> None:
        start.wait()
        try:
            stack.close(0)
        except machnet.ConcurrentUseError as error:
            refused.append(str(error))

    for _ in range(30):
        stack = machnet.Stack(Wire(), ip="10.0.0.2/24", thread=has_thread)
        channel = stack.attach()
        start = threading.Barrier(3)
        threads = [threading.Thread(target=close, args=(stack, start)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert stack.closed
        assert channel.closed
    assert all("another thread" in text for text in refused)


def test_channels_come_and_go_while_another_thread_closes_the_stack():
    for _ in range(30):
        stack = machnet.Stack(Wire(), ip="10.0.0.2/24", thread=True)
        running = threading.Event()

        def attach(stack: machnet.Stack = stack, running: threading.Event = running) -> None:
            with contextlib.suppress(ValueError):  # the stack is closed
                while True:
                    stack.attach(tx_bufs=16, rx_bufs=16, flows_max=1).close(0)
                    running.set()

        thread = threading.Thread(target=attach)
        thread.start()
        assert running.wait(10)
        stack.close(0)
        thread.join(10)
        assert not thread.is_alive()


def test_a_stepped_stack_may_be_asked_for_its_deadline_while_it_is_closed():
    for _ in range(50):
        stack = machnet.Stack(Wire(), ip="10.0.0.2/24")
        running = threading.Event()

        def ask(stack: machnet.Stack = stack, running: threading.Event = running) -> None:
            with contextlib.suppress(ValueError):  # closed
                while True:
                    running.set()
                    assert stack.deadline() in {None, 0}

        thread = threading.Thread(target=ask)
        thread.start()
        assert running.wait(10)
        while not stack.closed:
            with contextlib.suppress(machnet.ConcurrentUseError):
                stack.close(0)
        thread.join(10)
        assert not thread.is_alive()


def test_the_thread_can_be_pinned():
    cpu = min(os.sched_getaffinity(0))
    with machnet.Stack(Wire(), ip="10.0.0.2", thread=True, cpu=cpu) as stack:
        (tid,) = [
            int(path.name)
            for path in Path("/proc/self/task").iterdir()
            if (path / "comm").read_text().strip() == "machnet-engine"
        ]
        assert os.sched_getaffinity(tid) == {cpu}
        stack.usage()
    with pytest.raises(ValueError, match="cpu: there is no CPU 1000000"):
        machnet.Stack(Wire(), ip="10.0.0.2", thread=True, cpu=1_000_000)


def test_a_forked_child_can_let_the_stack_go():
    """The thread is not there in the child: nothing may wait for it."""
    script = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import machnet
from machnet.sim import Wire
stack = machnet.Stack(Wire(), ip="10.0.0.2", thread=True)
channel = stack.attach()
child = os.fork()
if child == 0:
    try:
        stack.usage()
    except RuntimeError as error:
        assert "forked" in str(error)
    channel.close()
    stack.close()
    sys.exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7
stack.usage()
stack.close()
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "fine", "")


# --- what it says of itself -----------------------------------------------------------------------


def test_stats_have_a_name_and_a_meaning_each(stack):
    stats, docs = stack.stats(), machnet.Stack.stat_docs()
    assert list(stats) == list(docs)
    assert stats["rx_frames"] == 0
    assert len(stats) * 8 == ffi.sizeof("struct mn_stats")
    assert all(docs.values())


def test_usage_lists_every_pool(stack):
    assert set(stack.usage().values()) == {0}
    assert "tcbs" in stack.usage()
    channel = stack.attach()
    assert stack.usage()["lanes"] == 1
    channel.close()
    assert stack.usage()["lanes"] == 0


def test_a_forgotten_channel_is_detached(stack):
    stack.attach()
    gc.collect()
    assert stack.usage()["lanes"] == 0


def test_the_names_of_the_states_are_those_of_the_core():
    values = ffi.typeof("enum mn_tcp_state").relements
    by_number = {number: name for name, number in values.items()}
    names = [by_number[i].removeprefix("MN_TCP_") for i in range(len(by_number))]
    assert list(TCP_STATES) == [name.replace("_", "-") for name in names]


def test_sockets_lists_connections_and_listeners(stack):
    assert stack.sockets() == []
    sock = stack.socket()
    sock.bind(("10.0.0.2", 80))
    sock.listen(5)
    (info,) = stack.sockets()
    assert (info.local, info.remote) == (("10.0.0.2", 80), ("0.0.0.0", 0))
    assert (info.state, info.protocol) == ("LISTEN", "stream")
    assert stack.find_socket(("10.0.0.2", 80)) == info
    assert stack.find_socket(("10.0.0.2", 81)) is None


def test_an_exception_repr_names_the_stack(stack):
    assert repr(stack) == "<Stack 10.0.0.2/24 on wire>"


# --- capture --------------------------------------------------------------------------------------


def test_pcap_has_every_frame_at_its_time(tmp_path):
    scapy = pytest.importorskip("scapy.utils", reason="scapy is not installed")
    path = tmp_path / "frames.pcapng"
    with machnet.Stack(Wire(), ip="10.0.0.2", pcap=path) as stack:
        stack.advance(1_500 * MS + 7)
        stack.inject(ARP_REQUEST)
        sent = stack.drain()
    with scapy.RawPcapNgReader(str(path)) as reader:
        packets = list(reader)
    assert [data for data, _ in packets] == [ARP_REQUEST, sent[0][1]]
    for _, meta in packets:
        assert ((meta.tshigh << 32) + meta.tslow) == 1_500 * MS + 7


def test_a_capture_that_cannot_be_written_is_an_error(tmp_path):
    wire = Wire()
    with pytest.raises(FileNotFoundError):
        machnet.Stack(wire, ip="10.0.0.2", pcap=tmp_path / "no" / "file")
    machnet.Stack(wire, ip="10.0.0.2").close()


# --- the end --------------------------------------------------------------------------------------


def test_a_closed_stack_says_so(stack):
    channel, sock = stack.attach(), stack.socket()
    stack.close()
    stack.close()
    assert stack.closed
    assert channel.closed
    for call in (stack.poll, stack.stats, stack.usage, stack.sockets, stack.attach, stack.drain):
        with pytest.raises(ValueError, match="closed"):
            call()
    with pytest.raises(ValueError, match="closed"):
        channel.recv(timeout=0)
    with pytest.raises(OSError, match="closed") as caught:
        sock.recv(1)
    assert caught.value.errno == errno.EBADF
    sock.close()
    channel.close()


def test_memory_and_descriptors_come_back():
    def descriptors() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    def mapped_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmSize")))

    def once() -> None:
        with machnet.Stack(Wire(), ip="10.0.0.2", thread=True) as stack:
            for _ in range(3):
                stack.attach()

    once()
    gc.collect()
    fds, memory = descriptors(), mapped_kib()
    for _ in range(20):
        once()
    gc.collect()
    assert descriptors() == fds
    assert mapped_kib() < memory + 20 * 1024


def test_a_forgotten_stack_ends_its_thread_and_warns():
    def forget() -> None:
        stack = machnet.Stack(Wire(), ip="10.0.0.2", thread=True)
        stack.attach()
        stack.socket()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        forget()
        gc.collect()
    assert "machnet-engine" not in thread_names()


def test_importing_machnet_loads_nothing_else():
    script = (
        "import sys, machnet; "
        "loaded = [m for m in ('machnet._native', 'msgspec', 'asyncio', 'scapy') if m in sys.modules]; "
        "assert not loaded, loaded; "
        "assert set(machnet.__all__) <= set(dir(machnet)); "
        "[getattr(machnet, name) for name in machnet.__all__]; "
        "assert 'scapy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = machnet.nothing


def test_the_examples_of_the_documentation_run(repo):
    page = repo / "docs" / "python-api.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    names = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
