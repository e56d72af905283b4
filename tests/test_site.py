"""The documentation site, as `make docs` builds it: whole, linked, quiet in a browser.

The pages are read with Python's own HTML parser, and opened in Chromium, which says itself what it
asked for and what went wrong.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

import triscale

ROOT = Path(__file__).resolve().parents[1]
MAIN = ("index.html", "quickstart.html", "cli.html", "api.html", "how-it-works.html")
pytest.importorskip("mkdocs", reason="the documentation tools aren't installed")


def tool(name: str) -> ModuleType:
    """A script of docs/tools, imported."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Links(HTMLParser):
    """What a page has: anchors, links to elsewhere, and files that a browser fetches by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.ids |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and "canonical" not in values.get("rel", ""):
            self.fetched.append(values["href"])
        elif "src" in values:
            self.fetched.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("built") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Links]:
    """Each page by its path; the page for what isn't found has links from the server's root."""
    files = [path for path in site.rglob("*.html") if path.name != "404.html"]
    return {path.relative_to(site).as_posix(): Links(path.read_text("utf-8")) for path in files}


def broken(page: str, links: Links, pages: dict[str, Links], site: Path) -> list[str]:
    """The links of a page that lead nowhere, or that a browser would fetch from elsewhere."""
    wrong: list[str] = []
    for link in [*links.links, *links.fetched]:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            right = parts.scheme in ("https", "mailto") and link not in links.fetched
            if not (right and re.fullmatch(r"[\w.-]+\.[a-z]{2,}", parts.netloc)):
                wrong.append(link)
            continue
        target = (site / page).parent / unquote(parts.path) if parts.path else site / page
        if target.is_dir():
            target = target / "index.html"
        name = os.path.relpath(target, site)
        if not target.is_file():
            wrong.append(link)
        elif parts.fragment and name in pages:
            anchor = unquote(parts.fragment)
            if anchor not in pages[name].ids and not anchor.startswith("__codelineno"):
                wrong.append(link)
    return wrong


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ('<a href="a.html#b">', []),
        ('<a href="#c">', ["#c"]),
        ('<a href="a.html#c">', ["a.html#c"]),
        ('<a href="d.html">', ["d.html"]),
        ('<a href="https://example.org/x#y">', []),
        ('<a href="http//example.org">', ["http//example.org"]),
        ('<script src="https://example.org/a.js">', ["https://example.org/a.js"]),
    ],
)
def test_broken_links_are_found(text: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<p id="b">')
    pages = {"a.html": Links('<p id="b">')}
    assert broken("a.html", Links(text), pages, tmp_path) == expected


def test_links(site: Path, pages: dict[str, Links]) -> None:
    """Every link leads to a page, a file or an anchor; nothing is fetched from elsewhere."""
    found = {page: broken(page, links, pages, site) for page, links in pages.items()}
    assert {page: links for page, links in found.items() if links} == {}
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?https?:", style.read_text("utf-8")), style


def test_every_document_is_a_page(pages: dict[str, Links]) -> None:
    expected = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    own = {name.replace(".md", ".html") for name in tool("site").PAGES.values()}
    assert set(pages) == expected | own


def test_every_public_name_is_explained(pages: dict[str, Links]) -> None:
    told = {anchor.rpartition(".")[2] for anchor in pages["api.html"].ids if "triscale." in anchor}
    missing = [name for name in triscale.__all__ if name not in told]
    assert missing == [], "add `::: triscale.NAME` to docs/api.md"


def test_every_option_is_listed(site: Path) -> None:
    """The page of the command line has each argument in a row of its own, with its meaning."""
    text = (site / "cli.html").read_text("utf-8")
    for name, parser in tool("site").command_parsers().items():
        assert f'id="triscale-{name}"' in text
        rows = tool("site").options(parser)
        for action in parser._actions:
            for flag in action.option_strings:
                if flag not in ("-h", "--help"):
                    assert f"`{flag}" in rows, f"{name} {flag}"
                    assert f"<code>{flag}" in text, f"{name} {flag}"


def test_options() -> None:
    """A parser in Markdown, written out."""
    parser = tool("site").argparse.ArgumentParser(prog="p", description="does it")
    parser.add_argument("data", help="a | b")
    parser.add_argument("--size", type=int, default=8, metavar="N|M", help="of <it> (default: 8)")
    parser.add_argument("--kind", choices=["a", "b"], help="which")
    parser.add_argument("--all", action="store_true", help="everything")
    assert tool("site").options(parser) == "\n".join(
        [
            "Does it.",
            "",
            "```text",
            "p [-h] [--size N|M] [--kind {a,b}] [--all] data",
            "```",
            "",
            "| argument | meaning | default |",
            "|---|---|---|",
            r"| `data` | a \| b | required |",
            "| `--size N|M` | of &lt;it&gt; | `8` |",
            "| `--kind a|b` | which |  |",
            "| `--all` | everything |  |",
            "",
        ]
    )


def test_fields() -> None:
    """The fields of a class, with comments beside and above them."""
    table = tool("site").fields("triscale", "Sample").splitlines()
    assert len(table) == 2 + len(triscale.Sample._fields)
    assert table[2] == "| `image` | `NDArray[np.uint8]` | (H, W, 3) RGB |"
    assert table[3].endswith("at a part of its size, of the whole picture |")
    assert tool("site").fields("triscale", "UserError") == ""


def test_a_command_without_a_place_is_appended() -> None:
    text = tool("site").with_options("# Command line\n")
    train = text.index("## triscale train")
    assert "| `--recipe NAME|FILE`" in text[train : text.index("## triscale eval")]


def test_drawings_are_those_of_the_script() -> None:
    drawings = tool("drawings")
    files = {path.stem: path.read_text("utf-8") for path in drawings.FOLDER.glob("*.svg")}
    assert files == {name: draw() for name, draw in drawings.DRAWINGS.items()}


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[str]:
    """The site's address on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser(server: str, pages: dict[str, Links], width: int) -> None:
    """No page logs an error, asks for anything elsewhere, or is wider than the window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on this machine")
    said: list[str] = []
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        scheme = "dark" if width < 1000 else "light"
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(f"{page.url}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"{page.url}: {error}"))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((server, "data:", "blob:"))
                else said.append(f"{page.url}: asks for {request.url}")
            ),
        )
        for name in pages if width < 1000 else MAIN:
            page.goto(server + name)
            spare = page.evaluate("innerWidth - document.documentElement.scrollWidth")
            assert spare >= 0, f"{name} is {-spare} pixels wider than {width}"
        page.goto(server + "index.html")
        if width > 1000:
            # letter by letter: the theme may miss what comes all at once
            words = page.locator("[data-md-component=search-query]")
            words.press_sequentially("accumulate", delay=100)
            page.wait_for_selector("[data-md-component=search-result] a[href*='recipes.html']")
        browser.close()
    assert said == []
