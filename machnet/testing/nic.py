# SPDX-License-Identifier: MIT
"""NICs as an engine sees them, driven with plain bytes: `NicHandle`; and `check_nic` for drivers' authors."""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from machnet._native import ffi, lib
from machnet.testing.octets import ones_sum, pseudo_header
from machnet.testing.packet import Packet
from machnet.testing.script import pattern
from machnet.testing.template import tcp, udp

__all__ = [
    "CSUM_NONE",
    "CSUM_PARTIAL",
    "CSUM_VALID",
    "Meta",
    "NicBench",
    "NicCheckError",
    "NicHandle",
    "check_nic",
    "nic_checks",
]

CSUM_NONE, CSUM_PARTIAL, CSUM_VALID = 0, 1, 2

_FRAME_BYTES_MAX = 70_000
_ETH_BYTES = 14
_MTU_MIN = 68


@dataclass(frozen=True)
class Meta:
    """What a frame carries beside its bytes (``struct mn_pkt_meta``).

    Attributes:
        csum: CSUM_NONE, CSUM_PARTIAL or CSUM_VALID.
        l4_off: Offset of the transport header.
        csum_off: Offset of the checksum from there.
        gso_size: Payload of each segment that the frame stands for; 0: it is one.
        pieces: That the frame is made of.
    """

    csum: int = CSUM_NONE
    l4_off: int = 0
    csum_off: int = 0
    gso_size: int = 0
    pieces: int = 1

    def c(self) -> Any:
        """As the C struct."""
        values = {"csum": self.csum, "l4_off": self.l4_off, "csum_off": self.csum_off}
        values |= {"gso_size": self.gso_size, "pieces": self.pieces}
        return ffi.new("struct mn_pkt_meta *", values)


class NicHandle:
    """Any ``struct mn_nic *``, driven with plain bytes on queue 0."""

    def __init__(self, nic: Any) -> None:
        self.nic = nic
        self._buf = ffi.new("uint8_t[]", _FRAME_BYTES_MAX)

    @property
    def info(self) -> Any:
        """``struct mn_nic_info``: its public fields, flat."""
        info = ffi.new("struct mn_nic_info *")
        lib.mn_nic_get_info(self.nic, info)
        return info

    @property
    def mac(self) -> str:
        """Its address, as "02:00:00:00:00:01"."""
        return bytes(self.info.mac).hex(":")

    def recv_meta(self, size: int = _FRAME_BYTES_MAX) -> tuple[bytes, Meta] | None:
        """The next frame; None when none waits.

        Raises:
            OSError: EMSGSIZE: it is longer than ``size``; it is lost.
        """
        meta = ffi.new("struct mn_pkt_meta *")
        length = lib.mn_nic_rx_bytes(self.nic, 0, self._buf, size, meta)
        if length == -errno.EAGAIN:
            return None
        frame = bytes(ffi.buffer(self._buf, _checked(length)))
        return frame, Meta(meta.csum, meta.l4_off, meta.csum_off, meta.gso_size, meta.pieces)

    def recv(self) -> bytes | None:
        """The next frame's bytes; None when none waits."""
        got = self.recv_meta()
        return None if got is None else got[0]

    def send(self, frame: bytes, meta: Meta | None = None) -> None:
        """Transmit a frame.

        Raises:
            OSError: EMSGSIZE, EINVAL (what ``meta`` says the NIC does not do), ENOBUFS, or EAGAIN
                when it is not taken.
        """
        c = ffi.NULL if meta is None else meta.c()
        _checked(lib.mn_nic_tx_bytes(self.nic, 0, frame, len(frame), c))

    def probe_alloc(self, size: int) -> int:
        """Allocate a packet and give it back: its room in bytes.

        Raises:
            OSError: ENOBUFS: there is none.
        """
        return _checked(lib.mn_nic_probe_alloc(self.nic, 0, size))

    def arm(self, on: bool = True) -> bool:
        """Say that the caller is about to sleep on the descriptor, or (``on=False``) sleeps no more.

        Returns:
            False: something is to be done already.
        """
        return bool(lib.mn_nic_arm(self.nic, 0, on))

    def bounce(self, count: int) -> int:
        """Receive up to ``count`` frames (at most 64) in one burst and transmit them as they are.

        Returns:
            How many were taken.
        """
        return _checked(lib.mn_nic_forward(self.nic, self.nic, count))


def _checked(result: int) -> int:
    """The result, unless it is a negative errno."""
    if result < 0:
        raise OSError(-result, errno.errorcode.get(-result, "?"))
    return int(result)


# --- the conformance kit ------------------------------------------------------------------------


class NicBench(Protocol):
    """A NIC with somebody at its other end, as a driver's author makes it for `check_nic`.

    Attributes:
        nic: The NIC.
        wire_marks: Whether the other end sees frames as they are handed over, with checksums
            unfinished and segments uncut, as in memory; not so where frames are real ones.
    """

    nic: NicHandle
    wire_marks: bool

    def deliver(self, frame: bytes) -> None:
        """Let a frame come to the NIC from outside. It may be lost where queues are full."""

    def collect(self) -> list[bytes]:
        """What came out of the NIC at the other end since the last call, without waiting for it."""

    def close(self) -> None:
        """Close the NIC."""


class NicCheckError(AssertionError):
    """A driver breaks the contract of ``struct mn_nic``; the text has one line for each finding."""


#: How long frames may take to the other side of a real NIC, seconds.
_WAIT_S = 5.0
#: More than a driver's packet pool holds, so that leaks come to light.
_MANY = 20_000


class _Failure(Exception):  # noqa: N818 (never leaves this module)
    pass


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise _Failure(text)


def _works(call: Callable[[], object], when: str) -> None:
    try:
        call()
    except OSError as error:
        raise _Failure(f"{when}: {error}") from None


def _frame(number: int, size: int) -> bytes:
    """A frame of an unused EtherType that carries its number."""
    head = bytes.fromhex("ffffffffffff02000000000188b5") + number.to_bytes(4, "big")
    return (head + pattern(number, max(0, size - len(head))))[:size]


def _ours(frames: list[bytes]) -> list[bytes]:
    """Frames of this kit: what else is on a real link does not matter."""
    return [frame for frame in frames if frame[6:12] == bytes.fromhex("020000000001")]


def _receive(bench: NicBench, count: int, wait_s: float | None = None) -> list[bytes]:
    """Frames that the NIC receives, until there are ``count`` of this kit's, or time is over."""
    got: list[bytes] = []
    end = time.monotonic() + (_WAIT_S if wait_s is None else wait_s)
    while len(got) < count:
        frame = bench.nic.recv()
        if frame is not None:
            got += _ours([frame])
        elif time.monotonic() > end:
            break
        elif bench.nic.info.rx_fd >= 0:
            select.select([bench.nic.info.rx_fd], [], [], 0.01)
    return got


def _outside(bench: NicBench, count: int) -> list[bytes]:
    """Frames that came out of the NIC, until there are ``count``, or time is over."""
    end, got = time.monotonic() + _WAIT_S, list[bytes]()
    while True:
        got += _ours(bench.collect())
        if len(got) >= count or time.monotonic() > end:
            return got


def _same(got: list[bytes], wanted: list[bytes], what: str) -> None:
    _require(len(got) == len(wanted), f"{what}: {len(got)} frames of {len(wanted)}")
    for number, (have, want) in enumerate(zip(got, wanted, strict=True)):
        if have != want:
            where = got.index(want) if want in got else None
            text = f"{len(have)} bytes, wanted {len(want)}"
            if len(have) == len(want):
                text = f"byte {next(i for i, b in enumerate(want) if have[i] != b)} differs"
            if where is not None:
                text = f"it came as frame {where}"
            raise _Failure(f"{what}: frame {number}: {text}")


def _sizes(bench: NicBench) -> list[int]:
    largest = int(bench.nic.info.mtu) + _ETH_BYTES
    return sorted(
        {60, 61, 64, 65, 127, 128, 590, 1024, largest - 1, largest} & {*range(largest + 1)}
    )


def _public_fields(bench: NicBench) -> None:
    """MTU, MAC address and capabilities make sense together."""
    info = bench.nic.info
    largest = info.mtu + _ETH_BYTES
    _require(_MTU_MIN <= info.mtu <= 65535, f"mtu is {info.mtu}: 68 to 65535")
    _require(info.queues >= 1, "queues is 0")
    _require(info.rx_max_frame >= largest, f"rx_max_frame {info.rx_max_frame} is below mtu + 14")
    _require(info.tx_max_frame >= largest, f"tx_max_frame {info.tx_max_frame} is below mtu + 14")
    _require(
        bool(info.tx_gso) or info.tx_max_frame == largest,
        f"tx_max_frame {info.tx_max_frame} is above mtu + 14, but tx_gso is not set",
    )
    _require(not info.tx_gso or bool(info.tx_csum_tcp), "tx_gso without tx_csum_tcp")
    mac = bytes(info.mac)
    _require(any(mac) and not mac[0] & 1, f"{mac.hex(':')} is no address of a host")


def _nothing_waits(bench: NicBench) -> None:
    """Receiving returns at once where no frame waits, again and again."""
    _receive(bench, 1, wait_s=0.0)
    start = time.monotonic()
    for _ in range(100):
        bench.nic.recv()
    _require(time.monotonic() - start < _WAIT_S, "receiving waits for frames; it must not")


def _receives(bench: NicBench) -> None:
    """Frames of all sizes are received whole and in order."""
    frames = [_frame(number, size) for number, size in enumerate(_sizes(bench))]
    for frame in frames:
        bench.deliver(frame)
    _same(_receive(bench, len(frames)), frames, "received")
    _require(not _receive(bench, 1, wait_s=0.05), "a frame was received that nobody sent")


def _transmits(bench: NicBench) -> None:
    """Frames of all sizes are transmitted whole and in order."""
    frames = [_frame(number, size) for number, size in enumerate(_sizes(bench))]
    for frame in frames:
        bench.nic.send(frame)
    _same(_outside(bench, len(frames)), frames, "transmitted")


def _descriptor(bench: NicBench) -> None:
    """The descriptor to sleep on polls readable while a frame waits, and not when none does."""
    fd = bench.nic.info.rx_fd
    if fd < 0:
        return
    _receive(bench, 1, wait_s=0.05)
    for number in range(3):
        _require(not select.select([fd], [], [], 0)[0], "rx_fd polls readable, but no frame waits")
        _require(bench.nic.arm(), "it can't be slept on, but no frame waits")
        bench.deliver(_frame(number, 60))
        ready = select.select([fd], [], [], _WAIT_S)[0]
        _require(bool(ready), "a frame waits, but rx_fd does not poll readable")
        bench.nic.arm(on=False)
        _same(_receive(bench, 1), [_frame(number, 60)], "after polling")
        while bench.nic.recv() is not None:
            pass
    _require(
        not select.select([fd], [], [], 0)[0], "rx_fd still polls readable after the last frame"
    )


def _arming(bench: NicBench) -> None:
    """A frame that comes before the descriptor is armed ends the sleep too; none is lost by it."""
    fd = bench.nic.info.rx_fd
    if fd < 0:
        return
    _receive(bench, 1, wait_s=0.05)
    wanted: list[bytes] = []
    got: list[bytes] = []
    for number in range(40):
        frames = [_frame(number * 40 + part, 60) for part in range(number)]
        for frame in frames:
            bench.deliver(frame)
        wanted += frames
        if number % 2 and bench.nic.arm():
            _require(bool(select.select([fd], [], [], _WAIT_S)[0]), "a frame came before the sleep")
        if number % 3 == 0:
            bench.nic.arm(on=False)
        got += _receive(bench, len(frames) // 2)
    got += _receive(bench, len(wanted) - len(got))
    bench.nic.arm(on=False)
    _same(got, wanted, "received")


def _bursts(bench: NicBench) -> None:
    """A burst is no longer than asked for; received packets can be transmitted."""
    size = min(200, int(bench.nic.info.mtu) + _ETH_BYTES)
    frames = [_frame(number, size) for number in range(10)]
    for frame in frames:
        bench.deliver(frame)
    taken, end = 0, time.monotonic() + _WAIT_S
    while taken < len(frames) and time.monotonic() < end:
        count = bench.nic.bounce(3)
        _require(count <= 3, f"a burst of 3 had {count} frames")
        taken += count
    _same(_outside(bench, len(frames)), frames, "received and transmitted")


def _packets(bench: NicBench) -> None:
    """Packets have the room that was asked for, and come back to the pool."""
    info = bench.nic.info
    for size in (1, 60, info.mtu + _ETH_BYTES, info.tx_max_frame):
        room = bench.nic.probe_alloc(size)
        _require(room >= size, f"a packet for {size} bytes has room for {room}")
    for number in range(_MANY):
        _works(lambda: bench.nic.probe_alloc(64), f"after {number} packets allocated and freed")


def _no_leak_receiving(bench: NicBench) -> None:
    """Packets that were received and freed come back to the pool."""
    for number in range(_MANY // 8):
        for part in range(8):
            bench.deliver(_frame(number * 8 + part, 60))
        frames = [_frame(number * 8 + part, 60) for part in range(8)]
        _same(_receive(bench, 8), frames, f"after {number * 8} frames")


def _no_leak_transmitting(bench: NicBench) -> None:
    """Packets that were transmitted come back to the pool."""
    for number in range(_MANY // 8):
        frames = [_frame(number * 8 + part, 60) for part in range(8)]
        for frame in frames:
            _works(partial(bench.nic.send, frame), f"after {number * 8} frames")
        _same(_outside(bench, 8), frames, f"after {number * 8} frames")


def _overload(bench: NicBench) -> None:
    """With nobody receiving, frames are lost; none is repeated, changed, or out of order."""
    for number in range(_MANY):
        bench.deliver(_frame(number, 60))
    got, more = [], _receive(bench, _MANY, wait_s=0.1)
    while more:
        got += more
        more = _receive(bench, _MANY, wait_s=0.1)
    numbers = [int.from_bytes(frame[14:18], "big") for frame in got]
    _require(numbers == sorted(set(numbers)), "frames are repeated or out of order")
    _require(all(frame == _frame(n, 60) for frame, n in zip(got, numbers, strict=True)), "changed")
    _require(bool(got), "nothing was received at all")
    _receives(bench)


def _unfinished(frame: bytes, csum_off: int) -> tuple[bytes, Meta]:
    """A frame whose checksum field holds the pseudo header's sum alone, and what says so."""
    packet = Packet(frame)
    part = ones_sum(pseudo_header(frame[26:34], packet.proto, len(packet.ip_payload)))
    at = 34 + csum_off
    return frame[:at] + part.to_bytes(2, "big") + frame[at + 2 :], Meta(CSUM_PARTIAL, 34, csum_off)


def _checksums(bench: NicBench) -> None:
    """Checksums that the NIC says it finishes are finished."""
    info = bench.nic.info
    addresses = {"eth_src": "02:00:00:00:00:01", "eth_dst": "ff:ff:ff:ff:ff:ff"}
    for wanted, template, csum_off in (
        (info.tx_csum_tcp, tcp("PA", payload=b"odd", **addresses), 16),
        (info.tx_csum_udp, udp(b"odd", **addresses), 6),
    ):
        if not wanted:
            continue
        finished = template.build()
        unfinished, meta = _unfinished(finished, csum_off)
        bench.nic.send(unfinished, meta)
        got = _outside(bench, 1)
        _require(len(got) == 1, f"{template.kind}: {len(got)} frames came out of one")
        _require(
            got[0] == finished or (bench.wire_marks and got[0] == unfinished),
            f"{template.kind}: the checksum is not finished: {Packet(got[0]).summary()}",
        )


def _segmentation(bench: NicBench) -> None:
    """A large segment comes out as the segments that it stands for, where the NIC says so."""
    info = bench.nic.info
    if not info.tx_gso:
        return
    mss, data = min(536, int(info.mtu) - 40), pattern(0, 2000)
    count = -(-len(data) // mss)
    template = tcp("PA", seq=(1 << 32) - 600, payload=data, eth_src="02:00:00:00:00:01")
    whole = template.build()
    frame, meta = _unfinished(whole, 16)
    bench.nic.send(frame, Meta(meta.csum, meta.l4_off, meta.csum_off, mss))
    got = _outside(bench, 1 if bench.wire_marks else count)
    if bench.wire_marks and got in ([frame], [whole]):
        return
    pieces = [Packet(one) for one in got]
    sizes = [piece.length for piece in pieces]
    wanted = [mss] * (count - 1) + [len(data) - mss * (count - 1)]
    _require(sizes == wanted, f"2000 bytes in segments of {mss} came as {sizes}")
    _require(b"".join(piece.payload for piece in pieces) == data, "the data are not the same")
    for number, piece in enumerate(pieces):
        seq = ((1 << 32) - 600 + number * mss) % (1 << 32)
        last = number == len(pieces) - 1
        _require(piece.seq == seq, f"segment {number} has seq {piece.seq}, wanted {seq}")
        _require(piece.csum_ok and not piece.error, f"segment {number}: {piece.summary()}")
        _require(piece.flags == ("PA" if last else "A"), f"segment {number} has {piece.flags}")


_CHECKS: tuple[Callable[[NicBench], None], ...] = (
    _public_fields,
    _nothing_waits,
    _receives,
    _transmits,
    _descriptor,
    _arming,
    _bursts,
    _packets,
    _no_leak_receiving,
    _no_leak_transmitting,
    _overload,
    _checksums,
    _segmentation,
)


def nic_checks() -> Iterator[tuple[str, Callable[[NicBench], None]]]:
    """Name and function of each check of `check_nic`, for a test of its own for each."""
    for check in _CHECKS:
        yield check.__name__.strip("_"), _as_assertion(check)


def _as_assertion(check: Callable[[NicBench], None]) -> Callable[[NicBench], None]:
    def run(bench: NicBench) -> None:
        try:
            check(bench)
        except (_Failure, OSError) as error:
            said = (check.__doc__ or "").strip()
            raise NicCheckError(f"{check.__name__.strip('_')}: {error}\n  {said}") from None

    return run


def check_nic(factory: Callable[[], NicBench]) -> list[str]:
    """Check that a NIC keeps the contract of ``struct mn_nic`` (machnet/stack/core/nic.h).

    Each check has a NIC of its own. What the NIC does not claim to do is not asked of it.

    Args:
        factory: Makes a NIC with somebody at its other end.

    Returns:
        Names of the checks.

    Raises:
        NicCheckError: All findings, one paragraph each.
    """
    findings, names = [], []
    for name, check in nic_checks():
        names.append(name)
        bench = factory()
        try:
            check(bench)
        except NicCheckError as error:
            findings.append(str(error))
        finally:
            bench.close()
    if findings:
        raise NicCheckError("\n".join(findings))
    return names
