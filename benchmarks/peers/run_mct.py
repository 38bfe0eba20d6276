"""Sony's MCT: bits a layer within bytes, then gradient rounding; see `child`.

The platform description is MCT's own for IMX500 (v1.0) with other widths, made as its `get_tpc`
says to make variants of it: weights symmetric per channel; activations none, or of one width.

Settings:
    widths: that a layer may have; IMX500's are 2, 4 and 8.
    hessian: the sensitivity of layers weighted by MCT's Hessian scores.
    images: that the sensitivity is measured on.
    epochs: of gradient post-training quantization over the calibration rows; 0: none, thresholds by
        least squares alone.
    batch: rows of a step of that.
    loss: of that, `attention` (weighted by sample and layer: MCT's default, and slow),
        `hessian` (weighted by layer), or `plain`.
    act_method: grids of activations, `POWER_OF_TWO` (IMX500's), `SYMMETRIC` or `UNIFORM`.
    correct: bias correction after the second moment, too.
"""

# ruff: noqa: E402
from __future__ import annotations

import sys
import types
import warnings
from typing import Any

# MCT's custom layers ask for torchvision, whose CPU build is not to be had everywhere; they need it
# for the suppression of boxes alone, so an empty module stands for it while they are imported
sys.modules["torchvision"] = types.ModuleType("torchvision")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # "Failed to retrieve 'torchvision' version"
    import edgemdt_cl.pytorch  # noqa: F401
del sys.modules["torchvision"]

import model_compression_toolkit as mct
from mct_quantizers import PytorchQuantizationWrapper, QuantizationMethod
from model_compression_toolkit.target_platform_capabilities import constants
from model_compression_toolkit.target_platform_capabilities.schema import mct_current_schema
from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0 import tpc
from peers import child
from torch import nn

DEFAULTS: dict[str, Any] = {
    "widths": [8, 4, 2],
    "hessian": False,
    "images": 32,
    "epochs": 0,
    "batch": child.BATCH,
    "loss": "plain",
    "act_method": "POWER_OF_TWO",
    "correct": False,
}


def platform(
    request: child.Request, setting: dict[str, Any]
) -> mct_current_schema.TargetPlatformCapabilities:
    """IMX500's description with the widths asked for."""
    base, _, default = tpc.get_op_quantization_configs()
    acts = {"enable_activation_quantization": request.activation_bits is not None}
    if request.activation_bits is not None:
        acts["activation_n_bits"] = request.activation_bits
        acts["activation_quantization_method"] = QuantizationMethod[setting["act_method"]]
        acts["supported_input_activation_n_bits"] = (request.activation_bits, 8)
    base, default = base.clone_and_edit(**acts), default.clone_and_edit(**acts)
    mixed = [
        base.clone_and_edit(attr_to_edit={constants.KERNEL_ATTR: {constants.WEIGHTS_N_BITS: bits}})
        for bits in sorted(setting["widths"], reverse=True)
    ]
    widest = mixed[0]
    return tpc.generate_tpc(
        default_config=default, base_config=widest, mixed_precision_cfg_list=mixed, name="imx500"
    )


def quantize(model: nn.Module, request: child.Request) -> child.Quantized:
    """Mixed precision under the bytes of the budget; gradient rounding where asked for."""
    setting = DEFAULTS | request.setting
    weights = sum(layer.weight.numel() for layer in child.layers(model).values())

    def rows():
        return ([batch.numpy()] for batch in request.batches(setting["batch"]))

    core = mct.core.CoreConfig(
        quantization_config=mct.core.QuantizationConfig(
            weights_second_moment_correction=setting["correct"],
            # both would change the layers, so that their bytes were no longer comparable
            linear_collapsing=False,
            residual_collapsing=False,
        ),
        mixed_precision_config=mct.core.MixedPrecisionQuantizationConfig(
            num_of_images=setting["images"], use_hessian_based_scores=setting["hessian"]
        ),
    )
    common = {
        "target_resource_utilization": mct.core.ResourceUtilization(
            weights_memory=request.weight_bits * weights / 8
        ),
        "core_config": core,
        "target_platform_capabilities": platform(request, setting),
    }
    if setting["epochs"]:
        made, _ = mct.gptq.pytorch_gradient_post_training_quantization(
            model,
            rows,
            gptq_config=mct.gptq.get_pytorch_gptq_config(
                n_epochs=setting["epochs"],
                use_hessian_based_weights=setting["loss"] != "plain",
                use_hessian_sample_attention=setting["loss"] == "attention",
                gradual_activation_quantization=request.activation_bits is not None,
            ),
            **common,
        )
    else:
        made, _ = mct.ptq.pytorch_post_training_quantization(model, rows, **common)
    widths = []
    for module in made.modules():
        if isinstance(module, PytorchQuantizationWrapper):
            for name, quantizer in module.weights_quantizers.items():
                widths.append((getattr(module.layer, name).numel(), float(quantizer.num_bits)))
    return child.Quantized(made.eval(), widths)


if __name__ == "__main__":
    from importlib.metadata import version

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child.serve("Sony MCT", version("model-compression-toolkit"), quantize)
