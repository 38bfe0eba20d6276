"""Second-order sensitivity per channel: one method, one file, each estimate with its errors."""

from bitwright.curvature.compare import compare
from bitwright.curvature.estimate import Estimate, Sensitivity, load, make_key, save
from bitwright.curvature.gauss_newton import gauss_newton
from bitwright.curvature.hutchinson import hutchinson
from bitwright.curvature.shards import unsharded
from bitwright.curvature.traces import traces

__all__ = [
    "Estimate",
    "Sensitivity",
    "compare",
    "gauss_newton",
    "hutchinson",
    "load",
    "make_key",
    "save",
    "traces",
    "unsharded",
]
