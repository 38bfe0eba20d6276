"""Dataclasses to JSON data and back, checked against their type hints; JSON from anyone."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from typing import Any

import numpy as np

_SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
#: what nests deeper was not written by us, and the next recursive reader would fail on it
_DEPTH = 16
#: a list or object takes 20 times the memory of its two brackets: at most one for so many bytes
_BYTES_EACH, _ALWAYS = 6, 256
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(text: bytes, where: str) -> Any:
    """JSON that may come from anyone, as one reading of it: no name twice, no NaN, no deep nests.

    Raises:
        ValueError: it is not such JSON, or holds so many lists and objects that it would take far
            more memory than it has bytes; the message is one short line.
    """
    if text.count(b"[") + text.count(b"{") > _ALWAYS + len(text) // _BYTES_EACH:
        raise ValueError(f"{where} is brackets more than anything else")
    try:
        found = json.loads(
            text.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_whole,
        )
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    level = [found]
    for _ in range(_DEPTH):
        level = [v for v in level if isinstance(v, dict | list)]
        level = [v for some in level for v in (some.values() if isinstance(some, dict) else some)]
    if level:
        raise ValueError(f"{where} is nested more than {_DEPTH} deep")
    if _SURROGATE.search(text) and not _encodable(found):
        raise ValueError(f"{where} holds half a character")
    return found


def _encodable(value: Any) -> bool:
    """Whether every string in JSON data can be written: half a surrogate pair cannot."""
    if isinstance(value, dict):
        return all(_encodable(key) and _encodable(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_encodable, value))
    return not isinstance(value, str) or not any("\ud800" <= c <= "\udfff" for c in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:40]!r} stands twice in one object")
        found[name] = value
    return found


def _whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"{text[:20]}… has {len(text)} digits")
    return int(text)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large")
    return value


def encode(value: Any) -> Any:
    """JSON data: dataclasses become objects, tuples lists, and numbers JSON lacks strings."""
    if dataclasses.is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def decode(hint: Any, data: Any, where: str) -> Any:
    """`data` as `hint`: a dataclass, `tuple[...]`, `dict[str, ...]`, `X | None`, `Any` or a type.

    Raises:
        ValueError: it is something else; the message says where.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return data
    if dataclasses.is_dataclass(hint):
        return _decode_object(typing.cast(type, hint), data, where)
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in inner:
            return None
        return decode(next(h for h in inner if h is not type(None)), data, where)
    if origin is tuple:
        return _decode_tuple(inner, data, where)
    if origin is dict:
        if not isinstance(data, dict):
            raise ValueError(f"{where} is not an object")
        return {key: decode(inner[1], item, f"{where}.{key}") for key, item in data.items()}
    if hint is float:
        if isinstance(data, str) and data in _SPECIAL:
            return _SPECIAL[data]
        if isinstance(data, int | float) and not isinstance(data, bool):
            return float(data)
    elif isinstance(data, hint) and (hint is bool or not isinstance(data, bool)):
        return data
    raise ValueError(f"{where} is {data!r:.40}, not {getattr(hint, '__name__', hint)}")


def _decode_object(hint: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where} is not an object")
    fields = {f.name: f for f in dataclasses.fields(hint)}
    strange = sorted(set(data) - set(fields))
    missing = [
        name
        for name, f in fields.items()
        if name not in data
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if strange or missing:
        raise ValueError(f"{where} lacks {missing} and has unknown {strange}")
    hints = typing.get_type_hints(hint)
    return hint(**{key: decode(hints[key], item, f"{where}.{key}") for key, item in data.items()})


def _decode_tuple(inner: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise ValueError(f"{where} is not a list")
    if inner[-1:] == (Ellipsis,):
        inner = inner[:1] * len(data)
    if len(inner) != len(data):
        raise ValueError(f"{where} has {len(data)} items, not {len(inner)}")
    return tuple(
        decode(hint, item, f"{where}[{i}]")
        for i, (hint, item) in enumerate(zip(inner, data, strict=True))
    )
