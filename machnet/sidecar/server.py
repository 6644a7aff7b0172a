# SPDX-License-Identifier: MIT
"""The controller: answers applications on its UNIX socket, and gives them their channels.

One thread, one loop, nothing in it that waits for a client. What an application may cost is bounded:
connections, those that have not said hello, channels, memory and flows of each.
"""

from __future__ import annotations

import collections
import errno
import itertools
import json
import os
import selectors
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from machnet._native import lib
from machnet.sidecar.access import AllowList, peer_of
from machnet.sidecar.admin import Admin, ChannelRecord, Question, Refused
from machnet.sidecar.captures import TICK_S, Captures
from machnet.sidecar.conn import Connection, memfd_of
from machnet.sidecar.engines import channel_bytes
from machnet.sidecar.protocol import VERSION, Geometry, MalformedError, Op, Reply, Request

if TYPE_CHECKING:
    from machnet.sidecar.config import Controller
    from machnet.sidecar.engines import Engines
    from machnet.sidecar.listen import ControlSocket
    from machnet.sidecar.log import Log

__all__ = ["Server"]

#: Connections that have not said hello; one more, and the oldest has to go.
PENDING_MAX = 64
#: How long a connection may take to say hello.
HELLO_S = 2.0
#: Connections accepted before others get their turn.
_ACCEPTS = 64
#: How long none is accepted after one could not be.
_ACCEPT_PAUSE_S = 0.1
_CHAN_VERSION: int = lib.MN_CHAN_VERSION
LINGER_DEFAULT: int = lib.MN_LINGER_DEFAULT


class Server:
    """The controller of a sidecar.

    Args:
        engines: What channels are made over.
        control: The listening socket; closed by `stop_listening`.
        settings: Allow list and quotas; see `reconfigure`.
        log: Where events go.
        reload: Called for an operator who asks for it; what it returns is the answer.
    """

    def __init__(
        self,
        engines: Engines,
        control: ControlSocket,
        settings: Controller,
        log: Log,
        reload: Callable[[], dict[str, Any]],
    ) -> None:
        self._engines, self._control, self._log, self._reload = engines, control, log, reload
        self._connections: set[Connection] = set()
        self._pending: collections.OrderedDict[Connection, None] = collections.OrderedDict()
        self._numbers = itertools.count(1)
        self._records: dict[int, ChannelRecord] = {}
        self._captures = Captures()
        self._selector = selectors.DefaultSelector()
        self._selector.register(control.sock, selectors.EVENT_READ, self._accept)
        self._listening = True
        self._accept_again_at: float | None = None
        #: What has happened, by name: for metrics.
        self.counters: collections.Counter[str] = collections.Counter()
        self.admin = Admin(engines, self.status)
        self.watch(self.admin.fd, self._answers)
        self.reconfigure(settings)

    # ---- what it is told -------------------------------------------------------------------------

    def reconfigure(self, settings: Controller) -> None:
        """From now on this allow list, these quotas and sizes.

        Raises:
            ValueError: It names a user or group that does not exist.
        """
        self._allow = AllowList(settings)
        self._settings = settings

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` in the loop whenever a descriptor is readable."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def status(self) -> tuple[dict[str, int], list[ChannelRecord]]:
        """Counters and channels, copied: any thread may read them."""
        numbers = {
            **self.counters,
            "connections": len(self._connections) - len(self._pending),
            "pending": len(self._pending),
            "channels": len(self._records),
        }
        return numbers, list(self._records.values())

    # ---- the loop --------------------------------------------------------------------------------

    def step(self, timeout: float | None = None) -> None:
        """Wait for something to happen, and deal with it.

        Args:
            timeout: Seconds to wait at most; None: until something happens.
        """
        if self._captures:
            timeout = TICK_S if timeout is None else min(timeout, TICK_S)
        if self._pending:
            timeout = 1.0 if timeout is None else min(timeout, 1.0)
        if self._accept_again_at is not None:
            timeout = _ACCEPT_PAUSE_S if timeout is None else min(timeout, _ACCEPT_PAUSE_S)
        for key, _ in self._selector.select(timeout):
            if isinstance(key.data, Connection):
                if not key.data.closed:
                    self._serve(key.data)
            else:
                key.data()
        self._expire()
        if self._accept_again_at is not None and time.monotonic() >= self._accept_again_at:
            self._accept_again()
        if self._captures:
            self._captures.tick()

    def _expire(self) -> None:
        while self._pending:
            oldest = next(iter(self._pending))
            if time.monotonic() - oldest.born < HELLO_S:
                return
            self.counters["hello_timeouts"] += 1
            self._drop(oldest, "no_hello")

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            if not self._listening:
                return
            try:
                sock, _ = self._control.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._log.warning("accept_failed", why=error.strerror)
                self._make_room()
                self._pause_accepting()
                return
            self.counters["connects"] += 1
            sock.setblocking(False)
            try:
                connection = Connection(sock, peer_of(sock))
                self._selector.register(sock, selectors.EVENT_READ, connection)
            except (OSError, ValueError) as error:
                self._log.warning("accept_failed", why=str(error))
                sock.close()
                continue
            self._connections.add(connection)
            self._pending[connection] = None
            if len(self._pending) > PENDING_MAX:
                self._make_room()

    def _pause_accepting(self) -> None:
        """Without a free descriptor the listener would stay readable, and nothing come of it."""
        self._selector.unregister(self._control.sock)
        self._accept_again_at = time.monotonic() + _ACCEPT_PAUSE_S

    def _accept_again(self) -> None:
        self._accept_again_at = None
        self._selector.register(self._control.sock, selectors.EVENT_READ, self._accept)

    def _make_room(self) -> None:
        """The oldest connection without a hello says it now, or goes."""
        while self._pending:
            oldest = next(iter(self._pending))
            self._serve(oldest)
            if oldest in self._pending:
                self.counters["hello_evicted"] += 1
                self._drop(oldest, "crowded_out")
                return
            if len(self._pending) <= PENDING_MAX:
                return

    def _serve(self, connection: Connection) -> None:
        """One packet, or what is left of a reply."""
        try:
            if connection.waits_to_send:
                if connection.send_more():
                    self._wait_for(connection, selectors.EVENT_READ)
                return
            packet = connection.receive()
            if packet is None:
                return
            if not packet:
                self._drop(connection, "closed")
                return
            self._handle(connection, Request.unpack(packet))
        except MalformedError as error:
            self.counters["malformed"] += 1
            peer = connection.peer
            self._log.warning("malformed", pid=peer.pid, uid=peer.uid, why=str(error))
            self._drop(connection, "malformed")
        except OSError as error:
            self._drop(connection, error.strerror or "error")

    def _wait_for(self, connection: Connection, events: int) -> None:
        if not connection.closed:
            self._selector.modify(connection.sock, events, connection)

    def _reply(
        self,
        connection: Connection,
        reply: Reply,
        fds: list[int] | None = None,
        sent: Callable[[], None] | None = None,
    ) -> None:
        full = reply._replace(
            chan_version=_CHAN_VERSION, pid=os.getpid(), version=VERSION, n_fds=len(fds or ())
        )
        if not connection.send(full.pack(), fds or (), sent):
            self._wait_for(connection, selectors.EVENT_WRITE)

    def _refuse(self, connection: Connection, request: Request, number: int, why: str) -> None:
        self.counters["refused"] += 1
        peer = connection.peer
        self._log.warning(
            "refused",
            op=request.op,
            pid=peer.pid,
            uid=peer.uid,
            name=connection.name or "",
            error=errno.errorcode.get(number, number),
            why=why,
        )
        self._reply(connection, Reply(request.op, request.id, -number, why=why))

    def _drop(self, connection: Connection, why: str) -> None:
        """The end of a connection: what it had is closed, what it published is still sent."""
        if connection.closed:
            return
        # A connection whose question is being answered is in no selector.
        if not connection.busy:
            self._selector.unregister(connection.sock)
        self._pending.pop(connection, None)
        self._connections.discard(connection)
        if connection.attached:
            self._log.info(
                "application_gone",
                pid=connection.peer.pid,
                name=connection.name,
                channels=len(connection.channels),
                why=why,
            )
        for number in list(connection.channels):
            self._detach(connection, number, LINGER_DEFAULT)
        if connection.capture is not None:
            self._captures.end(connection.capture)
            connection.capture = None
        connection.shut()

    # ---- requests --------------------------------------------------------------------------------

    def _handle(self, connection: Connection, request: Request) -> None:
        if connection.name is None:
            self._hello(connection, request)
        elif request.version != VERSION:
            raise MalformedError(f"version {request.version} after the hello")
        elif request.op == Op.ATTACH:
            self._attach(connection, request)
        elif request.op == Op.DETACH:
            self._detach_asked(connection, request)
        elif request.op == Op.ADMIN:
            self._ask(connection, request)
        else:
            self._refuse(connection, request, errno.EINVAL, f"there is no operation {request.op}")

    def _hello(self, connection: Connection, request: Request) -> None:
        if request.op != Op.HELLO:
            raise MalformedError(f"operation {request.op} before the hello")
        refusal = self._hello_refusal(connection, request)
        if refusal is not None:
            self._refuse(connection, request, *refusal)
            self._drop(connection, "refused")
            return
        connection.name = request.name.decode(errors="replace")
        del self._pending[connection]
        self.counters["hellos"] += 1
        peer = connection.peer
        self._log.debug("hello", pid=peer.pid, uid=peer.uid, name=connection.name)
        self._reply(connection, Reply(request.op, request.id))

    def _hello_refusal(self, connection: Connection, request: Request) -> tuple[int, str] | None:
        peer, quotas = connection.peer, self._settings.quotas
        if request.version != VERSION:
            theirs = request.version
            return errno.EPROTO, f"protocol {theirs}: this sidecar speaks {VERSION}"
        if request.chan_version != _CHAN_VERSION:
            theirs = request.chan_version
            return errno.EPROTO, f"channels of version {theirs}: this sidecar has {_CHAN_VERSION}"
        if not self._allow.allows(peer):
            return errno.EACCES, f"user {peer.uid} is not on the allow list (users, groups)"
        if self._allow.is_admin(peer):
            return None
        said = [other for other in self._connections if other.name is not None]
        if len(said) >= quotas.connections_max:
            return errno.EDQUOT, f"there are {len(said)} applications (connections_max)"
        mine = sum(other.peer.uid == peer.uid for other in said)
        if mine >= quotas.connections_per_user_max:
            return errno.EDQUOT, f"user {peer.uid} has {mine} (connections_per_user_max)"
        return None

    def _attach(self, connection: Connection, request: Request) -> None:
        geometry = self._geometry(request.geo)
        memory = channel_bytes(geometry)
        refusal = self._attach_refusal(connection, geometry, memory)
        if refusal is not None:
            self._refuse(connection, request, *refusal)
            return
        try:
            lent = self._engines.lend(geometry)
        except (OSError, ValueError, MemoryError) as error:
            self._refuse(connection, request, *_reason(error))
            return
        number = next(self._numbers) & 0xFFFFFFFF
        if not connection.attached:
            connection.attached = True
            who = connection.peer
            self._log.info("application", pid=who.pid, uid=who.uid, name=connection.name)
        connection.channels[number] = lent
        connection.memory_bytes += memory
        connection.flows += geometry.flows_max * geometry.n_lanes
        peer = connection.peer
        name = connection.name or ""
        self._records[number] = ChannelRecord(
            number, peer.pid, peer.uid, name, memory, geometry.flows_max, lent.lanes
        )
        self.counters["attaches"] += 1
        self._log.debug("attach", pid=peer.pid, name=name, channel=number, bytes=memory)
        reply = Reply(request.op, request.id, channel=number, geo=geometry)
        self._reply(connection, reply, lent.fds, lent.close_fds)

    def _geometry(self, wish: Geometry) -> Geometry:
        """What is wished for, and the configuration's sizes where nothing is."""
        mine = self._settings.channel
        lanes = len(self._engines.stacks)
        return Geometry(
            n_lanes=lanes,
            buf_bytes=wish.buf_bytes or mine.buf_bytes,
            tx_bufs=wish.tx_bufs or mine.tx_bufs,
            rx_bufs=wish.rx_bufs or mine.rx_bufs,
            # A lane's flows share 16 bits with its number.
            flows_max=wish.flows_max or min(mine.flows_max, 65535 >> (lanes - 1).bit_length()),
            ctl_slots=wish.ctl_slots or mine.ctl_slots,
        )

    def _attach_refusal(
        self, connection: Connection, geometry: Geometry, memory: int
    ) -> tuple[int, str] | None:
        quotas = self._settings.quotas
        if memory == 0:
            return errno.EINVAL, f"no channel can be of these sizes: {_sizes(geometry)}"
        if len(connection.channels) >= quotas.channels_max:
            return errno.EDQUOT, f"it has {quotas.channels_max} channels (channels_max)"
        if connection.memory_bytes + memory > quotas.memory_bytes_max:
            room = quotas.memory_bytes_max - connection.memory_bytes
            return errno.EDQUOT, f"{memory} bytes, and {room} are left (memory_bytes_max)"
        flows = geometry.flows_max * geometry.n_lanes
        if connection.flows + flows > quotas.flows_max:
            room = quotas.flows_max - connection.flows
            return errno.EDQUOT, f"room for {flows} flows, and {room} are left (flows_max)"
        return None

    def _detach_asked(self, connection: Connection, request: Request) -> None:
        if request.channel not in connection.channels:
            why = f"this application has no channel {request.channel}"
            self._refuse(connection, request, errno.ENOENT, why)
            return
        self._detach(connection, request.channel, request.value)
        self._reply(connection, Reply(request.op, request.id, channel=request.channel))

    def _detach(self, connection: Connection, number: int, linger_ms: int) -> None:
        lent = connection.channels.pop(number)
        record = self._records.pop(number)
        connection.memory_bytes -= record.bytes
        connection.flows -= record.flows_max * len(record.lanes)
        self.counters["detaches"] += 1
        broken = lent.dead
        if broken:
            self.counters["channels_broken"] += 1
            self._log.warning(
                "channel_broken",
                pid=record.pid,
                name=record.name,
                channel=number,
                error=errno.errorcode.get(broken, broken),
            )
        lent.close(None if linger_ms == LINGER_DEFAULT else linger_ms / 1000)

    # ---- operators -------------------------------------------------------------------------------

    def _ask(self, connection: Connection, request: Request) -> None:
        if not self._allow.is_admin(connection.peer):
            why = "only root and the sidecar's own user may ask this"
            self._refuse(connection, request, errno.EACCES, why)
            return
        try:
            question = Question.parse(request.payload)
            if question.cmd == "capture":
                self._begin_capture(connection, request, question)
            elif question.cmd == "capture_stop":
                self._end_capture(connection, request)
            elif question.cmd == "reload":
                self._answer(connection, request.id, self._reload())
            else:
                self.admin.ask(connection, request.id, question)
                connection.busy = True
                self._selector.unregister(connection.sock)
        except Refused as refusal:
            self._refuse(connection, request, refusal.number, str(refusal))

    def _begin_capture(self, connection: Connection, request: Request, question: Question) -> None:
        if connection.capture is not None:
            raise Refused(errno.EBUSY, "this connection records already")
        try:
            capture = self._captures.begin(self._engines, question.nic, question.snaplen)
        except OSError as error:
            raise Refused(error.errno or errno.EIO, str(error)) from None
        if not capture.readers:
            self._captures.end(capture)
            names = ", ".join(port.nic.name for port in self._engines.ports)
            raise Refused(errno.ENODEV, f"there is no NIC {question.nic!r}, but {names}")
        connection.capture = capture
        self.counters["captures"] += 1
        self._log.info("capture", pid=connection.peer.pid, nic=question.nic or "all")
        fds, answer = capture.readers, {"pipes": len(capture.readers)}
        self._answer(connection, request.id, answer, fds, capture.readers_sent)

    def _end_capture(self, connection: Connection, request: Request) -> None:
        if connection.capture is None:
            raise Refused(errno.ENOENT, "this connection records nothing")
        capture, connection.capture = connection.capture, None
        self._answer(connection, request.id, capture.stop())

    def _answers(self) -> None:
        """The worker has answers."""
        for connection, number, answer in self.admin.answers():
            connection.busy = False
            if connection.closed:
                continue
            self._selector.register(connection.sock, selectors.EVENT_READ, connection)
            try:
                self._answer(connection, number, answer)
            except OSError as error:
                self._drop(connection, error.strerror or "error")

    def _answer(
        self,
        connection: Connection,
        number: int,
        answer: Any,
        fds: list[int] | None = None,
        sent: Callable[[], None] | None = None,
    ) -> None:
        data = json.dumps(answer).encode()
        memfd = memfd_of(data)

        def done() -> None:
            os.close(memfd)
            if sent is not None:
                sent()

        reply = Reply(Op.ADMIN, number, value=len(data))
        self._reply(connection, reply, [memfd, *(fds or ())], done)

    # ---- the end ---------------------------------------------------------------------------------

    def stop_listening(self) -> None:
        """Take no more connections. Again: nothing."""
        if self._listening:
            self._listening = False
            if self._accept_again_at is None:
                self._selector.unregister(self._control.sock)
            self._accept_again_at = None
            self._control.close()

    def drain(self, linger_ms: int) -> None:
        """End all connections; their flows go on to send for so long."""
        self.stop_listening()
        self._captures.close()
        for connection in list(self._connections):
            connection.capture = None
            for number in list(connection.channels):
                self._detach(connection, number, linger_ms)
            self._drop(connection, "the sidecar ends")

    def close(self) -> None:
        """Give all descriptors back. Again: nothing."""
        self.drain(0)
        self.admin.close()
        self._selector.close()


def _reason(error: Exception) -> tuple[int, str]:
    if isinstance(error, ValueError):
        return errno.EINVAL, str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno, error.strerror or os.strerror(error.errno)
    return errno.ENOMEM, "there is no memory for it"


def _sizes(geometry: Geometry) -> str:
    return ", ".join(f"{name} {value}" for name, value in geometry._asdict().items())


def raise_descriptor_limit() -> None:
    """As many descriptors as this process may have: each channel takes some."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
