"""Data specs: what becomes of them, and every complaint by its words."""

from __future__ import annotations

import itertools
import os
import random
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bitwright.data import Data, check_labels, load_data
from bitwright.data.npz import free_memory
from small import refused

Array = np.ndarray[Any, Any]


def rows(number: int, *shape: int, start: int = 0) -> Array:
    """Rows that all differ: row i starts with start + i."""
    x = np.zeros((number, *(shape or (3,))), np.float32)
    for i in range(number):
        x[i].flat[0] = start + i
    return x


def count(x: torch.Tensor | None) -> int:
    assert x is not None
    return len(x)


def firsts(x: torch.Tensor | None) -> list[int]:
    assert x is not None
    return [int(v) for v in x.reshape(len(x), -1)[:, 0]]


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., str]:
    """Save arrays and return the spec."""

    def make(**arrays: Any) -> str:
        np.savez(tmp_path / "d.npz", **arrays)
        return f"npz:{tmp_path / 'd.npz'}"

    return make


@pytest.fixture
def factory(tmp_path: Path) -> Callable[[str], str]:
    """Write a function body to a file and return the spec."""

    def make(body: str) -> str:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        head = "import random\nimport numpy as np\nimport torch\nfrom torch import utils\n"
        head += "from torch.utils.data import DataLoader, TensorDataset\n"
        head += "x = torch.arange(40.).reshape(20, 2)\ny = torch.arange(20) % 4\nseen = []\n"
        (tmp_path / "d.py").write_text(f"{head}def make():\n{lines}\n")
        return f"{tmp_path / 'd.py'}:make"

    return make


# ---------------------------------------------------------------------------------------- npz


def test_npz_with_both_halves_is_taken_as_it_is(npz: Callable[..., str]) -> None:
    y = np.arange(6, dtype=np.int32)
    data = load_data(npz(train_x=rows(6), train_y=y, test_x=rows(4, start=6), test_y=y[:4] * 1.5))
    assert data.x.dtype == torch.float32 and data.y is not None and data.y.dtype == torch.int64
    assert data.test_y is not None and data.test_y.dtype == torch.float32
    assert (firsts(data.x), firsts(data.test_x)) == ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9])
    assert data.notes == ()


def test_npz_without_labels_or_test_rows(npz: Callable[..., str]) -> None:
    data = load_data(npz(train_x=rows(6)))
    assert data == Data(x=data.x)
    assert load_data(npz(x=rows(10))).y is None


def test_a_split_is_told(npz: Callable[..., str]) -> None:
    data = load_data(npz(x=rows(1000), y=np.arange(1000) % 10))
    assert data.notes == ("seeded split: 800 calibration rows, 200 test rows (seed 0)",)
    assert sorted(firsts(data.x) + firsts(data.test_x)) == list(range(1000))
    assert data.y is not None and data.test_y is not None
    assert [int(v) for v in data.y] == [i % 10 for i in firsts(data.x)]
    # every class keeps its share, in the split and in every stretch of it
    assert torch.bincount(data.test_y).tolist() == [20] * 10
    assert max(torch.bincount(data.y[-100:]).tolist()) <= 12


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    number=st.integers(2, 60),
    seed=st.integers(0, 5),
    fraction=st.floats(0.05, 0.9),
    calibration=st.none() | st.integers(1, 70),
    repeats=st.integers(0, 3),
    classes=st.integers(1, 5),
)
def test_splits_are_disjoint_deterministic_and_as_large_as_asked(
    tmp_path: Path,
    number: int,
    seed: int,
    fraction: float,
    calibration: int | None,
    repeats: int,
    classes: int,
) -> None:
    x = np.concatenate([rows(number), rows(number)[:repeats]])
    np.savez(tmp_path / "h.npz", x=x, y=np.arange(len(x)) % classes)
    spec = f"npz:{tmp_path / 'h.npz'}"
    asked: dict[str, Any] = {"calibration_size": calibration, "test_fraction": fraction}
    test = max(1, round(len(x) * fraction))
    if test >= number:
        with refused("split"):
            load_data(spec, seed, **asked)
        return
    data, again = load_data(spec, seed, **asked), load_data(spec, seed, **asked)
    assert torch.equal(data.x, again.x) and firsts(data.test_x) == firsts(again.test_x)
    found = firsts(data.x) + firsts(data.test_x)
    assert len(found) == len(set(found))
    assert count(data.test_x) == test
    # equal rows are taken once
    assert len(data.x) == min(calibration or number, number - test)
    if calibration is None:
        assert sorted(found) == list(range(number))
        assert ("repeated rows left out" in data.notes[0]) == (len(x) > number)


def test_another_seed_is_another_split(npz: Callable[..., str]) -> None:
    spec = npz(x=rows(100))
    assert set(firsts(load_data(spec, 0).test_x)) != set(firsts(load_data(spec, 1).test_x))
    assert "(seed 1)" in load_data(spec, 1).notes[0]


def test_repeated_rows_are_told(npz: Callable[..., str]) -> None:
    data = load_data(npz(x=np.concatenate([rows(10), rows(3)])))
    assert data.notes[0].endswith("; 3 repeated rows left out")


def test_sizes_of_given_halves(npz: Callable[..., str]) -> None:
    y = np.repeat(np.arange(4), 25)
    spec = npz(train_x=rows(100), train_y=y, test_x=rows(100, start=100), test_y=y)
    data = load_data(spec, 3, calibration_size=8, test_size=12)
    assert data.y is not None and data.test_y is not None
    # lying class by class, the first 8 would all be of one class
    assert torch.bincount(data.y).tolist() == [2] * 4
    assert torch.bincount(data.test_y).tolist() == [3] * 4
    assert [int(v) for v in data.y] == [i // 25 for i in firsts(data.x)]
    assert data.notes == (
        "8 of 100 calibration rows, chosen at random (seed 3)",
        "12 of 100 test rows, chosen at random (seed 3)",
    )
    more = load_data(spec, calibration_size=500, test_size=500)
    assert firsts(more.x) == list(range(100))
    assert more.notes == ("100 calibration rows; 500 calibration rows were asked for",)


def test_sizes_of_a_split(npz: Callable[..., str]) -> None:
    spec = npz(x=rows(100))
    data = load_data(spec, calibration_size=30, test_size=10)
    assert data.notes == ("seeded split: 30 calibration rows, 10 test rows (seed 0)",)
    more = load_data(spec, calibration_size=95, test_size=10)
    assert more.notes[0].endswith(
        "90 calibration rows, 10 test rows (seed 0); 95 calibration rows were asked for"
    )
    with refused("100 rows cannot be split", "100 test rows"):
        load_data(spec, test_size=100)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"calibration_size": 0}, "calibration_size is 0"),
        ({"test_size": -3}, "test_size is -3"),
        ({"test_fraction": 0.0}, "test_fraction is 0.0"),
        ({"test_fraction": 1.0}, "test_fraction is 1.0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wishes_that_make_no_sense(asked: dict[str, Any], said: str) -> None:
    with refused(said, "give"):
        load_data("demo", **asked)


@pytest.mark.parametrize("kind", [np.int32, np.int64, ">i4"])
def test_tokens_become_int64(npz: Callable[..., str], kind: Any) -> None:
    data = load_data(npz(x=np.arange(20).reshape(10, 2).astype(kind)))
    assert data.x.dtype == torch.int64


def test_foreign_byte_order_and_strides(npz: Callable[..., str]) -> None:
    data = load_data(npz(train_x=rows(4).astype(">f4"), train_y=np.arange(4).astype(">u2")))
    assert firsts(data.x) == [0, 1, 2, 3] and data.y is not None and data.y.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "kind", [np.uint8, np.float64, np.float16, np.int8, np.uint16, np.bool_, np.complex64]
)
def test_other_types_are_refused(npz: Callable[..., str], kind: Any) -> None:
    with refused("d.npz: train_x", np.dtype(kind).name, "convert it to float32", "int64"):
        load_data(npz(train_x=rows(3).astype(kind)))
    with refused("d.npz: x", np.dtype(kind).name):
        load_data(npz(x=rows(3).astype(kind)))


class Trap:
    """Unpickling it would create the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_object_arrays_are_refused_unread(npz: Callable[..., str], tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    objects = np.array([Trap(trace)], dtype=object)
    spec = npz(train_x=rows(3), train_y=objects)
    with refused("d.npz: train_y is an array of objects", "refuses to run code", "np.savez"):
        load_data(spec)
    assert not trace.exists()
    # one that nobody asked for is not read
    assert len(load_data(npz(train_x=rows(3), meta=objects)).x) == 3
    assert not trace.exists()
    np.load(spec[4:], allow_pickle=True)["meta"]
    assert trace.exists()


def test_other_refusals_of_npz(npz: Callable[..., str], tmp_path: Path) -> None:
    with refused(f"there is no data file {tmp_path}/none.npz"):
        load_data(f"npz:{tmp_path}/none.npz")
    with refused("there is no data file"):
        load_data("npz:")
    with refused("holds images, labels", "expected train_x"):
        load_data(npz(images=rows(3), labels=np.arange(3)))
    with refused("holds nothing"):
        load_data(npz())
    with refused("d.npz: train_x", "<U1 values"):
        load_data(npz(train_x=np.array(["a", "b"])))
    with refused("d.npz: train_y", "<U1 values"):
        load_data(npz(train_x=rows(2), train_y=np.array(["a", "b"])))
    with refused("d.npz: train_y are complex"):
        load_data(npz(train_x=rows(2), train_y=np.array([1j, 2])))
    with refused("train_x is a single number"):
        load_data(npz(train_x=np.float32(3)))
    np.save(tmp_path / "one.npy", rows(3))
    with refused("one.npy is one array", "np.savez"):
        load_data(f"npz:{tmp_path}/one.npy")
    with zipfile.ZipFile(tmp_path / "head.npz", "w") as file:
        file.writestr("x.npy", b"\x93NUMPY\x01\x00\x06\x00{'a'}\n")
    with refused("head.npz cannot be read: ValueError", "save it again"):
        load_data(f"npz:{tmp_path}/head.npz")
    whole = Path(npz(train_x=rows(3000))[4:]).read_bytes()
    for name, content in {
        "text.npz": b"hello",
        "empty.npz": b"",
        "half.npz": whole[: len(whole) // 2],
        "bits.npz": whole[:1000] + bytes(500) + whole[1500:],
        "pickle.npz": b"\x80\x04K\x01.",
    }.items():
        (tmp_path / name).write_bytes(content)
        with refused(str(tmp_path / name)):
            load_data(f"npz:{tmp_path / name}")


# ------------------------------------------------------------------- what an npz file claims


def header(shape: tuple[int, ...], kind: str = "<f4", version: int = 1) -> bytes:
    """Of a .npy file."""
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 * version, "little") + text


def zipped(path: Path, members: dict[str, bytes], claims: dict[str, int] | None = None) -> str:
    """A zip, whose table claims other sizes than its members have; its spec."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
        for name, size in (claims or {}).items():
            file.getinfo(name).file_size = size  # the table is written at the end
    return f"npz:{path}"


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    """The most bytes of memory that were taken since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["x", "x.npy", "train_y.npy"])
def test_a_small_zip_that_claims_100_gb(name: str, tmp_path: Path, peak: Callable[[], int]):
    content = header((25_000_000_000,)) + bytes(4000)
    spec = zipped(tmp_path / "d.npz", {name: content}, {name: 100_000_000_000})
    assert Path(spec[4:]).stat().st_size < 1000
    with refused("d.npz: its arrays take 100,000,000,000 bytes, more than the", "fewer rows"):
        load_data(spec)
    assert peak() < 2**20


def test_arrays_are_counted_together_and_only_those_that_are_read(
    tmp_path: Path, peak: Callable[[], int], monkeypatch: pytest.MonkeyPatch
):
    """Zeros packed a thousand to one, with a table that is right."""
    half = header((2**21,)) + bytes(2**23)
    spec = zipped(tmp_path / "d.npz", {"train_x.npy": half, "test_x.npy": half, "z.npy": half})
    exact = 2 * len(half)
    monkeypatch.setattr("bitwright.data.npz.free_memory", lambda: exact - 1)
    before = peak()
    with refused(f"take {exact:,} bytes, more than the {exact - 1:,} of memory"):
        load_data(spec)
    assert peak() - before < 2**20
    monkeypatch.setattr("bitwright.data.npz.free_memory", lambda: exact)
    with refused("among"):  # the same rows in both halves: they were read
        load_data(spec)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((25_000_000_000,), "claims an array of 100,000,000,"),
        ((2**40, 2**40), "claims an array of"),
        ((10, 101), "claims an array of 4,1"),
        ((-10, -10), "is damaged: x.npy claims"),
    ],
)
def test_a_header_that_claims_more_than_there_is(
    shape: tuple[int, ...], says: str, version: int, tmp_path: Path, peak: Callable[[], int]
):
    content = header(shape, version=version) + bytes(4000)
    with refused(says, f"holds {len(content):,}; save it again"):
        load_data(zipped(tmp_path / "d.npz", {"x.npy": content}))
    assert peak() < 2**20
    whole = header((10, 100), version=version) + np.arange(1000, dtype="<f4").tobytes()
    assert load_data(zipped(tmp_path / "d.npz", {"x.npy": whole})).x.shape[1:] == (100,)


def test_one_array_that_claims_100_gb(tmp_path: Path, peak: Callable[[], int]):
    (tmp_path / "d.npz").write_bytes(header((25_000_000_000,)))
    with refused("d.npz is one array"):
        load_data(f"npz:{tmp_path / 'd.npz'}")
    assert peak() < 2**20


def test_free_memory_is_below_the_machines():
    free = free_memory()
    assert 2**24 < free < sys.maxsize
    if hasattr(os, "sysconf"):
        assert free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# -------------------------------------------------------------------------------------- checks


def test_nan_is_named_with_array_and_row(npz: Callable[..., str]) -> None:
    x = rows(6, 2, 2)
    x[3, 1, 0], x[5, 0, 1] = np.nan, np.inf
    with refused("d.npz: train_x: row 3 holds NaN", "(2 of 6 rows do)", "clean"):
        load_data(npz(train_x=x))
    with refused("d.npz: x: row 3"):
        load_data(npz(x=x))
    with refused("d.npz: test_x: row 3"):
        load_data(npz(train_x=rows(3, 2, 2), test_x=x))
    with refused("d.npz: train_y: row 1"):
        load_data(npz(train_x=rows(2), train_y=np.array([0, np.nan])))
    # the row of the file, not of the few chosen from it
    with refused("d.npz: train_x: row 3"):
        load_data(npz(train_x=x), calibration_size=1)


def test_lengths_must_fit(npz: Callable[..., str]) -> None:
    with refused("6 calibration rows but 5 labels"):
        load_data(npz(train_x=rows(6), train_y=np.arange(5)))
    with refused("6 calibration rows but 5 labels"):
        load_data(npz(x=rows(6), y=np.arange(5)))
    with refused("2 test rows but 5 labels"):
        load_data(npz(train_x=rows(6), test_x=rows(2, start=9), test_y=np.arange(5)))
    with refused("test labels but no test rows"):
        load_data(npz(train_x=rows(6), test_y=np.arange(5)))
    for arrays in ({"train_x": rows(0)}, {"x": rows(0)}):
        with refused("there are no calibration rows"):
            load_data(npz(**arrays))
    with refused("there are no test rows"):
        load_data(npz(train_x=rows(6), test_x=rows(0)))
    with refused("1 rows cannot be split"):
        load_data(npz(x=rows(1)))
    with refused("of 9 rows only 1 differ"):
        load_data(npz(x=np.zeros((9, 2), np.float32)))


def test_halves_must_be_alike(npz: Callable[..., str]) -> None:
    with refused("calibration rows are (3,) of torch.float32, test rows (2,)"):
        load_data(npz(train_x=rows(6), test_x=rows(4, 2)))
    with refused("test rows (3,) of torch.int64"):
        load_data(npz(train_x=rows(6), test_x=rows(4, start=9).astype(np.int64)))


def test_leaks_are_refused(npz: Callable[..., str]) -> None:
    test = np.concatenate([rows(2, start=50), rows(10)[[7, 2]], rows(1, start=60)])
    with refused(
        "d.npz: 2 test rows are among the calibration rows", "calibration row 7 = test row 2"
    ):
        load_data(npz(train_x=rows(10), test_x=test))
    # of rows that occur twice, the first is named
    with refused("1 test rows", "calibration row 0 = test row 0"):
        load_data(npz(train_x=np.zeros((3, 2), np.float32), test_x=np.zeros((1, 2), np.float32)))
    with refused("calibration row 7 = test row 2"):
        load_data(npz(train_x=rows(10), test_x=test), calibration_size=1, test_size=1)
    near = rows(10) + np.float32(1e-3)
    assert len(load_data(npz(train_x=rows(10), test_x=near)).x) == 10


@given(st.lists(st.integers(-3, 12), min_size=1, max_size=20), st.integers(1, 10))
def test_labels_out_of_range(labels: list[int], classes: int) -> None:
    bad = [i for i, label in enumerate(labels) if not 0 <= label < classes]
    if not bad:
        check_labels(torch.tensor(labels), classes)
        return
    with refused(
        f"calibration: label {labels[bad[0]]} of row {bad[0]} is out of range",
        f"the model has {classes} outputs; give labels of 0 to {classes - 1}",
    ):
        check_labels(torch.tensor(labels), classes, "calibration")


def test_other_labels_have_no_range() -> None:
    check_labels(None, 3)
    check_labels(torch.tensor([7.5]), 3)
    with refused("label 9 of row 1"):
        check_labels(torch.tensor([[0, 1], [2, 9]]), 3)


@pytest.mark.parametrize("spec", ["", "d.npz", "folder", "mnist"])
def test_unknown_specs(spec: str) -> None:
    with refused(f"data {spec!r} is unknown", "npz:PATH, folder:PATH, FILE.py:factory or demo"):
        load_data(spec)


def test_the_demo_is_asked_for_lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"train_x": rows(4), "train_y": np.arange(4), "test_x": rows(2, start=4)}
    monkeypatch.setattr("bitwright.demo.data", lambda: arrays)
    data = load_data("demo", calibration_size=3)
    assert len(data.x) == 3 and firsts(data.test_x) == [4, 5]


def test_the_embedded_data_passes_every_check() -> None:
    data = load_data("demo")
    assert data.test_x is not None and data.x.shape[1:] == data.test_x.shape[1:]
    assert data.y is not None and len(data.y) == len(data.x)


# ----------------------------------------------------------------------------------- factories

ITERABLES = {
    "loader": "return DataLoader(TensorDataset(x, y), batch_size=6)",
    "list": "return [(x[:7], y[:7]), (x[7:], y[7:])]",
    "generator": "for i in range(0, 20, 5):\n    yield x[i:i + 5], y[i:i + 5]",
    "numpy": "a, b = x.numpy(), y.tolist()\nreturn [[a[:7], b[:7]], [a[7:][::-1], b[7:][::-1]]]",
    "dataset": "return TensorDataset(x, y)",
    "arrays": "return x, y.numpy()",
    "mapping": "return {'x': x, 'y': y.tolist()}",
    "gradients": "return [(x.requires_grad_(), y)]",
}


@pytest.mark.parametrize("name", ITERABLES)
def test_one_source_is_split(factory: Callable[[str], str], name: str) -> None:
    data = load_data(factory(ITERABLES[name]))
    assert data.notes == ("seeded split: 16 calibration rows, 4 test rows (seed 0)",)
    found = firsts(data.x) + firsts(data.test_x)
    assert sorted(found) == list(range(0, 40, 2))
    assert data.y is not None and data.y.tolist() == [i // 2 % 4 for i in firsts(data.x)]
    assert not data.x.requires_grad


@pytest.mark.parametrize("body", ["return [x[:10], x[10:]]", "return [[x]]", "return x", "yield x"])
def test_sources_without_labels(factory: Callable[[str], str], body: str) -> None:
    data = load_data(factory(body))
    assert data.y is None and data.test_y is None
    assert sorted(firsts(data.x) + firsts(data.test_x)) == list(range(0, 40, 2))


PAIRS = {
    "loaders": "return DataLoader(TensorDataset(x[:12], y[:12]), 5), DataLoader("
    "TensorDataset(x[12:], y[12:]), 5)",
    "arrays": "return (x[:12], y[:12]), (x[12:], y[12:])",
    "lists": "return [(x[:12], y[:12])], [(x[12:], y[12:])]",
    "mapping": "return {'train_x': x[:12], 'train_y': y[:12], 'test_x': x[12:], 'test_y': y[12:]}",
    "Data": "from bitwright.data import Data\nreturn Data(x[:12], y[:12], x[12:], y[12:])",
}


@pytest.mark.parametrize("name", PAIRS)
def test_two_sources_are_kept_apart(factory: Callable[[str], str], name: str) -> None:
    data = load_data(factory(PAIRS[name]))
    assert (firsts(data.x), firsts(data.test_x)) == (list(range(0, 24, 2)), list(range(24, 40, 2)))
    assert data.y is not None and data.y.tolist() == [i % 4 for i in range(12)]
    assert data.test_y is not None and data.notes == ()
    assert len(load_data(factory(PAIRS[name]), calibration_size=7, test_size=3).x) == 7


def test_halves_without_labels_or_test(factory: Callable[[str], str]) -> None:
    data = load_data(factory("return [x[:12]], [x[12:]]"))
    assert data.y is None and count(data.test_x) == 8
    data = load_data(factory("return x[:12], [x[12:]]"))
    assert len(data.x) == 12 and firsts(data.test_x) == list(range(24, 40, 2))
    data = load_data(factory("return [(x, y)], None"))
    assert data.test_x is None and len(data.x) == 20


def test_an_object_need_not_be_a_function(tmp_path: Path) -> None:
    (tmp_path / "d.py").write_text("import torch\nbatches = [torch.arange(10.)[:, None]]\n")
    assert len(load_data(f"{tmp_path}/d.py:batches").x) == 8


COUNTING = """
def batches(start):
    for i in range(start, start + 1000):
        seen.append(i)
        yield torch.full((4, 2), float(i)) + torch.arange(4)[:, None] / 8, torch.zeros(4).long()
"""


def test_no_batch_more_than_needed(factory: Callable[[str], str]) -> None:
    """Endless loaders are fine once a size is given."""
    path = factory("return batches(0), batches(5000)").rpartition(":")[0]
    source = Path(path).read_text().replace("def make", f"{COUNTING}def make")
    source += "def one():\n    return batches(0)\n"
    source += "def both():\n    yield from batches(0)\n"
    Path(path).write_text(source)
    data = load_data(f"{path}:make", calibration_size=10, test_size=5)
    assert len(data.x) == 10 and count(data.test_x) == 5
    module = next(m for m in sys.modules.values() if getattr(m, "__file__", None) == path)
    assert module.seen == [0, 1, 2, 5000, 5001]
    for name in ("one", "both"):
        data = load_data(f"{path}:{name}", calibration_size=10, test_fraction=0.2)
        module = next(m for m in sys.modules.values() if getattr(m, "__file__", None) == path)
        # 10 rows to calibrate and 3 to judge
        assert (len(data.x), count(data.test_x), module.seen) == (10, 3, [0, 1, 2, 3])
    assert len(load_data(f"{path}:one", calibration_size=10, test_size=2).x) == 10


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 50), st.floats(0.01, 0.9))
def test_one_loader_gives_what_was_asked(size: int, fraction: float) -> None:
    from bitwright.data.loaders import gather
    from bitwright.data.splits import Sizes, split

    sizes = Sizes(0, size, None, fraction)
    endless = (torch.full((1, 1), float(i)) for i in itertools.count())
    data = split(Data(*gather(endless, "x", sizes.both())), sizes, "x")
    assert len(data.x) == size


def test_shuffling_is_seeded_and_leaves_the_generators_alone(factory: Callable[[str], str]) -> None:
    body = "order = np.random.permutation(20)\nz = x[order] + random.random() + torch.rand(1)\n"
    spec = factory(body + "return DataLoader(TensorDataset(z, y), batch_size=4, shuffle=True)")
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    first = load_data(spec, 7, calibration_size=4)
    after = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    torch.rand(3)
    assert torch.equal(first.x, load_data(spec, 7, calibration_size=4).x)
    assert not torch.equal(first.x, load_data(spec, 8, calibration_size=4).x)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("return []", ("is empty", "no batch")),
        ("return DataLoader(TensorDataset(x[:0]))", ("is empty",)),
        ("return [], [(x, y)]", ("training data is empty",)),
        ("return [(x, y)], []", ("test data is empty",)),
        ("return [x[:0]]", ("there are no calibration rows",)),
        ("return 3", ("is a int", "a pair of loaders")),
        ("return 'abc'", ("is a str",)),
        ("return None", ("is a NoneType",)),
        ("return 1, 2", ("training data is a int",)),
        ("raise OSError('no disk')", ("make() failed: OSError: no disk (line",)),
        ("yield x\nraise OSError('no disk')", ("iterating failed: OSError: no disk (line",)),
        ("yield x\nraise SystemExit('gone')", ("iterating failed: SystemExit: gone (line",)),
        ("return [(x, y, y)]", ("batch 0 is 3 parts", "yield x or (x, y)")),
        ("return [()]", ("batch 0 is 0 parts",)),
        ("return [{'input_ids': x}]", ("batch 0 is a mapping",)),
        ("return [x, x[:, :1]]", ("batch 1 has rows (1,)", "batch 0 (2,)", "alike")),
        ("return [x, x.long()]", ("batch 1 has rows (2,) of torch.int64",)),
        ("return [x.double()]", ("batch 0", "float64", "convert it to float32")),
        ("return [(x, y), (x, y[:3])]", ("batch 1: 20 rows but 3 labels",)),
        ("return [(x, y), x]", ("some batches have labels, some not",)),
        ("return [x, (x, y)]", ("some batches have labels, some not",)),
        ("return [x, x * float('nan')]", ("batch 1: row 0 holds NaN",)),
        ("return [(x, y * float('nan'))]", ("batch 0: labels: row 0 holds NaN",)),
        ("return [(x, ['a'] * 20)]", ("batch 0: labels", "<U1 values")),
        ("return [[[1.0], [1.0, 2.0]]]", ("batch 0",)),
        ("return [(x, y)], [(x[3:5], y[3:5])]", ("2 test rows are among", "row 3 = test row 0")),
        ("return {'train_y': y}", ("holds train_y", "expected train_x")),
        ("return x, y[:3]", ("20 calibration rows but 3 labels",)),
        ("return np.array([object()])", ("object values",)),
        ("return {'x': [[1.0], [1.0, 2.0]]}", ("d.py:make: x: ValueError", "array of numbers")),
        ("return {'train_x': x.numpy().astype(np.longdouble)}", ("train_x", "float32")),
    ],
)
def test_factories_that_give_no_data(
    factory: Callable[[str], str], body: str, parts: tuple[str, ...]
) -> None:
    with refused(*parts):
        load_data(factory(body))


def test_factories_that_need_something(tmp_path: Path) -> None:
    (tmp_path / "d.py").write_text("def make(root): ...\nvalue = 3\n")
    with refused("needs arguments (root)"):
        load_data(f"{tmp_path}/d.py:make")
    with refused("value is a int"):
        load_data(f"{tmp_path}/d.py:value")
    with refused("there is no file"):
        load_data(f"{tmp_path}/e.py:make")


# ------------------------------------------------------------------------------------- folders


def picture(path: Path, seed: int, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 10 images, and things that are no images."""
    root = tmp_path / "pictures"
    for i in range(20):
        picture(root / ("cat" if i < 10 else "dog") / f"{i:02}.png", i)
    (root / "cat" / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    (root / "labels.csv").write_text("no image")
    return root


def test_images_become_rows(folder: Path) -> None:
    data = load_data(f"folder:{folder}")
    assert data.x.shape == (16, 3, 4, 6) and data.x.dtype == torch.float32
    assert data.y is not None and data.test_y is not None
    assert torch.bincount(data.y).tolist() == [8, 8]
    assert torch.bincount(data.test_y).tolist() == [2, 2]
    assert data.notes == ("seeded split: 16 calibration rows, 4 test rows (seed 0)",)
    assert data.preprocessing == "RGB in 0..1, minus [0.0, 0.0, 0.0], over [1.0, 1.0, 1.0]"
    # the images themselves, with their classes
    wanted = {}
    for path in folder.glob("*/*.png"):
        pixels = np.asarray(Image.open(path), np.float32).transpose(2, 0, 1) / np.float32(255)
        wanted[pixels.tobytes()] = int(path.parent.name == "dog")
    assert data.test_x is not None
    for x, y in ((data.x, data.y), (data.test_x, data.test_y)):
        for row, label in zip(x, y, strict=True):
            assert wanted.pop(row.numpy().tobytes()) == int(label)
    assert not wanted


def test_mean_and_std(folder: Path) -> None:
    plain = load_data(f"folder:{folder}")
    normed = load_data(f"folder:{folder}?mean=.485,.456,.406&std=.229,.224,.225")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = (plain.x - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normed.x, wanted, rtol=0, atol=1e-6)
    assert "minus [0.485, 0.456, 0.406], over [0.229, 0.224, 0.225]" in normed.preprocessing


@pytest.mark.parametrize(("size", "short"), [(224, 256), (7, 8), (1, 1), (32, 37)])
def test_size_is_short_side_then_centre(tmp_path: Path, size: int, short: int) -> None:
    for i, shape in enumerate([(40, 60), (60, 40), (9, 9), (301, 17)]):
        picture(tmp_path / "a" / f"{i}.png", i, shape)
    data = load_data(f"folder:{tmp_path}?size={size}", test_size=1)
    assert data.x.shape == (3, 3, size, size)
    assert f"short side {short}, centre {size}×{size}" in data.preprocessing


def test_the_crop_is_the_centre(tmp_path: Path) -> None:
    """Already at the short side, nothing is resized: the crop is the middle of the pixels."""
    (tmp_path / "a").mkdir()
    for i in range(2):
        pixels = np.zeros((8, 12, 3), np.uint8)
        pixels[..., 0] = np.arange(12) * 10
        pixels[..., 1] = np.arange(8)[:, None] * 10
        pixels[..., 2] = i
        Image.fromarray(pixels).save(tmp_path / "a" / f"{i}.png")
    row = load_data(f"folder:{tmp_path}?size=7").x[0] * 255
    # 12 wide: (12 - 7) / 2 = 2.5, to even; 8 high: 0.5, to even
    assert row[0, 0].round().tolist() == [10.0 * v for v in range(2, 9)]
    assert row[1, :, 0].round().tolist() == [10.0 * v for v in range(7)]


def test_train_and_test_folders(tmp_path: Path) -> None:
    for i in range(20):
        part, name = ("train", "test")[i % 5 == 0], ("cat", "dog")[i % 2]
        picture(tmp_path / part / name / f"{i:02}.png", i)
    data = load_data(f"folder:{tmp_path}")
    assert len(data.x) == 16 and count(data.test_x) == 4 and data.notes == ()
    assert data.y is not None and data.y.tolist() == [0] * 8 + [1] * 8
    few = load_data(f"folder:{tmp_path}", 2, calibration_size=4, test_size=2)
    assert few.y is not None and torch.bincount(few.y).tolist() == [2, 2]
    assert few.notes == ("4 of 16 train images (seed 2)", "2 of 4 test images (seed 2)")
    picture(tmp_path / "test" / "cow" / "a.png", 99)
    with refused("class folder 'cow' is in one of train and test only"):
        load_data(f"folder:{tmp_path}")


def test_classes_may_be_called_train(tmp_path: Path) -> None:
    for i in range(10):
        picture(tmp_path / ("train", "bus")[i % 2] / f"{i}.png", i)
    assert len(load_data(f"folder:{tmp_path}").x) == 8


def test_only_the_wanted_images_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    original = Image.open

    def counted(path: Path) -> Image.Image:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(Image, "open", counted)
    data = load_data(f"folder:{folder}", calibration_size=3, test_size=2)
    assert (len(data.x), count(data.test_x), len(opened)) == (3, 2, 5)


def test_repeated_images_are_left_out(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / "cat" / f"{name}.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    data = load_data(f"folder:{folder}")
    assert len(data.x) + count(data.test_x) == 20
    assert data.notes[0].endswith("2 repeated rows left out")


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "RGBA"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    for i in range(3):
        path = tmp_path / "a" / f"{i}.{'tif' if mode == 'CMYK' else 'png'}"
        picture(path, i, mode=mode)
    assert load_data(f"folder:{tmp_path}", test_size=1).x.shape == (2, 3, 4, 6)


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        ("?siz=3", ("'siz' is unknown", "size, mean or std")),
        ("?size=", ("size=", "give numbers")),
        ("?size=big", ("'big'", "give numbers")),
        ("?size=0", ("size=0 is too small",)),
        ("?mean=1,2", ("three numbers",)),
        ("?mean=1,2,x", ("give numbers",)),
        ("?mean=1,2,nan", ("three numbers",)),
        ("?std=1,0,1", ("std above 0",)),
    ],
)
def test_folder_options(folder: Path, query: str, parts: tuple[str, ...]) -> None:
    with refused(*parts):
        load_data(f"folder:{folder}{query}")


def test_folders_that_give_no_data(tmp_path: Path, folder: Path) -> None:
    with refused(f"there is no folder {tmp_path}/none"):
        load_data(f"folder:{tmp_path}/none")
    with refused(f"{folder}/cat has no images in class sub-folders"):
        load_data(f"folder:{folder}/cat")
    picture(folder / "dog" / "large.png", 77, (9, 5))
    with refused("large.png", "9×5", "6×4", "add ?size=N"):
        load_data(f"folder:{folder}")
    (folder / "dog" / "large.png").write_bytes(b"no image")
    with refused("large.png is not a readable image"):
        load_data(f"folder:{folder}")
    (folder / "dog" / "large.png").write_bytes((folder / "dog" / "19.png").read_bytes()[:80])
    with refused("large.png is not a readable image"):
        load_data(f"folder:{folder}")
    deep = Image.fromarray(np.zeros((4, 6), np.uint16))
    deep.save(folder / "dog" / "large.png")
    with refused("large.png has more than 8 bits a pixel", "npz"):
        load_data(f"folder:{folder}")


def test_half_a_pair_of_folders(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "cat" / "a.png", 1)
    picture(tmp_path / "val" / "cat" / "b.png", 2)
    with refused("has no folder test", "give train and test, or none"):
        load_data(f"folder:{tmp_path}")
    (tmp_path / "test" / "cat").mkdir(parents=True)
    with refused("test has no images in class sub-folders"):
        load_data(f"folder:{tmp_path}")
    picture(tmp_path / "test" / "cat" / "c.png", 1)
    with refused("1 test rows are among the calibration rows"):
        load_data(f"folder:{tmp_path}")
