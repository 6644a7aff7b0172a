# SPDX-License-Identifier: MIT
"""What can go wrong with a script, and how it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import Position

__all__ = [
    "ArmUnsupportedError",
    "PktError",
    "ScriptError",
    "ScriptSyntaxError",
    "UnsupportedError",
]


class PktError(Exception):
    """A script could not be run, or did not pass."""


class ScriptError(PktError):
    """Something at one place of a script.

    Args:
        where: The place.
        what: What is wrong there, and what was expected.
        source: The script's name, for the message.
        line_text: That line of the script.
    """

    def __init__(self, where: Position, what: str, source: str = "", line_text: str = "") -> None:
        self.where = where
        self.what = what
        self.source = source
        self.line_text = line_text
        super().__init__(where, what, source, line_text)

    def __str__(self) -> str:
        text = f"{self.source}:{self.where.line}:{self.where.column}: {self.what}"
        if self.line_text:
            text += f"\n    {self.line_text}\n    {' ' * (self.where.column - 1)}^"
        return text


class ScriptSyntaxError(ScriptError):
    """The text is not in the language."""


class UnsupportedError(ScriptError):
    """The language has it, this reader hasn't: the text names the feature."""


class ArmUnsupportedError(UnsupportedError):
    """This arm can't do it; the other one may."""
