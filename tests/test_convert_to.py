"""`bitwright convert-to FORMAT FILE`: every form by name, what it says, and bad input in a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitwright.deploy import artefact
from bitwright.deploy.formats import FORMATS
from deploy import nets
from pipeline.tiny import call

FILES = {
    "c": {"model.bin", "model.h"},
    "compressed-tensors": {"model.safetensors", "config.json"},
    "torchao": {"torchao.json"},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    artefact.save(nets.quantized("plain")[0], path, {})
    return path


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_is_written_and_told(
    form: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert call("convert-to", form, str(file), "--out", str(tmp_path / "there")) == 0
    assert {p.name for p in (tmp_path / "there").iterdir()} == FILES[form]
    lines = capsys.readouterr().out.splitlines()
    for name in FILES[form]:
        path = tmp_path / "there" / name
        assert f"{path}  {path.stat().st_size:,} bytes" in lines
    assert len(lines) > len(FILES[form])  # and what it does not hold


def test_without_a_folder_it_lies_beside_the_file(file: Path):
    assert call("convert-to", "c", str(file)) == 0
    assert (file.parent / "c" / "model.bin").is_file()


def test_bad_input_is_one_line(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a file").touch()
    for arguments, says in (
        (("gguf", str(file)), "the format must be c, compressed-tensors, torchao, not 'gguf'"),
        (("c", str(tmp_path / "nothing")), "not a bitwright artefact"),
        (("c", str(tmp_path / "a file")), "no checksum"),
        (("c", str(file), "--out", str(tmp_path / "a file")), "cannot be made"),
    ):
        assert call("convert-to", *arguments) == 2
        out, err = capsys.readouterr()
        assert not out and says in err and err.count("\n") == 1
