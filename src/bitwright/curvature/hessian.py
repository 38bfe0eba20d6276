"""The Hessian of a loss in a module's weights, or its Gauss-Newton matrix, as an operator.

Products are by double backward: `H z = ∂⟨∂L/∂w, z⟩/∂w` (Pearlmutter, Neural Computation 6, 1994).
One product after another on the same rows reuses the gradient's graph: about 6 forward passes each,
9 for the first. The Gauss-Newton matrix `Jᵀ Λ J` is the Hessian of `½ (y − y₀)ᵀ Λ (y − y₀)` at the
outputs y₀ themselves. Fused attention has no second derivative; PyTorch's plain kernel is taken
instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bitwright.curvature import divergence, processes
from bitwright.curvature.batches import Batch, pieces, read
from bitwright.curvature.losses import flatten, form, known, output_hessian
from bitwright.curvature.modules import ModuleSubject
from bitwright.errors import BitwrightError

Vectors = Mapping[str, Tensor]
#: by sources: the leaves and the loss's gradient at them, its graph alive
Graphs = dict[tuple[str, ...], tuple[dict[str, Tensor], dict[str, Tensor | None]]]


class Hessian:
    """H of the loss's mean over all data, in the weights of a module.

    In a `torch.distributed` group, each process has its part of the data, and products are those of
    the whole; all must ask for the same ones.

    Args:
        model, data: as for :func:`bitwright.traces`.
        loss: as there; or any function of (outputs, targets) that gives a mean over rows.
        class_axis, select: as there.
        kind: "hessian", or "gauss-newton" for losses whose Λ is known.
        chunk: rows in a pass, which bounds the memory.

    Attributes:
        weights: name -> weight, those that :func:`bitwright.traces` measures.
        rows: of all processes.
        channels: name -> number of its output channels.

    Raises:
        BitwrightError: a model that answers differently when asked again; data that does not fit;
            a Gauss-Newton matrix of a loss that has none; a sharded model outside of
            :func:`bitwright.curvature.unsharded`.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        loss: Any = "kl",
        *,
        class_axis: int = 1,
        select: Callable[[Any], Any] | None = None,
        kind: str = "hessian",
        chunk: int = 128,
    ) -> None:
        if kind not in ("hessian", "gauss-newton"):
            raise ValueError(f"kind {kind!r} is unknown; use hessian or gauss-newton")
        batches = read(data)
        self._gauss_newton = kind == "gauss-newton"
        proxy = loss if known(loss) or self._gauss_newton else "squared"
        self._subject = ModuleSubject(model, batches, proxy, class_axis, select, edges="")
        self._loss, self._axis, self._chunk = loss, class_axis, chunk
        subject = self._subject
        self.weights = {n: subject.parameters[n].detach() for n in subject.weights}
        self.rows = int(processes.group().total(torch.tensor(subject.rows)))
        self.channels = {n: subject.channels[f"layer:{n}"] for n in self.weights}
        self._total = self._divisor()

    def _divisor(self) -> float:
        """What a mean divides sums by."""
        if not isinstance(self._loss, nn.Module) or not known(self._loss):
            return float(self.rows)
        if self._loss.reduction != "mean":
            return float(self.rows)
        total = 0.0
        with torch.no_grad():
            for batch in pieces(self._subject.batches, self._chunk):
                outputs = self._subject.outputs(batch)
                _, each = output_hessian(self._loss, outputs, batch.targets, self._axis)
                total += each * batch.rows
        return float(processes.group().total(torch.tensor(total, dtype=torch.float64)))

    def _value(self, outputs: Tensor, reference: Tensor, targets: Any) -> Tensor:
        """A chunk's share of the loss, or of the quadratic with its Gauss-Newton matrix."""
        if self._gauss_newton:
            block, _ = output_hessian(self._loss, reference, targets, self._axis)
            change = flatten(outputs - reference, form(self._loss), self._axis)
            return block.quadratic(change).sum() / self._total
        if self._loss in divergence.KINDS:
            each = divergence.per_sample(reference, outputs, self._loss, self._axis)
            return each.sum() / self._total
        if targets is None:
            raise BitwrightError(f"{self._loss} needs targets; give batches of (inputs, targets)")
        targets = targets.to(outputs.device)
        if known(self._loss):
            summed = copy.copy(self._loss)
            summed.reduction = "sum"
            return summed(outputs, targets) / self._total
        value: Tensor = self._loss(outputs, targets)
        return value * (len(outputs) / self._total)

    def products(
        self,
        vectors: Sequence[Vectors],
        only: Sequence[str] | None = None,
        kept: Graphs | None = None,
    ) -> list[dict[str, Tensor]]:
        """H z for each z: name -> float64 tensor of the weight's shape.

        Args:
            vectors: each a mapping from weights to tensors of their shapes; absent ones are zero.
            only: weights whose part of the products is wanted; all without.
            kept: where the gradient's graph stays for the next call, if the data is one pass.
        """
        wanted = list(self.weights) if only is None else list(only)
        found = [{n: torch.zeros_like(self.weights[n], dtype=torch.float64) for n in wanted}
                 for _ in vectors]  # fmt: skip
        for _, k, part in self.parts(vectors, wanted, kept):
            for n, p in part.items():
                found[k][n] += p.double()
        group = processes.group()
        return [{n: group.total(p).to(p.device) for n, p in each.items()} for each in found]

    def parts(
        self,
        vectors: Sequence[Vectors],
        wanted: Sequence[str] | None = None,
        kept: Graphs | None = None,
    ) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        """What each pass of this process adds: (number of the pass, of the vector, tensors).

        Of each vector's own weights alone where none are `wanted`.
        """
        sources = tuple(sorted({n for z in vectors for n in z} | set(wanted or ())))
        for number, batch in enumerate(pieces(self._subject.batches, self._chunk)):
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                leaves, slope = (kept or {}).get(sources) or self._gradient(batch, sources)
                if kept is not None and self.passes == 1:
                    kept[sources] = leaves, slope
                for k, z in enumerate(vectors):
                    pairs = [(slope[n], v) for n, v in z.items()]
                    live = [(g, v) for g, v in pairs if g is not None and g.requires_grad]
                    if not live:
                        continue
                    names = list(z) if wanted is None else wanted
                    products = torch.autograd.grad(
                        [g for g, _ in live],
                        [leaves[n] for n in names],
                        [v.to(g) for g, v in live],
                        retain_graph=True,
                        allow_unused=True,
                    )
                    found = zip(names, products, strict=True)
                    yield number, k, {n: p.detach() for n, p in found if p is not None}

    def _gradient(
        self, batch: Batch, sources: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
        """Leaves in place of the weights `sources`, and the gradient of a chunk's share."""
        leaves = {n: self.weights[n].detach().requires_grad_(True) for n in sources}
        outputs = self._subject.outputs(batch, leaves)
        value = self._value(outputs, outputs.detach(), batch.targets)
        at = [leaves[n] for n in sources]
        gradients = torch.autograd.grad(value, at, create_graph=True, allow_unused=True)
        return leaves, dict(zip(sources, gradients, strict=True))

    @property
    def passes(self) -> int:
        """Passes over this process's data, of `chunk` rows at most."""
        return sum(-(-b.rows // self._chunk) for b in self._subject.batches)

    def by_channel(self, name: str, products: Tensor) -> Tensor:
        """Sums of a weight-shaped tensor over each output channel, [C]."""
        found = torch.zeros(self.channels[name], dtype=products.dtype)
        owner = self._subject.owners[name]
        return found.index_add_(0, owner.flatten(), products.flatten())

    def mask(self, name: str, channel: int) -> Tensor:
        """1 on one output channel's weights, 0 elsewhere."""
        return (self._subject.owners[name] == channel).double()
