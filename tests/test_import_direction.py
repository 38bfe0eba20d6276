"""Imports run one way: a module imports from its own package or a lower tier, never up."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = "bitwright"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

#: What lies directly under `bitwright`, lowest first. `bitwright` itself is the public API: it may
#: import everything, and only what stands above it may import from it (`__version__`: anyone).
TIERS = (
    ("codec", "errors", "files", "interrupts", "version"),
    ("arith", "checkpoint", "demo", "folders"),
    ("network",),
    ("task",),
    ("data",),
    ("curvature",),
    ("allocate",),
    ("quantize", "prune"),
    ("train",),
    ("deploy",),
    ("overflow", "multibit"),
    ("cost",),
    ("report",),
    ("pipeline",),
    ("graph",),
    (PACKAGE, "console"),
    ("cli",),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(TIERS) for part in parts}

#: `allocate` knows nothing of models: a search gets an `evaluate` function from outside.
ALLOCATE_MAY_IMPORT = {"allocate", "arith", "codec", "errors", "files"}
#: the one method there that needs torch
ALLOCATE_WITH_TORCH = "bitwright.allocate.cw_hawq"


def part_of(module: str) -> str:
    """The package or module directly under `bitwright` that `module` belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else PACKAGE


def imported(name: str, source: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module that `source` imports, at any depth of nesting."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, base] if base else parents)
            if base != PACKAGE:
                yield node.lineno, base
                continue
            for alias in node.names:  # `from bitwright import x` is the package x, if there is one
                if alias.name != "__version__":
                    yield node.lineno, f"{base}.{alias.name}" if alias.name in RANK else base


def check(sources: Mapping[str, str], packages: frozenset[str] = frozenset()) -> list[str]:
    """One line for every import that breaks a rule.

    Args:
        sources: source text by the module's dotted name.
        packages: which of those are packages (an `__init__.py`).
    """
    unknown = f"has no rank; add it to TIERS in {Path(__file__).name}"
    wrong = []
    for name, source in sources.items():
        part = part_of(name)
        if part == PACKAGE:
            continue
        if part not in RANK:
            wrong.append(f"{name}: {part!r} {unknown}")
            continue
        for line, target in imported(name, source, name in packages):
            top, there = target.split(".")[0], part_of(target)
            if top == "torch" and part == "allocate" and not name.startswith(ALLOCATE_WITH_TORCH):
                wrong.append(f"{name}:{line}: torch in allocate belongs into cw_hawq*.py")
            if top != PACKAGE or there == part:
                continue
            if there not in RANK:
                wrong.append(f"{name}:{line}: {there!r} {unknown}")
            elif part == "allocate" and there not in ALLOCATE_MAY_IMPORT:
                wrong.append(f"{name}:{line}: allocate imports no model code, but {target}")
            elif RANK[there] >= RANK[part]:
                wrong.append(f"{name}:{line}: {part} must not import {target} (same tier or above)")
    return wrong


def read_package() -> tuple[dict[str, str], frozenset[str]]:
    """The source of every module of bitwright by its dotted name, and which are packages."""
    sources, packages = {}, set()
    for path in sorted(SOURCE.rglob("*.py")):
        parts = [PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
            packages.add(".".join(parts))
        sources[".".join(parts)] = path.read_text(encoding="utf-8")
    return sources, frozenset(packages)


def test_imports_go_one_way():
    sources, packages = read_package()
    assert {part_of(name) for name in sources} >= {"errors", "arith", "network", "allocate"}
    wrong = check(sources, packages)
    assert not wrong, "\n" + "\n".join(wrong)


def test_a_part_stands_in_one_tier():
    assert len(RANK) == sum(map(len, TIERS))


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [
        ("bitwright.curvature.estimate", "from bitwright.deploy.artefact import save", "deploy"),
        ("bitwright.curvature.estimate", "import bitwright.deploy", "deploy"),
        ("bitwright.curvature.estimate", "import os, bitwright.deploy as d", "deploy"),
        ("bitwright.curvature.estimate", "from bitwright import deploy", "deploy"),
        ("bitwright.curvature.estimate", "from ..deploy.artefact import save", "deploy"),
        ("bitwright.curvature.estimate", "from .. import deploy", "deploy"),
        ("bitwright.curvature", "from ..deploy import artefact", "deploy"),
        ("bitwright.curvature.a", "def f():\n    from bitwright.deploy import x", "curvature.a:2"),
        ("bitwright.curvature.a", "if TYPE_CHECKING:\n    import bitwright.cli", "cli"),
        ("bitwright.errors", "from bitwright.arith import grid", "arith"),
        ("bitwright.arith.grid", "from bitwright.network import run", "network"),
        ("bitwright.task", "from bitwright import data", "data"),
        ("bitwright.prune.order", "from bitwright.quantize import simulate", "same tier"),
        ("bitwright.report.page", "from bitwright import __version__, run", "import bitwright ("),
        ("bitwright.report.page", "import bitwright", "import bitwright ("),
        ("bitwright.pipeline", "from bitwright.cli import main", "cli"),
        ("bitwright.allocate.knapsack", "from bitwright.network import run", "no model code"),
        ("bitwright.allocate.cw_hawq", "from bitwright.curvature import x", "no model code"),
        ("bitwright.allocate.knapsack", "import torch", "cw_hawq"),
        ("bitwright.allocate.knapsack", "from torch.nn import Linear", "cw_hawq"),
        ("bitwright.novelty", "", "has no rank; add it to TIERS"),
        ("bitwright.cli", "from bitwright.novelty import x", "has no rank; add it to TIERS"),
    ],
)
def test_a_wrong_import_is_caught(name: str, source: str, says: str):
    wrong = check({name: source}, frozenset({"bitwright.curvature"}))
    assert len(wrong) == 1 and says in wrong[0], wrong


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("bitwright", "from bitwright.cli import main\nfrom bitwright.deploy import save"),
        ("bitwright.cli", "from bitwright import __version__\nfrom bitwright.pipeline import run"),
        ("bitwright.curvature.hutchinson", "from bitwright.curvature.estimate import Estimate"),
        ("bitwright.curvature.hutchinson", "from .estimate import Estimate"),
        ("bitwright.deploy.artefact", "from bitwright import __version__"),
        ("bitwright.curvature", "from .estimate import Estimate\nfrom ..errors import E"),
        ("bitwright.task", "from bitwright import network\nfrom bitwright.network import join"),
        ("bitwright.allocate.cw_hawq", "import torch\nfrom bitwright.allocate.plan import Plan"),
        ("bitwright.allocate.cw_hawq_actor", "from torch import nn"),
        ("bitwright.allocate.plan", "import numpy\nfrom bitwright.arith import grid"),
        ("bitwright.errors", "import bitwrightly\nimport torch"),
    ],
)
def test_a_right_import_passes(name: str, source: str):
    assert check({name: source}, frozenset({"bitwright", "bitwright.curvature"})) == []
