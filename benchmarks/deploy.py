"""What the exported files weigh, stand and do: `python benchmarks/deploy.py --only PART`.

Each part is a function in a file of its own, `deploy_PART.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import deploy_bytes
import deploy_fuzz
import harness

PARTS: dict[str, Callable[[harness.Rows, bool], None]] = {
    "bytes": deploy_bytes.measure,
    "fuzz": deploy_fuzz.measure,
}

if __name__ == "__main__":
    harness.run("deploy", __doc__, PARTS)
