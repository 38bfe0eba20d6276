"""A stock ONNX Runtime without VNNI: its accumulators, u8 × s8, against exact integers.

Every layer's inputs on test images, cut out as the kernel sees them, go through MatMulInteger: the
matrix product behind QLinearConv, with int32 results. Processors without VNNI add pairs of
products in 16 bits and clip. Where this processor has VNNI the products are exact whatever the
weights are; valgrind's virtual processor has AVX2 and no VNNI, so the same stock runtime takes its
saturating kernels there (some images: it is fifty times slower). Depthwise convolutions are left
out, whose kernels do not add pairs. On all test images the pairs are emulated, product by product.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
import overflow_base
import torch
from overflow_base import Case

from bitwright import overflow, quantize
from bitwright.deploy.integer import IntegerNetwork
from bitwright.overflow import Accumulator
from bitwright.overflow.count import in_kernel_order, kernel_order, layer_inputs
from bitwright.quantize import Quantized
from bitwright.quantize.saturation import is_depthwise

#: images in the runtime: a virtual processor takes a second and more for each
IMAGES = {"ResNet-20": 8, "MobileNetV2": 2}

#: what runs there: numpy and the runtime alone, as a virtual processor is slow to import more
CHILD = """
import sys
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto as T, helper as h
given, found = np.load(sys.argv[1]), {}
options = ort.SessionOptions()
options.intra_op_num_threads = 1
for key in [k[1:] for k in given.files if k[0] == "x"]:
    x, w = given["x" + key], given["w" + key]
    info = h.make_tensor_value_info
    weight = h.make_tensor("w", T.INT8, w.shape, w.tobytes(), raw=True)
    graph = h.make_graph(
        [h.make_node("MatMulInteger", ["x", "w"], ["y"])], "g",
        [info("x", T.UINT8, x.shape)], [info("y", T.INT32, [len(x), w.shape[1]])], [weight],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 13)], ir_version=8)
    live = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found[key] = live.run(None, {"x": x})[0]
np.savez(sys.argv[2], **found)
"""


def has_vnni() -> bool:
    """Whether this processor multiplies and adds four bytes at once."""
    path = Path("/proc/cpuinfo")
    flags = path.read_text() if path.is_file() else ""
    return "avx512_vnni" in flags or "avx_vnni" in flags


def products(quantized: Quantized, x: torch.Tensor) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each layer without depthwise kernels multiplies: uint8 [sums, K] and int8 [K, rows]."""
    given = overflow.operands(quantized, Accumulator(16, "pairs"))
    found = {}
    for layer, node, stored in layer_inputs(IntegerNetwork(quantized), x):
        if is_depthwise(layer):
            continue
        matrix = in_kernel_order(given[layer.name]).numpy().astype(np.int8)
        size = layer.rows // layer.groups
        for group, columns in enumerate(kernel_order(layer, node, stored.q - stored.grid.zero)):
            inside = (columns + stored.grid.zero).numpy().astype(np.uint8)
            rows = matrix[group * size : (group + 1) * size]
            found[f"{node.name}-{group}"] = inside, np.ascontiguousarray(rows.T)
    return found


def mismatches(given: dict[str, tuple[np.ndarray, np.ndarray]], virtual: bool) -> tuple[int, int]:
    """Accumulators of the runtime that differ from exact integers, and how many there are."""
    with tempfile.TemporaryDirectory() as folder:
        before, after, code = (Path(folder) / n for n in ("given.npz", "found.npz", "child.py"))
        code.write_text(CHILD)
        arrays = {}
        for i, (x, w) in enumerate(given.values()):
            arrays |= {f"x{i}": x, f"w{i}": w}
        np.savez(before, **arrays)
        command = [sys.executable, str(code), str(before), str(after)]
        if virtual:
            command = ["valgrind", "--tool=none", "-q", *command]
        clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        subprocess.run(command, env=clean | {"PYTHONMALLOC": "malloc"}, check=True)
        wrong = total = 0
        with np.load(after) as found:
            for i, (x, w) in enumerate(given.values()):
                exact = torch.from_numpy(x).double() @ torch.from_numpy(w).double()
                wrong += int((found[str(i)] != exact.numpy()).sum())
                total += exact.numel()
        return wrong, total


def networks(quick: bool, name: str) -> tuple[Case, Quantized, Quantized]:
    """A network, plain with 8 bits, and with pairs that cannot saturate."""
    case = {"ResNet-20": overflow_base.resnet20, "MobileNetV2": overflow_base.mobilenet}[name](
        quick
    )
    edges = case.edges()
    plain = case.correct(edges)(case.rounded())
    layers = quantize.narrowed(case.network, case.rounded(), edges)
    safe = case.correct(edges)(layers)
    overflow.require(safe, Accumulator(16, "pairs"))
    return case, plain, safe


def runtime(name: str, rows: harness.Rows, quick: bool) -> None:
    """Plain 8 bits and the safe network in the runtime, on some images."""
    virtual = has_vnni() and shutil.which("valgrind") is not None
    if has_vnni() and not virtual:
        rows.add(
            f"onnxruntime without VNNI, {name}: this processor has VNNI, valgrind is not here", 0
        )
        return
    where = "valgrind's processor without VNNI" if virtual else "this processor without VNNI"
    case, plain, safe = networks(quick, name)
    x = case.test[: 1 if quick else IMAGES[name]]
    wrong, total = mismatches(products(safe, x), virtual)
    before, _ = mismatches(products(plain, x), virtual)
    rows.add(
        f"accumulators that differ from exact integers, onnxruntime on {where}, {name}, "
        f"{len(x)} images, pairs safe by theorem",
        wrong,
        "= 0, where plain 8-bit differs",
        wrong == 0 and before > 0,
        "plain 8-bit",
        before,
        accumulators=total,
    )


def emulated(name: str, rows: harness.Rows, quick: bool) -> None:
    """The same with pairs emulated, on all test images."""
    case, plain, safe = networks(quick, name)
    counts = {
        key: overflow.overflows(q, case.test, Accumulator(16, "pairs"), chunk=16)
        for key, q in (("safe", safe), ("plain", plain))
    }
    wrong, before = (sum(c.total for c in counts[k].values()) for k in ("safe", "plain"))
    why = "the processor has VNNI" if has_vnni() else "beside the runtime"
    rows.add(
        f"accumulators with a saturated pair, emulated ({why}), {name}, all {len(case.test)} test "
        "images, pairs safe by theorem",
        wrong,
        "= 0, where plain 8-bit has some",
        wrong == 0 and before > 0,
        "plain 8-bit",
        before,
        accumulators=sum(c.sums * len(c.over) for c in counts["safe"].values()),
    )
