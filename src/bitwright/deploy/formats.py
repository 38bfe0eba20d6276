"""Other forms of an artefact, for other programs: one file each, one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bitwright.deploy import c_binary, compressed_tensors, torchao_config
from bitwright.deploy.written import Written
from bitwright.errors import BitwrightError
from bitwright.quantize import Quantized


@dataclass(frozen=True)
class Format:
    """A form and what it is for; `write` puts it into a folder."""

    what: str
    write: Callable[[Quantized, Path], Written]


FORMATS = {
    "c": Format("flat binary and header for microcontrollers", c_binary.write),
    "compressed-tensors": Format("Linear weights for vLLM-class servers", compressed_tensors.write),
    "torchao": Format("bits of Linear layers, for torchao to quantize with", torchao_config.write),
}


def convert_to(name: str, quantized: Quantized, folder: Path) -> Written:
    """Write `quantized` in the form `name` into `folder`, which is made if need be.

    Raises:
        BitwrightError: an unknown form, or one that cannot hold anything of this network.
    """
    if name not in FORMATS:
        raise BitwrightError(f"the format must be {', '.join(FORMATS)}, not {name!r}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BitwrightError(f"the folder {folder} cannot be made: {error.strerror}") from error
    return FORMATS[name].write(quantized, folder)
