"""Pruning: HAP with least-squares refits and implants, beside torch-pruning's importances.

Parts (`--only`): equal, kl, latency, lenet, vgg, fashion, resnet20, resnet44, heads. Every finished
figure of a part is kept in `$BITWRIGHT_PRUNE_CACHE` (default: the folder of temporary files), so
that a killed part goes on. MNIST and CIFAR-10 come from the data folder, Fashion-MNIST is embedded
(1,000 images to train on, 1,000 to judge on); `heads` needs what `examples/finetune_minilm_sst2.py`
writes.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import networks
import prune_heads
import prune_networks
import prune_plot
import torch
from harness import Rows
from prune_methods import OURS, PEERS, Bench, cut, finetuned, judged, outputs

from bitwright.demo import data as demo_data
from bitwright.demo import network as demo_network
from bitwright.deploy import runtime
from bitwright.pipeline.prune import _export
from bitwright.prune import masked, pruned
from bitwright.train import augment

CACHE = Path(os.environ.get("BITWRIGHT_PRUNE_CACHE", tempfile.gettempdir()))
#: methods that are fine-tuned, in the order in which they are measured
TUNED = ("HAP", *PEERS, "HAP, implant", "HAP, implant from zero")
#: seeds of fine-tunings; fewer, by the environment, where time is short: more can follow later
SEEDS = int(os.environ.get("BITWRIGHT_PRUNE_SEEDS", "3"))
#: rows that fine-tuning sees once, in steps of 32
TUNING_ROWS = 1000


#: what was measured under a key before, or what is measured now
kept = partial(harness.kept, CACHE / "bitwright-prune.jsonl")


def tensors(arrays: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


def resnet20() -> Bench:
    """The shortcut without parameters pads channels, so the stream of the blocks stays whole."""
    return Bench.of("ResNet-20", networks.resnet20(), tensors(networks.cifar10()), ["conv1"])


def resnet44() -> Bench:
    return Bench.of("ResNet-44", networks.resnet44(), tensors(networks.cifar10()), ["conv1"])


def fashion() -> Bench:
    return Bench.of("Fashion-MNIST", demo_network(), tensors(demo_data()))


def equal(rows: Rows, quick: bool) -> None:
    """Pruned and masked networks in float64."""
    for bench in (fashion(),) if quick else (fashion(), resnet20()):
        edit = bench.coupling.edit({g.name: range(0, g.units, 2) for g in bench.coupling.groups})
        model, x = bench.model.double(), bench.test_x[:64].double()
        wanted = outputs(masked(model, edit), x)
        error = float((outputs(pruned(model, edit), x) - wanted).abs().max() / wanted.abs().max())
        bench.model.float()
        rows.add(f"pruned - masked, {bench.name}, float64", error, "<= 1e-12", error <= 1e-12)


def kl(rows: Rows, quick: bool) -> None:
    """KL to float at 30 % of parameters removed, before any fine-tuning."""
    for make in (fashion,) if quick else (fashion, resnet20):
        bench = make()
        found = {
            method: kept(f"kl {bench.name} {method}", lambda b=bench, m=method: _lost(b, m, 0.7))
            for method in (*OURS, *PEERS)
        }
        peer = min(PEERS, key=lambda m: found[m]["kl"])
        for method, values in found.items():
            ours = method == "HAP"
            ratio = values["kl"] / found[peer]["kl"]
            rows.add(
                f"KL at 30 % removed, {bench.name}, {method}", values["kl"],
                "<= 0.7x of the best of torch-pruning's" if ours else "",
                ratio <= 0.7 if ours else None, peer, found[peer]["kl"], ratio=round(ratio, 3),
                stderr=values["stderr"], accuracy=values["accuracy"],
            )  # fmt: skip


def _lost(bench: Bench, method: str, share: float) -> dict[str, float]:
    module = cut(bench, method, share * bench.sizes.whole["parameters"])
    lost, right = judged(bench, module)
    return {
        "kl": float(lost.mean()),
        "stderr": float(lost.std() / math.sqrt(len(lost))),
        "accuracy": float(right.mean()),
        "parameters": sum(p.numel() for p in module.parameters()),
    }


def _trained(bench: Bench, method: str, share: float, seed: int, changes: Any) -> dict[str, Any]:
    begin = time.process_time()
    module = cut(bench, method, share * bench.sizes.whole["parameters"])
    cutting = time.process_time() - begin
    before = float(judged(bench, module)[0].mean())
    begin = time.process_time()
    module = finetuned(bench, module, TUNING_ROWS, seed, changes)
    spent = time.process_time() - begin
    lost, right = judged(bench, module)
    return {
        "right": right.int().tolist(), "kl": float(lost.mean()), "kl before": before,
        "cpu_s": round(spent, 1), "cut cpu_s": round(cutting, 1),
        "parameters": sum(p.numel() for p in module.parameters()),
    }  # fmt: skip


def _tuned(rows: Rows, make: Callable[[], Bench], seeds: int, changes: Any, quick: bool) -> None:
    """Accuracy at 50 % and 70 % removed after the same short fine-tuning."""
    whole = make()
    for share in (0.5, 0.3):
        found: dict[str, list[dict[str, Any]]] = {m: [] for m in TUNED}
        for seed in range(1 if quick else seeds):
            bench = whole.reseeded(seed) if seed else whole
            for method in TUNED:
                if method != "HAP" and "implant" in method and share == 0.5:
                    continue
                version = 2 + (method == "HAP, implant")
                key = f"tuned {version} {bench.name} {share} {method} {seed} {TUNING_ROWS}"
                work = partial(_trained, bench, method, share, seed, changes)
                found[method].append(kept(key, work))
        _compare(rows, whole.name, 1 - share, {m: v for m, v in found.items() if v})


def _compare(rows: Rows, name: str, gone: float, found: dict[str, list[dict[str, Any]]]) -> None:
    """Rows of one network and level: each method, paired by image and seed with HAP."""
    ours = _right(found["HAP"])
    means = {m: float(_right(v).mean()) for m, v in found.items()}
    best = max((m for m in found if m in PEERS), key=lambda m: means[m])
    for method, runs in found.items():
        difference = (ours - _right(runs)).mean(0)  # by image: seeds share the images
        stderr = float(difference.std() / math.sqrt(len(difference)))
        bar = holds = None
        if method == "HAP":
            bar, holds = "highest", means["HAP"] > means[best]
        elif method == "HAP, implant":
            bar, holds = "no implant's at least", means[method] >= means["HAP"]
        rows.add(
            f"accuracy, {name}, {gone:.0%} removed, {method}", means[method], bar or "", holds,
            best, means[best], below_ours=round(float(difference.mean()), 4),
            paired_stderr=round(stderr, 4), seeds=len(runs),
            kl=round(sum(r["kl"] for r in runs) / len(runs), 4),
            kl_before=round(sum(r["kl before"] for r in runs) / len(runs), 4),
            cpu_s=max(r["cpu_s"] for r in runs), parameters=runs[0]["parameters"],
        )  # fmt: skip


def _right(runs: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([r["right"] for r in runs], dtype=torch.float64)


def latency(rows: Rows, quick: bool) -> None:
    """The float ONNX file at half of the multiply-accumulates, one image, one thread."""
    for make in (fashion,) if quick else (fashion, resnet20):
        bench = make()
        bound = 0.5 * bench.sizes.whole["macs"]
        modules = [cut(bench, "HAP, no refit", bound, "macs", k) for k in (16, 1)]
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{name}.onnx" for name in ("dense", "blocks", "any")]
            for one, path in zip((bench.model, *modules), paths, strict=True):
                _export(one, bench.x, path)
            dense, *small = runtime.latencies(paths, bench.x[:1])
        for name, seconds in zip(("in blocks of 16", "any number stays"), small, strict=True):
            bar = name == "in blocks of 16"
            rows.add(
                f"latency at 50 % of the MACs, {bench.name}, {name}", seconds / dense,
                "<= 0.7x of the dense" if bar else "", seconds <= 0.7 * dense if bar else None,
                "dense, ms", 1000 * dense, ms=round(1000 * seconds, 4),
            )  # fmt: skip


def _curves(rows: Rows, bench: Bench, quick: bool) -> None:
    """Accuracy against parameters for every method, after the same fine-tuning; a plot."""
    found: dict[str, list[tuple[float, float]]] = {}
    for share in (0.5, 0.1) if quick else (0.7, 0.5, 0.3, 0.2, 0.1):
        for method in ("HAP", "HAP, implant", *PEERS):
            version = 2 + (method == "HAP, implant")
            key = f"curve {version} {bench.name} {share} {method} {TUNING_ROWS}"
            one = kept(key, lambda m=method, s=share: _trained(bench, m, s, 0, None))
            accuracy = sum(one["right"]) / len(one["right"])
            found.setdefault(method, []).append((share, accuracy))
            rows.add(f"accuracy, {bench.name}, {1 - share:.0%} removed, {method}", accuracy,
                     kl=round(one["kl"], 4), kl_before=round(one["kl before"], 4))  # fmt: skip
    dense = float(judged(bench, bench.model)[1].mean())
    rows.add(f"accuracy, {bench.name}, whole", dense)
    if not quick:
        prune_plot.curves(bench.name, found, dense)


PARTS = {
    "equal": equal,
    "kl": kl,
    "latency": latency,
    "lenet": lambda rows, quick: _curves(rows, prune_networks.lenet(CACHE), quick),
    "fashion": lambda rows, quick: _tuned(rows, fashion, SEEDS, augment.parse("flip"), quick),
    "resnet20": lambda rows, quick: _tuned(
        rows, resnet20, SEEDS, augment.parse("flip,crop4"), quick
    ),
    "resnet44": lambda rows, quick: _tuned(rows, resnet44, 1, augment.parse("flip,crop4"), quick),
    "vgg": lambda rows, quick: _curves(rows, prune_networks.vgg(CACHE), quick),
    "heads": prune_heads.heads,
}

if __name__ == "__main__":
    harness.run("prune", __doc__ or "", PARTS)
