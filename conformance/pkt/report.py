# SPDX-License-Identifier: MIT
"""What happened so far, and the text of a failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import PktError
from .notation import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from .nodes import Event, Script

__all__ = ["Log", "ScriptFailedError"]

_SHOWN_MAX = 60


class ScriptFailedError(PktError):
    """The stack did not do what the script says."""


@dataclass
class Entry:
    """One line of the log: at what time, which way, what."""

    t_ns: int
    mark: str
    text: str | Callable[[], str]

    def __str__(self) -> str:
        text = self.text if isinstance(self.text, str) else self.text()
        return f"  {seconds(self.t_ns):>12} {self.mark} {text}"


class Log:
    """Packets and calls of a run, in their order. Times are those of the script."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, t_ns: int, mark: str, text: str | Callable[[], str]) -> None:
        """Something happened: '<' came in, '>' went out, '=' a call returned, '%' was printed."""
        self.entries.append(Entry(t_ns, mark, text))

    def __str__(self) -> str:
        entries = sorted(self.entries, key=lambda entry: entry.t_ns)
        lines = [str(entry) for entry in entries[-_SHOWN_MAX:]]
        if len(entries) > _SHOWN_MAX:
            lines.insert(0, f"  ({len(entries) - _SHOWN_MAX} earlier ones are left out)")
        return "\n".join(lines) or "  nothing"

    def failure(
        self, script: Script, event: Event, what: str, details: list[str], now_ns: int, arm: str
    ) -> ScriptFailedError:
        """What to raise.

        Args:
            script: The script.
            event: Where it failed.
            what: In a few words.
            details: Line by line, what was expected and what was found.
            now_ns: Time of the script.
            arm: Which arm it was.
        """
        lines = [
            f"{script.source}:{event.where.line}: {what}",
            f"    {script.line(event.where).strip()}",
            *(f"  {line}" for detail in details for line in detail.split("\n")),
            f"on {arm}, at {seconds(now_ns)} s; so far:",
            str(self),
        ]
        return ScriptFailedError("\n".join(lines))
