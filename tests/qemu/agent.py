# SPDX-License-Identifier: MIT
"""What runs commands in a guest, for the host at the other end of a virtio serial port.

Both sides send lines of JSON. The host: ``{"id": N, "argv": [...], "env": {...}, "cwd": PATH}`` starts a
command, ``{"id": N, "signal": NUMBER}`` sends its process group a signal. The guest: ``{"ready": true}`` at first,
``{"id": N, "out": TEXT}`` what a command prints, ``{"id": N, "status": S}`` its end (as of
subprocess: a signal is negative), ``{"id": N, "failed": TEXT}`` that it could not be started.

It is run with ``python -IS``, since each import costs a guest time.
"""

from __future__ import annotations

import codecs
import json
import os
import select
import signal
import sys

PORT = "machnet.agent"
CHUNK_BYTES = 65536


def open_port() -> int:
    """The serial port of that name."""
    root = "/sys/class/virtio-ports"
    for name in os.listdir(root):  # noqa: PTH208
        with open(f"{root}/{name}/name") as file:  # noqa: PTH123
            if file.read().strip() == PORT:
                return os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
    sys.exit(f"there is no serial port {PORT}")


class Command:
    """A process, its output and what tells of its end."""

    def __init__(self, request: dict) -> None:
        self.id = request["id"]
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.out, theirs = os.pipe()
        failed, error = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
                os.dup2(theirs, 1)
                os.dup2(theirs, 2)
                os.chdir(request["cwd"])
                os.execvpe(request["argv"][0], request["argv"], request["env"])
            except OSError as refusal:
                os.write(error, f"{request['argv'][0]}: {refusal}".encode())
            finally:
                os._exit(127)
        os.close(theirs)
        os.close(error)
        self.failed = os.read(failed, CHUNK_BYTES).decode()
        os.close(failed)
        self.ended = os.pidfd_open(self.pid)

    def close(self) -> int:
        """Collect the process; its status."""
        os.close(self.ended)
        os.close(self.out)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Agent:
    """Answers the host for ever."""

    def __init__(self) -> None:
        self.port = open_port()
        self.commands: dict[int, Command] = {}
        self.fds: dict[int, Command] = {}
        self.poll = select.poll()
        self.poll.register(self.port, select.POLLIN)
        self.rest = b""

    def say(self, **message: object) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self.port, data) :]

    def hear(self) -> None:
        self.rest += os.read(self.port, CHUNK_BYTES)
        *lines, self.rest = self.rest.split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "argv" in request:
                self.start(request)
            elif request["id"] in self.commands:
                os.killpg(self.commands[request["id"]].pid, request["signal"])

    def start(self, request: dict) -> None:
        command = Command(request)
        if command.failed:
            command.close()
            self.say(id=command.id, failed=command.failed)
            return
        self.commands[command.id] = command
        for fd in (command.out, command.ended):
            self.fds[fd] = command
            self.poll.register(fd, select.POLLIN)

    def pass_on(self, command: Command) -> bool:
        """Send what a command has printed; False when nothing more will come."""
        data = os.read(command.out, CHUNK_BYTES)
        if text := command.decoder.decode(data, final=not data):
            self.say(id=command.id, out=text)
        return bool(data)

    def forget(self, fd: int) -> None:
        if self.fds.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def end(self, command: Command) -> None:
        # What it has printed before its end is there; what its children print later is not waited for.
        while select.select([command.out], [], [], 0)[0] and self.pass_on(command):
            pass
        self.forget(command.out)
        self.forget(command.ended)
        del self.commands[command.id]
        self.say(id=command.id, status=command.close())

    def serve(self) -> None:
        self.say(ready=True)
        while True:
            for fd, _ in self.poll.poll():
                command = self.fds.get(fd)
                if fd == self.port:
                    self.hear()
                elif command is not None and fd == command.ended:
                    self.end(command)
                elif command is not None and not self.pass_on(command):
                    self.forget(fd)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Agent().serve()
