# SPDX-License-Identifier: MIT
"""Engines with threads of their own on a TAP, with Linux as the peer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from linux_peer import frame, recv_exactly

from machnet._native import lib
from machnet.sim import KernelHost, Tap
from machnet.stack.engines import Engines, open_engines

KERNEL, OURS = "10.9.0.1", "10.9.0.2"
PATIENCE_S = 60.0 if lib.mn_build_sanitized() else 20.0


@pytest.fixture(params=[2, 1], ids=["two queues", "one queue"])
def engines(request: pytest.FixtureRequest, host: KernelHost) -> Iterator[Engines]:
    first, *more = host.open_tap_queues("mn0", request.param, kernel_ip=f"{KERNEL}/24")
    tap = Tap(fd=first, more_fds=more)
    assert tap.queues == request.param
    with open_engines(tap, 2, f"{OURS}/24", spin_us=0) as engines:
        assert all(stack.threaded for stack in engines)
        yield engines
    tap.close()


def linux_socket(host: KernelHost) -> socket.socket:
    sock = host.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(PATIENCE_S)
    return sock


def test_linux_reaches_listeners_on_all_engines(host: KernelHost, engines: Engines) -> None:
    channels = [stack.attach() for stack in engines]
    for channel in channels:
        channel.listen(OURS, 888, "tcp")
    stop = threading.Event()

    def serve(channel) -> None:
        while not stop.is_set():
            try:
                message = channel.recv(timeout=0.05)
            except TimeoutError:
                continue
            channel.send(message.flow, message.data, timeout=PATIENCE_S)

    threads = [threading.Thread(target=serve, args=(channel,)) for channel in channels]
    for thread in threads:
        thread.start()
    socks = []
    try:
        for _ in range(12):
            sock = linux_socket(host)
            sock.connect((OURS, 888))
            socks.append(sock)
        for size in (1, 1000, 200_000):
            for number, sock in enumerate(socks):
                data = bytes([number]) * size
                sock.sendall(frame(data))
            for number, sock in enumerate(socks):
                assert recv_exactly(sock, size + 4) == frame(bytes([number]) * size)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for sock in socks:
            sock.close()
    stats = [stack.stats() for stack in engines]
    assert sum(s["tcp_passive_opens"] for s in stats) == 12
    assert sum(s["tcp_resets_sent"] for s in stats) == 0
    assert sum(s["drop_handoff_full"] for s in stats) == 0


def test_every_engine_connects_to_linux(host: KernelHost, engines: Engines) -> None:
    with linux_socket(host) as server:
        server.bind((KERNEL, 80))
        server.listen(16)
        for stack in engines:
            channel = stack.attach()
            for _ in range(4):
                flow = channel.connect(OURS, KERNEL, 80, "tcp", timeout=PATIENCE_S)
                sock, _ = server.accept()
                with sock:
                    sock.settimeout(PATIENCE_S)
                    channel.send(flow, b"question")
                    assert recv_exactly(sock, 12) == frame(b"question")
                    sock.sendall(frame(bytes(100_000)))
                    assert channel.recv(timeout=PATIENCE_S).data == bytes(100_000)
                    flow.close()
    assert sum(stack.stats()["tcp_resets_received"] for stack in engines) == 0


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_applications_on_both_engines_reach_each_other(engines: Engines, protocol: str) -> None:
    first, second = (stack.attach() for stack in engines)
    second.listen(OURS, 777, protocol)
    first.listen(OURS, 778, protocol)
    for client, server, port in ((first, second, 777), (second, first, 778)):
        flow = client.connect(OURS, OURS, port, protocol, timeout=PATIENCE_S)
        for size in (1, 100_000):
            client.send(flow, bytes(size), timeout=PATIENCE_S)
            message = server.recv(timeout=PATIENCE_S)
            assert message.data == bytes(size)
            server.send(message.flow, b"answer", timeout=PATIENCE_S)
            assert client.recv(timeout=PATIENCE_S).data == b"answer"
    assert all(stack.stats()["handoff_received"] > 0 for stack in engines)


def test_an_interface_with_one_queue_is_shared_all_the_same(host: KernelHost) -> None:
    fd = host.open_tap("mn1", kernel_ip=f"{KERNEL}/24")
    tap = Tap(fd=fd, queues=4)
    assert tap.queues == 1, "a descriptor is one queue"
    with open_engines(tap, 4, f"{OURS}/24") as engines:
        assert engines.shared is not None
        assert engines.shared.dispatched
    tap.close()


def test_a_number_of_queues_that_no_tap_has_is_refused(host: KernelHost) -> None:
    with pytest.raises(OSError, match="1 to 16 queues here; got 17"):
        Tap("mn2", queues=17)
    with pytest.raises(ValueError, match="17 is not within 1 to 16"):
        host.open_tap_queues("mn2", 17)


def test_queues_by_name() -> None:
    if reason := KernelHost.tap_available():
        pytest.skip(reason)
    with KernelHost("engines-name", ipv6=False) as host:
        script = (
            "from machnet.sim import Tap\n"
            "many = Tap('mnq0', queues=3)\n"
            "print(many.queues)\n"
            "one = Tap('mnq1')\n"
            "print(one.queues)\n"
            "many.close(); one.close()\n"
        )
        assert run_there(host, script).split() == ["3", "1"]


def run_there(host: KernelHost, script: str) -> str:
    import subprocess
    import sys

    process = host.popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out
    return str(out)
