"""Equality: reference, artefact loaded back, and runtime, tensor by tensor on all test images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import deploy_cases
import harness

from bitwright.deploy import agree, artefact, onnx_file, verify

#: rows in a pass: all tensors of all of them are in memory
CHUNK = 8
#: rows on which the network and its artefact loaded back are compared
AGREE = 64


def equal(name: str, rows: harness.Rows, quick: bool) -> None:
    """Every integer tensor of a network, in the reference, the loaded artefact, the runtime."""
    if quick and name not in deploy_cases.QUICK:
        return
    case = deploy_cases.case(name)
    if quick:
        case = deploy_cases.few(case, 32)
    with tempfile.TemporaryDirectory() as folder:
        path, stored = Path(folder) / "model.onnx", Path(folder) / "model.safetensors"
        onnx_file.save(case.quantized, path)
        artefact.save(case.quantized, stored, {})
        loaded = artefact.load(stored).quantized
        # the same numbers on the same graph: some rows tell, and verify compares all of them
        lost = agree(case.quantized, loaded, case.test[:AGREE], chunk=CHUNK)
        axis = deploy_cases.CLASS_AXIS.get(name, 1)
        found = verify(loaded, path, case.test, chunk=CHUNK, class_axis=axis)
    rows.add(
        f"integer tensors equal, reference and loaded artefact, {name}, {AGREE} rows",
        found.tensors - len(lost),
        f"= {found.tensors}",
        not lost,
    )
    rows.add(
        f"integer tensors equal, loaded artefact and runtime, {name}, {found.rows} rows",
        found.equal,
        f"of {found.tensors}; others one step on at most 0.1 % for a named reason",
        found.ok,
        worst_fraction=max((d.fraction for d in found.differing), default=0.0),
        reasons=sorted({d.reason for d in found.differing}),
        first_difference=str(found.differing[0]) if found.differing else "",
        output_error=found.output_error,
        runtime=found.runtime,
    )
    rows.add(
        f"rows with the same class, {name}",
        found.same_class,
        "= 1",
        found.same_class == 1.0,
    )
    rows.add(
        f"rows with the same class from the runtime's own integers, {name}",
        found.same_class_given,
        "= 1",
        found.same_class_given == 1.0,
    )
    rows.add(
        f"layers on integers, {name}",
        found.qlinear_convolutions + found.integer_linears,
        f"= {found.convolutions + found.linears}",
        found.qlinear_convolutions + found.integer_linears == found.convolutions + found.linears,
        unsigned=len(found.unsigned),
    )


PARTS: dict[str, Callable[[harness.Rows, bool], None]] = {
    f"equal {name}": partial(equal, name) for name in deploy_cases.ROSTER
}
