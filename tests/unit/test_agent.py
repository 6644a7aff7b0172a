# SPDX-License-Identifier: MIT
"""The agent: sockets of another host, by proxy, with the errors that they have there."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import resource
import socket
import subprocess
import sys
import threading

import pytest

from machnet.sim import KernelHost
from machnet.sim.kernel_host import CommandError
from machnet.testing import agent
from machnet.testing.remote import Agent, AgentError


@pytest.fixture(scope="module")
def here():
    with Agent.local() as made:
        yield made


@pytest.fixture
def remote(here):
    yield here
    here.reset()


@contextlib.contextmanager
def listening(*options: str, descriptors: int = 0):
    """An agent that listens on a port of its choice; it ends with its standard input."""
    words = [sys.executable, agent.__file__, "--listen", "127.0.0.1:0", "--end-with-stdin"]
    process = subprocess.Popen(
        [*words, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        line = process.stdout.readline()
        assert line.startswith("machnet agent: listening on 127.0.0.1:")
        if descriptors:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (descriptors, descriptors))
        yield int(line.rpartition(":")[2])
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_stream_in_both_directions_with_the_methods_of_a_socket(remote):
    with remote.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname(), 20) as near:
            far, source = listener.accept()
            assert source == near.getsockname() == far.getpeername()
            assert far.getsockname() == near.getpeername()
            far.sendall(b"one")
            assert near.recv(100) == b"one"
            assert far.send(memoryview(b"two")) == 3
            assert near.recv(100) == b"two"
            near.sendall(b"line\nrest")
            buffer = bytearray(5)
            assert far.recv_into(buffer) == 5
            assert buffer == b"line\n"
            with far.makefile("rwb") as file:
                assert file.read(4) == b"rest"
                file.write(b"by file")
                file.flush()
                assert near.recv(100) == b"by file"
            with far.makefile("r", encoding="ascii", newline="\n") as text:
                near.sendall(b"text\n")
                assert text.readline() == "text\n"
            far.shutdown(socket.SHUT_WR)
            assert near.recv(100) == b""
            near.close()
            assert far.recv(100) == b""
            far.close()


def test_many_megabytes_at_once(remote):
    data = os.urandom(8 << 20)
    with remote.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname(), 20) as near:
            far, _ = listener.accept()
            sender = threading.Thread(target=far.sendall, args=(data,))
            sender.start()
            with near.makefile("rb") as file:
                assert file.read(len(data)) == data
            sender.join()


def test_errors_are_those_of_the_socket(remote):
    with socket.socket() as free, remote.socket() as sock:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            sock.connect(free.getsockname())
        assert sock.connect_ex(free.getsockname()) == errno.ECONNREFUSED
    with remote.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        sock.settimeout(0.01)
        assert sock.gettimeout() == 0.01
        with pytest.raises(TimeoutError, match="timed out"):
            sock.accept()
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.accept()
        with pytest.raises(io.UnsupportedOperation, match="no descriptor here"):
            sock.fileno()
        with remote.socket() as other, pytest.raises(OSError) as caught:
            other.bind(sock.getsockname())
        assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError) as caught:
        sock.accept()
    assert caught.value.errno == errno.EBADF
    with remote.socket() as sock, pytest.raises(OverflowError):
        sock.bind(("127.0.0.1", 70000))
    with pytest.raises(ValueError, match="no operation 'dance'"):
        remote.ask("dance")


def test_options_and_datagrams(remote):
    with remote.socket() as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\7\0\0\0")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == b"\1\0\0\0\7\0\0\0"
    with (
        remote.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
    ):
        near.bind(("127.0.0.1", 0))
        near.settimeout(20)
        sock.bind(("127.0.0.1", 0))
        assert sock.sendto(b"hello", near.getsockname()) == 5
        assert near.recvfrom(100) == (b"hello", sock.getsockname())
        near.sendto(b"there", sock.getsockname())
        assert sock.recvfrom(100) == (b"there", near.getsockname())


def test_calls_that_wait_hold_up_no_others(remote):
    with remote.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        accepted = []
        waiting = [
            threading.Thread(target=lambda: accepted.append(listener.accept())) for _ in range(20)
        ]
        for thread in waiting:
            thread.start()
        near = [socket.create_connection(listener.getsockname(), 20) for _ in waiting]
        for thread in waiting:
            thread.join(20)
        assert len(accepted) == 20
        for sock in near:
            sock.close()


def test_reset_ends_connections_listeners_and_who_waits_for_them(remote):
    listener = remote.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    address = listener.getsockname()
    with socket.create_connection(address, 20) as near:
        far, _ = listener.accept()
        failures = []

        def wait():
            try:
                assert far.recv(1) == b""
                listener.accept()
            except OSError as error:
                failures.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        remote.reset()
        thread.join(20)
        assert not thread.is_alive()
        assert len(failures) == 1
        with contextlib.suppress(ConnectionResetError):
            assert near.recv(1) == b""
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            near.sendall(bytes(64 << 20))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 20)


@pytest.mark.parametrize("name", agent.SERVICES)
def test_services(remote, name):
    port = remote.service(name, "127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), 20) as sock, sock.makefile("rb") as file:
        if name == "chargen":
            lines = [file.readline() for _ in range(200)]
            assert {len(line) for line in lines} == {74}
            assert lines[0] != lines[1]
            assert lines[:95] == lines[95:190]
            return
        sock.sendall(b"hello")
        sock.shutdown(socket.SHUT_WR)
        assert file.read() == (b"hello" if name == "echo" else b"")


def test_a_service_that_there_is_not(remote):
    with pytest.raises(ValueError, match="no service 'daytime': it is echo, discard, chargen"):
        remote.service("daytime", "127.0.0.1")


def test_commands(remote):
    assert remote.run(["echo", "hi"]).stdout == "hi\n"
    assert remote.run(["cat"], input=b"\xff").stdout == b"\xff"
    assert remote.run(["sh", "-c", "echo $X; exit 3"], check=False, env={"X": "y"}).stdout == "y\n"
    with pytest.raises(CommandError, match="said so"):
        remote.run(["sh", "-c", "echo said so >&2; exit 3"])
    with pytest.raises(TimeoutError):
        remote.run(["sleep", "100"], timeout=0.05)
    with pytest.raises(FileNotFoundError):
        remote.run(["/there/is/none"])


def test_settings_last_until_reset():
    if why := KernelHost.available():
        pytest.skip(why)
    with KernelHost("agent") as host, Agent.local(f"/proc/{host.pid}/ns/net") as remote:
        name = "net.ipv4.tcp_sack"
        assert remote.sysctl(name) == "1"
        assert remote.sysctl(name, 0) == "0" == host.sysctl(name)
        remote.reset()
        assert host.sysctl(name) == "1"
        with pytest.raises(ValueError, match=r"not under net\."):
            remote.sysctl("kernel.hostname")
        with pytest.raises(FileNotFoundError):
            remote.sysctl("net.ipv4.there_is_none")


def test_an_interface_without_an_address_gets_one_until_the_end():
    if why := KernelHost.tap_available():
        pytest.skip(why)
    with KernelHost("agent") as host:
        fd = host.open_tap("mn0")
        with Agent.local(f"/proc/{host.pid}/ns/net") as remote:
            assert {entry["name"] for entry in remote.interfaces()} == {"lo", "mn0"}
            remote.give_address("mn0", "10.0.0.2", 24)
            remote.give_address("mn0", "10.0.0.2", 24)
            (entry,) = [e for e in remote.interfaces() if e["name"] == "mn0"]
            assert (entry["ip"], entry["prefix"], entry["up"]) == ("10.0.0.2", 24, True)
            with pytest.raises(FileExistsError, match=r"mn0 has the address 10.0.0.2/24"):
                remote.give_address("mn0", "10.0.0.3", 24)
            with pytest.raises(OSError, match="no interface 'mn1'"):
                remote.give_address("mn1", "10.0.0.3", 24)
        assert "10.0.0.2" not in host.run(["ip", "addr"]).stdout
        os.close(fd)


def test_an_agent_that_listens_wants_its_token(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("secret\n")
    with listening("--token-file", str(file), "--address", "10.0.0.7") as port:
        for _ in range(2):
            with Agent.connect("127.0.0.1", port, "secret") as remote:
                assert remote.about["address"] == "10.0.0.7"
                assert not remote.about["run"]
                with pytest.raises(PermissionError, match="without --allow-run"):
                    remote.run(["true"])
                with pytest.raises(PermissionError, match="without --allow-run"):
                    remote.sysctl("net.ipv4.tcp_sack", 1)
        with pytest.raises(PermissionError, match="the token is another one"):
            Agent.connect("127.0.0.1", port, "other")
        monkeypatch.delenv(agent.TOKEN_VARIABLE, raising=False)
        with pytest.raises(AgentError, match="it wants a token"):
            Agent.connect("127.0.0.1", port)
        # Who says more than a greeting before is not listened to.
        with socket.create_connection(("127.0.0.1", port), 20) as sock:
            sock.sendall(bytes([0, 0, 0, 2, 0, 0, 1, 0]) + b"{}")
            with contextlib.suppress(ConnectionResetError), sock.makefile("rb") as answer:
                while answer.read(4096):
                    pass


@pytest.mark.parametrize(
    "greeting", [b'{"proof": "\xc3\xa4"}', b'{"proof": "\\ud800"}', b"[" * 4096]
)
def test_who_says_nonsense_instead_of_a_proof_is_sent_away(monkeypatch, greeting):
    monkeypatch.setenv(agent.TOKEN_VARIABLE, "secret")
    with listening() as port, socket.create_connection(("127.0.0.1", port), 20) as sock:
        sock.sendall(len(greeting).to_bytes(4, "big") + bytes(4) + greeting)
        with sock.makefile("rb") as answer:
            said = answer.read()
        assert b"the token is another one" in said or greeting[0:1] == b"["


def test_a_crowd_that_shows_no_token_keeps_nobody_out(monkeypatch):
    monkeypatch.setenv(agent.TOKEN_VARIABLE, "secret")
    with contextlib.ExitStack() as crowd:
        port = crowd.enter_context(listening(descriptors=60))
        with Agent.connect("127.0.0.1", port) as inside:
            socks = [
                crowd.enter_context(socket.create_connection(("127.0.0.1", port), 20))
                for _ in range(100)
            ]
            while socks[0].recv(4096):  # the oldest are sent away
                pass
            with Agent.connect("127.0.0.1", port) as later:
                assert later.about["pid"] == inside.about["pid"]
            assert inside.socket().getsockname() == ("0.0.0.0", 0)


def test_an_answer_that_is_too_long_is_an_error(monkeypatch):
    monkeypatch.setattr(agent, "DATA_BYTES_MAX", 1000)
    sent: list[bytes] = []
    session = agent.Session(sent.append, True, None)
    session.handle({"id": 5, "op": "service", "args": ["x" * 300, "127.0.0.1"]}, b"")
    monkeypatch.setattr(session, "do_interfaces", lambda: {b"no": 1})
    session.handle({"id": 6, "op": "interfaces"}, b"")
    monkeypatch.setattr(agent, "JSON_BYTES_MAX", 200)
    monkeypatch.setattr(session, "do_interfaces", lambda: "x" * 300)
    session.handle({"id": 7, "op": "interfaces"}, b"")
    told = [agent.read_message(io.BytesIO(one), 1000)[0] for one in sent]
    assert [(one["id"], one["error"][0]) for one in told] == [
        (5, "ValueError"),
        (6, "TypeError"),
        (7, "ValueError"),
    ]
    session.end()


def test_the_token_may_be_in_the_environment_and_commands_do_not_see_it(monkeypatch):
    monkeypatch.setenv(agent.TOKEN_VARIABLE, "secret")
    with listening("--allow-run") as port, Agent.connect("127.0.0.1", port) as remote:
        assert agent.TOKEN_VARIABLE not in remote.run(["env"]).stdout


def test_what_a_session_opened_ends_with_it(monkeypatch):
    monkeypatch.setenv(agent.TOKEN_VARIABLE, "secret")
    with listening() as port:
        remote = Agent.connect("127.0.0.1", port)
        echo = remote.service("echo", "127.0.0.1")
        with socket.create_connection(("127.0.0.1", echo), 20) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            remote.close()
            remote.close()
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        with pytest.raises(AgentError, match="it is closed"):
            remote.socket()


def test_an_agent_that_dies_takes_nobody_with_it():
    remote = Agent.local()
    sock = remote.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    failures = []

    def wait():
        try:
            sock.accept()
        except AgentError as error:
            failures.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    os.kill(remote.about["pid"], 9)
    thread.join(20)
    assert failures == ["an agent in this namespace: it has ended"]
    with pytest.raises(AgentError, match="it has ended"):
        remote.socket()
    sock.close()
    remote.close()


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(AgentError, match=r"no agent at tcp://127.0.0.1:\d+: .*refused"):
            Agent.connect("127.0.0.1", port)
    with pytest.raises(
        AgentError, match=r"machnet agent: .*No such file or directory: '/run/netns/there-is-none'"
    ):
        Agent.local("there-is-none")


def test_over_ssh_the_source_goes_along(tmp_path, monkeypatch):
    """With a program in ssh's place that runs what it is told, as sshd would, in a shell."""
    fake = tmp_path / "fake-ssh"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\ncd /; exec sh -c "$3"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("MACHNET_SSH", str(fake))
    with Agent.ssh("me@there", 2222, sys.executable) as remote:
        assert remote.about["run"]
        assert remote.run(["pwd"]).stdout == "/\n"
    with pytest.raises(AgentError, match=r"ssh://there: it has ended: .*no-python.*not found"):
        Agent.ssh("there", python="no-python")
    monkeypatch.setenv("MACHNET_SSH", "/there/is/no/ssh")
    with pytest.raises(AgentError, match="No such file"):
        Agent.ssh("there")


WRONG = [
    ([], "give either --listen or --stdio"),
    (["--listen", "here", "--stdio"], "give either --listen or --stdio"),
    (["--listen", "7777"], "--listen '7777': not of the form ADDRESS:PORT"),
    (["--listen", "127.0.0.1:77777"], "not of the form ADDRESS:PORT"),
    (["--listen", "127.0.0.1:0"], "who may connect?"),
]


@pytest.mark.parametrize(("words", "text"), WRONG, ids=lambda part: " ".join(part)[:30])
def test_a_wrong_command_line(monkeypatch, capsys, words, text):
    monkeypatch.delenv(agent.TOKEN_VARIABLE, raising=False)
    with pytest.raises(SystemExit):
        agent.main(words)
    assert text in capsys.readouterr().err
