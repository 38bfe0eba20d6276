"""What is ours in the comparison with peers: keys of the cache, counted bits, kept answers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from peers import cases, child, compare, environments
from torch import nn

REQUEST = {"network": "resnet20", "weight_bits": 4, "activation_bits": None, "setting": {"a": 1}}


def test_a_digest_tells_numbers_shapes_types_and_order_apart():
    a, b = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    others = [(b, a), (a, a), (a.reshape(3, 2), b), (a.astype(np.int32), b), (a.T.copy().T, b)]
    known = [compare.digest(*pair) for pair in [(a, b), *others]]
    assert len(set(known)) == len(known) - 1
    assert known[0] == known[-1]  # the same numbers, laid out otherwise


def test_a_key_changes_with_what_an_answer_depends_on(monkeypatch):
    known = compare.key("nncf", REQUEST, "rows")
    assert known == compare.key("nncf", dict(reversed(REQUEST.items())), "rows")
    others = [
        compare.key("nncf", {**REQUEST, "weight_bits": 3}, "rows"),
        compare.key("nncf", {**REQUEST, "setting": {"a": 2}}, "rows"),
        compare.key("nncf", REQUEST, "other rows"),
        compare.key("onnxruntime", REQUEST, "rows"),
    ]
    newer = dataclasses.replace(environments.ENVIRONMENTS["nncf"], version="9.9")
    monkeypatch.setitem(environments.ENVIRONMENTS, "nncf", newer)
    others.append(compare.key("nncf", REQUEST, "rows"))
    assert len({known, *others}) == 1 + len(others)


def test_code_is_what_is_computed():
    text = 'def f(x):\n    """Doc."""\n    return x + 1  # one\n'
    assert compare.code(text) == compare.code("# note\ndef f(x):\n\n    return (x + 1)\n")
    assert compare.code(text) != compare.code(text.replace("+ 1", "+ 2"))
    assert compare.code(text) != compare.code(text.replace("return x", "return -x"))


def test_bits_are_weighed_by_weights():
    assert child.size_bits([(100, 8.0), (300, 2.0)]) == 1400  # mean 3.5, not 5
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    assert list(child.layers(model)) == ["0", "3"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(compare, "CACHE", tmp_path)
    return tmp_path


def ask(rows: np.ndarray) -> compare.PeerResult:
    return compare.run("nncf", "resnet20", compare.Case(8, 8), {}, rows, rows)


def test_an_answer_is_computed_once_and_kept_without_the_rows(cache, monkeypatch):
    asked = []

    def answer(peer: str, folder: Path) -> None:
        request = json.loads((folder / "request.json").read_text())
        asked.append((peer, request["weight_bits"]))
        np.save(folder / "logits.npy", np.load(folder / "judged.npy") + 1)
        made = {"peer": "NNCF", "version": "3", "mean_bits": 8.0, "bytes": 10.0}
        made |= {"seconds": 1.0, "processor_seconds": 2.0}
        (folder / "answer.json").write_text(json.dumps(made))

    monkeypatch.setattr(compare, "_child", answer)
    first, second = (ask(np.zeros(3)) for _ in range(2))
    assert asked == [("nncf", 8)]
    assert second.logits.tolist() == first.logits.tolist() == [1, 1, 1]
    assert (second.peer, second.mean_bits, second.size_bytes) == ("nncf", 8.0, 10.0)
    ask(np.ones(3))
    assert len(asked) == 2
    kept = [sorted(p.name for p in folder.iterdir()) for folder in cache.iterdir()]
    assert kept == 2 * [["answer.json", "logits.npy", "request.json"]]


def test_a_failure_leaves_nothing_behind(cache, monkeypatch):
    def fail(peer: str, folder: Path) -> None:
        raise RuntimeError("nncf: no")

    monkeypatch.setattr(compare, "_child", fail)
    with pytest.raises(RuntimeError, match="nncf: no"):
        ask(np.zeros(3))
    assert list(cache.iterdir()) == []


def test_a_case_gets_its_own_contenders(monkeypatch):
    case, other = compare.Case(4, 8), compare.Case(4, None)
    given = [("resnet20", case, "mct"), ("resnet20", other, "mct"), ("mobilenet_v2", case, "mct")]
    given.append(("resnet20", case, "brevitas"))
    contenders = tuple(cases.Contender(*g, {"place": i}) for i, g in enumerate(given))
    monkeypatch.setattr(cases, "CONTENDERS", contenders)
    monkeypatch.setattr(compare, "run", lambda *asked: asked)
    rows = np.zeros(1), np.ones(1)
    found = cases.peer_rows("resnet20", case, *rows)
    assert [(asked[0], asked[3]["place"]) for asked in found] == [("mct", 0), ("brevitas", 3)]
    assert all(asked[1:3] == ("resnet20", case) and asked[4:] == rows for asked in found)


def test_rows_of_a_setting_are_spread_over_the_calibration_rows():
    rows = np.arange(10, dtype=np.float32)
    asked = child.Request("resnet20", 4, None, {"rows": 4}, rows, rows)
    assert [batch.tolist() for batch in asked.batches(3)] == [[0, 3, 6], [9]]
    asked = child.Request("resnet20", 4, None, {}, rows, rows)
    assert [len(batch) for batch in asked.batches()] == [10]


def test_every_contender_has_an_environment_and_a_script():
    assert compare.Case(2, None).name == "W 2 / float"
    assert compare.Case(4, 8).name == "W 4 / A8"
    for contender in (*cases.CONTENDERS, *cases.TRIED):
        assert contender.peer in environments.ENVIRONMENTS
        assert contender.network in child.NETWORKS
        assert contender.network in cases.TITLES
    for name in environments.ENVIRONMENTS:
        assert (compare.HERE / f"run_{name}.py").is_file()
