"""What decides a plan: predicted losses and searches.

    python benchmarks/search.py [--data-root DIR] [--quick] [--only scores,…]

Parts: `scores` (how well each predicted loss ranks single channels and whole plans by what they
really lose, and what the plans it chooses lose, on ResNet-20), `equal_bytes` (channels, layers and
uniform at equal bits of weights on four networks, by two scores).
"""

from __future__ import annotations

import equal_bytes
import harness
import scores

PARTS = {"scores": scores.scores, "equal_bytes": equal_bytes.equal_bytes}


if __name__ == "__main__":
    harness.run("search", __doc__ or "", PARTS)
