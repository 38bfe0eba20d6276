"""Every page in headless Chromium, at 360 and at 1600 pixels: nothing overflows, fails or loads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from bitwright.report import render
from report.every_page import PAGES, pages
from report.test_report import hostile, summary

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium, chromium-browser or google-chrome here"),
]
WIDTHS = (360, 1600)
#: what A4 leaves between margins of 12 mm, in pixels
PAPER = 703
#: a page that does all that a page of ours must not do
WRONG = """<!DOCTYPE html><html lang="en"><body>
<div style="width:2000px">wide</div><img src="http://127.0.0.1:9/x.png" alt="">
<script>undefined_function()</script></body></html>"""
#: measures every frame and leaves what it found in the page
PROBE = """<script>
onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(f => {
    const d = f.contentDocument, root = d.documentElement;
    d.querySelectorAll("details").forEach(e => { e.open = true; });
    const wide = [...d.querySelectorAll("body *")].filter(e => {
      if (e.closest(".scroll, .skip, .unseen, thead, pre")) return false;
      const box = e.getBoundingClientRect();
      return box.width && (box.right > root.clientWidth + 1 || box.left < -1);
    });
    return {
      name: f.title, width: root.clientWidth, content: root.scrollWidth,
      outside: wide.slice(0, 3).map(e => e.outerHTML.slice(0, 100)),
      loaded: f.contentWindow.performance.getEntriesByType("resource").map(e => e.name),
      images: d.images.length, scripts: d.scripts.length,
    };
  });
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
};
</script>"""


def on_paper(page: str) -> str:
    """The page as it is printed, on a screen."""
    assert page.count("@media print {") == 1
    return page.replace("@media print {", "@media all {")


def chromium(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """It, with a profile of its own."""
    return subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-extensions", "--disable-background-networking", "--hide-scrollbars",
            f"--user-data-dir={place / 'profile'}", *words,
        ],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], str]:
    """What the probe found in every page at every width, and the browser's console."""
    place = tmp_path_factory.mktemp("browser")
    framed = [
        (name, width, page)
        for name, page in (pages(place) | {"wrong": WRONG}).items()
        for width in WIDTHS
    ]
    for name, content in (("report", summary()), ("hostile", hostile())):
        framed.append((f"{name} on paper", PAPER, on_paper(render(content))))
    frames = "".join(
        f'<iframe title="{name} {width}" width="{width}" height="800" srcdoc="{escape(page)}">'
        "</iframe>"
        for name, width, page in framed
    )
    sheet = place / "sheet.html"
    sheet.write_text(f"<!DOCTYPE html><body>{frames}{PROBE}", encoding="utf-8")
    done = chromium(place, "--enable-logging=stderr", "--dump-dom", sheet.as_uri())
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert text is not None, done.stderr[-2000:]
    found = {entry["name"]: entry for entry in json.loads(unescape(text[1]))}
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return found, console


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_nothing_overflows_and_nothing_is_loaded(
    page: str, width: int, seen: tuple[dict[str, dict[str, Any]], str]
) -> None:
    found = seen[0][f"{page} {width}"]
    assert found["width"] == width
    assert found["content"] <= width, found
    assert found["outside"] == []
    assert found["loaded"] == [] and found["images"] == found["scripts"] == 0


@pytest.mark.parametrize("page", ["report", "hostile"])
def test_paper_is_wide_enough(page: str, seen: tuple[dict[str, dict[str, Any]], str]) -> None:
    """What does not fit makes Chromium print all of the page smaller."""
    found = seen[0][f"{page} on paper {PAPER}"]
    assert found["content"] <= found["width"] == PAPER, found


def printed(page: str, place: Path, name: str) -> int:
    """Number of pages of the PDF that Chromium prints."""
    place.joinpath(f"{name}.html").write_text(page, encoding="utf-8")
    target = place / f"{name}.pdf"
    source = place.joinpath(f"{name}.html").as_uri()
    done = chromium(place, "--no-pdf-header-footer", f"--print-to-pdf={target}", source)
    assert target.is_file(), done.stderr[-2000:]
    return len(re.findall(rb"/Type\s*/Page\b", target.read_bytes()))


def test_what_is_closed_is_printed(tmp_path: Path) -> None:
    """As many pages as with everything open, and more than without what is closed."""
    page = render(summary(layers=120))
    assert "<details open" not in page and page.count("<details") == page.count("</details>") > 2
    closed = printed(page, tmp_path, "closed")
    assert closed == printed(page.replace("<details", "<details open"), tmp_path, "open")
    left_out = re.sub("<details.*?</details>", "", page, flags=re.S)
    assert closed > printed(left_out, tmp_path, "without") > 1


def test_the_probe_sees_what_is_wrong(seen: tuple[dict[str, dict[str, Any]], str]) -> None:
    found, console = seen
    wrong = found["wrong 360"]
    assert wrong["content"] > 360 and wrong["outside"] and wrong["images"] == 1
    assert wrong["loaded"] == ["http://127.0.0.1:9/x.png"]
    assert "undefined_function" in console


def test_no_page_of_ours_says_anything_on_the_console(
    seen: tuple[dict[str, dict[str, Any]], str],
) -> None:
    lines = [line for line in seen[1].splitlines() if "undefined_function" not in line]
    assert [line for line in lines if "127.0.0.1:9" not in line] == []
