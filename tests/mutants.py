"""Our own package with one snippet of it replaced: the defect a check must be able to see."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType

import pytest


def mutant(name: str, old: str, new: str) -> ModuleType:
    """A copy of the module `bitwright.<name>` in which the source `old` is replaced by `new`.

    Raises:
        ValueError: `old` does not stand in the source exactly once: the code has moved, and the
            test that wants it must follow.
    """
    original = importlib.import_module(f"bitwright.{name}")
    source = inspect.getsource(original)
    if source.count(old) != 1:
        raise ValueError(f"bitwright.{name} has {source.count(old)} times, not once: {old!r}")
    copy = ModuleType(original.__name__)
    copy.__dict__.update(__file__=original.__file__, __package__=original.__package__)
    code = compile(source.replace(old, new), f"<mutant of {name}>", "exec", dont_inherit=True)
    exec(code, copy.__dict__)
    return copy


@contextmanager
def mutated(name: str, old: str, new: str) -> Iterator[None]:
    """Meanwhile, functions and classes of :func:`mutant` are used wherever the package used ours.

    What a test module has imported by name stays as it was: checks reach the package by attribute
    (`curvature.hutchinson`).
    """
    original = importlib.import_module(f"bitwright.{name}")
    copy = mutant(name, old, new)
    modules = [m for n, m in sys.modules.items() if n.partition(".")[0] == "bitwright"]
    with pytest.MonkeyPatch.context() as patch:
        for user in modules:
            for key, value in list(vars(user).items()):
                own = isinstance(value, FunctionType | type)
                if own and value.__module__ == original.__name__ and hasattr(copy, value.__name__):
                    patch.setattr(user, key, getattr(copy, value.__name__))
        yield
