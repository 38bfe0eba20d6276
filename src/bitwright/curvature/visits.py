"""The passes: forward over some samples, backward for each of their directions, squares added."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from bitwright.curvature.ledger import Ledger
from bitwright.curvature.losses import OutputHessian
from bitwright.curvature.row_squares import row_squares
from bitwright.curvature.selection import Plan, Units
from bitwright.curvature.subjects import Pass, Subject, gradients
from bitwright.curvature.tape import edge
from bitwright.errors import BitwrightError

#: of a pass, the weights' shapes, directions and columns: [directions, m, C], as :func:`squares`
Integrand = Callable[
    [Pass, Mapping[str, tuple[int, ...]], list[Tensor], Mapping[str, slice]], Tensor
]

#: rows times directions whose gradients are held at once, of four bytes a number
_AT_ONCE = 128
#: directions at most, however few the rows
_MOST = 16


def visit(
    subject: Subject,
    hessian: OutputHessian,
    plan: Plan,
    units: Units,
    ledger: Ledger,
    columns: Mapping[str, slice],
    chunk: int,
    seed: tuple[int, int],
    integrand: Integrand,
) -> Iterator[int]:
    """Visit the units, at most `chunk` rows in a pass, and yield how many directions are done.

    `seed` is that of the signs, and the number of this process's first row among all; `integrand`
    is what is summed: :func:`squares` for traces.
    """
    opened = plan.final
    done = 0
    for size, copies in units.copies.items():
        for some in copies.split(chunk):
            for index, passed in subject.forward(some[:, 0]):
                part = some[index]
                kinds = [part[:, 1] + k for k in range(size)]
                rows = part[:, 0]
                directions = [_direction(hessian, plan, rows, k, seed) for k in kinds]
                found = integrand(passed, subject.weights, directions, columns)
                if not opened:
                    ledger.open(units.opened, found.dtype)
                    opened = True
                if plan.final:
                    ledger.close(found.sum(0))
                else:
                    for k, each in zip(kinds, found, strict=True):
                        ledger.add(rows, each, k < plan.own[rows])
                done += size * len(part)
                yield done


def _direction(
    hessian: OutputHessian, plan: Plan, rows: Tensor, kind: Tensor, seed: tuple[int, int]
) -> Tensor:
    """Each row's direction [m, K]: `√λ_k v_k` below its own, else random in what they leave.

    Signs are drawn along the eigenvectors where these are known, and along the columns of S in
    their complement: a rest of one direction has no variance, one of few has little.
    """
    spectrum = plan.spectrum
    own = kind < plan.own[rows]
    found = torch.zeros(len(rows), hessian.numbers, dtype=torch.float64)
    if bool(own.any()):
        assert spectrum.vectors is not None
        some, k = rows[own], kind[own]
        found[own] = spectrum.vectors[some, :, k] * spectrum.values[some, k, None].sqrt()
    if not bool(own.all()):
        some = rows[~own]
        known = spectrum.values.shape[1]
        signs = torch.stack(
            [_signs(hessian.numbers + known, seed[0], seed[1] + int(r), int(k))
             for r, k in zip(some, kind[~own], strict=True)]
        )  # fmt: skip
        drawn = hessian.take(some).random(signs[:, known:]).double()
        if spectrum.vectors is not None:
            basis = spectrum.vectors[some]
            drawn = drawn - (basis @ (basis.mT @ drawn[..., None]))[..., 0]
            rest = torch.arange(known) >= plan.own[some][:, None]
            along = signs[:, :known] * spectrum.values[some].sqrt() * rest
            drawn = drawn + (basis @ along[..., None])[..., 0]
        found[~own] = drawn
    return found


def _signs(count: int, seed: int, row: int, kind: int) -> Tensor:
    """Random signs that depend on nothing but their names, int8 [count]."""
    state = np.random.SeedSequence((seed, row, kind)).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    return torch.randint(0, 2, (count,), generator=generator, dtype=torch.int8) * 2 - 1


def squares(
    passed: Pass,
    weights: Mapping[str, tuple[int, ...]],
    directions: list[Tensor],
    columns: Mapping[str, slice],
) -> Tensor:
    """For each direction [m, K], every sample's squared gradient by channel.

    Args:
        passed: a forward pass of m samples, its graph alive; weights: name -> shape.
        directions: `√λ v` or `S ε` of each sample.
        columns: key (`layer:…`, `edge:…`) -> its channels among all C.

    Returns:
        [directions, m, C]; channels that no gradient reaches are zero.
    """
    n = len(passed.outputs)
    width = max(c.stop for c in columns.values())
    result = torch.zeros(len(directions), n, width, dtype=passed.outputs.dtype)
    directions = [d.to(passed.outputs) for d in directions]
    at_once = 4 * _AT_ONCE // passed.outputs.element_size()  # their gradients are all in memory
    some = min(max(1, at_once // n), _MOST)
    for a in range(0, len(directions), some):
        keep = a + some < len(directions) or bool(passed.loose)
        _add(passed, weights, directions[a : a + some], columns, result[a : a + some], keep)
    for name, leaf in passed.loose.items():  # no rule for its operations: sample by sample
        place = columns[f"layer:{name}"]
        for k, direction in enumerate(directions):
            for i in range(n):
                only = torch.zeros_like(direction)
                only[i] = direction[i]
                (gradient,) = gradients(passed.outputs, [edge(leaf)], only, keep=True)
                if gradient is not None:
                    row = gradient.reshape(place.stop - place.start, -1)
                    result[k][i, place] = row.square().sum(1).to(result)
    return result


def _add(
    passed: Pass,
    weights: Mapping[str, tuple[int, ...]],
    directions: list[Tensor],
    columns: Mapping[str, slice],
    result: Tensor,
    keep: bool,
) -> None:
    """Fill `result` [directions, m, C]; the graph is kept for others or freed."""
    n = len(passed.outputs)
    watched = [use.use.at for uses in passed.uses.values() for use in uses]
    watched += [edge(t) for t, _, _ in passed.edges.values()]
    found = [
        gradients(passed.outputs, watched, d, keep=keep or k + 1 < len(directions))
        for k, d in enumerate(directions)
    ]
    place = 0
    for name, uses in passed.uses.items():
        some = [g[place : place + len(uses)] for g in found]
        place += len(uses)
        for k, s in enumerate(row_squares(weights[name], uses, some)):
            if s is not None:
                result[k][:, columns[f"layer:{name}"]] = s.detach()
    for name, (_, axis, where) in passed.edges.items():
        own = columns[f"edge:{name}"]
        for k, each in enumerate(found):
            gradient = each[place]
            if gradient is not None:
                by = where.squares(gradient, axis, n, passed.grain)
                if by.shape[1] != own.stop - own.start:
                    raise BitwrightError(
                        f"edge {name!r} has {by.shape[1]} {passed.grain}s in one batch and "
                        f"{own.stop - own.start} in another; pad the inputs to one length, or "
                        "measure edges as tensors"
                    )
                result[k][:, own] = by
        place += 1
