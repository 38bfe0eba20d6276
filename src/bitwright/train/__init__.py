"""Training: what fine-tunes a quantized or a pruned network, and a solver for convex heads."""

from bitwright.train.distil import Recipe, divergence
from bitwright.train.finetune import finetune
from bitwright.train.finetune_float import finetune_float
from bitwright.train.head import Refit, head_of, refit_head
from bitwright.train.order import hawq_order, stages
from bitwright.train.saga import saga
from bitwright.train.trainable import Trainable

__all__ = [
    "Recipe",
    "Refit",
    "Trainable",
    "divergence",
    "finetune",
    "finetune_float",
    "hawq_order",
    "head_of",
    "refit_head",
    "saga",
    "stages",
]
