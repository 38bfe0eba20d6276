"""Training: what fine-tunes a quantized network, and a solver for convex heads."""

from bitwright.train.finetune import Recipe, divergence, finetune
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
    "hawq_order",
    "head_of",
    "refit_head",
    "saga",
    "stages",
]
