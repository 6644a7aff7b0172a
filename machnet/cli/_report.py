# SPDX-License-Identifier: MIT
"""What the message generators print: the line each second, the summary, JSON, and errors.

Nothing here knows which transport carried the messages.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from machnet._native import ffi, lib
from machnet.cli._hdr import encode_hdr

#: The percentiles that are reported, with their millionths.
PERCENTILES = {
    "p50": 500_000,
    "p90": 900_000,
    "p99": 990_000,
    "p99.9": 999_000,
    "p99.99": 999_900,
}


@dataclass(frozen=True)
class Latency:
    """Times from send to reply over some interval, in microseconds."""

    count: int
    min_us: float
    mean_us: float
    max_us: float
    percentiles_us: dict[str, float]

    def as_json(self) -> dict[str, float]:
        """Return the figures by name, in microseconds, rounded to the nanosecond."""
        ends = {"min": self.min_us, **self.percentiles_us, "max": self.max_us, "mean": self.mean_us}
        return {name: round(value, 3) for name, value in ends.items()}


@dataclass(frozen=True)
class Sample:
    """What was counted over some interval; bytes are payload bytes, without framing."""

    seconds: float
    tx_msgs: int
    tx_bytes: int
    rx_msgs: int
    rx_bytes: int
    payload_faults: int
    latency: Latency | None
    #: The ``struct mn_hist`` that the latencies come from, where it was asked for.
    rtt: Any = None

    @classmethod
    def of(cls, stats: Any, seconds: float, *, keep: bool = False) -> Sample:
        """Read a ``struct mn_msg_stats`` that covers ``seconds``; with ``keep`` it stays in use."""
        latency = None
        if stats.rtt.count > 0:
            rtt = ffi.addressof(stats, "rtt")
            latency = Latency(
                count=stats.rtt.count,
                min_us=stats.rtt.min_ns / 1e3,
                mean_us=lib.mn_hist_mean_ns(rtt) / 1e3,
                max_us=stats.rtt.max_ns / 1e3,
                percentiles_us={
                    name: lib.mn_hist_quantile_ns(rtt, millionths) / 1e3
                    for name, millionths in PERCENTILES.items()
                },
            )
        return cls(
            seconds=seconds,
            tx_msgs=stats.tx_msgs,
            tx_bytes=stats.tx_bytes,
            rx_msgs=stats.rx_msgs,
            rx_bytes=stats.rx_bytes,
            payload_faults=stats.payload_faults,
            latency=latency,
            rtt=ffi.addressof(stats, "rtt") if keep and latency else None,
        )

    def _per_second(self, value: float) -> float:
        return value / self.seconds if self.seconds > 0 else 0.0

    @property
    def tx_msgs_per_s(self) -> float:
        """Messages sent per second."""
        return self._per_second(self.tx_msgs)

    @property
    def rx_msgs_per_s(self) -> float:
        """Messages received per second."""
        return self._per_second(self.rx_msgs)

    @property
    def tx_gbit_per_s(self) -> float:
        """Payload sent, in 10^9 bits per second."""
        return self._per_second(self.tx_bytes * 8 / 1e9)

    @property
    def rx_gbit_per_s(self) -> float:
        """Payload received, in 10^9 bits per second."""
        return self._per_second(self.rx_bytes * 8 / 1e9)

    def rates_text(self, noun: str = "msg") -> str:
        """Return the rates as the originals print them."""
        return (
            f"TX/RX ({noun}/sec, Gbps): ({self.tx_msgs_per_s / 1e3:.1f}K/"
            f"{self.rx_msgs_per_s / 1e3:.1f}K, {self.tx_gbit_per_s:.3f}/{self.rx_gbit_per_s:.3f})"
        )

    def as_json(self, noun: str = "msg") -> dict[str, Any]:
        """Return the counts and rates with units in the key names."""
        hdr = {} if self.rtt is None else {"latency_hdr_ns": encode_hdr(self.rtt)}
        return {
            f"tx_{noun}s": self.tx_msgs,
            f"rx_{noun}s": self.rx_msgs,
            "tx_bytes": self.tx_bytes,
            "rx_bytes": self.rx_bytes,
            f"tx_{noun}s_per_s": round(self.tx_msgs_per_s, 1),
            f"rx_{noun}s_per_s": round(self.rx_msgs_per_s, 1),
            "tx_gbit_per_s": round(self.tx_gbit_per_s, 6),
            "rx_gbit_per_s": round(self.rx_gbit_per_s, 6),
            "payload_faults": self.payload_faults,
            "latency_samples": self.latency.count if self.latency else 0,
            "latency_us": self.latency.as_json() if self.latency else None,
            **hdr,
        }


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    ``ended`` is ``msg_nr``, ``duration``, ``signal`` or ``failure``; ``lost_msgs`` were sent and not
    answered; ``errors`` counts those and everything else that went wrong, wrong payloads included.
    """

    ended: str
    elapsed_s: float
    lost_msgs: int = 0
    errors: int = 0
    error: str | None = None
    ok: bool = True


class Reporter:
    """Writes a run's progress and result, for people or as JSON.

    Args:
        tool: The command's name.
        role: ``client`` or ``server``.
        parameters: Every setting of the run, units in the key names; part of the last JSON object.
        as_json: JSON to ``out``, and what people read to ``err``.
        noun: What is counted: ``msg`` or ``packet``.
        extra: What else the last JSON object has, asked for at the end.
        out: Standard output unless given.
        err: Standard error unless given.
    """

    #: Warnings printed in any one second; more are counted and summed up.
    WARNINGS_PER_S = 5

    def __init__(
        self,
        tool: str,
        role: str,
        parameters: dict[str, Any],
        *,
        as_json: bool,
        noun: str = "msg",
        extra: Callable[[], dict[str, Any]] | None = None,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self._tool = tool
        self._role = role
        self._parameters = parameters
        self._as_json = as_json
        self._noun = noun
        self._extra = extra
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._warned_second = -1
        self._warned = 0
        self._held_back = 0

    def status(self, text: str) -> None:
        """Write a line that says what is happening; flushed, so that a parent can wait for it."""
        print(text, file=self._err if self._as_json else self._out, flush=True)

    def error(self, text: str) -> None:
        """Write an error."""
        print(f"{self._tool}: {text}", file=self._err, flush=True)

    def warn(self, text: str) -> None:
        """Write a warning, unless there were too many this second."""
        second = int(time.monotonic())
        if second != self._warned_second:
            self.flush_warnings()
            self._warned_second = second
            self._warned = 0
        if self._warned < self.WARNINGS_PER_S:
            self._warned += 1
            self.error(text)
        else:
            self._held_back += 1

    def flush_warnings(self) -> None:
        """Say how many warnings were held back, if any were."""
        if self._held_back:
            self.error(f"{self._held_back} more of such messages were held back")
            self._held_back = 0

    def interval(self, sample: Sample, at_s: float) -> None:
        """Write one interval that ended ``at_s`` seconds into the run."""
        if self._as_json:
            self._write_json(
                "interval",
                {
                    "at_s": round(at_s, 6),
                    "interval_s": round(sample.seconds, 6),
                    **sample.as_json(self._noun),
                },
            )
            return
        text = sample.rates_text(self._noun)
        if self._role == "client":
            text += f". RTT (p50/99/99.9 us): {_rtt_text(sample.latency)}"
        self.status(text)

    def final(self, total: Sample, outcome: Outcome, exit_code: int) -> None:
        """Write the summary of a run."""
        self.flush_warnings()
        if self._as_json:
            self._write_json(
                "final",
                {
                    "ended": outcome.ended,
                    "ok": outcome.ok,
                    "exit_code": exit_code,
                    "error": outcome.error,
                    "errors": outcome.errors,
                    f"lost_{self._noun}s": outcome.lost_msgs,
                    "elapsed_s": round(outcome.elapsed_s, 6),
                    **total.as_json(self._noun),
                    **(self._extra() if self._extra is not None else {}),
                    "parameters": self._parameters,
                },
            )
            return
        self.summary(total, outcome)

    def summary(self, total: Sample, outcome: Outcome) -> None:
        """Write the summary for people."""
        self.status(f"--- {self._tool} {self._role}: summary of {outcome.elapsed_s:.3f} s ---")
        self.status(f"Messages sent/received: {total.tx_msgs}/{total.rx_msgs}")
        self.status(total.rates_text())
        if total.latency is not None:
            figures = total.latency.as_json()
            self.status(
                "RTT (us): " + ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
            )
        if self._role == "client":
            self.status(
                f"Wrong payloads: {total.payload_faults}"
                + ("" if self._parameters["verify"] else " (not checked: no --verify)")
                + f", unanswered: {outcome.lost_msgs}"
            )
        elif faults := outcome.errors - (outcome.error is not None):  # that one is ours
            self.status(f"Faults of peers: {faults}")

    def _write_json(self, event: str, fields: dict[str, Any]) -> None:
        head = {"event": event, "tool": self._tool, "role": self._role}
        print(json.dumps({**head, **fields}), file=self._out, flush=True)


def _rtt_text(latency: Latency | None) -> str:
    if latency is None:
        return "-/-/-"
    return "/".join(f"{latency.percentiles_us[name]:.1f}" for name in ("p50", "p99", "p99.9"))


#: What the engine says about a flow whose framing went wrong; other errors are the system's own.
_FLOW_ERRORS = {
    errno.EPROTO: "the connection ended in the middle of a message",
    errno.EMSGSIZE: f"a message length is over {lib.MN_MSG_MAX_BYTES} bytes",
    errno.EPIPE: "the sidecar has ended",
}


def fault_text(fault: Any) -> str:
    """Say in a sentence what a ``struct mn_msg_fault`` has found."""
    limits = f"{lib.MN_MSG_HEADER_BYTES} to {lib.MN_MSG_MAX_BYTES}"
    system = os.strerror(fault.error) if fault.error else ""
    texts = {
        lib.MN_MSG_FAULT_LENGTH: f"message length {fault.length} is not in {limits} bytes",
        lib.MN_MSG_FAULT_SLOT: f"reply to window slot {fault.slot}, which is not in flight",
        lib.MN_MSG_FAULT_PAYLOAD: (
            f"wrong payload in window slot {fault.slot}: byte {fault.offset} of {fault.length} is "
            f"{fault.got}, not {fault.expected}"
        ),
        lib.MN_MSG_FAULT_TORN: (
            f"the connection ended in the middle of a message, {fault.offset} bytes into it"
        ),
        lib.MN_MSG_FAULT_CLOSED: "the peer closed the connection while replies were missing",
        lib.MN_MSG_FAULT_SYSTEM: system,
        lib.MN_MSG_FAULT_ACCEPT: f"a connection could not be accepted: {system}",
        lib.MN_MSG_FAULT_FLOW: _FLOW_ERRORS.get(fault.error, system),
        lib.MN_MSG_FAULT_OWED: "cut off: it goes on asking and does not read the answers",
    }
    text = texts.get(fault.kind, f"unknown fault {fault.kind}")
    if fault.peer_ip_be:
        # The number is in network order in memory, whatever this machine's order is.
        address = socket.inet_ntoa(struct.pack("=I", fault.peer_ip_be))
        text = f"{address}:{fault.peer_port}: {text}"
    return text


def reason_text(error: OSError, hints: Mapping[int, str]) -> str:
    """Say why a call failed, and what to look at where there is a hint for its ``errno``."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = hints.get(error.errno or 0)
    return f"{reason} ({hint})" if hint else reason
