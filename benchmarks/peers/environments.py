"""A virtual environment of its own for each peer, made once under `build/peers/`.

`torch` goes first and by itself, so that nothing else decides which build of it is taken (as in the
Makefile); then each peer and what it really imports, by exact version and without dependencies:
left to themselves some of them would bring torchvision and with it another torch. An environment is
made again when its list of packages changes; about 1 GB each.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

#: the folder that git ignores; the environments, what the peers read and what they answered
BUILD = Path(__file__).resolve().parents[2] / "build" / "peers"

#: one torch for all: newer than some of the peers were tested with, all of them work with it
TORCH = "2.13.0"
#: what the networks of the benchmarks and the children's common part import
COMMON = ("numpy==2.4.6", "pillow==12.3.0")


@dataclass(frozen=True)
class Environment:
    """What a peer is installed from.

    Args:
        name: of the folder and of the script, `run_NAME.py`.
        package: the peer itself.
        version: of it.
        packages: the rest that it imports.
    """

    name: str
    package: str
    version: str
    packages: tuple[str, ...]

    @property
    def key(self) -> str:
        """Changes with every version that matters."""
        listed = (TORCH, self.package, self.version, *COMMON, *self.packages)
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:16]


ENVIRONMENTS = {
    e.name: e
    for e in (
        Environment(
            "brevitas",
            "brevitas",
            "0.13.4",
            (
                # of learned rounding, which lives in the examples that its wheel carries
                "accelerate==1.15.0",
                "dependencies==2.0.1",
                "huggingface_hub==1.33.0",
                "packaging==26.3",
                "psutil==7.2.2",
                "pyyaml==6.0.3",
                "safetensors==0.8.0",
                "setuptools==80.9.0",
                "tqdm==4.70.1",
                "unfoldNd==0.2.3",
            ),
        ),
        Environment(
            "mct",
            "model-compression-toolkit",
            "2.6.1",
            (
                "absl-py==2.5.1",
                "annotated-types==0.7.0",
                "cloudpickle==3.1.2",
                "contourpy==1.3.3",
                "cycler==0.12.1",
                "edge-mdt-cl==1.1.1",
                "fonttools==4.68.0",
                "grpcio==1.85.1",
                "joblib==1.6.0",
                "kiwisolver==1.5.1",
                "Markdown==3.11.3",
                "matplotlib==3.9.4",
                "mct-quantizers==1.7.0",
                "narwhals==2.29.0",
                "networkx==3.5",
                "packaging==26.3",
                "protobuf==7.36.2",
                "PuLP==3.3.2",
                "pydantic==2.11.10",
                "pydantic_core==2.33.2",
                "pyparsing==3.3.3",
                "python-dateutil==4.0.0",
                "scikit-learn==1.9.1",
                "scipy==1.17.1",
                "tensorboard==2.20.0",
                "tensorboard-data-server==0.7.2",
                "threadpoolctl==3.6.0",
                "tqdm==4.70.1",
                "typing-inspection==0.4.5",
                "tzdata==2026.6",
                "Werkzeug==3.1.9",
            ),
        ),
        Environment(
            "nncf",
            "nncf",
            "3.4.0",
            (
                "packaging==26.3",
                "ninja==1.13.2",
                "openvino-telemetry==2025.2.0",
                "psutil==7.2.2",
                "pydot==4.0.1",
                "rich==15.0.0",
                "safetensors==0.8.0",
                "joblib==1.6.0",
                "scikit-learn==1.9.1",
                "threadpoolctl==3.6.0",
                "scipy==1.17.1",
                "tabulate==0.10.0",
            ),
        ),
        Environment(
            "onnxruntime",
            "onnxruntime",
            "1.31.1",
            (
                "flatbuffers==25.12.19",
                "ml_dtypes==0.6.0",
                "onnx==1.23.2",
                "onnx-ir==1.1.0",
                "onnxscript==0.7.2",
                "packaging==26.3",
                "protobuf==7.36.2",
            ),
        ),
    )
}


def python(name: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is absent or out of date.

    Raises:
        RuntimeError: pip failed; its last lines.
    """
    wanted = ENVIRONMENTS[name]
    folder = BUILD / name
    found, stamp = folder / "bin" / "python", folder / "installed"
    if stamp.is_file() and stamp.read_text() == wanted.key:
        return found
    print(f"installing {wanted.package} {wanted.version} into {folder}", file=sys.stderr)
    venv.create(folder, clear=True, with_pip=True)
    _pip(found, f"torch=={TORCH}")
    _pip(found, "--no-deps", f"{wanted.package}=={wanted.version}", *COMMON, *wanted.packages)
    part = stamp.with_suffix(".part")
    part.write_text(wanted.key)
    os.replace(part, stamp)
    return found


def _pip(interpreter: Path, *what: str) -> None:
    done = subprocess.run(
        [str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check", *what],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"pip install {' '.join(what)}:\n{done.stderr[-2000:]}")
