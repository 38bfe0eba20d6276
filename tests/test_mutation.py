"""The mutation run's own parts: what is changed, and that a surviving defect would be seen."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mutation

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
    file = Path(name)
    text = (mutation.ROOT / "src" / "bitwright" / file).read_text()
    tree = ast.parse(text)
    same = ast.unparse(tree)
    count = len(mutation.sites(tree))
    assert count > 30
    for index in range(0, count, 17):
        found = mutation.mutant(file, index)
        assert found.source != same and compile(found.source, name, "exec")
        assert found.name.startswith(f"{name}:") and found.lines[0] > 0


def test_the_same_seed_draws_the_same_mutants_of_the_packages_asked_for():
    first = [m.name for m in mutation.drawn(3, 7, ("arith",))]
    assert first == [m.name for m in mutation.drawn(3, 7, ("arith",))]
    assert all(name.startswith("arith/") for name in first) and len(set(first)) == 3
    assert first != [m.name for m in mutation.drawn(3, 8, ("arith",))]


def test_what_is_called_equivalent_is_still_there():
    for key, reason in mutation.EQUIVALENT.items():
        file = Path(key[0])
        tree = ast.parse((mutation.ROOT / "src" / "bitwright" / file).read_text())
        kinds = [kind for _, kind, _ in mutation.sites(tree)]
        places = [i for i, kind in enumerate(kinds) if kind == key[-1]]
        assert key in [mutation.mutant(file, i).key for i in places] and reason
