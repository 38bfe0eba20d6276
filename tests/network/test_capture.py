"""Capture: the graph computes what the model does, batch-norm folded, and the model is left alone.

Models are float64 throughout, so that equal means equal to rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.errors import BitwrightError
from bitwright.network import build, outputs, run
from bitwright.network.ops import aten, clip_ends, is_clip_at_zero
from small import Fn

IMAGE, VECTOR, SERIES = (3, 6, 6), (5,), (3, 9)


def settled(model: nn.Module, shape: tuple[int, ...] = ()) -> nn.Module:
    """Float64 in evaluation mode, with batch-norms that do something."""
    model = model.double().eval()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
            m.running_mean.uniform_(-0.5, 0.5)
            m.running_var.uniform_(0.3, 2.0)
            if m.affine:
                nn.init.uniform_(m.weight, -1.5, 1.5)
                nn.init.uniform_(m.bias, -0.5, 0.5)
    return model


def targets(network) -> list:
    return [n.target for n in network.module.graph.nodes if n.op == "call_function"]


def conv(i: int, o: int, k: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def shared_bias() -> nn.Module:
    a, b = nn.Linear(5, 4), nn.Linear(4, 4)
    b.bias = a.bias
    return nn.Sequential(a, nn.BatchNorm1d(4), nn.ReLU(), b)


def twice(m: Fn, x: Tensor) -> Tensor:
    return m.c(torch.tanh(m.c(x)))


def chunk_in_place(m: Fn, x: Tensor) -> Tensor:
    h = m.l(x)
    a, _ = h.chunk(2, 1)
    a.add_(1.0)
    return h


def dropout_alias(m: Fn, x: Tensor) -> Tensor:
    h = m.l(x)
    F.dropout(h, 0.5, m.training).relu_()
    return h * 2


def view_in_place(m: Fn, x: Tensor) -> Tensor:
    h = m.l(x)
    h.view(-1, 2, 2).relu_()
    return h + 1


def slice_assignment(m: Fn, x: Tensor) -> Tensor:
    h = m.l(x).clone()
    h[:, 1] = 0.25
    return h


def once_with_bias(m: Fn, x: Tensor) -> Tensor:
    return F.linear(m.l(x), m.l.weight) + m.l(x)


def residual(m: Fn, x: Tensor) -> Tensor:
    h = m.n(m.a(x)).relu_()
    h = m.b(h)
    h += x
    return h.relu_().mean((2, 3))


#: name -> (model, row shape, batch-norms left in the graph)
SAME: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "conv2d, bn": (lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU()), IMAGE, 0),
    "conv2d no bias, bn": (
        lambda: nn.Sequential(conv(3, 4, bias=False), nn.BatchNorm2d(4)), IMAGE, 0),
    "grouped conv2d, bn": (
        lambda: nn.Sequential(conv(3, 6, groups=3), nn.BatchNorm2d(6)), IMAGE, 0),
    "bn not affine": (
        lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, affine=False)), IMAGE, 0),
    "bn with eps": (lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4, eps=0.1)), IMAGE, 0),
    "conv1d, bn": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), SERIES, 0),
    "linear, bn": (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), VECTOR, 0),
    "linear on tokens, bn on axis 1": (
        lambda: nn.Sequential(nn.Linear(9, 4), nn.BatchNorm1d(3)), SERIES, 1),
    "two bn in a row": (
        lambda: nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), IMAGE, 0),
    "bn first": (lambda: nn.Sequential(nn.BatchNorm2d(3), conv(3, 4)), IMAGE, 1),
    "bn after relu": (
        lambda: nn.Sequential(conv(3, 4), nn.ReLU(), nn.BatchNorm2d(4)), IMAGE, 1),
    "conv with another reader": (
        lambda: Fn(lambda m, x: m.n(h := m.c(x)) + h, c=conv(3, 4), n=nn.BatchNorm2d(4)),
        IMAGE, 1),
    "two bn read one conv": (
        lambda: Fn(lambda m, x: m.n(h := m.c(x)) * m.o(h), c=conv(3, 4), n=nn.BatchNorm2d(4),
                   o=nn.BatchNorm2d(4)), IMAGE, 2),
    "conv used twice, one bn": (
        lambda: Fn(lambda m, x: m.c(m.n(m.c(x))), c=conv(3, 3), n=nn.BatchNorm2d(3)), IMAGE, 1),
    "module used twice": (lambda: Fn(twice, c=conv(3, 3)), IMAGE, 0),
    "tied weights": (
        lambda: Fn(lambda m, x: F.linear(F.linear(x, m.w).relu(), m.w), w=torch.randn(5, 5)),
        VECTOR, 0),
    "a bias of two layers, one folded": (shared_bias, VECTOR, 0),
    "residual in place": (
        lambda: Fn(residual, a=conv(3, 3), n=nn.BatchNorm2d(3), b=conv(3, 3)), IMAGE, 0),
    "relu in place": (
        lambda: nn.Sequential(conv(3, 4), nn.ReLU(inplace=True), nn.ReLU6(True)), IMAGE, 0),
    "read before and after in place": (
        lambda: Fn(lambda m, x: (h := m.l(x)).exp() + h.relu_() + h, l=nn.Linear(5, 4)),
        VECTOR, 0),
    "view changed in place": (lambda: Fn(view_in_place, l=nn.Linear(5, 4)), VECTOR, 0),
    "chunk changed in place": (lambda: Fn(chunk_in_place, l=nn.Linear(5, 4)), VECTOR, 0),
    "dropout changed in place": (lambda: Fn(dropout_alias, l=nn.Linear(5, 4)), VECTOR, 0),
    "slice assigned": (lambda: Fn(slice_assignment, l=nn.Linear(5, 4)), VECTOR, 0),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.AlphaDropout(), nn.ReLU()),
        VECTOR, 0),
    "dropout2d": (lambda: nn.Sequential(conv(3, 4), nn.Dropout2d(0.5)), IMAGE, 0),
    "functional conv": (
        lambda: Fn(lambda m, x: F.conv2d(x, m.w, stride=2, padding=1), w=torch.randn(4, 3, 3, 3)),
        IMAGE, 0),
    "functional conv by keyword": (
        lambda: Fn(
            lambda m, x: F.conv2d(input=x, weight=m.w, bias=m.b, dilation=2, groups=3),
            w=torch.randn(6, 1, 2, 2), b=torch.randn(6)), IMAGE, 0),
    "circular padding": (lambda: conv(3, 4, padding_mode="circular"), IMAGE, 0),
    "bias added by hand": (
        lambda: Fn(lambda m, x: F.linear(x, m.weight) * 2 + m.bias, weight=torch.randn(4, 5),
                   bias=torch.randn(4)), VECTOR, 0),
    "computed bias": (
        lambda: Fn(lambda m, x: m.l(F.linear(x, m.l.weight, m.b.exp())), b=torch.randn(5),
                   l=nn.Linear(5, 5)), VECTOR, 0),
    "once with bias, once without": (lambda: Fn(once_with_bias, l=nn.Linear(5, 5)), VECTOR, 0),
}  # fmt: skip
SKIP = {"computed bias": ["l"], "once with bias, once without": ["l"]}


@pytest.mark.parametrize("name", SAME)
def test_outputs_are_the_models(name: str):
    torch.manual_seed(0)
    make, shape, left = SAME[name]
    model = settled(make())
    x = torch.randn(7, *shape, dtype=torch.float64)
    if name in SKIP:  # nothing else is there to quantize, so add something
        model = nn.Sequential(model, nn.Linear(5, 4).double())
        network = build(model, x, skip=[f"0.{s}" for s in SKIP[name]])
    else:
        network = build(model, x)
    with torch.no_grad():
        expected = model(x.clone())
    before = x.clone()
    found = run(network.module, x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)
    assert sum(t is aten.batch_norm.default for t in targets(network)) == left
    for n in (1, 5):  # the batch size is free
        torch.testing.assert_close(
            outputs(network.module, x[:n], chunk=3), expected[:n], rtol=1e-12, atol=1e-12
        )


def test_nothing_is_mutated_in_the_graph():
    torch.manual_seed(0)
    for name, (make, shape, _) in SAME.items():
        if "in place" in name or "assigned" in name:
            network = build(settled(make()), torch.randn(2, *shape, dtype=torch.float64))
            mutable = [t for t in targets(network) if getattr(t, "_schema", None) is not None]
            assert not [str(t) for t in mutable if t._schema.is_mutable], name


class Counts(nn.Module):
    """Changes its input and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        x.mul_(2)
        return self.linear(x)


def test_rows_stay_even_if_the_model_changes_its_input():
    torch.manual_seed(0)
    model = Counts().double().eval()
    x = torch.randn(4, 5, dtype=torch.float64)
    before = x.clone()
    network = build(model, x)
    assert model.count == 0
    first, second = run(network.module, x), run(network.module, x)
    assert torch.equal(x, before)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, model.linear(before * 2))


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else x[:, :4]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_alone(fails: bool):
    torch.manual_seed(0)
    model = Branches() if fails else Branches().inner
    model.train()
    first = next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    first.eval()
    next(model.parameters()).requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    wants = [p.requires_grad for p in model.parameters()]
    which = [id(p) for p in model.parameters()]
    x = torch.randn(4, 5)
    rows, random = x.clone(), torch.get_rng_state()
    if fails:
        with pytest.raises(BitwrightError):
            build(model, x)
    else:
        build(model, x)
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == wants
    assert [id(p) for p in model.parameters()] == which
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(x, rows)
    assert torch.equal(torch.get_rng_state(), random)


def test_data_dependent_control_flow_is_one_line():
    with pytest.raises(BitwrightError) as caught:
        build(Branches(), torch.randn(4, 5))
    assert "\n" not in str(caught.value)
    assert "Branches" in str(caught.value)
    assert "control flow" in str(caught.value)


def test_a_fixed_batch_size_is_an_error():
    model = Fn(lambda m, x: m.l(x).reshape(2, 4) + 1, l=nn.Linear(5, 4))
    with pytest.raises(BitwrightError, match="batch"):
        build(model, torch.randn(4, 5))


def test_nothing_to_quantize():
    with pytest.raises(BitwrightError, match="no Conv1d, Conv2d, Linear or Embedding"):
        build(nn.Sequential(nn.ReLU()), torch.randn(2, 5))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(11, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x))


@pytest.mark.parametrize(
    ("model", "x", "layer"),
    [
        (Words(), torch.arange(8).reshape(2, 4), "words"),
        (
            nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.Conv2d(4, 2, 1)),
            torch.randn(2, 3, 4, 4),
            "0",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 2, 1)),
            torch.randn(2, 3, 4, 4),
            "0",
        ),
    ],
)
def test_unsupported_layers_are_named_and_can_be_skipped(model: nn.Module, x: Tensor, layer: str):
    with pytest.raises(BitwrightError) as caught:
        build(model, x)
    assert f"'{layer}'" in str(caught.value) and f"--skip {layer}" in str(caught.value)
    assert "\n" not in str(caught.value)
    network = build(model, x, skip=[layer])
    assert network.skipped == (layer,)
    assert [found.name for found in network.layers] == [{"words": "head", "0": "1"}[layer]]
    torch.testing.assert_close(run(network.module, x), model(x))


def test_skip_by_name_and_prefix():
    model = nn.Sequential(
        nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 3)
    )
    x = torch.randn(2, 5)
    assert [n.name for n in build(model, x).layers] == ["0.0", "0.1", "2"]
    assert [n.name for n in build(model, x, skip=["0."]).layers] == ["2"]
    assert [n.name for n in build(model, x, skip=["0.1"]).layers] == ["0.0", "2"]
    with pytest.raises(BitwrightError):
        build(model, x, skip=["0.", "2"])


@pytest.mark.parametrize(
    ("make", "skip"),
    [
        (lambda: Fn(once_with_bias, l=nn.Linear(5, 5)), "l"),
        (SAME["computed bias"][0], "l"),
        # a tied autoencoder: the transpose is a use that no bit width for rows could describe
        (
            lambda: Fn(
                lambda m, x: m.h(F.linear(m.l(x), m.l.weight.t())),
                l=nn.Linear(5, 4),
                h=nn.Linear(5, 3),
            ),
            "l",
        ),
    ],
)
def test_a_weight_with_uses_of_two_kinds_is_named(make: Callable[[], nn.Module], skip: str):
    torch.manual_seed(0)
    x = torch.randn(3, 5)
    model = nn.Sequential(make().eval(), nn.ReLU())
    with pytest.raises(BitwrightError, match=f"--skip 0.{skip}"):
        build(model, x)


def test_layers_are_described():
    torch.manual_seed(0)
    model = Fn(
        lambda m, x: m.head(m.c(m.c(m.d(x))).mean((2, 3))),
        d=nn.Conv2d(3, 4, 3, stride=2),
        c=nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
        head=nn.Linear(4, 5),
    )
    network = build(model, torch.randn(2, 3, 9, 9))
    d, c, head = network.layers
    assert [n.name for n in network.layers] == ["d", "c", "head"]
    assert [n.kind for n in network.layers] == ["conv2d", "conv2d", "linear"]
    assert (d.rows, d.fan_in, d.groups, d.macs, len(d.calls)) == (4, 27, 1, 4 * 16 * 27, 1)
    assert (c.rows, c.fan_in, c.groups, c.macs, len(c.calls)) == (4, 18, 2, 2 * 4 * 16 * 18, 2)
    assert (head.rows, head.fan_in, head.macs) == (5, 4, 20)
    assert network.weights == 108 + 72 + 20
    assert network.matrix(c).shape == (4, 18)
    assert not network.tensor(c.bias).any()
    assert not any(p.requires_grad for p in network.module.parameters())


@pytest.mark.parametrize(
    ("operation", "ends"),
    [
        (lambda _, x: torch.relu(x), (0, None)),
        (lambda _, x: F.relu6(x), (0, 6)),
        (lambda _, x: F.hardtanh(x), (-1, 1)),
        (lambda _, x: F.hardtanh(x, -2, 3), (-2, 3)),
        (lambda _, x: x.clamp(min=-1), (-1, None)),
        (lambda _, x: x.clamp(max=4), (None, 4)),
        (lambda _, x: x.clamp(0, 5), (0, 5)),
        (lambda _, x: torch.clamp_min(x, 2), (2, None)),
        (lambda _, x: torch.sigmoid(x), (None, None)),
    ],
)
def test_ends_of_clips(operation: Callable[..., Tensor], ends: tuple[float | None, float | None]):
    graph = torch.export.export(Fn(operation), (torch.randn(2, 3),)).graph
    (node,) = (n for n in graph.nodes if n.op == "call_function")
    assert clip_ends(node) == ends
    x = torch.linspace(-9, 9, 37)
    if ends != (None, None):
        assert torch.equal(operation(None, x), x.clamp(*ends))
    assert is_clip_at_zero(node) == (ends[0] == 0)


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = 2 * x
        return self.layer(x)


def test_what_cannot_be_traced_is_told_with_its_line():
    with pytest.raises(BitwrightError) as caught:
        build(Decides(), torch.randn(4, 4))
    message = str(caught.value)
    assert "at test_capture.py:" in message and "(if x.sum() > 0:)" in message
    assert "\n" not in message and len(message) < 600
