"""Calibration and test rows from `npz:PATH`, `folder:PATH`, `FILE.py:factory` or `demo`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from torch import Tensor

from bitwright.checkpoint import call, load_object, on_path, said, seeded
from bitwright.data.folders import from_folder
from bitwright.data.loaders import gather
from bitwright.data.npz import check_npz
from bitwright.data.splits import Sizes, reduced, split
from bitwright.errors import BitwrightError
from bitwright.task import Data, as_labels, as_rows, checked

_NAMES = ("train_x", "train_y", "test_x", "test_y", "x", "y")


def load_data(
    spec: str,
    seed: int = 0,
    calibration_size: int | None = None,
    test_size: int | None = None,
    test_fraction: float = 0.2,
) -> Data:
    """Rows of a data spec, checked.

    Args:
        spec: `npz:PATH` with `train_x, train_y, test_x, test_y`, or `x, y` (split here; labels
            optional); `folder:PATH[?size=224&mean=…&std=…]` with a sub-folder a class, perhaps
            inside `train` and `test`; `FILE.py:factory` returning batches `x` or `(x, y)`, a
            torch data set or arrays `(x, y)` (split here), a pair of such, a Data or a mapping with
            the npz names; `demo`.
        seed: of every choice of rows, and of torch's, numpy's and Python's generators inside a
            factory.
        calibration_size, test_size: rows at most, chosen by seed with the classes' proportions
            kept, or the first of a pair of loaders; default: all. One loader is read until it has
            given the rows of both; without a calibration size it must end.
        test_fraction: of rows to judge on, in a split made here without a test size.

    Raises:
        BitwrightError: missing, empty, NaN, wrong types or lengths, test rows among calibration
            rows; each names the array and what to do.
    """
    for name, size in (("calibration_size", calibration_size), ("test_size", test_size)):
        if size is not None and size < 1:
            raise BitwrightError(f"{name} is {size}; give 1 or more rows")
    if not 0 < test_fraction < 1:
        raise BitwrightError(f"test_fraction is {test_fraction}; give a share between 0 and 1")
    if seed < 0:
        raise BitwrightError(f"seed is {seed}; give 0 or more")
    sizes = Sizes(seed, calibration_size, test_size, test_fraction)
    if spec.startswith("npz:"):
        data = _from_npz(Path(spec[4:]), sizes)
    elif spec.startswith("folder:"):
        data = from_folder(spec[7:], sizes)
    elif spec == "demo":
        from bitwright import demo

        data = _from_mapping(demo.data(), "demo", sizes)
    elif names_code(spec):
        data = _from_factory(spec, sizes)
    else:
        raise BitwrightError(
            f"data {spec!r} is unknown; give npz:PATH, folder:PATH, FILE.py:factory or demo"
        )
    return checked(data, spec)


def names_code(spec: str) -> bool:
    """Whether reading a data spec imports what it names."""
    return ":" in spec and not spec.startswith(("npz:", "folder:"))


def _from_npz(path: Path, sizes: Sizes) -> Data:
    if not path.is_file():
        raise BitwrightError(f"there is no data file {path}; check the path after npz:")
    arrays: dict[str, Any] = {}
    name = ""
    try:
        with path.open("rb") as start:
            magic = start.read(len(MAGIC_PREFIX))
        if magic == MAGIC_PREFIX:
            raise BitwrightError(f"{path} is one array; save it with np.savez(path, x=…, y=…)")
        if magic.startswith(b"PK"):
            check_npz(path, _NAMES)
        with np.load(path, allow_pickle=False) as file:
            # arrays of other names are the user's business, and are not read
            for name in file.files:
                arrays[name] = file[name] if name in _NAMES else None
    except BitwrightError:
        raise
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise BitwrightError(f"{path} cannot be read: {said(error)}; save it again") from error
        what = f"{path}: {name} is an array of objects" if name else f"{path} is no npz file"
        raise BitwrightError(
            f"{what}, and bitwright refuses to run code from pickles; save numbers with np.savez"
        ) from error
    except Exception as error:  # a broken zip raises anything from OSError to zlib.error
        raise BitwrightError(f"{path} cannot be read: {said(error)}; save it again") from error
    return _from_mapping(arrays, str(path), sizes)


def _from_mapping(found: Mapping[str, Any], source: str, sizes: Sizes) -> Data:
    if "train_x" not in found and "x" not in found:
        held = ", ".join(sorted(map(str, found))) or "nothing"
        raise BitwrightError(
            f"{source} holds {held}; expected train_x (and train_y, test_x, test_y) or x (and y)"
        )
    kind = "train_" if "train_x" in found else ""
    x = as_rows(found[f"{kind}x"], f"{source}: {kind}x")
    y = as_labels(found.get(f"{kind}y"), f"{source}: {kind}y")
    if not kind:
        return split(Data(x, y), sizes, source)
    test_x = found.get("test_x")
    test_y = as_labels(found.get("test_y"), f"{source}: test_y")
    if test_x is not None:
        test_x = as_rows(test_x, f"{source}: test_x")
    # before rows are chosen: a row's number in a message is its number in the file
    return reduced(checked(Data(x, y, test_x, test_y), source), sizes)


def _from_factory(spec: str, sizes: Sizes) -> Data:
    with seeded(sizes.seed), on_path(spec):
        found = load_object(spec)
        if callable(found):
            found = call(found, spec)
        if isinstance(found, Data):
            return reduced(checked(found, spec), sizes)
        if isinstance(found, Mapping):
            return _from_mapping(found, spec, sizes)
        if _is_array(found):
            return split(Data(as_rows(found, f"{spec}: x")), sizes, spec)
        if _is_pair(found):
            return _from_mapping({"x": found[0], "y": found[1]}, spec, sizes)
        if isinstance(found, tuple) and len(found) == 2:
            x, y = _side(found[0], f"{spec}: training data", sizes.calibration)
            data = Data(x, y)
            if found[1] is not None:
                test_x, test_y = _side(found[1], f"{spec}: test data", sizes.test)
                data = replace(data, test_x=test_x, test_y=test_y)
            return reduced(checked(data, spec), sizes)
        return split(Data(*gather(found, spec, sizes.both())), sizes, spec)


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_array, value))


def _side(value: Any, source: str, limit: int | None) -> tuple[Tensor, Tensor | None]:
    """Rows and labels of one half of a pair: an array, a pair of arrays or a loader."""
    if _is_array(value):
        return as_rows(value, source), None
    if _is_pair(value):
        return as_rows(value[0], source), as_labels(value[1], f"{source}: labels")
    return gather(value, source, limit)
