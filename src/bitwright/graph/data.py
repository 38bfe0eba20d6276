"""Graphs from files, as PyTorch Geometric's `Data`; nothing is unpickled.

Two forms: `.npz` with one graph of labelled nodes (CSR features `x_data`, `x_indices`, `x_indptr`,
`x_shape`; undirected `edges` [m, 2]; `label`, −1 for none; `train_idx`, `val_idx`, `test_idx`), and
the text of "powerful-gnns" (Xu et al., arXiv 1810.00826) with many labelled graphs, plain or gzip.
"""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from bitwright.errors import BitwrightError

_ARRAYS = ("x_data", "x_indices", "x_indptr", "x_shape", "edges", "label",
           "train_idx", "val_idx", "test_idx")  # fmt: skip


def load_nodes(path: Path, *, normalize: bool = True) -> Data:
    """One graph whose nodes have labels: x, edge_index, y, train_mask, val_mask, test_mask.

    Args:
        path: of an npz file.
        normalize: rows of the features sum to 1.

    Raises:
        BitwrightError: it cannot be read, lacks an array, or its numbers do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BitwrightError(f"{path} is no graph of nodes in npz form: {error}") from error
    rows, columns = (int(n) for n in arrays["x_shape"])
    lengths = np.diff(arrays["x_indptr"])
    edges, label = arrays["edges"].astype(np.int64), arrays["label"].astype(np.int64)
    fits = (
        len(lengths) == rows == len(label)
        and bool((lengths >= 0).all())
        and int(lengths.sum()) == len(arrays["x_indices"]) == len(arrays["x_data"])
        and _within(arrays["x_indices"], columns)
        and edges.ndim == 2
        and edges.shape[1] == 2
        and _within(edges, rows)
        and all(_within(arrays[f"{part}_idx"], rows) for part in ("train", "val", "test"))
        and all(
            bool((label[arrays[f"{part}_idx"]] >= 0).all()) for part in ("train", "val", "test")
        )
    )
    if not fits:
        raise BitwrightError(f"{path} is damaged: its arrays are not of one graph of {rows} nodes")
    x = torch.zeros(rows, columns)
    places = torch.from_numpy(np.repeat(np.arange(rows), lengths))
    x[places, torch.from_numpy(arrays["x_indices"].astype(np.int64))] = torch.from_numpy(
        arrays["x_data"].astype(np.float32)
    )
    if normalize:
        x /= x.sum(1, keepdim=True).clamp(min=1e-12)
    found = Data(
        x=x,
        edge_index=to_undirected(torch.from_numpy(edges.T.copy()), num_nodes=rows),
        y=torch.from_numpy(label),
    )
    for part in ("train", "val", "test"):
        mask = torch.zeros(rows, dtype=torch.bool)
        mask[torch.from_numpy(arrays[f"{part}_idx"])] = True
        found[f"{part}_mask"] = mask
    return found


def load_graphs(path: Path) -> list[Data]:
    """Many labelled graphs: x and y; tags one-hot, or degrees where all tags are 0.

    Degrees are standardized logarithms, `(log(1 + d) − mean) / deviation`: a hub of a thousand
    neighbours would leave no difference between nodes of one, two and three.

    Raises:
        BitwrightError: it cannot be read, or is not in the form of powerful-gnns.
    """
    try:
        content = path.read_bytes()
        text = gzip.decompress(content) if path.suffix == ".gz" else content
        numbers = iter([int(word) for word in text.split()])
        found = [_graph(numbers) for _ in range(next(numbers))]
        if next(numbers, None) is not None:
            raise ValueError("there is more behind the last graph")
    except (OSError, EOFError, ValueError, StopIteration, IndexError, MemoryError) as error:
        raise BitwrightError(f"{path} is not in the form of powerful-gnns: {error}") from error
    if not found:
        raise BitwrightError(f"{path} has no graphs")
    tags = torch.cat([graph.tag for graph in found]).unique()
    degrees = torch.cat([_log_degrees(graph) for graph in found])
    mean, deviation = degrees.mean(), degrees.std().clamp(min=1e-12)
    for graph in found:
        if len(tags) > 1:
            graph.x = torch.eye(len(tags))[torch.searchsorted(tags, graph.tag)]
        else:
            graph.x = ((_log_degrees(graph) - mean) / deviation)[:, None]
        del graph.tag
    return found


def _graph(numbers: Iterator[int]) -> Data:
    """The next graph: `n label`, then for each node `tag degree neighbours…`."""
    count, label = next(numbers), next(numbers)
    tags: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    for node in range(count):
        tags.append(next(numbers))
        neighbours = [next(numbers) for _ in range(next(numbers))]
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
