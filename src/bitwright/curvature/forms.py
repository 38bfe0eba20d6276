"""Quadratic forms `dᵀ G_c d` of a channel's own Gauss-Newton block, for given changes d.

With the backward pass `u = Jᵀ √λ_k v_k` of a sample (see :mod:`~bitwright.curvature.gauss_newton`),
the form is the mean over samples of `Σ_k ⟨u_c, d⟩²`: the traces' passes with another square, so the
same few samples and directions are visited. A channel's gradient is formed once and multiplied with
all changes asked for:

    ⟨u_c, d⟩ = ⟨Σ_p g_c(p) x(p), d_w⟩ + d_b Σ_p g_c(p)

with output gradients g_c(p), inputs x(p) at positions p, and d = (d_w, d_b) in weights and bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bitwright.curvature.estimate import Estimate
from bitwright.curvature.gauss_newton import measure
from bitwright.curvature.losses import OutputHessian, output_hessian
from bitwright.curvature.row_squares import Placed, indexed, inputs
from bitwright.curvature.row_squares import outputs as output_gradients
from bitwright.curvature.subjects import NetworkSubject, Pass, gradients
from bitwright.network import Network, outputs

#: floats of per-sample gradients formed at once
_LIMIT = 8_000_000


def quadratic_forms(
    network: Network,
    x: Tensor,
    changes: Mapping[str, Tensor],
    *,
    rows: Mapping[str, Tensor] | None = None,
    kind: str = "kl",
    class_axis: int = 1,
    tolerance: float = 0.1,
    effort: float = 2.0,
    chunk: int = 32,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Estimate]:
    """`dᵀ G_c d` of the mean divergence over rows, for every row's k changes.

    Args:
        network: captured float network; x: [n, ...] rows.
        changes: layer name -> [rows, k, fan_in + 1]: of the weights, and of the bias in the last
            place; k may differ between layers.
        rows: of embeddings, the rows int64 that the changes are of, where these are not all: rows
            that `x` never looks up have forms of 0.
        kind, class_axis, effort, chunk, seed, progress: as for
            :func:`~bitwright.curvature.gauss_newton`.
        tolerance: standard error of directions left to chance, as a share of every form; 0 visits
            all. The data's own error is several times larger.

    Returns:
        Layer name -> :class:`Estimate` with arrays [rows, k] in place of [C].
    """
    block, _ = output_hessian(kind, outputs(network.module, x), None, class_axis)
    by_weight = {la.weight: changes[la.name] for la in network.layers if la.name in changes}
    given = rows or {}
    some = {la.weight: given[la.name] for la in network.layers if la.name in given}
    found, _ = measure(
        NetworkSubject(network, x, kind, class_axis, False),
        OutputHessian((block,)),
        {f"layer:{name}": d.shape[0] * d.shape[1] for name, d in by_weight.items()},
        tolerance,
        effort,
        chunk,
        seed,
        progress or (lambda f: None),
        partial(_squares, by_weight, some),
    )
    result = {}
    for layer in network.layers:
        if layer.name in changes:
            flat = found[f"layer:{layer.weight}"]
            shape = changes[layer.name].shape[:2]
            parts = [flat.value, flat.stderr_probe, flat.stderr_data]
            parts = [v.reshape(shape) for v in parts]
            if layer.weight in some:
                parts = [_spread(v, some[layer.weight], layer.rows) for v in parts]
            value, probe, data = parts
            result[layer.name] = Estimate(value, probe, data, flat.samples)
    return result


def _spread(values: np.ndarray, rows: Tensor, count: int) -> np.ndarray:
    """Values of some rows among those of all, which are 0."""
    found = np.zeros((count, values.shape[1]))
    found[rows.numpy()] = values
    return found


def _squares(
    changes: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    passed: Pass,
    weights: Mapping[str, tuple[int, ...]],
    directions: list[Tensor],
    columns: Mapping[str, slice],
) -> Tensor:
    """The integrand of :func:`quadratic_forms`: [directions, m, C]."""
    return inner_products(changes, passed, directions, columns, rows).square_()


def inner_products(
    changes: Mapping[str, Tensor],
    passed: Pass,
    directions: list[Tensor],
    columns: Mapping[str, slice],
    rows: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """`⟨u_c, d⟩` of each direction, sample and change, [directions, m, C].

    Args:
        changes: weight name -> [rows, k, fan_in + 1].
        passed: a forward pass of m samples, its graph alive.
        directions: `√λ v` or `S ε` of each sample.
        columns: `layer:…` -> its rows × k among all C.
        rows: weight name -> the rows that its changes are of; all where absent.
    """
    width = max(c.stop for c in columns.values())
    result = passed.outputs.new_zeros(len(directions), len(passed.outputs), width)
    used = {name: uses for name, uses in passed.uses.items() if name in changes}
    watched = [use.use.at for uses in used.values() for use in uses]
    for i, direction in enumerate(directions):
        last = i + 1 == len(directions)
        found = iter(
            gradients(passed.outputs, watched, direction.to(passed.outputs), keep=not last)
        )
        for name, uses in used.items():
            own = result[i][:, columns[f"layer:{name}"]]
            for use in uses:
                g = next(found)
                if g is not None and use.use.kind == "embedding":
                    _looked_up(own, changes[name].to(g), use, g, (rows or {}).get(name))
                elif g is not None:
                    own += _inner(changes[name].to(g), use, g).flatten(1)
    return result.detach()


def _inner(changes: Tensor, placed: Placed, g: Tensor) -> Tensor:
    """One use's share of the inner products, [m, rows, k]."""
    g = output_gradients(placed, g)
    size = max(1, _LIMIT // (changes.shape[0] * changes.shape[2]))
    pieces = []
    for a in range(0, placed.n, size):
        some = slice(a, min(a + size, placed.n))
        formed = (g[some] @ inputs(placed, some)).flatten(1, 2)  # [some, rows, fan_in]
        each = formed.transpose(0, 1) @ changes[:, :, :-1].mT  # [rows, some, k]
        each += g[some].sum(-1).flatten(1).mT[..., None] * changes[:, None, :, -1]
        pieces.append(each.transpose(0, 1))
    return torch.cat(pieces)


def _looked_up(
    own: Tensor, changes: Tensor, placed: Placed, g: Tensor, rows: Tensor | None
) -> None:
    """Add an embedding's share to `own` [m, rows × k]: each position's to the row it looks up."""
    index, g = indexed(placed, g)
    count, k = changes.shape[:2]
    place = index
    if rows is not None:
        place = torch.full((int(max(rows.max(), index.max())) + 1,), -1)
        place[rows] = torch.arange(count)
        place = place[index]  # padding, at -1, is no row: masked below
    known = (index >= 0) & (place >= 0)
    place = place.clamp(min=0)
    wide = own.unflatten(1, (count, k))
    size = max(1, _LIMIT // (index.shape[1] * k * changes.shape[2]))
    for a in range(0, placed.n, size):
        some = slice(a, min(a + size, placed.n))
        each = torch.einsum("npd,npkd->npk", g[some], changes[place[some], :, :-1])
        each *= known[some, :, None]
        wide[some].scatter_add_(1, place[some, :, None].expand_as(each), each)
