"""Every kind of page that we write, with ordinary, hostile and long content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bitwright.curvature.spectrum import Density
from bitwright.report import falling, graphs, pruning, render, write_density
from bitwright.report.compared import render as render_compared
from bitwright.report.comparison import ComparedRun, Comparison, LayerBits
from report.test_report import bare, hostile, summary

PAGES = ("report", "hostile", "bare", "compared", "pruning", "graph", "multibit", "density")
LONG = "a.very.long.name.of.a.layer.without.any.place.where.a.line.could.be.broken"


def pruned() -> dict[str, Any]:
    """What a `prune.json` says."""
    sizes = {"parameters": 187_018, "macs": 31_000_000, "bytes": 752_216}
    groups = [
        {
            "name": f"{LONG}.{i}", "kind": "channels", "units": 64, "removed": list(range(7 * i)),
            "implanted": [63], "members": [[f"blocks.{i}.conv", "out"], [LONG, "in"]],
        }
        for i in range(6)
    ]  # fmt: skip
    return {
        "settings": {"keep": "50%", "skip": [LONG]},
        "groups": groups,
        "whole": {LONG: "its outputs are the network's"},
        "size": {"before": sizes, "after": {k: v // 2 for k, v in sizes.items()}},
        "kl": [0.0123, 0.0011],
        "metric": [0.921, 0.0082],
    }


def trained() -> dict[str, Any]:
    """What a `graph.json` says."""
    row = {"val": 0.78, "test": 0.81}
    return {
        "rows": {"float": row, "quantized": row, "artefact": row},
        "bytes": {"float": 92_228, "artefact": 24_011},
        "settings": {"dataset": f"/{LONG}/cora.npz", "net": "gcn", "bits": 3.5, "recipe": {}},
        "widths": {
            "degrees": [2, 4, 9],
            "weights": {LONG: 4},
            "sites": {LONG: [2, 4, 4, 8], "out": [8]},
        },
    }


def compared() -> Comparison:
    """Five runs, one of them not finished."""
    layers = tuple(LayerBits(f"{LONG}.{i}", (2, 3, 4, 8)) for i in range(4))
    runs = tuple(
        ComparedRun(
            f"{LONG}-{i}", f"/somewhere/{LONG}", True, "finished", LONG, "t",
            {"budget": f"{i}bit", "skip": LONG}, "channels", float(i), 20_000 * i, 752_216, "kl",
            0.5**i, 0.05**i, "top-1", 0.9, 0.92, 0.02, 0.004, True, 0.98, 0.3, 0.4, True,
            f"bitwright compress --skip {LONG}", 0, layers,
        )
        for i in range(1, 5)
    )  # fmt: skip
    killed = ComparedRun("killed", "x", False, "unfinished, measured so far")
    return Comparison((*runs, killed), ("budget",), ("killed: unfinished, measured so far.",))


def pages(place: Path) -> dict[str, str]:
    """Every kind of page, with ordinary and with hostile content."""
    write_density(Density(np.array([0.0, 1.0]), np.array([0.5, 0.5]), 9), place / "d.html", LONG)
    history = [{"epoch": i, "what": "bases", "loop": 0, "bits": 6 * 0.8**i} for i in range(9)]
    return {
        "report": render(summary()),
        "hostile": render(hostile()),
        "bare": render(bare()),
        "compared": render_compared(compared()),
        "pruning": pruning.render(pruned(), "top-1"),
        "graph": graphs.render(trained()),
        "multibit": falling.render(history),
        "density": (place / "d.html").read_text(),
    }
