"""Cross-layer equalization: one step for all channels of an activation, spent where it is needed.

An activation has one step for all its channels; a channel of small values has few levels of it.
Values are stored as `x_c / r_c` instead (:mod:`bitwright.network.scaling`), with

    r_c = (a_c / max a) ^ strength ,   a_c the largest |x_c| on calibration rows,

the geometric mean over the activations that share channel c. At strength 1 every channel uses all
levels: a step of its own for each, folded into the rows of the weights that make it and the
columns of those that read it. (Nagel et al., arXiv 1906.04721, equalize the weights' ranges, which
steps per channel make needless here; SmoothQuant, arXiv 2211.10438, has the strength.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitwright.network import Network, batches
from bitwright.network.scaling import Scaling, rescaled, scaling
from bitwright.quantize.activations import watch

#: smallest factor: a channel that hardly ever fires need not be blown up further
LEAST = 1 / 64


def equalized(network: Network, x: Tensor, strength: float = 1.0, *, chunk: int = 64) -> Network:
    """The network with its activations' channels at comparable ranges; the same function of `x`.

    Args:
        network: captured; left as it is.
        x: [n, ...] calibration rows.
        strength: 0 (nothing changes) to 1 (equal ranges).
        chunk: rows in a pass.
    """
    groups = scaling(network)
    return rescaled(network, groups, factors(network, groups, x, strength, chunk=chunk))


def factors(
    network: Network, groups: Scaling, x: Tensor, strength: float, *, chunk: int = 64
) -> np.ndarray:
    """r of every group of channels, float64 [groups.count], at most 1; arguments as above."""
    names = {e.name for e in network.edges} & groups.groups.keys()
    top: dict[str, Tensor] = {}

    def note(name: str, value: Tensor) -> None:
        axis = groups.axis[name] + 1
        found = value.detach().abs().movedim(axis, 0).flatten(1).amax(1)
        top[name] = torch.maximum(top[name], found) if name in top else found

    for rows in batches(x, chunk):
        watch(network, rows, names, note)
    total, count = np.zeros(groups.count), np.zeros(groups.count)
    for name, value in top.items():
        reach = value.double().numpy()
        share = reach / max(reach.max(), 1e-30)
        seen = share > 0  # a channel that never fires says nothing
        np.add.at(total, groups.groups[name][seen], np.log(share[seen]))
        np.add.at(count, groups.groups[name][seen], 1)
    found = np.exp(strength * total / np.maximum(count, 1))
    return np.where(groups.free, np.clip(found, LEAST, 1.0), 1.0)
