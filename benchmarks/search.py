"""What decides a plan: predicted losses and searches, on ResNet-20 (CIFAR-10).

    python benchmarks/search.py [--data-root DIR] [--quick] [--only scores,…]

Parts: `scores` (how well each predicted loss ranks single channels and whole plans by what they
really lose, and what the plans it chooses lose).
"""

from __future__ import annotations

import harness
import scores

PARTS = {"scores": scores.scores}


if __name__ == "__main__":
    harness.run("search", __doc__ or "", PARTS)
