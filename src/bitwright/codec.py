"""Dataclasses to JSON data and back, checked against their type hints."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

import numpy as np

_SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


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
    """`data` as `hint`: a dataclass, `tuple[...]`, `dict[str, ...]`, `X | None` or a plain type.

    Raises:
        ValueError: it is something else; the message says where.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
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
