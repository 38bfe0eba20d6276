"""Loading what the user names: a factory, its weights. Nothing else may run code."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bitwright.errors import BitwrightError

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


def load_object(spec: str) -> Any:
    """The object `name` of `FILE.py:name` or `package.module:name`.

    Raises:
        BitwrightError: no colon, no such file or module, an error while importing it, no such name.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise BitwrightError(f"{spec!r} is not FILE.py:name or package.module:name")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, dir(value), 3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise BitwrightError(f"{place} has no {name!r}{hint}")
        value = getattr(value, part)
    return value


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise BitwrightError(f"there is no file {path}; give the path of a Python file")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"_bitwright_user_{digest}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(spec.name, None)
        raise BitwrightError(f"importing {path} failed: {_first_line(error)}") from error
    finally:
        sys.path.remove(folder)
    return module


def _from_package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise BitwrightError(
            f"importing {name!r} failed: {_first_line(error)}; give an installed module, or a path "
            "ending in .py"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def load_model(spec: str, weights: Path | None = None) -> nn.Module:
    """Call a factory without arguments, load weights into what it returns, check the numbers.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        BitwrightError: anything that keeps it from being a finite, loaded nn.Module.
    """
    if spec == "demo":
        spec = "bitwright.demo:network"
    factory: Callable[[], Any] = load_object(spec)
    if isinstance(factory, nn.Module):
        model: Any = factory
    elif not callable(factory):
        raise BitwrightError(f"{spec} is a {type(factory).__name__}, not a function or class")
    else:
        try:
            model = factory()
        except TypeError as error:
            raise BitwrightError(
                f"{spec}() failed: {_first_line(error)}; the factory is called without arguments"
            ) from error
        except Exception as error:
            raise BitwrightError(f"{spec}() failed: {_first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise BitwrightError(f"{spec}() returned a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        load_into(model, load_weights(weights), str(weights))
    model = model.cpu().eval()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise BitwrightError(f"weight {name!r} of {spec} holds NaN or infinite numbers")
        if value.is_floating_point() and value.dtype != torch.float32:
            raise BitwrightError(
                f"weight {name!r} of {spec} is {value.dtype}; convert the model with .float()"
            )
    return model


def load_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` file or a torch checkpoint, read without running code.

    Raises:
        BitwrightError: no such file, not readable, a pickle that would run code, no tensors in it.
    """
    if not path.is_file():
        raise BitwrightError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BitwrightError(
            f"{path} holds more than tensors, and loading it could run code; save its state_dict "
            "alone, or as safetensors"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError) as error:
        raise BitwrightError(f"{path} cannot be read: {_first_line(error)}") from error
    return _unwrap(found, path)


def _unwrap(found: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(4):
        if not isinstance(found, Mapping):
            break
        if found and all(isinstance(v, Tensor) for v in found.values()):
            return {str(k): v for k, v in found.items()}
        nested = [k for k in _NESTS if isinstance(found.get(k), Mapping)]
        if not nested:
            tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
            if tensors:
                return tensors
            break
        found = found[nested[0]]
    raise BitwrightError(
        f"{path} holds no state dict (looked for tensors, also under {', '.join(_NESTS[:4])} …)"
    )


def load_into(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict, with wrappers' prefixes removed where that makes the names match.

    Raises:
        BitwrightError: names or shapes that do not fit, the first of each named.
    """
    wanted = model.state_dict()
    best = dict(weights)
    for prefix in _PREFIXES:
        for base in (dict(weights), best):
            if all(k.startswith(prefix) for k in base):
                trial = {k.removeprefix(prefix): v for k, v in base.items()}
                if len(trial.keys() & wanted.keys()) > len(best.keys() & wanted.keys()):
                    best = trial
    missing = [
        k for k in wanted if k not in best and not k.endswith("num_batches_tracked")
    ]
    strange = [k for k in best if k not in wanted]
    if missing or strange:
        said = []
        if missing:
            said.append(f"lacks {', '.join(map(repr, missing[:3]))}{_more(missing)}")
        if strange:
            said.append(f"has {', '.join(map(repr, strange[:3]))}{_more(strange)} too many")
        raise BitwrightError(
            f"{source} does not fit {type(model).__name__}: it {' and '.join(said)}"
        )
    for name, value in best.items():
        if value.shape != wanted[name].shape:
            raise BitwrightError(
                f"{source}: {name!r} has shape {tuple(value.shape)}, the model's has "
                f"{tuple(wanted[name].shape)}"
            )
    model.load_state_dict(best, strict=False)


def _more(names: list[str]) -> str:
    return f" and {len(names) - 3} more" if len(names) > 3 else ""
