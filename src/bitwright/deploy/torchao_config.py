"""torchao's configuration of Linear layers, each with the bits that the plan gives it.

`torchao.json` is what `torchao.core.config.config_to_dict` writes of a `FqnToConfig`; so

    config = config_from_dict(json.load(open("torchao.json")))
    quantize_(model, config, filter_fn=None)

quantizes the float model by torchao's own rounding, one scale a channel, with
`IntxWeightOnlyConfig`. It has one width a layer: a layer whose channels differ gets the mean of
theirs, rounded up, which for a plan by layers is the plan itself.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bitwright.deploy.written import Written
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.quantize import Quantized


def write(quantized: Quantized, folder: Path) -> Written:
    """Write `torchao.json`.

    Raises:
        BitwrightError: the network has no Linear layer.
    """
    config, mixed, others = {}, 0, []
    for layer in quantized.network.layers:
        if layer.kind != "linear":
            others.append(layer.name)
            continue
        bits = quantized.layers[layer.name].grid.bits.double()
        mixed += int(bits.min() != bits.max())
        # a module by its name; a weight that is not called `weight`, by its own
        config[layer.name] = _entry(math.ceil(float(bits.mean())))
    if not config:
        raise BitwrightError(
            "torchao's weight-only configuration is of Linear layers, here is none"
        )
    content = {
        "_type": "FqnToConfig",
        "_version": 1,
        "_data": {"fqn_to_config": config, "module_fqn_to_config": config},
    }
    notes = ["the configuration has widths alone: torchao rounds the float model's weights itself"]
    if mixed:
        notes.append(
            f"{mixed} of {len(config)} layers have channels of several widths, torchao one: their "
            "mean, rounded up"
        )
    if others:
        notes.append(f"not of Linear layers, left in float: {', '.join(others)}")
    file = put(folder / "torchao.json", json.dumps(content, indent=1).encode())
    return Written((file,), tuple(notes))


def _entry(bits: int) -> dict[str, Any]:
    """`IntxWeightOnlyConfig` of a width, symmetric, one scale a channel."""

    def named(kind: str, value: str) -> dict[str, str]:
        return {"_type": kind, "_data": value}

    return {
        "_type": "IntxWeightOnlyConfig",
        "_version": 2,
        "_data": {
            "weight_dtype": named("torch.dtype", f"int{bits}"),
            "granularity": {"_type": "PerAxis", "_version": 1, "_data": {"axis": 0}},
            "mapping_type": named("MappingType", "SYMMETRIC"),
            "scale_dtype": None,
            "intx_packing_format": named("IntxPackingFormat", "UNPACKED_TO_INT8"),
            "intx_choose_qparams_algorithm": named("IntxChooseQParamsAlgorithm", "AFFINE"),
        },
    }
