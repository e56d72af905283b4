"""What the documentation site shows besides the files of docs/: a hook of mkdocs.

The README is its front page and the repository's other documents are pages too, so that nothing is
told twice; links between all of them are led to where each file is on the site. The options of each
command are read from the program's own parser, the fields of a class with their comments from its
source.
"""

from __future__ import annotations

import argparse
import html
import importlib
import inspect
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from triscale.cli import make_parser

ROOT = Path(__file__).resolve().parents[2]
# documents of the repository -> pages
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "PROVENANCE.md": "provenance.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
_OPTIONS = re.compile(r"^<!-- options: (\w+) -->$", re.MULTILINE)
_FIELDS = re.compile(r"^<!-- fields: ([\w.]+)\.(\w+) -->$", re.MULTILINE)
_FIELD = re.compile(r"    (?P<name>[a-z]\w*): (?P<type>[^#=]+)(?:= [^#]*)?(?:  # (?P<comment>.*))?")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's documents, and whatever file of it a document links to."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    documents = [ROOT / name for name in PAGES] + sorted((ROOT / "docs").glob("*.md"))
    for document in documents:
        for link in _LINK.findall(document.read_text("utf-8")):
            path = _inside(document, link)
            if path.startswith("docs/") or path in PAGES or not (ROOT / path).is_file():
                continue
            if not files.get_file_from_path(path):
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page, with links as the site has them, and with the options of commands."""
    names = {target: name for name, target in PAGES.items()}
    document = ROOT / names.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    markdown = _LINK.sub(lambda found: _on_site(document, found[1]), markdown)
    if page.file.src_uri == "cli.md":
        return with_options(markdown)
    return _FIELDS.sub(lambda found: fields(found[1], found[2]), markdown)


def with_options(markdown: str) -> str:
    """The page of the command line: a table at each marker, and commands that have none behind."""
    parsers = command_parsers()
    told = set(_OPTIONS.findall(markdown))
    for name in [name for name in parsers if name not in told]:
        markdown += f"\n## triscale {name}\n\n<!-- options: {name} -->\n"
    return _OPTIONS.sub(lambda found: options(parsers[found[1]]), markdown)


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command of `triscale`, by name, in the order of its help."""
    (commands,) = (
        action
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    shown = {action.dest: action.help or "" for action in commands._choices_actions}
    for name, parser in commands.choices.items():
        parser.description = shown[name]
    return dict(commands.choices)


def options(parser: argparse.ArgumentParser) -> str:
    """A command in Markdown: what it does, its usage and a row for each argument."""
    usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    rows = ["| argument | meaning | default |", "|---|---|---|"]
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            rows.append(f"| {_name(action)} | {_meaning(action)} | {_default(action)} |")
    text = (parser.description or "").strip()
    lead = f"{text[:1].upper()}{text[1:]}." if text else ""
    return f"{lead}\n\n```text\n{_wrapped(usage)}\n```\n\n" + "\n".join(rows) + "\n"


def fields(module: str, name: str) -> str:
    """The fields of a class in Markdown, a row for each, with the comments beside or above it."""
    rows = ["| field | type | |", "|---|---|---|"]
    above: list[str] = []
    for line in inspect.getsource(getattr(importlib.import_module(module), name)).splitlines():
        if line.startswith("    # "):
            above.append(line[6:])
            continue
        found = _FIELD.fullmatch(line)
        if found and "pyright" not in (found["comment"] or ""):
            comment = html.escape(" ".join([*above, found["comment"] or ""]).strip())
            kind = found["type"].strip()
            rows.append(f"| `{found['name']}` | `{kind}` | {comment} |")
        above = []
        if line.startswith("    def "):
            break
    return "\n".join(rows) + "\n" if len(rows) > 2 else ""


def _name(action: argparse.Action) -> str:
    metavar = action.metavar or ("|".join(action.choices) if action.choices else "")
    value = f" {metavar}" if metavar and action.nargs != 0 else ""
    words = [f"{flag}{value}" for flag in action.option_strings] or [str(metavar or action.dest)]
    return ", ".join(f"`{word}`" for word in words)


def _meaning(action: argparse.Action) -> str:
    # the default has a column of its own
    text = re.sub(r"\s*\(default: [^()]*\)|^default: .*", "", action.help or "")
    return html.escape(text % {"prog": "triscale", "default": action.default}).replace("|", r"\|")


def _default(action: argparse.Action) -> str:
    told = re.search(r"default: (.*?)\)?$", action.help or "")
    if told and not isinstance(action.default, (int, float)):
        return html.escape(told[1]).replace("|", r"\|")
    value: Any = action.default
    if value in (None, False, argparse.SUPPRESS) or value == []:
        return "required" if action.required or _is_needed(action) else ""
    return f"`{value}`"


def _is_needed(action: argparse.Action) -> bool:
    return not action.option_strings and action.nargs not in ("?", "*")


def _wrapped(usage: str) -> str:
    """Usage in lines of at most 88 characters, broken between arguments only."""
    lines = [""]
    for part in re.findall(r"\[[^\]]*\](?: ?\.\.\.\])?|\S+", usage):
        if len(lines[-1]) + len(part) > 86:
            lines.append("      ")
        lines[-1] += (" " if lines[-1].strip() else "") + part
    return "\n".join(lines)


def _inside(document: Path, link: str) -> str:
    """The path within the repository that a link in a document leads to."""
    folder = document.parent.relative_to(ROOT).as_posix()
    return posixpath.normpath(posixpath.join(folder, link))


def _on_site(document: Path, link: str) -> str:
    """A link as the flat site has it; what isn't a file stays, for mkdocs to complain about."""
    path = _inside(document, link)
    return PAGES.get(path) or path.removeprefix("docs/")
