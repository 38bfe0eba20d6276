"""Tasks: model, rows and labels that fit each other, and a fingerprint of every byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bitwright import task as task_module
from bitwright.data import Data
from bitwright.task import (
    Task,
    as_labels,
    as_rows,
    assemble,
    check_model_takes,
    check_task,
    fingerprint,
    load_task,
    loss_of,
    metric_of,
)
from small import refused


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*layers).eval()


def data(**changed: Any) -> Data:
    x = torch.arange(160.0).reshape(10, 1, 4, 4) / 160
    y = torch.arange(10) % 3
    return replace(Data(x[:6], y[:6], x[6:], y[6:], ("a note",), "RGB"), **changed)


def task(**changed: Any) -> Task:
    return replace(assemble(net(), data()), **changed)


class Answer(nn.Module):
    """Returns what a function makes of the rows."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


# ------------------------------------------------------------------------------------ assembling


def test_a_task_is_put_together() -> None:
    found = assemble(net(), data(), source="d.npz", metric_name="accuracy")
    assert (found.divergence, found.class_axis, found.metric_name) == ("kl", 1, "accuracy")
    assert (found.notes, found.preprocessing) == (("a note",), "RGB")
    assert torch.equal(found.calibration, data().x) and found.test is not None
    assert assemble(net(), data(), notes=("other",)).notes == ("other",)
    assert assemble(net(), Data(data().x)).test is None


def test_the_callers_model_is_left_as_it_is() -> None:
    model = net()
    assert assemble(model, data()).model is model
    model.train()
    model[1].eval()
    found = assemble(model, data()).model
    assert found is not model and not any(m.training for m in found.modules())
    assert [m.training for m in model.modules()] == [True, True, False, True, True, True]
    assert torch.equal(model.state_dict()["1.running_mean"], net().state_dict()["1.running_mean"])


def test_rows_come_out_as_the_model_takes_them() -> None:
    tokens = Answer(lambda x: torch.nn.functional.one_hot(x[:, 0], 4).float())
    rows = Data(torch.tensor([[0], [1]], dtype=torch.int32), torch.tensor([0, 3]).int())
    found = assemble(tokens.eval(), rows)
    assert found.calibration.dtype == torch.int64
    assert found.calibration_labels is not None
    assert found.calibration_labels.dtype == torch.int64
    with refused("d: calibration rows", "float64", "convert it to float32"):
        assemble(net(), data(x=data().x.double()), source="d")
    with refused("d: test rows", "uint8"):
        assemble(net(), data(test_x=data().x.byte()), source="d")


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"x": data().x[:0], "y": None}, ("d: there are no calibration rows",)),
        ({"y": torch.arange(5)}, ("d: 6 calibration rows but 5 labels",)),
        ({"test_x": None}, ("d: there are test labels but no test rows",)),
        ({"test_x": data().x[2:6]}, ("d: 4 test rows", "calibration row 2 = test row 0")),
        ({"x": data().x / 0}, ("d: calibration rows: row 0 holds NaN",)),
        ({"y": torch.tensor([0, 1, 3, 0, -1, 0])}, ("d: calibration labels: label 3 of row 2",)),
        ({"test_y": torch.tensor([0, 1, 2, -1])}, ("d: test labels: label -1 of row 3", "0 to 2")),
        ({"y": torch.eye(3).long().repeat(2, 1)}, ("labels are (3,) a row", "call for ()")),
        ({"test_y": torch.zeros(4, 1).long()}, ("test labels are (1,) a row", "class numbers")),
        ({"y": torch.zeros(6, 2)}, ("labels are (2,) a row", "call for (3,)", "your own loss")),
    ],
)
def test_rows_and_labels_that_do_not_fit(changed: dict[str, Any], parts: tuple[str, ...]) -> None:
    with refused(*parts):
        assemble(net(), data(**changed), source="d")


@pytest.mark.parametrize("part", [1, 4, 10, 11, 1000])
def test_rows_are_looked_at_in_parts_and_counted_in_all(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "_PART", part)
    rows = torch.zeros(7, 5)
    assert torch.equal(as_rows(rows, "x"), rows) and as_rows(rows[:0], "x").shape == (0, 5)
    rows[4, 2], rows[6] = torch.inf, torch.nan
    with refused("x: row 4 holds NaN or infinite", "(2 of 7 rows do)"):
        as_rows(rows, "x")
    with refused("y: row 2 holds", "(1 of 3 rows do)"):
        as_labels(torch.tensor([0.0, 1.0, -torch.inf]), "y")


def test_labels_for_ones_own_functions_may_mean_anything() -> None:
    ignore = torch.full((6,), 255)
    with refused("label 255 of row 0"):
        assemble(net(), data(y=ignore))
    assemble(net(), data(y=ignore), loss=lambda o, y: o.sum())
    with refused("label 255 of row 0"):
        assemble(net(), data(test_y=ignore[:4]), loss=lambda o, y: o.sum())
    assemble(net(), data(test_y=ignore[:4]), metric=lambda o, y: 0.0)
    assemble(net(), data(y=ignore, test_y=ignore[:4]), divergence="squared")
    assemble(net(), data(test_y=torch.zeros(4)))


def test_models_that_are_none() -> None:
    with refused("d: the model is a int"):
        check_task(Task(3, data().x), "d")  # type: ignore[arg-type]
    broken = net()
    nn.init.constant_(broken.get_parameter("4.weight"), float("nan"))
    with refused("weight '4.weight' of the model of d holds NaN"):
        check_task(Task(broken, data().x), "d")
    with refused("'4.weight'", "torch.float64", ".float()"):
        double = nn.Sequential(*list(net())[:4], nn.Linear(8, 3).double())
        check_task(Task(double, data().x), "d")
    with refused("d: divergence 'js' is unknown; use kl or squared"):
        assemble(net(), data(), source="d", divergence="js")


@pytest.mark.parametrize("axis", [0, 2, -2, -3, 5])
def test_there_must_be_a_class_axis(axis: int) -> None:
    with refused("returns (2, 3) for 2 rows", f"class axis {axis}", "divergence='squared'"):
        assemble(net(), data(), class_axis=axis)
    assemble(net(), data(), class_axis=axis, divergence="squared")


def test_an_axis_may_be_counted_from_the_end() -> None:
    found = assemble(net(), data(), class_axis=-1)
    metric = metric_of(found)
    assert metric is not None and metric(torch.eye(3), torch.tensor([0, 1, 0])) == pytest.approx(
        2 / 3
    )


# ------------------------------------------------------------------------------ what models take


def test_two_rows_go_through() -> None:
    seen = []

    def answer(x: Tensor) -> Tensor:
        seen.append((len(x), torch.is_grad_enabled()))
        return x.flatten(1)

    assemble(Answer(answer).eval(), data(y=None, test_y=None))
    assert seen == [(2, False)]
    assert check_model_takes(net(), data().x[:1]).shape == (1, 3)


def test_what_a_model_does_not_take_is_told() -> None:
    with refused("Sequential does not take rows of shape (4, 4) (torch.float32)", "RuntimeError"):
        check_model_takes(net(), data().x[:2, 0])
    with refused("rows of shape (1, 8, 8)", "shapes cannot be multiplied", "as the model takes"):
        check_model_takes(net(), torch.zeros(2, 1, 8, 8))
    with refused("rows of shape (1, 4, 4) (torch.int64)", "RuntimeError"):
        check_model_takes(net(), torch.zeros(2, 1, 4, 4).long())

    def fail(x: Tensor) -> Tensor:
        raise ValueError("first line\nsecond line")

    with refused("ValueError: first line; give"):
        check_model_takes(Answer(fail), data().x[:2])


def test_modes_are_put_back_after_an_error() -> None:
    model = net().train()
    model[1].eval()
    with refused("does not take"):
        check_model_takes(model, torch.zeros(2, 3))
    assert [m.training for m in model] == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (lambda x: x.flatten(1) / 0, ("NaN or infinite outputs",)),
        (lambda x: x.sum(), ("returns () for 2 rows", "an output a row")),
        (lambda x: x.flatten(1)[:1], ("returns (1, 16) for 2 rows",)),
        (lambda x: (x.flatten(1), x.sum()), ("returns () for 2 rows",)),
        (lambda x: None, ("returns a NoneType without a float tensor",)),
        (lambda x: {"ids": x.long()}, ("returns a dict without a float tensor",)),
    ],
)
def test_what_models_must_not_return(
    answer: Callable[[Tensor], Any], parts: tuple[str, ...]
) -> None:
    with refused("Answer", *parts):
        check_model_takes(Answer(answer), data().x[:2])


def test_outputs_of_several_tensors_are_joined() -> None:
    both = Answer(lambda x: {"boxes": x[:, 0], "scores": x[:, 0, 0], "ids": x.long()})
    assert check_model_takes(both, data().x[:2]).shape == (2, 20)
    assemble(both.eval(), data(y=None, test_y=None), divergence="squared")


# ------------------------------------------------------------------------------ loss and metric


def test_default_loss_and_metric() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(loss_of(task())(logits, labels), nn.functional.cross_entropy(logits, labels))
    metric = metric_of(task())
    assert metric is not None
    assert metric(logits, labels) == float((logits.argmax(1) == labels).double().mean())
    assert metric_of(task(test_labels=None)) is None
    assert metric_of(task(test_labels=torch.zeros(4))) is None
    assert metric_of(task(divergence="squared")) is None


def test_classes_on_another_axis() -> None:
    logits, labels = torch.randn(5, 7, 3), torch.randint(0, 3, (5, 7))
    found = task(class_axis=2)
    wanted = nn.functional.cross_entropy(logits.reshape(35, 3), labels.reshape(35))
    torch.testing.assert_close(loss_of(found)(logits, labels), wanted)
    metric = metric_of(found)
    assert metric is not None
    assert metric(logits, labels) == pytest.approx(
        float((logits.argmax(2) == labels).float().mean())
    )
    words = Answer(lambda x: x[:, 0]).eval()
    rows = data(y=torch.zeros(6, 4).long(), test_y=torch.zeros(4, 4).long())
    assemble(words, rows, class_axis=2)
    with refused("calibration labels are () a row", "call for (4,)"):
        assemble(words, data(), class_axis=2)


def test_float_labels_are_regressed_without_broadcasting() -> None:
    found = task(calibration_labels=torch.zeros(6), test_labels=None)
    outputs, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])
    # broadcast to [2, 2] it would be 3.5
    assert float(loss_of(found)(outputs, labels)) == 2.0


def test_ones_own_loss_and_metric_come_first() -> None:
    found = task(loss=lambda o, y: o.sum(), metric=lambda o, y: 7.0, test_labels=None)
    metric = metric_of(found)
    assert metric is not None and metric(None, torch.zeros(1)) == 7.0
    assert float(loss_of(found)(torch.ones(3), torch.zeros(3))) == 3.0


# -------------------------------------------------------------------------------------- loading

SOURCE = """
import torch
from torch import nn
from bitwright.task import Task
def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
def rows(n, start=0):
    return torch.arange(start, start + n * 4.).reshape(n, 4)
def task():
    return Task(net(), rows(6), notes="told")
def fields():
    return {"model": net(), "calibration": rows(6).numpy(), "divergence": "squared"}
TASK, FIELDS = task(), fields()
def misspelt():
    return fields() | {"calibraton": 3}
def strange():
    return fields() | {"zzz": 3}
def no_model():
    return {"calibration": rows(6)}
def no_rows():
    return {"model": net()}
def nothing():
    pass
def empty_rows():
    return Task(net(), None)
def leak():
    return Task(net(), rows(6), test=rows(2, 8))
def shape():
    return Task(net(), rows(6)[:, :3])
def fails():
    raise KeyError("lost")
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "t.py").write_text(SOURCE)
    return str(tmp_path / "t.py")


@pytest.mark.parametrize("name", ["task", "fields", "TASK", "FIELDS"])
def test_tasks_of_files(file: str, name: str) -> None:
    found = load_task(f"{file}:{name}")
    assert isinstance(found, Task) and found.calibration.shape == (6, 4)
    assert not found.model.training
    assert found.notes == (("told",) if name.lower() == "task" else ())
    assert found.divergence == ("kl" if name.lower() == "task" else "squared")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("misspelt", ("no field 'calibraton'", "did you mean 'calibration'?")),
        ("strange", ("no field 'zzz'", "use model, calibration")),
        ("no_model", ("field 'model' is missing",)),
        ("no_rows", ("field 'calibration' is missing",)),
        ("nothing", ("gave a NoneType", "return a bitwright.Task")),
        ("empty_rows", ("calibration rows: the array holds object values",)),
        ("leak", ("2 test rows are among the calibration rows", "row 2 = test row 0")),
        ("shape", ("does not take rows of shape (3,)",)),
        ("fails", ("fails() failed: KeyError: 'lost' (line",)),
        ("rows", ("needs arguments (n)",)),
        ("tsk", ("did you mean task",)),
    ],
)
def test_files_that_give_no_task(file: str, name: str, parts: tuple[str, ...]) -> None:
    with refused(file, *parts) if name != "shape" else refused(*parts):
        load_task(f"{file}:{name}")


# ----------------------------------------------------------------------------------- fingerprint


def tensors(found: Task) -> list[Tensor]:
    """Every tensor the fingerprint is of."""
    return [*found.model.parameters(), *found.model.buffers(), found.calibration]


def flip(value: Tensor, byte: int, bit: int) -> None:
    value.detach().reshape(-1).view(torch.uint8)[byte] ^= 1 << bit


SIZES = [t.numel() * t.element_size() for t in tensors(task())]


@settings(deadline=None)
@given(st.integers(0, sum(SIZES) - 1), st.integers(0, 7))
def test_any_flipped_bit_changes_it(place: int, bit: int) -> None:
    found, index = task(), 0
    before = fingerprint(found)
    while place >= SIZES[index]:
        place, index = place - SIZES[index], index + 1
    flip(tensors(found)[index], place, bit)
    assert fingerprint(found) != before
    flip(tensors(found)[index], place, bit)
    assert fingerprint(found) == before


def test_it_is_the_same_for_the_same_task() -> None:
    assert fingerprint(task()) == fingerprint(task())
    assert len(fingerprint(task())) == 64
    # of rows that only judge, it knows nothing
    assert fingerprint(task(test=None, test_labels=None, notes=())) == fingerprint(task())


class Named(nn.Module):
    """Parameters, buffers and modules by name, in the order given."""

    def __init__(self, named: dict[str, Tensor | nn.Module]) -> None:
        super().__init__()
        for name, value in named.items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
            elif isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value, persistent=False)


def of(named: dict[str, Any], rows: Tensor | None = None) -> str:
    return fingerprint(Task(Named(named), torch.zeros(1) if rows is None else rows))


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_registration_does_not_matter(order: list[str]) -> None:
    shared = nn.Linear(2, 2)
    named = {"a": nn.Parameter(torch.ones(2)), "b": torch.zeros(3), "c": shared, "d": shared}
    assert of({name: named[name] for name in order}) == of(named)


def test_names_types_and_shapes_matter() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    found = [
        of({"a": a, "b": b}),
        of({"a": b, "b": a}),
        of({"b": a, "c": b}),
        of({"a": a[:1], "b": torch.cat([a[1:], b])}),
        of({"a": a.view(torch.int32), "b": b}),
        of({"a": a[None], "b": b}),
        of({"a": a, "b": b}, torch.zeros(1, 1)),
        of({"a": a}, b),
        of({"a": -torch.zeros(2), "b": b}),
        of({"a": torch.zeros(2), "b": b}),
        of({}),
    ]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(3),
        torch.zeros(0, 4),
        torch.ones(2, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.arange(6.0).reshape(2, 3).T,
        torch.tensor([1j]),
    ],
)
def test_every_kind_of_tensor_has_bytes(value: Tensor) -> None:
    assert of({"a": value}) == of({"a": value.clone().contiguous()})
    assert of({"a": value}) != of({})
