"""Any module with its batches, seen as weights, edges and passes; never changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from bitwright.checkpoint import said
from bitwright.curvature import processes, shards
from bitwright.curvature.batches import Batch, pieces
from bitwright.curvature.layout import Layout
from bitwright.curvature.losses import Block, OutputHessian, flatten, form, output_hessian
from bitwright.curvature.row_squares import owners
from bitwright.curvature.subjects import Pass, Record
from bitwright.curvature.tape import Tape
from bitwright.errors import BitwrightError

#: operations whose inputs are edges, and the axis of their channels
_EDGES = {"linear": -1, "matmul": -1, "conv": 1, "transposed": 1}


class ModuleSubject:
    """A module on batches.

    Args:
        model: evaluated as it is; parameters and buffers are replaced by copies in the call.
        batches: from :func:`~bitwright.curvature.batches.read`.
        loss: one for all outputs, or a mapping or sequence of losses of heads.
        class_axis: of the classes in outputs.
        select: from what the model returns to the outputs the loss sees.
        edges: what activations are measured by: `channel`, `token`, `tensor`, or "" for not at all.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: list[Batch],
        loss: Any,
        class_axis: int,
        select: Callable[[Any], Any] | None,
        edges: str,
    ) -> None:
        self.model, self.batches, self.loss = model, batches, loss
        self.class_axis, self.select, self.grain = class_axis, select, edges
        self.parameters = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        for name, p in model.named_parameters():
            if shards.is_sharded(p):
                raise BitwrightError(
                    f"parameter {name!r} is a DTensor; measure within "
                    "`with bitwright.curvature.unsharded(model):`"
                )
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        ends = torch.tensor([0, *[b.rows for b in batches]]).cumsum(0)
        self.starts = ends[:-1]
        self.rows = int(ends[-1])
        self._layouts: dict[Any, list[Layout]] = {}
        self._discover()

    # ---------------------------------------------------------------- what there is

    def _discover(self) -> None:
        """Weights, edges and channels, from a few rows; a second pass must give the same."""
        few = self.batches[0].take(torch.arange(min(3, self.batches[0].rows)))
        try:
            record = self._record(few)
        except BitwrightError:
            raise
        except Exception as error:
            shapes = ", ".join(
                f"{tuple(t.shape)} of {t.dtype}" for t in tree_leaves(few.inputs)
                if isinstance(t, Tensor)
            )  # fmt: skip
            raise BitwrightError(
                f"{type(self.model).__name__} does not take a batch of {shapes}: {said(error)}; "
                "give rows as the model takes them"
            ) from error
        again = self._record(few)
        if not torch.equal(record.outputs, again.outputs):
            raise BitwrightError(
                "the model answers differently when asked again (dropout in training mode?), so "
                "it has no Hessian; call .eval(), or take its randomness out"
            )
        tape = record.tape
        used = {u.weight: u for u in tape.uses}
        unknown = tape.unknown
        self.loose = sorted(unknown)
        self.weights = {
            n: tuple(p.shape) for n, p in self.parameters.items() if n in used or n in unknown
        }
        #: name -> which output channel each number of the weight is of, int64 of its shape
        self.owners = {
            n: owners(shape, None if n in unknown else used[n]) for n, shape in self.weights.items()
        }
        self.channels = {f"layer:{n}": int(o.max()) + 1 for n, o in self.owners.items()}
        self.channels |= {f"edge:{n}": self._width(t, axis, few.rows)
                          for n, (t, axis) in record.edges.items()}  # fmt: skip
        self.unused = [n for n in self.parameters if n not in self.weights and n not in tape.added]
        self.frozen = [n for n in self.weights if not self.parameters[n].requires_grad]

    def _width(self, t: Tensor, axis: int, rows: int) -> int:
        """Traces of an edge."""
        if self.grain == "tensor":
            return 1
        return t.shape[axis] if self.grain == "channel" else t.numel() // rows // t.shape[axis]

    def hessian(self, chunk: int) -> OutputHessian:
        """Λ of all rows."""
        outputs: list[Any] = []
        targets: list[Any] = []
        with torch.no_grad():
            for part in pieces(self.batches, chunk):
                heads = self._heads(self._call(part, self.parameters))
                outputs.append({k: v.detach().cpu() for k, v in heads.items()})
                targets.append(self._targets(part.targets))
        shapes = {k: {v[k].shape[1:] for v in outputs} for k in outputs[0]}
        for name, found in shapes.items():
            if len(found) > 1:
                raise BitwrightError(
                    f"outputs {name or ''} have different shapes in different batches "
                    f"({', '.join(str(tuple(s)) for s in sorted(found))}); pad them to one"
                )
        blocks: list[Block] = []
        for name, loss in self._losses().items():
            values = torch.cat([v[name] for v in outputs])
            given = [t[name] for t in targets]
            wanted = None if given[0] is None else torch.cat([t.cpu() for t in given])
            block, total = output_hessian(loss, values, wanted, self.class_axis)
            divisor = torch.tensor([total * self.rows, self.rows], dtype=torch.float64)
            divisor = processes.group().total(divisor)  # a mean over everybody's targets
            blocks.append(Block(block.logits, block.scale / float(divisor[0] / divisor[1])))
        return OutputHessian(tuple(blocks))

    def outputs(self, batch: Batch, leaves: Mapping[str, Tensor] | None = None) -> Tensor:
        """The one head's outputs of a batch, with some parameters replaced."""
        return self._heads(self._call(batch, {**self.parameters, **(leaves or {})}))[None]

    # ---------------------------------------------------------------- passes

    def precise(self) -> None:
        """A module of somebody's may make float32 tensors of its own: it is taken as it is."""

    def forward(self, rows: Tensor) -> Iterator[tuple[Tensor, Pass]]:
        """One pass for each batch they are of."""
        owner = torch.searchsorted(self.starts, rows.contiguous(), right=True) - 1
        for i in owner.unique().tolist():
            places = torch.nonzero(owner == i).flatten()
            part = self.batches[i].take(rows[places] - self.starts[i])
            record = self._record(part)
            yield places, record.placed(self._layout(record, i))

    def _layout(self, record: Record, batch: int) -> list[Layout]:
        signature = tuple((u.weight, u.kind, u.y.ndim) for u in record.uses)
        key = (signature, tuple(record.edges), min(len(record.outputs), 2))
        if key not in self._layouts:
            count = min(3 if key[2] > 1 else 1, self.batches[batch].rows)
            few = self._record(self.batches[batch].take(torch.arange(count)))
            self._layouts[key] = few.layouts()
        return self._layouts[key]

    def _record(self, batch: Batch) -> Record:
        leaves = {n: p.detach().requires_grad_(True) for n, p in self.parameters.items()}
        tape = Tape(leaves)
        with torch.enable_grad(), tape:
            value = self._call(batch, leaves, watched=True)
        heads = self._heads(value)
        losses = self._losses()
        flat = [flatten(heads[k], form(losses[k]), self.class_axis) for k in losses]
        edges: dict[str, tuple[Tensor, int]] = {}
        seen: set[int] = set()
        for use in tape.uses if self.grain else ():
            if use.kind in _EDGES and use.x.requires_grad and id(use.x) not in seen:
                seen.add(id(use.x))
                name = f"{use.weight.removesuffix('.weight')}.input"
                edges.setdefault(name, (use.x, _EDGES[use.kind]))
        return Record(torch.cat(flat, 1), tape, edges, leaves, self.grain)

    def _call(self, batch: Batch, state: Mapping[str, Tensor], watched: bool = False) -> Any:
        def place(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            t = t.to(self.device)
            return t.detach().requires_grad_(True) if watched and t.is_floating_point() else t

        inputs = tree_map(place, batch.inputs)
        places = list(_places(self.model))
        given = {id(self.parameters[n]): t for n, t in state.items()}
        # running statistics in training mode must not be changed
        new = given | {id(b): b.clone() for b in self.model.buffers()}
        held = {name: new[id(t)] for name, t in places if id(t) in new}
        args = (
            inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
        )
        kwargs = inputs if isinstance(inputs, dict) else {}
        value = functional_call(self.model, held, args, kwargs, tie_weights=False)
        for name, t in places:  # what the pass has left is in `held` now
            if id(t) in given and held[name] is not given[id(t)]:
                raise BitwrightError(
                    f"the forward pass puts another tensor in the place of parameter {name!r}, so "
                    "its curvature cannot be seen (does it gather shards?); measure a plain copy "
                    "of the model"
                )
        return value

    # ---------------------------------------------------------------- heads

    def _losses(self) -> dict[Any, Any]:
        if isinstance(self.loss, Mapping):
            return dict(self.loss)
        if isinstance(self.loss, Sequence) and not isinstance(self.loss, str):
            return dict(enumerate(self.loss))
        return {None: self.loss}

    def _targets(self, targets: Any) -> dict[Any, Any]:
        losses = self._losses()
        return {k: targets if k is None or targets is None else targets[k] for k in losses}

    def _heads(self, value: Any) -> dict[Any, Tensor]:
        """The outputs that each loss sees."""
        if self.select is not None:
            value = self.select(value)
        losses = self._losses()
        if None not in losses:
            return {k: value[k] for k in losses}
        if isinstance(value, Mapping) and "logits" in value:
            return {None: value["logits"]}
        if not isinstance(value, Tensor) and isinstance(getattr(value, "logits", None), Tensor):
            return {None: value.logits}
        leaves = [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.is_floating_point()]
        if len(leaves) != 1:
            raise BitwrightError(
                f"the model returns {len(leaves)} float tensors; say with select= which one the "
                "loss sees, or give a loss for each (a dict or a list)"
            )
        return {None: leaves[0]}


def _places(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every place of every parameter and buffer: tied ones have several, a shared module's one.

    `functional_call` itself names a shared module's twice, and then does not restore them.
    """
    for path, module in model.named_modules():
        for key, t in (*module._parameters.items(), *module._buffers.items()):
            if t is not None:
                yield f"{path}.{key}".lstrip("."), t
