"""What FastestDet's answers are worth: COCO's average precision, and distance to the float model.

Needs pycocotools: `pip install -c constraints.txt -e '.[bench]'`.

A cell answers with a distribution over 81 outcomes, nothing or an object of one of 80 classes, and
with a box that matters as far as there is an object. So the distance of two answers is the KL of
the 81 outcomes (by the chain rule: objectness' KL, plus objectness times the classes' KL), plus
objectness times half the squared difference of the boxes in units of the box. The squared distance
of the published maps is no good: most of it is boxes of empty cells, which nobody looks at.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from fastestdet import CLASSES, SIZE
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.nn import functional as F

from bitwright.curvature import Estimate, Sensitivity
from bitwright.curvature.divergence import per_sample
from bitwright.curvature.forms import inner_products
from bitwright.curvature.gauss_newton import measure
from bitwright.curvature.losses import OutputHessian, flatten, output_hessian
from bitwright.curvature.subjects import NetworkSubject, Pass
from bitwright.curvature.visits import Integrand, squares
from bitwright.network import Network, outputs
from bitwright.quantize import WeightTable
from bitwright.quantize.actual_error import errors_left
from bitwright.quantize.scores import toward

#: scores below are no detections, and of boxes of a class that overlap more the best one stays,
#: both as in the published evaluation; COCO looks at a hundred boxes of a class in an image
LEAST_SCORE, MOST_OVERLAP, MOST_BOXES = 0.001, 0.45, 100
#: cells a side
CELLS = SIZE // 16
#: what each head of `answers` is compared by
LOSSES = {"what": "kl", "where": "squared"}


def decode(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes and scores of the map of logits that the network answers with.

    Args:
        outputs: [n, 85, h, w].

    Returns:
        Centre, width and height in shares of the image, [n, h·w, 4]; objectness × probability of
        the likeliest class at its place and zero at the others, [n, 80, h·w].
    """
    height, width = outputs.shape[2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = (outputs[:, 1].tanh() + columns) / width
    y = (outputs[:, 2].tanh() + rows) / height
    boxes = torch.stack([x, y, outputs[:, 3].sigmoid(), outputs[:, 4].sigmoid()], -1)
    best, which = outputs[:, 5:].softmax(1).max(1, keepdim=True)
    score = outputs[:, :1].sigmoid() * best
    scores = torch.zeros_like(outputs[:, 5:]).scatter_(1, which, score)
    return boxes.flatten(1, 2), scores.flatten(2)


@functools.cache
def _suppression() -> onnxruntime.InferenceSession:
    """The runtime's non-maximum suppression, class by class, of centred boxes."""
    inputs = {"boxes": 3, "scores": 3, "most": 1, "overlap": 1, "least": 1}
    kinds = {"most": onnx.TensorProto.INT64}
    node = onnx.helper.make_node("NonMaxSuppression", [*inputs], ["kept"], center_point_box=1)
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "suppression",
        [info(k, kinds.get(k, onnx.TensorProto.FLOAT), [None] * n) for k, n in inputs.items()],
        [info("kept", onnx.TensorProto.INT64, [None, 3])],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
    )
    return onnxruntime.InferenceSession(model.SerializeToString())


def detections(outputs: Tensor) -> np.ndarray:
    """What COCO's evaluation takes: image, left, top, width, height in pixels, score, class."""
    boxes, scores = (value.numpy() for value in decode(outputs))
    limits = {"most": MOST_BOXES, "overlap": MOST_OVERLAP, "least": LEAST_SCORE}
    feeds = {k: np.array([v], np.int64 if k == "most" else np.float32) for k, v in limits.items()}
    image, kind, cell = _suppression().run(None, {"boxes": boxes, "scores": scores, **feeds})[0].T
    found = boxes[image, cell].astype(np.float64) * SIZE
    found[:, :2] -= found[:, 2:] / 2
    return np.column_stack([image, found, scores[image, kind, cell], kind])


def _evaluated(outputs: Tensor, labels: Tensor) -> COCOeval | None:
    """COCO's evaluation of each image and class; None where nothing is found."""
    truth, found = COCO(), detections(outputs)
    truth.dataset = {
        "images": [{"id": i} for i in range(len(labels))],
        "categories": [{"id": i} for i in range(CLASSES)],
        "annotations": [],
    }
    for image, row in enumerate(labels.double().numpy()):
        for kind, x, y, width, height in row[row[:, 0] >= 0]:
            corner = [(x - width / 2) * SIZE, (y - height / 2) * SIZE]
            box = {"bbox": [*corner, width * SIZE, height * SIZE], "image_id": image}
            box |= {"id": len(truth.dataset["annotations"]) + 1, "category_id": int(kind)}
            box |= {"area": width * height * SIZE**2, "iscrowd": 0}
            truth.dataset["annotations"].append(box)
    if not len(found):
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(found), "bbox")
        judge.evaluate()
    return judge


def average_precision(outputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """COCO's AP, over overlaps of 0.5 to 0.95, and AP50.

    Args:
        outputs: [n, 85, h, w].
        labels: [n, most, 5] as `fastestdet.coco` has them.
    """
    judge = _evaluated(outputs, labels)
    if judge is None:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


def resampled_map50(outputs: Tensor, labels: Tensor, times: np.ndarray) -> np.ndarray:
    """AP50 where images occur several times or not at all, as draws with replacement have them.

    Args:
        outputs: [n, 85, h, w].
        labels: [n, most, 5].
        times: int [draws, n], how often each image occurs.

    Returns:
        float64 [draws]; a class that no drawn image shows does not count.
    """
    judge = _evaluated(outputs, labels)
    found = np.full((CLASSES, len(times)), np.nan)
    n = len(labels)
    true = np.array([[(row[:, 0] == kind).sum() for row in labels] for kind in range(CLASSES)])
    for kind in np.flatnonzero(true.sum(1)):
        start = kind * len(judge.params.areaRng) * n if judge else 0  # the first range is all sizes
        images = judge.evalImgs[start : start + n] if judge else []
        parts = [(i, e) for i, e in enumerate(images) if e is not None]
        score = np.concatenate([[], *(e["dtScores"] for _, e in parts)])
        right = np.concatenate([[], *(e["dtMatches"][0] > 0 for _, e in parts)]).astype(bool)
        image = np.repeat([i for i, _ in parts], [len(e["dtScores"]) for _, e in parts])
        order = np.argsort(-score, kind="stable")
        found[kind] = _average(right[order], times[:, image[order].astype(int)], times @ true[kind])
    with np.errstate(invalid="ignore"):
        return np.nanmean(found, axis=0)


def _average(right: np.ndarray, times: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """COCO's average over 101 recalls, [draws], for detections by falling score.

    Args:
        right: bool [d].
        times: int [draws, d], how often each occurs.
        boxes: int [draws], true ones; NaN is returned where there are none.
    """
    found = np.full(len(times), np.nan)
    hits, all_ = np.cumsum(times * right, axis=1), np.cumsum(times, axis=1)
    precision = hits / np.maximum(all_, 1)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    precision = np.pad(precision, ((0, 0), (0, 1)))  # recalls that are never reached
    recalls = np.linspace(0, 1, 101)
    for draw in np.flatnonzero(boxes):
        at = np.searchsorted(hits[draw] / boxes[draw], recalls, side="left")
        found[draw] = precision[draw, at].mean()
    return found


def map50(outputs: Tensor, labels: Tensor) -> float:
    """AP50, as the metric of a task."""
    return average_precision(outputs, labels)[1]


def answers(outputs: Tensor, reference: Tensor | None = None) -> dict[str, Tensor]:
    """The map of logits as two heads, whose KL and half squared distance add up to the distance.

    Args:
        outputs: [n, 85, h, w].
        reference: of the float model, which says where there are objects and how large; the
            outputs' own, taken as constants, where absent (for traces at the float model).

    Returns:
        `what`: logarithms of the probabilities of nothing and each class, [n, 81, h, w]; `where`:
        √objectness · (x/w, y/h, log w, log h) of the boxes, [n, 4, h, w].
    """
    float_outputs = (outputs if reference is None else reference).detach()
    cells = torch.tensor(outputs.shape[:1:-1], dtype=outputs.dtype)[:, None, None]  # width, height
    objectness, box = outputs[:, :1], outputs[:, 1:5]
    size = float_outputs[:, 3:5].sigmoid()
    centre = box[:, :2].tanh() / cells / size
    where = torch.cat((centre, F.logsigmoid(box[:, 2:])), 1)
    classes = F.logsigmoid(objectness) + outputs[:, 5:].log_softmax(1)
    return {
        "what": torch.cat((F.logsigmoid(-objectness), classes), 1),
        "where": float_outputs[:, :1].sigmoid().sqrt() * where,
    }


def distance(reference: Tensor, outputs: Tensor) -> Tensor:
    """How far answers are from the float model's, summed over cells, float64 [n].

    Args:
        reference, outputs: [n, 85, h, w].
    """
    ours, theirs = (answers(o, reference) for o in (outputs, reference))
    what = per_sample(theirs["what"], ours["what"], "kl")
    return what + per_sample(theirs["where"], ours["where"], "squared")


@dataclass(frozen=True)
class _Heads:
    """A captured FastestDet that answers with both heads side by side, in the order of Λ."""

    network: NetworkSubject

    @property
    def weights(self) -> Mapping[str, tuple[int, ...]]:
        return self.network.weights

    def precise(self) -> None:
        return None

    def forward(self, rows: Tensor) -> Iterator[tuple[Tensor, Pass]]:
        for places, passed in self.network.forward(rows):
            heads = answers(passed.outputs.unflatten(1, (-1, CELLS, CELLS)))
            flat = [flatten(heads[name], loss, 1) for name, loss in LOSSES.items()]
            yield places, replace(passed, outputs=torch.cat(flat, 1))


def sensitivity(network: Network, x: Tensor, *, effort: float = 4.0, seed: int = 0) -> Sensitivity:
    """Traces of :func:`distance` for every channel of a captured FastestDet and of its edges.

    Args:
        network: as captured; x: [n, 3, 352, 352] calibration images.
        effort, seed: as for `bitwright.curvature.gauss_newton`.
    """
    channels = {f"layer:{la.weight}": la.rows for la in network.layers}
    channels |= {f"edge:{e.name}": e.shape[0] for e in network.edges}
    found, details = _measured(network, x, channels, 0.02, effort, seed)
    return Sensitivity(
        "gauss-newton",
        {la.name: found[f"layer:{la.weight}"] for la in network.layers},
        {e.name: found[f"edge:{e.name}"] for e in network.edges},
        details=details,
    )


def actual_error(
    network: Network,
    tables: Mapping[str, WeightTable],
    x: Tensor,
    by_trace: Mapping[str, np.ndarray],
    *,
    effort: float = 4.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """The score `actual-error` for :func:`distance`: layer name -> float64 [rows, 8].

    Args:
        network, tables: as captured, and fitted to it; x: [n, 3, 352, 352] calibration images.
        by_trace: the score `trace`, towards which it is shrunk.
        effort, seed: as for `bitwright.curvature.gauss_newton`.
    """
    left = errors_left(network, tables, x)
    changes = {la.weight: left[la.name] for la in network.layers}

    def forms_of(passed: Pass, weights: Any, directions: list[Tensor], columns: Any) -> Tensor:
        return inner_products(changes, passed, directions, columns).square_()

    channels = {f"layer:{name}": d.shape[0] * d.shape[1] for name, d in changes.items()}
    found, _ = _measured(network, x, channels, 0.1, effort, seed, forms_of)
    scores = {}
    for layer in network.layers:
        flat, shape = found[f"layer:{layer.weight}"], (layer.rows, -1)
        parts = (flat.value, flat.stderr_probe, flat.stderr_data)
        forms = Estimate(*(v.reshape(shape) for v in parts), flat.samples)
        scores[layer.name] = 0.5 * toward(forms, 2 * by_trace[layer.name])
    return scores


def _measured(
    network: Network,
    x: Tensor,
    channels: dict[str, int],
    tolerance: float,
    effort: float,
    seed: int,
    integrand: Integrand = squares,
) -> tuple[dict[str, Estimate], dict[str, Any]]:
    heads = answers(outputs(network.module, x))
    blocks = tuple(output_hessian(loss, heads[name])[0] for name, loss in LOSSES.items())
    edges = any(key.startswith("edge:") for key in channels)
    subject = _Heads(NetworkSubject(network, x, "squared", 1, edges))  # outputs as they are
    hessian, progress = OutputHessian(blocks), lambda fraction: None
    return measure(subject, hessian, channels, tolerance, effort, 16, seed, progress, integrand)
