"""A pruned module on disk: its tensors and the edit that makes room for them, without a pickle.

`pruned.safetensors` holds the state and, in its metadata, the edit as JSON. Whoever has the factory
of the model builds it, applies the edit and loads the state: nothing in the file names code.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as packed
from torch import nn

from bitwright.checkpoint import load_into
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.prune.edit import Edit, from_json, pruned, to_json

_KEY = "bitwright.prune"


def save(module: nn.Module, edit: Edit, path: Path) -> None:
    """Write a pruned module, to a temporary name first.

    Args:
        module: what `edit` made of the model, trained since or not.
    """
    state = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
    put(path, packed(state, metadata={_KEY: json.dumps(to_json(edit))}))


def read_edit(path: Path) -> Edit | None:
    """The edit in a safetensors file; None where there is none: it is of no pruned module.

    Raises:
        BitwrightError: it cannot be read, or the edit is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
        return None if text is None else from_json(json.loads(text))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise BitwrightError(f"{path} cannot be read: {error}") from error
    except BitwrightError as error:
        raise BitwrightError(f"{path}: {error}") from error


def load(model: nn.Module, path: Path) -> nn.Module:
    """The pruned module of a file, made of the model that was pruned; that one stays as it is.

    Raises:
        BitwrightError: the file is missing, damaged or of another model.
    """
    if not path.is_file():
        raise BitwrightError(f"there is no {path}; run `bitwright prune … --out {path.parent}`")
    edit = read_edit(path)
    if edit is None:
        raise BitwrightError(f"{path} holds no pruned module; give a pruned.safetensors")
    found = pruned(model, edit)
    load_into(found, load_file(path), str(path))
    return found.cpu().eval()
