"""Training with the operator norm of the input Hessian: is it right, affordable, and does it help?

    python benchmarks/input_hessian.py [--data-root DIR] [--quick] [--only exact,…]

Parts: `exact` (against dense eigenvalues), `cost` (processor time of a training step),
`tune-mnist`, `tune-fashion` (forms and strengths of every penalty, one seed, on validation images),
`mnist`, `fashion` (three other seeds on test images under AutoPGD, both losses, L2 and L∞),
`frontier-mnist`, `frontier-fashion` (all strengths on the three seeds), `masking` (black-box and
transferred attacks), `radius` (predicted against smallest attack found), `quantized` (2 to 4 bits
after training, and fine-tuning at 2 bits).

Attacks are those of the Adversarial Robustness Toolbox: `pip install 'bitwright[robust]'`.
Fashion-MNIST is read from the Debian package `dataset-fashion-mnist`. Trained networks are kept in
`build/input_hessian`, so that a run that was stopped goes on.
"""

from __future__ import annotations

import harness
import input_hessian_checks as checks
import input_hessian_parts as parts
from input_hessian_quantized import quantized
from input_hessian_radius import radius

PARTS = {
    "exact": checks.exact,
    "cost": checks.cost,
    "tune-mnist": parts.tune("mnist"),
    "tune-fashion": parts.tune("fashion"),
    "mnist": parts.robust("mnist"),
    "fashion": parts.robust("fashion"),
    "frontier-mnist": parts.frontier("mnist"),
    "frontier-fashion": parts.frontier("fashion"),
    "masking": parts.masking,
    "radius": radius,
    "quantized": quantized,
}

if __name__ == "__main__":
    harness.run("input_hessian", __doc__ or "", PARTS)
