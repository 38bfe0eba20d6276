"""`traces(model, data)`: Gauss-Newton traces of any module, per channel, with both errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from bitwright.curvature.batches import read
from bitwright.curvature.compare import compare, told
from bitwright.curvature.estimate import Sensitivity
from bitwright.curvature.gauss_newton import measure
from bitwright.curvature.modules import ModuleSubject
from bitwright.curvature.shards import unsharded
from bitwright.errors import BitwrightError


def traces(
    model: nn.Module,
    data: Any,
    loss: Any = "kl",
    *,
    class_axis: int = 1,
    select: Callable[[Any], Any] | None = None,
    tolerance: float = 0.02,
    effort: float = 2.0,
    edges: bool | str = True,
    kind: str = "gauss-newton",
    chunk: int = 32,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Sensitivity:
    """Trace of the Gauss-Newton matrix for every channel of every weight and edge.

    `Tr_c = E[Tr(J_cᵀ Λ J_c)]` with the Jacobian J_c of a sample's outputs in channel c's numbers
    and the loss's Hessian Λ in the outputs. For the KL divergence to the model itself it is the
    whole Hessian, and no labels are needed.

    Args:
        model: any module; it is not changed. Weights are found where the forward pass uses them:
            convolutions (any dimension, grouped, dilated, transposed), linear layers and attention
            projections, embeddings, scales of normalizations, weights used several times.
            Parameters in other operations are measured one sample at a time. FSDP2 and DTensor
            parameters are gathered for the call: each process then holds the whole model besides
            its shards, in the parameters' own dtype, and FSDP2 modules are left sharded.
        data: inputs; `(inputs, targets)`; a dict of keyword arguments; or an iterable of those.
            It is read once. In a `torch.distributed` group it is this process's part, and all
            processes get the numbers of the whole; rows that several of them hold count as often.
        loss: "kl", "squared", an `nn.CrossEntropyLoss`, `nn.MSELoss` or `nn.BCEWithLogitsLoss`; a
            dict or list of them for several heads (their sum is measured).
        class_axis: axis of the classes: 1 as torch has it, −1 for `[n, tokens, vocabulary]`.
        select: from what the model returns to what the loss sees; without it, the one float tensor
            or `.logits`.
        tolerance: standard error wanted for every channel, as a share of its trace; 0 is exact.
        effort: rows to send backward at most, as a multiple of the number of rows (in expectation).
        edges: whether to measure the inputs of layers as well: by "channel" (True), by "token" (all
            positions of a sample, rows first), as one number a "tensor", or not at all (False).
            The trace is that of the activation itself, whichever layers consume it.
        kind: "gauss-newton"; or "auto" to compare it with the Hessian of the loss besides, by one
            product of each a layer: `details["hessian_differs"]` names the layers where the two
            differ by more than a tenth, for which :func:`bitwright.curvature.hutchinson` measures
            the Hessian itself. For the KL to the model itself there is no difference.
        chunk: rows in a pass, which bounds the memory.
        seed: of what is left to chance.
        progress: called with the finished fraction.

    Returns:
        A :class:`~bitwright.Sensitivity`: for each weight (named as its parameter, without
        `.weight`) an :class:`~bitwright.Estimate` over its output channels, for each edge
        (`<layer>.input`) one over its channels (tokens); both in units of the loss. Its details
        name unused and frozen parameters (the latter are measured all the same).

    Raises:
        BitwrightError: a loss without a positive semi-definite Λ; a model that answers differently
            when asked again or mixes the samples of a batch; data that does not fit; a model in
            `DistributedDataParallel` or FSDP1, or that makes DTensors of its activations.
    """
    if not 0 <= tolerance < 1:
        raise BitwrightError(f"tolerance {tolerance} is not in [0, 1)")
    if kind not in ("gauss-newton", "auto"):
        raise BitwrightError(f"kind {kind!r} is unknown; use gauss-newton or auto")
    grain = edges if isinstance(edges, str) else "channel" if edges else ""
    if grain not in ("", "channel", "token", "tensor"):
        raise BitwrightError(f"edges {edges!r} is unknown; use channel, token or tensor")
    batches = read(data)
    with unsharded(model):
        subject = ModuleSubject(model, batches, loss, class_axis, select, grain)
        if not subject.weights:
            raise BitwrightError("the model uses no parameters; there is nothing to measure")
        found, details = measure(
            subject,
            subject.hessian(max(chunk, 128)),
            subject.channels,
            tolerance,
            effort,
            chunk,
            seed,
            progress or (lambda f: None),
        )
        if kind == "auto":
            found_apart = compare(
                model, batches, loss, class_axis=class_axis, select=select, chunk=chunk, seed=seed
            )
            details["hessian_differs"] = told(found_apart)
    for name, names in (
        ("unused", subject.unused), ("frozen", subject.frozen), ("one_by_one", subject.loose)
    ):  # fmt: skip
        details[name] = ", ".join(names)
    layers = {
        k.removeprefix("layer:").removesuffix(".weight"): v
        for k, v in found.items()
        if k.startswith("layer:")
    }
    found_edges = {k.removeprefix("edge:"): v for k, v in found.items() if k.startswith("edge:")}
    return Sensitivity("gauss-newton", layers, found_edges, details=details)
