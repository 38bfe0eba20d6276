"""Degree-Quant: accuracy beside float and plain quantized training, its cost, bytes in inference.

    python benchmarks/degree_quant.py [--data-root DIR] [--quick] [--only cora,…]

Parts: `cora`, `citeseer` (GCN, GAT, GIN; ten seeds), `proteins`, `reddit` (GIN, folds of ten),
`speed` (processor time of a training step), `inference` (bytes against float on a graph of 10⁶
edges), `degree` (errors by in-degree, plotted), `mixed` (widths by layer and in-degree beside one
width for all). Every row has the same network, recipe and choice
of the epoch on validation data; none is tuned. `plain` is quantized training with ranges from least
to most and nobody protected; `masks off` is ours but for the masks. Every training's answer is
kept in `build/degree_quant`, so that a run that was stopped goes on. Where time is short,
`$BITWRIGHT_REDDIT_EPOCHS` (30) may be fewer, the same for every row.
"""

from __future__ import annotations

import harness
from degree_quant_accuracy import graphs, nodes
from degree_quant_costs import degree, inference, speed
from degree_quant_mixed import mixed

PARTS = {
    "cora": nodes("cora"),
    "citeseer": nodes("citeseer"),
    "speed": speed,
    "inference": inference,
    "degree": degree,
    "mixed": mixed,
    "proteins": graphs("proteins", "PROTEINS.txt"),
    "reddit": graphs("reddit", "REDDITBINARY.txt.gz"),
}

if __name__ == "__main__":
    harness.run("degree_quant", __doc__ or "", PARTS)
