# SPDX-License-Identifier: MIT
"""A NIC that is bound for one run, and given back at its end, however that comes.

A guardian, a small process of its own, waits for the end of the run: a pipe that is closed, or the end of
the process that holds it. Then it gives the NIC back, as `machnet.dpdk.bind.unbind` does. It is there
before the NIC is taken, so that there is no moment at which nobody would.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from machnet.dpdk.bind import Machine, bind, unbind
from machnet.dpdk.devices import USERSPACE, Device, Target, resolve
from machnet.dpdk.records import Owner, load_all, new_owner

if TYPE_CHECKING:
    from typing import Any

__all__ = ["BoundForRun", "prepare"]

#: The guardian has the module search path of who started it, and nothing of its working directory.
_START = (
    "import json, sys; told = json.loads(sys.argv[1]); sys.path[:] = told.pop('path'); "
    "from machnet.dpdk.forrun import guard; sys.exit(guard(**told))"
)
#: How long `BoundForRun.close` waits for the guardian, in seconds.
_CLOSE_S = 30.0
_READY_S = 60.0


class BoundForRun:
    """Binds a NIC until `close`, or until this process ends.

    Args:
        name: Interface, PCI address, VMBUS UUID or MAC address.
        driver: See `machnet.dpdk.bind.bind`.
        machine: Where things are.

    Raises:
        ValueError, OSError: As `machnet.dpdk.bind.bind`.
    """

    def __init__(
        self, name: str, driver: str | None = None, *, machine: Machine | None = None
    ) -> None:
        self._machine = machine or Machine()
        self._owner = new_owner()
        self._pipe = -1
        self._guardian: subprocess.Popen[bytes] | None = None
        address = self._machine.find(name).address
        try:
            if address:
                self._watch(address)
            #: The NIC, bound.
            self.device: Device = bind(name, driver, owner=self._owner, machine=self._machine)
        except BaseException:
            self.close()
            raise

    def _watch(self, address: str) -> None:
        """Start the guardian, and wait until it is there."""
        machine = self._machine
        watched, self._pipe = os.pipe()
        ready, tell = os.pipe()
        passed = [watched, tell]
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(os.close, ready)
            closing = cleanup.enter_context(contextlib.ExitStack())
            for fd in passed:
                closing.callback(os.close, fd)
            pidfd = -1
            # Not only the pipe: a child that we fork has its other end, too, and may outlive us.
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(self._owner.pid)
                closing.callback(os.close, pidfd)
                passed.append(pidfd)
            told = {
                "path": [os.path.abspath(part) for part in sys.path],  # noqa: PTH100 - "" too
                "address": address,
                "owner": dataclasses.astuple(self._owner),
                "sysfs": machine.sysfs,
                "run": machine.run,
                "pipe": watched,
                "pidfd": pidfd,
                "ready": tell,
            }
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, json.dumps(told)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                pass_fds=passed,
                start_new_session=True,
            )
            closing.close()
            if not select.select([ready], [], [], _READY_S)[0] or not os.read(ready, 1):
                text = "the process that would give the NIC back after a crash did not start"
                raise OSError(errno.ECHILD, text)

    def close(self) -> None:
        """Give the NIC back. Again: nothing. Of a forked child: nothing.

        Raises:
            OSError: It could not be.
        """
        pipe, self._pipe = self._pipe, -1
        if pipe < 0 or os.getpid() != self._owner.pid:
            return
        os.close(pipe)
        guardian, self._guardian = self._guardian, None
        if guardian is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                guardian.wait(_CLOSE_S)
            if guardian.returncode is None:
                # It waits for the driver, which lets go at the latest when this process ends.
                return
        # What it did not do, because it was ended before.
        for record in load_all(self._machine.run).values():
            if record.owner == self._owner and self._is_mine(record.address):
                unbind(record.address, only=self._owner, machine=self._machine)

    def _is_mine(self, address: str) -> bool:
        return getattr(self, "device", None) is not None and self.device.address == address

    def __enter__(self) -> BoundForRun:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def guard(
    *,
    address: str,
    owner: tuple[int, int, int],
    sysfs: str,
    run: str,
    pipe: int,
    pidfd: int,
    ready: int,
) -> int:
    """The guardian: wait for the end of a run, then give its NIC back.

    Args:
        address: Of the NIC.
        owner: The process, as `machnet.dpdk.records.Owner` has it.
        sysfs: Where sysfs is.
        run: Where NICs that are bound are remembered.
        pipe: Ends with the run.
        pidfd: The process; -1: unknown.
        ready: To be told that the guardian is there.

    Returns:
        The exit status: 1 when something went wrong, which standard error says.
    """
    # Ctrl-C, a terminal that goes and a service that is stopped mean the run, which ends in time.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.write(ready, b"!")
    os.close(ready)
    poll = select.poll()
    for fd in (pipe, pidfd):
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    poll.poll()
    machine = Machine(sysfs=sysfs, run=run)
    try:
        problems = unbind(address, force=True, only=Owner(*owner), machine=machine)
    except OSError as error:
        problems = [f"giving back {address}: {error.strerror or error}"]
    for text in problems:
        print(f"machnet: {text}", file=sys.stderr)
    return 1 if problems else 0


def prepare(
    rest: str, *, bind: bool = False, machine: Machine | None = None, **more: Any
) -> tuple[Target, BoundForRun | None]:
    """What a NIC string behind ``dpdk:`` names, bound for this run if that is wanted and needed.

    Args:
        rest: See `machnet.dpdk.devices.resolve`, to which ``more`` goes.
        bind: Take the NIC from the kernel, if it has it.
        machine: Where things are.
        more: ``queues``, ``mtu`` and ``number``.

    Returns:
        What DPDK is to probe, and what is to be closed after its port.

    Raises:
        ValueError, OSError: As `resolve`, and `machnet.dpdk.bind.bind`.
    """
    machine = machine or Machine()
    held = _hold(rest.partition(",")[0], machine) if bind else None
    try:
        return resolve(rest, sysfs=machine.sysfs, run=machine.run, **more), held
    except BaseException:
        if held is not None:
            held.close()
        raise


def _hold(name: str, machine: Machine) -> BoundForRun | None:
    try:
        device = machine.find(name)
    except OSError:
        return None  # a virtual device, or what `resolve` will refuse
    if device.bus not in USERSPACE:
        return None
    left_behind = device.record is not None and device.record.owner is not None
    if device.state in {"kernel", "none"} or (device.state == "userspace" and left_behind):
        return BoundForRun(name, machine=machine)
    return None
