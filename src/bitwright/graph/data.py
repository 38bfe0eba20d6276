"""Graphs from files, as PyTorch Geometric's `Data`; nothing is unpickled.

Two forms: `.npz` with one graph of labelled nodes (CSR features `x_data`, `x_indices`, `x_indptr`,
`x_shape`; undirected `edges` [m, 2]; `label`, −1 for none; `train_idx`, `val_idx`, `test_idx`), and
the text of "powerful-gnns" (Xu et al., arXiv 1810.00826) with many labelled graphs, plain or gzip.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from bitwright.data.npz import check_npz
from bitwright.errors import BitwrightError

_PARTS = ("train", "val", "test")
_INDEXES = ("x_indices", "x_indptr", "x_shape", "edges", "label",
            *(f"{part}_idx" for part in _PARTS))  # fmt: skip
#: what a file may unfold to, so that a small one does not take all memory: features, bytes of
#: arrays, bytes of text, and classes
_MOST_FEATURES, _MOST_BYTES, _MOST_TEXT, _MOST_CLASSES = 2**29, 2**31, 2**27, 2**16

T = TypeVar("T")


def load_nodes(path: Path, *, normalize: bool = True) -> Data:
    """One graph whose nodes have labels: x, edge_index, y, train_mask, val_mask, test_mask.

    Args:
        path: of an npz file.
        normalize: rows of the features sum to 1.

    Raises:
        BitwrightError: it cannot be read, lacks an array, its numbers do not fit together, a part
            has no nodes or those of another, or it is larger than a constant allows.
    """
    return _parsed(path, "a graph of nodes in npz form", lambda: _nodes(path, normalize))


def load_graphs(path: Path) -> list[Data]:
    """Many labelled graphs: x and y; tags one-hot, or degrees where all tags are 0.

    Degrees are standardized logarithms, `(log(1 + d) − mean) / deviation`: a hub of a thousand
    neighbours would leave no difference between nodes of one, two and three.

    Raises:
        BitwrightError: it cannot be read, is not in the form of powerful-gnns, or is larger than a
            constant allows.
    """
    return _parsed(path, "in the form of powerful-gnns", lambda: _graphs(path))


def _parsed(path: Path, form: str, parse: Callable[[], T]) -> T:
    """What `parse` gives; all that a damaged file leads to becomes one line with its name."""
    try:
        return parse()
    except BitwrightError:
        raise
    except Exception as error:  # numpy, zip and gzip raise anything on bytes that do not fit
        reason = str(error) or f"{type(error).__name__}, as where it is cut off"
        raise BitwrightError(f"{path} is not {form}: {reason[:300]}") from error


def _nodes(path: Path, normalize: bool) -> Data:
    check_npz(path, ("x_data", *_INDEXES), _MOST_BYTES)
    with np.load(path, allow_pickle=False) as file:
        data = _array(file, "x_data", "fiub").astype(np.float32)
        arrays = {name: _array(file, name, "iu").astype(np.int64) for name in _INDEXES}
    rows, columns = (int(n) for n in arrays["x_shape"])
    lengths = np.diff(arrays["x_indptr"])
    edges, label = arrays["edges"], arrays["label"]
    own = [arrays[f"{part}_idx"] for part in _PARTS]
    fits = (
        all(a.ndim == 1 for name, a in arrays.items() if name != "edges")
        and data.ndim == 1
        and len(lengths) == rows == len(label) > 0
        and bool((lengths >= 0).all())
        and int(lengths.sum()) == len(arrays["x_indices"]) == len(data)
        and _within(arrays["x_indices"], columns)
        and edges.ndim == 2
        and edges.shape[1] == 2
        and _within(edges, rows)
        and all(_within(part, rows) and bool((label[part] >= 0).all()) for part in own)
        and _within(label + 1, _MOST_CLASSES + 1)
    )
    if not fits:
        raise ValueError(f"its arrays are not of one graph of {rows} nodes")
    if not 0 < rows * columns <= _MOST_FEATURES:
        raise ValueError(
            f"{rows} nodes by {columns} features are not 1 to {_MOST_FEATURES} numbers"
        )
    x = torch.zeros(rows, columns)
    places = torch.from_numpy(np.repeat(np.arange(rows), lengths))
    x[places, torch.from_numpy(arrays["x_indices"])] = torch.from_numpy(data)
    if normalize:
        x /= x.sum(1, keepdim=True).clamp(min=1e-12)
    if not bool(x.isfinite().all()):
        raise ValueError("a feature is not finite")
    masks = torch.zeros(len(_PARTS), rows, dtype=torch.bool)
    for mask, part in zip(masks, own, strict=True):
        mask[torch.from_numpy(part)] = True
    if int(masks.sum(1).min()) == 0 or int(masks.sum(0).max()) > 1:
        raise ValueError("train_idx, val_idx and test_idx need nodes each, and none in common")
    return Data(
        x=x,
        edge_index=to_undirected(torch.from_numpy(edges.T.copy()), num_nodes=rows),
        y=torch.from_numpy(label),
        **{f"{part}_mask": mask for part, mask in zip(_PARTS, masks, strict=True)},
    )


def _array(file: np.lib.npyio.NpzFile, name: str, kinds: str) -> np.ndarray:
    """An array of numbers of these kinds, as numpy letters them."""
    found = np.asarray(file[name])
    if found.dtype.kind not in kinds:
        whole = "" if "f" in kinds else "whole "
        raise ValueError(f"{name} holds {found.dtype}, not {whole}numbers")
    return found


def _graphs(path: Path) -> list[Data]:
    numbers = _numbers(path)
    found = [_graph(numbers) for _ in range(next(numbers))]
    if next(numbers, None) is not None:
        raise ValueError("there is more behind the last graph")
    if not found:
        raise ValueError("it has no graphs")
    tags = torch.cat([graph.tag for graph in found]).unique()
    degrees = torch.cat([_log_degrees(graph) for graph in found])
    if len(degrees) * len(tags) > _MOST_FEATURES:
        raise ValueError(f"{len(degrees)} nodes have {len(tags)} different tags, which is too many")
    mean = degrees.mean()
    deviation = degrees.std().clamp(min=1e-12) if len(degrees) > 1 else torch.ones(())
    for graph in found:
        if len(tags) > 1:
            graph.x = (graph.tag[:, None] == tags).float()
        else:
            graph.x = ((_log_degrees(graph) - mean) / deviation)[:, None]
        del graph.tag
    return found


def _numbers(path: Path) -> Iterator[int]:
    """The whole numbers of a text, plain or gzip."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        text = file.read(_MOST_TEXT + 1)
    if len(text) > _MOST_TEXT:
        raise ValueError(f"it has more than {_MOST_TEXT} bytes")
    yield from (int(word) for line in text.splitlines() for word in line.split())


def _graph(numbers: Iterator[int]) -> Data:
    """The next graph: `n label`, then for each node `tag degree neighbours…`."""
    count, label = next(numbers), next(numbers)
    if count < 1 or not 0 <= label < _MOST_CLASSES:
        raise ValueError(f"a graph has {count} nodes and the label {label}; use 1, and 0, or more")
    tags: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    for node in range(count):
        tags.append(next(numbers))
        degree = next(numbers)
        if degree < 0:
            raise ValueError(f"node {node} of a graph of {count} has {degree} neighbours")
        neighbours = [next(numbers) for _ in range(degree)]
        if any(not 0 <= n < count for n in neighbours):
            raise ValueError(f"node {node} of a graph of {count} has a neighbour outside")
        sources += neighbours
        targets += [node] * len(neighbours)
    return Data(
        edge_index=torch.tensor([sources, targets], dtype=torch.int64),
        y=torch.tensor([label]),
        tag=torch.tensor(tags, dtype=torch.int64),
        num_nodes=count,
    )


def _log_degrees(graph: Data) -> Tensor:
    nodes = int(graph.num_nodes or 0)
    return torch.bincount(graph.edge_index[1], minlength=nodes).float().log1p()


def _within(places: np.ndarray, count: int) -> bool:
    """Whether all are indexes below `count`."""
    return not places.size or (int(places.min()) >= 0 and int(places.max()) < count)
