"""What README.md and docs/ show is run as it stands there.

A block marked `python` is executed, and of a block marked `sh` or `console` every line that starts
with `bitwright ` (after the prompt `$ `, if there is one; a backslash at its end continues it). All
blocks of one file share one namespace and one temporary folder, in the order of the file. A block
is left out only by a comment before it that says why:

    <!-- not run: needs a data set of 2 GB -->
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.is_file()]
TIMEOUT_S = 900
#: names that look as if the block were run
MISNAMED = {"py": "python", "python3": "python", "bash": "sh", "shell": "sh", "zsh": "sh"}
FENCE = re.compile(r"(?P<indent> *)(?P<marks>`{3,}|~{3,})\s*(?P<language>[^\s`]*)")
NOT_RUN = re.compile(r"<!--\s*not run:(?P<why>.*?)-->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, the line that starts on, and why it is not run."""

    language: str
    text: str
    line: int
    not_run: str | None


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a Markdown page, in order.

    Raises:
        ValueError: a block has no end, a wrong name, or is left out without a reason.
    """
    found = []
    lines = page.splitlines()
    before: list[str] = []  # since the last block
    i = 0
    while i < len(lines):
        opening = FENCE.match(lines[i])
        if not opening:
            before.append(lines[i])
            i += 1
            continue
        start, indent = i + 1, len(opening["indent"])
        closing = re.compile(rf" *{re.escape(opening['marks'])}+\s*\Z")
        end = next((j for j in range(start, len(lines)) if closing.match(lines[j])), None)
        if end is None:
            raise ValueError(f"line {start}: the block has no end")
        language = opening["language"]
        if language in MISNAMED:
            raise ValueError(
                f"line {start}: mark the block {MISNAMED[language]!r}, so that it is run"
            )
        comment = NOT_RUN.search("\n".join(before))
        why = comment["why"].strip() if comment else None
        if why == "":
            raise ValueError(f"line {start}: say why the block is not run")
        text = "\n".join(re.sub(rf"\A {{0,{indent}}}", "", line) for line in lines[start:end])
        found.append(Block(language, text, start + 1, why))
        before, i = [], end + 1
    return found


def commands_of(text: str) -> list[list[str]]:
    """The arguments of every `bitwright` command in a block of shell lines.

    Raises:
        ValueError: a command needs a shell (a pipe, a redirection, a variable); none is started.
    """
    commands = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = line.strip().removeprefix("$ ")
        if not line.startswith("bitwright "):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        arguments = list(lexer)
        shell = [a for a in arguments if set(a) <= set("|&;<>") or a.startswith("$")]
        if shell:
            raise ValueError(f"{line!r} needs a shell for {shell[0]!r}; show it without")
        commands.append(arguments[1:])
    return commands


def run_command(arguments: list[str], folder: Path) -> None:
    """`bitwright` with `arguments` in `folder`; its exit code must be 0."""
    done = subprocess.run(
        [sys.executable, "-m", "bitwright", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        command = shlex.join(["bitwright", *arguments])
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout[-4000:]}")


@dataclass
class PageRun:
    """One page's folder and namespace, and how many of its blocks have been begun."""

    name: str
    blocks: list[Block]
    folder: Path
    command: Callable[[list[str], Path], None] = run_command
    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__readme__"})
    begun: int = 0

    def run(self, number: int) -> None:
        """Runs block `number`, and first those before it that have not been run yet.

        Thus a block selected alone, or sent to another worker, finds what the earlier ones made.
        """
        while self.begun <= number:
            block = self.blocks[self.begun]
            self.begun += 1
            if block.not_run is None:
                self._run(block)

    def _run(self, block: Block) -> None:
        if block.language == "python":
            source = "\n" * (block.line - 1) + block.text  # tracebacks show the page's own lines
            exec(compile(source, self.name, "exec"), self.namespace)
        elif block.language in ("sh", "console"):
            for arguments in commands_of(block.text):
                self.command(arguments, self.folder)


CASES = [
    pytest.param(
        page,
        number,
        id=f"{page.relative_to(ROOT)}:{block.line}",
        # a page's blocks need one another: `-n 2 --dist loadgroup` keeps them with one worker
        marks=[pytest.mark.xdist_group(page.name), pytest.mark.slow],
    )
    for page in PAGES
    for number, block in enumerate(blocks_of(page.read_text(encoding="utf-8")))
    if block.language == "python"
    or (block.language in ("sh", "console") and (block.not_run or commands_of(block.text)))
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, PageRun]:
    """One run for each page."""
    return {
        page: PageRun(
            str(page.relative_to(ROOT)),
            blocks_of(page.read_text(encoding="utf-8")),
            tmp_path_factory.mktemp(page.stem),
        )
        for page in PAGES
    }


@pytest.mark.parametrize(("page", "number"), CASES)
def test_block(page: Path, number: int, runs: dict[Path, PageRun], monkeypatch: pytest.MonkeyPatch):
    page_run = runs[page]
    if page_run.blocks[number].not_run:
        pytest.skip(f"not run: {page_run.blocks[number].not_run}")
    monkeypatch.chdir(page_run.folder)
    monkeypatch.syspath_prepend(page_run.folder)  # as a script there would have it
    page_run.run(number)


def test_the_readme_shows_something_that_runs():
    readme = ROOT / "README.md"
    assert readme.is_file(), "there is no README.md"
    blocks = blocks_of(readme.read_text(encoding="utf-8"))
    run = [b for b in blocks if b.not_run is None]
    assert any(b.language == "python" for b in run), "README.md has no python block that is run"
    assert any(commands_of(b.text) for b in run if b.language in ("sh", "console")), (
        "README.md has no bitwright command that is run"
    )


PAGE = """\
Text with `code` and

```python
x = 1
```

```text
bitwright never
```

<!-- not run: it takes a day,
     and a night -->

```sh
bitwright train
```

- in a list

  ```console
  $ make demo
  $ bitwright demo \\
      --out "two words"  # a remark
  bitwrightly
  ```

````python
y = x + 1
assert not True, '''
```
'''
````
"""


def test_blocks_are_found():
    found = [(b.language, b.line, b.not_run) for b in blocks_of(PAGE)]
    why = "it takes a day,\n     and a night"
    assert found == [
        ("python", 4, None),
        ("text", 8, None),
        ("sh", 15, why),
        ("console", 21, None),
        ("python", 28, None),
    ]
    assert commands_of(blocks_of(PAGE)[3].text) == [["demo", "--out", "two words"]]
    assert blocks_of(PAGE)[4].text.endswith("```\n'''")


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("```python\nx = 1\n", "line 1: the block has no end"),
        ("\n```bash\nbitwright demo\n```\n", "line 2: mark the block 'sh'"),
        ("<!-- not run: -->\n```sh\nbitwright demo\n```\n", "say why"),
    ],
)
def test_a_block_that_would_be_missed_is_an_error(page: str, says: str):
    with pytest.raises(ValueError, match=says):
        blocks_of(page)


def test_a_comment_counts_only_right_before_its_block():
    blocks = blocks_of("<!-- not run: slow -->\nBut this:\n```sh\nbitwright demo\n```\n")
    assert [b.not_run for b in blocks] == [None]


@pytest.mark.parametrize("line", ["bitwright a | cat", "bitwright a > b", "bitwright a && b"])
def test_a_command_that_needs_a_shell_is_an_error(line: str):
    with pytest.raises(ValueError, match="needs a shell"):
        commands_of(line)


def test_a_block_runs_after_those_before_it_and_once(tmp_path: Path):
    ran: list[list[str]] = []
    page_run = PageRun("PAGE.md", blocks_of(PAGE), tmp_path, lambda command, _: ran.append(command))
    page_run.run(3)
    page_run.run(3)
    page_run.run(0)
    assert ran == [["demo", "--out", "two words"]]
    assert page_run.namespace["x"] == 1
    with pytest.raises(AssertionError) as error:
        page_run.run(4)
    assert page_run.namespace["y"] == 2
    assert error.traceback[-1].lineno == 28  # counted from 0: the page's line 29


def test_a_command_that_fails_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "bitwright.py").write_text("import sys\nprint('no such thing')\nsys.exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(AssertionError, match=r"(?s)ended with 3.*no such thing"):
        run_command(["demo"], tmp_path)
