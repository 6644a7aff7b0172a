# SPDX-License-Identifier: MIT
"""``machnet capture``: what passes the NIC of a running sidecar, as a pcapng file."""

from __future__ import annotations

import contextlib
import os
import selectors
import struct
import sys
import time
from typing import BinaryIO

import click

from machnet.cli._asking import asking, socket_option
from machnet.cli._flags import GflagsCommand, Integer, Seconds
from machnet.sidecar.asking import Asking

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_READ_BYTES = 1 << 18


class Merger:
    """Joins streams of pcapng, one for each engine, to one file with all their interfaces.

    Args:
        file: Where it goes.
        frames_max: Frames that are written; None: all.
    """

    def __init__(self, file: BinaryIO, frames_max: int | None) -> None:
        self._file, self._frames_max = file, frames_max
        self._rest: dict[int, bytes] = {}
        #: What is added to the number of a stream's interface.
        self._base: dict[int, int] = {}
        self._interfaces = 0
        self._begun = False
        #: Frames written so far.
        self.frames = 0

    @property
    def full(self) -> bool:
        """Whether there are as many frames as were wanted."""
        return self._frames_max is not None and self.frames >= self._frames_max

    def feed(self, stream: int, data: bytes) -> None:
        """Take more of one stream; blocks that are whole are written.

        Raises:
            ValueError: It is no pcapng.
        """
        data = self._rest.get(stream, b"") + data
        at = 0
        while len(data) - at >= 12:
            kind, length = struct.unpack_from("=II", data, at)
            if length < 12 or length % 4:
                raise ValueError(f"a block of {length} bytes")
            if len(data) - at < length:
                break
            self._block(stream, kind, data[at : at + length])
            at += length
        self._rest[stream] = data[at:]
        self._file.flush()  # somebody may be looking

    def _block(self, stream: int, kind: int, block: bytes) -> None:
        if kind == _SECTION:
            if not self._begun:
                self._begun = True
                self._file.write(block)
        elif kind == _INTERFACE:
            self._base.setdefault(stream, self._interfaces)
            self._interfaces += 1
            self._file.write(block)
        elif kind == _PACKET and not self.full:
            number = struct.unpack_from("=I", block, 8)[0] + self._base[stream]
            self._file.write(block[:8] + struct.pack("=I", number) + block[12:])
            self.frames += 1


def _record(
    sidecar: Asking, pipes: list[int], merger: Merger, seconds: float | None
) -> dict[str, int]:
    """Write until there is enough, and then what has gathered; what the sidecar says of it."""
    end = None if seconds is None else time.monotonic() + seconds
    said: dict[str, int] | None = None
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            os.set_blocking(pipe, False)
            selector.register(pipe, selectors.EVENT_READ)
        try:
            while selector.get_map():
                now = time.monotonic()
                if said is None and (merger.full or (end is not None and now >= end)):
                    said = sidecar.ask("capture_stop")
                wait = None if end is None or said is not None else max(end - now, 0)
                _take(selector, wait, merger)
        except KeyboardInterrupt:
            if said is None:
                said = sidecar.ask("capture_stop")
            while selector.get_map():
                _take(selector, 5.0, merger)
    if said is None:
        raise ConnectionResetError(104, "the sidecar has ended the capture")
    return said


def _take(selector: selectors.BaseSelector, wait: float | None, merger: Merger) -> None:
    for key, _ in selector.select(wait):
        data = os.read(key.fd, _READ_BYTES)
        if data:
            merger.feed(key.fd, data)
        else:
            selector.unregister(key.fd)


@click.command(
    cls=GflagsCommand, name="capture", context_settings={"help_option_names": ["-h", "--help"]}
)
@socket_option
@click.option(
    "-w", "--write", "target", required=True, metavar="FILE", help="The file; - : stdout."
)
@click.option("--nic", metavar="NIC", help="One NIC alone, by name or MAC address.")
@click.option("--count", type=Integer(1, 2**62), help="End after so many frames.")
@click.option("--seconds", type=Seconds(), help="End after so long.")
@click.option("--snaplen", type=Integer(0, 65600), default=0, help="Bytes kept of a frame; 0: all.")
def main(
    *,
    path: str | None,
    target: str,
    nic: str | None,
    count: int | None,
    seconds: float | None,
    snaplen: int,
) -> None:
    """Record what passes the NIC of a running sidecar, in pcapng format.

    Ends after --count frames, after --seconds, or by Ctrl-C, whichever comes first; the file is
    complete then. Wireshark follows it live: machnet capture -w - | wireshark -k -i -

    Exit status: 0, by Ctrl-C too; 1 when there is no sidecar, it refuses, or the file can't be
    written; 2 when the command line is wrong; 143 by SIGTERM.
    """
    with asking("capture", path) as sidecar, contextlib.ExitStack() as cleanup:
        if target == "-":
            file: BinaryIO = sys.stdout.buffer
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            file = cleanup.enter_context(os.fdopen(os.open(target, flags, 0o600), "wb"))
        _, pipes = sidecar.ask_fds("capture", nic=nic, snaplen=snaplen)
        for pipe in pipes:
            cleanup.callback(os.close, pipe)
        print("machnet capture: recording; Ctrl-C ends it", file=sys.stderr, flush=True)
        merger = Merger(file, count)
        said = _record(sidecar, pipes, merger, seconds)
        file.flush()
        dropped = f", {said['dropped']} lost to a slow reader" if said["dropped"] else ""
        print(f"machnet capture: {merger.frames} frames{dropped}", file=sys.stderr)


if __name__ == "__main__":
    main()
