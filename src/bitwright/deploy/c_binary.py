"""A flat little-endian binary and a C header, for programs without a file system or a heap.

`model.bin` (offsets from its beginning; numbers without sign, one byte each where not said):

| bytes | what |
|---|---|
| 16 | `BWM1`; 4 bytes each: size, CRC-32 (zlib's) of all behind it, number of layers |
| 52 a layer | 4 bytes each: the weight's shape (4 numbers, 1 where it has fewer axes), offsets of |
| | widths, scales, biases, codes, then bytes of codes; input and output step (float32, 0 where |
| | the activation is float); their zero points, their widths, kind (0 linear, 1 conv1d, 2 conv2d, |
| | 3 embedding), bytes of a scale, and two bytes of groups |
| blocks | of each layer: scales (float16 or float32), biases (float32; none of an embedding), one |
| | byte a channel `width + 16 · (2^width − zero)`, codes |

The codes of a channel begin at a whole byte, the first code in the lowest bits. `model.h` names the
layers by number and tells the sizes that buffers need. `examples/microcontroller/` reads them.
"""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np

from bitwright.deploy.artefact import symbols
from bitwright.deploy.written import Written
from bitwright.errors import BitwrightError
from bitwright.files import put
from bitwright.network import Layer
from bitwright.network.network import fused_activation
from bitwright.quantize import EdgeGrid, Quantized

_KINDS = {"linear": 0, "conv1d": 1, "conv2d": 2, "embedding": 3}
_HEAD = struct.Struct("<4sIII")
_LAYER = struct.Struct("<4I5I2f4B2BH")
_LARGEST = 2**31
_FLOAT = EdgeGrid(0.0, 0, 0)


def write(quantized: Quantized, folder: Path) -> Written:
    """Write `model.bin` and `model.h`.

    Raises:
        BitwrightError: more than 2 GB, or a shape or grid that the format cannot hold.
    """
    if any(grid.widths for grid in quantized.edges.values()):
        raise BitwrightError(
            "the flat binary has one width for an activation, and this network has them by "
            "channel; compress it with --granularity edge"
        )
    if any(bool(stored.grid.multibit.any()) for stored in quantized.layers.values()):
        raise BitwrightError(
            "the flat binary has uniform grids, and this network has channels of bases; compress "
            "it with --levels uniform"
        )
    content = binary(quantized)
    files = (
        put(folder / "model.bin", content),
        put(folder / "model.h", header(quantized, len(content)).encode()),
    )
    notes = [
        "weights, biases and grids of layers; the order of operations is the program's to write"
    ]
    rest = [n for n, _ in quantized.network.module.named_parameters()]
    own = {name for la in quantized.network.layers for name in (la.weight, la.bias)}
    left = [name for name in rest if name not in own]
    if left:
        notes.append(f"parameters that stay in float are not held: {', '.join(left[:5])}")
    return Written(files, tuple(notes))


def pack_rows(codes: np.ndarray, widths: np.ndarray) -> bytes:
    """Codes uint8 [rows, fan_in] as strings of bits, each row's from a whole byte on."""
    found = []
    for row, width in zip(codes, widths, strict=True):
        each = (row[:, None] >> np.arange(width, dtype=np.uint8)) & 1
        found.append(np.packbits(each, bitorder="little").tobytes())
    return b"".join(found)


def binary(quantized: Quantized) -> bytes:
    """The flat file."""
    layers = quantized.network.layers
    place = _HEAD.size + _LAYER.size * len(layers)
    entries, blocks = [], []
    for layer in layers:
        entry, block = _layer(quantized, layer, place)
        entries.append(entry)
        blocks.append(block)
        place += len(block)
    if place >= _LARGEST:
        raise BitwrightError(f"the flat binary would take {place} bytes; it holds 2 GB at most")
    body = struct.pack("<I", len(layers)) + b"".join(entries) + b"".join(blocks)
    return struct.pack("<4sII", b"BWM1", place, zlib.crc32(body)) + body


def _layer(quantized: Quantized, layer: Layer, place: int) -> tuple[bytes, bytes]:
    """A layer's entry, and its block, which begins at `place`."""
    stored = quantized.layers[layer.name]
    if len(layer.shape) > 4 or layer.groups > 65535:
        raise BitwrightError(f"layer {layer.name!r} of shape {layer.shape} has too many axes for C")
    scale = stored.grid.scale.numpy()
    half = scale.astype(np.float16)
    narrow = np.array_equal(half.astype(np.float32), scale)
    parts = [
        (half if narrow else scale).astype("<f2" if narrow else "<f4").tobytes(),
        stored.bias.numpy().astype("<f4").tobytes(),  # none of an embedding
        symbols(layer, stored).tobytes(),
        pack_rows(stored.codes.numpy(), stored.grid.bits.numpy()),
    ]
    at = np.cumsum([place, *map(len, parts)]).tolist()
    source, result = _grids(quantized, layer)
    entry = _LAYER.pack(
        *(*layer.shape, 1, 1, 1)[:4],
        at[2], at[0], at[1], at[3], len(parts[3]),
        source.scale, result.scale,
        source.zero, result.zero, source.bits, result.bits,
        _KINDS[layer.kind], 2 if narrow else 4, layer.groups,
    )  # fmt: skip
    return entry, b"".join(parts)


def _grids(quantized: Quantized, layer: Layer) -> tuple[EdgeGrid, EdgeGrid]:
    """What the layer's first call reads and gives, a step of 0 where that is float."""
    network = quantized.network
    group = {edge.name: edge.group for edge in network.edges}
    call = next(n for n in network.module.graph.nodes if n.name == layer.calls[0])
    clip = fused_activation(call)
    source = "" if layer.kind == "embedding" else getattr(call.args[0], "name", "")
    result = clip.name if clip is not None and clip.name in group else call.name
    read, given = (quantized.edges.get(group.get(name, -1), _FLOAT) for name in (source, result))
    return read, given


def header(quantized: Quantized, size: int) -> str:
    """`model.h`: numbers and sizes by name."""
    layers = quantized.network.layers
    lines = [
        "/* Of model.bin, which examples/microcontroller/bitwright.h reads. */",
        "#ifndef MODEL_H",
        "#define MODEL_H",
        "",
        f"#define MODEL_BYTES {size}u",
        f"#define MODEL_LAYERS {len(layers)}u",
        f"#define MODEL_MOST_CHANNELS {max(la.rows for la in layers)}u",
        f"#define MODEL_MOST_FAN_IN {max(la.fan_in for la in layers)}u",
        "",
    ]
    taken: set[str] = set()
    for i, layer in enumerate(layers):
        name = re.sub(r"[^A-Z0-9]", "_", layer.name.upper())
        while name in taken:
            name += "_"
        taken.add(name)
        shape = "x".join(map(str, layer.shape))
        lines.append(f"#define MODEL_LAYER_{name} {i}u /* {layer.kind} {shape} */")
    return "\n".join([*lines, "", "#endif", ""])
