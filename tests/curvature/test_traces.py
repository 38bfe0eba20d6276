"""`traces` on any module against dense Hessians in float64: layers, losses, data, refusals."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import bitwright
from bitwright.errors import BitwrightError
from small import Fn

Call = Callable[[dict[str, Tensor]], Tensor]


def dense(f: Callable[[Tensor], Tensor], at: Tensor, axis: int) -> np.ndarray:
    """Traces of the dense Hessian's diagonal blocks, by the index along `axis`."""
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        hessian = torch.autograd.functional.hessian(f, at.detach())
    diagonal = hessian.reshape(at.numel(), at.numel()).diagonal().reshape(at.shape)
    if not at.ndim:
        return diagonal.reshape(1).numpy()
    return diagonal.movedim(axis, 0).reshape(at.shape[axis], -1).sum(1).numpy()


def kl(model: nn.Module, call: Callable[[nn.Module, dict[str, Tensor]], Tensor]) -> Call:
    """The mean KL to the model itself, as a function of changed parameters."""
    with torch.no_grad():
        p = call(model, {}).log_softmax(1)

    def f(changed: dict[str, Tensor]) -> Tensor:
        q = call(model, changed).log_softmax(1)
        return (p.exp() * (p - q)).sum() / len(p)

    return f


def expected(model: nn.Module, f: Call, names: list[str], axes: dict[str, int]) -> dict[str, Any]:
    state = dict(model.named_parameters())
    return {n: dense(lambda w, n=n: f({n: w}), state[n], axes.get(n, 0)) for n in names}


def close(found: bitwright.Sensitivity, wanted: dict[str, np.ndarray]) -> list[str]:
    """What is off by more than 1e-9 of the largest channel."""
    assert {n.removesuffix(".weight") for n in wanted} == set(found.layers)
    off = []
    for name, true in wanted.items():
        value = found.layers[name.removesuffix(".weight")].value
        assert value.shape == true.shape, name
        if not np.abs(value - true).max() <= 1e-9 * np.abs(true).max() + 1e-15:
            off.append(name)
    return off


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is [in, out] and the rows are merged."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(i, o) * 0.5)
        self.bias = nn.Parameter(torch.randn(o))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


def pooled(m: Fn, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(torch.tanh(h).flatten(2).mean(2))


def attends(m: Fn, x: Tensor) -> Tensor:
    return m.head(m.a(x, x, x, need_weights=False)[0].mean(1))


def attends_tokens_first(m: Fn, x: Tensor) -> Tensor:
    x = x.transpose(0, 1)
    return m.head(m.a(x, x, x)[0].mean(0))


def crosses(m: Fn, x: Tensor) -> Tensor:
    return m.head(m.a(x, torch.tanh(x), torch.tanh(x))[0].mean(1))


def tied(m: Fn, x: Tensor) -> Tensor:
    return F.linear(torch.tanh(m.e(x)).mean(1), m.e.weight)


def embeds(m: Fn, x: Tensor) -> Tensor:
    return m.head(torch.tanh(m.e(x)).flatten(1))


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 6, shape)


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


Made = tuple[nn.Module, Tensor, dict[str, int], list[str]]
#: name -> module, rows, channel axes that are not 0, parameters measured one sample at a time
ROSTER: dict[str, Callable[[], Made]] = {
    "conv3d": lambda: (
        Fn(pooled, a=nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1), head=nn.Linear(3, 3)),
        image(4, 2, 3, 4, 3), {}, []),
    "conv, padding same of an even kernel": lambda: (
        Fn(pooled, a=nn.Conv2d(2, 3, (2, 3), padding="same", dilation=2), head=nn.Linear(3, 3)),
        image(4, 2, 5, 5), {}, []),
    "transposed conv2d": lambda: (
        Fn(pooled, a=nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1),
           head=nn.Linear(3, 3)), image(4, 2, 3, 4), {"a.weight": 1}, []),
    "transposed conv1d, dilated, wide padding": lambda: (
        Fn(pooled, a=nn.ConvTranspose1d(3, 2, 3, stride=2, padding=4, dilation=2),
           head=nn.Linear(2, 3)), image(4, 3, 9), {"a.weight": 1}, []),
    "attention": lambda: (
        Fn(attends, a=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 3)),
        image(4, 3, 4), {}, []),
    "attention, tokens first": lambda: (
        Fn(attends_tokens_first, a=nn.MultiheadAttention(4, 2), head=nn.Linear(4, 3)),
        image(4, 4, 4), {}, []),
    "attention, packed weight in chunks": lambda: (
        Fn(crosses, a=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 3)),
        image(4, 3, 4), {}, []),
    "transformer block": lambda: (
        Fn(lambda m, x: m.head(m.b(x).mean(1)),
           b=nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True), head=nn.Linear(4, 3)),
        image(4, 3, 4), {}, []),
    "embedding": lambda: (
        Fn(embeds, e=nn.Embedding(6, 3), head=nn.Linear(12, 3)), tokens(5, 4), {}, []),
    "embedding with padding": lambda: (
        Fn(embeds, e=nn.Embedding(6, 3, padding_idx=2), head=nn.Linear(12, 3)), tokens(5, 4),
        {}, []),
    "embedding tied to the head": lambda: (Fn(tied, e=nn.Embedding(6, 3)), tokens(5, 4), {}, []),
    "GPT-2's Conv1D": lambda: (
        Fn(lambda m, x: m.head(torch.tanh(m.a(x)).mean(1)), a=Conv1D(3, 4), head=nn.Linear(4, 3)),
        image(4, 3, 3), {"a.weight": 1}, []),
    "layer norm": lambda: (
        Fn(lambda m, x: m.head(torch.tanh(m.n(x)).mean(1)), n=nn.LayerNorm(4),
           head=nn.Linear(4, 3)), image(4, 3, 4), {}, []),
    "rms norm": lambda: (
        Fn(lambda m, x: m.head(torch.tanh(m.n(x)).mean(1)), n=nn.RMSNorm(4),
           head=nn.Linear(4, 3)), image(4, 3, 4), {}, []),
    "layer norm over two axes": lambda: (
        Fn(lambda m, x: m.head(torch.tanh(m.n(x)).mean(1)), n=nn.LayerNorm((4, 4)),
           head=nn.Linear(4, 3)), image(3, 4, 4), {}, ["n.weight"]),
    "rms norm over two axes": lambda: (
        Fn(lambda m, x: m.head(torch.tanh(m.n(x)).mean(1)), n=nn.RMSNorm((3, 4)),
           head=nn.Linear(4, 3)), image(4, 3, 4), {}, ["n.weight"]),
    "group norm": lambda: (
        Fn(pooled, a=nn.GroupNorm(2, 4), head=nn.Linear(4, 3)), image(4, 4, 3), {}, []),
    "batch norm, evaluating": lambda: (
        Fn(pooled, a=nn.BatchNorm2d(3), head=nn.Linear(3, 3)), image(4, 3, 2, 3), {}, []),
    "in place behind every layer": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(inplace=True), nn.BatchNorm2d(3),
                      nn.ReLU6(inplace=True), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(inplace=True),
                      nn.Linear(4, 3)), image(4, 2, 3, 3), {}, []),
    "a weight that is normalized itself": lambda: (
        Fn(lambda m, x: m.head(torch.tanh(F.linear(x, F.layer_norm(m.w, (4,))))),
           w=torch.randn(3, 4), head=nn.Linear(3, 3)), image(4, 4), {}, ["w"]),
    "used twice, in parallel and in sequence": lambda: (
        Fn(lambda m, x: m.head(m.l(torch.tanh(m.l(x))) + m.l(-x)), l=nn.Linear(4, 4),
           head=nn.Linear(4, 3)), image(4, 4), {}, []),
    "linear to one number": lambda: (
        Fn(lambda m, x: m.head(torch.tanh(F.linear(x, m.w))), w=torch.randn(4),
           head=nn.Linear(3, 3)), image(4, 3, 4), {}, ["w"]),
    "encoder and decoder of one weight": lambda: (
        Fn(lambda m, x: m.head(torch.tanh(F.linear(x, m.w)) @ m.w), w=torch.randn(4, 4),
           head=nn.Linear(4, 3)), image(4, 4), {}, ["w"]),
    "encoder and decoder of one kernel": lambda: (
        Fn(lambda m, x: m.head(
            F.conv_transpose1d(torch.tanh(F.conv1d(x, m.w)), m.w).mean(2)),
           w=torch.randn(5, 4, 2), head=nn.Linear(4, 3)), image(3, 4, 4), {}, ["w"]),
    "detached and not": lambda: (
        Fn(lambda m, x: m.head(torch.tanh(F.linear(x, m.w)) + F.linear(x, m.w.detach())),
           w=torch.randn(4, 4), head=nn.Linear(4, 3)), image(4, 4), {}, []),
    "a scale that is also an offset": lambda: (
        Fn(lambda m, x: m.head(F.linear(torch.tanh(F.layer_norm(x, (4,), m.w)), m.v, m.w)),
           w=torch.randn(4), v=torch.randn(4, 4), head=nn.Linear(4, 3)), image(4, 4), {}, ["w"]),
    "a weight that is its own input": lambda: (
        Fn(lambda m, x: m.head(torch.tanh(x @ (m.w @ m.w))), w=torch.randn(4, 4),
           head=nn.Linear(4, 3)), image(4, 4), {}, ["w"]),
    "positions and a scale": lambda: (
        Fn(lambda m, x: m.head((torch.tanh(m.l(x + m.p)) * m.g).mean(1)), l=nn.Linear(4, 4),
           p=torch.randn(3, 4), g=torch.randn(4), head=nn.Linear(4, 3)), image(4, 3, 4), {},
        ["g", "p"]),
    "lstm": lambda: (
        Fn(lambda m, x: m.head(m.r(x)[0][:, -1]), r=nn.LSTM(3, 2, batch_first=True),
           head=nn.Linear(2, 3)), image(3, 3, 3), {},
        ["r.bias_hh_l0", "r.bias_ih_l0", "r.weight_hh_l0", "r.weight_ih_l0"]),
}  # fmt: skip


def made(name: str) -> Made:
    torch.manual_seed(sum(map(ord, name)))
    model, x, axes, loose = ROSTER[name]()
    model = model.double().eval()
    for m in model.modules():
        if hasattr(m, "running_mean"):
            m.running_mean.uniform_(-0.5, 0.5)
            m.running_var.uniform_(0.5, 2.0)
        if hasattr(m, "num_groups") or hasattr(m, "normalized_shape") or hasattr(m, "running_mean"):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            if getattr(m, "bias", None) is not None:
                nn.init.uniform_(m.bias, -0.5, 0.5)
    return model, x, axes, loose


def measured(model: nn.Module, loose: list[str]) -> list[str]:
    """Parameters that multiply something: all but plain biases."""
    return [n for n, _ in model.named_parameters() if n in loose or "bias" not in n]


@pytest.mark.parametrize("name", ROSTER)
def test_exact(name: str):
    model, x, axes, loose = made(name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = bitwright.traces(model, x, tolerance=0, chunk=3, edges=False)
    call = lambda m, changed: functional_call(m, changed, (x,))  # noqa: E731
    wanted = expected(model, kl(model, call), measured(model, loose), axes)
    assert close(found, wanted) == []
    pairs = bitwright.traces(model, x, tolerance=0, chunk=2, edges=False)  # passes of two rows
    assert close(pairs, wanted) == []
    assert found.details["one_by_one"] == ", ".join(loose)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_check_can_fail():
    model, x, axes, _ = made("attention")
    call = lambda m, changed: functional_call(m, changed, (x,))  # noqa: E731
    wanted = expected(model, kl(model, call), measured(model, []), axes)
    assert len(close(bitwright.traces(model, x[-1:], tolerance=0), wanted)) == len(wanted)
    scaled = {n: v * 1.01 for n, v in wanted.items()}
    assert len(close(bitwright.traces(model, x, tolerance=0), scaled)) == len(wanted)


# --------------------------------------------------------------------------------- losses

LOSSES: dict[str, tuple[Any, Callable[[], Tensor]]] = {
    "cross-entropy": (nn.CrossEntropyLoss(), lambda: torch.tensor([0, 2, 1, 1])),
    "cross-entropy, weights, smoothing, ignored": (
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]).double(), ignore_index=1,
                            label_smoothing=0.2), lambda: torch.tensor([0, 2, 1, 2])),
    "cross-entropy, sum": (
        nn.CrossEntropyLoss(reduction="sum"), lambda: torch.tensor([0, 2, 1, 1])),
    "cross-entropy, probabilities": (
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]).double()),
        lambda: torch.rand(4, 3, dtype=torch.float64).softmax(1)),
    "cross-entropy, probabilities, smoothing": (
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]).double(), label_smoothing=0.3),
        lambda: torch.rand(4, 3, dtype=torch.float64).softmax(1)),
    "mse": (nn.MSELoss(), lambda: torch.randn(4, 3, dtype=torch.float64)),
    "bce": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 3.0, 0.5]).double()),
        lambda: torch.randint(0, 2, (4, 3)).double()),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("head", ["vector", "map"])
def test_losses(name: str, head: str):
    """A linear network: Gauss-Newton is the whole Hessian of any loss."""
    torch.manual_seed(1)
    loss, make = LOSSES[name]
    if head == "vector":
        model: nn.Module = nn.Linear(4, 3).double()
        x, y = image(4, 4), make()
    else:
        model = nn.Conv1d(2, 3, 2).double()
        x, y = image(4, 2, 3), make()
        y = torch.stack([y, y.flip(0)], -1)
        if getattr(loss, "pos_weight", None) is not None:
            loss = nn.BCEWithLogitsLoss(pos_weight=loss.pos_weight[:, None])
    found = bitwright.traces(model, (x, y), loss, tolerance=0)
    f = lambda changed: loss(functional_call(model, changed, (x,)), y)  # noqa: E731
    total = f({}) if loss.reduction == "mean" else f({}) / 4
    assert torch.isfinite(total)
    wanted = expected(model, f, ["weight"], {})["weight"]
    wanted = wanted if loss.reduction == "mean" else wanted / 4  # ours is a mean over rows
    np.testing.assert_allclose(found.layers["weight"].value, wanted, rtol=1e-9)


@pytest.mark.parametrize("wrap", [dict, SimpleNamespace])
def test_what_is_called_logits_is_what_the_loss_sees(wrap: Any):
    torch.manual_seed(1)
    model = Fn(
        lambda m, x: wrap(hidden=torch.tanh(x), logits=m.a(torch.tanh(x))), a=nn.Linear(4, 3)
    ).double()
    plain = Fn(lambda m, x: m.a(torch.tanh(x)), a=model.a)
    x = image(5, 4)
    found, wanted = (bitwright.traces(m, x, tolerance=0).layers["a"] for m in (model, plain))
    assert found.value.tolist() == wanted.value.tolist()


def test_heads_are_summed():
    torch.manual_seed(1)
    model = Fn(lambda m, x: {"a": m.a(x), "b": m.b(x)}, a=nn.Linear(4, 3), b=nn.Linear(4, 2))
    model = model.double()
    x, ya, yb = image(5, 4), torch.randint(0, 3, (5,)), torch.randn(5, 2, dtype=torch.float64)
    losses = {"a": nn.CrossEntropyLoss(), "b": nn.MSELoss()}
    found = bitwright.traces(model, (x, {"a": ya, "b": yb}), losses, tolerance=0)

    def f(changed: dict[str, Tensor]) -> Tensor:
        y = functional_call(model, changed, (x,))
        return losses["a"](y["a"], ya) + losses["b"](y["b"], yb)

    wanted = expected(model, f, ["a.weight", "b.weight"], {})
    for name in "ab":
        np.testing.assert_allclose(found.layers[name].value, wanted[f"{name}.weight"], rtol=1e-9)


def test_tokens_of_a_vocabulary():
    """[n, tokens, vocabulary] with the classes last, padded tokens ignored."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(6, 3), nn.Tanh(), nn.Linear(3, 6)).double()
    x = tokens(4, 5)
    y = torch.where(torch.rand(4, 5) < 0.3, -100, x)
    loss = nn.CrossEntropyLoss()
    found = bitwright.traces(model, (x, y), loss, class_axis=-1, tolerance=0)
    p = model(x).softmax(-1)
    h = model[1](model[0](x)).square().sum(-1)
    kept = y != -100
    wanted = (p * (1 - p) * h[..., None] * kept[..., None]).sum((0, 1)) / kept.sum()
    np.testing.assert_allclose(found.layers["2"].value, wanted.detach().numpy(), rtol=1e-9)


def test_losses_without_a_curvature_are_refused_by_name():
    model, x, _, _ = made("embedding")

    def iou(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum()

    for loss, name in ((iou, "iou"), (nn.L1Loss(), "L1Loss"), ("hinge", "hinge")):
        with pytest.raises(BitwrightError, match=rf"'{name}'.*hutchinson"):
            bitwright.traces(model, x, loss)
    with pytest.raises(BitwrightError, match="needs targets"):
        bitwright.traces(model, x, nn.CrossEntropyLoss())


# ----------------------------------------------------------------------------------- data


def flat(found: bitwright.Sensitivity, part: str = "value") -> np.ndarray:
    groups = [*found.layers.values(), *found.edges.values()]
    return np.concatenate([getattr(e, part) for e in groups])


def test_unequal_batches_agree_with_one():
    model, x, _, _ = made("attention")
    y = torch.tensor([0, 2, 1, 1])
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.2]).double())
    whole = bitwright.traces(model, (x, y), loss, tolerance=0)
    for data in (
        [(x[:1], y[:1]), (x[1:], y[1:])],
        [[x[:3], y[:3]], [x[3:], y[3:]]],
        iter([(x[:2], y[:2]), (x[2:3], y[2:3]), (x[3:], y[3:])]),
    ):
        found = bitwright.traces(model, data, loss, tolerance=0)
        np.testing.assert_allclose(flat(found), flat(whole), rtol=1e-10)
        assert found.layers["head"].samples == 4
    mean_of_batches = np.mean(
        [flat(bitwright.traces(model, (x[s], y[s]), loss, tolerance=0))
         for s in (slice(1), slice(1, 4))], axis=0)  # fmt: skip
    assert not np.allclose(mean_of_batches, flat(whole), rtol=0.05)


def test_batches_of_different_lengths():
    """Sentences padded batch by batch: no two batches have one shape."""
    torch.manual_seed(0)
    model = Fn(lambda m, x: m.head(torch.tanh(m.e(x)).mean(1)), e=nn.Embedding(6, 3),
               head=nn.Linear(3, 3)).double()  # fmt: skip
    short, long = tokens(3, 4), tokens(2, 7)
    found = bitwright.traces(model, [short, long], tolerance=0)
    parts = [bitwright.traces(model, x, tolerance=0) for x in (short, long)]
    wanted = (3 * flat(parts[0]) + 2 * flat(parts[1])) / 5
    np.testing.assert_allclose(flat(found), wanted, rtol=1e-10)


def test_keyword_arguments_and_logits():
    class Output(dict):
        pass

    def forward(m: Fn, ids: Tensor, mask: Tensor) -> Any:
        h = (torch.tanh(m.e(ids)) * mask[..., None]).sum(1)
        return Output(logits=m.head(h), hidden=h)

    class Model(Fn):
        def forward(self, ids: Tensor, mask: Tensor) -> Any:
            return forward(self, ids, mask)

    torch.manual_seed(0)
    model = Model(forward, e=nn.Embedding(6, 3), head=nn.Linear(3, 3)).double()
    ids, mask = tokens(4, 5), torch.ones(4, 5, dtype=torch.float64)
    mask[:, 3:] = 0
    found = bitwright.traces(model, {"ids": ids, "mask": mask, "labels": tokens(4)}, tolerance=0)
    call = lambda m, changed: functional_call(m, changed, (ids, mask))["logits"]  # noqa: E731
    assert close(found, expected(model, kl(model, call), ["e.weight", "head.weight"], {})) == []
    hidden = bitwright.traces(
        model, {"ids": ids, "mask": mask}, "squared", select=lambda out: out["hidden"], tolerance=0
    )
    assert hidden.layers["e"].value.min() > 0  # every token met
    assert not hidden.layers["head"].value.any()  # behind the hidden state
    several = Fn(lambda m, x: (m.e(x).mean(1), x, "said", None), e=nn.Embedding(6, 3)).double()
    alone = Fn(lambda m, x: m.e(x).mean(1), **dict(several.named_children()))
    one, other = (bitwright.traces(m, ids, tolerance=0).layers["e"] for m in (several, alone))
    assert (one.value == other.value).all()  # the only float tensor among what it returns
    pair = Fn(lambda m, x: (m.e(x).mean(1), m.e(x)), e=nn.Embedding(6, 3)).double()
    with pytest.raises(BitwrightError, match="2 float tensors"):
        bitwright.traces(pair, ids)


@pytest.mark.parametrize("first", [True, False])
def test_edges_by_token_and_as_tensors(first: bool):
    """Dense Hessians in a hidden activation [n, tokens, C], batch or tokens first, by each axis."""
    torch.manual_seed(0)

    weights = torch.linspace(1, 2, 4).double()[:, None]  # tokens count unequally

    def forward(m: Fn, x: Tensor) -> Tensor:
        if first:
            return m.head(torch.tanh(m.b(torch.tanh(m.a(x))) * weights).mean(1))
        h = m.b(torch.tanh(m.a(x.transpose(0, 1)))) * weights[..., None]
        return m.head(torch.tanh(h).mean(0))

    model = Fn(forward, a=nn.Linear(2, 3), b=nn.Linear(3, 5), head=nn.Linear(5, 3)).double()
    x = image(6, 4, 2)
    p = model(x).log_softmax(1).detach()

    def f(t: Tensor) -> Tensor:  # of the input of b
        q = model.head(torch.tanh(model.b(t) * weights).mean(1)).log_softmax(1)
        return (p.exp() * (p - q)).sum() / len(p)

    at = torch.tanh(model.a(x)).detach()
    hessian = torch.autograd.functional.hessian(f, at).reshape(72, 72).diagonal().reshape(6, 4, 3)
    for edges, axes in (("channel", (0, 1)), ("token", (0, 2)), ("tensor", (0, 1, 2))):
        found = bitwright.traces(model, x, tolerance=0, chunk=4, edges=edges).edges["b.input"]
        wanted = hessian.sum(axes).reshape(-1).numpy()
        np.testing.assert_allclose(found.value, wanted, rtol=1e-9)
    sums = hessian.sum((1, 2)).numpy() * 6
    assert found.stderr_data[0] == pytest.approx(sums.std(ddof=1) / np.sqrt(6))


def test_tokens_of_images_are_their_pixels_and_lengths_must_agree():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    found = bitwright.traces(model, image(3, 1, 4, 5), tolerance=0, edges="token")
    assert found.edges["2.input"].value.shape == (20,)
    mixed = [image(3, 1, 4, 5), image(2, 1, 3, 3)]
    with pytest.raises(BitwrightError, match=r"'0.input' has 9 tokens in one batch and 20 in"):
        bitwright.traces(model, mixed, tolerance=0, edges="token")
    whole = bitwright.traces(model, mixed, tolerance=0, edges="tensor").edges["2.input"]
    by = bitwright.traces(model, mixed, tolerance=0).edges["2.input"]
    assert whole.value[0] == pytest.approx(by.value.sum())
    with pytest.raises(BitwrightError, match="edges 'pixel' is unknown"):
        bitwright.traces(model, mixed, edges="pixel")


#: operation -> its weight or layer, what follows its input, and the axis of that input's channels
EDGES: dict[str, Callable[[], tuple[Any, Callable[[Any, Tensor], Tensor], int]]] = {
    "linear": lambda: (nn.Linear(4, 3), lambda m, h: m.b(h).tanh().mean(1), -1),
    "matmul": lambda: (torch.randn(4, 3), lambda m, h: (h @ m.b).tanh().mean(1), -1),
    "conv": lambda: (nn.Conv1d(4, 3, 2), lambda m, h: m.b(h).tanh().mean(2), 1),
    "transposed": lambda: (nn.ConvTranspose1d(4, 3, 2), lambda m, h: m.b(h).tanh().mean(2), 1),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges_of_every_operation_are_those_of_the_dense_hessian(name: str):
    torch.manual_seed(0)
    part, rest, axis = EDGES[name]()
    model = Fn(lambda m, x: m.head(rest(m, m.a(x))), a=nn.Linear(4, 4), b=part,
               head=nn.Linear(3, 3)).double()  # fmt: skip
    x = image(5, 4, 4)
    found = bitwright.traces(model, x, tolerance=0).edges["b.input"].value
    with torch.no_grad():
        at, p = model.a(x), model(x).log_softmax(1)

    def f(h: Tensor) -> Tensor:
        return (p.exp() * (p - model.head(rest(model, h)).log_softmax(1))).sum() / len(p)

    hessian = torch.autograd.functional.hessian(f, at).reshape(80, 80).diagonal().reshape(5, 4, 4)
    wanted = hessian.movedim(axis, 0).flatten(1).sum(1)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-9)


@pytest.mark.parametrize("shapes", [((3, 4), (2, 4)), ((5, 3, 4), (5, 2, 4))])
def test_outputs_of_one_shape_are_asked_for(shapes: tuple[tuple[int, ...], ...]):
    model = nn.Linear(4, 3).double()
    with pytest.raises(BitwrightError, match=r"different shapes in different batches .* pad them"):
        bitwright.traces(model, [image(6, *shape) for shape in shapes])


def test_edges_are_inputs_of_layers_summed_over_their_consumers():
    torch.manual_seed(0)
    model = Fn(lambda m, x: m.head(m.a(torch.tanh(x)) + m.b(torch.tanh(x))), a=nn.Linear(4, 3),
               b=nn.Linear(4, 3), head=nn.Linear(3, 3))  # fmt: skip
    shared = Fn(lambda m, x: (lambda h: m.head(m.a(h) + m.b(h)))(torch.tanh(x)), a=model.a,
                b=model.b, head=model.head).double()  # fmt: skip
    x = image(5, 4)
    found = bitwright.traces(shared, x, tolerance=0)
    assert list(found.edges) == ["a.input", "head.input"]
    h = torch.tanh(x)
    with torch.no_grad():
        p = shared(x).log_softmax(1)

    def f(h: Tensor) -> Tensor:
        q = shared.head(shared.a(h) + shared.b(h)).log_softmax(1)
        return (p.exp() * (p - q)).sum() / len(p)

    hessian = torch.autograd.functional.hessian(f, h).reshape(20, 20).diagonal().reshape(5, 4)
    np.testing.assert_allclose(found.edges["a.input"].value, hessian.sum(0).numpy(), rtol=1e-9)


def test_frozen_and_unused_parameters_are_told():
    torch.manual_seed(0)
    model = Fn(lambda m, x: m.head(m.a(x)), a=nn.Linear(4, 3), head=nn.Linear(3, 3),
               spare=nn.Linear(2, 2)).double()  # fmt: skip
    model.a.requires_grad_(False)
    x = image(5, 4)
    found = bitwright.traces(model, x, tolerance=0)
    assert found.details["frozen"] == "a.weight"
    assert found.details["unused"] == "spare.weight, spare.bias"
    call = lambda m, changed: functional_call(m, changed, (x,))  # noqa: E731
    model.a.requires_grad_(True)
    assert close(found, expected(model, kl(model, call), ["a.weight", "head.weight"], {})) == []


def test_an_offset_without_a_scale_is_used():
    torch.manual_seed(0)
    model = Fn(lambda m, x: m.head(F.layer_norm(x, (4,), None, m.bias)), bias=torch.randn(4),
               head=nn.Linear(4, 3)).double()  # fmt: skip
    found = bitwright.traces(model, image(5, 4), tolerance=0)
    assert (found.layers.keys(), found.details["unused"]) == ({"head"}, "")


def test_the_model_keeps_its_own_tensors():
    """Those of a module in two places, of two modules, and buffers as well."""
    torch.manual_seed(0)
    twice, norm, tied = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
    model = nn.Sequential(twice, norm, twice, norm, nn.Tanh(), tied, nn.Linear(4, 4))
    model[6].weight = tied.weight
    model.double().eval()
    before = [*model.parameters(), *model.buffers()]
    found = bitwright.traces(model, image(5, 4), tolerance=0)
    assert found.layers.keys() == {"0", "1", "5"} and not found.details["unused"]
    after = [*model.parameters(), *model.buffers()]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert model[2].weight is twice.weight and model[6].weight is tied.weight


# ------------------------------------------------------------------------------- refusals


def test_randomness_and_batch_statistics_are_refused():
    torch.manual_seed(0)
    x = image(6, 4)
    dropout = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    with pytest.raises(BitwrightError, match=r"dropout in training mode.*\.eval"):
        bitwright.traces(dropout, x)
    assert bitwright.traces(dropout.eval(), x).layers.keys() == {"0", "2"}
    norm = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    before = {n: t.clone() for n, t in norm.state_dict().items()}
    with pytest.raises(BitwrightError, match="mixes the samples"):
        bitwright.traces(norm, x)
    assert all(torch.equal(before[n], t) for n, t in norm.state_dict().items())
    assert bitwright.traces(norm.eval(), x).layers.keys() == {"0", "1", "2"}


def test_inputs_changed_in_place_afterwards_are_refused():
    def forward(m: Fn, x: Tensor) -> Tensor:
        h = x * 2
        y = m.a(h)
        h += 1
        return m.head(y)

    model = Fn(forward, a=nn.Linear(4, 4), head=nn.Linear(4, 3)).double()
    with pytest.raises(BitwrightError, match=r"'a.weight' is changed in place.*x = x \+ y"):
        bitwright.traces(model, image(3, 4))


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "no rows"),
        (torch.full((3, 4), torch.nan, dtype=torch.float64), "NaN"),
        (42, "data is a int"),
        ([(image(2, 4), torch.zeros(3))], "2 inputs and 3 targets"),
        ([(image(2, 4), image(2, 4), torch.zeros(2))], "3 parts"),
        ({}, "no tensor"),
    ],
)
def test_bad_data_is_refused_in_a_line(data: Any, message: str):
    with pytest.raises(BitwrightError, match=message) as caught:
        bitwright.traces(nn.Linear(4, 3).double(), data)
    assert "\n" not in str(caught.value)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(BitwrightError, match="no parameters"):
        bitwright.traces(nn.Flatten(), image(3, 4))
    with pytest.raises(BitwrightError, match="tolerance"):
        bitwright.traces(nn.Linear(4, 3).double(), image(3, 4), tolerance=-1)
