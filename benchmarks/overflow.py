"""Accumulators narrower than 32 bits: guarantees, data, real kernels.

    python benchmarks/overflow.py [--data-root DIR] [--quick] [--only guarantee,…]

Parts: `guarantee` (adversarial and random inputs through every layer of a guaranteed ResNet-20,
against int64), `violation` (what a bound broken on purpose says), `data KIND` (KL of ResNet-20 with
accumulators that do not overflow on data, uniform 6 bits beside it), `rules` (OAQ's rule and the
released one), `curve BITS` (KL against bits of activations and of the accumulator, guaranteed),
`figure` (draws what was kept of them to docs/overflow.svg), `trained` (a guaranteed network
fine-tuned), `runtime NETWORK` (the kernels of a stock ONNX Runtime on a processor without VNNI: a
virtual one where this one has it and valgrind is there), `emulated NETWORK` (their pairs on all
test images), `kernels` (numba, int16 against int32 accumulation), `detector` (FastestDet's mAP50;
needs pycocotools).
"""

from __future__ import annotations

import sys
from functools import partial

import harness
import overflow_data
import overflow_detector
import overflow_guarantee
import overflow_kernels
import overflow_runtime

NETWORKS = ("ResNet-20", "MobileNetV2")
PARTS = {
    "violation": overflow_guarantee.violation,
    "guarantee": overflow_guarantee.guarantee,
    **{f"data {k}": partial(overflow_data.data, k) for k in ("wrap", "saturate", "pairs")},
    "curve by curvature": partial(overflow_guarantee.curve, None),
    **{f"curve {b}": partial(overflow_guarantee.curve, b) for b in overflow_guarantee.ACTIVATIONS},
    "kernels": overflow_kernels.kernels,
    "detector": overflow_detector.detector,
    **{f"runtime {n}": partial(overflow_runtime.runtime, n) for n in NETWORKS},
    **{f"emulated {n}": partial(overflow_runtime.emulated, n) for n in NETWORKS},
    "trained": overflow_guarantee.trained,
    "rules": overflow_data.rules,
    "figure": overflow_guarantee.figure,
}
#: a subset for `--quick`
QUICK = ("violation", "guarantee", "data wrap", "kernels", "runtime ResNet-20")


if __name__ == "__main__":
    quick = "--quick" in sys.argv and not any(a.startswith("--only") for a in sys.argv)
    harness.run("overflow", __doc__ or "", {k: PARTS[k] for k in QUICK} if quick else PARTS)
