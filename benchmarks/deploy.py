"""Deployment: files as small as they claim, as fast as the runtime's own, and proven equal.

    python benchmarks/deploy.py [--data-root DIR] [--quick] [--only runtime,…]

Parts: `runtime` (bytes of the ONNX file, fused layers, latency and load time beside float and the
runtime's own static int8), `equal` (reference, loaded artefact and runtime, tensor by tensor, on
all test images).
"""

from __future__ import annotations

import deploy_equal
import deploy_runtime
import harness

PARTS = {"runtime": deploy_runtime.runtime, "equal": deploy_equal.equal}


if __name__ == "__main__":
    harness.run("deploy", __doc__ or "", PARTS)
