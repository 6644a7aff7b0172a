# SPDX-License-Identifier: MIT
"""Code blocks: a little Python, with nothing in reach but numbers.

A script may come from anybody, so what a block may say is listed here: assertions and assignments
over the fields of ``tcp_info``, arithmetic, comparisons, conditions and a few functions. There are
no attributes, imports, subscripts of what is not a list, loops without end, or definitions.
"""

from __future__ import annotations

import ast
import textwrap
from typing import Any

from .tcpinfo import STATES

__all__ = ["CodeError", "check_code", "run_code"]

_FUNCTIONS: dict[str, Any] = {
    "abs": abs, "all": all, "any": any, "bool": bool, "float": float, "int": int, "len": len,
    "max": max, "min": min, "round": round, "str": str, "sum": sum,
}  # fmt: skip
_ALLOWED = (
    ast.Module, ast.Expr, ast.Assert, ast.Assign, ast.AugAssign, ast.If, ast.Pass,
    ast.Name, ast.Load, ast.Store, ast.Constant, ast.Tuple, ast.List,
    ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Call,
    ast.JoinedStr, ast.FormattedValue,
    ast.And, ast.Or, ast.Not, ast.USub, ast.UAdd, ast.Invert,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod,
    ast.BitAnd, ast.BitOr, ast.BitXor, ast.LShift, ast.RShift,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Is, ast.IsNot,
)  # fmt: skip
#: Shifts and products of numbers this long serve no assertion.
_SOURCE_BYTES_MAX = 16_384


class CodeError(Exception):
    """A block is not what it may be, or what it asserts is not so."""


class _Namespace(dict[str, Any]):
    """The names that a block sees; a field that this arm doesn't have is an error with its name."""

    def __init__(self, values: dict[str, Any], arm: str) -> None:
        super().__init__(values)
        self._arm = arm

    def __missing__(self, name: str) -> Any:
        if name.startswith("tcpi_"):
            raise CodeError(f"{self._arm} does not tell {name}")
        raise CodeError(f"there is no name {name!r} here")


def check_code(text: str) -> ast.Module:
    """Parse a block.

    Raises:
        CodeError: It is not Python, or has something that it may not have.
    """
    source = textwrap.dedent(text).strip()
    if len(source) > _SOURCE_BYTES_MAX:
        raise CodeError(f"a block has at most {_SOURCE_BYTES_MAX} characters")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise CodeError(f"not Python: {error}") from None
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            kind = type(node).__name__
            raise CodeError(
                f"{kind} (line {getattr(node, 'lineno', 1)} of the block) may not be used"
            )
        if isinstance(node, ast.Call):
            known = isinstance(node.func, ast.Name) and node.func.id in {*_FUNCTIONS, "print"}
            if not known or node.keywords:
                raise CodeError(f"{ast.unparse(node.func)} can't be called in a block")
        if isinstance(node, ast.Name) and node.id.startswith("__"):
            raise CodeError(f"{node.id} may not be used")
    return tree


def run_code(text: str, fields: dict[str, int], arm: str) -> list[str]:
    """Run a block.

    Args:
        text: Python text.
        fields: ``tcpi_...`` of the connection.
        arm: For messages.

    Returns:
        What it printed, line by line.

    Raises:
        CodeError: An assertion does not hold, or the block can't run.
    """
    tree = check_code(text)
    printed: list[str] = []
    names = _Namespace(
        {**STATES, **_FUNCTIONS, **fields, "__builtins__": {}, "True": True, "False": False}, arm
    )
    names["print"] = lambda *values: printed.append(" ".join(map(str, values)))
    # Statement by statement, so that a failed assertion can be shown with what it compared.
    for node in tree.body:
        _run(node, names)
    return printed


def _run(node: ast.stmt, names: _Namespace) -> None:
    if isinstance(node, ast.If):
        chosen = node.body if _value(node.test, names) else node.orelse
        for inner in chosen:
            _run(inner, names)
        return
    if not isinstance(node, ast.Assert):
        _execute(ast.Module([node], []), names)
        return
    if _value(node.test, names):
        return
    text = f"assert {ast.unparse(node.test)}"
    used = sorted({name.id for name in ast.walk(node.test) if isinstance(name, ast.Name)})
    values = [f"{name} = {names[name]}" for name in used if not callable(names[name])]
    if node.msg is not None:
        text += f": {_value(node.msg, names)}"
    raise CodeError("\n".join([text, *values]))


def _value(node: ast.expr, names: _Namespace) -> Any:
    try:
        return eval(compile(ast.Expression(node), "<block>", "eval"), {"__builtins__": {}}, names)  # noqa: S307 (checked above)
    except CodeError:
        raise
    except Exception as error:
        raise CodeError(f"{ast.unparse(node)}: {error}") from error


def _execute(tree: ast.Module, names: _Namespace) -> None:
    try:
        exec(compile(tree, "<block>", "exec"), {"__builtins__": {}}, names)  # noqa: S102 (checked above)
    except CodeError:
        raise
    except Exception as error:
        raise CodeError(f"{ast.unparse(tree)}: {error}") from error
