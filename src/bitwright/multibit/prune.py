"""Pruning in the α domain (ALQ, sec. 4.3, eq. 11-13): which coordinates the loss misses least.

Without coordinate i the quadratic model changes by

    f = −gᵢ αᵢ + ½ Hᵢ αᵢ² .

Of every layer the least share are candidates, so that no layer goes all at once; the candidates of
all layers are sorted together, and the least are removed. The released code reads the importances
of that second sort with places of the coordinates that are left, out of the list of all, so that
its order is wrong once a layer has holes; ours is sorted on (layer, place, importance) themselves.

Ours, beyond the paper: f is divided by the bits that the file is spared, n and 16 of the
coordinate, so that groups of different sizes compete fairly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bitwright.arith.multibit import Bases, tidied
from bitwright.multibit.net import Multibit
from bitwright.multibit.quadratic import Quadratic

#: of a coordinate in the file
ALPHA_BITS = 16


def importance(alpha: Tensor, model: Quadratic) -> Tensor:
    """f of every coordinate, of α's shape."""
    return -model.gradient * alpha + 0.5 * model.curvature * alpha.square()


def least(
    importances: Mapping[str, Tensor],
    there: Mapping[str, Tensor],
    savings: Mapping[str, int],
    spare_bits: float,
    share: float = 1.0,
) -> dict[str, Tensor]:
    """The coordinates to remove, bool of each layer's shape.

    Args:
        importances: f by layer, [G, I]; by what a removal saves, they are compared over layers.
        there: which coordinates exist.
        savings: bits that each removal of a layer saves.
        spare_bits: to save in all, or a little more: the last removal may pass it.
        share: of each layer's coordinates that may go at once, one at least.
    """
    keys, bits, places, owners = [], [], [], []
    names = list(importances)
    for which, name in enumerate(names):
        place = there[name].flatten().nonzero()[:, 0]
        key = importances[name].flatten()[place] / savings[name]
        count = min(len(place), max(1, int(share * len(place))))
        key, order = key.topk(count, largest=False)
        keys.append(key)
        places.append(place[order])
        owners.append(torch.full_like(order, which))
        bits.append(torch.full_like(key, savings[name]))
    order = torch.cat(keys).argsort(stable=True)
    spared = torch.cat(bits)[order].double().cumsum(0)
    chosen = order[: int((spared < spare_bits).sum()) + 1] if spare_bits > 0 else order[:0]
    owner, place = torch.cat(owners)[chosen], torch.cat(places)[chosen]
    found = {}
    for which, name in enumerate(names):
        gone = torch.zeros(importances[name].numel(), dtype=torch.bool)
        gone[place[owner == which]] = True
        found[name] = gone.reshape(importances[name].shape)
    return found


def prune(
    net: Multibit, models: Mapping[str, Quadratic], spare_bits: float, share: float = 1.0
) -> int:
    """Remove the least important coordinates of the net.

    Args:
        net: changed.
        models: of the coordinates, by layer.
        spare_bits, share: see :func:`least`.

    Returns:
        How many are gone.
    """
    alphas = {name: net[name].alpha for name in net.names}
    gone = least(
        {name: importance(a, models[name]).cpu() for name, a in alphas.items()},
        {name: (a > 0).cpu() for name, a in alphas.items()},
        {name: net[name].grouping.size + ALPHA_BITS for name in net.names},
        spare_bits,
        share,
    )
    for name, mask in gone.items():
        layer = net[name]
        kept = layer.alpha * ~mask.to(layer.alpha.device)
        layer.become(tidied(Bases(layer.codes, kept)))
    net.release()
    return sum(int(mask.sum()) for mask in gone.values())


def coordinate_bits(net: Multibit) -> int:
    """Bits of signs and coordinates: what removals save, without the counts."""
    layers = [net[name] for name in net.names]
    return sum(int((la.alpha > 0).sum()) * (la.grouping.size + ALPHA_BITS) for la in layers)
