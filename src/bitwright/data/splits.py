"""Which rows calibrate and which judge, chosen by seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from bitwright.data.spool import chosen
from bitwright.errors import BitwrightError
from bitwright.task import Data, checked, digest_of


@dataclass(frozen=True)
class Sizes:
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


def order_of(count: int, labels: Tensor | None, seed: int) -> list[int]:
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


def split_rows(
    count: int, labels: Tensor | None, digest: Callable[[int], bytes], sizes: Sizes, source: str
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
    order, seen, repeats = iter(order_of(count, labels, sizes.seed)), set[bytes](), 0

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


def split(data: Data, sizes: Sizes, source: str) -> Data:
    """The rows of `data` as calibration and test rows, told in the notes."""
    whole = checked(data, source)
    array = whole.x.numpy()
    calibration, test, note = split_rows(
        len(array), whole.y, lambda i: digest_of(array[i]), sizes, source
    )
    return replace(
        whole,
        x=chosen(whole.x, calibration),
        y=None if whole.y is None else whole.y[calibration],
        test_x=chosen(whole.x, test),
        test_y=None if whole.y is None else whole.y[test],
        notes=(*whole.notes, note),
    )


def reduced(data: Data, sizes: Sizes) -> Data:
    """At most the wanted rows of each kind, chosen by seed and told in the notes."""
    notes = list(data.notes)

    def few(
        x: Tensor, y: Tensor | None, wanted: int | None, name: str
    ) -> tuple[Tensor, Tensor | None]:
        if wanted is None or len(x) <= wanted:
            return x, y
        rows = order_of(len(x), y, sizes.seed)[:wanted]
        notes.append(f"{wanted} of {len(x)} {name} rows, chosen at random (seed {sizes.seed})")
        return chosen(x, rows), None if y is None else y[rows]

    x, y = few(data.x, data.y, sizes.calibration, "calibration")
    if short := _short(len(x), sizes.calibration):
        notes.append(f"{len(x)} calibration rows{short}")
    test_x, test_y = data.test_x, data.test_y
    if test_x is not None:
        test_x, test_y = few(test_x, test_y, sizes.test, "test")
    return replace(data, x=x, y=y, test_x=test_x, test_y=test_y, notes=tuple(notes))
