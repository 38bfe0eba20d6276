"""The Hessian of a loss in the network's input: what makes small changes of an image count.

Its operator norm as a penalty is the idea of Mustafa, Vandermeulen and Kloft (arXiv 2009.06571),
of which only the abstract is known to us; the rest is our reconstruction
(docs/decisions/0030-input-hessian.md).
"""

from bitwright.train.input_hessian.directions import Directions, Start
from bitwright.train.input_hessian.frobenius import frobenius_squared
from bitwright.train.input_hessian.gradient import gradient_norm, loss_and_gradient_norm
from bitwright.train.input_hessian.operator_norm import hessian_norm, loss_and_hessian_norm
from bitwright.train.input_hessian.products import Difference, Exact, GaussNewton
from bitwright.train.input_hessian.radius import logistic_radius, quadratic_radius

__all__ = [
    "Difference",
    "Directions",
    "Exact",
    "GaussNewton",
    "Start",
    "frobenius_squared",
    "gradient_norm",
    "hessian_norm",
    "logistic_radius",
    "loss_and_gradient_norm",
    "loss_and_hessian_norm",
    "quadratic_radius",
]
