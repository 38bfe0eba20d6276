"""Whether a `run.json` was written here, by this user: HMAC-SHA256 (RFC 2104) under their key.

The key is 32 random bytes in the user's folder for state, readable to them alone.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_KEY_BYTES = 32
#: the variable that names the user's folder for state, and where that is without it
_VARIABLE, _USUAL = (
    ("LOCALAPPDATA", "AppData/Local") if os.name == "nt" else ("XDG_STATE_HOME", ".local/state")
)


def code(options: Mapping[str, Any]) -> list[str]:
    """The specs among a run's options whose code is imported: FILE.py:name, package:name."""
    from bitwright.data import names_code

    model, data, task = (options.get(name) for name in ("model", "data", "task"))
    return [
        *([task] if task is not None else []),
        *([model] if model not in (None, "demo") else []),
        *([data] if data is not None and names_code(data) else []),
    ]


def seal(options: Mapping[str, Any]) -> str | None:
    """The HMAC of options and of where their code lies, in hex; None where no key can be kept.

    Where it lies: a relative path means another file elsewhere, and that one was not meant.
    """
    key = _key()
    if key is None:
        return None
    content = json.dumps([options, [_place(spec) for spec in code(options)]], sort_keys=True)
    return hmac.new(key, content.encode(), hashlib.sha256).hexdigest()


def is_ours(options: Mapping[str, Any], said: object) -> bool:
    """Whether `said` is the seal of these options."""
    try:
        own = seal(options)
    except RecursionError:  # JSON that is nested too deep
        return False
    if own is None or not isinstance(said, str):
        return False
    return hmac.compare_digest(own.encode(), said.encode("utf-8", "replace"))


def _place(spec: str) -> list[str]:
    """The file, or the files and folders of the package, whose code `spec` names."""
    file = spec.rpartition(":")[0]
    if file.endswith(".py"):
        return [str(Path(file).resolve())]
    try:  # of the outermost package: looking for those inside would import it
        found = importlib.util.find_spec(file.partition(".")[0])
    except (ImportError, ValueError):
        found = None
    if found is None:
        return []
    return [
        str(Path(p).resolve()) for p in found.submodule_search_locations or [found.origin or ""]
    ]


def _key() -> bytes | None:
    """The user's key, made where there is none yet; None where it can be neither read nor kept."""
    try:
        path = _state() / "bitwright" / "key"
        with suppress(FileNotFoundError):
            found = path.read_bytes()
            if len(found) == _KEY_BYTES:
                return found
            path.unlink()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix="key-", dir=path.parent)  # of mode 0600
        try:
            with open(handle, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
            try:
                os.link(temporary, path)  # unlike a renaming, it never takes another's place
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        return path.read_bytes()  # of whichever process was first
    except (OSError, RuntimeError):  # not ours to write, a full disk; nobody's home
        return None


def _state() -> Path:
    """The user's folder for what programs keep."""
    given = Path(os.environ.get(_VARIABLE, ""))  # a relative one is to be ignored, says XDG
    return given if given.is_absolute() else Path.home() / _USUAL
