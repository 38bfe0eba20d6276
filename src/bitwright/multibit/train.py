"""The loop of ALQ (Qu et al., arXiv 1912.08883, algorithm 1): prune, bases, coordinates, R times.

Each outer loop removes coordinates down to its share of the way, then optimizes bases, then
coordinates; after the last one, optionally, straight-through epochs with a float copy and once more
coordinates. Stored bits a weight fall geometrically over the loops, and within a loop over the
steps of its pruning: no step removes much. Where an epoch ends, all of the state is in the
checkpoint. The first third of a stage's epoch, or ten steps, gathers statistics alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bitwright.errors import BitwrightError
from bitwright.multibit import checkpoint as kept
from bitwright.multibit.gauss_newton import curvatures
from bitwright.multibit.net import Multibit
from bitwright.multibit.prune import coordinate_bits
from bitwright.multibit.steps import SETTLE, LossAware
from bitwright.multibit.straight import StraightThrough
from bitwright.network import evaluating, join

CURVATURES = ("amsgrad", "gauss-newton")
KINDS = ("kl", "squared")
#: of a recipe's numbers; without pruning no bits would fall
_LEAST = {"loops": 1, "prune": 1, "bases": 0, "coordinates": 0, "straight": 0, "final": 0,
          "batch": 1}  # fmt: skip
_POSITIVE = ("rate", "straight_rate", "bases_rate", "other_rate", "share", "temperature")


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        bits: stored bits a weight at the end: signs, coordinates and counts.
        loops: R.
        prune, bases, coordinates: epochs of each in a loop.
        straight: straight-through epochs at the end; 0 for none.
        final: epochs of coordinates after all.
        batch: rows in a step.
        rate: of coordinates, relative to the mean coordinate of a layer.
        straight_rate: of the float copy, likewise.
        bases_rate: of bases, likewise.
        other_rate: of biases and batch-norm. All rates fall linearly over the steps, to zero.
        share: of a layer's coordinates that one removal may take.
        curvature: `amsgrad`, or `gauss-newton` for the importance of coordinates.
        kind, class_axis, temperature: of the loss that `gauss-newton` is the curvature of: `kl`,
            also for cross-entropy, of answers softened by a temperature, or `squared`.
        seed: of the order of rows and of their changes.
    """

    bits: float = 1.0
    loops: int = 4
    prune: int = 1
    bases: int = 1
    coordinates: int = 1
    straight: int = 2
    final: int = 1
    batch: int = 128
    rate: float = 1e-2
    straight_rate: float = 1e-2
    bases_rate: float = 0.1
    other_rate: float = 1e-3
    share: float = 0.1
    curvature: str = "amsgrad"
    kind: str = "kl"
    class_axis: int = 1
    temperature: float = 1.0
    seed: int = 0

    def epochs(self) -> list[tuple[str, int, bool]]:
        """(what, loop, whether a new optimizer begins) of every epoch."""
        found: list[tuple[str, int, bool]] = []
        for loop in range(self.loops):
            for what in ("prune", "bases", "coordinates"):
                found += [(what, loop, i == 0) for i in range(getattr(self, what))]
        found += [("straight", self.loops, i == 0) for i in range(self.straight)]
        return found + [("coordinates", self.loops, i == 0) for i in range(self.final)]


Loss = Callable[[Tensor, Tensor], Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]


def train(
    net: Multibit,
    x: Tensor,
    y: Tensor | None,
    recipe: Recipe,
    *,
    loss: Loss = F.cross_entropy,
    teacher: Callable[[Tensor], Tensor] | None = None,
    augment: Augment | None = None,
    floats: Mapping[str, Tensor] | None = None,
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train the bases of a net in place.

    Args:
        net: from :func:`~bitwright.multibit.net.prepare`.
        x: [n, ...] rows; y: [n, ...] their labels, or None with a teacher.
        recipe: how.
        loss: mean loss of a batch from outputs and labels, or from outputs and the teacher's.
        teacher: outputs for rows; in the place of labels.
        augment: changes the rows of each step.
        floats: weights by layer that the copy of straight-through epochs begins with, the float
            network's; None: what the bases stand for by then.
        checkpoint: a file that every epoch's state is kept in; training goes on from it, given the
            net as :func:`~bitwright.multibit.net.prepare` made it for that one.
        identity: JSON by name that a checkpoint must agree in, besides recipe, starting weights,
            rows and labels or teacher: what the loss and the changes of rows are.
        progress: called with each epoch's line.

    Returns:
        A line an epoch: what, loop, stored bits, mean loss, share of weights whose code changed
        (by removals, too); the first one is the beginning.

    Raises:
        BitwrightError: nothing to learn from, a recipe that cannot be followed (an unknown
            curvature, no pruning, a target that is not below the beginning or not above what the
            counts alone take), a loss that is not finite, or a checkpoint of another training.
    """
    _check(net, x, y, teacher, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    run = _Run(net, recipe, generator, [], floats)
    plan = recipe.epochs()
    if checkpoint is not None:
        said = {**asdict(recipe), **(identity or {})}
        of = kept.identity(net, (x, y), teacher, floats, said)
    if checkpoint is not None and checkpoint.is_file():
        run = _resumed(run, checkpoint, of, plan, len(x) // recipe.batch)
    else:
        _check_target(net, recipe)
        run.history.append({"epoch": 0, "what": "start", "loop": 0, "bits": net.average_bits()})
    for at in range(len(run.history) - 1, len(plan)):
        what, loop, fresh = plan[at]
        if fresh or run.optimizer is None:
            run.optimizer = _optimizer(run, what, len(x) // recipe.batch)
        with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
            torch.manual_seed(random.Random(f"{recipe.seed} {at}").getrandbits(63))
            line = _epoch(run, (x, y), what, loop, (loss, teacher, augment))
        run.history.append({"epoch": at + 1, "what": what, "loop": loop, **line})
        if progress:
            progress(run.history[-1])
        if checkpoint is not None:
            kept.save(checkpoint, of, run.net, run.optimizer.state(), generator, run.history)
    net.eval()
    return run.history


@dataclass
class _Run:
    """What changes while a training goes on."""

    net: Multibit
    recipe: Recipe
    generator: torch.Generator
    history: list[dict[str, Any]]
    floats: Mapping[str, Tensor] | None = None
    optimizer: LossAware | StraightThrough | None = None


def _check(net: Multibit, x: Tensor, y: Tensor | None, teacher: object, recipe: Recipe) -> None:
    if y is None and teacher is None:
        raise BitwrightError("there is nothing to learn from: give labels, or a teacher")
    if recipe.curvature not in CURVATURES:
        raise BitwrightError(
            f"curvature {recipe.curvature!r} is unknown; use {' or '.join(CURVATURES)}"
        )
    for name, least in _LEAST.items():
        if (given := getattr(recipe, name)) < least:
            raise BitwrightError(f"{name} is {given}; give {least} or more")
    for name in _POSITIVE:
        if not 0 < (number := getattr(recipe, name)) < math.inf:
            raise BitwrightError(f"{name} is {number}; give a number above 0")
    if recipe.kind not in KINDS:
        raise BitwrightError(f"kind {recipe.kind!r} is unknown; use {' or '.join(KINDS)}")
    if len(x) < recipe.batch:
        raise BitwrightError(f"{len(x)} rows are less than a batch of {recipe.batch}")


def _check_target(net: Multibit, recipe: Recipe) -> None:
    begun, counts = net.average_bits(), net.blank_bits()
    if not counts < recipe.bits < begun:
        raise BitwrightError(
            f"{recipe.bits} bits a weight is no target; give less than the {begun:.3g} of the "
            f"beginning and more than the {counts:.3g} that counts of bases take alone"
        )


def _resumed(
    run: _Run, path: Path, of: kept.Identity, plan: list[tuple[str, int, bool]], steps: int
) -> _Run:
    state, run.history = kept.load(path, of, run.net, run.generator)
    done = len(run.history) - 1
    if done < len(plan) and not plan[done][2]:
        run.optimizer = _optimizer(run, plan[done][0], steps)
        run.optimizer.restore(state)
    return run


def _optimizer(run: _Run, what: str, steps: int) -> LossAware | StraightThrough:
    net, r = run.net, run.recipe
    if what == "straight":
        return StraightThrough(
            net,
            r.straight_rate,
            coordinates_rate=r.rate,
            other_rate=r.other_rate,
            floats=run.floats,
        )
    domain = "bases" if what == "bases" else "coordinates"
    rate = r.bases_rate if what == "bases" else r.rate
    settle = min(SETTLE, steps // 3)
    return LossAware(net, domain, rate, other_rate=r.other_rate, settle=settle)


def _epoch(
    run: _Run,
    rows: tuple[Tensor, Tensor | None],
    what: str,
    loop: int,
    rules: tuple[Loss, Callable[[Tensor], Tensor] | None, Augment | None],
) -> dict[str, Any]:
    x, y = rows
    loss_of, teacher, augment = rules
    net, r = run.net, run.recipe
    net.train()
    order = torch.randperm(len(x), generator=run.generator)
    steps = len(x) // r.batch
    removal = _Removal(run, steps, x) if what == "prune" else None
    codes = {name: net[name].codes.clone() for name in net.names}
    total = torch.zeros(())
    assert run.optimizer is not None
    begun, whole = len(run.history) - 1, len(r.epochs())
    for step in range(steps):
        run.optimizer.anneal(1 - (begun + step / steps) / whole)
        chosen = order[step * r.batch : (step + 1) * r.batch]
        batch = x[chosen] if augment is None else augment(x[chosen], run.generator)
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(batch)
        else:
            assert y is not None
            wanted = y[chosen]
        found = loss_of(join(net(batch)), wanted)
        found.backward()
        run.optimizer.step()
        total += found.detach()
        if removal is not None:
            removal(step)
    if not bool(torch.isfinite(total)):
        raise BitwrightError(
            f"the loss is not finite after epoch {len(run.history)} ({what}): lower the rates"
        )
    turned = sum(int((net[n].codes != codes[n]).sum()) for n in net.names)
    return {"bits": net.average_bits(), "loss": float(total / max(1, steps)),
            "turned": turned / net.weights}  # fmt: skip


class _Removal:
    """Removes coordinates step by step down to the bits of a loop."""

    def __init__(self, run: _Run, steps: int, x: Tensor) -> None:
        first, r = run.history[0]["bits"], run.recipe
        assert isinstance(run.optimizer, LossAware)
        self.run, self.steps, self.x = run, steps, x
        self.optimizer = run.optimizer
        epochs = r.loops * max(1, r.prune)
        done = sum(line["what"] == "prune" for line in run.history) + 1
        self.goal = first * (min(r.bits, first) / first) ** (done / epochs)
        self.start = coordinate_bits(run.net)
        self.every = max(1, (steps - self.optimizer.settle) // 40)

    def __call__(self, step: int) -> None:
        done = step + 1
        if not self.start:
            return  # an earlier loop has removed everything
        if done != self.steps and (done < self.optimizer.settle or done % self.every):
            return
        net = self.run.net
        if done == self.steps:  # what is left, with the counts as they are stored
            while (over := net.packed().size_bits - self.goal * net.weights) > 0:
                if not self._remove(step, over, 1.0):
                    break  # the counts alone are left, which the goal is above but for rounding
            return
        counts = 8 * net.packed().counts.nbytes
        goal = max(1.0, self.goal * net.weights - counts)
        now = self.start * (goal / self.start) ** (done / self.steps)
        self._remove(step, coordinate_bits(net) - now, self.run.recipe.share)

    def _remove(self, step: int, spare: float, share: float) -> int:
        net, r, found = self.run.net, self.run.recipe, None
        if r.curvature == "gauss-newton":
            # other rows and directions each time: what one draw is wrong in, the next one is not
            seed = random.Random(f"{r.seed} {len(self.run.history)} {step}").getrandbits(63)
            order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))
            with evaluating(net):  # batch-norm's statistics are not to move, nor rows to be mixed
                found = curvatures(
                    net,
                    self.x[order[: 16 * r.batch]].split(r.batch),
                    weights=False,
                    kind=r.kind,
                    class_axis=r.class_axis,
                    temperature=r.temperature,
                    seed=seed,
                )
        return self.optimizer.prune(spare, share, curvature=found)
