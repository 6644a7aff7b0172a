# SPDX-License-Identifier: MIT
"""TCP options between bytes and names.

An option is a pair of name and value: ``("mss", 1460)``, ``("wscale", 7)``, ``("sack_ok", None)``,
``("sack", ((left, right), ...))``, ``("ts", (value, echo))``, ``("nop", None)``, ``("eol", None)``;
another kind is its number with the bytes behind its length, ``(254, b"...")``; and what is no option
is ``("raw", b"...")``, verbatim. So whatever an option area held, it is made again the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["NAMED", "Option", "decode", "encode", "join", "layout", "replace"]

Option = tuple[Any, Any]

_EOL, _NOP = 0, 1
_KINDS = {"mss": 2, "wscale": 3, "sack_ok": 4, "sack": 5, "ts": 8}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_SIZES = {"mss": (2,), "wscale": (1,), "sack_ok": (0,), "sack": (8, 16, 24, 32), "ts": (8,)}

#: Options with a flat field of their own.
NAMED = tuple(_KINDS)

_AREA_BYTES_MAX = 40


def _value(name: str, body: bytes) -> Any:
    if name == "sack_ok":
        return None
    if name == "sack":
        return tuple(struct.iter_unpack(">II", body))
    if name == "ts":
        return struct.unpack(">II", body)
    return int.from_bytes(body, "big")


def decode(area: bytes) -> tuple[tuple[Option, ...], str | None]:
    """The options of an area, and what is wrong with it, if anything is."""
    options: list[Option] = []
    at, size, error = 0, len(area), None
    while at < size:
        kind = area[at]
        if kind == _EOL:
            options.append(("eol", None))
            rest = area[at + 1 :]
            if any(rest) or len(rest) > 3:
                options.append(("raw", rest))
            if any(rest):
                error = error or "TCP options: what follows end-of-options is not zero"
            break
        if kind == _NOP:
            options.append(("nop", None))
            at += 1
            continue
        length = area[at + 1] if at + 1 < size else 0
        if length < 2 or at + length > size:
            options.append(("raw", area[at:]))
            error = error or f"TCP option {kind} of {length} bytes, {size - at} are left"
            break
        body, name = area[at + 2 : at + length], _NAMES.get(kind)
        at += length
        if name is None:
            options.append((kind, body))
        elif len(body) in _SIZES[name]:
            options.append((name, _value(name, body)))
        else:
            options.append((kind, body))
            error = error or f"TCP option {name} of {length} bytes"
    return tuple(options), error


def _one(option: Any) -> bytes:
    """An option's bytes; a name alone stands for an option without a value."""
    name: Any
    value: Any
    name, value = (option, None) if isinstance(option, str) else option
    try:
        if name == "raw":
            return bytes(value)
        if name in ("eol", "nop"):
            return bytes([_EOL if name == "eol" else _NOP])
        if name == "mss":
            body = struct.pack(">H", value)
        elif name == "wscale":
            body = struct.pack(">B", value)
        elif name == "sack_ok":
            body = b""
        elif name == "sack":
            mask = 0xFFFFFFFF
            body = b"".join(struct.pack(">II", a & mask, b & mask) for a, b in value)
        elif name == "ts":
            body = struct.pack(">II", value[0] & 0xFFFFFFFF, value[1] & 0xFFFFFFFF)
        else:
            body = bytes(value or b"")
        return bytes([_KINDS.get(name, name), len(body) + 2]) + body
    except (struct.error, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"TCP option {option!r}: {error}") from None


def join(options: Iterable[Any]) -> bytes:
    """The bytes of options, without padding.

    Raises:
        ValueError: Something is no option.
    """
    return b"".join(_one(option) for option in options)


def encode(options: bytes | Sequence[Any]) -> bytes:
    """An option area: options, or its bytes verbatim, padded with zeros to 32-bit words.

    Raises:
        ValueError: Something is no option, or they are longer than the 40 bytes there can be.
    """
    area = options if isinstance(options, bytes) else join(options)
    if len(area) > _AREA_BYTES_MAX:
        raise ValueError(f"TCP options of {len(area)} bytes; a header holds {_AREA_BYTES_MAX}")
    return area + bytes(-len(area) % 4)


def layout(named: dict[str, Any]) -> list[Option]:
    """Options in the order and with the alignment that Linux gives them; None leaves one out."""
    have = {
        name: value for name, value in named.items() if value is not None and value is not False
    }
    options: list[Option] = []
    if "mss" in have:
        options.append(("mss", have["mss"]))
    if "sack_ok" in have:
        options += [] if "ts" in have else [("nop", None)] * 2
        options.append(("sack_ok", None))
    if "ts" in have:
        options += [] if "sack_ok" in have else [("nop", None)] * 2
        options.append(("ts", have["ts"]))
    if "wscale" in have:
        options += [("nop", None), ("wscale", have["wscale"])]
    if have.get("sack"):
        options += [("nop", None), ("nop", None), ("sack", have["sack"])]
    return options


def replace(options: Sequence[Option], changes: dict[str, Any]) -> list[Option]:
    """Options with some set to a value (in place, else added in front), or removed by None."""
    out, rest = [], dict(changes)
    for option in options:
        if option[0] not in changes:
            out.append(option)
        elif option[0] in rest:
            value = rest.pop(option[0])
            if value is not None and value is not False:
                out.append((option[0], None if option[0] == "sack_ok" else value))
    return layout(rest) + out
