# SPDX-License-Identifier: MIT

"""A NIC that replays a capture, for regression from the field."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.errors import os_error
from machnet.sim.capturefile import SIDE_MAC, Replay, read_capture, select
from machnet.sim.units import Duration, duration_ns
from machnet.stack.clock import Clock
from machnet.stack.names import parse_ip
from machnet.stack.nics import Nic, open_pcapng_file

if TYPE_CHECKING:
    from machnet.stack.stack import Stack

__all__ = ["Pcap"]


class Pcap(Nic):
    """A NIC that receives what a capture has for one host, at its times, in virtual time.

    What is replayed are the IPv4 packets to the address of the stack, and ARP about it; the
    Ethernet address is that of the capture. The first frame comes in at 0 (at 1 ns, so that
    listeners may be set up at 0), the others as far behind it as they were. The NIC answers ARP
    queries by itself, because nobody who was captured will.

    Peers in a capture acknowledge the sequence numbers that the captured host chose. The stack
    therefore starts all its connections with the number of the first connection in the capture (or
    the stack's ``isn``), and acknowledgements and SACK blocks of the others are moved to it. A
    connection whose SYN was not captured stays as it is; a stack answers it with RST.

    Args:
        in_path: A capture, pcap or pcapng, of Ethernet, raw IP or Linux cooked frames. Times are
            read in microseconds.
        out_path: A pcapng file for what the stack sends, stamped so that both files can be merged.
        mtu: Largest IP packet that is sent, 68 to 65521 bytes. Longer ones are received as they are.

    Raises:
        OSError: A file can't be opened.
        ValueError: It is no capture, damaged, or of another link type; ``mtu`` is out of its range.
    """

    realtime = False
    stepped_only = "a replayed capture"

    def __init__(
        self,
        in_path: str | os.PathLike[str],
        out_path: str | os.PathLike[str] | None = None,
        *,
        mtu: int = 1500,
    ) -> None:
        self._frames = read_capture(in_path)
        self._path = Path(in_path)
        self._replay: Replay | None = None
        self._writer: Any = None
        config = ffi.new("struct mn_pcapnic_config *")
        config.mtu, config.mac = mtu, SIDE_MAC
        out = ffi.new("struct mn_nic **")
        if out_path is not None:
            if Path(out_path).exists() and self._path.samefile(out_path):
                raise ValueError(f"{out_path} is the capture that is to be read")
            config.writer = self._writer = open_pcapng_file(out_path)
            name = ffi.new("char[]", b"machnet")
            interface = ffi.new("struct mn_pcapng_iface *", {"name": name})
            config.iface = lib.mn_pcapng_add_iface(self._writer, interface)
        rc = lib.mn_pcapnic_open(config, out)
        if rc < 0:
            self._close_writer()
            if rc == -errno.EINVAL:
                raise ValueError(f"mtu: {mtu} is not within 68 to 65521 bytes")
            raise os_error(-rc, f"pcap:{in_path}")
        super().__init__(ffi.gc(out[0], lib.mn_pcapnic_close), f"pcap:{in_path}")

    def prepare(self, ip: str, isn: int | None) -> int | None:
        """Choose the frames for a stack's address.

        Raises:
            ValueError: There are none, one of them was cut off, or the capture was replayed before.
        """
        native = self.native
        if self._replay is not None:
            raise ValueError(f"{self} was replayed already: open it again")
        self._replay = replay = select(self._frames, parse_ip(ip), isn, self._path)
        lib.mn_pcapnic_set_mac(native, replay.mac)
        lib.mn_pcapnic_set_epoch(native, replay.epoch_ns)
        for address, mac in replay.neighbors.items():
            self._check(lib.mn_pcapnic_neighbor(native, address, mac))
        for when, frame in replay.frames:
            self._check(lib.mn_pcapnic_add(native, when, frame, len(frame)))
        return isn if isn is not None else replay.isn

    def _check(self, rc: int) -> None:
        if rc < 0:
            raise os_error(-rc, str(self))

    def watchers(self) -> list[tuple[Any, Any]]:
        """The NIC receives by the clock of the stack."""
        return [(ffi.addressof(lib, "mn_pcapnic_set_now"), self.native)]

    def new_clock(self) -> Clock:
        """A virtual clock."""
        return Clock(realtime=False)

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """What is replayed, once a stack is open: time in ns, and frame."""
        return [] if self._replay is None else self._replay.frames

    @property
    def original(self) -> list[tuple[int, bytes]]:
        """What the captured host itself sent, in the same form: to be compared with the answers."""
        return [] if self._replay is None else self._replay.sent

    @property
    def end_ns(self) -> int:
        """When the last frame comes in; 0 without a stack."""
        return max(self.frames[-1][0], 1) if self.frames else 0

    def run(self, after: Duration = 0) -> None:
        """Replay to the end: let time pass until the last frame has come in, and ``after`` more.

        Raises:
            RuntimeError: No stack is open on it.
        """
        stack: Stack | None = self._user() if self._user is not None else None
        if stack is None or stack.closed:
            raise RuntimeError(f"{self}: no stack is open on it")
        end = self.end_ns + duration_ns(after, "after")
        stack.advance(max(end - stack.now_ns, 0))

    def stats(self) -> dict[str, int]:
        """Frames received, still to come, and sent; ARP queries answered."""
        out = ffi.new("struct mn_pcapnic_stats *")
        lib.mn_pcapnic_get_stats(self.native, out)
        return {name: int(getattr(out, name)) for name, _ in ffi.typeof(out).item.fields}

    def _close_writer(self) -> int:
        writer, self._writer = self._writer, None
        return 0 if writer is None else int(lib.mn_pcapng_close(writer))

    def _release(self) -> None:
        ffi.release(self._handle)
        rc = self._close_writer()
        if rc < 0:
            self._handle = None
            raise os_error(-rc, "what was sent is not all in the file")
