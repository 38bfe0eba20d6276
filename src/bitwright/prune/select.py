"""Which units go: the global order of HAP (arXiv 2101.08940, section 3.2), under any budget.

Units of all layers are taken in the order of `score / what its removal saves`, each layer's by
rising score; what a unit saves is counted anew after every one, since channels removed on one side
of a layer make those on the other side cheaper. No layer falls below its floor (HAP keeps 5 %). Of
those taken, the last and most sensitive share get implants, the others are removed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from bitwright.errors import BitwrightError
from bitwright.prune.sizes import Sizes

Units = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Selection:
    """Units to remove and units to give implants, by group; groups without any are left out."""

    removed: Units
    implanted: Units

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """How many of each."""
        return (
            {name: len(units) for name, units in self.removed.items()},
            {name: len(units) for name, units in self.implanted.items()},
        )


def select(
    sizes: Sizes,
    scores: Mapping[str, np.ndarray],
    bound: float,
    unit: str = "parameters",
    *,
    floor: float = 0.05,
    implant: float = 0.0,
    rank: int = 0,
    implantable: Collection[str] = (),
    multiple: int = 1,
) -> Selection:
    """Units to take until the model's size is within the bound.

    Args:
        sizes: of the model; scores: group name -> predicted loss of each unit, [units].
        bound: on `unit`, one of :data:`bitwright.prune.sizes.UNITS`.
        floor: share of a group's units that are not removed, one at least.
        implant: share of the units taken, the most sensitive, that get implants of `rank`.
        implantable: names of the groups whose units can.
        multiple: of what stays in groups of more units than that: runtimes compute channels in
            blocks, and part of one takes the time of a whole (16 with AVX-512, 8 with AVX2).

    Raises:
        BitwrightError: even the floors are above the bound; the least that can be had is named.
    """
    if not 0 <= floor <= 1:
        raise BitwrightError(f"the floor must be 0 to 1, not {floor}")
    if not 0 <= implant < 1:
        raise BitwrightError(f"the share of implants must be 0 or more and below 1, not {implant}")
    queues = {name: np.argsort(values, kind="stable") for name, values in scores.items()}
    if multiple < 1:
        raise BitwrightError(f"channels stay in multiples of 1 or more, not {multiple}")
    blocks = {name: multiple if len(q) > multiple else 1 for name, q in queues.items()}
    most = {name: _removable(len(q), floor, blocks[name]) for name, q in queues.items()}
    smallest = sizes.of(most)[unit]
    if smallest > bound:
        raise BitwrightError(
            f"the floors of the layers leave {smallest:,.0f} {unit} of {sizes.whole[unit]:,.0f}, "
            f"more than the {bound:,.0f} asked for; keep {smallest / sizes.whole[unit]:.1%} or "
            "more, or lower the floor"
        )
    gone = dict.fromkeys(queues, 0)
    taken: list[tuple[str, int]] = []
    while True:
        found = _split(taken, implant, implantable)
        if sizes.of(*found.counts(), rank)[unit] <= bound:
            return found
        best, value, units = "", math.inf, np.zeros(0, dtype=np.int64)
        for name, queue in queues.items():
            if gone[name] >= most[name]:
                continue
            some = queue[gone[name] : gone[name] + _next(len(queue), gone[name], blocks[name])]
            gain = sizes.saved(gone, name, unit) * len(some)
            ratio = float(scores[name][some].sum()) / max(gain, 1e-12)
            if not best or ratio < value:
                best, value, units = name, ratio, some
        if not best:
            implant = implant / 2 if implant > 0.01 else 0.0  # fewer implants, more removed
            continue
        taken += [(best, int(each)) for each in units]
        gone[best] += len(units)


def _next(count: int, gone: int, block: int) -> int:
    """How many units go at once, so that what stays is a multiple of the block."""
    return (count - gone) % block or block


def _removable(count: int, floor: float, block: int) -> int:
    """How many units of a group may go at most."""
    least = max(1, math.ceil(floor * count))
    return max(0, count - math.ceil(least / block) * block)


def _split(
    taken: list[tuple[str, int]],
    implant: float,
    implantable: Collection[str],
) -> Selection:
    """The first are removed, the last get implants where they can."""
    first = len(taken) - int(implant * len(taken))
    removed: dict[str, list[int]] = {}
    implanted: dict[str, list[int]] = {}
    for i, (name, unit) in enumerate(taken):
        kind = implanted if i >= first and name in implantable else removed
        kind.setdefault(name, []).append(unit)
    return Selection(_sorted(removed), _sorted(implanted))


def _sorted(units: Mapping[str, list[int]]) -> Units:
    return {name: tuple(sorted(some)) for name, some in units.items()}
