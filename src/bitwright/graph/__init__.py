"""Degree-Quant: quantized graph networks on PyTorch Geometric (the extra `graph`)."""

from bitwright.graph.data import load_graphs, load_nodes
from bitwright.graph.degree_quant import DegreeQuant
from bitwright.graph.mixed import mixed_widths
from bitwright.graph.nets import Form, build
from bitwright.graph.scheme import Scheme, Widths
from bitwright.graph.training import Recipe, train

__all__ = [
    "DegreeQuant", "Form", "Recipe", "Scheme", "Widths", "build", "load_graphs", "load_nodes",
    "mixed_widths", "train",
]  # fmt: skip
