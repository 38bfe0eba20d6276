"""SAGA with arbitrary sampling: is it right, as fast as promised, and faster than its peers.

    python benchmarks/saga.py [--data-root DIR] [--quick] [--only unbiased,…] [--libsvm FILE]

Parts: `unbiased` (every sampling, by enumeration), `exact` (against Newton's method), `rate` (mean
Lyapunov values over 20 seeds against the promise, and passes over the size of sets), `importance`
(passes against uniform sampling where rows are unlike), `quartz` (the primal-dual method of Qu,
Richtárik and Zhang at equal passes), `clock` (time to a suboptimality against scikit-learn's
solvers; one thread, runs alternate), `refit` (ResNet-20 at 2 bits with a refitted head).

With `--libsvm FILE` another data set joins in `exact`, `importance` and `clock`.
"""

from __future__ import annotations

import os
import sys

import harness
import saga_parts

if __name__ == "__main__":
    if "--libsvm" in sys.argv:
        at = sys.argv.index("--libsvm")
        os.environ["BITWRIGHT_LIBSVM"] = sys.argv.pop(at + 1)
        del sys.argv[at]
    harness.run("saga", __doc__ or "", saga_parts.PARTS)
