"""What decides a plan: predicted losses and searches, on ResNet-20 (CIFAR-10).

    python benchmarks/search.py [--data-root DIR] [--quick] [--only scores,…]

Parts: `scores` (how well each predicted loss ranks single channels and whole plans by what they
really lose, and what the plans it chooses lose).
"""

from __future__ import annotations

import harness
import scores

PARTS = {"scores": scores.scores}


def main() -> None:
    """Run the parts asked for."""
    chosen = harness.options(__doc__ or "")
    rows = harness.Rows("search", chosen.quick)
    for name in chosen.only.split(",") if chosen.only else PARTS:
        PARTS[name](rows, chosen.quick)
        rows.save(name)


if __name__ == "__main__":
    main()
