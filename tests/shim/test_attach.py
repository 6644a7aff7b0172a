# SPDX-License-Identifier: MIT
"""`machnet.attach` with a real sidecar: the life of channels, of processes, and of sidecars."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shim_kit import IP, PATIENCE_S, PORT, TCP, Api, Flow, Pieces
from sidecar import Sidecar

import machnet
import machnet.aio


@pytest.fixture
def cable() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="mn-attach-") as directory:
        yield f"link:{directory}/cable"


def run_python(code: str, socket: str) -> str:
    """A Python process of its own, attached to the sidecar."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        env={**os.environ, "MACHNET_SOCKET": socket},
        # -c looks into the working directory first: not into a checkout.
        cwd=Path(machnet.__file__).resolve().parent.parent,
    )
    assert done.stderr == ""
    return done.stdout


def test_two_channels_of_one_process_talk(socket: str) -> None:
    with machnet.attach() as server, machnet.attach(name="client", tx_bufs=64) as client:
        assert server.ip == IP
        assert client.settings.tx_bufs == 64
        server.listen(IP, PORT, protocol="tcp")
        flow = client.connect(IP, IP, PORT, protocol="tcp")
        flow.send(b"question")
        message = server.recv(timeout=PATIENCE_S)
        assert message.data == b"question"
        server.send(message.flow, b"answer")
        assert client.recv(timeout=PATIENCE_S).data == b"answer"
    assert server.closed
    with pytest.raises(ValueError, match="closed"):
        server.recv(timeout=0)


def test_channels_of_a_process_share_a_connection(socket: str) -> None:
    with machnet.attach() as one, machnet.attach() as two, machnet.attach(name="x") as other:
        assert one.stack is two.stack
        assert one.stack is not other.stack
        assert socket in repr(one)


def test_what_was_sent_before_the_interpreter_ends_still_arrives(socket: str) -> None:
    with machnet.attach() as server:
        server.listen(IP, PORT, protocol="tcp")
        run_python(
            "import machnet\n"
            "ch = machnet.attach()\n"
            f"flow = ch.connect('{IP}', '{IP}', {PORT}, protocol='tcp')\n"
            "for i in range(500): flow.send(b'%d' % i)\n",
            socket,
        )
        got = [server.recv(timeout=PATIENCE_S) for _ in range(500)]
        assert [int(message.data) for message in got] == list(range(500))


def test_a_channel_that_is_forgotten_gives_its_port_back(socket: str) -> None:
    channel = machnet.attach()
    channel.listen(IP, PORT, protocol="tcp")
    del channel
    gc.collect()
    with machnet.attach() as second:
        second.listen(IP, PORT, protocol="tcp")


def test_a_child_of_fork_has_the_parents_channels_closed_and_attaches_for_itself(
    socket: str,
) -> None:
    said = run_python(
        f"""
import os, machnet
a = machnet.attach()
a.listen('{IP}', {PORT}, protocol='tcp')
flow = a.connect('{IP}', '{IP}', {PORT}, protocol='tcp')
pid = os.fork()
if pid == 0:
    try:
        flow.send(b'from the child')
    except ValueError as error:
        assert 'closed' in str(error)
    else:
        os._exit(1)
    b = machnet.attach()
    b.connect('{IP}', '{IP}', {PORT}, protocol='tcp').send(b'own')
    b.close()
    a.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
flow.send(b'parent')
print(sorted(a.recv(timeout={PATIENCE_S}).data for _ in range(2)))
a.close()
""",
        socket,
    )
    assert said == "[b'own', b'parent']\n"


def test_asyncio_runs_over_an_attached_channel(socket: str) -> None:
    async def talk() -> bytes:
        async with (
            machnet.aio.attach() as server,
            machnet.aio.attach(tx_bufs=64) as client,
        ):
            server.listen(IP, PORT, protocol="tcp")
            flow = await client.connect(IP, IP, PORT, protocol="tcp")
            await client.send(flow, b"question")
            message = await asyncio.wait_for(server.recv(), PATIENCE_S)
            await server.send(message.flow, message.data + b", answer")
            return (await asyncio.wait_for(client.recv(), PATIENCE_S)).data

    assert asyncio.run(talk()) == b"question, answer"


def test_asyncio_streams_run_over_the_connection(socket: str) -> None:
    async def talk() -> bytes:
        with machnet.attach() as channel:
            sidecar = channel.stack

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write((await reader.readline()).upper())
                await writer.drain()
                writer.close()

            server = await machnet.aio.start_server(sidecar, serve, IP, PORT)
            reader, writer = await machnet.aio.open_connection(sidecar, IP, PORT)
            writer.write(b"line\n")
            answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.close()
            await writer.wait_closed()
            server.close()
            return answer

    assert asyncio.run(talk()) == b"LINE\n"


def test_a_sidecar_that_dies_is_an_error_and_the_next_one_is_attached_to(cable: str) -> None:
    with Sidecar(cable, f"{IP}/24") as first:
        a, b = machnet.attach(first.socket), machnet.attach(first.socket)
        a.listen(IP, PORT, protocol="tcp")
        flow = b.connect(IP, IP, PORT, protocol="tcp")
        first.kill()
        start = time.monotonic()
        with pytest.raises(BrokenPipeError):
            a.recv(timeout=PATIENCE_S)
        with pytest.raises(BrokenPipeError):
            b.recv(timeout=PATIENCE_S)
        with pytest.raises((BrokenPipeError, machnet.FlowError)):
            flow.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            machnet.attach(first.socket)
        assert time.monotonic() - start < 5
        with (
            Sidecar(cable, f"{IP}/24", socket=first.socket),
            machnet.attach(first.socket) as again,
        ):
            again.listen(IP, PORT, protocol="tcp")
        a.close()
        b.close()


def test_the_c_library_says_EPIPE_then_attaches_anew(
    api: Api, cable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sidecar(cable, f"{IP}/24") as first:
        monkeypatch.setenv("MACHNET_SOCKET", first.socket)
        assert api.init() == 0
        server, client = api.attach(), api.attach()
        assert api.listen_proto(server, IP.encode(), PORT, TCP) == 0
        flow = api.connected(client)
        first.kill()
        start = time.monotonic()
        message = Pieces([8])
        assert api.fails("recv_wait", server, message.hdr, int(PATIENCE_S * 1e6)) == errno.EPIPE
        sent = ctypes.create_string_buffer(8)
        while api.recv(client, sent, 8, Flow()) == 0:
            assert time.monotonic() - start < 5, "polling finds out too"
        assert ctypes.get_errno() == errno.EPIPE
        assert api.fails("send", client, flow, b"x", 1, None) == errno.EPIPE
        assert api.fails("listen", client, IP.encode(), PORT + 1) == errno.EPIPE
        assert api.flow_error(client, flow) == errno.EPIPE
        assert api.fails("attach") == errno.ECONNREFUSED
        assert api.fails("init") == errno.ECONNREFUSED
        assert time.monotonic() - start < 5
        assert (api.detach(client), api.detach(server)) == (0, 0)
        with Sidecar(cable, f"{IP}/24", socket=first.socket):
            ctx = api.attach()
            assert ctx
            assert api.listen_proto(ctx, IP.encode(), PORT, TCP) == 0
            assert api.detach(ctx) == 0


def test_attaching_and_detaching_leaves_nothing(socket: str, api: Api) -> None:
    def footprint() -> tuple[int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text().count("machnet")
        return len(list(Path("/proc/self/fd").iterdir())), maps

    def cycle() -> None:
        with machnet.attach():
            ctx = api.attach()
            assert ctx
            assert api.detach(ctx) == 0

    assert api.init() == 0
    cycle()
    before = footprint()
    for _ in range(100):
        cycle()
    assert footprint() == before


def test_without_init_there_is_no_channel(socket: str) -> None:
    said = run_python(
        "import ctypes, errno\n"
        "from machnet.cli import paths\n"
        "so = ctypes.CDLL(str(paths.lib_path('lib')), use_errno=True)\n"
        "print(so.machnet_attach(), errno.errorcode[ctypes.get_errno()])\n",
        socket,
    )
    assert said == "0 ENOTCONN\n"
