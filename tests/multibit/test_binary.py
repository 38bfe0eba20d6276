"""A stored linear layer by XNOR and popcount, against the captured network that files hold."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from bitwright.errors import BitwrightError
from bitwright.multibit import BinaryLinear, Recipe, Stored, prepare, train
from bitwright.multibit.activations import chains
from bitwright.multibit.binary import halves
from bitwright.multibit.stored import stored
from bitwright.network import run
from multibit.nets import rows, small

RECIPE = Recipe(bits=3.0, loops=1, straight=0, final=1, batch=16)


def trained(count: int, model: nn.Module, x: Tensor, y: Tensor) -> Stored:
    net = prepare(model, x, size=16, most=4, activation_bases=count)
    train(net, x, y, RECIPE)
    return stored(net)


def seen(found: Stored, x: Tensor) -> dict[str, Tensor]:
    """Every value of the captured network, by node."""
    values = {}

    def call(node: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        value = node.target(*args, **kwargs)  # type: ignore[attr-defined]
        values[node.name] = value  # type: ignore[attr-defined]
        return value

    with torch.no_grad():
        run(found.network.module, x, call)  # type: ignore[arg-type]
    return values


@pytest.mark.parametrize("count", [1, 2, 3])
def test_it_is_the_layer_of_the_files(count: int):
    found = trained(count, small(), *rows(64))
    values = seen(found, rows(50, seed=3)[0])
    layers = {la.name: la for la in found.network.layers}
    nodes = {n.name: n for n in found.network.module.graph.nodes}
    for name in ("fc1", "fc2"):
        (call,) = layers[name].calls
        last = nodes[call].args[0]
        chain = next(chain for chain in chains(found.network) if chain.last is last)
        x, wanted = values[chain.source.name], values[call]
        layer = BinaryLinear.of(found, name)
        assert torch.allclose(layer(x), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
        assert len(values[last.name].unique()) == 2**count
        # the offset of values from zero is in it, and so is the bias
        bare = BinaryLinear(layer.weights, 0 * layer.shift, *_rest(layer))
        assert not torch.allclose(bare(x), wanted, atol=1e-2 * float(wanted.abs().max()))


def _rest(layer: BinaryLinear) -> tuple[Tensor, Tensor, Tensor]:
    return layer.middles, layer.codes, layer.beta


def test_values_of_both_signs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 5, bias=False)).eval()
    x = torch.randn(64, 20)
    found = trained(2, model, x, torch.randint(0, 5, (64,)))
    values, (chain,) = seen(found, x), chains(found.network)
    assert min(chain.values) < 0 < max(chain.values)
    layer = BinaryLinear.of(found, "2")
    wanted = values[found.network.layers[1].calls[0]]
    assert torch.allclose(layer(values[chain.source.name]), wanted, rtol=1e-4, atol=1e-4)
    at = torch.tensor(chain.middles)  # a middle belongs to the value below it
    assert torch.equal(torch.bucketize(at, layer.middles), torch.tensor([2, 1, 0]))


@pytest.mark.parametrize("beta", [(0.7,), (0.1, 0.35), (0.2, 0.2), (0.3, 0.11, 0.9), (1, 2, 4, 8)])
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_coordinates_are_found_in_their_sums(beta: tuple[float, ...], shift: float):
    signs = list(itertools.product((-1, 1), repeat=len(beta)))
    sums = torch.tensor([sum(s * b for s, b in zip(each, beta, strict=True)) for each in signs])
    values = (sums + shift).sort().values
    found, codes = halves(values)
    assert torch.allclose(found, torch.tensor(sorted(beta), dtype=torch.float32), rtol=1e-5)
    bits = (codes[:, None] >> torch.arange(len(beta))) & 1
    middle = (values[0] + values[-1]) / 2
    assert torch.allclose((2.0 * bits - 1) @ found + middle, values, atol=1e-5)


@pytest.mark.parametrize("values", [[0.0, 1.0, 2.0, 4.0], [0.0, 1.0, 1.5, 2.0], [0.0, 1.0, 2.0]])
def test_values_that_are_no_sums_are_refused(values: list[float]):
    with pytest.raises(ValueError, match="no sums of"):
        halves(torch.tensor(values))


def test_layers_that_it_cannot_run_are_named():
    found = trained(2, small(), *rows(64))
    for name, says in (
        ("conv2", "'conv2' is a conv2d; the kernel runs linear layers"),
        ("fc9", "no layer 'fc9'; layers are conv1, conv2, fc1, fc2"),
    ):
        with pytest.raises(BitwrightError, match=says):
            BinaryLinear.of(found, name)
    with pytest.raises(BitwrightError, match="'fc1' reads float numbers; train with activation_b"):
        BinaryLinear.of(stored(prepare(small(), rows()[0], size=16, most=2)), "fc1")
