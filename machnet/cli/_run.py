# SPDX-License-Identifier: MIT
"""The loop around a message generator's hot loop: slices, intervals, signals, and the end.

The hot loop is C and holds no lock of the interpreter; it comes back several times a second, so
that signal handlers run and lines are printed on time.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from machnet._native import ffi, lib
from machnet.cli._report import Outcome, Reporter, Sample
from machnet.cli._stdout import forget_unwritten

if TYPE_CHECKING:
    import click

#: How long the hot loop runs before Python looks at its signals, in nanoseconds.
SLICE_NS = 50_000_000
#: How long the end of a run waits for replies to what is in flight, in seconds.
DRAIN_S = 2.0

_SECOND_NS = 1_000_000_000


class RunError(Exception):
    """A run cannot go on; the message says why."""


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """While what a run needs is opened: what the system or a setting refuses ends it.

    Raises:
        RunError: In the place of OSError and ValueError.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            text = (
                error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
            )
        raise RunError(text) from error


def finish(ctx: click.Context, reporter: Reporter, go: Callable[[], int]) -> NoReturn:
    """Run a command to its end; what can't go on is said, and the process ends with its status."""
    try:
        code = go()
    except RunError as error:
        reporter.error(str(error))
        code = 1
    except KeyboardInterrupt:
        # Before the run begins or after its summary: in between the run ends by itself, with one.
        reporter.error("interrupted")
        code = 1
    except BrokenPipeError:
        raise  # who reads our lines has seen enough: click ends us without a word
    except OSError as error:
        reporter.error(error.strerror or str(error))
        forget_unwritten()
        code = 1
    ctx.exit(code)


class Endpoint(Protocol):
    """A client or server over some transport, as the loop drives it."""

    #: ``client`` or ``server``.
    role: str
    #: The option whose number of messages ends the run.
    limit: str
    #: ``struct mn_msg_stats *`` that the endpoint counts into.
    stats: Any

    def step(self, until_ns: int) -> bool:
        """Work until the monotonic clock says ``until_ns``, or a signal; ``True`` when finished.

        Raises:
            RunError: The endpoint cannot go on.
        """
        ...

    def drain(self) -> None:
        """Start nothing new; ``step`` says when what is in flight is answered."""
        ...

    def in_flight(self) -> int:
        """Messages that were sent and not answered (0 for a server)."""
        ...

    def idle(self) -> bool:
        """Whether an interval without messages is of no interest (a server without peers)."""
        ...

    def warnings(self) -> Iterable[str]:
        """What went wrong since the last call and did not end the run."""
        ...

    def faults(self) -> int:
        """How much went wrong in the whole run and did not end it; not what ``stats`` counts."""
        ...


def new_stats() -> Any:
    """Return an empty ``struct mn_msg_stats *``."""
    stats = ffi.new("struct mn_msg_stats *")
    lib.mn_msg_stats_reset(stats)
    return stats


class StopSignals:
    """Counts SIGINT and SIGTERM while entered, instead of being ended by them."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[signal.Signals, Any] = {}

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _Intervals:
    """Cuts a run into seconds and keeps the total."""

    def __init__(self, endpoint: Endpoint, reporter: Reporter) -> None:
        self._endpoint = endpoint
        self._reporter = reporter
        self._total = new_stats()
        self.start_ns = time.monotonic_ns()
        self._last_ns = self.start_ns
        self.next_ns = self.start_ns + _SECOND_NS

    def report_when_due(self, now_ns: int) -> None:
        if now_ns < self.next_ns:
            return
        stats = self._endpoint.stats
        if stats.tx_msgs or stats.rx_msgs or not self._endpoint.idle():
            sample = Sample.of(stats, (now_ns - self._last_ns) / _SECOND_NS)
            self._reporter.interval(sample, (now_ns - self.start_ns) / _SECOND_NS)
        lib.mn_msg_stats_move(self._total, stats)
        self._last_ns = now_ns
        # Seconds that were missed, when the process was stopped, are not made up for.
        self.next_ns += ((now_ns - self.next_ns) // _SECOND_NS + 1) * _SECOND_NS

    def total(self, now_ns: int) -> Sample:
        lib.mn_msg_stats_move(self._total, self._endpoint.stats)
        seconds = (now_ns - self.start_ns) / _SECOND_NS
        return Sample.of(self._total, seconds, keep=True)


def run(
    endpoint: Endpoint,
    reporter: Reporter,
    *,
    announce: str,
    duration_s: float | None,
    drain_s: float = DRAIN_S,
) -> int:
    """Drive ``endpoint`` to its end, print its lines and its summary, and return the exit status.

    ``announce`` is the first line. Who has read it may send a signal: it ends the run, not the
    process.

    The end is the endpoint's own (all messages answered), ``duration_s``, SIGINT or SIGTERM, or a
    failure. After the middle two a client waits up to ``drain_s`` for what is in flight; a second
    signal ends that too.

    Returns:
        0 when nothing failed and a client had every message answered, and rightly; else 1.
    """
    with StopSignals() as signals:
        reporter.status(announce)
        intervals = _Intervals(endpoint, reporter)
        ended, error = _loop(endpoint, reporter, intervals, signals, duration_s, drain_s)
        now_ns = time.monotonic_ns()
        total = intervals.total(now_ns)
        lost = endpoint.in_flight()
        errors = endpoint.faults() + total.payload_faults + lost + (error is not None)
        # What a server's peers do wrong is their failure.
        ok = error is None if endpoint.role == "server" else errors == 0
        outcome = Outcome(
            ended=ended,
            elapsed_s=(now_ns - intervals.start_ns) / _SECOND_NS,
            lost_msgs=lost,
            errors=errors,
            error=error,
            ok=ok,
        )
        exit_code = 0 if ok else 1
        if error is not None:
            reporter.error(error)
        reporter.final(total, outcome, exit_code)
    return exit_code


def _loop(
    endpoint: Endpoint,
    reporter: Reporter,
    intervals: _Intervals,
    signals: StopSignals,
    duration_s: float | None,
    drain_s: float,
) -> tuple[str, str | None]:
    """Return how the run ended and the error, if that is how."""
    ended = None
    # One limit at a time: that of the run, then that of the wait for what is in flight.
    limit_ns = None
    if duration_s is not None:
        limit_ns = intervals.start_ns + round(duration_s * _SECOND_NS)
    while True:
        now_ns = time.monotonic_ns()
        expired = limit_ns is not None and now_ns >= limit_ns
        if ended is None and (signals.count > 0 or expired):
            ended = "signal" if signals.count > 0 else "duration"
            endpoint.drain()
            limit_ns = now_ns + round(drain_s * _SECOND_NS)
            signals_seen = signals.count
        elif ended is not None and (expired or signals.count > signals_seen):
            return ended, None
        until_ns = min(now_ns + SLICE_NS, intervals.next_ns, limit_ns or 2**63)
        try:
            finished = endpoint.step(until_ns)
        except RunError as error:
            return "failure", str(error)
        finally:
            for text in endpoint.warnings():
                reporter.warn(text)
        if finished:
            return ended or endpoint.limit, None
        intervals.report_when_due(time.monotonic_ns())
