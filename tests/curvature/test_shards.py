"""Sharded models in two gloo processes, unequal parts of the data: a plain model's numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import (
    DTensor,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import bitwright
import pair
from bitwright.curvature import Sensitivity, hutchinson, shards, unsharded
from bitwright.curvature.hessian import Hessian
from bitwright.curvature.spectrum import top_eigenvalues

WEIGHTS = torch.tensor([1.0, 6.0, 0.3]).double()
LOSSES: dict[str, Any] = {
    "kl": "kl",
    "cross-entropy": nn.CrossEntropyLoss(WEIGHTS, ignore_index=-1),
}
CHUNK = 4  # one process's passes of Hutchinson are those of two


class Block(nn.Module):
    def __init__(self, up: nn.Module) -> None:
        super().__init__()
        self.up, self.norm, self.down = up, nn.LayerNorm(7), nn.Linear(7, 6)
        self.down.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.norm(self.up(x))))

    def another(self, x: Tensor) -> Tensor:
        return Block.forward(self, x)


class Model(nn.Module):
    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.norm, self.call = nn.Linear(4, 6), nn.BatchNorm1d(6), call
        up = nn.Linear(6, 7, bias=False)  # both blocks use it
        self.blocks = nn.ModuleList([Block(up), Block(up)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for block in self.blocks:
            x = self.call(block, x)
        return self.head(x)


def made(call: Callable[[Any, Tensor], Tensor] = lambda block, x: block(x)) -> Model:
    torch.manual_seed(0)
    model = Model(call).double().eval()
    model.norm.running_mean += torch.arange(6) / 10
    return model


def data(rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Of one of two processes, or of both."""
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(13, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (13,), generator=generator)
    y[5] = -1
    rows = [slice(4), slice(4, None), slice(None)][2 if rank is None else rank]
    return x[rows], y[rows]


# ------------------------------------------------------------------------------ ways to shard


def fsdp(model: Model, **options: Any) -> Model:
    fully_shard(model.blocks[0].up, **options)
    for block in model.blocks:
        fully_shard(block, **options)
    return fully_shard(model, **options)


def left_unsharded() -> Model:
    model = made()
    fully_shard(model.norm, mp_policy=MixedPrecisionPolicy(param_dtype=torch.float64))  # buffers
    model = fsdp(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    model(data()[0])
    assert model.stem.weight.dtype == torch.bfloat16  # the root's stay as they are after a pass
    return model


def in_a_group() -> Model:
    model = made()
    fully_shard([model.stem, model.head])
    return fully_shard(model)


def another_forward() -> Model:
    model = fsdp(made(lambda block, x: block.another(x)))
    for block in model.blocks:
        register_fsdp_forward_method(block, "another")
    return model


def dtensors(placement: Any) -> Model:
    def place(name: str, module: nn.Module, mesh: Any) -> None:
        for key, p in list(module.named_parameters(recurse=False)):
            some = Replicate() if p.ndim <= getattr(placement, "dim", 0) else placement
            found = nn.Parameter(distribute_tensor(p, mesh, [some]), p.requires_grad)
            module.register_parameter(key, found)

    return distribute_module(made(), init_device_mesh("cpu", (2,)), place)


def tensor_parallel() -> Model:
    plan = {
        "stem": ColwiseParallel(output_layouts=Replicate()),
        "head": RowwiseParallel(input_layouts=Replicate()),
    }
    return parallelize_module(made(), init_device_mesh("cpu", (2,)), plan)


WAYS: dict[str, Callable[[], Model]] = {
    "fsdp": lambda: fsdp(made()),
    "fsdp, left unsharded": left_unsharded,
    "fsdp, in a group": in_a_group,
    "fsdp, another forward": another_forward,
    "rows": lambda: dtensors(Shard(0)),
    "columns": lambda: dtensors(Shard(1)),
    "replicas": lambda: dtensors(Replicate()),
    "tensor parallel": tensor_parallel,
}


def makes_dtensors() -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    return made(lambda block, x: block(DTensor.from_local(x, mesh, [Replicate()])))


def unshards_itself() -> nn.Module:
    def call(block: Any, x: Tensor) -> Tensor:
        block.unshard()
        return block(x)

    model = fsdp(made(call))
    model(data()[0])  # starts FSDP
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "DDP": (lambda: DistributedDataParallel(made()), "give the model inside, its .module"),
    "FSDP1": (
        lambda: FullyShardedDataParallel(nn.Linear(4, 3), device_id=torch.device("cpu")),
        "use fully_shard (FSDP2) instead",
    ),
    "DTensors inside": (makes_dtensors, "'blocks.0.up.weight' meets an activation that is a DTen"),
    "unshards itself": (unshards_itself, "another tensor in the place of parameter 'blocks.0.norm"),
}  # fmt: skip


# ------------------------------------------------------------------------------ both processes


def flat(found: Sensitivity) -> np.ndarray:
    groups = [*found.layers.values(), *found.edges.values()]
    return np.stack(
        [np.concatenate([getattr(e, part) for e in groups])
         for part in ("value", "stderr_probe", "stderr_data")]
    )  # fmt: skip


def measured(model: nn.Module, rank: int | None, loss: str) -> dict[str, np.ndarray]:
    x, y = data(rank)
    given = x if loss == "kl" else (x, y)
    exact = bitwright.traces(model, given, LOSSES[loss], tolerance=0, chunk=3)
    drawn = hutchinson(model, given, LOSSES[loss], probes=9, chunk=CHUNK)
    return {f"{loss}, traces": flat(exact), f"{loss}, hutchinson": flat(drawn)}


def largest(model: nn.Module, rank: int | None) -> np.ndarray:
    with unsharded(model):
        return np.array([*top_eigenvalues(Hessian(model, data(rank)[0])).values()])


def state(model: nn.Module) -> list[Any]:
    """What a caller could see of a model, to be compared by `same`."""
    found: list[Any] = []
    for m in model.modules():
        found += [*m._parameters.values(), *m._buffers.values()]
        found += [*m._forward_pre_hooks.values(), *m._forward_hooks.values()]
        found += [f for f in vars(m).values() if callable(f)]
    return [(t, t.to_local().clone() if isinstance(t, DTensor) else None) for t in found]


def same(before: list[Any], model: nn.Module) -> bool:
    after = state(model)
    return len(after) == len(before) and all(
        a is b and (s is None or torch.equal(s, t))
        for (a, s), (b, t) in zip(before, after, strict=True)
    )


def interrupted(model: nn.Module, rank: int) -> bool:
    """Whether an exception within comes out."""

    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    for measure in (bitwright.traces, hutchinson):
        try:
            measure(model, data(rank)[0], progress=stop)
        except KeyboardInterrupt:
            continue
        return False
    return True


def check(name: str, rank: int, folder: str) -> None:
    model = WAYS[name]()
    shards._reshard(model)
    before = state(model)
    found = measured(model, rank, "kl") | measured(model, rank, "cross-entropy")
    found["largest"] = largest(model, rank)
    found["unchanged"] = np.array(same(before, model))
    found["interrupted"] = np.array(interrupted(model, rank) and same(before, model))
    if not name.startswith(("rows", "columns", "replicas")):  # those cannot run by themselves
        x = data()[0]
        found["outputs"] = model(x).detach().double().numpy()
    np.savez(f"{folder}/{name} {rank}.npz", **found)


def refusals(rank: int) -> dict[str, str]:
    found = {}
    for name, (build, _) in REFUSED.items():
        model = build()
        try:
            bitwright.traces(model, data(rank)[0])
        except bitwright.BitwrightError as error:
            found[name] = str(error)
        if name == "unshards itself":
            model(data()[0])  # it still can
    try:
        Hessian(dtensors(Shard(0)), data(rank)[0])
    except bitwright.BitwrightError as error:
        found["bare"] = str(error)
    return found


def wrong(rank: int) -> dict[str, np.ndarray]:
    """Variants that must not agree: this process's shard alone, and FSDP's hooks left in place."""

    def local(t: DTensor) -> Tensor:
        if not t.placements[0].is_shard():
            return full(t)
        parts = [torch.zeros_like(c) for c in full(t).chunk(2)]
        parts[rank] = t.to_local()
        return torch.cat(parts)

    full = DTensor.full_tensor
    DTensor.full_tensor = local
    try:
        shard = measured(dtensors(Shard(0)), rank, "kl")
    finally:
        DTensor.full_tensor = full
    talking, shards._TALKING = shards._TALKING, ("nowhere",)
    try:
        model = fsdp(made())
        model(data()[0])
        measured(model, rank, "kl")
        said = ""
    except bitwright.BitwrightError as error:
        said = str(error)
    finally:
        shards._TALKING = talking
    return {**shard, "hooks": np.array(said)}


def worker(rank: int, folder: str) -> None:
    for name in WAYS:
        check(name, rank, folder)
    np.savez(f"{folder}/wrong {rank}.npz", **wrong(rank))
    Path(f"{folder}/refused {rank}.json").write_text(json.dumps(refusals(rank)))


# ------------------------------------------------------------------------------ one process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shards")
    pair.run(worker, str(place))
    return place


@pytest.fixture(scope="module")
def plain() -> dict[str, np.ndarray]:
    found = measured(made(), None, "kl") | measured(made(), None, "cross-entropy")
    return found | {"largest": largest(made(), None)}


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_a_sharded_model_measures_as_a_plain_one(
    name: str, folder: Path, plain: dict[str, np.ndarray]
):
    first, second = (np.load(folder / f"{name} {rank}.npz") for rank in range(2))
    for key, one in plain.items():
        assert (first[key] == second[key]).all(), key  # to the last bit
        np.testing.assert_allclose(first[key][:2], one[:2], rtol=1e-9, atol=1e-12 * one.max())
        if "hutchinson" not in key:
            np.testing.assert_allclose(first[key], one, rtol=1e-6, atol=1e-9 * one.max())


@pytest.mark.parametrize("name", WAYS)
def test_the_model_is_left_as_it_was(name: str, folder: Path):
    for rank in range(2):
        found = np.load(folder / f"{name} {rank}.npz")
        assert found["unchanged"]
        assert found["interrupted"]  # also by an exception
        if "outputs" in found:
            outputs = made()(data()[0]).detach().numpy()
            off = 0.1 if "left unsharded" in name else 1e-12  # bfloat16
            np.testing.assert_allclose(found["outputs"], outputs, atol=off * np.abs(outputs).max())


def test_a_shard_alone_gives_other_numbers(folder: Path, plain: dict[str, np.ndarray]):
    found = np.load(folder / "wrong 0.npz")
    for key in ("kl, traces", "kl, hutchinson"):
        assert not np.allclose(found[key][0], plain[key][0], rtol=1e-2)


def test_gathering_in_the_passes_is_noticed(folder: Path):
    said = str(np.load(folder / "wrong 0.npz")["hooks"])
    assert "another tensor in the place of parameter" in said


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_seen_is_refused(name: str, folder: Path):
    for rank in range(2):
        assert REFUSED[name][1] in json.loads((folder / f"refused {rank}.json").read_text())[name]


def test_a_sharded_model_outside_of_unsharded_is_refused(folder: Path):
    said = json.loads((folder / "refused 0.json").read_text())["bare"]
    assert "parameter 'stem.weight' is a DTensor" in said and "unsharded(model)" in said


def test_without_a_group_nothing_is_changed():
    model = made()
    before = state(model)
    with unsharded(model):
        assert same(before, model)
