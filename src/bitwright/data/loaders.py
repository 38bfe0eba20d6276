"""Rows of loaders: batches one after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from bitwright.checkpoint import said
from bitwright.data.spool import Spool
from bitwright.errors import BitwrightError
from bitwright.task import as_labels, as_rows


def gather(loader: Any, source: str, limit: int | None) -> tuple[Tensor, Tensor | None]:
    """The first `limit` rows of batches `x` or `(x, y)`; no batch beyond them is asked for."""
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        # a data set often lies class by class: its first rows would be of one
        loader = DataLoader(loader, batch_size=64, shuffle=True)
    if not isinstance(loader, Iterable) or isinstance(loader, str | bytes):
        raise BitwrightError(
            f"{source} is a {type(loader).__name__}; return batches, a pair of loaders or a "
            "mapping with train_x, train_y, test_x, test_y"
        )
    xs = Spool()
    ys: list[Tensor] = []
    for index, batch in enumerate(_batches(loader, source)):
        x, y = _batch(batch, f"{source}: batch {index}")
        first = x if xs.like is None else xs.like
        if x.shape[1:] != first.shape[1:] or x.dtype != first.dtype:
            raise BitwrightError(
                f"{source}: batch {index} has rows {tuple(x.shape[1:])} of {x.dtype}, batch 0 "
                f"{tuple(first.shape[1:])} of {first.dtype}; make all rows alike"
            )
        if index and (y is None) != (not ys):
            raise BitwrightError(f"{source}: some batches have labels, some not; give all or none")
        xs.add(x)
        ys += [] if y is None else [y]
        if limit is not None and len(xs) >= limit:
            break
    if xs.like is None:
        raise BitwrightError(f"{source} is empty: it yields no batch; give at least one")
    return xs.rows()[:limit], torch.cat(ys)[:limit] if ys else None


def _batches(loader: Iterable[Any], source: str) -> Iterator[Any]:
    try:
        yield from loader
    except (Exception, SystemExit) as error:
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
