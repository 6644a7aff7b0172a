# SPDX-License-Identifier: MIT
"""The pool of out-of-order and held data is shared: no channel takes all of it."""

from __future__ import annotations

import contextlib
import itertools

import machnet
from machnet.sim import Wire

BLOCKS = 100
LANES = 4
#: Data that one connection may have outstanding: far more than the pool, over all of them.
FLOWS = 12


def greedy(server: machnet.Stack, client: machnet.Stack, port: int) -> machnet.Channel:
    """A channel that never receives, with connections that bring it more than it has room for."""
    app = server.attach(buf_bytes=512, rx_bufs=16, tx_bufs=16, flows_max=64)
    app.listen(server.ip, port, "tcp")
    peer = client.attach()
    for _ in range(FLOWS):
        flow = peer.connect(client.ip, server.ip, port, "tcp")
        with contextlib.suppress(BlockingIOError):
            for _ in range(200):
                peer.send(flow, bytes(400))
    client.advance(20_000_000)
    return app


def test_one_that_never_receives_leaves_room_for_others():
    a, b = Wire.pair()
    with (
        machnet.Stack(a, ip="10.0.0.1", seed=1) as client,
        machnet.Stack(b, ip="10.0.0.2", seed=2, ooo_blocks_max=BLOCKS, lanes_max=LANES) as server,
    ):
        apps = []
        taken = [0]
        for port in range(80, 84):
            apps.append(greedy(server, client, port))
            taken.append(server.usage()["ooo_blocks"])
        shares = [after - before for before, after in itertools.pairwise(taken)]
        # Each of the channels, and who is nobody's yet, is promised an equal part of a quarter. One
        # alone gets four fifths of the rest.
        promise = BLOCKS // 4 // (LANES + 1)
        assert shares[0] == 66
        assert all(share >= promise for share in shares)
        assert taken[-1] <= BLOCKS - promise
        for app in apps:
            app.close(linger=0)
        client.advance(10_000_000)
        assert server.usage()["ooo_blocks"] == 0
