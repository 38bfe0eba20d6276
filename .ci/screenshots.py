"""A page in headless Chromium as images: narrow and wide, light and dark, from top to bottom.

    python .ci/screenshots.py build/demo/report.html build/screenshots

Exit status 1 where there is no Chromium, or it draws nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--hide-scrollbars",
)  # fmt: skip
WIDTHS = (360, 1600)
#: Blink's numbers of `prefers-color-scheme`
SCHEMES = {"dark": 0, "light": 1}
#: says how high the page is in a frame of each width
_MEASURE = """<!DOCTYPE html><body>{frames}<script>
onload = () => {{ document.body.textContent = [...document.querySelectorAll("iframe")].map(
  f => f.contentDocument.documentElement.scrollHeight).join(" "); }};
</script>"""


def chromium(program: str, profile: Path, *words: str) -> str:
    """What it writes to stdout."""
    done = subprocess.run(
        [program, *FLAGS, f"--user-data-dir={profile}", *words],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.stdout


def heights(program: str, page: Path, scratch: Path) -> list[int]:
    """Of the page at each of the widths, in pixels."""
    frames = "".join(f'<iframe width="{w}" src="{page.as_uri()}"></iframe>' for w in WIDTHS)
    sheet = scratch / "measure.html"
    sheet.write_text(_MEASURE.format(frames=frames))
    words = ("--allow-file-access-from-files", "--dump-dom", sheet.as_uri())
    found = re.search(r"<body>([\d ]+)</body>", chromium(program, scratch / "profile", *words))
    if found is None:
        raise SystemExit(f"screenshots: {program} did not lay out {page}")
    return [int(height) for height in found[1].split()]


def main(page: Path, folder: Path) -> None:
    """Write `folder/STEM-WIDTH-SCHEME.png` for every width and scheme."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise SystemExit(f"screenshots: none of {', '.join(NAMES)} is installed")
    folder.mkdir(parents=True, exist_ok=True)
    page = page.resolve(strict=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for width, height in zip(WIDTHS, heights(program, page, scratch), strict=True):
            for scheme, number in SCHEMES.items():
                path = folder.resolve() / f"{page.stem}-{width}-{scheme}.png"
                path.unlink(missing_ok=True)
                chromium(
                    program, scratch / "profile", f"--window-size={width},{height}",
                    f"--blink-settings=preferredColorScheme={number}", f"--screenshot={path}",
                    page.as_uri(),
                )  # fmt: skip
                if not path.is_file():
                    raise SystemExit(f"screenshots: {program} wrote no {path}")
                print(path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
