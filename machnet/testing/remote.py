# SPDX-License-Identifier: MIT
"""The near side of an agent (`machnet.testing.agent`): kernel sockets of another host.

`Agent.connect` speaks with one that is running, `Agent.ssh` starts one over ssh, and `Agent.local` one
on this machine, in a network namespace if need be. All three end with the process that made them.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

from machnet.testing import agent
from machnet.testing.remotefile import RemoteFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

__all__ = ["Agent", "AgentError", "RemoteSocket"]

_CONNECT_TIMEOUT_S = 20.0
_END_TIMEOUT_S = 5.0
_GREETING_BYTES_MAX = 1 << 16
_ERRORS: dict[str, Callable[[str], BaseException]] = {
    "TimeoutError": TimeoutError,
    "ValueError": ValueError,
    "TypeError": TypeError,
    "OverflowError": OverflowError,
}


_T = TypeVar("_T")


class AgentError(ConnectionError):
    """There is no agent, or none any more; the text says which one and why."""


class _Answer:
    """What somebody waits for."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.value: dict[str, Any] | None = None
        self.data = b""


class Agent:
    """A conversation with an agent. Its methods may be called from any thread.

    Attributes:
        name: For messages.
        about: What it says of its host: ``host``, ``system``, ``python``, ``pid``, ``root``, ``run``
            (commands are permitted) and ``address``.
    """

    def __init__(
        self,
        name: str,
        stream: IO[bytes],
        write: Callable[[bytes], Any],
        token: str | None,
        end: Callable[[], str],
    ) -> None:
        self.name = name
        self._stream, self._write, self._end = stream, write, end
        self._lock = threading.Lock()
        # Of its own: while a long request is on its way, answers must be taken in, or nothing moves.
        self._write_lock = threading.Lock()
        self._waiting: dict[int, _Answer] = {}
        self._last = 0
        self._lost: str | None = None
        try:
            self.about = self._greet(token)
        except BaseException:
            end()
            raise
        self._reader = threading.Thread(target=self._read, name=f"agent {name}", daemon=True)
        self._reader.start()

    # ---- how one gets there ----------------------------------------------------------------------

    @classmethod
    def connect(cls, host: str, port: int, token: str | None = None) -> Agent:
        """Speak with an agent that listens.

        Args:
            host: Where it is.
            port: The one it was told.
            token: The secret that it was given; None: from the environment (MACHNET_AGENT_TOKEN).

        Raises:
            AgentError: Nobody is there, or somebody else.
            PermissionError: It has another token.
        """
        name = f"tcp://{host}:{port}"
        try:
            sock = socket.create_connection((host, port), _CONNECT_TIMEOUT_S)
        except OSError as error:
            raise AgentError(
                f"no agent at {name}: {error}; `python -m machnet.testing.agent --listen "
                f"ADDRESS:{port}` starts one there"
            ) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        stream = sock.makefile("rb")

        def end() -> str:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            return ""

        token = os.environ.get(agent.TOKEN_VARIABLE) if token is None else token
        # Bytes that come one by one keep a socket from timing out.
        limit = threading.Timer(_CONNECT_TIMEOUT_S, end)
        limit.daemon = True
        limit.start()
        try:
            made = cls(name, stream, sock.sendall, token, end)
        finally:
            limit.cancel()
        sock.settimeout(None)
        return made

    @classmethod
    def ssh(cls, target: str, port: int | None = None, python: str = "python3") -> Agent:
        """Start an agent on a host that ssh reaches without a question; nothing is installed there.

        Args:
            target: ``[user@]host``, as for ssh, whose configuration is in force.
            port: Of its sshd; None: what ssh's configuration says.
            python: The interpreter there, 3.8 or later.

        Raises:
            AgentError: ssh or Python failed there; the text has what they said.
        """
        source = Path(agent.__file__).read_bytes()
        load = f'import sys; exec(compile(sys.stdin.buffer.read({len(source)}), "agent", "exec"))'
        # MACHNET_SSH as GIT_SSH_COMMAND is for git: another program, or another configuration.
        words = shlex.split(os.environ.get("MACHNET_SSH", "ssh"))
        words += ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-T"]
        words += [] if port is None else ["-p", str(port)]
        words += ["--", target, shlex.join([python, "-c", load, "--stdio"])]
        return cls._spawn(f"ssh://{target}", words, source)

    @classmethod
    def local(cls, netns: str | None = None) -> Agent:
        """Start an agent on this machine.

        Args:
            netns: The network namespace to enter, a name or a path; None: this process's own.

        Raises:
            AgentError: It did not start.
        """
        words = [sys.executable, "-I", "-S", agent.__file__, "--stdio"]
        if netns is None:
            return cls._spawn("an agent in this namespace", words)
        return cls._spawn(f"an agent in {netns}", [*words, "--netns", netns])

    @classmethod
    def _spawn(cls, name: str, words: list[str], source: bytes = b"") -> Agent:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # the terminal's Ctrl-C is for the test
            )
        except OSError as error:
            raise AgentError(f"no {name}: {words[0]}: {error}") from error
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        said: list[bytes] = []
        listener = threading.Thread(target=lambda: said.append(stderr.read()), daemon=True)
        listener.start()

        def write(data: bytes) -> None:
            stdin.write(data)
            stdin.flush()

        def end() -> str:
            with contextlib.suppress(OSError):
                stdin.close()
            try:
                process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            listener.join(_END_TIMEOUT_S)
            stdout.close()
            stderr.close()
            return b"".join(said).decode(errors="replace").strip()[-2000:]

        with contextlib.suppress(BrokenPipeError):
            write(source)
        return cls(name, stdout, write, None, end)

    def _greet(self, token: str | None) -> dict[str, Any]:
        try:
            hello = self._hear()
            if hello.get("agent") != agent.VERSION:
                self._fail(f"it is no agent of version {agent.VERSION}: {str(hello)[:80]}")
            if hello.get("auth") and not token:
                self._fail(
                    f"it wants a token: tcp://TOKEN@HOST:PORT, or {agent.TOKEN_VARIABLE} in the "
                    "environment"
                )
            proof = agent.prove(token or "", str(hello.get("nonce")))
            self._write(agent.pack_message({"proof": proof}))
            first = self._hear()
        except (OSError, agent.ProtocolError) as error:
            if isinstance(error, AgentError):
                raise
            self._fail(str(error))
        if "error" in first:
            raise PermissionError(errno.EACCES, f"{self.name}: {_error(self, first['error'])}")
        about = first.get("ok")
        if not isinstance(about, dict):
            self._fail(f"it says nothing about itself: {str(first)[:80]}")
        return about

    def _hear(self) -> dict[str, Any]:
        message = agent.read_message(self._stream, _GREETING_BYTES_MAX, 0)
        if message is None:
            self._fail("it has ended")
        return message[0]

    def _fail(self, why: str) -> NoReturn:
        said = self._end()
        raise AgentError(f"{self.name}: {why}{': ' if said else ''}{said}")

    # ---- the conversation ------------------------------------------------------------------------

    def _read(self) -> None:
        why = "it has ended"
        try:
            while (message := agent.read_message(self._stream)) is not None:
                number = message[0].get("id")
                if type(number) is not int:
                    raise agent.ProtocolError(f"an answer to nothing: {str(message[0])[:80]}")
                with self._lock:
                    answer = self._waiting.pop(number, None)
                if answer is not None:
                    answer.value, answer.data = message
                    answer.event.set()
        except Exception as error:  # noqa: BLE001 (whoever waits must hear of it)
            why = str(error) or type(error).__name__
        with self._lock:
            self._lost = self._lost or why
            waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.event.set()

    def ask(self, op: str, *args: Any, data: bytes = b"") -> tuple[Any, bytes]:
        """Have the agent do something: the value and the bytes of its answer.

        Raises:
            AgentError: It is gone.
            OSError: What it did failed there; likewise TimeoutError, ValueError, TypeError.
        """
        answer = _Answer()
        with self._lock:
            if self._lost is not None:
                raise AgentError(f"{self.name}: {self._lost}")
            self._last += 1
            number = self._last
        message = agent.pack_message({"id": number, "op": op, "args": args}, data)
        with self._lock:
            if self._lost is not None:
                raise AgentError(f"{self.name}: {self._lost}")
            self._waiting[number] = answer
        try:
            with self._write_lock:
                self._write(message)
        except (OSError, ValueError) as error:
            with self._lock:
                self._waiting.pop(number, None)
                self._lost = str(error)
            raise AgentError(f"{self.name}: {error}") from error
        answer.event.wait()
        if answer.value is None:
            raise AgentError(f"{self.name}: {self._lost}")
        if "error" in answer.value:
            raise _error(self, answer.value["error"])
        if "ok" not in answer.value:
            raise AgentError(f"{self.name}: no answer to {op}: {str(answer.value)[:80]}")
        return answer.value["ok"], answer.data

    def made(self, op: str, value: Any, convert: Callable[[Any], _T]) -> _T:
        """What an answer's value means.

        Raises:
            AgentError: Nothing: it is of another form.
        """
        try:
            return convert(value)
        except (TypeError, ValueError, LookupError, OverflowError, AttributeError):
            raise AgentError(f"{self.name}: no answer to {op}: {str(value)[:80]}") from None

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> RemoteSocket:
        """A new kernel socket of the agent's host."""
        answer, _ = self.ask("socket", int(family), int(kind), protocol)
        handle = self.made("socket", answer, int)
        return RemoteSocket(self, handle, int(family), int(kind), protocol)

    def run(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        timeout: float | None = 30.0,
        check: bool = True,
        input: str | bytes | None = None,  # noqa: A002 (subprocess.run's name)
        text: bool | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command there to its end, as `machnet.sim.KernelHost.run` does.

        Args:
            command: Program and arguments.
            timeout: Seconds until it is killed; None: never.
            check: Raise if its exit status is not 0.
            input: What it reads.
            text: Its output is text; None: unless the input is bytes.
            env: Variables to add to the environment there.

        Raises:
            PermissionError: The agent may not.
            machnet.sim.kernel_host.CommandError: It ended with another status than 0.
            TimeoutError: It took too long.
        """
        from machnet.sim.kernel_host import CommandError

        words = [os.fspath(word) for word in command]
        data = input.encode() if isinstance(input, str) else input or b""
        variables = None if env is None else dict(env)
        answer, both = self.ask("run", words, timeout, variables, data=data)
        status, out_bytes = self.made("run", answer, lambda pair: (int(pair[0]), int(pair[1])))
        out: Any = both[:out_bytes]
        err: Any = both[out_bytes:]
        if text if text is not None else not isinstance(input, bytes):
            out, err = out.decode(errors="replace"), err.decode(errors="replace")
        if check and status != 0:
            raise CommandError(status, words, out, err)
        return subprocess.CompletedProcess(words, status, out, err)

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Read a setting under ``net.`` there; with ``value``, after setting it until `reset`.

        Raises:
            PermissionError: The agent may not.
            OSError: There is no such setting, or it refuses the value.
        """
        return str(self.ask("sysctl", name, None if value is None else str(value))[0])

    def service(self, name: str, ip: str) -> int:
        """Start ``echo``, ``discard`` or ``chargen`` there, until `reset`; its TCP port."""
        return self.made("service", self.ask("service", name, ip)[0], int)

    def give_address(self, interface: str, ip: str, prefix: int) -> None:
        """Give an interface that has no address one, until the agent ends.

        Raises:
            OSError: There is no such interface, it has another address, or it takes root.
        """
        self.ask("address", interface, ip, prefix)

    def interfaces(self) -> list[dict[str, Any]]:
        """The interfaces there: ``name``, ``index``, ``up``, ``mac``, ``mtu``, ``ip``, ``prefix``."""
        return self.made(
            "interfaces", self.ask("interfaces")[0], lambda all_: [dict(e) for e in all_]
        )

    @property
    def lost(self) -> str | None:
        """Why there is nobody to speak with any more; None: there is."""
        return self._lost

    def reset(self) -> None:
        """Close all sockets there, end commands and services, undo settings."""
        self.ask("reset")

    def close(self) -> None:
        """End the conversation; again: nothing."""
        with self._lock:
            if self._lost == "it is closed":
                return
            self._lost = "it is closed"
        self._end()
        self._reader.join(_END_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Agent {self.name}>"


def _error(from_: Agent, described: Any) -> BaseException:
    """The error that crossed as type, errno and text."""
    if not isinstance(described, list) or len(described) != 3:
        return AgentError(f"{from_.name}: it failed with {str(described)[:80]}")
    kind, number, text = described
    if type(number) is int:
        return OSError(number, str(text))  # which makes it a ConnectionResetError and so on
    made = _ERRORS.get(str(kind))
    return made(str(text)) if made is not None else OSError(f"{kind}: {text}")


class RemoteSocket:
    """A kernel socket of an agent's host, with the methods and errors of `socket.socket`.

    It has no descriptor here: `select` and `poll` can't watch it; waiting is done by blocking calls,
    each of which may have a thread of its own. Stream sockets have SO_REUSEADDR set.

    Attributes:
        family: Its address family.
        type: Its kind.
        proto: Its protocol.
    """

    def __init__(self, agent_: Agent, handle: int, family: int, kind: int, protocol: int) -> None:
        self._agent, self._handle = agent_, handle
        self.family, self.type, self.proto = family, kind, protocol
        self._timeout: float | None = None
        self._closed = False

    def _ask(self, op: str, *args: Any, data: bytes = b"") -> tuple[Any, bytes]:
        if self._closed:
            raise OSError(errno.EBADF, "the socket is closed")
        return self._agent.ask(op, self._handle, *args, data=data)

    def _value(self, op: str, convert: Callable[[Any], _T], *args: Any, data: bytes = b"") -> _T:
        return self._agent.made(op, self._ask(op, *args, data=data)[0], convert)

    def bind(self, address: Any) -> None:
        """As `socket.socket.bind`."""
        self._ask("bind", address)

    def listen(self, backlog: int = 128) -> None:
        """As `socket.socket.listen`."""
        self._ask("listen", backlog)

    def accept(self) -> tuple[RemoteSocket, Any]:
        """As `socket.socket.accept`."""
        handle, source = self._value("accept", lambda pair: (int(pair[0]), tuple(pair[1])))
        return RemoteSocket(self._agent, handle, self.family, self.type, self.proto), source

    def connect(self, address: Any) -> None:
        """As `socket.socket.connect`."""
        self._ask("connect", address)

    def connect_ex(self, address: Any) -> int:
        """As `socket.socket.connect_ex`."""
        return self._value("connect_ex", int, address)

    def send(self, data: Any, flags: int = 0) -> int:
        """As `socket.socket.send`; of more than 64 MiB the first 64."""
        return self._value("send", int, flags, data=bytes(data[: agent.DATA_BYTES_MAX]))

    def sendall(self, data: Any, flags: int = 0) -> None:
        """As `socket.socket.sendall`."""
        view = memoryview(data).cast("B")
        for start in range(0, max(len(view), 1), agent.DATA_BYTES_MAX):
            part = bytes(view[start : start + agent.DATA_BYTES_MAX])
            self._ask("sendall", flags, data=part)

    def sendto(self, data: Any, *args: Any) -> int:
        """As `socket.socket.sendto`."""
        flags, address = args if len(args) == 2 else (0, args[0])
        return self._value("sendto", int, flags, address, data=bytes(data))

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As `socket.socket.recv`; 64 MiB at most at once."""
        return self._fits(size, self._ask("recv", min(size, agent.DATA_BYTES_MAX), flags)[1])

    def _fits(self, size: int, data: bytes) -> bytes:
        if len(data) > size:
            raise AgentError(f"{self._agent.name}: {len(data)} bytes instead of {size} at most")
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """As `socket.socket.recv_into`."""
        view = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data)

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, Any]:
        """As `socket.socket.recvfrom`."""
        source, data = self._ask("recvfrom", min(size, agent.DATA_BYTES_MAX), flags)
        return self._fits(size, data), tuple(source) if isinstance(source, list) else source

    def shutdown(self, how: int) -> None:
        """As `socket.socket.shutdown`."""
        self._ask("shutdown", int(how))

    def settimeout(self, seconds: float | None) -> None:
        """As `socket.socket.settimeout`: it counts there."""
        self._ask("settimeout", seconds)
        self._timeout = seconds

    def gettimeout(self) -> float | None:
        """As `socket.socket.gettimeout`."""
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        """As `socket.socket.setblocking`."""
        self.settimeout(None if flag else 0.0)

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """As `socket.socket.setsockopt`."""
        if isinstance(value, int):
            self._ask("setsockopt", int(level), int(option), int(value))
        else:
            self._ask("setsockopt", int(level), int(option), None, data=bytes(value))

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        """As `socket.socket.getsockopt`."""
        value, data = self._ask("getsockopt", int(level), int(option), *([size] if size else []))
        return data if size else value

    def getsockname(self) -> Any:
        """As `socket.socket.getsockname`."""
        return self._value("getsockname", tuple)

    def getpeername(self) -> Any:
        """As `socket.socket.getpeername`."""
        return self._value("getpeername", tuple)

    def fileno(self) -> NoReturn:
        """There is none.

        Raises:
            io.UnsupportedOperation: Always: the socket is on another host.
        """
        raise io.UnsupportedOperation(
            f"a socket of {self._agent.name} has no descriptor here: select() and poll() can't watch "
            "it; use settimeout() and blocking calls"
        )

    def makefile(self, mode: str = "r", buffering: int | None = None, **options: Any) -> Any:
        """As `socket.socket.makefile`; closing the file leaves the socket open."""
        raw = RemoteFile(self, mode)
        if "b" in mode and buffering == 0:
            return raw
        size = io.DEFAULT_BUFFER_SIZE if buffering in {None, -1} else buffering
        buffered: Any
        if raw.readable() and raw.writable():
            buffered = io.BufferedRWPair(raw, raw, size or io.DEFAULT_BUFFER_SIZE)
        elif raw.readable():
            buffered = io.BufferedReader(raw, size or io.DEFAULT_BUFFER_SIZE)
        else:
            buffered = io.BufferedWriter(raw, size or io.DEFAULT_BUFFER_SIZE)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, **options)

    def close(self) -> None:
        """As `socket.socket.close`."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(AgentError):
                self._agent.ask("close", self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RemoteSocket {self._handle} of {self._agent.name}{' closed' * self._closed}>"
