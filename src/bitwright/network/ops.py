"""The ATen operations this library knows by name, in one table.

An operation that is not here still runs, in float; only what is here can be quantized, fused or
tied. Names are `torch.ops.aten` overloads as `torch.export` emits them.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten

#: call target -> kind of a layer whose weight can be quantized
LAYERS: dict[Any, str] = {
    aten.conv1d.default: "conv1d",
    aten.conv2d.default: "conv2d",
    aten.linear.default: "linear",
}

#: call target -> kind of a layer whose weight's rows are looked up; the weight is argument 0
TABLES: dict[Any, str] = {aten.embedding.default: "embedding"}

#: layer types with weights that have no quantized form here yet
UNSUPPORTED: dict[Any, str] = {
    aten.conv1d.padding: "conv1d with string padding",
    aten.conv2d.padding: "conv2d with string padding",
    aten.conv3d.default: "conv3d",
    aten.conv3d.padding: "conv3d with string padding",
    aten.conv_transpose1d.default: "conv_transpose1d",
    aten.conv_transpose2d.input: "conv_transpose2d",
    aten.conv_transpose3d.input: "conv_transpose3d",
    aten.embedding_bag.default: "embedding_bag",
    aten.embedding_bag.padding_idx: "embedding_bag",
    aten.bilinear.default: "bilinear",
    aten.lstm.input: "lstm",
    aten.gru.input: "gru",
    aten.rnn_tanh.input: "rnn",
    aten.rnn_relu.input: "rnn",
}

#: the output holds only values of the first input (or zero): it lives on the input's grid
VALUE_PRESERVING = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.slice.Tensor,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.expand.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.select.int,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.pad.default,  # with zeros or values of the input; other constants: constant_pad_nd
    aten.adaptive_max_pool2d.default,
    aten.channel_shuffle.default,
}

#: nothing happens in evaluation mode: these nodes are removed at capture
IDENTITY = {
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
}

#: what is the same at every call and is stored as numbers
CONSTANT = {aten.arange.default, aten.arange.start, aten.arange.start_step}
#: constants of as many rows as the input has
FILLED = {aten.zeros.default, aten.ones.default}

#: activations a runtime folds into the quantized operation before them
CLIPS = {
    aten.relu.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
}

#: operations with integer kernels in the runtime, when inputs and output are quantized
INTEGER = {
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.mean.dim,
    aten.cat.default,
}

#: what a stored program may call besides the tables above: pure functions only, so that a file
#: can compute but never read, write or allocate at will
ELEMENTWISE = {
    aten.batch_norm.default,
    aten.layer_norm.default,
    aten.group_norm.default,
    aten.instance_norm.default,
    aten.rms_norm.default,
    aten.softmax.int,
    aten.log_softmax.int,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.gelu.default,
    aten.silu.default,
    aten.mish.default,
    aten.elu.default,
    aten.selu.default,
    aten.celu.default,
    aten.leaky_relu.default,
    aten.prelu.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.softplus.default,
    aten.exp.default,
    aten.log.default,
    aten.sqrt.default,
    aten.rsqrt.default,
    aten.pow.Tensor_Scalar,
    aten.neg.default,
    aten.abs.default,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.rsub.Scalar,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.matmul.default,
    aten.bmm.default,
    aten.scaled_dot_product_attention.default,
    aten.sum.dim_IntList,
    aten.mean.default,
    aten.amax.default,
    aten.adaptive_avg_pool1d.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.unbind.int,
    aten.stack.default,
    aten.pixel_shuffle.default,
    aten.constant_pad_nd.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
    aten.masked_fill.Scalar,
    aten.where.self,
    aten.eq.Scalar,
    aten.ne.Scalar,
    aten.gt.Scalar,
    aten.ge.Scalar,
    aten.lt.Scalar,
    aten.le.Scalar,
    aten.logical_not.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.expand_as.default,
    aten.to.dtype,
    aten.sym_size.int,
}

PYTHON = {
    operator.getitem,
    operator.add,
    operator.sub,
    operator.mul,
    operator.floordiv,
    operator.truediv,
}


def is_lookup(node: Node) -> bool:
    """Whether `node` looks rows of a table up: `table[ids]`, arguments (table, ids, padding)."""
    return node.target in TABLES


def clip_ends(node: Node) -> tuple[Any, Any]:
    """What `node` clips its first argument to, from below and from above; None where it does not.

    An end may be computed: a node. Of anything but :data:`CLIPS`, (None, None).
    """
    if node.target is aten.relu.default:
        return 0, None
    if node.target is aten.relu6.default:
        return 0, 6
    if node.target not in CLIPS:
        return None, None
    default = (-1, 1) if node.target is aten.hardtanh.default else (None, None)
    given = (*node.args[1:3], *default[len(node.args) - 1 :])
    names = ("min_val", "max_val") if node.target is aten.hardtanh.default else ("min", "max")
    low, high = (node.kwargs.get(n, v) for n, v in zip(names, given, strict=True))
    return low, high


def is_clip_at_zero(node: Node) -> bool:
    """Whether `node` clips at zero from below, so that a zero point of 0 makes it free."""
    low = clip_ends(node)[0]
    return isinstance(low, int | float) and low == 0


def is_mean_over_space(node: Node) -> bool:
    """Whether `node` averages a whole image: adaptive pooling to 1, or a mean over axes 2 and 3."""
    if node.target is aten.adaptive_avg_pool2d.default:
        size: Any = node.args[1]
        return list(size) == [1, 1] if isinstance(size, list | tuple) else bool(size == 1)
    axes: Any = node.args[1] if len(node.args) > 1 else None
    if node.target is aten.mean.dim and isinstance(axes, list | tuple):
        return sorted(int(d) % 4 for d in axes) == [2, 3]
    return False
