"""What decides a plan: predicted losses and searches.

    python benchmarks/search.py [--data-root DIR] [--quick] [--only scores,…]

Parts: `scores` (how well each predicted loss ranks single channels and whole plans by what they
really lose, and what the plans it chooses lose, on ResNet-20), `allocators` (every one against
enumeration, the knapsack on 100,000 channels), `equal_bytes` (channels, layers and uniform at equal
bits of weights on four networks, by two scores), `feedback` (the same, rounded with error
feedback), `detector` (FastestDet at 4 bits, mixed beside uniform widths of weights and activations;
needs pycocotools), `searches` (CW-HAWQ beside the other searches, logs kept in `build/search`),
`bops` (weights and activations under one bound on bit operations).
"""

from __future__ import annotations

import allocators
import detector
import equal_bytes
import harness
import scores
import searches

PARTS = {
    "scores": scores.scores,
    "allocators": allocators.allocators,
    "equal_bytes": equal_bytes.equal_bytes,
    "feedback": equal_bytes.feedback,
    "detector": detector.detector,
    "searches": searches.searches,
    "bops": searches.bops,
}


if __name__ == "__main__":
    harness.run("search", __doc__ or "", PARTS)
