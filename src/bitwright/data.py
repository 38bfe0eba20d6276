"""Calibration and test rows from `npz:PATH`, `folder:PATH`, `FILE.py:factory` or `demo`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bitwright.checkpoint import call, load_object, on_path, said
from bitwright.errors import BitwrightError
from bitwright.task import Data, as_labels, as_rows, check_labels, checked, digest_of

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
_NAMES = ("train_x", "train_y", "test_x", "test_y", "x", "y")


@dataclass(frozen=True)
class _Sizes:
    """How many rows are wanted (None: all there are), and the seed that chooses them."""

    seed: int
    calibration: int | None
    test: int | None
    fraction: float

    def test_rows(self, count: int) -> int:
        """Rows to judge on, of `count` to be split."""
        return self.test or max(1, round(count * self.fraction))

    def both(self) -> int | None:
        """Rows to read where calibration and test rows come from one source."""
        if self.calibration is None:
            return None
        share = self.fraction / (1 - self.fraction)
        return self.calibration + (self.test or math.ceil(self.calibration * share))


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
    sizes = _Sizes(seed, calibration_size, test_size, test_fraction)
    if spec.startswith("npz:"):
        data = _from_npz(Path(spec[4:]), sizes)
    elif spec.startswith("folder:"):
        data = _from_folder(spec[7:], sizes)
    elif spec == "demo":
        from bitwright import demo

        data = _from_mapping(demo.data(), "demo", sizes)
    elif ":" in spec:
        data = _from_factory(spec, sizes)
    else:
        raise BitwrightError(
            f"data {spec!r} is unknown; give npz:PATH, folder:PATH, FILE.py:factory or demo"
        )
    return checked(data, spec)


# ------------------------------------------------------------------------------------- splits


def _order(count: int, labels: Tensor | None, seed: int) -> list[int]:
    """0 … count − 1 in seeded order, classes interleaved: any beginning has their proportions."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    if labels is not None and labels.ndim == 1 and not labels.is_floating_point():
        classes = labels.numpy()[order]
        rank = np.zeros(count)
        for label in np.unique(classes):
            place = np.flatnonzero(classes == label)
            rank[place] = (np.arange(len(place)) + rng.random()) / len(place)
        order = order[np.argsort(rank, kind="stable")]
    return [int(i) for i in order]


def _split_rows(
    count: int, labels: Tensor | None, digest: Callable[[int], bytes], sizes: _Sizes, source: str
) -> tuple[list[int], list[int], str]:
    """Indices of calibration and test rows, and a note; of equal rows, only the first is taken.

    Digests are asked for row by row, and no more often than it takes to fill the sizes.
    """
    tests = sizes.test_rows(count)
    if tests >= count:
        raise BitwrightError(
            f"{source}: {count} rows cannot be split into calibration rows and {tests} test rows; "
            "give more rows, or fewer to the test"
        )
    order, seen, repeats = iter(_order(count, labels, sizes.seed)), set[bytes](), 0

    def take(wanted: int) -> list[int]:
        nonlocal repeats
        taken: list[int] = []
        while len(taken) < wanted and (i := next(order, None)) is not None:
            if (key := digest(i)) in seen:
                repeats += 1
            else:
                seen.add(key)
                taken.append(i)
        return taken

    test, calibration = take(tests), take(sizes.calibration or count)
    if not calibration:
        raise BitwrightError(
            f"{source}: of {count} rows only {len(test)} differ, too few to split; give more rows"
        )
    note = f"seeded split: {len(calibration)} calibration rows, {len(test)} test rows"
    note += f" (seed {sizes.seed})"
    if repeats:
        note += f"; {repeats} repeated rows left out"
    return calibration, test, note + _short(len(calibration), sizes.calibration)


def _short(found: int, asked: int | None) -> str:
    return f"; {asked} calibration rows were asked for" if asked and found < asked else ""


def _split(data: Data, sizes: _Sizes, source: str) -> Data:
    """The rows of `data` as calibration and test rows, told in the notes."""
    whole = checked(data, source)
    array = whole.x.numpy()
    calibration, test, note = _split_rows(
        len(array), whole.y, lambda i: digest_of(array[i]), sizes, source
    )
    return replace(
        whole,
        x=whole.x[calibration],
        y=None if whole.y is None else whole.y[calibration],
        test_x=whole.x[test],
        test_y=None if whole.y is None else whole.y[test],
        notes=(*whole.notes, note),
    )


def _reduced(data: Data, sizes: _Sizes) -> Data:
    """At most the wanted rows of each kind, chosen by seed and told in the notes."""
    notes = list(data.notes)

    def few(
        x: Tensor, y: Tensor | None, wanted: int | None, name: str
    ) -> tuple[Tensor, Tensor | None]:
        if wanted is None or len(x) <= wanted:
            return x, y
        rows = _order(len(x), y, sizes.seed)[:wanted]
        notes.append(f"{wanted} of {len(x)} {name} rows, chosen at random (seed {sizes.seed})")
        return x[rows], None if y is None else y[rows]

    x, y = few(data.x, data.y, sizes.calibration, "calibration")
    if short := _short(len(x), sizes.calibration):
        notes.append(f"{len(x)} calibration rows{short}")
    test_x, test_y = data.test_x, data.test_y
    if test_x is not None:
        test_x, test_y = few(test_x, test_y, sizes.test, "test")
    return replace(data, x=x, y=y, test_x=test_x, test_y=test_y, notes=tuple(notes))


# ------------------------------------------------------------------------------------ sources


def _from_npz(path: Path, sizes: _Sizes) -> Data:
    if not path.is_file():
        raise BitwrightError(f"there is no data file {path}; check the path after npz:")
    arrays: dict[str, Any] = {}
    name = ""
    try:
        file = np.load(path, allow_pickle=False)
        # arrays of other names are the user's business, and are not read
        for name in getattr(file, "files", []):
            arrays[name] = file[name] if name in _NAMES else None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise BitwrightError(f"{path} cannot be read: {said(error)}; save it again") from error
        what = f"{path}: {name} is an array of objects" if name else f"{path} is no npz file"
        raise BitwrightError(
            f"{what}, and bitwright refuses to run code from pickles; save numbers with np.savez"
        ) from error
    except Exception as error:  # a broken zip raises anything from OSError to zlib.error
        raise BitwrightError(f"{path} cannot be read: {said(error)}; save it again") from error
    if isinstance(file, np.ndarray):
        raise BitwrightError(f"{path} is one array; save it with np.savez(path, x=…, y=…)")
    file.close()
    return _from_mapping(arrays, str(path), sizes)


def _from_mapping(found: Mapping[str, Any], source: str, sizes: _Sizes) -> Data:
    if "train_x" not in found and "x" not in found:
        held = ", ".join(sorted(map(str, found))) or "nothing"
        raise BitwrightError(
            f"{source} holds {held}; expected train_x (and train_y, test_x, test_y) or x (and y)"
        )
    kind = "train_" if "train_x" in found else ""
    x = as_rows(found[f"{kind}x"], f"{source}: {kind}x")
    y = as_labels(found.get(f"{kind}y"), f"{source}: {kind}y")
    if not kind:
        return _split(Data(x, y), sizes, source)
    test_x = found.get("test_x")
    test_y = as_labels(found.get("test_y"), f"{source}: test_y")
    if test_x is not None:
        test_x = as_rows(test_x, f"{source}: test_x")
    # before rows are chosen: a row's number in a message is its number in the file
    return _reduced(checked(Data(x, y, test_x, test_y), source), sizes)


def _from_factory(spec: str, sizes: _Sizes) -> Data:
    with _seeded(sizes.seed), on_path(spec):
        found = load_object(spec)
        if callable(found):
            found = call(found, spec)
        if isinstance(found, Data):
            return _reduced(checked(found, spec), sizes)
        if isinstance(found, Mapping):
            return _from_mapping(found, spec, sizes)
        if _is_array(found):
            return _split(Data(as_rows(found, f"{spec}: x")), sizes, spec)
        if _is_pair(found):
            return _from_mapping({"x": found[0], "y": found[1]}, spec, sizes)
        if isinstance(found, tuple) and len(found) == 2:
            x, y = _side(found[0], f"{spec}: training data", sizes.calibration)
            data = Data(x, y)
            if found[1] is not None:
                test_x, test_y = _side(found[1], f"{spec}: test data", sizes.test)
                data = replace(data, test_x=test_x, test_y=test_y)
            return _reduced(checked(data, spec), sizes)
        return _split(Data(*_gather(found, spec, sizes.both())), sizes, spec)


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
    return _gather(value, source, limit)


def _gather(loader: Any, source: str, limit: int | None) -> tuple[Tensor, Tensor | None]:
    """The first `limit` rows of batches `x` or `(x, y)`; no batch beyond them is asked for."""
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        # a data set often lies class by class: its first rows would be of one
        loader = DataLoader(loader, batch_size=64, shuffle=True)
    if not isinstance(loader, Iterable) or isinstance(loader, str | bytes):
        raise BitwrightError(
            f"{source} is a {type(loader).__name__}; return batches, a pair of loaders or a "
            "mapping with train_x, train_y, test_x, test_y"
        )
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    count = 0
    for index, batch in enumerate(_batches(loader, source)):
        x, y = _batch(batch, f"{source}: batch {index}")
        if xs and (x.shape[1:] != xs[0].shape[1:] or x.dtype != xs[0].dtype):
            raise BitwrightError(
                f"{source}: batch {index} has rows {tuple(x.shape[1:])} of {x.dtype}, batch 0 "
                f"{tuple(xs[0].shape[1:])} of {xs[0].dtype}; make all rows alike"
            )
        if index and (y is None) != (not ys):
            raise BitwrightError(f"{source}: some batches have labels, some not; give all or none")
        xs.append(x)
        ys += [] if y is None else [y]
        count += len(x)
        if limit is not None and count >= limit:
            break
    if not xs:
        raise BitwrightError(f"{source} is empty: it yields no batch; give at least one")
    return torch.cat(xs)[:limit], torch.cat(ys)[:limit] if ys else None


def _batches(loader: Iterable[Any], source: str) -> Iterator[Any]:
    try:
        yield from loader
    except Exception as error:
        raise BitwrightError(
            f"{source}: iterating failed: {said(error, source)}; fix the loader"
        ) from error


def _batch(batch: Any, name: str) -> tuple[Tensor, Tensor | None]:
    given = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
    if len(given) not in (1, 2) or isinstance(given[0], Mapping):
        what = f"{len(given)} parts" if len(given) not in (1, 2) else "a mapping"
        raise BitwrightError(f"{name} is {what}; yield x or (x, y)")
    x = as_rows(given[0], name)
    y = as_labels(given[1], f"{name}: labels") if len(given) == 2 else None
    if y is not None and len(y) != len(x):
        raise BitwrightError(f"{name}: {len(x)} rows but {len(y)} labels; give one label a row")
    return x, y


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Shuffling loaders and random crops come out the same; the generators are put back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


# ------------------------------------------------------------------------------------ folders


@dataclass(frozen=True)
class _Picture:
    """How an image becomes a row: cropped to `size`, scaled to 0..1, minus mean, over std."""

    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        size = self.size
        crop = f", short side {_short_side(size)}, centre {size}×{size}" if size else ""
        return f"RGB in 0..1{crop}, minus {list(self.mean)}, over {list(self.std)}"


def _from_folder(text: str, sizes: _Sizes) -> Data:
    place, _, query = text.partition("?")
    root, how = Path(place), _picture(query)
    if not root.is_dir():
        raise BitwrightError(f"there is no folder {root}; check the path after folder:")
    parts = [root / "train", root / "test"]
    if any(part.is_dir() and _classes(part) for part in parts):
        return _from_halves(root, parts, how, sizes)
    files, labels = _listed(root)
    rows: dict[int, Tensor] = {}

    def digest(i: int) -> bytes:
        rows[i] = _read(files[i], how)
        return digest_of(rows[i].numpy())

    calibration, test, note = _split_rows(len(files), labels, digest, sizes, str(root))
    return Data(
        x=_stacked(rows, calibration, files),
        y=labels[calibration],
        test_x=_stacked(rows, test, files),
        test_y=labels[test],
        notes=(note,),
        preprocessing=str(how),
    )


def _from_halves(root: Path, parts: list[Path], how: _Picture, sizes: _Sizes) -> Data:
    for part in parts:
        if not part.is_dir():
            raise BitwrightError(f"{root} has no folder {part.name}; give train and test, or none")
    odd = sorted(set(_classes(parts[0])) ^ set(_classes(parts[1])))
    if odd:
        raise BitwrightError(
            f"{root}: class folder {odd[0]!r} is in one of train and test only; give both the same"
        )
    found: list[Tensor] = []
    notes: list[str] = []
    for part, wanted in zip(parts, (sizes.calibration, sizes.test), strict=True):
        files, labels = _listed(part)
        order = list(range(len(files)))
        if wanted is not None and wanted < len(files):
            order = _order(len(files), labels, sizes.seed)[:wanted]
            notes.append(f"{wanted} of {len(files)} {part.name} images (seed {sizes.seed})")
        rows = {i: _read(files[i], how) for i in order}
        found += [_stacked(rows, order, files), labels[order]]
    x, y, test_x, test_y = found
    return Data(x, y, test_x, test_y, tuple(notes), str(how))


def _picture(query: str) -> _Picture:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if strange := sorted(options.keys() - {"size", "mean", "std"}):
        raise BitwrightError(f"folder option {strange[0]!r} is unknown; use size, mean or std")
    try:
        size = int(options["size"]) if "size" in options else None
        mean = tuple(float(v) for v in options.get("mean", "0,0,0").split(","))
        std = tuple(float(v) for v in options.get("std", "1,1,1").split(","))
    except ValueError as error:
        raise BitwrightError(f"folder options {query!r}: {error}; give numbers") from error
    if size is not None and size < 1:
        raise BitwrightError(f"folder option size={size} is too small; give 1 or more pixels")
    good = all(map(math.isfinite, (*mean, *std))) and min(std) > 0
    if len(mean) != 3 or len(std) != 3 or not good:
        raise BitwrightError(
            f"folder options {query!r}: give mean and std as three numbers (R,G,B), std above 0"
        )
    return _Picture(size, mean, std)


def _classes(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _listed(root: Path) -> tuple[list[Path], Tensor]:
    """Image files and their class numbers [n], in order of names."""
    found = [
        (path, label)
        for label, name in enumerate(_classes(root))
        for path in sorted((root / name).iterdir())
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    ]
    if not found:
        raise BitwrightError(f"{root} has no images in class sub-folders; give root/class/image")
    return [path for path, _ in found], torch.tensor([label for _, label in found])


def _read(path: Path, how: _Picture) -> Tensor:
    """An image as float32 [3, height, width]."""
    try:
        with Image.open(path) as opened:
            mode, picture = opened.mode, opened.convert("RGB")
    except Exception as error:  # Pillow raises SyntaxError too
        raise BitwrightError(f"{path} is not a readable image: {said(error)}; remove it") from error
    if mode.startswith(("I", "F")):  # Pillow clips these to 8 bits
        raise BitwrightError(f"{path} has more than 8 bits a pixel ({mode}); use an npz: file")
    if how.size is not None:
        picture = _crop(picture, how.size)
    row = np.asarray(picture, dtype=np.float32) / 255
    row = (row - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(row.transpose(2, 0, 1)))


def _stacked(rows: Mapping[int, Tensor], order: list[int], files: list[Path]) -> Tensor:
    """Rows as [n, 3, height, width]."""
    first = next(iter(rows))
    for i, row in rows.items():
        if row.shape != rows[first].shape:
            raise BitwrightError(
                f"{files[i]} is {row.shape[2]}×{row.shape[1]} pixels, {files[first]} "
                f"{rows[first].shape[2]}×{rows[first].shape[1]}; add ?size=N to the folder"
            )
    return torch.stack([rows[i] for i in order])


def _short_side(size: int) -> int:
    return round(size * 256 / 224)


def _crop(picture: Image.Image, size: int) -> Image.Image:
    """Short side to size · 256/224, then the centre; rounded as in torchvision."""
    short, least = _short_side(size), min(picture.size)
    wide, high = (int(short * side / least) for side in picture.size)
    picture = picture.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return picture.crop((left, top, left + size, top + size))


__all__ = ["Data", "check_labels", "checked", "load_data"]
