"""`convert`: what was trained as files, checked in the runtime before anybody relies on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.fx import Node

from bitwright.deploy import onnx_sealed, runtime
from bitwright.errors import BitwrightError
from bitwright.multibit import artefact, onnx_file
from bitwright.multibit.activations import Chain, chains
from bitwright.multibit.net import Multibit
from bitwright.multibit.stored import Stored, stored
from bitwright.network import join, run

#: of logits, as a share of the largest
TOLERANCE = 1e-5
#: what counts as the largest where all are zero
_TINY = 1e-30


def convert(net: Multibit, out: str | Path, metadata: Mapping[str, Any] | None = None) -> Stored:
    """Write `model.safetensors` and `model.onnx` of a trained net.

    Args:
        net: left as it is.
        out: folder, made if it is not there.
        metadata: JSON kept in the artefact (preprocessing, say).

    Returns:
        The network as the files compute it, read back from the artefact.

    Raises:
        BitwrightError: the training diverged, the graph cannot be stored, or onnxruntime does not
            answer what the artefact does.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    made = stored(net)
    artefact.save(made, folder / "model.safetensors", metadata or {})
    onnx_file.save(made, folder / "model.onnx")
    found = artefact.load(folder / "model.safetensors")
    off = disagreement(found, folder / "model.onnx", net.example)
    if not off <= TOLERANCE:
        raise BitwrightError(
            f"{folder / 'model.onnx'} answers {off:.2g} away from the artefact in onnxruntime; at "
            f"most {TOLERANCE:g} was expected: keep model.safetensors alone, and report it"
        )
    return found


def disagreement(found: Stored, path: Path, x: Tensor) -> float:
    """The largest difference of the ONNX file's answers, as a share of the largest answer.

    Where activations have bases, no two runtimes agree from end to end: float sums that differ in
    the last bit lie on two sides of a middle now and then. So each layer is fed what the runtime's
    own cut it to, which must be one of the coordinates' values, and as near as any to what is
    computed here, up to the same share of the tensor's largest number. Infinite where an answer of
    either is not finite.
    """
    cuts = chains(found.network)
    theirs: dict[Node, Tensor] = {}
    if cuts:
        model = onnx_sealed.read(path).model
        for cut in cuts:
            value = onnx.helper.make_tensor_value_info(
                f"{cut.last.name}.q", onnx.TensorProto.FLOAT, None
            )
            model.graph.output.append(value)
        session = runtime.session(model.SerializeToString(), threads=1)
    else:
        session = runtime.session(path, threads=1)
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for cut, value in zip(reversed(cuts), reversed(got), strict=False):
        theirs[cut.last] = torch.from_numpy(np.array(value))
    wanted, off = _followed(found, cuts, theirs, x)
    logits = got[: len(got) - len(cuts)]
    flat = np.concatenate([np.asarray(g).reshape(len(x), -1) for g in logits], 1)
    return max(off, _share(torch.from_numpy(flat) - wanted.reshape(len(x), -1), wanted))


def _share(off: Tensor, whole: Tensor) -> float:
    """The largest of `off` over the largest of `whole`; infinite where that is no number."""
    found = float(off.abs().max() / whole.abs().max().clamp(min=_TINY))
    return found if math.isfinite(found) else math.inf  # max() would pass a NaN by


def _followed(
    found: Stored, cuts: Sequence[Chain], theirs: Mapping[Node, Tensor], x: Tensor
) -> tuple[Tensor, float]:
    """Answers from the runtime's own activations, and how far these are from nearest values."""
    sources = {cut.source for cut in cuts}
    by_last = {cut.last: cut for cut in cuts}
    kept: dict[Node, Tensor] = {}
    off = 0.0

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal off
        value = node.target(*args, **kwargs)  # type: ignore[operator]
        if node in by_last:
            cut, given = by_last[node], theirs[node]
            x = kept[cut.source]
            more = _share((x - given).abs() - (x - value).abs(), x)
            known = bool(torch.isin(given, torch.tensor(cut.values)).all())
            off = max(off, more if known else math.inf)
            value = given
        if node in sources:
            kept[node] = value
        return value

    with torch.no_grad():
        return join(run(found.network.module, x, call)), off
