"""Hessian-aware pruning (HAP, arXiv 2101.08940): channels and heads that are really removed."""

from bitwright.prune.compensate import compensated
from bitwright.prune.edit import Cut, Edit, masked, pruned
from bitwright.prune.gates import removal
from bitwright.prune.graph import Coupling, Group, Member, coupled
from bitwright.prune.scores import SCORES, scores
from bitwright.prune.select import select
from bitwright.prune.sizes import UNITS, Size, Sizes

__all__ = [
    "SCORES",
    "UNITS",
    "Coupling",
    "Cut",
    "Edit",
    "Group",
    "Member",
    "Size",
    "Sizes",
    "compensated",
    "coupled",
    "masked",
    "pruned",
    "removal",
    "scores",
    "select",
]
