"""Multi-bit bases against enumeration of all signs, and what must never grow."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitwright.arith import multibit
from bitwright.arith.multibit import Bases
from mutants import mutant


def drawn(groups: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(groups, n, generator=torch.Generator().manual_seed(seed))


def best_of_all_signs(weight: Tensor, bases: int) -> float:
    """The least ‖w − Σ αᵢ bᵢ‖² over all signs, coordinates by least squares, in float64."""
    n = len(weight)
    # b and −b span the same line: the first sign is +1
    patterns = [(1.0, *rest) for rest in itertools.product((-1.0, 1.0), repeat=n - 1)]
    found = float(weight.double().square().sum())
    for chosen in itertools.combinations(patterns, bases):
        matrix = torch.tensor(chosen, dtype=torch.float64).T
        fitted = matrix @ torch.linalg.pinv(matrix) @ weight.double()
        found = min(found, float((weight.double() - fitted).square().sum()))
    return found


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_one_basis_is_the_best_of_all_signs(n: int):
    weight = drawn(5, n)
    errors = multibit.squared_error(multibit.sketch(weight, 1), weight)
    for row, error in zip(weight, errors, strict=True):
        assert float(error) == pytest.approx(best_of_all_signs(row, 1), rel=1e-5, abs=1e-10)


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_no_sketch_beats_all_signs_and_two_bases_come_close(n: int):
    weight = drawn(8, n, seed=n)
    found = multibit.squared_error(multibit.sketch(weight, 2), weight)
    least = torch.tensor([best_of_all_signs(row, 2) for row in weight], dtype=torch.float64)
    assert bool((found >= least - 1e-9).all())
    norm = weight.double().square().sum(1)
    assert float((found / norm).mean()) <= float((least / norm).mean()) + 0.1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(1, 40))
def test_the_residual_never_grows_with_a_basis(seed: int, n: int):
    weight = drawn(6, n, seed)
    weight[0] = 0
    errors = [multibit.squared_error(multibit.sketch(weight, k), weight) for k in range(1, 7)]
    for fewer, more in itertools.pairwise(errors):
        assert bool((more <= fewer + 1e-12 * weight.double().square().sum(1)).all())


def test_a_sketch_without_refits_is_worse():
    weight = drawn(50, 30)
    wrong = mutant("arith.multibit", "coordinates(Bases(found.codes | bit, alpha), weight)",
                   "Bases(found.codes | bit, alpha)")  # fmt: skip
    ours, theirs = (m.squared_error(m.sketch(weight, 3), weight).sum() for m in (multibit, wrong))
    assert float(ours) < 0.99 * float(theirs)


def test_a_group_takes_no_more_bases_than_it_needs():
    two = 3 * torch.tensor([[1.0, -1, 1, 1]]) + torch.tensor([[1.0, 1, -1, 1]])
    found = multibit.sketch(torch.cat([two, torch.zeros(1, 4)]), 6)
    assert found.counts.tolist() == [2, 0]
    assert torch.allclose(multibit.values(found)[0], two[0], atol=1e-6)
    assert not multibit.values(found)[1].any()


def test_a_group_has_one_to_eight_bases():
    weight = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    assert multibit.sketch(weight, 1).alpha.shape == (2, 1)
    assert multibit.sketch(weight, 8).alpha.shape == (2, 8)
    for most in (0, 9):
        with pytest.raises(ValueError, match=f"1 to 8 bases, not {most}"):
            multibit.sketch(weight, most)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_nearest_is_the_best_of_all_levels(count: int):
    alpha = drawn(7, count).abs()
    alpha[1] = 0
    alpha[2, 0] = 0
    target = 3 * drawn(7, 50, seed=1)
    codes = multibit.nearest(target, alpha)
    chosen = (multibit.values(Bases(codes, alpha)) - target).abs()
    least = (multibit.levels(alpha)[:, None, :] - target[:, :, None]).abs().amin(2)
    assert torch.allclose(chosen, least, atol=1e-6)
    assert not codes[1].any(), "a basis that is not there has no bits"


@pytest.mark.parametrize("weighted", [False, True])
def test_coordinates_are_the_weighted_least_squares(weighted: bool):
    target, rng = drawn(5, 40), torch.Generator().manual_seed(3)
    codes = torch.randint(0, 8, (5, 40), generator=rng).to(torch.uint8)
    h = torch.rand(5, 40, generator=rng) if weighted else None
    start = multibit.tidied(Bases(codes, torch.full((5, 3), 0.01)))
    found = multibit.values(multibit.coordinates(start, target, h))
    for g in range(5):
        root = torch.ones(40).double() if h is None else h[g].double().sqrt()
        matrix = multibit.signs(codes, 3)[g].double().T * root[:, None]
        wanted = torch.linalg.lstsq(matrix, (target[g].double() * root)[:, None]).solution
        fitted = multibit.signs(codes, 3)[g].double().T @ wanted[:, 0]
        assert torch.allclose(found[g].double(), fitted, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(1, 12), count=st.integers(1, 8))
def test_neither_step_ever_grows_the_quadratic_loss(seed: int, n: int, count: int):
    rng = torch.Generator().manual_seed(seed)
    target, h = torch.randn(9, n, generator=rng), torch.rand(9, n, generator=rng)
    h[0] = 0
    alpha = torch.rand(9, count, generator=rng) * (torch.rand(9, count, generator=rng) > 0.3)
    codes = torch.randint(0, 256, (9, n), generator=rng).to(torch.uint8)
    bases = multibit.tidied(Bases(codes, alpha))  # singular systems are among these
    before = multibit.squared_error(bases, target, h)
    bases = Bases(multibit.nearest(target, bases.alpha), bases.alpha)
    middle = multibit.squared_error(bases, target, h)
    bases = multibit.coordinates(bases, target, h)
    after = multibit.squared_error(bases, target, h)
    assert bool((middle <= before + 1e-5).all()) and bool((after <= middle + 1e-5).all())
    assert bool((bases.alpha >= 0).all())


def test_signs_and_values_agree_and_turning_over_changes_nothing():
    codes = torch.randint(0, 8, (4, 10), generator=torch.Generator().manual_seed(0))
    alpha = torch.tensor([[1.0, 0.5, 0.25]]).repeat(4, 1)
    bases = Bases(codes.to(torch.uint8), alpha)
    dense = (multibit.signs(bases.codes, 3) * alpha[:, :, None]).sum(1)
    assert torch.equal(multibit.values(bases), dense)
    turned = multibit.tidied(Bases(bases.codes ^ 2, alpha * torch.tensor([1.0, -1.0, 1.0])))
    assert torch.equal(multibit.values(turned), dense) and bool((turned.alpha > 0).all())


def test_projection_is_the_chain_rule():
    codes = torch.randint(0, 8, (4, 10), generator=torch.Generator().manual_seed(0))
    gradient = drawn(4, 10)
    alpha = torch.rand(4, 3).requires_grad_()
    (
        (multibit.signs(codes.to(torch.uint8), 3) * alpha[:, :, None]).sum(1) * gradient
    ).sum().backward()
    found = multibit.projected(gradient, codes.to(torch.uint8), 3)
    assert alpha.grad is not None and torch.allclose(found, alpha.grad, atol=1e-5)


def test_where_a_group_needs_no_more_bases_does_not_depend_on_its_size():
    weight = drawn(40, 16)
    counts = [(multibit.sketch(s * weight, 6, tolerance=0.02).alpha > 0).sum(1) for s in (1, 256)]
    assert torch.equal(*counts) and len(counts[0].unique()) > 1
    for few, group in zip(counts[0].tolist(), weight, strict=True):
        left = [
            float(multibit.squared_error(multibit.sketch(group[None], k), group[None]))
            for k in (few - 1, few)
            if k
        ]
        whole = 0.02 * float(group.square().sum())
        assert left[-1] <= whole or few == 6
        assert all(error > whole for error in left[:-1])
