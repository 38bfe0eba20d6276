"""Training: what fine-tunes a quantized network, and a solver for convex heads."""

from bitwright.train.finetune import finetune
from bitwright.train.order import hawq_order, stages
from bitwright.train.saga import saga

__all__ = ["finetune", "hawq_order", "saga", "stages"]
