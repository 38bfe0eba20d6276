"""Brevitas: uniform bits per channel, then error feedback or learned rounding; see `child`.

The steps and their order are those of Brevitas' own script for networks of images
(`brevitas_examples/imagenet_classification/ptq/ptq_evaluate.py`), whose functions are called.

Settings:
    backend: `fx` (one grid an edge, as the graph has them) or `layerwise` (one at each layer's
        input, sums in float; the only one without grids of activations).
    rounding: `nearest`, `gptq`, `gpfq`, `qronos`, or `learned`.
    first, last, depthwise: bits of the first and of the last layer and of depthwise convolutions;
        None: those of the others.
    scale: `stats` or `mse`, how a channel's scale is found.
    kind: `sym` or `asym` grids of weights.
    equalize: iterations of cross-layer equalization.
    relu6: clipping at 6 is kept, which needs `layerwise` and no equalization.
    act_order: error feedback takes columns by their size.
    iterations, rate, batch: of learned rounding; `learned_scale` the rate of the scales, 0 for
        none.
    act_kind, percentile, act_scale: of activations.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from brevitas.core.function_wrapper.learned_round import LearnedRoundSte
from brevitas.fx import symbolic_trace
from brevitas.graph.quantize import preprocess_for_quantize
from brevitas.inject import value
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from brevitas_examples.common.learned_round import learned_round_args as arguments
from brevitas_examples.common.learned_round.learned_round_method import LearnedRoundArgs
from brevitas_examples.common.learned_round.learned_round_trainer import (
    LearnedRoundTrainer,
    get_blocks,
)
from brevitas_examples.imagenet_classification.ptq import learned_round_utils as vision
from brevitas_examples.imagenet_classification.ptq import ptq_common as ptq
from peers import child
from torch import Tensor, nn
from torch.nn import functional as F

DEFAULTS: dict[str, Any] = {
    "backend": "fx",
    "rounding": "gptq",
    "first": 8,
    "last": 8,
    "depthwise": None,
    "scale": "stats",
    "kind": "sym",
    "equalize": 0,
    "relu6": False,
    "act_order": False,
    "iterations": 1000,
    "rate": 1e-3,
    "batch": 32,
    "learned_scale": 0.0,
    "act_kind": "sym",
    "act_scale": "stats",
    "percentile": 99.999,
}


class Rows:
    """The calibration rows as pairs with labels that nothing reads; a loader that starts anew."""

    def __init__(self, request: child.Request) -> None:
        self.request = request

    def __iter__(self):
        return ((batch, torch.zeros(len(batch))) for batch in self.request.batches())

    def __len__(self) -> int:
        return len(list(self.request.batches()))


def traced(model: nn.Module) -> nn.Module:
    """The network as a graph, its last pooling in the form that Brevitas can make a module of."""
    found = symbolic_trace(model)
    for node in found.graph.nodes:
        if node.target in (F.avg_pool2d, F.adaptive_avg_pool2d):
            node.target = F.adaptive_avg_pool2d
            node.args, node.kwargs = node.args[:1], {"output_size": 1}
    found.graph.eliminate_dead_code()
    found.recompile()
    return found


def embeddings(model: nn.Module) -> list[nn.Embedding]:
    """Layers that Brevitas leaves in float."""
    return [m for m in model.modules() if isinstance(m, nn.Embedding)]


class Ids(nn.Module):
    """A model of tokens behind Brevitas' loops, which make every input float."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids.long())


@torch.no_grad()
def embed(model: nn.Module, bits: int) -> None:
    """Each token's row to the nearest level of a grid from its least to its largest value."""
    for layer in embeddings(model):
        low, high = layer.weight.amin(1, keepdim=True), layer.weight.amax(1, keepdim=True)
        step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
        layer.weight.copy_(low + step * ((layer.weight - low) / step).round())


def quantized(model: nn.Module, request: child.Request, setting: dict[str, Any]) -> nn.Module:
    """The network with Brevitas' layers, before any calibration."""
    body = round(request.weight_bits)
    if embeddings(model):  # nothing to fold or to equalize
        embed(model, body)
        model = Ids(model)
    else:
        model = preprocess_for_quantize(
            traced(model),
            trace_model=False,
            equalize_iters=setting["equalize"],
            relu6_to_relu=not setting["relu6"],
        )

    @value
    def bits(module: nn.Module) -> int:
        # the ends are recognized as Brevitas' own script does it
        if isinstance(module, nn.Linear):
            return setting["last"] or body
        if module.in_channels == 3:
            return setting["first"] or body
        return (setting["depthwise"] or body) if module.groups > 1 else body

    maps = ptq.create_quant_maps(
        dtype=torch.float32,
        bias_bit_width=None if request.activation_bits is None else 32,
        weight_bit_width=bits,
        weight_param_method=setting["scale"],
        weight_scale_type="float_scale",
        weight_quant_type=setting["kind"],
        weight_quant_granularity="per_channel",
        weight_narrow_range=False,
        weight_quant_format="int",
        act_quant_format="int",
        act_bit_width=request.activation_bits,
        act_scale_type="float_scale",
        act_scale_computation_type="static",
        act_param_method=setting["act_scale"],
        act_quant_type=setting["act_kind"],
        act_quant_granularity="per_tensor",
        act_quant_percentile=setting["percentile"],
    )
    layer, layerwise, act, identity = maps
    if setting["backend"] == "layerwise" or request.activation_bits is None:
        return ptq.QUANTIZE_MAP["layerwise"](model, compute_layer_map=layerwise)
    return ptq.QUANTIZE_MAP["fx"](
        model, compute_layer_map=layer, quant_act_map=act, quant_identity_map=identity
    )


def learn(model: nn.Module, rows: Rows, setting: dict[str, Any]) -> None:
    """Learned rounding layer by layer: AdaRound's sigmoid and regularizer, in float32."""
    iterations = setting["iterations"]
    optimizers = [arguments.OptimizerArgs("learned_round", "Adam", setting["rate"], {})]
    if setting["learned_scale"]:
        optimizers.append(arguments.OptimizerArgs("scales", "Adam", setting["learned_scale"], {}))
    training = arguments.TrainingArgs(
        optimizers_args=optimizers,
        batch_size=setting["batch"],
        iters=iterations,
        losses_args=[
            arguments.LossArgs("round_reg", {"max_count": iterations}),
            arguments.LossArgs("mse", {"reduction": "none", "dim": 1}),
        ],
        use_best_model=False,
        use_amp=False,
    )
    handler = arguments.HandlerSpec(
        "learned_round", LearnedRoundArgs("hard_sigmoid", learned_round_kwargs=None)
    )
    LearnedRoundTrainer(arguments.TrainerConfig(training, [handler])).train(
        model=model,
        model_forward=vision.vision_forward,
        block_forward=vision.vision_block_forward,
        data_loader=rows,
        cache=vision.CacheVision(),
        get_blocks_fn=lambda m: get_blocks(m, vision.is_layer),
        keep_gpu=True,
    )
    for module in model.modules():
        if isinstance(module, LearnedRoundSte):
            module.eval()  # rounds for good


def quantize(model: nn.Module, request: child.Request) -> child.Quantized:
    """As `ptq_evaluate` goes about it."""
    setting = DEFAULTS | request.setting
    rows = Rows(request)
    made = quantized(model, request, setting).eval()
    with torch.no_grad():
        made(next(iter(rows))[0])
    if request.activation_bits is not None:
        ptq.calibrate(rows, made)
    order = setting["act_order"]
    match setting["rounding"]:
        case "gptq":
            acts = request.activation_bits is not None
            ptq.apply_gptq(rows, made, act_order=order, use_quant_activations=acts)
        case "gpfq":
            ptq.apply_gpfq(rows, made, act_order=order)
        case "qronos":
            ptq.apply_qronos(made, rows, act_order=order)
        case "learned":
            learn(made, rows, setting)
    ptq.apply_bias_correction(rows, made)
    widths = [
        (layer.weight.numel(), float(layer.weight_quant.bit_width()))
        for layer in made.modules()
        if isinstance(layer, QuantWeightBiasInputOutputLayer)
    ] + [(layer.weight.numel(), float(round(request.weight_bits))) for layer in embeddings(made)]

    def forward(batch: Tensor) -> Tensor:
        found = made(batch)
        return found if isinstance(found, Tensor) else found.value

    return child.Quantized(forward, widths)


if __name__ == "__main__":
    from importlib.metadata import version

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child.serve("Brevitas", version("brevitas"), quantize)
