"""The papers' estimator: `Tr(H) = E[zᵀ H z]` with random signs z, by Hessian-vector products.

HAWQ-V2 (Dong et al., arXiv 1911.03852, section 3): one joint probe for all layers,
`Hz = ∂⟨∂L/∂w, z⟩/∂w`, and `z_c · (Hz)_c` summed over a channel estimates that channel's trace. Kept
as the papers' variant, for losses whose Hessian is not Gauss-Newton's, and as a cross-check of
:mod:`~bitwright.curvature.gauss_newton`, which needs a fraction of the work for the same error
(`benchmarks/traces.py`).

A channel's variance is `2 Σ_{a≠b in c} H_ab² + Σ_{a in c, b not in c} H_ab²` for a joint probe. A
probe that is zero outside one layer, or one channel, loses the terms from outside, and costs a
product for each layer or channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.curvature import processes
from bitwright.curvature.estimate import Estimate, Sensitivity
from bitwright.curvature.hessian import Graphs, Hessian
from bitwright.curvature.shards import unsharded

BLOCKS = ("joint", "layer", "channel")
#: products on one gradient's graph before the stopping rule is asked
_ROUND = 8


def hutchinson(
    model: nn.Module,
    data: Any,
    loss: Any = "kl",
    *,
    blocks: str = "joint",
    tolerance: float = 0.0,
    probes: int = 32,
    least: int = 8,
    class_axis: int = 1,
    select: Callable[[Any], Any] | None = None,
    chunk: int = 128,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Sensitivity:
    """Traces per output channel of the Hessian of the loss's mean.

    Args:
        model, data, class_axis, select: as for :func:`bitwright.traces`; in a `torch.distributed`
            group, all processes draw the same probes and get the numbers of everybody's data.
        loss: as there, or any function of (outputs, targets) that gives a mean over rows.
        blocks: `joint` probes, or probes that are zero outside a `layer` or a `channel`.
        tolerance: stop when every layer's `stderr / |mean|` of the total trace is at most this.
        probes: of every block at most; 2 at least, so that an error is known.
        least: probes before the stopping rule may end it.
        chunk: rows in a pass.
        seed: of the probes.
        progress: called with the finished fraction of `probes`.

    Returns:
        Means over probes with the standard error over probes, and over passes for the data (a
        jackknife of groups, which holds the probes' noise as well; NaN for a single pass). Details
        tell the probes spent and how many layers are not within the tolerance.

    Raises:
        ValueError: fewer than 2 probes, or unknown blocks.
        BitwrightError: see :class:`~bitwright.curvature.hessian.Hessian`.

    Cost: about six forward passes a joint probe (the graph of the gradient is kept).
    """
    if probes < 2:
        raise ValueError(f"probes must be at least 2 for a standard error, got {probes}")
    if blocks not in BLOCKS:
        raise ValueError(f"blocks {blocks!r} is unknown; use one of {', '.join(BLOCKS)}")
    with unsharded(model):
        hessian = Hessian(model, data, loss, class_axis=class_axis, select=select, chunk=chunk)
        group = processes.group()
        passes = int(group.total(torch.tensor(hessian.passes)))
        generator = torch.Generator().manual_seed(seed)
        table = {n: torch.zeros(0, passes, c, dtype=torch.float64)
                 for n, c in hessian.channels.items()}  # fmt: skip
        spent = 0
        while True:
            count = min(_ROUND, probes - spent)
            for name, mine in _round(hessian, blocks, count, generator):
                table[name] = torch.cat([table[name], torch.cat(group.gathered(mine), 1)])
            spent += count
            if progress:
                progress(spent / probes)
            beyond = sum(_relative_error(t) > tolerance for t in table.values())
            if spent >= probes or (spent >= least and not beyond):
                break
    if progress and spent < probes:
        progress(1.0)
    return Sensitivity(
        "hutchinson",
        {n.removesuffix(".weight"): _estimate(t, hessian.rows) for n, t in table.items()},
        details={
            "estimator": f"hutchinson, {blocks}",
            "probes": spent,
            "tolerance": tolerance,
            "beyond_tolerance": int(beyond),
        },
    )


def _relative_error(table: Tensor) -> float:
    """stderr / |mean| of a layer's total over probes; infinite for a total of zero with errors."""
    totals = table.sum((1, 2))
    if len(totals) < 2:
        return math.inf
    error = float(totals.std(unbiased=True)) / math.sqrt(len(totals))
    return error / abs(float(totals.mean())) if error else 0.0


def _estimate(table: Tensor, rows: int) -> Estimate:
    """From [probes, passes, C]."""
    totals = table.sum(1)
    groups = table.shape[1]
    probe = totals.std(0, unbiased=True) / math.sqrt(len(table))
    data = torch.full_like(probe, torch.nan)
    if groups > 1:  # passes add up to the mean over all rows
        data = table.mean(0).std(0, unbiased=True) * math.sqrt(groups)
    return Estimate(totals.mean(0).numpy(), probe.numpy(), data.numpy(), rows)


def _round(
    hessian: Hessian, blocks: str, count: int, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """`count` probes of every block: weight name, [count, passes, C]."""

    def signs(name: str) -> Tensor:
        shape = hessian.weights[name].shape
        return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1

    if blocks == "joint":
        joint = [{n: signs(n) for n in hessian.weights} for _ in range(count)]
        yield from _quadratic(hessian, [(k, z) for k, z in enumerate(joint)], count).items()
        return
    each = [(k, {n: signs(n)}) for n in hessian.weights for k in range(count)]
    if blocks == "layer":
        yield from _quadratic(hessian, each, count).items()
        return
    kept: Graphs = {}
    for name, channels in hessian.channels.items():
        mine = [(k, z) for k, z in each if name in z]
        total = torch.zeros(count, hessian.passes, channels, dtype=torch.float64)
        for c in range(channels):
            mask = hessian.mask(name, c)
            masked = [(k, {name: z[name] * mask}) for k, z in mine]
            total[:, :, c] = _quadratic(hessian, masked, count, kept)[name][:, :, c]
        kept.clear()
        yield name, total


def _quadratic(
    hessian: Hessian,
    probes: list[tuple[int, dict[str, Tensor]]],
    count: int,
    kept: Graphs | None = None,
) -> dict[str, Tensor]:
    """`z_c · (Hz)_c` of numbered probes by weight: [count, passes, C]."""
    found = {
        n: torch.zeros(count, hessian.passes, hessian.channels[n], dtype=torch.float64)
        for n in dict.fromkeys(n for _, z in probes for n in z)
    }
    for number, i, part in hessian.parts([z for _, z in probes], kept=kept):
        k, z = probes[i]
        for n, p in part.items():
            found[n][k, number] = hessian.by_channel(n, z[n] * p.cpu().double())
    return found
