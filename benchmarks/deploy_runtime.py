"""In the runtime: bytes, fused layers, latency and load time beside float and static int8."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import deploy_cases
import harness

from bitwright import cost
from bitwright.deploy import onnx_file

#: networks whose latency has a bar against float
FASTER_THAN_FLOAT = ("ResNet-20", "MobileNetV2")


def runtime(name: str, rows: harness.Rows, quick: bool) -> None:
    """A network's file at 3 mean bits, against float and the runtime's own static int8."""
    if quick and name not in deploy_cases.QUICK:
        return
    case = deploy_cases.case(name)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = {"float": deploy_cases.float_file(case, place / "float.onnx")}
        for form in cost.FORMATS:
            files[form] = cost.static_int8(
                files["float"], case.calibration, place / f"{form}.onnx", form=form
            )
        files["ours"] = place / "model.onnx"
        onnx_file.save(case.quantized, files["ours"])
        found = cost.bench(files, case.test[:1], repeats=30 if quick else 300)
    _report(rows, name, case, found)


def _report(rows: harness.Rows, name: str, case: deploy_cases.Case, found: cost.Bench) -> None:
    ours = found["ours"]
    best = min((found[form] for form in cost.FORMATS), key=lambda f: f.ratio)
    need = case.need_bytes
    rows.add(
        f"bytes of model.onnx, {name}, 3 bits",
        ours.size_bytes,
        f"<= 1.03 x {need} + 20000",
        ours.size_bytes <= 1.03 * need + 20_000,
        "static int8",
        best.size_bytes,
        float_bytes=found["float"].size_bytes,
    )
    for label, form in (("ours", ours), (f"static int8, {best.name}", best)):
        fused, everything = form.convolutions
        rows.add(
            f"QLinearConv in the optimized graph, {name}, {label}",
            fused,
            f"= {everything} convolutions",
            fused == everything,
        )
    ratio = found.ratio("ours", best.name)
    rows.add(
        f"latency of one row over static int8, {name}",
        ratio,
        "<= 1.05",
        ratio <= 1.05,
        "of float",
        best.ratio,
        median_s=ours.latency_s,
        p95_s=ours.p95_s,
        peer_median_s=best.latency_s,
        peer_p95_s=best.p95_s,
        machine=str(found.machine),
    )
    barred = name in FASTER_THAN_FLOAT
    rows.add(
        f"latency of one row over float, {name}",
        ours.ratio,
        "<= 0.75" if barred else "",
        ours.ratio <= 0.75 if barred else None,
        "float, s",
        found["float"].latency_s,
    )
    weights = case.quantized.network.weights
    usual = found["qdq"]  # the format that the runtime's tool writes unasked
    limit = max(3 * usual.load_s, 0.1 * weights / 3e6)
    rows.add(
        f"load time (processor), s, {name}",
        ours.load_s,
        "<= 3 x static int8, or 0.1 s per 3 M weights",
        ours.load_s <= limit,
        "static int8, qdq",
        usual.load_s,
        operators_load_s=found["operators"].load_s,
        weights=weights,
        peak_bytes=ours.peak_bytes,
        peer_peak_bytes=best.peak_bytes,
        float_peak_bytes=found["float"].peak_bytes,
    )


PARTS: dict[str, Callable[[harness.Rows, bool], None]] = {
    f"runtime {name}": partial(runtime, name) for name in deploy_cases.ROSTER
}
