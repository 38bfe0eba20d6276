"""Factories and weights: what is refused is refused in one line, and no pickle runs code."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from bitwright.checkpoint import load_into, load_model, load_object, load_weights
from small import refused


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write source text to `net.py` (or another name) and return the path."""

    def make(text: str, name: str = "net.py") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return make


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


NET = """
import torch
from torch import nn
VALUE = 3
LOADED = nn.Linear(2, 2)
class Two(nn.Module):
    def __init__(self, width):
        super().__init__()
def make():
    return nn.Linear(2, 2)
def wide(width, *, depth):
    return nn.Linear(width, 2)
def optional(width=2, *rest, **more):
    return nn.Linear(width, 2)
def number():
    return 3
def fails():
    raise RuntimeError("no luck\\nmore")
def leaves():
    raise SystemExit(3)
def type_error():
    return len(3)
def half():
    return nn.Linear(2, 2).half()
def double_buffer():
    model = nn.Linear(2, 2)
    model.register_buffer("grid", torch.zeros(2, dtype=torch.float64))
    return model
def nan():
    model = nn.Linear(2, 2)
    model.weight.data[1, 0] = float("nan")
    return model
def infinite():
    model = nn.BatchNorm1d(2)
    model.running_var[1] = float("inf")
    return model
def meta():
    return nn.Linear(2, 2, device="meta")
def lazy():
    return nn.LazyLinear(2)
"""


# ------------------------------------------------------------------------------------ objects


def test_objects_of_files_and_packages(write: Callable[..., str]) -> None:
    path = write(NET)
    assert load_object(f"{path}:VALUE") == 3
    assert load_object(f"{path}:Two.__init__").__name__ == "__init__"
    assert load_object("torch.nn:Linear") is nn.Linear


def test_a_file_finds_its_neighbours_also_when_called(write: Callable[..., str]) -> None:
    write("WIDTH = 5", "bitwright_neighbour_a.py")
    write("WIDTH = 6", "bitwright_neighbour_b.py")
    path = write(
        "import bitwright_neighbour_a\nfrom torch import nn\n"
        "def make():\n    import bitwright_neighbour_b as b\n"
        "    return nn.Linear(bitwright_neighbour_a.WIDTH, b.WIDTH)\n"
    )
    before = list(sys.path)
    model = load_model(f"{path}:make")
    assert model.get_parameter("weight").shape == (6, 5)
    assert sys.path == before


def test_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text(f"VALUE = {value}\ndef get(): return VALUE\n")
    first = load_object(f"{tmp_path}/a/net.py:get")
    second = load_object(f"{tmp_path}/b/net.py:get")
    assert (first(), second()) == (1, 2)
    assert first.__module__ != second.__module__


@pytest.mark.parametrize("spec", ["net.py", "net.py:", ":make", "", "torch"])
def test_a_spec_without_two_parts(spec: str) -> None:
    with refused(repr(spec), "FILE.py:name or package.module:name"):
        load_object(spec)


def test_missing_files_modules_and_names(write: Callable[..., str], tmp_path: Path) -> None:
    path = write(NET)
    with refused(f"there is no file {tmp_path}/other.py"):
        load_object(f"{tmp_path}/other.py:make")
    with refused("no_such_package_here", "ModuleNotFoundError", "FILE.py"):
        load_object("no_such_package_here.deep:make")
    with refused(path, "'mak'", "did you mean make?"):
        load_object(f"{path}:mak")
    with refused(path, "'zzzzz'", "check the name"):
        load_object(f"{path}:zzzzz")
    with refused("did you mean", "net.py"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        load_object("net:make")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nx = undefined\n", "NameError: name 'undefined' is not defined (line 2)"),
        ("import no_such_package_here\n", "ModuleNotFoundError"),
        ("def broken(:\n", "SyntaxError"),
        ("raise ValueError('first\\nsecond')\n", "ValueError: first (line 1)"),
        ("raise SystemExit('usage')\n", "SystemExit: usage"),
    ],
)
def test_errors_while_importing(write: Callable[..., str], text: str, said: str) -> None:
    before, path = list(sys.path), write(text)
    with refused(f"importing {path} failed", said):
        load_object(f"{path}:make")
    assert sys.path == before


def test_a_file_that_takes_its_folder_off_the_path(write: Callable[..., str]) -> None:
    path = write("import sys\nsys.path.pop(0)\nVALUE = 1\n")
    before = list(sys.path)
    assert load_object(f"{path}:VALUE") == 1
    assert sys.path == before


# ------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("VALUE", ("is a int, not a function or class",)),
        ("wide", ("needs arguments (width, depth)", "takes none")),
        ("Two", ("needs arguments (width)",)),
        ("number", ("returned a int, not a torch.nn.Module",)),
        ("fails", ("fails() failed: RuntimeError: no luck (line", "fix the function")),
        ("leaves", ("leaves() failed: SystemExit: 3",)),
        ("type_error", ("failed: TypeError: object of type 'int' has no len()",)),
        ("nan", ("'weight'", "NaN or infinite")),
        ("infinite", ("'running_var'", "NaN or infinite")),
        ("half", ("'weight'", "torch.float16", ".float()")),
        ("double_buffer", ("'grid'", "torch.float64", ".float()")),
        ("meta", ("'weight'", "no numbers yet")),
        ("lazy", ("'weight'", "no numbers yet")),
    ],
)
def test_factories_that_make_no_good_model(
    write: Callable[..., str], name: str, parts: tuple[str, ...]
) -> None:
    with refused(*parts):
        load_model(f"{write(NET)}:{name}")


def test_a_builtin_without_a_signature_is_called() -> None:
    with refused("builtins:dict() returned a dict"):
        load_model("builtins:dict")


@pytest.mark.parametrize("name", ["make", "optional", "LOADED"])
def test_models_come_in_evaluation_mode(write: Callable[..., str], name: str) -> None:
    model = load_model(f"{write(NET)}:{name}")
    assert isinstance(model, nn.Linear)
    assert not model.training


def test_the_demo_is_a_factory_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitwright.demo.network", net)
    assert isinstance(load_model("demo"), nn.Sequential)


def test_a_model_of_a_module_is_not_changed(
    write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = nn.Linear(2, 2)
    monkeypatch.setattr("bitwright.demo.network", shared)
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "w.safetensors")
    loaded = load_model("bitwright.demo:network", tmp_path / "w.safetensors")
    assert loaded is not shared
    assert shared.training
    assert float(loaded.get_parameter("weight").detach().min()) == 1
    assert float(shared.weight.detach().max()) < 1


def test_weights_with_nan_are_refused_after_loading(
    write: Callable[..., str], tmp_path: Path
) -> None:
    state = {"weight": torch.full((2, 2), float("nan")), "bias": torch.zeros(2)}
    torch.save(state, tmp_path / "w.pt")
    with refused("'weight'", "NaN"):
        load_model(f"{write(NET)}:make", tmp_path / "w.pt")


# ------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".PT", ".safetensors"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    state, path = net().state_dict(), tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    found = load_weights(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], state[k]) for k in state)
    assert load_weights(str(path)).keys() == found.keys()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s},
        lambda s: {"model": s, "optimizer": {"state": {0: torch.zeros(2)}}, "epoch": 3},
        lambda s: {"model_state_dict": s, "step": torch.tensor(3)},
        lambda s: {"net": s},
        lambda s: {"weights": s},
        lambda s: {"params": {"lr": 0.1}, "weights": s},
        lambda s: {"params": s},
        lambda s: {"ema": s},
        lambda s: {"model": {"name": "resnet"}, "ema": {"state_dict": s}},
        lambda s: {"model": {"state_dict": s}, "mean": torch.zeros(3)},
        lambda s: s | {"net": {"decay": torch.tensor(0.9)}},
        lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
        lambda s: s | {"version": "1.0"},
    ],
)
def test_nests_are_unwrapped(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], dict[str, Any]]
) -> None:
    state = dict(net().state_dict())
    torch.save(wrap(state), tmp_path / "w.pt")
    found = load_weights(tmp_path / "w.pt")
    assert found.keys() == state.keys()
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "model._orig_mod.",
    ],
)
def test_prefixes_are_stripped(prefix: str) -> None:
    source, target = net(), net()
    torch.nn.init.ones_(source.get_parameter("0.weight"))
    load_into(target, {prefix + k: v for k, v in source.state_dict().items()}, "w.pt")
    assert float(target.get_parameter("0.weight").detach().min()) == 1


def test_prefixes_that_belong_are_kept() -> None:
    model = nn.ModuleDict({"model": nn.Linear(2, 2), "net": nn.Linear(2, 2)})
    state = {k: torch.ones_like(v) for k, v in model.state_dict().items()}
    load_into(model, state, "w.pt")
    load_into(model, {f"model.{k}": v for k, v in state.items()}, "w.pt")
    assert all(float(p.detach().min()) == 1 for p in model.parameters())


@given(
    prefix=st.lists(
        st.sampled_from(["module.", "_orig_mod.", "model.", "net.", "backbone."]), max_size=3
    ),
    names=st.sets(st.sampled_from(["model", "net", "module", "head", "body"]), min_size=1),
)
def test_any_three_prefixes_come_off(prefix: list[str], names: set[str]) -> None:
    model = nn.ModuleDict({name: nn.Linear(1, 1) for name in names})
    state = {k: torch.full_like(v, 7) for k, v in model.state_dict().items()}
    load_into(model, {"".join(prefix) + k: v for k, v in state.items()}, "w.pt")
    assert all(float(p.detach().min()) == 7 for p in model.parameters())


def test_missing_batch_counts_and_tied_names_are_fine() -> None:
    model = net()
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    load_into(model, state, "w.pt")
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    tied = nn.ModuleDict({"a": a, "b": b})
    state = {k: torch.ones_like(v) for k, v in tied.state_dict().items() if k != "b.weight"}
    load_into(tied, state, "w.pt")
    assert float(b.weight.detach().min()) == 1
    with refused("lacks 'b.bias'"):
        load_into(tied, {k: v for k, v in state.items() if k != "b.bias"}, "w.pt")


def test_empty_tensors_are_not_tied() -> None:
    model = nn.Module()
    model.register_buffer("a", torch.zeros(0))
    model.register_buffer("b", torch.zeros(0))
    with refused("lacks 'b'"):
        load_into(model, {"a": torch.zeros(0)}, "w.pt")


def test_misfits_are_named() -> None:
    model = net()
    state = dict(model.state_dict())
    few = {k: v for k, v in state.items() if k not in ("0.weight", "3.bias")}
    with refused("w.pt does not fit Sequential", "lacks '0.weight', '3.bias'"):
        load_into(model, few, "w.pt")
    with refused("has 'extra.weight', unknown to the model"):
        load_into(model, state | {"extra.weight": torch.zeros(1)}, "w.pt")
    with refused(
        "lacks '0.weight', '0.bias', '1.weight' and 5 more", "and has 'a', 'b', 'c' and 2"
    ):
        load_into(model, dict.fromkeys("abcde", torch.zeros(1)), "w.pt")
    with refused("lacks '3.bias'", "has 'loss.weight'"):
        half = {f"model.{k}": v for k, v in state.items() if k != "3.bias"}
        load_into(model, half | {"loss.weight": torch.zeros(1)}, "w.pt")
    wrong = state | {"3.weight": torch.zeros(10, 8), "3.bias": torch.zeros(10)}
    with refused(
        "'3.weight' is (10, 8), the model's (3, 8)", "'3.bias' is (10,), the model's (3,)"
    ):
        load_into(model, wrong, "w.pt")
    with refused("'3.weight' is torch.int8", "give the float checkpoint"):
        load_into(model, state | {"3.weight": torch.zeros(3, 8, dtype=torch.int8)}, "w.pt")


def test_a_misfit_changes_nothing() -> None:
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: torch.ones_like(v) for k, v in before.items()} | {"3.bias": torch.zeros(10)}
    with refused("'3.bias'"):
        load_into(model, state, "w.pt")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ----------------------------------------------------------------------- files that are no weights


class Attack:
    """Unpickling it would create the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def saved_zip(value: Any, path: Path) -> None:
    torch.save(value, path)


def saved_legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def saved_pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def saved_pickle_2(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("save", [saved_zip, saved_legacy, saved_pickle, saved_pickle_2])
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: {"state_dict": {"a": v}}])
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_no_pickle_runs_code(
    tmp_path: Path,
    save: Callable[[Any, Path], None],
    wrap: Callable[[Any], Any],
    suffix: str,
) -> None:
    path, trace = tmp_path / f"w{suffix}", tmp_path / "ran"
    save(wrap(Attack(trace)), path)
    with refused(str(path)):
        load_weights(path)
    assert not trace.exists()
    # the same file, trusted, does run its code: the check above can fail
    if save in (saved_zip, saved_legacy):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert trace.exists()


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        ({"args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
        ({"best": np.float64(0.5)}, "scalar"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_what_a_pickle_asks_for_is_named(tmp_path: Path, value: Any, asked: str) -> None:
    path = tmp_path / "w.pt"
    torch.save(value, path)
    with refused(
        f"refuses to run code from {path}", asked, "save a plain state_dict or safetensors"
    ):
        load_weights(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with refused(f"there is no weights file {tmp_path}/none.pt"):
        load_weights(tmp_path / "none.pt")
    with refused(f"there is no weights file {tmp_path}"):
        load_weights(tmp_path)
    (tmp_path / "w.onnx").write_bytes(b"x")
    with refused("w.onnx is no weights file by its name", ".safetensors or .pt"):
        load_weights(tmp_path / "w.onnx")
    torch.save({"a": torch.zeros(5000)}, tmp_path / "whole.pt")
    broken = {
        "empty.pt": b"",
        "text.pt": b"hello world",
        "page.pth": b"<!DOCTYPE html>",
        "half.pt": (tmp_path / "whole.pt").read_bytes()[:9000],
        "w.safetensors": b"not safetensors at all",
        "empty.safetensors": b"",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with refused(str(tmp_path / name), "save a plain state_dict or safetensors"):
            load_weights(tmp_path / name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "w.pt")
    with refused("w.pt is a TorchScript archive", "state_dict"):
        load_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ({"generator": {"a": torch.zeros(1)}, "epoch": 3}, "generator, epoch"),
        ({}, "a dict"),
        ([torch.zeros(1)], "a list"),
        (torch.zeros(3), "a Tensor"),
    ],
)
def test_checkpoints_without_a_state_dict(tmp_path: Path, value: Any, seen: str) -> None:
    torch.save(value, tmp_path / "w.pt")
    with refused("w.pt holds no tensors", f"but {seen};"):
        load_weights(tmp_path / "w.pt")
