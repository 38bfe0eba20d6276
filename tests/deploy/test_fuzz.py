"""Hostile files, a few hundred of the hundred thousand of `benchmarks/deploy.py --only fuzz`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import deploy_fuzz
import fuzz_bombs
import fuzz_mutations
import fuzz_targets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as library_load

from bitwright.allocate import plan as plans
from bitwright.codec import parse
from bitwright.deploy import artefact, onnx_sealed, tensors
from bitwright.deploy.seal import check, seal
from bitwright.errors import BitwrightError
from bitwright.network import program
from mutants import mutated

CASES = {
    "artefact": 150,
    "plan": 150,
    "onnx, read": 100,
    "onnx, verified": 15,
    "inspect plan": 30,
    "inspect sensitivity": 50,
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_files_are_refused_or_whole(name: str):
    found = deploy_fuzz.batch(name, range(CASES[name]))
    assert not found["defects"], "\n".join(found["defects"])
    assert found["outcomes"]["refused"] > CASES[name] / 2
    assert found["most"] <= deploy_fuzz.MEMORY


@pytest.mark.parametrize(
    ("module", "old", "new", "target"),
    [
        # each takes one guard away, which the same cases must notice
        ("deploy.seal", "if found[1] != _digest(content, found):", "if False:", "artefact"),
        ("allocate.plan", "decode(Stored, found,", "_loosely(Stored, found,", "plan"),
    ],
)
def test_the_fuzzer_sees_a_guard_that_is_missing(module: str, old: str, new: str, target: str):
    if "_loosely" in new:
        new = new.replace(
            "_loosely(Stored, found,",
            "(lambda h, d, _: Stored(1, d['method'], (), 0, 0.0, d['budget_bits'], "
            "{k: tuple(map(int, v)) for k, v in d['bits'].items()}))(Stored, found,",
        )
    with mutated(module, old, new):
        assert deploy_fuzz.batch(target, range(CASES[target]))["defects"]


@pytest.fixture(scope="module")
def honest() -> bytes:
    return fuzz_targets.TARGETS["artefact"].honest


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_other_byte_anywhere_is_noticed(data: st.DataObject, honest: bytes):
    for content in (honest, fuzz_targets.TARGETS["onnx, read"].honest):
        check(content, "the file")
        place = data.draw(st.integers(0, len(content) - 1))
        other = content[place] ^ data.draw(st.integers(1, 255))
        with pytest.raises(BitwrightError):
            check(content[:place] + bytes([other]) + content[place + 1 :], "the file")


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=400))
def test_any_bytes_are_refused_in_a_line(content: bytes):
    for target in fuzz_targets.TARGETS.values():
        path = Path(f"/tmp/any{target.suffix}")
        try:
            tensors.from_bytes(content, path)
            raise AssertionError("bytes without a seal")
        except BitwrightError as error:
            assert str(error).isprintable()
    with pytest.raises(BitwrightError):
        plans.read_json(content)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=4), x, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(graph=st.lists(st.lists(_JSON, max_size=4), max_size=4), inside=_JSON)
def test_any_json_as_a_program_or_plan_is_refused(graph: Any, inside: Any):
    for tree in (graph, inside):
        with pytest.raises(BitwrightError):
            program.from_json(tree, {}, (3,))
    _, problem, _ = fuzz_targets.small()
    for tree in (inside, {"schema": 1, "bits": inside}):
        with pytest.raises(BitwrightError):
            plans.from_json(json.dumps(tree), problem)


@settings(max_examples=100, deadline=None)
@given(tree=_JSON)
def test_strict_json_reads_what_json_reads_or_refuses_it(tree: Any):
    text = json.dumps(tree).encode()
    try:
        found = parse(text, "it")
    except ValueError as error:
        assert str(error).startswith("it ")
        return
    assert json.dumps(found) == json.dumps(json.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":2}', b'{"a":{"b":1,"b":1}}', b"[NaN]", b"[Infinity]", b"[-Infinity]",
        b"[1e999]", b"[" * 40 + b"]" * 40, b"[" * 100_000, b'"\xff"', b'["\\ud800"]', b"[1", b"",
        b"[1]x", b"[" + b"9" * 30 + b"]", b"[" + b"[]," * 9000 + b"[]]",
    ],
)  # fmt: skip
def test_json_with_two_readings_or_none_is_refused(text: bytes):
    with pytest.raises(ValueError) as caught:
        parse(text, "it")
    assert len(str(caught.value)) < 300


def test_whole_characters_beyond_sixteen_bits_are_read():
    assert parse(json.dumps(["😀", "ö"]).encode(), "it") == ["😀", "ö"]


@settings(max_examples=150, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_tensors_read_as_the_library_reads_them(shapes: list[list[int]], seed: int):
    rng = np.random.default_rng(seed)
    kinds = ("uint8", "float16", "float32", "int64", "bool")
    given = {
        f"t{i}": np.array(9 * rng.random(s)).astype(rng.choice(kinds)) for i, s in enumerate(shapes)
    }
    content = tensors.to_bytes(given, {"schema": 1, "x": [1, "ö"]})
    found, said = tensors.from_bytes(content, Path("it"))
    assert said == {"schema": 1, "x": [1, "ö"]}
    theirs = library_load(content)
    assert found.keys() == theirs.keys() == given.keys()
    for name, value in given.items():
        for read in (found[name], theirs[name]):
            assert read.dtype == value.dtype and np.array_equal(read, value)


@pytest.mark.parametrize("name", ["header of lists", "header of names", "program of words"])
def test_a_bomb_takes_no_more_memory_than_honest_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fuzz_bombs, "SIZE", 2**20)
    path = tmp_path / "m.safetensors"
    artefact.save(fuzz_bombs.wide(2**20), path, {})
    honest = path.read_bytes()
    artefact.load(path)
    usual = deploy_fuzz.peak(artefact.load, path)
    path.write_bytes(fuzz_bombs.BOMBS[name][1](honest))
    assert deploy_fuzz.peak(artefact.load, path) <= max(
        fuzz_bombs.MEMORY * usual, fuzz_bombs.ALWAYS
    )


@pytest.mark.parametrize("name", ["onnx of nodes", "onnx of tensors", "onnx of names"])
def test_protobuf_that_is_all_structure_is_not_parsed(name: str, tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(fuzz_bombs.BOMBS[name][1](bytes(100_000)))
    with pytest.raises(BitwrightError, match="more structure than content"):
        onnx_sealed.read(path)


def test_a_seal_goes_only_where_a_blank_one_is(honest: bytes):
    with pytest.raises(ValueError, match="blank"):
        seal(honest)
    assert fuzz_mutations.reseal(honest) == honest
