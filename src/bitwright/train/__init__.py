"""Training: what fine-tunes a quantized network."""

from bitwright.train.finetune import finetune

__all__ = ["finetune"]
