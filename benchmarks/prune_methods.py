"""What the pruning benchmark compares: our ways, and torch-pruning's importances on its groups."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from bitwright.curvature.divergence import per_sample
from bitwright.prune import (
    Coupling,
    Selection,
    Sizes,
    best_share,
    compensated,
    coupled,
    implantable,
    pruned,
    scores,
    select,
)
from bitwright.train import Recipe, finetune_float

#: ours: score, whether layers are refitted, share of implants (at most, where they are fitted)
OURS = {
    "HAP": ("removal", True, 0.0, True),
    "HAP, implant": ("removal", True, 0.1, True),
    "HAP, implant from zero": ("removal", True, 0.1, False),
    "HAP, no refit": ("removal", False, 0.0, True),
    "HAP, trace score": ("trace", True, 0.0, True),
    "HAP, trace score, no refit": ("trace", False, 0.0, True),
}
#: torch-pruning's, as its documentation calls them
PEERS = {
    "L1, group": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "L2, group": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "Taylor": lambda: tp.importance.GroupTaylorImportance(),
    "torch-pruning Hessian": lambda: tp.importance.GroupHessianImportance(),
}
#: rows that scores, gradients and refits see; samples that its Hessian goes through one by one
ROWS, FIT_ROWS, ONE_BY_ONE = 512, 384, 32


@dataclass(frozen=True)
class Bench:
    """A model to prune, with its rows; everything that the methods share."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    coupling: Coupling
    sizes: Sizes
    known: dict[str, Mapping[str, np.ndarray]]
    skip: tuple[str, ...]

    @classmethod
    def of(
        cls, name: str, model: nn.Module, data: Mapping[str, Tensor], skip: Sequence[str] = ()
    ) -> Bench:
        coupling = coupled(model, data["train_x"][:2], skip)
        sizes = Sizes(model, coupling.groups, data["train_x"][:1])
        rows = (data[k] for k in ("train_x", "train_y", "test_x", "test_y"))
        return cls(name, model, *rows, coupling, sizes, {}, tuple(skip))

    def reseeded(self, seed: int) -> Bench:
        """With the rows in another order, so that every method sees others; nothing known."""
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))
        return replace(self, x=self.x[order], y=self.y[order], known={})


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(rows) for rows in x.split(256)])


def judged(bench: Bench, module: nn.Module) -> tuple[Tensor, Tensor]:
    """KL to the model and whether right, of each test row."""
    found = outputs(module, bench.test_x)
    kl = per_sample(outputs(bench.model, bench.test_x), found, "kl")
    return kl, (found.argmax(1) == bench.test_y).double()


def cut(
    bench: Bench, method: str, bound: float, unit: str = "parameters", multiple: int = 1
) -> nn.Module:
    """The model within the bound, by one of the methods, before any fine-tuning."""
    if method in PEERS:
        return pruned(bench.model, bench.coupling.edit(_by_peer(bench, method, bound, unit)))
    score, refit, share, fitted = OURS[method]
    if score not in bench.known:
        groups = bench.coupling.groups
        bench.known[score] = scores(bench.model, groups, bench.x[:ROWS], score=score)
    can = [g.name for g in bench.coupling.groups if implantable(bench.model, g)]

    def choose(implants: float) -> Selection:
        return select(
            bench.sizes, bench.known[score], bound, unit, implant=implants,
            implantable=can, multiple=multiple,
        )  # fmt: skip

    if share and fitted:
        share, _ = best_share(bench.model, bench.coupling, choose, bench.x[:ROWS], share)
    chosen = choose(share)
    edit = bench.coupling.edit(chosen.removed, chosen.implanted)
    module = pruned(bench.model, edit)
    compensated(bench.model, module, edit, bench.x[:FIT_ROWS], refit=refit, implants=fitted)
    return module


def _by_peer(bench: Bench, method: str, bound: float, unit: str) -> dict[str, tuple[int, ...]]:
    """Channels in the global order of torch-pruning's importance, with the same floors."""
    if method not in bench.known:
        bench.known[method] = _importance(bench, method)
    found = bench.known[method]
    order = sorted((float(v), name, i) for name, vs in found.items() for i, v in enumerate(vs))
    most = {name: len(v) - max(1, int(np.ceil(0.05 * len(v)))) for name, v in found.items()}
    gone: dict[str, list[int]] = {name: [] for name in found}
    for _, name, channel in order:
        if len(gone[name]) < most[name]:
            gone[name].append(channel)
            if bench.sizes.of({n: len(c) for n, c in gone.items()})[unit] <= bound:
                break
    return {name: tuple(sorted(c)) for name, c in gone.items()}


def _importance(bench: Bench, method: str) -> dict[str, np.ndarray]:
    importance = PEERS[method]()
    model = copy.deepcopy(bench.model).requires_grad_(True)
    graph = tp.DependencyGraph()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph.build_dependency(model, bench.x[:2], verbose=False)
        if method == "Taylor":
            for rows, labels in zip(bench.x[:ROWS].split(128), bench.y[:ROWS].split(128),
                                    strict=True):  # fmt: skip
                (F.cross_entropy(model(rows), labels) * len(rows) / ROWS).backward()
        if "Hessian" in method:
            losses = F.cross_entropy(
                model(bench.x[:ONE_BY_ONE]), bench.y[:ONE_BY_ONE], reduction="none"
            )
            for loss in losses:
                model.zero_grad()
                loss.backward(retain_graph=True)
                importance.accumulate_grad(model)
        names = {module: path for path, module in model.named_modules()}
        wanted = {g.name for g in bench.coupling.groups}
        found = {}
        for group in graph.get_all_groups():
            name = names[group[0].dep.target.module]
            if name in wanted:
                found[name] = importance(group).numpy()
    return found


def finetuned(bench: Bench, module: nn.Module, rows: int, seed: int, augment=None) -> nn.Module:
    """The fine-tuning that every row gets: one pass over some rows, the model as teacher."""
    recipe = Recipe(1, batch=32, rate=1e-3, held_out=0.1, most_held_out=128, seed=seed)
    return finetune_float(module, bench.model, bench.x[:rows], recipe, augment=augment)[0]
