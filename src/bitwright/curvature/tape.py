"""Which operations a forward pass uses each weight in: inputs, outputs and geometry are kept.

A `TorchFunctionMode` sees every torch function, whichever module, functional call or captured graph
it comes from. Functions written in Python (attention, layer normalization) are entered, so that the
table below needs the primitive ones only. A weight in any other operation, or in operations that do
not go together, is named in `unknown`; its gradients are then taken one sample at a time.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from bitwright.curvature.shards import is_sharded
from bitwright.errors import BitwrightError

aten = torch.ops.aten


@dataclass(frozen=True)
class Use:
    """One operation on a weight.

    Attributes:
        weight: its name.
        kind: `linear` (`y = x wᵀ`), `matmul` (`y = x w`, channels last), `conv`, `transposed`
            convolution, `embedding` or `scale` (`y = x ⊙ w` after a normalization).
        x: the input: indices for an embedding (−1 for padding), the normalized one for a scale.
        y: the output.
        at: the output's place in the graph, kept if `y` is changed in place (`nn.ReLU(True)`); None
            if it has no gradient.
        version: of x when it was read.
        rows: channels of the weight that this use takes (a chunk of a packed projection).
        channel: axis of `y` that counts output channels.
        kernel, stride, padding, dilation, groups: of a convolution; padding as (before, after).
    """

    weight: str
    kind: str
    x: Tensor
    y: Tensor
    at: GradientEdge | None
    version: int
    rows: slice
    channel: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def across(self) -> int:
        """Groups of output channels on the weight's axis 1; 0 if axis 0 counts them."""
        return self.groups if self.kind in ("matmul", "transposed") else 0


class Tape(TorchFunctionMode):
    """Records the uses of `weights` while it is entered.

    Args:
        weights: name -> the very tensor that the forward pass will use.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self._other: set[str] = set()
        self.added: set[str] = set()
        self._shape = {name: w.shape for name, w in weights.items()}
        self._known = {id(w): (name, slice(0, w.shape[0] if w.ndim else 1), w)
                       for name, w in weights.items()}  # fmt: skip

    def __torch_function__(
        self, func: Any, types_: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, types.FunctionType) and func.__module__ == "torch.nn.functional":
            with self:  # its own parts are seen instead
                return _entered(func)(*args, **kwargs)
        tensors = _tensors(args, kwargs)
        seen = [t for t in tensors if id(t) in self._known]
        if seen and any(is_sharded(t) for t in tensors):
            raise BitwrightError(
                f"parameter {self._known[id(seen[0])][0]!r} meets an activation that is a DTensor; "
                "shards of parameters are gathered, those of activations are not: measure a plain "
                "copy of the model, loaded from each parameter's full_tensor()"
            )
        value = func(*args, **kwargs)
        if seen and func in _RULES:
            self._note_use(_RULES[func](func, args, kwargs, value), value, seen)
        elif seen:
            self._note_views(value, seen)
        return value

    @property
    def unknown(self) -> set[str]:
        """Weights that do more than their uses tell, or whose uses count channels differently."""
        found = set(self._other)
        first: dict[str, Use] = {}
        for use in self.uses:
            same = first.setdefault(use.weight, use).across == use.across
            if not same or use.weight in self.added:
                found.add(use.weight)
        return found

    def _note_use(self, found: Found, value: Tensor, seen: list[Tensor]) -> None:
        weight, bias, use = found
        if weight is not None and id(weight) in self._known:
            name, rows, _ = self._known[id(weight)]
            if use is None:
                self._other.add(name)
            elif use["kind"] in ("matmul", "transposed"):  # channels are on axis 1
                if rows != slice(0, self._shape[name][0]):
                    self._other.add(name)
                rows = slice(0, self._shape[name][1] * use.get("groups", 1))
            if use is not None:
                at, version = edge(value), use["x"]._version
                self.uses.append(Use(name, y=value, at=at, version=version, rows=rows, **use))
        if bias is not None and id(bias) in self._known:
            self.added.add(self._known[id(bias)][0])
        taken = [id(weight), id(bias)]  # once each: a weight may be its own input
        for t in seen:
            if id(t) in taken:
                taken.remove(id(t))
            else:
                self._other.add(self._known[id(t)][0])

    def _note_views(self, value: Any, seen: list[Tensor]) -> None:
        results = [t for t in _tensors((value,), {}) if t.requires_grad]  # w.detach() is no weight
        for result in results:
            for source in seen:
                name, rows, _ = self._known[id(source)]
                part = _row_slice(source, rows, result)
                if part is None:
                    self._other.add(name)
                elif id(result) not in self._known:
                    self._known[id(result)] = (name, part, result)


def edge(t: Tensor) -> GradientEdge | None:
    """Where the graph computes `t` as it is now; None if it does not."""
    return get_gradient_edge(t) if t.requires_grad else None


def _entered(func: types.FunctionType) -> Callable[..., Any]:
    """The body of a functional, without its question whether somebody overrides it."""
    never = lambda *_: False  # noqa: E731
    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    space = func.__globals__ | dict.fromkeys(names, never)
    body = types.FunctionType(
        func.__code__, space, func.__name__, func.__defaults__, func.__closure__
    )
    body.__kwdefaults__ = func.__kwdefaults__
    return body


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += [v for v in value if isinstance(v, Tensor)]
    return found


def _row_slice(source: Tensor, rows: slice, result: Tensor) -> slice | None:
    """Which rows of the weight `result` is a view of; None if it is anything else."""
    if result is source:
        return rows
    same = result.ndim == source.ndim and result.shape[1:] == source.shape[1:]
    if not same or not result.ndim or result.stride() != source.stride():
        return None
    if result.untyped_storage().data_ptr() != source.untyped_storage().data_ptr():
        return None
    step = max(source.stride(0), 1)
    offset = result.storage_offset() - source.storage_offset()
    if offset % step:
        return None
    first = rows.start + offset // step
    return slice(first, first + result.shape[0])


# ------------------------------------------------------------------------------ the table

#: weight, bias (what is only added), and the use; None for a weight used in another way
Found = tuple[Tensor | None, Tensor | None, dict[str, Any] | None]

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups",
               "dilation")  # fmt: skip
_DEFAULTS: dict[str, Any] = {
    "bias": None, "stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1,
}  # fmt: skip


def _bound(names: Sequence[str], args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return _DEFAULTS | dict(zip(names, args, strict=False)) | dict(kwargs)


def _tuple(value: Any, space: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * space
    return tuple(value) * (space if len(value) == 1 else 1)


def _conv(func: Any, args: Any, kwargs: Any, value: Tensor) -> Found:
    a = _bound(_CONV, args, kwargs)
    w = a["weight"]
    space = w.ndim - 2
    stride, dilation = _tuple(a["stride"], space), _tuple(a["dilation"], space)
    padding = a["padding"]
    if isinstance(padding, str):
        wide = [d * (k - 1) if padding == "same" else 0
                for d, k in zip(dilation, w.shape[2:], strict=True)]  # fmt: skip
        pairs = tuple((p // 2, p - p // 2) for p in wide)
    else:
        pairs = tuple((p, p) for p in _tuple(padding, space))
    use = {
        "kind": "conv", "x": a["input"], "channel": 1, "kernel": tuple(w.shape[2:]),
        "stride": stride, "padding": pairs, "dilation": dilation, "groups": a["groups"],
    }  # fmt: skip
    return w, a["bias"], use if a["input"].ndim == w.ndim else None


def _transposed(func: Any, args: Any, kwargs: Any, value: Tensor) -> Found:
    a = _bound(_TRANSPOSED, args, kwargs)
    w = a["weight"]
    space = w.ndim - 2
    pairs = tuple((p, p) for p in _tuple(a["padding"], space))
    use = {
        "kind": "transposed", "x": a["input"], "channel": 1, "kernel": tuple(w.shape[2:]),
        "stride": _tuple(a["stride"], space), "padding": pairs,
        "dilation": _tuple(a["dilation"], space), "groups": a["groups"],
    }  # fmt: skip
    return w, a["bias"], use if a["input"].ndim == w.ndim else None


def _linear(func: Any, args: Any, kwargs: Any, value: Tensor) -> Found:
    a = _bound(("input", "weight", "bias"), args, kwargs)
    use = {"kind": "linear", "x": a["input"], "channel": -1}
    return a["weight"], a["bias"], use if a["weight"].ndim == 2 else None


def _addmm(func: Any, args: Any, kwargs: Any, value: Tensor) -> Found:
    """`bias + x w`: the Conv1D of GPT-2."""
    a = _bound(("input", "mat1", "mat2"), args, kwargs)
    use = {"kind": "matmul", "x": a["mat1"], "channel": -1}
    return a["mat2"], a["input"], use if a.get("alpha", 1) == 1 else None


def _matmul(func: Any, args: Any, kwargs: Any, value: Tensor) -> Found:
    a = _bound(("input", "other"), args, kwargs)
    w = a.get("other", a.get("mat2"))
    if w is None or w.ndim != 2 or a["input"].ndim < 2:
        return w, None, None
    return w, None, {"kind": "matmul", "x": a["input"], "channel": -1}


def _embedding(func: Any, args: Any, kwargs: Any, value: Tensor) -> Found:
    names = ("weight", "indices", "padding_idx", "scale_grad_by_freq", "sparse")
    a = _bound(names, args, kwargs)
    index = a["indices"]
    padding = a.get("padding_idx", -1)
    if padding is not None and padding >= 0:  # its row gets no gradient
        index = torch.where(index == padding, -1, index)
    use = {"kind": "embedding", "x": index, "channel": -1}
    return a["weight"], None, use if not a.get("scale_grad_by_freq") else None


def _normalized(*names: str, channel: int, reset: tuple[str, ...]) -> Callable[..., Found]:
    """Normalizations: what the scale multiplies is the same operation without scale and offset."""

    def rule(func: Any, args: Any, kwargs: Any, value: Tensor) -> Found:
        a = _bound(names, args, kwargs)
        w = a.get("weight")
        if w is None or w.ndim != 1:  # over several axes: its channels are not one of y's
            return w, a["bias"], None
        changed = a | dict.fromkeys(reset) | {"input": a["input"].detach()}
        with torch.no_grad():
            x = func(*[changed[n] for n in names if n in changed])
        return w, a["bias"], {"kind": "scale", "x": x, "channel": channel}

    return rule


_LAYER_NORM = _normalized(
    "input", "normalized_shape", "weight", "bias", "eps", channel=-1, reset=("weight", "bias")
)
_RMS_NORM = _normalized("input", "normalized_shape", "weight", "eps", channel=-1, reset=("weight",))
_GROUP_NORM = _normalized(
    "input", "num_groups", "weight", "bias", "eps", channel=1, reset=("weight", "bias")
)
_BATCH_NORM = _normalized(
    "input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps",
    "cudnn_enabled", channel=1, reset=("weight", "bias"),
)  # fmt: skip

_RULES: dict[Any, Callable[..., Found]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _conv),
    **dict.fromkeys(
        (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
         aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding), _conv),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _transposed),
    **dict.fromkeys(
        (aten.conv_transpose1d.default, aten.conv_transpose2d.input,
         aten.conv_transpose3d.input), _transposed),
    **dict.fromkeys((torch._C._nn.linear, aten.linear.default), _linear),
    **dict.fromkeys((torch.addmm, aten.addmm.default), _addmm),
    **dict.fromkeys(
        (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__,
         aten.matmul.default, aten.mm.default), _matmul),
    **dict.fromkeys((torch.embedding, aten.embedding.default), _embedding),
    **dict.fromkeys((torch.layer_norm, aten.layer_norm.default), _LAYER_NORM),
    **dict.fromkeys((torch.rms_norm, aten.rms_norm.default), _RMS_NORM),
    **dict.fromkeys((torch.group_norm, aten.group_norm.default), _GROUP_NORM),
    **dict.fromkeys((torch.batch_norm, aten.batch_norm.default), _BATCH_NORM),
}  # fmt: skip
