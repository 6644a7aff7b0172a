# SPDX-License-Identifier: MIT
"""What an inner run of pytest printed."""

from __future__ import annotations

import re
from typing import Any

#: The example of the documentation, unchanged.
ECHO = """
    import pytest

    @pytest.mark.machnet(loss=0.05, latency="200us")
    def test_echo(machnet_channel, machnet_peer):
        server = machnet_peer.attach()
        server.listen(machnet_peer.ip, 7000, protocol="tcp")
        ch = machnet_channel()
        flow = ch.connect(ch.ip, machnet_peer.ip, 7000, protocol="tcp", timeout=5)
        ch.send(flow, b"ping")
        msg = server.recv(timeout=5)
        server.send(msg.flow, msg.data[::-1])
        assert ch.recv(timeout=5).data == b"gnip"
"""


def section_of(result: Any) -> list[str]:
    """The lines of the plugin's section; there is just one."""
    lines = result.outlines
    starts = [i for i, line in enumerate(lines) if re.fullmatch(r"-+ machnet -+", line)]
    assert len(starts) == 1, result.stdout.str()
    found = []
    for line in lines[starts[0] + 1 :]:
        if re.match(r"(=|-|_){10,}", line):
            break
        found.append(line)
    return found
