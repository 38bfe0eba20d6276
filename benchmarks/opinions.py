"""Second opinions: our numbers beside those of other Hessian packages, on one small network.

A part of `traces.py`. Everything is float64, of a convolutional network small enough for dense
Hessians, on three classes. Packages that cannot be imported are left out, and the rows say so:

- PyHessian 0.1 and hessian-eigenthings: `pip install --no-deps pyhessian hessian-eigenthings`
- curvlinops: as for `traces.py`
"""

from __future__ import annotations

import copy
import importlib.util
import time
import warnings

import harness
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import bitwright
from bitwright.curvature import hutchinson
from bitwright.curvature.hessian import Hessian
from bitwright.curvature.spectrum import top_eigenvalues

CE = nn.CrossEntropyLoss()


def trained(quick: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of 604 or 2,296 weights taught three noisy shapes, and 48 rows."""
    torch.manual_seed(0)
    width = 4 if quick else 8
    model = nn.Sequential(
        nn.Conv2d(1, width, 3), nn.Tanh(), nn.Conv2d(width, 2 * width, 3, stride=2), nn.GELU(),
        nn.Flatten(), nn.Linear(8 * width, 2 * width), nn.Tanh(), nn.Linear(2 * width, 3),
    ).double()  # fmt: skip
    y = torch.arange(48) % 3
    x = torch.randn(3, 1, 8, 8).double()[y] + 1.5 * torch.randn(48, 1, 8, 8).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval(), x, y


def dense(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The exact Hessian in each weight."""
    state = {n: p.detach() for n, p in model.named_parameters()}
    found = {}
    for name, weight in state.items():
        if weight.ndim > 1:

            def loss(w: Tensor, name: str = name) -> Tensor:
                return F.cross_entropy(functional_call(model, {**state, name: w}, (x,)), y)

            found[name] = torch.func.hessian(loss)(weight).reshape(weight.numel(), -1)
    return found


def only(model: nn.Module, name: str) -> nn.Module:
    """A copy in which one weight alone requires a gradient: how PyHessian is told of a block."""
    found = copy.deepcopy(model)
    for n, p in found.named_parameters():
        p.requires_grad_(n == name)
    return found


def missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def opinions(rows: harness.Rows, quick: bool) -> None:
    """Traces, largest eigenvalues and Gauss-Newton diagonals, ours beside theirs."""
    model, x, y = trained(quick)
    true = dense(model, x, y)
    _traces(rows, model, x, y, true, quick)
    tops = {n: float(torch.linalg.eigvalsh(h)[-1]) for n, h in true.items()}
    _eigenvalues(rows, model, x, y, tops)
    _gauss_newton(rows, model, x, y)


def _traces(
    rows: harness.Rows, model: nn.Module, x: Tensor, y: Tensor, true: dict[str, Tensor], quick: bool
) -> None:
    """Random signs against random signs, in standard errors: traces of the Hessian."""
    probes = 100 if quick else 1000
    begin = time.perf_counter()
    # ten times a tenth: a layer's channels share their probes, its total has an error of its own
    runs = [hutchinson(model, (x, y), CE, probes=probes // 10, seed=s).layers for s in range(10)]
    spent = time.perf_counter() - begin
    name = f"Hutchinson, {probes} probes"
    off = 0.0
    totals = []
    for n, matrix in true.items():
        found = [r[n.removesuffix(".weight")] for r in runs]
        value = np.mean([e.value for e in found], axis=0)
        error = np.sqrt(np.mean([e.stderr_probe**2 for e in found], axis=0) / len(runs))
        channels = matrix.diagonal().reshape(len(value), -1).sum(1).numpy()
        off = max(off, float((np.abs(value - channels) / error).max()))
        totals.append([e.value.sum() for e in found])
    rows.add(
        f"{name}, worst channel: ours from the dense trace, in standard errors",
        off,
        "<= 4",
        off <= 4,
    )
    exact = {n: float(h.trace()) for n, h in true.items()}
    truth = np.array(list(exact.values()))
    ours = np.mean(totals, axis=1)
    error = np.std(totals, axis=1, ddof=1) / len(runs) ** 0.5
    name = f"{name}, worst of {len(exact)} layers"
    for package, label, estimate in (
        ("pyhessian", "PyHessian 0.1", _pyhessian_trace),
        ("hessian_eigenthings", "hessian-eigenthings", _eigenthings_trace),
    ):
        row = f"{name}: ours from that of {label}, in both's standard errors"
        if missing(package):
            rows.add(row, None, "<= 4", None, f"{package} is not on PYTHONPATH")
            continue
        begin = time.perf_counter()
        theirs, their_error = np.array([estimate(model, x, y, n, probes) for n in exact]).T
        seconds = time.perf_counter() - begin
        apart = float((np.abs(ours - theirs) / np.hypot(error, their_error)).max())
        rows.add(
            row,
            apart,
            "<= 4",
            apart <= 4,
            f"{label} from the dense trace, in its standard errors",
            float((np.abs(theirs - truth) / their_error).max()),
            seconds=round(spent, 3),
            peer_seconds=round(seconds, 3),
        )


def _pyhessian_trace(
    model: nn.Module, x: Tensor, y: Tensor, name: str, probes: int
) -> tuple[float, float]:
    from pyhessian import hessian

    torch.manual_seed(1)  # it takes no seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # backward with create_graph
        operator = hessian(only(model, name), CE, data=(x, y), cuda=False)
    # its stopping rule is switched off: a small step of the running mean would end it
    samples = np.array(operator.trace(maxIter=probes, tol=float("-inf")))
    return float(samples.mean()), float(samples.std(ddof=1) / len(samples) ** 0.5)


def _eigenthings_trace(
    model: nn.Module, x: Tensor, y: Tensor, name: str, probes: int
) -> tuple[float, float]:
    import hessian_eigenthings as peer

    operator = _operator(model, x, y, name)
    found = peer.trace(operator, num_matvecs=probes, method="hutchinson", seed=2)
    return found.estimate, found.stderr


def _operator(model: nn.Module, x: Tensor, y: Tensor, name: str):
    import hessian_eigenthings as peer

    loss = peer.supervised_loss(CE)
    return peer.HessianOperator(model, [(x, y)], loss, param_filter=peer.match_names(name))


def _eigenvalues(
    rows: harness.Rows, model: nn.Module, x: Tensor, y: Tensor, exact: dict[str, float]
) -> None:
    """The largest eigenvalue of every layer's block."""
    begin = time.perf_counter()
    ours = top_eigenvalues(Hessian(model, (x, y), CE), tolerance=1e-5)
    spent = time.perf_counter() - begin
    name = f"largest eigenvalue, worst of {len(exact)} layers"
    off = max(abs(ours[n] / t - 1) for n, t in exact.items())
    rows.add(f"{name}: ours / the dense one − 1", off, "<= 1e-3", off <= 1e-3)
    for package, label, largest in (
        ("pyhessian", "PyHessian 0.1", _pyhessian_top),
        ("hessian_eigenthings", "hessian-eigenthings", _eigenthings_top),
    ):
        row = f"{name}: ours / that of {label} − 1"
        if missing(package):
            rows.add(row, None, "<= 1e-3", None, f"{package} is not on PYTHONPATH")
            continue
        begin = time.perf_counter()
        theirs = {n: largest(model, x, y, n) for n in exact}
        seconds = time.perf_counter() - begin
        apart = max(abs(ours[n] / t - 1) for n, t in theirs.items())
        rows.add(
            row,
            apart,
            "<= 1e-3",
            apart <= 1e-3,
            f"{label} / the dense one − 1",
            max(abs(theirs[n] / t - 1) for n, t in exact.items()),
            seconds=round(spent, 3),
            peer_seconds=round(seconds, 3),
        )


def _pyhessian_top(model: nn.Module, x: Tensor, y: Tensor, name: str) -> float:
    from pyhessian import hessian

    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = hessian(only(model, name), CE, data=(x, y), cuda=False)
    return float(operator.eigenvalues(maxIter=1000, tol=1e-7)[0][0])


def _eigenthings_top(model: nn.Module, x: Tensor, y: Tensor, name: str) -> float:
    import hessian_eigenthings as peer

    operator = _operator(model, x, y, name)
    steps = min(40, operator.size)
    return float(peer.lanczos(operator, k=1, max_iter=steps, which="LA", seed=1).eigenvalues[0])


def _gauss_newton(rows: harness.Rows, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Exact traces of every channel's Gauss-Newton block."""
    begin = time.perf_counter()
    ours = bitwright.traces(model, (x, y), CE, tolerance=0, edges=False).layers
    spent = time.perf_counter() - begin
    for package, label, diagonals in (
        ("curvlinops", "curvlinops' exact GGN diagonal", _curvlinops_diagonals),
        ("hessian_eigenthings", "hessian-eigenthings' GGN on unit vectors", _eigenthings_diagonals),
    ):
        row = f"exact Gauss-Newton traces of channels: ours / {label} − 1, worst"
        if missing(package):
            rows.add(row, None, "<= 1e-6", None, f"{package} is not on PYTHONPATH")
            continue
        begin = time.perf_counter()
        theirs = diagonals(model, x, y)
        seconds = time.perf_counter() - begin
        apart = 0.0
        for n, diagonal in theirs.items():
            ratio = ours[n.removesuffix(".weight")].value / diagonal.flatten(1).sum(1).numpy()
            apart = max(apart, float(np.abs(ratio - 1).max()))
        rows.add(row, apart, "<= 1e-6", apart <= 1e-6, "seconds, ours / theirs", spent / seconds)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.ndim > 1}


def _cut(flat: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = flat.split([w.numel() for w in weights.values()])
    return {n: p.reshape(w.shape) for (n, w), p in zip(weights.items(), parts, strict=True)}


def _curvlinops_diagonals(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    from curvlinops import GGNDiagonalLinearOperator

    weights = _weights(model)
    rest = {n: p.detach() for n, p in model.named_parameters() if p.ndim == 1}

    def call(params: dict[str, Tensor], images: Tensor) -> Tensor:
        single = images.ndim == 3  # it maps over single images
        images = images[None] if single else images
        found = functional_call(model, {**params, **rest}, (images,))
        return found[0] if single else found

    operator = GGNDiagonalLinearOperator(call, CE, weights, [(x, y)])
    size = sum(w.numel() for w in weights.values())
    return _cut(operator @ torch.ones(size, dtype=torch.float64), weights)


def _eigenthings_diagonals(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    import hessian_eigenthings as peer

    weights = _weights(model)
    operator = peer.GGNOperator(
        model,
        [(x, y)],
        peer.supervised_forward,
        peer.supervised_loss_of_output(CE),
        param_filter=lambda name, p: p.ndim > 1,
    )
    unit = torch.eye(operator.size, dtype=torch.float64)
    diagonal = torch.stack([operator.matvec(e)[i] for i, e in enumerate(unit)])
    return _cut(diagonal.detach(), weights)
