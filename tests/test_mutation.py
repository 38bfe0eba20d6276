"""The mutation run's own parts: what is changed, and that a surviving defect would be seen."""

from __future__ import annotations

import ast
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import forked_tests
import mutation
from equivalent_mutants import EQUIVALENT
from forked_tests import Piece, Reached, digest, forked

SOURCE = '''
def f(x: int | None, n: "int" = 2) -> float | None:
    """Text with 3 in it."""
    if not x or x < n:
        raise ValueError(f"{x + 1} is below {n}")
    assert n == 2
    return -max(x, 1.5) * n
'''


def test_what_may_be_changed():
    found = [kind for _, kind, _ in mutation.sites(ast.parse(SOURCE))]
    assert sorted(found) == sorted(
        ["2+1", "and<->or", "no Not", "Lt->LtE", "Mult->Div", "no USub", "max->min", "1.5+1"]
    )


@pytest.mark.parametrize("name", ["arith/grid.py", "allocate/knapsack.py"])
def test_every_mutant_is_another_program(name: str):
    text = (mutation.ROOT / "src" / "bitwright" / name).read_text()
    same = ast.unparse(ast.parse(text))
    found = list(mutation.mutants(Path(name)))
    assert len(found) > 30
    sources = [source() for _, source in found]
    assert len(set(sources)) == len(sources) and same not in sources
    for (made, source), before in list(zip(found, sources, strict=True))[::17]:
        assert source() == before and compile(before, name, "exec")
        assert made.name.startswith(f"{name}:") and made.lines[0] > 0


def test_the_same_seed_draws_the_same_mutants_of_the_packages_asked_for():
    first = [m.name for m in mutation.drawn(3, 7, ("arith",))]
    assert first == [m.name for m in mutation.drawn(3, 7, ("arith",))]
    assert all(name.startswith("arith/") for name in first) and len(set(first)) == 3
    assert first != [m.name for m in mutation.drawn(3, 8, ("arith",))]


def test_what_is_drawn_stays_where_other_code_changes(monkeypatch: pytest.MonkeyPatch):
    first = [m.key for m in mutation.drawn(6, 7, ("arith",))]
    files = [Path(key[0]) for key in first]
    sites = mutation.sites
    monkeypatch.setattr(mutation, "sites", lambda tree: sites(tree)[1:])  # one place less
    again = [m.key for m in mutation.drawn(6, 7, ("arith",))]
    assert len(set(files)) > 1 and len(set(first) & set(again)) >= 5


def test_what_is_called_equivalent_is_still_there():
    files = {Path(key[0]) for key in EQUIVALENT}
    there = {made.key for file in files for made, _ in mutation.mutants(file)}
    assert not EQUIVALENT.keys() - there and all(EQUIVALENT.values())


def piece(path: str, lines: dict[str, list[str]], seconds: dict[str, float], **other: str) -> Piece:
    sources = {"arith/grid.py": digest(mutation.ROOT / "src/bitwright/arith/grid.py"), **other}
    return Piece(path, "", dict.fromkeys(sources, lines), seconds, [], sources)


def test_tests_that_reach_a_line_are_asked_the_cheapest_first():
    own = piece("t/test_grid.py", {"5": ["t/test_grid.py::a", "t/test_grid.py::b"]},
                {"t/test_grid.py::a": 2.0, "t/test_grid.py::b": 1.0})  # fmt: skip
    other = piece("t/test_x.py", {"5": ["t/test_x.py::c", "failed"], "6": ["t/test_x.py::d"]},
                  {"t/test_x.py::c": 0.1, "t/test_x.py::d": 0.1})  # fmt: skip
    found = Reached([other, own])
    assert found.tests("arith/grid.py", [5]) == [
        "t/test_grid.py::b", "t/test_grid.py::a", "t/test_x.py::c",
    ]  # fmt: skip
    assert found.tests("arith/grid.py", [6]) == ["t/test_x.py::d"]
    assert found.seconds(found.tests("arith/grid.py", [5, 6])) == pytest.approx(3.2)
    # no test is seen to reach it: all that reach the file
    assert len(found.tests("arith/grid.py", [7])) == 4
    assert found.tests("arith/packing.py", [5]) == []


def test_a_fixture_of_a_file_needs_the_whole_file():
    own = piece("t/test_x.py", {"5": ["t/test_x.py|setup"]}, {"t/test_x.py::a": 1.0})
    assert Reached([own]).tests("arith/grid.py", [5]) == ["t/test_x.py::a"]


def test_lines_of_a_file_that_has_changed_are_not_trusted():
    own = piece("t/test_x.py", {"5": ["t/test_x.py::a"], "6": ["t/test_x.py::b"]},
                {"t/test_x.py::a": 1.0, "t/test_x.py::b": 1.0},
                **{"arith/packing.py": "of another version"})  # fmt: skip
    assert Reached([own]).tests("arith/grid.py", [5]) == ["t/test_x.py::a"]
    assert len(Reached([own]).tests("arith/packing.py", [5])) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize(
    ("job", "said"),
    [(lambda: 0, "0"), (lambda: 3, "3"), (lambda: time.sleep(60), "timeout"), (sys.exit, "70")],
)
def test_a_fork_says_how_it_ended(job: Callable[[], int], said: str):
    found, seconds = forked(job, 100, 0.5 if said == "timeout" else 60)
    assert found == said and seconds < 50


def test_modules_of_ours_are_not_taken_along_into_forks():
    import benchmarks

    package = types.ModuleType("bitwright")
    package.__file__ = str(forked_tests.ROOT / "src" / "bitwright" / "__init__.py")
    assert all(forked_tests._ours(m) for m in (mutation, forked_tests, package, benchmarks))
    assert not forked_tests._ours(pytest) and not forked_tests._ours(ast)


@pytest.mark.parametrize(
    ("whole", "ruined", "says"),
    [("1", "killed", "fail on the copy"), ("0", "survived", "do not look at the copy")],
)
def test_nothing_is_counted_unless_the_copy_is_what_is_tested(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: str, ruined: str, says: str
):
    mutants = mutation.drawn(2, 0, ("arith",))
    monkeypatch.setattr(forked_tests, "fails", lambda *_: (whole, 0.0))
    monkeypatch.setattr(mutation, "tried", lambda *_: (ruined, 0.0, 1))
    with pytest.raises(RuntimeError, match=says):
        mutation.checked(tmp_path, mutants, Reached([]))
    monkeypatch.setattr(forked_tests, "fails", lambda *_: ("0", 0.0))
    monkeypatch.setattr(mutation, "tried", lambda *_: ("killed", 0.0, 1))
    mutation.checked(tmp_path, mutants, Reached([]))
