"""Graphs from files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitwright import BitwrightError
from bitwright.graph import load_graphs, load_nodes

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "graphs"


def arrays(**changed: Any) -> dict[str, Any]:
    return {
        "x_data": np.float32([1, 3, 2]),
        "x_indices": np.int32([0, 2, 1]),
        "x_indptr": np.int32([0, 2, 3, 3]),
        "x_shape": np.int64([3, 4]),
        "edges": np.int32([[0, 1], [1, 2]]),
        "label": np.int16([0, 1, 1]),
        "train_idx": np.int64([0]),
        "val_idx": np.int64([1]),
        "test_idx": np.int64([2]),
        **changed,
    }


def test_nodes(tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays())
    found = load_nodes(path)
    assert found.x.tolist() == [[0.25, 0, 0.75, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert found.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert found.y.tolist() == [0, 1, 1]
    assert [int(found[f"{p}_mask"].nonzero()) for p in ("train", "val", "test")] == [0, 1, 2]
    assert load_nodes(path, normalize=False).x.sum() == 6
    np.savez(path, **arrays(label=np.int16([0, 1, -1]), test_idx=np.int64([0])))
    assert load_nodes(path).y.tolist() == [0, 1, -1]  # a node without a label


@pytest.mark.parametrize(
    "changed",
    [
        {"edges": np.int32([[0, 3]])},
        {"edges": np.int32([[0, -1]])},
        {"x_indices": np.int32([0, 4, 1])},
        {"x_indptr": np.int32([0, 2, 1, 3])},
        {"label": np.int16([0, 1])},
        {"label": np.int16([0, -1, 1])},
        {"val_idx": np.int64([5])},
    ],
)
def test_damaged_nodes_are_refused(changed: dict[str, Any], tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays(**changed))
    with pytest.raises(BitwrightError, match="its arrays are not of one graph of 3 nodes"):
        load_nodes(path)


def test_what_is_no_npz_is_refused(tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, label=np.array([{}], dtype=object))
    with pytest.raises(BitwrightError, match="is no graph of nodes in npz form"):
        load_nodes(path)
    with pytest.raises(BitwrightError, match="is no graph of nodes in npz form"):
        load_nodes(tmp_path / "b.npz")


TEXT = "2\n2 1\n5 1 1\n7 1 0\n3 0\n5 2 1 2\n5 1 0\n7 1 0\n"


def test_graphs(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    first, last = load_graphs(path)
    assert first.x.tolist() == [[1, 0], [0, 1]] and last.x.tolist() == [[1, 0], [1, 0], [0, 1]]
    assert last.edge_index.tolist() == [[1, 2, 0, 0], [0, 0, 1, 2]]
    assert (int(first.y), int(last.y)) == (1, 0)
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(gzip.compress(TEXT.replace("5 ", "0 ").replace("7 ", "0 ").encode()))
    first, last = load_graphs(packed)
    degrees = torch.tensor([1.0, 1, 2, 1, 1]).add(1).log()
    wanted = ((degrees - degrees.mean()) / degrees.std())[:, None]
    torch.testing.assert_close(torch.cat([first.x, last.x]), wanted)


@pytest.mark.parametrize("text", ["", "0", "x", "1\n2 0\n0 1 2\n0 0\n", TEXT[:-2], TEXT + "3"])
def test_damaged_graphs_are_refused(text: str, tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(BitwrightError, match=r"powerful-gnns|has no graphs"):
        load_graphs(path)
    with pytest.raises(BitwrightError, match="powerful-gnns"):
        load_graphs(tmp_path / "b.txt.gz")


@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/graphs")
def test_the_public_sets():
    cora, proteins = load_nodes(SHARED / "cora.npz"), load_graphs(SHARED / "PROTEINS.txt")
    assert tuple(cora.x.shape) == (2708, 1433) and cora.edge_index.shape[1] == 10556
    assert [int(cora[f"{p}_mask"].sum()) for p in ("train", "val", "test")] == [140, 500, 1000]
    assert load_nodes(SHARED / "citeseer.npz").x.shape == (3327, 3703)
    assert len(proteins) == 1113 and proteins[0].x.shape[1] == 3
