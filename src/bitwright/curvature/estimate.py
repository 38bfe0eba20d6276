"""Numbers with their errors: what measuring returns and what is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as packed

from bitwright.codec import decode, encode, parse
from bitwright.errors import BitwrightError
from bitwright.files import put

SCHEMA = 1


@dataclass(frozen=True)
class Estimate:
    """Traces of the channels of one weight or edge, with two errors.

    Attributes:
        value: float64 [C], Hessian trace of each channel's block, in nats (times output units
            squared for squared divergences).
        stderr_probe: float64 [C], what the estimator itself may be off by on these samples: the
            standard error of random probes, or the share of curvature left out by leading
            eigenvectors times the value.
        stderr_data: float64 [C], standard error of the mean over samples (the jackknife of a mean):
            how much another draw of as many samples would change the value.
        samples: number of samples.
    """

    value: np.ndarray
    stderr_probe: np.ndarray
    stderr_data: np.ndarray
    samples: int

    @property
    def variance(self) -> np.ndarray:
        """Of both errors together, float64 [C]; an error that is not known counts as none."""
        errors = np.stack([self.stderr_probe, self.stderr_data])
        return np.asarray((np.nan_to_num(errors) ** 2).sum(0))

    def __str__(self) -> str:
        total = self.value.sum()
        probe = float(np.sqrt((self.stderr_probe**2).sum()))
        data = float(np.sqrt((self.stderr_data**2).sum()))
        return f"trace {total:.4g} ± {probe:.2g} (probes) ± {data:.2g} (data, n={self.samples})"


@dataclass(frozen=True)
class Sensitivity:
    """Curvature of every layer (per output channel) and edge (per channel).

    Attributes:
        method: `gauss-newton` or `hutchinson`.
        layers: layer name -> :class:`Estimate` over its rows.
        edges: edge name -> :class:`Estimate` over its channels (axis 1 of the activation).
        key: hash of weights, data and settings it was measured with.
        details: settings and facts worth keeping (share of curvature captured, passes).
    """

    method: str
    layers: Mapping[str, Estimate]
    edges: Mapping[str, Estimate] = field(default_factory=dict)
    key: str = ""
    details: Mapping[str, float | int | str] = field(default_factory=dict)


def make_key(*parts: object) -> str:
    """A hash that changes with any of `parts` (strings, numbers, bytes, arrays)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            kind, content = f"{part.dtype}{part.shape}", np.ascontiguousarray(part).tobytes()
        elif isinstance(part, bytes):
            kind, content = "bytes", part
        else:
            kind, content = "repr", repr(part).encode()
        digest.update(f"{kind} {len(content)}\0".encode())  # where one part ends is part of it
        digest.update(content)
    return digest.hexdigest()


def save(sensitivity: Sensitivity, path: Path) -> None:
    """Write `sensitivity.safetensors`: three float64 tensors a layer and edge, metadata as JSON."""
    tensors: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for kind, group in (("layer", sensitivity.layers), ("edge", sensitivity.edges)):
        for name, estimate in group.items():
            stack = np.stack([estimate.value, estimate.stderr_probe, estimate.stderr_data])
            tensors[f"{kind}:{name}"] = np.ascontiguousarray(stack, dtype=np.float64)
            counts[f"{kind}:{name}"] = estimate.samples
    header = {
        "schema": SCHEMA,
        "method": sensitivity.method,
        "key": sensitivity.key,
        "details": encode(dict(sensitivity.details)),
        "samples": counts,
    }
    # not save_file: on a full disk that raises an error of its own, no OSError
    put(path, packed(tensors, metadata={"bitwright": json.dumps(header)}))


@dataclass(frozen=True)
class _Header:
    schema: int
    method: str
    key: str
    details: dict[str, Any]
    samples: dict[str, int]


def load(path: Path) -> Sensitivity:
    """Read what :func:`save` wrote.

    Raises:
        BitwrightError: not such a file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            found = parse((file.metadata() or {})["bitwright"].encode(), "its metadata")
            schema = found.get("schema") if isinstance(found, dict) else None
            if schema != SCHEMA:
                raise BitwrightError(
                    f"{path} has sensitivity schema {schema!r:.20}, this version reads {SCHEMA}"
                )
            header: _Header = decode(_Header, found, "its metadata")
            if set(header.samples) != set(file.keys()):
                raise ValueError("its tensors are not those of its header")
            groups: dict[str, dict[str, Estimate]] = {"layer": {}, "edge": {}}
            for name, samples in header.samples.items():
                kind, _, item = name.partition(":")
                table = file.get_tensor(name)
                if table.ndim != 2 or len(table) != 3 or table.dtype != np.float64:
                    raise ValueError(f"{name[:80]} is {table.dtype} {table.shape}")
                value, probe, data = table
                groups[kind][item] = Estimate(value, probe, data, samples)
            return Sensitivity(
                header.method, groups["layer"], groups["edge"], header.key, header.details
            )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BitwrightError(
            f"{path} is not a sensitivity file ({str(error)[:200]}); run `measure` again"
        ) from error
