"""What the multi-bit benchmark keeps, and what it says of known numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import alq
import harness
import pytest


def test_what_was_measured_is_kept_and_a_torn_line_is_measured_again(tmp_path: Path):
    path, calls = tmp_path / "kept.jsonl", []

    def make() -> int:
        calls.append(1)
        return len(calls)

    assert [harness.kept(path, key, make) for key in ("a", "b", "a")] == [1, 2, 1]
    path.write_text(path.read_text()[:-4])
    assert harness.kept(path, "b", make) == 3
    assert harness.kept(path, "a", make) == 1 and harness.kept(path, "b", make) == 3
    assert json.loads(path.read_text().splitlines()[-1]) == {"key": "b", "value": 3}


def runs(right: list[list[int]], size: int, bits: float) -> list[dict[str, Any]]:
    return [{"right": r, "kl": 0.5, "weight_bytes": size, "bytes": size + 9, "bits": bits}
            for r in right]  # fmt: skip


@pytest.mark.parametrize(
    ("rival", "size", "straight", "learned"),
    [
        ([1, 0, 0, 0], 120, True, True),
        ([1, 1, 1, 0], 120, False, True),  # equal is not above
        ([1, 1, 1, 1], 120, False, False),
        ([1, 0, 0, 0], 90, False, False),  # it had fewer bytes
    ],
)
def test_bars_ask_for_accuracy_and_for_no_more_bytes(
    rival: list[int], size: int, straight: bool, learned: bool
):
    found = {"multi-bit": runs([[1, 1, 1, 0], [1, 1, 1, 0]], 100, 1.99)}
    found |= {m: runs([rival, rival], size, 2.05) for m in ("straight-through", "learned")}
    rows = harness.Rows("alq", True)
    alq.compare(rows, "net", found, 2)
    own, first, second = rows.rows
    assert own["value"] == 75.0 and own["holds"] is True and own["each"] == [75.0, 75.0]
    assert (first["holds"], second["holds"]) == (straight, learned)
    assert first["multi-bit's gain, right"] == pytest.approx(75 - 100 * sum(rival) / 4)
    found["multi-bit"][0]["bits"] = 2.01
    alq.compare(rows, "net", found, 2)
    assert rows.rows[3]["holds"] is False


def test_both_methods_have_as_many_epochs():
    for epochs in (3, 6, 24, 31):
        assert len(alq.recipe_of(2.0, epochs, 0).epochs()) == epochs
