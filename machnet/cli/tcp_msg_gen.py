# SPDX-License-Identifier: MIT
"""``tcp_msg_gen``: sends framed messages over POSIX sockets, or answers them.

Every message is a 4-byte big-endian length and a payload, whose first 8 bytes are ``window_slot``
(unsigned, little-endian): a client numbers the slots of its window, a server sends the number back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import click

from machnet._native import ffi, lib
from machnet.cli._flags import GflagsCommand, Seconds, message_options
from machnet.cli._report import Reporter, fault_text
from machnet.cli._run import RunError, new_stats, run

TOOL = "tcp_msg_gen"
#: Connections that wait to be accepted; the kernel's net.core.somaxconn may lower it.
BACKLOG = 4096
#: ``spin_ns`` of a loop that never sleeps.
_SPIN_FOR_EVER_NS = 2**64 - 1


def _config(fd: int, settings: dict[str, Any]) -> Any:
    config = ffi.new("struct mn_tcp_config *")
    config.fd = fd
    config.msg_size = settings["msg_size"]
    config.window = settings["msg_window"]
    config.msgs_max = settings["msg_nr"] or 0
    config.verify = settings["verify"]
    busy = settings["poll"] == "busy"
    config.spin_ns = _SPIN_FOR_EVER_NS if busy else settings["spin_us"] * 1000
    return config


class Client:
    """One connected client over a POSIX socket, which stays the caller's to close.

    Raises:
        MemoryError: There is no memory for its window or buffers.
    """

    role = "client"

    def __init__(self, sock: socket.socket, settings: dict[str, Any]) -> None:
        self.stats = new_stats()
        client = lib.mn_tcp_client_new(_config(sock.fileno(), settings), self.stats)
        if client == ffi.NULL:
            raise MemoryError("no memory for the client's buffers")
        self._client = ffi.gc(client, lib.mn_tcp_client_free)
        self._warned = False

    def step(self, until_ns: int) -> bool:
        """Send and receive until ``until_ns``; ``True`` when every message is answered.

        Raises:
            RunError: The connection failed, or the server broke the protocol.
        """
        rc: int = lib.mn_tcp_client_run(self._client, until_ns, ffi.NULL)
        if rc < 0:
            raise RunError(fault_text(lib.mn_tcp_client_fault(self._client)))
        return rc == 1

    def drain(self) -> None:
        """Send nothing new."""
        lib.mn_tcp_client_drain(self._client)

    def in_flight(self) -> int:
        """Messages that were sent and not answered."""
        return int(lib.mn_tcp_client_in_flight(self._client))

    def idle(self) -> bool:
        """Never: a client that gets no answer says so each second."""
        return False

    def warnings(self) -> Iterator[str]:
        """The first wrong payload; how many there were is in the summary."""
        fault = lib.mn_tcp_client_payload_fault(self._client)
        if fault.kind != lib.MN_MSG_FAULT_NONE and not self._warned:
            self._warned = True
            yield fault_text(fault)

    def faults(self) -> int:
        """0: wrong payloads are counted in the statistics."""
        return 0


class Server:
    """A server over a listening POSIX socket, which stays the caller's to close.

    Raises:
        OSError: epoll refused the socket, or there is no memory.
    """

    role = "server"

    def __init__(self, sock: socket.socket, settings: dict[str, Any]) -> None:
        self.stats = new_stats()
        server = lib.mn_tcp_server_new(_config(sock.fileno(), settings), self.stats)
        if server == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        self._server = ffi.gc(server, lib.mn_tcp_server_free)
        self._stopped = False

    def step(self, until_ns: int) -> bool:
        """Answer until ``until_ns``; ``True`` once the server was told to stop.

        Raises:
            RunError: Waiting for events failed.
        """
        if self._stopped:
            return True
        rc: int = lib.mn_tcp_server_run(self._server, until_ns, ffi.NULL)
        if rc < 0:
            raise RunError(f"waiting for connections failed: {os.strerror(-rc)}")
        return False

    def drain(self) -> None:
        """Stop: a server has nothing of its own in flight."""
        self._stopped = True

    def in_flight(self) -> int:
        """0: the clients know what they are missing."""
        return 0

    def idle(self) -> bool:
        """Whether no client is connected."""
        return int(lib.mn_tcp_server_open_conns(self._server)) == 0

    def warnings(self) -> Iterator[str]:
        """Each fault of a peer that there was room to keep, and the number of the others."""
        fault = ffi.new("struct mn_msg_fault *")
        while lib.mn_tcp_server_fault(self._server, fault):
            yield fault_text(fault)
        untold = int(lib.mn_tcp_server_untold(self._server))
        if untold > 0:
            yield f"{untold} more faults of peers within a moment"

    def faults(self) -> int:
        """Connections that were closed for what the peer did, or could not be accepted."""
        return int(lib.mn_tcp_server_faults(self._server))


def _hint(error: OSError, hints: dict[int, str]) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = hints.get(error.errno or 0)
    return f"{reason} ({hint})" if hint else reason


def _connect(settings: dict[str, Any]) -> socket.socket:
    """Return a connected socket.

    Raises:
        RunError: There is no connection; the message says why and what to look at.
    """
    local_ip, remote = settings["local_ip"], (settings["remote_ip"], settings["remote_port"])
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A server that vanishes without a word is found out within a minute and a half.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        if local_ip not in ("", "0.0.0.0"):  # noqa: S104 - the wildcard is what is not bound to
            try:
                sock.bind((local_ip, 0))
            except OSError as error:
                hints = {errno.EADDRNOTAVAIL: "no interface here has this --local_ip"}
                raise RunError(f"cannot bind to {local_ip}: {_hint(error, hints)}") from error
        sock.settimeout(settings["connect_timeout"])
        try:
            sock.connect(remote)
        except TimeoutError as error:
            waited = f"no answer within {settings['connect_timeout']:g} s"
            raise RunError(f"cannot connect to {remote[0]}:{remote[1]}: {waited}") from error
        except OSError as error:
            hints = {errno.ECONNREFUSED: "is the server running, and is --remote_port its port?"}
            reason = _hint(error, hints)
            raise RunError(f"cannot connect to {remote[0]}:{remote[1]}: {reason}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _listen(settings: dict[str, Any]) -> socket.socket:
    """Return a listening socket.

    Raises:
        RunError: The address cannot be listened on; the message says why.
    """
    address = (settings["local_ip"] or "0.0.0.0", settings["local_port"])  # noqa: S104 - the default
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        hints = {
            errno.EADDRINUSE: "another --local_port, or 0 for any free one",
            errno.EADDRNOTAVAIL: "no interface here has this --local_ip",
            errno.EACCES: "ports below 1024 need root: choose another --local_port",
        }
        reason = _hint(error, hints)
        raise RunError(f"cannot listen on {address[0]}:{address[1]}: {reason}") from error
    return sock


def _allow_many_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where even this is refused, the server still serves as many as it may.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _parameters(settings: dict[str, Any]) -> dict[str, Any]:
    """Return every setting under a name that carries its unit."""
    units = {
        "msg_size": "msg_size_bytes",
        "duration": "duration_s",
        "connect_timeout": "connect_timeout_s",
    }
    return {units.get(name, name): value for name, value in settings.items()}


def _run_client(reporter: Reporter, settings: dict[str, Any]) -> int:
    reporter.status(
        f"[CLIENT] Connecting to {settings['remote_ip']}:{settings['remote_port']}, "
        f"msg_size={settings['msg_size']}, window={settings['msg_window']}"
    )
    with _connect(settings) as sock:
        reporter.status("[CLIENT] Connected.")
        return run(Client(sock, settings), reporter, duration_s=settings["duration"])


def _run_server(reporter: Reporter, settings: dict[str, Any]) -> int:
    _allow_many_descriptors()
    reporter.status(f"[SERVER] Starting in server mode, response size {settings['msg_size']}")
    with _listen(settings) as sock:
        host, port = sock.getsockname()
        reporter.status(f"[LISTENING] [{host}:{port}]")
        return run(Server(sock, settings), reporter, duration_s=settings["duration"])


@click.command(
    cls=GflagsCommand, name=TOOL, context_settings={"help_option_names": ["-h", "--help"]}
)
@message_options(msg_size_min=8, local_ip="0.0.0.0")  # noqa: S104 - as the original has it
@click.option(
    "--connect_timeout",
    type=Seconds(),
    default=10.0,
    show_default=True,
    help="How long to wait for the connection (client).",
)
@click.pass_context
def main(ctx: click.Context, /, *, as_json: bool, **settings: Any) -> None:
    """Send framed messages over a POSIX TCP socket, or answer them.

    With --remote_ip this is a client: it keeps --msg_window messages in flight and prints rates and
    round-trip times each second. Without it this is a server for any number of clients.

    Exit status: 0 when all went well, which for a client means that every message it sent was
    answered, and rightly, also when it was ended by Ctrl-C or SIGTERM; 1 on any failure; 2 when the
    command line is wrong.
    """
    client = settings["remote_ip"] != ""
    role = "client" if client else "server"
    parameters = {**_parameters(settings), "json": as_json}
    reporter = Reporter(TOOL, role, parameters, as_json=as_json)
    try:
        code = (_run_client if client else _run_server)(reporter, settings)
    except RunError as error:
        reporter.error(str(error))
        code = 1
    except KeyboardInterrupt:
        # Only until the connection stands: from then on the run ends by itself, with a summary.
        reporter.error("interrupted")
        code = 1
    ctx.exit(code)


if __name__ == "__main__":
    main()
