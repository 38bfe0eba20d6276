"""The reader of `examples/` gives what `bitwright.load` gives, number by number."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import bitwright
from bitwright.deploy import artefact
from bitwright.network import outputs
from deploy import nets

READER = Path(__file__).parents[2] / "examples" / "read_artefact.py"


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("read_artefact", READER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", nets.ROSTER)
def test_it_reads_every_number(name: str, reader: ModuleType, tmp_path: Path):
    quantized, x = nets.quantized(name)
    path = tmp_path / "model.safetensors"
    artefact.save(quantized, path, {})
    network = bitwright.load(path).quantized.network
    module = network.module
    known = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    found = reader.read(str(path))
    assert found.keys() == known.keys()
    for key, value in known.items():
        assert found[key].dtype == value.numpy().dtype
        assert np.array_equal(found[key], value.numpy()), key
    read = {key: torch.from_numpy(np.array(value)) for key, value in found.items()}
    assert torch.equal(outputs(module, x[:4]), outputs(module, x[:4], constants=read))


def test_it_is_sixty_lines_of_numpy_and_safetensors():
    lines = READER.read_text().splitlines()
    assert len(lines) <= 60
    imports = {m[1] for line in lines if (m := re.match(r"(?:import|from) (\w+)", line))}
    assert imports - set(sys.stdlib_module_names) == {"numpy", "safetensors"}


def test_it_runs_by_itself(tmp_path: Path):
    quantized, _ = nets.quantized("dense")
    path = tmp_path / "model.safetensors"
    artefact.save(quantized, path, {})
    done = subprocess.run(
        [sys.executable, READER, path], capture_output=True, text=True, env={"PATH": ""}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["a.weight", "float32", "(16,", "12)"]
