"""Graphs from files."""

from __future__ import annotations

import gzip
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitwright import BitwrightError
from bitwright.graph import data, load_graphs, load_nodes
from small import refused

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
    more = {"label": np.int16([0, 1, 1, -1]), "x_shape": np.int64([4, 4]),
            "x_indptr": np.int32([0, 2, 3, 3, 3])}  # fmt: skip
    np.savez(path, **arrays(**more))
    assert load_nodes(path).y.tolist() == [0, 1, 1, -1]  # a node without a label


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
        {"label": np.int16([0, 1, -2])},
        {"label": np.int64([0, 1, 2**40])},
        {"train_idx": np.int64([[0]])},
    ],
)
def test_damaged_nodes_are_refused(changed: dict[str, Any], tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays(**changed))
    with pytest.raises(BitwrightError, match="its arrays are not of one graph of 3 nodes"):
        load_nodes(path)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"x_shape": np.int64([3, 10**12])}, "3 nodes by 1000000000000 features are not 1 to"),
        ({"x_shape": np.int64([3, 4, 5])}, "too many values"),
        ({"x_indices": np.float32([0, 2, 1])}, "x_indices holds float32, not whole numbers"),
        ({"train_idx": np.float64([0])}, "train_idx holds float64, not whole numbers"),
        ({"label": np.array(["a", "b", "c"])}, "label holds <U1, not whole numbers"),
        ({"x_data": np.array(["a", "b", "c"])}, "x_data holds <U1, not numbers"),
        ({"x_data": np.float32([1, np.nan, 2])}, "a feature is not finite"),
        ({"x_data": np.float32([1, 3, np.inf])}, "a feature is not finite"),
        ({"train_idx": np.int64([])}, "need nodes each, and none in common"),
        ({"val_idx": np.int64([])}, "need nodes each, and none in common"),
        ({"test_idx": np.int64([])}, "need nodes each, and none in common"),
        ({"val_idx": np.int64([0, 1])}, "need nodes each, and none in common"),
        ({"test_idx": np.int64([0, 2])}, "need nodes each, and none in common"),
    ],
)
def test_other_arrays_are_refused(changed: dict[str, Any], says: str, tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays(**changed))
    with refused(f"{path} is not a graph of nodes in npz form", says):
        load_nodes(path)


def test_damaged_npz_are_refused(tmp_path: Path):
    """A bit of a compressed array, an array by itself, and more bytes than may be read."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **arrays())
    with zipfile.ZipFile(path) as file:
        begin = file.infolist()[0].header_offset + 30 + len("x_data.npy") + 20
    content = bytearray(path.read_bytes())
    content[begin : begin + 8] = b"\xff" * 8
    path.write_bytes(content)
    with refused(f"{path} is not a graph of nodes in npz form: Error -3"):
        load_nodes(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with refused(f"{path} is not a graph of nodes in npz form: File is not a zip file"):
        load_nodes(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_MOST_BYTES", 10**6)
        np.savez_compressed(path, **arrays(unasked=np.zeros(10**6)))
        load_nodes(path)  # which is not read
        np.savez_compressed(path, **arrays(edges=np.zeros((10**5, 2), np.int64)))
        with refused("more than the 1,000,000 that they may"):
            load_nodes(path)


def test_what_is_no_npz_is_refused(tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, label=np.array([{}], dtype=object))
    with pytest.raises(BitwrightError, match="is not a graph of nodes in npz form"):
        load_nodes(path)
    with pytest.raises(BitwrightError, match="is not a graph of nodes in npz form"):
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
    with refused(f"{path} is not in the form of powerful-gnns: "):
        load_graphs(path)
    with pytest.raises(BitwrightError, match="powerful-gnns"):
        load_graphs(tmp_path / "b.txt.gz")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1\n2 0\n0 -1\n0 0\n", "node 0 of a graph of 2 has -1 neighbours"),
        ("1\n1 -1\n0 0\n", "a graph has 1 nodes and the label -1"),
        (f"1\n1 {2**40}\n0 0\n", f"a graph has 1 nodes and the label {2**40}"),
        ("2\n0 0\n1 0\n0 0\n", "a graph has 0 nodes and the label 0"),
        ("2\n-1 0\n1 0\n0 0\n", "a graph has -1 nodes and the label 0"),
        (f"1\n1 0\n{2**70} 0\n", ""),
        ("3\n1 0\n", "as where it is cut off"),
        ("0", "it has no graphs"),
    ],
)
def test_other_texts_are_refused(text: str, says: str, tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text(text)
    with refused(f"{path} is not in the form of powerful-gnns: ", says):
        load_graphs(path)


def test_texts_that_unfold_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Zeros packed a thousand to one, and tags that are all different."""
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"0 " * 2**23))
    monkeypatch.setattr(data, "_MOST_TEXT", 2**20)
    tracemalloc.start()
    with refused("it has more than 1048576 bytes"):
        load_graphs(path)
    assert tracemalloc.get_traced_memory()[1] < 2**23  # not what it unfolds to
    tracemalloc.stop()
    nodes = "\n".join(f"{tag} 0" for tag in range(100))
    path.write_bytes(gzip.compress(f"1\n100 0\n{nodes}\n".encode()))
    assert torch.equal(load_graphs(path)[0].x, torch.eye(100))
    monkeypatch.setattr(data, "_MOST_FEATURES", 9999)
    with refused("100 nodes have 100 different tags, which is too many"):
        load_graphs(path)


def test_a_single_node_has_features(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("1\n1 0\n0 0\n")
    assert load_graphs(path)[0].x.tolist() == [[0.0]]


@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/graphs")
def test_the_public_sets():
    cora, proteins = load_nodes(SHARED / "cora.npz"), load_graphs(SHARED / "PROTEINS.txt")
    assert tuple(cora.x.shape) == (2708, 1433) and cora.edge_index.shape[1] == 10556
    assert [int(cora[f"{p}_mask"].sum()) for p in ("train", "val", "test")] == [140, 500, 1000]
    assert load_nodes(SHARED / "citeseer.npz").x.shape == (3327, 3703)
    assert len(proteins) == 1113 and proteins[0].x.shape[1] == 3
