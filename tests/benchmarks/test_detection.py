"""Decoding, suppression, precision and distance of detections, against closed forms."""

from __future__ import annotations

import importlib
import math

import fastestdet
import networks
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bitwright import traces
from bitwright.network import build

pytest.importorskip("pycocotools")
detection = importlib.import_module("detection")

CELLS = 22


def labels(*boxes: tuple[float, ...]) -> Tensor:
    """One image's boxes (class, x, y, w, h), filled up as the data is."""
    return F.pad(torch.tensor(boxes), (0, 0, 0, 2), value=-1)[None]


def map_of(boxes: Tensor, objectness: float = 6.0) -> Tensor:
    """Logits that decode to the boxes, each in the cell of its centre, [n, 85, 22, 22]."""
    outputs = torch.zeros(len(boxes), 85, CELLS, CELLS)
    outputs[:, 0] = -12
    for image, rows in enumerate(boxes):
        for kind, x, y, width, height in rows[rows[:, 0] >= 0].tolist():
            row, column = int(y * CELLS), int(x * CELLS)
            cell = outputs[image, :, row, column]
            cell[0] = objectness
            cell[1] = math.atanh(x * CELLS - column)
            cell[2] = math.atanh(y * CELLS - row)
            cell[3:5] = torch.tensor([width, height]).logit()
            cell[5 + int(kind)] = 12
    return outputs


TRUTH = torch.cat(
    [
        labels((0, 0.3, 0.4, 0.2, 0.3), (17, 0.71, 0.52, 0.4, 0.5)),
        labels((79, 0.51, 0.52, 0.9, 0.8), (17, 0.2, 0.21, 0.1, 0.1)),
    ]
)


def test_the_true_boxes_are_found_where_they_are():
    found = detection.detections(map_of(TRUTH))
    assert len(found) == 4
    for image, left, top, width, height, score, kind in found:
        true = TRUTH[int(image)]
        x, y, w, h = (352 * true[true[:, 0] == kind][0, 1:].double()).tolist()
        assert (left, top, width, height) == pytest.approx((x - w / 2, y - h / 2, w, h), abs=1e-3)
        assert score == pytest.approx(1 / (1 + math.exp(-6)), rel=1e-3)


def test_the_true_boxes_have_precision_one():
    assert detection.average_precision(map_of(TRUTH), TRUTH) == pytest.approx((1, 1))


def aside(boxes: Tensor) -> Tensor:
    """Moved by half their width: an overlap of a third."""
    boxes[..., 1] += 0.5 * boxes[..., 3].clamp(min=0)
    return boxes


def narrow(boxes: Tensor) -> Tensor:
    """Three quarters as wide: right at six of the ten overlaps from 0.5 to 0.95."""
    boxes[..., 3] *= 0.751
    return boxes


def misnamed(boxes: Tensor) -> Tensor:
    """The first of each image is another class: one class of three is left."""
    boxes[:, 0, 0] = 40
    return boxes


@pytest.mark.parametrize(
    ("change", "expected"), [(aside, (0, 0)), (narrow, (0.6, 1)), (misnamed, (1 / 3, 1 / 3))]
)
def test_wrong_boxes_lose_precision(change, expected):
    found = detection.average_precision(map_of(change(TRUTH.clone())), TRUTH)
    assert found == pytest.approx(expected)


def test_nothing_found_is_precision_zero():
    assert detection.average_precision(torch.full((2, 85, CELLS, CELLS), -20.0), TRUTH) == (0, 0)


def test_of_overlapping_boxes_of_a_class_the_best_stays():
    same = labels((3, 0.3, 0.4, 0.4, 0.4), (3, 0.36, 0.4, 0.4, 0.4))  # overlap 0.74
    assert len(detection.detections(map_of(same))) == 1
    apart = labels((3, 0.3, 0.4, 0.4, 0.4), (3, 0.46, 0.4, 0.4, 0.4))  # overlap 0.43
    assert len(detection.detections(map_of(apart))) == 2
    other = labels((3, 0.3, 0.4, 0.4, 0.4), (4, 0.36, 0.4, 0.4, 0.4))
    assert len(detection.detections(map_of(other))) == 2


def _bernoulli(p: Tensor, q: Tensor) -> Tensor:
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def test_the_distance_is_the_chain_rule_of_objectness_class_and_box():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 85, 4, 5, generator=generator, dtype=torch.float64)
    p, q = a[:, 0].sigmoid(), b[:, 0].sigmoid()
    c, d = a[:, 5:].log_softmax(1), b[:, 5:].log_softmax(1)
    classes = (c.exp() * (c - d)).sum(1)
    size = a[:, 3:5].sigmoid()
    moved = (b[:, 1:3].tanh() - a[:, 1:3].tanh()) / torch.tensor([5.0, 4.0])[:, None, None]
    box = (moved / size).square().sum(1) + (b[:, 3:5].sigmoid() / size).log().square().sum(1)
    expected = (_bernoulli(p, q) + p * (classes + 0.5 * box)).sum((1, 2))
    torch.testing.assert_close(detection.distance(a, b), expected)
    assert not detection.distance(b, a).allclose(expected, rtol=0.01)
    torch.testing.assert_close(detection.distance(a, a), torch.zeros(3, dtype=torch.float64))


def test_the_distance_is_measured_by_the_heads_of_the_answers():
    # its Hessian at the float outputs is what KL and squared distance of the heads have
    a = torch.randn(1, 85, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    direction = torch.randn(a.shape, generator=torch.Generator().manual_seed(2), dtype=a.dtype)
    heads, moved = torch.func.jvp(lambda o: detection.answers(o, a), (a,), (direction,))
    p = heads["what"].softmax(1)
    mean = (p * moved["what"]).sum(1, keepdim=True)
    curvature = (p * (moved["what"] - mean).square()).sum() + moved["where"].square().sum()
    step = 1e-4
    found = detection.distance(a, a + step * direction) * 2 / step**2
    torch.testing.assert_close(found[0], curvature, rtol=1e-3, atol=0)


def noisy(boxes: Tensor) -> Tensor:
    """Logits of five images whose detections are right, wrong and doubtful."""
    found = map_of(boxes)
    generator = torch.Generator().manual_seed(3)
    return found + 2.5 * torch.randn(found.shape, generator=generator)


def test_precision_of_images_drawn_several_times():
    truth = torch.cat([TRUTH, aside(TRUTH.clone()), misnamed(TRUTH.clone())[:1]])
    found = noisy(truth)
    times = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 1, 1], [0, 3, 0, 0, 2], [3, 1, 0, 1, 0]])
    got = detection.resampled_map50(found, truth, times)
    for drawn, value in zip(times, got, strict=True):
        rows = np.repeat(np.arange(5), drawn)
        assert value == pytest.approx(detection.map50(found[rows], truth[rows]), abs=1e-9)
    assert got.min() > 0.1 and len(set(got.round(6))) > 2
    assert detection.resampled_map50(torch.full_like(found, -20.0), truth, times).max() == 0


@pytest.mark.data
@pytest.mark.skipif(not networks.root().is_dir(), reason=f"there is no {networks.root()}")
def test_traces_of_the_captured_detector_are_those_of_the_module():
    data = fastestdet.coco()
    x = torch.from_numpy(data["train_x"][:4])
    network = build(fastestdet.fastestdet(), x)
    found = detection.sensitivity(network, x)
    options = {"effort": 4.0, "chunk": 16, "edges": False}
    module = traces(network.module, x, detection.LOSSES, select=detection.answers, **options)
    for layer in network.layers:
        a, b = found.layers[layer.name], module.layers[layer.name]
        np.testing.assert_allclose(a.value, b.value, rtol=1e-3, atol=1e-6 * b.value.max())
    assert set(found.edges) == {e.name for e in network.edges}
    assert min(e.value.min() for e in found.edges.values()) >= 0
