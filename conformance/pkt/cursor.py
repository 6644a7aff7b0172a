# SPDX-License-Identifier: MIT
"""A place in a list of words, and what the parsers ask of it."""

from __future__ import annotations

from decimal import Decimal
from typing import NoReturn

from .errors import ScriptSyntaxError, UnsupportedError
from .lexer import Token, tokenize
from .nodes import Position

__all__ = ["Cursor"]

#: Enough for 64 bits, and for every time.
_DIGITS_MAX = 24


class Cursor:
    """Reads words one by one.

    Args:
        text: The script.
        source: Its name.
    """

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source
        self.lines = tuple(text.split("\n"))
        self.tokens, self.comments = tokenize(text, source)
        self.index = 0
        #: From ``--define=NAME=VALUE``: words in place of a name.
        self.defines: dict[str, Token] = {}

    @property
    def token(self) -> Token:
        """The next word."""
        token = self.tokens[self.index]
        if token.kind == "name" and token.text in self.defines:
            other = self.defines[token.text]
            return Token(other.kind, other.text, token.where, token.start, token.end)
        return token

    def peek(self, ahead: int = 1) -> Token:
        """A word further on."""
        return self.tokens[min(self.index + ahead, len(self.tokens) - 1)]

    def take(self) -> Token:
        """The next word, which is then behind us."""
        token = self.token
        if token.kind != "end":
            self.index += 1
        return token

    def at(self, *texts: str) -> bool:
        """Whether the next word is one of these names or marks."""
        token = self.token
        return token.kind in {"mark", "name", "dots"} and token.text in texts

    def accept(self, text: str) -> bool:
        """Take the next word if it is this one."""
        if self.at(text):
            self.index += 1
            return True
        return False

    def expect(self, text: str, why: str = "") -> Token:
        """Take the next word, which must be this one."""
        if not self.at(text):
            self.fail(f"'{text}'{' ' + why if why else ''}")
        return self.take()

    def name(self, what: str) -> Token:
        """Take a name."""
        if self.token.kind != "name":
            self.fail(what)
        return self.take()

    def integer(self, what: str, largest: int = 2**32 - 1, *, hexadecimal: bool = False) -> int:
        """Take a number without a sign."""
        token = self.token
        if len(token.text) > _DIGITS_MAX and token.kind in {"hex", "integer"}:
            self.error(f"{what} has at most {_DIGITS_MAX} digits", token.where)
        if token.kind == "hex" and hexadecimal:
            value = int(token.text, 16)
        elif token.kind == "integer":
            value = int(token.text)
        else:
            self.fail(what)
        if value > largest:
            self.error(f"{what} is at most {largest}: {value}", token.where)
        self.take()
        return value

    def seconds_ns(self) -> int:
        """Take a time in seconds; as nanoseconds."""
        token = self.token
        if token.kind not in {"integer", "float"}:
            self.fail("a time in seconds, such as 0.1")
        if len(token.text) > _DIGITS_MAX:
            self.error(f"a time has at most {_DIGITS_MAX} digits")
        self.take()
        return int(Decimal(token.text) * 1_000_000_000)

    # ---- errors ----------------------------------------------------------------------------------

    def line_text(self, where: Position) -> str:
        """The line at that place."""
        return self.lines[where.line - 1] if where.line <= len(self.lines) else ""

    def fail(self, expected: str) -> NoReturn:
        """The next word is not what must come here."""
        self.error(f"expected {expected}, found {self.token}")

    def error(self, what: str, where: Position | None = None) -> NoReturn:
        """The script is wrong."""
        where = where or self.token.where
        raise ScriptSyntaxError(where, what, self.source, self.line_text(where))

    def unsupported(self, feature: str, where: Position | None = None) -> NoReturn:
        """The language has it, and we don't."""
        where = where or self.token.where
        raise UnsupportedError(
            where, f"not supported: {feature}", self.source, self.line_text(where)
        )
