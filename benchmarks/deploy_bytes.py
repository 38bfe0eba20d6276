"""Bytes of the artefact against what its numbers must take. A part of `deploy.py`.

The floor is Σ bits/8 over all weights, the scales of channels and activations as stored, the
biases, and parameters that stay in float. Widths, zero points, the program, names and the checksum
are not in it: they are what 1 % and 4 KB have to hold. Widths by channel minimize the rounding
errors at a mean of 2, 3 and 4 bits; and at random, 1 to 8, which nothing compresses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import deploy_cases
import harness
import numpy as np

from bitwright import allocate, quantize
from bitwright.curvature import Sensitivity
from bitwright.deploy import artefact
from bitwright.deploy.tensors import from_bytes
from bitwright.network import Network
from bitwright.quantize import Quantized, WeightTable

#: the bar: at most SHARE × the floor + FREE bytes
SHARE, FREE = 1.01, 4096
#: what a run writes into the file besides
METADATA = {
    "producer": "bitwright 0.1.0",
    "method": "channels",
    "preprocessing": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
}


def widths(
    network: Network, tables: Mapping[str, WeightTable], mean: int | None
) -> dict[str, np.ndarray]:
    """Of every channel: the least rounding error at a mean width, or random ones for None."""
    if mean is None:
        rng = np.random.default_rng(0)
        return {la.name: rng.integers(1, 9, la.rows) for la in network.layers}
    errors = {name: table.error.T.numpy() for name, table in tables.items()}
    nothing = Sensitivity("none", {})  # the errors themselves are the score
    budget = mean * network.weights
    problem = quantize.channel_problem(network, nothing, tables, budget, score=errors)
    return quantize.plan_bits(network, allocate.knapsack(problem))


def floor(path: Path, network: Network, bits: Mapping[str, np.ndarray]) -> int:
    """Σ bits/8, scales, biases and float parameters, in bytes."""
    tensors, _ = from_bytes(path.read_bytes(), path)
    codes = sum(int(bits[la.name].sum()) * la.fan_in for la in network.layers)
    kept = ("scale", "bias", "edge_scale")
    numbers = [v for name, v in tensors.items() if name in kept or name[:2] == "f:"]
    return -(-codes // 8) + sum(v.nbytes for v in numbers)


def measure(rows: harness.Rows, quick: bool) -> None:
    """A row a network and mean width."""
    for name in deploy_cases.QUICK if quick else deploy_cases.ROSTER:
        network, x = deploy_cases.captured(name)
        tables = quantize.weight_tables(network)
        edges = quantize.calibrate(network, x)
        for mean in (2, 3, 4, None):
            bits = widths(network, tables, mean)
            layers = quantize.round_weights(network, tables, bits)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.safetensors"
                artefact.save(Quantized(network, layers, edges), path, METADATA)
                size, least = path.stat().st_size, floor(path, network, bits)
            label = "random widths" if mean is None else f"{mean} bits"
            rows.add(
                f"artefact bytes, {name}, {label}",
                size,
                bar=f"<= {SHARE} x {least} + {FREE}",
                holds=size <= SHARE * least + FREE,
                ratio=round((size - FREE) / least, 4),
                over_floor=size - least,
            )
