# SPDX-License-Identifier: MIT
"""Arguments of system calls: from expressions to values, and back to what a script would say."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from .constants import CONSTANTS
from .errors import ScriptSyntaxError, UnsupportedError
from .nodes import (
    AnyValue,
    Array,
    Dots,
    Expression,
    Field,
    Function,
    Number,
    Or,
    String,
    Struct,
    Symbol,
)

if TYPE_CHECKING:
    from .nodes import Position

__all__ = ["Values"]


class Values:
    """What expressions mean.

    Args:
        where: Of the event, for messages.
    """

    def __init__(self, where: Position) -> None:
        self.where = where

    def bad(self, what: str, where: Position | None = None) -> ScriptSyntaxError:
        """An argument is not what the call takes."""
        return ScriptSyntaxError(where or self.where, what)

    def number(self, expression: Expression) -> int:
        """An integer."""
        if isinstance(expression, Number):
            return expression.value
        if isinstance(expression, Symbol):
            if expression.name not in CONSTANTS:
                raise self.bad(f"there is no constant {expression.name}", expression.where)
            return CONSTANTS[expression.name]
        if isinstance(expression, Or):
            value = 0
            for item in expression.items:
                value |= self.number(item)
            return value
        if isinstance(expression, Function):
            return self._function(expression)
        raise self.bad("expected an integer or constants joined by '|'")

    def _function(self, call: Function) -> int:
        if call.name in {"htons", "htonl", "ntohs", "ntohl"} and len(call.args) == 1:
            return self.number(call.args[0])  # addresses and ports are in our order everywhere
        if call.name == "inet_addr" and call.args and isinstance(call.args[0], String):
            text = call.args[0].value.decode("ascii", "replace")
            try:
                return int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big")
            except OSError:
                raise self.bad(f"{text!r} is no IPv4 address", call.where) from None
        raise UnsupportedError(call.where, f"not supported: {call.name}()")

    def address(self, expression: Expression) -> tuple[str, int] | None:
        """A ``struct sockaddr_in``; None for ``...``."""
        if isinstance(expression, Dots | AnyValue) or expression == Symbol("NULL", self.where):
            return None
        if not isinstance(expression, Struct):
            if isinstance(expression, Symbol | Number) and self.number(expression) == 0:
                return None
            raise self.bad("expected a socket address: {sa_family = AF_INET, ...} or '...'")
        fields = {field.name: field.value for field in expression.fields}
        family = fields.get("sa_family")
        if family is not None and self.number(family) != socket.AF_INET:
            raise UnsupportedError(expression.where, "not supported: addresses but AF_INET")
        if "sin_port" not in fields or "sin_addr" not in fields:
            raise self.bad("expected sin_port and sin_addr in a socket address", expression.where)
        ip = socket.inet_ntoa(self.number(fields["sin_addr"]).to_bytes(4, "big"))
        return ip, self.number(fields["sin_port"])

    def items(self, expression: Expression) -> tuple[Expression, ...]:
        """The elements of an array."""
        if not isinstance(expression, Array):
            raise self.bad("expected an array: [...]")
        return expression.items

    def struct(self, expression: Expression, *names: str) -> dict[str, Expression]:
        """Fields of a struct, by name or else by place."""
        if not isinstance(expression, Struct):
            raise self.bad(f"expected a struct with {', '.join(names)}")
        fields: dict[str, Expression] = {}
        for i, field in enumerate(expression.fields):
            name = field.name or (names[i] if i < len(names) else None)
            if name is None or (name not in names and not name.startswith("msg_")):
                raise self.bad(f"expected {', '.join(names)}, found {name}", expression.where)
            fields[name] = field.value
        return fields

    def option(self, expression: Expression) -> int | bytes | None:
        """The value of a socket option; None for ``...``."""
        if isinstance(expression, Dots | AnyValue):
            return None
        if isinstance(expression, String):
            return expression.value
        if isinstance(expression, Struct):
            fields = self.struct(expression, "onoff", "linger")
            return struct.pack("ii", *(self.number(fields[name]) for name in ("onoff", "linger")))
        if isinstance(expression, Array):
            numbers = [self.option(item) for item in expression.items]
            if len(numbers) == 1:
                return numbers[0]
            return struct.pack(f"{len(numbers)}i", *numbers)
        return self.number(expression)

    def buffers(self, expression: Expression) -> list[tuple[Expression, int]]:
        """An array of ``struct iovec``: contents and length of each."""
        found: list[tuple[Expression, int]] = []
        for item in self.items(expression):
            fields = self.struct(item, "iov_base", "iov_len")
            if len(fields) != 2:
                raise self.bad("expected {contents, length}")
            found.append((fields["iov_base"], self.number(fields["iov_len"])))
        return found

    def message(self, expression: Expression) -> tuple[list[tuple[Expression, int]], int | None]:
        """A ``struct msghdr``: its buffers, and its flags if they are stated."""
        if not isinstance(expression, Struct):
            raise self.bad("expected a struct msghdr: {msg_name(...)=..., msg_iov(1)=[...], ...}")
        fields: dict[str | None, Field] = {field.name: field for field in expression.fields}
        if "msg_control" in fields:
            raise UnsupportedError(expression.where, "not supported: msg_control")
        if "msg_iov" not in fields:
            raise self.bad("expected msg_iov in a struct msghdr", expression.where)
        flags = fields.get("msg_flags")
        return self.buffers(fields["msg_iov"].value), (
            None if flags is None or isinstance(flags.value, Dots) else self.number(flags.value)
        )
