"""Gauss-Newton traces against dense Hessians of tiny float64 networks, and their two errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bitwright
from bitwright.curvature import Sensitivity, divergence, gauss_newton, subjects
from bitwright.curvature.losses import OutputHessian, leading_directions, output_hessian
from bitwright.curvature.selection import Spectrum
from bitwright.errors import BitwrightError
from bitwright.network import Network, build, join, outputs, run
from mutants import mutated
from small import Fn

Rows = tuple[int, ...]


def conv(i: int = 2, o: int = 2, k: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **{"padding": k // 2, **options})


def pooled(*modules: nn.Module, last: int = 2) -> nn.Module:
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 3))


def plain(*modules: nn.Module, last: int) -> nn.Module:
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(last, 3))


def excite(m: Fn, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    return m.head((h * m.s(h.mean((2, 3))).sigmoid()[:, :, None, None]).mean((2, 3)))


def attend(m: Fn, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    return m.head(((q @ k.mT).softmax(-1) @ v).mean(1))


I4: Rows = (2, 4, 4)
#: name -> (model, row shape)
ROSTER: dict[str, tuple[Callable[[], nn.Module], Rows]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "mlp, relu, no bias": (lambda: plain(nn.Linear(4, 5, bias=False), nn.ReLU(), last=5), (4,)),
    "conv2d": (lambda: pooled(conv(), nn.Tanh()), I4),
    "stride, padding, dilation": (
        lambda: plain(conv(k=2, stride=2, padding=2, dilation=3), nn.Tanh(), last=24), (2, 5, 6)),
    "uneven kernel": (
        lambda: plain(nn.Conv2d(2, 2, (1, 3), (2, 1), (0, 1)), nn.ReLU(), last=16), I4),
    "grouped": (lambda: pooled(conv(4, 4, groups=2), nn.ReLU(), last=4), (4, 4, 4)),
    "depthwise": (lambda: pooled(conv(3, 3, groups=3), nn.ReLU(), conv(3, 2, 1)), (3, 4, 4)),
    "depthwise with multiplier": (lambda: pooled(conv(2, 4, groups=2), nn.GELU(), last=4), I4),
    "conv1d": (
        lambda: plain(nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.ReLU(), last=12), (2, 7)),
    "conv1d grouped, dilated": (
        lambda: plain(nn.Conv1d(2, 4, 2, dilation=2, groups=2), nn.ReLU(), last=20), (2, 7)),
    "batch-norm folded": (lambda: pooled(conv(), nn.BatchNorm2d(2), nn.ReLU(), conv()), I4),
    "batch-norm kept": (lambda: pooled(nn.BatchNorm2d(2), conv(), nn.ReLU(), conv()), I4),
    "residual": (
        lambda: Fn(lambda m, x: m.head(torch.relu(m.b(torch.relu(m.a(x))) + x).mean((2, 3))),
                   a=conv(), b=conv(), head=nn.Linear(2, 3)), I4),
    "gelu": (lambda: plain(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.SiLU(), last=4), (4,)),
    "layer norm between": (
        lambda: plain(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), last=5), (4,)),
    "group norm between": (lambda: pooled(conv(2, 4), nn.GroupNorm(2, 4), last=4), I4),
    "module used twice": (
        lambda: Fn(lambda m, x: m.head(torch.tanh(m.l(torch.tanh(m.l(x))))), l=nn.Linear(4, 4),
                   head=nn.Linear(4, 3)), (4,)),
    "conv used twice": (
        lambda: Fn(lambda m, x: m.head(torch.relu(m.c(torch.relu(m.c(x)))).mean((2, 3))), c=conv(),
                   head=nn.Linear(2, 3)), I4),
    "tied weights": (
        lambda: Fn(lambda m, x: F.linear(torch.tanh(F.linear(x, m.w)), m.w), w=torch.randn(4, 4)),
        (4,)),
    "used on a vector and on tokens": (
        lambda: Fn(lambda m, x: m.head(m.l(torch.tanh(m.l(x)).mean(1))), l=nn.Linear(4, 4),
                   head=nn.Linear(4, 3)), (3, 4)),
    "linear on tokens, mean": (
        lambda: Fn(lambda m, x: m.head(m.l(x).relu().mean(1)), l=nn.Linear(4, 5),
                   head=nn.Linear(5, 3)), (3, 4)),
    "head on tokens, mean of logits": (
        lambda: Fn(lambda m, x: m.head(m.l(x).relu()).mean(1), l=nn.Linear(4, 5),
                   head=nn.Linear(5, 3)), (3, 4)),
    "attention": (
        lambda: Fn(attend, qkv=nn.Linear(4, 12), head=nn.Linear(4, 3)), (3, 4)),
    "average pooling": (
        lambda: plain(conv(), nn.ReLU(), nn.AvgPool2d(2), conv(k=1), last=8), I4),
    "max pooling": (lambda: plain(conv(), nn.MaxPool2d(2), nn.Tanh(), last=8), I4),
    "squeeze-excite": (
        lambda: Fn(excite, a=conv(), s=nn.Linear(2, 2), head=nn.Linear(2, 3)), I4),
    "concatenation": (
        lambda: Fn(lambda m, x: m.head(torch.cat([m.a(x).relu(), m.b(x)], 1).mean((2, 3))),
                   a=conv(), b=conv(), head=nn.Linear(4, 3)), I4),
    "functional, slices, pad": (
        lambda: Fn(lambda m, x: m.head(F.conv2d(F.pad(x, (1, 0, 2, 0))[:, :, 1:], m.w, stride=2)
                                       .flatten(1)), w=torch.randn(2, 2, 2, 2),
                   head=nn.Linear(8, 3)), I4),
}  # fmt: skip


@cache
def made(name: str) -> tuple[Network, Tensor]:
    """The architecture `name` captured, and five rows."""
    torch.manual_seed(sum(map(ord, name)))
    model, shape = ROSTER[name]
    net = model().double().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-0.5, 0.5)
            m.running_var.uniform_(0.3, 2.0)
            nn.init.uniform_(m.weight, 0.5, 1.5)
    x = torch.randn(5, *shape, dtype=torch.float64)
    return build(net, x), x


def distance(network: Network, x: Tensor, kind: str, **options) -> Callable[..., Tensor]:
    """The summed divergence from the float outputs, as a function of `run`'s options.

    Written out here, without the package's own divergence.
    """
    with torch.no_grad():
        reference = join(run(network.module, x))

    def f(**changed) -> Tensor:
        y = join(run(network.module, x, **changed))
        if kind == "squared":
            return 0.5 * (y - reference).square().sum()
        p = reference.softmax(1)
        return (p * (reference.log_softmax(1) - y.log_softmax(1))).sum()

    return f


def dense(f: Callable[[Tensor], Tensor], at: Tensor, axis: int, rows: int = 0) -> np.ndarray:
    """Traces of the dense Hessian's diagonal blocks, by the index along `axis`.

    With `rows`, `at` holds that many samples that do not meet: their blocks share the passes.
    """
    at = at.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(f(at), at, create_graph=True)
    gradient = gradient.reshape(rows or 1, -1)
    diagonal = torch.empty_like(gradient)
    for j in range(gradient.shape[1]):
        (column,) = torch.autograd.grad(gradient[:, j].sum(), at, retain_graph=True)
        diagonal[:, j] = column.reshape(gradient.shape)[:, j]
    diagonal = diagonal.detach().reshape(at.shape)
    return diagonal.movedim(axis, 0).reshape(at.shape[axis], -1).sum(1).numpy()


def truth_of_layers(network: Network, x: Tensor, kind: str = "kl") -> dict[str, np.ndarray]:
    """Exact traces of every layer from dense Hessians of the mean divergence."""
    f = distance(network, x, kind)
    found = {}
    for layer in network.layers:
        weight = network.tensor(layer.weight)
        of = lambda w, name=layer.weight: f(constants={name: w})  # noqa: E731
        found[f"layer:{layer.name}"] = dense(of, weight, 0) / len(x)
    return found


def truth(network: Network, x: Tensor, kind: str = "kl") -> dict[str, np.ndarray]:
    """Exact traces of every layer and edge from dense Hessians of the mean divergence."""
    f = distance(network, x, kind)
    found = truth_of_layers(network, x, kind)
    values: dict[str, Tensor] = {}

    def note(node, args, kwargs):
        values[node.name] = node.target(*args, **kwargs)
        return values[node.name]

    (first,) = [n.name for n in network.module.graph.nodes if n.op == "placeholder"]
    values[first] = x
    with torch.no_grad():
        run(network.module, x, note)
    for edge in network.edges:

        def of(a: Tensor, name: str = edge.name) -> Tensor:
            def call(node, args, kwargs):
                return a if node.name == name else node.target(*args, **kwargs)

            return f(call=call, enter=lambda node, v: a if node.name == name else v)

        found[f"edge:{edge.name}"] = dense(of, values[edge.name], 1, len(x)) / len(x)
    return found


def flat(found: Sensitivity, part: str = "value") -> dict[str, np.ndarray]:
    layers = {f"layer:{k}": getattr(v, part) for k, v in found.layers.items()}
    return layers | {f"edge:{k}": getattr(v, part) for k, v in found.edges.items()}


def agree(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[str]:
    """What is off by more than 1e-9, relative to the largest channel of its layer or edge."""
    assert found.keys() == expected.keys()
    assert all(e.shape == found[k].shape for k, e in expected.items())
    worst = {k: np.abs(found[k] - e).max() / np.abs(e).max() for k, e in expected.items()}
    return [f"{k}: {w:.1e}" for k, w in worst.items() if not w <= 1e-9]


@pytest.mark.parametrize("name", ROSTER)
def test_exact(name: str):
    network, x = made(name)
    found = gauss_newton(network, x, tolerance=0, chunk=2)
    assert found.details["share"] == pytest.approx(1, abs=1e-12)
    assert agree(flat(found), truth(network, x)) == []


@pytest.mark.parametrize("name", ["mlp", "conv used twice", "squeeze-excite"])
def test_exact_for_squared_divergence(name: str):
    network, x = made(name)
    found = gauss_newton(network, x, kind="squared", tolerance=0, chunk=2)
    assert found.details["estimator"] == "exact"
    assert agree(flat(found), truth(network, x, "squared")) == []
    assert all(not v.any() for v in flat(found, "stderr_probe").values())


def sum_of_squares_over_uses(network: Network, x: Tensor) -> dict[str, np.ndarray]:
    """The wrong way for a weight used twice: each use as a layer of its own, then added."""
    (layer,) = [la for la in network.layers if len(la.calls) > 1]
    weight = network.tensor(layer.weight)
    total = np.zeros(layer.rows)
    f = distance(network, x, "kl")
    for use in layer.calls:

        def of(w: Tensor, use: str = use) -> Tensor:
            def call(node, args, kwargs):
                args = (args[0], w, *args[2:]) if node.name == use else args
                return node.target(*args, **kwargs)

            return f(call=call)

        total += dense(of, weight, 0) / len(x)
    return {f"layer:{layer.name}": total}


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch):
    network, x = made("module used twice")
    expected = truth(network, x)
    exact = {"tolerance": 0}
    found = flat(gauss_newton(network, x, **exact))
    assert agree(found, expected) == []
    assert len(agree({k: v * 1.01 for k, v in found.items()}, expected)) == len(expected)
    last = flat(gauss_newton(network, x[-1:], **exact))
    assert len(agree(last, expected)) == len(expected)
    wrong = found | sum_of_squares_over_uses(network, x)
    assert [line.split(" ")[0] for line in agree(wrong, expected)] == ["layer:l:"]
    monkeypatch.setattr(OutputHessian, "rank", 1)  # the first eigenvector alone
    fewer = flat(gauss_newton(network, x, tolerance=0))
    assert len(agree(fewer, expected)) == len(expected)


# ------------------------------------------------------------------ leading eigenvectors


@cache
def trained() -> tuple[Network, Tensor]:
    """A network of 12 classes, taught for a moment, with confident and doubtful rows."""
    torch.manual_seed(3)
    means = 1.6 * torch.randn(12, 8, dtype=torch.float64)
    labels = torch.arange(240) % 12
    x = means[labels] + torch.randn(240, 8, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12)).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
    return build(net.eval(), x), x


def test_visited_by_chance_all_is_within_four_errors_and_cheap():
    """Own eigenvectors, random rests and samples left out together, over many seeds."""
    network, x = trained()
    exact = flat(gauss_newton(network, x, tolerance=0))
    options = {"tolerance": 0.05, "effort": 0.4}
    seeds = [gauss_newton(network, x, seed=s, **options) for s in range(40)]
    assert all(s.details["share"] < 0.95 for s in seeds)
    assert np.mean([s.details["backward_rows"] for s in seeds]) <= 0.42 * len(x)
    for name, true in exact.items():
        values = np.stack([flat(s)[name] for s in seeds])
        claimed = np.stack([flat(s, "stderr_probe")[name] for s in seeds])
        # unbiased: forty seeds leave what their own spread explains
        z = (values.mean(0) - true) / (values.std(0, ddof=1) / math.sqrt(len(seeds)))
        assert np.abs(z).mean() < 1.5 and np.abs(z).max() < 5, (name, z)
        # the error told is the error made; that of random signs is a bound
        ratio = math.sqrt((values.var(0, ddof=1) / np.square(claimed).mean(0)).mean())
        assert 0.4 < ratio < 1.5, (name, ratio)
        biased = values * 1.1 - true  # a wrong normalization is seen
        assert np.abs(biased.mean(0) / (values.std(0, ddof=1) / math.sqrt(40))).max() > 4


def rests_in_errors(tolerance: float) -> np.ndarray:
    """Errors in standard errors where all of three classes' samples are visited, over ten seeds."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x = torch.randn(9, 4).double()
    exact = bitwright.traces(model, x, tolerance=0, edges=False)
    off = []
    for seed in range(10):
        found = bitwright.traces(model, x, tolerance=tolerance, edges=False, seed=seed)
        for name, e in found.layers.items():
            true = exact.layers[name].value
            off.append(np.abs(e.value - true) / (e.stderr_probe + 1e-9 * true.max()))
    return np.concatenate(off)


@pytest.mark.parametrize("tolerance", [0.05, 0.01])
def test_a_rest_of_one_direction_is_known_but_for_its_sign(tolerance: float):
    """Signs drawn in another basis than the eigenvectors' have a variance that no error told."""
    assert rests_in_errors(tolerance).max() <= 4
    basis = "basis = spectrum.vectors[some]"
    own = "(torch.arange(known) < plan.own[some][:, None])[:, None]"
    with mutated("curvature.visits", f"{basis}\n", f"{basis} * {own}\n"):
        assert rests_in_errors(tolerance).max() > 10


def test_more_effort_brings_channels_within_the_tolerance():
    network, x = trained()
    exact = flat(gauss_newton(network, x, tolerance=0))
    counts = []
    for effort in (0.1, 1.0, 11.0):
        found = gauss_newton(network, x, tolerance=0.05, effort=effort)
        counts.append(found.details["beyond_tolerance"])
        worst = np.concatenate([p[v > 0] / v[v > 0] for v, p, _ in joined(found, found).values()])
        assert counts[-1] == (worst > 0.05).sum()
    assert counts == sorted(counts, reverse=True) and counts[-1] == 0 < counts[0]
    for name, (value, probe, _) in joined(found, found).items():
        assert np.mean(np.abs(value - exact[name]) <= 4 * probe) >= 0.9, name
        np.testing.assert_allclose(value, exact[name], rtol=0.1)


def joined(a: Sensitivity, b: Sensitivity) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    value, probe, true = flat(a), flat(a, "stderr_probe"), flat(b)
    return {k: (value[k], probe[k], true[k]) for k in value}


@pytest.mark.parametrize(
    ("outputs_", "kind", "estimator"),
    [(100, "squared", "leading eigenvectors"), (101, "squared", "random signs"),
     (130, "kl", "leading eigenvectors")],
)  # fmt: skip
def test_many_directions_of_equal_weight_are_drawn(outputs_: int, kind: str, estimator: str):
    torch.manual_seed(0)
    x = torch.randn(6, 3)
    network = build(nn.Sequential(nn.Linear(3, outputs_)).eval(), x)
    found = gauss_newton(network, x, kind=kind, tolerance=0.3, edges=False)
    assert found.details["estimator"] == estimator


def test_the_floor_is_the_last_of_what_is_left_out():
    values = torch.tensor([[4.0, 1.0], [3.0, 2.0]]).double()
    spectrum = Spectrum(values.sum(1), values, None)
    floors = [spectrum.floor(share) for share in (0.0, 0.09, 0.1, 0.29, 0.3, 0.61)]
    assert floors == [0, 0, 1, 1, 2, 3]


def test_one_direction_of_many_classes_is_the_first():
    torch.manual_seed(0)
    p = torch.randn(5, 60, dtype=torch.float64).softmax(-1)
    values, vectors, _ = leading_directions(p.log(), 1)
    matrices = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    torch.testing.assert_close(
        values[:, 0], torch.linalg.eigvalsh(matrices)[:, -1], rtol=1e-3, atol=0
    )
    assert vectors.shape == (5, 60, 1)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_block_power_iteration_is_eigh(scale: float):
    torch.manual_seed(0)
    logits = scale * torch.randn(20, 200, dtype=torch.float64)
    logits[:, :3] += 3.0 * scale
    values, vectors, trace = leading_directions(logits, 4)
    p = logits.softmax(-1)
    matrices = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    true = torch.linalg.eigvalsh(matrices).flip(-1)
    torch.testing.assert_close(trace, true.sum(-1), rtol=1e-10, atol=0)
    # the wanted four, up to what ties in the spectrum may still mix
    torch.testing.assert_close(values, true[:, :4], rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(values[:, :2], true[:, :2], rtol=1e-6, atol=1e-9)
    assert (values <= true[:, :4] * (1 + 1e-9)).all()  # no share is invented
    unit = torch.eye(4, dtype=torch.float64).expand(20, 4, 4)
    torch.testing.assert_close(vectors.mT @ vectors, unit, rtol=0, atol=1e-9)
    rayleigh = (vectors * (matrices @ vectors)).sum(1)
    torch.testing.assert_close(rayleigh, values, rtol=1e-9, atol=1e-12)


def test_few_classes_are_dense():
    torch.manual_seed(0)
    logits = torch.randn(6, 5, dtype=torch.float64)
    values, vectors, trace = leading_directions(logits, 9)  # more than there are
    p = logits.softmax(-1)
    matrices = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    assert values.shape == (6, 5) and (values >= 0).all()
    assert (values.diff(dim=1) <= 0).all()
    torch.testing.assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, matrices)
    torch.testing.assert_close(values.sum(1), trace)


# ------------------------------------------------------------------------- random signs


@cache
def mapped() -> tuple[Network, Tensor, dict[str, np.ndarray]]:
    """A network with a map of 64 × 3 logits, some rows and the dense truth."""
    torch.manual_seed(5)
    net = nn.Sequential(conv(2, 4), nn.ReLU(), conv(4, 3, 1)).double().eval()
    x = torch.randn(16, 2, 8, 8, dtype=torch.float64)
    network = build(net, x)
    return network, x, truth(network, x)


def test_random_signs_are_within_four_errors():
    network, x, true = mapped()
    found = gauss_newton(network, x, tolerance=0.05, effort=30, seed=1)
    assert found.details["estimator"] == "random signs"
    off = []
    for name, (value, probe, _) in joined(found, found).items():
        assert (probe > 0).all()
        off.append(np.abs(value - true[name]) / probe)
        assert value.sum() == pytest.approx(true[name].sum(), rel=0.3)
    assert np.mean(np.concatenate(off) <= 4) >= 0.95


def test_the_error_of_random_signs_is_about_right():
    network, x, true = mapped()
    # more and more draws a row, until the effort is spent
    options = {"tolerance": 1e-3, "effort": 14, "chunk": 16}
    seeds = [gauss_newton(network, x, seed=s, **options) for s in range(30)]
    assert all(13 * len(x) <= s.details["backward_rows"] <= 14 * len(x) for s in seeds)
    for name in true:
        values = np.stack([flat(s)[name] for s in seeds])
        claimed = np.stack([flat(s, "stderr_probe")[name] for s in seeds])
        # over all channels: a single one has thirty draws of a spread only
        ratio = math.sqrt((values.var(0, ddof=1) / np.square(claimed).mean(0)).mean())
        assert 1 / 1.5 < ratio < 1.5, (name, ratio)
        # thirty seeds of many draws have no bias that their own spread would not explain
        z = (values.mean(0) - true[name]) / (values.std(0, ddof=1) / math.sqrt(30))
        assert np.abs(z).max() < 4.5, (name, z)


def test_class_axis():
    """Logits [n, positions, classes], for which averages over rows are sums over positions."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 3)).double().eval()
    x = torch.randn(40, 3, 4, dtype=torch.float64)
    network = build(net, x)
    found = gauss_newton(network, x, class_axis=2, tolerance=0, edges=False)
    p = join(run(network.module, x)).softmax(-1)
    # one linear layer: the block of channel c is Σ_{t,s} Λ_tcsc x_t x_sᵀ, and Λ is 0 unless t = s
    true = (p * (1 - p) * x.square().sum(-1, keepdim=True)).sum(1).mean(0).numpy()
    np.testing.assert_allclose(found.layers["0"].value, true, rtol=1e-9)
    wrong = gauss_newton(network, x, class_axis=1, tolerance=0, edges=False)
    assert not np.allclose(wrong.layers["0"].value, true, rtol=0.05)


def test_squared_divergence_with_many_outputs():
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 120)).double().eval()
    x = torch.randn(12, 4, dtype=torch.float64)
    network = build(net, x)
    true = truth(network, x, "squared")
    found = gauss_newton(network, x, kind="squared", tolerance=1e-3, effort=30)
    assert found.details["estimator"] == "random signs"
    off = [np.abs(v - true[k]) / (p + 1e-12) for k, (v, p, _) in joined(found, found).items()]
    assert np.mean(np.concatenate(off) <= 4) >= 0.95
    exact = gauss_newton(network, x, kind="squared", tolerance=0)
    assert exact.details["estimator"] == "exact"
    assert agree(flat(exact), true) == []


def test_random_directions_have_the_covariance():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 4, dtype=torch.float64)
    hessian, _ = output_hessian("kl", logits[:, 0].expand(40000, 4))
    many = hessian.random(torch.randint(0, 2, (40000, 4), generator=generator) * 2 - 1)
    p = logits[0, 0].softmax(-1)
    found = many.T @ many / len(many)
    torch.testing.assert_close(found, torch.diag(p) - p[:, None] * p, rtol=0, atol=0.01)


# ------------------------------------------------------------------- data error and chunks


@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_data_error_is_the_jackknife(name: str):
    network, _ = made(name)
    torch.manual_seed(1)
    x = torch.randn(7, *network.input_shape, dtype=torch.float64)
    exact = {"tolerance": 0}
    found = gauss_newton(network, x, **exact)
    without = [
        flat(gauss_newton(network, torch.cat([x[:i], x[i + 1 :]]), **exact)) for i in range(len(x))
    ]
    for key, stderr in flat(found, "stderr_data").items():
        table = np.stack([w[key] for w in without])
        n = len(x)
        jackknife = np.sqrt((n - 1) / n * np.square(table - table.mean(0)).sum(0))
        np.testing.assert_allclose(stderr, jackknife, rtol=1e-9, atol=1e-15)
    assert all(e.samples == len(x) for e in found.layers.values())


CASES = {
    "leading": ("conv used twice", {"tolerance": 0.2, "effort": 0.5}),
    "exact": ("squeeze-excite", {"tolerance": 0}),
    "squared": ("residual", {"kind": "squared"}),
    "tokens": ("head on tokens, mean of logits", {"tolerance": 0.3}),
}


@pytest.mark.parametrize("case", [*CASES, "random"])
def test_chunks_change_nothing(case: str):
    if case == "random":
        (network, x, _), options = mapped(), {"tolerance": 0.1, "seed": 4}
    else:
        (network, x), options = made(CASES[case][0]), CASES[case][1]
    whole = gauss_newton(network, x, chunk=1000, **options)
    for chunk in (1, 3):
        found = gauss_newton(network, x, chunk=chunk, **options)
        assert found.details == whole.details
        for part in ("value", "stderr_probe", "stderr_data"):
            expected = flat(whole, part)
            for key, value in flat(found, part).items():
                scale = np.abs(expected[key]).max() + 1e-300
                # Σt² − (Σt)²/n cancels
                atol = 1e-12 if part == "value" else 1e-7
                np.testing.assert_allclose(value / scale, expected[key] / scale, atol=atol, rtol=0)


def test_a_seed_decides():
    network, x, _ = mapped()
    first, again, other = (gauss_newton(network, x, tolerance=0.3, seed=s) for s in (0, 0, 1))
    for part in ("value", "stderr_probe", "stderr_data"):
        a, b, c = (flat(f, part) for f in (first, again, other))
        assert all(np.array_equal(a[k], b[k]) for k in a)
        assert not any(np.array_equal(a[k], c[k]) for k in a)
    state = torch.get_rng_state()
    gauss_newton(network, x, tolerance=0.3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("tolerance", [0.0, 0.2])
def test_edges_can_be_left_out_and_progress_ends_at_one(tolerance: float):
    network, x = made("mlp")
    seen: list[float] = []
    found = gauss_newton(
        network, x, edges=False, chunk=2, tolerance=tolerance, progress=seen.append
    )
    assert not found.edges and list(found.layers) == [layer.name for layer in network.layers]
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert not any(p.grad is not None for p in network.module.parameters())


def test_an_unknown_divergence_is_named():
    network, x = made("mlp")
    with pytest.raises(BitwrightError, match=r"'js'.*kl, squared"):
        gauss_newton(network, x, kind="js")


def merges(m: Fn, x: Tensor) -> Tensor:
    """Rows and tokens as one axis."""
    return m.head(m.merged(x.flatten(0, 1)).relu().reshape(-1, 3, 5).mean(1))


def tokens_first(m: Fn, x: Tensor) -> Tensor:
    """Tokens before rows, and merged with rows inside."""
    h = m.merged(x.transpose(0, 1)).relu()
    return m.head(m.again(h.flatten(0, 1)).reshape(3, -1, 5).mean(0))


def frames(m: Fn, x: Tensor) -> Tensor:
    """A clip's frames as images."""
    h = m.c(x.flatten(0, 1)).relu().mean((2, 3))
    return m.head(h.reshape(-1, 3, 4).mean(1))


@pytest.mark.parametrize(
    "forward, layers, shape",
    [
        (merges, {"merged": (4, 5), "head": (5, 3)}, (3, 4)),
        (tokens_first, {"merged": (4, 5), "again": (5, 5), "head": (5, 3)}, (3, 4)),
        (frames, {"c": None, "head": (4, 3)}, (3, 2, 4, 4)),
    ],
)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_rows_merged_with_another_axis_are_told_apart(forward, layers, shape, n: int):
    torch.manual_seed(0)
    modules = {k: conv(2, 4) if v is None else nn.Linear(*v) for k, v in layers.items()}
    x = torch.randn(n, *shape, dtype=torch.float64)
    network = build(Fn(forward, **modules).double().eval(), x)
    found = gauss_newton(network, x, tolerance=0, edges=False, chunk=3)
    expected = {k: v for k, v in truth_of_layers(network, x).items()}
    assert agree(flat(found), expected) == []


class Mixes(nn.Module):
    """Every row depends on all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head((h - h.mean(0)).relu())


def test_a_network_that_mixes_rows_is_refused():
    torch.manual_seed(0)
    x = torch.randn(4, 4)
    with pytest.raises(BitwrightError, match="mixes the samples") as caught:
        gauss_newton(build(Mixes().eval(), x), x)
    assert "\n" not in str(caught.value)


def test_tokens_as_input():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 5), nn.Tanh())
    model = nn.Sequential(*model, nn.Linear(5, 3)).double().eval()
    x = torch.randint(0, 9, (5, 3))
    network = build(model, x, skip=["0"])
    found = gauss_newton(network, x, tolerance=0)
    assert agree(flat(found), truth(network, x)) == []


def test_float32_agrees_with_float64():
    torch.manual_seed(0)
    net = pooled(conv(), nn.ReLU(), conv()).eval()
    x = torch.randn(5, 2, 4, 4)
    exact = {"tolerance": 0}
    single = flat(gauss_newton(build(net, x), x, **exact))
    net, x = net.double(), x.double()
    for key, value in flat(gauss_newton(build(net, x), x, **exact)).items():
        np.testing.assert_allclose(single[key], value, rtol=1e-4)


def test_a_divergence_is_zero_at_the_reference_and_curves_as_told():
    torch.manual_seed(0)
    a = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    b = a + torch.randn_like(a)
    for kind in divergence.KINDS:
        assert divergence.per_sample(a, a, kind).abs().max() < 1e-15
    kl = divergence.per_sample(a, b, "kl")
    p, q = a.softmax(1), b.softmax(1)
    torch.testing.assert_close(kl, (p * (p / q).log()).sum((1, 2, 3)))
    last = divergence.per_sample(a.movedim(1, 3), b.movedim(1, 3), "kl", class_axis=3)
    torch.testing.assert_close(kl, last)
    squared = divergence.per_sample(a, b, "squared")
    torch.testing.assert_close(squared, 0.5 * (a - b).square().sum((1, 2, 3)))


def test_exact_passes_take_the_samples_that_carry_the_curvature_in_float64(
    monkeypatch: pytest.MonkeyPatch,
):
    """Samples with 97 % of Σ Tr Λ, the fewest that hold it; the others as the network is."""
    double, x = trained()
    module = copy.deepcopy(double.module).float()
    network = replace(double, module=module)
    taken: dict[torch.dtype, list[int]] = {torch.float32: [], torch.float64: []}
    forward = subjects.NetworkSubject.forward

    def watched(self: Any, rows: torch.Tensor) -> Any:
        taken[self.x.dtype] += rows.tolist()
        return forward(self, rows)

    monkeypatch.setattr(subjects.NetworkSubject, "forward", watched)
    found = flat(gauss_newton(network, x.float(), tolerance=0))
    trace = 1 - outputs(double.module, x).softmax(1).square().sum(1)
    order = trace.argsort(descending=True).tolist()
    heavy = set(taken[torch.float64])
    assert heavy == set(order[: len(heavy)])
    assert float(trace[list(heavy)].sum()) >= 0.97 * float(trace.sum())
    assert float(trace[order[: len(heavy) - 1]].sum()) < 0.97 * float(trace.sum())
    assert not heavy & set(taken[torch.float32]) and taken[torch.float32]
    for name, true in flat(gauss_newton(double, x, tolerance=0)).items():
        np.testing.assert_allclose(found[name], true, rtol=1e-5, atol=1e-9)


def test_the_trace_of_a_row_is_the_sum_over_its_positions():
    outputs = 3 * torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    p = outputs.softmax(1)
    block, _ = output_hessian("kl", outputs)
    assert block.trace().allclose((p * (1 - p)).sum((1, 2)), rtol=1e-12)
    dense = [torch.diag(q) - q.outer(q) for q in p[0].T]
    assert float(block.trace()[0]) == pytest.approx(sum(float(d.trace()) for d in dense))
    squared, _ = output_hessian("squared", outputs)
    assert squared.trace().tolist() == [15.0] * 4


def test_how_many_directions_are_visited_scales_with_the_traces():
    values = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)).double()
    values = values.sort(1, descending=True).values
    found = []
    for scale in (1.0, 2.0, 8.0):
        trace = scale * 1.2 * values.sum(1) / values.sum(1).max()  # at most 1.2, 2.4, …
        own = scale * values / values.sum(1).max()
        spectrum = Spectrum(trace, own, None)
        found.append(scale * spectrum.affordable(25, 1))
    assert found == pytest.approx([found[0]] * 3, rel=1e-9)
    one = Spectrum(torch.ones(6).double(), torch.zeros(6, 0).double(), None)
    assert one.affordable(2, 1) == pytest.approx(Spectrum(2 * one.trace, one.values, None)
                                                 .affordable(2, 1) * 2)  # fmt: skip
    none = Spectrum(torch.zeros(6).double(), torch.zeros(6, 0).double(), None)
    assert none.affordable(2, 1) == none.density(0.1, 1) == 1.0
