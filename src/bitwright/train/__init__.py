"""Training: what fine-tunes a quantized network."""

from bitwright.train.finetune import finetune
from bitwright.train.order import hawq_order, stages

__all__ = ["finetune", "hawq_order", "stages"]
