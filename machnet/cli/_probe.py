# SPDX-License-Identifier: MIT
"""What ``machnet ping`` and ``machnet pktgen`` share: the probe in C, as the loop of `_run` drives it."""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from machnet._native import ffi, lib
from machnet.cli._run import RunError, new_stats
from machnet.stack.names import format_ip, format_mac, parse_ip, parse_mac

if TYPE_CHECKING:
    from machnet.stack.nics import Nic

#: Bytes of the headers in front of a packet's payload: Ethernet, IPv4, ICMP or UDP.
HEADER_BYTES = 14 + 20 + 8
#: The smallest frame of a generator: Ethernet's smallest, without its checksum.
FRAME_BYTES_MIN = 60
_SPIN_FOR_EVER_NS = 2**64 - 1
_EVENTS = 1024

REPLY, DUPLICATE, LOST, LATE, ERROR = (
    lib.MN_PROBE_REPLY,
    lib.MN_PROBE_DUPLICATE,
    lib.MN_PROBE_LOST,
    lib.MN_PROBE_LATE,
    lib.MN_PROBE_ERROR,
)


@dataclass(frozen=True)
class Event:
    """What became of one packet.

    Attributes:
        kind: REPLY, DUPLICATE, LOST, LATE or ERROR (an ICMP error about one of ours).
        seq: The packet's number, from 0.
        rtt_us: Microseconds.
        source: Who said so.
        length: Bytes of the ICMP message, or of the UDP payload.
        ttl: Of the answer.
        icmp: Type and code of an error.
    """

    kind: int
    seq: int
    rtt_us: float
    source: str
    length: int
    ttl: int
    icmp: tuple[int, int]


def next_hop(ip: str, target: str, gateway: str) -> str:
    """Where frames to the target go: to itself, or to the router.

    Raises:
        RunError: It lies in another network, and there is no router.
    """
    network = ipaddress.IPv4Interface(ip).network
    if ipaddress.IPv4Address(target) in network:
        return target
    if not gateway:
        raise RunError(f"{target} is outside {network}: give a --gateway")
    return gateway


def _native_value(name: str, value: Any) -> Any:
    if name == "ip" or name.endswith("_ip"):
        return parse_ip(value)
    return list(parse_mac(value)) if name.endswith("_mac") else value


class Probe:
    """A probe or a bouncer, as `machnet.cli._run.run` wants an endpoint.

    Args:
        nic: It stays the caller's.
        settings: Fields of ``struct mn_probe_config`` by name; addresses as text.
        poll: The command's ``poll`` and ``spin_us``.
        on_event: Told of each answer and each loss, in order; None: they are only counted.
        wants_answers: That there was none at all is a failure.

    Raises:
        RunError: A number is out of range.
    """

    limit = "count"

    def __init__(
        self,
        nic: Nic,
        settings: dict[str, Any],
        poll: tuple[str, int],
        on_event: Callable[[Event], None] | None = None,
        *,
        wants_answers: bool = False,
    ) -> None:
        config = ffi.new("struct mn_probe_config *")
        config.nic, config.mark, config.echo_id = (
            nic.native,
            secrets.randbits(64),
            os.getpid() & 0xFFFF,
        )
        config.burst, config.log = 1, on_event is not None
        for name, value in settings.items():
            setattr(config, name, _native_value(name, value))
        config.spin_ns = _SPIN_FOR_EVER_NS if poll[0] == "busy" else poll[1] * 1000
        watchers = nic.watchers()
        if len(watchers) > lib.MN_PROBE_WATCHERS_MAX:
            raise RunError(f"{nic} has too many layers")
        for i, (set_now, ctx) in enumerate(watchers):
            config.watch[i] = ffi.cast("void (*)(void *, uint64_t)", set_now)
            config.watch_ctx[i] = ffi.cast("void *", ctx)
        self.stats = new_stats()
        probe = lib.mn_probe_new(config, self.stats)
        if probe == ffi.NULL:
            largest = nic.mtu + 14
            raise RunError(f"no memory, or a frame of {config.frame_len} is over {largest} bytes")
        self.role = "server" if config.mode == lib.MN_PROBE_BOUNCE else "client"
        self._nic = nic
        self._probe = ffi.gc(probe, lib.mn_probe_free)
        self._on_event = on_event
        self._wants_answers = wants_answers
        self._events = ffi.new("struct mn_probe_event[]", _EVENTS)
        self._stopped = self._warned = False
        self._hop = "" if self.role == "server" else str(settings["next_hop_ip"])

    def step(self, until_ns: int) -> bool:
        """Send and receive until ``until_ns``; ``True`` when every packet is answered or lost.

        Raises:
            RunError: Nobody answers to the next hop's address.
        """
        if self._stopped and self.role == "server":
            return True
        rc: int = lib.mn_probe_run(self._probe, until_ns, ffi.NULL)
        self._tell()
        if rc < 0:
            what = f"nobody answers to {self._hop}" if self.mac is None else os.strerror(-rc)
            raise RunError(f"{what} on {self._nic}")
        return rc == 1

    def _tell(self) -> None:
        if self._on_event is None:
            return
        while (count := lib.mn_probe_log(self._probe, self._events, _EVENTS)) > 0:
            for event in self._events[0:count]:
                self._on_event(
                    Event(
                        kind=event.kind,
                        seq=event.seq,
                        rtt_us=event.rtt_ns / 1e3,
                        source=format_ip(event.from_ip),
                        length=event.len,
                        ttl=event.ttl,
                        icmp=(event.icmp_type, event.icmp_code),
                    )
                )

    @property
    def mac(self) -> str | None:
        """The next hop's address, once it is known."""
        mac = ffi.new("uint8_t[6]")
        return format_mac(bytes(mac)) if lib.mn_probe_next_hop(self._probe, mac) else None

    def drain(self) -> None:
        """Send nothing new."""
        self._stopped = True
        lib.mn_probe_drain(self._probe)

    def in_flight(self) -> int:
        """Packets that were sent, and neither answered nor given up."""
        return int(lib.mn_probe_in_flight(self._probe))

    def idle(self) -> bool:
        """A bouncer that nobody asks."""
        return self.role == "server"

    def warnings(self) -> Iterator[str]:
        """That nothing was sent, when it ends; what else goes wrong is counted."""
        if self._stopped and self.role == "client" and self.mac is None and not self._warned:
            self._warned = True
            yield f"nobody has answered to {self._hop} on {self._nic} yet: nothing was sent"

    def faults(self) -> int:
        """1 when no answer came at all and one was wanted, or nothing could be sent; losses are a result."""
        unheard = self._wants_answers and self.counts()["answered"] == 0
        return int(unheard or (self.role == "client" and self.mac is None))

    def counts(self) -> dict[str, int]:
        """What was counted beside packets: losses by kind, and other frames."""
        counts = lib.mn_probe_get_counts(self._probe)
        return {
            name: int(getattr(counts, name))
            for name, _ in ffi.typeof(counts).fields
            if not name.startswith("cost_")
        }

    def costs(self) -> dict[str, dict[str, float]]:
        """What a packet costs that is sent ("tx") or received ("rx"), as far as there were any.

        ``ns``, ``ticks`` of the processor's counter, and how many came in a ``burst``. To send is to make it
        and hand it over; to receive is to look at it and give it back, or, for a bouncer, to send it back.
        """
        counts = lib.mn_probe_get_counts(self._probe)
        found: dict[str, dict[str, float]] = {}
        for way in ("tx", "rx"):
            if packets := getattr(counts, f"cost_{way}_packets"):
                ticks = getattr(counts, f"cost_{way}_ticks") / packets
                found[way] = {
                    "ns": round(ticks * counts.cost_run_ns / counts.cost_run_ticks, 1),
                    "ticks": round(ticks, 1),
                    "burst": round(packets / getattr(counts, f"cost_{way}_bursts"), 1),
                }
        return found


def histogram_rows(hist: Any, ends: Sequence[float]) -> list[tuple[float, int]]:
    """How many values lie up to each of ``ends`` (microseconds, ascending) and above the one before.

    What is above the last one is in a last row of its own, with ``inf``.
    """
    counts = [0] * (len(ends) + 1)
    if hist.count:
        first, last = lib.mn_hist_bucket(hist.min_ns), lib.mn_hist_bucket(hist.max_ns)
        buckets = ffi.unpack(ffi.addressof(hist.buckets, first), last - first + 1)
        row = 0
        for at, count in enumerate(buckets, first):
            if count:
                value_us = lib.mn_hist_bucket_end_ns(at) / 1e3
                while row < len(ends) and value_us > ends[row]:
                    row += 1
                counts[row] += count
    return list(zip([*ends, float("inf")], counts, strict=True))
