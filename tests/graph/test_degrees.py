"""In-degrees and probabilities of protection."""

from __future__ import annotations

import pytest
import torch

from bitwright.graph import degrees
from mutants import mutated


def brute_force(found: torch.Tensor, low: float, high: float, graphs: torch.Tensor):
    """The definition, node by node."""
    p = []
    for i in range(len(found)):
        mine = found[graphs == graphs[i]]
        p.append(low + (high - low) * float((mine <= found[i]).sum()) / len(mine))
    return torch.tensor(p)


def check() -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        found = torch.randint(6, (50,), generator=g)
        graphs = torch.randint(4, (50,), generator=g).sort().values
        for which in (graphs, torch.zeros_like(graphs)):
            p = degrees.protection(found, 0.1, 0.4, which)
            torch.testing.assert_close(p, brute_force(found, 0.1, 0.4, which))
        torch.testing.assert_close(degrees.protection(found, 0.1, 0.4), p)


def test_probabilities_are_the_definition():
    check()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("right=True", "right=False"),
        ("(reached - first)", "reached"),
        ("(high - low) *", "high *"),
    ],
)
def test_a_wrong_probability_is_seen(old: str, new: str):
    with mutated("graph.degrees", old, new), pytest.raises(AssertionError):
        check()


def test_the_highest_degree_has_the_highest_probability():
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 1, 1]])
    found = degrees.in_degrees(edges[1], 4)
    assert found.tolist() == [0, 3, 1, 0]
    p = degrees.protection(found, 0.0, 0.2)
    assert p.argmax() == 1 and float(p[1]) == pytest.approx(0.2)
    assert float(p[0]) == float(p[3]) == pytest.approx(0.1)
    assert degrees.protection(found[:0], 0.0, 0.2).shape == (0,)
