# SPDX-License-Identifier: MIT
"""``msg_gen``: sends messages through machnet, or answers them.

The same messages as ``tcp_msg_gen``'s, by way of the engines of a sidecar, or, with ``--nic``, of one in
this process.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import click

import machnet
from machnet._native import ffi, lib
from machnet.channel import Channel
from machnet.cli._endpoint import NativeClient, NativeServer, fill_config
from machnet.cli._flags import (
    GflagsCommand,
    Integer,
    connect_timeout,
    message_options,
    parameters_of,
)
from machnet.cli._nics import check_nic_usage, nic_options, open_cli_nic
from machnet.cli._report import Reporter, reason_text
from machnet.cli._run import RunError, finish, refusals, run
from machnet.stack.stack import Stack

TOOL = "msg_gen"
#: How long the end waits until the peers have what was sent, in seconds.
LINGER_S = 1.0
#: A server that vanishes without a word is found out within a minute and a half.
_KEEPALIVE = (
    (lib.MN_OPT_KEEPIDLE_S, 60),
    (lib.MN_OPT_KEEPINTVL_S, 10),
    (lib.MN_OPT_KEEPCNT, 3),
    (lib.MN_OPT_KEEPALIVE, 1),
)


@contextlib.contextmanager
def _own_channel(settings: dict[str, Any]) -> Iterator[Channel]:
    """Yield a channel of a stack on the NIC of the settings, and close all of them at the end.

    Raises:
        RunError: The NIC can't be opened, or the stack refuses a setting.
    """
    inline = settings["engine"] == "inline"
    with contextlib.ExitStack() as cleanup:
        with refusals():
            nic = open_cli_nic(settings)
            cleanup.callback(nic.close)
            stack = Stack(
                nic,
                settings["local_ip"],
                settings["gateway"] or None,
                poll=settings["poll"],
                thread=not inline,
                spin_us=settings["spin_us"],
                cpu=None if inline else settings["engine_cpu"],
                pcap=settings["pcap"],
            )
        cleanup.callback(stack.close, LINGER_S)
        yield cleanup.enter_context(stack.attach())


@contextlib.contextmanager
def _sidecar_channel(settings: dict[str, Any]) -> Iterator[Channel]:
    """Yield a channel of the sidecar.

    Raises:
        RunError: There is none, or it refuses.
    """
    try:
        # The loop in C spins by itself.
        channel = machnet.attach(settings["socket"], name=TOOL, spin_us=0)
    except OSError as error:
        raise RunError(f"cannot attach: {error.strerror or error}") from error
    with channel:
        yield channel


def _channel(settings: dict[str, Any]) -> contextlib.AbstractContextManager[Channel]:
    return (_sidecar_channel if settings["nic"] is None else _own_channel)(settings)


def _config(channel: Channel, settings: dict[str, Any]) -> Any:
    config = fill_config(ffi.new("struct mn_gen_config *"), settings)
    config.chan = channel._native  # noqa: SLF001 - the loop in C takes the channel over
    config.stack = ffi.NULL
    if isinstance(channel.stack, Stack) and not channel.stack.threaded:
        config.stack = channel.stack.core.native
    return config


def _hints(settings: dict[str, Any]) -> dict[int, str]:
    """What to look at when a connection or a listener is refused, by errno."""
    here = "of the sidecar" if settings["nic"] is None else "of --nic"
    return {
        errno.ECONNREFUSED: "is the server running, and is --remote_port its port?",
        errno.ENETUNREACH: "it is outside the network of --local_ip: give a --gateway"
        if settings["nic"] is not None
        else "it is outside the network of --local_ip, and the sidecar has no gateway",
        errno.EHOSTUNREACH: f"nobody answers to this address on the network {here}",
        errno.EADDRNOTAVAIL: "the sidecar has no engine with this --local_ip",
    }


def _run_client(reporter: Reporter, settings: dict[str, Any]) -> int:
    local_ip = settings["local_ip"].partition("/")[0]
    remote_ip, port = settings["remote_ip"], settings["remote_port"]
    protocol = settings["protocol"]
    with _channel(settings) as channel:
        reporter.status(
            f"[CLIENT] Connecting to {remote_ip}:{port}, "
            f"msg_size={settings['msg_size']}, window={settings['msg_window']}"
        )
        timeout = settings["connect_timeout"]
        try:
            flow = channel.connect(local_ip, remote_ip, port, protocol=protocol, timeout=timeout)
        except TimeoutError as error:
            waited = f"no answer within {timeout:g} s"
            raise RunError(f"cannot connect to {remote_ip}:{port}: {waited}") from error
        except OSError as error:
            reason = reason_text(error, _hints(settings))
            raise RunError(f"cannot connect to {remote_ip}:{port}: {reason}") from error
        if protocol == "tcp":
            for option, value in _KEEPALIVE:
                channel.set_option(flow, option, value)
        config = _config(channel, settings)
        config.flow = flow.id
        config.rate_per_s = settings["rate"] or 0
        return run(
            NativeClient("mn_gen", config),
            reporter,
            announce="[CLIENT] Connected.",
            duration_s=settings["duration"],
        )


def _run_server(reporter: Reporter, settings: dict[str, Any]) -> int:
    reporter.status(f"Starting in server mode, response size {settings['msg_size']}")
    local_ip, port = settings["local_ip"].partition("/")[0], settings["local_port"]
    with _channel(settings) as channel:
        try:
            channel.listen(local_ip, port, protocol=settings["protocol"])
        except OSError as error:
            reason = reason_text(error, _hints(settings))
            raise RunError(f"cannot listen on {local_ip}:{port}: {reason}") from error
        return run(
            NativeServer("mn_gen", _config(channel, settings)),
            reporter,
            announce=f"[LISTENING] [{local_ip}:{port}]",
            duration_s=settings["duration"],
        )


#: Options that are about a NIC of the command's own, with what they are otherwise.
_OWN_NIC = {
    "kernel_ip": None,
    "gateway": "",
    "mtu": None,
    "bind": False,
    "engine": "inline",
    "engine_cpu": None,
    "pcap": None,
}


def _check_usage(ctx: click.Context, settings: dict[str, Any]) -> None:
    """Refuse what the command line must not ask for, each with what to do instead."""
    if settings["rate"] and not settings["remote_ip"]:
        raise click.UsageError("--rate is for a client (--remote_ip).", ctx)
    if settings["nic"] is None:
        for name, otherwise in _OWN_NIC.items():
            if settings[name] != otherwise:
                raise click.UsageError(
                    f"--{name} is for a NIC of msg_gen's own (--nic): the sidecar has its own.", ctx
                )
        return
    if settings["socket"] is not None:
        raise click.UsageError("--socket is the sidecar's, --nic a NIC of msg_gen's own.", ctx)
    check_nic_usage(ctx, settings)
    if settings["engine"] == "inline" and settings["engine_cpu"] is not None:
        raise click.UsageError("--engine_cpu is for --engine thread.", ctx)


@click.command(
    cls=GflagsCommand, name=TOOL, context_settings={"help_option_names": ["-h", "--help"]}
)
@message_options(msg_size_min=9, local_ip=None, own_stack=True)
@click.option(
    "--protocol",
    type=click.Choice(["udp", "tcp"]),
    default="udp",
    show_default=True,
    help="Transport: udp is Machnet's own, between machnet hosts; tcp speaks to any TCP program.",
)
@click.option(
    "--rate",
    type=Integer(1, 1_000_000_000, "messages per second"),
    help="Messages per second, by the clock (client): a round trip counts from when its message was "
    "due, also when it had to wait for a place in --msg_window.  [default: as fast as it goes]",
)
@click.option(
    "--socket",
    help="The sidecar's socket.  [default: MACHNET_SOCKET, else "
    "/var/run/machnet/machnet_ctrl.sock]",
)
@nic_options(required=False)
@click.option(
    "--engine",
    type=click.Choice(["inline", "thread"]),
    default="inline",
    show_default=True,
    help="Who polls the NIC: the application's own thread, between its messages, or a thread of "
    "the engine's own, which wants another core.",
)
@click.option(
    "--engine_cpu",
    type=Integer(0, 1023),
    help="CPU that the engine's thread is pinned to (--engine thread).",
)
@click.option(
    "--pcap", type=click.Path(dir_okay=False), help="Write all frames to this pcapng file."
)
@connect_timeout
@click.pass_context
def main(ctx: click.Context, /, *, as_json: bool, **settings: Any) -> None:
    """Send messages through machnet, or answer them.

    Attaches to this machine's sidecar (machnet run); with --nic it is a machnet of its own instead.
    With --remote_ip this is a client: it keeps --msg_window messages in flight and prints rates and
    round-trip times each second. Without it this is a server for any number of clients. With
    --protocol tcp the other end may be any program with a TCP socket, such as tcp_msg_gen.

    \b
    To try it as root, without hardware:
      msg_gen --nic tap:mn0 --kernel_ip 10.0.0.1 --local_ip 10.0.0.2 --protocol tcp
      tcp_msg_gen --remote_ip 10.0.0.2

    Exit status: 0 when all went well, which for a client means that every message it sent was
    answered, and rightly, also when it was ended by Ctrl-C or SIGTERM; 1 on any failure; 2 when the
    command line is wrong.
    """  # noqa: D301 - \b is click's
    _check_usage(ctx, settings)
    client = settings["remote_ip"] != ""
    role = "client" if client else "server"
    parameters = {**parameters_of(settings), "json": as_json}
    reporter = Reporter(TOOL, role, parameters, as_json=as_json)
    reporter.status(f"Using {settings['protocol'].upper()} transport")
    go = _run_client if client else _run_server
    finish(ctx, reporter, lambda: go(reporter, settings))


if __name__ == "__main__":
    main()
