# SPDX-License-Identifier: MIT
"""What an event loop can't do in virtual time, and what to use instead."""

from __future__ import annotations

from typing import Any

__all__ = ["Refusals"]

_STREAMS = (
    "sockets of the operating system know no virtual time: use machnet.aio "
    "(open_connection, start_server, create_connection, create_server, attach) with a stack"
)
_DESCRIPTORS = "descriptors become ready in real time: use machnet.aio, or Channel.on_ready"
_PROCESSES = "other processes run in real time: write the peer as a coroutine on a host of its own"
_THREADS = "other threads run in real time: call the function directly, or write it as a coroutine"
_SIGNALS = "signals come in real time: Ctrl-C raises KeyboardInterrupt out of run"


def _refuse(name: str, why: str) -> Any:
    def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{name}: not in virtual time: {why}")

    refused.__name__ = name
    refused.__doc__ = f"Not in virtual time: {why}."
    return refused


def _refuse_async(name: str, why: str) -> Any:
    async def refused(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{name}: not in virtual time: {why}")

    refused.__name__ = name
    refused.__doc__ = f"Not in virtual time: {why}."
    return refused


class Refusals:
    """The methods of an event loop that raise ``NotImplementedError``."""

    run_in_executor: Any = _refuse("run_in_executor", _THREADS)
    set_default_executor: Any = _refuse("set_default_executor", _THREADS)

    subprocess_exec: Any = _refuse_async("subprocess_exec", _PROCESSES)
    subprocess_shell: Any = _refuse_async("subprocess_shell", _PROCESSES)

    connect_read_pipe: Any = _refuse_async("connect_read_pipe", _DESCRIPTORS)
    connect_write_pipe: Any = _refuse_async("connect_write_pipe", _DESCRIPTORS)
    add_reader: Any = _refuse("add_reader", _DESCRIPTORS)
    remove_reader: Any = _refuse("remove_reader", _DESCRIPTORS)
    add_writer: Any = _refuse("add_writer", _DESCRIPTORS)
    remove_writer: Any = _refuse("remove_writer", _DESCRIPTORS)

    sock_recv: Any = _refuse_async("sock_recv", _STREAMS)
    sock_recv_into: Any = _refuse_async("sock_recv_into", _STREAMS)
    sock_recvfrom: Any = _refuse_async("sock_recvfrom", _STREAMS)
    sock_recvfrom_into: Any = _refuse_async("sock_recvfrom_into", _STREAMS)
    sock_sendall: Any = _refuse_async("sock_sendall", _STREAMS)
    sock_sendto: Any = _refuse_async("sock_sendto", _STREAMS)
    sock_connect: Any = _refuse_async("sock_connect", _STREAMS)
    sock_accept: Any = _refuse_async("sock_accept", _STREAMS)
    sock_sendfile: Any = _refuse_async("sock_sendfile", _STREAMS)
    sendfile: Any = _refuse_async("sendfile", _STREAMS)
    create_connection: Any = _refuse_async("create_connection", _STREAMS)
    create_server: Any = _refuse_async("create_server", _STREAMS)
    create_unix_connection: Any = _refuse_async("create_unix_connection", _STREAMS)
    create_unix_server: Any = _refuse_async("create_unix_server", _STREAMS)
    create_datagram_endpoint: Any = _refuse_async("create_datagram_endpoint", _STREAMS)
    connect_accepted_socket: Any = _refuse_async("connect_accepted_socket", _STREAMS)

    add_signal_handler: Any = _refuse("add_signal_handler", _SIGNALS)
    remove_signal_handler: Any = _refuse("remove_signal_handler", _SIGNALS)
