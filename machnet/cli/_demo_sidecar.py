# SPDX-License-Identifier: MIT
"""The sidecars of the demo: processes on TAP devices of a Linux host, or on DPDK ports there."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machnet
from machnet.leftovers import run_directory
from machnet.sim.kernel_host import KernelHost

#: How long a process may take to start, or to end, in seconds.
PATIENCE_S = 60.0

_numbers = itertools.count()


class PairError(Exception):
    """A measurement could not be made; the message says why."""


@contextlib.contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Let processes that are started meanwhile run on one CPU only."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class DemoSidecar:
    """A sidecar that is running and ready; `close` ends it.

    Args:
        host: Where it runs; it ends with it at the latest.
        nic: NIC string.
        pass_fds: Descriptors that the NIC needs; they stay the caller's.
        ip: Its address.
        poll: ``busy`` or ``adaptive``.
        cpu: It may run on this one only; None: on any.

    Raises:
        PairError: It did not start; the text has its last words.
    """

    def __init__(
        self,
        host: KernelHost,
        nic: str,
        pass_fds: tuple[int, ...],
        ip: str,
        poll: str,
        cpu: int | None,
    ) -> None:
        with contextlib.ExitStack() as cleanup:
            directory = cleanup.enter_context(run_directory("demo"))
            self.ip = ip
            self.socket = f"{directory}/ctrl.sock"
            self._log = cleanup.enter_context((Path(directory) / "log").open("w+b"))
            ready, ready_fd = os.pipe()
            cleanup.callback(os.close, ready)
            command = [sys.executable, "-m", "machnet.cli.run", f"--socket={self.socket}"]
            command += [f"--nic={nic}", f"--ip={ip}/24", f"--poll={poll}", "--drain_ms=100"]
            try:
                with pinned(cpu):
                    self._process: subprocess.Popen[bytes] = host.popen(
                        [*command, f"--ready_fd={ready_fd}"],
                        stdin=subprocess.DEVNULL,
                        stdout=self._log,
                        stderr=self._log,
                        pass_fds=[*pass_fds, ready_fd],
                        # -m looks into the working directory first: not into a checkout.
                        cwd=Path(machnet.__file__).resolve().parent.parent,
                    )
            finally:
                os.close(ready_fd)
            cleanup.callback(self._stop)
            if not select.select([ready], [], [], PATIENCE_S)[0]:
                raise PairError(f"the sidecar is not ready within {PATIENCE_S:g} s")
            if not os.read(ready, 4096):
                raise PairError(f"the sidecar did not start: {self._last_words()}")
            self._cleanup = cleanup.pop_all()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line), "it ended without a word")

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def _stop(self) -> None:
        if not self.running:
            return
        self._process.terminate()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End it, and remove its files."""
        self._cleanup.close()


def cable(host: KernelHost, names: tuple[str, str], kernel_ip: str | None) -> None:
    """Join two new interfaces of a host by a cable (a veth pair), for DPDK's packet sockets.

    What the kernel sends on the first one is finished and within the MTU, as a wire would have it.

    Args:
        host: Where both are.
        names: The kernel's end, and that of a sidecar; without ``kernel_ip`` both are sidecars'.
        kernel_ip: Address of the kernel's end, as "10.0.0.1/24".
    """
    with host.iproute() as route:
        route.link("add", ifname=names[0], kind="veth", peer=names[1])
    for name in names:
        host.sysctl(f"net.ipv6.conf.{name}.disable_ipv6", 1)
        host.set_offloads(name, on=False)
    if kernel_ip is not None:
        host.add_address(names[0], kernel_ip)
    for name in names:
        host.set_link(name, up=True)


def bridge(host: KernelHost, names: tuple[str, str]) -> None:
    """Join two interfaces of a host, and wait until frames pass.

    Raises:
        PairError: They do not within `PATIENCE_S`.
    """
    with host.iproute() as route:
        name = f"mnbr{next(_numbers)}"
        route.link("add", ifname=name, kind="bridge", br_stp_state=0, br_forward_delay=0)
        index = route.link_lookup(ifname=name)[0]
        ports = [route.link_lookup(ifname=name)[0] for name in names]
        for port in ports:
            route.link("set", index=port, master=index)
        route.link("set", index=index, state="up")
        end = time.monotonic() + PATIENCE_S
        while not all(_forwards(route.get_links(port)[0]) for port in ports):
            if time.monotonic() > end:
                raise PairError("the bridge between the two sidecars does not forward")
            time.sleep(0.005)


def _forwards(link: Any) -> bool:
    """Whether a bridge's port is in the state "forwarding" (3)."""
    info = link.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_SLAVE_DATA") if info is not None else None
    return data is not None and data.get_attr("IFLA_BRPORT_STATE") == 3
