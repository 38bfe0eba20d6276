"""Fine-tuning of a quantized network, the float model as teacher.

By :mod:`bitwright.train.distil`, of a :class:`~bitwright.train.Trainable`. The result is taken only
where held-out rows say that it is better. All layers are quantized at once, or one after another
(:mod:`bitwright.train.order`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from bitwright.network import outputs
from bitwright.quantize import Quantized, simulate
from bitwright.train.distil import Augment, Recipe, Student, distil
from bitwright.train.order import stages
from bitwright.train.trainable import Trainable


def finetune(
    quantized: Quantized,
    x: Tensor,
    recipe: Recipe,
    *,
    order: Sequence[str] | None = None,
    augment: Augment | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[Quantized, list[float]]:
    """Train the quantized network towards the float model's answers.

    Args:
        quantized: the corrected network; left as it is.
        x: [n, ...] calibration rows; the last ones decide, the others train.
        recipe: with 0 epochs the network comes back as it is.
        order: names of all layers as they are to be quantized one after another; None for all at
            once. See :func:`bitwright.train.stages` for when each one's turn is.
        augment: changes the training rows of each step, from rows and a generator.
        checkpoint: a file that every epoch's state is kept in; training goes on from it.
        progress: called with the finished fraction.

    Returns:
        The best network, and the held-out loss before and after each epoch: of the whole quantized
        network, layers whose turn has not come as they were given.

    Raises:
        BitwrightError: the checkpoint is damaged or of another training.
    """
    network, steps = quantized.network, recipe.steps(x)
    state = Trainable(quantized, entered=False, bounded=recipe.bounded).to(recipe.device)
    placed = network.to(recipe.device).module
    turns: dict[int, Sequence[str]] = {0: [la.name for la in network.layers]}
    if order is not None:
        turns = dict(stages(order, recipe.epochs * steps))
    student = Student(
        state,
        state.groups(recipe.rate),
        lambda rows: simulate(state.quantized(), rows),
        lambda step: state.enter(turns.get(step, ())),
    )
    best, history = distil(
        student,
        lambda rows: outputs(placed, rows),
        x,
        recipe,
        first=lambda rows: simulate(quantized, rows),
        augment=augment,
        checkpoint=checkpoint,
        progress=progress,
    )
    if not best:
        return quantized, history
    found = Trainable(quantized, entered=False, bounded=recipe.bounded)
    found.enter(_entered(turns, history.index(min(history)) * steps))
    found.load_state_dict(best)
    return found.quantized(), history


def _entered(turns: Mapping[int, Sequence[str]], steps: int) -> list[str]:
    """Layers whose turn came within so many steps."""
    return [name for at, names in turns.items() if at < steps for name in names]
