"""Adaptive loss-aware multi-bit networks (ALQ): weights as few signed bases, trained as such."""

from bitwright.multibit.artefact import load
from bitwright.multibit.binary import BinaryLinear
from bitwright.multibit.files import convert
from bitwright.multibit.gauss_newton import curvatures
from bitwright.multibit.net import Multibit, float_weights, prepare
from bitwright.multibit.steps import LossAware
from bitwright.multibit.stored import Stored
from bitwright.multibit.straight import StraightThrough
from bitwright.multibit.train import Recipe, train

__all__ = [
    "BinaryLinear",
    "LossAware",
    "Multibit",
    "Recipe",
    "Stored",
    "StraightThrough",
    "convert",
    "curvatures",
    "float_weights",
    "load",
    "prepare",
    "train",
]
