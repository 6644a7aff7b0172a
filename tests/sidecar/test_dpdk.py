# SPDX-License-Identifier: MIT
"""A sidecar on DPDK, with EAL in its own process, and Linux at the other end of a virtual cable."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dpdk_kit import KERNEL_IP, OUR_IP, Veth, need_dpdk, need_root, reserve_huge_pages
from dpdk_kit import veth as make_veth
from sidecar import Sidecar, SidecarError

import machnet
from machnet._native import lib
from machnet.cli.main import main as command
from machnet.sidecar.asking import Asking

PATIENCE_S = 60.0 if lib.mn_build_sanitized() else 20.0
PORT = 888

#: A host over sockets: for each line "HOST PORT SIZE" it sends so many bytes and has them echoed.
ECHO_CLIENT = """
import socket, struct, sys
for line in sys.stdin:
    host, port, size, times = line.split()
    size = int(size)
    for _ in range(int(times)):
        with socket.create_connection((host, int(port)), timeout=20) as sock:
            sock.sendall(struct.pack(">I", size) + b"x" * size)
            got = b""
            while len(got) < size + 4:
                got += sock.recv(size + 4 - len(got)) or sys.exit("closed early")
            assert got == struct.pack(">I", size) + b"x" * size
    print("done", flush=True)
"""
ECHO_SERVER = """
import socket, threading
def serve(sock):
    with sock:
        while data := sock.recv(65536):
            sock.sendall(data)
listener = socket.create_server(("", 80))
print("up", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


#: An echo from each address, which the flow's hash brings to one queue or the other.
PING = """
import socket, struct, sys
for mine in sys.argv[2:]:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.bind((mine, 0))
        sock.settimeout(20)
        sock.sendto(struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x807, 7, 0), (sys.argv[1], 0))
        while sock.recv(2048)[20:21] != b"\\0":
            pass
"""


@pytest.fixture(scope="module", autouse=True)
def _pages() -> None:
    need_dpdk()
    need_root()
    reserve_huge_pages()


@pytest.fixture
def veth() -> Iterator[Veth]:
    with make_veth() as pair:
        yield pair


class Peer:
    """The kernel at the other end: a client that is told what to do, or an echo server."""

    def __init__(self, pair: Veth, program: str) -> None:
        self._process = pair.popen(
            "python3", "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.communicate()


def configured(path: Path, mac: str, entry: dict[str, Any], **top: Any) -> str:
    file = path / "machnet.json"
    nic = {"ip": OUR_IP, **entry}
    file.write_text(json.dumps({"machnet_config": {mac: nic}, **top}))
    return f"--config={file}"


def mac_of(name: str) -> str:
    return Path(f"/sys/class/net/{name}/address").read_text().strip()


def echo(channel: machnet.Channel, peer: Peer, size: int = 5000, times: int = 1) -> None:
    """The peer has messages echoed by a listener of ours on `PORT`."""
    peer.tell(OUR_IP, PORT, size, times)
    for _ in range(times):
        message = channel.recv(timeout=PATIENCE_S)
        assert message.data == b"x" * size
        channel.send(message.flow, message.data, timeout=PATIENCE_S)
    assert peer.hear() == "done"


def left_behind() -> set[str]:
    """Files of DPDK."""
    folders = (Path("/dev/hugepages"), Path("/run/dpdk"))
    return {str(path) for folder in folders for path in folder.rglob("*") if not path.is_dir()}


def sidecar_error(*arguments: str, **options: Any) -> str:
    """What a sidecar that does not start says, in its one line."""
    with pytest.raises(SidecarError, match="it ended with status 1") as failure:
        Sidecar(None, OUR_IP, *arguments, **options)
    _, *lines = str(failure.value).splitlines()
    (line,) = lines
    return re.sub(r"\\(.)", r"\1", line.partition("error start_failed why=")[2])


# ---- what is served ------------------------------------------------------------------------------


def test_a_mac_address_alone_is_enough_and_nothing_is_left(veth: Veth, capfd: Any) -> None:
    before = left_behind()
    mac = mac_of(veth.name)
    with Sidecar(None, OUR_IP, f"--mac={mac}", f"--ip={OUR_IP}/24") as sidecar:
        with (
            machnet.attach(sidecar.socket, name="echo") as channel,
            Peer(veth, ECHO_CLIENT) as peer,
        ):
            channel.listen(OUR_IP, PORT, "tcp")
            echo(channel, peer, 100_000)
            with Asking(sidecar.socket, "test") as asking:
                (listener,) = (row for row in asking.ask("ss") if row["state"] == "LISTEN")
                assert listener["nic"] == f"dpdk:{mac}"
                (nic,) = asking.ask("info")["nics"]
                assert (nic["driver"], nic["mac"], nic["queues"]) == ("net_af_packet", mac, 1)
                assert (nic["wake"], nic["link"]) == ("descriptor", "up 10000 Mbit/s")
                assert len(nic["missing"]) == 2
                (port,) = asking.ask("stat")["ports"]
                assert port["stats"]["ipackets"] == port["stats"]["rx_frames"] > 60
                assert port["stats"]["unplugged"] == 0
                assert port["levels"]["mbufs_free"] > 0
                metrics = asking.ask("metrics")
                labels = f'{{device="{nic["device"]}",driver="net_af_packet",nic="dpdk:{mac}"}}'
                assert f"machnet_port_present{labels} 1.0" in metrics
                assert f"machnet_port_imissed_total{labels} 0.0" in metrics
        command.main(["stat", "--socket", sidecar.socket, "--all"], standalone_mode=False)
        said = capfd.readouterr().out
        assert f"# dpdk:{mac}: net_af_packet {nic['device']}, link up 10000 Mbit/s, 1 queue" in said
        assert re.search(r"^port_rx_nombuf +0$", said, re.MULTILINE)
        assert sidecar.stop() == 0
        log = sidecar.log()
        assert f"nic=dpdk:{mac} mac={mac}" in log
        assert 'said="net_af_packet: it makes no checksums: done in software"' in log
        assert "EAL:" not in log
    assert left_behind() == before


def test_a_port_takes_the_address_of_its_entry(veth: Veth, tmp_path: Path) -> None:
    mac = "02:00:00:00:05:01"
    entry = {"nic": veth.name, "rx_desc": 64, "tx_desc": 128, "pool_mbufs": 4000}
    settings = {"huge": "off", "memory_mb": 64, "log_level": "debug"}
    more = configured(
        tmp_path, mac, entry, dpdk=settings, controller={"log_level": "debug", "drain_ms": 0}
    )
    with (
        Sidecar(None, OUR_IP, more) as sidecar,
        machnet.attach(sidecar.socket) as channel,
        Peer(veth, ECHO_CLIENT) as peer,
    ):
        channel.listen(OUR_IP, PORT, "tcp")
        echo(channel, peer)
        assert mac in veth.run("ip", "neigh", "show")
        with Asking(sidecar.socket, "test") as asking:
            (nic,) = asking.ask("info")["nics"]
            assert (nic["mac"], nic["rx_desc"], nic["tx_desc"]) == (mac, 64, 128)
            assert asking.ask("stat")["ports"][0]["levels"]["mbufs"] == 4000
        assert "EAL:" in sidecar.log()


@pytest.mark.parametrize("queues", [2, 1], ids=["two queues", "one queue"])
def test_two_engines_have_flows_listeners_arp_and_icmp(tmp_path: Path, queues: int) -> None:
    with make_veth(queues) as pair:
        nic = pair.nic if queues == 2 else f"net_af_packet0,iface={pair.name},qpairs=1"
        more = configured(tmp_path, mac_of(pair.name), {"nic": nic, "engine_threads": 2})
        with (
            Sidecar(None, OUR_IP, more) as sidecar,
            machnet.attach(sidecar.socket) as channel,
            Peer(pair, ECHO_CLIENT) as client,
            Peer(pair, ECHO_SERVER) as server,
            Asking(sidecar.socket, "test") as asking,
        ):
            assert asking.ask("info")["nics"][0]["queues"] == queues
            assert server.hear() == "up"
            channel.listen(OUR_IP, PORT, "tcp")
            echo(channel, client, 3000, times=16)
            # The lanes take turns: every engine opens some, whose answers may arrive at the other.
            flows = [
                channel.connect(OUR_IP, KERNEL_IP, 80, "tcp", timeout=PATIENCE_S) for _ in range(8)
            ]
            for number, flow in enumerate(flows):
                channel.send(flow, bytes([number]) * 3000, timeout=PATIENCE_S)
                assert channel.recv(timeout=PATIENCE_S).data == bytes([number]) * 3000
            pair.run("ip", "neigh", "flush", "dev", pair.peer)
            pair.run(sys.executable, "-c", PING, OUR_IP, KERNEL_IP, *pair.add_addresses(7))
            engines = asking.ask("stat")["engines"]
            assert sum(row["stats"]["icmp_echo_replies"] for row in engines) == 8
            assert all(row["stats"]["tcp_passive_opens"] > 0 for row in engines)
            assert all(row["stats"]["tcp_active_opens"] > 0 for row in engines)
            between = [row["between"] for row in engines]
            assert any(row["handed_frames"] > 0 for row in between)
            # With one queue, engine 0 receives for all.
            assert any(row["dispatched"] > 0 for row in between) == (queues == 1)


# ---- unplugged -----------------------------------------------------------------------------------


def test_connections_outlive_a_nic_that_is_unplugged_and_back() -> None:
    with (
        make_veth(2) as veth,
        # Each engine sleeps on its own queue, also on those that are made anew.
        Sidecar(veth.nic, OUR_IP, "--engine_threads=2") as sidecar,
        machnet.attach(sidecar.socket) as channel,
        Peer(veth, ECHO_CLIENT) as peer,
        Asking(sidecar.socket, "test") as asking,
    ):
        channel.listen(OUR_IP, PORT, "tcp")
        peer.tell(OUR_IP, PORT, 5000, 1)
        message = channel.recv(timeout=PATIENCE_S)
        veth.unplug()
        log = sidecar.wait_log("nic_unplugged")
        assert f"warning nic_unplugged nic={veth.nic} device=net_af_packet" in log
        (port,) = asking.ask("stat")["ports"]
        assert port["link"] == "unplugged"
        assert port["stats"]["unplugged"] == 1
        assert port["levels"]["present"] == 0
        channel.send(message.flow, message.data, timeout=PATIENCE_S)
        veth.plug_in()
        log = sidecar.wait_log("nic_back")
        assert f"info nic_back nic={veth.nic} device=net_af_packet" in log
        assert log.count("nic_unplugged") == log.count("nic_back") == 1
        assert peer.hear() == "done"
        echo(channel, peer, 1000, times=8)
        (port,) = asking.ask("stat")["ports"]
        assert port["stats"]["replugged"] == 1
        assert port["levels"]["present"] == 1


def test_checksums_that_the_other_end_leaves_out_are_said(veth: Veth) -> None:
    with (
        Sidecar(veth.nic, OUR_IP) as sidecar,
        machnet.attach(sidecar.socket) as channel,
        Peer(veth, ECHO_CLIENT) as peer,
    ):
        channel.listen(OUR_IP, PORT, "tcp")
        echo(channel, peer)
        veth.run("ethtool", "-K", veth.peer, "tx", "on")
        peer.tell(OUR_IP, PORT, 1000, 1)
        log = sidecar.wait_log("wrong_checksums")
        assert f"warning wrong_checksums nic={veth.nic} segments=" in log
        assert "ethtool -K INTERFACE tx off" in log
        # The kernel sends again, and then they are right.
        veth.run("ethtool", "-K", veth.peer, "tx", "off")
        message = channel.recv(timeout=PATIENCE_S)
        channel.send(message.flow, message.data, timeout=PATIENCE_S)
        assert peer.hear() == "done"
        assert sidecar.log().count("wrong_checksums") == 1


# ---- how it ends, and how it does not begin ------------------------------------------------------


def test_a_sidecar_that_is_killed_leaves_nothing(veth: Veth) -> None:
    before = left_behind()
    for _ in range(2):  # and the next one is not held up
        with Sidecar(veth.nic, OUR_IP, env={"MACHNET_DPDK": "huge=on"}) as sidecar:
            sidecar.kill()
    assert left_behind() == before


def test_sigterm_sends_what_was_published(veth: Veth) -> None:
    with Sidecar(veth.nic, OUR_IP) as sidecar, Peer(veth, ECHO_CLIENT) as peer:
        with machnet.attach(sidecar.socket) as channel:
            channel.listen(OUR_IP, PORT, "tcp")
            peer.tell(OUR_IP, PORT, 1_000_000, 1)
            message = channel.recv(timeout=PATIENCE_S)
            channel.send(message.flow, message.data, timeout=PATIENCE_S)
            sidecar.send_signal(signal.SIGTERM)
            assert peer.hear() == "done"
            assert sidecar.wait() == 0
        assert "ended connections_left=0" in sidecar.log()


def test_what_is_not_there_is_said_in_one_line(veth: Veth, tmp_path: Path) -> None:
    said = sidecar_error("--mac=02:00:00:00:00:77", f"--ip={OUR_IP}")
    assert "no NIC has the MAC address 02:00:00:00:00:77. There are " in said
    arguments = f"--nic={veth.name}", f"--ip={OUR_IP}"
    small = {"huge": "off", "memory_mb": 16}
    entry = {"nic": veth.name, "pool_mbufs": 100_000}
    said = sidecar_error(configured(tmp_path, "02:00:00:00:05:01", entry, dpdk=small))
    assert "no memory for 100000 packets of 2048 bytes (queue 0)" in said
    assert "a larger memory_mb" in said
    said = sidecar_error(*arguments, env={"MACHNET_DPDK": "huge=on,memory_mb=900000"})
    assert "EAL did not start: Cannot allocate memory" in said
    assert "sysctl vm.nr_hugepages" in said


def test_without_the_right_to_a_packet_socket_it_says_what_it_takes(veth: Veth) -> None:
    arguments = [sys.executable, "-m", "machnet.cli.run", f"--nic={veth.name}", f"--ip={OUR_IP}"]
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", *arguments, f"--socket=/tmp/mnd{os.getpid()}.sock"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=Path(machnet.__file__).resolve().parent.parent,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "AF_PACKET" in line
    assert "CAP_NET_RAW" in line
