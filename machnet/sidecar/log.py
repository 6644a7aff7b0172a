# SPDX-License-Identifier: MIT
"""The sidecar's log: one event a line, as ``key=value`` or as JSON, never more than a few a second."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import sys
import threading
import time
from typing import Any, TextIO

__all__ = ["LEVELS", "Log"]

LEVELS = ("debug", "info", "warning", "error")
#: Lines of one event at once, and per second from then on.
BURST_LINES = 20
RATE_PER_S = 2.0

_PLAIN = re.compile(r"[\w.:/@+-]+")


class Log:
    """Writes events. Any thread may call.

    What comes more often than `RATE_PER_S` is left out; the next line of that event says how many
    were. Errors are always written.

    Args:
        level: The least one of `LEVELS` that is written.
        form: "text" or "json".
        stream: None: standard error.
    """

    def __init__(
        self, level: str = "info", form: str = "text", stream: TextIO | None = None
    ) -> None:
        self.set_level(level)
        self._json = form == "json"
        self._stream = stream if stream is not None else sys.stderr
        self._lock = threading.Lock()
        #: By event: lines that may be written now, when that was, and how many were left out.
        self._budget: dict[str, tuple[float, float, int]] = {}

    def set_level(self, level: str) -> None:
        """Write events of this level and above."""
        self._least = LEVELS.index(level)

    def debug(self, event: str, **fields: Any) -> None:
        """What helps to find a bug."""
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """What an operator wants to see."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """What an operator should look at."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """What did not work."""
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if LEVELS.index(level) < self._least:
            return
        with self._lock:
            left_out = 0 if level == "error" else self._spend(event)
            if left_out < 0:
                return
            if left_out > 0:
                fields = {**fields, "left_out": left_out}
            # A log that nobody takes must not end the process.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(self._line(level, event, fields))
                self._stream.flush()

    def _spend(self, event: str) -> int:
        """Lines of this event that were left out before this one; -1: this one is left out too."""
        now = time.monotonic()
        lines, since, left_out = self._budget.get(event, (float(BURST_LINES), now, 0))
        lines = min(lines + (now - since) * RATE_PER_S, BURST_LINES)
        if lines < 1:
            self._budget[event] = (lines, now, left_out + 1)
            return -1
        self._budget[event] = (lines - 1, now, 0)
        return left_out

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> str:
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._json:
            record = {"time": stamp, "level": level, "event": event, **fields}
            return json.dumps(record, default=str) + "\n"
        words = [stamp, level, event, *(f"{name}={_word(value)}" for name, value in fields.items())]
        return " ".join(words) + "\n"


def _word(value: Any) -> str:
    """A value as one word: what applications call themselves can't forge a line."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.isascii() else json.dumps(text)
