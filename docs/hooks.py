"""For mkdocs: commands from the program itself, decisions, the changelog, roles as code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

CHANGELOG = "changelog.md"
#: a page of docs/ as the changelog names it
PLACE = re.compile(r"(?<![`\w/])docs/([\w/-]+\.md)")
#: what nbconvert puts into a notebook's page for formulas and diagrams that ours do not have
LOADERS = re.compile(
    r'<script (?:src=""|type="text/x-mathjax-config"|type="module")[^>]*>.*?</script>\s*', re.DOTALL
)
#: what a page that opens offline must not have
REMOTE = re.compile(
    r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"'
    r'|<script src="">|\bimport\("https?:[^"]*"'
)
LATEX = re.compile(r"\\(?:[td]?frac|mathrm|sum)(?![a-z])")
#: Sphinx's roles in docstrings, which mkdocstrings leaves as they are
ROLE = re.compile(r":(?:class|func|mod|data|meth|attr):<code[^>]*>~?([\w.]+)</code>")


def on_config(config: Any) -> Any:
    """Lists the notes in docs/decisions, and the changelog, in the menu."""
    folder = Path(config["docs_dir"]) / "decisions"
    notes = []
    for path in sorted(folder.glob("*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        notes.append({title: f"decisions/{path.name}"})
    config["nav"].append({"Decisions": notes})
    config["nav"].append({"Changelog": CHANGELOG})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the changelog, which lies beside docs/."""
    path = Path(config["docs_dir"]).parent / "CHANGELOG.md"
    text = PLACE.sub(r"[\g<0>](\1)", path.read_text(encoding="utf-8"))
    files.append(File.generated(config, CHANGELOG, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **rest: Any) -> str:
    """Puts the options of every command where the page asks for them."""
    if "<!-- commands -->" not in markdown:
        return markdown
    return markdown.replace("<!-- commands -->", commands())


def on_page_content(html: str, **rest: Any) -> str:
    """Names in roles become code."""
    return ROLE.sub(lambda found: f"<code>{found[1].rpartition('.')[2]}</code>", html)


def on_post_page(output: str, page: Any, **rest: Any) -> str:
    """Notebooks without scripts from elsewhere.

    Raises:
        PluginError: a page loads something from the network, or has formulas that nothing renders.
    """
    name = page.file.src_uri
    if name.endswith(".ipynb"):
        output = LOADERS.sub("", output)
    if found := wrong(output):
        raise PluginError(f"{name}: {found}")
    return output


def wrong(html: str) -> str:
    """What keeps a page from being whole offline; empty where nothing does."""
    if remote := REMOTE.search(html):
        return f"it loads {remote[0][-120:]}; keep it in docs/"
    if latex := LATEX.search(html):
        return f"{latex[0]} is shown as it stands; write it as Unicode"
    return ""


def commands() -> str:
    """Every command with what it does and its options."""
    from typer.main import get_command

    from bitwright.cli import app

    root: Any = get_command(app)
    parts = []
    for name, command in sorted(root.commands.items()):
        if command.hidden:
            continue
        parts.append(f"## {name}\n\n{_plain(command.help)}\n")
        rows = ["| option | what |", "|---|---|"]
        for option in command.params:
            if getattr(option, "hidden", False) or option.name == "help":
                continue
            names = ", ".join(f"`{n}`" for n in option.opts) if option.opts[0][:1] == "-" else ""
            names = names or f"`{(option.metavar or option.name).upper()}`"
            default = option.default
            said = _plain(getattr(option, "help", "") or "")
            if default not in (None, False, "", ()) and not callable(default) and names[:2] == "`-":
                said += f" Default: `{default}`."
            rows.append(f"| {names} | {said} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _plain(text: str | None) -> str:
    """One line, with nothing that a table or Markdown would take for its own."""
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")
