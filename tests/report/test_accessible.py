"""What a keyboard and a screen reader need of every page: names, order, and places to go to."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from html.parser import HTMLParser

import pytest

from report.every_page import PAGES, pages

VOID = {"meta", "link", "br", "img", "hr", "input", "col", "wbr"}


@dataclass
class Element:
    """One element, its text and what it holds."""

    tag: str
    attributes: dict[str, str]
    parent: Element | None
    children: list[Element] = field(default_factory=list)
    own: list[str] = field(default_factory=list)

    def all(self) -> list[Element]:
        """It and all inside it, in the order of the page."""
        return [self, *(e for child in self.children for e in child.all())]

    def text(self) -> str:
        """All text inside that is not hidden from a reader."""
        if self.attributes.get("aria-hidden") == "true":
            return ""
        return " ".join([*self.own, *(c.text() for c in self.children)]).strip()

    def inside(self, tag: str) -> bool:
        """Whether one of those around it is a `tag`."""
        return self.parent is not None and (self.parent.tag == tag or self.parent.inside(tag))

    def hidden(self) -> bool:
        """Whether it or one around it is not there for a reader."""
        own = self.attributes.get("aria-hidden") == "true"
        return own or (self.parent is not None and self.parent.hidden())


class Tree(HTMLParser):
    """The elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.at = self.root = Element("", {}, None)
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {k: v or "" for k, v in attrs}, self.at)
        self.at.children.append(made)
        if tag not in VOID:
            self.at = made

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.children.append(Element(tag, {k: v or "" for k, v in attrs}, self.at))

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"</{tag}> closes <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.own.append(data)


def faults(page: str) -> list[str]:
    """What a page lacks, a line each."""
    every = Tree(page).root.all()
    found: list[str] = []
    ids = [e.attributes["id"] for e in every if "id" in e.attributes]
    found += [f"id {name} twice" for name in {i for i in ids if ids.count(i) > 1}]

    def name_of(e: Element) -> str:
        for other in e.attributes.get("aria-labelledby", "").split():
            if other not in ids:
                found.append(f"{e.tag} named by {other}, which is not there")
        named = [x for x in every if x.attributes.get("id") in
                 e.attributes.get("aria-labelledby", "-").split()]  # fmt: skip
        titles = [c for c in e.children if c.tag in ("title", "caption", "summary")]
        texts = [e.attributes.get("aria-label", ""), *(x.text() for x in (*named, *titles))]
        return " ".join(texts).strip()

    def count(tag: str) -> int:
        return sum(e.tag == tag for e in every)

    for tag in ("html", "title", "h1", "main", "header", "footer"):
        if tag != "header" and tag != "title" and count(tag) != 1:
            found.append(f"{count(tag)} <{tag}>")
    if not next(e for e in every if e.tag == "html").attributes.get("lang"):
        found.append("no language")
    levels = [int(e.tag[1]) for e in every if e.tag in ("h1", "h2", "h3", "h4", "h5", "h6")]
    found += [f"h{b} after h{a}" for a, b in itertools.pairwise(levels) if b > a + 1]
    for e in every:
        a = e.attributes
        # what stands inside a picture is part of it
        whole = e.tag == "svg" and not e.inside("svg") and not e.hidden()
        if whole and not (a.get("role") == "img" and name_of(e)):
            found.append(f"a picture without a name: {e.text()[:40]}")
        if e.tag == "table" and not name_of(e):
            found.append(f"a table without a name: {e.text()[:40]}")
        if e.tag == "th" and a.get("scope") not in ("row", "col", "rowgroup", "colgroup"):
            found.append(f"a heading of nothing: {e.text()[:40]}")
        if e.tag == "details" and not name_of(e):
            found.append("something closed without a name")
        if e.tag in ("a", "button") and not (e.text() or name_of(e)):
            found.append(f"a <{e.tag}> without text")
        if e.tag == "a" and a.get("href", "").startswith("#") and a["href"][1:] not in ids:
            found.append(f"a link to {a['href']}, which is not there")
        if e.tag == "img" and "alt" not in a:
            found.append("an image without alt")
        if "tabindex" in a and a["tabindex"] != "0" and e.tag != "main":  # where "skip" leads
            found.append(f"tabindex {a['tabindex']}")
        if "scroll" in a.get("class", "").split() and not (
            a.get("tabindex") == "0" and a.get("role") in ("region", "group") and name_of(e)
        ):
            found.append(f"a part that scrolls, which no key reaches: {e.text()[:40]}")
        if "onclick" in a or a.get("role") == "button":
            found.append("something for a mouse only")
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return pages(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("page", PAGES)
def test_everything_has_a_name_and_can_be_reached(page: str, written: dict[str, str]) -> None:
    assert faults(written[page]) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('lang="en"', ""),
        ("<caption", "<p hidden"),
        (' scope="col"', ""),
        (' tabindex="0"', ""),
        ("<h2", "<h4"),
        ('role="img"', ""),
        ("<summary", "<b"),
    ],
)
def test_what_is_missing_is_seen(old: str, new: str, written: dict[str, str]) -> None:
    page = written["report"]
    assert old in page
    if old.startswith("<"):
        page = page.replace(f"</{old[1:]}>", f"</{new[1:].split()[0]}>")
    assert faults(page.replace(old, new))
