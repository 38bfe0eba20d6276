"""The roster of forms for other programs: what every one of them keeps to."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from bitwright.deploy.formats import FORMATS, convert_to
from bitwright.errors import BitwrightError
from bitwright.quantize import Quantized
from deploy import nets

NETS = ("plain", "residual", "signal", "dense", "gelu_tokens", "words", "tied_words", "segments")


def numbers(quantized: Quantized) -> list[torch.Tensor]:
    """Every number of a network that a form could change."""
    layers = [t for la in quantized.layers.values() for t in (la.codes, la.grid.scale, la.bias)]
    return [*layers, *quantized.network.module.state_dict().values()]


def written(form: str, quantized: Quantized, folder: Path) -> dict[str, bytes] | None:
    """Names and bytes of the files, which are those told; None where the form cannot hold it."""
    try:
        told = convert_to(form, quantized, folder)
    except BitwrightError as error:
        assert "\n" not in str(error)
        assert not list(folder.iterdir())  # what cannot be held leaves no half of it
        return None
    assert {p.parent for p in told.files} == {folder}
    assert sorted(told.files) == sorted(folder.iterdir())
    assert all(note and "\n" not in note for note in told.notes)
    return {p.name: p.read_bytes() for p in told.files}


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_tells_what_it_writes_and_writes_it_again(form: str, tmp_path: Path):
    assert FORMATS[form].what
    held = 0
    for name in NETS:
        quantized, _ = nets.quantized(name)
        before = copy.deepcopy(numbers(quantized))
        found = written(form, quantized, tmp_path / "deep" / name)
        assert all(map(torch.equal, numbers(quantized), before))  # the network is left alone
        if found is None:
            continue
        held += 1
        assert all(found.values())
        assert written(form, quantized, tmp_path / "again" / name) == found
        assert written(form, quantized, tmp_path / "deep" / name) == found  # over what is there
    assert held


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_depends_on_the_codes(form: str, tmp_path: Path):
    """Other widths and codes are other files."""
    each = [
        written(form, nets.quantized("dense", bits=bits)[0], tmp_path / str(bits[0]))
        for bits in ((2, 2), (8, 8))
    ]
    assert None not in each and each[0] != each[1]
