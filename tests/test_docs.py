"""What README.md and docs/ promise by their form, and names and figures that must stay true."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from bitwright.network.ops import UNSUPPORTED
from test_readme import blocks_of

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
EXPLANATIONS = sorted((DOCS / "explanation").glob("*.md"))
REFERENCE = re.compile(r"^::: (bitwright[\w.]*)$", re.MULTILINE)
LATEX = re.compile(r"\\t?frac|\\sum|\\mathrm|\$[^$\n]*\\[a-z]")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", EXPLANATIONS, ids=lambda p: p.stem)
def test_an_explanation_says_whose_it_is_and_has_an_equation(page: Path):
    said = text(page)
    for word in ("Sources", "Ours"):
        assert len(re.findall(rf"^\*\*{word}\.\*\* \S", said, re.MULTILINE)) == 1, word
    assert re.search(r"^ {4,}\S.*[=≤…]|`½", said, re.MULTILINE), "no equation"


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "index.md"], ids=lambda p: p.stem)
def test_where_the_command_comes_from_is_said_before_it_is_used(page: Path):
    before, _, rest = text(page).partition("source .venv/bin/activate")
    assert rest, "says nothing of how to get the command"
    assert "\nbitwright " not in before
    assert "3.11 or later" in text(page)


def imported(block: str) -> set[str]:
    """What a block takes from bitwright, as `module.name`; modules as they are."""
    tree = ast.parse(block)
    modules = {"bitwright": "bitwright"}  # what names in the block stand for
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bitwright":
            for name in (alias.name for alias in node.names):
                found.add(f"{node.module}.{name}")
                modules[name] = f"{node.module}.{name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            base, _, rest = dotted.partition(".")
            if base in modules and re.fullmatch(r"[\w.]+", rest):
                found.add(f"{modules[base]}.{rest}")
    return found


def named(dotted: str) -> object:
    """The object of a dotted name."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AssertionError(dotted)


def known() -> dict[int, str]:
    """The objects of the reference, by their identity."""
    return {id(named(name)): name for name in REFERENCE.findall(text(DOCS / "reference/python.md"))}


USED = sorted(
    (name, str(page.relative_to(ROOT)))
    for page in PAGES
    for block in blocks_of(text(page))
    if block.language == "python"
    for name in imported(block.text)
)


def test_blocks_import_something():
    names = {name for name, _ in USED}
    assert {"bitwright.compress", "bitwright.graph.Recipe", "bitwright.train.Directions"} <= names
    assert imported("import os\nfrom bitwright import demo\ndemo.data()['x'].shape") == {
        "bitwright.demo",
        "bitwright.demo.data",
    }


@pytest.mark.parametrize("name", sorted({name for name, _ in USED}))
def test_what_a_block_uses_is_in_the_reference(name: str):
    if name.startswith("bitwright.graph"):
        pytest.importorskip("torch_geometric", reason="the extra `graph` is not installed")
    found = named(name)
    if isinstance(found, type(ast)):  # the page is of what modules hold
        return
    if isinstance(found, dict):  # described in words
        assert f"`{name.rpartition('.')[2]}`" in text(DOCS / "reference/python.md")
        return
    assert id(found) in known(), [page for other, page in USED if other == name]


def test_public_names_are_in_the_reference():
    import bitwright

    found = known()
    missing = [
        name
        for name in bitwright.__all__
        if name != "__version__" and id(getattr(bitwright, name)) not in found
    ]
    assert missing == []


def test_every_page_is_in_the_menu():
    menu = set(re.findall(r": ([\w/-]+\.(?:md|ipynb))$", text(ROOT / "mkdocs.yml"), re.MULTILINE))
    pages = {str(p.relative_to(DOCS)) for kind in ("md", "ipynb") for p in DOCS.rglob(f"*.{kind}")}
    assert {p for p in pages if not p.startswith("decisions/")} == menu


def test_words_are_explained_in_order():
    said = re.findall(r"^(\S.*)\n:   \S", text(DOCS / "reference/words.md"), re.MULTILINE)
    assert said == sorted(said, key=str.lower)
    wanted = {
        "KL", "Trace", "Edge", "Calibration rows", "Mean bits", "BOPs", "Frontier", "Grid",
        "Artefact", "Group", "Implant", "Mask",
    }  # fmt: skip
    assert wanted <= set(said)


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.ipynb")), ids=lambda p: p.stem)
def test_tutorials_write_formulas_as_they_are_shown(page: Path):
    cells = json.loads(text(page))["cells"]
    words = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert not LATEX.search(words)  # nothing renders it: a page loads no script from elsewhere


def test_latex_would_be_seen():
    assert LATEX.search(r"costs $\tfrac12 e^T H e$") and not LATEX.search("½ eᵀ H e, $5 and $6")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """docs/hooks.py."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_built_notebooks_load_nothing_from_elsewhere(hooks: ModuleType):
    html = """<script>var here = 1</script><!-- --><script src=""> </script>
    <script type="text/x-mathjax-config">init_mathjax();</script>
    <script type="module"> await import("https://cdn.example/mermaid.mjs") </script>
    <p>½ eᵀ H e</p>"""
    assert hooks.wrong(html)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="tutorials/some.ipynb"))
    left = hooks.on_post_page(html, page)
    assert left == "<script>var here = 1</script><!-- --><p>½ eᵀ H e</p>"
    page.file.src_uri = "some.md"  # there it is nobody's but ours, and must not be
    with pytest.raises(Exception, match=r"some\.md: it loads .*keep it in docs/"):
        hooks.on_post_page(html, page)


@pytest.mark.parametrize(
    "html",
    [
        '<script async src="https://cdn.example/x.js">',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img alt="x" src="http://example.org/x.png">',
        r"<p>costs $\tfrac12 e$</p>",
    ],
)
def test_a_page_that_is_not_whole_offline_is_refused(hooks: ModuleType, html: str):
    assert hooks.wrong(html)
    assert not hooks.wrong(
        '<a href="https://example.org">there</a> <script src="../a.js"></script>'
    )


def test_the_changelog_is_a_page_whose_notes_are_links(hooks: ModuleType):
    found = hooks.PLACE.sub(r"[\g<0>](\1)", "(docs/decisions/0014-default-score.md), `docs/a.md`")
    assert found == (
        "([docs/decisions/0014-default-score.md](decisions/0014-default-score.md)), `docs/a.md`"
    )


def test_limits_name_every_layer_that_is_refused():
    words = {
        "string padding": '`padding="same"`', "conv_transpose": "transposed", "conv3d": "3-D",
        "embedding_bag": "`EmbeddingBag`", "bilinear": "`Bilinear`", "lstm": "recurrent",
        "gru": "recurrent", "rnn": "recurrent",
    }  # fmt: skip
    said = text(DOCS / "limits.md")
    for kind in UNSUPPORTED.values():
        found = [word for key, word in words.items() if key in kind]
        assert found and found[0] in said, kind


def result(file: str, part: str, name: str) -> float:
    rows = json.loads(text(ROOT / "benchmarks" / "results" / f"{file}.json"))[part]["rows"]
    return float(next(row["value"] for row in rows if row["name"] == name))


@pytest.mark.parametrize(
    ("cells", "figures"),
    [
        (
            "| ResNet-20 | 30 % | none |",
            {"KL 0.244": ("prune", "kl", "KL at 30 % removed, ResNet-20, HAP", 3),
             "KL 2.11": ("prune", "kl", "KL at 30 % removed, ResNet-20, torch-pruning Hessian", 2)},
        ),
        (
            "| embedded network | 30 % | none |",
            {"KL 0.0074": ("prune", "kl", "KL at 30 % removed, Fashion-MNIST, HAP", 4),
             "KL 1.07":
                 ("prune", "kl", "KL at 30 % removed, Fashion-MNIST, torch-pruning Hessian", 2)},
        ),
        (
            "| Cora, GCN, ten seeds |",
            {f"{v} %": ("degree_quant", "cora", f"cora gcn {n}", 1)
             for n, v in (("float", 81.4), ("degree-quant 8", 81.3), ("degree-quant 4", 80.6),
                          ("plain 8", 81.0), ("plain 4", 80.1))},
        ),
        (
            "| REDDIT-BINARY, GIN, thirty epochs, three folds |",
            {f"{v} %": ("degree_quant", "reddit", f"reddit gin {n}", 1)
             for n, v in (("float", 86.2), ("degree-quant 8", 91.3), ("degree-quant 4", 86.3),
                          ("plain 8", 81.3), ("plain 4", 67.7))},
        ),
        (
            "| Citeseer, GIN, ten seeds |",
            {f"{v} %": ("degree_quant", "citeseer", f"citeseer gin {n}", 1)
             for n, v in (("float", 57.4), ("degree-quant 8", 59.1), ("degree-quant 4", 57.1),
                          ("plain 8", 57.5), ("plain 4", 34.4))},
        ),
    ],
)  # fmt: skip
def test_figures_to_choose_by_are_those_measured(
    cells: str, figures: dict[str, tuple[str, str, str, int]]
):
    row = next(x for x in text(DOCS / "choosing.md").splitlines() if x.startswith(cells))
    for said, (file, part, name, digits) in figures.items():
        assert said in row
        number = float(re.sub(r"[^\d.]", "", said))
        assert abs(result(file, part, name) - number) <= 0.5 * 10**-digits + 1e-9
