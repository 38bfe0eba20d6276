"""What the scripts that run inside a peer's environment share: what they read, what they answer.

A script is run as `python -m peers.run_NAME FOLDER` with this folder's parent on the path. FOLDER
has `request.json`, `calibration.npy` and `judged.npy`; the script leaves `logits.npy` and
`answer.json` there. Nothing here imports bitwright, which those environments do not have.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: rows a step, where the batch does not matter to the result
BATCH = 64
#: name -> module of `benchmarks/` that builds it
NETWORKS = {
    "resnet20": "networks",
    "resnet44": "networks",
    "mobilenet_v2": "networks",
    "mcunet": "mcunet",
    "minilm": "language",
}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        network: a name in `NETWORKS`.
        weight_bits: mean over all weights of `layers`; the budget.
        activation_bits: None leaves activations in float.
        setting: the peer's own options.
        calibration, judged: [n, 3, h, w] or [n, tokens], as the network takes them.
    """

    network: str
    weight_bits: float
    activation_bits: int | None
    setting: dict[str, Any]
    calibration: np.ndarray
    judged: np.ndarray

    def batches(self, size: int = BATCH) -> Iterator[Tensor]:
        """The calibration rows; a setting `rows` takes as many of them, evenly."""
        wanted = self.setting.get("rows", len(self.calibration))
        chosen = np.linspace(0, len(self.calibration) - 1, wanted).round().astype(int)
        yield from torch.from_numpy(self.calibration[chosen]).split(size)


@dataclass(frozen=True)
class Quantized:
    """A network that a peer has made.

    Args:
        forward: rows to logits.
        widths: (weights, bits of each) of each quantized layer.
    """

    forward: Callable[[Tensor], Tensor]
    widths: list[tuple[int, float]]


def network(name: str) -> nn.Module:
    """The float network, in eval mode."""
    return getattr(importlib.import_module(NETWORKS[name]), name)()


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Those that all parties quantize."""
    kinds = (nn.Conv2d, nn.Linear, nn.Embedding)
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds)}


def size_bits(widths: Iterable[tuple[int, float]]) -> float:
    """Σ bits·weights; scales, zero points and biases are not in it."""
    return sum(count * bits for count, bits in widths)


def serve(name: str, version: str, quantize: Callable[[nn.Module, Request], Quantized]) -> None:
    """Answer the request in the folder that the command line names."""
    folder = Path(sys.argv[1])
    request = Request(
        **json.loads((folder / "request.json").read_text()),
        calibration=np.load(folder / "calibration.npy", mmap_mode="r", allow_pickle=False),
        judged=np.load(folder / "judged.npy", mmap_mode="r", allow_pickle=False),
    )
    torch.manual_seed(0)
    np.random.seed(0)
    model = network(request.network)
    weights = sum(layer.weight.numel() for layer in layers(model).values())
    begin, used = time.perf_counter(), time.process_time()
    made = quantize(model, request)
    seconds, processor = time.perf_counter() - begin, time.process_time() - used
    with torch.no_grad():
        rows = torch.from_numpy(np.array(request.judged)).split(BATCH)
        logits = torch.cat([made.forward(batch) for batch in rows]).numpy()
    np.save(folder / "logits.npy", logits)
    bits = size_bits(made.widths)
    answer = {
        "peer": name,
        "version": version,
        "torch": torch.__version__,
        "mean_bits": bits / weights,
        "bytes": bits / 8,
        "seconds": seconds,
        "processor_seconds": processor,
        "threads": torch.get_num_threads(),
        "widths": made.widths,
    }
    (folder / "answer.json").write_text(json.dumps(answer))
