# SPDX-License-Identifier: MIT
"""Words of the script language."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import ScriptSyntaxError
from .nodes import Position

__all__ = ["Token", "tokenize", "unescape"]

_TOKENS = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<comment>//[^\n]*|\#[^\n]*|/\*.*?\*/)
  | (?P<open_comment>/\*)
  | (?P<option>--[A-Za-z_][A-Za-z0-9_]*(?:=[^\s]*)?)
  | (?P<code>%\{.*?\}%)
  | (?P<open_code>%\{)
  | (?P<command>`[^`]*`)
  | (?P<open_command>`)
  | (?P<string>"(?:[^"\\\n]|\\.)*")
  | (?P<open_string>")
  | (?P<dots>\.\.\.)
  | (?P<hex>0[xX][0-9A-Fa-f]+)
  | (?P<float>[0-9]*\.[0-9]+)
  | (?P<integer>[0-9]+)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<mark>[-+*~<>=,:;.()\[\]{}|?&])
    """,
    re.VERBOSE | re.DOTALL,
)
_OPEN = {
    "open_comment": "a comment that starts with /* and never ends: expected */",
    "open_code": "a code block that never ends: expected }%",
    "open_command": "a command that never ends: expected `",
    "open_string": 'a string that never ends: expected "',
}
_ESCAPES = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\", '"': b'"', "'": b"'"}


@dataclass(frozen=True, slots=True)
class Token:
    """One word.

    Attributes:
        kind: "name", "integer", "hex", "float", "string", "mark", "dots", "code", "command",
            "option", "end".
        text: As written; of code and commands without what encloses it.
        where: Its place.
        start: Offset in the text.
        end: Offset of what follows.
    """

    kind: str
    text: str
    where: Position
    start: int
    end: int

    def __str__(self) -> str:
        if self.kind == "end":
            return "the end of the script"
        text = self.text if len(self.text) <= 40 else self.text[:37] + "..."
        return f"'{text}'"


def tokenize(text: str, source: str) -> tuple[list[Token], list[tuple[Position, str]]]:
    """Split a script into words.

    Args:
        text: The script.
        source: Its name, for errors.

    Returns:
        The words, with one of the kind "end" behind them, and the comments.

    Raises:
        ScriptSyntaxError: There is no such word.
    """
    tokens: list[Token] = []
    comments: list[tuple[Position, str]] = []
    offset, line, line_start = 0, 1, 0
    while offset < len(text):
        where = Position(line, offset - line_start + 1)
        match = _TOKENS.match(text, offset)
        kind = match.lastgroup if match is not None else None
        if match is None or kind is None or kind in _OPEN:
            what = _OPEN[kind] if kind is not None else f"{text[offset]!r} is not in the language"
            shown = text[line_start:].split("\n", 1)[0]
            raise ScriptSyntaxError(where, what, source, shown)
        word = match.group()
        if kind == "comment":
            comments.append((where, word))
        elif kind != "space":
            inner = {"code": word[2:-2], "command": word[1:-1]}.get(kind, word)
            tokens.append(Token(kind, inner, where, offset, match.end()))
        newlines = word.count("\n")
        if newlines:
            line += newlines
            line_start = offset + word.rindex("\n") + 1
        offset = match.end()
    tokens.append(Token("end", "", Position(line, offset - line_start + 1), offset, offset))
    return tokens, comments


def unescape(quoted: str) -> bytes:
    """The bytes of a string in quotes."""
    out = bytearray()
    body = iter(re.findall(r"\\x[0-9A-Fa-f]{2}|\\.|[^\\]", quoted[1:-1], re.DOTALL))
    for piece in body:
        if piece.startswith("\\x") and len(piece) == 4:
            out.append(int(f"0{piece[1:]}", 0))
        elif piece.startswith("\\"):
            out += _ESCAPES.get(piece[1], piece[1].encode())
        else:
            out += piece.encode()
    return bytes(out)
