"""Mixed widths of graph networks: weights by layer, activations by site and class of in-degree.

What an item loses at b bits is the diagonal of the Gauss-Newton matrix of the KL divergence to the
float network, times the squared error of its own rounding (HAWQ-V2's trace times squared error,
arXiv 1911.03852, number by number):

    loss(item, b) = ½ Σ_k E[u_k²] (Q_b(v_k) − v_k)²,   u = Jᵀ S ε,   E[u uᵀ] = Jᵀ Λ J

An item is a weight tensor, or the rows of an activation that belong to nodes of one class of
in-degree. Two knapsacks then give weights and activations the same mean width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from bitwright.allocate import Problem, knapsack
from bitwright.curvature.losses import output_hessian
from bitwright.errors import BitwrightError
from bitwright.graph.degree_quant import DegreeQuant
from bitwright.graph.degrees import degree_bounds, degree_classes, in_degrees
from bitwright.graph.scheme import Widths
from bitwright.graph.training import answers
from bitwright.graph.weights import round_weights


@dataclass
class Loss:
    """What an item loses at each choice, float64 [choices], and how many numbers it has."""

    at: np.ndarray
    numbers: int = 0


#: a site, and the class of in-degree of its rows; None where they are no nodes
Rows = tuple[str, int | None]


def mixed_widths(
    net: DegreeQuant,
    graphs: Sequence[Data],
    mean: float,
    *,
    choices: Sequence[int] = (2, 3, 4, 5, 6, 7, 8),
    classes: int = 4,
    probes: int = 32,
    seed: int = 0,
) -> Widths:
    """The widths with the least predicted loss at a mean width.

    Args:
        net: with the weights of a trained float network and calibrated ranges.
        graphs: graphs or batches to measure on, without labels.
        mean: bits of a weight, and of an activation, on average over all numbers; not more.
        choices: widths, 2 to 8.
        classes: of in-degree, into which about as many edges end each.
        probes: random directions for each graph; the relative error of an item's sum falls as
            their root.
        seed: of the directions.

    Raises:
        BitwrightError: the mean is below the least choice, or no graphs.
    """
    choices = sorted(set(choices))
    if not graphs:
        raise BitwrightError("there are no graphs to measure on")
    if not choices or mean < choices[0]:
        raise BitwrightError(f"a mean of {mean} bits is below the least of the widths {choices}")
    degrees = [in_degrees(net.targets(g.edge_index), int(g.num_nodes or 0)) for g in graphs]
    bounds = degree_bounds(torch.cat(degrees), classes)
    kinds = [degree_classes(d, bounds) for d in degrees]
    weights, rows = losses(net, graphs, kinds, choices, probes=probes, seed=seed)
    found: dict[str, dict[int, int]] = {}
    for (site, k), bits in _chosen(rows, mean, choices).items():
        found.setdefault(site, {})[-1 if k is None else k] = bits
    spare = choices[0]  # of classes that no node was in
    return Widths(
        _chosen(weights, mean, choices),
        bounds,
        {
            site: (own[-1],) if -1 in own else
            tuple(own.get(k, spare) for k in range(len(bounds) + 1))
            for site, own in found.items()
        },
    )  # fmt: skip


def losses(
    net: DegreeQuant,
    graphs: Sequence[Data],
    kinds: Sequence[Tensor],
    choices: Sequence[int],
    *,
    probes: int = 32,
    seed: int = 0,
) -> tuple[dict[str, Loss], dict[Rows, Loss]]:
    """Of the weights by name, and of the rows of activations by site and class of in-degree.

    Args:
        kinds: class of each node, int64 [nodes], of each graph.

    Cost: a forward and `probes` backward passes for each graph.
    """
    generator = torch.Generator().manual_seed(seed)
    named = {name: net.net.get_parameter(name) for name in net.low_bit}
    squares = {name: torch.zeros_like(w) for name, w in named.items()}
    rows: dict[Rows, Loss] = {}
    for graph, own_kinds in zip(graphs, kinds, strict=True):
        with torch.enable_grad(), net.in_float() as seen:
            logits = answers(net, graph)
        sites = [(site, x) for site, xs in seen.items() for x in xs]
        inputs = [*named.values(), *(x for _, x in sites)]
        own = [torch.zeros_like(x) for _, x in sites]
        block, _ = output_hessian("kl", logits.detach(), None, 1)
        for _ in range(probes):
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2 - 1
            direction = block.random(signs.flatten(1)).reshape(logits.shape)
            found = torch.autograd.grad(
                logits, inputs, direction, retain_graph=True, allow_unused=True
            )
            for total, u in zip([*squares.values(), *own], found, strict=True):
                if u is not None:
                    total += u.square() / probes
        for (site, x), square in zip(sites, own, strict=True):
            _add(rows, site, x.detach(), square, net, own_kinds, choices)
    weights = {}
    for name, w in named.items():
        at = [_lost(squares[name], round_weights(w.detach(), b) - w.detach()) for b in choices]
        weights[name] = Loss(np.array([float(v.sum()) for v in at]), w.numel())
    return weights, rows


def _add(
    rows: dict[Rows, Loss], site: str, x: Tensor, square: Tensor, net: DegreeQuant,
    kinds: Tensor, choices: Sequence[int],
) -> None:  # fmt: skip
    """Add what a site's rows in one graph lose."""
    found = net.range_of(site)
    nodes = len(x) == len(kinds)
    own = kinds if nodes else torch.zeros(len(x), dtype=torch.int64)
    at = torch.stack([_lost(square, found.round(x, b) - x).flatten(1).sum(1) for b in choices], 1)
    for k in own.unique().tolist():
        mine = own == k
        item = rows.setdefault((site, k if nodes else None), Loss(np.zeros(len(choices))))
        item.at += at[mine].sum(0).double().numpy()
        item.numbers += int(mine.sum()) * (x.numel() // len(x))


def _lost(square: Tensor, error: Tensor) -> Tensor:
    """`½ E[u²] δ²`, number by number."""
    return 0.5 * square * error.square()


def _chosen(items: Mapping[Any, Loss], mean: float, choices: Sequence[int]) -> dict[Any, int]:
    """The width of each item with the least loss at the mean width."""
    numbers = np.array([item.numbers for item in items.values()], dtype=np.int64)
    cost = numbers[:, None] * np.array(choices, dtype=np.int64)
    # a wider grid is never worse in what it may hold; its error can be by chance
    loss = np.minimum.accumulate(np.stack([item.at for item in items.values()]), axis=1)
    problem = Problem(
        tuple(str(key) for key in items), tuple(choices), loss, cost, int(mean * numbers.sum()),
        np.ones(cost.shape, dtype=bool), np.arange(len(cost)),
    )  # fmt: skip
    plan = knapsack(problem)
    return dict(zip(items, plan.bits.tolist(), strict=True))
