# SPDX-License-Identifier: MIT
"""The agent: kernel sockets of the host at the other end of a NIC, for tests that run elsewhere.

This file imports the standard library only, so that it also runs on a host without machnet: over
ssh its source is sent along (`machnet.testing.remote`), or it is started there by hand::

    python -m machnet.testing.agent --listen 10.78.0.1:7777 --address 10.77.0.1

A message is two lengths (32 bits, big endian), a JSON object and raw bytes. The agent begins with
``{"agent": VERSION, "nonce": HEX, "auth": BOOL}``; who connects answers ``{"proof": HEX}``, the
HMAC-SHA256 of the nonce with the token. Requests are ``{"id": N, "op": NAME, "args": [...]}``,
answers ``{"id": N, "ok": VALUE}`` or ``{"id": N, "error": [TYPE, ERRNO, TEXT]}``, in any order. What a
connection opened is closed with it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hmac
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = 1
#: Longest JSON object, and longest bytes, of a message.
JSON_BYTES_MAX = 1 << 20
DATA_BYTES_MAX = 64 << 20
TOKEN_VARIABLE = "MACHNET_AGENT_TOKEN"  # noqa: S105 (the name of one)
_AUTH_TIMEOUT_S = 10.0
_WAITING_MAX = 32
_CALLS_MAX = _TEXT_MAX = 1000
_GREETING_BYTES_MAX, _CHUNK_BYTES = 4096, 65536
_CLONE_NEWNET = 0x40000000

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCGIFADDR, _SIOCSIFADDR, _SIOCGIFMTU = 0x8915, 0x8916, 0x8921
_SIOCGIFNETMASK, _SIOCSIFNETMASK, _SIOCGIFHWADDR = 0x891B, 0x891C, 0x8927
_IFF_UP = 0x1

#: Methods of a socket that can wait, and those that can't. ``close`` is apart.
BLOCKING = {"accept", "connect", "connect_ex", "recv", "recvfrom", "send", "sendall", "sendto"}
QUICK = {"bind", "listen", "shutdown", "settimeout", "setsockopt"}
QUICK |= {"getsockopt", "getsockname", "getpeername"}
SERVICES = ("echo", "discard", "chargen")


class ProtocolError(Exception):
    """The other side does not speak this protocol."""


def read_message(
    stream: IO[bytes], json_max: int = JSON_BYTES_MAX, data_max: int = DATA_BYTES_MAX
) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None at the end of the stream.

    Raises:
        ProtocolError: It is none.
    """
    head = stream.read(8)
    if len(head) < 8:
        return None
    json_bytes, data_bytes = struct.unpack(">II", head)
    if json_bytes > json_max or data_bytes > data_max:
        raise ProtocolError(f"a message of {json_bytes} and {data_bytes} bytes")
    text, data = stream.read(json_bytes), stream.read(data_bytes)
    if len(text) < json_bytes or len(data) < data_bytes:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError("a message is a JSON object")
    return value, data


def pack_message(value: dict[str, Any], data: bytes = b"") -> bytes:
    """A message as it is sent.

    Raises:
        ValueError: It is too long.
    """
    text = json.dumps(value).encode()
    if len(text) > JSON_BYTES_MAX or len(data) > DATA_BYTES_MAX:
        raise ValueError(f"{len(data)} bytes at once: the agent takes {DATA_BYTES_MAX} at most")
    return struct.pack(">II", len(text), len(data)) + text + data


def prove(token: str, nonce: str) -> str:
    """What shows that one knows the token."""
    return hmac.new(token.encode(), nonce.encode(), "sha256").hexdigest()


def _ifreq(sock: socket.socket, name: str, command: int, data: bytes = b"") -> bytes:
    return fcntl.ioctl(sock, command, struct.pack("16s24s", name.encode(), data))[16:]


def interfaces() -> list[dict[str, Any]]:
    """All interfaces: name, ip and prefix (None without an address), mac, mtu, up."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for index, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                flags = struct.unpack_from("H", _ifreq(sock, name, _SIOCGIFFLAGS))[0]
                entry: dict[str, Any] = {
                    "name": name,
                    "index": index,
                    "up": bool(flags & _IFF_UP),
                    "mac": _ifreq(sock, name, _SIOCGIFHWADDR)[2:8].hex(),
                    "mtu": struct.unpack_from("i", _ifreq(sock, name, _SIOCGIFMTU))[0],
                    "ip": None,
                    "prefix": None,
                }
                found.append(entry)
                address = _ifreq(sock, name, _SIOCGIFADDR)[4:8]
                mask = _ifreq(sock, name, _SIOCGIFNETMASK)[4:8]
                entry["ip"] = socket.inet_ntoa(address)
                entry["prefix"] = bin(int.from_bytes(mask, "big")).count("1")  # noqa: FURB161 (Python 3.8)
    return found


def _set_address(name: str, ip: str, prefix: int) -> None:
    family = struct.pack("HH", socket.AF_INET, 0)
    mask = ((1 << 32) - (1 << (32 - prefix))).to_bytes(4, "big")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _ifreq(sock, name, _SIOCSIFADDR, family + socket.inet_aton(ip))
        if ip != "0.0.0.0":  # noqa: S104 (that one takes the address away)
            _ifreq(sock, name, _SIOCSIFNETMASK, family + mask)
            flags = struct.unpack_from("H", _ifreq(sock, name, _SIOCGIFFLAGS))[0]
            _ifreq(sock, name, _SIOCSIFFLAGS, struct.pack("H", flags | _IFF_UP))


class Workers:
    """Threads for what can wait: as many as wait at the same time."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._threads = 0

    def submit(self, work: Callable[[], None]) -> bool:
        """Have it done by a thread that does nothing else; False: there are too many of them."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._threads == _CALLS_MAX:
                return False
            else:
                self._threads += 1
                threading.Thread(target=self._run, daemon=True).start()
        self._work.put(work)
        return True

    def _run(self) -> None:
        while True:
            work = self._work.get()
            if work is None:
                return
            work()
            with self._lock:
                self._idle += 1

    def stop(self) -> None:
        """Let the threads end."""
        for _ in range(self._threads):
            self._work.put(None)


class Session:
    """What one connection of a test opens.

    Args:
        write: Sends bytes to the other side.
        allow_run: Commands may be run and settings changed.
        address: What the tests are told of the address of this host; None: they look themselves.
    """

    def __init__(self, write: Callable[[bytes], Any], allow_run: bool, address: str | None) -> None:
        self._write = write
        self._write_lock = threading.Lock()
        self._allow_run = allow_run
        self._address = address
        self._workers = Workers()
        self._lock = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}
        self._last = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._settings: dict[str, str] = {}
        self._addresses: list[str] = []

    def about(self) -> dict[str, Any]:
        """What the other side is told first."""
        system = os.uname()
        return {
            "host": system.nodename,
            "system": f"{system.sysname} {system.release}",
            "python": sys.version.split()[0],
            "pid": os.getpid(),
            "root": os.geteuid() == 0,
            "run": self._allow_run,
            "address": self._address,
        }

    def answer(self, value: dict[str, Any], data: bytes = b"") -> None:
        """Send a message; when nobody is there any more, the reader finds that out."""
        message = pack_message(value, data)
        with self._write_lock, contextlib.suppress(OSError, ValueError):
            self._write(message)

    def handle(self, request: dict[str, Any], data: bytes) -> None:
        """Do what is asked for, here or, if it can wait, in a thread; else a ProtocolError."""
        number, op, args = request.get("id"), request.get("op"), request.get("args", [])
        if not isinstance(op, str) or not isinstance(args, list) or type(number) is not int:
            raise ProtocolError("a request has a number, an operation and a list of arguments")

        def work() -> None:
            try:
                value, out = self._do(op, args, data)
                self.answer({"id": number, "ok": value}, out)
            except Exception as error:  # noqa: BLE001 (it is the other side's)
                self.answer({"id": number, "error": _describe(error)})

        if op not in BLOCKING and op != "run":
            work()
        elif not self._workers.submit(work):
            self.answer({"id": number, "error": ["OSError", 11, f"{_CALLS_MAX} calls wait"]})

    def _do(self, op: str, args: list[Any], data: bytes) -> tuple[Any, bytes]:
        if op in BLOCKING or op in QUICK:
            return self._call(self._find(args[0]), op, args[1:], data)
        method = getattr(self, "do_" + op, None)
        if method is None:
            raise ValueError(f"the agent has no operation {op!r}")
        result = method(*args, data) if op == "run" else method(*args)
        return result if op == "run" else (result, b"")

    def _add(self, sock: socket.socket) -> int:
        with self._lock:
            self._last += 1
            self._sockets[self._last] = sock
            return self._last

    def _find(self, handle: int) -> socket.socket:
        sock = self._sockets.get(handle)
        if sock is None:
            raise OSError(9, "the socket is closed")
        return sock

    def do_socket(self, family: int, kind: int, protocol: int) -> int:
        """A new socket. Its port can be used again at once: the next test is another program."""
        sock = socket.socket(family, kind, protocol)
        if sock.family == socket.AF_INET and sock.type == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return self._add(sock)

    def do_close(self, handle: int) -> None:
        """Close a socket."""
        with self._lock:
            sock = self._sockets.pop(handle, None)
        if sock is not None:
            sock.close()

    def _call(self, sock: Any, op: str, args: list[Any], data: bytes) -> tuple[Any, bytes]:
        if op in {"send", "sendall"}:
            return getattr(sock, op)(data, *args), b""
        if op == "sendto":
            return sock.sendto(data, args[0], _address(args[1])), b""
        if op in {"recv", "recvfrom"} and args[0] > DATA_BYTES_MAX:
            raise ValueError(f"{args[0]} bytes at once: the agent gives {DATA_BYTES_MAX} at most")
        if op == "recv":
            return None, sock.recv(*args)
        if op == "recvfrom":
            received, source = sock.recvfrom(*args)
            return source, received
        if op == "accept":
            accepted, source = sock.accept()
            return [self._add(accepted), source], b""
        if op in {"bind", "connect", "connect_ex"}:
            return getattr(sock, op)(_address(args[0])), b""
        if op == "setsockopt":
            level, option, value = args
            sock.setsockopt(level, option, data if value is None else value)
            return None, b""
        value = getattr(sock, op)(*args)
        return (None, value) if isinstance(value, bytes) else (value, b"")

    def do_service(self, name: str, ip: str) -> int:
        """Start a service and return its port: ``echo``, ``discard`` or ``chargen``."""
        listener = socket.socket()
        self._add(listener)
        return start_service(name, listener, ip, self._add)

    def _permit(self, what: str) -> None:
        if not self._allow_run:
            raise PermissionError(1, f"{what}: this agent was started without --allow-run")

    def do_run(
        self, command: list[str], timeout: float | None, more: dict[str, str] | None, data: bytes
    ) -> tuple[Any, bytes]:
        """Run a command to its end: its status and how much of the bytes is standard output."""
        self._permit("running commands")
        env = {**os.environ, **(more or {})}
        pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(command, env=env, start_new_session=True, **pipes)
        with self._lock:
            self._processes.append(process)
        try:
            out, err = process.communicate(data, timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.communicate()
            raise TimeoutError(f"the command took longer than {timeout} s") from None
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._processes.remove(process)
        return [process.returncode, len(out)], out + err

    def do_sysctl(self, name: str, value: str | None) -> str:
        """Read a setting under ``net.``, after writing it if there is a value, until `do_reset`."""
        parts = name.split("/") if "/" in name else name.split(".")
        if parts[0] != "net" or ".." in parts or "" in parts:
            raise ValueError(f"{name!r} is not under net.: other settings are no test's affair")
        path = "/proc/sys/" + "/".join(parts)
        if value is not None:
            self._permit("changing settings")
            self._settings.setdefault(path, Path(path).read_text().strip())
            Path(path).write_text(value)
        return Path(path).read_text().strip()

    def do_address(self, name: str, ip: str, prefix: int) -> None:
        """Give an interface that has none an address, until the session ends, and bring it up."""
        entry = next((entry for entry in interfaces() if entry["name"] == name), None)
        if entry is None:
            raise OSError(19, f"there is no interface {name!r}")
        if entry["ip"] is None:
            _set_address(name, ip, prefix)
            self._addresses.append(name)
        elif entry["ip"] != ip:
            raise OSError(17, f"{name} has the address {entry['ip']}/{entry['prefix']}")

    do_interfaces = staticmethod(interfaces)

    def do_reset(self) -> None:
        """Close all sockets, connections by RST; end commands and services; undo settings."""
        with self._lock:
            sockets, self._sockets = list(self._sockets.values()), {}
            processes, self._processes = self._processes, []
        for sock in sockets:
            abort(sock)
        for process in processes:
            _kill(process)
        for path, value in self._settings.items():
            with contextlib.suppress(OSError):
                Path(path).write_text(value)
        self._settings.clear()

    def end(self) -> None:
        """Let go of everything."""
        self.do_reset()
        for name in self._addresses:
            with contextlib.suppress(OSError):
                _set_address(name, "0.0.0.0", 0)  # noqa: S104
        self._workers.stop()


def abort(sock: socket.socket) -> None:
    """Close a socket by RST, also under a thread that waits in a call of it."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def _address(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _describe(error: BaseException) -> list[Any]:
    """An error as it crosses: type, errno and text."""
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and not isinstance(error, socket.gaierror):
        assert isinstance(error, OSError)
        name = "" if error.filename is None else f": {error.filename!r}"
        return ["OSError", number, ((error.strerror or str(error)) + name)[:_TEXT_MAX]]
    kind = "TimeoutError" if isinstance(error, socket.timeout) else type(error).__name__
    return [kind, None, str(error)[:_TEXT_MAX]]


def start_service(
    name: str, listener: socket.socket, ip: str, opened: Callable[[socket.socket], Any]
) -> int:
    """Serve on a fresh socket until it is shut down, and return its port; tells what it opens."""
    if name not in SERVICES:
        raise ValueError(f"there is no service {name!r}: it is {', '.join(SERVICES)}")
    serve_one = {"echo": echo, "discard": discard, "chargen": chargen}[name]
    listener.bind((ip, 0))
    listener.listen(128)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                opened(sock)
                threading.Thread(target=serve_one, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def echo(sock: socket.socket) -> None:
    """Send back what comes, to its end (RFC 862)."""
    with contextlib.suppress(OSError), sock:
        for data in iter(lambda: sock.recv(_CHUNK_BYTES), b""):
            sock.sendall(data)


def discard(sock: socket.socket) -> None:
    """Throw away what comes, to its end (RFC 863)."""
    with contextlib.suppress(OSError), sock:
        while sock.recv(_CHUNK_BYTES):
            pass


def chargen(sock: socket.socket) -> None:
    """Send lines of 72 characters until nobody takes them (RFC 864)."""
    ring = bytes(range(0x20, 0x7F)) * 2
    lines = b"".join(ring[i : i + 72] + b"\r\n" for i in range(95))
    with contextlib.suppress(OSError), sock:
        while True:
            sock.sendall(lines)


def serve(
    stream: IO[bytes],
    write: Callable[[bytes], Any],
    given: argparse.Namespace,
    trusted: Callable[[], Any] = lambda: None,
) -> None:
    """Speak with one test until it goes away; ``trusted`` is called when it has shown its token."""
    token = given.token
    nonce = os.urandom(32).hex()
    write(pack_message({"agent": VERSION, "nonce": nonce, "auth": token is not None}))
    first = read_message(stream, _GREETING_BYTES_MAX, 0)
    if first is None:
        return
    proof = str(first[0].get("proof")).encode(errors="replace")
    if token is not None and not hmac.compare_digest(proof, prove(token, nonce).encode()):
        write(pack_message({"error": ["PermissionError", 13, "the token is another one"]}))
        return
    trusted()
    session = Session(write, given.allow_run, given.address)
    try:
        session.answer({"ok": session.about()})
        for message in iter(lambda: read_message(stream), None):
            session.handle(*message)
    finally:
        session.end()


def enter(netns: str) -> None:
    """Enter a network namespace: a name of /run/netns, or a path.

    Raises:
        OSError: There is none, or it may not be entered.
    """
    fd = os.open(netns if "/" in netns else "/run/netns/" + netns, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)}: {netns!r} can't be entered")
    finally:
        os.close(fd)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m machnet.testing.agent",
        description="Kernel sockets of this host, for tests that run elsewhere.",
    )
    add = parser.add_argument
    add("--listen", metavar="ADDRESS:PORT", help="where tests connect to")
    add("--stdio", action="store_true", help="speak over stdin and stdout instead")
    add("--address", metavar="IP", help="this host's address on the network under test")
    add("--netns", metavar="NAME|PATH", help="the network namespace of the sockets")
    add("--token-file", metavar="FILE", help=f"secret of the tests; else {TOKEN_VARIABLE}")
    add("--allow-run", action="store_true", help="tests may run commands and set sysctls")
    add("--end-with-stdin", action="store_true", help="end when standard input does")
    arguments = parser.parse_args(argv)
    if (arguments.listen is None) == (not arguments.stdio):
        parser.error("give either --listen or --stdio")
    arguments.token = None
    arguments.allow_run |= arguments.stdio  # by somebody who could start it
    if arguments.listen is not None:
        host, colon, port = arguments.listen.rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65535:
            parser.error(f"--listen {arguments.listen!r}: not of the form ADDRESS:PORT")
        arguments.listen = (host, int(port))
        arguments.token = os.environ.pop(TOKEN_VARIABLE, "")
        if arguments.token_file is not None:
            arguments.token = Path(arguments.token_file).read_text().strip()
        if not arguments.token:
            parser.error(f"who may connect? --token-file FILE, or {TOKEN_VARIABLE}")
    return arguments


def _serve_one(sock: socket.socket, given: argparse.Namespace) -> None:
    with contextlib.suppress(OSError, ProtocolError), sock, sock.makefile("rb") as stream:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        serve(stream, sock.sendall, given, lambda: sock.settimeout(None))


def _accept(listener: socket.socket, given: argparse.Namespace) -> None:
    """Serve who connects. Of those who have not shown the token yet the oldest go when they are many."""
    waiting: list[socket.socket] = []
    while True:
        sock = None
        with contextlib.suppress(OSError):  # no descriptor is left, or it went away again
            sock = listener.accept()[0]
        waiting = [one for one in waiting if one.fileno() >= 0 and one.gettimeout() is not None]
        for old in waiting[: -_WAITING_MAX if sock else 1]:
            with contextlib.suppress(OSError):
                old.shutdown(socket.SHUT_RDWR)  # its thread then closes it
        if sock is None:
            time.sleep(0.05)
            continue
        sock.settimeout(_AUTH_TIMEOUT_S)
        waiting.append(sock)
        threading.Thread(target=_serve_one, args=(sock, given), daemon=True).start()


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def main(argv: list[str] | None = None) -> int:
    """The command; see the module."""
    arguments = _arguments(argv)
    listener = None
    try:
        if arguments.listen is not None:
            # Before the namespace is entered: tests come from outside of it.
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(arguments.listen)
            listener.listen(128)
        if arguments.netns is not None:
            enter(arguments.netns)
    except OSError as error:
        print(f"machnet agent: {error}", file=sys.stderr)
        return 1
    if listener is None:
        stream, out = sys.stdin.buffer, sys.stdout.buffer
        sys.stdout = sys.stderr

        def write(data: bytes) -> None:
            out.write(data)
            out.flush()

        serve(stream, write, arguments)
        # Threads may wait in a call of a socket.
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    host, port = listener.getsockname()
    print(f"machnet agent: listening on {host}:{port}", flush=True)
    if arguments.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        _accept(listener, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
