# SPDX-License-Identifier: MIT
"""Both ends of a message generator, as the loop of `machnet.cli._run` drives them.

The two generators have the same functions in C, over sockets (``mn_tcp_``) and over a channel
(``mn_gen_``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

from machnet._native import ffi, lib
from machnet.cli._report import fault_text
from machnet.cli._run import RunError, new_stats

#: ``spin_ns`` of a loop that never sleeps.
_SPIN_FOR_EVER_NS = 2**64 - 1


def fill_config(config: Any, settings: dict[str, Any]) -> Any:
    """Set what the two configurations have in common, and return it."""
    config.msg_size = settings["msg_size"]
    config.window = settings["msg_window"]
    config.msgs_max = settings["msg_nr"] or 0
    config.verify = settings["verify"]
    busy = settings["poll"] == "busy"
    config.spin_ns = _SPIN_FOR_EVER_NS if busy else settings["spin_us"] * 1000
    return config


class NativeClient:
    """A connected client.

    Args:
        prefix: Of its functions in C, such as ``mn_tcp``.
        config: Their configuration; what it names stays the caller's.

    Raises:
        MemoryError: There is no memory for its window or buffers.
    """

    role = "client"
    limit = "msg_nr"

    def __init__(self, prefix: str, config: Any) -> None:
        self.stats = new_stats()
        self._prefix = f"{prefix}_client_"
        client = self._function("new")(config, self.stats)
        if client == ffi.NULL:
            raise MemoryError("no memory for the client's buffers")
        self._client = ffi.gc(client, self._function("free"))
        self._run = self._function("run")
        self._warned = False

    def _function(self, name: str) -> Any:
        return getattr(lib, self._prefix + name)

    def step(self, until_ns: int) -> bool:
        """Send and receive until ``until_ns``; ``True`` when every message is answered.

        Raises:
            RunError: The connection failed, or the server broke the protocol.
        """
        rc: int = self._run(self._client, until_ns, ffi.NULL)
        if rc < 0:
            fault = self._function("fault")(self._client)
            known = fault.kind != lib.MN_MSG_FAULT_NONE
            raise RunError(fault_text(fault) if known else os.strerror(-rc))
        return rc == 1

    def drain(self) -> None:
        """Send nothing new."""
        self._function("drain")(self._client)

    def in_flight(self) -> int:
        """Messages that were sent and not answered."""
        return int(self._function("in_flight")(self._client))

    def idle(self) -> bool:
        """Never: a client that gets no answer says so each second."""
        return False

    def warnings(self) -> Iterator[str]:
        """The first wrong payload; how many there were is in the summary."""
        fault = self._function("payload_fault")(self._client)
        if fault.kind != lib.MN_MSG_FAULT_NONE and not self._warned:
            self._warned = True
            yield fault_text(fault)

    def faults(self) -> int:
        """0: wrong payloads are counted in the statistics."""
        return 0


class NativeServer:
    """A listening server.

    Args:
        prefix: Of its functions in C.
        config: Their configuration; what it names stays the caller's.

    Raises:
        OSError: There is no memory, or epoll refused a socket.
    """

    role = "server"
    limit = "msg_nr"

    def __init__(self, prefix: str, config: Any) -> None:
        self.stats = new_stats()
        self._prefix = f"{prefix}_server_"
        server = self._function("new")(config, self.stats)
        if server == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        self._server = ffi.gc(server, self._function("free"))
        self._run = self._function("run")
        self._stopped = False

    def _function(self, name: str) -> Any:
        return getattr(lib, self._prefix + name)

    def step(self, until_ns: int) -> bool:
        """Answer until ``until_ns``; ``True`` once the server was told to stop.

        Raises:
            RunError: It cannot go on.
        """
        if self._stopped:
            return True
        rc: int = self._run(self._server, until_ns, ffi.NULL)
        if rc < 0:
            gone = rc == -errno.EPIPE
            raise RunError(
                "the sidecar has ended" if gone else f"serving failed: {os.strerror(-rc)}"
            )
        return False

    def drain(self) -> None:
        """Stop: a server has nothing of its own in flight."""
        self._stopped = True

    def in_flight(self) -> int:
        """0: the clients know what they are missing."""
        return 0

    def idle(self) -> bool:
        """Whether no client is connected."""
        return int(self._function("open_conns")(self._server)) == 0

    def warnings(self) -> Iterator[str]:
        """Each fault of a peer that there was room to keep, and the number of the others."""
        fault = ffi.new("struct mn_msg_fault *")
        while self._function("fault")(self._server, fault):
            yield fault_text(fault)
        untold = int(self._function("untold")(self._server))
        if untold > 0:
            yield f"{untold} more faults of peers within a moment"

    def faults(self) -> int:
        """Connections that were ended for what the peer did, or could not be accepted."""
        return int(self._function("faults")(self._server))
