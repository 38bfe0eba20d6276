"""How many units get implants: as many as surely lose less than none do, by trial.

Implants keep part of what some units did and cost parameters that others must give up for them;
behind refits it may be either (HAP has no refits, and always gains). So shares are tried: cut,
fitted on half of the rows, judged on the other half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from bitwright.curvature.divergence import per_sample
from bitwright.network import answers
from bitwright.prune.compensate import compensated
from bitwright.prune.edit import pruned
from bitwright.prune.groups import Coupling
from bitwright.prune.select import Selection

#: parts of the largest share that are tried
PARTS = (0.25, 0.5, 1.0)
#: standard errors by which a share must lose less than none
_SURELY = 2.0


@dataclass(frozen=True)
class Trial:
    """A share of implants and the divergence from the model with it; gain over none ± its error."""

    share: float
    divergence: float
    gain: float = 0.0
    stderr: float = 0.0


def best_share(
    model: nn.Module,
    coupling: Coupling,
    choose: Callable[[float], Selection],
    x: Tensor,
    most: float,
    *,
    rank: int = 0,
    refit: bool = True,
    kind: str = "kl",
    class_axis: int = 1,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> tuple[float, list[Trial]]:
    """The share of implants to take, at most `most`, and what was tried.

    Args:
        model: as it is, and its coupling.
        choose: the units to take within the budget, for a share.
        x: [n, ...] rows, two at least.
        rank, refit, seed: as the module will be made.
        kind, class_axis: of the divergence.
        progress: called with the finished fraction.

    Cost: four times that of making the module.
    """
    fitted, judged = x.chunk(2)
    reference = answers(model, judged)

    def lost(share: float) -> Tensor | None:
        chosen = choose(share)
        if share and not any(chosen.implanted.values()):
            return None
        edit = coupling.edit(chosen.removed, chosen.implanted, rank=rank)
        module = pruned(model, edit)
        compensated(model, module, edit, fitted, refit=refit, seed=seed)
        return per_sample(reference, answers(module, judged), kind, class_axis)

    none = lost(0.0)
    assert none is not None
    trials = [Trial(0.0, float(none.mean()))]
    for i, part in enumerate(PARTS):
        if (found := lost(part * most)) is not None:
            gain = none - found
            error = float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
            trials.append(Trial(part * most, float(found.mean()), float(gain.mean()), error))
        if progress:
            progress((i + 1) / len(PARTS))
    sure = [t for t in trials if t.gain > _SURELY * t.stderr]
    return min(sure or trials[:1], key=lambda t: t.divergence).share, trials
