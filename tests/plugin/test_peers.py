# SPDX-License-Identifier: MIT
"""The host at the other end of a NIC: an agent's, or an address with services."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from machnet.sim import KernelHost
from machnet.testing import agent
from pytest_machnet.peers import SERVICES, parse_peer

TALK = """
    import pytest, socket

    def test_talk(posix_peer, machnet_channel):
        ch = machnet_channel()
        with posix_peer.socket() as listener:
            listener.bind((posix_peer.ip, 8080))
            listener.listen()
            listener.settimeout(20)
            flow = ch.connect(ch.ip, posix_peer.ip, 8080, protocol="stream", timeout=20)
            with listener.accept()[0] as sock:
                sock.sendall(b"hello")
                assert flow.read(timeout=20) == b"hello"

    def test_again_on_the_same_port(posix_peer, machnet_channel):
        test_talk(posix_peer, machnet_channel)

    def test_what_is_left_open_is_closed(posix_peer, machnet_channel):
        ch = machnet_channel()
        listener = posix_peer.socket()
        listener.bind((posix_peer.ip, 8080))
        listener.listen()
        ch.connect(ch.ip, posix_peer.ip, 8080, protocol="stream", timeout=20)

    def test_setting(posix_peer, machnet_channel):
        assert posix_peer.sysctl("net.ipv4.tcp_sack") == "1"
        posix_peer.sysctl("net.ipv4.tcp_sack", 0)

    def test_command(posix_peer):
        assert posix_peer.run(["echo", "hi"]).stdout == "hi\\n"

    def test_function(posix_peer):
        posix_peer.call(print)

    def test_process(posix_peer):
        posix_peer.popen(["true"])
"""
SERVICE = """
    def test_echo(posix_peer, machnet_channel):
        ch = machnet_channel()
        port = posix_peer.service("echo")
        flow = ch.connect(ch.ip, posix_peer.ip, port, protocol="tcp", timeout=20)
        ch.send(flow, b"hello")
        assert ch.recv(timeout=20).data == b"hello"

    def test_discard(posix_peer):
        posix_peer.service("discard")

    def test_socket(posix_peer):
        posix_peer.socket()
"""


@pytest.fixture
def elsewhere():
    """A namespace in which pytest runs, as on another machine, with TAPs of its own."""
    if reason := KernelHost.tap_available():
        pytest.skip(reason)
    with KernelHost("elsewhere") as host:
        yield host


@contextlib.contextmanager
def agent_on(host, *options):
    """An agent there, on a port of its choice."""
    words = [
        sys.executable,
        agent.__file__,
        "--listen",
        "127.0.0.1:0",
        "--end-with-stdin",
        *options,
    ]
    environment = {**os.environ, agent.TOKEN_VARIABLE: "secret"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = host.popen(words, env=environment, text=True, **pipes)
    with process:
        yield process.stdout.readline().rpartition(":")[2].strip()
        process.stdin.close()


def pytest_on(host, pytester, source, *args):
    """Its outcomes and what it printed."""
    pytester.makepyfile(test_inner=source)
    words = [sys.executable, "-m", "pytest", "-p", "no:randomly", "-rs", *args]
    done = host.run(words, check=False, timeout=120, cwd=pytester.path)
    print(done.stdout)
    found = pytest.RunResult.parse_summary_nouns(done.stdout.splitlines())
    return {k: v for k, v in found.items() if not k.startswith("warning")}, done.stdout


def pick(text):
    return {line.partition(": ")[2] for line in text.splitlines() if line.startswith("SKIPPED")}


def test_an_agent_on_a_nic_that_is_somebody_elses(elsewhere, pytester):
    with agent_on(elsewhere) as port:
        nic = ("--machnet-nic=tap:mn0", f"--machnet-peer=tcp://secret@127.0.0.1:{port}?iface=mn0")
        found, text = pytest_on(elsewhere, pytester, TALK, *nic)
    assert found == {"passed": 3, "skipped": 4}
    assert f", peer tcp://127.0.0.1:{port}?iface=mn0, pcap" in text
    assert "secret" not in text
    reasons = pick(text)
    where = f"the agent at tcp://127.0.0.1:{port} was started without --allow-run"
    assert f"posix_peer.run: {where} (--machnet-nic=tap:mn0)" in reasons
    assert f"posix_peer.sysctl: {where} (--machnet-nic=tap:mn0)" in reasons
    assert sum("posix_peer.call: functions run in namespaces" in reason for reason in reasons) == 1
    assert sum("posix_peer.popen: commands run to" in reason for reason in reasons) == 1


def test_an_agent_may_be_permitted_more_and_undoes_it(elsewhere, pytester):
    with agent_on(elsewhere, "--allow-run", "--address", "10.0.0.7") as port:
        peer = f"--machnet-peer=tcp://secret@127.0.0.1:{port}?iface=mn0"
        source = TALK + "\n    def test_ip(posix_peer): assert posix_peer.ip == '10.0.0.7'\n"
        found, _ = pytest_on(elsewhere, pytester, source, "--machnet-nic=tap:mn0", peer)
        assert found == {"passed": 6, "skipped": 2}
        assert elsewhere.sysctl("net.ipv4.tcp_sack") == "1"
        wrong = ("--machnet-nic=tap:mn0", peer.replace("iface=mn0", "iface=mn7"))
        found, text = pytest_on(elsewhere, pytester, "def test_it(posix_peer): pass\n", *wrong)
        assert found == {"errors": 1}
        assert "has no interface 'mn7': there are lo, mn0" in text


def test_the_token_is_not_in_what_is_printed_of_a_failure(elsewhere, pytester):
    with agent_on(elsewhere) as port:
        peer = f"--machnet-peer=tcp://wrong@127.0.0.1:{port}"
        source = "def test_it(posix_peer): pass\n"
        found, text = pytest_on(elsewhere, pytester, source, "--machnet-nic=tap:mn0", peer)
    assert found == {"errors": 1}
    assert "the token is another one" in text
    assert "wrong@" not in text
    assert f"--machnet-peer=tcp://127.0.0.1:{port}" in text


def test_of_an_address_there_are_services_only(outer):
    args = ("--machnet-nic=wire:w0", "--machnet-peer=10.0.0.2?echo=7007", "-k", "not echo", "-rs")
    result = outer(SERVICE, *args)
    result.assert_outcomes(skipped=2, deselected=1)
    result.stdout.fnmatch_lines(
        [
            "SKIPPED * posix_peer.service('discard'): --machnet-peer states no discard=PORT (*",
            "SKIPPED * posix_peer.socket: of it only the address is known: --machnet-peer=ssh*",
        ]
    )


def test_services_in_a_namespace_of_the_test(outer):
    if reason := KernelHost.tap_available():
        pytest.skip(reason)
    ended = """
    def test_they_have_ended():
        import threading
        for thread in threading.enumerate():
            if "(accept)" in thread.name or "(echo)" in thread.name:
                thread.join(20)
                assert not thread.is_alive()
"""
    outer(SERVICE + ended, "--machnet-nic=tap:mn0").assert_outcomes(passed=4)


def test_what_is_said_of_a_peer_comes_back_without_its_token():
    for text in (
        "10.0.0.2",
        "10.0.0.2?echo=7007&discard=9009",
        "ssh://me@there:2222?iface=eth1&python=python3.12",
        "ssh://there",
        "tcp://10.78.0.1:7777?iface=eth1",
    ):
        assert str(parse_peer(text)) == text
    assert str(parse_peer("tcp://token@10.78.0.1:7777")) == "tcp://10.78.0.1:7777"
    assert dict(parse_peer("10.0.0.2").services) == SERVICES
