"""Training of graph networks, float or quantized, by one loop that goes on where it was killed."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch_geometric.data import Batch, Data

from bitwright.errors import BitwrightError
from bitwright.graph.degree_quant import DegreeQuant
from bitwright.train import resume


@dataclass(frozen=True)
class Recipe:
    """How to train: Adam with weight decay.

    Attributes:
        epochs: passes over the training data.
        rate, decay: Adam's learning rate and weight decay.
        batch: graphs in a step, where graphs have labels.
        seed: of the order of graphs, dropout and masks.
        judge_every: epochs between looks at validation data; the last epoch is followed by one.
        save_every: looks between states on disk.
        cosine: whether the rate falls along a cosine, `rate · ½ (1 + cos(π e / epochs))` in epoch
            e = 0, 1, …; else it is constant, and more epochs can follow later.
    """

    epochs: int = 200
    rate: float = 0.01
    decay: float = 5e-4
    batch: int = 32
    seed: int = 0
    judge_every: int = 1
    save_every: int = 25
    cosine: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no training.

        Raises:
            BitwrightError: a number of epochs, graphs or looks, or a rate, out of its range.
        """
        for name, least in (("epochs", 0), ("batch", 1), ("judge_every", 1), ("save_every", 1)):
            if getattr(self, name) < least:
                raise BitwrightError(f"{name} is {getattr(self, name)}; use {least} or more")
        for name, number in (("rate", self.rate), ("decay", self.decay)):
            if not 0 <= number < math.inf:
                raise BitwrightError(f"{name} is {number}; use a finite number from 0")


@dataclass(frozen=True)
class Labelled:
    """What is learnt from: one graph with masks of its nodes, or graphs for each purpose.

    Attributes:
        train, val, test: graphs; for labelled nodes each time the same one.
        nodes: whether nodes have labels.
    """

    train: Sequence[Data]
    val: Sequence[Data]
    test: Sequence[Data]
    nodes: bool

    @property
    def example(self) -> Data:
        """A batch for first ranges: the training graphs, at most 256."""
        return self.train[0] if self.nodes else Batch.from_data_list(list(self.train[:256]))

    def batches(self, size: int, generator: torch.Generator) -> Iterable[Data]:
        """An epoch's batches, in a new order."""
        if self.nodes:
            return self.train
        order = torch.randperm(len(self.train), generator=generator).tolist()
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        return (Batch.from_data_list([self.train[i] for i in part]) for part in parts)


def of_nodes(graph: Data) -> Labelled:
    """Labelled nodes of one graph with `train_mask`, `val_mask` and `test_mask`."""
    return Labelled([graph], [graph], [graph], nodes=True)


def answers(net: nn.Module, graph: Data) -> Tensor:
    """Logits for the nodes of a graph, or for the graphs of a batch."""
    more = {} if graph.batch is None else {"batch": graph.batch}
    found: Tensor = net(graph.x, graph.edge_index, **more)
    return found


def accuracy(net: nn.Module, labelled: Labelled, part: str) -> float:
    """Share of right answers on the part `val` or `test` (or `train`), in evaluation mode."""
    was, right, count = net.training, 0, 0
    graphs: Sequence[Data] = getattr(labelled, part)
    net.eval()
    with torch.no_grad():
        for i in range(0, len(graphs), 256):
            some = graphs[i : i + 256]
            graph = some[0] if labelled.nodes else Batch.from_data_list(list(some))
            mask = graph[f"{part}_mask"] if labelled.nodes else slice(None)
            hits = answers(net, graph).argmax(1)[mask] == graph.y[mask]
            right, count = right + int(hits.sum()), count + len(hits)
    net.train(was)
    return right / count


def train(
    net: nn.Module,
    labelled: Labelled,
    recipe: Recipe,
    *,
    state: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[float]:
    """Train `net` in place; it ends with the state of the best epoch on validation data.

    Args:
        net: float, or a :class:`DegreeQuant`.
        labelled: data.
        recipe: of the training.
        state: file for a training that may be killed; an existing one is gone on from, to more
            epochs too (where it had looked at its last epoch off the rhythm, there is one look
            more than a training from the beginning has).
        progress: called with the share that is done.

    Returns:
        Validation accuracy at each look.

    Raises:
        BitwrightError: `state` is damaged, of another training, or of more epochs.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    adam = torch.optim.Adam(net.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = LambdaLR(adam, partial(_share, recipe))  # a step is an epoch
    training = (net, adam, schedule, generator)
    history: list[float] = []
    best: dict[str, Tensor] = {}
    options = _options(net, recipe, labelled)
    if state is not None and state.exists():
        history, best, _ = resume.load(state, training, options)
        if schedule.last_epoch > recipe.epochs:
            raise BitwrightError(
                f"{state} has {schedule.last_epoch} epochs, more than {recipe.epochs}; delete it"
            )
        if not schedule.last_epoch:  # older states count looks alone
            schedule.last_epoch = len(history) * recipe.judge_every
    while schedule.last_epoch < recipe.epochs:
        look = (schedule.last_epoch // recipe.judge_every + 1) * recipe.judge_every
        while schedule.last_epoch < min(look, recipe.epochs):
            _epoch(net, labelled, recipe, adam, generator)
            schedule.step()
        history.append(accuracy(net, labelled, "val"))
        if history[-1] >= max(history):  # of equals the later one, which has been trained longer
            best = copy.deepcopy(net.state_dict())
        whole = schedule.last_epoch == recipe.epochs
        if state is not None and (len(history) % recipe.save_every == 0 or whole):
            resume.save(state, training, history, best, options=options)
        if progress:
            progress(schedule.last_epoch / recipe.epochs)
    if best:
        net.load_state_dict(best)
    net.eval()
    return history


def _share(recipe: Recipe, epoch: int) -> float:
    """Of the rate, in an epoch."""
    return (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2 if recipe.cosine else 1.0


def _options(net: nn.Module, recipe: Recipe, labelled: Labelled) -> dict[str, Any]:
    """What the numbers of a training follow from; not how long it is, or how often it is saved."""
    found = dataclasses.asdict(recipe)
    del found["save_every"]
    if not recipe.cosine:
        del found["epochs"]
    scheme = str(net.scheme) if isinstance(net, DegreeQuant) else None
    return {
        **found,
        "scheme": scheme,
        "starting weights": resume.digest(net.state_dict())[:16],
        "data": resume.digest(_tensors(labelled))[:16],
    }


def _tensors(labelled: Labelled) -> dict[str, Tensor]:
    """All that is learnt from and judged on."""
    parts = ("train",) if labelled.nodes else ("train", "val", "test")
    return {
        f"{part} {i} {key}": value
        for part in parts
        for i, graph in enumerate(getattr(labelled, part))
        for key, value in graph.to_dict().items()
        if isinstance(value, Tensor)
    }


def _epoch(
    net: nn.Module,
    labelled: Labelled,
    recipe: Recipe,
    adam: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """One pass; all its random choices follow from the generator's state."""
    net.train()
    seed = int(torch.randint(2**31, (1,), generator=generator))
    for part in net.modules():
        if isinstance(part, DegreeQuant):
            part.generator.manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # dropout draws from torch's own generator
        torch.manual_seed(seed)
        for graph in labelled.batches(recipe.batch, generator):
            adam.zero_grad()
            mask = graph.train_mask if labelled.nodes else slice(None)
            functional.cross_entropy(answers(net, graph)[mask], graph.y[mask]).backward()
            adam.step()
