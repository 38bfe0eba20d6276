"""What Degree-Quant costs in training, and errors by in-degree."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import networks
import numpy as np
import torch
from harness import HERE, Rows
from torch import Tensor
from torch.nn import functional
from torch_geometric.nn import GATConv, GCNConv, GINConv

from bitwright.graph import DegreeQuant, Form, Scheme, build, load_nodes

COLOURS = {"gcn": "#0b6", "gin": "#c33", "gat": "#66c"}


def in_turns(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median processor time of each in seconds, one thread, measured in turns."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for i in range(repeats + 1):
        for name, action in actions.items():
            start = time.process_time()
            action()
            if i:  # the first finds cold caches
                taken[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def speed(rows: Rows, quick: bool) -> None:
    """A training step of Degree-Quant, of plain quantized training and of float, on Cora."""
    torch.set_num_threads(1)
    data = load_nodes(networks.root() / "graphs" / "cora.npz")
    for kind, hidden in (("gcn", 16), ("gat", 64), ("gin", 16)):
        net = build(Form(kind, data.x.shape[1], hidden, 7))
        for bits, share in ((8, 0.001),) if quick else ((8, 0.001), (4, 0.01)):
            given = data.x, data.edge_index
            nets = {
                "float": net,
                "plain": DegreeQuant(net, Scheme(bits, bits, (0, 0), 0.0), *given),
                "ours": DegreeQuant(net, Scheme(bits, bits, (0, 0.1), share), *given),
            }

            def step(module: torch.nn.Module) -> None:
                answer = module.train()(data.x, data.edge_index)
                functional.cross_entropy(
                    answer[data.train_mask], data.y[data.train_mask]
                ).backward()

            actions = {name: lambda m=m: step(m) for name, m in nets.items()}
            found = in_turns(actions, 3 if quick else 7)
            ratio = found["ours"] / found["plain"]
            rows.add(
                f"cora {kind} int{bits}: training step over plain quantized", ratio, "<= 1.5",
                ratio <= 1.5, "float step over plain", found["float"] / found["plain"],
                plain_s=round(found["plain"], 5),
            )  # fmt: skip


def power_law(nodes: int, edges: int, seed: int = 0) -> Tensor:
    """Edges int64 [2, edges] whose in-degrees fall as a power of the rank; sources as well."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, nodes + 1) ** -0.7
    share /= share.sum()
    ends = rng.choice(nodes, edges, p=share)
    starts = rng.permutation(nodes)[rng.choice(nodes, edges, p=share)]
    return torch.from_numpy(np.stack([starts, ends]))


def degree(rows: Rows, quick: bool) -> None:
    """Sizes and errors of sums by in-degree: exponents of n fitted between 4 and 1,000 edges."""
    nodes, count = (3_000, 60_000) if quick else (20_000, 400_000)
    edges = power_law(nodes, count).unique(dim=1)
    torch.manual_seed(0)
    x = torch.rand(nodes, 32)
    convs = {
        "gcn": GCNConv(32, 32),
        "gat": GATConv(32, 32),
        "gin": GINConv(torch.nn.Identity()),
    }
    degrees = torch.bincount(edges[1], minlength=nodes)
    drawn: dict[str, list[tuple[float, float]]] = {}
    for kind, conv in convs.items():
        low_bit = DegreeQuant(conv, Scheme(4, 4, percentile=0.0), x, edges).eval()
        with torch.no_grad():
            wanted, found = conv(x, edges), low_bit(x, edges)
        for what, values in (
            ("variance", wanted.var(1) + wanted.mean(1) ** 2),
            ("error", (found - wanted).square().mean(1)),
        ):
            points = _by_degree(degrees, values)
            exponent = float(np.polyfit(*np.log(np.array(points)).T, 1)[0]) / 2
            claim = {"gcn": 0.5, "gin": 1.0, "gat": 0.0}[kind]
            bar = f"{claim} (paper)" if what == "variance" else ""
            holds = abs(exponent - claim) <= 0.15 if bar else None
            name = "size" if what == "variance" else "error"
            rows.add(f"{kind}: exponent of n in the {name} of sums, 4 bits", exponent, bar, holds)
            if what == "error":
                drawn[kind] = points
    if not quick:
        _plot(drawn)


def _by_degree(degrees: Tensor, values: Tensor) -> list[tuple[float, float]]:
    """(in-degree, mean) in bins of powers of √2 from 4 to 1,000."""
    points = []
    for k in range(4, 20):
        inside = (degrees >= 2 ** (k / 2)) & (degrees < 2 ** ((k + 1) / 2))
        if int(inside.sum()) >= 3:
            points.append((float(degrees[inside].float().mean()), float(values[inside].mean())))
    return points


def _plot(drawn: Mapping[str, list[tuple[float, float]]]) -> None:
    """`results/degree_quant_error.svg`: root mean squared errors, both axes logarithmic."""
    values = [v for points in drawn.values() for _, v in points]
    low, high = np.log10(min(values)) / 2, np.log10(max(values)) / 2
    parts = []
    for i, (kind, points) in enumerate(drawn.items()):
        places = [
            (50 + 140 * np.log10(n), 20 + 260 * (high - np.log10(v) / 2) / (high - low))
            for n, v in points
        ]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[kind]}"/>')
        parts.append(f'<text x="500" y="{30 + 18 * i}" fill="{COLOURS[kind]}">{kind}</text>')
    for n in (1, 10, 100, 1000):
        parts.append(f'<text x="{50 + 140 * np.log10(n):.0f}" y="300">{n}</text>')
    for e in (low, high):
        y = 24 + 260 * (high - e) / (high - low)
        parts.append(f'<text x="4" y="{y:.0f}">{10**e:.2g}</text>')
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 330" font-family="sans-serif"'
    foot = '<text x="50" y="322">in-degree; root mean squared error of sums, 4 bits</text>'
    text = f'{head} font-size="12">\n' + "\n".join([*parts, foot]) + "\n</svg>\n"
    (HERE / "results" / "degree_quant_error.svg").write_text(text, encoding="utf-8")
