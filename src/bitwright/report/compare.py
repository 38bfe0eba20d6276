"""`compare`: several runs in one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bitwright.report import compared
from bitwright.report.comparison import Comparison, read_runs


def compare(
    *folders: str | Path | Sequence[str | Path], out: str | Path | None = None
) -> Comparison:
    """Put several runs of `bitwright compress` beside each other.

    Everything is read from the runs' folders; nothing is measured again and nothing in them is
    written. A run that is not finished takes part with what is known of it.

    Args:
        *folders: of runs, two at least; or one list of them.
        out: path of an HTML page to write, which needs nothing else; None for none.

    Returns:
        The runs with their figures, the options that differ, and what a reader should know.

    Raises:
        BitwrightError: fewer than two folders, one given twice, one that is missing, holds no run
            or one of another kind (a pruning, a multi-bit training, a graph network), or whose
            files are damaged.
        OSError: the page cannot be written.
    """
    each: list[str | Path] = []
    for given in folders:
        each += [given] if isinstance(given, str | Path) else given
    found = read_runs(each)
    if out is not None:
        compared.write(found, Path(out))
    return found


__all__ = ["compare"]
