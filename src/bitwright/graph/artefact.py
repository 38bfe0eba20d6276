"""`model.safetensors` of a graph network: packed codes, steps, ranges; complete in itself.

Tensors:

| name | type | what |
|---|---|---|
| `bytes`, `nibbles`, `pairs`, `singles` | uint8 | packed codes (:mod:`bitwright.arith.packing`) |
| `scale` | float32 | step of each output channel of each low-bit weight, in order |
| `range` | float32 [sites, 2] | least and largest number of each activation |
| `f:NAME` | any numbers | parameters and buffers that stay as they are |

The header says the form of the network (PyTorch Geometric's layers by name), widths, and the names
of the sites. The container and its seal are those of every artefact (:mod:`bitwright.deploy`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitwright.arith.packing import pack, unpack
from bitwright.codec import decode
from bitwright.deploy.rebuild import STREAMS
from bitwright.deploy.tensors import from_bytes, read_bytes, to_bytes
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.graph.degree_quant import DegreeQuant
from bitwright.graph.nets import Form, build
from bitwright.graph.scheme import Scheme, Widths
from bitwright.graph.weights import weight_steps

SCHEMA = 1
_KIND = "graph"


def save(net: DegreeQuant, form: Form, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the artefact, to a temporary name first.

    Raises:
        BitwrightError: weights or activations are in float.
    """
    bits = net.scheme.weight_bits
    if bits is None or net.scheme.bits is None:
        raise BitwrightError("weights and activations are in float; an artefact has low-bit ones")
    steps: list[np.ndarray] = []
    codes: dict[int, list[np.ndarray]] = {}
    for name in net.low_bit:
        weight, own = net.net.get_parameter(name).detach(), net.scheme.of_weight(name) or bits
        found, axis = weight_steps(weight, own)
        shape = [1] * weight.dim()
        shape[axis] = -1
        top = 2 ** (own - 1) - 1
        levels = (weight / found.reshape(shape)).round().clamp(-top, top) + top
        codes.setdefault(own, []).append(levels.to(torch.uint8).numpy().ravel())
        steps.append(found.numpy())
    tensors = {"scale": np.concatenate(steps), "range": _ranges(net)}
    for plane, data in pack({b: np.concatenate(v) for b, v in sorted(codes.items())}).items():
        if len(data):
            tensors[STREAMS[plane]] = data
    for name, value in net.net.state_dict().items():
        if name not in net.low_bit:
            tensors[f"f:{name}"] = np.array(value.detach().numpy(), order="C")
    header = {
        "schema": SCHEMA,
        "kind": _KIND,
        "form": dataclasses.asdict(form),
        "bits": net.scheme.bits,
        "weight_bits": bits,
        "widths": None if net.scheme.widths is None else dataclasses.asdict(net.scheme.widths),
        "sites": list(net.ranges),
        **metadata,
    }
    put(path, to_bytes(tensors, header))


def load(path: Path) -> tuple[DegreeQuant, Mapping[str, Any]]:
    """The network in evaluation mode, and the header.

    Raises:
        BitwrightError: no artefact of a graph network, damaged, or of another schema.
    """
    tensors, header = from_bytes(read_bytes(path, "a bitwright artefact"), path)
    if header.get("kind") != _KIND or header.get("schema") != SCHEMA:
        raise BitwrightError(f"{path} is no graph network of schema {SCHEMA}")
    try:
        net = _blank(header, sum(4 * value.nbytes for value in tensors.values()))  # of 2 bits each
        _fill(net, tensors, header)
    except BitwrightError as error:
        raise BitwrightError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BitwrightError(f"{path} is damaged: {reason[0][:300]}") from error
    return net.eval(), header


def _ranges(net: DegreeQuant) -> np.ndarray:
    found: list[Any] = list(net.ranges.values())
    return np.array([[float(r.low), float(r.high)] for r in found], dtype=np.float32)


def _blank(header: Mapping[str, Any], most: int) -> DegreeQuant:
    """A network of the header's form with at most so many numbers, and ranges for its sites."""
    fields = {f.name: f.type for f in dataclasses.fields(Form)}
    said = header["form"]
    if set(said) != set(fields) or not isinstance(said["kind"], str):
        raise ValueError("the form has other entries than kind, sizes and dropout")
    sizes = [said[name] for name in ("inputs", "hidden", "outputs", "layers", "heads")]
    if not all(type(n) is int and 1 <= n < 2**20 for n in sizes):
        raise ValueError("a size of the form is no whole number from 1")
    form = Form(**said)
    if form.layers > 1024:
        raise ValueError(f"the form has {form.layers} layers; at most 1024 are read")
    with torch.device("meta"):  # takes no memory
        numbers = sum(value.numel() for value in build(form).parameters())
    if numbers > most:
        raise ValueError(f"the form has {numbers} weights; in so small a file are at most {most}")
    edges = torch.tensor([[0, 1], [1, 0]])
    more = {"batch": torch.zeros(2, dtype=torch.int64)} if form.graphs else {}
    said, widths = header.get("widths"), None
    if said is not None:
        widths = decode(Widths, said, "widths")
    scheme = Scheme(header["bits"], header["weight_bits"], (0.0, 0.0), widths=widths)
    return DegreeQuant(build(form), scheme, torch.ones(2, form.inputs), edges, **more)


def _fill(net: DegreeQuant, tensors: dict[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """Put the file's numbers into the network."""
    weights = {name: net.net.get_parameter(name) for name in net.low_bit}
    widths = {name: net.scheme.of_weight(name) or 8 for name in weights}
    counts: dict[int, int] = {}
    for name, weight in weights.items():
        counts[widths[name]] = counts.get(widths[name], 0) + weight.numel()
    empty = np.zeros(0, np.uint8)
    streams = {plane: tensors.get(name, empty) for plane, name in STREAMS.items()}
    codes = unpack(streams, counts)
    scale, row, at = torch.from_numpy(tensors["scale"].copy()), 0, dict.fromkeys(counts, 0)
    state = {}
    for name, weight in weights.items():
        bits = widths[name]
        steps, axis = weight_steps(weight, bits)
        shape = [1] * weight.dim()
        shape[axis] = -1
        own = scale[row : row + len(steps)].reshape(shape)
        levels = codes[bits][at[bits] : at[bits] + weight.numel()].astype(np.float32)
        levels -= 2 ** (bits - 1) - 1
        state[name] = torch.from_numpy(levels).reshape(weight.shape) * own
        at[bits], row = at[bits] + weight.numel(), row + len(steps)
    for name, value in tensors.items():
        if name.startswith("f:"):
            state[name[2:]] = torch.from_numpy(value.copy())
    if row != len(scale) or not all(bool(v.isfinite().all()) for v in state.values()):
        raise ValueError("its numbers are not those of the form, or not finite")
    net.net.load_state_dict(state)
    ranges: list[Any] = list(net.ranges.values())
    found = tensors["range"]
    if list(net.ranges) != header["sites"] or found.shape != (len(ranges), 2):
        raise ValueError("its ranges are not those of the form")
    for own_range, (low, high) in zip(ranges, found.tolist(), strict=True):
        if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high):
            raise ValueError(f"a range is from {low} to {high}, not around zero")
        own_range.low.fill_(low)
        own_range.high.fill_(high)
        own_range.seen.fill_(True)
