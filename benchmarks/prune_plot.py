"""The curves of accuracy against parameters, one line a method, as SVG beside the results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLOURS = ("#0b6", "#064", "#c33", "#e80", "#66c", "#999", "#333")
_WIDTH, _HEIGHT, _LEFT, _TOP = 420, 260, 50, 24


def curves(name: str, found: Mapping[str, Sequence[tuple[float, float]]], dense: float) -> Path:
    """Write `results/prune_NAME.svg`.

    Args:
        name: of the network; found: method -> (share of parameters left, accuracy) points.
        dense: accuracy of the whole network.
    """
    low = min(a for points in found.values() for _, a in points)
    span = max(dense - low, 1e-3)

    def at(share: float, accuracy: float) -> tuple[float, float]:
        return _LEFT + share * _WIDTH, _TOP + (1 - (accuracy - low) / span) * _HEIGHT

    lines = []
    for i, (method, points) in enumerate(found.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in [(1.0, dense), *points]))
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = _TOP + 16 * i + 8
        lines.append(f'<text x="{_LEFT + _WIDTH + 12}" y="{y}" fill="{colour}">{method}</text>')
    for share in (0.1, 0.3, 0.5, 0.7, 1.0):
        x, y = at(share, low)
        lines.append(f'<text x="{x:.0f}" y="{y + 16:.0f}" text-anchor="middle">{share:.0%}</text>')
    for accuracy in (low, low + span / 2, dense):
        x, y = at(0, accuracy)
        lines.append(
            f'<text x="{x - 6:.0f}" y="{y + 4:.0f}" text-anchor="end">{accuracy:.1%}</text>'
        )
    body = "\n".join(lines)
    path = HERE / "results" / f"prune_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}.svg"
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 330" font-family="sans-serif" '
        f'font-size="12">\n<text x="{_LEFT}" y="14">{name}: accuracy, parameters left, after the '
        f"same fine-tuning</text>\n{body}\n</svg>\n"
    )
    return path
