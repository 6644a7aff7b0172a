# SPDX-License-Identifier: MIT
"""Stacks in real time: their thread and their stepping over a TAP, with Linux behind it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from linux_peer import frame, recv_exactly, recv_message

import machnet
from machnet import aio
from machnet._native import lib
from machnet.sim import KernelHost, Tap

KERNEL, OURS = "10.9.0.1", "10.9.0.2"
SANITIZED = bool(lib.mn_build_sanitized())
PATIENCE_S = 60.0 if SANITIZED else 20.0


class Net:
    """A stack on a TAP of a Linux host."""

    def __init__(self, host: KernelHost, **arguments: Any) -> None:
        self.host = host
        self.tap = Tap(fd=host.open_tap("mn0", kernel_ip=f"{KERNEL}/24"))
        self.stack = machnet.Stack(self.tap, ip=f"{OURS}/24", **arguments)

    def __enter__(self) -> Net:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stack.close(linger=0)
        self.tap.close()

    def kernel_socket(self) -> socket.socket:
        sock = self.host.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE_S)
        return sock

    def connect(self, port: int = 888) -> socket.socket:
        sock = self.kernel_socket()
        sock.connect((OURS, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def kernel_listener(self, port: int = 888) -> socket.socket:
        sock = self.kernel_socket()
        sock.bind((KERNEL, port))
        sock.listen(8)
        return sock


WAYS = [{}, {"poll": "busy"}, {"spin_us": 0.0}, {"thread": False}]
WAY_NAMES = ["adaptive", "busy", "sleepy", "stepped"]


@pytest.mark.parametrize("arguments", WAYS, ids=WAY_NAMES)
def test_messages_to_and_from_linux(host, arguments):
    """Whoever runs the engine, a blocking call gets its answer."""
    with Net(host, **arguments) as net, net.kernel_listener() as listener:
        channel = net.stack.attach()
        flow = channel.connect(OURS, KERNEL, 888, protocol="tcp", timeout=PATIENCE_S)
        peer, address = listener.accept()
        peer.settimeout(PATIENCE_S)
        assert address == flow.local
        for size in (0, 1, 1460, 5000, 200_000):
            data = os.urandom(size)
            # A stepped engine works only while somebody calls it: the peer must not need more.
            thread = threading.Thread(target=lambda d=data: peer.sendall(frame(d)))
            thread.start()
            assert channel.recv(timeout=PATIENCE_S).data == data
            thread.join()
            got: list[bytes] = []
            thread = threading.Thread(target=lambda g=got: g.append(recv_message(peer)))
            thread.start()
            channel.send(flow, data, timeout=PATIENCE_S)
            while thread.is_alive():
                channel.try_recv()
                thread.join(0.001)
            assert got == [data]
        peer.close()


def test_a_stepped_stack_answers_ping_only_when_it_is_polled(host):
    with Net(host, thread=False) as net:
        with net.host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            assert sock.connect_ex((OURS, 888)) == errno.EINPROGRESS
            time.sleep(0.05)
            assert net.stack.usage()["neighbors"] == 0
            refused = False
            deadline = time.monotonic() + PATIENCE_S
            while not refused and time.monotonic() < deadline:
                net.stack.poll()
                refused = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
            assert refused
        assert net.stack.stats()["drop_tcp_port"] == 1


def test_deadline_of_a_stepped_stack_in_real_time(host):
    with Net(host, thread=False) as net:
        assert net.stack.deadline() is None
        with pytest.raises(BlockingIOError):
            net.stack.socket().connect((KERNEL, 888))
        net.stack.poll()
        deadline = net.stack.deadline()
        assert deadline is not None
        assert 0 < deadline - net.stack.now_ns < 60 * 10**9
        assert select.select([net.tap._info().rx_fd], [], [], PATIENCE_S)[0]


@pytest.mark.skipif(SANITIZED, reason="a sanitized build is slower")
def test_an_idle_stack_takes_less_than_2_percent_of_a_core(host):
    with Net(host) as net:
        channel = net.stack.attach()
        channel.listen(OURS, 888, protocol="tcp")
        with net.connect() as sock:
            sock.sendall(frame(b"x"))
            assert channel.recv(timeout=PATIENCE_S).data == b"x"
            time.sleep(0.2)
            (stat,) = [
                path / "stat"
                for path in Path("/proc/self/task").iterdir()
                if (path / "comm").read_text().strip() == "machnet-engine"
            ]

            def ticks() -> int:
                fields = stat.read_text().rpartition(")")[2].split()
                return int(fields[11]) + int(fields[12])

            before, start = ticks(), time.monotonic()
            with pytest.raises(TimeoutError):
                channel.recv(timeout=1.5)
            share = (ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.monotonic() - start)
            assert share < 0.02


def test_what_was_sent_arrives_after_close(host):
    """The stack waits on its own until Linux has acknowledged everything, and no longer."""
    net = Net(host)
    with net.kernel_listener() as listener:
        channel = net.stack.attach()
        flow = channel.connect(OURS, KERNEL, 888, protocol="tcp", timeout=PATIENCE_S)
        peer, _ = listener.accept()
        peer.settimeout(PATIENCE_S)
        data = os.urandom(1_000_000)
        channel.send(flow, data)
        got: list[bytes] = []

        def read() -> None:
            got.append(recv_message(peer))
            got.append(peer.recv(1))

        thread = threading.Thread(target=read)
        thread.start()
        start = time.monotonic()
        net.stack.close(linger=PATIENCE_S)
        assert time.monotonic() - start < PATIENCE_S
        thread.join()
        assert got == [data, b""]
        peer.close()
    net.tap.close()


def test_closing_without_linger_resets(host):
    with Net(host) as net:
        channel = net.stack.attach()
        channel.listen(OURS, 888, protocol="tcp")
        with net.connect() as sock:
            sock.sendall(frame(b"x"))
            channel.recv(timeout=PATIENCE_S)
            net.stack.close(linger=0)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


def test_an_interface_that_goes_away_does_not_make_the_thread_spin(host):
    with Net(host) as net:
        channel = net.stack.attach()
        host.set_link("mn0", up=False)
        time.sleep(0.05)
        before = net.stack.host_stats()["passes"]
        with pytest.raises(TimeoutError):
            channel.recv(timeout=0.3)
        assert net.stack.host_stats()["passes"] - before < 20_000
        host.set_link("mn0", up=True)
        channel.listen(OURS, 888, protocol="tcp")
        with net.connect() as sock:
            sock.sendall(frame(b"back again"))
            assert channel.recv(timeout=PATIENCE_S).data == b"back again"


def test_capture_of_a_threaded_stack(host, tmp_path):
    scapy = pytest.importorskip("scapy.utils", reason="scapy is not installed")
    path = tmp_path / "tap.pcapng"
    begin = time.time()
    with Net(host, pcap=path) as net:
        channel = net.stack.attach()
        channel.listen(OURS, 888, protocol="tcp")
        with net.connect() as sock:
            sock.sendall(frame(b"captured"))
            assert channel.recv(timeout=PATIENCE_S).data == b"captured"
    end = time.time()
    with scapy.RawPcapNgReader(str(path)) as reader:
        packets = list(reader)
    times = [((meta.tshigh << 32) + meta.tslow) / 1e9 for _, meta in packets]
    assert any(b"captured" in data for data, _ in packets)
    assert times == sorted(times)
    assert begin - 1 < times[0] <= times[-1] < end + 1


def test_sockets_and_channels_of_one_stack_side_by_side(host):
    with Net(host) as net:
        channel = net.stack.attach()
        channel.listen(OURS, 888, protocol="tcp")
        web = net.stack.socket()
        web.bind((OURS, 80))
        web.listen()
        web.fileno()
        with net.connect(888) as framed_peer, net.connect(80) as stream_peer:
            framed_peer.sendall(frame(b"message"))
            stream_peer.sendall(b"bytes")
            assert channel.recv(timeout=PATIENCE_S).data == b"message"
            served = None
            while served is None:
                # News for one socket of a stack may wake the others: readable is a hint, as in POSIX.
                assert select.select([web], [], [], PATIENCE_S)[0]
                with contextlib.suppress(BlockingIOError):
                    served, _ = web.accept()
            while True:
                try:
                    assert served.recv(100) == b"bytes"
                    break
                except BlockingIOError:
                    assert select.select([served], [], [], PATIENCE_S)[0]
            served.send(b"answer")
            assert recv_exactly(stream_peer, 6) == b"answer"


def test_asyncio_streams_over_a_tap(host):
    """Linux connects to a server on streams, a client on streams connects to Linux."""
    with Net(host) as net, net.kernel_listener(7000) as listener:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()

        def kernel_client() -> bytes:
            with net.connect(80) as sock:
                sock.sendall(b"hello\n")
                return recv_exactly(sock, 6) + sock.recv(1)

        def kernel_server() -> bytes:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(PATIENCE_S)
                data = recv_exactly(peer, 300_000)
                assert peer.recv(1) == b""
                peer.sendall(b"got it")
                return data

        async def run() -> None:
            loop = asyncio.get_running_loop()
            async with await aio.start_server(net.stack, serve, OURS, 80):
                answers = [loop.run_in_executor(None, kernel_client) for _ in range(5)]
                assert await asyncio.gather(*answers) == [b"HELLO\n"] * 5
            received = loop.run_in_executor(None, kernel_server)
            reader, writer = await aio.open_connection(net.stack, KERNEL, 7000)
            writer.write(b"z" * 300_000)
            writer.write_eof()
            assert await reader.read() == b"got it"
            writer.close()
            assert await received == b"z" * 300_000

        asyncio.run(asyncio.wait_for(run(), 2 * PATIENCE_S))


@pytest.mark.skipif(os.geteuid() != 0, reason="opening an interface by name takes root")
def test_a_nic_string_opens_a_tap():
    if reason := KernelHost.tap_available():
        pytest.skip(reason)
    name = f"mnt{os.getpid() % 100_000}"
    try:
        stack = machnet.Stack(f"tap:{name}", ip=OURS)
    except PermissionError as error:
        pytest.skip(str(error))
    with stack:
        assert str(stack.nic) == f"tap:{name}"
        assert stack.mtu == 1500
        assert stack.mac != stack.nic.kernel_mac
        with pytest.raises(OSError, match=r"in use by another process|busy"):
            machnet.Stack(f"tap:{name}", ip=OURS)
    assert not Path(f"/sys/class/net/{name}").exists()
