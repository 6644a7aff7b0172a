# SPDX-License-Identifier: MIT
"""One guest with all that lies around it, and what is done with it.

In the host's namespace a bridge joins the guest's NICs with a TAP for a machnet of the host's; the bridge's own
address is that of the host's kernel.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from guest import PCI, Command, Guest, GuestError, Machine, last_object
from image import Image

import machnet
from machnet.sim.kernel_host import KernelHost

KERNEL_IP = "10.77.0.1"
GUEST_IP = "10.77.0.2"
#: Of the machnet on the host, in experiment 2.
OTHER_IP = "10.77.0.3"
#: The NIC that most is done with, and its peer in tests between two machnets.
NIC, PEER_NIC = PCI
#: Where the package is: a process of -m looks into its working directory first, not into a checkout.
PACKAGES = Path(machnet.__file__).resolve().parent.parent
PATIENCE_S = 180.0
BRIDGE = "bridge0"


def installed(name: str) -> str:
    """A command of the environment that this runs in."""
    return str(Path(sys.executable).parent / name)


class HostCommand:
    """A command in the host's namespace, with the face of `guest.Command`."""

    def __init__(self, host: KernelHost, argv: list[str], folder: Path, fds: list[int]) -> None:
        self._path = folder / f"host-{secrets.token_hex(4)}.txt"
        self._name = " ".join(argv)
        with self._path.open("wb") as out:
            self._process = host.popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
                cwd=PACKAGES,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._path.read_text(errors="replace")

    def expect(self, text: str, timeout: float = PATIENCE_S) -> None:
        """Wait until it has printed something."""
        end = time.monotonic() + timeout
        while text not in self.output:
            if self._process.poll() is not None or time.monotonic() > end:
                raise GuestError(f"no {text!r} from {self._name}:\n{self.output}")
            time.sleep(0.02)

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Wait for its end; its status."""
        try:
            return int(self._process.wait(timeout))
        except subprocess.TimeoutExpired:
            raise GuestError(f"{self._name} goes on after {timeout:g} s:\n{self.output}") from None

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def stop(self, timeout: float = PATIENCE_S) -> int:
        """End it by SIGTERM; its status."""
        self.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def figures(self) -> dict[str, Any]:
        """The last line of JSON that it has printed."""
        return last_object(self.output)


class Lab:
    """A guest, its peers, and what is done with them; a context manager.

    Args:
        image: What the guest is started from.
        machine: What it is made of.
        driver: Through which DPDK is to reach the NIC: vfio-pci or uio_pci_generic.
        folder: Of the caller's, for all that is written.
    """

    def __init__(self, image: Image, machine: Machine, driver: str, folder: Path) -> None:
        self.driver = driver
        self.machine = machine
        self.folder = folder
        self._numbers = 0
        self._exits = contextlib.ExitStack()
        with self._exits:
            self.host = self._exits.enter_context(KernelHost("qemu"))
            self.guest = self._exits.enter_context(Guest(image, machine, self.host, folder))
            self._bridge()
            self._exits = self._exits.pop_all()

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        self._exits.close()

    def _bridge(self) -> None:
        self.tap = self.host.open_tap("machnet0")
        self._exits.callback(os.close, self.tap)
        with self.host.iproute() as route:
            route.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, br_forward_delay=0)
            (index,) = route.link_lookup(ifname=BRIDGE)
            for name in (*PCI, "machnet0"):
                (port,) = route.link_lookup(ifname=name)
                route.link("set", index=port, master=index)
            route.link("set", index=index, state="up")
        self.host.add_address(BRIDGE, f"{KERNEL_IP}/24")

    def on_host(self, *argv: str, fds: list[int] | None = None) -> HostCommand:
        """Start a command in the host's namespace."""
        return HostCommand(self.host, list(argv), self.folder, fds or [])

    def start(self, *argv: str, **env: str) -> Command:
        """Start a command in the guest."""
        return self.guest.popen(argv, cwd=PACKAGES, env=self._environment(env))

    def run(self, *argv: str, timeout: float = PATIENCE_S, status: int | None = 0) -> str:
        """Run a command in the guest that must end with a status (None: any but 0); its output."""
        done = self.guest.run(
            argv, cwd=PACKAGES, env=self._environment({}), timeout=timeout, check=False
        )
        if done.status == 0 if status is None else done.status != status:
            raise GuestError(f"{done}: status {done.status}, not {status}\n{done.output}")
        return done.output

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        kept = ("PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE", "PYTHONSAFEPATH", "CI")
        return {name: os.environ[name] for name in kept if name in os.environ} | more
