"""Capture: any nn.Module becomes a graph of ATen operations with batch-norm folded.

`torch.export` traces the module once with a symbolic batch size. Everything after that (measuring,
quantizing, exporting, the integer reference) walks this one graph, so nothing depends on module
classes, and a function called without a module is seen like any other.
"""

from __future__ import annotations

import copy
import linecache
import operator
import os
import re
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from bitwright.errors import BitwrightError
from bitwright.network.modes import evaluating
from bitwright.network.ops import (
    CONSTANT,
    FILLED,
    IDENTITY,
    LAYERS,
    TABLES,
    VALUE_PRESERVING,
    aten,
    clip_ends,
)


def attribute(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer with the dotted `name`."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def set_attribute(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace (or add, at the top level) the parameter `name` by `value`, without gradient."""
    *path, leaf = name.split(".")
    for part in path:
        module = getattr(module, part)
    setattr(module, leaf, nn.Parameter(value.detach().clone(), requires_grad=False))


def capture(model: nn.Module, example: Tensor) -> GraphModule:
    """The graph of `model` in evaluation mode, batch-norm folded, batch size free.

    Args:
        model: left as it is; its training flag and parameters are not touched.
        example: [n >= 2, ...] rows as the model takes them.

    Raises:
        BitwrightError: the model cannot be traced (data-dependent control flow, a fixed batch).
    """
    try:
        with evaluating(model), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            batch = torch.export.Dim.DYNAMIC
            program = torch.export.export(
                copy.deepcopy(model), (example[:2],), dynamic_shapes=({0: batch},), strict=False
            )
            module = program.module()
            _drop_identities(module)
            if not _make_functional(module):
                module = program.run_decompositions({}).module()
                _drop_write_backs(module)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BitwrightError(
            f"cannot trace the model {type(model).__name__} with torch.export for input "
            f"{tuple(example.shape[1:])}: {first[:300]}{_place(error)}; remove data-dependent "
            "Python control flow and fixed batch sizes from forward()"
        ) from error
    graph = module.graph
    _tidy(module)
    _separate_shared_tensors(module)
    fold_batch_norm(module)
    _give_every_layer_a_bias(module)
    _normalize_meta(module, example)
    graph.eliminate_dead_code()
    _drop_unused(module)
    module.recompile()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def _place(error: Exception) -> str:
    """` at FILE:LINE (CODE)` of the model's line that could not be traced, where that is known."""
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__)]
    told = re.findall(r'File "(.+?)", line (\d+)', str(error))
    frames += [(file, int(line)) for file, line in told]
    libraries = tuple(str(Path(f).resolve().parent) for f in (torch.__file__, os.__file__))
    libraries += (str(Path(__file__).resolve().parents[1]),)
    own = [(f, n) for f, n in frames if f.endswith(".py") and not f.startswith(libraries)]
    if not own:
        return ""
    file, line = own[-1]
    code = linecache.getline(file, line).strip()
    return f", at {Path(file).name}:{line}" + (f" ({code[:80]})" if code else "")


def _drop_identities(module: GraphModule) -> None:
    """Replace what returns its argument, dropout above all, by the argument."""
    for node in list(module.graph.nodes):
        if node.target in IDENTITY:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def _make_functional(module: GraphModule) -> bool:
    """Replace in-place operations by their pure forms; False where aliases make that unsafe.

    `b = relu_(a)` becomes `b = relu(a)` and every later reader of `a` reads `b`. That is the same
    computation unless `a` shares memory with another value, which only views do.
    """
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        pure = getattr(aten, schema.name.removeprefix("aten::").removesuffix("_"), None)
        overload = getattr(pure, schema.overload_name or "default", None)
        source = node.args[0]
        aliases = [source, *source.users]
        if (
            overload is None
            or source.op != "call_function"
            or any(a is not node and _shares_memory(a) for a in aliases)
        ):
            return False
        node.target = overload
        later = {u for u in source.users if order[u] > order[node]}
        source.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    return True


def _shares_memory(node: Node) -> bool:
    """Whether the value of `node` may lie in the memory of its argument, as views do."""
    if node.target in VALUE_PRESERVING:
        return True
    if node.target is operator.getitem:  # of a split
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    return any(value.alias_info is not None for value in schema.returns)


def _drop_write_backs(module: GraphModule) -> None:
    """Forget what the model writes into its input and its buffers: a call leaves both as found."""
    for node in list(module.graph.nodes):
        if node.target is aten.copy_.default and node.args[0].op in ("placeholder", "get_attr"):
            node.replace_all_uses_with(node.args[1])
            module.graph.erase_node(node)


def _tidy(module: GraphModule) -> None:
    """Drop what does nothing, and write one operation one way."""
    graph = module.graph
    _drop_identities(module)
    for node in list(graph.nodes):
        if (
            node.op == "call_module" or node.target is aten._assert_tensor_metadata.default
        ):  # the exporter's input guards
            graph.erase_node(node)
        elif node.target in CONSTANT and not node.all_input_nodes:
            _store_constant(module, node)
        elif node.target in FILLED:
            _stretch_constant(module, node)
        elif node.target in (aten.pad.default, aten.constant_pad_nd.default):
            _name_pad_by_value(node)
        elif node.target in TABLES:  # the others change gradients alone
            node.args, node.kwargs = node.args[:3], {}
        elif _takes_everything(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten._native_batch_norm_legit_no_training.default:
            x, gamma, beta, mean, var, momentum, eps = node.args
            with graph.inserting_before(node):
                norm = graph.call_function(
                    aten.batch_norm.default,
                    (x, gamma, beta, mean, var, False, momentum, eps, False),
                )
            for item in list(node.users):  # only item 0, the output, is ever read
                norm.meta = dict(item.meta)
                item.replace_all_uses_with(norm)
                graph.erase_node(item)
            graph.erase_node(node)
    _clip_first(module)


def _clip_first(module: GraphModule) -> None:
    """Clip before values are moved or the largest of them taken, which gives the same numbers.

    `relu(max_pool(x)) = max_pool(relu(x))`: the operation that computes x is then stored clipped,
    and not a second time behind the pooling.
    """
    graph = module.graph
    for clip in list(graph.nodes):
        if not _keeps_zero(clip):
            continue
        source: Any = clip.args[0]
        while source.target in VALUE_PRESERVING and len(source.users) == 1:
            first: Any = source.args[0]
            with graph.inserting_before(source):
                moved = graph.call_function(clip.target, (first, *clip.args[1:]), dict(clip.kwargs))
            moved.meta = dict(first.meta)
            source.replace_input_with(first, moved)
            clip.replace_all_uses_with(source)
            graph.erase_node(clip)
            clip, source = moved, first


def _keeps_zero(node: Node) -> bool:
    """Whether `node` is a clip that never falls and gives zero for zero, as padding has it."""
    low, high = clip_ends(node)
    return (
        not (low is None and high is None)
        and all(v is None or isinstance(v, int | float) for v in (low, high))
        and (low is None or bool(low <= 0))
        and (high is None or bool(high >= 0))
    )


def _store_constant(module: GraphModule, node: Node) -> None:
    """Read from a buffer what depends on nothing, the numbers of positions above all."""
    value = node.target(*node.args, **node.kwargs)  # type: ignore[operator]
    name = f"_constant_{node.name}"
    module.register_buffer(name, value)
    with module.graph.inserting_before(node):
        stored = module.graph.get_attr(name)
    stored.meta = dict(node.meta)
    node.replace_all_uses_with(stored)
    module.graph.erase_node(node)


def _stretch_constant(module: GraphModule, node: Node) -> None:
    """Read zeros or ones for every row, a recurrent layer's first state, from those for one."""
    sizes = list(node.args[0])  # type: ignore[arg-type]
    with module.graph.inserting_before(node):
        one = module.graph.call_function(
            node.target,  # type: ignore[arg-type]
            ([1 if isinstance(size, Node) else size for size in sizes],),
            dict(node.kwargs),
        )
        whole = module.graph.call_function(aten.expand.default, (one, sizes))
    one.meta, whole.meta = dict(node.meta), dict(node.meta)
    node.replace_all_uses_with(whole)
    module.graph.erase_node(node)
    _store_constant(module, one)


def _name_pad_by_value(node: Node) -> None:
    """Write padding with a constant other than zero, which no grid may hold, its own way."""
    x, size, *rest = node.args
    mode: Any
    value: Any
    if node.target is aten.constant_pad_nd.default:
        mode, value = "constant", rest[0] if rest else node.kwargs.get("value", 0)
    else:
        mode = rest[0] if rest else node.kwargs.get("mode", "constant")
        value = rest[1] if len(rest) > 1 else node.kwargs.get("value")
    if mode != "constant":
        return
    node.target = aten.constant_pad_nd.default if value else aten.pad.default
    node.args = (x, size, value) if value else (x, size)
    node.kwargs = {}


def _takes_everything(node: Node) -> bool:
    """Whether `node` is `x[:]` along an axis."""
    if node.target is not aten.slice.Tensor:
        return False
    start, end, step = (*node.args[2:], None, None, None)[:3]
    return start in (0, None) and end in (None, 2**63 - 1) and step in (1, None)


def _separate_shared_tensors(module: GraphModule) -> None:
    """Give every `get_attr` target one node, so that 'used once' can be read off the graph."""
    seen: dict[str, Node] = {}
    for node in list(module.graph.nodes):
        if node.op != "get_attr":
            continue
        if node.target in seen:
            node.replace_all_uses_with(seen[node.target])
            module.graph.erase_node(node)
        else:
            seen[node.target] = node


def fold_batch_norm(module: GraphModule) -> int:
    """Fold each evaluation-mode batch-norm into the convolution or linear layer before it.

    `w' = w · γ/√(σ² + ε)`, `b' = (b − μ) · γ/√(σ² + ε) + β`, computed in float64. A batch-norm
    whose layer has other readers, or whose weight serves other calls, stays where it is.

    Returns:
        The number of batch-norms folded.
    """
    graph = module.graph
    folded = 0
    for node in list(graph.nodes):
        if node.target is not aten.batch_norm.default or node.args[5]:
            continue
        layer = node.args[0]
        if layer.target not in LAYERS or len(layer.users) != 1:
            continue
        if layer.target is aten.linear.default and len(layer.meta["val"].shape) != 2:
            continue  # batch-norm counts channels on axis 1, linear on the last
        weight_node = layer.args[1]
        if weight_node.op != "get_attr" or len(weight_node.users) != 1:
            continue
        tensors = [*node.args[1:5], *layer.args[2:3]]
        if any(t is not None and t.op != "get_attr" for t in tensors):
            continue  # computed at every call
        gamma, beta, mean, var = (
            None if a is None else attribute(module, a.target).detach().double()
            for a in node.args[1:5]
        )
        assert mean is not None and var is not None  # evaluation mode has statistics
        factor = torch.rsqrt(var + node.args[7])
        if gamma is not None:
            factor = factor * gamma
        kept = attribute(module, weight_node.target).dtype
        weight = attribute(module, weight_node.target).detach().double()
        bias_node = layer.args[2] if len(layer.args) > 2 else None
        bias = 0.0 if bias_node is None else attribute(module, bias_node.target).detach().double()
        bias = (bias - mean) * factor + (0.0 if beta is None else beta)
        weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        set_attribute(module, weight_node.target, weight.to(kept))
        name = _bias_name(module, weight_node.target, layer)
        set_attribute(module, name, bias.to(kept))
        with graph.inserting_before(layer):
            new_bias = graph.get_attr(name)
        layer.args = (layer.args[0], weight_node, new_bias, *layer.args[3:])
        node.replace_all_uses_with(layer)
        graph.erase_node(node)
        folded += 1
    return folded


def _bias_name(module: GraphModule, weight: str, layer: Node) -> str:
    """The name for the bias of `layer`; not one that another node reads."""
    stem, _, leaf = weight.rpartition(".")
    name = "bias" if leaf == "weight" else f"{leaf}_bias"
    name = f"{stem}.{name}" if stem else name
    nodes = [n for n in module.graph.nodes if n.op == "get_attr"]
    taken = {n.target for n in nodes if any(u is not layer for u in n.users)}
    while name in taken:
        name += "_"
    return name


def _give_every_layer_a_bias(module: GraphModule) -> None:
    """Corrections need a bias to live in; a layer without one gets zeros."""
    graph = module.graph
    made: dict[str, str] = {}  # one for all calls of a weight
    for node in list(graph.nodes):
        if node.target not in LAYERS or node.args[1].op != "get_attr":
            continue
        if len(node.args) > 2 and node.args[2] is not None:
            continue
        weight = attribute(module, node.args[1].target)
        name = made.get(node.args[1].target) or _bias_name(module, node.args[1].target, node)
        made[node.args[1].target] = name
        set_attribute(module, name, torch.zeros(weight.shape[0], dtype=weight.dtype))
        with graph.inserting_before(node):
            bias = graph.get_attr(name)
        node.args = (node.args[0], node.args[1], bias, *node.args[3:])


def _normalize_meta(module: GraphModule, example: Tensor) -> None:
    """Remember each value's shape for one row: `meta['row_shape']`, batch axis left out."""
    from bitwright.network.run import run

    def note(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = node.target(*args, **kwargs)  # type: ignore[operator]
        if isinstance(value, Tensor):
            node.meta["row_shape"] = tuple(value.shape[1:])
            node.meta["is_float"] = value.is_floating_point()
        return value

    for node in module.graph.nodes:
        if node.op == "placeholder":
            node.meta["row_shape"] = tuple(example.shape[1:])
            node.meta["is_float"] = example.is_floating_point()
    with torch.no_grad():
        run(module, example[:2], note)


def _drop_unused(module: GraphModule) -> None:
    """Delete parameters and buffers that no node reads (batch-norm statistics, mostly)."""
    used = {n.target for n in module.graph.nodes if n.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used:
            *path, leaf = name.split(".")
            owner: nn.Module = module
            for part in path:
                owner = getattr(owner, part)
            delattr(owner, leaf)
