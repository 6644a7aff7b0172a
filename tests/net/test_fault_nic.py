# SPDX-License-Identifier: MIT
"""Faults around a TAP: Linux's TCP as the peer, by call, by NIC string, and on the command line.

What single faults do to transfers is in test_tcp_linux_loss.py.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import pytest
from linux_peer import (
    KERNEL_IP,
    OUR_IP,
    PATIENCE_S,
    PORT,
    beside,
    ends,
    needs_tap,
    pattern,
    recv,
    recv_message,
    scaled,
    send,
    send_message,
)
from lossy_link import lossy_peer

from machnet import Stack
from machnet.sim import KernelHost
from machnet.sim.nicstr import parse_nic
from machnet.stack.nics import Tap, with_faults

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(needs_tap() is not None, reason=str(needs_tap()))

SIZE = scaled(300_000, 50_000)
BAD = "loss=2%&reorder=5%&reorder_delay=500us&duplicate=5%&corrupt=1%&latency=200us&jitter=100us"


def plain_tap(host: KernelHost) -> int:
    return host.open_tap("mn0", kernel_ip=f"{KERNEL_IP}/24", vnet_hdr=False, offloads=False)


def converse(sock: socket.socket) -> None:
    """The kernel's half; its last word lets a stepped stack see the end of what it sent."""
    send_message(sock, pattern(SIZE, 1))
    assert recv_message(sock) == pattern(SIZE, 2)
    send_message(sock, b"all")


@pytest.mark.parametrize("thread", [True, False], ids=["thread", "stepped"])
@pytest.mark.parametrize("kernel_is", ["client", "server"])
def test_bytes_survive_everything_at_once(kernel_is: str, thread: bool) -> None:
    """However the stack is run, it wakes up for frames that are due."""
    faults = dict(part.split("=") for part in BAD.split("&"))
    with lossy_peer(faults=faults, thread=thread, rto_min_us=20_000) as peer:
        channel = peer.stack.attach()
        if kernel_is == "client":
            channel.listen(OUR_IP, PORT, "tcp")

            def talk() -> None:
                converse(peer.connect())

            with beside(talk):
                message = recv(channel)
                assert message.data == pattern(SIZE, 1)
                send(channel, message.flow, pattern(SIZE, 2))
                assert recv(channel).data == b"all"
        else:
            with peer.listen() as listener, beside(lambda: converse(peer.accept(listener))):
                port = listener.getsockname()[1]
                flow = channel.connect(OUR_IP, KERNEL_IP, port, "tcp", timeout=PATIENCE_S)
                assert recv(channel).data == pattern(SIZE, 1)
                send(channel, flow, pattern(SIZE, 2))
                assert recv(channel).data == b"all"
        for fault in ("loss", "reorder", "duplicate", "corrupt", "jitter"):
            assert peer.met(fault) > 0


@pytest.mark.parametrize("poll", ["adaptive", "busy"])
def test_frames_that_are_due_wake_the_stack(poll: str) -> None:
    """A ping of a quiet network: nothing else would wake a thread that sleeps."""
    with lossy_peer(faults={"latency": "3ms"}, poll=poll, spin_us=0) as peer:
        channel = peer.stack.attach()
        flow, sock = ends(peer, channel, "client")
        for n in range(5):
            send(channel, flow, pattern(100, n))
            assert recv_message(sock) == pattern(100, n)
            send_message(sock, pattern(100, n))
            assert recv(channel).data == pattern(100, n)
        info = peer.info()
        assert info is not None
        assert info.srtt_us >= 6000  # a lower bound that the clock guarantees


def test_clogged_direction_goes_on_where_it_was() -> None:
    with lossy_peer(rto_min_us=10_000_000, rto_initial_us=10_000_000) as peer:
        channel = peer.stack.attach()
        flow, sock = ends(peer, channel, "client")
        with peer.faulty.clogged("tx"):
            for n in range(10):
                send(channel, flow, pattern(500, n))
            sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            sock.settimeout(PATIENCE_S)
        for n in range(10):
            assert recv_message(sock) == pattern(500, n)
        assert peer.stack.stats()["tcp_retransmits"] == 0


def test_nic_string_around_a_descriptor(host: KernelHost) -> None:
    """The way of `msg_gen`, which has a TAP by descriptor or makes one."""
    spec = parse_nic(f"tap:mn0?{BAD}&seed=5")
    tap = Tap(fd=plain_tap(host), offload=False)
    nic = with_faults(tap, spec)
    with Stack(nic, f"{OUR_IP}/24", rto_min_us=20_000) as stack:
        channel = stack.attach()
        channel.listen(OUR_IP, PORT, "tcp")
        with host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(PATIENCE_S)

            def talk() -> None:
                sock.connect((OUR_IP, PORT))
                converse(sock)

            with beside(talk):
                message = recv(channel)
                send(channel, message.flow, pattern(SIZE, 2))
                assert recv(channel).data == b"all"
    nic.close()
    with pytest.raises(ValueError, match="is closed"):
        _ = tap.native


def test_tap_with_offload_is_refused(host: KernelHost) -> None:
    tap = Tap(fd=host.open_tap("mn0"))
    with pytest.raises(ValueError, match="open it without offload"):
        with_faults(tap, parse_nic("tap:mn0?loss=1%"))


@pytest.mark.parametrize("engine", ["inline", "thread"])
def test_msg_gen_across_a_bad_network(host: KernelHost, engine: str, tmp_path: Path) -> None:
    """By name: the TAP is made without offload."""
    capture = tmp_path / "all.pcapng"
    command = [
        *(sys.executable, "-m", "machnet.cli.msg_gen", "--protocol=tcp"),
        *(f"--nic=tap:bad0?{BAD}", "--local_ip=10.8.0.2/16", "--kernel_ip=10.8.0.1/16"),
        *("--duration=60", f"--engine={engine}", f"--pcap={capture}"),
    ]
    with host.popen(command, stdout=-1, stderr=-1, text=True) as process:
        for line in process.stdout:
            if "[LISTENING]" in line:
                break
        else:
            pytest.fail(process.stderr.read())
        client = [sys.executable, "-m", "machnet.cli.tcp_msg_gen", "--remote_ip=10.8.0.2"]
        told = host.run([*client, "--msg_nr=200", "--verify"], timeout=PATIENCE_S * 2).stdout
        assert "Messages sent/received: 200/200" in told
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert capture.stat().st_size > 200 * 64
