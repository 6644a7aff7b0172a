# SPDX-License-Identifier: MIT
"""One measurement of the demo: a server and a client as processes of their own, and their sidecars."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machnet
from machnet.cli._demo_sidecar import PATIENCE_S, DemoSidecar, PairError, bridge, cable, pinned
from machnet.sim.kernel_host import KernelHost

#: The kernel's address and the sidecar's, of experiments 1 and 3.
SERVER_IPS, CLIENT_IPS = ("10.0.0.1", "10.0.0.2"), ("10.0.3.1", "10.0.3.2")
VETH_IPS = ("10.0.1.1", "10.0.1.2")
#: Client's and server's sidecar of experiment 2.
PAIR_IPS = ("10.0.2.1", "10.0.2.2")
PERCENTILES = ("p50", "p99", "p99.9")
_MODULES = {"posix": "machnet.cli.tcp_msg_gen", "machnet": "machnet.cli.msg_gen"}


@dataclass(frozen=True)
class Case:
    """What is measured: an experiment of the guide, or 0 with the kernel at both ends."""

    experiment: int
    msg_size: int
    msg_window: int
    protocol: str = "tcp"

    @property
    def client(self) -> str:
        """``posix`` or ``machnet``."""
        return "machnet" if self.experiment in {2, 3} else "posix"

    @property
    def server(self) -> str:
        """``posix`` or ``machnet``."""
        return "machnet" if self.experiment in {1, 2} else "posix"

    def __str__(self) -> str:
        what = f"experiment {self.experiment}" if self.experiment else "kernel at both ends"
        if self.experiment == 2:
            what += f" over {self.protocol}"
        return f"{what}, {self.msg_size} bytes, window {self.msg_window}"


@dataclass(frozen=True)
class Outcome:
    """What came of it; ``error`` says what went wrong first when ``errors`` is not 0."""

    case: Case
    seconds: float
    msgs_per_s: float
    latency_us: dict[str, float | None]
    errors: int
    error: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the figures; ``error`` is left out when there was none."""
        return {
            "experiment": self.case.experiment,
            "protocol": self.case.protocol,
            "client": self.case.client,
            "server": self.case.server,
            "msg_size": self.case.msg_size,
            "msg_window": self.case.msg_window,
            "seconds": round(self.seconds, 3),
            "msgs_per_s": self.msgs_per_s,
            "latency_us": self.latency_us,
            "errors": self.errors,
            **({"error": self.error} if self.error is not None else {}),
        }


@dataclass(frozen=True)
class Placement:
    """Where the two processes run, and whether they spin there."""

    client_cpu: int | None
    server_cpu: int | None
    poll: str

    @classmethod
    def choose(cls, client_cpu: int | None, server_cpu: int | None, poll: str) -> Placement:
        """Fill in what is not given from the CPUs that this process may run on.

        Raises:
            ValueError: It may not run on a CPU that is given.
        """
        allowed = sorted(os.sched_getaffinity(0))
        for cpu in (client_cpu, server_cpu):
            if cpu is not None and cpu not in allowed:
                here = ", ".join(map(str, allowed))
                raise ValueError(f"CPU {cpu} is not one that this process may run on ({here})")
        if len(allowed) > 1:
            if client_cpu is None:
                client_cpu = next(cpu for cpu in allowed if cpu != server_cpu)
            if server_cpu is None:
                server_cpu = next(cpu for cpu in allowed if cpu != client_cpu)
        return cls(client_cpu, server_cpu, poll)

    def flags(self) -> list[str]:
        """Flags of both message generators."""
        # On one CPU, who spins keeps the other end from answering.
        apart = self.client_cpu != self.server_cpu
        return [f"--poll={self.poll}", *([] if apart else ["--spin_us=0"])]


class _Child:
    """A message generator that is running; leaving the context ends it."""

    def __init__(self, host: KernelHost, kind: str, flags: Sequence[str], cpu: int | None) -> None:
        command = [sys.executable, "-m", _MODULES[kind], "--json", "--verify", *flags]
        with pinned(cpu):
            # -m looks into the working directory first: not into a checkout, when this is a wheel.
            self._process: subprocess.Popen[bytes] = host.popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=Path(machnet.__file__).resolve().parent.parent,
            )
        self._said = b""

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        # Unlike its own exit, this also closes the pipes when the process is not to be waited for.
        self._process.communicate()

    def wait_line(self, text: bytes) -> None:
        """Wait until it has written a line with ``text`` to standard error.

        Raises:
            PairError: It ended without, or took too long.
        """
        assert self._process.stderr is not None
        fd = self._process.stderr.fileno()
        end = time.monotonic() + PATIENCE_S
        while text not in self._said:
            if not select.select([fd], [], [], max(end - time.monotonic(), 0))[0]:
                raise PairError(f"no {text.decode()} within {PATIENCE_S:g} s: {self._last_words()}")
            piece = os.read(fd, 65536)
            if not piece:
                raise PairError(self._last_words())
            self._said += piece

    def interrupt(self) -> None:
        """Tell it to end, as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def result(self, timeout_s: float) -> dict[str, Any]:
        """Wait for its end and return the last JSON object that it wrote.

        Raises:
            PairError: It took too long, or did not write one.
        """
        try:
            out, err = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise PairError(f"still running after {timeout_s:g} s: {self._last_words()}") from None
        self._said += err
        try:
            final: dict[str, Any] = json.loads(out.splitlines()[-1])
        except (IndexError, ValueError):
            raise PairError(self._last_words()) from None
        return final

    def _last_words(self) -> str:
        lines = self._said.decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line), "it ended without a word")


class Lab:
    """The hosts between which pairs are measured, and the sidecars. A context manager.

    A sidecar is started when it is needed first, and stays until the end: one for experiment 1 and one for
    3, on TAPs whose other ends are the kernel's, and two on TAPs that are bridged, for experiment 2. With
    DPDK each is on one end of a veth pair, through ``net_af_packet``; the two of experiment 2 share a pair.

    Args:
        seconds: How long each measurement takes.
        placement: Where the processes run.
        dpdk: Whether sidecars have DPDK ports.

    Raises:
        KernelHostError: There can be no such hosts here.
    """

    def __init__(self, seconds: float, placement: Placement, *, dpdk: bool = False) -> None:
        self._seconds = seconds
        self._placement = placement
        self._dpdk = dpdk
        self._cables: set[str] = set()
        self._cleanup = contextlib.ExitStack()
        self._sidecars: dict[str, DemoSidecar] = {}
        self._fds: dict[str, int] = {}

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as cleanup:
            self._near = cleanup.enter_context(KernelHost("demo-near"))
            self._far = cleanup.enter_context(KernelHost("demo-far"))
            KernelHost.connect(self._near, self._far, f"{VETH_IPS[0]}/24", f"{VETH_IPS[1]}/24")
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        try:
            self._end_sidecars()
        finally:
            self._cleanup.close()

    def _end_sidecars(self) -> None:
        with contextlib.ExitStack() as cleanup:
            for sidecar in self._sidecars.values():
                cleanup.callback(sidecar.close)
            for fd in self._fds.values():
                cleanup.callback(os.close, fd)
            self._sidecars, self._fds = {}, {}

    def _nic(
        self, name: str, kernel_ip: str | None, other: str | None
    ) -> tuple[str, tuple[int, ...]]:
        """A sidecar's NIC, and the descriptors that it needs.

        Args:
            name: Its interface.
            kernel_ip: Of the kernel at its other end.
            other: The interface of the sidecar at its other end.
        """
        if not self._dpdk:
            if name not in self._fds:
                self._fds[name] = self._near.open_tap(name, kernel_ip=kernel_ip)
            return f"tap:fd={self._fds[name]}", (self._fds[name],)
        if name not in self._cables:
            ends = (other or f"{name}-k", name)
            cable(self._near, ends, kernel_ip)
            self._cables |= set(ends)
        return f"dpdk:{name}", ()

    def _sidecar(
        self,
        name: str,
        ip: str,
        cpu: int | None,
        kernel_ip: str | None = None,
        other: str | None = None,
    ) -> DemoSidecar:
        nic, fds = self._nic(name, kernel_ip, other)
        sidecar = self._sidecars.get(name)
        if sidecar is None:
            sidecar = DemoSidecar(self._near, nic, fds, ip, self._placement.poll, cpu)
            self._sidecars[name] = sidecar
        return sidecar

    def _alone(self, case: Case) -> DemoSidecar:
        """The sidecar of experiments 1 and 3, on its application's CPU."""
        if case.server == "machnet":
            kernel_ip, ip = SERVER_IPS
            return self._sidecar("mnserver", ip, self._placement.server_cpu, f"{kernel_ip}/24")
        kernel_ip, ip = CLIENT_IPS
        return self._sidecar("mnclient", ip, self._placement.client_cpu, f"{kernel_ip}/24")

    def _pair(self) -> tuple[DemoSidecar, DemoSidecar]:
        """Both sidecars of experiment 2."""
        fresh = not self._dpdk and "mna" not in self._fds
        place = self._placement
        near = self._sidecar("mna", PAIR_IPS[0], place.client_cpu, other="mnb")
        far = self._sidecar("mnb", PAIR_IPS[1], place.server_cpu, other="mna")
        if fresh:
            bridge(self._near, ("mna", "mnb"))
        return near, far

    def measure(self, case: Case) -> Outcome:
        """Run one pair to its end. What goes wrong is part of the outcome."""
        began = time.monotonic()
        try:
            with contextlib.ExitStack() as cleanup:
                client, server = self._run(case, cleanup)
        except PairError as error:
            # Whatever it was, the next measurement does not inherit it.
            self._end_sidecars()
            seconds = time.monotonic() - began
            return Outcome(case, seconds, 0.0, dict.fromkeys(PERCENTILES), 1, str(error))
        return judge(case, client, server)

    def _ends(self, case: Case) -> tuple[list[str], list[str], KernelHost, str]:
        """Flags of the client and of the server, the server's host and its address."""
        if case.experiment == 0:
            return [], [], self._far, VETH_IPS[1]
        if case.experiment == 2:
            near, far = self._pair()
            return _attached(near, case), _attached(far, case), self._near, far.ip
        sidecar = self._alone(case)
        flags = _attached(sidecar, case)
        if case.server == "machnet":
            return [], flags, self._near, sidecar.ip
        return flags, [], self._near, CLIENT_IPS[0]

    def _run(
        self, case: Case, cleanup: contextlib.ExitStack
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        common = [f"--msg_size={case.msg_size}", *self._placement.flags()]
        client_flags, server_flags, server_host, server_ip = self._ends(case)
        server = cleanup.enter_context(
            _Child(server_host, case.server, [*common, *server_flags], self._placement.server_cpu)
        )
        server.wait_line(b"[LISTENING]")
        flags = [*common, *client_flags]
        flags += [f"--msg_window={case.msg_window}", f"--duration={self._seconds}"]
        flags.append(f"--remote_ip={server_ip}")
        client = cleanup.enter_context(
            _Child(self._near, case.client, flags, self._placement.client_cpu)
        )
        client_result = client.result(self._seconds + PATIENCE_S)
        server.interrupt()
        return client_result, server.result(PATIENCE_S)


def _attached(sidecar: DemoSidecar, case: Case) -> list[str]:
    """Flags of a ``msg_gen`` that attaches to a sidecar."""
    return [
        f"--protocol={case.protocol}",
        f"--local_ip={sidecar.ip}",
        f"--socket={sidecar.socket}",
    ]


def judge(case: Case, client: dict[str, Any], server: dict[str, Any]) -> Outcome:
    """Decide from the last words of both ends whether every message came back right."""
    found = []
    for name, result in (("client", client), ("server", server)):
        if result["errors"] or result["exit_code"]:
            said = result["error"] or f"{result['errors']} errors"
            found.append((max(result["errors"], 1), f"{name}: {said}"))
    sent, answered, taken = client["tx_msgs"], client["rx_msgs"], server["rx_msgs"]
    if answered == 0:
        found.append((1, "no message was answered"))
    if not sent == answered == taken == server["tx_msgs"]:
        counts = f"{sent} sent, {taken} arrived, {server['tx_msgs']} answered, {answered} came back"
        found.append((1, counts))
    latency = client["latency_us"] or {}
    return Outcome(
        case=case,
        seconds=client["elapsed_s"],
        msgs_per_s=client["rx_msgs_per_s"],
        latency_us={name: latency.get(name) for name in PERCENTILES},
        errors=sum(count for count, _ in found),
        error=found[0][1] if found else None,
    )
