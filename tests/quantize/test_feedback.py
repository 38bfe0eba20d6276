"""Error feedback against its literal form, brute force, and rounding to nearest."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bitwright.arith import feedback as columns_of
from bitwright.arith.grid import Grid, dequantize, fit, quantize
from bitwright.curvature import Sensitivity
from bitwright.network import Network, build, outputs
from bitwright.quantize import (
    Quantized,
    calibrate,
    channel_losses,
    correct,
    feedback,
    float_outputs,
    moments,
    round_weights,
    simulate,
    weight_tables,
)
from bitwright.quantize.scores import Rows
from mutants import mutant, mutated
from small import Fn


def problem(seed: int, rows: int = 3, fan_in: int = 4) -> tuple[Tensor, Tensor, Grid]:
    """Weights, the second moment of correlated inputs, and grids of 1 to 3 bits."""
    torch.manual_seed(seed)
    weight = torch.randn(rows, fan_in)
    x = torch.randn(50, fan_in) @ torch.randn(fan_in, fan_in)
    bits = torch.randint(1, 4, (rows,))
    grid = Grid(bits, 0.3 + torch.rand(rows), 2**bits - torch.randint(0, 2, (rows,)))
    return weight, (x.T @ x / 50).double(), grid


def ours(weight: Tensor, gram: Tensor, grid: Grid, damping: float = 0.01) -> Tensor:
    top = 2**grid.bits - 1
    parts = (weight, gram, grid.scale, grid.zero, top)
    return columns_of.round_columns(*(t[None] for t in parts), damping)[0]


def test_rows_of_bases_have_the_nearest_codes_where_inputs_are_uncorrelated():
    torch.manual_seed(0)
    d = torch.tensor([[3, 7, 0, 0], [1, 4, 9, 0], [2, 3, 8, 13], [0, 0, 0, 0]])
    bits = torch.tensor([2, 3, 4, 3])
    grid = Grid(bits, 0.1 + torch.rand(4), torch.tensor([4, 7, 12, 7]), d)
    weight = 4 * torch.randn(4, 30)
    gram = torch.diag(1 + torch.rand(30)).double()
    parts = (weight, gram, grid.scale, grid.zero, 2**bits - 1)
    found = columns_of.round_columns(*(t[None] for t in parts), 0.0, d[None])[0]
    assert torch.equal(found, quantize(weight, grid).double())


def literal(weight: Tensor, gram: Tensor, grid: Grid, damping: float = 0.01) -> Tensor:
    """OBQ row by row, in GPTQ's order: invert H, round a weight, move the others, drop it."""
    h = gram.numpy() + damping * float(gram.diagonal().mean()) * np.eye(len(gram))
    order = sorted(range(len(gram)), key=lambda i: -float(gram[i, i]))
    codes = np.zeros(weight.shape)
    for r in range(len(weight)):
        w = weight[r].double().numpy().copy()
        s, half = float(grid.scale[r]), int(grid.zero[r]) / 2
        for step, i in enumerate(order):
            left = order[step:]
            inverse = np.linalg.inv(h[np.ix_(left, left)])
            codes[r, i] = np.clip(np.rint(w[i] / s + half), 0, 2 ** int(grid.bits[r]) - 1)
            w[left] -= (w[i] - s * (codes[r, i] - half)) / inverse[0, 0] * inverse[0]
    return torch.from_numpy(codes)


def error(codes: Tensor, weight: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    change = (codes - grid.zero[:, None] / 2) * grid.scale[:, None].double() - weight.double()
    return ((change @ gram) * change).sum(1)


def differs_from_literal() -> list[int]:
    bad = []
    for seed in range(12):
        case = problem(seed, fan_in=(2, 4, 40, 70)[seed % 4])
        if not torch.equal(ours(*case), literal(*case)):
            bad.append(seed)
    return bad


def test_it_is_obq_taken_literally():
    assert differs_from_literal() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("w[:, :, i + 1 : b] -= e", "w[:, :, i + 1 : b] += e"),
        ("w[:, :, b:] -= errors", "w[:, :, b:] += errors"),
        ("descending=True", "descending=False"),
        ("linalg.cholesky(inverse, upper=True)", "linalg.cholesky(h, upper=True)"),
        ("damping * mean", "0.5 * damping * mean"),
        ("order.argsort(dim=1)[:, None]", "order[:, None]"),
    ],
)
def test_wrong_feedback_is_seen(old: str, new: str):
    with mutated("arith.feedback", old, new):
        assert differs_from_literal()


def kept(codes: Tensor, weight: Tensor, gram: Tensor, zero: Tensor) -> Tensor:
    """`wᵀHw` less the error after the best positive gain, of codes in any scale."""
    level = codes.double() - zero[:, None] / 2
    felt = level @ gram
    common = (felt * weight).sum(1).clamp(min=0)
    return common.square() / (felt * level).sum(1).clamp(min=1e-300)


def out_of_order(cases: int = 40) -> list[int]:
    """Cases with a row not between the best of all its roundings and the nearest."""
    bad = []
    for seed in range(cases):
        weight, gram, grid = problem(seed)
        parts = (weight.double(), gram, grid.scale, grid.zero, 2**grid.bits - 1)
        codes, scale = (t[0] for t in feedback.fed_back(*(t[None] for t in parts), 0.1))
        found = kept(codes, weight, gram, grid.zero)
        good = bool((found >= kept(quantize(weight, grid), weight, gram, grid.zero) - 1e-9).all())
        left = ((weight.double() @ gram) * weight).sum(1) - found
        now = error(codes, weight, gram, Grid(grid.bits, scale, grid.zero))
        good &= torch.allclose(now, left, rtol=1e-3, atol=1e-4)  # the scale is the best, in float16
        for r in range(len(weight)):
            every = torch.cartesian_prod(*[torch.arange(2 ** int(grid.bits[r]))] * 4)
            best = kept(every, weight[r], gram, grid.zero[[r]].expand(len(every))).max()
            good &= bool(found[r] <= best + 1e-9)
        if not good:
            bad.append(seed)
    return bad


def test_between_the_best_of_all_roundings_and_the_nearest():
    assert out_of_order() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (".argmax(1, keepdim=True)", ".argmin(1, keepdim=True)"),
        ("(felt * other).sum(2)", "(level * other).sum(2)"),
        ("round_scale(scale * torch", "round_scale(1.1 * scale * torch"),
    ],
)
def test_a_wrong_choice_of_scale_is_seen(old: str, new: str):
    with mutated("quantize.feedback", old, new):
        assert out_of_order()


def descended(codes: Tensor, weight: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    """Descent taken literally: while a weight's nearest best level lowers the error, move it."""
    codes = codes.clone()
    s, half = grid.scale.double(), grid.zero.double() / 2
    for r in range(len(weight)):
        for _ in range(100):
            before = codes[r].clone()
            for i in range(weight.shape[1]):
                tried = codes[r].repeat(2 ** int(grid.bits[r]), 1)
                tried[:, i] = torch.arange(len(tried))
                change = s[r] * (tried - half[r]) - weight[r].double()
                codes[r] = tried[int(((change @ gram) * change).sum(1).argmin())]
            if torch.equal(before, codes[r]):
                break
    return codes


def descends_wrongly() -> list[int]:
    bad = []
    for seed in range(8):
        weight, gram, _ = problem(seed, fan_in=(5, 40)[seed % 2])
        grid = fit(weight, 1 + seed % 3)[0]
        start = quantize(weight, grid).double()
        if seed % 4 > 1:  # from afar: several codes at a time
            start = (2.0 ** grid.bits[:, None] - 1) - start
        parts = (start, weight, gram, grid.scale, grid.zero, 2**grid.bits - 1)
        found = columns_of.descend(*(t[None] for t in parts), sweeps=100)[0]
        if not torch.equal(found, descended(start, weight, gram, grid)):
            bad.append(seed)
    return bad


def test_descent_is_descent_taken_literally():
    assert descends_wrongly() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("step * (step + 2 * pull) < 0", "step * (step + pull) < 0"),
        ("slope += steps @ h[:, a:b]", "slope -= steps @ h[:, a:b]"),
        ("inside += step", "inside -= step"),
        ("s * at - pull", "s * at - 0.5 * pull"),
    ],
)
def test_wrong_descent_is_seen(old: str, new: str):
    with mutated("arith.feedback", old, new):
        assert descends_wrongly()


def test_feedback_leaves_less_than_nearest():
    """Over many draws: greedy columns alone may lose now and then."""
    sums = np.zeros(2)
    for seed in range(40):
        weight, gram, _ = problem(seed, fan_in=24)
        case = weight, gram, fit(weight, 3)[0]
        for i, codes in enumerate((ours(*case), quantize(weight, case[2]).double())):
            sums[i] += float(error(codes, *case).sum())
    assert sums[0] < 0.7 * sums[1]


def test_uncorrelated_inputs_of_one_size_leave_rounding_to_nearest():
    for seed in range(5):
        weight, _, grid = problem(seed, fan_in=50)
        gram = torch.eye(50, dtype=torch.float64)
        assert torch.equal(ours(weight, gram, grid).to(torch.uint8), quantize(weight, grid))
        assert torch.equal(ours(weight, 0 * gram, grid).to(torch.uint8), quantize(weight, grid))


# ------------------------------------------------------------------------------ networks


@cache
def network(seed: int = 0) -> tuple[Network, Tensor]:
    """Plain, grouped and depthwise convolutions with strides and dilation, and a head."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=(1, 2), dilation=(1, 2), groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 6, (3, 1), groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(90, 3),
    )
    x = torch.randn(40, 4, 9, 9)
    x += x.roll(1, 3) + x.roll(1, 2)  # neighbours that say the same
    return build(model.eval(), x), x


def widths(net: Network, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {la.name: rng.integers(1, 9, la.rows) for la in net.layers}


def inputs_wrong() -> list[str]:
    """Layers whose moments are not those of the inputs cut out by PyTorch."""
    net, x = network()
    found = moments.float_moments(net, x, chunk=16)
    bad = []
    for layer, args in zip(net.layers, arguments(net, x), strict=True):
        if layer.kind == "linear":
            cut = args[0].T[None]
        else:
            stride, padding, dilation = args[3:6]
            cut = nn.functional.unfold(args[0], layer.shape[2:], dilation, padding, stride)
            cut = cut.unflatten(1, (layer.groups, -1)).movedim(0, 2).flatten(2)
        cut = cut.double()
        mean = cut.mean(2)
        gram = cut @ cut.mT / cut.shape[2] - mean[:, :, None] * mean[:, None]
        m = found[layer.name]
        pairs = ((m.gram, gram), (m.mean, mean), (m.floats, mean), (m.drift, 0 * gram))
        if not all(torch.allclose(a, b, atol=1e-5) for a, b in pairs):
            bad.append(layer.name)
    return bad


def arguments(net: Network, x: Tensor) -> list[tuple]:
    """Of the call of every layer."""
    calls = {la.calls[0] for la in net.layers}
    found = []

    def call(node, args, kwargs):
        if node.name in calls:
            found.append((*args, *(1, 0, 1)[max(0, len(args) - 3) :]))
        return node.target(*args, **kwargs)

    outputs(net.module, x, call, chunk=len(x))
    return found


def test_moments_are_those_of_the_inputs():
    assert inputs_wrong() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.gram[half] += (a @ a.mT)", "self.gram[half] = (a @ a.mT)"),
        ("t * d for t, d in zip(strides, dilation", "t for t, d in zip(strides, dilation"),
        ("t * s for t, s in zip(strides, steps", "t for t, s in zip(strides, steps"),
        ("gram / n - mean[:, :, None] * mean[:, None]", "gram / n"),
        ("reversed(padding)", "padding"),
    ],
)
def test_wrong_moments_are_seen(old: str, new: str):
    with mutated("quantize.moments", old, new):
        assert inputs_wrong()


def test_some_positions_of_large_images_stand_for_all():
    torch.manual_seed(0)
    image = torch.randn(3, 2, 37, 20)
    net = build(nn.Conv2d(2, 4, 3, stride=2).eval(), image)
    layer, (node,) = net.layers[0], [n for n in net.module.graph.nodes if "conv" in n.name]
    every = nn.functional.unfold(image, 3, stride=2).unflatten(2, (18, 9))
    seen = []
    for turn in range(2):
        some = moments.columns(layer, node, image, turn)[0].unflatten(1, (3, 9, 9))
        wanted = every[:, :, turn::2]
        assert torch.equal(some.movedim(1, 0), wanted)
        seen.append(some)
    assert not torch.equal(*seen)


def test_moments_come_in_turns_of_positions():
    """Pieces of the rows look at different positions; all are counted."""
    torch.manual_seed(0)
    x = torch.randn(64, 2, 20, 20)
    net = build(nn.Conv2d(2, 4, 3).eval(), x)
    cut = nn.functional.unfold(x, 3).double()
    gram = torch.cov(cut.movedim(1, 0).flatten(1), correction=0)
    found = moments.float_moments(net, x, chunk=16)[net.layers[0].name]
    assert torch.allclose(found.gram[0], gram, atol=0.06)


def test_a_row_does_not_know_the_others_widths():
    net, x = network()
    tables, seen = weight_tables(net), moments.float_moments(net, x)
    one, other = widths(net, 0), widths(net, 1)
    for layer in net.layers:
        mixed = {n: b.copy() for n, b in other.items()}
        mixed[layer.name][0] = one[layer.name][0]
        a = feedback.round_by_moments(net, tables, one, seen)[layer.name]
        b = feedback.round_by_moments(net, tables, mixed, seen)[layer.name]
        assert torch.equal(a.codes[0], b.codes[0]) and torch.equal(a.grid.scale[0], b.grid.scale[0])
        assert not torch.equal(a.codes[1:], b.codes[1:])


def test_groups_are_layers_of_their_own():
    torch.manual_seed(0)
    x = torch.randn(16, 6, 7, 7).cumsum(3)  # one piece: the damping is the usual one
    whole = nn.Conv2d(6, 9, 3, groups=3)
    net = build(whole.eval(), x)
    bits = np.array([1, 2, 3, 4, 5, 6, 7, 8, 2])
    name = net.layers[0].name
    found = feedback.round_with_feedback(net, weight_tables(net), {name: bits}, x)[name]
    for g in range(3):
        rows = slice(3 * g, 3 * g + 3)
        part = nn.Conv2d(2, 3, 3)
        part.load_state_dict({"weight": whole.weight[rows], "bias": whole.bias[rows]})
        piece = x[:, 2 * g : 2 * g + 2].contiguous()
        alone = build(part.eval(), piece)
        by_itself = feedback.round_with_feedback(
            alone, weight_tables(alone), {alone.layers[0].name: bits[rows]}, piece
        )[alone.layers[0].name]
        assert torch.equal(found.codes[rows], by_itself.codes)
        assert torch.allclose(found.grid.scale[rows], by_itself.grid.scale, rtol=1e-3)
        assert torch.allclose(found.bias[rows], by_itself.bias, atol=1e-2)


def distance(net: Network, layers: dict, x: Tensor) -> float:
    built = correct(net, layers, {}, x, float_outputs(net, x))
    return float((simulate(built, x) - outputs(net.module, x)).square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_comes_closer_than_rounding_to_nearest(bits: int):
    net, x = network(1)
    tables = weight_tables(net)
    plan = {la.name: np.full(la.rows, bits) for la in net.layers}
    plain = distance(net, round_weights(net, tables, plan), x)
    before = [la.detach().clone() for la in net.module.parameters()]
    fed = distance(net, feedback.round_with_feedback(net, tables, plan, x), x)
    still = distance(
        net, feedback.round_by_moments(net, tables, plan, moments.float_moments(net, x)), x
    )
    assert fed < 0.7 * plain and still < (0.9 if bits > 2 else 1.05) * plain
    after = list(net.module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_it_rounds_towards_the_float_output_for_the_inputs_that_come():
    """Against least squares: what a second linear layer should be behind a bad first one."""
    torch.manual_seed(0)
    x = torch.randn(4000, 6) @ torch.randn(6, 6)
    net = build(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)).eval(), x)
    tables = weight_tables(net)
    first, last = net.layers
    plan = {first.name: np.full(6, 1), last.name: np.full(4, 8)}
    found = feedback.round_with_feedback(net, tables, plan, x)
    stored = found[first.name]
    hidden = torch.tanh(x @ stored.matrix().T + stored.bias)
    target = outputs(net.module, x)
    got = hidden @ found[last.name].matrix().T + found[last.name].bias
    basis = torch.cat([hidden, torch.ones(len(x), 1)], 1)
    best = basis @ torch.linalg.lstsq(basis, target).solution
    plain = hidden @ net.matrix(last).T + net.tensor(last.bias)
    errors = [float((y - target).square().mean()) for y in (best, got, plain)]
    assert errors[1] < 1.2 * errors[0] and errors[1] < 0.9 * errors[2]


def test_narrow_activations_are_what_it_rounds_for():
    net, x = network(2)
    tables = weight_tables(net)
    edges = calibrate(net, x, bits=3)
    plan = {la.name: np.full(la.rows, 3) for la in net.layers}
    reference = float_outputs(net, x)
    target = outputs(net.module, x)

    def left(layers: dict) -> float:
        return float(
            (simulate(correct(net, layers, edges, x, reference), x) - target).square().mean()
        )

    knows = left(feedback.round_with_feedback(net, tables, plan, x, edges))
    assert knows < left(round_weights(net, tables, plan))
    assert knows != left(feedback.round_with_feedback(net, tables, plan, x))


def test_a_layer_used_twice_is_rounded_for_both_uses():
    torch.manual_seed(0)
    one = nn.Linear(5, 5)
    x = torch.randn(60, 5) @ torch.randn(5, 5)
    net = build(nn.Sequential(one, nn.Tanh(), one).eval(), x)
    name = net.layers[0].name
    plan = {name: np.full(5, 3)}
    tables = weight_tables(net)
    found = feedback.round_with_feedback(net, tables, plan, x)[name]
    both = torch.cat([x, torch.tanh(one(x).detach())]).double()
    gram = torch.cov(both.T, correction=0)
    seen = moments.float_moments(net, x)[name]
    assert torch.allclose(seen.gram[0], gram, atol=1e-4)
    alone = feedback.round_by_moments(net, tables, plan, {name: seen})[name]
    assert torch.equal(found.codes, alone.codes) and torch.equal(found.bias, alone.bias)
    shift = (net.matrix(net.layers[0]) - found.matrix()) @ both.mean(0).float()
    assert torch.allclose(found.bias, one.bias.detach() + shift, atol=1e-5)


def test_inputs_that_never_come_are_rounded_to_nearest():
    torch.manual_seed(0)
    x = torch.zeros(20, 6)
    net = build(nn.Linear(6, 4).eval(), x)
    name, tables = net.layers[0].name, weight_tables(net)
    plan = {name: np.array([1, 2, 3, 8])}
    found = feedback.round_with_feedback(net, tables, plan, x)[name]
    plain = round_weights(net, tables, plan)[name]
    assert torch.equal(found.codes, plain.codes) and torch.equal(found.grid.scale, plain.grid.scale)


def test_the_same_twice():
    net, x = network()
    tables, plan = weight_tables(net), widths(net)
    a, b = (feedback.round_with_feedback(net, tables, plan, x) for _ in range(2))
    for name in a:
        assert torch.equal(a[name].codes, b[name].codes)
        assert torch.equal(a[name].bias, b[name].bias)


def test_tokens_and_one_dimension():
    torch.manual_seed(0)
    parts = {"conv": nn.Conv1d(3, 4, 3, padding=1), "head": nn.Linear(4, 5)}
    model = Fn(lambda m, x: m.head(torch.relu(m.conv(x)).mT), **parts)
    x = torch.randn(30, 3, 12).cumsum(2)
    net = build(model.eval(), x)
    tables = weight_tables(net)
    plan = {la.name: np.full(la.rows, 3) for la in net.layers}
    fed = distance(net, feedback.round_with_feedback(net, tables, plan, x), x)
    assert fed < 0.9 * distance(net, round_weights(net, tables, plan), x)


def test_what_it_returns_is_what_the_grids_say():
    net, x = network()
    found = feedback.round_with_feedback(net, weight_tables(net), widths(net), x)
    built = Quantized(net, found, {})
    assert torch.isfinite(simulate(built, x)).all()
    for layer in net.layers:
        stored = found[layer.name]
        assert stored.codes.dtype == torch.uint8
        assert (stored.codes <= (2**stored.grid.bits - 1)[:, None]).all()
        assert torch.equal(stored.grid.scale, stored.grid.scale.half().float())
        assert torch.equal(stored.matrix(), dequantize(stored.codes, stored.grid))


def score_wrong() -> bool:
    """Whether the score is not the loss measured, which on one linear layer is quadratic."""
    torch.manual_seed(0)
    x = torch.randn(40, 6) @ torch.randn(6, 6) + 0.5
    net = build(nn.Linear(6, 4).eval(), x)
    tables, (layer,) = weight_tables(net), net.layers
    none = Sensitivity("gauss-newton", {})
    rows = Rows(x, kind="squared")
    found = channel_losses("feedback", net, none, tables, rows=rows, shrink=False)[layer.name]
    target, seen = outputs(net.module, x), moments.float_moments(net, x)
    truth = np.zeros((4, 8))
    for b in range(1, 9):
        stored = feedback.round_by_moments(net, tables, {layer.name: np.full(4, b)}, seen)
        gap = x @ stored[layer.name].matrix().T + stored[layer.name].bias - target
        truth[:, b - 1] = 0.5 * gap.square().mean(0)
    return not np.allclose(found, truth, rtol=1e-3, atol=1e-9)


def test_the_score_is_the_loss_that_is_left():
    assert not score_wrong()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("stored.bias - network.tensor(la.bias)", "0 * stored.bias"),
        ("stored.matrix() - network.matrix(la)", "1.1 * stored.matrix() - network.matrix(la)"),
    ],
)
def test_a_wrong_score_is_seen(old: str, new: str):
    with mutated("quantize.feedback", old, new):
        assert score_wrong()


def test_a_layer_that_reads_parameters_alone():
    torch.manual_seed(0)
    parts = {"query": torch.randn(7, 5), "key": nn.Linear(5, 4), "value": nn.Linear(6, 4)}
    model = Fn(lambda m, x: m.value(x) @ m.key(m.query).T, **parts)
    x = torch.randn(40, 6)
    net = build(model.eval(), x)
    tables = weight_tables(net)
    plan = {la.name: np.full(la.rows, 4) for la in net.layers}
    assert {la.name for la in net.layers} == {"key", "value"}
    fed = distance(net, feedback.round_with_feedback(net, tables, plan, x), x)
    assert fed < 1.2 * distance(net, round_weights(net, tables, plan), x)


def rows_of(count: int, seed: int = 0) -> Tensor:
    """Inputs of 40 numbers of which few directions are alive."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(40, 40, generator=torch.Generator().manual_seed(9))
    return torch.randn(count, 40, generator=generator) @ mix


def dampings(feedback: object) -> list[float]:
    """λ chosen for more and more rows, and by explicit errors on the second half of them."""
    torch.manual_seed(0)
    found = []
    for count in (32, 128, 1024):
        x = rows_of(count)
        net = build(nn.Sequential(nn.Linear(40, 24)).eval(), x)
        (layer,), tables = net.layers, weight_tables(net)
        known = moments.float_moments(net, x, chunk=16)[layer.name]
        bits = np.full(24, 3)
        best = feedback.best_damping(net, layer, tables[layer.name], bits, known)  # type: ignore[attr-defined]
        pieces = x.split(16)
        halves = [torch.cat(pieces[i::2]).double() for i in (0, 1)]
        halves = [h - h.mean(0) for h in halves]
        grid = tables[layer.name].grid(torch.from_numpy(bits))
        weight = net.matrix(layer).double()
        wanted, left = halves[1] @ weight.T, []
        for damping in feedback.DAMPINGS:  # type: ignore[attr-defined]
            gram = halves[0].T @ halves[0] / len(halves[0])
            codes = columns_of.round_columns(
                weight[None], gram[None], grid.scale[None], grid.zero[None],
                (2**grid.bits - 1)[None], damping,
            )[0]  # fmt: skip
            made = halves[1] @ (codes - grid.zero[:, None] / 2).T
            gain = (made * wanted).sum(0).clamp(min=0) / made.square().sum(0)
            left.append(float((gain * made - wanted).square().sum()))
        assert best == feedback.DAMPINGS[int(np.argmin(left))]  # type: ignore[attr-defined]
        found.append(best)
    return found


def test_damping_is_what_does_best_on_rows_not_seen():
    found = dampings(feedback)
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seen, unseen = moments.halves", "seen = unseen = moments.halves[0]"),
        ("np.argmax(kept)", "np.argmin(kept)"),
        ("_toward_float(weight, seen, damping)\n        codes = round_columns(target, seen.gram",
         "_toward_float(weight, seen, damping)\n        codes = round_columns(target, unseen.gram"),
    ],
)  # fmt: skip
def test_another_damping_is_seen(old: str, new: str):
    with pytest.raises(AssertionError):
        dampings(mutant("quantize.feedback", old, new))


def test_few_rows_have_the_damping_that_is_usual():
    x = rows_of(12)
    net = build(nn.Sequential(nn.Linear(40, 4)).eval(), x)
    known = moments.float_moments(net, x)[net.layers[0].name]
    assert known.halves is None
    table = weight_tables(net)[net.layers[0].name]
    found = feedback.best_damping(net, net.layers[0], table, np.full(4, 3), known)
    assert found == feedback.DAMPING


def test_halves_are_every_second_piece():
    x = rows_of(80)
    net = build(nn.Sequential(nn.Linear(40, 4)).eval(), x)
    known = moments.float_moments(net, x, chunk=16)[net.layers[0].name]
    assert known.halves is not None
    for half, part in zip(known.halves, (x.split(16)[0::2], x.split(16)[1::2]), strict=True):
        rows = torch.cat(part).double()
        assert torch.allclose(half.gram[0], torch.cov(rows.T, correction=0), atol=1e-4)
        assert torch.allclose(half.mean[0], rows.mean(0), atol=1e-5)
