"""A training's state on disk: any changed bit is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from bitwright.errors import BitwrightError
from bitwright.train import Recipe, resume
from bitwright.train.distil import Student, distil

TENSORS = {"now:weight": torch.arange(6.0).reshape(2, 3), "generator": torch.zeros(5).byte()}


def test_every_changed_byte_is_seen(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    resume.write(path, TENSORS, '{"steps": 3}')
    found, said = resume.read(path)
    assert said == '{"steps": 3}' and found.keys() == TENSORS.keys()
    assert all(torch.equal(found[k], v) for k, v in TENSORS.items())
    whole = path.read_bytes()
    quiet = []
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            resume.read(path)
        except (OSError, SafetensorError, KeyError, ValueError):
            continue
        quiet.append(at)
    # white space that pads the header says nothing
    assert all(whole[at : at + 1] == b" " for at in quiet), quiet


class Line(nn.Module):
    """ŷ = x w."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def trained(path: Path, poison: int | None = None, epochs: int = 4) -> list[float]:
    """Held-out losses of a line that learns another one; NaN comes in at step `poison`."""
    torch.manual_seed(0)
    x, teacher = torch.randn(40, 3), torch.randn(3, 4)
    line, steps = Line(), 0

    def before(step: int) -> None:
        nonlocal steps
        steps = step
        if step == poison:
            with torch.no_grad():
                line.weight[0, 0] = float("nan")

    student = Student(
        line, [{"params": [line.weight], "lr": 0.01}], lambda rows: line(rows), before
    )
    recipe = Recipe(epochs, batch=10)
    with torch.no_grad():
        return distil(student, lambda rows: rows @ teacher, x, recipe, checkpoint=path)[1]


@pytest.mark.parametrize("poison", [0, 4, 7, 11])
def test_nan_ends_a_training_with_a_line_and_it_goes_on_from_before(poison: int, tmp_path: Path):
    calm = trained(tmp_path / "calm")
    path = tmp_path / "state"
    epoch = poison // 3 + 1  # 34 rows train, in three steps of ten
    with pytest.raises(
        BitwrightError, match=rf"not finite in epoch {epoch} of 4: .*lower the rate"
    ):
        trained(path, poison)
    assert path.exists() == (epoch > 1)
    assert trained(path) == calm and calm[-1] < calm[0]
