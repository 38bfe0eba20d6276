"""Every pair of colours that text and its ground have: 4.5 to 1 at least (WCAG 2.1, 1.4.3)."""

from __future__ import annotations

import re

import pytest

from bitwright.report.page import stylesheet

#: (text, ground) as the style sheet pairs them
PAIRS = (
    ("ink", "paper"), ("soft", "paper"), ("accent", "paper"), ("ink", "raised"),
    ("soft", "raised"), ("ink", "accent-soft"), ("soft", "accent-soft"), ("paper", "accent"),
    ("ink", "good-soft"), ("good", "good-soft"), ("ink", "bad-soft"), ("bad", "bad-soft"),
    ("soft", "bad-soft"), ("paper", "bad"), ("paper", "after"),
)  # fmt: skip
#: the number on each width's colour
ON = {**dict.fromkeys((1, 2), "on-low"), **dict.fromkeys((3, 4, 5), "on-dim"), 6: "on-high"}
ON |= dict.fromkeys((7, 8), "on-high")


def colours() -> dict[str, dict[str, str]]:
    """Custom properties of the light and of the dark style."""
    dark_at = stylesheet().index("prefers-color-scheme: dark")
    end = stylesheet().index("box-sizing")
    found = re.compile(r"--([\w-]+): (#[0-9a-f]{6})")
    light = dict(found.findall(stylesheet()[:dark_at]))
    rest = stylesheet()[end:]
    shared = dict(found.findall(rest))
    dark = dict(found.findall(stylesheet()[dark_at:end]))
    return {"light": light | shared, "dark": light | shared | dark}


def luminance(colour: str) -> float:
    """Relative luminance: 0.2126 R + 0.7152 G + 0.0722 B of linear values."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    """(brighter + 0.05) / (darker + 0.05)."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_the_formula() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
    assert contrast("#777777", "#ffffff") < 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    values = colours()[scheme]
    pairs = [*PAIRS, *((name, f"b{bits}") for bits, name in ON.items())]
    found = {pair: round(contrast(values[pair[0]], values[pair[1]]), 2) for pair in pairs}
    assert {pair: value for pair, value in found.items() if value < 4.5} == {}
