"""Multi-bit networks (ALQ): LeNet-5 on MNIST, and binary kernels beside float and int8.

Parts (`--only`): lenet, stretch, kernels. Every training keeps its state after each epoch in
`$BITWRIGHT_ALQ_CACHE` (default: the folder of temporary files), so that a killed part goes on.
MNIST comes from the data folder.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import harness
import networks
import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch.nn.functional as F
from harness import Rows
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bitwright.arith.multibit import sketch
from bitwright.deploy import runtime
from bitwright.multibit import Recipe, convert, prepare, train
from bitwright.multibit.files import disagreement
from bitwright.multibit.kernel import matrix, product
from bitwright.network import outputs
from bitwright.train.augment import shifted

CACHE = Path(os.environ.get("BITWRIGHT_ALQ_CACHE", tempfile.gettempdir()))
#: epochs that the float network is trained
FLOAT_EPOCHS = 4


def lenet5() -> nn.Module:
    """The LeNet-5 of the paper: 430,500 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def mnist(quick: bool) -> dict[str, Tensor]:
    """All 60,000 and 10,000 images; an eighth of the first in a quick run."""
    found = {}
    with np.load(networks.root() / "mnist" / "mnist.npz", allow_pickle=False) as file:
        for part in ("train", "test"):
            pixels = file[f"{part}_images"].astype(np.float32) / 255
            found[f"{part}_x"] = torch.from_numpy(pixels).reshape(-1, 1, 28, 28)
            found[f"{part}_y"] = torch.from_numpy(file[f"{part}_labels"].astype(np.int64))
    step = 8 if quick else 1
    return {k: v[::step] if k.startswith("train") else v for k, v in found.items()}


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    return shifted(x, 2, generator)


def float_lenet(arrays: dict[str, Tensor], quick: bool) -> nn.Module:
    """Trained here once, AdamW's cosine; kept in the cache."""
    path = CACHE / f"alq-lenet5{'-quick' if quick else ''}.safetensors"
    torch.manual_seed(0)
    model = lenet5()
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    x, y = arrays["train_x"], arrays["train_y"]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    total = FLOAT_EPOCHS * (len(x) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    generator = torch.Generator().manual_seed(0)
    for _ in range(FLOAT_EPOCHS):
        order = torch.randperm(len(x), generator=generator)[: len(x) // 128 * 128]
        for rows in order.split(128):
            loss = F.cross_entropy(model(moved(x[rows], generator)), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    save_file(model.state_dict(), path)
    return model.eval()


def accuracy(answers: Tensor, y: Tensor) -> float:
    return float((answers.argmax(1) == y).double().mean())


def lenet(rows: Rows, quick: bool) -> None:
    """At most 0.40 stored bits a weight and 22.7 KB at 99.1 % or more."""
    _lenet(rows, quick, 0.385, 0.40, 99.1)


def stretch(rows: Rows, quick: bool) -> None:
    """At most 0.25 bits at 99.0 % or more."""
    _lenet(rows, quick, 0.245, 0.25, 99.0)


def _lenet(rows: Rows, quick: bool, bits: float, most_bits: float, least: float) -> None:
    arrays = mnist(quick)
    model = float_lenet(arrays, quick)
    recipe = Recipe(bits=bits, loops=3, straight=3, final=1)
    if quick:
        recipe = Recipe(bits=bits, loops=2, straight=1, final=1)
    name = f"LeNet-5, MNIST, {bits} bits"
    path = CACHE / f"alq-lenet5-{bits}{'-quick' if quick else ''}.safetensors"
    net = prepare(model, arrays["train_x"][:2], size=50, most=4)
    history = train(net, arrays["train_x"], arrays["train_y"], recipe, augment=moved,
                    checkpoint=path, progress=lambda line: print(line, flush=True))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found = convert(net, folder)
        size = (Path(folder) / "model.safetensors").stat().st_size
        onnx = (Path(folder) / "model.onnx").stat().st_size
        off = disagreement(found, Path(folder) / "model.onnx", arrays["test_x"][:256])
    ours = 100 * accuracy(outputs(found.network.module, arrays["test_x"]), arrays["test_y"])
    with torch.no_grad():
        whole = torch.cat([model(x) for x in arrays["test_x"].split(500)])
    rows.add(f"bits a weight, {name}", found.average_bits, f"<= {most_bits}",
             found.average_bits <= most_bits)  # fmt: skip
    rows.add(f"bytes of the artefact, {name}", size, "<= 22,700", size <= 22700, onnx=onnx)
    rows.add(f"accuracy, {name}", ours, f">= {least}", ours >= least, "float",
             100 * accuracy(whole, arrays["test_y"]))  # fmt: skip
    rows.add(f"onnxruntime - artefact, {name}", off, "<= 1e-5", off <= 1e-5)
    rows.add(f"bits by epoch, {name}", None, bits=[round(h["bits"], 4) for h in history],
             what=[h["what"] for h in history])  # fmt: skip


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


if __name__ == "__main__":
    harness.run("alq", __doc__ or "", {"lenet": lenet, "stretch": stretch, "kernels": kernels})
