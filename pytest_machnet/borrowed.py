# SPDX-License-Identifier: MIT
"""Interfaces of the user's own that tests ran on: as they were, once the run is over.

A test wants the kernel quiet on an interface that a driver reads beside it, and whole frames from its other
end. Both stay so until the run ends: tests follow each other, and each change takes its time.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from machnet.testing.remote import Agent

__all__ = ["give_back_all", "take_end", "take_far", "take_near"]

#: What `machnet.sim.kernel_host.leave_alone` changes.
_SETTINGS = (
    "ipv4/{}/forwarding",
    "ipv4/{}/arp_ignore",
    "ipv4/{}/rp_filter",
    "ipv6/{}/disable_ipv6",
)

#: In the namespace of an agent, which is on this machine.
_OFFLOADS = """
import json, runpy, sys
switch = runpy.run_path(sys.argv[1])["_op_offloads"]
print(json.dumps(switch(sys.argv[2], None)[0]))
switch(sys.argv[2], json.loads(sys.argv[3]))
"""

_taken: set[tuple[str, str]] = set()
_give_back: list[Callable[[], None]] = []


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def take_near(name: str) -> None:
    """Have an interface of this namespace up, and the kernel quiet on it.

    Args:
        name: Of the interface, at which a driver's own user is.
    """
    from machnet.sim.kernel_host import change_link, leave_alone

    if ("near", name) not in _taken and (index := _index(name)):
        _taken.add(("near", name))
        _give_back.append(_remember(name, index))
    leave_alone(name)
    change_link(name, state="up")


def _remember(name: str, index: int) -> Callable[[], None]:
    """A function that makes an interface of this namespace what it is now."""
    from machnet.dpdk.links import Links
    from machnet.sim.kernel_host import change_link

    before: dict[Path, str] = {}
    for setting in _SETTINGS:
        family, place, key = setting.split("/")
        path = Path("/proc/sys/net") / family / "conf" / place.format(name) / key
        with contextlib.suppress(OSError):
            before[path] = path.read_text()
    former = Links().former(name, "")

    def give_back() -> None:
        if _index(name) != index:
            return
        for path, text in before.items():
            with contextlib.suppress(OSError):
                path.write_text(text)
        if not former.up:
            change_link(name, state="down")
        # With IPv6 off, its addresses were gone.
        with contextlib.suppress(OSError):
            Links().restore(former, name)

    return give_back


def take_far(agent: Agent, name: str) -> None:
    """See to it that only whole frames leave by an interface.

    Args:
        agent: In its namespace, on this machine.
        name: Of the interface.

    Raises:
        OSError: That can't be done.
    """
    on = _switch(agent, name, on=[])
    if (agent.name, name) in _taken:
        return
    _taken.add((agent.name, name))

    def give_back() -> None:
        with contextlib.suppress(OSError):
            _switch(agent, name, on=on)

    _give_back.append(give_back)


def _switch(agent: Agent, name: str, *, on: list[str]) -> list[str]:
    """Have these offloads on and no others; those that were on before."""
    from machnet.sim import _nsinit

    words = [sys.executable, "-I", "-S", "-c", _OFFLOADS, _nsinit.__file__, name, json.dumps(on)]
    return _those_on(json.loads(agent.run(words).stdout))


def _those_on(offloads: dict[str, bool]) -> list[str]:
    return [feature for feature, on in offloads.items() if on]


def take_end(name: str) -> None:
    """Remember an interface of this namespace that is in another one for each test, and then here again.

    Args:
        name: Of the interface; nobody uses it.
    """
    from machnet.sim import _nsinit

    index = _index(name)
    if ("end", name) in _taken or not index:
        return
    _taken.add(("end", name))
    on = _those_on(_nsinit._op_offloads(name, None)[0])  # noqa: SLF001 (no namespace of its own)
    as_before = _remember(name, index)

    def give_back() -> None:
        with contextlib.suppress(OSError, _nsinit.StepError):
            _nsinit._op_offloads(name, on)  # noqa: SLF001
        as_before()

    _give_back.append(give_back)


def give_back_all() -> None:
    """Make all of them what they were; the run is over, and its agents are still there."""
    while _give_back:
        _give_back.pop()()
    _taken.clear()
