"""Guaranteed accumulators of ResNet-20: the theorem under attack, its price, its error message."""

from __future__ import annotations

import json
from pathlib import Path

import harness
import numpy as np
import overflow_base
import torch
from overflow_base import Case

from bitwright import overflow
from bitwright.arith.accumulator import Operands, worst_inputs
from bitwright.arith.narrow_sums import narrow_sums
from bitwright.errors import BitwrightError
from bitwright.overflow import Accumulator, Bounded
from bitwright.overflow.count import in_kernel_order
from bitwright.quantize import EdgeGrid, Quantized
from bitwright.report import svg
from bitwright.train import Recipe, finetune

#: of the curve
ACCUMULATORS, ACTIVATIONS = (12, 14, 16, 18, 20, 24, 32), (4, 5, 6, 7, 8)


FIGURE = Path(__file__).resolve().parent.parent / "docs" / "overflow.svg"


def built(case: Case, edges: dict[int, EdgeGrid], accumulator: Accumulator) -> Quantized:
    """Weights of 8 bits that cannot overflow, corrected."""
    targets = {la.name: case.network.matrix(la) for la in case.network.layers}
    layers = overflow.guaranteed(case.network, case.rounded(), edges, accumulator, targets)
    return case.correct(edges)(layers)


def by_curvature(case: Case, accumulator: Accumulator, name: str) -> Quantized:
    """The same with the inputs' widths chosen for it."""
    found = overflow.input_widths(
        case.network, case.sensitivity(name), case.tables, case.edge_tables, accumulator
    )
    return built(case, found.edges, accumulator)


def guarantee(rows: harness.Rows, quick: bool) -> None:
    """Inputs that reach the bound, and random ones, through every layer, product by product.

    10⁶ inputs a kind and network, shared out among the layers; a random half of each row's inputs
    is drawn from the ends of its range.
    """
    case = overflow_base.resnet20(quick)
    rng = np.random.default_rng(0)
    # pairs of 8-bit weights with fewer bits of activations fit 16 bits whatever the weights are
    for kind, bits, width in (
        ("wrap", 16, 6), ("saturate", 16, 6), ("saturate", 12, 6), ("pairs", 16, 8),
    ):  # fmt: skip
        accumulator = Accumulator(bits, kind)
        quantized = built(case, case.edges(width), accumulator)
        overflow.require(quantized, accumulator)
        given = overflow.operands(quantized, accumulator)
        count = (2_000 if quick else 1_000_000) // len(given) + 1
        wrong = tried = reached = 0
        for one in given.values():
            matrix = in_kernel_order(one).numpy()
            low, high = (0, one.high - one.low) if kind == "pairs" else (one.low, one.high)
            worst = np.concatenate([w.numpy() for w in worst_inputs(one)]) - (one.low - low)
            for first in range(0, count, 4096):
                size = min(4096, count - first)
                x = rng.integers(low, high + 1, (size, matrix.shape[1]))
                ends = np.where(rng.random(x.shape) < 0.5, low, high)
                x = np.where(rng.random((size, 1)) < 0.5, ends, x)
                some = rng.integers(0, len(matrix), 8)  # rows that this batch is summed by
                found, exact = narrow_sums(x, matrix[some], accumulator), x @ matrix[some].T
                wrong += int((found != exact).sum())
                tried += size
            worst = worst[:, _kernel_columns(one)]
            found, exact = narrow_sums(worst, matrix, accumulator), worst @ matrix.T
            wrong += int((found != exact).sum())
            reached = max(reached, _largest(worst, matrix, kind))
            tried += len(worst)
        rows.add(
            f"sums that differ from int64, guaranteed {bits}-bit accumulators ({kind}), "
            f"{width}-bit activations, ResNet-20",
            wrong,
            "= 0 on >= 1e6 inputs",
            wrong == 0 if quick else wrong == 0 and tried >= 1e6,
            inputs=tried,
            largest_sum_reached=reached,
            limit=accumulator.highest,
        )


def _largest(x: np.ndarray, matrix: np.ndarray, kind: str) -> int:
    """The largest number that the accumulator holds at last: a sum, or a sum of two neighbours."""
    if kind != "pairs":
        return int(np.abs(x @ matrix.T).max())
    ends = range(0, matrix.shape[1], 2)
    return max(int(np.abs(x[:, k : k + 2] @ matrix[:, k : k + 2].T).max()) for k in ends)


def _kernel_columns(one: Operands) -> np.ndarray:
    """Places of a kernel's columns among those of `weight.flatten(1)`."""
    shape = one.weight.shape
    places = torch.arange(one.weight[0].numel()).reshape(1, *shape[1:])
    if places.ndim == 2:
        return places[0].numpy()
    return places.flatten(2).transpose(1, 2).flatten().numpy()


def violation(rows: harness.Rows, quick: bool) -> None:
    """A channel made too large: what is said of it, and whether the fix that is named holds."""
    case = overflow_base.resnet20(True)
    accumulator = Accumulator(16)
    quantized = built(case, case.edges(6), accumulator)
    layer = case.network.layers[7]
    stored = quantized.layers[layer.name]
    codes = stored.codes.clone()
    codes[3] = 255
    broken = Quantized(
        quantized.network,
        {**quantized.layers, layer.name: type(stored)(codes, stored.grid, stored.bias)},
        quantized.edges,
    )
    said = ""
    try:
        overflow.require(broken, accumulator)
    except BitwrightError as error:
        said = str(error)
    fixed = overflow.guaranteed(broken.network, broken.layers, broken.edges, accumulator)
    overflow.require(Quantized(broken.network, fixed, broken.edges), accumulator)
    named = all(part in said for part in (repr(layer.name), "channel 3", "smallest fix"))
    rows.add("a bound broken on purpose is reported", float(named), "= 1", named, says=said)


def curve(bits: int | None, rows: harness.Rows, quick: bool) -> None:
    """KL of guaranteed networks, not trained, for activations of one width, or by curvature."""
    case = overflow_base.resnet20(quick)
    plain = case.kl(case.plain)[0]
    name = "by curvature" if bits is None else f"{bits} bits"

    for width in (16,) if quick else ACCUMULATORS:
        if bits is None:
            quantized = by_curvature(case, Accumulator(width), "resnet20")
        else:
            quantized = built(case, case.edges(bits), Accumulator(width))
        kl, error = case.kl(quantized)
        rows.add(
            f"KL, ResNet-20, activations {name}, guaranteed {width}-bit accumulators",
            kl,
            peer="8-bit, 32-bit accumulators",
            peer_value=plain,
            stderr=round(error, 5),
            activations=name,
            accumulator=width,
            bits=sorted({g.bits for g in quantized.edges.values()}),
        )


def figure(rows: harness.Rows, quick: bool) -> None:
    """The curves kept in the results, drawn to docs/overflow.svg."""
    content = json.loads((harness.HERE / "results" / "overflow.json").read_text())
    found: dict[str, list[tuple[float, float]]] = {}
    for part, kept in content.items():
        for row in kept["rows"] if part.startswith("curve") else ():
            found.setdefault(row["activations"], []).append((row["accumulator"], row["value"]))
    if not quick:
        FIGURE.write_text(_drawn(dict(sorted(found.items()))))  # digits stand before letters
    chosen, others = found.pop("by curvature", []), found.values()
    least = {w: min(dict(line).get(w, 9.0) for line in others) for w, _ in chosen}
    rows.add(
        "accumulators for which activations by curvature beat every single width",
        sum(kl <= least[w] for w, kl in chosen),
        f"of {len(chosen)}",
    )


#: colours of the lines, in order
COLOURS = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#084594", "#d94801")


def _drawn(found: dict[str, list[tuple[float, float]]]) -> str:
    """Lines of KL over accumulator bits; a picture of its own, 640 × 340."""
    values = [kl for line in found.values() for _, kl in line]
    y, left, top, width, height = svg.log_axis(values), 60, 20, 430, 260
    low, high = min(ACCUMULATORS), max(ACCUMULATORS)

    def place(bits: float, kl: float) -> tuple[float, float]:
        return (
            left + width * (bits - low) / (high - low),
            top + height * (1 - y.at(kl) / 100),
        )

    parts = []
    for value, label in y.ticks:
        at = place(low, value)[1]
        parts.append(f'<path d="M{left} {at:.1f}H{left + width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    for bits in ACCUMULATORS:
        at = place(bits, values[0])[0]
        parts.append(
            f'<text x="{at:.1f}" y="{top + height + 18}" text-anchor="middle">{bits}</text>'
        )
    for i, ((name, line), colour) in enumerate(zip(found.items(), COLOURS, strict=False)):
        points = " ".join("{:.1f},{:.1f}".format(*place(*p)) for p in line)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        at = top + 14 + 20 * i
        parts.append(f'<path d="M{left + width + 16} {at}h18" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + width + 40}" y="{at + 4}">{name}</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 340" font-family="sans-serif" '
        'font-size="12"><title>KL to float of ResNet-20 whose accumulators no input can overflow'
        '</title><rect width="640" height="340" fill="#fff"/>'
        + "".join(parts)
        + f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">bits of the '
        'accumulator</text><text x="14" y="14">KL to float; lines: bits of the activations</text>'
        "</svg>\n"
    )


def trained(rows: harness.Rows, quick: bool) -> None:
    """The guaranteed 16-bit network by curvature, fine-tuned without ever leaving the bound."""
    case = overflow_base.resnet20(quick)
    accumulator = Accumulator(16)
    if quick:
        before = built(case, case.edges(6), accumulator)
    else:
        before = by_curvature(case, accumulator, "resnet20")
    ranges = overflow.input_ranges(case.network, before.edges)
    recipe = Recipe(epochs=1 if quick else 3, bounded=Bounded(accumulator, ranges))
    after, history = finetune(before, case.x, recipe)
    overflow.require(after, accumulator)
    (old, _), (kl, error) = case.kl(before), case.kl(after)
    rows.add(
        f"KL, ResNet-20, guaranteed 16-bit accumulators, {recipe.epochs} epochs on {len(case.x)} "
        "rows",
        kl,
        "below untrained",
        None if quick else kl < old,
        "untrained",
        old,
        stderr=round(error, 5),
        held_out=[round(v, 5) for v in history],
    )
