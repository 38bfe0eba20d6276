"""Calibration and test rows from `npz:PATH`, `folder:PATH`, `FILE.py:factory` or `demo`."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bitwright.checkpoint import load_object
from bitwright.errors import BitwrightError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}


@dataclass(frozen=True)
class Data:
    """Rows as the model takes them.

    Attributes:
        x: [n, ...] calibration rows, float32 or int64 tokens; y: labels, or None.
        test_x, test_y: rows to judge on, or None.
        notes: what the user should be told (a split that was made).
        preprocessing: how images became rows, where we did it.
    """

    x: Tensor
    y: Tensor | None = None
    test_x: Tensor | None = None
    test_y: Tensor | None = None
    notes: tuple[str, ...] = ()
    preprocessing: str = "as given"


def load_data(spec: str, *, seed: int = 0, test_fraction: float = 0.2) -> Data:
    """Rows of a data spec, checked.

    Args:
        spec: `npz:PATH` with `train_x, train_y, test_x, test_y`, or `x, y` (split here, seeded;
            labels optional); `folder:PATH[?size=224&mean=…&std=…]` with a sub-folder a class;
            `FILE.py:factory` returning batches, (train, test) batches or a mapping with the npz
            names; `demo`.
        seed: of a split made here.
        test_fraction: of rows to judge on, in a split made here.

    Raises:
        BitwrightError: missing, empty, NaN, wrong types or lengths, test rows among calibration
            rows; each names the array and what to do.
    """
    if spec.startswith("npz:"):
        data = _from_npz(Path(spec[4:]), seed, test_fraction)
    elif spec.startswith("folder:"):
        data = _from_folder(spec[7:], seed, test_fraction)
    elif spec == "demo":
        from bitwright import demo

        data = _from_mapping(demo.data(), "demo", seed, test_fraction)
    elif ":" in spec:
        data = _from_factory(spec, seed, test_fraction)
    else:
        raise BitwrightError(
            f"data {spec!r} is not npz:PATH, folder:PATH, FILE.py:factory or demo"
        )
    return checked(data, spec)


def checked(data: Data, source: str) -> Data:
    """`data` with every complaint made that can be made without a model."""
    for name, x, y in (("calibration", data.x, data.y), ("test", data.test_x, data.test_y)):
        if x is None:
            continue
        if len(x) == 0:
            raise BitwrightError(f"{source}: there are no {name} rows")
        if y is not None and len(y) != len(x):
            raise BitwrightError(f"{source}: {len(x)} {name} rows but {len(y)} labels")
        if x.is_floating_point():
            bad = ~torch.isfinite(x).flatten(1).all(1) if x.ndim > 1 else ~torch.isfinite(x)
            if bool(bad.any()):
                row = int(torch.nonzero(bad)[0])
                raise BitwrightError(
                    f"{source}: {name} row {row} holds NaN or infinite numbers "
                    f"({int(bad.sum())} rows do); clean the data"
                )
    if data.test_x is not None:
        _refuse_leak(data.x, data.test_x, source)
    return data


def _refuse_leak(x: Tensor, test: Tensor, source: str) -> None:
    if x.shape[1:] != test.shape[1:]:
        raise BitwrightError(
            f"{source}: calibration rows have shape {tuple(x.shape[1:])}, test rows "
            f"{tuple(test.shape[1:])}"
        )
    seen = {_digest(row): i for i, row in enumerate(x.numpy())}
    hits = [(seen[d], j) for j, row in enumerate(test.numpy()) if (d := _digest(row)) in seen]
    if hits:
        raise BitwrightError(
            f"{source}: {len(hits)} test rows are among the calibration rows (calibration "
            f"{hits[0][0]} = test {hits[0][1]}); results on them would flatter, remove them"
        )


def _digest(row: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()


def check_labels(labels: Tensor | None, classes: int, source: str) -> None:
    """Refuse integer labels outside 0 … classes − 1."""
    if labels is None or labels.is_floating_point() or len(labels) == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        bad = low if low < 0 else high
        raise BitwrightError(
            f"{source}: label {bad} is out of range, the model has {classes} outputs "
            f"(0 to {classes - 1})"
        )


def _from_npz(path: Path, seed: int, test_fraction: float) -> Data:
    if not path.is_file():
        raise BitwrightError(f"there is no data file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise BitwrightError(
            f"{path} cannot be read as npz without pickles: {str(error).splitlines()[0]}"
        ) from error
    return _from_mapping(arrays, str(path), seed, test_fraction)


def _from_mapping(found: Mapping[str, Any], source: str, seed: int, fraction: float) -> Data:
    names = set(found)
    if "train_x" in names:
        return Data(
            x=_rows(found["train_x"], f"{source}: train_x"),
            y=_labels(found.get("train_y"), f"{source}: train_y"),
            test_x=_rows(found["test_x"], f"{source}: test_x") if "test_x" in names else None,
            test_y=_labels(found.get("test_y"), f"{source}: test_y"),
        )
    if "x" not in names:
        raise BitwrightError(
            f"{source} has {', '.join(sorted(names)) or 'nothing'}; expected train_x (train_y, "
            "test_x, test_y) or x (y)"
        )
    whole = Data(_rows(found["x"], f"{source}: x"), _labels(found.get("y"), f"{source}: y"))
    return split(checked(whole, source), seed, fraction)


def split(data: Data, seed: int, fraction: float) -> Data:
    """A seeded split into calibration and test rows, told in the notes; equal rows stay together.

    Labels, where they are integers, keep their proportions.
    """
    n = len(data.x)
    if n < 5:
        raise BitwrightError(f"{n} rows are too few to split into calibration and test rows")
    digests = [_digest(row) for row in data.x.numpy()]
    first: dict[bytes, int] = {}
    unique = [i for i, d in enumerate(digests) if first.setdefault(d, i) == i]
    rng = np.random.default_rng(seed)
    order = rng.permutation(unique)
    if data.y is not None and data.y.ndim == 1 and not data.y.is_floating_point():
        labels = data.y.numpy()[order]
        rank = np.zeros(len(order))
        for label in np.unique(labels):
            place = np.flatnonzero(labels == label)
            rank[place] = (np.arange(len(place)) + rng.random()) / len(place)
        order = order[np.argsort(rank, kind="stable")]
    count = max(1, round(len(order) * fraction))
    test, train = np.sort(order[:count]), np.sort(order[count:])
    note = f"seeded split: {len(train)} calibration rows, {len(test)} test rows (seed {seed})"
    if len(unique) < n:
        note += f"; {n - len(unique)} repeated rows left out"
    take = lambda v, rows: None if v is None else v[torch.as_tensor(rows)]  # noqa: E731
    return replace(
        data,
        x=data.x[torch.as_tensor(train)],
        y=take(data.y, train),
        test_x=data.x[torch.as_tensor(test)],
        test_y=take(data.y, test),
        notes=(*data.notes, note),
    )


def _rows(value: Any, name: str) -> Tensor:
    array = value if isinstance(value, Tensor) else torch.as_tensor(_array(value, name))
    if array.dtype in (torch.int32, torch.int64):
        return array.long()
    if array.dtype != torch.float32:
        raise BitwrightError(
            f"{name} is {str(array.dtype).removeprefix('torch.')}; give float32 rows as the model "
            "takes them (or int64 tokens)"
        )
    return array.contiguous()


def _labels(value: Any, name: str) -> Tensor | None:
    if value is None:
        return None
    array = value if isinstance(value, Tensor) else torch.as_tensor(_array(value, name))
    return array.float() if array.is_floating_point() else array.long()


def _array(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind not in "fiub":
        raise BitwrightError(f"{name} holds {array.dtype} values; give numbers")
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return array


def _from_factory(spec: str, seed: int, fraction: float) -> Data:
    factory = load_object(spec)
    try:
        found = factory() if callable(factory) else factory
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise BitwrightError(f"{spec}() failed: {type(error).__name__}: {first[:200]}") from error
    if isinstance(found, Data):
        return found
    if isinstance(found, Mapping):
        return _from_mapping(found, spec, seed, fraction)
    if isinstance(found, tuple) and len(found) == 2 and not isinstance(found[0], Tensor):
        x, y = _gather(found[0], f"{spec}: first loader")
        test_x, test_y = _gather(found[1], f"{spec}: second loader")
        return Data(x, y, test_x, test_y)
    if isinstance(found, Iterable):
        return split(Data(*_gather(found, spec)), seed, fraction)
    raise BitwrightError(
        f"{spec}() returned a {type(found).__name__}; expected batches, a pair of loaders or a "
        "mapping with train_x, train_y, test_x, test_y"
    )


def _gather(loader: Iterable[Any], source: str) -> tuple[Tensor, Tensor | None]:
    xs, ys = [], []
    for batch in loader:
        x, y = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (batch, None)
        xs.append(_rows(x, f"{source}: batch {len(xs)}"))
        if y is not None:
            ys.append(_labels(y, f"{source}: labels of batch {len(ys)}"))
    if not xs:
        raise BitwrightError(f"{source} is empty: it yields no batch")
    if ys and len(ys) != len(xs):
        raise BitwrightError(f"{source}: only {len(ys)} of {len(xs)} batches have labels")
    labels = [y for y in ys if y is not None]
    return torch.cat(xs), torch.cat(labels) if labels else None


def _from_folder(text: str, seed: int, fraction: float) -> Data:
    place, _, query = text.partition("?")
    options = dict(parse_qsl(query))
    strange = set(options) - {"size", "mean", "std"}
    if strange:
        raise BitwrightError(f"folder option {sorted(strange)[0]!r} is unknown; use size, mean, std")
    root = Path(place)
    if not root.is_dir():
        raise BitwrightError(f"there is no folder {root}")
    try:
        size = int(options["size"]) if "size" in options else None
        mean = [float(v) for v in options.get("mean", "0,0,0").split(",")]
        std = [float(v) for v in options.get("std", "1,1,1").split(",")]
    except ValueError as error:
        raise BitwrightError(f"folder options {query!r}: {error}") from error
    said = f"RGB in 0..1{f', short side {round(size * 256 / 224)}, centre {size}' if size else ''}"
    said += f", minus {mean}, over {std}"
    parts = [root / "train", root / "test"]
    if all(p.is_dir() for p in parts):
        x, y, classes = _read_folder(parts[0], size, mean, std)
        test_x, test_y, test_classes = _read_folder(parts[1], size, mean, std)
        if classes != test_classes:
            raise BitwrightError(f"{root}: train and test have different class folders")
        return Data(x, y, test_x, test_y, preprocessing=said)
    x, y, _ = _read_folder(root, size, mean, std)
    return split(Data(x, y, preprocessing=said), seed, fraction)


def _read_folder(
    root: Path, size: int | None, mean: list[float], std: list[float]
) -> tuple[Tensor, Tensor, list[str]]:
    classes = sorted(p.name for p in root.iterdir() if p.is_dir())
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).iterdir())
        if path.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise BitwrightError(f"{root} has no images in class sub-folders")
    rows: list[np.ndarray] = []
    for path, _ in files:
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
        except (OSError, ValueError) as error:
            raise BitwrightError(f"{path} is not a readable image: {error}") from error
        if size is not None:
            picture = _crop(picture, size)
        row = np.asarray(picture, dtype=np.float32) / 255
        if rows and row.shape != rows[0].shape:
            raise BitwrightError(
                f"{path} is {row.shape[1]}×{row.shape[0]}, others are "
                f"{rows[0].shape[1]}×{rows[0].shape[0]}; add ?size=N to the folder"
            )
        rows.append(row)
    images = (np.stack(rows) - np.float32(mean)) / np.float32(std)
    labels = torch.tensor([label for _, label in files])
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), labels, classes


def _crop(picture: Image.Image, size: int) -> Image.Image:
    """Short side to size · 256/224, then the centre."""
    short = round(size * 256 / 224)
    ratio = short / min(picture.size)
    picture = picture.resize(
        (max(size, round(picture.width * ratio)), max(size, round(picture.height * ratio))),
        Image.Resampling.BILINEAR,
    )
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))
