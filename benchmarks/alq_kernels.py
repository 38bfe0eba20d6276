"""XNOR and popcount beside float and int8 products: part `kernels` of `alq.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import torch
from harness import Rows
from torch import Tensor

from bitwright.arith.multibit import sketch
from bitwright.deploy import runtime
from bitwright.multibit.kernel import matrix, product


def kernels(rows: Rows, quick: bool) -> None:
    """XNOR and popcount beside float and int8 products, one thread, in turns."""
    torch.set_num_threads(1)
    size = 512 if quick else 1024
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(size, size, generator=generator)
    for batch in (1, 16) if quick else (1, 16, 128):
        x = torch.randn(batch, size, generator=generator)
        integer = _integer_product(dense)
        bytes_ = x.mul(30).round().clamp(-127, 127).to(torch.int8).numpy()
        actions: dict[str, Callable[[], object]] = {
            "float": partial(torch.mm, x, dense.T),
            "int8": partial(integer.run, None, {"x": bytes_}),
        }
        for mine, theirs in ((1, 1), (2, 1), (2, 2)):
            weights = matrix(sketch(dense, mine), size)
            activations = sketch(x, theirs)
            actions[f"{mine} x {theirs} bases"] = partial(product, weights, activations, batch)
        times = _in_turns(actions, 5 if quick else 30)
        for name, spent in times.items():
            rows.add(f"ms, {size} x {size} by {batch} rows, {name}", 1e3 * spent, "", None, "float",
                     1e3 * times["float"], ratio=round(spent / times["float"], 2),
                     to_int8=round(spent / times["int8"], 2))  # fmt: skip


def _integer_product(dense: Tensor) -> ort.InferenceSession:
    codes = dense.mul(30).round().clamp(-127, 127).to(torch.int8).numpy()
    kind = onnx.TensorProto
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", kind.INT8, [None, len(codes)])],
        [onnx.helper.make_tensor_value_info("y", kind.INT32, None)],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(codes.T), "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 8
    return runtime.session(model.SerializeToString(), threads=1)


def _in_turns(actions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least processor time of each action, seconds; turns, because the machine is shared."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():  # compiled, and warm
        action()
    for _ in range(repeats):
        for name, action in actions.items():
            begun = time.process_time()
            for _ in range(3):
                action()
            times[name].append((time.process_time() - begun) / 3)
    return {name: min(found) for name, found in times.items()}
