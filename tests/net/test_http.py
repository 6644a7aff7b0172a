# SPDX-License-Identifier: MIT
"""curl on a Linux host against an HTTP server on machnet's streams: sockets and asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import shutil
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from linux_peer import (
    KERNEL_IP,
    OUR_IP,
    PATIENCE_S,
    Peer,
    beside,
    eventually,
    foreign_env,
    linux_peer,
    needs_tap,
)

import machnet
from machnet.sim import KernelHost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(needs_tap() is not None, reason=str(needs_tap())),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]

URL = f"http://{OUR_IP}"


@pytest.fixture(scope="session")
def example(repo: Path) -> Any:
    """The module examples/http_responder.py."""
    spec = importlib.util.spec_from_file_location(
        "http_responder", repo / "examples" / "http_responder.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def serving(peer: Peer, run: Any) -> Iterator[None]:
    ours, theirs = socket.socketpair()
    with ours, theirs, beside(lambda: run(peer.stack, OUR_IP, 80, ours)):
        try:
            eventually(lambda: peer.stack.find_socket((OUR_IP, 80)))
            yield
        finally:
            theirs.close()


@pytest.fixture(params=["serve", "run_asyncio"], ids=["sockets", "asyncio"])
def server(request: pytest.FixtureRequest, example: Any) -> Iterator[Peer]:
    with linux_peer() as peer, serving(peer, getattr(example, request.param)):
        yield peer


def curl(peer: Peer, *arguments: str, **options: Any) -> Any:
    command = ["curl", "-sS", "--noproxy", "*", "--max-time", str(PATIENCE_S), *arguments]
    return peer.run(command, timeout=PATIENCE_S + 5, text=False, **options).stdout


def body_of(size: int) -> bytes:
    return (bytes(range(256)) * (size // 256 + 1))[:size]


def test_get(server: Peer) -> None:
    assert curl(server, f"{URL}/") == b"machnet says hello\n"
    status = curl(server, "-o", "/dev/null", "-w", "%{http_code}", f"{URL}/nowhere")
    assert status == b"404"


def test_get_ten_megabytes(server: Peer) -> None:
    size = 10_000_000
    got = curl(server, f"{URL}/bytes/{size}")
    assert len(got) == size
    assert hashlib.sha256(got).digest() == hashlib.sha256(body_of(size)).digest()


def test_keep_alive(server: Peer) -> None:
    sizes = [0, 1, 1447, 1448, 1449, 65_536, 100_000, 3]
    urls = [f"{URL}/bytes/{size}" for size in sizes]
    got = curl(server, *urls)
    assert got == b"".join(body_of(size) for size in sizes)
    assert server.stack.stats()["tcp_passive_opens"] == 1


def test_no_keep_alive(server: Peer) -> None:
    got = curl(server, "-H", "Connection: close", f"{URL}/bytes/5000", f"{URL}/bytes/1")
    assert got == body_of(5000) + body_of(1)
    assert server.stack.stats()["tcp_passive_opens"] == 2
    eventually(lambda: server.stack.usage()["tcbs"] == 0)


def test_http_1_0(server: Peer) -> None:
    assert curl(server, "--http1.0", f"{URL}/bytes/100000") == body_of(100_000)


def test_head(server: Peer) -> None:
    got = curl(server, "--head", f"{URL}/bytes/123456", f"{URL}/")
    assert got.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert b"Content-Length: 123456\r\n" in got
    assert b"Content-Length: 19\r\n" in got
    assert b"hello" not in got


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"])
def test_upload_five_megabytes(server: Peer, expect: str) -> None:
    body = os.urandom(5_000_000)
    got = curl(
        server, "-H", expect, "--data-binary", "@-", f"{URL}/upload", input=body
    )  # fmt: skip
    assert got.decode() == f"5000000 {hashlib.sha256(body).hexdigest()}\n"


def test_many_clients_at_once(server: Peer) -> None:
    arguments = [f"{URL}/bytes/{size}" for size in range(200_000, 200_040)]
    got = curl(server, "--parallel", "--parallel-immediate", "--parallel-max", "20", *(
        word for url in arguments for word in ("-o", "/dev/null", "-w", "%{size_download} ", url)
    ))  # fmt: skip
    assert sorted(map(int, got.split())) == list(range(200_000, 200_040))


def test_a_client_that_goes_away(server: Peer) -> None:
    """It stops in the middle of a body; the server goes on with the others."""
    for _ in range(5):
        with server.connect(80) as sock:
            sock.sendall(b"GET /bytes/10000000 HTTP/1.1\r\n\r\n")
            assert sock.recv(5) == b"HTTP/"
    assert curl(server, f"{URL}/bytes/5000") == body_of(5000)
    eventually(lambda: server.stack.usage()["tcbs"] <= 1)


def test_requests_in_one_write_and_in_many(server: Peer) -> None:
    requests = b"GET /bytes/3000 HTTP/1.1\r\nHost: x\r\n\r\n" * 3 + (
        b"POST /upload HTTP/1.1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    )
    for step in (len(requests), 7):
        with server.connect(80) as sock:
            for at in range(0, len(requests), step):
                sock.sendall(requests[at : at + step])
            got = b""
            while part := sock.recv(65536):
                got += part
        assert got.count(b"HTTP/1.1 200 OK") == 4
        assert got.count(body_of(3000)) == 3
        assert got.endswith(b"5 " + hashlib.sha256(b"hello").hexdigest().encode() + b"\n")


def test_nonsense(server: Peer) -> None:
    with server.connect(80) as sock:
        sock.sendall(b"what?\r\n\r\n")
        got = b""
        while part := sock.recv(65536):
            got += part
    assert got.startswith(b"HTTP/1.1 400 ")


def test_an_asyncio_client_of_a_linux_server(tmp_path: Path) -> None:
    """The other way round: machnet asks Python's own HTTP server on the Linux host."""
    body = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(body)
    with linux_peer() as peer:
        command = [sys.executable, "-u", "-m", "http.server", "80", "--bind", KERNEL_IP]
        with peer.host.popen(
            command, cwd=tmp_path, stdout=-1, stderr=-1, env=foreign_env()
        ) as process:
            try:
                assert b"Serving HTTP" in process.stdout.readline()

                async def get() -> bytes:
                    reader, writer = await machnet.aio.open_connection(
                        peer.stack, KERNEL_IP, 80, timeout=PATIENCE_S
                    )
                    writer.write(b"GET /file HTTP/1.0\r\n\r\n")
                    await writer.drain()
                    answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
                    writer.close()
                    await writer.wait_closed()
                    return answer

                head, _, got = asyncio.run(get()).partition(b"\r\n\r\n")
            finally:
                process.kill()
                process.communicate()
    assert head.startswith(b"HTTP/1.0 200")
    assert got == body


@pytest.mark.parametrize("options", [[], ["--asyncio"]], ids=["sockets", "asyncio"])
def test_the_example_as_a_program(repo: Path, options: list[str]) -> None:
    """As its text says: it makes the TAP by itself, and ends cleanly when told to."""
    with KernelHost("web", ipv6=False) as host:
        script = str(repo / "examples" / "http_responder.py")
        command = [sys.executable, script, "tap:mn0", "--ip", "10.7.0.2/24", *options]
        command += ["--kernel-ip", "10.7.0.1/24", "--port", "8080"]
        with host.popen(command, stdout=-1, stderr=-1, text=True) as process:
            timer = threading.Timer(PATIENCE_S, process.kill)
            timer.start()
            try:
                line = process.stdout.readline()
                assert line == "serving http://10.7.0.2:8080/\n", process.communicate()
                url = "http://10.7.0.2:8080/bytes/1000000"
                retry = ["--retry", "50", "--retry-connrefused", "--retry-delay", "0"]
                command = ["curl", "-sS", "--noproxy", "*", *retry, url]
                got = host.run(command, text=False, env=foreign_env()).stdout
                assert got == body_of(1_000_000)
                with host.socket() as idle:  # a client that is still there
                    idle.connect(("10.7.0.2", 8080))
                    idle.sendall(b"GET /bytes/10 HTTP/1.1\r\n\r\n")
                    assert idle.recv(5) == b"HTTP/"
                    process.terminate()
                    out, err = process.communicate(timeout=PATIENCE_S)
                assert (out, err, process.returncode) == ("", "", 0)
            finally:
                timer.cancel()
                process.kill()
