"""Defaults of the numerical core: one meaning of a name has one default, and it is written here.

A default is part of what a published number was made with: who changes one changes it here too.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

#: wherever a public function of the core has such a default
EVERYWHERE = {"seed": 0, "class_axis": 1, "batch": 1, "effort": 2.0, "progress": None}
#: numbers, words and switches besides those
OWN: dict[str, dict[str, Any]] = {
    "allocate.exact.exact": {"most_states": 50_000},
    "allocate.frontier.frontier": {"points": 64},
    "allocate.frontier_dp.frontier_dp": {"resolution": 32_768, "method": "frontier-dp"},
    "allocate.ilp.ilp": {"time_limit_s": 60.0},
    "allocate.ilp.solve": {"time_limit_s": 10.0, "gap": 1e-9},
    "allocate.knapsack.knapsack": {"method": "channels"},
    "allocate.pareto.pareto": {"resolution": 32_768},
    "allocate.ratios.plan_from_ratios": {"method": "cw-hawq"},
    "allocate.search.Evaluator": {"evaluations": 150},
    "arith.accumulator.Accumulator": {"bits": 16, "kind": "wrap"},
    "arith.accumulator.Operands": {"depthwise": False},
    "arith.feedback.descend": {"sweeps": 3},
    "arith.grid.fit": {"refine": 3},
    "arith.multibit.sketch": {"tolerance": 1e-6},
    "curvature.compare.compare": {"chunk": 128},
    "curvature.estimate.Sensitivity": {"key": ""},
    "curvature.fisher.empirical_fisher": {"kind": "kl", "chunk": 32},
    "curvature.forms.quadratic_forms": {"kind": "kl", "tolerance": 0.1, "chunk": 32},
    "curvature.gauss_newton.gauss_newton": {
        "kind": "kl", "tolerance": 0.02, "edges": True, "chunk": 32,
    },
    "curvature.hessian.Hessian": {"loss": "kl", "kind": "hessian", "chunk": 128},
    "curvature.hutchinson.hutchinson": {
        "loss": "kl", "blocks": "joint", "tolerance": 0.0, "probes": 32, "least": 8, "chunk": 128,
    },
    "curvature.layout.Layout": {"axis": 0, "minor": False},
    "curvature.spectrum.density": {"steps": 40, "starts": 4},
    "curvature.spectrum.top_eigenvalues": {"tolerance": 1e-3, "steps": 50},
    "curvature.subjects.Pass": {"grain": "channel"},
    "curvature.subjects.Record": {"grain": "channel"},
    "curvature.tape.Use": {"groups": 1},
    "curvature.traces.traces": {
        "loss": "kl", "tolerance": 0.02, "edges": True, "kind": "gauss-newton", "chunk": 32,
    },
    "curvature.whole_trace.hutch_plus_plus": {"probes": 30},
    "curvature.whole_trace.xtrace": {"probes": 30},
}  # fmt: skip


def roster() -> Iterator[tuple[str, dict[str, Any]]]:
    """Public functions and classes of curvature, allocate, arith with their defaults."""
    for package in ("curvature", "allocate", "arith"):
        home = importlib.import_module(f"bitwright.{package}")
        for info in pkgutil.iter_modules(home.__path__):
            module = importlib.import_module(f"bitwright.{package}.{info.name}")
            for name, value in vars(module).items():
                if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
                    continue
                if not inspect.isfunction(value) and not inspect.isclass(value):
                    continue
                try:
                    found = inspect.signature(value).parameters.values()
                except ValueError:
                    continue
                own = {p.name: p.default for p in found if p.default is not p.empty}
                if own:
                    yield f"{package}.{info.name}.{name}", own


def test_defaults_are_those_written_here():
    found = dict(roster())
    own = {
        name: {
            k: v
            for k, v in defaults.items()
            if type(v) in (int, float, str, bool) and k not in EVERYWHERE
        }
        for name, defaults in found.items()
    }
    assert {name: defaults for name, defaults in own.items() if defaults} == OWN


def test_a_name_has_one_default_everywhere():
    seen = {name: 0 for name in EVERYWHERE}
    for place, defaults in roster():
        for name in EVERYWHERE.keys() & defaults.keys():
            assert defaults[name] == EVERYWHERE[name], (place, name)
            seen[name] += 1
    assert all(seen.values()), seen
