"""Mutation test of the numerical core: small defects in curvature, allocate, arith, one by one.

    python tests/mutation.py --mutants 300

Draws mutants of the source with a seed, puts each into a copy of the package, and runs that
package's own fast tests (`tests/<package>`, not slow) on it until one fails. Prints a JSON line per
mutant and a last one with the share killed. A mutant that no input can tell from the original
(`EQUIVALENT`) is not drawn.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("curvature", "allocate", "arith")
#: file:line:kind of mutants that compute the same, with the reason
EQUIVALENT: dict[str, str] = {}

COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.MatMult: ast.Mult, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "floor": "ceil", "ceil": "floor", "sum": "mean", "mean": "sum",
    "amin": "amax", "amax": "amin", "argmin": "argmax", "argmax": "argmin", "minimum": "maximum",
    "maximum": "minimum", "cummin": "cummax", "any": "all", "all": "any", "round": "floor",
    "clamp_min": "clamp_max", "sin": "cos", "sqrt": "square", "square": "abs",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One changed node: where, what was done, and the whole file's new source."""

    file: Path
    line: int
    kind: str
    source: str

    @property
    def name(self) -> str:
        """file:line:kind."""
        return f"{self.file}:{self.line}:{self.kind}"


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Every mutated form of a node, with what was done."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            new = copy.deepcopy(node)
            new.ops[i] = COMPARE[type(op)]()
            yield f"{type(op).__name__}->{type(new.ops[i]).__name__}", new
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        if isinstance(node, ast.BinOp) and _text(node):
            return
        other = copy.deepcopy(node)
        other.op = ARITHMETIC[type(node.op)]()
        yield f"{type(node.op).__name__}->{type(other.op).__name__}", other
    elif isinstance(node, ast.BoolOp):
        both = copy.deepcopy(node)
        both.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and<->or", both
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield f"no {type(node.op).__name__}", node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield f"{node.value!r}+1", ast.copy_location(ast.Constant(node.value + 1), node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"not {node.value}", ast.copy_location(ast.Constant(not node.value), node)
    elif isinstance(node, ast.Call):
        called = copy.deepcopy(node)
        target = called.func
        if isinstance(target, ast.Attribute) and target.attr in NAMES:
            before, target.attr = target.attr, NAMES[target.attr]
            yield f"{before}->{target.attr}", called
        elif isinstance(target, ast.Name) and target.id in ("min", "max", "any", "all"):
            before, target.id = target.id, NAMES[target.id]
            yield f"{before}->{target.id}", called


def _text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(s, ast.JoinedStr) or (isinstance(s, ast.Constant) and isinstance(s.value, str))
        for s in sides
    )


def _computing(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that compute: no annotations, no messages of errors, no assertions, no type checks."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        dead: list[ast.AST | None] = []
        if isinstance(node, ast.AnnAssign | ast.arg):
            dead = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            dead = [node.returns, *node.decorator_list]
        elif isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr) or (
            isinstance(node, ast.keyword) and node.arg in ("strict", "frozen", "keepdim")
        ):
            dead = [node]
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp):
            if isinstance(node.value.op, ast.BitOr):  # an alias of types
                dead = [node.value]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "cast"):
            dead = [node]
        for part in dead:
            if part is not None:
                skipped.update(id(inner) for inner in ast.walk(part))
        if id(node) not in skipped:
            yield node


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self.old:
            return self.new
        found: ast.AST = self.generic_visit(node)
        return found


def sites(tree: ast.Module) -> list[tuple[ast.AST, str, ast.AST]]:
    """What may be changed in a tree: the node, what is done, the new node."""
    return [(node, kind, new) for node in _computing(tree) for kind, new in changes(node)]


def mutant(file: Path, index: int) -> Mutant:
    """One mutant of a file under `src/bitwright`."""
    tree = ast.parse((ROOT / "src" / "bitwright" / file).read_text())
    old, kind, new = sites(tree)[index]
    made = ast.fix_missing_locations(_Replace(old, new).visit(tree))
    return Mutant(file, getattr(old, "lineno", 0), kind, ast.unparse(made))


def drawn(count: int, seed: int, packages: tuple[str, ...]) -> list[Mutant]:
    """`count` mutants, every place in the packages equally likely."""
    base = ROOT / "src" / "bitwright"
    files = [p.relative_to(base) for name in packages for p in sorted((base / name).glob("*.py"))]
    places = [
        (file, i)
        for file in files
        if file.name != "__init__.py"
        for i in range(len(sites(ast.parse((base / file).read_text()))))
    ]
    random.Random(seed).shuffle(places)
    found: list[Mutant] = []
    for file, i in places:
        made = mutant(file, i)
        if made.name not in EQUIVALENT:
            found.append(made)
        if len(found) == count:
            break
    return found


def tried(mutant: Mutant, copied: Path, limit_s: float) -> tuple[str, float]:
    """`killed`, `survived` or `timeout` (which counts as killed), and seconds."""
    target = copied / "bitwright" / mutant.file
    original = target.read_text()
    target.write_text(mutant.source)
    begun = time.perf_counter()
    words = ["-x", "-q", "-m", "not slow and not data", "-p", "no:cacheprovider", "--no-header"]
    try:
        found = subprocess.run(
            [sys.executable, "-m", "pytest", f"tests/{mutant.file.parts[0]}", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(copied), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            timeout=limit_s,
        )
        # 1: a test failed; 2 to 4: the mutant cannot even be imported
        said = "survived" if found.returncode == 0 else "killed"
    except subprocess.TimeoutExpired:
        said = "timeout"
    finally:
        target.write_text(original)
    return said, time.perf_counter() - begun


def main() -> None:
    """Try the mutants, print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300, help="seconds for each")
    parser.add_argument("--packages", default=",".join(PACKAGES))
    parser.add_argument("--list", action="store_true", help="draw them only")
    given = parser.parse_args()
    chosen = drawn(given.mutants, given.seed, tuple(given.packages.split(",")))
    count = {"killed": 0, "timeout": 0, "survived": 0}
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch)
        shutil.copytree(ROOT / "src" / "bitwright", copied / "bitwright")
        for mutant in chosen:
            said, seconds = ("listed", 0.0) if given.list else tried(mutant, copied, given.limit)
            count[said] = count.get(said, 0) + 1
            row = {"mutant": mutant.name, "outcome": said, "seconds": round(seconds, 1)}
            print(json.dumps(row), flush=True)
    dead = count["killed"] + count["timeout"]
    share = dead / max(1, dead + count["survived"])
    print(json.dumps({"mutants": len(chosen), **count, "share_killed": round(share, 3)}))


if __name__ == "__main__":
    main()
