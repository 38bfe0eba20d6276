"""Several runs in one page: its figures are those of the runs' own summaries."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright
from bitwright.errors import BitwrightError
from bitwright.pipeline.judge import judge
from bitwright.report import Summary, to_json, words
from bitwright.report import comparison as comparisons
from bitwright.report.compared import chart, frontier, render
from bitwright.task import Task
from pipeline.tiny import call, refused
from report.test_report import HOSTILE, drawings, read, row_of, summary, words_of


def put(folder: Path, given: Summary | None = None, **files: Any) -> Path:
    """A run's folder with a summary and JSON files."""
    folder.mkdir(parents=True)
    if given is not None:
        (folder / "summary.json").write_text(to_json(given))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def changed(given: Summary, **changes: Any) -> Summary:
    """With another chosen row."""
    rows = tuple(replace(m, **changes) if m.chosen else m for m in given.methods)
    return replace(given, methods=rows)


def settled(**settings: str) -> Summary:
    return summary(settings={"budget": "3bit", "method": "channels", **settings}, task="t", key="k")


def folders(place: Path) -> list[Path]:
    """Three finished runs and one that was killed."""
    stages = {"export": {"key": "k"}}
    second = changed(settled(budget="4bit"), bytes=121_000, kl=0.0101, kl_stderr=0.0009)
    third = changed(settled(rounding="feedback"), kl=0.0333, kl_stderr=0.002, lost_stderr=0.0031)
    return [
        put(place / "three", settled(), stages=stages),
        put(place / "four", second, stages=stages),
        put(place / "fed", third, stages=stages),
        put(
            place / "killed",
            run={"model": "net.py:net", "budget": "2bit", "method": "layers", "seed": 3},
            stages={"measure": {"key": "m"}},
        ),
    ]


def test_figures_are_those_of_the_summaries(tmp_path: Path) -> None:
    given = folders(tmp_path)
    found = bitwright.compare(*given, out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for folder, run in zip(given[:3], found.runs, strict=False):
        stored = json.loads((folder / "summary.json").read_text())["summary"]
        whole = next(m for m in stored["methods"] if m["name"] == "float")
        own = next(m for m in stored["methods"] if m["chosen"])
        assert (run.size_bytes, run.float_bytes) == (own["bytes"], whole["bytes"])
        assert run.ratio == whole["bytes"] / own["bytes"]
        assert (run.kl, run.kl_stderr) == (own["kl"], own["kl_stderr"])
        assert run.lost == whole["metric"] - own["metric"]
        assert (run.mean_bits, run.allocator) == (own["mean_bits"], own["name"])
        assert (run.latency_ms, run.agreement) == (own["latency_ms"], own["agreement"])
        assert [list(layer.bits) for layer in run.layers] == [r["bits"] for r in stored["layers"]]
        text = row_of(page, f"{found.runs.index(run) + 1} · {run.name}")
        assert f"{own['mean_bits']:.2f}" in text
        assert words.decimal_bytes(own["bytes"]).replace(words.NBSP, " ") in text
        loss = f"{words.number(own['kl'])} ± {words.number(own['kl_stderr'], 2)}"
        assert loss.replace(words.NBSP, " ") in text
        assert f"{100 * (whole['metric'] - own['metric']):.2f} ±" in text
        assert f'title="{own["bytes"]:,} bytes"' in page
        assert stored["command"] in words_of(page)


def test_standard_errors_of_what_was_lost(tmp_path: Path) -> None:
    three, _, fed, _ = bitwright.compare(*folders(tmp_path)).runs
    assert three.lost_stderr == pytest.approx(math.hypot(0.008, 0.008))  # as if of other rows
    assert not three.lost_paired
    assert (fed.lost_stderr, fed.lost_paired) == (0.0031, True)


def test_a_judgement_pairs_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator)
    labels = x.argmax(1)
    answers = x + torch.randn(50, 3, generator=generator)
    task = Task(torch.nn.Identity(), x, labels, x, labels)
    found = judge(task, x, answers)
    lost = (answers.argmax(1) != labels).double()  # the float model is right everywhere
    assert 0 < lost.mean() < 1
    assert found.metric == pytest.approx(1 - lost.mean().item())
    assert found.lost_stderr == pytest.approx(lost.std().item() / math.sqrt(50))
    assert judge(task, x, x).lost_stderr == 0


def test_every_size_stands_there_to_the_byte(tmp_path: Path) -> None:
    found = bitwright.compare(*folders(tmp_path))
    page = render(found)
    sized = [run for run in found.runs if run.size_bytes and run.float_bytes]
    assert sized
    for i, run in enumerate(found.runs, 1):
        if run in sized:
            wanted = f"{i} · {run.name} {run.size_bytes:,} {run.float_bytes:,}"
            assert wanted in words_of(page)


def test_what_differs_and_what_is_unfinished(tmp_path: Path) -> None:
    found = bitwright.compare(*folders(tmp_path))
    # `model` is known of the killed run alone
    assert found.differing == ("model", "budget", "method", "rounding", "seed")
    killed = found.runs[3]
    assert not killed.finished and killed.state == "unfinished, measured so far"
    assert killed.kl is None and killed.size_bytes is None and killed.layers == ()
    page = render(found)
    assert row_of(page, "budget") == "budget 3bit 4bit 3bit 2bit"
    assert row_of(page, "4 · killed").startswith(
        "4 · killed (unfinished, measured so far) layers – –"
    )
    assert "killed: unfinished, measured so far." in found.notes
    text = words_of(page)
    assert "Smallest: three, 88.1 KB; least divergence from float: four, 0.0101 ± 9.0" in text


def test_a_run_that_went_on_is_not_taken_for_its_report(tmp_path: Path) -> None:
    first, second, *_ = folders(tmp_path)
    plan = {
        "schema": 1, "method": "layers", "bits": {"a": [2, 2], "b": [8]},
        "choices": [2, 8], "cost_bits": 12, "budget_bits": 12, "predicted_loss": 0.5,
    }  # fmt: skip
    (second / "plan.json").write_text(json.dumps(plan))
    (second / "stages.json").write_text(json.dumps({"search": {"key": "new"}}))
    run = bitwright.compare(first, second).runs[1]
    assert not run.finished and "went on after its report" in run.state
    assert run.kl is None and run.allocator == "layers"
    assert [(layer.name, layer.bits) for layer in run.layers] == [("a", (2, 2)), ("b", (8,))]


def test_the_chart_shows_every_run_where_it_is(tmp_path: Path) -> None:
    runs = bitwright.compare(*folders(tmp_path)).runs
    (drawing,) = drawings(chart(runs))
    circles = [
        (float(c.get("cx", "")[:-1]), float(c.get("cy", "")[:-1])) for c in drawing.iter("circle")
    ]
    assert [t.text for t in drawing.iter("text") if t.get("dy") == "4" and t.get("dx") is None] == [
        "1", "2", "3",
    ]  # fmt: skip
    by_size, by_loss = circles[1][0] > circles[0][0], circles[2][1] < circles[1][1]
    assert by_size and by_loss and circles[0][0] == circles[2][0]
    # three points on a logarithmic axis
    ys = [math.log(run.kl) for run in runs[:3] if run.kl is not None]
    expected = (ys[0] - ys[1]) / (ys[2] - ys[1])
    assert (circles[0][1] - circles[1][1]) / (circles[2][1] - circles[1][1]) == pytest.approx(
        expected, abs=0.01
    )


def test_the_frontier_is_what_none_dominates() -> None:
    rng = random.Random(0)
    points = [(rng.randrange(20) * 1.0, rng.randrange(20) * 1.0) for _ in range(40)]
    beaten = [p for p in points if any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]
    assert frontier(points) == sorted({p for p in points if p not in beaten})


def test_json_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(f) for f in folders(tmp_path)]
    page = tmp_path / "some.html"
    assert call("compare", *given, "--out", str(page), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [r["size_bytes"] for r in said["runs"]] == [88_123, 121_000, 88_123, None]
    assert said["runs"][0]["ratio"] == 1_083_456 / 88_123
    first = page.read_bytes()
    assert call("compare", *given, "--out", str(page)) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(page)
    assert "121,000" in out and "0.0101" in out and "what differs" in out
    assert page.read_bytes() == first, "same input, same bytes"


def test_names_are_text(tmp_path: Path) -> None:
    base = settled(method=HOSTILE)
    layers = (replace(base.layers[0], name=HOSTILE), *base.layers[1:])
    hostile = replace(base, layers=layers, model=HOSTILE, command=HOSTILE, metric_name=HOSTILE)
    runs = [
        put(tmp_path / "<script>alert(2)<", hostile, stages={"export": {"key": "k"}}),
        put(tmp_path / "b", replace(settled(), layers=layers), stages={"export": {"key": "k"}}),
    ]
    page = render(bitwright.compare(*runs))
    reader = read(page)
    assert "<script" not in page and "\x1b" not in page
    text = "".join(reader.text)
    assert text.count("<script>alert(1)</script>") >= 4 and "<script>alert(2)<" in text
    assert "{{ 7*7 }}" in text and "49" not in "".join(t for t in reader.text if "7*7" in t)


def test_the_page_is_whole(tmp_path: Path) -> None:
    reader = read(render(bitwright.compare(*folders(tmp_path))))
    assert not {"script", "iframe", "object", "embed", "form"} & set(reader.tags)
    values = [v for _, n, v in reader.attributes if n in ("src", "href")]
    assert values == ["data:,"]
    ids = [v for _, n, v in reader.attributes if n == "id"]
    assert len(ids) == len(set(ids))
    assert {p for _, n, v in reader.attributes if n == "aria-labelledby" for p in v.split()} <= {
        *ids
    }
    assert reader.tags.count("table") == reader.tags.count("caption") == 4
    assert reader.tags.count("th") == len([1 for t, n, _ in reader.attributes if n == "scope"])


REFUSED: dict[str, tuple[Callable[[Path], list[Path]], str]] = {
    "one": (lambda p: [put(p / "a", settled())], "two folders of runs at least, not 1"),
    "twice": (lambda p: [put(p / "a", settled()), p / "b" / ".." / "a"], "is given twice"),
    "missing": (lambda p: [put(p / "a", settled()), p / "none"], "there is no folder"),
    "empty": (lambda p: [put(p / "a", settled()), put(p / "b")], "holds no run"),
    "pruning": (lambda p: [put(p / "a", settled()), put(p / "b", prune={})], "a pruning that was"),
    "graph": (lambda p: [put(p / "a", settled()), put(p / "b", graph={})], "a graph network's"),
    "bits": (lambda p: [put(p / "a", settled()), put(p / "b", multibit={})], "multi-bit training"),
    "damaged": (
        lambda p: [put(p / "a", settled()), put(p / "b", summary={"schema": 7})],
        "not a report summary",
    ),
    "no object": (lambda p: [put(p / "a", settled()), put(p / "b", stages=[1])], "no JSON object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, says = REFUSED[case]
    given = make(tmp_path)
    with pytest.raises(BitwrightError):
        bitwright.compare(*given)
    line = refused(capsys, "compare", *map(str, given), "--out", str(tmp_path / "page.html"))
    assert says in line and not (tmp_path / "page.html").exists()


def test_runs_of_other_networks_are_told_apart(tmp_path: Path) -> None:
    runs = [
        put(tmp_path / name, replace(settled(), task=name), stages={"export": {"key": "k"}})
        for name in ("a", "b")
    ]
    (note,) = bitwright.compare(*runs).notes
    assert note.startswith("These are runs of different networks, weights or calibration rows")


def test_folders_of_the_same_name_get_longer_ones(tmp_path: Path) -> None:
    names = comparisons._names([Path("/a/x/run"), Path("/a/y/run"), Path("/a/z")])
    assert names == ["x/run", "y/run", "a/z"]


@pytest.mark.parametrize(
    ("epochs", "word"), [(None, "quantized"), (0, "quantized"), (2, "fine-tuned")]
)
def test_training_that_nobody_asked_for_was_not_done(
    epochs: int | None, word: str, tmp_path: Path
) -> None:
    stages = {
        name: {"key": name} for name in ("measure", "search", "quantize", "finetune", "refit-head")
    }
    run = {"model": "net.py:net"} | ({} if epochs is None else {"epochs": epochs})
    killed = put(tmp_path / "killed", run=run, stages=stages)
    found = bitwright.compare(put(tmp_path / "a", settled()), killed)
    assert found.runs[1].state == f"unfinished, {word} so far"
