"""`python read_artefact.py model.safetensors`: its weights with safetensors and numpy alone."""

import json
import math
import sys
import zlib

import numpy as np
from safetensors import safe_open

#: a code of `width` bits is made of a nibble, a pair and a bit, the high part first
STREAMS = {"nibbles": 4, "pairs": 2, "singles": 1}


def unpack(tensors: dict, counts: dict) -> dict:
    """Codes by width: value i of a stream of M bytes is in byte i mod M, at bit part * (i // M)."""
    codes = {width: np.zeros(count, np.uint8) for width, count in counts.items()}
    for name, part in STREAMS.items():
        stream, start = tensors.get(name, np.zeros(0, np.uint8)), 0
        shifts = np.arange(0, 8, part, dtype=np.uint8)[:, None]
        values = (stream >> shifts & np.uint8(2**part - 1)).ravel()
        for width in sorted(counts):
            if width < 8 and width & part:
                piece = values[start : start + counts[width]]
                codes[width] |= piece << np.uint8(width & (part - 1))  # what is below it
                start += counts[width]
    return codes | ({8: tensors["bytes"]} if 8 in counts else {})


def read(path: str) -> dict:
    """Float32 weights `scale * (code - zero)` bit for bit, biases, whatever stayed in float."""
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    program = json.loads(zlib.decompress(tensors["program"]))
    grid = np.frombuffer(zlib.decompress(tensors["grid"]), np.uint8).astype(int)
    width = grid % 16
    own = width > 8  # channels of bases: their codes are sums of coordinates
    width = np.where(own, width - 8, width)
    zero = np.float32(2**width - grid // 16) / 2  # stored in half steps
    numbers = tensors.get("coordinates", np.zeros(0, np.uint8)) / np.float32(2)
    coordinates = iter(np.split(numbers, np.cumsum(width[own] + 1)[:-1]))
    sums = {r: next(coordinates) for r in np.flatnonzero(own)}
    scale, bias = tensors["scale"].astype(np.float32), tensors["bias"]
    shapes = [shape for _, *shape in program["layers"]]  # the first number is a place in the graph
    fans = np.repeat([math.prod(s[1:]) for s in shapes], [s[0] for s in shapes])
    codes = unpack(tensors, {b: int(fans[width == b].sum()) for b in np.unique(width)})
    found = {name[2:]: value for name, value in tensors.items() if name[:2] == "f:"}
    rows = [np.zeros(0, np.float32)] * len(width)
    for b in codes:  # channels of one width follow one another in their own order
        for r in np.flatnonzero(width == b):
            level = codes[b][: fans[r]]
            if own[r]:  # the zero stands behind the coordinates
                *each, zero[r] = sums[r]
                level = sum((level >> i & 1) * d for i, d in enumerate(each))
            rows[r] = (level - zero[r]) * scale[r]
            codes[b] = codes[b][fans[r] :]
    for place, *shape in program["layers"]:  # the node that calls a layer names its parameters
        args = program["graph"][place][2]
        table = "embedding" in program["graph"][place][1]  # its weight is in front, without a bias
        found[args[not table]["p"]] = np.concatenate(rows[: shape[0]]).reshape(shape)
        if not table:
            found[args[2]["p"]], bias = np.split(bias, shape[:1])
        rows = rows[shape[0] :]
    return found


if __name__ == "__main__":
    for name, value in read(sys.argv[1]).items():
        print(f"{name:50} {value.dtype} {value.shape}")
