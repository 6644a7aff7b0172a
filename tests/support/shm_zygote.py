# SPDX-License-Identifier: MIT
"""Applications by the hundred: a process that has everything loaded and forks one for each loan.

``python shm_zygote.py SOCKET_FD``. A request is ``MODE SEED``, with the loan's descriptors; the answer
comes when the application has ended, by its own hand or by SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time

import machnet
from machnet.config import ChannelSettings
from machnet.stack.lending import Lent, attach_fds, lend

IP = "10.0.0.2"
SETTINGS = ChannelSettings(buf_bytes=512, tx_bufs=64, rx_bufs=64, flows_max=16, ctl_slots=16)


class Zygote:
    """The forking process, from the side of the tests. A context manager."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(60)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )

    def run(self, stack: machnet.Stack, mode: str, seed: int = 0, linger: float | None = 0) -> None:
        """Lend a channel to an application and wait until both are gone."""
        with lend([stack], SETTINGS) as lent:
            self.start(lent, mode, seed)
            assert self.wait() == b"%d" % -signal.SIGKILL
            lent.close(linger=linger)

    def start(self, lent: Lent, mode: str, seed: int = 0) -> None:
        """Begin an application."""
        socket.send_fds(self._sock, [f"{mode} {seed}".encode()], lent.fds)
        lent.close_fds()

    def go_on(self) -> None:
        """Let an application that has stopped go on."""
        self._sock.send(b".")

    def wait(self) -> bytes:
        """Until it has ended: what it said of itself."""
        return self._sock.recv(64)

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait(30)
        self._sock.close()


def busy_life(channel: machnet.Channel, rng: random.Random) -> None:
    """Everything that an application does, in any order, until it is killed."""
    with contextlib.suppress(OSError):
        channel.listen(IP, rng.randrange(7000, 7100), "tcp")
    flow = channel.connect(IP, IP, 90, "tcp")
    while True:
        what = rng.randrange(8)
        with contextlib.suppress(BlockingIOError, TimeoutError, machnet.FlowError):
            if what < 5:
                channel.send(flow, rng.randbytes(rng.choice((0, 1, 64, 512, 3000, 20_000))))
            elif what == 5:
                channel.recv(timeout=0)
            elif what == 6:
                channel.recv(timeout=0.0001)
            else:
                flow.close(linger=rng.choice((None, 0)))
                flow = channel.connect(IP, IP, 90, "tcp")


def send_and_die(channel: machnet.Channel, seed: int) -> None:
    """Publish numbered messages, and not live a moment longer."""
    flow = channel.connect(IP, IP, 90, "tcp")
    for i in range(seed):
        channel.send(flow, b"%d" % i)
    os.kill(os.getpid(), signal.SIGKILL)


def noise(channel: machnet.Channel) -> None:
    """Send as many tiny messages as fit, for ever."""
    flow = channel.connect(IP, IP, 90, "tcp")
    while True:
        with contextlib.suppress(BlockingIOError):
            while True:
                channel.send(flow, b".")


def stop(channel: machnet.Channel) -> None:
    """Be stopped with a listener, and receive only when it goes on; then say how much it was."""
    channel.listen(IP, 7000, "tcp")
    os.kill(os.getpid(), signal.SIGSTOP)
    total = 0
    while (message := channel.recv(timeout=20)).data != b"end":
        total += len(message.data)
    channel.send(message.flow, b"%d" % total)


def rewrite(memfd: int, rng: random.Random) -> None:
    """Change descriptors, indices and flags all the time, while the engine reads them."""
    import mmap

    memory = mmap.mmap(memfd, 0)
    size = min(len(memory), 16384)
    junk = [rng.randbytes(64) for _ in range(64)]
    plausible = [(n).to_bytes(4, "little") for n in range(64)]
    while True:
        for piece in junk[:8] + plausible:
            at = rng.randrange(0, size - 64, 4)
            memory[at : at + len(piece)] = piece


def live(fds: list[int], mode: str, seed: int) -> None:
    """The life of an application, which is over with it."""
    rng = random.Random(seed)
    if mode == "rewrite":
        rewrite(fds[0], rng)
    channel = attach_fds(fds)
    if mode == "busy":
        busy_life(channel, rng)
    elif mode == "send":
        send_and_die(channel, seed)
    elif mode == "noise":
        noise(channel)
    elif mode == "stop":
        stop(channel)


#: How long an application lives that does not end itself, in seconds at most.
LIVES_S = {"busy": 0.004, "rewrite": 0.05, "noise": 0.3}


def main() -> None:
    """Fork an application for each request."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    while True:
        request, fds, _, _ = socket.recv_fds(sock, 64, 18)
        if not request:
            return
        mode, text = request.decode().split()
        seed = int(text)
        child = os.fork()
        if child == 0:
            try:
                live(list(fds), mode, seed)
            finally:
                os._exit(1)
        for fd in fds:
            os.close(fd)
        if mode in LIVES_S:
            # Killed at whatever it does after this time, which is what the test is about.
            time.sleep(random.Random(seed).random() * LIVES_S[mode])
            os.kill(child, signal.SIGKILL)
        if mode == "stop":
            os.waitpid(child, os.WUNTRACED)
            sock.send(b"stopped")
            sock.recv(1)
            os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
        sock.send(b"%d" % os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
