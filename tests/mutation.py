"""Mutation test of the numerical core: small defects in curvature, allocate, arith, one by one.

    python tests/mutation.py --mutants 300 --out build/mutants/rows.jsonl

Runs the fast tests of the packages once under coverage, file by file (again where a file has
changed). Then draws mutants of the source with a seed, puts each into a copy of the package, and
runs the fast tests that reach its line until one fails: the cheapest first, those of the file named
for the module before others; all that reach the module where no test is seen to reach the line
(imports, compiled kernels). Prints a JSON line per mutant, and a last one with the share killed.
With `--out`, a mutant tried there before is not tried again. A mutant that no input can tell from
the original (`EQUIVALENT`) is not drawn.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import forked_tests
from equivalent_mutants import EQUIVALENT
from forked_tests import ROOT, Reached

PACKAGES = ("curvature", "allocate", "arith")
#: fast tests of theirs that stand elsewhere, beside the stage that uses what they test
ELSEWHERE = {
    "arith": ["tests/quantize/test_feedback.py"],
    "curvature": ["tests/quantize/test_embedding.py"],
}
#: of defaults, which are set where no test is seen to reach them
SIGNATURES = "tests/test_signatures.py"
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
    """One changed node: lines, their first one's text, the column in it, and the new source."""

    file: Path
    index: int
    lines: tuple[int, int]
    code: str
    column: int
    kind: str
    source: str

    @property
    def name(self) -> str:
        """file:line#place:kind."""
        return f"{self.file}:{self.lines[0]}#{self.index}:{self.kind}"

    @property
    def digest(self) -> str:
        """Of the whole changed file: a later version of it is another mutant."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]

    @property
    def key(self) -> tuple[str, str, int, str]:
        """As in `EQUIVALENT`: it stays when lines move."""
        return str(self.file), self.code, self.column, self.kind


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
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            if getattr(node.value.value, "id", "") in ("tuple", "list", "dict", "Callable"):
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


def mutants(file: Path) -> Iterator[tuple[Mutant, Callable[[], str]]]:
    """Those of a file under `src/bitwright`, each with what makes its source."""
    text = (ROOT / "src" / "bitwright" / file).read_text()
    lines, tree = text.splitlines(), ast.parse(text)

    def source(old: ast.AST, new: ast.AST) -> str:
        changed = ast.unparse(ast.fix_missing_locations(_Replace(old, new).visit(tree)))
        _Replace(new, old).visit(tree)
        return changed

    for index, (old, kind, new) in enumerate(sites(tree)):
        place = (getattr(old, "lineno", 0), getattr(old, "end_lineno", 0))
        line = lines[place[0] - 1]
        # ast counts bytes
        column = len(line.encode()[: getattr(old, "col_offset", 0)].decode())
        column -= len(line) - len(line.lstrip())
        made = Mutant(file, index, place, line.strip(), column, kind, "")
        yield made, partial(source, old, new)


def drawn(count: int, seed: int, packages: tuple[str, ...]) -> list[Mutant]:
    """`count` mutants, every place in the packages equally likely.

    What is drawn of code that stays does not depend on code that changes.
    """
    base = ROOT / "src" / "bitwright"
    files = [p.relative_to(base) for name in packages for p in sorted((base / name).glob("*.py"))]
    places = [
        (hashlib.sha256(repr((seed, *made.key)).encode()).hexdigest(), i, made, source)
        for file in files
        if file.name != "__init__.py"
        for i, (made, source) in enumerate(mutants(file))
        if made.key not in EQUIVALENT
    ]
    chosen = sorted(places, key=lambda p: p[:2])[:count]
    return [replace(made, source=source()) for _, _, made, source in chosen]


def tried(mutant: Mutant, copied: Path, reached: Reached) -> tuple[str, float, int]:
    """`killed`, `survived` or `timeout` (counts as killed); seconds; how many tests were asked."""
    tests = reached.tests(str(mutant.file), range(mutant.lines[0], mutant.lines[1] + 1))
    target = copied / "bitwright" / mutant.file
    original = target.read_text()
    for compiled in target.parent.glob(f"__pycache__/{target.stem}.*"):
        compiled.unlink()
    target.write_text(mutant.source)
    try:
        # 1: a test failed; 2 to 4: the mutant cannot even be imported
        code, seconds = forked_tests.fails(copied, tests, [SIGNATURES], reached.seconds(tests))
    finally:
        target.write_text(original)
    said = {"0": "survived", "5": "survived", "timeout": "timeout"}.get(code, "killed")
    return said, seconds, len(tests)


def checked(copied: Path, chosen: list[Mutant], reached: Reached) -> None:
    """Refuse to count if the tests of a mutant fail on the copy without it, or pass on a ruin."""
    for mutant in {m.file.parts[0]: m for m in chosen}.values():  # one of each package
        tests = reached.tests(str(mutant.file), range(mutant.lines[0], mutant.lines[1] + 1))
        code, _ = forked_tests.fails(copied, tests, [SIGNATURES], reached.seconds(tests))
        if code != "0":
            raise RuntimeError(f"tests of {mutant.file} fail on the copy of the package ({code})")
        ruin = replace(mutant, source="raise RuntimeError('a mutant that nothing survives')")
        if tried(ruin, copied, reached)[0] != "killed":
            raise RuntimeError(f"tests of {mutant.file} do not look at the copy of the package")


def main() -> None:
    """Try the mutants, print what became of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutants", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", default=",".join(PACKAGES))
    parser.add_argument("--list", action="store_true", help="draw them only")
    parser.add_argument("--out", type=Path, help="a file for the rows; those in it are not redone")
    parser.add_argument("--again", action="store_true", help="redo what survived in --out")
    given = parser.parse_args()
    packages = tuple(given.packages.split(","))
    chosen = drawn(given.mutants, given.seed, packages)
    if given.list:
        for mutant in chosen:
            print(json.dumps({"mutant": mutant.name, "code": mutant.code}))
        return
    done = {}
    if given.out and given.out.is_file():
        rows = [json.loads(line) for line in given.out.read_text().splitlines()]
        done = {(row["mutant"], row["digest"]): row for row in rows}
    paths = [p for name in packages for p in (f"tests/{name}", *ELSEWHERE.get(name, []))]
    forked_tests.warm(paths)
    reached = forked_tests.reached(paths, PACKAGES)
    count = dict.fromkeys(("killed", "timeout", "survived"), 0)
    with tempfile.TemporaryDirectory() as scratch:
        copied = forked_tests.copied(Path(scratch))
        checked(copied, chosen, reached)
        for mutant in chosen:
            row = done.get((mutant.name, mutant.digest))
            if row is None or (given.again and row["outcome"] == "survived"):
                said, seconds, tests = tried(mutant, copied, reached)
                row = {"mutant": mutant.name, "code": mutant.code, "outcome": said, "tests": tests,
                       "digest": mutant.digest, "seconds": round(seconds, 1)}  # fmt: skip
                if given.out:
                    given.out.parent.mkdir(parents=True, exist_ok=True)
                    with given.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            count[row["outcome"]] += 1
            print(json.dumps(row), flush=True)
    dead = count["killed"] + count["timeout"]
    print(json.dumps({"mutants": len(chosen), **count, "share_killed": dead / len(chosen)}))


if __name__ == "__main__":
    main()
