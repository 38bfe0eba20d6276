"""Refitting of a quantized network's classifier: convex KL to the float model, solved by SAGA.

With the features h that the last layer gets in the quantized network, and p what the float model
answers for the same rows, a head z = W h + b minimizes

    mean KL(p ‖ softmax(z)) + ½ ρ E‖h‖² ‖(W, b) − (W, b)₀‖² ,

a multinomial regression with soft targets. Two heads that a file can hold are tried: `scales`, the
stored codes with other scales and biases (2 numbers a class, towards the present ones), and
`codes`, the full regression towards the float head, rounded to nearest on grids of the same widths,
its scales and biases then fitted as well. Held-out rows choose among them, and whether any is
better than the present head (docs/decisions/0020-refit-head.md has what each is worth).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from bitwright.arith.grid import Grid, fit, quantize, round_scale
from bitwright.curvature.divergence import per_sample
from bitwright.errors import BitwrightError
from bitwright.network import Layer, Network, outputs
from bitwright.quantize import Quantized, QuantizedLayer, simulate
from bitwright.quantize.correct import GAINS
from bitwright.train.saga import Penalty, Problem, importance, saga
from bitwright.train.saga.penalty import Vector

CHOICES = ("scales", "codes")
#: ρ tried: the penalty as a share of the features' mean square
SHARES = (1e-2, 1e-3, 1e-4)
#: of the duality gap, nats
TOLERANCE = 1e-6
#: of each regression: gradients per row, at most
PASSES = 300


@dataclass(frozen=True)
class Refit:
    """What was chosen, and what the held-out rows say of it.

    Attributes:
        layer: name of the head.
        choice: `kept` (no candidate was better), `scales` or `codes`.
        share: ρ of the choice; 0 where the head was kept.
        before, after: mean held-out KL, nats, of the present head and of the choice.
        stderr: of their difference, row by row.
        fitted, held_out: rows.
    """

    layer: str
    choice: str
    share: float
    before: float
    after: float
    stderr: float
    fitted: int
    held_out: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def refit_head(
    quantized: Quantized,
    x: Tensor,
    *,
    kind: str = "kl",
    class_axis: int = 1,
    choices: Sequence[str] = CHOICES,
    held_out: float = 0.25,
    progress: Callable[[float], None] | None = None,
) -> tuple[Quantized, Refit]:
    """The network with a refitted head, or as it is where no candidate is surely better.

    Surely better is a mean held-out KL that is lower by two standard errors of the difference.
    Costs a pass of both networks over x, and about ten passes over the features for a candidate.

    Args:
        quantized: on the float network; left as it is.
        x: [n, ...] calibration rows, thousands if there are; the last `held_out` share decides.
        kind, class_axis: of the divergence: `kl` over the last axis.
        choices: of :data:`CHOICES`, what may be tried.
        held_out: share of rows.
        progress: called with the finished fraction.

    Raises:
        BitwrightError: the network's output is not that of one quantized Linear layer, an unknown
            choice, or x has fewer than 8 rows.
    """
    if unknown := set(choices) - set(CHOICES):
        raise BitwrightError(f"choices of a head are {', '.join(CHOICES)}, not {unknown.pop()!r}")
    if len(x) < 8:
        raise BitwrightError(f"{len(x)} rows are too few to refit a head; give 8, better thousands")
    layer = head_of(quantized.network, kind, class_axis)
    tell = progress or (lambda fraction: None)
    count = max(2, round(len(x) * held_out))
    h, reference = features(quantized, layer, x), outputs(quantized.network.module, x)
    inputs, answers = h[:-count], reference[:-count]
    data = _Rows(
        inputs.flatten(0, -2).double().numpy(),
        answers.softmax(-1).flatten(0, -2).double().numpy(),
    )
    tell(0.4)
    present = quantized.layers[layer.name]

    def values(head: QuantizedLayer) -> Tensor:
        z = torch.nn.functional.linear(h[-count:], head.matrix(), head.bias)
        return per_sample(reference[-count:], z, kind, class_axis)

    before = values(present)
    best, chosen = present, Refit(
        layer.name, "kept", 0.0, float(before.mean()), float(before.mean()), 0.0,
        len(x) - count, count,
    )  # fmt: skip
    candidates = {
        "scales": _scales(data, present),
        "codes": _codes(data, quantized.network, layer, present.grid.bits),
    }
    done = 0
    for choice, heads in [(c, candidates[c]) for c in choices]:
        for share, head in zip(SHARES, heads, strict=True):
            difference = values(head) - before
            after = float((before + difference).mean())
            error = float(difference.std() / count**0.5)
            if after < chosen.after and after + 2 * error < chosen.before:
                best = head
                chosen = replace(chosen, choice=choice, share=share, after=after, stderr=error)
            done += 1
            tell(0.4 + 0.6 * done / (len(choices) * len(SHARES)))
    return replace(quantized, layers={**quantized.layers, layer.name: best}), chosen


def head_of(network: Network, kind: str = "kl", class_axis: int = 1) -> Layer:
    """The Linear layer whose output is the network's.

    Raises:
        BitwrightError: there is none, or the divergence is not the KL over its outputs.
    """
    if kind != "kl":
        raise BitwrightError(f"refit-head needs class scores: divergence kl, not {kind}")
    output = next(n for n in network.module.graph.nodes if n.op == "output")
    sources = output.all_input_nodes
    if len(sources) != 1:
        raise BitwrightError(f"refit-head needs one output; this network has {len(sources)}")
    calls = {name: layer for layer in network.layers for name in layer.calls}
    last, layer = sources[0], calls.get(sources[0].name)
    if layer is None or layer.kind != "linear":
        what = f"of the {layer.kind} {layer.name!r}" if layer else f"of {last.name!r}"
        floats = f" (left in float: {', '.join(network.skipped)})" if network.skipped else ""
        raise BitwrightError(
            f"refit-head needs a quantized Linear layer whose output is the network's; here that "
            f"is {what}{floats}"
        )
    if len(layer.calls) > 1:
        raise BitwrightError(
            f"layer {layer.name!r} is used {len(layer.calls)} times, not only as the head; it "
            "cannot be refitted"
        )
    axes = 1 + len(last.meta["row_shape"])
    if class_axis % axes != axes - 1:
        raise BitwrightError(
            f"refit-head needs the classes on the last of {axes} axes of the output, where the "
            f"head {layer.name!r} has them, not on axis {class_axis}"
        )
    return layer


def features(quantized: Quantized, layer: Layer, x: Tensor) -> Tensor:
    """What the layer gets in the quantized network for the rows x: [n, ..., fan_in]."""
    found: list[Tensor] = []

    def note(node: Node, args: tuple[Any, ...]) -> None:
        if node.name in layer.calls:
            found.append(args[0])

    simulate(quantized, x, note=note)
    return torch.cat(found)


@dataclass(frozen=True)
class _Rows:
    """Features [n, d] and the float model's probabilities [n, k]."""

    h: Vector
    p: Vector


def _changes(
    rows: Vector, p: Vector, offsets: Vector, shares: Sequence[float]
) -> Iterator[tuple[Vector, Vector]]:
    """For each ρ: what to add to the weights [d, k] and biases [k] behind the answers `offsets`.

    Rows are centred and get a constant of their mean length: the bias is penalized like weights,
    which makes the problem strongly convex, and a duality gap tells when it is solved.

    Args:
        rows: [n, d], or [n, d, k] where every class has its own.
        p: [n, k] probabilities.
        offsets: [n, k].
        shares: ρ, falling.
    """
    mean = rows.mean(0)
    centred = rows - mean
    energy = float((centred**2).sum(1).mean()) or 1.0
    constant = np.full_like(centred[:, :1], energy**0.5)
    design, x = np.concatenate([centred, constant], 1), None
    middle = mean if mean.ndim == 2 else mean[:, None]
    for share in shares:
        penalty = Penalty(l2=share * energy)
        problem = Problem(design, p, "multinomial", penalty, offsets=offsets)
        x = saga(
            problem, importance(problem), tolerance=TOLERANCE, max_passes=PASSES, start_from=x
        ).x
        yield x[:-1], energy**0.5 * x[-1] - (middle * x[:-1]).sum(0)


def _scales(
    data: _Rows, head: QuantizedLayer, shares: Sequence[float] = SHARES
) -> Iterator[QuantizedLayer]:
    """The head's codes under other scales and biases, for each ρ."""
    seen = data.h @ head.matrix().double().numpy().T
    bias = head.bias.double().numpy()
    for change, offset in _changes(seen[:, None], data.p, seen + bias, shares):
        wanted = torch.from_numpy(1 + change[0]).clamp(*GAINS)
        scale = round_scale(head.grid.scale * wanted.float())
        gain = (scale / head.grid.scale).double().numpy()  # what float16 leaves of it
        moved = bias + offset + seen.mean(0) * (1 + change[0] - gain)
        yield QuantizedLayer(
            head.codes, replace(head.grid, scale=scale), torch.from_numpy(moved).float()
        )


def _codes(data: _Rows, network: Network, layer: Layer, bits: Tensor) -> Iterator[QuantizedLayer]:
    """The whole head refitted towards the float one, rounded, scales and biases refitted."""
    weight, bias = (
        t.detach().double().numpy() for t in (network.matrix(layer), network.tensor(layer.bias))
    )
    whole = _changes(data.h, data.p, data.h @ weight.T + bias, SHARES)
    for share, (change, offset) in zip(SHARES, whole, strict=True):
        head = rounded(torch.from_numpy(weight + change.T).float(), bits)
        yield from _scales(
            data, replace(head, bias=torch.from_numpy(bias + offset).float()), [share]
        )


def rounded(weight: Tensor, bits: Tensor) -> QuantizedLayer:
    """Weights [rows, fan_in] on the grids of least squared error of the widths [rows]; bias 0."""
    scale, zero = torch.ones(len(bits)), torch.zeros(len(bits), dtype=torch.int64)
    for width in bits.unique().tolist():
        chosen = bits == width
        grid, _ = fit(weight[chosen], width)
        scale[chosen], zero[chosen] = grid.scale, grid.zero
    grid = Grid(bits, scale, zero)
    return QuantizedLayer(quantize(weight, grid), grid, torch.zeros(len(bits)))
