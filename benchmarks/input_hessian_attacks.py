"""Attacks by the Adversarial Robustness Toolbox, the smallest one found. For `input_hessian.py`.

AutoPGD (Croce and Hein, arXiv 2003.01690) with the cross-entropy and with the difference of logits
are AutoAttack's white-box pair for networks without defences of their own; Square (arXiv
1912.00049) is its black-box one and sees no gradients.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LOSSES = ("cross_entropy", "difference_logits_ratio")
NORMS = {"L2": 2, "Linf": np.inf}
RADII = {
    "mnist": {"L2": (1.0, 1.5, 2.0, 2.5), "Linf": (0.06, 0.1, 0.15)},
    "fashion": {"L2": (0.5, 1.0, 1.5, 2.0), "Linf": (0.03, 0.06, 0.1)},
}


def classifier(net: nn.Module) -> Any:
    """A network as ART takes it."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        net.eval(), nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu"
    )


def run(attack: Any, x: Tensor, y: Tensor) -> Tensor:
    """Attacked rows; ART's warnings are of its own arithmetic."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            found = attack.generate(x.numpy(), np.eye(10, dtype=np.float32)[y.numpy()])
    finally:
        logging.disable(before)
    return torch.from_numpy(np.asarray(found, np.float32))


def white_box(net: nn.Module, norm: str, radius: float, loss: str, steps: int) -> Any:
    """AutoPGD."""
    from art.attacks.evasion import AutoProjectedGradientDescent

    return AutoProjectedGradientDescent(
        classifier(net), norm=NORMS[norm], eps=radius, eps_step=2 * radius, max_iter=steps,
        nb_random_init=1, batch_size=512, loss_type=loss, verbose=False,
    )  # fmt: skip


def square(net: nn.Module, norm: str, radius: float, steps: int) -> Any:
    """The Square attack."""
    from art.attacks.evasion import SquareAttack

    return SquareAttack(
        classifier(net), norm=NORMS[norm], eps=radius, max_iter=steps, nb_restarts=1,
        batch_size=512, verbose=False,
    )  # fmt: skip


def right(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """[n], which rows have their class."""
    with torch.no_grad():
        found: Tensor = net(x).argmax(1) == y
    return found


def survivors(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: str,
    radius: float,
    steps: int,
    losses: tuple[str, ...] = LOSSES,
) -> tuple[Tensor, Tensor]:
    """Which rows both AutoPGD attacks leave right, [n], and what they were attacked with."""
    torch.manual_seed(0)
    np.random.seed(0)
    alive, found = right(net, x, y), x.clone()
    for loss in losses:
        if not alive.any():
            break
        tried = run(white_box(net, norm, radius, loss, steps), x[alive], y[alive])
        found[alive] = tried
        alive[alive.clone()] = right(net, tried, y[alive])
    return alive, found


def smallest(net: nn.Module, x: Tensor, y: Tensor, radii: tuple[float, ...], steps: int) -> Tensor:
    """L2 length [n] of the smallest attack found; 0 for rows that are wrong, inf where none was.

    AutoPGD at rising radii; what breaks a row is shortened towards it as far as it stays an attack.
    """
    best = torch.where(right(net, x, y), torch.inf, 0.0)
    for radius in radii:
        open_ = best == torch.inf
        if not open_.any():
            break
        alive, tried = survivors(net, x[open_], y[open_], "L2", radius, steps)
        rows = open_.nonzero()[:, 0][~alive]
        best[rows] = shortened(net, x[rows], tried[~alive], y[rows])
    return best


def shortened(net: nn.Module, x: Tensor, attacked: Tensor, y: Tensor, halvings: int = 12) -> Tensor:
    """Length of the shortest attack on the way from x to an attack, by bisection, [n]."""
    low, high = torch.zeros(len(x)), torch.ones(len(x))
    for _ in range(halvings):
        middle = (low + high) / 2
        holds = right(net, x + middle[:, None, None, None] * (attacked - x), y)
        low, high = torch.where(holds, middle, low), torch.where(holds, high, middle)
    return high * (attacked - x).flatten(1).norm(dim=1)
