"""Images in class sub-folders, `folder:PATH[?size=224&mean=…&std=…]`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bitwright.checkpoint import said
from bitwright.data.splits import Sizes, order_of, split_rows
from bitwright.data.spool import Spool, chosen
from bitwright.errors import BitwrightError
from bitwright.task import Data, digest_of

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}


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


def from_folder(text: str, sizes: Sizes) -> Data:
    """The images of `PATH[?…]`: split here, or by folders `train` and `test`."""
    place, _, query = text.partition("?")
    root, how = Path(place), _picture(query)
    if not root.is_dir():
        raise BitwrightError(f"there is no folder {root}; check the path after folder:")
    parts = [root / "train", root / "test"]
    if any(part.is_dir() and _classes(part) for part in parts):
        return _from_halves(root, parts, how, sizes)
    files, labels = _listed(root)
    images = _Images(files, how)
    calibration, test, note = split_rows(len(files), labels, images.digest, sizes, str(root))
    x, test_x = images.rows(calibration, test)
    return Data(x, labels[calibration], test_x, labels[test], (note,), str(how))


def _from_halves(root: Path, parts: list[Path], how: _Picture, sizes: Sizes) -> Data:
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
            order = order_of(len(files), labels, sizes.seed)[:wanted]
            notes.append(f"{wanted} of {len(files)} {part.name} images (seed {sizes.seed})")
        images = _Images(files, how)
        for i in order:
            images.read(i)
        found += [*images.rows(order), labels[order]]
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


class _Images:
    """Images of one size, read one after another; each at most once."""

    def __init__(self, files: list[Path], how: _Picture) -> None:
        self._files, self._how = files, how
        self._spool = Spool()
        #: index of a file -> of its row
        self._at: dict[int, int] = {}

    def read(self, i: int) -> Tensor:
        """File i, [3, height, width]."""
        row = _read(self._files[i], self._how)
        like = self._spool.like
        if like is not None and row.shape != like.shape[1:]:
            _, _, high, wide = like.shape
            first = self._files[next(iter(self._at))]
            raise BitwrightError(
                f"{self._files[i]} is {row.shape[2]}×{row.shape[1]} pixels, {first} {wide}×{high}; "
                "add ?size=N to the folder"
            )
        self._at[i] = len(self._spool)
        self._spool.add(row[None])
        return row

    def digest(self, i: int) -> bytes:
        """Of file i."""
        return digest_of(self.read(i).numpy())

    def rows(self, *orders: list[int]) -> list[Tensor]:
        """Files in these orders, each [n, 3, height, width]."""
        found = self._spool.rows()
        return [chosen(found, [self._at[i] for i in order]) for order in orders]


def _short_side(size: int) -> int:
    return round(size * 256 / 224)


def _crop(picture: Image.Image, size: int) -> Image.Image:
    """Short side to size · 256/224, then the centre; rounded as in torchvision."""
    short, least = _short_side(size), min(picture.size)
    wide, high = (int(short * side / least) for side in picture.size)
    picture = picture.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return picture.crop((left, top, left + size, top + size))
