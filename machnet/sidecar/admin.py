# SPDX-License-Identifier: MIT
"""What operators ask: connections, counters, channels. Answered beside the controller's loop.

Collecting them takes time in proportion to what there is, and no application is to wait for it: one
thread does it, and the loop hands the answers over.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

import machnet

if TYPE_CHECKING:
    from machnet.sidecar.conn import Connection
    from machnet.sidecar.engines import Engines

__all__ = ["Admin", "ChannelRecord", "Question", "Refused", "answer", "channel_owner"]

_STARTED = time.time()


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """A question is not answered.

    Args:
        number: The errno.
        why: For people.
    """

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


class ChannelRecord(NamedTuple):
    """A channel of an application, and whose it is."""

    number: int
    pid: int
    uid: int
    name: str
    bytes: int
    flows_max: int
    #: Its number in each engine.
    lanes: tuple[int, ...]


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request of an operator.

    Attributes:
        cmd: What is asked.
        nic: capture: one NIC only, by name or MAC address; None: all.
        snaplen: capture: bytes kept of each frame; 0: all.
    """

    cmd: Literal["info", "ss", "stat", "channels", "metrics", "capture", "capture_stop", "reload"]
    nic: str | None = None
    snaplen: Annotated[int, Meta(ge=0, le=65600)] = 0

    @classmethod
    def parse(cls, payload: bytes) -> Question:
        """A question from its JSON form.

        Raises:
            Refused: It is none.
        """
        import errno

        try:
            return msgspec.json.decode(payload, type=cls)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Refused(errno.EINVAL, f"no question: {error}") from None


Status = Callable[[], "tuple[dict[str, int], list[ChannelRecord]]"]


def answer(question: Question, engines: Engines, status: Status) -> Any:
    """What is asked for, as what JSON can hold."""
    numbers, channels = status()
    if question.cmd == "ss":
        return sockets(engines, channels)
    if question.cmd == "channels":
        return [record._asdict() for record in channels]
    if question.cmd == "stat":
        return {
            "time": time.time(),
            "controller": numbers,
            "engines": counters(engines),
            "ports": port_states(engines),
        }
    if question.cmd == "metrics":
        from machnet.sidecar.metrics import exposition

        return exposition(engines, status).decode()
    return {
        "version": machnet.__version__,
        "pid": os.getpid(),
        "started": _STARTED,
        "controller": numbers,
        "nics": [port.describe() for port in engines.ports],
    }


def channel_owner(channels: list[ChannelRecord], engine: int) -> dict[int, ChannelRecord]:
    """Whose each lane of one engine is."""
    return {record.lanes[engine]: record for record in channels if engine < len(record.lanes)}


def sockets(engines: Engines, channels: list[ChannelRecord]) -> list[dict[str, Any]]:
    """Every connection and listener of all engines, with the application that it belongs to."""
    found = []
    number = 0
    for port in engines.ports:
        for stack in port.stacks:
            owners = channel_owner(channels, number)
            for info in stack.sockets():
                row = msgspec.to_builtins(info)
                owner = None if info.channel is None else owners.get(info.channel)
                row |= {"nic": port.nic.name, "engine": number, "lane": info.channel}
                row["channel"] = owner.number if owner is not None else None
                row["pid"] = owner.pid if owner is not None else None
                row["name"] = owner.name if owner is not None else None
                found.append(row)
            number += 1
    return found


def counters(engines: Engines) -> list[dict[str, Any]]:
    """What each engine has counted, and what it holds."""
    found: list[dict[str, Any]] = []
    for port in engines.ports:
        for number, stack in enumerate(port.stacks):
            found.append(
                {
                    "engine": len(found),
                    "nic": port.nic.name,
                    "ip": stack.ip,
                    "stats": stack.stats(),
                    "usage": stack.usage(),
                    "host": stack.host_stats(),
                    "between": port.between(number),
                }
            )
    return found


def port_states(engines: Engines) -> list[dict[str, Any]]:
    """The DPDK ports: what they are, and what they have counted."""
    states = (port.state() for port in engines.ports)
    return [found for found in states if found is not None]


class Admin:
    """The thread that collects answers.

    Attributes:
        fd: Readable when there are answers to be handed over.
    """

    def __init__(self, engines: Engines, status: Status) -> None:
        self._engines, self._status = engines, status
        self._questions: queue.SimpleQueue[tuple[Connection, int, Question] | None] = (
            queue.SimpleQueue()
        )
        self._answers: queue.SimpleQueue[tuple[Connection, int, Any]] = queue.SimpleQueue()
        self.fd, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._work, name="machnet-admin", daemon=True)
        self._thread.start()

    def ask(self, connection: Connection, number: int, question: Question) -> None:
        """Collect an answer for a connection, which asks nothing more until it is there."""
        self._questions.put((connection, number, question))

    def answers(self) -> list[tuple[Connection, int, Any]]:
        """What was collected since the last call."""
        while True:
            try:
                if len(os.read(self.fd, 4096)) < 4096:
                    break
            except BlockingIOError:
                break
        found = []
        while not self._answers.empty():
            found.append(self._answers.get())
        return found

    def _work(self) -> None:
        while True:
            asked = self._questions.get()
            if asked is None:
                return
            connection, number, question = asked
            try:
                found = answer(question, self._engines, self._status)
            except Exception as error:  # noqa: BLE001 - others' questions are still to be answered
                found = {"error": f"{type(error).__name__}: {error}"}
            self._answers.put((connection, number, found))
            with contextlib.suppress(BlockingIOError):  # then it is readable already
                os.write(self._wake, b"x")

    def close(self) -> None:
        """End the thread. Again: nothing."""
        if self._wake >= 0:
            self._questions.put(None)
            self._thread.join()
            os.close(self.fd)
            os.close(self._wake)
            self._wake = -1
