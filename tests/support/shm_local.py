# SPDX-License-Identifier: MIT
"""A lent channel whose application is this process: the code of both ends, without the other one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import machnet
from machnet.config import ChannelSettings
from machnet.stack.lending import Lent, attach_fds, lend

SMALL = ChannelSettings(buf_bytes=2048, tx_bufs=256, rx_bufs=256, flows_max=64, ctl_slots=64)


def attach_to(lent: Lent) -> machnet.Channel:
    """The application's end of a loan, which has its own copies of the descriptors."""
    fds = [os.dup(fd) for fd in lent.fds]
    lent.close_fds()
    return attach_fds(fds)


@contextmanager
def attached(
    *stacks: machnet.Stack, settings: ChannelSettings = SMALL
) -> Iterator[machnet.Channel]:
    """A channel over stacks, lent and attached to."""
    with lend(stacks, settings) as lent, attach_to(lent) as channel:
        yield channel
