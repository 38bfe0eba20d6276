"""An embedding is a product with one-hot rows: traces, forms and rounding against that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bitwright import curvature, quantize
from bitwright.curvature import forms, gauss_newton
from bitwright.network import Network, build, run
from bitwright.network.ops import is_lookup
from bitwright.quantize import (
    Rows,
    calibrate,
    channel_losses,
    correct,
    float_outputs,
    round_weights,
    round_with_feedback,
    simulate,
    weight_tables,
)
from bitwright.train.trainable import Trainable
from mutants import mutated
from small import Fn

V, D = 7, 4


class Reader(nn.Module):
    """Words with padding, positions; the padded row is read like every other."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(V, D, padding_idx=0), nn.Embedding(5, D)
        self.head = nn.Linear(D, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(x).sum(1))


MODELS = {
    "positions": lambda: Reader(),
    "twice": lambda: Fn(lambda m, x: m.head(torch.tanh(m.words(x) * m.words((x + 1) % V)).sum(1)),
                        words=nn.Embedding(V, D), head=nn.Linear(D, 3)),
    "tied": lambda: Fn(lambda m, x: linear(torch.tanh(m.words(x)).sum(1), m.words.weight),
                       words=nn.Embedding(V, D)),
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, Network, Tensor]:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        model.words.weight[0] = torch.randn(D)  # type: ignore[union-attr, operator, index]
    ids = torch.randint(0, V - 1, (12, 4), generator=torch.Generator().manual_seed(1))  # one unseen
    return model, build(model, ids), ids


def dense(network: Network, ids: Tensor, weight: str) -> Tensor:
    """The table's Gauss-Newton matrix, float64 [V·d, V·d]: every lookup as one-hot @ table."""

    def call(node, args, kwargs):  # type: ignore[no-untyped-def]
        if is_lookup(node):
            hot = nn.functional.one_hot(args[1], len(args[0])).double()
            return hot @ args[0]
        return node.target(*args, **kwargs)

    tensors = {n.target: network.tensor(n.target).double() for n in network.module.graph.nodes
               if n.op == "get_attr" and network.tensor(n.target).is_floating_point()}  # fmt: skip
    shape = network.tensor(weight).shape

    def answers(flat: Tensor) -> Tensor:
        changed = {**tensors, weight: flat.reshape(shape)}
        return run(network.module, ids, call, constants=changed)

    flat = tensors[weight].flatten()
    jacobian = torch.autograd.functional.jacobian(answers, flat)
    p = answers(flat).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nka,nkl,nlb->ab", jacobian, middle, jacobian) / len(ids)


@pytest.mark.parametrize("name", MODELS)
def test_traces_are_those_of_one_hot_rows(name: str):
    _, network, ids = made(name)
    found = curvature.gauss_newton(network, ids, tolerance=0, edges=False)
    for layer in network.layers:
        if layer.name in ("words", "places"):
            whole = dense(network, ids, layer.weight).diagonal().reshape(layer.rows, D).sum(1)
            np.testing.assert_allclose(found.layers[layer.name].value, whole, rtol=1e-4, atol=1e-8)


def forms_wrong(name: str, asked: tuple[int, ...] = (0, 1, 3, 5)) -> bool:
    """Whether a form differs from `dᵀ G_t d` of the dense matrix, for the rows asked for."""
    rows = torch.tensor(asked)
    _, network, ids = made(name)
    layer = next(la for la in network.layers if la.name == "words")
    generator = torch.Generator().manual_seed(2)
    some = rows if layer.kind == "embedding" else torch.arange(V)
    changes = torch.randn(len(some), 2, D + 1, generator=generator)
    changes[..., -1] = 0
    found = forms.quadratic_forms(
        network, ids, {"words": changes}, rows={"words": rows} if layer.kind == "embedding" else {},
        tolerance=0,
    )["words"].value  # fmt: skip
    whole = dense(network, ids, layer.weight).reshape(V, D, V, D)
    expected = np.zeros((V, 2))
    for i, row in enumerate(some.tolist()):
        d = changes[i, :, :-1].double()
        expected[row] = ((d @ whole[row, :, row]) * d).sum(1)
    return not np.allclose(found, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_forms_are_those_of_one_hot_rows(name: str):
    assert not forms_wrong(name)
    assert not forms_wrong(name, (0, 2))  # others are looked up as well


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("curvature.forms", "each *= known", "each *= 1.01 * known"),
        ("curvature.forms", "place = place[index]", "place = place[index.flip(1)]"),
        ("curvature.subjects", "args = args[0], _of", "args = args[0].detach(), _of"),
    ],
)
def test_wrong_forms_are_seen(module: str, old: str, new: str):
    with mutated(module, old, new):
        assert forms_wrong("positions")


def test_rounding_is_that_of_a_linear_layer_with_the_same_rows():
    model, network, _ = made("positions")
    single = nn.Linear(D, V, bias=False)
    with torch.no_grad():
        single.weight.copy_(model.words.weight)  # type: ignore[union-attr, arg-type]
    other = build(single.eval(), torch.randn(3, D))
    bits = np.arange(1, V + 1)
    ours, theirs = (
        round_weights(net, weight_tables(net), {la.name: np.resize(bits, la.rows)
                                                for la in net.layers})
        for net in (network, other)
    )  # fmt: skip
    (name,) = (la.name for la in other.layers)
    assert torch.equal(ours["words"].codes, theirs[name].codes)
    assert torch.equal(ours["words"].matrix(), theirs[name].matrix())


def test_neither_correction_nor_feedback_moves_a_row():
    _, network, ids = made("positions")
    tables = weight_tables(network)
    bits = {la.name: np.full(la.rows, 3) for la in network.layers}
    plain = round_weights(network, tables, bits)
    fed = round_with_feedback(network, tables, bits, ids)
    corrected = correct(network, plain, {}, ids, float_outputs(network, ids)).layers
    for layers in (fed, corrected):
        for name in ("words", "places"):
            assert torch.equal(layers[name].matrix(), plain[name].matrix())
        assert not torch.equal(layers["head"].bias, plain["head"].bias)


def test_rows_never_seen_are_predicted_to_lose_something():
    _, network, ids = made("positions")
    tables = weight_tables(network)
    found = gauss_newton(network, ids, edges=False)
    assert found.layers["words"].value[V - 1] == 0
    for score in ("trace", "actual-error", "feedback"):
        losses = channel_losses(score, network, found, tables, rows=Rows(ids))["words"]
        unseen, seen = losses[V - 1], losses[: V - 1].mean(0)
        assert (unseen[:4] > 0).all() and (unseen[:4] < seen[:4]).all(), score


def test_a_table_is_trained_like_other_layers_but_for_its_padding():
    _, network, ids = made("positions")
    bits = {la.name: np.full(la.rows, 4) for la in network.layers}
    layers = round_weights(network, weight_tables(network), bits)
    quantized = quantize.Quantized(network, layers, calibrate(network, ids))
    net = Trainable(quantized)
    torch.testing.assert_close(net(ids), simulate(quantized, ids))
    net(ids).square().sum().backward()
    gradient = net.rows[0].weight.grad
    assert not gradient[0].any() and not gradient[V - 1].any() and gradient[1:3].any(1).all()
    assert len(net.groups()) == 2 + 2 + 3 + len(net.edges)  # an embedding has no bias
    again = net.quantized()
    torch.testing.assert_close(simulate(again, ids), simulate(quantized, ids))
    assert len(again.layers["words"].bias) == 0
