"""Loading what the user names: a factory, its weights. Nothing else may run code."""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pickle
import random
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bitwright.errors import BitwrightError

#: where training scripts put a state dict inside a checkpoint, the likeliest first
_NESTS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "params_ema",
    "ema",
    "module",
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
_TORCH_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")


def load_object(spec: str) -> Any:
    """The object `name` of `FILE.py:name` or `package.module:name`.

    Raises:
        BitwrightError: no colon, no such file or module, an error while importing it, no such name.
    """
    place, name = _parts(spec)
    module = _from_file(Path(place), spec) if place.endswith(".py") else _from_package(place)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, [n for n in dir(value) if n[:2] != "__"], 3)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else "check the name after the colon"
            )
            raise BitwrightError(f"{place} has no {name!r}; {hint}")
        value = getattr(value, part)
    return value


def call(function: Any, spec: str) -> Any:
    """What `function`, the object of `spec`, returns when called without arguments.

    Raises:
        BitwrightError: it is not callable, needs arguments, or fails.
    """
    if not callable(function):
        raise BitwrightError(
            f"{spec} is a {type(function).__name__}, not a function or class; name one that takes "
            "no arguments"
        )
    needed = _required(function)
    if needed:
        raise BitwrightError(
            f"{spec} needs arguments ({', '.join(needed)}) but is called without any; name a "
            "function that takes none and passes them"
        )
    try:
        with on_path(spec):
            return function()
    except (Exception, SystemExit) as error:
        raise BitwrightError(f"{spec}() failed: {said(error, spec)}; fix the function") from error


@contextmanager
def on_path(spec: str) -> Iterator[None]:
    """The folder of `FILE.py:name` first on `sys.path`, so that the file finds its neighbours."""
    place, _ = _parts(spec)
    if not place.endswith(".py"):
        yield
        return
    folder = str(Path(place).resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        # the user's code may have taken it off itself
        if folder in sys.path:
            sys.path.remove(folder)


def said(error: BaseException, spec: str = "") -> str:
    """Type, first line (at most 200 characters) and line number in the file `spec` starts with."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    place, colon, _ = spec.partition(".py:")
    if colon:
        path = str(Path(f"{place}.py").resolve())
        frames = traceback.extract_tb(error.__traceback__)
        inside = [f.lineno for f in frames if str(Path(f.filename).resolve()) == path]
        if inside:
            text += f" (line {inside[-1]})"
    return text


def _parts(spec: str) -> tuple[str, str]:
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise BitwrightError(f"{spec!r} names nothing; give FILE.py:name or package.module:name")
    return place, name


def _required(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # builtins without a signature: the call will tell
        return []
    some = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in some]


def _from_file(path: Path, spec: str) -> Any:
    if not path.is_file():
        raise BitwrightError(f"there is no file {path}; give the path of a Python file")
    # of the path alone, so that class names are the same in every run
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    found = importlib.util.spec_from_file_location(f"_bitwright_user_{digest}", path.resolve())
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    try:
        with on_path(spec):
            found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(found.name, None)
        raise BitwrightError(f"importing {path} failed: {said(error, spec)}; fix it") from error
    return module


def _from_package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        file = Path(f"{name}.py")
        hint = (
            f"did you mean {file}:…?" if file.is_file() else "give an installed module, or FILE.py"
        )
        raise BitwrightError(f"importing {name!r} failed: {said(error)}; {hint}") from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Shuffles, crops and first weights come out the same; the generators are put back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def load_model(spec: str, weights: Path | str | None = None) -> nn.Module:
    """Call a factory without arguments, load weights into what it returns, check the numbers.

    Args:
        spec: `FILE.py:factory`, `package.module:factory` (a module in its place is copied) or
            `demo`.
        weights: a file of `load_weights`, or None to keep the factory's.

    Returns:
        The model in evaluation mode, float32, on the CPU.

    Raises:
        BitwrightError: anything that keeps it from being a finite, loaded nn.Module.
    """
    if spec == "demo":
        spec = "bitwright.demo:network"
    found = load_object(spec)
    with seeded(0):  # weights that nothing is loaded into are the same in every process
        # a network that lives in a module is somebody else's: load into a copy
        model = copy.deepcopy(found) if isinstance(found, nn.Module) else call(found, spec)
    if not isinstance(model, nn.Module):
        raise BitwrightError(
            f"{spec}() returned a {type(model).__name__}, not a torch.nn.Module; return the network"
        )
    if weights is not None:
        load_into(model, load_weights(weights), str(weights))
    check_numbers(model, spec)
    return model.cpu().eval()


def check_numbers(model: nn.Module, source: str) -> None:
    """Refuse a parameter or buffer without data, with NaN, or of a float type but float32.

    Raises:
        BitwrightError: it names the first.
    """
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(value) or value.is_meta:
            raise BitwrightError(
                f"weight {name!r} of {source} holds no numbers yet; in the factory, load weights "
                "and run one batch through lazy layers"
            )
        if not (value.is_floating_point() or value.is_complex()):
            continue
        if not bool(torch.isfinite(value).all()):
            raise BitwrightError(
                f"weight {name!r} of {source} holds NaN or infinite numbers; use another checkpoint"
            )
        if value.dtype != torch.float32:
            raise BitwrightError(
                f"weight {name!r} of {source} is {value.dtype}; convert the model with .float()"
            )


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` file or a torch checkpoint, read without running code.

    Raises:
        BitwrightError: no such file, not readable, a pickle that would run code, no tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise BitwrightError(f"there is no weights file {path}; check the path")
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", *_TORCH_SUFFIXES):
        known = ", ".join(_TORCH_SUFFIXES)
        raise BitwrightError(f"{path} is no weights file by its name; give .safetensors or {known}")
    advice = "save a plain state_dict or safetensors"
    try:
        if suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            with warnings.catch_warnings():  # of the file's format: what matters is told below
                warnings.simplefilter("ignore", UserWarning)
                found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked:
            raise BitwrightError(
                f"bitwright refuses to run code from {path}, which asks for {asked[1]}; {advice}"
            ) from error
        raise BitwrightError(
            f"{path} was not written by torch.save, and bitwright refuses to run code from other "
            f"pickles; {advice}"
        ) from error
    except Exception as error:  # torch raises anything from KeyError to OSError on broken files
        if "TorchScript" in str(error):
            raise BitwrightError(f"{path} is a TorchScript archive; {advice}") from error
        raise BitwrightError(f"{path} cannot be read ({said(error)}); {advice}") from error
    state = _state(found, depth=4)
    if state is None:
        seen = ", ".join(map(str, list(found)[:5])) if isinstance(found, Mapping) else ""
        raise BitwrightError(
            f"{path} holds no tensors at its top or under {', '.join(_NESTS)}, but "
            f"{seen or f'a {type(found).__name__}'}; {advice}"
        )
    return state


def _state(found: Any, depth: int) -> dict[str, Tensor] | None:
    """The mapping with tensors in it: the first known nest that has any, unless more lie beside."""
    if not isinstance(found, Mapping) or depth == 0:
        return None
    own = {str(k): v.detach() for k, v in found.items() if isinstance(v, Tensor)}
    for key in _NESTS:
        nested = _state(found.get(key), depth - 1)
        if nested and len(nested) >= len(own):
            return nested
    return own or None


def load_into(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict into `model`, without wrappers' prefixes where that makes the names match.

    A missing `num_batches_tracked` is fine, and so is a missing name of a tied tensor.

    Raises:
        BitwrightError: names, shapes or types that do not fit, the first of each named.
    """
    wanted = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    best = _renamed(weights, wanted)
    given = {_storage(wanted[k]) for k in best if k in wanted}
    missing = [
        k
        for k, v in wanted.items()
        if k not in best and not k.endswith("num_batches_tracked") and _storage(v) not in given
    ]
    strange = [k for k in best if k not in wanted]
    if missing or strange:
        lacks = f"lacks {_first(missing)}" if missing else ""
        extra = f"has {_first(strange)}, unknown to the model" if strange else ""
        raise BitwrightError(
            f"{source} does not fit {type(model).__name__}: it "
            f"{' and '.join(filter(None, (lacks, extra)))}; use the factory it was trained with"
        )
    shapes = [
        f"{k!r} is {tuple(v.shape)}, the model's {tuple(wanted[k].shape)}"
        for k, v in best.items()
        if v.shape != wanted[k].shape
    ]
    if shapes:
        raise BitwrightError(
            f"{source} does not fit {type(model).__name__}: {'; '.join(shapes[:3])}"
            f"{_more(shapes)}; use the factory it was trained with"
        )
    for name, value in best.items():
        # codes of a quantized checkpoint would be taken for weights
        if wanted[name].is_floating_point() and not value.is_floating_point():
            raise BitwrightError(
                f"{source}: {name!r} is {value.dtype}, the model's float; give the float checkpoint"
            )
    model.load_state_dict(best, strict=False)


def _renamed(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with up to three prefixes off the names that have them, where most names match."""
    tried = frontier = [dict(weights)]
    for _ in range(3):
        frontier = [
            new
            for names in frontier
            for prefix in _PREFIXES
            if any(k.startswith(prefix) for k in names)
            and len(new := {k.removeprefix(prefix): v for k, v in names.items()}) == len(names)
        ]
        tried = tried + frontier
    return max(tried, key=lambda names: len(names.keys() & wanted.keys()))


def _storage(value: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are views of the same numbers, that is, tied."""
    if value.numel() == 0:
        return (id(value),)
    return (value.data_ptr(), value.shape, value.stride())


def _first(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + _more(names)


def _more(names: list[str]) -> str:
    return f" and {len(names) - 3} more" if len(names) > 3 else ""
