"""KL of channels', layers' and uniform plans at equal bits of weights. A part of `search.py`.

Four networks, 2, 2.5, 3 and 4 mean bits, weights only, plain rounding with the affine correction;
channels and layers by two scores, a layer's being the sum over its channels. Judged on images that
neither measuring nor correcting has seen, in two ways:

- the KL on the test images: 517 for CIFAR-10; of the 500 images for ImageNet one half calibrates
  and the other half judges;
- the KL softened as the search's reward is (docs/decisions/0004-reward.md): on 2,048 unseen
  training images for CIFAR-10, on the judging half for ImageNet.

Uniform plans have whole bits: within 2.5 bits it is the plan of 2. Ratios to uniform are therefore
averaged over 2, 3 and 4 bits alone. A reversal is a mean KL larger than that of the coarser plan by
more than two standard errors of the difference, image by image.

`equal_bytes` rounds to nearest; `feedback` rounds with error feedback and prices what that leaves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import harness
import main_job
import mcunet
import networks
import numpy as np
from scores import BUDGETS, Scene
from torch import Tensor, nn

from bitwright import allocate, quantize
from bitwright.allocate import Plan
from bitwright.curvature.divergence import per_sample
from bitwright.pipeline.bench import REWARD_TEMPERATURE

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, np.ndarray]]]] = {
    "ResNet-20": (networks.resnet20, networks.cifar10),
    "ResNet-44": (networks.resnet44, networks.cifar10),
    "MCUNet": (mcunet.mcunet, mcunet.imagenet),
    "MobileNetV2": (networks.mobilenet_v2, networks.imagenet),
}
SCORES = ("trace", "actual-error")
FEEDBACK = "feedback"
#: temperature of each way to judge
WAYS = {"KL": 1.0, "softened KL": REWARD_TEMPERATURE}
#: bars of the geometric means
CHANNELS_BAR, LAYERS_BAR = 0.80, 0.75

#: network, mean bits, score, method, way to judge -> KL of each image
Found = dict[tuple[str, float, str, str, str], Tensor]


def plans(scene: Scene, score: Mapping[str, np.ndarray], budget: int) -> dict[str, Plan]:
    """Each method's plan within a budget in bits."""
    problem = quantize.channel_problem(
        scene.network, scene.run.sensitivity, scene.bench.tables, budget, score=score
    )
    return {
        "channels": allocate.knapsack(problem),
        "layers": allocate.layers(problem, quantize.layer_ties(scene.network)),
        "uniform": allocate.uniform(problem),
    }


def judged(scene: Scene, plan: Plan) -> dict[str, Tensor]:
    """KL of each image of the corrected plan, in each way."""
    built = scene.bench.build(plan)
    last = "unseen" if "unseen" in scene.judges else "test"
    images = {"KL": "test", "softened KL": last}
    answers = {n: quantize.simulate(built, scene.judges[n]) for n in set(images.values())}
    return {
        way: soft**2 * per_sample(scene.targets[n] / soft, answers[n] / soft, "kl")
        for (way, soft), n in zip(WAYS.items(), images.values(), strict=True)
    }


def equal_bytes(rows: harness.Rows, quick: bool) -> None:
    """Rounded to nearest: channels over layers, layers over uniform, one score over the other."""
    found = _compared(rows, quick, SCORES, "nearest")
    for score in SCORES:
        _means(rows, found, score, quick)
    _scores(rows, found)


def feedback(rows: harness.Rows, quick: bool) -> None:
    """Rounded with error feedback: channels are still ahead of layers."""
    found = _compared(rows, quick, (FEEDBACK,), FEEDBACK)
    _means(rows, found, FEEDBACK, quick)


def _compared(rows: harness.Rows, quick: bool, scores: tuple[str, ...], rounding: str) -> Found:
    """One row for each network, budget and score."""
    found: Found = {}
    budgets = BUDGETS[-1:] if quick else BUDGETS
    for name, (model, data) in list(NETWORKS.items())[: 1 if quick else None]:
        with tempfile.TemporaryDirectory() as folder:
            few = {"calibration": 64, "unseen": 64} if quick else {}
            scene = Scene(Path(folder), model, data, **few)
            scene.bench.rounding = rounding
            _network(rows, found, name, scene, budgets, scores)
    return found


def _network(
    rows: harness.Rows,
    found: Found,
    name: str,
    scene: Scene,
    budgets: tuple[float, ...],
    scores: tuple[str, ...],
) -> None:
    losses = {
        score: quantize.channel_losses(
            score, scene.network, scene.run.sensitivity, scene.bench.tables, rows=scene.rows
        )
        for score in scores
    }
    known: dict[bytes, dict[str, Tensor]] = {}
    for bits in budgets:
        for score, loss in losses.items():
            chosen = plans(scene, loss, int(bits * scene.network.weights))
            for method, plan in chosen.items():
                if plan.key not in known:
                    known[plan.key] = judged(scene, plan)
                for way, kl in known[plan.key].items():
                    found[name, bits, score, method, way] = kl
            used = {m: round(p.cost / scene.network.weights, 4) for m, p in chosen.items()}
            _row(rows, found, (name, bits, score), used)


def _row(
    rows: harness.Rows, found: Found, case: tuple[str, float, str], used: dict[str, float]
) -> None:
    name, bits, score = case
    more = {}
    for way in WAYS:
        kl = {m: found[(*case, m, way)] for m in used}
        short = way.replace(" KL", "").lower()
        more[short] = {m: round(float(v.mean()), 5) for m, v in kl.items()}
        pairs = {
            "channels - layers": kl["channels"] - kl["layers"],
            "layers - uniform": kl["layers"] - kl["uniform"],
        }
        more[f"{short}_differences"] = {
            k: [round(float(d.mean()), 5), round(main_job.stderr(d), 5)] for k, d in pairs.items()
        }
    rows.add(
        f"KL, {name}, {bits} mean bits, channels by {score}",
        more["kl"]["channels"],
        "<= layers <= uniform to two standard errors, softened too",
        not reversals(found, case),
        f"layers by {score}",
        more["kl"]["layers"],
        mean_bits=used,
        images={w: len(found[(*case, "channels", w)]) for w in WAYS},
        **more,
    )


def reversals(found: Found, case: tuple[str, float, str]) -> list[str]:
    """Where a finer plan is worse than a coarser one by more than two standard errors."""
    worse = []
    for way in WAYS:
        for fine, coarse in (("channels", "layers"), ("layers", "uniform")):
            moved = found[(*case, fine, way)] - found[(*case, coarse, way)]
            if float(moved.mean()) > 2 * main_job.stderr(moved):
                worse.append(f"{case[0]}, {case[1]} bits, {fine} > {coarse}, {way}")
    return worse


def ratios(
    found: Found, above: tuple[str, str], below: tuple[str, str], way: str, whole: bool
) -> dict[str, float]:
    """Geometric means over budgets of a (score, method) to another: for each network, and all.

    Args:
        found: KL of each image.
        above, below: score and method.
        way: to judge.
        whole: over whole bits alone.
    """
    logs: dict[str, list[float]] = {}
    for name, bits in dict.fromkeys(k[:2] for k in found):
        if not whole or bits == int(bits):
            mean = [float(found[(name, bits, *which, way)].mean()) for which in (above, below)]
            logs.setdefault(name, []).append(float(np.log(mean[0] / mean[1])))
    means = {name: float(np.exp(np.mean(values))) for name, values in logs.items()}
    return {**means, "all": float(np.exp(np.mean([v for vs in logs.values() for v in vs])))}


def _means(rows: harness.Rows, found: Found, score: str, quick: bool) -> None:
    channels, layers = (1.0, None) if score == FEEDBACK else (CHANNELS_BAR, LAYERS_BAR)
    for fine, coarse, bar, whole in (
        ("channels", "layers", channels, False),
        ("layers", "uniform", layers, True),
        ("channels", "uniform", None, True),
    ):
        for way in WAYS:
            means = ratios(found, (score, fine), (score, coarse), way, whole)
            value = means.pop("all")
            budgets = dict.fromkeys(k[1] for k in found if not whole or k[1] == int(k[1]))
            rows.add(
                f"geometric mean of {way}, {fine} / {coarse}, by {score}",
                value,
                "" if bar is None else f"<= {bar}",
                None if quick or bar is None else value <= bar,
                coarse,
                1.0,
                mean_bits=list(budgets),
                networks={k: round(v, 4) for k, v in means.items()},
            )
    cases = [c for c in dict.fromkeys(k[:3] for k in found) if c[2] == score]
    worse = [w for case in cases for w in reversals(found, case)]
    rows.add(
        f"reversals beyond two standard errors, by {score}",
        len(worse),
        "= 0",
        None if quick else not worse,
        "comparisons",
        2 * len(WAYS) * len(cases),
        reversals=worse,
    )


def _scores(rows: harness.Rows, found: Found) -> None:
    """The second score's plans beside the first's."""
    first, second = SCORES
    for method in ("channels", "layers"):
        for way in WAYS:
            means = ratios(found, (second, method), (first, method), way, False)
            value = means.pop("all")
            differences = {}
            for case in dict.fromkeys(k[:2] for k in found):
                moved = found[*case, second, method, way] - found[*case, first, method, way]
                mean, error = float(moved.mean()), main_job.stderr(moved)
                differences[f"{case[0]}, {case[1]} bits"] = [round(mean, 5), round(error, 5)]
            rows.add(
                f"geometric mean of {way}, {method}, by {second} / by {first}",
                value,
                peer=first,
                peer_value=1.0,
                networks={k: round(v, 4) for k, v in means.items()},
                differences=differences,
            )
