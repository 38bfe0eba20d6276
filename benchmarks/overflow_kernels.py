"""Products of im2col shapes with sums kept in int16 against int32, both compiled by numba.

The same sources are compiled for both: dot products of r × s outputs at a time, and updates of r
rows by u inputs at a time, on operands of every width. Every shape is timed with every variant of
both, in turns; the best of each are compared. On a processor with VNNI the compiler uses it for the
int32 dot products of int16 operands (`vpdpwssd`); a hand-written `vpdpbusd`, for which there is
nothing to win from int16, no numba source compiles to.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import harness
import numba
import numpy as np
from overflow_runtime import has_vnni

#: positions, inputs of a sum, channels: im2col of ResNet-20 on 32 × 32 images, MobileNetV2 on 224
SHAPES = {
    "ResNet-20": (
        (1024, 27, 16), (1024, 144, 16), (256, 144, 32), (256, 288, 32), (64, 288, 64),
        (64, 576, 64),
    ),
    "MobileNetV2": (
        (12544, 27, 32), (12544, 32, 16), (12544, 16, 96), (3136, 96, 24), (3136, 24, 144),
        (3136, 144, 24), (784, 144, 32), (784, 32, 192), (784, 192, 32), (196, 192, 64),
        (196, 64, 384), (196, 384, 64), (196, 384, 96), (196, 96, 576), (196, 576, 96),
        (49, 576, 160), (49, 160, 960), (49, 960, 160), (49, 960, 320), (49, 320, 1280),
    ),
}  # fmt: skip
#: r and s of the dot products, r and u of the updates
DOTS, UPDATES = ((1, 4), (2, 4), (4, 4)), ((2, 4), (4, 4))


@dataclass(frozen=True)
class Variant:
    """A compiled source, the type of its operands, and whether it wants the weights' rows."""

    name: str
    call: Callable[..., None]
    operands: type
    transposed: bool


def _dot_source(r: int, s: int) -> str:
    """`c[i, j] = Σ_k a[i, k] b[j, k]` for r × s outputs at a time; leftovers one by one."""
    cells = [(i, j) for i in range(r) for j in range(s)]
    return "\n".join(
        [
            "def kernel(a, b, c):",
            "  m, n = c.shape",
            f"  rows, columns = m // {r} * {r}, n // {s} * {s}",
            f"  for i in range(0, rows, {r}):",
            f"    for j in range(0, columns, {s}):",
            *(f"      a{x} = a[i + {x}]" for x in range(r)),
            *(f"      b{y} = b[j + {y}]" for y in range(s)),
            *(f"      s{x}{y} = T(0)" for x, y in cells),
            "      for k in range(a.shape[1]):",
            *(f"        s{x}{y} = T(s{x}{y} + T(T(a{x}[k]) * T(b{y}[k])))" for x, y in cells),
            *(f"      c[i + {x}, j + {y}] = s{x}{y}" for x, y in cells),
            "  for i in range(m):",
            "    for j in range(columns if i < rows else 0, n):",
            "      t = T(0)",
            "      for k in range(a.shape[1]):",
            "        t = T(t + T(T(a[i, k]) * T(b[j, k])))",
            "      c[i, j] = t",
        ]
    )


def _update_source(r: int, u: int) -> str:
    """`c[i, :] += a[i, k] b[k, :]` for r rows and u inputs at a time; leftovers one by one."""
    sums = (
        f"        c{x}[j] = T(c{x}[j] + "
        + " + ".join(f"T(a{x}{y} * T(b{y}[j]))" for y in range(u))
        + ")"
        for x in range(r)
    )
    return "\n".join(
        [
            "def kernel(a, b, c):",
            "  m, n = c.shape",
            f"  rows, inputs = m // {r} * {r}, a.shape[1] // {u} * {u}",
            "  c[:] = 0",
            f"  for i in range(0, rows, {r}):",
            *(f"    c{x} = c[i + {x}]" for x in range(r)),
            f"    for k in range(0, inputs, {u}):",
            *(f"      b{y} = b[k + {y}]" for y in range(u)),
            *(f"      a{x}{y} = T(a[i + {x}, k + {y}])" for x in range(r) for y in range(u)),
            "      for j in range(n):",
            *sums,
            "  for i in range(m):",
            "    for k in range(inputs if i < rows else 0, a.shape[1]):",
            "      t = T(a[i, k])",
            "      for j in range(n):",
            "        c[i, j] = T(c[i, j] + T(t * T(b[k, j])))",
        ]
    )


def _compiled(source: str, sums: type) -> Callable[..., None]:
    names: dict[str, Any] = {"T": getattr(numba, sums.__name__)}
    exec(source, names)  # our own text of a few lines, unrolled
    found: Callable[..., None] = numba.njit(boundscheck=False, error_model="numpy")(names["kernel"])
    return found


def variants(sums: type) -> list[Variant]:
    """All that are tried with sums of a type."""
    operands = (np.int8, np.int16) if sums is np.int16 else (np.int8, np.int16, np.int32)
    found = []
    for sources, places, name, turned in (
        (_dot_source, DOTS, "dot", True),
        (_update_source, UPDATES, "update", False),
    ):
        for r, s in places:
            call = _compiled(sources(r, s), sums)
            found += [Variant(f"{name} {r}x{s} {t.__name__}", call, t, turned) for t in operands]
    return found


def best(
    shape: tuple[int, int, int], kinds: dict[type, list[Variant]], rounds: int
) -> dict[type, tuple[float, str]]:
    """Seconds of the fastest variant of each type of sums, and its name; results are checked."""
    m, k, n = shape
    rng = np.random.default_rng(0)
    a = rng.integers(0, 64, (m, k))
    b = rng.integers(-1, 2, (k, n)) * (rng.random((k, n)) < 0.5)
    exact = a @ b
    assert abs(exact).max() < 2**15
    jobs = []
    for sums, found in kinds.items():
        for v in found:
            weight = np.ascontiguousarray((b.T if v.transposed else b).astype(v.operands))
            args = a.astype(v.operands), weight, np.zeros((m, n), sums)
            v.call(*args)
            assert (args[2] == exact).all(), (v.name, shape)
            jobs.append((sums, v, args))
    times = {id(job): np.inf for job in jobs}
    for _ in range(rounds):
        for job in jobs:
            begin = time.perf_counter()
            job[1].call(*job[2])
            times[id(job)] = min(times[id(job)], time.perf_counter() - begin)
    return {
        sums: min((times[id(job)], job[1].name) for job in jobs if job[0] is sums) for sums in kinds
    }


def kernels(rows: harness.Rows, quick: bool) -> None:
    """A row a shape and one for all; the shortest of many rounds, in turns."""
    kinds = {np.int16: variants(np.int16), np.int32: variants(np.int32)}
    if quick:
        kinds = {t: [v for v in found if "2x4" in v.name][:2] for t, found in kinds.items()}
    ratios = []
    for network, shapes in SHAPES.items():
        for shape in shapes[1:2] if quick else shapes:
            found = best(shape, kinds, 3 if quick else 12)
            (narrow, by), (wide, other) = found[np.int16], found[np.int32]
            ratios.append(wide / narrow)
            work = 2e-9 * np.prod(shape)
            rows.add(
                f"int32 time / int16 time, {network}, {shape[0]} x {shape[1]} x {shape[2]}",
                ratios[-1],
                int16=by,
                int32=other,
                int16_gops=round(float(work / narrow), 1),
                int32_gops=round(float(work / wide), 1),
            )
    fast = sum(r >= 1.5 for r in ratios)
    rows.add(
        "share of layer shapes on which int16 accumulation is 1.5 times as fast",
        fast / len(ratios),
        ">= 0.5",
        None if quick else 2 * fast >= len(ratios),
        median_ratio=round(float(np.median(ratios)), 3),
        vnni=has_vnni(),
        target=numba.config.CPU_NAME or "this processor",
    )
