"""Rows of any data: tensors, tuples, dicts, loaders; read once, so that shuffling cannot matter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from bitwright.errors import BitwrightError


@dataclass(frozen=True)
class Batch:
    """Some rows: what the model is called with, and what the loss compares with.

    Attributes:
        inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        targets: a tensor, a structure of tensors, or None.
        rows: how many; tensors of another length (shared masks) belong to all rows.
    """

    inputs: Any
    targets: Any
    rows: int

    def take(self, index: Tensor) -> Batch:
        """Some of the rows."""

        def cut(t: Any) -> Any:
            own = isinstance(t, Tensor) and t.ndim and len(t) == self.rows
            return t[index.to(t.device)] if own else t

        return Batch(tree_map(cut, self.inputs), tree_map(cut, self.targets), len(index))


def pieces(batches: Iterable[Batch], chunk: int) -> Iterator[Batch]:
    """The same rows in batches of at most `chunk`."""
    for batch in batches:
        for part in torch.arange(batch.rows).split(chunk):
            yield batch.take(part)


def read(data: Any) -> list[Batch]:
    """Batches of equal shapes put together.

    Args:
        data: a tensor or array of inputs; a tuple `(inputs, targets)`; a dict of keyword
            arguments, in which `labels` are targets; or an iterable of such (a loader). Several
            positional arguments are a tuple of their own: `((a, b), targets)`. What was read before
            is taken as it is.

    Raises:
        BitwrightError: no rows, lengths that do not agree, or numbers that are not finite.
    """
    alike: list[tuple[Any, list[Batch]]] = []
    single = isinstance(data, Tensor | np.ndarray | Mapping | tuple)
    for piece in [data] if single else _iterate(data):
        batch = _batch(piece)
        shapes = _shapes(batch)
        if alike and alike[-1][0] == shapes:
            alike[-1][1].append(batch)
        else:
            alike.append((shapes, [batch]))
    found = [_joined(batches) for _, batches in alike]
    if not sum(b.rows for b in found):
        raise BitwrightError("the data has no rows; give at least one batch")
    return found


def _iterate(data: Any) -> Iterator[Any]:
    if not isinstance(data, Iterable):
        raise BitwrightError(
            f"data is a {type(data).__name__}; give a tensor, (inputs, targets), a dict of "
            "keyword arguments, or an iterable of those"
        )
    yield from data


def _batch(piece: Any) -> Batch:
    if isinstance(piece, Batch):
        return piece
    piece = tree_map(lambda t: torch.as_tensor(t) if isinstance(t, np.ndarray) else t, piece)
    targets = None
    if isinstance(piece, Mapping):
        inputs: Any = {k: v for k, v in piece.items() if k != "labels"}
        targets = piece.get("labels")
    elif isinstance(piece, tuple | list):
        if not 1 <= len(piece) <= 2:
            raise BitwrightError(
                f"a batch has {len(piece)} parts; give (inputs, targets), with several inputs as a "
                "tuple of their own"
            )
        inputs, targets = piece[0], piece[1] if len(piece) == 2 else None
        inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    else:
        inputs = piece
    leaves = [t for t in tree_leaves(inputs) if isinstance(t, Tensor) and t.ndim]
    if not leaves:
        raise BitwrightError("a batch holds no tensor that the model could take")
    rows = len(leaves[0])
    for t in leaves:
        # part by part: the answer for all of a large array would take a quarter of its memory
        if t.is_floating_point() and not all(bool(p.isfinite().all()) for p in t.split(1024)):
            raise BitwrightError("the data holds NaN or infinite numbers; clean it first")
    for t in tree_leaves(targets):
        if isinstance(t, Tensor) and t.ndim and len(t) != rows:
            raise BitwrightError(f"a batch has {rows} inputs and {len(t)} targets")
    free = lambda t: t.detach() if isinstance(t, Tensor) else t  # noqa: E731
    return Batch(tree_map(free, inputs), tree_map(free, targets), rows)


def _shapes(batch: Batch) -> Any:
    leaves, spec = tree_flatten((batch.inputs, batch.targets))
    own = [t for t in leaves if isinstance(t, Tensor) and t.ndim and len(t) == batch.rows]
    if len(own) != len(leaves):
        return object()  # something is shared by its rows: not put together with others
    return str(spec), [(t.shape[1:], t.dtype) for t in own]


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    cat = lambda *parts: torch.cat(parts)  # noqa: E731
    first = batches[0]
    inputs = tree_map(cat, *(b.inputs for b in batches))
    targets = None if first.targets is None else tree_map(cat, *(b.targets for b in batches))
    return Batch(inputs, targets, sum(b.rows for b in batches))
