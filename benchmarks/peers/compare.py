"""Runs the peers as child processes in environments of their own and keeps what they answered.

`build/peers/cache/` has one folder for each run, named by a hash of everything that its answer
depends on: the peer's environment, its script, the request, the rows. Nothing is computed twice,
and a change of any of those computes anew.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import language
import numpy as np
from peers import environments

HERE = Path(__file__).resolve().parent
CACHE = environments.BUILD / "cache"
#: seconds that a run may take; GPTQ of MobileNetV2 needs more than 1,800 on a busy machine
LIMIT = 5400


@dataclass(frozen=True)
class Case:
    """What every party is asked for.

    Args:
        weight_bits: mean over all weights of convolutions and linear layers.
        activation_bits: None leaves activations in float.
    """

    weight_bits: float
    activation_bits: int | None

    @property
    def name(self) -> str:
        """For people: `W 4 / A8`."""
        acts = "float" if self.activation_bits is None else f"A{self.activation_bits}"
        return f"W {self.weight_bits:g} / {acts}"


@dataclass(frozen=True)
class PeerResult:
    """What a peer made of a case.

    Args:
        peer: its folder's and its script's name.
        version: the peer's own.
        setting: the peer's options.
        mean_bits: of weights, reached; over the weights that the float network has.
        size_bytes: of weights by their own widths, without scales and biases.
        logits: of the judged rows.
        seconds: wall time of quantizing, data and network read, nothing judged.
        processor_seconds: of all threads together.
    """

    peer: str
    version: str
    setting: Mapping[str, Any]
    mean_bits: float
    size_bytes: float
    logits: np.ndarray
    seconds: float
    processor_seconds: float


def digest(*arrays: np.ndarray) -> str:
    """A hash of shapes, types and numbers."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:16]


def run(
    peer: str,
    network: str,
    case: Case,
    setting: Mapping[str, Any],
    calibration: np.ndarray,
    judged: np.ndarray,
) -> PeerResult:
    """A peer's answer to a case by a setting, from the cache if it is there.

    Raises:
        RuntimeError: the peer failed; its last lines.
    """
    request = {
        "network": network,
        "weight_bits": float(case.weight_bits),
        "activation_bits": case.activation_bits,
        "setting": dict(setting),
    }
    found = CACHE / key(peer, request, digest(calibration, judged))
    if not (found / "answer.json").is_file():
        with _folder(found) as folder:
            (folder / "request.json").write_text(json.dumps(request))
            np.save(folder / "calibration.npy", calibration)
            np.save(folder / "judged.npy", judged)
            _child(peer, folder)
    answer = json.loads((found / "answer.json").read_text())
    return PeerResult(
        peer=peer,
        version=answer["version"],
        setting=dict(setting),
        mean_bits=answer["mean_bits"],
        size_bytes=answer["bytes"],
        logits=np.load(found / "logits.npy", allow_pickle=False),
        seconds=answer["seconds"],
        processor_seconds=answer["processor_seconds"],
    )


def key(peer: str, request: Mapping[str, Any], rows: str) -> str:
    """Of everything that an answer depends on.

    Args:
        peer: whose script and environment.
        request: as the script reads it.
        rows: digest of the rows.
    """
    scripts = [code((HERE / f"{name}.py").read_text()) for name in (f"run_{peer}", "child")]
    known = [environments.ENVIRONMENTS[peer].key, *scripts, json.dumps(request, sort_keys=True)]
    if request["network"] == "minilm":  # the only one whose weights are trained here
        known.append(hashlib.sha256(language.weights().read_bytes()).hexdigest())
    text = "\n".join([*known, rows])
    return f"{peer}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def code(text: str) -> str:
    """What of a script can change its answers: neither comments nor docstrings nor layout."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [line for line in body if not _text(line)]
            node.body = kept or [ast.Pass()]
    return ast.unparse(tree)


def _text(line: ast.stmt) -> bool:
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


@contextmanager
def _folder(final: Path) -> Iterator[Path]:
    """A folder that gets its name once all is in it; the rows themselves are not kept."""
    part = final.with_name(f"{final.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        for rows in ("calibration.npy", "judged.npy"):
            (part / rows).unlink()
        os.replace(part, final)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _child(peer: str, folder: Path) -> None:
    interpreter = environments.python(peer)
    surroundings = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [str(interpreter), "-m", f"peers.run_{peer}", str(folder)],
        cwd=folder,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    if done.returncode or not (folder / "answer.json").is_file():
        raise RuntimeError(f"{peer} in {folder}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
