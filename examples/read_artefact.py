"""`python read_artefact.py model.safetensors`: its weights with safetensors and numpy alone."""

import json
import sys
import zlib

import numpy as np
from safetensors.numpy import load_file

STREAMS = {"nibbles": 4, "pairs": 2, "singles": 1}  # what a code is made of, the high part first


def unpack(tensors: dict, counts: dict) -> dict:
    """Codes by width: value i of a stream of M bytes is in byte i mod M, at bit part * (i // M)."""
    codes = {width: np.zeros(count, np.uint8) for width, count in counts.items()}
    for name, part in STREAMS.items():
        stream, start = tensors.get(name, np.zeros(0, np.uint8)), 0
        shifts = np.arange(0, 8, part, dtype=np.uint8)[:, None]
        values = (stream >> shifts & np.uint8(2**part - 1)).ravel()
        for width in sorted(w for w in counts if w < 8 and w & part):
            piece = values[start : start + counts[width]]
            codes[width] |= piece << np.uint8(width & (part - 1))  # what is below it
            start += counts[width]
    return codes | ({8: tensors["bytes"]} if 8 in counts else {})


def read(path: str) -> dict:
    """Float32 weights `scale * (code - zero)` bit for bit, biases, whatever stayed in float."""
    tensors = load_file(path)
    program = json.loads(zlib.decompress(tensors["program"]))
    grid = np.frombuffer(zlib.decompress(tensors["grid"]), np.uint8).astype(int)
    own = grid % 16 > 8  # channels of bases: their codes are sums of coordinates
    width = grid % 16 - 8 * own
    zero = np.float32(2**width - grid // 16) / 2  # stored in half steps, as coordinates are
    numbers, ends = tensors.get("coordinates", grid[:0]), np.cumsum(own * (width + 1))
    scale, bias = np.float32(tensors["scale"]), tensors["bias"]
    fans = np.concatenate([[int(np.prod(s[2:]))] * s[1] for s in program["layers"]])
    codes = unpack(tensors, {b: int(fans[width == b].sum()) for b in np.unique(width)})
    found = {name[2:]: value for name, value in tensors.items() if name[:2] == "f:"}
    rows = [np.zeros(0, np.float32)] * len(width)
    for b in codes:  # channels of one width follow one another in their own order
        for r in np.flatnonzero(width == b):
            level, codes[b] = codes[b][: fans[r]], codes[b][fans[r] :]
            if own[r]:  # the zero stands behind the coordinates
                *each, zero[r] = numbers[ends[r] - b - 1 : ends[r]] / np.float32(2)
                level = sum((level >> i & 1) * d for i, d in enumerate(each))
            rows[r] = (level - zero[r]) * scale[r]
    for place, *shape in program["layers"]:  # the node that calls a layer names its parameters
        _, kind, args = program["graph"][place][:3]
        table = "embedding" in kind  # its weight is in front, without a bias
        found[args[not table]["p"]] = np.concatenate(rows[: shape[0]]).reshape(shape)
        if not table:
            found[args[2]["p"]], bias = np.split(bias, shape[:1])
        rows = rows[shape[0] :]
    return found


if __name__ == "__main__":
    for name, value in read(sys.argv[1]).items():
        print(f"{name:50} {value.dtype} {value.shape}")
