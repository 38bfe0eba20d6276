"""Fine-tuning of float modules: what it lowers, what it leaves alone."""

from __future__ import annotations

import copy

import torch
from torch import nn

from bitwright.curvature.divergence import per_sample
from bitwright.train import Recipe, finetune_float


def _pair() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(96, 3),
    ).eval()  # fmt: skip
    student = copy.deepcopy(teacher)
    student[0].weight.data += 0.1 * torch.randn_like(student[0].weight)
    return teacher, student, torch.randn(400, 1, 6, 6)


def _lost(teacher: nn.Module, module: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float(per_sample(teacher(x), module(x), "kl").mean())


def test_training_lowers_the_divergence_and_changes_nothing_else():
    teacher, student, x = _pair()
    before = copy.deepcopy(student.state_dict())
    found, history = finetune_float(student, teacher, x[:300], Recipe(6, batch=32, rate=3e-3))
    assert min(history) < 0.5 * history[0] and not found.training
    assert _lost(teacher, found, x[300:]) < 0.5 * _lost(teacher, student, x[300:])
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    again, same = finetune_float(student, teacher, x[:300], Recipe(6, batch=32, rate=3e-3))
    assert same == history
    states = zip(again.state_dict().values(), found.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


def test_statistics_are_taken_anew_only_where_that_is_better():
    teacher, _, x = _pair()
    moved = copy.deepcopy(teacher)
    moved[1].running_mean += 3
    found, _ = finetune_float(moved, teacher, x, Recipe(1, batch=32, rate=1e-9))
    with torch.no_grad():
        seen = teacher[0](x[:340]).movedim(1, 0).flatten(1)
    assert torch.allclose(found[1].running_mean, seen.mean(1), atol=0.05)
    exact = copy.deepcopy(teacher)
    found, history = finetune_float(exact, teacher, x, Recipe(1, batch=32, rate=1e-9))
    assert torch.equal(found[1].running_mean, teacher[1].running_mean) and history[0] == 0


def test_no_epochs_give_the_module_back():
    teacher, student, x = _pair()
    found, history = finetune_float(student, teacher, x, Recipe(0))
    assert torch.equal(found(x), student(x)) and len(history) == 1
