"""Training: fine-tuning, distillation, penalties on the input Hessian, convex heads."""

from bitwright.train.distil import Recipe, divergence
from bitwright.train.finetune import finetune
from bitwright.train.finetune_float import finetune_float
from bitwright.train.head import Refit, head_of, refit_head
from bitwright.train.input_hessian import (
    Directions,
    frobenius_squared,
    gradient_norm,
    hessian_norm,
    loss_and_gradient_norm,
    loss_and_hessian_norm,
)
from bitwright.train.order import hawq_order, stages
from bitwright.train.saga import saga
from bitwright.train.trainable import Trainable

__all__ = [
    "Directions",
    "Recipe",
    "Refit",
    "Trainable",
    "divergence",
    "finetune",
    "finetune_float",
    "frobenius_squared",
    "gradient_norm",
    "hawq_order",
    "head_of",
    "hessian_norm",
    "loss_and_gradient_norm",
    "loss_and_hessian_norm",
    "refit_head",
    "saga",
    "stages",
]
