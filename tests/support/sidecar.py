# SPDX-License-Identifier: MIT
"""A sidecar as a process of its own: `Sidecar`, `tap_sidecar`, `joined_sidecars`."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import machnet
from machnet.sim.kernel_host import KernelHost

KERNEL_IP, SIDECAR_IP = "10.0.0.1", "10.0.0.2"
#: How long it may take to start, and to end, in seconds.
PATIENCE_S = 60.0


class SidecarError(AssertionError):
    """The sidecar did not do what it should; the text has its log."""


class Sidecar:
    """A running sidecar. A context manager; it is ready when it is entered.

    Args:
        nic: NIC string; None: ``args`` have what is needed (``--config``).
        ip: Its address, with a length if it is not 24.
        args: More of ``machnet run``.
        socket: Of the controller; None: one in a directory of its own.
        host: Run there; None: here.
        pass_fds: Descriptors for the process, as for a NIC ``tap:fd=N``.
        env: Added to the environment.
        ready: Whether to wait until it serves; `wait_ready` does it later.

    Attributes:
        socket: Path of the controller: for ``MACHNET_SOCKET`` or ``attach(socket=...)``.
        ip: Its address without the length.
        process: The ``subprocess.Popen``.
    """

    def __init__(
        self,
        nic: str | None = None,
        ip: str = SIDECAR_IP,
        *args: str,
        socket: str | None = None,
        host: KernelHost | None = None,
        pass_fds: Sequence[int] = (),
        env: dict[str, str] | None = None,
        ready: bool = True,
    ) -> None:
        self._cleanup = contextlib.ExitStack()
        try:
            # Short: a socket's path has 107 bytes.
            self.directory = Path(
                self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="mn-sidecar-"))
            )
            self.directory.chmod(0o755)  # other users may want to attach
            self.socket = socket or str(self.directory / "ctrl.sock")
            self.ip = ip.partition("/")[0]
            self._log = self._cleanup.enter_context((self.directory / "log").open("w+b"))
            self._ready, ready_fd = os.pipe()
            self._cleanup.callback(os.close, self._ready)
            command = [sys.executable, "-m", "machnet.cli.run", f"--socket={self.socket}"]
            if nic is not None:
                command += [f"--nic={nic}", f"--ip={ip}"]
            popen: Any = subprocess.Popen if host is None else host.popen
            try:
                self.process: subprocess.Popen[bytes] = popen(
                    [*command, f"--ready-fd={ready_fd}", *args],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    pass_fds=(*pass_fds, ready_fd),
                    env={**os.environ, **(env or {})},
                    # -m looks into the working directory first: not into a checkout.
                    cwd=Path(machnet.__file__).resolve().parent.parent,
                )
            finally:
                os.close(ready_fd)
            if ready:
                self.wait_ready()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def wait_ready(self) -> None:
        """Wait until it serves.

        Raises:
            SidecarError: It ended, or took too long.
        """
        if not select.select([self._ready], [], [], PATIENCE_S)[0]:
            raise SidecarError(f"not ready within {PATIENCE_S:g} s\n{self.log()}")
        if not os.read(self._ready, 4096):
            status = self.process.wait(PATIENCE_S)
            raise SidecarError(f"it ended with status {status}\n{self.log()}")

    def log(self) -> str:
        """What it has written so far."""
        return (self.directory / "log").read_text(errors="replace")

    def wait_log(self, text: str) -> str:
        """Wait until it has written something; all that it has written by then.

        Raises:
            SidecarError: It took too long.
        """
        end = time.monotonic() + PATIENCE_S
        while text not in (said := self.log()):
            if time.monotonic() > end:
                raise SidecarError(f"no {text!r} within {PATIENCE_S:g} s\n{said}")
            time.sleep(0.01)
        return said

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; the exit status.

        Raises:
            SidecarError: It took too long.
        """
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise SidecarError(f"still running after {PATIENCE_S:g} s\n{self.log()}") from None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it in the ordinary way; the exit status."""
        if self.process.poll() is None:
            self.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.wait()

    def close(self) -> None:
        """End it however it is, and remove its files. Again: nothing."""
        process = getattr(self, "process", None)
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        self._cleanup.close()

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        if kind is not None:
            print(f"--- log of the sidecar on {self.socket}\n{self.log()}", file=sys.stderr)
            self.close()
            return
        try:
            status = self.stop() if self.process.returncode is None else 0
            if status != 0:
                raise SidecarError(f"it ended with status {status}\n{self.log()}")
        finally:
            self.close()


@contextlib.contextmanager
def tap_sidecar(
    host: KernelHost, *args: str, ip: str = f"{SIDECAR_IP}/24", **options: Any
) -> Iterator[Sidecar]:
    """A sidecar on a TAP whose other end is the kernel's, `KERNEL_IP`, on ``host``."""
    fd = host.open_tap("mn0", kernel_ip=f"{KERNEL_IP}/24")
    try:
        with Sidecar(f"tap:fd={fd}", ip, *args, pass_fds=[fd], **options) as sidecar:
            yield sidecar
    finally:
        os.close(fd)


@contextlib.contextmanager
def joined_sidecars(
    *args: str, ips: tuple[str, str] = ("10.0.0.1", "10.0.0.2"), **options: Any
) -> Iterator[tuple[Sidecar, Sidecar]]:
    """Two sidecars with a cable between them, in no namespace: any user can have them."""
    with tempfile.TemporaryDirectory(prefix="mn-link-") as directory:
        nic = f"link:{directory}/cable"
        first = Sidecar(nic, ips[0], *args, ready=False, **options)
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(first.close)
            second = Sidecar(nic, ips[1], *args, ready=False, **options)
            cleanup.callback(second.close)
            first.wait_ready()
            second.wait_ready()
            cleanup.pop_all()
            with first, second:
                yield first, second
