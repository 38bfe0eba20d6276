"""The loss-aware steps: gradients, the quadratic model, the order of pruning, no float copy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, hessian

from bitwright.arith.multibit import Bases, projected, signs, values
from bitwright.multibit import LossAware, Multibit, StraightThrough, curvatures, prepare
from bitwright.multibit import prune as pruning
from bitwright.multibit.quadratic import Moments, Quadratic
from bitwright.multibit.steps import _bases
from multibit.nets import rows, small
from mutants import mutant


def net_of(most: int = 3, **options: object) -> Multibit:
    return prepare(small(), rows()[0], size=16, most=most, **options)  # type: ignore[arg-type]


def back(net: Multibit, n: int = 32) -> Tensor:
    x, y = rows(n)
    loss = torch.nn.functional.cross_entropy(net(x), y)
    loss.backward()
    return loss.detach()


def test_preparing_leaves_the_model_and_answers_like_its_dense_form():
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    net = prepare(model, rows()[0], size=16, most=8).eval()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    x = rows()[0]
    with torch.no_grad():
        assert torch.equal(net(x), net.dense()(x))
        assert torch.allclose(net(x), model(x), atol=0.1), "eight bases are nearly the weights"
    assert not any("weight" in k and "bn" not in k for k in net.state_dict())


def test_gradients_of_the_rebuilt_weights_are_those_of_the_dense_module():
    net = net_of().eval()
    dense = net.dense()
    x, y = rows(16)
    torch.nn.functional.cross_entropy(dense(x), y).backward()
    torch.nn.functional.cross_entropy(net(x), y).backward()
    for name, leaf in net.leaves().items():
        wanted = dense.get_parameter(f"{name}.weight").grad
        assert leaf.grad is not None and torch.allclose(leaf.grad, wanted, atol=1e-7)


def correlation(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten().double() - a.double().mean(), b.flatten().double() - b.double().mean()
    return float((a @ b) / (a.norm() * b.norm()).clamp(min=1e-30))


def held(net: Multibit, optimizer: LossAware | StraightThrough) -> list[Tensor]:
    """All floats that net and optimizer keep between two steps, every attribute followed."""
    found: list[Tensor] = []
    seen: set[int] = set()
    stack: list[object] = [net, optimizer]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found += [value] if value.is_floating_point() else []
            stack += [value.grad] if value.is_leaf and value.grad is not None else []
        elif isinstance(value, dict):
            stack += list(value.values())
        elif isinstance(value, list | tuple | set):
            stack += list(value)
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            stack += list(vars(value).values())
    return found


@pytest.mark.parametrize("domain", ["coordinates", "bases"])
def test_no_float_copy_of_the_weights_is_held_in_the_main_phase(domain: str):
    net = net_of()
    optimizer = LossAware(net, domain)
    for _ in range(3):
        back(net)
        optimizer.step()
    assert copies(net, optimizer) == []
    straight = StraightThrough(net)
    back(net)
    straight.step()
    assert set(copies(net, straight)) == set(net.names), "the check sees a copy where there is one"


def copies(net: Multibit, optimizer: LossAware | StraightThrough) -> list[str]:
    """Layers of whose weights some float tensor held is a copy, be it scaled or cut otherwise."""
    found = []
    for name in net.names:
        weight = net[name].weight()
        cut = net[name].grouping.cut(weight)
        for tensor in held(net, optimizer):
            if tensor.numel() == weight.numel() and max(
                abs(correlation(tensor, w)) for w in (weight, cut)
            ) > 0.7:  # fmt: skip
                found.append(name)
                break
    return found


def test_coordinates_alone_keep_no_statistics_of_weights():
    net = net_of()
    optimizer = LossAware(net, "coordinates")
    back(net)
    optimizer.step()
    sizes = {net[name].codes.numel() for name in net.names}
    assert not any(t.numel() in sizes for t in held(net, optimizer))


def test_moments_are_torchs_amsgrad():
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = torch.optim.Adam([parameter], 0.1, amsgrad=True, eps=0)
    moments, place = Moments(), parameter.detach().clone()
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        gradient = torch.randn(3, generator=generator)
        parameter.grad = gradient.clone()
        optimizer.step()
        moments.add(gradient)
        place = moments.quadratic(0.1).target(place)
    assert torch.allclose(place, parameter, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_step_of_bases_never_grows_the_quadratic_model(seed: int):
    generator = torch.Generator().manual_seed(seed)
    net = net_of()
    for name in net.names:
        bases = net[name].bases()
        shape = bases.codes.shape
        model = Quadratic(
            torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) * 30
        )
        moved = _bases(bases, model)
        assert float(model.loss(values(moved) - values(bases))) <= 1e-4
        wrong = mutant("multibit.steps", "nearest(target, bases.alpha)",
                       "nearest(2 * values(bases) - target, bases.alpha)")  # fmt: skip
        uphill = Bases(wrong._bases(bases, model).codes, bases.alpha)
        assert float(model.loss(values(uphill) - values(bases))) > 1e-4


def test_a_coordinate_that_passes_zero_goes_on_as_a_negative_one_would():
    net = net_of(most=2)
    optimizer = LossAware(net, rate=0.05)
    codes = {name: net[name].codes.clone() for name in net.names}
    alpha = {name: net[name].alpha.clone() for name in net.names}
    goal = {name: -net[name].weight() for name in net.names}
    moments = {name: Moments() for name in net.names}
    for _ in range(40):
        for name, leaf in net.leaves().items():
            leaf.grad = leaf.detach() - goal[name]
        optimizer.step()
        for name, a in alpha.items():  # AMSGrad on coordinates of either sign, for signs that stay
            b, grouping = signs(codes[name], 2), net[name].grouping
            now = (b * a[:, :, None]).sum(1)
            gradient = (b * (now - grouping.cut(goal[name]))[:, None]).sum(2) * (a != 0)
            moments[name].add(gradient)
            size = float(a.abs().sum() / (a != 0).sum())
            target = moments[name].quadratic(0.05 * size).target(a)
            alpha[name] = torch.where(a != 0, target, 0)
    for name, a in alpha.items():
        assert float((a < 0).sum() / (a != 0).sum()) >= 0.25, "many have passed zero"
        wanted = (signs(codes[name], 2) * a[:, :, None]).sum(1)
        found = values(net[name].bases())
        assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_statistics_do_not_turn_where_signs_are_chosen_anew():
    net = net_of(most=2)
    copy = StraightThrough(net, 1e-9, coordinates_rate=2.0)
    passed = 0
    for _ in range(3):
        wanted = {}
        for name, leaf in net.leaves().items():
            layer, first = net[name], copy.coordinates.moments[name].first
            leaf.grad = leaf.detach().clone()
            own = projected(layer.grouping.cut(leaf.grad), layer.codes, 2)
            wanted[name] = 0.1 * own + (0.9 * first if len(first) else 0)
        before = {name: net[name].alpha.clone() for name in net.names}
        copy.step()
        for name, first in wanted.items():
            assert torch.allclose(copy.coordinates.moments[name].first, first, atol=1e-5)
            rate = 2.0 * float(before[name].sum() / (before[name] > 0).sum())
            model = copy.coordinates.moments[name].quadratic(rate)
            passed += int((model.target(before[name]) < 0).sum())
    assert passed


def test_steps_of_either_domain_lower_the_loss():
    for domain, rate in (("coordinates", 0.1), ("bases", 0.3)):
        net = net_of(most=2).eval()
        optimizer = LossAware(net, domain, rate, other_rate=0.0)
        losses = []
        for _ in range(25):
            losses.append(float(back(net)))
            optimizer.step()
        assert min(losses[-3:]) < 0.95 * losses[0], (domain, losses)


def in_order(net: Multibit, models: dict[str, Quadratic]) -> list[tuple[str, int]]:
    """All coordinates by importance a bit, each one priced by itself."""
    found = []
    for name in net.names:
        alpha, model = net[name].alpha.flatten(), models[name]
        g, h = model.gradient.flatten(), model.curvature.flatten()
        for i in range(len(alpha)):
            a = float(alpha[i])
            if a > 0:
                f = -float(g[i]) * a + 0.5 * float(h[i]) * a * a
                found.append((f / (net[name].grouping.size + 16), name, i))
    return [(name, i) for _, name, i in sorted(found)]


def drawn_models(net: Multibit, seed: int) -> dict[str, Quadratic]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Quadratic(
            0.1 * torch.randn(net[name].alpha.shape, generator=generator),
            torch.rand(net[name].alpha.shape, generator=generator),
        )
        for name in net.names
    }


def removed_in_rounds(module: object, seed: int) -> tuple[set[tuple[str, int]], int, Multibit]:
    """What three rounds of pruning take, and what was there."""
    net = net_of()
    before = {(n, i) for n in net.names for i in net[n].alpha.flatten().nonzero()[:, 0].tolist()}
    models = drawn_models(net, seed)
    for _ in range(3):  # from the second round on, layers have holes
        module.prune(net, models, 900.0)  # type: ignore[attr-defined]
    after = {(n, i) for n in net.names for i in net[n].alpha.flatten().nonzero()[:, 0].tolist()}
    return before - after, len(before), net


@pytest.mark.parametrize("seed", range(3))
def test_pruning_takes_the_globally_least_important_also_where_layers_have_holes(seed: int):
    order = in_order(net_of(), drawn_models(net_of(), seed))
    gone, many, net = removed_in_rounds(pruning, seed)
    assert 20 < len(gone) < many and gone == set(order[: len(gone)])
    assert all(torch.equal(net[n].codes >> 3, torch.zeros_like(net[n].codes)) for n in net.names)


def test_the_released_codes_order_is_seen_to_be_wrong():
    # importances looked up in the list of all by places in the list of those that are left
    key = "key = importances[name].flatten()[place]"
    wrong = mutant("multibit.prune", key, key.replace("[place]", "[: len(place)]"))
    order = in_order(net_of(), drawn_models(net_of(), 0))
    gone, _, _ = removed_in_rounds(wrong, 0)
    assert gone != set(order[: len(gone)])


def test_no_layer_gives_more_than_its_share_at_once():
    there = {"a": torch.ones(10, 2, dtype=torch.bool), "b": torch.ones(10, 2, dtype=torch.bool)}
    prices = {"a": torch.rand(10, 2), "b": 10 + torch.rand(10, 2)}
    gone = pruning.least(prices, there, {"a": 10, "b": 10}, 100.0, share=0.1)
    assert [int(m.sum()) for m in gone.values()] == [2, 2]
    gone = pruning.least(prices, there, {"a": 10, "b": 10}, 95.0)
    assert [int(m.sum()) for m in gone.values()] == [10, 0]
    assert not any(m.any() for m in pruning.least(prices, there, {"a": 1, "b": 1}, 0.0).values())


def test_pruning_before_any_statistics_is_refused():
    net = net_of()
    with pytest.raises(ValueError, match="first"):
        LossAware(net).prune(100.0)


def test_pruning_by_a_given_curvature_damps_it_and_leaves_gradients_out():
    net = net_of()
    optimizer = LossAware(net)
    back(net)
    optimizer.step()
    torch.manual_seed(0)
    given = {n: torch.rand_like(net[n].alpha) ** 8 for n in net.names}
    before = {n: net[n].alpha.clone() for n in net.names}
    assert all((a > 0).any() for a in before.values())

    def least(damped: float, gradient: float) -> set[tuple[str, int]]:
        order = []
        for name, alpha in before.items():
            there = (alpha > 0).flatten()
            h = given[name] + damped * given[name].flatten()[there].mean()
            m = optimizer.moments[name]
            g = gradient * m.quadratic(1.0).gradient
            f = (0.5 * h * alpha.square() - g * alpha).flatten() / (net[name].grouping.size + 16)
            order += [(float(f[i]), name, int(i)) for i in there.nonzero()[:, 0]]
        return {(name, i) for _, name, i in sorted(order)[:12]}

    # the places are those of coordinates before what is left of a group moves up
    seen: list[set[tuple[str, int]]] = []
    real = pruning.least

    def watched(*args: object, **kwargs: object) -> dict[str, Tensor]:
        found = real(*args, **kwargs)  # type: ignore[arg-type]
        seen.append({(n, i) for n in found for i in found[n].flatten().nonzero()[:, 0].tolist()})
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "least", watched)
        assert optimizer.prune(12 * 32.0 - 1, curvature=given) == 12
    assert seen == [least(1.0, 0.0)]
    assert least(1.0, 0.0) != least(0.0, 0.0) and least(1.0, 0.0) != least(1.0, 1.0)


@pytest.mark.parametrize(
    ("kind", "temperature"), [("kl", 1.0), ("kl", 0.25), ("squared", 1.0)], ids=str
)
def test_curvatures_are_the_gauss_newton_diagonal_in_both_domains(kind: str, temperature: float):
    net = net_of().eval()
    x = rows(3)[0]
    exact = dense_gauss_newton(net, x, kind, temperature)
    if temperature != 1:  # what the curvature of plain answers would be taken for
        plain = dense_gauss_newton(net, x, kind, 1.0).diagonal()
        assert float((exact.diagonal() - plain).abs().sum() / plain.sum()) > 0.15
    for weights in (True, False):
        found = curvatures(
            net, [x] * 600, weights=weights, kind=kind, temperature=temperature, seed=1
        )["fc2"]
        layer = net["fc2"]
        if weights:
            wanted = layer.grouping.cut(exact.diagonal().reshape(layer.shape))
        else:
            b = signs(layer.codes, layer.alpha.shape[1])
            full = torch.zeros(len(b), b.shape[1], exact.shape[0])
            for g in range(len(b)):
                place = torch.zeros(b.shape[0], b.shape[2], dtype=torch.bool)
                place[g] = True
                full[g][:, layer.grouping.join(place, layer.shape).flatten()] = b[g]
            wanted = torch.einsum("gij,jk,gik->gi", full, exact, full)
        assert float((found - wanted).abs().sum() / wanted.sum()) < 0.12


def dense_gauss_newton(net: Multibit, x: Tensor, kind: str, t: float) -> Tensor:
    """The Hessian of the mean loss to itself (`t² KL`, or half squares), in the last weights."""
    dense = net.dense()
    reference = dense(x).detach()

    def loss(weight: Tensor) -> Tensor:
        outputs = functional_call(dense, {"fc2.weight": weight}, (x,))
        if kind == "squared":
            return 0.5 * (outputs - reference).square().sum(1).mean()
        wanted, found = (reference / t).log_softmax(1), (outputs / t).log_softmax(1)
        return t**2 * (wanted.exp() * (wanted - found)).sum(1).mean()

    weight = dense.get_parameter("fc2.weight").detach()
    return hessian(loss)(weight).reshape(weight.numel(), weight.numel()).detach()
