"""The flat binary: what the C reader of `examples/` gives, bit for bit, and what it refuses."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fuzz_mutations
import numpy as np
import pytest
import torch

from bitwright.arith.grid import Grid, container
from bitwright.deploy import c_binary
from bitwright.errors import BitwrightError
from bitwright.quantize import Quantized, QuantizedLayer
from deploy import nets

SOURCES = Path(__file__).parents[2] / "examples" / "microcontroller"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror", "-O1", "-g"]
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
#: bw_open's words
WORDS = {"not a model": 1, "cut off": 2, "damaged": 3, "malformed": 4}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's test program, with sanitizers where the compiler has them."""
    path = tmp_path_factory.mktemp("c") / "dump"
    sources = [str(SOURCES / name) for name in ("bitwright.c", "dump.c")]
    for more in (SANITIZED, []):
        command = [str(COMPILER), *STRICT, *more, *sources, "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return path
    raise AssertionError(done.stderr)


def read(dump: Path, path: Path, *options: str) -> tuple[int, bytes]:
    """The program's word and what it wrote; fails where a sanitizer had something to say."""
    done = subprocess.run(
        [dump, *options, path],
        capture_output=True,
        env={**os.environ, "ASAN_OPTIONS": "exitcode=99"},
    )
    assert not done.stderr and done.returncode in range(5), done.stderr.decode()[-3000:]
    return done.returncode, done.stdout


def as_floats(quantized: Quantized) -> np.ndarray:
    """Each channel's weights and bias, one after another."""
    found = []
    for layer in quantized.network.layers:
        stored = quantized.layers[layer.name]
        bias = [stored.bias[:, None]] if layer.bias else []
        found.append(torch.cat([stored.matrix(), *bias], 1).flatten())
    return torch.cat(found).numpy()


@pytest.mark.parametrize("name", nets.ROSTER)
def test_the_c_reader_gives_the_same_bits(name: str, dump: Path, tmp_path: Path):
    quantized, _ = nets.quantized(name, narrow=True)
    written = c_binary.write(quantized, tmp_path)
    path = tmp_path / "model.bin"
    assert path in written.files
    word, found = read(dump, path)
    assert word == 0
    assert found == as_floats(quantized).astype("<f4").tobytes()
    word, found = read(dump, path, "-i")
    integers = [container(s.codes, s.grid)[0] for s in quantized.layers.values()]
    assert found == torch.cat([q.flatten() for q in integers]).to(torch.int8).numpy().tobytes()


def odd_scales(quantized: Quantized) -> Quantized:
    """Scales that are no float16 numbers, and the smallest and largest of float16."""
    layers = {}
    for i, (name, stored) in enumerate(quantized.layers.items()):
        scale = stored.grid.scale.clone()
        if i == 0:
            scale *= 1.0001
        else:
            scale[0], scale[1], scale[2] = 2.0**-24, 65504.0, 2.0**-14
        layers[name] = replace(stored, grid=replace(stored.grid, scale=scale))
    return replace(quantized, layers=layers)


def test_scales_of_either_type_come_out_exactly(dump: Path, tmp_path: Path):
    quantized = odd_scales(nets.quantized("dense")[0])
    c_binary.write(quantized, tmp_path)
    assert read(dump, tmp_path / "model.bin")[1] == as_floats(quantized).astype("<f4").tobytes()


def test_it_is_as_small_as_its_numbers(tmp_path: Path):
    quantized, _ = nets.quantized("residual")
    c_binary.write(quantized, tmp_path)
    layers = quantized.network.layers
    codes = sum(
        -(-bits * la.fan_in // 8)
        for la in layers
        for bits in quantized.layers[la.name].grid.bits.tolist()
    )
    rows = sum(la.rows for la in layers)
    assert (tmp_path / "model.bin").stat().st_size == 16 + 52 * len(layers) + codes + 7 * rows


def test_an_empty_edge_is_float_and_a_full_one_is_told(tmp_path: Path):
    quantized, _ = nets.quantized("plain", narrow=True)
    content = c_binary.binary(quantized)
    group = {e.name: e.group for e in quantized.network.edges}
    entry = struct.unpack_from("<4I5I2f4B2BH", content, 16)
    grid = quantized.edges[group["x"]]
    assert entry[9] == np.float32(grid.scale) and entry[11] == grid.zero and entry[13] == grid.bits
    out = quantized.edges[group["relu"]]  # the clip behind the convolution is its result
    assert entry[10] == np.float32(out.scale) and entry[14] == out.bits
    bare = struct.unpack_from("<4I5I2f4B2BH", c_binary.binary(replace(quantized, edges={})), 16)
    assert bare[9:15] == (0.0, 0.0, 0, 0, 0, 0)


def test_the_header_names_layers_and_sizes(tmp_path: Path):
    quantized, _ = nets.quantized("residual")
    c_binary.write(quantized, tmp_path)
    size = (tmp_path / "model.bin").stat().st_size
    program = tmp_path / "check.c"
    program.write_text(
        '#include "model.h"\n'
        f"int main(void) {{ return !(MODEL_BYTES == {size}u && MODEL_LAYERS == 6u && "
        "MODEL_MOST_CHANNELS == 8u && MODEL_MOST_FAN_IN == 72u && MODEL_LAYER_STEM_0 == 0u && "
        "MODEL_LAYER_HEAD == 5u); }\n"
    )
    subprocess.run(
        [str(COMPILER), *STRICT, str(program), "-o", str(tmp_path / "check")], check=True
    )
    assert subprocess.run([tmp_path / "check"]).returncode == 0


@pytest.fixture(scope="module")
def honest() -> bytes:
    return c_binary.binary(nets.quantized("mobile")[0])


def sealed(content: bytes) -> bytes:
    """With the size and checksum that it would need."""
    if len(content) < 12:
        return content
    body = content[12:]
    return content[:4] + struct.pack("<II", len(content), zlib.crc32(body)) + body


def put(place: int, value: int, size: int = 4) -> Callable[[bytes], bytes]:
    return lambda c: sealed(c[:place] + value.to_bytes(size, "little") + c[place + size :])


#: of the first layer's entry: name -> change, and the word
HOSTILE = {
    "another format": (lambda c: b"BWM2" + c[4:], "not a model"),
    "empty": (lambda c: b"", "not a model"),
    "cut off": (lambda c: c[:-1], "cut off"),
    "longer": (lambda c: c + b"\0", "cut off"),
    "a bit": (lambda c: c[:-1] + bytes([c[-1] ^ 1]), "damaged"),
    "too many layers": (put(12, 2**32 - 1), "malformed"),
    "no channels": (put(16, 0), "malformed"),
    "more channels": (put(16, 2**31), "malformed"),
    "fan-in beyond 32 bits": (put(20, 2**31), "malformed"),
    "no fan-in": (put(24, 0), "malformed"),
    "widths outside": (put(32, 2**32 - 1), "malformed"),
    "scales outside": (put(36, 2**31), "malformed"),
    "biases at the head": (put(40, 0), "malformed"),
    "codes outside": (put(44, 2**32 - 2), "malformed"),
    "more codes": (put(48, 2**31), "malformed"),
    "input step NaN": (put(52, 0x7FC00000), "malformed"),
    "output step below 0": (put(56, 0xBF800000), "malformed"),
    "zero point beyond": (put(62, 1, 1), "malformed"),
    "unknown kind": (put(64, 4, 1), "malformed"),
    "scales of 3 bytes": (put(65, 3, 1), "malformed"),
    "no groups": (put(66, 0, 2), "malformed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_gets_a_word(name: str, honest: bytes, dump: Path, tmp_path: Path):
    change, word = HOSTILE[name]
    path = tmp_path / "model.bin"
    path.write_bytes(change(honest))
    assert read(dump, path) == (WORDS[word], b"")


def test_every_width_and_zero_that_is_none_is_refused(honest: bytes, dump: Path, tmp_path: Path):
    place = struct.unpack_from("<I", honest, 32)[0]
    path = tmp_path / "model.bin"
    for value in (0x00, 0x09, 0x0F, 0x18, 0x27, 0x31):
        path.write_bytes(put(place, value, 1)(honest))
        assert read(dump, path)[0] == WORDS["malformed"], hex(value)


def test_fuzzed_files_never_reach_outside(honest: bytes, dump: Path, tmp_path: Path):
    """Sanitizers watch; half of the files have a checksum that fits again."""
    path, words = tmp_path / "model.bin", set()
    mutations = [f for name, f in fuzz_mutations.BYTES.items() if name != "length"]
    for number in range(160):
        rng = np.random.default_rng(number)
        content = mutations[number % len(mutations)](honest, rng)
        path.write_bytes(sealed(content) if number % 2 else content)
        word, found = read(dump, path)
        words.add(word)
        if word == 0 and number % 2 == 0:
            assert content == honest
        assert bool(found) == (word == 0)
    assert words >= {1, 2, 3, 4}


def test_what_it_cannot_hold_is_said(tmp_path: Path):
    quantized, _ = nets.quantized("gelu_tokens")
    assert any("norm" in note for note in c_binary.write(quantized, tmp_path).notes)
    stored = quantized.layers["a"]
    grid = Grid(stored.grid.bits, stored.grid.scale, stored.grid.zero * 0 - 1)
    layers = {**quantized.layers, "a": QuantizedLayer(stored.codes, grid, stored.bias)}
    with pytest.raises(BitwrightError, match="'a' has zero points"):
        c_binary.binary(replace(quantized, layers=layers))
