"""ONNX files on disk: written whole or not at all, data beside them above what a file may hold."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

#: of tensors in the file itself; protobuf ends at 2 GB, graph and all
LIMIT_BYTES = 2**31 - 2**27


def write(
    model: ir.Model,
    path: Path,
    *,
    finish: Callable[[bytes], bytes] | None = None,
    limit_bytes: int = LIMIT_BYTES,
) -> None:
    """Write the file, to a temporary name first; large tensors go to `NAME.data` beside it.

    Args:
        model: not to be used afterwards where its tensors were moved out.
        path: of the file.
        finish: makes of the file's bytes those that are written.
        limit_bytes: tensors of more than this in all are kept beside the file.
    """
    tensors = [v.const_value for v in model.graph.initializers.values()]
    outside = sum(t.nbytes for t in tensors if t is not None) > limit_bytes
    data = f"{path.name}.data"
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder) / path.name
        ir.save(model, written, external_data=data if outside else None)
        if finish is not None:
            written.write_bytes(finish(written.read_bytes()))
        if outside:
            os.replace(written.with_name(data), path.with_name(data))
        os.replace(written, path)
    if not outside:
        path.with_name(data).unlink(missing_ok=True)  # of an earlier, larger one
