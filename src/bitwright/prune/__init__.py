"""Hessian-aware pruning (HAP, arXiv 2101.08940): channels and heads that are really removed."""

from bitwright.prune.compensate import compensated
from bitwright.prune.edit import Cut, Edit, masked, pruned, spatial, to_json
from bitwright.prune.files import load, read_edit, save
from bitwright.prune.gates import removal
from bitwright.prune.graph import coupled
from bitwright.prune.groups import Coupling, Group, Member
from bitwright.prune.implant import Implanted, implantable
from bitwright.prune.mixed import Rows, mixed
from bitwright.prune.scores import SCORES, scores
from bitwright.prune.select import Selection, select
from bitwright.prune.shares import Trial, best_share
from bitwright.prune.sizes import UNITS, Size, Sizes

__all__ = [
    "SCORES",
    "UNITS",
    "Coupling",
    "Cut",
    "Edit",
    "Group",
    "Implanted",
    "Member",
    "Rows",
    "Selection",
    "Size",
    "Sizes",
    "Trial",
    "best_share",
    "compensated",
    "coupled",
    "implantable",
    "load",
    "masked",
    "mixed",
    "pruned",
    "read_edit",
    "removal",
    "save",
    "scores",
    "select",
    "spatial",
    "to_json",
]
