"""Sensitivities: their errors, and on disk: what was saved comes back, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from bitwright.curvature import Estimate, Sensitivity, ledger, load, make_key, save
from bitwright.errors import BitwrightError
from bitwright.files import PART


def estimate(seed: int, channels: int = 5, samples: int = 7) -> Estimate:
    value, probe, data = np.random.default_rng(seed).random((3, channels))
    return Estimate(value, probe, data, samples)


@pytest.fixture
def sensitivity() -> Sensitivity:
    unknown = Estimate(np.ones(2), np.zeros(2), np.full(2, np.nan), 3)
    return Sensitivity(
        "gauss-newton",
        {"10": estimate(0), "2": estimate(1, 3), "a:b.c": unknown},
        {"x": estimate(2), "relu_1": estimate(3, 1), "relu": estimate(4)},
        "abc",
        {"share": 0.97, "passes": 3, "estimator": "leading eigenvectors"},
    )


def same(a: Sensitivity, b: Sensitivity) -> bool:
    def plain(s: Sensitivity) -> list:
        return [
            (kind, name, e.samples, e.value.tobytes(), e.stderr_probe.tobytes(),
             e.stderr_data.tobytes(), e.value.dtype)
            for kind, group in (("layer", s.layers), ("edge", s.edges))
            for name, e in group.items()
        ]  # fmt: skip

    facts = (a.method, a.key, dict(a.details)) == (b.method, b.key, dict(b.details))
    return facts and plain(a) == plain(b)


def test_round_trip_keeps_everything_and_the_order(sensitivity: Sensitivity, tmp_path: Path):
    path = tmp_path / "sensitivity.safetensors"
    save(sensitivity, path)
    assert same(load(path), sensitivity)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no half-written file is left
    save(sensitivity, path)  # over the old one
    assert same(load(path), sensitivity)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_an_error_of_the_system(sensitivity: Sensitivity, tmp_path: Path):
    (tmp_path / f"s{PART}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save(sensitivity, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_round_trip_without_edges(tmp_path: Path):
    path = tmp_path / "s"
    bare = Sensitivity("hutchinson", {"a": estimate(0)})
    save(bare, path)
    assert same(load(path), bare)


def write(path: Path, header: object, tensors: dict[str, np.ndarray]) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, metadata={"bitwright": text})


GOOD = {"schema": 1, "method": "m", "key": "", "details": {}, "samples": {"layer:a": 3}}
TENSORS = {"layer:a": np.ones((3, 4))}


def test_what_the_next_test_damages_is_a_good_file(tmp_path: Path):
    write(tmp_path / "s", GOOD, TENSORS)
    assert load(tmp_path / "s").layers["a"].samples == 3


@pytest.mark.parametrize(
    ("header", "tensors"),
    [
        ("{", TENSORS),
        ("[]", TENSORS),
        ("null", TENSORS),
        ("3", TENSORS),
        ({**GOOD, "schema": 2}, TENSORS),
        *(({k: v for k, v in GOOD.items() if k != key}, TENSORS) for key in GOOD),
        ({**GOOD, "samples": {}}, TENSORS),
        ({**GOOD, "samples": ["layer:a"]}, TENSORS),
        ({**GOOD, "samples": {"layer:a": None}}, TENSORS),
        ({**GOOD, "samples": {"layer:a": "many"}}, TENSORS),
        ({**GOOD, "samples": {"layer:a": 3, "layer:b": 3}}, TENSORS),
        ({**GOOD, "samples": {"weight:a": 3}}, {"weight:a": np.ones((3, 4))}),
        (GOOD, {"layer:a": np.ones((2, 4))}),
        (GOOD, {"layer:a": np.ones((4, 4))}),
        (GOOD, {"layer:a": np.float64([1, 2, 3])}),
        (GOOD, {"layer:a": np.ones((3, 4, 2))}),
        (GOOD, {"layer:a": np.array(1.0)}),
        (GOOD, {"layer:a": np.ones((3, 4), np.float32)}),
        (GOOD, {"layer:a": np.ones((3, 4), np.int64)}),
        (GOOD, {}),
    ],
)
def test_a_foreign_file_is_refused(header: object, tensors: dict, tmp_path: Path):
    path = tmp_path / "s"
    write(path, header, tensors)
    with pytest.raises(BitwrightError) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_our_header_is_refused(tmp_path: Path):
    path = tmp_path / "s"
    save_file(TENSORS, path)
    with pytest.raises(BitwrightError):
        load(path)
    for content in (b"", b"x", b"\xff" * 200, b'{"schema": 1}'):
        path.write_bytes(content)
        with pytest.raises(BitwrightError):
            load(path)
    with pytest.raises(BitwrightError):
        load(tmp_path / "absent")
    with pytest.raises(BitwrightError):
        load(tmp_path)


def test_a_truncated_file_is_refused(sensitivity: Sensitivity, tmp_path: Path):
    path = tmp_path / "s"
    save(sensitivity, path)
    content = path.read_bytes()
    for length in {0, 1, 7, 8, 9, *range(10, len(content), 37), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(BitwrightError):
            load(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(BitwrightError):
        load(path)


def test_a_damaged_head_is_refused_or_harmless(tmp_path: Path):
    """Every byte of the safetensors header turned over: an error in one line, or a sensitivity."""
    path = tmp_path / "s"
    save(Sensitivity("m", {"a": estimate(0)}), path)
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    for i in range(size):
        for flip in (0x01, 0x80):
            path.write_bytes(content[:i] + bytes([content[i] ^ flip]) + content[i + 1 :])
            try:
                assert isinstance(load(path), Sensitivity)
            except BitwrightError as error:
                assert "\n" not in str(error)


def test_a_key_changes_with_any_byte():
    array = np.arange(2000, dtype=np.float32)
    base = ("kl", 1, 0.5, b"abc", array, ["a", "b"])
    key = make_key(*base)
    assert key == make_key(*base) == make_key(*base[:4], array.copy(), ["a", "b"])
    assert len(key) == 64
    keys = {key}
    for i, other in enumerate(("kl ", 2, 0.5000000001, b"abd", None, ["a", "c"])):
        if i != 4:
            keys.add(make_key(*base[:i], other, *base[i + 1 :]))
    raw = array.tobytes()
    for i in (0, 1, 3999, 4000, len(raw) - 1):
        flipped = raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :]
        keys.add(make_key(*base[:4], np.frombuffer(flipped, np.float32), *base[5:]))
    for other in (
        array.astype(np.float64),
        array.view(np.int32),
        array.reshape(2, -1),
        array[::-1],
    ):
        keys.add(make_key(*base[:4], other, *base[5:]))
    assert len(keys) == 1 + 5 + 5 + 4


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("a", "b"), ("ab",)),
        (("a", "b"), ("b", "a")),
        ((b"a\0", b"b"), (b"a", b"\0b")),
        ((b"a\0b",), (b"a", b"b")),
        (("a",), (b"'a'",)),
        ((1,), ("1",)),
        ((1,), (1.0,)),
        ((), ("",)),
        ((b"",), (b"", b"")),
        ((None,), ("None",)),
        ((np.zeros(0),), (np.zeros(0, np.float32),)),
    ],
)
def test_keys_know_where_parts_end(one: tuple, two: tuple):
    assert make_key(*one) != make_key(*two)


def test_an_estimate_tells_its_errors():
    text = str(Estimate(np.array([1.0, 2.0]), np.array([0.3, 0.4]), np.array([0.6, 0.8]), 9))
    assert text == "trace 3 ± 0.5 (probes) ± 1 (data, n=9)"


def test_the_variance_is_of_both_errors():
    found = Estimate(np.ones(3), np.array([3.0, np.nan, 2]), np.array([4.0, 2, np.nan]), 5)
    assert found.variance.tolist() == [25, 4, 4]


def test_small_sums_are_counted_as_large_ones_are():
    """Of six samples two are drawn with chance ½, and their errors scale with the numbers."""
    rng = np.random.default_rng(3)
    each = torch.tensor(rng.exponential(size=(6, 4)))
    found = []
    for scale in (1.0, 1e-4):
        book = ledger.Ledger(6, 4)
        book.open(torch.tensor([1, 4]), torch.float64)
        rows = torch.tensor([1, 4])
        book.add(rows, scale * each[rows], torch.zeros(2, dtype=torch.bool))
        half = torch.full((6,), 0.5).double()
        sums = book.sums(half, torch.zeros(6).double(), torch.tensor([0, 1, 0, 0, 1, 0]))
        found.append(ledger.estimate(sums, 6))
    assert found[0].value == pytest.approx(2 * each[[1, 4]].sum(0).numpy() / 6)
    for part in ("value", "stderr_probe", "stderr_data"):
        assert getattr(found[1], part) == pytest.approx(1e-4 * getattr(found[0], part))


def test_errors_of_the_sample_are_those_of_a_mean():
    rng = np.random.default_rng(0)
    for n in (2, 3, 50):
        x = rng.exponential(size=(n, 4))
        sums = torch.tensor(np.stack([x.sum(0), 0 * x[0], (x**2).sum(0)]))
        found = ledger.estimate(sums, n)
        assert found.value == pytest.approx(x.mean(0))
        assert found.stderr_data == pytest.approx(x.std(0, ddof=1) / np.sqrt(n))
        assert not found.stderr_probe.any() and found.samples == n
    alone = ledger.estimate(torch.tensor([[3.0], [4.0], [9.0]]).double(), 1)
    assert alone.stderr_data == [3.0] and alone.stderr_probe == [2.0]  # of one sample, all of it
