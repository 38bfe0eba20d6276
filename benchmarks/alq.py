"""Multi-bit networks (ALQ): beside float, beside uniform grids trained alike, and their kernel.

Parts (`--only`): lenet, stretch, fashion, resnet20, curvature, activations, kernels, choice. What
is trained is kept in `$BITWRIGHT_ALQ_CACHE` (default: the folder of temporary files), and its state
after each epoch, so that a killed part goes on. MNIST and CIFAR-10 come from the data folder,
Fashion-MNIST as `alq_networks.py` says. `$BITWRIGHT_ALQ_SEEDS` (3) and `$BITWRIGHT_ALQ_BITS` (2,1;
of `resnet20`) may be fewer where time is short, as may `$BITWRIGHT_ALQ_EPOCHS` (24; of each of its
methods): more can follow later.
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import alq_rivals
import harness
import torch
from alq_choice import choice
from alq_kernels import kernels
from alq_networks import (
    TEMPERATURE,
    Case,
    accuracy,
    answers,
    embedded,
    lenet,
    resnet20,
    softened,
    vgg,
)
from harness import Rows
from safetensors.numpy import load_file
from torch import Tensor

from bitwright.curvature.divergence import per_sample
from bitwright.deploy import artefact
from bitwright.deploy.rebuild import STREAMS
from bitwright.multibit import Recipe, convert, float_weights, prepare, train
from bitwright.multibit.files import disagreement
from bitwright.multibit.train import CURVATURES
from bitwright.quantize import simulate

CACHE = Path(os.environ.get("BITWRIGHT_ALQ_CACHE", tempfile.gettempdir()))
SEEDS = int(os.environ.get("BITWRIGHT_ALQ_SEEDS", "3"))
BITS = [int(b) for b in os.environ.get("BITWRIGHT_ALQ_BITS", "2,1").split(",")]
#: epochs of every method on ResNet-20
EPOCHS = int(os.environ.get("BITWRIGHT_ALQ_EPOCHS", "24"))
kept = partial(harness.kept, CACHE / "bitwright-alq.jsonl")


def multibit(
    case: Case,
    recipe: Recipe,
    key: str,
    size: int,
    most: int,
    labels: bool = False,
    activation_bases: int = 0,
    from_float: bool = False,
) -> dict[str, Any]:
    """Train, write, and judge what was written."""
    x, y = case.arrays["train_x"], case.arrays["train_y"]
    net = prepare(case.model, x[:256], size=size, most=most, activation_bases=activation_bases)
    learn: dict[str, Any] = {} if labels else {"loss": softened, "teacher": case.model}
    recipe = recipe if labels else replace(recipe, temperature=TEMPERATURE)
    history = train(net, x, y if labels else None, recipe, augment=case.augment,
                    checkpoint=CACHE / f"alq-{key}.safetensors",
                    floats=float_weights(case.model, net) if from_float else None,
                    progress=lambda line: print(line, flush=True), **learn)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found = convert(net, folder)
        path = Path(folder) / "model.safetensors"
        tensors = load_file(path)
        weights = sum(tensors[name].nbytes for name in ("counts", "alpha", "signs"))
        onnx = Path(folder) / "model.onnx"
        off = disagreement(found, onnx, case.arrays["test_x"][:256])
        sizes = {"bytes": path.stat().st_size, "onnx": onnx.stat().st_size}
    judged = _judged(case, lambda rows: answers(found.network.module, rows))
    return {**sizes, **judged, "weight_bytes": weights, "bits": found.average_bits, "off": off,
            "by_epoch": [round(h["bits"], 4) for h in history],
            "what": [h["what"] for h in history]}  # fmt: skip


def rival(case: Case, method: str, bits: int, epochs: int, seed: int, key: str) -> dict[str, Any]:
    """Train uniform grids, write them, and judge what was written."""
    model = alq_rivals.student(case, bits, method)
    path = CACHE / f"alq-{key}.safetensors"
    losses = alq_rivals.train(model, case, epochs, seed, checkpoint=path)
    quantized = alq_rivals.stored(model, case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        artefact.save(quantized, path, {})
        tensors, size = load_file(path), path.stat().st_size
        quantized = artefact.load(path).quantized
    names = {"grid", "scale", *STREAMS.values()} & tensors.keys()
    weights = sum(tensors[name].nbytes for name in names)
    judged = _judged(case, lambda rows: simulate(quantized, rows))
    return {**judged, "bytes": size, "weight_bytes": weights, "losses": losses,
            "bits": 8 * weights / quantized.network.weights}  # fmt: skip


def _judged(case: Case, answer: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Which test images are right, the mean KL to float, and accuracy on shifted images."""
    found, wanted = answer(case.arrays["test_x"]), case.answers(case.arrays["test_x"])
    lost = per_sample(wanted, found, "kl")
    judged: dict[str, Any] = {
        "right": (found.argmax(1) == case.arrays["test_y"]).int().tolist(),
        "kl": float(lost.mean()),
    }
    if "shifted_x" in case.arrays:
        y = case.arrays["shifted_y"]
        judged["shifted"] = (answer(case.arrays["shifted_x"]).argmax(1) == y).int().tolist()
    return judged


def lenet_at(rows: Rows, quick: bool, bits: float, most_bits: float, least: float) -> None:
    case = lenet(CACHE, quick)
    recipe = Recipe(bits=bits, loops=3, straight=3, final=1)
    if quick:
        recipe = Recipe(bits=bits, loops=2, straight=1, final=1)
    key, name = f"lenet5-{bits}{'-quick' if quick else ''}", f"{case.name}, {bits} bits"
    found = _once(quick, key, lambda: multibit(case, recipe, key, 50, 4, labels=True))
    ours, whole = _float_and_ours(case, found)
    rows.add(f"bits a weight, {name}", found["bits"], f"<= {most_bits}", found["bits"] <= most_bits)
    rows.add(f"bytes of the artefact, {name}", found["bytes"], "<= 22,700",
             found["bytes"] <= 22700, onnx=found["onnx"])  # fmt: skip
    rows.add(f"accuracy, {name}", ours, f">= {least}", ours >= least, "float", whole)
    _files(rows, name, found)


def fashion(rows: Rows, quick: bool) -> None:
    """A quarter-width VGG at 0.70 stored bits a weight or less, within a point of float."""
    case = vgg(CACHE, quick)
    recipe = Recipe(bits=0.68, loops=3, straight=3, final=1)
    if quick:
        recipe = Recipe(bits=0.68, loops=1, straight=1, final=0)
    key, name = f"vgg-{len(case.arrays['train_x'])}{'-quick' if quick else ''}", case.name
    found = _once(quick, key, lambda: multibit(case, recipe, key, 64, 4))
    ours, whole = _float_and_ours(case, found)
    right = torch.tensor(found["right"]).double()
    own = (case.answers(case.arrays["test_x"]).argmax(1) == case.arrays["test_y"]).double()
    stderr = 100 * float((right - own).std() / math.sqrt(len(right)))
    rows.add(f"bits a weight, {name}", found["bits"], "<= 0.70", found["bits"] <= 0.70,
             bytes=found["bytes"], onnx=found["onnx"])  # fmt: skip
    rows.add(f"accuracy, {name}", ours, "within 1.0 of float", ours >= whole - 1.0, "float", whole,
             paired_stderr=round(stderr, 3), kl=round(found["kl"], 5))  # fmt: skip
    _files(rows, name, found)


def _float_and_ours(case: Case, found: dict[str, Any]) -> tuple[float, float]:
    whole = accuracy(case.answers(case.arrays["test_x"]), case.arrays["test_y"])
    return 100 * sum(found["right"]) / len(found["right"]), whole


def _files(rows: Rows, name: str, found: dict[str, Any]) -> None:
    off = found["off"]
    rows.add(f"onnxruntime - artefact, {name}", off, "<= 1e-5", off <= 1e-5)
    rows.add(f"bits by epoch, {name}", None, bits=found["by_epoch"], what=found["what"])


def _once(quick: bool, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Kept when done; a quick run is not."""
    if not quick:
        return dict(kept(key, make))
    (CACHE / f"alq-{key}.safetensors").unlink(missing_ok=True)
    return make()


def recipe_of(bits: float, epochs: int, seed: int) -> Recipe:
    """Of ResNet-20: as many epochs as its rivals have; a loop of pruning, then the float copy."""
    final = 1 if epochs > 2 else 0
    return Recipe(
        bits=bits, loops=1, bases=0, coordinates=0, straight=epochs - 1 - final, final=final,
        straight_rate=2e-2, seed=seed,
    )  # fmt: skip


def compared(rows: Rows, quick: bool) -> None:
    """ResNet-20 at 2 and 1 stored bits a weight: multi-bit, straight-through, learned steps."""
    case = resnet20(CACHE, quick)
    epochs, seeds = (3, 1) if quick else (EPOCHS, SEEDS)
    for bits in BITS[:1] if quick else BITS:
        found: dict[str, list[dict[str, Any]]] = {}
        for seed in range(seeds):
            tag = f"{bits}-{seed}-{epochs}{'-quick' if quick else ''}"
            for method in ("multi-bit", *alq_rivals.METHODS):
                key = f"resnet20-{method}-{tag}"
                if method == "multi-bit":
                    recipe = recipe_of(bits, epochs, seed)
                    work = partial(multibit, case, recipe, key, 144, 4, from_float=True)
                else:
                    work = partial(rival, case, method, bits, epochs, seed, key)
                found.setdefault(method, []).append(_once(quick, key, work))
        compare(rows, f"{case.name}, {bits} bits, {epochs} epochs", found, bits)
    whole = accuracy(case.answers(case.arrays["test_x"]), case.arrays["test_y"])
    more = {}
    if "shifted_x" in case.arrays:
        shifted = case.answers(case.arrays["shifted_x"])
        more["jpeg"] = round(accuracy(shifted, case.arrays["shifted_y"]), 2)
    rows.add(f"accuracy, {case.name}, float", whole, **more)


def compare(rows: Rows, name: str, found: dict[str, list[dict[str, Any]]], bits: float) -> None:
    """Rows of one width: accuracy over seeds, bytes, and differences paired by image."""
    ours = found["multi-bit"]
    means = {m: 100 * float(_right(runs).mean()) for m, runs in found.items()}
    for method, runs in found.items():
        more: dict[str, Any] = {}
        bar, holds, peer, value = "", None, "", None
        if method == "multi-bit":
            most = max(r["bits"] for r in runs)
            bar, holds = f"<= {bits} stored bits", most <= bits
        else:
            peer, value = "multi-bit", means["multi-bit"]
            strict = method == "straight-through"
            bar = "below multi-bit's" if strict else "at most multi-bit's"
            holds = means[method] < value if strict else means[method] <= value
            holds = holds and _most(ours) <= min(r["weight_bytes"] for r in runs)
            for what in ("right", "shifted"):
                if what in runs[0]:
                    gain, stderr = _paired(ours, runs, what)
                    more |= {f"multi-bit's gain, {what}": gain, f"stderr, {what}": stderr}
        if "shifted" in runs[0]:
            more["jpeg"] = round(100 * float(_right(runs, "shifted").mean()), 2)
        rows.add(
            f"accuracy, {name}, {method}", means[method], bar, holds, peer, value,
            seeds=len(runs), kl=round(sum(r["kl"] for r in runs) / len(runs), 4),
            weight_bytes=_most(runs), bytes=max(r["bytes"] for r in runs),
            bits=round(max(r["bits"] for r in runs), 4),
            each=[round(100 * sum(r["right"]) / len(r["right"]), 2) for r in runs], **more,
        )  # fmt: skip


def curvature(rows: Rows, quick: bool) -> None:
    """The embedded network pruned by AMSGrad's statistics and by Gauss-Newton's, same epochs."""
    case = embedded(CACHE, quick)
    for bits in (1.0,) if quick else (2.0, 1.0, 0.7):
        found: dict[str, list[dict[str, Any]]] = {}
        for seed, kind in itertools.product(range(1 if quick else SEEDS), CURVATURES):
            recipe = Recipe(bits=bits, loops=2, batch=32, curvature=kind, seed=seed)
            if quick:
                recipe = replace(recipe, loops=1, straight=0, final=0)
            key = f"embedded-{kind}-{bits}-{seed}{'-quick' if quick else ''}"
            work = partial(multibit, case, recipe, key, 64, 6)
            found.setdefault(kind, []).append(_once(quick, key, work))
        ours, theirs = (found[kind] for kind in reversed(CURVATURES))
        kl, peer = ([r["kl"] for r in runs] for runs in (ours, theirs))
        gain, stderr = _paired(ours, theirs, "right")
        rows.add(
            f"KL to float, {case.name}, {bits} bits, gauss-newton", sum(kl) / len(kl), "", None,
            "amsgrad", sum(peer) / len(peer), ratio=round(sum(kl) / sum(peer), 3), each=kl,
            peer_each=peer, bits=max(r["bits"] for r in ours), accuracy_gain=gain, stderr=stderr,
        )  # fmt: skip


def activations(rows: Rows, quick: bool) -> None:
    """LeNet-5 of 0.36 stored bits a weight with 1, 2 and 3 binary bases of activations."""
    case = lenet(CACHE, quick)
    recipe = Recipe(bits=0.36, loops=3, straight=3, final=1)
    if quick:
        recipe = Recipe(bits=0.36, loops=1, straight=0, final=1)
    for count in (2,) if quick else (1, 2, 3):
        key = f"lenet5-0.36-{count}{'-quick' if quick else ''}"
        work = partial(multibit, case, recipe, key, 50, 4, True, count)
        found = _once(quick, key, work)
        ours, whole = _float_and_ours(case, found)
        rows.add(f"accuracy, {case.name}, {count} bases of activations", ours, "", None, "float",
                 whole, bits=round(found["bits"], 4), bytes=found["bytes"])  # fmt: skip
        _files(rows, f"{case.name}, {count} bases of activations", found)


def _most(runs: list[dict[str, Any]]) -> int:
    return max(int(r["weight_bytes"]) for r in runs)


def _right(runs: list[dict[str, Any]], what: str = "right") -> Tensor:
    return torch.tensor([r[what] for r in runs], dtype=torch.float64)


def _paired(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], what: str
) -> tuple[float, float]:
    """Mean difference in points and its error over images, seeds averaged first."""
    difference = 100 * (_right(ours, what).mean(0) - _right(theirs, what).mean(0))
    stderr = float(difference.std() / math.sqrt(len(difference)))
    return round(float(difference.mean()), 3), round(stderr, 3)


PARTS = {
    # at most 22.7 KB, biases and program too, at 99.1 %; the stretch: at most 0.25 bits at 99.0 %
    "lenet": lambda rows, quick: lenet_at(rows, quick, 0.36, 0.40, 99.1),
    "stretch": lambda rows, quick: lenet_at(rows, quick, 0.245, 0.25, 99.0),
    "fashion": fashion,
    "resnet20": compared,
    "curvature": curvature,
    "activations": activations,
    "kernels": kernels,
    "choice": lambda rows, quick: choice(rows, quick, CACHE),
}

if __name__ == "__main__":
    harness.run("alq", __doc__ or "", PARTS)
