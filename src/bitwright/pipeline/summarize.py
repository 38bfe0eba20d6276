"""From a finished run to the data of its report."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnxruntime
import torch

from bitwright import allocate, quantize
from bitwright.allocate import Limit, Problem, Product
from bitwright.deploy import Verification as Found
from bitwright.network import Layer, Network
from bitwright.pipeline.frontiers import shown
from bitwright.pipeline.limits import lines
from bitwright.pipeline.methods import METHODS
from bitwright.pipeline.run import Run
from bitwright.pipeline.settings import as_text
from bitwright.report.summary import EdgeRow, LayerRow, MethodRow, Summary, Verification
from bitwright.task import fingerprint

#: calibration rows that layers' outputs are compared on: the last, since correction sees the first
ERROR_ROWS = 32


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    from bitwright import __version__

    return {
        "bitwright": __version__,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def created() -> str:
    """The time in UTC; `SOURCE_DATE_EPOCH` overrides it, for reproducible pages."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    zone = datetime.UTC
    now = (
        datetime.datetime.fromtimestamp(int(epoch), zone) if epoch else datetime.datetime.now(zone)
    )
    return now.strftime("%Y-%m-%d %H:%M UTC")


def summarize(run: Run, model: str, command: str | None = None) -> Summary:
    """Everything the report says.

    Args:
        run: with all stages behind it.
        model: what to call the model.
        command: as typed; default: the process's own arguments.
    """
    network, plan = run.network, run.plan
    _ = run.verification  # its file is listed
    sizes = run.breakdown()
    bits = quantize.plan_bits(network, plan)
    methods = tuple(
        MethodRow(
            name=name,
            chosen=name == plan.method,
            mean_bits=None if name == "float" else row.mean_bits,
            bytes=row.bytes,
            kl=None if name == "float" else row.judgement.kl,
            kl_stderr=None if name == "float" else row.judgement.kl_stderr,
            metric=row.judgement.metric,
            metric_stderr=row.judgement.metric_stderr,
            agreement=None if name == "float" else row.judgement.agreement,
            latency_ms=1000 * row.latency,
            lost_stderr=None if name == "float" else row.judgement.lost_stderr,
            title="" if name == "float" else METHODS[name].title,
        )
        for name, row in run.judgements.items()
    )
    whole = ("model.safetensors", "model.onnx")
    stored = sum(size for k, size in sizes.items() if k not in whole)
    counted = ("weights", "scales", "biases", "coordinates")
    graph = sizes["model.onnx"] - sum(sizes.get(k, 0) for k in counted)
    parts = (
        ("float file", run.preflight.float_bytes),
        ("packed weights", sizes["weights"]),
        ("scales", sizes["scales"]),
        ("biases", sizes["biases"]),
        *((k, sizes[k]) for k in ("coordinates",) if k in sizes),
        ("graph and unpacking", graph),
    )
    problem = run.bench.weights(plan.budget).with_limits()
    bases = quantize.plan_rows(network, plan.bases) if plan.bases.any() else {}
    overhead = sizes["model.onnx"] - sizes["weights"]
    frontier = tuple(
        (cost / network.weights, overhead + cost // 8, loss)
        for cost, loss in allocate.frontier(problem)
    )
    rows = run.calibration[-min(ERROR_ROWS, quantize.rows_that_fit(network)) :]
    errors = quantize.layer_errors(run.quantized, rows)
    frontiers = tuple(shown(c, network.weights, plan.cost) for c in run.frontiers)
    names = ("model.onnx", "model.safetensors", "plan.json", "sensitivity.safetensors")
    extra = ("frontier.json", "verify.json")
    files = tuple((n, run.store.path(n).stat().st_size) for n in (*names, *extra))
    return Summary(
        title=f"{model}, compressed",
        model=model,
        command=command or " ".join(["bitwright", *sys.argv[1:]]),
        created=created(),
        seed=run.settings.seed,
        versions=versions(),
        budget=_goal(run),
        target=f"{plan.cost / network.weights:.3f} bits a weight = {stored:,} stored bytes",
        methods=methods,
        layers=tuple(
            replace(
                _layer_row(run, layer, bits[layer.name], bases.get(layer.name), loss),
                output_error=errors.get(layer.name),
            )
            for layer, loss in zip(network.layers, _losses(problem, network, bits), strict=True)
        ),
        edges=_edge_rows(run),
        verification=_verification(run.verification),
        files=files,
        bytes_breakdown=parts,
        frontier=frontier,
        frontiers=frontiers,
        learning=tuple((e.index, e.value, e.best) for e in run.learning),
        timings=tuple(run.store.timings().items()),
        metric_name=run.task.metric_name,
        notes=_notes(run),
        divergence=run.task.divergence,
        settings=as_text(run.settings),
        score=quantize.SCORES[run.score].words,
        rule=METHODS[plan.method].rule,
        error_rows=len(rows),
        reward=run.bench.reward_name if run.learning else "",
        task=fingerprint(run.task),
        key=run.export_key,
    )


def _goal(run: Run) -> str:
    """What was asked for, the bounds beside it included."""
    s = run.settings
    if s.budget is not None:
        goal = s.budget.text
    else:
        goal = f"KL ≤ {s.max_kl}" if s.max_kl else f"drop ≤ {s.max_drop}"
    limits: list[Limit | Product] = [*run.limits]
    if run.product is not None:
        limits.append(run.product)
    bounds = [f"{li.name} ≤ {li.bound:.4g} {li.unit}" for li in limits]
    return ", ".join([goal, *bounds])


def _notes(run: Run) -> tuple[str, ...]:
    notes = [*run.task.notes]
    if run.network.skipped:
        notes.append(f"left in float: {', '.join(run.network.skipped)}")
    if run.settings.refit_head:
        notes.append(refit_line(run))
    if run.plan.bases.any():
        notes.append(bases_line(run))
    notes += limit_lines(run)
    notes += run.accumulators[-1:]
    if run.limits or run.product is not None:
        notes.append("the frontiers at other sizes leave the bounds beside the budget out")
    details = run.sensitivity.details
    notes.append(
        f"sensitivity: {details.get('estimator')}, {float(details.get('share', 1)):.1%} of the "
        f"output curvature of {len(run.calibration)} calibration rows visited"
    )
    if run.within_error is not None:
        notes.append(
            f"{run.within_error:.0%} of the weights would get another width if the predicted "
            "losses came out one standard error off"
        )
    if run.settings.method == "cw-hawq":
        notes.append(
            "cw-hawq: state, action and reward are this project's reconstruction; only the "
            "abstract of arXiv 2008.08284 is known to us"
        )
    return tuple(notes)


def refit_line(run: Run) -> str:
    """What refitting the head gave on held-out rows."""
    found = run.refit
    assert found is not None
    rows = f"on {found.held_out} held-out calibration rows"
    if found.choice == "kept":
        return (
            f"head {found.layer!r} kept: no refit surely lowers its KL of {found.before:.4f} {rows}"
        )
    return (
        f"head {found.layer!r} refitted ({found.choice}): KL {found.before:.4f} -> "
        f"{found.after:.4f}, ± {found.stderr:.4f} on the difference, {rows}"
    )


def bases_line(run: Run) -> str:
    """How many channels have bases in place of a uniform grid."""
    bits, own = run.plan.bits, run.plan.bases
    counts = [f"{int((own & (bits == k)).sum())} have {k} bases" for k in np.unique(bits[own])]
    return (
        f"of {len(own)} channels {', '.join(counts)} (multi-bit: levels are sums of coordinates), "
        "the others uniform grids"
    )


def limit_lines(run: Run) -> list[str]:
    """What the plan takes of each bound beside the budget, and what is not in it."""
    found = lines(run.plan)
    if found and run.network.skipped:
        found.append("layers left in float are not in these sums")
    if run.settings.max_latency is not None:
        found.append(
            f"latency is the sum of the layers' times on {run.times.machine}; the width of weights "
            "does not change it, since all are unpacked to 8 bits at load"
        )
    return found


def _losses(problem: Problem, network: Network, bits: Mapping[str, np.ndarray]) -> list[float]:
    """Predicted loss of each layer at its widths, by the score that the plan was chosen by."""
    widths = np.concatenate([bits[layer.name] for layer in network.layers])
    chosen = np.searchsorted(problem.choices, widths)
    loss = problem.loss[np.arange(len(widths)), chosen]
    cuts = np.cumsum([layer.rows for layer in network.layers])[:-1]
    return [float(part.sum()) for part in np.split(loss, cuts)]


def _layer_row(
    run: Run, layer: Layer, bits: np.ndarray, bases: np.ndarray | None, loss: float
) -> LayerRow:
    estimate = run.sensitivity.layers[layer.name]
    coordinates = 0 if bases is None else int(quantize.coordinate_bytes(bits[bases]).sum())
    return LayerRow(
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        channels=layer.rows,
        weights=layer.weights,
        bits=tuple(int(b) for b in bits),
        trace=float(estimate.value.sum() / layer.weights),
        stderr_probe=float(np.sqrt((estimate.stderr_probe**2).sum()) / layer.weights),
        # channels of a layer move together from sample to sample: their errors add up linearly
        stderr_data=float(estimate.stderr_data.sum() / layer.weights),
        loss=loss,
        float_bytes=4 * (layer.weights + (layer.rows if layer.bias else 0)),
        bytes=int(-(-int(bits.sum()) * layer.fan_in // 8) + (7 if layer.bias else 3) * layer.rows)
        + coordinates,
    )


def _edge_rows(run: Run) -> tuple[EdgeRow, ...]:
    rows = []
    for edge in run.network.edges:
        grid = run.edges.get(edge.group)
        if grid is None:
            continue
        size = max(int(np.prod(edge.shape)), 1)
        trace = float(run.sensitivity.edges[edge.name].value.sum() / size)
        mean = round(grid.mean_bits, 2) if grid.widths else None
        row = EdgeRow(edge.name, edge.shape, grid.scale, grid.zero, trace, grid.bits, mean)
        rows.append(row)
    return tuple(rows)


def _verification(found: Found) -> Verification:
    return Verification(
        ok=found.ok,
        tensors=found.tensors,
        equal=found.equal,
        differing=tuple(
            (d.name, d.fraction, float(d.max_step), d.reason or "unexplained")
            for d in sorted(found.differences, key=lambda d: (-d.max_step, -d.fraction, d.name))
        ),
        first_difference=next((d.name for d in found.differences), None),
        same_class=found.same_class,
        qlinear_convs=found.qlinear_convolutions,
        convolutions=found.convolutions,
        runtime=found.runtime,
        images=found.rows,
        why=found.why,
    )
