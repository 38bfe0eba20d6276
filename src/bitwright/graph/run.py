"""`bitwright train-graph`: data, float network, quantized network, artefact and report in a folder.

Both trainings write their state as they go, so that the same command goes on where it was killed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.model_selection import StratifiedKFold
from torch import nn

from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.folders import made
from bitwright.graph import artefact
from bitwright.graph.data import load_graphs, load_nodes
from bitwright.graph.degree_quant import DegreeQuant
from bitwright.graph.mixed import mixed_widths
from bitwright.graph.nets import Form, build
from bitwright.graph.scheme import Scheme
from bitwright.graph.training import Labelled, Recipe, accuracy, of_nodes, train
from bitwright.report import graphs as page

FOLDS = 10


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `train-graph` is asked for: data, network, widths, protection, recipe.

    Attributes:
        bits: of everything; with `widths`, the mean.
        widths: that layers and classes of in-degree choose from; none: all have `bits`.
        classes: of in-degree, for `widths`.
        input_dropout: of the features, for nodes; None: 0.9 for GIN (:class:`Form`), else none.
    """

    dataset: str
    net: str = "gcn"
    bits: float = 8
    widths: tuple[int, ...] = ()
    classes: int = 4
    protect: tuple[float, float] = (0.0, 0.1)
    percentile: float = 0.001
    hidden: int = 16
    layers: int = 2
    dropout: float = 0.5
    input_dropout: float | None = None
    fold: int = 0
    recipe: Recipe = dataclasses.field(default_factory=Recipe)


def labelled(path: Path, fold: int, seed: int) -> Labelled:
    """The data of a file: nodes of an npz, or graphs of a text with a fold to test on.

    Raises:
        BitwrightError: it cannot be read, or there is no such fold.
    """
    if path.suffix == ".npz":
        return of_nodes(load_nodes(path))
    if not 0 <= fold < FOLDS:
        raise BitwrightError(f"fold is {fold}; use 0 to {FOLDS - 1}")
    graphs = load_graphs(path)
    classes = [int(graph.y) for graph in graphs]
    try:
        split = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(classes, classes)
        parts = [[graphs[i] for i in test] for _, test in split]
    except ValueError as error:
        raise BitwrightError(f"{path} cannot be split into {FOLDS} folds: {error}") from error
    val = (fold + 1) % FOLDS
    rest = [g for i, part in enumerate(parts) if i not in (fold, val) for g in part]
    return Labelled(rest, parts[val], parts[fold], nodes=False)


def form_of(settings: Settings, data: Labelled) -> Form:
    """The network's form for the data."""
    example = data.train[0]
    graphs = [g for part in (data.train, data.val, data.test) for g in part]
    usual = 0.9 if settings.net == "gin" and data.nodes else 0.0
    dropout = usual if settings.input_dropout is None else settings.input_dropout
    return Form(
        settings.net, example.x.shape[1], settings.hidden,
        1 + max(int(g.y.max()) for g in graphs), settings.layers, settings.dropout,
        input_dropout=dropout, graphs=not data.nodes,
    )  # fmt: skip


def scheme_of(settings: Settings) -> Scheme:
    """What is rounded to what; where widths are mixed, what they are chosen for instead of.

    Raises:
        BitwrightError: see :class:`Scheme`; or a mean that the widths do not reach.
    """
    if not math.isfinite(settings.bits):
        raise BitwrightError(f"bits is {settings.bits}; use a number from 2 to 8")
    if settings.widths and settings.classes < 1:
        raise BitwrightError(f"classes is {settings.classes}; use 1 or more")
    if settings.widths and settings.bits < min(settings.widths):
        raise BitwrightError(f"a mean of {settings.bits:g} bits is below all of --widths")
    bits = int(settings.bits)
    return Scheme(bits, bits, settings.protect, settings.percentile, seed=settings.recipe.seed)


def quantized(settings: Settings, form: Form, data: Labelled, whole: nn.Module) -> DegreeQuant:
    """The network to be trained, with first ranges from the training data.

    With `settings.widths`, these are chosen by what the trained float network `whole` would lose.
    """
    scheme, example = scheme_of(settings), data.example
    more = {} if data.nodes else {"batch": example.batch}

    def wrapped(net: nn.Module) -> DegreeQuant:
        return DegreeQuant(net, scheme, example.x, example.edge_index, **more)

    if settings.widths:
        found = mixed_widths(
            wrapped(whole), [example], settings.bits, choices=settings.widths,
            classes=settings.classes, seed=settings.recipe.seed,
        )  # fmt: skip
        scheme = dataclasses.replace(scheme, widths=found)
    return wrapped(build(form, settings.recipe.seed))


def run(
    settings: Settings, out: Path, progress: Callable[[str, float], None] | None = None
) -> dict[str, Any]:
    """Train in float and quantized, write `model.safetensors`, `graph.json` and `graph.html`.

    Raises:
        BitwrightError: the folder holds a run with other settings, or the data does not fit.
    """
    data = labelled(Path(settings.dataset), settings.fold, settings.recipe.seed)
    form = form_of(settings, data)
    whole = build(form, settings.recipe.seed)
    scheme_of(settings)  # refused before anything is written
    with made(out):
        return _written(settings, out, data, form, whole, progress)


def _written(
    settings: Settings,
    out: Path,
    data: Labelled,
    form: Form,
    whole: nn.Module,
    progress: Callable[[str, float], None] | None,
) -> dict[str, Any]:
    _settle(out / "settings.json", settings)
    rows = {}

    def trained(name: str, net: nn.Module) -> None:
        tell = None if progress is None else (lambda share: progress(name, share))
        state = out / f"{name}.training.safetensors"
        train(net, data, settings.recipe, state=state, progress=tell)
        rows[name] = {part: accuracy(net, data, part) for part in ("val", "test")}

    trained("float", whole)
    low_bit = quantized(settings, form, data, whole)
    trained("quantized", low_bit)
    said = {"rows": rows, "settings": dataclasses.asdict(settings)}
    if low_bit.scheme.widths is not None:
        said["widths"] = dataclasses.asdict(low_bit.scheme.widths)
    file = out / "model.safetensors"
    artefact.save(low_bit, form, file, {"accuracy": rows["quantized"]})
    again, _ = artefact.load(file)
    rows["artefact"] = {part: accuracy(again, data, part) for part in ("val", "test")}
    said["bytes"] = {"float": _bytes(whole), "artefact": file.stat().st_size}
    put(out / "graph.json", json.dumps(said, indent=1, sort_keys=True))
    page.write(said, out / "graph.html")
    return said


def _settle(path: Path, settings: Settings) -> None:
    """Write the settings, or refuse a folder that holds others."""
    text = json.dumps(dataclasses.asdict(settings), indent=1, sort_keys=True)
    if path.exists() and path.read_text() != text:
        raise BitwrightError(
            f"{path.parent} holds a training with other settings; give another --out"
        )
    put(path, text)


def _bytes(net: nn.Module) -> int:
    values = net.state_dict().values()
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))
