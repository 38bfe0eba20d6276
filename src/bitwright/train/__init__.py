"""Training: what fine-tunes a quantized network."""

from bitwright.train.finetune import divergence, finetune
from bitwright.train.order import hawq_order, stages
from bitwright.train.trainable import Trainable

__all__ = ["Trainable", "divergence", "finetune", "hawq_order", "stages"]
