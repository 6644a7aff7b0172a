# SPDX-License-Identifier: MIT
"""``tcp_msg_gen``: sends framed messages over POSIX sockets, or answers them.

Every message is a 4-byte big-endian length and a payload, whose first 8 bytes are ``window_slot``
(unsigned, little-endian): a client numbers the slots of its window, a server sends the number back.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
from typing import Any

import click

from machnet._native import ffi
from machnet.cli._endpoint import NativeClient, NativeServer, fill_config
from machnet.cli._flags import GflagsCommand, connect_timeout, message_options, parameters_of
from machnet.cli._report import Reporter, reason_text
from machnet.cli._run import RunError, finish, run

TOOL = "tcp_msg_gen"
#: Connections that wait to be accepted; the kernel's net.core.somaxconn may lower it.
BACKLOG = 4096


def _config(sock: socket.socket, settings: dict[str, Any]) -> Any:
    config = fill_config(ffi.new("struct mn_tcp_config *"), settings)
    config.fd = sock.fileno()
    return config


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
                raise RunError(f"cannot bind to {local_ip}: {reason_text(error, hints)}") from error
        sock.settimeout(settings["connect_timeout"])
        try:
            sock.connect(remote)
        except TimeoutError as error:
            waited = f"no answer within {settings['connect_timeout']:g} s"
            raise RunError(f"cannot connect to {remote[0]}:{remote[1]}: {waited}") from error
        except OSError as error:
            hints = {errno.ECONNREFUSED: "is the server running, and is --remote_port its port?"}
            reason = reason_text(error, hints)
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
        reason = reason_text(error, hints)
        raise RunError(f"cannot listen on {address[0]}:{address[1]}: {reason}") from error
    return sock


def _allow_many_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where even this is refused, the server still serves as many as it may.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run_client(reporter: Reporter, settings: dict[str, Any]) -> int:
    reporter.status(
        f"[CLIENT] Connecting to {settings['remote_ip']}:{settings['remote_port']}, "
        f"msg_size={settings['msg_size']}, window={settings['msg_window']}"
    )
    with _connect(settings) as sock:
        return run(
            NativeClient("mn_tcp", _config(sock, settings)),
            reporter,
            announce="[CLIENT] Connected.",
            duration_s=settings["duration"],
        )


def _run_server(reporter: Reporter, settings: dict[str, Any]) -> int:
    _allow_many_descriptors()
    reporter.status(f"[SERVER] Starting in server mode, response size {settings['msg_size']}")
    with _listen(settings) as sock:
        host, port = sock.getsockname()
        return run(
            NativeServer("mn_tcp", _config(sock, settings)),
            reporter,
            announce=f"[LISTENING] [{host}:{port}]",
            duration_s=settings["duration"],
        )


@click.command(
    cls=GflagsCommand, name=TOOL, context_settings={"help_option_names": ["-h", "--help"]}
)
@message_options(msg_size_min=8, local_ip="0.0.0.0")  # noqa: S104 - as the original has it
@connect_timeout
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
    parameters = {**parameters_of(settings), "json": as_json}
    reporter = Reporter(TOOL, role, parameters, as_json=as_json)
    go = _run_client if client else _run_server
    finish(ctx, reporter, lambda: go(reporter, settings))


if __name__ == "__main__":
    main()
