"""The HTML page: what it says, and how it behaves in a browser (Chromium, where there is one)."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triscale.page import (
    Cell,
    Html,
    Section,
    Value,
    code,
    columns,
    details,
    escape,
    facts,
    figure,
    gallery,
    listing,
    page,
    paragraph,
    svg,
    table,
)

PICTURE = np.tile(np.array([200, 40, 40], np.uint8), (60, 500, 1))  # red, wide


class Reader(HTMLParser):
    """Python's own parser: the tags in order, and the text outside of style and script."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.opened, self.closed, self.text, self.ids = list[str](), list[str](), "", list[str]()
        self._inside = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self._inside = tag
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        self.closed.append(tag)
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("style", "script"):
            self.text += data


def document() -> str:
    rows: list[tuple[Value, ...]] = [
        ("b", 2.5, 1000, Cell("10 %", 0.1)),
        ("a", None, 20, Cell("9 %", 0.09)),
        ("c", 10.0, 3, None),
    ]
    return page(
        "A & <b>",
        lead='first "line"',
        sections=[
            Section("Table", table(["name", "x", "n", "share"], rows), note="a < b"),
            Section("Pictures", gallery([figure(PICTURE, caption="<red>", width=100)])),
            Section("Pictures", columns([paragraph("left"), svg("<svg viewBox='0 0 9 9'></svg>")])),
            Section("!", details("more", listing(["<i>", "two"]) + code("a > b" * 200))),
        ],
    )


def test_empty() -> None:
    read = Reader(page("", sections=[]))
    assert read.text.split() == ["◐"]
    assert table([], []).count("<tr>") == 1
    assert facts([]) == '<div class="facts"></div>'


def test_a_flag_in_a_list_is_kept_whole() -> None:
    assert listing(["<more> (--epochs 20)"]) == (
        '<ul><li>&lt;more&gt; (<span class="whole">--epochs</span> 20)</li></ul>'
    )


def test_texts_are_escaped_and_tags_are_closed() -> None:
    read = Reader(document())
    for text in ("A & <b>", 'first "line"', "a < b", "<red>", "<i>"):
        assert text in read.text
    assert not {"b", "red", "i"} & set(read.opened)
    void = {"meta", "link", "img"}
    assert sorted(tag for tag in read.opened if tag not in void) == sorted(read.closed)
    assert read.ids == ["theme", "table", "pictures", "pictures-2", "part", "large"]


def test_nothing_is_fetched() -> None:
    sources = re.findall(r'(?:src|href)="([^"]*)"', document())
    assert all(source.startswith(("data:", "#")) for source in sources), sources
    assert "http:" not in document()
    assert "https:" not in document()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "&ndash;"),
        (float("nan"), "&ndash;"),
        (12345, "12,345"),
        (0.12345, "0.123"),
        ("<", "&lt;"),
        (Html("<i>x</i>"), "<i>x</i>"),
        (Cell("1 %", 0.01), "1 %"),
    ],
)
def test_values(value: Value, shown: str) -> None:
    assert f"<b>{shown}</b>" in facts([("name", value)])
    assert f">{shown}</td>" in table(["name"], [[value]])


def test_pictures_are_shrunk_only() -> None:
    assert 'width="100" height="12"' in figure(PICTURE, width=100)
    assert 'width="500" height="60"' in figure(PICTURE, width=1000)
    assert escape(escape("<")) == "&lt;"


def test_in_a_browser(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(document(), encoding="utf-8")
    tab = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    said, asked = list[str](), list[str]()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((tmp_path / "page.html").as_uri())

    def order() -> str:
        return "".join(tab.locator("tbody td:first-child").all_inner_texts())

    assert order() == "bac"
    for header, expected in [
        ("name", "abc"),
        ("name", "cba"),
        ("x", "cba"),
        ("x", "bca"),  # a dash stays last
        ("n", "bac"),
        ("share", "bac"),
        ("share", "abc"),
    ]:
        tab.get_by_role("button", name=header, exact=True).click()
        assert order() == expected, header
    assert tab.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = tab.evaluate(background)
    tab.locator("#theme").click()
    assert tab.evaluate(background) != dark
    tab.locator("figure img").click()
    assert tab.locator("dialog").is_visible()
    tab.locator("dialog").click()
    assert not tab.locator("dialog").is_visible()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [
        (tmp_path / "page.html").as_uri()
    ]
