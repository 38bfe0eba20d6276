"""The papers' estimator against the dense Hessian of the training loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.curvature import Sensitivity, gauss_newton, hutchinson
from bitwright.errors import BitwrightError
from bitwright.network import Network, build, join, run


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.l(torch.tanh(self.l(x)))))


CE = nn.CrossEntropyLoss()
ROSTER = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.GELU(), nn.Flatten(), nn.Linear(8, 3)
        ),
        (2, 4, 4),
    ),
    "module used twice": (Twice, (4,)),
    "scaled_dot_product_attention": (Attention, (3, 4)),
}


def made(name: str, n: int = 7) -> tuple[Network, Tensor, Tensor]:
    torch.manual_seed(2)
    model, shape = ROSTER[name]
    net = model().double().eval()
    x = torch.randn(n, *shape, dtype=torch.float64)
    return build(net, x), x, torch.randint(0, 3, (n,))


def dense(network: Network, x: Tensor, labels: Tensor, loss=F.cross_entropy) -> dict:
    """Exact traces by row from the dense Hessian of the loss in each weight."""
    found = {}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for layer in network.layers:
            weight = network.tensor(layer.weight).detach()

            def f(w: Tensor, name: str = layer.weight) -> Tensor:
                return loss(join(run(network.module, x, constants={name: w})), labels)

            hessian = torch.autograd.functional.hessian(f, weight)
            diagonal = hessian.reshape(weight.numel(), -1).diagonal()
            found[layer.name] = diagonal.reshape(layer.rows, -1).sum(1).numpy()
    return found


def offs(found: Sensitivity, true: dict) -> np.ndarray:
    """Errors in standard errors, all channels."""
    return np.concatenate(
        [np.abs(e.value - true[k]) / e.stderr_probe for k, e in found.layers.items()]
    )


@pytest.mark.parametrize("name", ROSTER)
def test_within_four_standard_errors(name: str):
    network, x, labels = made(name)
    found = hutchinson(network.module, (x, labels), CE, probes=100)
    true = dense(network, x, labels)
    assert found.layers.keys() == true.keys()
    assert offs(found, true).max() <= 4
    wrong = {k: v + 5 * e.stderr_probe for (k, v), e in zip(true.items(), found.layers.values(),
                                                           strict=True)}  # fmt: skip
    assert offs(found, wrong).max() > 4
    assert np.median(offs(found, true)) < 1.5


def test_labels_matter_and_are_needed():
    network, x, labels = made("mlp")
    a = hutchinson(network.module, (x, labels), CE, probes=2)
    b = hutchinson(network.module, (x, (labels + 1) % 3), CE, probes=2)
    assert any((a.layers[k].value != b.layers[k].value).any() for k in a.layers)
    with pytest.raises(BitwrightError, match="needs targets"):
        hutchinson(network.module, x, CE)
    with pytest.raises(BitwrightError, match="7 inputs and 2 targets"):
        hutchinson(network.module, (x, labels[:2]), CE)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_unequal_chunks_change_nothing(name: str):
    network, x, labels = made(name)
    whole = hutchinson(network.module, (x, labels), CE, probes=4, chunk=100)
    for chunk in (1, 3, 5):
        found = hutchinson(network.module, (x, labels), CE, probes=4, chunk=chunk)
        for key, estimate in found.layers.items():
            for part in ("value", "stderr_probe"):
                a, b = getattr(estimate, part), getattr(whole.layers[key], part)
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def test_a_seed_decides_and_no_global_state_is_used():
    network, x, labels = made("mlp")
    state = torch.get_rng_state()
    a, b, c = (hutchinson(network.module, (x, labels), CE, probes=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    for key in a.layers:
        assert np.array_equal(a.layers[key].value, b.layers[key].value)
        assert not np.array_equal(a.layers[key].value, c.layers[key].value)


def test_what_is_not_known_is_nan_and_one_probe_is_refused():
    network, x, labels = made("mlp")
    seen: list[float] = []
    found = hutchinson(network.module, (x, labels), CE, probes=20, progress=seen.append)
    assert found.method == "hutchinson" and not found.edges
    assert all(np.isnan(e.stderr_data).all() for e in found.layers.values())  # a single pass
    assert all(e.samples == len(x) for e in found.layers.values())
    assert seen == [0.4, 0.8, 1.0]
    assert all(p.grad is None for p in network.module.parameters())
    with pytest.raises(ValueError, match="at least 2"):
        hutchinson(network.module, (x, labels), CE, probes=1)


def test_another_loss():
    network, x, _ = made("mlp")
    targets = torch.randn(7, 3, dtype=torch.float64)
    true = dense(network, x, targets, F.mse_loss)
    assert offs(hutchinson(network.module, (x, targets), F.mse_loss, probes=100), true).max() <= 4


def test_it_agrees_with_gauss_newton_where_the_loss_is_the_divergence():
    """Labels drawn from the float outputs: for squared distance the Hessian is Gauss-Newton's."""
    network, x, _ = made("mlp")
    reference = join(run(network.module, x))

    def loss(y: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (y - target).square().sum() / len(y)

    found = hutchinson(network.module, (x, reference), loss, probes=100)
    exact = gauss_newton(network, x, kind="squared", tolerance=0)
    assert offs(found, {k: e.value for k, e in exact.layers.items()}).max() <= 4


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_blocks_have_one_mean_and_less_and_less_variance(name: str):
    network, x, labels = made(name)
    true = dense(network, x, labels)
    errors = {}
    for blocks in ("joint", "layer", "channel"):
        found = hutchinson(network.module, (x, labels), CE, blocks=blocks, probes=100)
        assert offs(found, true).max() <= 4.5
        errors[blocks] = np.concatenate([e.stderr_probe for e in found.layers.values()])
    joint, layer, channel = (np.median(errors[b]) for b in ("joint", "layer", "channel"))
    assert joint > 1.1 * layer > 1.1 * channel
    with pytest.raises(ValueError, match="joint, layer, channel"):
        hutchinson(network.module, (x, labels), CE, blocks="row")


def test_the_variance_is_the_formula():
    """One linear layer: H is known, and with it the variance of a joint probe's channel."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    x = torch.randn(5, 3).double()
    sigma = (x.T @ x / 5).numpy()  # each row's block for ½‖y − y₀‖²; rows do not meet
    variance = 2 * (np.square(sigma).sum() - np.square(np.diag(sigma)).sum())
    found = hutchinson(model, x, "squared", probes=4000)
    assert np.allclose(found.layers["weight"].value, np.trace(sigma), rtol=0.05)
    claimed = np.square(found.layers["weight"].stderr_probe) * 4000
    np.testing.assert_allclose(claimed, variance, rtol=0.15)


def test_it_stops_when_every_layer_is_within_the_tolerance():
    network, x, labels = made("mlp")
    options = {"tolerance": 0.3, "probes": 2000}
    found = hutchinson(network.module, (x, labels), CE, **options)
    spent = found.details["probes"]
    assert 8 <= spent < 2000 and spent % 8 == 0 and found.details["beyond_tolerance"] == 0
    for e in found.layers.values():
        # channels of a probe are not independent: the total's own error is what stops
        assert np.sqrt(np.square(e.stderr_probe).sum()) < 0.5 * abs(e.value.sum())
    never = hutchinson(network.module, (x, labels), CE, tolerance=1e-9, probes=16)
    assert never.details == found.details | {
        "probes": 16, "tolerance": 1e-9, "beyond_tolerance": 2
    }  # fmt: skip
    least = hutchinson(network.module, (x, labels), CE, tolerance=10.0, probes=64, least=24)
    assert least.details["probes"] == 24


def test_a_negative_trace_does_not_stop_it_early():
    """Without |mean| in the rule, a negative trace would be within any tolerance at once."""
    model = nn.Linear(3, 2, bias=False).double()
    torch.manual_seed(0)
    x = torch.randn(4, 3).double()
    negative = lambda y, t: -0.5 * (y * t).square().sum() / len(y)  # noqa: E731
    t = torch.randn(4, 2).double()
    found = hutchinson(model, (x, t), negative, tolerance=0.01, probes=400)
    assert found.layers["weight"].value.sum() < 0
    assert found.details["probes"] > 100


@pytest.mark.slow
def test_the_data_error_comes_from_passes():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    found = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(64, 3, generator=generator, dtype=torch.float64)
        found.append(hutchinson(model, x, "squared", probes=400, chunk=8).layers["weight"])
    spread = np.std([f.value for f in found], axis=0)
    claimed = np.sqrt(np.mean([f.stderr_data**2 for f in found], axis=0))
    np.testing.assert_allclose(claimed / spread, 1, atol=0.4)
