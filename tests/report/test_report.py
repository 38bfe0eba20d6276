"""The report: its data, its figures and the page, from synthetic summaries."""

from __future__ import annotations

import itertools
import json
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright.errors import BitwrightError
from bitwright.report import (
    EdgeRow,
    FrontierRow,
    LayerRow,
    MethodRow,
    Summary,
    Verification,
    curves,
    figures,
    from_json,
    frontiers,
    render,
    svg,
    to_json,
    words,
    write,
)
from bitwright.report.page import key_figures, stylesheet

HOSTILE = "<script>alert(1)</script>\"'&\x00\x1b{{ 7*7 }}"
#: as the roster of methods has them
TITLES = {
    "float": "",
    "uniform": "Uniform",
    "layers": "One width per layer",
    "channels": "One width per channel",
    "cw-hawq": "CW-HAWQ search",
}
RULE = "Bits go to the channels where they prevent the most loss per byte."
VOID = {"meta", "link", "br", "hr", "img", "input"}


def layer(name: str, inputs: int, channels: int, rng: random.Random, kernel: int = 3) -> LayerRow:
    """A layer with plausible numbers."""
    weights = inputs * channels * kernel * kernel
    middle = rng.choice([2, 3, 3, 4])
    bits = tuple(min(max(round(rng.gauss(middle, 1.1)), 1), 8) for _ in range(channels))
    trace = 10 ** rng.uniform(-5, -1.5)
    packed = sum(bits) * weights // channels // 8 + channels * 7
    linear = kernel == 1 and channels == 10
    return LayerRow(
        name=name,
        kind="linear" if linear else "conv2d",
        shape=(channels, inputs) if linear else (channels, inputs, kernel, kernel),
        channels=channels,
        weights=weights,
        bits=bits,
        trace=trace,
        stderr_probe=trace * rng.uniform(0.01, 0.3),
        stderr_data=trace * rng.uniform(0.05, 0.6),
        loss=10 ** rng.uniform(-5, -3),
        float_bytes=4 * (weights + channels),
        bytes=packed,
    )


def summary(layers: int = 20, per_layer: int = 35, **changes: Any) -> Summary:
    """A realistic result: 20 layers with 700 channels, unless told otherwise."""
    rng = random.Random(7)
    rows = tuple(
        layer(f"blocks.{i // 3}.conv{i % 3 + 1}", 24, per_layer, rng, 1 if i == layers - 1 else 3)
        for i in range(layers)
    )
    loss = sum(row.loss or 0.0 for row in rows)
    kls = [0.9 * 0.97**i + 0.05 + rng.expovariate(6) for i in range(150)]
    best = [min(kls[: i + 1]) for i in range(150)]
    found = Summary(
        title="Small residual network for Fashion-MNIST",
        model="bitwright.demo.net:network",
        command="bitwright compress demo --budget 3bit --method channels --seed 0 --out small/",
        created="2031-05-04 12:30 UTC",
        seed=0,
        versions={"torch": "2.11.0", "onnxruntime": "1.31.0", "python": "3.12.4"},
        budget="3bit",
        target="3 bit mean = 100,123 bytes",
        methods=(
            MethodRow("float", False, None, 1_083_456, 0.0, None, 0.924, 0.008, None, 1.84),
            MethodRow("uniform", False, 4.0, 121_034, 0.0312, 0.0021, 0.917, 0.009, 0.957, 0.71),
            MethodRow("uniform", False, 3.0, 88_610, 0.1049, 0.006, 0.894, 0.010, 0.924, 0.7),
            MethodRow("layers", False, 3.0, 88_420, 0.0713, 0.0042, 0.903, 0.009, 0.939, 0.7),
            MethodRow("channels", True, 3.0, 88_123, 0.0418, 0.0028, 0.919, 0.008, 0.961, 0.71),
            MethodRow("cw-hawq", False, 3.0, 88_311, 0.0466, 0.003, 0.913, 0.009, None, 0.72),
        ),
        layers=rows,
        edges=tuple(
            EdgeRow(f"relu_{i}", (35, 28, 28), 0.0213 + i / 1e3, 0, 1e-4 * (i + 1))
            for i in range(6)
        ),
        verification=Verification(
            ok=True,
            tensors=61,
            equal=60,
            differing=(("mean_1", 0.00031, 1.0, "the runtime averages in another order"),),
            first_difference="mean_1",
            same_class=1.0,
            qlinear_convs=19,
            convolutions=19,
            runtime="onnxruntime 1.31.0 on x86_64",
            images=1000,
        ),
        files=(("model.onnx", 97_345), ("model.safetensors", 88_123), ("report.html", 91_000)),
        bytes_breakdown=(
            ("float file", 1_083_456),
            ("packed weights", 73_100),
            ("scales", 1_400),
            ("zero points", 700),
            ("biases", 2_800),
            ("graph", 10_123),
        ),
        frontier=tuple(
            (bits, round(88_123 * bits / 3), 6 * loss * 0.33 ** (bits - 1))
            for bits in np.linspace(1, 8, 64).tolist()
        ),
        frontiers=tuple(
            FrontierRow(
                name,
                name != "channels",
                1000 * points,
                tuple(
                    (bits, factor * loss * 0.3 ** (bits - 3))
                    for bits in np.linspace(1, 8, points).tolist()
                ),
            )
            for name, points, factor in (
                ("layers, monotone", 8, 2.5),
                ("layers", 15, 2.0),
                ("channels", 29, 1.0),
            )
        ),
        learning=tuple((i, kl, low) for i, (kl, low) in enumerate(zip(kls, best, strict=True))),
        timings=(("measure", 41.3), ("allocate", 0.4), ("correct", 12.25), ("verify", 9.1)),
        notes=("The test images were never used to choose widths.",),
        rule=RULE,
    )
    found = replace(found, methods=tuple(replace(m, title=TITLES[m.name]) for m in found.methods))
    return replace(found, **changes)


class Reader(HTMLParser):
    """Checks that tags are balanced and collects text, attributes and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] != ["style"]:
            self.text.append(data)


def read(page: str) -> Reader:
    """The page, parsed; fails where tags do not balance."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.stack == []
    return reader


def words_of(page: str) -> str:
    """The text of a page with single plain spaces."""
    return " ".join("".join(read(page).text).replace(words.NBSP, " ").split())


def row_of(page: str, start: str) -> str:
    """The text of the table row whose first cell starts with `start`."""
    for found in re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.S):
        text = " ".join(unescape(re.sub(r"<[^>]+>", " ", found)).replace(words.NBSP, " ").split())
        if text.startswith(start):
            return text
    raise AssertionError(f"no row starts with {start}")


def drawings(page: str) -> Iterator[ET.Element]:
    """The top-level SVG elements, parsed as XML."""
    for found in re.findall(r'<div class="(?:rows|plane)">(<svg.*?</svg>)</div>', page, re.S):
        yield ET.fromstring(found)


def bare() -> Summary:
    """The least there can be: one layer, nothing measured."""
    full = summary(layers=1, per_layer=1)
    row = replace(
        full.layers[0], bits=(3,), trace=None, stderr_probe=None, stderr_data=None, loss=None
    )
    return replace(
        full,
        layers=(row,),
        methods=(MethodRow("float", False, None, 1000), MethodRow("channels", True, 3.0, 400)),
        edges=(),
        verification=None,
        files=(),
        bytes_breakdown=(),
        frontier=(),
        frontiers=(),
        learning=(),
        timings=(),
        notes=(),
        versions={},
    )


def hostile() -> Summary:
    """Every text a user can choose is an attack."""
    full = summary(layers=3)
    assert full.verification is not None
    return replace(
        full,
        title=HOSTILE,
        model=HOSTILE,
        command=HOSTILE,
        created=HOSTILE,
        versions={HOSTILE: HOSTILE},
        budget=HOSTILE,
        target=HOSTILE,
        metric_name=HOSTILE,
        score=HOSTILE,
        rule=HOSTILE,
        reward=HOSTILE,
        notes=(HOSTILE,),
        methods=(*full.methods, MethodRow(HOSTILE, False, 2.0, 70_000, title=HOSTILE)),
        layers=tuple(replace(row, name=HOSTILE, kind=HOSTILE) for row in full.layers),
        edges=tuple(replace(row, name=HOSTILE) for row in full.edges),
        verification=replace(
            full.verification,
            differing=((HOSTILE, 0.1, 1.0, HOSTILE),),
            first_difference=HOSTILE,
            runtime=HOSTILE,
        ),
        files=((HOSTILE, 10),),
        bytes_breakdown=((HOSTILE, 100), (HOSTILE, 10), (HOSTILE, 5)),
        timings=((HOSTILE, 1.0),),
    )


CASES: dict[str, Callable[[], Summary]] = {
    "realistic": summary,
    "bare": bare,
    "hostile": hostile,
    "no methods": lambda: summary(methods=(), layers=0),
    "nothing chosen": lambda: replace(summary(), methods=summary().methods[:2]),
    "zero trace": lambda: replace(
        summary(), layers=tuple(replace(r, trace=0.0) for r in summary().layers)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_json_round_trip(case: str) -> None:
    given = CASES[case]()
    text = to_json(given)
    assert from_json(text) == given
    assert to_json(from_json(text)) == text


def test_json_is_standard_and_keeps_infinities() -> None:
    rows = (MethodRow("channels", True, np.float64(3), 10, kl=float("inf")),)
    given = summary(methods=rows, seed=np.int64(3))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads(to_json(given), parse_constant=refuse)
    back = from_json(to_json(given))
    assert back.methods[0].kl == float("inf")
    assert type(back.seed) is int


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=99), "schema 99"),
        (lambda d: d["summary"].update(seed="zero"), "summary.seed"),
        (lambda d: d["summary"].update(seed=True), "summary.seed"),
        (lambda d: d["summary"].pop("title"), "title"),
        (lambda d: d["summary"].update(extra=1), "extra"),
        (lambda d: d["summary"]["layers"][0].update(bits=[1.5]), r"layers\[0\].bits\[0\]"),
        (lambda d: d["summary"].update(files=[["a", 1, 2]]), r"files\[0\] has 3"),
        (lambda d: d.pop("summary"), "summary"),
    ],
)
def test_broken_json_is_refused_with_the_place(change: Any, message: str) -> None:
    data = json.loads(to_json(summary(layers=1)))
    change(data)
    with pytest.raises(BitwrightError, match=message):
        from_json(json.dumps(data))


def test_a_summary_of_before_is_read() -> None:
    """With a share of saturated values that was never measured, and without what came later."""
    data = json.loads(to_json(summary()))
    for edge in data["summary"]["edges"]:
        edge["saturated_fraction"] = None
    for name in ("score", "rule", "reward"):
        del data["summary"][name]
    assert from_json(json.dumps(data)) == summary(rule="")
    for wrong in ([], {"edges": 3}, {"edges": [3]}):
        with pytest.raises(BitwrightError, match="not a report summary: summary"):
            from_json(json.dumps({"schema": 1, "summary": wrong}))


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(BitwrightError, match="not a report summary"):
        from_json("{")


@pytest.mark.parametrize("case", CASES)
def test_page_is_well_formed_and_complete_in_itself(case: str) -> None:
    page = render(CASES[case]())
    assert page.startswith("<!DOCTYPE html>")
    reader = read(page)
    assert not {"script", "iframe", "object", "embed", "form"} & set(reader.tags)
    for tag, name, value in reader.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "action", "data"):
            assert value.startswith("#") or value == "data:,", (tag, name, value)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in unescape(page)
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in reader.attributes:
        if name == "aria-labelledby":
            assert set(value.split()) <= set(ids), value
        if name == "href" and value.startswith("#"):
            assert value[1:] in ids
    levels = [int(tag[1]) for tag in reader.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert reader.tags.count("table") == reader.tags.count("caption")
    scopes = [value for tag, name, value in reader.attributes if (tag, name) == ("th", "scope")]
    assert len(scopes) == reader.tags.count("th")


@pytest.mark.parametrize("case", CASES)
def test_every_drawing_is_xml_with_a_title_and_a_description(case: str) -> None:
    found = list(drawings(render(CASES[case]())))
    assert len(found) == {"realistic": 8, "hostile": 8, "bare": 2}.get(case, len(found))
    for drawing in found:
        assert drawing.get("role") == "img"
        title, description, *_ = drawing
        assert (title.tag, description.tag) == ("title", "desc")
        assert title.text
        assert description.text
        label = f"{title.get('id')} {description.get('id')}"
        assert drawing.get("aria-labelledby") == label
        for element in drawing.iter():
            for name in ("x", "x1", "x2", "cx", "width", "y", "y1", "y2", "cy"):
                value = element.get(name, "0%")
                if value.endswith("%"):
                    assert -0.01 <= float(value[:-1]) <= 100.01, (element.tag, name, value)


def test_equal_summaries_give_equal_bytes(tmp_path: Path) -> None:
    write(summary(), tmp_path / "a.html")
    write(from_json(to_json(summary())), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == render(summary())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_sizes_stay_small() -> None:
    assert len(render(summary()).encode()) < 120_000
    # 150 layers with 200 channels, as in a ResNet-152
    big = summary(layers=150, per_layer=200)
    assert sum(row.channels for row in big.layers) == 30_000
    assert len(figures.bits_picture(big).encode()) < 300_000
    wide = summary(layers=1, per_layer=30_000)
    assert len(figures.bits_picture(wide).encode()) < 10_000


def test_hostile_names_are_shown_as_text() -> None:
    page = render(hostile())
    text = "".join(read(page).text)
    assert text.count("<script>alert(1)</script>\"'&\ufffd\ufffd{{ 7*7 }}") > 12
    assert "\x00" not in page
    assert "\x1b" not in page
    assert "<script" not in page


def test_numbers_on_the_page_are_those_of_the_summary() -> None:
    page = render(summary())
    text = words_of(page)
    assert (
        "12.3× smaller (1.08 MB → 88.1 KB); top-1 92.4 % → 91.9 % (0.5 ± ≤ 1.1 points lost); "
        "answers agree on 96.1 % of the test inputs; verified tensor by tensor in ONNX Runtime "
        "1.31.0 on x86_64."
    ) in text
    assert row_of(page, "One width per channel chosen") == (
        "One width per channel chosen 3.00 88.1 KB 12.3× smaller 0.0418 ± 0.0028 "
        "91.9 % ± 0.8 96.1 % 0.710"
    )
    # not measured, and said so
    assert row_of(page, "CW-HAWQ").endswith("91.3 % ± 0.9 – not measured 0.720")
    assert "Uniform, 3 bits, at 88.6 KB, has 0.105 nats: 2.51× more." in text
    assert 'title="88,123 bytes"' in page
    assert "60 of 61 integer tensors" in text
    assert row_of(page, "mean_1") == "mean_1 0.031 % 1 the runtime averages in another order"
    assert row_of(page, "model.safetensors") == "model.safetensors 88,123"
    assert row_of(page, "together") == "together 63.0 s"
    assert "700 output channels in 20 layers" in text
    assert "The parts add up" not in text


def test_options_are_listed() -> None:
    page = render(summary(settings={"budget": "3bit", HOSTILE: HOSTILE}))
    assert row_of(page, "budget") == "budget 3bit"
    assert "<script" not in page and "All options (2)" in words_of(page)


def test_chosen_row_is_marked_once() -> None:
    page = render(summary())
    assert page.count('<tr role="row" class="chosen">') == page.count(">chosen</strong>") == 1
    other = tuple(replace(m, chosen=m.name == "layers") for m in summary().methods)
    assert row_of(render(summary(methods=other)), "One width per layer chosen")


def test_layer_table_lists_every_layer() -> None:
    given = summary()
    page = render(given)
    for row in given.layers:
        text = row_of(page, row.name)
        assert f"{row.mean_bits:.2f} {words.widths_used(row)}" in text
        assert f"{row.weights:,}" in text


def test_missing_parts_are_said_to_be_missing() -> None:
    text = words_of(render(bare()))
    for sentence in (
        "2.50× smaller (1.00 KB → 400 B); accuracy was not measured; the exported file was not "
        "verified.",
        "No sensitivity is shown",
        "No breakdown of the file size is shown",
        "No frontier is shown",
        "No frontiers are shown",
        "No learning curve is shown",
        "No activations are listed",
        "Not verified.",
        "top-1 was not measured",
    ):
        assert sentence in text
    assert "Latency" not in text


def test_no_method_at_all() -> None:
    text = words_of(render(summary(methods=(), layers=0)))
    assert "No compressed model was written." in text
    assert "No method was measured." in text
    assert "No bits per channel are shown" in text


def test_failed_verification_is_not_hidden() -> None:
    given = summary()
    assert given.verification is not None
    text = words_of(render(summary(verification=replace(given.verification, ok=False))))
    assert "verification FAILED in ONNX Runtime" in text
    assert "Failed. 60 of 61" in text
    assert "The first tensor that differs, in the order of the graph, is mean_1" in text
    assert "Passed" not in text
    assert "verified tensor by tensor" not in text


def test_the_bits_are_credited_to_the_score_and_the_method_that_were_used() -> None:
    given = summary(score="half of what was asked")
    told = f"it is predicted what rounding would cost: half of what was asked. {RULE}"
    assert told in words_of(render(given))
    old = words_of(render(summary()))  # of before scores were told
    assert RULE in old and "predicted what rounding would cost" not in old
    older = summary(rule="", methods=tuple(replace(m, title="") for m in summary().methods))
    text = words_of(render(older))
    assert RULE not in text and row_of(render(older), "channels chosen 3.00 88.1 KB")
    assert "uniform, 3 bits" in text and "Original, float32" in text


def test_every_size_stands_there_to_the_byte() -> None:
    """Hovering is for those with a mouse."""
    page = render(summary())
    text = words_of(page)
    assert "hover" not in text.lower()
    for method in summary().methods:
        name = words.method_name(method).replace(words.NBSP, " ")
        assert f"{name} {method.bytes:,} " in text
    for label, size in summary().bytes_breakdown[1:]:
        assert row_of(page, f"in the chosen file: {label} ").endswith(f" {size:,}")
    for row in summary().layers:
        assert row_of(page, row.name).endswith(f" {row.float_bytes:,} {row.bytes:,}")


def test_the_layers_that_change_most_come_first() -> None:
    rows = summary().layers
    errors = {row.name: 0.01 * (1 + 7 * i % 20) for i, row in enumerate(rows)}
    layers = tuple(replace(row, output_error=errors[row.name]) for row in rows)
    page = render(replace(summary(error_rows=32), layers=(*layers[:-1], rows[-1])))
    del errors[rows[-1].name]  # not known of a lookup
    (found,) = re.findall(r'<caption id="changed-c">.*?</table>', page, re.S)
    names = re.findall(r"<code>(.*?)</code>", found)
    assert names == sorted(errors, key=lambda name: -errors[name])[:8]
    assert f"{100 * errors[names[0]]:.1f} %" in found.replace(words.NBSP, " ")
    assert "on 32 calibration inputs" in found and "The other 11 differ less" in found
    assert "Layers that change most" not in render(summary())


def test_print_is_not_set_smaller_than_can_be_read() -> None:
    style = stylesheet()
    paper = style[style.rindex("@media print") :]
    sizes = [float(size) for size in re.findall(r"font-size: ([0-9.]+)pt", paper)]
    assert sizes and min(sizes) >= 7.5


def test_parts_that_do_not_add_up_are_told() -> None:
    parts = (*summary().bytes_breakdown[:-1], ("graph", 10_122))
    text = words_of(render(summary(bytes_breakdown=parts)))
    assert "The parts add up to 88,122 bytes, the chosen method's file has 88,123 bytes." in text


def test_worse_than_uniform_is_told() -> None:
    methods = tuple(replace(m, kl=0.5, kl_stderr=0.4) if m.chosen else m for m in summary().methods)
    found = words.comparison(summary(methods=methods))
    assert found is not None
    assert "4.77× less" in found
    assert "less than two standard errors" in found


def test_bits_picture_shares() -> None:
    row = replace(summary(layers=1).layers[0], bits=(8, 2, 2, 4), channels=4)
    drawing = next(drawings(figures.bits_picture(replace(summary(), layers=(row,)))))
    found = [(r.get("class"), r.get("x"), r.get("width")) for r in drawing.iter("rect")]
    assert found.pop() == ("frame", "0%", "100%")
    assert found == [("b8", "0%", "25%"), ("b4", "25%", "25%"), ("b2", "50%", "50%")]


def test_cells_are_drawn_apart_only_where_they_can_be_seen() -> None:
    assert 'class="gaps"' in figures.bits_picture(summary(layers=1, per_layer=96))
    assert 'class="gaps"' not in figures.bits_picture(summary(layers=1, per_layer=97))


def test_sensitivity_marks_the_trace_between_its_errors() -> None:
    rows = summary(layers=2).layers
    pair = (
        replace(rows[0], trace=1e-3, stderr_probe=2e-4, stderr_data=5e-4),
        replace(rows[1], trace=1e-1, stderr_probe=0.0, stderr_data=None),
    )
    drawing = next(drawings(figures.sensitivity(replace(summary(), layers=pair))))
    low, high = (float(c.get("cx", "")[:-1]) for c in drawing.iter("circle"))
    error = next(e for e in drawing.iter("line") if e.get("class") == "data")
    left, right = (float(error.get(name, "")[:-1]) for name in ("x1", "x2"))
    decade = (high - low) / 2
    assert left == pytest.approx(low + decade * np.log10(0.5), abs=0.05)
    assert right == pytest.approx(low + decade * np.log10(1.5), abs=0.05)


def test_frontier_shows_the_chosen_plan_where_it_is() -> None:
    given = summary(frontier=((1.0, 0, 1.0), (8.0, 200_000, 0.001)))
    layers = (replace(given.layers[0], loss=0.04), replace(given.layers[1], loss=0.06))
    given = replace(given, layers=layers)
    drawing = next(drawings(curves.frontier(given)))
    (point,) = drawing.iter("circle")
    assert point.get("cx") == f"{svg.fixed(100 * 88_123 / 200_000)}%"
    axis = svg.log_axis([1.0, 0.001])
    assert point.get("cy") == f"{svg.fixed(100 - axis.at(0.1))}%"
    assert "chosen: 0.100 nats" in curves.frontier(given).replace(words.NBSP, " ")


def test_frontiers_show_each_point_and_the_chosen_plan() -> None:
    given = summary()
    (drawing,) = drawings(frontiers.frontiers(given))
    paths = {path.get("class"): path.get("d", "") for path in drawing.iter("path")}
    assert list(paths) == ["monotone", "layers", "curve"]
    own = (3.0, given.chosen_loss or 0.0)
    every = [p for row in given.frontiers for p in row.points]
    x = svg.linear_axis(1, 8)
    y = svg.log_axis([v for _, v in [*every, own]])
    for row, data in zip(given.frontiers, paths.values(), strict=True):
        found = [tuple(map(float, pair.split())) for pair in re.split("[ML]", data)[1:]]
        wanted = [(10 * x.at(b), 1000 - 10 * y.at(v)) for b, v in row.points]
        np.testing.assert_allclose(found, wanted, atol=0.051)
        assert len(found) == len(row.points)
    (point,) = drawing.iter("circle")
    assert point.get("cx") == f"{svg.fixed(x.at(3))}%"
    assert point.get("cy") == f"{svg.fixed(100 - y.at(own[1]))}%"
    text = words_of(frontiers.frontiers(given))
    # the channels' frontier goes through the chosen plan; the monotone one's last point before it
    # is at 3 bits as well
    assert "At 3 bits, layers lose 2.00× what channels do, monotone ones 2.50×." in text
    assert "29,000 plans, not proven the best" in text
    assert "by layer, all assignments: 15,000 plans" in text
    # what is not known, or cannot be drawn, is left out
    some = replace(given, frontiers=(FrontierRow("new", True, 2, ((1.0, 1.0), (2.0, 0.5))),))
    assert "No frontiers are shown" in frontiers.frontiers(some)
    few = FrontierRow("layers", True, 3, ((1.0, 1.0), (2.0, 0.5), (3.0, 0.0)))
    (drawing,) = drawings(frontiers.frontiers(replace(given, frontiers=(few,))))
    assert [path.get("d", "").count("L") for path in drawing.iter("path")] == [1]


def test_learning_curve_has_a_dot_for_every_evaluation() -> None:
    points = ((0, 0.4, 0.4), (1, 0.5, 0.4), (2, float("inf"), 0.4), (3, 0.2, 0.2))
    drawn = curves.learning(summary(learning=points))
    (drawing,) = drawings(drawn)
    dots, stairs = (path.get("d", "") for path in drawing.iter("path"))
    assert dots.count("h0") == 3
    # level until the evaluation that improves, then straight down
    heights = [float(pair.split()[1]) for pair in re.split("[ML]", stairs)[1:]]
    assert heights == sorted(heights)
    assert len(set(heights)) == 2
    assert "the best went from 0.400 to 0.200 nats" in drawn.replace(words.NBSP, " ")
    assert "Without a finite value and left out: 1." in drawn


def test_learning_curve_names_what_the_search_minimized() -> None:
    reward = "softened divergence, T² KL at T = 8"
    text = words_of(curves.learning(summary(reward=reward)))
    assert f"Learning curve: {reward}" in text
    assert f"It minimizes {reward}; these values are not comparable with the table's." in text
    assert f"across: evaluation; up: {reward}, in nats" in text
    for given in (summary(), summary(reward=reward)):
        assert "KL divergence" not in words_of(curves.learning(given))


def test_log_axis_places_decades() -> None:
    axis = svg.log_axis([1e-4, 1e-1])
    assert [label for _, label in axis.ticks] == ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]
    places = [axis.at(value) for value, _ in axis.ticks]
    assert np.allclose(np.diff(places), places[1] - places[0])
    assert 0 < places[0] < places[-1] < 100
    assert svg.log_axis([5.0]).ticks


def test_linear_axis_has_round_marks() -> None:
    axis = svg.linear_axis(0, 88_123, words.bytes_mark)
    plain = [label.replace(words.NBSP, " ") for _, label in axis.ticks]
    assert plain == ["0 B", "25 KB", "50 KB", "75 KB"]
    assert axis.at(88_123) == 100
    assert axis.at(0) == 0


def test_waterfall_parts_follow_each_other() -> None:
    parts = list(drawings(curves.waterfall(summary())))[1]
    bars = [
        (float(r.get("x", "")[:-1]), float(r.get("width", "")[:-1])) for r in parts.iter("rect")
    ]
    assert bars[0][0] == 0
    for (x, width), (following, _) in itertools.pairwise(bars):
        assert x + width == pytest.approx(following, abs=0.01)
    assert sum(bars[-1]) == pytest.approx(100, abs=0.01)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.00 KB"),
        (88123, "88.1 KB"),
        (999499, "999 KB"),
        (999600, "1.00 MB"),
        (1083456, "1.08 MB"),
        (5 * 10**9, "5.00 GB"),
    ],
)
def test_decimal_bytes(value: int, shown: str) -> None:
    assert words.decimal_bytes(value).replace(words.NBSP, " ") == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [(1.0, "100.0 %"), (0.99999, "> 99.9 %"), (0.961, "96.1 %"), (1e-5, "< 0.1 %"), (0, "0.0 %")],
)
def test_percent_never_rounds_to_all_or_none(share: float, shown: str) -> None:
    assert words.percent(share).replace(words.NBSP, " ") == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0412, "0.0412"),
        (4.123e-05, "4.12 × 10⁻⁵"),
        (0, "0"),
        (float("inf"), "∞"),
        (9.999, "10.0"),
        (float("nan"), "not a number"),
        (-2.5, "-2.50"),
        (12345.6, "12,300"),
    ],
)
def test_number(value: float, shown: str) -> None:
    assert words.number(value).replace(words.NBSP, " ") == shown


def test_metric_that_is_no_share_is_not_a_percentage() -> None:
    methods = tuple(replace(m, metric=31.27, metric_stderr=0.12) for m in summary().methods)
    text = words_of(render(summary(methods=methods, metric_name="PSNR, dB")))
    assert "PSNR, dB 31.27 → 31.27 (0 ± ≤ 0.17 lost)" in text


@pytest.mark.parametrize(
    ("metric", "error", "said"),
    [
        (0.919, 0.008, ("points lost", "0.5 ± 0.8", "top-1 92.4 % → 91.9 %")),
        (0.919, 0.0004, ("points lost", "0.50 ± 0.04", "top-1 92.4 % → 91.9 %")),
        (0.931, 0.008, ("points gained", "0.7 ± 0.8", "top-1 92.4 % → 93.1 %")),
        (0.919, None, ("points lost", "0.5 ± ≤ 1.1", "top-1 92.4 % → 91.9 %")),
    ],
)
def test_what_was_lost_has_the_error_of_the_pairs(
    metric: float, error: float | None, said: tuple[str, str, str]
) -> None:
    """Not the metric's own, which is as large where the same rows are lost twice."""
    methods = tuple(
        replace(m, metric=metric, lost_stderr=error) if m.chosen else m for m in summary().methods
    )
    given = summary(methods=methods)
    plain = [tuple(t.replace(words.NBSP, " ") for t in key) for key in key_figures(given)]
    assert said in plain
    headline = words.headline(given).replace(words.NBSP, " ")
    assert f"{said[2]} ({said[1]} {said[0]});" in headline


def test_a_metric_without_the_float_models_is_shown_by_itself() -> None:
    methods = tuple(replace(m, metric=None) if m.name == "float" else m for m in summary().methods)
    text = words_of(render(summary(methods=methods)))
    assert "top-1 91.9 % (± 0.8);" in text and "points lost" not in text
