"""Tables in the documentation say what the kept results say."""

from __future__ import annotations

from pathlib import Path

import quality_ablation

DOCS = Path(__file__).parents[2] / "docs"


def test_the_ablation_page_holds_the_kept_results():
    table = quality_ablation.table()
    assert table.count("\n") > len(quality_ablation.LADDER)
    assert table in (DOCS / "ablation.md").read_text()
