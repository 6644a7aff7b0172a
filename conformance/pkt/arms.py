# SPDX-License-Identifier: MIT
"""What both arms of a script have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from .flows import Endpoints

__all__ = ["ARMS", "Arm", "Configuration", "Pending", "open_arm", "unavailable"]

ARMS = ("machnet", "linux")


@dataclass(frozen=True)
class Configuration:
    """What a script and the command line say of the host under test.

    Attributes:
        local_ip: The stack's address.
        remote_ip: The script's address.
        prefix: Length of the network's prefix.
        mtu: Bytes.
        kernel_defaults: Leave Linux as the kernel has it, instead of what the RFCs say.
        sysctls: Settings in force before the first system call, in their order.
    """

    local_ip: str = "192.168.0.1"
    remote_ip: str = "192.0.2.1"
    prefix: int = 16
    mtu: int = 1500
    kernel_defaults: bool = False
    sysctls: tuple[tuple[str, str], ...] = field(default=())


class Pending(Protocol):
    """A system call under way."""

    @property
    def done(self) -> bool:
        """Whether it has returned."""

    @property
    def ended_ns(self) -> int:
        """When it returned, on the arm's clock."""

    def result(self) -> Any:
        """What it returned; raises what it failed with."""


class Arm(Protocol):
    """A host under test: sockets on one side, the end of its wire on the other.

    Attributes:
        name: "machnet" or "linux".
        realtime: Time goes on by itself.
        tolerance_factor: How much wider than the script's its tolerance of times is.
        ends: Addresses.
        frames: What it has sent and nobody has taken, with times.
    """

    name: str
    realtime: bool
    tolerance_factor: int
    ends: Endpoints
    frames: list[tuple[int, bytes]]

    @property
    def now_ns(self) -> int:
        """The time."""

    def send(self, frame: bytes) -> None:
        """Put a frame on the wire."""

    def settle(self) -> None:
        """What was sent has been processed, and what answers it is in `frames`."""

    def wait(self, until_ns: int, pending: Pending | None) -> None:
        """Let time pass until then, until a frame has come, or until the call is done."""

    def start(self, call: Callable[[], Any], *, blocking: bool) -> Pending:
        """Begin a system call.

        Args:
            call: Does it, and may be called again after `BlockingIOError`.
            blocking: It may take time.
        """

    def socket(self, family: int, kind: int, protocol: int) -> Any:
        """A new socket, with the methods of ``socket.socket``."""

    def adopt(self, sock: Any) -> None:
        """Learn of a socket that accept returned."""

    def set_nonblocking(self, sock: Any, on: bool) -> None:
        """O_NONBLOCK of a socket."""

    def read(self, sock: Any, size: int) -> bytes:
        """The system call."""

    def write(self, sock: Any, data: bytes) -> int:
        """The system call."""

    def queued(self, sock: Any, request: int) -> int:
        """The ioctls SIOCINQ, SIOCOUTQ and SIOCOUTQNSD."""

    def poll(self, wanted: list[tuple[Any, int]], timeout_ms: int) -> list[int]:
        """The events of each socket; `BlockingIOError`: none yet, where it can't wait itself."""

    def tcp_info(self, sock: Any) -> dict[str, int]:
        """Fields of tcp_info by their names in C."""

    def sysctl(self, name: str, value: str) -> None:
        """Set a sysctl; `ValueError` says why not."""

    def shell(self, command: str, folder: str) -> None:
        """Run a shell command in a directory; `ValueError` says why not."""

    def close(self) -> None:
        """Let go of everything."""


def unavailable(name: str) -> str | None:
    """Why there is no such arm here; None if there is."""
    if name == "machnet":
        return None
    from machnet.sim import KernelHost

    return KernelHost.tap_available()


def open_arm(name: str, configuration: Configuration) -> Arm:
    """An arm of its own for one script.

    Raises:
        ValueError: A sysctl that it can't follow.
        OSError: It can't be made.
    """
    if name == "machnet":
        from .machnet_arm import MachnetArm

        return MachnetArm(configuration)
    from .linux_arm import LinuxArm

    return LinuxArm(configuration)
