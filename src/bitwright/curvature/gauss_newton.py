"""Traces per channel of the Gauss-Newton matrix `Jᵀ Λ J` from plain backward passes.

With `Λ = Σ_k λ_k v_k v_kᵀ` for each sample, one backward pass of `⟨√λ_k v_k, outputs⟩` gives
`u = Jᵀ √λ_k v_k`; summed over k, `‖u_c‖²` is the trace of channel c's block, exactly. On a trained
network two eigenvectors hold about 99 % of Λ and few samples hold most of the curvature, so only
the pairs (sample, k) that together hold the wanted share are visited, and the sums are divided by
the share. Outputs with positions, and squared divergences with many outputs, use random signs
(`E[u uᵀ] = Jᵀ Λ J`), with the standard error over probes.

The gradient of one sample for one layer is formed from the layer's input patches and output
gradient and squared at once; a weight used several times has its gradients summed over uses first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from bitwright.curvature import divergence
from bitwright.curvature.estimate import Estimate, Sensitivity
from bitwright.errors import BitwrightError
from bitwright.network import Layer, Network, join, outputs, run


def gauss_newton(
    network: Network,
    x: Tensor,
    *,
    kind: str = "kl",
    class_axis: int = 1,
    share: float = 0.97,
    directions: int = 4,
    probes: int = 4,
    edges: bool = True,
    chunk: int = 32,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Sensitivity:
    """Traces of every layer's rows and every edge's channels, for the mean divergence over rows.

    Args:
        network: captured float network, on any device; passes run there, sums are kept here.
        x: [n, ...] calibration rows; labels are not needed.
        kind: `kl` or `squared`.
        class_axis: axis of the classes, for `kl`.
        share: of `Σ tr Λ_n` to visit, in (0, 1]; 1 with `directions >= C` is exact.
        directions: eigenvectors tried for each sample.
        probes: random passes, where eigenvectors are not used.
        edges: whether to measure edges as well.
        chunk: rows in a pass.
        seed: of the random signs.
        progress: called with the finished fraction.

    Returns:
        A :class:`Sensitivity`; its details tell the share visited and the number of passes.
    """
    divergence.check(kind)
    reference = outputs(network.module, x)
    flat = divergence.flat(reference, kind, class_axis)
    if kind == "kl" and flat.shape[1] == 1:
        plan, details = _leading(flat[:, 0], share, directions)
    else:
        plan, details = _random(flat, kind, probes, seed)
    sums = _Sums(network, len(x), edges)
    done = 0
    total = sum(len(rows) for rows, _ in plan)
    for rows, vectors in plan:
        for i in range(0, len(rows), chunk):
            part = rows[i : i + chunk]
            grads = [v[i : i + chunk] for v in vectors]
            _visit(network, x[part], part, grads, kind, class_axis, sums)
            done += len(part)
            if progress:
                progress(done / max(total, 1))
    return sums.finish(details)


Pass = tuple[Tensor, list[Tensor]]


def _leading(logits: Tensor, share: float, count: int) -> tuple[list[Pass], dict[str, Any]]:
    """Which samples to visit, and with which output gradients √λ v (zero where not wanted)."""
    values, vectors, trace = divergence.leading_directions(logits, count)
    order = values.flatten().argsort(descending=True, stable=True)
    running = values.flatten()[order].cumsum(0)
    total = trace.sum().clamp(min=1e-300)
    wanted = int((running < share * total).sum()) + 1
    keep = torch.zeros(values.numel(), dtype=torch.bool)
    keep[order[:wanted]] = True
    keep = keep.reshape(values.shape)
    rows = torch.nonzero(keep[:, 0]).flatten()  # eigenvalues fall: no second without a first
    rows = rows[keep[rows].sum(1).argsort(descending=True, stable=True)]
    scaled = vectors * (values * keep).sqrt()[:, None]
    passes = [scaled[rows, :, k] for k in range(values.shape[1])]
    visited = float((values * keep).sum() / total)
    details = {
        "share": visited,
        "passes": int(keep.any(0).sum()),
        "backward_rows": int(keep.sum()),
        "estimator": "leading eigenvectors",
    }
    return [(rows, passes)], details


def _random(flat: Tensor, kind: str, probes: int, seed: int) -> tuple[list[Pass], dict[str, Any]]:
    """Random signs for every row; exact instead where there are no more outputs than probes."""
    n, positions, numbers = flat.shape
    rows = torch.arange(n)
    if kind == "squared" and positions * numbers <= max(probes, 16):
        units = torch.eye(numbers, dtype=flat.dtype)
        vectors = [units[k].expand(n, numbers) for k in range(numbers)]
        return [(rows, vectors)], {"share": 1.0, "passes": numbers, "estimator": "exact"}
    generator = torch.Generator().manual_seed(seed)
    vectors = [divergence.random_direction(flat, kind, generator) for _ in range(probes)]
    details = {"share": 1.0, "passes": probes, "estimator": "random signs"}
    return [(rows, vectors)], details


def _visit(
    network: Network,
    x: Tensor,
    rows: Tensor,
    vectors: list[Tensor],
    kind: str,
    class_axis: int,
    sums: _Sums,
) -> None:
    """One forward pass of a chunk, then one backward pass for each direction that is not zero."""
    by_call = {name: layer for layer in network.layers for name in layer.calls}
    inputs: dict[str, tuple[Node, Tensor]] = {}
    watched: dict[str, Tensor] = {}
    edge_names = {e.name for e in network.edges} if sums.with_edges else set()
    x = x.to(network.device)

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = node.target(*args, **kwargs)  # type: ignore[operator]
        if (node.name in by_call or node.name in edge_names) and len(value) != len(x):
            name = by_call[node.name].name if node.name in by_call else node.name
            raise BitwrightError(
                f"{name!r} sees rows merged with another axis ({len(value)} for {len(x)} rows), so "
                "its curvature cannot be told by row; keep the batch axis apart in forward(), or "
                f"leave the layer in float with --skip {name}"
            )
        if node.name in by_call:
            inputs[node.name] = (node, args[0].detach())
        if node.name in by_call or node.name in edge_names:
            watched[node.name] = value
        return value

    def enter(node: Node, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        value = value.detach().requires_grad_(True)
        if node.name in edge_names:
            watched[node.name] = value
        return value

    with torch.enable_grad():
        tokens = not x.is_floating_point()
        constants = _leaves(network) if tokens else None  # something must require a gradient
        output = join(run(network.module, x, call, enter=enter, constants=constants))
        flat = divergence.flat(output, kind, class_axis)
        names = list(watched)
        live = [k for k, v in enumerate(vectors) if bool(v.any())]
        gradients: dict[int, dict[str, Tensor | None]] = {}
        for position, k in enumerate(live):
            found = torch.autograd.grad(
                flat,
                [watched[n] for n in names],
                vectors[k].reshape(flat.shape).to(flat),
                retain_graph=position + 1 < len(live),
                allow_unused=True,
            )
            gradients[k] = dict(zip(names, found, strict=True))
    watched.clear()  # the graph's memory, before patches are cut
    for layer in network.layers:  # patches are cut once and serve all passes
        for k, squares in row_squares(layer, inputs, gradients).items():
            sums.add(f"layer:{layer.name}", rows, k, squares)
    for edge in network.edges if sums.with_edges else ():
        for k, by_name in gradients.items():
            gradient = by_name.get(edge.name)
            if gradient is not None:
                sums.add(f"edge:{edge.name}", rows, k, _channel_squares(gradient))


def _leaves(network: Network) -> dict[str, Tensor]:
    return {
        name: p.detach().requires_grad_(True)
        for name, p in network.module.named_parameters()
        if p.is_floating_point()
    }


def _channel_squares(gradient: Tensor) -> Tensor:
    """Squares summed over everything but rows and channels: [n, C]."""
    squares = gradient.square()
    return squares.flatten(2).sum(2) if squares.ndim > 2 else squares


def row_squares(
    layer: Layer,
    inputs: Mapping[str, tuple[Node, Tensor]],
    gradients: Mapping[int, Mapping[str, Tensor | None]],
) -> dict[int, Tensor]:
    """Squared norm of each sample's gradient for each output channel, by pass: float32 [n, rows].

    One use with one position factorizes, `‖g_c xᵀ‖² = g_c² ‖x‖²`; otherwise the gradients
    `Σ_positions g_c(p) patch(p)` are formed, added over uses, and squared.

    Args:
        layer: the weight.
        inputs: for each call, its node and input.
        gradients: for each pass, the output gradient of each call.
    """
    totals: dict[int, Tensor] = {}
    for call in layer.calls:
        reached = {k: g for k, found in gradients.items() if (g := found.get(call)) is not None}
        if not reached:
            continue
        node, x = inputs[call]
        if layer.kind == "linear" and x.ndim == 2 and len(layer.calls) == 1:
            norms = x.square().sum(1, keepdim=True)
            return {k: g.square() * norms for k, g in reached.items()}
        patches = unfold(layer, node, x)  # [n, groups, fan_in, positions]
        for k, g in reached.items():
            if layer.kind == "linear":
                g = g.reshape(len(x), -1, g.shape[-1]).mT
            g = g.reshape(len(x), layer.groups, layer.rows // layer.groups, -1)
            formed = g @ patches.mT
            totals[k] = totals[k] + formed if k in totals else formed
    return {k: t.square_().sum(-1).flatten(1) for k, t in totals.items()}


def unfold(layer: Layer, node: Node, x: Tensor) -> Tensor:
    """The input patches a layer multiplies, [n, groups, fan_in, positions]."""
    if layer.kind == "linear":
        return x.reshape(len(x), -1, x.shape[-1]).mT[:, None]
    space = len(layer.shape) - 2
    stride = _pair(node, 3, 1, space)
    padding = _pair(node, 4, 0, space)
    dilation = _pair(node, 5, 1, space)
    kernel = layer.shape[2:]
    if space == 1:  # as an image of height 1
        x = x[:, :, None]
        kernel, stride = (1, *kernel), (1, *stride)
        padding, dilation = (0, *padding), (1, *dilation)
    columns = torch.nn.functional.unfold(
        x, kernel, dilation=dilation, padding=padding, stride=stride
    )
    return columns.reshape(len(x), layer.groups, layer.fan_in, -1)


def _pair(node: Node, index: int, default: int, space: int) -> tuple[int, ...]:
    value: Any = node.args[index] if len(node.args) > index else default
    if isinstance(value, int):
        return (value,) * space
    return tuple(value) * (space if len(value) == 1 else 1)


class _Sums:
    """Running sums over samples of each channel's squared gradient, and of its square.

    Passes that belong together (eigenvectors of one sample) are added before squaring for the data
    error; random probes are kept apart as well for the probe error.
    """

    def __init__(self, network: Network, samples: int, with_edges: bool) -> None:
        self.network = network
        self.samples = samples
        self.with_edges = with_edges
        self.by_sample: dict[str, Tensor] = {}
        self.by_pass: dict[str, defaultdict[int, Tensor]] = {}

    def add(self, key: str, rows: Tensor, k: int, squares: Tensor) -> None:
        """Add pass k's squares [n, C] of the samples `rows`."""
        squares = squares.detach().cpu().double()
        if key not in self.by_sample:
            self.by_sample[key] = torch.zeros(self.samples, squares.shape[1], dtype=torch.float64)
            zero = torch.zeros(squares.shape[1], dtype=torch.float64)
            self.by_pass[key] = defaultdict(zero.clone)
        self.by_sample[key].index_add_(0, rows, squares)
        self.by_pass[key][k] += squares.sum(0)

    def finish(self, details: dict[str, Any]) -> Sensitivity:
        """Means over samples, divided by the share visited, with both errors."""
        random = details["estimator"] == "random signs"
        share = float(details["share"])
        passes = int(details["passes"])
        layers = {
            layer.name: self._estimate(f"layer:{layer.name}", layer.rows, share, random, passes)
            for layer in self.network.layers
        }
        edges = {
            e.name: self._estimate(
                f"edge:{e.name}", e.shape[0] if e.shape else 1, share, random, passes
            )
            for e in (self.network.edges if self.with_edges else ())
        }
        return Sensitivity("gauss-newton", layers, edges, details=details)

    def _estimate(
        self, key: str, channels: int, share: float, random: bool, passes: int
    ) -> Estimate:
        n = self.samples
        table = self.by_sample.get(key)
        if table is None:  # no gradient ever reached it
            zero = torch.zeros(channels, dtype=torch.float64).numpy()
            return Estimate(zero, zero, zero, n)
        scale = 1 / (passes if random else share)
        value = table.mean(0) * scale
        data = table.std(0, unbiased=True) * scale / math.sqrt(n) if n > 1 else value
        if random and passes > 1:
            each = torch.stack([self.by_pass[key][k] / n for k in range(passes)])
            probe = each.std(0, unbiased=True) / math.sqrt(passes)
        else:
            probe = value * (1 - min(share, 1.0))
        return Estimate(value.numpy(), probe.numpy(), data.numpy(), n)


__all__ = ["gauss_newton", "row_squares", "unfold"]
