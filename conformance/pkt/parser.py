# SPDX-License-Identifier: MIT
"""From the text of a script to its events."""

from __future__ import annotations

import re
from pathlib import Path

from .cursor import Cursor
from .lexer import tokenize, unescape
from .nodes import (
    ANY,
    Array,
    Call,
    Code,
    Command,
    Dots,
    Event,
    Expression,
    Field,
    Function,
    Number,
    Option,
    Or,
    Packet,
    Position,
    Script,
    String,
    Struct,
    Symbol,
    Time,
)
from .packet_parser import parse_packet

__all__ = ["parse", "parse_file"]

_ARMS = re.compile(r"@arms\s+([a-z]+(?:\s*,\s*[a-z]+)*)\s*(?::\s*(.*?))?\s*(?:\*/)?$", re.DOTALL)


def parse_file(path: Path) -> Script:
    """Read the script in a file.

    Raises:
        ScriptError: It is not in the language, or uses what is not supported.
        OSError: There is no such file.
    """
    return parse(path.read_text(encoding="utf-8", errors="replace"), str(path))


def parse(text: str, source: str = "script") -> Script:
    """Read a script.

    Args:
        text: The script.
        source: Its name, for messages.

    Raises:
        ScriptSyntaxError: It is not in the language; the text has line, column and what was expected.
        UnsupportedError: It uses what is not supported.
    """
    cursor = Cursor(text, source)
    options = _options(cursor)
    events: list[Event] = []
    while cursor.token.kind == "command":
        token = cursor.take()
        events.append(Event(token.where, Time("relative"), Command(token.text)))
    while cursor.token.kind != "end":
        events.append(_event(cursor))
    if not any(not isinstance(event.action, Command) for event in events):
        cursor.fail("an event, such as +0 socket(..., SOCK_STREAM, IPPROTO_TCP) = 3")
    arms, reason = _arms(cursor)
    return Script(source, cursor.lines, options, tuple(events), arms, reason)


def _arms(cursor: Cursor) -> tuple[tuple[str, ...] | None, str]:
    """The comment that says which arms a script of ours is for."""
    for where, comment in cursor.comments:
        if "@arms" not in comment:
            continue
        match = _ARMS.search(comment)
        names = tuple(name.strip() for name in match[1].split(",")) if match else ()
        if match is None or not match[2] or set(names) - {"machnet", "linux"}:
            cursor.error("expected '@arms machnet: reason' or '@arms linux: reason'", where)
        return names, " ".join(match[2].split())
    return None, ""


def _options(cursor: Cursor) -> tuple[Option, ...]:
    options: list[Option] = []
    while cursor.token.kind == "option":
        token = cursor.take()
        name, _, value = token.text[2:].partition("=")
        option = Option(token.where, name, value.strip('"'))
        options.append(option)
        if name == "define":
            symbol, equals, meaning = value.partition("=")
            words, _ = tokenize(meaning, cursor.source) if equals else ([], [])
            if len(words) != 2:
                cursor.error("expected --define=NAME=VALUE with one word as value", token.where)
            cursor.defines[symbol] = words[0]
    return tuple(options)


def _event(cursor: Cursor) -> Event:
    where = cursor.token.where
    if cursor.token.kind == "command" and cursor.peek().kind == "end":
        return Event(
            where, Time("relative"), Command(cursor.take().text)
        )  # the clean-up at the end
    time = _time(cursor)
    action: Packet | Call | Code | Command
    if cursor.at("<", ">"):
        action = parse_packet(cursor)
    elif cursor.token.kind == "code":
        action = Code(cursor.take().text)
    elif cursor.token.kind == "command":
        action = Command(cursor.take().text)
    elif cursor.token.kind in {"name", "dots"}:
        action = _call(cursor, time, where)
    else:
        cursor.fail("an action: a packet ('<' or '>'), a system call, %{ code }% or a `command`")
    outbound = isinstance(action, Packet) and not action.inbound
    if time.kind == "any" and not outbound:
        cursor.error("the time '*' is for packets that are expected ('>') only", where)
    if time.end_ns is not None and not outbound:
        cursor.error("a range of time is for packets that are expected ('>') only", where)
    return Event(where, time, action)


def _time(cursor: Cursor) -> Time:
    where = cursor.token.where
    if cursor.accept("*"):
        return Time("any")
    relative = cursor.accept("+")
    if cursor.token.kind not in {"integer", "float"}:
        cursor.fail("a time, such as 0, 0.5, +0.1, +0.1~+0.2 or *")
    start, end = cursor.seconds_ns(), None
    if cursor.accept("~"):
        if cursor.accept("+") and not relative:
            cursor.error("a range goes from absolute to absolute or from + to +", where)
        end = cursor.seconds_ns()
        if end < start:
            cursor.error("the range of time is backwards", where)
    return Time("relative" if relative else "absolute", start, end)


# ---- system calls --------------------------------------------------------------------------------


def _call(cursor: Cursor, time: Time, where: Position) -> Call:
    end_ns = None
    if cursor.accept("..."):
        cursor.accept("+")
        end_ns = cursor.seconds_ns()
        if end_ns < time.start_ns:
            cursor.error("the call ends before it begins", where)
    name = cursor.name("the name of a system call").text
    cursor.expect("(", f"and the arguments of {name}")
    args: list[Expression] = []
    while not cursor.at(")"):
        args.append(_expression(cursor))
        if not cursor.accept(","):
            break
    cursor.expect(")", "or ',' and another argument")
    cursor.expect("=", f"and what {name} returns")
    result = _expression(cursor)
    errno = None
    if cursor.token.kind == "name" and re.fullmatch(r"E[A-Z0-9]+", cursor.token.text):
        errno = cursor.take().text
    if cursor.at("("):
        _note(cursor)
    return Call(name, tuple(args), result, errno, end_ns)


def _note(cursor: Cursor) -> None:
    """What strace would add in brackets; it says nothing to us."""
    opening = cursor.take()
    while not cursor.accept(")"):
        if cursor.token.kind == "end":
            cursor.error("a note that never ends: expected ')'", opening.where)
        cursor.take()


def _expression(cursor: Cursor) -> Expression:
    first = _term(cursor)
    if not cursor.at("|"):
        return first
    items = [first]
    while cursor.accept("|"):
        items.append(_term(cursor))
    return Or(tuple(items))


def _term(cursor: Cursor) -> Expression:
    token = cursor.token
    if token.kind == "dots":
        cursor.take()
        return Dots()
    if token.kind == "string":
        return _string(cursor)
    if cursor.accept("?") or (token.text == "_" and cursor.accept("_")):
        return ANY
    if token.kind in {"integer", "hex"}:
        return Number(cursor.integer("a number", 2**64 - 1, hexadecimal=True))
    if cursor.accept("-"):
        return Number(-cursor.integer("a number", 2**63))
    if cursor.at("["):
        return _array(cursor)
    if cursor.at("{"):
        return _struct(cursor)
    if token.kind == "name":
        cursor.take()
        if cursor.at("("):
            return Function(token.text, _list(cursor, "(", ")"), token.where)
        return Symbol(token.text, token.where)
    return cursor.fail("a number, a constant, a string, '...', [array] or {struct}")


def _string(cursor: Cursor) -> Expression:
    value = b""
    while cursor.token.kind == "string":
        value += unescape(cursor.take().text)
    cursor.accept("...")  # more of the same, as strace shows it
    return String(value)


def _list(cursor: Cursor, opening: str, closing: str) -> tuple[Expression, ...]:
    cursor.expect(opening)
    items: list[Expression] = []
    while not cursor.at(closing):
        items.append(_expression(cursor))
        if not cursor.accept(","):
            break
    cursor.expect(closing)
    return tuple(items)


def _array(cursor: Cursor) -> Array:
    return Array(_list(cursor, "[", "]"))


def _struct(cursor: Cursor) -> Struct:
    where = cursor.expect("{").where
    fields: list[Field] = []
    while not cursor.at("}"):
        fields.append(_field(cursor))
        if not cursor.accept(","):
            break
    cursor.expect("}", "or ',' and another field")
    return Struct(tuple(fields), where)


def _field(cursor: Cursor) -> Field:
    name, count = None, None
    if cursor.token.kind == "name":
        if cursor.peek().text == "=":
            name = cursor.take().text
            cursor.take()
        elif cursor.peek().text == "(" and cursor.token.text.startswith("msg_"):
            name = cursor.take().text
            cursor.take()
            count = _expression(cursor)
            cursor.expect(")")
            cursor.expect("=")
    return Field(name, _expression(cursor), count)
