"""Which units go: the global order of HAP (arXiv 2101.08940, section 3.2), under any budget.

Units of all layers are removed in the order of `score / what it saves`, each layer's by rising
score; what a unit saves is counted anew after every removal, since channels removed on one side of
a layer make those on the other side cheaper. No layer falls below its floor (HAP keeps 5 %).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from bitwright.errors import BitwrightError
from bitwright.prune.scores import order
from bitwright.prune.sizes import Sizes


def select(
    sizes: Sizes,
    scores: Mapping[str, np.ndarray],
    bound: float,
    unit: str = "parameters",
    *,
    floor: float = 0.05,
) -> dict[str, tuple[int, ...]]:
    """Units to remove until the model's size is within the bound.

    Args:
        sizes: of the model; scores: group name -> predicted loss of each unit, [units].
        bound: on `unit`, one of :data:`bitwright.prune.sizes.UNITS`.
        floor: share of a group's units that stay, one at least.

    Returns:
        Group name -> units, ascending; groups that lose none are left out.

    Raises:
        BitwrightError: even the floors are above the bound; the least that can be had is named.
    """
    if not 0 <= floor <= 1:
        raise BitwrightError(f"the floor must be 0 to 1, not {floor}")
    queues = {name: order(values) for name, values in scores.items()}
    most = {
        name: len(q) - min(len(q), max(1, math.ceil(floor * len(q)))) for name, q in queues.items()
    }
    least = sizes.of(most)[unit]
    if least > bound:
        raise BitwrightError(
            f"the floors of the layers leave {least:,.0f} {unit} of {sizes.whole[unit]:,.0f}, more "
            f"than the {bound:,.0f} asked for; keep {least / sizes.whole[unit]:.1%} or more, or "
            "lower the floor"
        )
    gone = dict.fromkeys(queues, 0)
    now = sizes.whole[unit]
    while now > bound:
        best, saved = "", 0.0
        value = math.inf
        for name, queue in queues.items():
            if gone[name] >= most[name]:
                continue
            gain = sizes.saved(gone, name, unit)
            ratio = float(scores[name][queue[gone[name]]]) / max(gain, 1e-12)
            if not best or ratio < value:
                best, value, saved = name, ratio, gain
        gone[best] += 1
        now -= saved
    return {name: tuple(sorted(queues[name][:count])) for name, count in gone.items() if count}
