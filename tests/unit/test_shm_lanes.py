# SPDX-License-Identifier: MIT
"""One channel over several engines: flows, listeners and turns."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from shm_local import SMALL, attach_to, attached

import machnet
from machnet._native import lib
from machnet.config import ChannelSettings
from machnet.sim import Wire
from machnet.stack.lending import lend

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"


@pytest.fixture
def stacks() -> Iterator[list[machnet.Stack]]:
    """Engines that reach nobody but themselves; two of them have one address."""
    found = [machnet.Stack(Wire(), ip=ip, thread=True) for ip in (A, B, B)]
    yield found
    for stack in found:
        stack.close(linger=0)


def ask(stack: machnet.Stack, port: int, data: bytes) -> tuple[machnet.Channel, machnet.Flow]:
    """A client of its own, which has said something."""
    client = stack.attach()
    flow = client.connect(stack.ip, stack.ip, port, "tcp")
    client.send(flow, data)
    return client, flow


def test_a_listener_is_on_every_engine_and_flows_keep_apart(stacks):
    with attached(*stacks) as channel:
        channel.listen("0.0.0.0", 7000, "tcp")
        clients = [ask(stack, 7000, b"%d" % i) for i, stack in enumerate(stacks)]
        messages = [channel.recv(timeout=5) for _ in clients]
        assert sorted(m.data for m in messages) == [b"0", b"1", b"2"]
        assert len({m.flow for m in messages}) == 3
        assert {m.flow.local[0] for m in messages} == {A, B}
        assert set(channel.flows()) == {m.flow for m in messages}
        for message in messages:
            assert message.flow.live
            assert channel.get_option(message.flow, lib.MN_OPT_SNDQ) == 0
            channel.send(message.flow, b"to " + message.data)
        for i, (client, _) in enumerate(clients):
            assert client.recv(timeout=5).data == b"to %d" % i
            client.close()


def test_an_address_listens_where_it_is(stacks):
    with attached(*stacks) as channel:
        listener = channel.listen(B, 7000, "tcp")
        assert stacks[0].find_socket((A, 7000)) is None
        assert stacks[1].find_socket((B, 7000)) is not None
        assert stacks[2].find_socket((B, 7000)) is not None
        listener.close()
        assert stacks[1].find_socket((B, 7000)) is None
        assert stacks[2].find_socket((B, 7000)) is None
        with pytest.raises(OSError, match="7000") as caught:
            channel.listen(C, 7000, "tcp")
        assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_listener_is_nowhere_when_one_engine_refuses(stacks):
    with stacks[1].attach() as other, attached(*stacks) as channel:
        taken = other.listen(B, 7000, "tcp")
        for _ in range(3):
            with pytest.raises(OSError, match="7000") as caught:
                channel.listen("0.0.0.0", 7000, "tcp")
            assert caught.value.errno == errno.EADDRINUSE
            assert stacks[0].find_socket((A, 7000)) is None
            assert stacks[2].find_socket((B, 7000)) is None
        taken.close()
        channel.listen("0.0.0.0", 7000, "tcp")
        assert all(stack.find_socket((stack.ip, 7000)) for stack in stacks)


def test_an_abandoned_listen_is_undone(stacks):
    with attached(*stacks) as channel:
        native = channel._native
        token = lib.mn_chan_listen(native, 0, 7000, lib.MN_PROTO_TCP, 0)
        assert token > 0
        assert lib.mn_chan_forget(native, token) == 0
        assert lib.mn_chan_forget(native, token) == -errno.ENOENT
        # The port is free again once the engines have answered: in the same order, so at the latest
        # with this second answer.
        second = channel.listen("0.0.0.0", 7001, "tcp")
        second.close()
        channel.listen("0.0.0.0", 7000, "tcp").close()
        assert not any(stack.find_socket((stack.ip, 7000)) for stack in stacks)


def test_connections_go_out_by_the_engine_that_has_the_address(stacks):
    servers = [stack.attach() for stack in stacks]
    for server, stack in zip(servers, stacks, strict=True):
        server.listen(stack.ip, 80, "tcp")
    with attached(*stacks) as channel:
        flow = channel.connect(A, A, 80, "tcp")
        channel.send(flow, b"first")
        assert servers[0].recv(timeout=5).data == b"first"
        flows = [channel.connect(B, B, 80, "tcp") for _ in range(4)]
        for flow in flows:
            channel.send(flow, b"turn")
        for server in servers[1:]:
            assert [server.recv(timeout=5).data for _ in range(2)] == [b"turn", b"turn"]
        with pytest.raises(OSError, match="connecting") as caught:
            channel.connect(C, A, 80, "tcp")
        assert caught.value.errno == errno.EADDRNOTAVAIL
    for server in servers:
        server.close()


def test_streams_are_accepted_from_all_engines(stacks):
    with attached(*stacks) as channel:
        listener = channel.listen("0.0.0.0", 8000, "stream")
        clients = [stack.attach() for stack in stacks]
        out = [
            client.connect(stack.ip, stack.ip, 8000, "stream")
            for client, stack in zip(clients, stacks, strict=True)
        ]
        flows = [listener.accept(timeout=5) for _ in clients]
        assert {(flow.local, flow.remote) for flow in flows} == {
            (flow.remote, flow.local) for flow in out
        }
        for flow in out:
            flow.send(b"x" * 3000)
        for flow in flows:
            got = b""
            while len(got) < 3000:
                got += flow.read(timeout=5)
            assert got == b"x" * 3000
            flow.close()
        with pytest.raises(TimeoutError):
            listener.accept(timeout=0)
        for client in clients:
            client.close()


def test_one_sleeper_hears_of_every_engine(stacks):
    """A receive that sleeps is woken by whichever engine has something, again and again."""
    with attached(*stacks) as channel:
        channel.listen("0.0.0.0", 7000, "tcp")
        clients = [ask(stack, 7000, b"hello") for stack in stacks]
        for _ in clients:
            assert channel.recv(timeout=5).data == b"hello"
        for turn in range(30):
            client, flow = clients[turn % 3]
            client.send(flow, b"%d" % turn)
            assert channel.recv(timeout=5).data == b"%d" % turn
        for client, _ in clients:
            client.close()


def test_busy_lanes_take_turns(stacks):
    """Messages of a lane that always has more do not keep those of the others waiting."""
    with attached(*stacks, settings=ChannelSettings(flows_max=64)) as channel:
        channel.listen("0.0.0.0", 7000, "tcp")
        busy, busy_flow = ask(stacks[0], 7000, b"b")
        quiet, quiet_flow = ask(stacks[1], 7000, b"q")
        for _ in range(2):
            channel.recv(timeout=5)
        for _ in range(500):
            busy.send(busy_flow, b"b", timeout=5)
        quiet.send(quiet_flow, b"q")
        while busy.get_option(busy_flow, lib.MN_OPT_SNDQ) or quiet.get_option(
            quiet_flow, lib.MN_OPT_SNDQ
        ):
            pass  # until both have arrived
        assert b"q" in [channel.recv(timeout=5).data for _ in range(3)]
        busy.close()
        quiet.close()


@pytest.mark.parametrize("n", [0, 17])
def test_the_number_of_engines_is_bounded(stacks, n):
    with pytest.raises(ValueError, match=f"over {n} stacks"):
        lend([stacks[0]] * n, SMALL)


def test_flow_ids_of_all_lanes_must_fit(stacks):
    with pytest.raises(ValueError, match="flows_max"):
        lend(stacks, ChannelSettings(flows_max=16384))
    with lend(stacks, ChannelSettings(flows_max=16383)) as lent:
        attach_to(lent).close()


def test_a_dead_lane_is_a_dead_channel(stacks):
    with attached(*stacks) as channel:
        channel.listen("0.0.0.0", 7000, "tcp")
        client, _ = ask(stacks[2], 7000, b"last words")
        while not lib.mn_chan_ready(channel._native) & lib.MN_READY_MSG:
            lib.mn_chan_wait(channel._native, 10**9)
        stacks[0].close(linger=0)
        assert channel.recv(timeout=5).data == b"last words"
        with pytest.raises(BrokenPipeError):
            channel.recv(timeout=5)
        client.close()
