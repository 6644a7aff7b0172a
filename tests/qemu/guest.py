# SPDX-License-Identifier: MIT
"""A machine of QEMU's with a real NIC for DPDK, and the commands that are run in it.

The guest sees the host's files (read-only, below a layer of its own), so that it runs the host's Python and the
environment that the caller runs in. Its NICs lie on TAPs of a `KernelHost`, where the peers are:

    eth0        virtio-net, 10.78.0.2/24   to the host's 10.78.0.1: what tests need to say to each other
    eth1, eth2  those that are tested      to interfaces of the same names on the host

It ends with the `KernelHost`, and so with the process that made it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import image as images

from machnet.sim.kernel_host import KernelHost

HERE = Path(__file__).resolve().parent
BOOT_S = 180.0
STOP_S = 60.0
#: The NICs that are tested, and their PCI addresses: each alone behind a port, so that it can be unplugged.
PCI = {"eth1": "0000:01:00.0", "eth2": "0000:02:00.0"}
_LOG_CHARACTERS = 6000


class GuestError(Exception):
    """The guest, or a command in it, did not do what it should; the text has its last words."""


@dataclass(frozen=True)
class Machine:
    """What a guest is made of.

    Attributes:
        model: QEMU's name of the NICs that are tested.
        driver: Linux's driver for them.
        queues: Receive queues of each.
        iommu: Whether there is an IOMMU, which vfio-pci needs.
        options: More options of their devices.
        memory_mb: Of the guest.
        cpus: Of the guest.
        huge_pages: Of 2 MB each.
    """

    model: str
    driver: str
    queues: int = 1
    iommu: bool = False
    options: str = ""
    memory_mb: int = 1024
    cpus: int = 2
    huge_pages: int = 64


def last_object(text: str) -> dict[str, Any]:
    """The last line of JSON in an output.

    Raises:
        GuestError: There is none.
    """
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    raise GuestError(f"no line of JSON in:\n{text}")


class Command:
    """A command that was started in a guest; `Guest.popen` makes it."""

    def __init__(self, guest: Guest, number: int, argv: list[str]) -> None:
        self.guest = guest
        self.number = number
        self.argv = argv
        self.output = ""
        self._seen = 0
        self.status: int | None = None

    def __str__(self) -> str:
        return " ".join(self.argv)

    def wait(self, timeout: float = 180.0) -> int:
        """Wait for its end; its status, as of `subprocess`."""
        self.guest.wait_until(lambda: self.status is not None, timeout, f"the end of {self}", self)
        assert self.status is not None
        return self.status

    def expect(self, text: str, timeout: float = 180.0) -> None:
        """Wait until it has printed something, behind what was expected of it before."""
        self.guest.wait_until(
            lambda: text in self.output[self._seen :] or self.status is not None,
            timeout,
            f"{text!r} from {self}",
            self,
        )
        at = self.output.find(text, self._seen)
        if at < 0:
            raise GuestError(
                f"{self} ended with status {self.status}, without {text!r}:\n{self.output}"
            )
        self._seen = at + len(text)

    def send_signal(self, number: int) -> None:
        """Send its process group a signal."""
        self.guest.say(id=self.number, signal=int(number))

    def stop(self, timeout: float = STOP_S) -> int:
        """End it by SIGTERM; its status."""
        self.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def figures(self) -> dict[str, Any]:
        """The last line of JSON that it has printed."""
        return last_object(self.output)


class Guest:
    """A running guest; close it, or use it as a context manager.

    Args:
        image: What it is started from.
        machine: What it is made of.
        host: Where its TAPs are made.
        folder: A directory of the caller's, which the guest may write to; the console's text goes there.

    Raises:
        GuestError: It did not start.
    """

    HOST_IP = "10.78.0.1"
    GUEST_IP = "10.78.0.2"

    def __init__(
        self, image: images.Image, machine: Machine, host: KernelHost, folder: Path
    ) -> None:
        self.machine = machine
        self.host = host
        self.folder = folder
        self.console = folder / "console.txt"
        self._number = 0
        self._commands: dict[int, Command] = {}
        self._ready = False
        self._rest = b""
        self._events: list[dict[str, Any]] = []
        self._exits = contextlib.ExitStack()
        with self._exits:
            self._start(image)
            self.wait_until(lambda: self._ready, BOOT_S, "the guest's start")
            self._exits = self._exits.pop_all()

    # --- life -----------------------------------------------------------------------------------

    def _start(self, image: images.Image) -> None:
        fds: dict[str, list[int]] = {}
        try:
            fds["eth0"] = self.host.open_tap_queues("eth0", 1, kernel_ip=f"{self.HOST_IP}/24")
            for name in PCI:
                fds[name] = self.host.open_tap_queues(name, self.machine.queues)
            self._agent, fds["agent"] = self._socket()
            self._qmp, fds["qmp"] = self._socket()
            self._qmp_file = self._exits.enter_context(self._qmp.makefile("rw"))
            with (self.folder / "qemu.txt").open("wb") as said:
                self._process = self.host.popen(
                    [*image.command(), *self._options(image, fds)],
                    env=image.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    pass_fds=[fd for several in fds.values() for fd in several],
                )
        finally:
            for several in fds.values():
                for fd in several:
                    os.close(fd)
        self._exits.callback(self._kill)

    def _socket(self) -> tuple[socket.socket, list[int]]:
        """A socket to QEMU, and the descriptor of its other end."""
        ours, theirs = socket.socketpair()
        return self._exits.enter_context(ours), [theirs.detach()]

    def _options(self, image: images.Image, fds: dict[str, list[int]]) -> list[str]:
        machine = self.machine
        arguments = {
            "driver": machine.driver,
            "huge": machine.huge_pages,
            "share": self.folder,
            "python": sys.executable,
            "agent": HERE / "agent.py",
        }
        kernel = (
            "console=ttyS0 quiet panic=-1 tsc=reliable nokaslr mitigations=off no_timer_check "
            "lpj=4000000 rcupdate.rcu_expedited=1 cryptomgr.notests random.trust_cpu=on "
            "intel_iommu=on iommu=pt "
        ) + " ".join(f"mn.{name}={value}" for name, value in arguments.items())
        iommu = ["-device", "intel-iommu,intremap=on"] if machine.iommu else []
        shared = f"local,path={self.folder},mount_tag=share,security_model=none,multidevs=remap"
        return [
            *("-accel", "tcg,thread=multi,tb-size=512", "-machine", "q35,kernel-irqchip=split"),
            *("-cpu", "max", "-smp", str(machine.cpus), "-m", str(machine.memory_mb)),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "none"),
            *("-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console"),
            *("-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", kernel),
            *iommu,
            *("-device", "virtio-serial-pci,id=serial"),
            *("-chardev", f"socket,id=agent,fd={fds['agent'][0]}"),
            *("-device", "virtserialport,bus=serial.0,chardev=agent,name=machnet.agent"),
            *("-chardev", f"socket,id=qmp,fd={fds['qmp'][0]}", "-mon", "chardev=qmp,mode=control"),
            *("-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"),
            *("-virtfs", shared),
            *("-netdev", f"tap,id=net-eth0,fd={fds['eth0'][0]}"),
            *("-device", "virtio-net-pci,netdev=net-eth0,mac=52:54:00:78:00:02,romfile="),
            *(word for number, name in enumerate(PCI, 1) for word in self._nic(number, fds[name])),
        ]  # fmt: skip

    def _nic(self, number: int, fds: list[int]) -> list[str]:
        return [
            *("-device", f"pcie-root-port,id=port{number},chassis={number},slot={number}"),
            *("-netdev", f"tap,id=net-eth{number},fds={':'.join(map(str, fds))}"),
            *("-device", self._device(number)),
        ]

    def _device(self, number: int) -> str:
        name, more = f"eth{number}", f",{self.machine.options}" if self.machine.options else ""
        place = f"id={name},netdev=net-{name},bus=port{number},mac=52:54:00:77:00:{number:02x}"
        return f"{self.machine.model},{place},romfile={more}"

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it, without asking it."""
        self._exits.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def last_words(self) -> str:
        """What QEMU and the console said last."""
        texts = {
            path.name: path.read_text(errors="replace").strip()
            for path in (self.folder / "qemu.txt", self.console)
            if path.exists()
        }
        said = [f"--- {name}\n{text[-_LOG_CHARACTERS:]}" for name, text in texts.items() if text]
        return "\n".join(said) or "(the console is empty)"

    # --- the agent ------------------------------------------------------------------------------

    def say(self, **message: Any) -> None:
        """Send the agent a message."""
        self._agent.sendall(json.dumps(message).encode() + b"\n")

    def _hear(self, timeout: float) -> None:
        """Take what the agent says within the time."""
        if not select.select([self._agent], [], [], max(0.0, timeout))[0]:
            return
        data = self._agent.recv(1 << 16)
        if not data:
            status = self._process.wait(STOP_S)
            raise GuestError(f"the guest ended (QEMU's status {status})\n{self.last_words()}")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message.get("ready"):
                self._ready = True
                continue
            command = self._commands[message["id"]]
            if "failed" in message:
                raise GuestError(f"the guest can't run {command}: {message['failed']}")
            command.output += message.get("out", "")
            command.status = message.get("status")

    def wait_until(
        self, done: Any, timeout: float, what: str, command: Command | None = None
    ) -> None:
        """Listen to the agent until something is so.

        Raises:
            GuestError: It took longer, or the guest ended.
        """
        end = time.monotonic() + timeout
        while not done():
            self._hear(end - time.monotonic())
            if not done() and time.monotonic() >= end:
                output = "" if command is None else f"{command.output[-_LOG_CHARACTERS:]}\n"
                raise GuestError(
                    f"{what} did not come within {timeout:g} s\n{output}{self.last_words()}"
                )

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        env: dict[str, str] | None = None,
        cwd: Path = Path("/"),
    ) -> Command:
        """Start a command.

        Args:
            argv: Program and arguments.
            env: What its environment has besides PATH and HOME.
            cwd: Where it is started.
        """
        self._number += 1
        words = [str(word) for word in argv]
        command = self._commands[self._number] = Command(self, self._number, words)
        path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        environment = {"PATH": path, "HOME": "/tmp", "LC_ALL": "C.UTF-8", **(env or {})}
        self.say(id=self._number, argv=words, env=environment, cwd=str(cwd))
        return command

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout: float = 180.0,
        check: bool = True,
        **options: Any,
    ) -> Command:
        """Run a command to its end.

        Raises:
            GuestError: It took longer than `timeout` seconds, or (with `check`) failed.
        """
        command = self.popen(argv, **options)
        try:
            command.wait(timeout)
        except GuestError:
            with contextlib.suppress(OSError):
                command.send_signal(signal.SIGKILL)
            raise
        if check and command.status != 0:
            raise GuestError(f"{command}: status {command.status}\n{command.output}")
        return command

    # --- the machine ----------------------------------------------------------------------------

    def qmp(self, name: str, /, **arguments: Any) -> Any:
        """Ask QEMU something; its answer.

        Raises:
            GuestError: It refused.
        """
        if not self._events:
            self._events.append(self._qmp_answer())  # the greeting
            self._qmp_ask("qmp_capabilities", {})
        return self._qmp_ask(name, arguments)

    def _qmp_answer(self) -> dict[str, Any]:
        line = self._qmp_file.readline()
        if not line:
            raise GuestError(f"QEMU ended\n{self.last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _qmp_ask(self, name: str, arguments: dict[str, Any]) -> Any:
        self._qmp_file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._qmp_file.flush()
        while True:
            answer = self._qmp_answer()
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                raise GuestError(f"QEMU refuses {name}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def set_cable(self, name: str, plugged: bool) -> None:
        """Pull the cable out of a NIC, or plug it in."""
        self.qmp("set_link", name=name, up=plugged)

    def unplug(self, name: str) -> None:
        """Take a NIC out of the machine; returns once it is out."""
        self.qmp("device_del", id=name)
        self._qmp.settimeout(BOOT_S)
        try:
            while not any(
                event.get("event") == "DEVICE_DELETED" and event["data"].get("device") == name
                for event in self._events
            ):
                self._events.append(self._qmp_answer())
        except TimeoutError:
            raise GuestError(f"{name} was not given up\n{self.last_words()}") from None
        finally:
            self._qmp.settimeout(None)
        self._events = self._events[:1]

    def plug(self, name: str) -> None:
        """Put a NIC back."""
        device = self._device(int(name.removeprefix("eth")))
        words = dict(word.split("=", 1) for word in device.split(",")[1:])
        self.qmp("device_add", driver=self.machine.model, **words)
