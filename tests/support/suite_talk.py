# SPDX-License-Identifier: MIT
"""Conversations for the suite of network faults: two ends, what each has to say, and what it heard.

An end is looked after between events (`End.pump`) and never blocks, so that many of them live in one
network while faults come and go.
"""

from __future__ import annotations

import errno
import random
import socket as posix
from collections.abc import Callable, Sequence

import machnet
from machnet.sim import Network
from machnet.sim.nodes import Host

SECOND = 10**9
MS = 10**6
PIECE = 65536

_NOISE = random.Random(99).randbytes(1 << 20)


def noise(size: int, start: int = 0) -> bytes:
    """Bytes that say where they are."""
    return (_NOISE[start:] + _NOISE * (size // len(_NOISE) + 1))[:size]


class End:
    """One side of a conversation.

    Attributes:
        error: What ended it, if something did.
        over: It has nothing left to do.
        dead: Its host crashed.
    """

    channel: machnet.Channel

    def __init__(self) -> None:
        self.error: OSError | None = None
        self.over = self.dead = False

    def pump(self) -> bool:
        """Do what can be done now; whether there is nothing left to do."""
        if not self.over and self.channel.closed:
            self.over = self.dead = True
        if not self.over:
            try:
                self._step()
            except OSError as error:
                self.error = error
                self._give_up()
                self.over = True
        return self.over

    def _step(self) -> None:
        raise NotImplementedError

    def _give_up(self) -> None:
        raise NotImplementedError


class StreamEnd(End):
    """Bytes over a channel: says everything, shuts down, and closes when the other has, too.

    Args:
        polite: Shuts down only when the other has.
        leaves_after: Closes, as soon as it has heard that many bytes, whatever is left.
    """

    def __init__(
        self,
        channel: machnet.Channel,
        flow: machnet.Flow | None,
        data: bytes,
        *,
        listener: machnet.Listener | None = None,
        polite: bool = False,
        leaves_after: int | None = None,
    ) -> None:
        super().__init__()
        self.channel, self.flow, self.data, self.listener = channel, flow, data, listener
        self.polite, self.leaves_after = polite, leaves_after
        self.sent = 0
        self.got = bytearray()
        self.shut = self.heard_all = False

    def _step(self) -> None:
        if self.flow is None:
            assert self.listener is not None
            self.flow = self.channel._try_accept(self.listener)
            if self.flow is None:
                return
        flow = self.flow
        while self.sent < len(self.data):
            n = self.channel._try_send(flow, self.data[self.sent : self.sent + PIECE])
            if not n:
                break
            self.sent += n
        while not self.heard_all and (part := self.channel._try_read(flow, PIECE)) is not None:
            self.got += part
            self.heard_all = not part
        if not self.shut and self.sent == len(self.data) and (self.heard_all or not self.polite):
            flow.shutdown()
            self.shut = True
        left = self.leaves_after is not None and len(self.got) >= self.leaves_after
        if left or (self.heard_all and self.shut):
            flow.close()
            self.over = True

    def _give_up(self) -> None:
        if self.flow is not None:
            self.flow.close()


class FramedEnd(End):
    """Messages over a channel of its own: says all, waits for all; the one who asked closes."""

    def __init__(
        self,
        channel: machnet.Channel,
        flow: machnet.Flow | None,
        messages: Sequence[bytes],
        wanted: int,
        *,
        closes: bool,
    ) -> None:
        super().__init__()
        self.channel, self.flow, self.messages, self.wanted = channel, flow, messages, wanted
        self.closes = closes
        self.sent = 0
        self.got: list[bytes] = []

    def _step(self) -> None:
        while (message := self.channel.try_recv()) is not None:
            self.flow = message.flow
            self.got.append(message.data)
        if self.flow is None:
            return
        while self.sent < len(self.messages):
            if self.channel._try_send(self.flow, self.messages[self.sent]) is None:
                break
            self.sent += 1
        done = self.sent == len(self.messages) and len(self.got) >= self.wanted
        if (done and self.closes) or self.flow.error:
            self.flow.close()
            self.over = True

    def _give_up(self) -> None:
        if self.flow is not None:
            self.flow.close()


class SocketEnd(End):
    """Bytes over a socket, in the manner of `StreamEnd`."""

    def __init__(self, sock: machnet.Socket, data: bytes, *, listens: bool = False) -> None:
        super().__init__()
        self.sock, self.data, self.listens = sock, data, listens
        self.channel = sock.stack.socket_channel()
        self.sent = 0
        self.got = bytearray()
        self.shut = self.heard_all = False
        self.listener: machnet.Socket | None = None

    def _step(self) -> None:
        try:
            if self.listens:
                self.listener = self.sock
                self.sock, _ = self.sock.accept()
                self.listens = False
            while self.sent < len(self.data):
                self.sent += self.sock.send(self.data[self.sent : self.sent + PIECE])
        except BlockingIOError:
            if self.listens:
                return
        try:
            while not self.heard_all:
                part = self.sock.recv(PIECE)
                self.got += part
                self.heard_all = not part
        except BlockingIOError:
            pass
        if not self.shut and self.sent == len(self.data):
            if self.sock.state in {"SYN-SENT", "SYN-RECEIVED"}:
                return
            self.sock.shutdown(posix.SHUT_WR)
            self.shut = True
        if self.heard_all and self.shut:
            self.sock.close()
            self.over = True

    def _give_up(self) -> None:
        self.sock.close()


def ends_met(net: Network, ends: Sequence[End], within_ns: int) -> bool:
    """Let time pass until all ends have nothing left to do; whether they got there in time."""

    def all_over() -> bool:
        waiting = False
        for end in ends:
            waiting = not end.pump() or waiting
        return not waiting

    net.run(until=net.now_ns)
    try:
        net.eventually(all_over, within=within_ns)
    except machnet.sim.EventuallyError:
        return False
    return True


def connect(channel: machnet.Channel, a: Host, b: Host, protocol: str, port: int) -> machnet.Flow:
    """Connect, once more where ARP found nobody: three requests that are lost are bad luck."""
    while True:
        try:
            return channel.connect(a.ip, b.ip, port, protocol=protocol, timeout=None)
        except OSError as error:  # noqa: PERF203
            if error.errno != errno.EHOSTUNREACH:
                raise


class Talk:
    """A conversation over a stream of bytes: both sides speak at once.

    Args:
        up: What the client says.
        down: What the server says.
        closes: Who ends first what it says: "client", "server", or "both" at once.
    """

    def __init__(
        self,
        net: Network,
        a: Host,
        b: Host,
        up: bytes,
        down: bytes = b"",
        *,
        port: int = 7000,
        closes: str = "both",
        before_connect: Callable[[], object] | None = None,
    ) -> None:
        self.net, self.up, self.down = net, up, down
        self.server_channel, self.client_channel = b.attach(), a.attach()
        self.listener = self.server_channel.listen(b.ip, port, protocol="stream")
        if before_connect is not None:
            before_connect()
        self.started_ns = net.now_ns
        flow = connect(self.client_channel, a, b, "stream", port)
        self.client = StreamEnd(self.client_channel, flow, up, polite=closes == "server")
        self.server = StreamEnd(
            self.server_channel, None, down, listener=self.listener, polite=closes == "client"
        )

    @property
    def ends(self) -> list[End]:
        """Both."""
        return [self.client, self.server]

    def run(self, within_ns: int) -> int:
        """Until it is over; both have heard everything, or it fails. How long it took, in ns."""
        met = ends_met(self.net, self.ends, within_ns)
        assert self.client.error is None, f"client: {self.client.error!r}\n{self.net.report()}"
        assert self.server.error is None, f"server: {self.server.error!r}\n{self.net.report()}"
        assert met, self.net.report()
        assert bytes(self.server.got) == self.up
        assert bytes(self.client.got) == self.down
        return self.net.now_ns - self.started_ns

    def run_until_accepted(self) -> None:
        """Until the server has its flow."""

        def accepted() -> bool:
            self.server.pump()
            return self.server.flow is not None

        self.net.eventually(accepted, within="100s")

    def run_to_an_end(self, within_ns: int) -> None:
        """Until it is over, well or not; what was heard is what was said as far as it goes."""
        met = ends_met(self.net, self.ends, within_ns)
        assert met, self.net.report()
        self.check_prefixes()

    def check_prefixes(self) -> None:
        """What was heard is the beginning of what was said, all of it if there was no error."""
        for end, said in ((self.server, self.up), (self.client, self.down)):
            assert said.startswith(bytes(end.got))
            if end.error is None and end.over:
                assert len(end.got) == len(said)

    def close(self) -> None:
        """Its channels are closed."""
        self.client_channel.close()
        self.server_channel.close()

    def leaves_nothing(self) -> None:
        """Close the channels; nothing is left of it."""
        self.close()
        assert self.net.leaks() == []
