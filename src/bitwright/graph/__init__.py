"""Degree-Quant: quantized graph networks on PyTorch Geometric (the extra `graph`)."""

from bitwright.graph.data import load_graphs, load_nodes
from bitwright.graph.degree_quant import DegreeQuant
from bitwright.graph.nets import Form, build
from bitwright.graph.scheme import Scheme
from bitwright.graph.training import Recipe, train

__all__ = [
    "DegreeQuant", "Form", "Recipe", "Scheme", "build", "load_graphs", "load_nodes", "train",
]  # fmt: skip
