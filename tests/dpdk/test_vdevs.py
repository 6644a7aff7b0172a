# SPDX-License-Identifier: MIT
"""Stacks on DPDK's virtual devices: what travels, over one queue and several."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from dpdk_kit import OUR_IP, Veth, wait_for

import machnet
from machnet import dpdk
from machnet.dpdk import EalError
from machnet.stack.engines import open_engines
from machnet.testing import Packet, arp, icmp, tcp, udp
from machnet.testing.nic import Meta, NicHandle

ONE, TWO = "10.8.0.1", "10.8.0.2"
_numbers = itertools.count()


def echo(flows, servers, sizes) -> None:
    """Messages of these sizes on each flow, sent back by the channel that they arrive at."""
    for size in sizes:
        for flow in flows:
            data = os.urandom(size)
            flow.send(data, timeout=20)
            message = next_message(servers)
            assert message[1].data == data
            message[0].send(message[1].flow, data, timeout=20)
            assert flow.channel.recv(timeout=20).data == data


def next_message(channels):
    found = []

    def look() -> bool:
        for channel in channels:
            with contextlib.suppress(TimeoutError):
                found.append((channel, channel.recv(timeout=0)))
                return True
        return False

    wait_for(look, 20)
    return found[0]


@pytest.mark.parametrize("queues", [1, 2])
def test_engines_on_a_pair_of_rings(queues):
    near, far = dpdk.ring_pair(queues)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(far))
        stack.enter_context(contextlib.closing(near))
        clients = stack.enter_context(open_engines(near, queues, f"{ONE}/24"))
        servers = stack.enter_context(open_engines(far, queues, f"{TWO}/24"))
        listening = [stack.enter_context(one.attach()) for one in servers]
        for channel in listening:
            channel.listen(TWO, 888, protocol="tcp")
        calling = [stack.enter_context(one.attach()) for one in clients]
        flows = [
            channel.connect(ONE, TWO, 888, protocol="tcp", timeout=20)
            for channel in calling
            for _ in range(4)
        ]
        echo(flows, listening, [0, 1, 1460, 30_000])
        stats = near.stats()
        assert stats["rx_bad"] == stats["tx_refused"] == 0


CLIENT = f"""
import socket, struct
socks = [socket.create_connection(("{OUR_IP}", 888), timeout=20) for _ in range(12)]
for number, sock in enumerate(socks):
    data = bytes([number]) * 3000
    sock.sendall(struct.pack(">I", len(data)) + data)
for number, sock in enumerate(socks):
    want = struct.pack(">I", 3000) + bytes([number]) * 3000
    got = b""
    while len(got) < len(want):
        got += sock.recv(len(want) - len(got))
    assert got == want
print("done")
"""


def test_engines_on_a_packet_socket_each():
    pair = Veth(queues=2)
    with contextlib.ExitStack() as stack:
        stack.callback(pair.close)
        engines = stack.enter_context(open_engines(pair.nic, 2, f"{OUR_IP}/24"))
        port = engines.shared.inner
        assert port.info()["queues"] == 2
        channels = [stack.enter_context(one.attach()) for one in engines]
        for channel in channels:
            channel.listen(OUR_IP, 888, protocol="tcp")
        client = pair.popen("python3", "-c", CLIENT, stdout=-1)
        used = set()
        for _ in range(12):
            channel, message = next_message(channels)
            used.add(channels.index(channel))
            channel.send(message.flow, message.data, timeout=20)
        assert client.communicate(timeout=20)[0] == "done\n"
        # The kernel spreads flows over the sockets; their listeners are on both engines.
        assert used == {0, 1}


def test_queues_that_nobody_would_read_are_refused(veth):
    with pytest.raises(ValueError, match="qpairs=4: there is 1 queue"):
        dpdk.open_port(f"net_af_packet0,iface={veth.name},qpairs=4")


OTHER_END = """
import sys, machnet
with machnet.Stack(sys.argv[1], ip="10.8.0.2/24") as stack, stack.attach() as ch:
    ch.listen("10.8.0.2", 888, protocol="tcp")
    print("up", flush=True)
    for _ in range(4):
        message = ch.recv(timeout=30)
        ch.send(message.flow, message.data, timeout=30)
    stack.nic.link()
    sys.stdin.read()
"""


def other_end(nic: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", OTHER_END, nic],
        env={**os.environ, "MACHNET_DPDK": "huge=on,memory_mb=32"},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout.readline() == "up\n"
    return child


@pytest.mark.parametrize("role", ["server", "client"])
def test_a_memif_to_another_process(role):
    path = f"/tmp/mn-memif-{os.getpid()}-v{next(_numbers)}"
    other = "client" if role == "server" else "server"
    mine, theirs = (f"dpdk:net_memif0,role={one},socket={path}" for one in (role, other))
    with contextlib.ExitStack() as opened:
        # The server goes first: a client without one does not start.
        if role == "client":
            with pytest.raises(EalError, match="nobody serves its socket /tmp/mn-memif") as caught:
                machnet.Stack(mine, ip=f"{ONE}/24")
            assert caught.value.errno == errno.ECONNREFUSED
            child = other_end(theirs)
        stack = opened.enter_context(machnet.Stack(mine, ip=f"{ONE}/24"))
        if role == "server":
            child = other_end(theirs)
        ch = opened.enter_context(stack.attach())
        wait_for(lambda: stack.nic.link()[0], 20)
        flow = ch.connect(ONE, TWO, 888, protocol="tcp", timeout=30)
        for size in (0, 1, 1460, 30_000):
            flow.send(bytes(size), timeout=30)
            assert ch.recv(timeout=30).data == bytes(size)
        child.communicate("", timeout=30)
        assert child.returncode == 0
        # The other process is gone: the link is down, and the port lives.
        wait_for(lambda: not stack.nic.link()[0], 20)


def test_net_null_takes_all_and_has_no_end_of_frames():
    with contextlib.closing(dpdk.open_port("net_null0,size=200")) as port:
        nic = NicHandle(port.native)
        for _ in range(100):
            nic.send(bytes(60))
            assert len(nic.recv()) == 200
        stats = port.stats()
        assert (stats["tx_frames"], stats["rx_frames"], stats["rx_bytes"]) == (100, 100, 20_000)


# ---- net_pcap ------------------------------------------------------------------------------------

THEIRS, OURS = "02:00:00:00:00:01", "02:00:00:00:00:02"


def write_pcap(path: Path, frames: list[bytes]) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 17, 1))
        for frame in frames:
            file.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)


def read_pcap(path: Path) -> list[bytes]:
    data, at, frames = path.read_bytes(), 24, []
    while at < len(data):
        size = struct.unpack_from("<I", data, at + 8)[0]
        frames.append(data[at + 16 : at + 16 + size])
        at += 16 + size
    return frames


FROM_CAPTURE = "net_pcap0,rx_pcap=in,tx_pcap=out"


@pytest.fixture
def captures(tmp_path, monkeypatch):
    """The directory of `FROM_CAPTURE`: DPDK 25.11 takes 128 characters, pytest's paths are long."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_answers_to_a_capture(captures):
    ends = {"eth_src": THEIRS, "eth_dst": OURS, "src": ONE, "dst": TWO}
    asked = [
        arp(1, eth_src=THEIRS, sender_mac=THEIRS, sender_ip=ONE, target_ip=TWO).build(),
        icmp(8, payload=b"echo me", **ends).build(),
        tcp("S", sport=1000, dport=7, seq=5, **ends).build(),
        udp(b"nobody listens", sport=9, dport=9, **ends).build(),
    ]
    write_pcap(captures / "in", asked)
    port = dpdk.open_port(FROM_CAPTURE, mac=OURS)
    with machnet.Stack(port, ip=f"{TWO}/24", thread=True):
        wait_for(lambda: port.stats()["tx_frames"] >= 4)
        assert port.stats()["rx_frames"] == 4
    port.close()
    answers = [Packet(frame) for frame in read_pcap(captures / "out")]
    assert not [answer.error for answer in answers if answer.error]
    kinds = [answer.summary() for answer in answers]
    wanted = (
        "ARP, Reply 10.8.0.2 is-at 02:00:00:00:00:02",
        "ICMP echo reply",
        "Flags [R.], seq 0, ack 6",
        "udp port 9 unreachable",
    )
    assert len(kinds) == len(wanted)
    for kind, want in zip(kinds, wanted, strict=True):
        assert want in kind


def test_frames_longer_than_a_buffer_are_chained(captures):
    frames = [
        bytes.fromhex("02000000000202000000000188b5") + os.urandom(n)
        for n in (46, 2034, 2035, 8986)
    ]
    write_pcap(captures / "in", frames)
    with contextlib.closing(dpdk.open_port(FROM_CAPTURE)) as port:
        nic = NicHandle(port.native)
        got = [nic.recv_meta() for _ in frames]
        assert [one[0] for one in got] == frames
        assert [one[1].pieces for one in got] == [1, 1, 2, 5]
        # Sent in pieces, and as they came.
        nic.send(frames[0] + bytes(900), Meta(pieces=4))
        stats = port.stats()
        assert stats["mbufs_free"] == stats["mbufs"]
    assert read_pcap(captures / "out") == [frames[0] + bytes(900)]


def test_jumbo_frames_with_the_kernel():
    pair = Veth(mtu=9000)
    with contextlib.ExitStack() as stack:
        stack.callback(pair.close)
        one = stack.enter_context(machnet.Stack(pair.nic, ip=f"{OUR_IP}/24", thread=True))
        assert one.nic.mtu == 9000
        ch = stack.enter_context(one.attach())
        ch.listen(OUR_IP, 888, protocol="tcp")
        client = pair.popen(
            "python3",
            "-c",
            CLIENT.replace("range(12)", "range(2)").replace("3000", "200_000"),
            stdout=-1,
        )
        for _ in range(2):
            message = ch.recv(timeout=20)
            assert len(message.data) == 200_000
            ch.send(message.flow, message.data, timeout=20)
        assert client.communicate(timeout=20)[0] == "done\n"
        stats = one.nic.stats()
        assert stats["rx_bytes"] / stats["rx_frames"] > 1600


def test_an_address_that_the_interface_takes_and_gives_back(veth):
    own = Path(f"/sys/class/net/{veth.name}/address").read_text()
    with contextlib.closing(dpdk.open_port(veth.name, mac="02:4d:4e:00:00:77")) as port:
        assert port.mac == "02:4d:4e:00:00:77"
        assert not port.info()["promiscuous"]
        name = Path(f"/sys/class/net/{veth.name}/address")
        assert name.read_text().strip() == "02:4d:4e:00:00:77"
    assert name.read_text() == own


def test_an_address_that_the_driver_does_not_take(veth):
    with contextlib.closing(dpdk.open_port(f"net_pcap0,iface={veth.name}", mac=OURS)) as port:
        assert port.mac == OURS
        assert port.info()["promiscuous"]
        assert "it takes no other address: it receives everything instead" in port.missing


def test_a_tap_of_dpdk_with_the_kernel_behind_it():
    name = f"mnt{os.getpid()}{next(_numbers)}"
    with machnet.Stack(f"dpdk:net_tap0,iface={name}", ip=f"{TWO}/24", thread=True) as stack:
        assert {"it makes no checksums: done in software"}.isdisjoint(stack.nic.missing)
        subprocess.run(["ip", "addr", "add", f"{ONE}/24", "dev", name], check=True)
        with stack.attach() as ch, socket.socket() as sock:
            ch.listen(TWO, 888, protocol="tcp")
            sock.settimeout(20)
            sock.connect((TWO, 888))
            sock.sendall(struct.pack(">I", 5000) + bytes(5000))
            message = ch.recv(timeout=20)
            ch.send(message.flow, message.data, timeout=20)
            got = b""
            while len(got) < 5004:
                got += sock.recv(5004 - len(got))
            assert got == struct.pack(">I", 5000) + bytes(5000)
