"""SAGA with arbitrary sampling: is it right, as fast as promised, and faster than its peers.

    python benchmarks/saga.py [--data-root DIR] [--quick] [--only unbiased,…]

Parts: `unbiased` (every sampling, by enumeration), `exact` (against Newton's method), `rate` (mean
Lyapunov values over 20 seeds against the promise, and passes over the size of sets), `importance`
(passes against uniform sampling where rows are unlike), `quartz` (the primal-dual method of Qu,
Richtárik and Zhang at equal passes), `clock` (time to a suboptimality against scikit-learn's
solvers; one thread, runs alternate).
"""

from __future__ import annotations

import harness
import saga_parts

if __name__ == "__main__":
    harness.run("saga", __doc__ or "", saga_parts.PARTS)
